"""The store: an append-only log of versioned records with compare-and-swap, plus content-addressed blobs.

Everything durable is a record: user data, tokens, workers, leases, queue entries, runs. A record is identified by
(`model_id`, `name`); each append makes its next version. Rules that every implementation keeps (one contract suite,
`tests/contracts/test_store.py`):

1. A batch commits as a whole or not at all, and `commit` returns only when it is durable.
2. Versions of one (`model_id`, `name`) are 1, 2, 3 … without gaps or repeats, whoever writes.
3. `expect` is compare-and-swap: the latest version must be exactly that number (0: the record must not exist).
4. `guards` are preconditions on other records, checked in the same transaction.
5. The same idempotency key with the same body digest answers with the first commit's result and writes nothing; with another
   digest it is `idempotency_conflict`. The key is stored in the transaction that acted.
6. A version never changes, but for two facts about it: whether it is the newest, and (once, from none) its outcome.
7. Content up to `INLINE_CONTENT_MAX` lives in the row; larger content is a blob file named by its sha256, fsynced
   before the row that names it commits. Rows are the authority; an orphan blob is garbage, never data.

The interface is synchronous and thread-safe; `submit` queues for group commit and answers through a future.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

import attrs

from swamp_proto.errors import SwampError


class Kind(StrEnum):
    """`dataType` in queries: what sort of thing a record is."""

    RESOURCE = "resource"  # JSON
    FILE = "file"
    REPORT = "report"


class OwnerType(StrEnum):
    MODEL_METHOD = "model-method"
    WORKFLOW_STEP = "workflow-step"
    MANUAL = "manual"
    SYSTEM = "system"  # swamp's own bookkeeping


@attrs.frozen
class Owner:
    """Who wrote a version. Empty strings where there is none."""

    type: OwnerType = OwnerType.SYSTEM
    ref: str = ""  # definition id, run id, …
    workflow_id: str = ""
    workflow: str = ""
    run: str = ""
    job: str = ""
    step: str = ""
    dispatch: str = ""
    fence: int = 0
    source: str = ""  # `step-output`, …


@attrs.frozen
class Content:
    """Bytes to store, in memory or already staged as a blob (then `inline` is None).

    `canonical` promises the form `json_content` writes (no duplicate keys, no blanks, no `\\u0000`): only then may a store leave
    JSON conditions to its database.
    """

    inline: bytes | None
    sha256: str  # hex
    size: int
    canonical: bool = False


@attrs.frozen
class NewRecord:
    """A version about to be appended."""

    model_type: str
    model_id: str
    model_name: str
    name: str
    spec: str
    content: Content
    kind: Kind = Kind.RESOURCE
    content_type: str = "application/json"
    lifetime: str = "infinite"  # `30d`, `workflow`, `infinite`, … (docs/reference/data.md)
    keep: int | None = None  # versions kept; None = all
    streaming: bool = False
    tags: Mapping[str, str] = attrs.field(factory=dict)
    owner: Owner = attrs.field(factory=Owner)
    outcome: str = ""  # `failed`, `abandoned`, … on records of executions that did not succeed
    deleted: bool = False  # a tombstone
    expect: int | None = None  # compare-and-swap on the latest version; None = append whatever there is


@attrs.frozen
class Record:
    """A stored version. `content` is None when it was not asked for or lives in a blob."""

    seq: int  # position in the log; grows with every append of this store
    id: str  # uuid, one per version
    model_type: str
    model_id: str
    model_name: str
    name: str
    version: int
    spec: str
    kind: Kind
    content_type: str
    lifetime: str
    keep: int | None
    streaming: bool
    tags: Mapping[str, str]
    owner: Owner
    outcome: str
    deleted: bool
    is_latest: bool
    size: int
    sha256: str
    created_ms: int  # wall, milliseconds
    content: bytes | None = attrs.field(repr=False, default=None)


@attrs.frozen
class Guard:
    """The latest version of (`model_id`, `name`) must be `version`, else the batch is refused with `Conflict`."""

    model_id: str
    name: str
    version: int


@attrs.frozen
class IdempotencyKey:
    key: str
    digest: str  # sha256 of the request body, hex
    scope: str = ""  # the dispatch whose lease it lives as long as


@attrs.frozen
class OutcomeMark:
    """Whatever dispatch `dispatch` of run `run` wrote while it ran gets this outcome: its end is known only now. Versions that
    have an outcome, tombstones and swamp's own bookkeeping keep what they have."""

    run: str
    dispatch: str
    outcome: str


@attrs.frozen
class Batch:
    """What commits together."""

    records: tuple[NewRecord, ...] = ()
    guards: tuple[Guard, ...] = ()
    idempotency: IdempotencyKey | None = None
    answer: bytes = b""  # stored with the idempotency key
    marks: tuple[OutcomeMark, ...] = ()


@attrs.frozen
class Appended:
    """One record of a committed batch."""

    id: str
    version: int
    seq: int
    created_ms: int


@attrs.frozen
class Committed:
    """`records[i]` answers `batch.records[i]`. `replayed` with the stored `answer` when the key was known."""

    records: tuple[Appended, ...] = ()
    replayed: bool = False
    answer: bytes = b""


Answered = Callable[[Committed | SwampError], Callable[[], None] | None]
"""Hears the outcome of a batch. What it returns is called once all batches of the group have heard theirs, and once only if
several return the same: a place to wake whoever waits for many."""


class Comparison(StrEnum):
    EQ = "="
    NE = "!="
    LT = "<"
    LE = "<="
    GT = ">"
    GE = ">="


@attrs.frozen
class Term:
    """One exact conjunct that a store can evaluate by itself.

    `field` is a column of `COLUMNS`, or `tags.<key>`, or `attributes.<path>` (dotted) of JSON content. `values` has one
    value, or several for `in` (only with EQ). Value types: str, int, float, bool. A record without the tag or attribute,
    or with a value of another type, does not match.
    """

    field: str
    comparison: Comparison
    values: tuple[str | int | float | bool, ...]


@attrs.frozen
class Selection:
    """What to read: all terms must hold. `latest_only` leaves out superseded versions, `deleted` includes tombstones."""

    terms: tuple[Term, ...] = ()
    latest_only: bool = True
    deleted: bool = False
    with_content: bool = True  # inline content only; blobs are opened by `open_blob`


COLUMNS: Final = (
    "id", "name", "version", "isLatest", "createdAt", "modelName", "modelType", "modelId", "specName", "dataType",
    "contentType", "lifetime", "ownerType", "streaming", "size", "ownerRef", "workflowRunId", "workflowName", "jobName",
    "stepName", "source", "outcome",
)  # fmt: skip
"""Names of fields as queries know them; `Term.field` uses these."""


class BlobWriter(Protocol):
    """A blob being staged: hash and size are computed as it is written; nothing is visible until it is committed."""

    def write(self, chunk: bytes) -> None: ...

    def finish(self) -> Content:
        """Flush, fsync and name it by its hash."""
        ...

    def discard(self) -> None: ...


class Store(Protocol):
    """Synchronous and thread-safe. Reads see every batch that was answered before they began."""

    epoch: str  # uuid; changes on restore (SEMANTICS §10)

    def commit(self, batch: Batch) -> Committed:
        """Commit and wait. Raises `Conflict`, `StoreFull` (retryable), `StoreCorrupt`."""
        ...

    def submit(self, batch: Batch) -> "Future[Committed]":
        """Queue for the next group commit. Batches of one store commit in the order they were submitted."""
        ...

    def submit_to(self, batch: Batch, answered: Answered) -> None:
        """`submit` without the cost of a future: `answered` is called exactly once, with what was committed or with the
        error, in the store's thread (or before this returns, when there is nothing to wait for). It must be quick and not raise."""
        ...

    def latest(self, model_id: str, name: str, *, content: bool = True) -> Record | None: ...

    def version(self, model_id: str, name: str, version: int, *, content: bool = True) -> Record | None: ...

    def versions(self, model_id: str, name: str) -> Sequence[Record]:
        """All versions, oldest first, without content."""
        ...

    def select(
        self, selection: Selection, *, after: int = 0, limit: int | None = None, newest_first: bool = False
    ) -> Iterator[Record]:
        """Matching records in order of `seq`, starting after `after` (keyset paging), as of one instant. With `newest_first` the
        order is reversed and `after`, when not 0, is where it starts below."""
        ...

    def scan(
        self,
        selection: Selection,
        fields: Sequence[str],
        *,
        after: int = 0,
        limit: int | None = None,
        newest_first: bool = False,
    ) -> Iterator[tuple[Any, ...]]:
        """`select` without building `Record`s: one tuple of `fields` for each. A field is a name in `COLUMNS` (or
        `isDeleted`, `workflowId`, `dispatch`, `sha256`) with its value as queries see it, or `seq`, `createdMs`, `keep`;
        `tags` (JSON text); `attributes` (JSON bytes, from the blob too, or None); `content` (inline bytes, or None when
        it is a blob)."""
        ...

    def read(self, record: Record) -> bytes:
        """The whole content, verified against its sha256 when it is a blob."""
        ...

    def open_blob(self, sha256: str) -> BinaryIO: ...

    def stage(self) -> BlobWriter: ...

    def adopt(self, file: Path, sha256: str, size: int, *, keep: bool = False) -> Content:
        """A whole, fsynced file of the store's own file system, whose sha256 was computed as it was written, becomes a blob. The
        file is gone then, also when such a blob was there. With `keep` it stays until its owner removes it, and must not change any
        more: it may be the blob itself."""
        ...

    def remove(self, record_ids: Sequence[tuple[str, str, int]]) -> int:
        """Collector only: remove versions (`model_id`, `name`, `version`); returns how many there were. The newest version of
        a name keeps its number reserved: versions never repeat (leases, queue entries and runs excepted: their identity
        holds a uuid that is made once)."""
        ...

    def forget_keys(self, before_ms: int) -> int:
        """Collector only: drop idempotency keys without a scope that are older; returns how many. Scoped keys go with the last
        version of their dispatch's lease."""
        ...

    def collect_blobs(self) -> int:
        """Remove blobs no row names, re-checked inside the writer; returns bytes freed."""
        ...

    def close(self) -> None: ...


Clock = Callable[[], int]
"""Wall clock, milliseconds since the epoch."""

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


def answer_all(group: Iterable[Answered], outcomes: Iterable[Committed | SwampError]) -> None:
    """Tell each of a group its outcome, then do what they asked to be done after all."""
    afterwards: list[Callable[[], None]] = []
    for answered, outcome in zip(group, outcomes, strict=True):
        after = answered(outcome)
        if after is not None and after not in afterwards:
            afterwards.append(after)
    for after in afterwards:
        after()


def json_content(value: Any) -> Content:
    """Canonical JSON content: UTF-8, no blanks, keys in the order given. Raises ValueError for NaN and infinities."""
    data = _encode(value).encode()
    return Content(
        inline=data, sha256=sha256(data).hexdigest(), size=len(data), canonical=b"\\u0000" not in data
    )
