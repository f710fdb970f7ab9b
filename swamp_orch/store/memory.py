"""The in-memory twin: the same interface and answers as the SQLite store, deterministic, without threads or files.

With `hold=True` a submitted batch waits until `flush` makes it durable, as the fsync of a real disk would; `crash` gives the
store as the next process would find it: everything flushed, nothing else. Written for clarity, not speed: it is what the
SQLite store is compared with, so it shares no deciding code with it except the meaning of terms.
"""

import hashlib
import io
import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, BinaryIO, Final

import attrs

from swamp_orch.store.bookkeeping import ONE_SHOT_TYPES, STEP_LEASE, iso
from swamp_orch.store.interface import (
    Answered,
    Appended,
    Batch,
    BlobWriter,
    Clock,
    Committed,
    Content,
    NewRecord,
    OutcomeMark,
    OwnerType,
    Record,
    Selection,
    answer_all,
)
from swamp_orch.store.terms import SORTS, checked, is_json, matches, parse_attributes
from swamp_proto.errors import Broken, Conflict, LocalError, NotFound, SwampError, Unsupported
from swamp_proto.limits import ATTRIBUTES_MAX, BATCH_RECORDS_MAX, INLINE_CONTENT_MAX

_EXTRA: Final = frozenset({"seq", "createdMs", "keep", "tags", "attributes", "content"})


@attrs.frozen
class _Key:
    digest: str
    scope: str
    created_ms: int
    committed: Committed


@attrs.define
class _Disk:
    """What survives a crash."""

    epoch: str
    log: dict[int, Record] = attrs.field(
        factory=dict
    )  # by seq, in its order; `content` None when it is a blob
    names: dict[tuple[str, str], list[int]] = attrs.field(
        factory=dict
    )  # positions of the versions, oldest first
    seq: int = 0
    last: dict[tuple[str, str], int] = attrs.field(factory=dict)  # highest version ever used
    keys: dict[str, _Key] = attrs.field(factory=dict)
    blobs: dict[str, bytes] = attrs.field(factory=dict)
    fresh: set[str] = attrs.field(factory=set)  # blobs staged since the last collection
    ids: int = 0


class MemoryStore:
    """`Store` in memory."""

    def __init__(self, clock: Clock, *, hold: bool = False, _disk: _Disk | None = None) -> None:
        self._clock = clock
        self._hold = hold
        self._disk = _disk or _Disk(epoch=str(uuid.uuid5(uuid.NAMESPACE_OID, "memory store")))
        self._waiting: list[tuple[Batch, Answered]] = []
        self._gone: str | None = None
        self.epoch = self._disk.epoch

    # ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def commit(self, batch: Batch) -> Committed:
        """Commit, with everything submitted before it."""
        future = self.submit(batch)
        self.flush()
        return future.result()

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
            self._alive()
            _check(batch)
        except SwampError as error:
            answer_all([answered], [error])
            return
        self._waiting.append((batch, answered))
        if not self._hold:
            self.flush()

    @property
    def waiting(self) -> int:
        """Batches submitted and not yet durable."""
        return len(self._waiting)

    def flush(self, count: int | None = None) -> None:
        """Make the `count` oldest waiting batches (all when None) durable, then answer them."""
        group = self._waiting[:count]
        del self._waiting[:count]
        answers: list[Committed | SwampError] = []
        for batch, _ in group:
            try:
                answers.append(self._apply(batch))
            except SwampError as error:
                answers.append(error)
        answer_all((answered for _, answered in group), answers)

    def crash(self) -> "MemoryStore":
        """Lose what was not durable; nobody who waits is ever answered. The store as it is found afterwards."""
        self._waiting.clear()
        self._gone = "the process of this store has crashed"
        return MemoryStore(self._clock, hold=self._hold, _disk=self._disk)

    def _apply(self, batch: Batch) -> Committed:
        disk = self._disk
        key = batch.idempotency
        if key is not None and key.key in disk.keys:
            known = disk.keys[key.key]
            if known.digest != key.digest:
                raise Conflict(
                    f"the idempotency key {key.key} was used before with another body",
                    code="idempotency_conflict",
                )
            return attrs.evolve(known.committed, replayed=True)
        for guard in batch.guards:
            self._require(guard.model_id, guard.name, guard.version, {})
        for new in batch.records:
            if new.content.inline is None and new.content.sha256 not in disk.blobs:
                raise LocalError(
                    f"the content {new.content.sha256} was never staged, or too long ago",
                    hint="stage it again",
                )
        coming: dict[tuple[str, str], int] = {}
        for new in batch.records:
            if new.expect is not None:
                self._require(new.model_id, new.name, new.expect, coming)
            name = (new.model_id, new.name)
            coming[name] = max(coming.get(name, 0), disk.last.get(name, 0)) + 1
        now_ms = self._clock()
        committed = Committed(tuple(self._append(new, now_ms) for new in batch.records), False, batch.answer)
        for mark in batch.marks:
            self._mark(mark)
        if key is not None:
            disk.keys[key.key] = _Key(key.digest, key.scope, now_ms, committed)
        return committed

    def _require(self, model_id: str, name: str, version: int, coming: dict[tuple[str, str], int]) -> None:
        latest = self._latest(model_id, name)
        found = coming.get((model_id, name), latest.version if latest else 0)
        if found != version:
            raise Conflict(f"{name} is at version {found}, not {version}; somebody changed it in between")

    def _append(self, new: NewRecord, now_ms: int) -> Appended:
        disk = self._disk
        disk.seq += 1
        disk.ids += 1
        name = (new.model_id, new.name)
        version = disk.last[name] = disk.last.get(name, 0) + 1
        content = new.content.inline
        if content is not None and len(content) > INLINE_CONTENT_MAX:
            disk.blobs[new.content.sha256] = content
            content = None
        positions = disk.names.setdefault(name, [])
        if positions:
            disk.log[positions[-1]] = attrs.evolve(disk.log[positions[-1]], is_latest=False)
        positions.append(disk.seq)
        record = Record(
            seq=disk.seq, id=str(uuid.uuid5(uuid.UUID(disk.epoch), str(disk.ids))), model_type=new.model_type,
            model_id=new.model_id, model_name=new.model_name, name=new.name, version=version, spec=new.spec, kind=new.kind,
            content_type=new.content_type, lifetime=new.lifetime, keep=new.keep, streaming=new.streaming, tags=dict(new.tags),
            owner=new.owner, outcome=new.outcome, deleted=new.deleted, is_latest=True, size=new.content.size,
            sha256=new.content.sha256, created_ms=now_ms, content=content,
        )  # fmt: skip
        disk.log[record.seq] = record
        return Appended(record.id, version, record.seq, now_ms)

    def _mark(self, mark: OutcomeMark) -> None:
        log = self._disk.log
        for seq, record in log.items():
            owner = record.owner
            ours = (
                owner.run == mark.run
                and owner.dispatch == mark.dispatch
                and owner.type is not OwnerType.SYSTEM
            )
            if ours and not record.outcome and not record.deleted:
                tags = {**record.tags, "outcome": mark.outcome}
                log[seq] = attrs.evolve(record, outcome=mark.outcome, tags=tags)

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def latest(self, model_id: str, name: str, *, content: bool = True) -> Record | None:
        self._alive()
        found = self._latest(model_id, name)
        return found if found is None or content else attrs.evolve(found, content=None)

    def version(self, model_id: str, name: str, version: int, *, content: bool = True) -> Record | None:
        self._alive()
        for record in self._named(model_id, name):
            if record.version == version:
                return record if content else attrs.evolve(record, content=None)
        return None

    def versions(self, model_id: str, name: str) -> Sequence[Record]:
        self._alive()
        return [attrs.evolve(record, content=None) for record in self._named(model_id, name)]

    def select(
        self, selection: Selection, *, after: int = 0, limit: int | None = None, newest_first: bool = False
    ) -> Iterator[Record]:
        for record in self._matching(selection, after, limit, newest_first):
            yield record if selection.with_content else attrs.evolve(record, content=None)

    def scan(
        self,
        selection: Selection,
        fields: Sequence[str],
        *,
        after: int = 0,
        limit: int | None = None,
        newest_first: bool = False,
    ) -> Iterator[tuple[Any, ...]]:
        unknown = [f for f in fields if f not in SORTS and f not in _EXTRA]
        if unknown or not fields:
            raise Unsupported(f"the store cannot scan {unknown}")
        found = self._matching(selection, after, limit, newest_first)
        return (tuple(self._field(record, field) for field in fields) for record in found)

    def read(self, record: Record) -> bytes:
        found = self.version(record.model_id, record.name, record.version)
        if found is None or found.id != record.id:
            raise NotFound(f"version {record.version} of {record.name} is not there any more")
        return self._content(found)

    def open_blob(self, sha256: str) -> BinaryIO:
        self._alive()
        if sha256 not in self._disk.blobs:
            raise NotFound(f"the blob {sha256} is not in this store")
        return io.BytesIO(self._disk.blobs[sha256])

    def stage(self) -> BlobWriter:
        self._alive()
        return _Staged(self._disk)

    def adopt(self, file: Path, sha256: str, size: int, *, keep: bool = False) -> Content:
        self._alive()
        self._disk.blobs[sha256] = file.read_bytes()
        self._disk.fresh.add(sha256)
        if not keep:
            file.unlink()
        return Content(None, sha256, size)

    def _matching(
        self, selection: Selection, after: int, limit: int | None, newest_first: bool
    ) -> Iterator[Record]:
        self._alive()
        selection = checked(selection)
        log = list(self._disk.log.values())
        if newest_first:
            log.reverse()
        return self._filtered(log, selection, after, limit, newest_first)

    def _filtered(
        self, log: Sequence[Record], selection: Selection, after: int, limit: int | None, newest_first: bool
    ) -> Iterator[Record]:
        count = 0
        for record in log:
            if limit is not None and count >= limit:
                return
            if after and (record.seq >= after if newest_first else record.seq <= after):
                continue
            if (selection.latest_only and not record.is_latest) or (record.deleted and not selection.deleted):
                continue
            if self._matches(record, selection):
                count += 1
                yield record

    def _matches(self, record: Record, selection: Selection) -> bool:
        return all(
            matches(
                term,
                lambda field: _value(record, field),
                record.tags,
                lambda: parse_attributes(self._json(record)),
            )
            for term in selection.terms
        )

    def _json(self, record: Record) -> bytes | None:
        if not is_json(record.content_type) or record.size > ATTRIBUTES_MAX:
            return None
        return self._content(record)

    def _field(self, record: Record, field: str) -> Any:
        match field:
            case "seq":
                return record.seq
            case "createdMs":
                return record.created_ms
            case "keep":
                return record.keep
            case "tags":
                return json.dumps(dict(record.tags), separators=(",", ":"), ensure_ascii=False)
            case "attributes":
                return self._json(record)
            case "content":
                return record.content
        return _value(record, field)

    def _content(self, record: Record) -> bytes:
        return record.content if record.content is not None else self._disk.blobs[record.sha256]

    def _named(self, model_id: str, name: str) -> list[Record]:
        return [self._disk.log[seq] for seq in self._disk.names.get((model_id, name), ())]

    def _latest(self, model_id: str, name: str) -> Record | None:
        positions = self._disk.names.get((model_id, name))
        return self._disk.log[positions[-1]] if positions else None

    def _alive(self) -> None:
        if self._gone:
            raise Broken(self._gone)

    # ── collecting and closing ──────────────────────────────────────────────────────────────────────────────────────

    def remove(self, record_ids: Sequence[tuple[str, str, int]]) -> int:
        self._alive()
        disk = self._disk
        removed = 0
        for model_id, name, version in record_ids:
            gone = self.version(model_id, name, version)
            if gone is None:
                continue
            removed += 1
            del disk.log[gone.seq]
            disk.names[model_id, name].remove(gone.seq)
            rest = self._latest(model_id, name)
            if rest is not None and not rest.is_latest:
                disk.log[rest.seq] = attrs.evolve(rest, is_latest=True)
            if rest is None and gone.model_type in ONE_SHOT_TYPES:
                del disk.last[model_id, name]
            if rest is None and gone.model_type == STEP_LEASE:
                scope = name.removeprefix("lease-")
                disk.keys = {key: known for key, known in disk.keys.items() if known.scope != scope}
        return removed

    def forget_keys(self, before_ms: int) -> int:
        disk = self._disk
        old = [key for key, known in disk.keys.items() if not known.scope and known.created_ms < before_ms]
        for key in old:
            del disk.keys[key]
        return len(old)

    def collect_blobs(self) -> int:
        """Blobs staged since the last collection are kept: somebody may be about to name them."""
        disk = self._disk
        named = {record.sha256 for record in disk.log.values() if record.content is None} | disk.fresh
        gone = [sha256 for sha256 in disk.blobs if sha256 not in named]
        disk.fresh.clear()
        return sum(len(disk.blobs.pop(sha256)) for sha256 in gone)

    def close(self) -> None:
        if not self._gone:
            self.flush()
            self._gone = "the store is closed"


class _Staged:
    def __init__(self, disk: _Disk) -> None:
        self._disk = disk
        self._data = bytearray()

    def write(self, chunk: bytes) -> None:
        self._data += chunk

    def finish(self) -> Content:
        data = bytes(self._data)
        sha256 = hashlib.sha256(data).hexdigest()
        if len(data) <= INLINE_CONTENT_MAX:
            return Content(inline=data, sha256=sha256, size=len(data))
        self._disk.blobs[sha256] = data
        self._disk.fresh.add(sha256)
        return Content(inline=None, sha256=sha256, size=len(data))

    def discard(self) -> None:
        self._data.clear()


def _check(batch: Batch) -> None:
    if len(batch.records) > BATCH_RECORDS_MAX:
        raise LocalError(
            f"a batch of {len(batch.records)} records; at most {BATCH_RECORDS_MAX} commit together"
        )
    for new in batch.records:
        if not new.name or "\0" in new.name or not new.model_id:
            raise LocalError(f"{new.name!r} cannot name a record of model {new.model_id!r}")
        if any("\0" in key or "\0" in value for key, value in new.tags.items()):
            raise LocalError(f"a tag of {new.name} holds a NUL character")


def _value(record: Record, field: str) -> object:
    """A column as queries see it."""
    owner = record.owner
    return {
        "id": record.id, "name": record.name, "version": record.version, "isLatest": record.is_latest,
        "isDeleted": record.deleted, "createdAt": iso(record.created_ms), "modelName": record.model_name,
        "modelType": record.model_type, "modelId": record.model_id, "specName": record.spec, "dataType": record.kind.value,
        "contentType": record.content_type, "lifetime": record.lifetime, "ownerType": owner.type.value,
        "streaming": record.streaming, "size": record.size, "ownerRef": owner.ref, "workflowId": owner.workflow_id,
        "workflowRunId": owner.run, "workflowName": owner.workflow, "jobName": owner.job, "stepName": owner.step,
        "dispatch": owner.dispatch, "source": owner.source, "outcome": record.outcome, "sha256": record.sha256,
    }[field]  # fmt: skip
