"""Running a query: what the store can answer is asked of it, CEL decides about the rest.

Rules:
1. Results come in the order records were written. A limit ends the reading; nothing is counted that was not
   needed.
2. A row whose predicate asks for an attribute it does not have is no match. A row whose predicate or select
   fails for any other reason is counted in `skipped`, with the first reason, and is not in the results. A
   select that asks for a missing attribute answers null.
3. Unknown fields are refused before anything is read.

It does not know who asks, nor how results are shown.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import attrs

from swamp_orch.query.environment import (
    ENGINE_ERRORS,
    CelError,
    Compiled,
    MissingKey,
    compile_expression,
    json_value,
)
from swamp_orch.query.pushdown import Plan, everything, plan
from swamp_orch.query.records import (
    DOCUMENT_FIELDS,
    FIELDS,
    Reader,
    Row,
    RowMaker,
    document,
)
from swamp_proto.errors import SwampError

_MISSING_KINDS: Final = ("NOT_FOUND: ", "INVALID_ARGUMENT: Applying SELECT to non-message type")
"""How the engine begins the text of a failure that means `there is no such attribute`; a store cannot tell
these rows from others that do not match, so they are not counted here either."""

_HEAVY: Final = frozenset({"attributes", "content", "sha256"})
"""Fields that cost: they are read for the rows that match only."""
_FIELDS_CHEAP: Final = 4  # so many other fields are read for every row
_MANY: Final = 32  # matches, from which on …
_RARE: Final = 20  # … more than one in so many is many


@attrs.frozen
class Answer:
    """`results` are record documents, or the selected values. `limited`: there were more than asked for."""

    results: list[Any]
    limited: bool
    skipped: int
    reason: str  # of the first skipped row


@attrs.frozen
class Query:
    """A checked question."""

    predicate: Compiled
    select: Compiled | None
    plan: Plan


def prepare(predicate: str, select: str | None = None) -> Query:
    """Check predicate and select. Raises `CelError` (`UnknownName` with the fields there are)."""
    compiled = compile_expression(predicate, FIELDS, place="query predicate", noun="field")
    if compiled.result not in ("BOOL", "DYN"):
        raise CelError(
            f"the query predicate is not a condition: its result is {compiled.result.lower()}, not bool",
            hint='compare it with something, for example: modelName == "…"',
        )
    selected = None
    if select is not None:
        selected = compile_expression(select, FIELDS, place="select expression", noun="field")
    return Query(compiled, selected, plan(compiled))


def run(store: Reader, query: Query, limit: int | None = None) -> Answer:
    """Answer a question; `limit` is the most results wanted."""
    return _Run(store, query, limit).answer()


class _Run:
    def __init__(self, store: Reader, query: Query, limit: int | None) -> None:
        self._store = store
        self._query = query
        self._limit = limit
        self._test = query.predicate.run
        self._skipped = 0
        self._reason = ""

    def answer(self) -> Answer:
        results: list[Any] = []
        limited = False
        wanted = self._query.select
        make = document if wanted is None else self._selector(wanted)
        rows = self._rows(DOCUMENT_FIELDS if wanted is None else RowMaker(wanted, self._store).fields)
        for row in rows:
            try:
                value = make(row)
            except SwampError as error:
                self._skip(error)
                continue
            if self._limit is not None and len(results) >= self._limit:
                limited = True
                break
            results.append(value)
        return Answer(results, limited, self._skipped, self._reason)

    def _rows(self, fields: Sequence[str]) -> Iterator[Row]:
        """The rows the predicate is true for, with `fields` first."""
        if self._query.plan.exact:
            # One more than wanted tells whether there are more. A select may skip rows, so it reads on.
            bounded = self._limit is not None and self._query.select is None
            return self._scan(fields, limit=self._limit + 1 if bounded and self._limit is not None else None)
        maker = RowMaker(self._query.predicate, self._store)
        if len(fields) <= _FIELDS_CHEAP and not set(fields) - set(maker.fields) & _HEAVY:
            return self._matching(maker, fields, 0)
        return self._widened(maker, fields)

    def _widened(self, maker: RowMaker, fields: Sequence[str]) -> Iterator[Row]:
        """Read only what the predicate needs, and the other fields of a row that matched by its place in the
        log. Where many rows match, reading everything at once is cheaper: then go on that way."""
        anything = everything()
        found = 0
        for scanned, row in enumerate(self._scan(maker.fields), 1):
            if not self._holds(maker, row):
                continue
            seq = row[-1]
            for at, *wide in self._store.scan(anything, ("seq", *fields), after=seq - 1, limit=1):
                if at == seq:  # else it was collected in between
                    yield tuple(wide)
            found += 1
            if found >= _MANY and found * _RARE > scanned:
                yield from self._matching(maker, fields, seq)
                return

    def _matching(self, maker: RowMaker, fields: Sequence[str], after: int) -> Iterator[Row]:
        """Matching rows after a place in the log: `fields` first, then what the predicate needs."""
        width = len(maker.fields)
        for row in self._scan((*maker.fields, *fields), after=after):
            if self._holds(maker, row):
                yield row[width:]

    def _scan(self, fields: Sequence[str], *, after: int = 0, limit: int | None = None) -> Iterator[Row]:
        """Candidates in the order of the log; the last value is the row's place in it."""
        fields = (*fields, "seq")
        scans: list[Iterator[Row]] = [
            iter(self._store.scan(selection, fields, after=after, limit=limit))
            for selection in self._query.plan.selections
        ]
        # The second selection is the leases that are held: few, and mostly none at all.
        few = [row for scan in scans[1:] for row in scan]
        return _merged(scans[0], few) if few else scans[0]

    def _holds(self, maker: RowMaker, row: Row) -> bool:
        try:
            found = self._test(data=maker(row)).value()
        except (*ENGINE_ERRORS, SwampError):
            found = None
        # Two comparisons for the common answers: this is asked of every record there is.
        return False if found is False else found is True or self._second_look(maker, row)

    def _second_look(self, maker: RowMaker, row: Row) -> bool:
        """A row that did not answer true or false: once more with values the engine can represent, then it is
        counted."""
        try:
            value = self._query.predicate.run(data=maker.sane(row))
            found = value.value()
        except ENGINE_ERRORS as error:
            self._skip(self._query.predicate.failure(str(error)))
            return False
        except SwampError as error:
            self._skip(error)
            return False
        if isinstance(found, bool):
            return found
        if value.type().name() != "ERROR":
            self._skip(CelError(f"the query predicate answered {value.type().name().lower()}, not bool"))
        elif not str(found).startswith(_MISSING_KINDS):
            self._skip(self._query.predicate.failure(str(found)))
        return False

    def _selector(self, select: Compiled) -> Callable[[Row], Any]:
        maker = RowMaker(select, self._store)

        def value(row: Row) -> Any:
            try:
                try:
                    return json_value(select.evaluate(maker(row)))
                except MissingKey:
                    return None
                except CelError:
                    return json_value(select.evaluate(maker.sane(row)))
            except MissingKey:
                return None

        return value

    def _skip(self, error: SwampError) -> None:
        self._skipped += 1
        self._reason = self._reason or error.message


def _merged(rows: Iterator[Row], few: list[Row]) -> Iterator[Row]:
    """Both in the order of the log, which is their last value."""
    at = 0
    for row in rows:
        while at < len(few) and few[at][-1] < row[-1]:
            yield few[at]
            at += 1
        yield row
    yield from few[at:]
