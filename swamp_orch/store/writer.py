"""The one place that writes: a group of batches becomes one transaction.

Rules: everything that decides (latest versions, guards, keys) is read inside the write transaction, or was planned earlier in
it, so another process can never be overtaken; a batch that is refused leaves no trace and does not disturb its neighbours;
an answer is given only after COMMIT returned, which with `synchronous=FULL` is after the fsync.

The plan is made in Python and written with few statements: per record about one look-up and one insert. Knows nothing of
threads: its caller sees to it that one thread at a time is here.
"""

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from swamp_orch.store.blobs import BlobFolder
from swamp_orch.store.bookkeeping import ONE_SHOT_TYPES, STEP_LEASE
from swamp_orch.store.errors import translated
from swamp_orch.store.interface import Appended, Batch, Clock, Committed, Content
from swamp_orch.store.rows import CREATED, ID, IS_LATEST, SEQ, VERSION, new_ids, to_row
from swamp_orch.store.schema import RECORD_COLUMNS
from swamp_proto.errors import Conflict, LocalError, SwampError
from swamp_proto.limits import BATCH_RECORDS_MAX, INLINE_CONTENT_MAX

_INSERT = f"INSERT INTO record VALUES ({', '.join('?' * len(RECORD_COLUMNS))})"
_HEAD = """SELECT
  (SELECT version FROM record WHERE model_id = ?1 AND name = ?2 ORDER BY version DESC LIMIT 1),
  (SELECT seq FROM record WHERE model_id = ?1 AND name = ?2 ORDER BY version DESC LIMIT 1),
  (SELECT version FROM reserved WHERE model_id = ?1 AND name = ?2)"""
_SUPERSEDE = "UPDATE record SET is_latest = 0 WHERE seq = ?"
_KEY = "SELECT digest, appended, answer FROM idempotency WHERE key = ?"
_INSERT_KEY = "INSERT INTO idempotency VALUES (?, ?, ?, ?, ?, ?)"
_LAST = "SELECT max((SELECT coalesce(max(seq), 0) FROM record), coalesce((SELECT value FROM meta WHERE key = 'seq'), 0) + 0)"


@attrs.frozen
class Prepared:
    """A batch made ready outside the transaction: rows with gaps, large content already a durable blob."""

    batch: Batch
    rows: list[list[Any]]
    blobs: tuple[str, ...]


Outcome = Committed | SwampError


@attrs.define
class _Head:
    """The newest version of one name, as the transaction sees it."""

    version: int  # 0: there is none
    seq: int  # where it is stored, 0 when it is `row`
    last: int  # the highest number ever used
    row: list[Any] | None = None  # planned in this transaction


@attrs.define
class _Plan:
    """What one transaction will write."""

    seq: int
    now_ms: int
    heads: dict[tuple[str, str], _Head] = attrs.field(factory=dict)
    keys: dict[str, tuple[str, Committed]] = attrs.field(factory=dict)
    rows: list[list[Any]] = attrs.field(factory=list)
    superseded: list[tuple[int]] = attrs.field(factory=list)
    key_rows: list[tuple[Any, ...]] = attrs.field(factory=list)


def make_ready(batch: Batch, blobs: BlobFolder) -> Prepared:
    """Check a batch and make its blobs durable. Raises LocalError, `StoreFull`."""
    if len(batch.records) > BATCH_RECORDS_MAX:
        raise LocalError(
            f"a batch of {len(batch.records)} records; at most {BATCH_RECORDS_MAX} commit together"
        )
    rows = []
    named = []
    for record in batch.records:
        content = record.content
        if content.inline is not None and len(content.inline) > INLINE_CONTENT_MAX:
            content = blobs.put(content.inline)
        if content.inline is None:
            named.append(content.sha256)
        rows.append(to_row(record, content))
    return Prepared(batch, rows, tuple(named))


class Writer:
    """The write connection of one process."""

    def __init__(self, db: sqlite3.Connection, file: Path, blobs: BlobFolder, clock: Clock) -> None:
        self._db = db
        self._file = file
        self._blobs = blobs
        self._clock = clock

    def write(self, group: Sequence[Prepared]) -> list[Outcome]:
        """Commit a group; the answers in its order. An error of the whole transaction is the answer of each batch in it."""
        try:
            return self._write(group)
        except Exception as error:
            self._roll_back()
            if len(group) > 1 and not _of_the_disk(error):
                # One batch holds something the database does not take: it alone shall hear of it.
                return [outcome for prepared in group for outcome in self.write([prepared])]
            answer = self._answer(error)
            return [answer] * len(group)

    def _write(self, group: Sequence[Prepared]) -> list[Outcome]:
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        plan = _Plan(db.execute(_LAST).fetchone()[0], self._clock())
        outcomes: list[Outcome] = []
        for prepared in group:
            try:
                outcomes.append(self._place(plan, prepared))
            except SwampError as refusal:
                outcomes.append(refusal)
        if not plan.rows and not plan.key_rows:
            db.execute("ROLLBACK")
            return outcomes
        if plan.superseded:
            db.executemany(_SUPERSEDE, plan.superseded)
        db.executemany(_INSERT, plan.rows)
        if plan.key_rows:
            db.executemany(_INSERT_KEY, plan.key_rows)
        db.execute("COMMIT")
        return outcomes

    def _place(self, plan: _Plan, prepared: Prepared) -> Committed:
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
            found = self._head(plan, guard.model_id, guard.name).version
            if found != guard.version:
                raise Conflict(
                    f"{guard.name} is at version {found}, not {guard.version}; somebody changed it in between"
                )
        for sha256 in prepared.blobs:
            if not self._blobs.holds(sha256):
                raise LocalError(
                    f"the content {sha256} was never staged, or too long ago", hint="stage it again"
                )
        # First every check, then every change: a name may occur twice, so versions are counted as they will be.
        coming: dict[tuple[str, str], int] = {}
        for new in batch.records:
            name = (new.model_id, new.name)
            head = self._head(plan, *name)
            version = coming.get(name, head.version)
            if new.expect is not None and new.expect != version:
                raise Conflict(
                    f"{new.name} is at version {version}, not {new.expect}; somebody changed it in between"
                )
            coming[name] = max(version, head.last) + 1
        return self._take(plan, prepared)

    def _take(self, plan: _Plan, prepared: Prepared) -> Committed:
        appended = []
        now_ms = plan.now_ms
        for row, new, id_ in zip(
            prepared.rows, prepared.batch.records, new_ids(len(prepared.rows), now_ms), strict=True
        ):
            head = plan.heads[new.model_id, new.name]
            plan.seq = seq = plan.seq + 1
            version = head.last + 1
            row[SEQ], row[ID], row[VERSION], row[CREATED] = seq, id_, version, now_ms
            if head.row is not None:
                head.row[IS_LATEST] = False
            elif head.version:
                plan.superseded.append((head.seq,))
            head.version = head.last = version
            head.row = row
            plan.rows.append(row)
            appended.append(Appended(id_, version, seq, now_ms))
        committed = Committed(tuple(appended), False, prepared.batch.answer)
        key = prepared.batch.idempotency
        if key is not None:
            plan.keys[key.key] = (key.digest, committed)
            numbers = json.dumps([[a.id, a.version, a.seq, a.created_ms] for a in appended])
            plan.key_rows.append((key.key, key.digest, key.scope, now_ms, numbers, prepared.batch.answer))
        return committed

    def _head(self, plan: _Plan, model_id: str, name: str) -> _Head:
        head = plan.heads.get((model_id, name))
        if head is None:
            version, seq, reserved = self._db.execute(_HEAD, (model_id, name)).fetchone()
            head = _Head(version or 0, seq or 0, max(version or 0, reserved or 0))
            plan.heads[model_id, name] = head
        return head

    def _known_key(self, key: str) -> tuple[str, Committed] | None:
        row = self._db.execute(_KEY, (key,)).fetchone()
        if row is None:
            return None
        digest, appended, answer = row
        return digest, Committed(tuple(Appended(*numbers) for numbers in json.loads(appended)), False, answer)

    # ── the collector ───────────────────────────────────────────────────────────────────────────────────────────────

    def remove(self, versions: Sequence[tuple[str, str, int]]) -> int:
        """Remove versions in one transaction; see `Store.remove`."""
        db = self._db
        removed = 0
        touched: dict[tuple[str, str], str] = {}
        try:
            db.execute("BEGIN IMMEDIATE")
            (last,) = db.execute(_LAST).fetchone()
            for model_id, name, version in versions:
                row = db.execute(
                    "SELECT seq, is_latest, model_type FROM record WHERE model_id = ? AND name = ? AND version = ?",
                    (model_id, name, version),
                ).fetchone()
                if row is None:
                    continue
                seq, is_latest, model_type = row
                db.execute("DELETE FROM record WHERE seq = ?", (seq,))
                removed += 1
                touched[model_id, name] = model_type
                if is_latest and model_type not in ONE_SHOT_TYPES:
                    db.execute(
                        "INSERT INTO reserved VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET version = max(version, excluded.version)",
                        (model_id, name, version),
                    )
                if is_latest:
                    db.execute(
                        "UPDATE record SET is_latest = 1 WHERE seq ="
                        " (SELECT seq FROM record WHERE model_id = ? AND name = ? ORDER BY version DESC LIMIT 1)",
                        (model_id, name),
                    )
            for (model_id, name), model_type in touched.items():
                if model_type == STEP_LEASE and not self._exists(model_id, name):
                    db.execute("DELETE FROM idempotency WHERE scope = ?", (name.removeprefix("lease-"),))
            if removed:
                # Positions are never used twice, also when the newest rows went.
                db.execute(
                    "INSERT INTO meta VALUES ('seq', ?) ON CONFLICT DO UPDATE SET value = excluded.value",
                    (str(last),),
                )
            db.execute("COMMIT")
        except Exception as error:
            self._roll_back()
            raise self._answer(error) from error
        return removed

    def forget_keys(self, before_ms: int) -> int:
        try:
            done = self._db.execute(
                "DELETE FROM idempotency WHERE scope = '' AND created_ms < ?", (before_ms,)
            )
        except sqlite3.Error as error:
            raise translated(error, self._file) from error
        return done.rowcount

    def collect_blobs(self, before_s: float) -> int:
        """Remove blobs no row names that were last staged before `before_s`; a few at a time, so that commits go on."""
        freed = self._blobs.sweep_staged(before_s)
        old = list(self._blobs.older_than(before_s))
        for at in range(0, len(old), 100):
            try:
                self._db.execute("BEGIN IMMEDIATE")
                for sha256 in old[at : at + 100]:
                    named = "SELECT 1 FROM record WHERE sha256 = ? AND content IS NULL"
                    if self._db.execute(named, (sha256,)).fetchone() is None and self._blobs.staged_before(
                        sha256, before_s
                    ):
                        freed += self._blobs.remove(sha256)
                self._db.execute("COMMIT")
            except Exception as error:
                self._roll_back()
                raise self._answer(error) from error
        return freed

    def _exists(self, model_id: str, name: str) -> bool:
        found = self._db.execute(
            "SELECT 1 FROM record WHERE model_id = ? AND name = ? LIMIT 1", (model_id, name)
        )
        return found.fetchone() is not None

    def _roll_back(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def _answer(self, error: Exception) -> SwampError:
        if isinstance(error, SwampError):
            return error
        if isinstance(error, sqlite3.Error) and not isinstance(
            error, sqlite3.ProgrammingError | sqlite3.InterfaceError
        ):
            return translated(error, self._file)
        if isinstance(error, UnicodeEncodeError | OverflowError | sqlite3.Error):
            return LocalError(f"a record holds a value the store cannot keep: {error}")
        raise error


def _of_the_disk(error: Exception) -> bool:
    return isinstance(error, OSError) or (isinstance(error, sqlite3.OperationalError))
