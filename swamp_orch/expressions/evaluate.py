"""Evaluation: templates and a scope become values.

Rules:

1. Only `Template`s and `Tree`s are evaluated. Values that come in through a scope go through the engine as
   data and are never looked at as text.
2. A whole-value expression keeps its type (instants become ISO 8601 text, bytes base64: results are
   JSON-shaped). Inside other text: strings as they are, null is nothing, true/false, numbers as CEL writes
   them, maps and lists as JSON on one line.
3. Secrets stay deferred. While the engine works, a secret is a marker with a random part; afterwards markers
   become `Secret`s. So that a marker is never taken for the text it stands for, `SecretUse` proves beforehand that
   the expression only passes secrets on: as a whole, joined to other text with `+` or `join`, chosen by `?
   :`, in a list or map. Looking into one (`size`, `==`, `contains`, …) is an error.

It does not read vaults, and does not know shells (`shell.py`).
"""

import functools
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs

from swamp_orch.expressions.scope import DECLARED, FUNCTIONS, VARIABLES, Scope, called
from swamp_orch.expressions.secret import Secret, joined, secrets_in
from swamp_orch.expressions.secret_flow import LookedInto, Markers, SecretUse
from swamp_orch.expressions.template import Expression, Template, Tree
from swamp_orch.query import syntax
from swamp_orch.query.environment import CelError, Compiled, UnknownName, compile_expression, json_value
from swamp_proto.errors import SwampError

__all__ = [
    "Plan",
    "as_text",
    "called",
    "compiled_expression",
    "evaluate",
    "evaluate_expression",
    "evaluate_tree",
    "plan_of",
]


def evaluate_tree(tree: Tree, scope: Scope) -> Any:
    """The value of a tree, place by place. Raises `ExpressionError`, and what the scope's functions raise."""
    if isinstance(tree, Template):
        return evaluate(tree, scope)
    if isinstance(tree, dict):
        return {key: evaluate_tree(item, scope) for key, item in tree.items()}
    if isinstance(tree, list):
        return [evaluate_tree(item, scope) for item in tree]
    return tree[0]


def evaluate(template: Template, scope: Scope) -> Any:
    """The value of a template: of any type if it is one expression, else a text (or a `Secret`)."""
    for expression in template.expressions:
        if expression.is_raw:
            raise template.error(
                f"expression `{expression.text}`: raw(…) has a meaning only in a shell's `run`",
                "leave raw() out here",
                at=expression.at,
            )
    whole = template.whole
    if whole is not None:
        return evaluate_expression(template, whole, scope)
    parts: list[str | Secret] = []
    for part in template.parts:
        if isinstance(part, str):
            parts.append(part)
        else:
            parts.append(as_text(template, part, evaluate_expression(template, part, scope)))
    return joined(parts)


def evaluate_expression(template: Template, expression: Expression, scope: Scope) -> Any:
    """The value of one expression of `template`, JSON-shaped, possibly with `Secret`s in it."""
    compiled = compiled_expression(template, expression)
    data = _data(template, expression, compiled, scope)
    plan = _plan(compiled)
    secret_names = []
    for name, value in data.items():
        _refuse_unfit(template, expression, f"`{name}` holds", value)
        if next(iter(secrets_in(value)), None) is not None:
            secret_names.append(name)
    markers = Markers()
    if secret_names or plan.calls_vault:
        try:
            SecretUse(data).check(compiled.tree.root)
        except LookedInto as looked:
            raise template.error(
                f"expression `{expression.text}` {looked.problem}",
                "a secret can be passed on or joined with +; work with its text inside the step",
                at=expression.at,
            ) from None
        data.update((name, markers.put(data[name])) for name in secret_names)
    functions = dict(scope.functions)
    for name in plan.functions:
        if name == "vault.get" and scope.secrets:
            functions[name] = markers.vault_get
        elif name in functions:
            functions[name] = functools.partial(_fit, template, expression, name, functions[name])
        else:
            raise _unavailable(template, expression, f"{name}()", scope)
    try:
        value = compiled.evaluate(data, functions)
    except CelError as error:
        raise template.error(str(error), error.hint, at=expression.at) from None
    return markers.take(json_value(value))


def _fit(
    template: Template, expression: Expression, name: str, function: Callable[..., Any], *arguments: Any
) -> Any:
    """The function's answer, unless the engine would change it."""
    answer = function(*arguments)
    _refuse_unfit(template, expression, f"{name}() gave", answer)
    return answer


def _refuse_unfit(template: Template, expression: Expression, what: str, value: Any) -> None:
    problem = _unfit(value)
    if problem is not None:
        raise template.error(
            f"expression `{expression.text}`: {what} {problem}, which expressions cannot carry",
            "pass such content as a file",
            at=expression.at,
        )


def _unfit(value: Any) -> str | None:
    """What the engine cannot carry in a value, if anything: it would cut a text at a NUL character."""
    if isinstance(value, str):
        if "\0" in value:
            return "a NUL character"
        if value.isascii():
            return None
        try:
            value.encode()
        except UnicodeEncodeError:
            return "text that is not Unicode"
        return None
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return next((found for found in map(_unfit, items) if found is not None), None)


def as_text(template: Template, expression: Expression, value: Any) -> str | Secret:
    """A value as it stands inside text."""
    match value:
        case str() | Secret():
            return value
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
        case _:
            if next(iter(secrets_in(value)), None) is not None:
                raise template.error(
                    f"expression `{expression.text}` is a map or list that holds a secret,"
                    " and cannot be put into text",
                    "put the secret itself there, or pass the whole as a value of its own",
                    at=expression.at,
                )
            return json.dumps(value, ensure_ascii=False)


def compiled_expression(template: Template, expression: Expression) -> Compiled:
    """The checked expression. Raises `ExpressionError`; needs no scope, so that validation uses it too."""
    try:
        return _compile(expression.code)
    except UnknownName as error:
        name = error.name
        if name in {"data", "file", "vault", "workers"}:
            known = [f"{item}()" for item in DECLARED if item.startswith(f"{name}.")]
            message, hint = f"`{name}` is not a value by itself", f"it has {', '.join(known)}"
        elif name == "raw":
            message, hint = "raw(…) must be the whole expression, in a shell's `run`", None
        else:
            namespaces = [*VARIABLES, "data", "file", "vault", "workers"]
            message, hint = f"unknown name `{name}`", error.hint or f"there are: {', '.join(namespaces)}"
        raise template.error(f"expression `{expression.text}`: {message}", hint, at=expression.at) from None
    except CelError as error:
        problem = str(error)
        hint = error.hint
        if _RAW_INSIDE.search(expression.text) and not expression.is_raw:
            hint = "raw(…) must be the whole expression, in a shell's `run`"
        elif "undeclared reference" in problem:
            hint = f"functions are: {', '.join(DECLARED)}, and those of CEL"
        raise template.error(f"expression `{expression.text}`: {problem}", hint, at=expression.at) from None


_RAW_INSIDE: Final = re.compile(r"\braw\s*\(")


@functools.lru_cache(maxsize=2048)
def _compile(code: str) -> Compiled:
    return compile_expression(code, VARIABLES, FUNCTIONS)


# ── what an expression needs ─────────────────────────────────────────────────────────────────────


@attrs.frozen
class Plan:
    """What the syntax tree says an expression asks for."""

    functions: tuple[str, ...]  # declared ones it calls, by name
    models: tuple[str, ...]  # `model.<name>`
    computed_model: bool  # `model[…]` with something that is not a constant

    @property
    def calls_vault(self) -> bool:
        return "vault.get" in self.functions


def plan_of(compiled: Compiled) -> Plan:
    """What `compiled` asks for, in the order of the text."""
    functions: dict[str, None] = {}
    models: dict[str, None] = {}
    uses = constant = 0
    for node in syntax.walk(compiled.tree.root):
        name = called(node)
        if name is not None:
            functions[name] = None
        if isinstance(node, syntax.Name) and node.name == "model":
            uses += 1
        path = syntax.path_of(node) if isinstance(node, syntax.Select | syntax.Call) else None
        if path is not None and path[0] == "model" and len(path) == 2:
            models[path[1]] = None
            constant += 1
    return Plan(tuple(functions), tuple(models), "model" in compiled.names and uses > constant)


@functools.lru_cache(maxsize=2048)
def _plan_of_text(text: str) -> Plan:
    return plan_of(_compile(text))


def _plan(compiled: Compiled) -> Plan:
    return _plan_of_text(compiled.text)


def _data(template: Template, expression: Expression, compiled: Compiled, scope: Scope) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in compiled.names:
        if name == "model" and scope.model is not None:
            plan = _plan(compiled)
            if plan.computed_model:
                raise template.error(
                    f"expression `{expression.text}`: `model` needs a name that is written out",
                    'model.<name>.… or model["<name>"].…; data.latest(model, name) takes computed names',
                    at=expression.at,
                )
            found[name] = {model: scope.model(model) for model in plan.models}
        elif name in scope.values:
            found[name] = scope.values[name]
        else:
            raise _unavailable(template, expression, f"`{name}`", scope)
    return found


def _unavailable(template: Template, expression: Expression, what: str, scope: Scope) -> SwampError:
    return template.error(
        f"expression `{expression.text}`: {what} is not available here",
        f"available here: {', '.join(scope.available()) or 'nothing'}",
        at=expression.at,
    )
