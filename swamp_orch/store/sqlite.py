"""The store on SQLite: WAL, `synchronous=FULL`, one writer with group commit, a few read connections.

Rules: batches commit in the order they were submitted; all that wait when the writer becomes free commit together, with one
fsync; nobody is answered before that fsync. With `thread=False` (a CLI process) commits happen in the calling thread and no
thread is started. Several processes may have the store open. Reads never wait for writes and each sees one instant.

SQLite's write-ahead log is folded into the store file by a second thread, often enough that the log is written over and over
in place: an fsync that does not also grow a file costs less than half (measured: 100 instead of 226 µs).
"""

import contextlib
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, BinaryIO, Final

import attrs

from swamp_orch.store.blobs import BlobFolder
from swamp_orch.store.errors import StoreFull, corrupt, translated
from swamp_orch.store.folder import Ballast, Presence, entering
from swamp_orch.store.interface import (
    Answered,
    Batch,
    BlobWriter,
    Clock,
    Committed,
    Content,
    Record,
    Selection,
    answer_all,
)
from swamp_orch.store.readers import Readers, connect
from swamp_orch.store.rows import to_record
from swamp_orch.store.schema import BLOBS_NAME, RECORD_COLUMNS
from swamp_orch.store.selection import compile_where, scan_columns
from swamp_orch.store.writer import Prepared, Writer, make_ready
from swamp_proto.errors import Broken, NotFound, SwampError
from swamp_proto.limits import (
    BLOB_ORPHAN_KEPT_S,
    GROUP_COMMIT_MAX,
    WAL_CHECKPOINT_PAGES,
)

_PAGES_OF_A_COMMIT = 3  # and what its records take
_RELAY_S = 5.0  # between two looks whether there is room for the ballast again
_FOLD = "PRAGMA wal_checkpoint(PASSIVE)"
_WITH_CONTENT = ", ".join(RECORD_COLUMNS)
_WITHOUT_CONTENT = ", ".join((*RECORD_COLUMNS[:-1], "NULL"))


def wall_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


SLOW_COMMIT_S: Final = 0.02
"""A commit in the loop's thread that took longer sends the next ones to the writer thread …"""
SLOW_FOR_S: Final = 1.0
"""… for this long."""


def open_store(folder: Path, *, clock: Clock | None = None, thread: bool = True) -> "SqliteStore":
    """The store in `folder` (`.swamp/data`), made when missing.

    `thread`: group commit on a writer thread, for `swamp serve`; without it commits happen in the calling thread. Raises
    `StoreCorrupt`, `StoreTooNew`, `StoreReadOnly`, `StoreFull`, `StoreOnNetwork`, each with a hint.
    """
    with entering(folder) as presence:
        return SqliteStore(folder, presence, clock or wall_ms, thread)


@attrs.define
class _Waiting:
    prepared: Prepared
    answered: Answered


@attrs.define
class _Errand:
    """Something else for the writer to do between two groups."""

    work: Callable[[], int]
    future: "Future[int]"


class SqliteStore:
    """`Store` on SQLite. Thread-safe."""

    def __init__(self, folder: Path, presence: Presence, clock: Clock, thread: bool) -> None:
        self._presence = presence
        self._file = file = presence.file
        self._blobs = BlobFolder(folder / BLOBS_NAME)
        self._ballast = Ballast(folder)
        self._relay_s = 0.0
        self._readers = Readers(file, self._blobs)
        self._lock = threading.Lock()  # of the write connection
        self._counting = threading.Lock()
        self._closed = False
        self._unfolded = 0  # pages in the log, roughly
        self._fold_wanted = threading.Event()
        self._fold_last = False
        self.full = False
        """Space ran out and the ballast was given back: finish what is under way, begin nothing new."""
        self.blob_orphan_kept_s = BLOB_ORPHAN_KEPT_S
        db = connect(file)
        try:
            (self.epoch,) = db.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchone()
            if thread:
                db.execute("PRAGMA wal_autocheckpoint = 0")
        except (sqlite3.Error, TypeError) as error:
            db.close()
            if isinstance(error, TypeError) or error.sqlite_errorcode == sqlite3.SQLITE_ERROR:
                raise corrupt(file, "its tables are not those of a store") from error
            raise translated(error, file) from error
        self._db = db
        self._writer = Writer(db, file, self._blobs, clock)
        self._held: list[_Waiting] = []  # of the loop's own thread, until it flushes
        self._loop_thread = 0
        self._flush_soon: Callable[[], None] | None = None
        self._with_thread = 0  # batches handed to the writer thread and not yet answered
        self._slow_until_s = 0.0
        self._queue: queue.SimpleQueue[_Waiting | _Errand | None] | None = None
        if thread:
            self.full = not self._ballast.lay()
            self._queue = queue.SimpleQueue()
            self._thread = threading.Thread(target=self._run, name="swamp-store", daemon=True)
            self._thread.start()
            self._folding = threading.Thread(target=self._fold, name="swamp-store-fold", daemon=True)
            self._folding.start()

    # ── writing ───────────────────────────────────────────────────────────────────────────────────────────────────

    def commit(self, batch: Batch) -> Committed:
        return self.submit(batch).result()

    def submit(self, batch: Batch) -> "Future[Committed]":
        future: Future[Committed] = Future()

        def answered(outcome: Committed | SwampError) -> Callable[[], None] | None:
            if isinstance(outcome, Committed):
                future.set_result(outcome)
            else:
                future.set_exception(outcome)
            return None

        self.submit_to(batch, answered)
        return future

    def submit_to(self, batch: Batch, answered: Answered) -> None:
        try:
            self._open()
            waiting = _Waiting(make_ready(batch, self._blobs), answered)
        except SwampError as error:
            answer_all([answered], [error])
            return
        if self._queue is None:
            with self._lock:
                self._commit([waiting])
        elif self._flush_soon is not None and threading.get_ident() == self._loop_thread:
            self._held.append(waiting)
            if len(self._held) == 1:
                self._flush_soon()
        else:
            self._queue.put(waiting)

    def attach_loop(self, flush_soon: Callable[[], None] | None) -> None:
        """From now on batches of the calling thread wait for its `flush`; `flush_soon` is called when the first one waits.
        None detaches, after a last flush. See `trio_store.loop_commits`."""
        self.flush()
        self._loop_thread = threading.get_ident()
        self._flush_soon = flush_soon

    def flush(self) -> None:
        """Commit what this thread submitted: right here while the disk is fast, else on the writer thread.

        Handing a commit to another thread and its answer back costs more than a fast fsync does (decision 0010). A slow commit
        is met at most once: after it the writer thread takes over for a while, so that the loop goes on.
        """
        group, self._held = self._held, []
        if not group:
            return
        began_s = time.monotonic()
        here = not self._with_thread and len(group) <= GROUP_COMMIT_MAX and began_s >= self._slow_until_s
        if here and self._lock.acquire(blocking=False):
            try:
                self._commit(group)
                self._fold_some(group)
            finally:
                self._lock.release()
            if time.monotonic() - began_s > SLOW_COMMIT_S:
                self._slow_until_s = time.monotonic() + SLOW_FOR_S
            return
        assert self._queue is not None
        with self._counting:
            self._with_thread += len(group)
        for waiting in group:
            self._queue.put(attrs.evolve(waiting, answered=self._back(waiting.answered)))

    def _back(self, answered: Answered) -> Answered:
        """Counts a batch of the loop's as answered: only then may a later one be committed by the loop itself."""

        def counted(outcome: Committed | SwampError) -> Callable[[], None] | None:
            with self._counting:
                self._with_thread -= 1
            return answered(outcome)

        return counted

    def _run(self) -> None:
        """The writer thread: take all that wait, commit them together, answer them."""
        waiting_queue = self._queue
        assert waiting_queue is not None
        while True:
            group: list[_Waiting] = []
            item = waiting_queue.get()
            while isinstance(item, _Waiting):
                group.append(item)
                if len(group) >= GROUP_COMMIT_MAX or waiting_queue.empty():
                    break
                item = waiting_queue.get()
            if group:
                with self._lock:
                    self._commit(group)
                    self._fold_some(group)
            if item is None:
                return
            if isinstance(item, _Errand):
                try:
                    with self._lock:
                        done = item.work()
                    item.future.set_result(done)
                except BaseException as error:  # it is raised again where it is waited for
                    item.future.set_exception(error)

    def _commit(self, group: list[_Waiting]) -> None:
        ready = [waiting.prepared for waiting in group]
        outcomes: Sequence[Committed | SwampError]
        try:
            outcomes = self._writer.write(ready)
            if isinstance(outcomes[0], StoreFull):
                # What is under way may finish in the room the ballast took; `full` tells others to stop.
                self.full = True
                if self._ballast.release():
                    outcomes = self._writer.write(ready)
            elif self.full:
                self._relay()
        except Exception as error:  # whoever waits must be answered, whatever went wrong
            broken = Broken(f"the store {self._file} failed: {error!r}")
            broken.__cause__ = error
            outcomes = [broken] * len(group)
        answer_all((waiting.answered for waiting in group), outcomes)

    def _relay(self) -> None:
        """Take the ballast back once there is room again."""
        now_s = time.monotonic()
        if now_s >= self._relay_s:
            self._relay_s = now_s + _RELAY_S
            self.full = not self._ballast.lay()

    def _fold_some(self, group: list[_Waiting]) -> None:
        self._unfolded += _PAGES_OF_A_COMMIT + sum(waiting.prepared.pages for waiting in group)
        if self._unfolded >= WAL_CHECKPOINT_PAGES:
            self._unfolded = 0
            self._fold_wanted.set()
        if self._fold_last:
            self._fold_last = False
            with contextlib.suppress(sqlite3.Error):
                self._db.execute(_FOLD).fetchall()

    def _fold(self) -> None:
        """The second thread: folding goes on beside commits. Only the last few pages, written meanwhile, are left to the
        writer, because the log starts over only when nothing in it is unfolded."""
        try:
            db = connect(self._file)
        except SwampError:
            return  # the log grows until the store is closed; the writer meets the same trouble and reports it
        with contextlib.closing(db):
            while True:
                self._fold_wanted.wait()
                self._fold_wanted.clear()
                if self._closed:
                    return
                if not self._room_to_fold():
                    continue
                with contextlib.suppress(sqlite3.Error):
                    db.execute(_FOLD).fetchall()
                    self._fold_last = True

    def _room_to_fold(self) -> bool:
        """Folding can make the store file grow by as much as the log holds; on a full disk that room is for commits."""
        try:
            log = self._file.with_name(self._file.name + "-wal").stat().st_size
            room = os.statvfs(self._file.parent)
        except OSError:
            return False
        return room.f_bavail * room.f_frsize > log

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def latest(self, model_id: str, name: str, *, content: bool = True) -> Record | None:
        return self._one("model_id = ? AND name = ? ORDER BY version DESC LIMIT 1", (model_id, name), content)

    def version(self, model_id: str, name: str, version: int, *, content: bool = True) -> Record | None:
        return self._one("model_id = ? AND name = ? AND version = ?", (model_id, name, version), content)

    def versions(self, model_id: str, name: str) -> Sequence[Record]:
        sql = f"SELECT {_WITHOUT_CONTENT} FROM record WHERE model_id = ? AND name = ? ORDER BY version"  # noqa: S608 - constants
        return [to_record(row) for row in self._readers.rows(sql, (model_id, name))]

    def select(
        self, selection: Selection, *, after: int = 0, limit: int | None = None, newest_first: bool = False
    ) -> Iterator[Record]:
        columns = _WITH_CONTENT if selection.with_content else _WITHOUT_CONTENT
        return map(to_record, self._matching(columns, selection, after, limit, newest_first))

    def scan(
        self,
        selection: Selection,
        fields: Sequence[str],
        *,
        after: int = 0,
        limit: int | None = None,
        newest_first: bool = False,
    ) -> Iterator[tuple[Any, ...]]:
        return self._matching(scan_columns(fields), selection, after, limit, newest_first)

    def read(self, record: Record) -> bytes:
        if record.content is not None:
            return record.content
        found = self.version(record.model_id, record.name, record.version)
        if found is None or found.id != record.id:
            raise NotFound(f"version {record.version} of {record.name} is not there any more")
        return self._blobs.read(record.sha256) if found.content is None else found.content

    def open_blob(self, sha256: str) -> BinaryIO:
        return self._blobs.open(sha256)

    def stage(self) -> BlobWriter:
        return self._blobs.stage()

    def adopt(self, file: Path, sha256: str, size: int, *, keep: bool = False) -> Content:
        return self._blobs.adopt(file, sha256, size, keep=keep)

    def _one(self, where: str, parameters: Sequence[Any], content: bool) -> Record | None:
        sql = f"SELECT {_WITH_CONTENT if content else _WITHOUT_CONTENT} FROM record WHERE {where}"  # noqa: S608 - constants
        for row in self._readers.rows(sql, parameters):
            return to_record(row)
        return None

    def _matching(
        self, columns: str, selection: Selection, after: int, limit: int | None, newest_first: bool
    ) -> Iterator[tuple[Any, ...]]:
        where, parameters, terms = compile_where(selection, after, newest_first)
        sql = f"SELECT {columns} FROM record {where}"  # noqa: S608 - values are bound
        if limit is not None:
            sql += " LIMIT ?"
            parameters.append(limit)
        return self._readers.stream(sql, parameters, terms)

    # ── collecting and closing ────────────────────────────────────────────────────────────────────────────────────

    def remove(self, record_ids: Sequence[tuple[str, str, int]]) -> int:
        return self._errand(lambda: self._writer.remove(record_ids))

    def forget_keys(self, before_ms: int) -> int:
        return self._errand(lambda: self._writer.forget_keys(before_ms))

    def collect_blobs(self) -> int:
        before_s = time.time() - self.blob_orphan_kept_s
        freed = self._blobs.sweep_staged(before_s)
        old = list(self._blobs.older_than(before_s))
        for at in range(0, len(old), 100):  # a few at a time: commits go on in between
            some = old[at : at + 100]
            freed += self._errand(lambda some=some: self._writer.collect_blobs(some, before_s))  # type: ignore[misc]
        return freed

    def close(self) -> None:
        """Commit what was submitted, then close. Harmless twice."""
        if self._closed:
            return
        self.flush()
        self._closed = True
        if self._queue is not None:
            self._queue.put(None)
            self._thread.join()
            self._fold_wanted.set()
            self._folding.join()
            while not self._queue.empty():  # submitted in the very instant of closing
                if (late := self._queue.get()) is not None:
                    self._turn_away(late)
        with self._lock:
            self._readers.close()
            self._db.close()
        self._presence.end()

    @staticmethod
    def _turn_away(item: _Waiting | _Errand) -> None:
        closed = Broken("the store is closed")
        if isinstance(item, _Waiting):
            answer_all([item.answered], [closed])
        else:
            item.future.set_exception(closed)

    def _errand(self, work: Callable[[], int]) -> int:
        self._open()
        if self._queue is None:
            with self._lock:
                return work()
        future: Future[int] = Future()
        self._queue.put(_Errand(work, future))
        return future.result()

    def _open(self) -> None:
        if self._closed:
            raise Broken("the store is closed")
