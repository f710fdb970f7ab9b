"""`dependsOn` and its conditions: reading them, and the graph they make.

Rules: an entry is a plain name (meaning `succeeded`) or `{step|job: NAME, condition: {type: …}}`; names refer
to siblings only; a graph with a cycle is refused and the cycle is shown (`a -> b -> a`).

It does not know when a condition is true; the run plan does.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from swamp_orch.definitions.fields import Fields, Findings, kind, suggestion
from swamp_orch.definitions.values import Condition, ConditionType, Dependency
from swamp_orch.definitions.yaml_source import DocumentPath

SIMPLE: Final = ("always", "succeeded", "failed", "completed", "skipped")
TYPES: Final = (*SIMPLE, "and", "or", "not")
SUCCEEDED: Final = Condition(ConditionType.SUCCEEDED)


def read_dependencies(fields: Fields, noun: str) -> tuple[Dependency, ...]:
    """The `dependsOn` of a step or job; `noun` is `step` or `job`. References are checked by
    `check_graph`."""
    found: list[Dependency] = []
    value = fields.data.get("dependsOn")
    if isinstance(value, str):
        fields.problem(
            f"'dependsOn' on {fields.what} must be a list, not text",
            f"write dependsOn: [{value}]",
            "dependsOn",
        )
        return ()
    for index, entry in enumerate(fields.items("dependsOn")):
        path = fields.under("dependsOn", index)
        what = f"dependsOn of {fields.what}"
        if isinstance(entry, str):
            found.append(Dependency(entry))
            continue
        if not isinstance(entry, dict):
            fields.findings.add(
                path,
                f"an entry of {what} must be a {noun} name or a map, not {kind(entry)}",
                f"write - NAME, or - {noun}: NAME with a condition",
            )
            continue
        inner = Fields(entry, fields.findings, path, what, "dependency", (noun, "condition"))
        name = inner.text(noun, required=True)
        condition = SUCCEEDED
        if "condition" in inner:
            condition = read_condition(entry["condition"], fields.findings, inner.under("condition"), what)
        found.append(Dependency(name, condition))
    names = [dependency.on for dependency in found if dependency.on]
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            fields.problem(
                f"dependsOn of {fields.what} names '{name}' twice", "combine them with and/or", "dependsOn"
            )
    return tuple(found)


def read_condition(raw: Any, findings: Findings, path: DocumentPath, what: str) -> Condition:
    """One condition; problems go to `findings`."""
    if isinstance(raw, str):
        known = raw if raw in SIMPLE else "succeeded"
        findings.add(
            path, f"the condition in {what} must be a map, not text", f"write condition: {{type: {known}}}"
        )
        return SUCCEEDED
    name = raw.get("type") if isinstance(raw, dict) else None
    keys = (
        ("type", "conditions")
        if name in ("and", "or")
        else ("type", "condition")
        if name == "not"
        else ("type",)
    )
    fields = Fields(raw, findings, path, f"the condition in {what}", "condition", keys)
    if not isinstance(raw, dict):
        return SUCCEEDED
    if "type" not in fields:
        fields.missing("type")
        return SUCCEEDED
    chosen = fields.choice("type", TYPES, "")
    if not chosen:
        return SUCCEEDED
    if chosen in ("and", "or"):
        operands = fields.items("conditions", required=True)
        if len(operands) == 1:
            fields.problem(
                f"'{chosen}' needs at least two conditions", "write the one condition alone", "conditions"
            )
        parts = [
            read_condition(item, findings, fields.under("conditions", index), what)
            for index, item in enumerate(operands)
        ]
        return Condition(ConditionType(chosen), tuple(parts))
    if chosen == "not":
        if "condition" not in fields:
            fields.missing("condition")
            return SUCCEEDED
        inner = read_condition(raw["condition"], findings, fields.under("condition"), what)
        return Condition(ConditionType.NOT, (inner,))
    return Condition(ConditionType(chosen))


def check_graph(
    nodes: Mapping[str, Sequence[Dependency]],
    places: Mapping[str, DocumentPath],
    findings: Findings,
    noun: str,
    scope: str,
) -> None:
    """Unknown references and cycles. `places` has the path of each node; `scope` is ` in job 'x'` or
    empty."""
    for name, dependencies in nodes.items():
        for index, dependency in enumerate(dependencies):
            if dependency.on and dependency.on not in nodes:
                findings.add(
                    (*places[name], "dependsOn", index),
                    f"{noun} '{name}' depends on '{dependency.on}', but there is no such {noun}{scope}."
                    f"{suggestion(dependency.on, nodes)}",
                    None,
                )
    cycle = find_cycle({name: [item.on for item in dependencies] for name, dependencies in nodes.items()})
    if cycle:
        findings.add(
            (*places[cycle[0]], "dependsOn"),
            f"the {noun}s{scope} depend on each other in a circle: {' -> '.join(cycle)}",
            "remove one of these dependsOn entries",
        )


def find_cycle(edges: Mapping[str, Sequence[str]]) -> list[str]:
    """A cycle as `[a, b, a]`, starting at the node that comes first in `edges`; empty when there is none."""
    done: set[str] = set()
    for start in edges:
        if start in done:
            continue
        trail: list[str] = [start]
        waiting: list[list[str]] = [[name for name in edges[start] if name in edges]]
        on_trail = {start}
        while trail:
            if not waiting[-1]:
                waiting.pop()
                node = trail.pop()
                on_trail.discard(node)
                done.add(node)
                continue
            following = waiting[-1].pop(0)
            if following in on_trail:
                return _first_first([*trail[trail.index(following) :]], list(edges))
            if following not in done:
                trail.append(following)
                on_trail.add(following)
                waiting.append([name for name in edges[following] if name in edges])
    return []


def _first_first(cycle: list[str], order: list[str]) -> list[str]:
    ranks = {name: rank for rank, name in enumerate(order)}
    start = min(range(len(cycle)), key=lambda index: ranks[cycle[index]])
    turned = cycle[start:] + cycle[:start]
    return [*turned, turned[0]]


def condition_document(condition: Condition) -> dict[str, Any]:
    """A condition as YAML writes it."""
    if condition.type in (ConditionType.AND, ConditionType.OR):
        return {
            "type": condition.type.value,
            "conditions": [condition_document(c) for c in condition.conditions],
        }
    if condition.type is ConditionType.NOT:
        return {"type": "not", "condition": condition_document(condition.conditions[0])}
    return {"type": condition.type.value}
