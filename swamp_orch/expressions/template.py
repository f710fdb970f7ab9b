"""Templates: text with `${{ … }}` in it, parsed once from a definition file.

Rules:

1. A real tokenizer finds the end of an expression: `}}` inside a string, a comment or a map literal does not
   end it. What does not end is an error with its place.
2. Only text that a person wrote into a definition file may be parsed. `parse_tree` gives a `Tree`, and only a
   `Tree` can be evaluated; values (inputs, records, outputs, webhooks, files) never become one.
3. Substitution is by place: a tree has the shape of what was parsed, with a template where the text was.
4. A whole-value expression is one expression and nothing else (a line end after it, as YAML's block texts
   have, does not count): it keeps its type. Everything else is text.
5. There is no escape: a literal `${{` is written as an expression, `${{ "${{" }}`.

It does not know CEL beyond its tokens, nor what names mean.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import attrs

from swamp_proto.errors import LocalError

OPEN: Final = "${{"
CLOSE: Final = "}}"
NAMESPACES: Final = (
    "inputs", "self", "run", "model", "data", "file", "vault", "env", "workers", "webhook",
)  # fmt: skip


class ExpressionError(LocalError):
    """An expression that is wrong or failed. The message starts with its place where that is known."""

    code = "expression"


@attrs.frozen
class Expression:
    """What stands between `${{` and `}}`, without blanks around it. `at` is the offset of its `${{` in the
    text."""

    text: str
    at: int

    @property
    def code(self) -> str:
        """As the engine gets it: without `raw( )`, and names with hyphens after `model.` in brackets."""
        return _bracketed(_RAW_CALL.sub("", self.text)[:-1] if self.is_raw else self.text)

    @property
    def is_raw(self) -> bool:
        """Whether it is `raw(…)` as a whole: in a shell's `run`, text to be pasted as it is."""
        return _is_raw(self.text)


@attrs.frozen
class Template:
    """A parsed text: literal texts and expressions in turn. `where` names file and line for errors, or is
    empty."""

    parts: tuple[str | Expression, ...]
    text: str
    where: str = ""

    @property
    def whole(self) -> Expression | None:
        """The expression, when there is nothing else."""
        parts = self.parts
        if len(parts) == 2 and parts[1] in ("\n", "\r\n"):
            parts = parts[:1]
        return parts[0] if len(parts) == 1 and isinstance(parts[0], Expression) else None

    @property
    def expressions(self) -> tuple[Expression, ...]:
        return tuple(part for part in self.parts if isinstance(part, Expression))

    def error(self, message: str, hint: str | None = None, *, at: int | None = None) -> ExpressionError:
        """An error about this template, with its place."""
        place = f" at {position(self.text, at)}" if at is not None and "\n" in self.text else ""
        return ExpressionError(
            f"{self.where}: {message}{place}" if self.where else f"{message}{place}", hint=hint
        )


Tree = Template | dict[str, Any] | list[Any] | tuple[Any]
"""What `parse_tree` gives. Leaves are `Template`s (texts with expressions) and 1-tuples of anything else."""


def position(text: str, at: int) -> str:
    """`line 2, column 5`, both from 1."""
    line_start = text.rfind("\n", 0, at) + 1
    return f"line {text.count(chr(10), 0, at) + 1}, column {at - line_start + 1}"


def parse(text: str, where: str = "") -> Template:
    """Parse a text of a definition file. Raises `ExpressionError` with the place of what does not end."""
    return Template(_parts(text, where), text, where)


@functools.lru_cache(maxsize=4096)
def _parts(text: str, where: str) -> tuple[str | Expression, ...]:
    parts: list[str | Expression] = []
    at = 0
    while True:
        start = text.find(OPEN, at)
        if start < 0:
            break
        if start > at:
            parts.append(text[at:start])
        end = _end_of(text, start, where)
        inner = text[start + len(OPEN) : end - len(CLOSE)].strip()
        if not inner:
            raise _problem("empty expression", text, start, where)
        parts.append(Expression(inner, start))
        at = end
    if at < len(text) or not parts:
        parts.append(text[at:])
    return tuple(parts)


_PAIRS: Final = {")": "(", "]": "[", "}": "{"}
_STRING: Final = re.compile(r"""[rRbB]{0,2}(\"\"\"|'''|"|')""")
_WORD: Final = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")


def _end_of(text: str, start: int, where: str) -> int:
    """The offset after the `}}` that belongs to the `${{` at `start`."""
    opened: list[tuple[str, int]] = []
    at = start + len(OPEN)
    while at < len(text):
        string = _STRING.match(text, at)
        if string is not None:
            at = _end_of_string(text, string, where)
            continue
        char = text[at]
        if char == "}" and not opened:
            if text.startswith(CLOSE, at):
                return at + len(CLOSE)
            raise _problem("a single '}' in an expression; '}}' ends it", text, at, where)
        if text.startswith("//", at):
            line_end = text.find("\n", at)
            at = len(text) if line_end < 0 else line_end
        elif char in "([{":
            opened.append((char, at))
            at += 1
        elif char in _PAIRS:
            if not opened or opened[-1][0] != _PAIRS[char]:
                raise _problem(f"'{char}' closes nothing in an expression", text, at, where)
            opened.pop()
            at += 1
        else:
            word = _WORD.match(text, at)
            at = word.end() if word is not None else at + 1
    if opened:
        raise _problem(f"'{opened[-1][0]}' is not closed in an expression", text, opened[-1][1], where)
    raise _problem("'${{' without its '}}'", text, start, where)


def _end_of_string(text: str, opening: re.Match[str], where: str) -> int:
    quote = opening[1]
    raw = "r" in opening[0].lower()
    at = opening.end()
    while at < len(text):
        if text.startswith(quote, at):
            return at + len(quote)
        if text[at] == "\n" and len(quote) == 1:
            break
        at += 2 if text[at] == "\\" and not raw else 1
    raise _problem("a string that does not end in an expression", text, opening.start(), where)


def _problem(message: str, text: str, at: int, where: str) -> ExpressionError:
    place = f"{message} ({position(text, at)})"
    return ExpressionError(
        f"{where}: {place}" if where else place,
        hint=f'a literal {OPEN} is written {OPEN} "{OPEN}" {CLOSE}',
    )


# ── trees ────────────────────────────────────────────────────────────────────────────────────────


def parse_tree(value: Any, where: str = "") -> Tree:
    """Parse every text in a value of a definition file, by place. Keys of maps are taken literally; one that
    holds an expression is an error. Raises `ExpressionError`."""
    if isinstance(value, str):
        return parse(value, where) if OPEN in value else (value,)
    if isinstance(value, Mapping):
        for key in value:
            if isinstance(key, str) and OPEN in key:
                raise ExpressionError(
                    f"{where + ': ' if where else ''}a key cannot hold an expression: {key}",
                    hint="build the map in one expression: ${{ {inputs.name: inputs.value} }}",
                )
        return {key: parse_tree(item, f"{where}.{key}" if where else str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [parse_tree(item, f"{where}[{index}]") for index, item in enumerate(value)]
    return (value,)


def literal_tree(value: Any) -> Tree:
    """A value as a tree that evaluates to itself, whatever its texts contain: for merging values into
    trees."""
    return (value,)


def templates(tree: Tree) -> Iterator[Template]:
    """Every template in a tree, in order."""
    if isinstance(tree, Template):
        yield tree
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from templates(item)
    elif isinstance(tree, list):
        for item in tree:
            yield from templates(item)


# ── what was probably meant ──────────────────────────────────────────────────────────────────────


@attrs.frozen
class Lookalike:
    """Something that is not an expression but reads like one. `at` is its offset in the text."""

    at: int
    found: str
    meant: str


_NAMES: Final = "|".join(NAMESPACES)
_LOOKALIKE: Final = re.compile(
    rf"(?<!\$)\{{\{{\s*(?P<double>(?:{_NAMES})\s*\..*?)\}}\}}"
    rf"|\$\{{\s*(?P<single>(?:{_NAMES})\s*\.[^{{}}]*?)\}}"
    rf"|\$\s+\{{\{{\s*(?P<spaced>(?:{_NAMES})\s*\..*?)\}}\}}"
    rf"|\$\(\(?\s*(?P<paren>(?:inputs|vault|self|webhook)\.[^()]*?)\)",
    re.DOTALL,
)


def lookalikes(template: Template) -> tuple[Lookalike, ...]:
    """`{{ inputs.x }}`, `${ inputs.x }` and their like in the literal text: left alone, and worth a
    warning."""
    found = []
    at = 0
    for part in template.parts:
        if isinstance(part, Expression):
            at = part.at + len(OPEN)  # close enough for finding the next literal
            continue
        start = template.text.find(part, at)
        for match in _LOOKALIKE.finditer(part):
            inner = next(group for group in match.groups() if group is not None).strip()
            found.append(Lookalike(start + match.start(), match[0], f"{OPEN} {inner} {CLOSE}"))
        at = start + len(part)
    return tuple(found)


# ── what the engine gets ─────────────────────────────────────────────────────────────────────────

_RAW_CALL: Final = re.compile(r"^raw\s*\(")
_HYPHENATED: Final = re.compile(r"model\s*\.\s*([A-Za-z_][A-Za-z_0-9]*(?:-[A-Za-z_0-9]+)+)")


def _is_raw(text: str) -> bool:
    """Whether the bracket after `raw` is closed by the last character."""
    opening = _RAW_CALL.match(text)
    if opening is None:
        return False
    depth, at = 1, opening.end()
    while at < len(text):
        string = _STRING.match(text, at)
        if string is not None:
            at = _end_of_string(text, string, "")
            continue
        if text.startswith("//", at):
            return False  # a comment could hide the end; `raw` is then an unknown function
        depth += (text[at] == "(") - (text[at] == ")")
        at += 1
        if not depth:
            break
    return at == len(text) and not depth


@functools.lru_cache(maxsize=4096)
def _bracketed(text: str) -> str:
    """`model.remote-echo.x` -> `model["remote-echo"].x`, outside strings and comments."""
    out: list[str] = []
    at = 0
    while at < len(text):
        string = _STRING.match(text, at)
        if string is not None:
            end = _end_of_string(text, string, "")
        elif text.startswith("//", at):
            line_end = text.find("\n", at)
            end = len(text) if line_end < 0 else line_end
        else:
            name = _HYPHENATED.match(text, at) if at == 0 or text[at - 1] not in "." else None
            if name is not None:
                out.append(f'model["{name[1]}"]')
                at = name.end()
                continue
            word = _WORD.match(text, at)
            end = word.end() if word is not None else at + 1
        out.append(text[at:end])
        at = end
    return "".join(out)
