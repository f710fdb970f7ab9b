"""Dispatch: one attempt to run one step on one executor; its log lines, its end, its cancellation.

A dispatch outlives a link: `Finished` is a request of its own, repeated on later links until it is
acknowledged. The loopback executor is given the very same `Dispatch` and answers with the very same
`Finished`.
"""

from collections.abc import Mapping
from enum import Enum, StrEnum
from functools import cached_property
from hashlib import sha256
from typing import Any

import attrs


class Outcome(StrEnum):
    """How an execution ended, as its holder reports it."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    ABANDONED = "abandoned"  # ended by give-up, verdict, keeper or forced stop; never the step's fault


class Stream(int, Enum):
    STDOUT = 1
    STDERR = 2


@attrs.frozen
class Place:
    """Where in a run a dispatch belongs; names for people and for records."""

    run: str
    workflow: str
    workflow_id: str
    job: str
    step: str


@attrs.frozen
class Program:
    """Which Python code runs the method, and what runs with it."""

    bundle: str  # its sha256, hex; empty: the type comes with swamp
    entry: str  # `inventory.py:Inventory`: file below the bundle's root, and class
    checks: tuple[str, ...]  # pre-flight checks to run before the method
    reports: tuple[str, ...]  # reports of method scope to make after it


@attrs.frozen
class Dispatch:
    """O -> W request `dispatch.start`. Answered by `Accepted`, or refused `busy` / `draining`."""

    dispatch: str
    fence: int
    attempt: int
    attempt_key: str  # stable per (run, step, attempt): the author's idempotency key (`SWAMP_ATTEMPT_KEY`)
    place: Place
    model_type: str  # `command/shell`
    model_name: str
    model_id: str
    model_version: int
    model_tags: dict[str, str]
    method: str
    program: Program | None  # None: the executor itself knows how to run it (`command/shell`)
    global_arguments: dict[str, Any] = attrs.field(repr=False)  # resolved; JSON-shaped
    arguments: dict[str, Any] = attrs.field(repr=False)  # resolved; JSON-shaped
    environment: dict[str, str] = attrs.field(repr=False)  # the orchestrator's snapshot, for this step only
    bindings: dict[str, str] = attrs.field(repr=False)  # expression values and secrets, as variables
    display: str | None  # the shell text as it may be stored and shown; secrets are `***`
    secrets: tuple[str, ...] = attrs.field(repr=False)  # values to mask
    timeout_s: float | None  # from `running`, enforced by the holder
    credential: str = attrs.field(repr=False)  # data-plane credential, valid exactly as long as the lease


@attrs.frozen
class Accepted:
    """W -> O reply: a slot is taken and the process is about to start."""

    dispatch: str


@attrs.frozen
class LogBlock:
    """Consecutive lines of one stream: a step that prints much is not told line by line."""

    stream: Stream
    text: str  # one or more whole lines, a line feed between two of them and none at the end; masked

    @cached_property
    def count(self) -> int:
        """How many lines."""
        return self.text.count("\n") + 1


@attrs.frozen
class LogLines:
    """W -> O event `dispatch.log`. Lines are numbered per dispatch from 1; `first` is the number of the first line of `blocks[0]`."""

    dispatch: str
    fence: int
    first: int
    blocks: tuple[LogBlock, ...]


@attrs.frozen
class LogNoted:
    """O -> W event `dispatch.log.noted`: every line up to and including `through` is kept."""

    dispatch: str
    through: int


@attrs.frozen
class Output:
    """A record the step produced: at its end (it becomes one in the completion's transaction), or written
    while it ran (`capability.WriteBatch`).
    """

    spec: str
    name: str
    kind: str  # resource, file, report
    content_type: str
    tags: dict[str, str]
    staged: int | None  # number of the upload that holds the content; then `content` is empty
    sha256: str  # hex
    size: int
    content: bytes = attrs.field(repr=False)

    @classmethod
    def of(
        cls,
        spec: str,
        name: str,
        kind: str,
        content_type: str,
        content: bytes,
        tags: Mapping[str, str] | None = None,
    ) -> "Output":
        """With its content in it."""
        digest = sha256(content).hexdigest()
        return cls(spec, name, kind, content_type, dict(tags or {}), None, digest, len(content), content)


@attrs.frozen
class Finished:
    """W -> O request `dispatch.finished`, repeated until answered by `FinishNoted`."""

    dispatch: str
    fence: int
    outcome: Outcome
    error: str | None  # one sentence for people, masked
    outputs: tuple[Output, ...]
    last_line: int  # number of the last log line, 0 = none
    lines_lost: int  # lines that could not be kept, 0 in all but disasters
    left: int | None  # processes counted after the end; 0, or None = unknown
    started_ms: int
    duration_ms: int


@attrs.frozen
class FinishNoted:
    """O -> W reply: the end is durable, or refused for good (`accepted` false: the lease had ended)."""

    dispatch: str
    accepted: bool


@attrs.frozen
class CancelDispatch:
    """O -> W request `dispatch.cancel`: TERM, grace, KILL. Answered at once; the end comes as `Finished`."""

    dispatch: str
    fence: int
    reason: str
    term_s: float  # TERM -> KILL


@attrs.frozen
class CancelNoted:
    dispatch: str
    known: bool  # false: this worker does not hold it
