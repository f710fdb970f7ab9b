"""What can be said about expressions without running: their grammar, and whether the names in them exist.

Rules: every expression is compiled as it will be when it runs, so that what passes here compiles there. A
name that cannot exist (an undeclared input, `self` where there is none, an unknown vault) is an error; a
record of a model that does not exist is a warning, because data may outlive its model.

It does not evaluate anything.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final

import attrs

from swamp_orch.definitions.fields import expressions, suggestion
from swamp_orch.definitions.values import Source
from swamp_orch.definitions.yaml_source import DocumentPath
from swamp_proto.errors import SwampError

_DATA_OF_MODEL: Final = (
    "data.latest",
    "data.version",
    "data.listVersions",
    "data.findBySpec",
    "file.contents",
)


@attrs.frozen
class Names:
    """What the names in an expression may stand for, at one place. None: not known here, so not checked."""

    inputs: Mapping[str, Any] | None = None  # an input schema
    self_keys: Collection[str] | None = None  # of `self`; empty: there is no `self`
    webhook: bool = False
    models: Callable[[], Collection[str]] | None = None
    vaults: Callable[[], Collection[str]] | None = None


@attrs.frozen
class Finding:
    text: str  # starts with `file:line: `
    warning: bool = False


def check_tree(value: Any, path: DocumentPath, source: Source, names: Names) -> list[Finding]:
    """Check every expression in a value of a definition file."""
    found: list[Finding] = []
    for place, text in expressions(value, path):
        where = source.at(*place)
        found += check_text(text, where, names)
    return found


def check_text(text: str, where: str, names: Names) -> list[Finding]:
    """Check the expressions in one text."""
    from swamp_orch.expressions.evaluate import compiled_expression
    from swamp_orch.expressions.template import parse

    found: list[Finding] = []
    try:
        template = parse(text)
    except SwampError as error:
        return [Finding(f"{where}: {error.message}")]
    for expression in template.expressions:
        try:
            compiled = compiled_expression(template, expression)
        except SwampError as error:
            found.append(Finding(f"{where}: {_with_hint(error)}"))
            continue
        for problem in _check_names(compiled.tree.root, names):
            found.append(
                attrs.evolve(problem, text=f"{where}: expression `{expression.text}`: {problem.text}")
            )
    return found


def check_shell(
    arguments: Mapping[str, Any], names: Collection[str], path: DocumentPath, source: Source
) -> list[Finding]:
    """Check where expressions stand in the arguments that are shell text (`names`): each must be in a place
    where it can be passed as a variable."""
    from swamp_orch.expressions.shell import shell_problems
    from swamp_orch.expressions.template import parse

    found: list[Finding] = []
    for key in arguments:
        text = arguments[key]
        if key not in names or not isinstance(text, str) or "${{" not in text:
            continue
        try:
            template = parse(text)
        except SwampError:
            continue  # reported as an error of its own
        where = source.at(*path, key)
        found += [Finding(f"{where}: {_with_hint(problem)}") for problem in shell_problems(template)]
    return found


def lookalike_warnings(value: Any, path: DocumentPath, source: Source) -> Iterator[str]:
    """Texts that look like expressions and are none: `{{ inputs.x }}`, `${ inputs.x }`."""
    from swamp_orch.expressions.template import lookalikes, parse

    if isinstance(value, str):
        if "{" in value or "$(" in value:
            try:
                template = parse(value)
            except SwampError:
                return  # reported as an error already
            for item in lookalikes(template):
                where = source.at(*path)
                yield f"{where}: `{item.found}` is plain text; write {item.meant} to have it replaced"
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from lookalike_warnings(item, (*path, key), source)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from lookalike_warnings(item, (*path, index), source)


def environment_names(value: Any, path: DocumentPath = ()) -> Iterator[tuple[str, str]]:
    """(`methods.execute.arguments.run`, `HOME`) for every `env.HOME` in the expressions of a value."""
    from swamp_orch.expressions.evaluate import compiled_expression
    from swamp_orch.expressions.template import parse
    from swamp_orch.query import syntax

    for place, text in expressions(value, path):
        try:
            template = parse(text)
        except SwampError:
            continue  # reported as an error already
        for expression in template.expressions:
            try:
                tree = compiled_expression(template, expression).tree
            except SwampError:
                continue
            for node in syntax.walk(tree.root):
                keys = syntax.path_of(node)
                if keys is not None and len(keys) == 2 and keys[0] == "env":
                    yield ".".join(map(str, place)), keys[1]


def _check_names(root: Any, names: Names) -> Iterator[Finding]:
    from swamp_orch.expressions.evaluate import called
    from swamp_orch.query import syntax

    optional = {
        id(node)
        for call in syntax.walk(root)
        if isinstance(call, syntax.Call) and call.function in (syntax.OPTIONAL_SELECT, syntax.OPTIONAL_INDEX)
        for node in (call,)
    }
    tested = {id(node) for node in syntax.walk(root) if isinstance(node, syntax.Select) and node.test_only}
    free = {
        id(name) for name in syntax.free_names(root, frozenset({"data", "file", "vault", "workers", "math"}))
    }
    for node in syntax.walk(root):
        if isinstance(node, syntax.Name) and id(node) in free:
            if node.name == "self" and names.self_keys is not None and not names.self_keys:
                yield Finding("there is no `self` here: it is the item of a step's forEach")
            if node.name == "webhook" and not names.webhook:
                yield Finding("`webhook` can be used only in the inputs of the workflow's trigger")
        keys = syntax.path_of(node) if isinstance(node, syntax.Select | syntax.Call) else None
        if keys is not None and len(keys) == 2 and id(node) not in optional and id(node) not in tested:
            yield from _check_path(keys[0], keys[1], names)
        function = called(node)
        if function is not None and isinstance(node, syntax.Call) and node.arguments:
            first = node.arguments[0]
            if isinstance(first, syntax.Constant) and isinstance(first.value, str):
                yield from _check_call(function, first.value, names)


def _check_path(root: str, key: str, names: Names) -> Iterator[Finding]:
    if root == "inputs" and names.inputs is not None:
        declared = names.inputs.get("properties", {})
        if key not in declared and names.inputs.get("additionalProperties", False) is False:
            listed = ", ".join(declared) or "none"
            yield Finding(f"there is no input '{key}'.{suggestion(key, declared)} Inputs are: {listed}")
    if root == "self" and names.self_keys and key not in names.self_keys:
        yield Finding(
            f"`self` has no '{key}'.{suggestion(key, names.self_keys)} It has: {', '.join(names.self_keys)}"
        )
    if root == "model" and names.models is not None:
        known = names.models()
        if key not in known:
            yield Finding(f"there is no model '{key}'.{suggestion(key, known)}")


def _check_call(function: str, argument: str, names: Names) -> Iterator[Finding]:
    if function == "vault.get" and names.vaults is not None:
        known = names.vaults()
        if argument not in known:
            listed = ", ".join(known) or "none"
            yield Finding(
                f"there is no vault '{argument}'.{suggestion(argument, known)} Vaults are: {listed}"
            )
    if function in _DATA_OF_MODEL and names.models is not None:
        known = names.models()
        if argument not in known:
            yield Finding(f"there is no model '{argument}'.{suggestion(argument, known)}", warning=True)


def _with_hint(error: SwampError) -> str:
    return f"{error.message} ({error.hint})" if error.hint else error.message
