"""The one place that writes: a group of batches becomes one transaction.

Rules: a batch that is refused leaves no trace and does not disturb its neighbours; an answer is given only after the
transaction ended, which with `synchronous=FULL` is after the fsync; nothing is decided by what another process may have
changed meanwhile.

There are two ways to write, because every call into SQLite gives up the interpreter lock, and beside a busy event loop
each such call can cost a whole switch interval (measured: 37 ms for a commit of 20 calls). The *short way* plans from
remembered versions and does everything in one INSERT that is its own transaction and inserts nothing unless the log still
ends where it did when they were remembered. The *long way* is the ordinary one: BEGIN IMMEDIATE, look, write, COMMIT. It is taken
when the short one found the world changed, when something would be refused, and for keys, blobs and large batches.

Knows nothing of threads: its caller sees to it that one thread at a time is here.
"""

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import attrs

from swamp_orch.store.blobs import BlobFolder
from swamp_orch.store.bookkeeping import ONE_SHOT_TYPES, STEP_LEASE
from swamp_orch.store.errors import translated
from swamp_orch.store.interface import Appended, Batch, Clock, Committed, OutcomeMark, OwnerType
from swamp_orch.store.rows import CREATED, ID, SEQ, VERSION, Ids, to_row
from swamp_orch.store.schema import RECORD_COLUMNS
from swamp_proto.errors import Conflict, LocalError, SwampError
from swamp_proto.limits import BATCH_RECORDS_MAX, INLINE_CONTENT_MAX

SHORT_ROWS_MAX: Final = 64
"""Rows the short way can take."""

_HEADS_MAX: Final = 8_192
_PAGE: Final = 4_096
_COUNT: Final = len(RECORD_COLUMNS)
_ROW: Final = f"({', '.join('?' * _COUNT)})"
_INSERT: Final = f"INSERT INTO record VALUES {_ROW}"  # noqa: S608 - placeholders
_STATE: Final = """
SELECT (SELECT coalesce(max(seq), 0) FROM record), (SELECT value FROM meta WHERE key = 'removals'),
       (SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'seq')"""
_HEAD: Final = """
SELECT (SELECT max(version) FROM record WHERE model_id = ?1 AND name = ?2),
       (SELECT version FROM reserved WHERE model_id = ?1 AND name = ?2)"""
_KEY: Final = "SELECT digest, appended, answer FROM idempotency WHERE key = ?"
_INSERT_KEY: Final = "INSERT INTO idempotency VALUES (?, ?, ?, ?, ?, ?)"
_MARK: Final = f"""
UPDATE record SET outcome = :outcome, tags = json_set(tags, '$.outcome', :outcome)
WHERE run = :run AND run <> '' AND dispatch = :dispatch AND outcome = '' AND deleted = 0
  AND owner_type <> '{OwnerType.SYSTEM.value}'"""  # noqa: S608 - constants; `run <> ''` is what its index is limited to


def _short(rows: int) -> str:
    """One statement for up to `rows` rows; those it is not given are NULL."""
    columns = ", ".join(f"column{at}" for at in range(1, _COUNT + 1))
    return (
        f"INSERT INTO record SELECT {columns}"  # noqa: S608 - placeholders
        f" FROM (VALUES {', '.join([_ROW] * rows)}) WHERE column1 IS NOT NULL"
        " AND (SELECT coalesce(max(seq), 0) FROM record) = ?"
        " AND (SELECT value FROM meta WHERE key = 'removals') = ?"
    )


_SHORT_SIZES: Final = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, SHORT_ROWS_MAX)
_SHORT: Final[list[tuple[int, str]]] = [(0, "")]
"""For each number of rows: the size of its statement, and the statement."""


def _short_table() -> None:
    for size in _SHORT_SIZES:
        statement = _short(size)
        _SHORT.extend([(size, statement)] * (size + 1 - len(_SHORT)))


_NO_ROW: Final = [None] * _COUNT

Outcome = Committed | SwampError


@attrs.define  # frozen would cost the hot path half a microsecond for each field
class Prepared:
    """A batch made ready outside the transaction: rows with gaps, large content already a durable blob."""

    batch: Batch
    rows: list[list[Any]]
    blobs: tuple[str, ...]
    pages: int  # about so many of the log will be written


@attrs.define
class _Plan:
    """What one transaction will write, and what is then the case."""

    seq: int
    now_ms: int
    heads: dict[tuple[str, str], tuple[int, int]] = attrs.field(
        factory=dict
    )  # (latest version, highest ever used)
    keys: dict[str, tuple[str, Committed]] = attrs.field(factory=dict)
    rows: list[list[Any]] = attrs.field(factory=list)
    key_rows: list[tuple[Any, ...]] = attrs.field(factory=list)
    marks: list[OutcomeMark] = attrs.field(factory=list)


@attrs.define
class _State:
    """Where the log ended when versions were remembered."""

    end: int  # the highest position in the table
    removals: str  # grows with every removal by anybody
    seq: int  # the highest position ever used


def make_ready(batch: Batch, blobs: BlobFolder) -> Prepared:
    """Check a batch and make its blobs durable. Raises LocalError, `StoreFull`."""
    if len(batch.records) > BATCH_RECORDS_MAX:
        raise LocalError(
            f"a batch of {len(batch.records)} records; at most {BATCH_RECORDS_MAX} commit together"
        )
    rows = []
    named: tuple[str, ...] = ()
    size = 0
    for record in batch.records:
        content = record.content
        if content.inline is None or len(content.inline) > INLINE_CONTENT_MAX:
            if content.inline is not None:
                content = blobs.put(content.inline)
            named = (*named, content.sha256)
        else:
            size += content.size
        rows.append(to_row(record, content))
    return Prepared(batch, rows, named, len(rows) + size // _PAGE)


class Writer:
    """The write connection of one process."""

    def __init__(self, db: sqlite3.Connection, file: Path, blobs: BlobFolder, clock: Clock) -> None:
        self._db = db
        self._file = file
        self._blobs = blobs
        self._clock = clock
        self._ids = Ids()
        self._state: _State | None = None
        self._heads: dict[tuple[str, str], tuple[int, int]] = {}

    def write(self, group: Sequence[Prepared]) -> list[Outcome]:
        """Commit a group; the answers in its order. An error of the transaction itself is everybody's answer."""
        try:
            return self._write_short(group) or self._write_long(group)
        except Exception as error:  # answered to whoever waits, or raised again by `_answer`
            self._roll_back()
            if len(group) > 1 and not isinstance(error, OSError | sqlite3.OperationalError):
                # One batch holds something the database does not take: it alone shall hear of it.
                return [outcome for prepared in group for outcome in self.write([prepared])]
            return [self._answer(error)] * len(group)

    def _write_short(self, group: Sequence[Prepared]) -> list[Outcome] | None:
        """The answers, or None when the long way must be taken."""
        state = self._state
        if state is None:
            return None
        count = 0
        for prepared in group:
            if prepared.blobs or prepared.batch.idempotency is not None or prepared.batch.marks:
                return None
            count += len(prepared.rows)
        if not 0 < count <= SHORT_ROWS_MAX:
            return None
        plan = _Plan(state.seq, self._clock())
        try:
            outcomes: list[Outcome] = [self._place(plan, prepared, remembered=True) for prepared in group]
        except SwampError:
            return None  # a refusal must be true, not remembered
        size, statement = _SHORT[count] if len(_SHORT) > 1 else _short_statement(count)
        values: list[Any] = []
        for row in plan.rows:
            values += row
        values += _NO_ROW * (size - count)
        values.append(state.end)
        values.append(state.removals)
        try:
            done = self._db.execute(statement, values)
        except sqlite3.IntegrityError:
            self._forget()  # a name that was thought new is not
            return None
        if done.rowcount != count:
            self._forget()
            return None
        self._remember(plan, state.removals)
        return outcomes

    def _write_long(self, group: Sequence[Prepared]) -> list[Outcome]:
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        end, removals, seq = db.execute(_STATE).fetchone()
        state = _State(end, removals, max(end, seq))
        if state != self._state:
            self._forget()
        plan = _Plan(state.seq, self._clock())
        outcomes: list[Outcome] = []
        for prepared in group:
            try:
                outcomes.append(self._place(plan, prepared, remembered=False))
            except SwampError as refusal:
                outcomes.append(refusal)
        if plan.rows:
            db.executemany(_INSERT, plan.rows)
        if plan.key_rows:
            db.executemany(_INSERT_KEY, plan.key_rows)
        for mark in plan.marks:
            db.execute(_MARK, {"run": mark.run, "dispatch": mark.dispatch, "outcome": mark.outcome})
        db.execute("COMMIT")
        self._remember(plan, removals, end)
        return outcomes

    def _remember(self, plan: _Plan, removals: str, end: int = 0) -> None:
        self._state = _State(plan.seq if plan.rows else end, removals, plan.seq)
        heads = self._heads
        heads.update(plan.heads)
        if len(heads) > _HEADS_MAX:
            for name in list(heads)[: _HEADS_MAX // 2]:
                del heads[name]

    def _forget(self) -> None:
        self._state = None
        self._heads.clear()

    def _place(self, plan: _Plan, prepared: Prepared, *, remembered: bool) -> Committed:
        """Add a batch to the plan, or raise the reason why not and leave the plan as it was."""
        batch = prepared.batch
        key = batch.idempotency
        if key is not None:
            known = plan.keys.get(key.key) or self._known_key(key.key)
            if known is not None:
                if known[0] != key.digest:
                    raise Conflict(
                        f"the idempotency key {key.key} was used before with another body",
                        code="idempotency_conflict",
                    )
                return attrs.evolve(known[1], replayed=True)
        for guard in batch.guards:
            found = self._head(plan, (guard.model_id, guard.name), False)[0]
            if found != guard.version:
                raise _changed(guard.name, found, guard.version)
        for sha256 in prepared.blobs:
            if not self._blobs.holds(sha256):
                raise LocalError(
                    f"the content {sha256} was never staged, or too long ago", hint="stage it again"
                )
        # Versions are counted beside the plan until nothing can be refused any more; a name may occur twice.
        coming: dict[tuple[str, str], int] = {}
        for row, new in zip(prepared.rows, batch.records, strict=True):
            name = (new.model_id, new.name)
            last = coming.get(name)
            if last is None:
                version, last = self._head(plan, name, remembered and new.expect == 0)
            else:
                version = last
            if new.expect is not None and new.expect != version:
                raise _changed(new.name, version, new.expect)
            row[VERSION] = coming[name] = last + 1
        for name, last in coming.items():
            plan.heads[name] = (last, last)
        return self._take(plan, prepared)

    def _take(self, plan: _Plan, prepared: Prepared) -> Committed:
        rows = prepared.rows
        seq = plan.seq
        now_ms = plan.now_ms
        appended = []
        for row, id_ in zip(rows, self._ids.make(len(rows), now_ms), strict=True):
            seq += 1
            row[SEQ] = seq
            row[ID] = id_
            row[CREATED] = now_ms
            appended.append(Appended(id_, row[VERSION], seq, now_ms))
        plan.seq = seq
        plan.rows += rows
        batch = prepared.batch
        plan.marks += batch.marks
        committed = Committed(tuple(appended), False, batch.answer)
        key = batch.idempotency
        if key is not None:
            plan.keys[key.key] = (key.digest, committed)
            numbers = json.dumps([[a.id, a.version, a.seq, a.created_ms] for a in appended])
            plan.key_rows.append((key.key, key.digest, key.scope, now_ms, numbers, batch.answer))
        return committed

    def _head(self, plan: _Plan, name: tuple[str, str], claimed_new: bool) -> tuple[int, int]:
        """(latest version, highest ever used). A name claimed to be new is believed: the schema refuses it otherwise."""
        head = plan.heads.get(name) or self._heads.get(name)
        if head is None:
            if claimed_new:
                return 0, 0
            latest, reserved = self._db.execute(_HEAD, name).fetchone()
            head = (latest or 0, max(latest or 0, reserved or 0))
            plan.heads[name] = head
        return head

    def _known_key(self, key: str) -> tuple[str, Committed] | None:
        row = self._db.execute(_KEY, (key,)).fetchone()
        if row is None:
            return None
        digest, appended, answer = row
        return digest, Committed(tuple(Appended(*numbers) for numbers in json.loads(appended)), False, answer)

    # ── the collector ─────────────────────────────────────────────────────────────────────────────────────────────

    def remove(self, versions: Sequence[tuple[str, str, int]]) -> int:
        """Remove versions in one transaction; see `Store.remove`."""
        self._forget()
        try:
            self._db.execute("BEGIN IMMEDIATE")
            removed = self._remove(versions)
            self._db.execute("COMMIT")
        except Exception as error:  # whatever it is, the transaction must not stay open
            self._roll_back()
            raise self._answer(error) from error
        return removed

    def _remove(self, versions: Sequence[tuple[str, str, int]]) -> int:
        db = self._db
        removed = 0
        touched: dict[tuple[str, str], str] = {}
        end, _, seq = db.execute(_STATE).fetchone()
        for model_id, name, version in versions:
            row = db.execute(
                "DELETE FROM record WHERE model_id = ? AND name = ? AND version = ? RETURNING is_latest, model_type",
                (model_id, name, version),
            ).fetchall()
            if not row:
                continue
            is_latest, model_type = row[0]
            removed += 1
            touched[model_id, name] = model_type
            if not is_latest:
                continue
            db.execute(
                "INSERT INTO reserved VALUES (?, ?, ?)"
                " ON CONFLICT DO UPDATE SET version = max(version, excluded.version)",
                (model_id, name, version),
            )
            db.execute(
                "UPDATE record SET is_latest = 1 WHERE seq ="
                " (SELECT seq FROM record WHERE model_id = ? AND name = ? ORDER BY version DESC LIMIT 1)",
                (model_id, name),
            )
        for (model_id, name), model_type in touched.items():
            if model_type in ONE_SHOT_TYPES and db.execute(_HEAD, (model_id, name)).fetchone()[0] is None:
                # Never written again, so nothing has to be remembered about it.
                db.execute("DELETE FROM reserved WHERE model_id = ? AND name = ?", (model_id, name))
                if model_type == STEP_LEASE:
                    db.execute("DELETE FROM idempotency WHERE scope = ?", (name.removeprefix("lease-"),))
        if removed:
            db.execute("UPDATE meta SET value = CAST(value AS INTEGER) + 1 WHERE key = 'removals'")
            # Positions are never used twice, also when the newest rows went.
            db.execute("UPDATE meta SET value = ? WHERE key = 'seq'", (str(max(end, seq)),))
        return removed

    def forget_keys(self, before_ms: int) -> int:
        """Drop keys without a scope that are older; returns how many."""
        sql = "DELETE FROM idempotency WHERE scope = '' AND created_ms < ?"
        try:
            return self._db.execute(sql, (before_ms,)).rowcount
        except sqlite3.Error as error:
            raise translated(error, self._file) from error

    def collect_blobs(self, candidates: Sequence[str], before_s: float) -> int:
        """Remove those of `candidates` that no row names and nobody staged again; returns the bytes freed."""
        freed = 0
        named = "SELECT 1 FROM record WHERE sha256 = ? AND content IS NULL"
        try:
            self._db.execute("BEGIN IMMEDIATE")
            for sha256 in candidates:
                if self._db.execute(named, (sha256,)).fetchone() is None and self._blobs.staged_before(
                    sha256, before_s
                ):
                    freed += self._blobs.remove(sha256)
            self._db.execute("COMMIT")
        except Exception as error:  # whatever it is, the transaction must not stay open
            self._roll_back()
            raise self._answer(error) from error
        return freed

    def _roll_back(self) -> None:
        self._forget()
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def _answer(self, error: Exception) -> SwampError:
        match error:
            case SwampError():
                return error
            case sqlite3.OperationalError() | sqlite3.DatabaseError() if not _of_a_value(error):
                return translated(error, self._file)
            case _ if _of_a_value(error):
                return LocalError(f"a record holds a value the store cannot keep: {error}")
        raise error


def _of_a_value(error: Exception) -> bool:
    """What was bound is at fault, not the database."""
    return isinstance(
        error,
        UnicodeEncodeError
        | OverflowError
        | sqlite3.ProgrammingError
        | sqlite3.InterfaceError
        | sqlite3.DataError
        | sqlite3.IntegrityError,
    )


def _changed(name: str, found: int, wanted: int) -> Conflict:
    return Conflict(f"{name} is at version {found}, not {wanted}; somebody changed it in between")


def _short_statement(count: int) -> tuple[int, str]:
    """The statement for `count` rows; the table is made when first needed, not by a CLI process that only reads."""
    _short_table()
    return _SHORT[count]
