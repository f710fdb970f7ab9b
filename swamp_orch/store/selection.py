"""A `Selection` as SQL: conditions SQLite can answer exactly, and one function for those it cannot.

Rules: the answer equals `terms.matches` for every record. Where SQLite's own comparison could differ (JSON that is not
canonical, floats in JSON text, odd keys) the condition lets the row through to `swamp_holds`, which asks `terms`. So the
common terms run in C and the rest is still exact. `prepare_connection` installs the functions.
"""

import re
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Final

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

        import json

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
    if not all(_PLAIN_KEY.fullmatch(key) for key in keys):
        return f"(attributes <> {NONE} AND {judged})", []
    where = "$" + "".join(f'."{key}"' for key in keys)
    kind, value = f"json_type({_JSON}, ?)", f"json_extract({_JSON}, ?)"
    alternatives: list[str] = []
    parameters: list[Scalar] = []
    texts = [text for text in term.values if isinstance(text, str)]
    if texts:
        condition, values = _compared(value, term.comparison, texts)
        alternatives.append(f"({kind} = 'text' AND {condition})")
        parameters += [where, where, *values]
    numbers = [number for number in term.values if sort_of(number) is Sort.NUMBER]
    if numbers:
        # SQLite reads floats from text less exactly than Python does, and integers beyond 64 bits as floats.
        condition, values = _compared(value, term.comparison, numbers)
        alternatives.append(
            f"({kind} IN ('integer', 'real') AND CASE typeof({value}) WHEN 'integer' THEN {condition} ELSE {judged} END)"
        )
        parameters += [where, where, where, *values]
    flags = [flag for flag in term.values if isinstance(flag, bool)]
    wanted = [f for f in (False, True) if any(COMPARE[term.comparison](f, flag) for flag in flags)]
    if wanted:
        names = ", ".join(f"'{str(flag).lower()}'" for flag in wanted)
        alternatives.append(f"{kind} IN ({names})")
        parameters.append(where)
    exact = f"({' OR '.join(alternatives)})" if alternatives else "0"
    return f"CASE attributes WHEN {EXACT} THEN {exact} WHEN {LOOK} THEN {judged} ELSE 0 END", parameters


def _no_column(field: str) -> object:
    raise AssertionError(field)
