"""The step-lease machine: what becomes of a dispatch when links drop, processes die, people cancel and tokens
end.

Rules that hold here (SEMANTICS §1-§8):

1. **Ending a lease and placing its step again are two instants.** The end closes the fence at once.
   `RequeueStep` comes only when the old execution is known dead: its holder said so, a successor of the same
   machine proved it, or `replace_at` has passed.
2. **Write, then fail.** A lease that admitted a write ends `failed`, `write_then_drop`, when its holder is
   lost; one that did not ends `expired` and its step is placed again. Only `onWorkerLost` of the step's
   author changes that.
3. **Persist before you speak.** A lease has at most one commit under way. What must not be said before it is
   durable is kept here until `Committed`; what changes meanwhile goes with the next commit.
4. Every commit expects the version before it, so a write and an end can never both win, whoever makes them.
   After `CommitFailed` the machine takes from the store what it has (above all whether a write was admitted)
   and decides again.
5. Every active lease has an owner and a deadline: the link while it is up, else a deadline here (`check`).
6. Events name link epochs; what an old link says about a lease that lives on a newer one is ignored.

Two clocks, both arguments: `now_s` is monotonic and judges deadlines, `now_ms` is the wall and goes into
records. Deliberately unknown here: sockets, the store, runs, retries of methods, what a step does.
"""

from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from heapq import heappop, heappush
from typing import Final

import attrs

from swamp_orch.core.lease_values import (
    NOT_RUN,
    AdmitFinish,
    AdmitWrite,
    AskCancel,
    CancelKind,
    Drop,
    Effect,
    EndReason,
    EndSession,
    EndStep,
    FailStep,
    FreeSlot,
    Keep,
    Lease,
    LeaseState,
    NoteFinish,
    PersistLease,
    Phase,
    RefuseFinish,
    RefuseWrite,
    RequeueStep,
    SlotStuck,
)
from swamp_orch.definitions.values import OnWorkerLost
from swamp_orch.store.bookkeeping import iso
from swamp_proto.errors import Bug, RefusalCode
from swamp_proto.limits import CANCEL_WAIT_S, GRACE_RESETS_MAX, LOSSES_MAX, STUCK_S
from swamp_proto.messages.dispatch import Outcome

GRACE_PAUSE_FRACTION: Final = 0.25  # of G: what a queued enrollment adds to the grace window, once
REMEMBERED_MAX: Final = 4_096  # completed dispatches whose report may come again because the answer was lost
RUNNING_RECORD_S: Final = (
    0.25  # a step that runs longer than this is recorded as running; shorter ones save the commit
)


class Stage(StrEnum):
    """Where a lease is: the phases of an active one, then the ends."""

    GRANTED = "granted"  # sent, not yet accepted
    RUNNING = "running"
    SUSPENDED = "suspended"  # the link is down, grace runs
    CANCELLING = "cancelling"
    FINISHING = "finishing"  # its completion is being committed
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class Happening(StrEnum):
    ACCEPTED = "accepted"
    REFUSED = "refused"
    NOT_SENT = "not sent"
    LINK_LOST = "link lost"
    RETURNED_HOLDING = "returned holding"
    RETURNED_WITHOUT = "returned without"
    REPLACED = "returned as another process"
    GRACE_OVER = "grace over"
    FINISHED = "finish arrived"
    FINISH_COMMITTED = "finish committed"
    FINISH_UNSAVED = "finish not saved"
    ENDED_ELSEWHERE = "ended by another process"
    ABANDONED = "abandoned"
    CANCEL_ASKED = "cancel asked"
    CANCEL_OVERDUE = "cancel overdue"
    TOKEN_ENDED = "token ended"  # noqa: S105 - not a secret
    HOLDER_GONE = "orchestrator restarted"  # loopback only


_LOST: Final = (Stage.EXPIRED, Stage.FAILED)

TRANSITIONS: Final[Mapping[tuple[Stage, Happening], tuple[Stage, ...]]] = {
    (Stage.GRANTED, Happening.ACCEPTED): (Stage.RUNNING,),
    (Stage.GRANTED, Happening.REFUSED): (Stage.EXPIRED, Stage.FAILED),
    (Stage.GRANTED, Happening.NOT_SENT): (Stage.EXPIRED,),
    (Stage.GRANTED, Happening.LINK_LOST): (Stage.SUSPENDED,),
    (Stage.GRANTED, Happening.RETURNED_HOLDING): (Stage.RUNNING,),
    (Stage.GRANTED, Happening.RETURNED_WITHOUT): _LOST,
    (Stage.GRANTED, Happening.REPLACED): _LOST,
    (Stage.GRANTED, Happening.FINISHED): (Stage.FINISHING,),
    (Stage.GRANTED, Happening.ABANDONED): _LOST,
    (Stage.GRANTED, Happening.CANCEL_ASKED): (Stage.CANCELLING,),
    (Stage.GRANTED, Happening.TOKEN_ENDED): _LOST,
    (Stage.GRANTED, Happening.HOLDER_GONE): _LOST,
    (Stage.RUNNING, Happening.LINK_LOST): (Stage.SUSPENDED,),
    (Stage.RUNNING, Happening.RETURNED_HOLDING): (Stage.RUNNING,),
    (Stage.RUNNING, Happening.RETURNED_WITHOUT): _LOST,
    (Stage.RUNNING, Happening.REPLACED): _LOST,
    (Stage.RUNNING, Happening.FINISHED): (Stage.FINISHING,),
    (Stage.RUNNING, Happening.ABANDONED): _LOST,
    (Stage.RUNNING, Happening.CANCEL_ASKED): (Stage.CANCELLING,),
    (Stage.RUNNING, Happening.TOKEN_ENDED): _LOST,
    (Stage.RUNNING, Happening.HOLDER_GONE): _LOST,
    (Stage.SUSPENDED, Happening.ACCEPTED): (Stage.SUSPENDED,),
    (Stage.SUSPENDED, Happening.REFUSED): (Stage.EXPIRED, Stage.FAILED),
    (Stage.SUSPENDED, Happening.NOT_SENT): (Stage.EXPIRED,),
    (Stage.SUSPENDED, Happening.RETURNED_HOLDING): (Stage.RUNNING,),
    (Stage.SUSPENDED, Happening.RETURNED_WITHOUT): _LOST,
    (Stage.SUSPENDED, Happening.REPLACED): _LOST,
    (Stage.SUSPENDED, Happening.GRACE_OVER): _LOST,
    (Stage.SUSPENDED, Happening.FINISHED): (Stage.FINISHING,),
    (Stage.SUSPENDED, Happening.ABANDONED): _LOST,
    (Stage.SUSPENDED, Happening.CANCEL_ASKED): (Stage.CANCELLING,),
    (Stage.SUSPENDED, Happening.TOKEN_ENDED): _LOST,
    (Stage.CANCELLING, Happening.ACCEPTED): (Stage.CANCELLING,),
    (Stage.CANCELLING, Happening.REFUSED): (Stage.CANCELLED,),
    (Stage.CANCELLING, Happening.NOT_SENT): (Stage.CANCELLED,),
    (Stage.CANCELLING, Happening.LINK_LOST): (Stage.CANCELLING,),
    (Stage.CANCELLING, Happening.RETURNED_HOLDING): (Stage.CANCELLING,),
    (Stage.CANCELLING, Happening.RETURNED_WITHOUT): (Stage.CANCELLED,),
    (Stage.CANCELLING, Happening.REPLACED): (Stage.CANCELLED,),
    (Stage.CANCELLING, Happening.FINISHED): (Stage.FINISHING,),
    (Stage.CANCELLING, Happening.ABANDONED): (Stage.CANCELLED,),
    (Stage.CANCELLING, Happening.CANCEL_OVERDUE): (Stage.CANCELLED,),
    (Stage.CANCELLING, Happening.TOKEN_ENDED): (Stage.CANCELLED,),
    (Stage.CANCELLING, Happening.HOLDER_GONE): (Stage.CANCELLED,),
    (Stage.FINISHING, Happening.LINK_LOST): (Stage.FINISHING,),
    (Stage.FINISHING, Happening.RETURNED_HOLDING): (Stage.FINISHING,),
    (Stage.FINISHING, Happening.FINISH_COMMITTED): (Stage.COMPLETED, Stage.FAILED, Stage.CANCELLED),
    (Stage.FINISHING, Happening.FINISH_UNSAVED): (Stage.RUNNING, Stage.SUSPENDED, Stage.CANCELLING),
}
"""(stage, happening) -> the stages that may follow; which one is decided by what was written and asked."""


# ── events: what happened ───────────────────────────────────────────────────────────────────────────────────
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
    """A lease read from the store at start, once the listener is ready: an active one, or an ended one whose
    step has not ended. `loopback_dead`: the predecessor's keeper has killed what it ran."""

    lease: Lease
    loopback_dead: bool = True


Event = (
    LeaseGranted
    | NotSent
    | Accepted
    | Refused
    | WriteArrived
    | FinishArrived
    | Committed
    | CommitFailed
    | LinkLost
    | WorkerReturned
    | EnrollQueued
    | EmptyConfirmed
    | CancelAsked
    | TokenEnded
    | DeadlinePassed
    | Stalled
    | LeaseFound
)


# ── what is kept of a lease beside its record ───────────────────────────────────────────────────────────────
@attrs.frozen
class _End:
    """A decided end: how to decide it again when a commit failed, from the stage and the lease before."""

    stage: Stage
    lease: Lease
    again: Callable[[], Iterator[Effect]]


class _Commit(StrEnum):
    CHANGE = "change"
    WRITE = "write"  # the first write, with the mark
    REPORT = "report"  # the completion


@attrs.define(eq=False)
class _Entry:
    lease: Lease
    stage: Stage
    link_up: bool
    slot_held: bool = True
    deadline_s: float | None = None
    replace_s: float | None = None  # by then the old execution is dead at the latest
    paused: bool = False  # its grace was extended by a queued enrollment
    dead: bool = False  # its execution is known dead
    # commits
    under_way: _Commit | None = None
    dirty: bool = False  # something changed that is not in the commit under way
    said: tuple[Effect, ...] = ()  # to be said when the commit under way is durable
    to_say: tuple[Effect, ...] = ()  # to be said when the next one is
    writes: tuple[WriteArrived, ...] = ()  # ask again when the commit under way is durable
    # ends
    finish: FinishArrived | None = None
    reported: Lease | None = None  # as the completion under way ends it
    before_finish: Stage = Stage.RUNNING
    token_why: str | None = None
    end: _End | None = None
    end_durable: bool = False
    requeue: RequeueStep | None = None  # waits for the old execution to be dead

    @property
    def active(self) -> bool:
        """Not ended, and no end decided."""
        return self.lease.state is LeaseState.ACTIVE


class Leases:
    """All active leases, and the ended ones whose execution may still live."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._of_worker: dict[str, dict[str, None]] = {}
        self._completed: dict[str, int] = {}  # the last that completed, with their fences
        self._due: list[tuple[float, int, str]] = []
        self._serial = 0
        self._now_s = 0.0
        self._now_ms = 0

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────
    def __len__(self) -> int:
        return len(self._entries)

    def get(self, dispatch: str) -> Lease | None:
        """The lease as decided so far, while it is active or its execution may still live."""
        entry = self._entries.get(dispatch)
        return None if entry is None else entry.lease

    def active(self) -> tuple[Lease, ...]:
        return tuple(entry.lease for entry in self._entries.values() if entry.active)

    def admits(self, dispatch: str, fence: int) -> Lease | None:
        """The lease under which this dispatch may read, and ask for writes, at this instant; None:
        `lease_ended`.
        """
        entry = self._entries.get(dispatch)
        if entry is None or not entry.active or entry.lease.fence != fence or entry.stage is Stage.FINISHING:
            return None
        return entry.lease

    def busy_until(self, worker: str, instance: str, reaped: bool) -> float | None:
        """Until when (`now_s`) another process of this machine must wait (`identity_busy`); None: it may
        enroll.
        """
        waits = [
            entry.replace_s if entry.replace_s is not None else self._now_s + entry.lease.grace_s
            for entry in self._at(worker)
            if entry.lease.instance != instance and not entry.lease.completed and not entry.dead
        ]
        return None if reaped else max(waits, default=None)

    def next_deadline(self) -> float | None:
        """The next instant (`now_s`) at which `DeadlinePassed` does something."""
        while self._due:
            deadline_s, _, dispatch = self._due[0]
            entry = self._entries.get(dispatch)
            if entry is not None and entry.deadline_s == deadline_s:
                return deadline_s
            heappop(self._due)
        return None

    # ── the machine ─────────────────────────────────────────────────────────────────────────────────────────
    def handle(self, event: Event, now_s: float, now_ms: int) -> tuple[Effect, ...]:
        """Take note of what happened; answer what is to be done, in order."""
        self._now_s, self._now_ms = max(self._now_s, now_s), now_ms
        match event:
            case LeaseGranted():
                found = self._granted(event)
            case NotSent():
                found = self._not_sent(event)
            case Accepted():
                found = self._accepted(event)
            case Refused():
                found = self._refused(event)
            case WriteArrived():
                found = self._write(event)
            case FinishArrived():
                found = self._finish(event)
            case Committed():
                found = self._committed(event)
            case CommitFailed():
                found = self._commit_failed(event)
            case LinkLost():
                found = self._link_lost(event)
            case WorkerReturned():
                found = self._returned(event)
            case EnrollQueued():
                found = self._enroll_queued(event)
            case EmptyConfirmed():
                found = self._empty(event)
            case CancelAsked():
                found = self._cancel(event)
            case TokenEnded():
                found = self._token_ended(event)
            case DeadlinePassed():
                found = self._deadlines()
            case Stalled():
                found = self._stalled(event)
            case LeaseFound():
                found = self._found(event)
        return tuple(found)

    # ── grant, start, write ─────────────────────────────────────────────────────────────────────────────────
    def _granted(self, event: LeaseGranted) -> Iterator[Effect]:
        if event.lease.phase is not Phase.GRANTED or not event.lease.active:
            raise Bug(f"dispatch {event.lease.dispatch} is granted as {event.lease.phase}")
        entry = self._enter(event.lease, Stage.GRANTED, link_up=True)
        if not event.link_up:
            yield from self._never_ran(
                entry, Happening.NOT_SENT, EndReason.NOT_SENT, "the link was lost before"
            )

    def _not_sent(self, event: NotSent) -> Iterator[Effect]:
        entry = self._entries.get(event.dispatch)
        if entry is not None and entry.active and not entry.lease.accepted:
            text = f"{entry.lease.holder} was gone before it could be sent"
            yield from self._never_ran(entry, Happening.NOT_SENT, EndReason.NOT_SENT, text)

    def _accepted(self, event: Accepted) -> Iterator[Effect]:
        entry = self._entries.get(event.dispatch)
        if entry is None or not entry.active or entry.lease.accepted or entry.stage is Stage.FINISHING:
            return
        self._go(entry, Happening.ACCEPTED, Stage.RUNNING if entry.stage is Stage.GRANTED else entry.stage)
        entry.lease = attrs.evolve(entry.lease, accepted=True, running_ms=self._now_ms)
        if entry.stage is Stage.RUNNING:
            entry.lease = attrs.evolve(entry.lease, phase=Phase.RUNNING)
            self._until(entry, self._now_s + RUNNING_RECORD_S)
        yield from ()

    def _refused(self, event: Refused) -> Iterator[Effect]:
        entry = self._entries.get(event.dispatch)
        if entry is None or not entry.active or entry.lease.accepted or entry.stage is Stage.FINISHING:
            return
        if event.code is RefusalCode.DRAINING:
            yield from self._never_ran(entry, Happening.REFUSED, EndReason.DRAINING, event.message)
        elif event.code is RefusalCode.BUSY or entry.stage is Stage.CANCELLING:
            yield from self._never_ran(entry, Happening.REFUSED, EndReason.BUSY, event.message)
        else:
            yield from self._refused_for_good(entry, event.message)

    def _write(self, event: WriteArrived) -> Iterator[Effect]:
        if self.admits(event.dispatch, event.fence) is None:
            yield RefuseWrite(event.request, RefusalCode.LEASE_ENDED)
            return
        entry = self._entries[event.dispatch]
        entry.writes = (*entry.writes, event)
        yield from self._pump(entry)

    # ── the holder's report ─────────────────────────────────────────────────────────────────────────────────
    def _finish(self, event: FinishArrived) -> Iterator[Effect]:
        entry = self._entries.get(event.dispatch)
        if entry is None and self._completed.get(event.dispatch) == event.fence:
            yield NoteFinish(event.dispatch)  # the answer to the first report was lost
            return
        if entry is None or entry.lease.fence != event.fence:
            yield RefuseFinish(event.dispatch, f"late result: dispatch {event.dispatch} is over")
            return
        if entry.stage is Stage.FINISHING:  # the same report again: answered when it is durable
            entry.dead = entry.dead or event.left == 0
            return
        if not entry.active:
            if entry.lease.completed:
                yield NoteFinish(event.dispatch)
            else:
                message = f"late result from {entry.lease.holder}: the lease had ended, {entry.lease.reason}"
                yield RefuseFinish(event.dispatch, message)
            if event.left == 0:
                yield from self._found_dead(entry)
            return
        if event.outcome is Outcome.ABANDONED:
            text = event.error or f"{entry.lease.holder} gave it up"
            entry.to_say = (*entry.to_say, NoteFinish(event.dispatch))
            yield from self._lost(
                entry, Happening.ABANDONED, EndReason.ABANDONED, text, counted=False, dead=event.left == 0
            )
            return
        entry.before_finish, entry.finish = entry.stage, event
        self._go(entry, Happening.FINISHED, Stage.FINISHING)
        self._until(entry, None)
        if event.left == 0:
            yield from self._free(entry)
        yield from self._pump(entry)

    def _report(self, entry: _Entry, finish: FinishArrived) -> Lease:
        """The lease as its completion ends it."""
        state, reason = _REPORTED[finish.outcome]
        return attrs.evolve(
            entry.lease,
            accepted=True,
            state=state,
            reason=reason,
            error=finish.error or "",
            ended_ms=self._now_ms,
            deadline_ms=None,
            left=finish.left,
            empty_ms=self._now_ms if finish.left == 0 else None,
            completed=True,
        )

    # ── commits ─────────────────────────────────────────────────────────────────────────────────────────────
    def _pump(self, entry: _Entry) -> Iterator[Effect]:
        """Start the next commit if none is under way: an end, a completion, a change, a first write; in that
        order.
        """
        if entry.under_way is not None:
            return
        if entry.stage is Stage.FINISHING and entry.finish is not None:
            self._begin(entry, _Commit.REPORT)
            entry.reported = self._report(entry, entry.finish)
            yield AdmitFinish(entry.reported)
            return
        if entry.dirty:
            self._begin(entry, _Commit.CHANGE)
            yield PersistLease(entry.lease)
            return
        waiting, entry.writes = entry.writes, ()
        for position, write in enumerate(waiting):
            if not entry.active:
                yield RefuseWrite(write.request, RefusalCode.LEASE_ENDED)
            elif entry.lease.wrote:
                yield AdmitWrite(write.request, entry.lease, first=False)
            else:
                entry.lease = attrs.evolve(
                    entry.lease,
                    accepted=True,
                    wrote=True,
                    first_write=write.record,
                    first_write_ms=self._now_ms,
                )
                entry.writes = waiting[position + 1 :]
                self._begin(entry, _Commit.WRITE)
                yield AdmitWrite(write.request, entry.lease, first=True)
                return

    def _begin(self, entry: _Entry, commit: _Commit) -> None:
        entry.under_way, entry.dirty = commit, False
        entry.said, entry.to_say = entry.to_say, ()
        if commit is _Commit.REPORT:  # there is nothing left to cancel
            entry.said = tuple(one for one in entry.said if not isinstance(one, AskCancel))

    def _save(self, entry: _Entry, *then: Effect) -> Iterator[Effect]:
        """Make the lease as it is now durable; say `then` afterwards."""
        entry.dirty = True
        entry.to_say = (*entry.to_say, *then)
        yield from self._pump(entry)

    def _committed(self, event: Committed) -> Iterator[Effect]:
        entry = self._entries.get(event.dispatch)
        if entry is None or entry.under_way is None:
            raise Bug(f"dispatch {event.dispatch}: a commit that was not under way")
        commit, entry.under_way = entry.under_way, None
        said, entry.said = entry.said, ()
        yield from said
        if commit is _Commit.REPORT:
            yield from self._report_durable(entry)
            return
        entry.lease = attrs.evolve(entry.lease, version=entry.lease.version + 1)
        if not entry.active and not entry.dirty:
            entry.end_durable = True
            if entry.dead:
                yield from self._over(entry)
                return
        yield from self._pump(entry)

    def _report_durable(self, entry: _Entry) -> Iterator[Effect]:
        assert entry.reported is not None
        self._go(entry, Happening.FINISH_COMMITTED, Stage(entry.reported.state.value))
        entry.lease = attrs.evolve(entry.reported, version=entry.reported.version + 1)
        entry.end_durable = True
        yield NoteFinish(entry.lease.dispatch)
        yield from self._refuse_writes(entry)
        if entry.dead:
            yield from self._over(entry)
        elif entry.slot_held:  # something is left of it
            self._until(entry, self._now_s + STUCK_S if entry.link_up else entry.replace_s)
        else:
            self._forget(entry)

    def _commit_failed(self, event: CommitFailed) -> Iterator[Effect]:
        entry = self._entries.get(event.dispatch)
        if entry is None or entry.under_way is None:
            raise Bug(f"dispatch {event.dispatch}: a commit that was not under way")
        commit, entry.under_way = entry.under_way, None
        said, entry.said = entry.said, ()
        stored = event.stored
        if not stored.active:
            yield from self._ended_elsewhere(entry, stored)
            return
        base = entry.lease if entry.end is None else entry.end.lease
        entry.lease = attrs.evolve(
            base,
            version=stored.version,
            wrote=stored.wrote,
            first_write=stored.first_write,
            first_write_ms=stored.first_write_ms,
        )
        if entry.end is not None:  # decide again: what was believed about writes may be wrong
            end, entry.end = entry.end, None
            entry.stage, entry.to_say, entry.requeue = end.stage, (), None
            yield from end.again()
        elif commit is _Commit.REPORT:
            yield from self._report_unsaved(entry)
        else:
            entry.to_say = (*said, *entry.to_say)
            entry.dirty = True
            yield from self._pump(entry)

    def _report_unsaved(self, entry: _Entry) -> Iterator[Effect]:
        """As if it had not arrived: its holder has it still and reports again. What was asked meanwhile
        holds.
        """
        stage = entry.before_finish
        if stage is not Stage.CANCELLING:
            stage = Stage.RUNNING if entry.link_up else Stage.SUSPENDED
        self._go(entry, Happening.FINISH_UNSAVED, stage)
        entry.finish = entry.reported = None
        lease = attrs.evolve(entry.lease, accepted=True, phase=Phase(stage.value))
        entry.lease = lease
        if stage is Stage.SUSPENDED:
            self._until(entry, entry.replace_s)
        elif stage is Stage.CANCELLING:
            self._until(entry, self._now_s + CANCEL_WAIT_S)
        if entry.token_why is not None:
            yield from self._token_over(entry, entry.token_why)
        elif stage is not Stage.CANCELLING and lease.cancel_kind is not None:
            entry.lease = attrs.evolve(lease, cancel_kind=None)
            yield from self._cancel(CancelAsked(lease.dispatch, lease.cancel_kind, lease.cancel_reason))
        else:
            yield from self._save(entry)

    def _ended_elsewhere(self, entry: _Entry, stored: Lease) -> Iterator[Effect]:
        """Another process ended it by compare-and-swap (drain --when-safe, run doctor)."""
        yield from self._refuse_writes(entry)
        entry.lease, entry.stage = stored, Stage(stored.state.value)
        entry.end, entry.finish, entry.end_durable, entry.dirty = None, None, True, False
        entry.to_say = ()
        if entry.replace_s is None:
            entry.replace_s = self._now_s + stored.grace_s
        yield Drop(stored.dispatch)
        if stored.state is LeaseState.EXPIRED:
            entry.requeue = RequeueStep(stored, stored.cause, counted=False, losses=stored.losses, sent=True)
        else:
            yield FailStep(stored, stored.error, None, self._wall(entry.replace_s))
        if entry.dead:
            yield from self._over(entry)
        else:
            self._until(entry, entry.replace_s)

    # ── links ───────────────────────────────────────────────────────────────────────────────────────────────
    def _link_lost(self, event: LinkLost) -> Iterator[Effect]:
        for entry in self._at(event.worker):
            if not entry.link_up or entry.lease.link != event.link:
                continue
            entry.link_up, entry.paused = False, False
            entry.replace_s = self._now_s + entry.lease.grace_s
            if not entry.active:
                self._until(entry, entry.replace_s)
                continue
            entry.lease = attrs.evolve(entry.lease, suspended_ms=self._now_ms)
            if entry.stage in (Stage.FINISHING, Stage.CANCELLING):
                self._go(entry, Happening.LINK_LOST, entry.stage)
                continue
            self._go(entry, Happening.LINK_LOST, Stage.SUSPENDED)
            self._until(entry, entry.replace_s)
            entry.lease = attrs.evolve(
                entry.lease, phase=Phase.SUSPENDED, deadline_ms=self._wall(entry.deadline_s)
            )
            yield from self._save(entry)

    def _returned(self, event: WorkerReturned) -> Iterator[Effect]:
        held = {one.dispatch: one.fence for one in event.held}
        for entry in self._at(event.worker):
            lease = entry.lease
            same = lease.instance == event.instance
            holds = same and held.get(lease.dispatch) == lease.fence
            if not entry.active:
                if (same and not holds) or (not same and event.reaped):
                    yield from self._found_dead(entry)
            elif lease.link >= event.link:
                held.pop(lease.dispatch, None)  # granted on this very link: the list was made before
            elif holds:
                del held[lease.dispatch]
                yield from self._adopt(entry, event.link)
            elif entry.stage is Stage.FINISHING:  # its report is in our hands
                entry.dead = entry.dead or same
            elif same and not lease.accepted:
                text = f"worker '{lease.worker}' came back without having accepted it"
                yield from self._never_ran(entry, Happening.RETURNED_WITHOUT, EndReason.NOT_STARTED, text)
            elif same:
                text = f"worker '{lease.worker}' came back without it"
                yield from self._lost(
                    entry, Happening.RETURNED_WITHOUT, EndReason.ABANDONED, text, counted=False, dead=True
                )
            elif event.reaped:
                text = f"the process of worker '{lease.worker}' ended under it"
                yield from self._lost(
                    entry, Happening.REPLACED, EndReason.WORKER_RESTARTED, text, counted=True, dead=True
                )
        for dispatch in held:
            yield Drop(dispatch)

    def _adopt(self, entry: _Entry, link: int) -> Iterator[Effect]:
        dispatch = entry.lease.dispatch
        stage = entry.stage if entry.stage in (Stage.CANCELLING, Stage.FINISHING) else Stage.RUNNING
        self._go(entry, Happening.RETURNED_HOLDING, stage)
        entry.link_up, entry.replace_s = True, None
        entry.lease = attrs.evolve(
            entry.lease,
            link=link,
            accepted=True,
            running_ms=entry.lease.running_ms or self._now_ms,
            suspended_ms=None,
        )
        if stage is Stage.FINISHING:
            yield Keep(dispatch)
            return
        if stage is Stage.CANCELLING:
            ask = AskCancel(dispatch, entry.lease.worker, entry.lease.cancel_reason)
            yield from self._save(entry, Keep(dispatch), ask)
            return
        self._until(entry, None)
        entry.lease = attrs.evolve(entry.lease, phase=Phase.RUNNING, deadline_ms=None)
        yield from self._save(entry, Keep(dispatch))

    def _enroll_queued(self, event: EnrollQueued) -> Iterator[Effect]:
        for entry in self._at(event.worker):
            known = entry.lease.instance == event.instance
            if entry.stage is Stage.SUSPENDED and known and not entry.paused and entry.deadline_s is not None:
                entry.paused = True
                self._until(entry, entry.deadline_s + entry.lease.grace_s * GRACE_PAUSE_FRACTION)
                yield from ()

    def _empty(self, event: EmptyConfirmed) -> Iterator[Effect]:
        entry = self._entries.get(event.dispatch)
        if entry is None:
            return
        if not entry.active:
            yield from self._found_dead(entry)
        elif entry.stage is Stage.FINISHING:
            entry.dead = True

    # ── people, tokens, time ────────────────────────────────────────────────────────────────────────────────
    def _cancel(self, event: CancelAsked) -> Iterator[Effect]:
        entry = self._entries.get(event.dispatch)
        if entry is None:
            return
        if not entry.active:
            if entry.requeue is not None:  # the step only waits for its old execution to be dead
                entry.requeue = None
                ends_by = None if entry.dead else self._wall(entry.replace_s)
                yield EndStep(entry.lease, event.kind, event.reason, 0 if entry.dead else None, ends_by)
            return
        if entry.lease.cancel_kind is not None:
            return
        entry.lease = attrs.evolve(
            entry.lease, cancel_kind=event.kind, cancel_reason=event.reason, cancel_ms=self._now_ms
        )
        if entry.stage is Stage.FINISHING:
            return  # the report wins, unless it can not be saved
        self._go(entry, Happening.CANCEL_ASKED, Stage.CANCELLING)
        self._until(entry, self._now_s + CANCEL_WAIT_S)
        entry.lease = attrs.evolve(
            entry.lease, phase=Phase.CANCELLING, deadline_ms=self._wall(entry.deadline_s)
        )
        ask = AskCancel(event.dispatch, entry.lease.worker, event.reason)
        yield from self._save(entry, *((ask,) if entry.link_up else ()))

    def _token_ended(self, event: TokenEnded) -> Iterator[Effect]:
        for entry in tuple(self._entries.values()):
            if entry.lease.mint_id == event.mint_id and entry.active:
                entry.token_why = event.why
                if entry.stage is not Stage.FINISHING:
                    yield from self._token_over(entry, event.why)

    def _deadlines(self) -> Iterator[Effect]:
        while (deadline_s := self.next_deadline()) is not None and deadline_s <= self._now_s:
            entry = self._entries[self._due[0][2]]
            entry.deadline_s = None
            lease = entry.lease
            if not entry.active:
                if entry.link_up and (lease.completed or lease.worker is None):
                    yield SlotStuck(
                        lease.dispatch, lease.worker
                    )  # no instant frees it, only its holder's word
                elif entry.link_up and lease.worker is not None:
                    # While its heartbeats are answered its holder has no reason to give up: take that away.
                    yield EndSession(lease.worker, lease.link, f"it did not end {lease.dispatch} in time")
                    entry.link_up, entry.replace_s = False, self._now_s + lease.grace_s
                    self._until(entry, entry.replace_s)
                else:
                    yield from self._found_dead(entry)
            elif entry.stage is Stage.RUNNING:
                yield from self._save(entry)
            elif entry.stage is Stage.SUSPENDED:
                text = f"worker '{lease.worker}' did not come back within {lease.grace_s:g} s"
                dead = self._must_be_dead(entry)
                yield from self._lost(
                    entry, Happening.GRACE_OVER, EndReason.WORKER_LOST, text, counted=True, dead=dead
                )
            elif entry.stage is Stage.CANCELLING:
                if entry.link_up and lease.worker is not None:
                    yield EndSession(lease.worker, lease.link, f"it did not end {lease.dispatch} in time")
                yield from self._cancelled(entry, Happening.CANCEL_OVERDUE, dead=self._must_be_dead(entry))

    def _stalled(self, event: Stalled) -> Iterator[Effect]:
        for entry in self._entries.values():
            if entry.replace_s is not None:
                entry.replace_s += event.seconds
            if entry.deadline_s is not None:
                self._until(entry, entry.deadline_s + event.seconds)
        yield from ()

    # ── start ───────────────────────────────────────────────────────────────────────────────────────────────
    def _found(self, event: LeaseFound) -> Iterator[Effect]:
        lease = event.lease
        if not lease.active:
            yield from self._found_ended(lease)
            return
        stage = Stage(lease.phase.value)
        if lease.worker is None:
            entry = self._enter(lease, stage, link_up=True)
            entry.replace_s = self._now_s + lease.grace_s
            yield from self._lost(
                entry,
                Happening.HOLDER_GONE,
                EndReason.ORCHESTRATOR_RESTARTED,
                "the orchestrator ended under it",
                counted=True,
                dead=event.loopback_dead,
            )
            return
        left_s = lease.grace_s
        again = lease.resets < GRACE_RESETS_MAX
        if not again and lease.deadline_ms is not None:
            left_s = min(left_s, max(0, lease.deadline_ms - self._now_ms) / 1000)
        if stage is not Stage.CANCELLING:
            stage = Stage.SUSPENDED
        entry = self._enter(lease, stage, link_up=False)
        entry.replace_s = self._now_s + left_s
        self._until(
            entry, entry.replace_s if stage is Stage.SUSPENDED else self._now_s + min(left_s, CANCEL_WAIT_S)
        )
        entry.lease = attrs.evolve(
            lease,
            phase=Phase(stage.value),
            suspended_ms=self._now_ms if lease.suspended_ms is None else lease.suspended_ms,
            deadline_ms=self._wall(entry.deadline_s),
            resets=lease.resets + again,
        )
        yield from self._save(entry)

    def _found_ended(self, lease: Lease) -> Iterator[Effect]:
        """The end is durable, but its step does not know: say it again; once its execution is dead, if it
        matters.
        """
        if lease.completed:
            raise Bug(f"dispatch {lease.dispatch} completed together with its step")
        entry = self._enter(lease, Stage(lease.state.value), link_up=False)
        entry.end_durable = True
        left_s = min(lease.grace_s, max(0, (lease.replace_ms or 0) - self._now_ms) / 1000)
        if lease.worker is not None and lease.suspended_ms is None:
            left_s = lease.grace_s  # its link was up when it ended: the holder may have lived until just now
        entry.replace_s = self._now_s + left_s
        entry.dead = lease.empty_ms is not None or left_s <= 0
        left = 0 if lease.empty_ms is not None else None
        ends_by = None if entry.dead else self._wall(entry.replace_s)
        if lease.state is LeaseState.EXPIRED:
            entry.requeue = self._requeue(lease)
        elif lease.cancel_kind is not None and lease.state is LeaseState.CANCELLED:
            yield EndStep(lease, lease.cancel_kind, lease.cancel_reason, left, ends_by)
        else:
            yield FailStep(lease, lease.error, left, ends_by)
        if entry.dead:
            yield from self._over(entry)
        else:
            self._until(entry, entry.replace_s)

    # ── ends ────────────────────────────────────────────────────────────────────────────────────────────────
    def _never_ran(self, entry: _Entry, how: Happening, reason: EndReason, text: str) -> Iterator[Effect]:
        """It certainly did not start: nothing is counted, nothing has to die first."""
        if entry.stage is Stage.CANCELLING:
            yield from self._cancelled(entry, how, dead=True)
            return

        def again() -> Iterator[Effect]:
            return self._never_ran(entry, how, reason, text)

        self._close(entry, how, Stage.EXPIRED, reason, text, again, dead=True)
        entry.requeue = self._requeue(entry.lease)
        yield from self._end(entry)

    def _refused_for_good(self, entry: _Entry, message: str) -> Iterator[Effect]:
        def again() -> Iterator[Effect]:
            return self._refused_for_good(entry, message)

        text = f"{entry.lease.holder} refused the step: {message}"
        self._close(entry, Happening.REFUSED, Stage.FAILED, EndReason.REFUSED, text, again, dead=True)
        yield from self._end(entry, FailStep(entry.lease, text, 0, None))

    def _lost(
        self, entry: _Entry, how: Happening, reason: EndReason, text: str, *, counted: bool, dead: bool
    ) -> Iterator[Effect]:
        """The holder is gone, or its execution is: write, then fail (SEMANTICS §5)."""
        lease = entry.lease
        if entry.stage is Stage.CANCELLING:
            yield from self._cancelled(entry, how, dead=dead)
            return

        def again() -> Iterator[Effect]:
            return self._lost(entry, how, reason, text, counted=counted, dead=dead)

        code: EndReason | None = None
        if lease.wrote and lease.on_worker_lost is not OnWorkerLost.REDISPATCH:
            code = EndReason.WRITE_THEN_DROP
        elif lease.on_worker_lost is OnWorkerLost.FAIL:
            code = EndReason.ON_WORKER_LOST
        elif counted and lease.losses + 1 >= LOSSES_MAX:
            code = EndReason.LOST_TOO_OFTEN
        if code is None:
            self._close(entry, how, Stage.EXPIRED, reason, text, again, dead=dead, counted=counted)
            entry.requeue = self._requeue(entry.lease)
            yield from self._end(entry)
            return
        message = _told(lease, code, text)
        self._close(entry, how, Stage.FAILED, code, message, again, dead=dead, counted=counted, cause=text)
        yield from self._end(entry, FailStep(entry.lease, message, *self._left(entry)))

    def _cancelled(self, entry: _Entry, how: Happening, *, dead: bool) -> Iterator[Effect]:
        kind, text = entry.lease.cancel_kind, entry.lease.cancel_reason
        if kind is None:
            raise Bug(f"dispatch {entry.lease.dispatch} is cancelled and nobody asked")

        def again() -> Iterator[Effect]:
            return self._cancelled(entry, how, dead=dead)

        reason = EndReason.TIMED_OUT if kind is CancelKind.TIMEOUT else EndReason.CANCELLED
        self._close(entry, how, Stage.CANCELLED, reason, text, again, dead=dead)
        yield from self._end(entry, EndStep(entry.lease, kind, text, *self._left(entry)))

    def _token_over(self, entry: _Entry, why: str) -> Iterator[Effect]:
        revoked = why == "revoked"
        reason = EndReason.TOKEN_REVOKED if revoked else EndReason.TOKEN_EXPIRED
        text = f"the token of worker '{entry.lease.worker}' {'was revoked' if revoked else 'has expired'}"
        dead = self._must_be_dead(entry)
        yield from self._lost(entry, Happening.TOKEN_ENDED, reason, text, counted=False, dead=dead)

    def _close(
        self,
        entry: _Entry,
        how: Happening,
        stage: Stage,
        reason: EndReason,
        error: str,
        again: Callable[[], Iterator[Effect]],
        *,
        dead: bool,
        counted: bool = False,
        cause: str = "",
    ) -> None:
        """Decide the end of a lease. Nothing is admitted under it from here on."""
        entry.end = _End(entry.stage, entry.lease, again)
        self._go(entry, how, stage)
        self._until(entry, None)
        if entry.replace_s is None:
            entry.replace_s = self._now_s + entry.lease.grace_s
        entry.dead = entry.dead or dead
        entry.lease = attrs.evolve(
            entry.lease,
            state=LeaseState(stage.value),
            reason=reason,
            error=error,
            cause=cause or error,
            loss_counted=counted,
            ended_ms=self._now_ms,
            deadline_ms=None,
            replace_ms=self._now_ms if entry.dead else self._wall(entry.replace_s),
            empty_ms=self._now_ms if entry.dead else None,
        )

    def _end(self, entry: _Entry, *say: Effect) -> Iterator[Effect]:
        """Make a decided end durable, then say it; the execution is waited for."""
        yield from self._refuse_writes(entry)
        # Verdicts and orders that were not said yet are overtaken by the end.
        kept = tuple(
            Drop(one.dispatch) if isinstance(one, Keep) else one
            for one in entry.to_say
            if not isinstance(one, AskCancel)
        )
        entry.to_say = kept
        if not entry.dead:
            self._until(entry, entry.replace_s)
        yield from self._save(entry, *say)

    def _refuse_writes(self, entry: _Entry) -> Iterator[Effect]:
        waiting, entry.writes = entry.writes, ()
        for write in waiting:
            yield RefuseWrite(write.request, RefusalCode.LEASE_ENDED)

    def _found_dead(self, entry: _Entry) -> Iterator[Effect]:
        """Nothing is left of an ended lease's execution; what follows waits until the end is durable."""
        entry.dead = True
        self._until(entry, None)
        if entry.end_durable:
            yield from self._over(entry)

    def _over(self, entry: _Entry) -> Iterator[Effect]:
        yield from self._free(entry)
        if entry.requeue is not None:
            yield entry.requeue
        self._forget(entry)

    def _free(self, entry: _Entry) -> Iterator[Effect]:
        if entry.slot_held:
            entry.slot_held = False
            yield FreeSlot(entry.lease.dispatch, entry.lease.worker)

    def _requeue(self, lease: Lease) -> RequeueStep:
        ran = lease.reason not in NOT_RUN
        return RequeueStep(
            lease,
            lease.cause,
            counted=lease.loss_counted,
            losses=lease.losses + lease.loss_counted,
            sent=ran,
            avoid=lease.worker if ran or lease.reason in (EndReason.BUSY, EndReason.DRAINING) else None,
        )

    # ── bookkeeping ─────────────────────────────────────────────────────────────────────────────────────────
    def _enter(self, lease: Lease, stage: Stage, *, link_up: bool) -> _Entry:
        if lease.dispatch in self._entries:
            raise Bug(f"dispatch {lease.dispatch} is here already")
        entry = _Entry(lease, stage, link_up)
        self._entries[lease.dispatch] = entry
        if lease.worker is not None:
            self._of_worker.setdefault(lease.worker, {})[lease.dispatch] = None
        return entry

    def _forget(self, entry: _Entry) -> None:
        lease = entry.lease
        entry.deadline_s = None
        del self._entries[lease.dispatch]
        if lease.completed:
            self._completed[lease.dispatch] = lease.fence
            if len(self._completed) > REMEMBERED_MAX:
                del self._completed[next(iter(self._completed))]
        if lease.worker is not None:
            of_worker = self._of_worker[lease.worker]
            del of_worker[lease.dispatch]
            if not of_worker:
                del self._of_worker[lease.worker]

    def _at(self, worker: str) -> tuple[_Entry, ...]:
        return tuple(self._entries[dispatch] for dispatch in self._of_worker.get(worker, {}))

    def _go(self, entry: _Entry, how: Happening, stage: Stage) -> None:
        if stage not in TRANSITIONS.get((entry.stage, how), ()):
            raise Bug(f"dispatch {entry.lease.dispatch}: {how} may not lead from {entry.stage} to {stage}")
        entry.stage = stage

    def _until(self, entry: _Entry, deadline_s: float | None) -> None:
        entry.deadline_s = deadline_s
        if deadline_s is not None:
            self._serial += 1
            heappush(self._due, (deadline_s, self._serial, entry.lease.dispatch))

    def _wall(self, instant_s: float | None) -> int | None:
        return None if instant_s is None else self._now_ms + round((instant_s - self._now_s) * 1000)

    def _must_be_dead(self, entry: _Entry) -> bool:
        return entry.replace_s is not None and entry.replace_s <= self._now_s

    def _left(self, entry: _Entry) -> tuple[int | None, int | None]:
        """How many processes are left, and by when they are dead if that is unknown."""
        return (0, None) if entry.dead else (None, self._wall(entry.replace_s))

    def check(self) -> None:
        """Every active lease has an owner and a deadline; whatever else is kept waits for something that will
        come.
        """
        for dispatch, entry in self._entries.items():
            lease = entry.lease
            assert lease.dispatch == dispatch
            assert lease.worker is None or dispatch in self._of_worker[lease.worker], (
                f"{dispatch} is at no worker"
            )
            if entry.stage is Stage.FINISHING:
                assert entry.finish is not None, f"{dispatch} finishes nothing"
                assert entry.under_way is not None, f"{dispatch} finishes and nobody commits"
            elif not entry.active:
                assert entry.stage.value == lease.state.value, (
                    f"{dispatch}: {entry.stage} is not {lease.state}"
                )
                held = lease.completed or lease.worker is None  # by something that can not be killed
                waits = entry.under_way is not None or entry.deadline_s is not None or held
                assert waits, f"{dispatch} ended and is never forgotten"
            else:
                assert entry.stage.value == lease.phase.value, (
                    f"{dispatch}: {entry.stage} is not {lease.phase}"
                )
                owned = entry.link_up and entry.stage in (Stage.GRANTED, Stage.RUNNING)
                assert owned or entry.deadline_s is not None, f"{dispatch} is {entry.stage} for ever"
                assert entry.stage is not Stage.SUSPENDED or not entry.link_up, f"{dispatch}: a live link"
                assert entry.stage is not Stage.CANCELLING or lease.cancel_kind is not None
            assert entry.under_way is not None or not (entry.dirty or entry.writes), (
                f"{dispatch}: forgotten commit"
            )


_REPORTED: Final[Mapping[Outcome, tuple[LeaseState, EndReason]]] = {
    Outcome.SUCCEEDED: (LeaseState.COMPLETED, EndReason.COMPLETED),
    Outcome.FAILED: (LeaseState.FAILED, EndReason.METHOD_FAILED),
    Outcome.TIMED_OUT: (LeaseState.CANCELLED, EndReason.TIMED_OUT),
    Outcome.CANCELLED: (LeaseState.CANCELLED, EndReason.CANCELLED),
}


def _told(lease: Lease, code: EndReason, cause: str) -> str:
    """Why the step fails, for people."""
    if code is EndReason.WRITE_THEN_DROP:
        when = "" if lease.first_write_ms is None else f" at {iso(lease.first_write_ms)}"
        what = f" '{lease.first_write}'" if lease.first_write else ""
        return f"{cause}, after step '{lease.step}' had written{what}{when}; it is not run again (write_then_drop)"
    if code is EndReason.LOST_TOO_OFTEN:
        return (
            f"{cause}; step '{lease.step}' has lost its holder {lease.losses + 1} times and is not run again"
        )
    return f"{cause}, and step '{lease.step}' asks to fail then (onWorkerLost: fail)"
