"""What of a predicate a store can answer by itself, exactly.

Rules:
1. Only conjuncts of the predicate's top-level `&&` are looked at, in the engine's own syntax tree, and only
   forms whose `Term` holds for exactly the rows the conjunct is true for: a column against literals (`==`,
   `!=`, `<`, `<=`, `>`, `>=`, `in`, `startsWith`), a flag or its negation, `tags.<key>` against text,
   `attributes.<path>` equal to or in literals. Everything else is left to CEL.
2. A conjunct on attributes other than equality is left to CEL, because there a value of another type is a
   failure that is counted.
3. Numbers are pushed only below 2^53: above, the engine compares integers with doubles less exactly than a
   store does.
4. Unless the predicate names `version` or `isLatest`, only newest versions are asked for; unless it names
   `isDeleted`, no tombstones; unless it names `version` or `attributes.state`, no leases that have ended.

It never evaluates, and it does not know which store answers.
"""

import re
from collections.abc import Iterator
from typing import Final

import attrs

from swamp_orch.query import syntax
from swamp_orch.query.environment import CelType, Compiled
from swamp_orch.query.records import FIELDS
from swamp_orch.query.syntax import Call, Constant, ListLiteral, Name, Node
from swamp_orch.store.bookkeeping import LEASES_MODEL, STEP_LEASE
from swamp_orch.store.interface import Comparison, Selection, Term

Literal = str | int | float | bool

_COMPARISONS: Final = {
    "_==_": Comparison.EQ,
    "_!=_": Comparison.NE,
    "_<_": Comparison.LT,
    "_<=_": Comparison.LE,
    "_>_": Comparison.GT,
    "_>=_": Comparison.GE,
}
_TURNED: Final = {
    Comparison.EQ: Comparison.EQ,
    Comparison.NE: Comparison.NE,
    Comparison.LT: Comparison.GT,
    Comparison.LE: Comparison.GE,
    Comparison.GT: Comparison.LT,
    Comparison.GE: Comparison.LE,
}
_NOT_COLUMNS: Final = frozenset({"attributes", "tags", "content", "ns"})
_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_NUMBER_MAX: Final = 2**53


@attrs.frozen
class Plan:
    """How to read: rows of any of the `selections` (they exclude each other) are candidates; when `exact`,
    they are the answer."""

    selections: tuple[Selection, ...]
    exact: bool


def plan(predicate: Compiled) -> Plan:
    """The plan for a checked predicate over `FIELDS`."""
    terms: list[Term] = []
    exact = True
    for conjunct in _conjuncts(predicate.tree.root):
        found = _terms(conjunct)
        if found is None:
            exact = False
        else:
            terms += found
    latest = "version" not in predicate.names and "isLatest" not in predicate.names
    chosen = Selection(
        tuple(dict.fromkeys(terms)),
        latest_only=latest,
        deleted="isDeleted" in predicate.names,
        with_content=False,
    )
    return Plan(_without_ended_leases(chosen, predicate), exact)


def everything() -> Selection:
    """Every record there is."""
    return Selection(latest_only=False, deleted=True, with_content=False)


def _without_ended_leases(chosen: Selection, predicate: Compiled) -> tuple[Selection, ...]:
    if "version" in predicate.names or _names_state(predicate.tree.root):
        return (chosen,)
    types, models = _pinned(chosen, "modelType"), _pinned(chosen, "modelName")
    if (types is not None and STEP_LEASE not in types) or (models is not None and LEASES_MODEL not in models):
        return (chosen,)
    active = attrs.evolve(
        chosen, terms=(*chosen.terms, _is("modelType", STEP_LEASE), _is("attributes.state", "active"))
    )
    if types == {STEP_LEASE}:
        return (active,)
    others = attrs.evolve(chosen, terms=(*chosen.terms, Term("modelType", Comparison.NE, (STEP_LEASE,))))
    return (others, active)


def _is(field: str, value: str) -> Term:
    return Term(field, Comparison.EQ, (value,))


def _pinned(selection: Selection, field: str) -> set[Literal] | None:
    """The values the terms allow a field, or None when they do not say."""
    pinned: set[Literal] | None = None
    for term in selection.terms:
        if term.field == field and term.comparison is Comparison.EQ:
            pinned = set(term.values) if pinned is None else pinned.intersection(term.values)
    return pinned


def _names_state(root: Node) -> bool:
    paths = (syntax.path_of(node) for node in syntax.walk(root))
    return any(path is not None and path[:2] == ("attributes", "state") for path in paths)


def _conjuncts(node: Node) -> Iterator[Node]:
    match node:
        case Call(function="_&&_", arguments=(left, right)):
            yield from _conjuncts(left)
            yield from _conjuncts(right)
        case _:
            yield node


def _terms(node: Node) -> list[Term] | None:
    """The terms that together are exactly `node`, or None."""
    match node:
        case Name(name=name) if _is_flag(name):
            return [Term(name, Comparison.EQ, (True,))]
        case Call(function="!_", arguments=(Name(name=name),)) if _is_flag(name):
            return [Term(name, Comparison.EQ, (False,))]
        case Call(function=operator, target=None, arguments=(left, right)) if operator in _COMPARISONS:
            comparison = _COMPARISONS[operator]
            if isinstance(left, Constant):
                left, right, comparison = right, left, _TURNED[comparison]
            return _compared(left, comparison, (right,))
        case Call(function="@in", arguments=(left, ListLiteral(elements=elements))) if elements:
            return _compared(left, Comparison.EQ, elements)
        case Call(function="startsWith", target=target, arguments=(Constant(value=str() as prefix),)):
            return None if target is None else _starting(target, prefix)
    return None


def _is_flag(name: str) -> bool:
    return FIELDS.get(name) is CelType.BOOL


def _compared(operand: Node, comparison: Comparison, literals: tuple[Node, ...]) -> list[Term] | None:
    values: list[Literal] = []
    for literal in literals:
        if not isinstance(literal, Constant) or not isinstance(literal.value, str | int | float):
            return None
        number = not isinstance(literal.value, str | bool)
        if number and not -_NUMBER_MAX < literal.value < _NUMBER_MAX:  # type: ignore[operator]
            return None
        values.append(literal.value)
    field = _field(operand)
    if field is None:
        return None
    where = field.partition(".")[0]
    if where == "attributes" and comparison is not Comparison.EQ:
        return None
    if _is_flag(field) and comparison not in (Comparison.EQ, Comparison.NE):
        return None
    return [Term(field, comparison, tuple(values))]


def _starting(operand: Node, prefix: str) -> list[Term] | None:
    """A range: text from the prefix on, below the first text that is greater than everything that starts with
    it."""
    field = _field(operand)
    if field is None or field.startswith("attributes."):
        return None
    if "." not in field and FIELDS[field] is not CelType.STRING:
        return None
    terms = [Term(field, Comparison.GE, (prefix,))]
    end = prefix.rstrip("\U0010ffff")
    if end:
        last = ord(end[-1]) + 1
        last = 0xE000 if 0xD800 <= last <= 0xDFFF else last
        terms.append(Term(field, Comparison.LT, (end[:-1] + chr(last),)))
    return terms


def _field(node: Node) -> str | None:
    """The `Term.field` of a column, tag or attribute path, or None."""
    path = syntax.path_of(node)
    if path is None or _is_test(node):
        return None
    if len(path) == 1:
        return path[0] if path[0] in FIELDS and path[0] not in _NOT_COLUMNS else None
    if path[0] == "tags" and len(path) == 2 and _KEY.fullmatch(path[1]):
        return f"tags.{path[1]}"
    if path[0] == "attributes" and all(_KEY.fullmatch(key) for key in path[1:]):
        return ".".join(path)
    return None


def _is_test(node: Node) -> bool:
    """Whether a path has a `has(…)` or an optional `.?` in it: then it is not the value itself."""
    return any(
        (isinstance(part, syntax.Select) and part.test_only)
        or (isinstance(part, Call) and part.function in (syntax.OPTIONAL_SELECT, syntax.OPTIONAL_INDEX))
        for part in syntax.walk(node)
    )
