"""What can happen to leases, as values: facts in the past tense, each told to `Leases.handle` once.

`now` is not part of an event. Events name link epochs and fences so that late ones can be told from current ones.
"""

import attrs

from swamp_orch.core.lease_values import CancelKind, Lease
from swamp_proto.errors import RefusalCode
from swamp_proto.messages.dispatch import Outcome


@attrs.frozen
class LeaseGranted:
    """The record of `lease` (version 1, phase granted) is durable. `link_up`: its link still is the
    worker's.
    """

    lease: Lease
    link_up: bool = True


@attrs.frozen
class NotSent:
    """The frame never left: the worker can not have started it."""

    dispatch: str


@attrs.frozen
class Accepted:
    dispatch: str


@attrs.frozen
class Refused:
    """The worker would not take it. For `busy` and `draining`, tell the scheduler its slots first."""

    dispatch: str
    code: RefusalCode
    message: str


@attrs.frozen
class WriteArrived:
    """Running code asks for a write. `record` names it for people. Answered by AdmitWrite or RefuseWrite."""

    dispatch: str
    fence: int
    request: str
    record: str


@attrs.frozen
class FinishArrived:
    """A report of the end. Answered by AdmitFinish, NoteFinish or RefuseFinish. `left` None = unknown."""

    dispatch: str
    fence: int
    outcome: Outcome
    left: int | None
    error: str | None = None


@attrs.frozen
class Committed:
    """The commit under way of this lease is durable."""

    dispatch: str


@attrs.frozen
class CommitFailed:
    """The commit under way did not happen: compare-and-swap lost, or the disk is full (then say so after a
    pause). `stored` is the record as it is."""

    dispatch: str
    stored: Lease


@attrs.frozen
class StoredOtherwise:
    """A guarded write met another version of the record than the one believed in. `stored` is the record as it is."""

    dispatch: str
    stored: Lease


@attrs.frozen
class LinkLost:
    """The link `link` of a worker is over."""

    worker: str
    link: int


@attrs.frozen
class Holding:
    """One dispatch a returning worker lists: everything it has not reaped yet."""

    dispatch: str
    fence: int


@attrs.frozen
class WorkerReturned:
    """A worker enrolled on link `link`. `reaped`: it proved that its predecessors' executions are dead."""

    worker: str
    instance: str
    link: int
    held: tuple[Holding, ...] = ()
    reaped: bool = False


@attrs.frozen
class EnrollQueued:
    """An enrollment of this instance waits for its verification: not the worker's fault."""

    worker: str
    instance: str


@attrs.frozen
class EmptyConfirmed:
    """The holder counted nothing left of this dispatch."""

    dispatch: str


@attrs.frozen
class CancelAsked:
    dispatch: str
    kind: CancelKind
    reason: str


@attrs.frozen
class DrainAsked:
    """An operator wants this worker free as soon as nothing is lost by it: what has not written goes elsewhere."""

    worker: str


@attrs.frozen
class TokenEnded:
    """The mint is over: `why` is `revoked` or `expired`."""

    mint_id: str
    why: str


@attrs.frozen
class DeadlinePassed:
    """Time went on: everything that is due now."""


@attrs.frozen
class Stalled:
    """The orchestrator's own loop stood still this long: nobody else's fault."""

    seconds: float


@attrs.frozen
class LeaseFound:
    """A lease read from the store at start, once the listener is ready: an active one, an ended one whose step has not
    ended, or (`step_ended`) one whose step has, while its execution may still live: then it is only waited for.
    `loopback_dead`: the predecessor's keeper has killed what it ran."""

    lease: Lease
    loopback_dead: bool = True
    step_ended: bool = False


Event = (
    LeaseGranted
    | NotSent
    | Accepted
    | Refused
    | WriteArrived
    | FinishArrived
    | Committed
    | CommitFailed
    | StoredOtherwise
    | LinkLost
    | WorkerReturned
    | EnrollQueued
    | EmptyConfirmed
    | CancelAsked
    | DrainAsked
    | TokenEnded
    | DeadlinePassed
    | Stalled
    | LeaseFound
)
