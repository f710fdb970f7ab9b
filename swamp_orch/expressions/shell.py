"""Expressions in shell text: values reach the shell as variables, so that data cannot become commands.

| the expression stands | what the shell gets |
|---|---|
| unquoted | `"${__SWAMP_1}"` |
| in double quotes | `${__SWAMP_1}` |
| in a comment | nothing; it is not evaluated |
| anywhere else (`shell_lexer.Context`) | an error that says where, and suggests `env:` or `raw(…)` |
| `${{ raw(…) }}` | its text, pasted as it is |
| as the whole text | the value is the command itself |

The same expression twice is one variable. Secrets are variables like all others, and `***` in what is shown;
they are never pasted, not even by `raw`.
"""

import functools
from collections.abc import Mapping
from typing import Final

import attrs

from swamp_orch.expressions.evaluate import as_text, evaluate_expression
from swamp_orch.expressions.scope import Scope
from swamp_orch.expressions.secret import ReadSecret, Secret
from swamp_orch.expressions.shell_lexer import HOLE, SAFE, Context, Found, Lexer
from swamp_orch.expressions.template import Expression, ExpressionError, Template
from swamp_proto.limits import KIB, SHELL_VALUE_MAX, SHELL_VALUES_MAX

PREFIX: Final = "__SWAMP_"


@attrs.frozen
class ShellText:
    """A shell text and what it needs. `display` is what may be stored and shown."""

    script: str
    bindings: Mapping[str, str | Secret] = attrs.field(repr=False)  # variable -> value
    display: str
    sources: Mapping[str, str] = attrs.field(repr=False, factory=dict)  # variable -> its expression

    def resolve(self, read: ReadSecret) -> dict[str, str]:
        """The variables with secrets read, for one dispatch. Raises `ExpressionError` for one that is too
        large."""
        found = {}
        for name, value in self.bindings.items():
            text = value.resolve(read) if isinstance(value, Secret) else value
            _check_value(text, self.sources.get(name, name), "")
            found[name] = text
        total = sum(len(text.encode()) for text in found.values())
        if total > SHELL_VALUES_MAX:
            raise ExpressionError(
                f"the expression values of one shell text are {total // KIB} KiB together;"
                f" {SHELL_VALUES_MAX // KIB} KiB is the most",
                hint="pass large values as files",
            )
        return found


def shell_problems(template: Template) -> tuple[ExpressionError, ...]:
    """What can be known without values: every expression that stands where it cannot be passed safely."""
    if template.whole is not None:
        return ()
    if HOLE in template.text:
        return (template.error("a shell text cannot contain a NUL character"),)
    found = iter(_places(template.parts, {}))
    problems = []
    for expression in template.expressions:
        if expression.is_raw:
            continue
        place = next(found)
        if place.context not in SAFE:
            problems.append(_misplaced(template, expression, place))
    return tuple(problems)


def evaluate_shell(template: Template, scope: Scope) -> ShellText:
    """The text with its expressions as variables. Raises `ExpressionError`."""
    whole = template.whole
    if whole is not None:
        return _whole(template, whole, scope)
    problems = shell_problems(template)
    if problems:
        raise problems[0]
    raws = {
        index: _raw(template, part, scope)
        for index, part in enumerate(template.parts)
        if isinstance(part, Expression) and part.is_raw
    }
    places = _places(template.parts, raws)
    if raws and places != _places(template.parts, {}):
        raise template.error(
            "the text of raw(…) changes the quoting of the expressions after it",
            "let raw(…) stand for whole words, with balanced quotes",
        )
    return _assemble(template, raws, places, scope)


def plain_shell(text: str) -> ShellText:
    """A text without expressions."""
    return ShellText(text, {}, text)


def _assemble(
    template: Template, raws: Mapping[int, str], places: tuple[Found, ...], scope: Scope
) -> ShellText:
    script: list[str] = []
    display: list[str] = []
    variables: dict[str, str] = {}  # expression -> variable
    bindings: dict[str, str | Secret] = {}
    following = iter(places)
    for index, part in enumerate(template.parts):
        if isinstance(part, str) or index in raws:
            text = part if isinstance(part, str) else raws[index]
            script.append(text)
            display.append(text)
            continue
        context = next(following).context
        if context is Context.COMMENT:
            script.append("...")
            display.append("...")
            continue
        name = variables.get(part.text)
        if name is None:
            name = variables[part.text] = f"{PREFIX}{len(variables) + 1}"
            value = as_text(template, part, evaluate_expression(template, part, scope))
            if isinstance(value, str):
                _check_value(value, part.text, template.where)
            bindings[name] = value
        script.append(f"${{{name}}}" if context is Context.DOUBLE else f'"${{{name}}}"')
        value = bindings[name]
        display.append(value.display if isinstance(value, Secret) else value)
    sources = {name: text for text, name in variables.items()}
    return ShellText("".join(script), bindings, "".join(display), sources)


def _whole(template: Template, expression: Expression, scope: Scope) -> ShellText:
    value = evaluate_expression(template, expression, scope)
    if isinstance(value, Secret):
        # The command itself is secret: the shell reads it from a variable, so it is on no command line.
        name = f"{PREFIX}1"
        return ShellText(f'eval "${{{name}}}"', {name: value}, value.display, {name: expression.text})
    if not isinstance(value, str):
        raise template.error(
            f"expression `{expression.text}` is the whole command and must be text", at=expression.at
        )
    if "\0" in value:
        raise template.error(f"the text of expression `{expression.text}` has a NUL character")
    return plain_shell(value)


def _raw(template: Template, expression: Expression, scope: Scope) -> str:
    value = as_text(template, expression, evaluate_expression(template, expression, scope))
    if isinstance(value, Secret):
        raise template.error(
            f"expression `{expression.text}`: raw() cannot paste a secret into a command",
            "leave raw() out: secrets are passed as variables",
            at=expression.at,
        )
    if HOLE in value:
        raise template.error(f"the text of expression `{expression.text}` has a NUL character")
    return value


def _places(parts: tuple[str | Expression, ...], raws: Mapping[int, str]) -> tuple[Found, ...]:
    """The place of every expression that is not raw. A raw one of unknown text counts as a word."""
    return _read(_with_holes(parts, raws))


@functools.lru_cache(maxsize=512)
def _read(text: str) -> tuple[Found, ...]:
    return Lexer(text).read()


def _with_holes(parts: tuple[str | Expression, ...], raws: Mapping[int, str]) -> str:
    text: list[str] = []
    for index, part in enumerate(parts):
        if isinstance(part, str):
            text.append(part)
        else:
            text.append(raws.get(index, "raw") if part.is_raw else HOLE)
    return "".join(text)


def _misplaced(template: Template, expression: Expression, place: Found) -> ExpressionError:
    why = f" ({place.why})" if place.why else ""
    return template.error(
        f"expression `{expression.text}` stands {place.context.value}{why}",
        'give the value a name under `env:` and use "$NAME" there,'
        f" or write ${{{{ raw({expression.text}) }}}} to paste it unquoted and unprotected",
        at=expression.at,
    )


def _check_value(text: str, expression: str, where: str) -> None:
    prefix = f"{where}: " if where else ""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ExpressionError(f"{prefix}the value of expression `{expression}` is not Unicode text") from None
    if size > SHELL_VALUE_MAX:
        raise ExpressionError(
            f"{prefix}the value of expression `{expression}` is {size // KIB} KiB;"
            f" a shell can be given {SHELL_VALUE_MAX // KIB} KiB at most",
            hint="write it to a file and pass the file's name",
        )
    if "\0" in text:
        raise ExpressionError(f"{prefix}the value of expression `{expression}` has a NUL character")
