"""A `Selection` as SQL: conditions SQLite can answer exactly, and one function for those it cannot.

Rules: the answer equals `terms.matches` for every record. Where SQLite's own comparison could differ (JSON that is not
canonical, floats in JSON text, odd keys) the condition lets the row through to `swamp_holds`, which asks `terms`. So the
common terms run in C and the rest is still exact. `prepare_connection` installs the functions.
"""

import json
import re
import sqlite3
from collections.abc import Callable, Sequence
from typing import Final

from swamp_orch.store.bookkeeping import iso
from swamp_orch.store.interface import Comparison, Selection, Term
from swamp_orch.store.schema import EXACT, FIELDS, LOOK, NONE
from swamp_orch.store.terms import (
    COMPARE,
    SORTS,
    Scalar,
    Sort,
    checked,
    compares,
    matches,
    parse_attributes,
    sort_of,
)
from swamp_proto.errors import SwampError, Unsupported

_PLAIN_KEY: Final = re.compile(r'[^"\\\x00-\x1f\x7f]+')
_JSON: Final = "CAST(content AS TEXT)"
_ARROW: Final = sqlite3.sqlite_version_info >= (3, 38)
"""Older ones have no `->`; then Python judges all JSON."""

_BEYOND: Final = 2**63
"""Numbers this large have too many spellings to list."""

_INSTANT_MAX: Final = 253_402_300_799_999  # 9999-12-31T23:59:59.999Z

SCAN_FIELDS: Final = {
    **FIELDS,
    "isLatest": 'is_latest AS "isLatest [swampflag]"',
    "isDeleted": 'deleted AS "isDeleted [swampflag]"',
    "streaming": 'streaming AS "streaming [swampflag]"',
    "createdAt": (
        "strftime('%Y-%m-%dT%H:%M:', created_ms / 1000, 'unixepoch')"
        " || printf('%02d.%03dZ', created_ms / 1000 % 60, created_ms % 1000)"
    ),
    "seq": "seq",
    "createdMs": "created_ms",
    "keep": "keep",
    "tags": "tags",
    "content": "content",
    "attributes": (
        f"CASE WHEN attributes = {NONE} THEN NULL WHEN content IS NOT NULL THEN content ELSE swamp_blob(sha256) END"
    ),
}
"""What `scan` can give, as result columns."""

sqlite3.register_converter("swampflag", b"1".__eq__)


class Judge:
    """The Python side of one read connection: terms SQLite hands back, blobs it asks for, and the error that stopped it."""

    def __init__(self, db: sqlite3.Connection, read_blob: Callable[[str], bytes]) -> None:
        self._read_blob = read_blob
        self._terms: tuple[Term, ...] = ()
        self.error: SwampError | None = None
        db.create_function("swamp_holds", 4, self._holds, deterministic=False)
        db.create_function("swamp_blob", 1, self._blob, deterministic=False)

    def ask(self, terms: tuple[Term, ...]) -> None:
        """What `swamp_holds(i, …)` means from now on."""
        self._terms = terms
        self.error = None

    def _holds(self, index: int, tags: str, content: bytes | None, sha256: str) -> bool:
        def attributes() -> object:
            return parse_attributes(self._blob(sha256) if content is None else content)

        return matches(self._terms[index], _no_column, json.loads(tags), attributes)

    def _blob(self, sha256: str) -> bytes:
        try:
            return self._read_blob(sha256)
        except SwampError as error:
            self.error = error  # SQLite would only say that a function failed
            raise


def compile_where(
    selection: Selection, after: int, newest_first: bool
) -> tuple[str, list[Scalar], tuple[Term, ...]]:
    """(`WHERE … ORDER BY …`, parameters, the terms `swamp_holds` is asked about). Raises Unsupported."""
    selection = checked(selection)
    conditions: list[str] = []
    parameters: list[Scalar] = []
    for index, term in enumerate(selection.terms):
        where, _, path = term.field.partition(".")
        if not path:
            condition, values = _column(term)
        elif where == "tags":
            condition, values = _tag(term, path, index)
        else:
            condition, values = _attribute(term, path, index)
        conditions.append(condition)
        parameters += values
    if selection.latest_only:
        conditions.append("is_latest = 1")
    if not selection.deleted:
        conditions.append("deleted = 0")
    if after:
        conditions.append("seq < ?" if newest_first else "seq > ?")
        parameters.append(after)
    where_text = " AND ".join(conditions) or "1"
    return f"WHERE {where_text} ORDER BY seq{' DESC' if newest_first else ''}", parameters, selection.terms


def scan_columns(fields: Sequence[str]) -> str:
    """The result columns for `fields`; raises Unsupported."""
    unknown = [field for field in fields if field not in SCAN_FIELDS]
    if unknown or not fields:
        raise Unsupported(f"the store cannot scan {unknown}")
    return ", ".join(SCAN_FIELDS[field] for field in fields)


def _column(term: Term) -> tuple[str, list[Scalar]]:
    column = FIELDS[term.field]
    match SORTS[term.field]:
        case Sort.FLAG:
            return _flags(column, term)
        case Sort.INSTANT:
            return _instants(
                column, [value for value in term.values if isinstance(value, str)], term.comparison
            )
        case sort:
            values = [value for value in term.values if sort_of(value) is sort]
    return _compared(column, term.comparison, values)


def _compared(operand: str, comparison: Comparison, values: Sequence[Scalar]) -> tuple[str, list[Scalar]]:
    if not values:
        return "0", []
    if len(values) == 1:
        return f"{operand} {comparison.value} ?", list(values)
    return f"{operand} IN ({', '.join('?' * len(values))})", list(values)


def _flags(column: str, term: Term) -> tuple[str, list[Scalar]]:
    wanted = [str(int(flag)) for flag in (False, True) if compares(term.comparison, flag, term.values)]
    return (f"{column} = {wanted[0]}" if len(wanted) == 1 else str(int(bool(wanted)))), []


def _instants(column: str, texts: Sequence[str], comparison: Comparison) -> tuple[str, list[Scalar]]:
    """Text order of ISO instants is the order of their milliseconds, so a bound on one is a bound on the other."""
    conditions: list[str] = []
    values: list[Scalar] = []
    for text in texts:
        first = _first_instant(text)  # iso(first) >= text
        same = first <= _INSTANT_MAX and iso(first) == text
        match comparison:
            case Comparison.EQ:
                conditions.append(f"{column} = ?" if same else "? IS NULL")
            case Comparison.NE:
                conditions.append(f"{column} <> ?" if same else "1 OR ?")
            case Comparison.GE:
                conditions.append(f"{column} >= ?")
            case Comparison.LT:
                conditions.append(f"{column} < ?")
            case Comparison.GT:
                conditions.append(f"{column} > ?" if same else f"{column} >= ?")
            case Comparison.LE:
                conditions.append(f"{column} <= ?" if same else f"{column} < ?")
        values.append(first)
    return f"({' OR '.join(conditions) or '0'})", values


def _first_instant(text: str) -> int:
    low, high = 0, _INSTANT_MAX + 1
    while low < high:
        middle = (low + high) // 2
        if iso(middle) >= text:
            high = middle
        else:
            low = middle + 1
    return low


def _tag(term: Term, key: str, index: int) -> tuple[str, list[Scalar]]:
    values = [value for value in term.values if isinstance(value, str)]
    if not values:
        return "0", []
    if not _PLAIN_KEY.fullmatch(key):
        return f"swamp_holds({index}, tags, NULL, '')", []
    condition, parameters = _compared("json_extract(tags, ?)", term.comparison, values)
    return condition, [f'$."{key}"', *parameters]


def _attribute(term: Term, path: str, index: int) -> tuple[str, list[Scalar]]:
    judged = f"swamp_holds({index}, '{{}}', content, sha256)"
    keys = path.split(".")
    numbers = [value for value in term.values if not isinstance(value, str)]
    if (
        not _ARROW
        or not all(_PLAIN_KEY.fullmatch(key) for key in keys)
        or any(abs(number) >= _BEYOND for number in numbers)
    ):
        return f"(attributes <> {NONE} AND {judged})", []
    where = "$" + "".join(f'."{key}"' for key in keys)
    if term.comparison is Comparison.EQ:
        spellings = [text for value in term.values for text in _spellings(value)]
        exact, values = _compared(f"{_JSON} -> ?", term.comparison, spellings)
        parameters = [where, *values]
    else:
        exact, parameters = _ordered(term.comparison, term.values[0], where, judged)
    return f"CASE attributes WHEN {EXACT} THEN {exact} WHEN {LOOK} THEN {judged} ELSE 0 END", parameters


def _spellings(value: Scalar) -> list[str]:
    """Every way `json_content` may write a value that equals this one."""
    if isinstance(value, bool):
        return [str(value).lower()]
    if isinstance(value, str):
        return [json.dumps(value, ensure_ascii=False)]
    found = ["-0.0"] if value == 0 else []
    if isinstance(value, int) or value.is_integer():
        found.append(str(int(value)))
    if float(value) == value:
        found.append(repr(float(value)))
    return sorted(set(found))


def _ordered(comparison: Comparison, bound: Scalar, where: str, judged: str) -> tuple[str, list[Scalar]]:
    """`!=`, `<`, … of canonical JSON."""
    kind, value = f"json_type({_JSON}, ?)", f"json_extract({_JSON}, ?)"
    if isinstance(bound, bool):
        wanted = [str(flag).lower() for flag in (False, True) if COMPARE[comparison](flag, bound)]
        exact, values = _compared(f"{_JSON} -> ?", Comparison.EQ, wanted)
        return exact, [where, *values] if wanted else []
    if isinstance(bound, str):
        return f"({kind} = 'text' AND {value} {comparison.value} ?)", [where, where, bound]
    # SQLite reads floats from text less exactly than Python does. Far from the bound that does not matter.
    margin = abs(float(bound)) * 1e-12 + 1e-300
    low, high = float(bound) - margin, float(bound) + margin
    far_values: list[Scalar]
    match comparison:
        case Comparison.NE:
            far, far_values = f"{value} NOT BETWEEN ? AND ?", [where, low, high]
        case Comparison.LT | Comparison.LE:
            far, far_values = f"{value} < ?", [where, low]
        case _:
            far, far_values = f"{value} > ?", [where, high]
    return (
        f"CASE {kind} WHEN 'integer' THEN {value} {comparison.value} ?"
        f" WHEN 'real' THEN CASE WHEN {far} THEN 1 WHEN {value} BETWEEN ? AND ? THEN {judged} ELSE 0 END ELSE 0 END"
    ), [where, where, bound, *far_values, where, low, high]


def _no_column(field: str) -> object:
    raise AssertionError(field)
