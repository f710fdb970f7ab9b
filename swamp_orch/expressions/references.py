"""What a definition's templates refer to, before anything is evaluated.

For authorisation (a dispatch may read the secrets its unresolved definition refers to, and the data of the
models it names) and for validation (do these models and secrets exist?). Only constants can be known here: an
argument that is computed is None, "any", and it is for the caller to say what that allows.

The predicate of a `data.query` that is written out names the models it compares with: `modelName == "m"`,
`modelName in ["m", "n"]`.
"""

from collections.abc import Iterable, Iterator

import attrs

from swamp_orch.expressions.evaluate import compiled_expression, plan_of
from swamp_orch.expressions.scope import called
from swamp_orch.expressions.shell import shell_problems
from swamp_orch.expressions.template import ExpressionError, Template, lookalikes
from swamp_orch.query import syntax
from swamp_orch.query.environment import CelError

_MODEL_FIRST = frozenset(
    {"data.latest", "data.version", "data.listVersions", "data.findBySpec", "file.contents"}
)


@attrs.frozen
class SecretReference:
    """`vault.get(vault, key)`; None where it is computed."""

    vault: str | None
    key: str | None


@attrs.frozen
class References:
    """All without repeats, in the order of the texts."""

    secrets: tuple[SecretReference, ...] = ()
    models: tuple[str, ...] = ()  # names (or ids) written out
    computed_models: bool = False  # some model is named by a computed text
    any_data: bool = False  # data.query or data.findByTag: any model's data
    inputs: tuple[str, ...] = ()  # `inputs.<k>`
    environment: tuple[str, ...] = ()  # `env.<NAME>`
    names: tuple[str, ...] = ()  # namespaces used, functions' included


def references(templates: Iterable[Template]) -> References:
    """What these templates refer to. Raises `ExpressionError` for one that is not valid."""
    secrets: dict[SecretReference, None] = {}
    models: dict[str, None] = {}
    inputs: dict[str, None] = {}
    environment: dict[str, None] = {}
    names: dict[str, None] = {}
    computed = any_data = False
    for template in templates:
        for expression in template.expressions:
            compiled = compiled_expression(template, expression)
            plan = plan_of(compiled)
            computed |= plan.computed_model
            models.update(dict.fromkeys(plan.models))
            names.update(dict.fromkeys(compiled.names))
            for node in syntax.walk(compiled.tree.root):
                path = syntax.path_of(node)
                if path is not None and len(path) == 2 and path[0] in ("inputs", "env"):
                    (inputs if path[0] == "inputs" else environment)[path[1]] = None
                name = called(node)
                if name is None or not isinstance(node, syntax.Call):
                    continue
                names[name.partition(".")[0]] = None
                arguments = [_text(argument) for argument in node.arguments]
                if name == "vault.get":
                    secrets[SecretReference(arguments[0], arguments[1])] = None
                elif name in _MODEL_FIRST:
                    model = arguments[0]
                    if model is None:
                        computed = True
                    else:
                        models[model] = None
                elif name in ("data.query", "data.findByTag"):
                    any_data = True
                    if name == "data.query" and arguments[0] is not None:
                        models.update(dict.fromkeys(_models_of_predicate(arguments[0])))
    return References(
        tuple(secrets), tuple(models), computed, any_data, tuple(inputs), tuple(environment), tuple(names)
    )


def _models_of_predicate(text: str) -> Iterator[str]:
    """Model names that a predicate asks for by equality. One that does not compile names none: it will fail when it is evaluated."""
    from swamp_orch.query.run import prepare

    try:
        root = prepare(text).predicate.tree.root
    except CelError:
        return
    for node in syntax.walk(root):
        if (
            not isinstance(node, syntax.Call)
            or node.function not in ("_==_", "@in")
            or len(node.arguments) != 2
        ):
            continue
        left, right = node.arguments
        if node.function == "_==_" and _is_model_name(right):
            left, right = right, left
        if _is_model_name(left):
            named = right.elements if isinstance(right, syntax.ListLiteral) else (right,)
            yield from (found for found in map(_text, named) if found is not None)


def _is_model_name(node: syntax.Node) -> bool:
    return isinstance(node, syntax.Name) and node.name == "modelName"


def _text(node: syntax.Node) -> str | None:
    return node.value if isinstance(node, syntax.Constant) and isinstance(node.value, str) else None


def problems(
    template: Template, *, shell: bool = False, allowed: Iterable[str] | None = None
) -> list[ExpressionError]:
    """Everything that can be known about a template without running: expressions that do not compile,
    misplaced ones in a shell text (`shell`), and names that are not in `allowed` (namespaces; None: all)."""
    found = []
    here = None if allowed is None else list(allowed)
    for expression in template.expressions:
        try:
            used = references([Template((expression,), template.text, template.where)]).names
        except ExpressionError as error:
            found.append(error)
            continue
        if expression.is_raw and not shell:
            found.append(
                template.error(
                    f"expression `{expression.text}`: raw(…) has a meaning only in a shell's `run`"
                )
            )
        if here is not None:
            found.extend(
                template.error(
                    f"expression `{expression.text}`: `{name}` is not available here",
                    f"available here: {', '.join(here) or 'nothing'}",
                    at=expression.at,
                )
                for name in used
                if name not in here
            )
    if shell:
        found.extend(shell_problems(template))
    return found


def warnings(template: Template) -> list[str]:
    """Texts that look like expressions and are not."""
    place = f"{template.where}: " if template.where else ""
    return [
        f"{place}{look.found} is plain text; for an expression write {look.meant}"
        for look in lookalikes(template)
    ]
