"""Enrollment, session and liveness: what a worker says to be let in, and what keeps the link alive.

Values only: frozen, no behaviour. `W -> O` is worker to orchestrator. Wall instants are integer milliseconds
since the epoch and end in `_ms`; durations are seconds and end in `_s`.
"""

from enum import StrEnum

import attrs

from swamp_proto.errors import RefusalCode


class HeldPhase(StrEnum):
    """How far a held dispatch is, as its holder sees it."""

    RUNNING = "running"
    FINISHED = "finished"  # the outcome waits to be delivered
    ENDING = "ending"  # being killed, not yet reaped


class Verdict(StrEnum):
    """What the orchestrator says about a held dispatch."""

    KEEP = "keep"
    DROP = "drop"  # kill, reap, then the slot is free


@attrs.frozen
class HeldDispatch:
    """One dispatch that is not yet reaped, or whose result is not yet acknowledged."""

    dispatch: str
    fence: int
    phase: HeldPhase
    last_line: int  # number of the last log line produced, 0 = none


@attrs.frozen
class Predecessor:
    """The previous process that held this cache directory, and whether everything it ran is known dead."""

    instance: str
    boot_id: str
    reaped: bool


@attrs.frozen
class Enroll:
    """W -> O request `worker.enroll`, once per socket, first frame. Answered by `Enrolled` or a failure."""

    protocol_version: int
    swamp_version: str
    token: str = attrs.field(repr=False)  # `<name>.<secret>`
    machine_id: str
    boot_id: str
    instance: str
    counter: int  # grows with every enroll frame of this instance, from 1
    host: str
    pid: int
    platform: str  # linux, darwin
    arch: str  # x86_64, aarch64
    labels: dict[str, str]
    capacity: int
    draining: bool
    predecessor: Predecessor | None
    held: tuple[HeldDispatch, ...]


@attrs.frozen
class HeldVerdict:
    dispatch: str
    verdict: Verdict


@attrs.frozen
class Enrolled:
    """O -> W reply: who the worker is, for how long, and what becomes of what it holds."""

    worker: str  # its name in the pool
    orchestrator: str  # repository id of the orchestrator
    link: int  # epoch of this link; grows with every link of this worker
    session_credential: str = attrs.field(repr=False)
    session_expires_ms: int
    token_expires_ms: int
    grace_s: float
    heartbeat_s: float
    silence_s: float
    verdicts: tuple[HeldVerdict, ...]


@attrs.frozen
class Heartbeat:
    """Request `link.heartbeat`, both ways; only an answered one renews what a worker holds."""

    number: int


@attrs.frozen
class HeartbeatAnswer:
    number: int


@attrs.frozen
class RefreshSession:
    """W -> O request `worker.session.refresh`."""


@attrs.frozen
class SessionRefreshed:
    session_credential: str = attrs.field(repr=False)
    session_expires_ms: int


@attrs.frozen
class AnnounceDrain:
    """W -> O request `worker.drain`, sent before finishing what runs. `draining` false takes it back."""

    draining: bool
    reason: str


@attrs.frozen
class DrainNoted:
    draining: bool


@attrs.frozen
class Farewell:
    """O -> W event `link.farewell`: the last frame before the orchestrator closes the link."""

    code: RefusalCode
    message: str
    retry_after_s: float | None


@attrs.frozen
class Notice:
    """O -> W event `worker.notice`: something its operator should read (token about to expire, …)."""

    level: str  # info, warn
    message: str
