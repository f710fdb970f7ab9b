"""The ledger under the lease machine: what is kept of each lease, its deadlines, and its commits one after another.

Rules that hold here:

1. A lease has at most one commit under way. What must not be said before it is durable waits in `said`; what changes
   meanwhile is `dirty` and goes with the next commit.
2. Order of commits: a completion (it carries every other change), else a change, else a first write.
3. Every deadline is a monotonic instant in one heap; a lease has at most one.

What events mean is not known here (`swamp_orch.core.leases`), nor how leases end (`swamp_orch.core.lease_ends`).
"""

from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from heapq import heappop, heappush
from typing import Final

import attrs

from swamp_orch.core.lease_events import CancelAsked, FinishArrived, WriteArrived
from swamp_orch.core.lease_table import TRANSITIONS, Happening, Stage
from swamp_orch.core.lease_values import (
    AdmitFinish,
    AdmitWrite,
    AskCancel,
    Effect,
    EndReason,
    FreeSlot,
    Lease,
    LeaseState,
    PersistLease,
    RefuseWrite,
    RequeueStep,
)
from swamp_proto.errors import Bug, RefusalCode
from swamp_proto.limits import Tempo
from swamp_proto.messages.dispatch import Outcome

REMEMBERED_MAX: Final = 4_096  # completed dispatches whose report may come again because the answer was lost


@attrs.frozen
class End:
    """A decided end: how to decide it again when a commit failed, from the stage and the lease before."""

    stage: Stage
    lease: Lease
    again: Callable[[], Iterator[Effect]]


class Commit(StrEnum):
    CHANGE = "change"
    WRITE = "write"  # the first write, with the mark
    REPORT = "report"  # the completion


@attrs.define(eq=False)
class Entry:
    lease: Lease
    stage: Stage
    link_up: bool
    slot_held: bool = True
    deadline_s: float | None = None
    replace_s: float | None = None  # by then the old execution is dead at the latest
    lost_s: float | None = None  # since when its link is down
    cancel_by_s: float | None = None  # how long the answer to a cancel is waited for
    paused: bool = False  # its grace was extended by a queued enrollment
    dead: bool = False  # its execution is known dead
    # commits
    under_way: Commit | None = None
    dirty: bool = False  # something changed that is not in the commit under way
    said: tuple[Effect, ...] = ()  # to be said when the commit under way is durable
    to_say: tuple[Effect, ...] = ()  # to be said when the next one is
    writes: tuple[WriteArrived, ...] = ()  # ask again when the commit under way is durable
    # ends
    finish: FinishArrived | None = None
    reported: Lease | None = None  # as the completion under way ends it
    before_finish: Stage = Stage.RUNNING
    token_why: str | None = None
    end: End | None = None
    end_durable: bool = False
    requeue: RequeueStep | None = None  # waits for the old execution to be dead
    asked: CancelAsked | None = (
        None  # after the end was decided: the step ends, whatever that end means for it
    )

    @property
    def active(self) -> bool:
        """Not ended, and no end decided."""
        return self.lease.state is LeaseState.ACTIVE


class Ledger:
    """All active leases, and the ended ones whose execution may still live."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
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

    def held_by(self, worker: str) -> tuple[Lease, ...]:
        """What this worker has under a lease, or may still have living under one that ended."""
        return tuple(entry.lease for entry in self._at(worker))

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

    # ── commits ─────────────────────────────────────────────────────────────────────────────────────────────
    def _pump(self, entry: Entry) -> Iterator[Effect]:
        """Start the next commit if none is under way: an end, a completion, a change, a first write; in that
        order.
        """
        if entry.under_way is not None:
            return
        if entry.stage is Stage.FINISHING and entry.finish is not None:
            self._begin(entry, Commit.REPORT)
            entry.reported = self._report(entry, entry.finish)
            yield AdmitFinish(entry.reported)
            return
        if entry.dirty:
            self._begin(entry, Commit.CHANGE)
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
                self._begin(entry, Commit.WRITE)
                yield AdmitWrite(write.request, entry.lease, first=True)
                return

    def _begin(self, entry: Entry, commit: Commit) -> None:
        entry.under_way, entry.dirty = commit, False
        entry.said, entry.to_say = entry.to_say, ()
        if commit is Commit.REPORT:  # there is nothing left to cancel
            entry.said = tuple(one for one in entry.said if not isinstance(one, AskCancel))

    def _save(self, entry: Entry, *then: Effect) -> Iterator[Effect]:
        """Make the lease as it is now durable; say `then` afterwards."""
        entry.dirty = True
        entry.to_say = (*entry.to_say, *then)
        yield from self._pump(entry)

    def _say_ended(self, entry: Entry, say: Effect) -> Iterator[Effect]:
        """Say what rests on a decided end: once that is durable."""
        if entry.end_durable:
            yield say
        elif say in (*entry.said, *entry.to_say):
            return
        elif entry.dirty:
            entry.to_say = (*entry.to_say, say)
        else:
            entry.said = (*entry.said, say)

    def _report(self, entry: Entry, finish: FinishArrived) -> Lease:
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

    def _refuse_writes(self, entry: Entry) -> Iterator[Effect]:
        waiting, entry.writes = entry.writes, ()
        for write in waiting:
            yield RefuseWrite(write.request, RefusalCode.LEASE_ENDED)

    def _free(self, entry: Entry) -> Iterator[Effect]:
        if entry.slot_held:
            entry.slot_held = False
            yield FreeSlot(entry.lease.dispatch, entry.lease.worker)

    # ── bookkeeping ─────────────────────────────────────────────────────────────────────────────────────────
    def _enter(self, lease: Lease, stage: Stage, *, link_up: bool) -> Entry:
        if lease.dispatch in self._entries:
            raise Bug(f"dispatch {lease.dispatch} is here already")
        entry = Entry(lease, stage, link_up)
        self._entries[lease.dispatch] = entry
        if lease.worker is not None:
            self._of_worker.setdefault(lease.worker, {})[lease.dispatch] = None
        return entry

    def _forget(self, entry: Entry) -> None:
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

    def _at(self, worker: str) -> tuple[Entry, ...]:
        return tuple(self._entries[dispatch] for dispatch in self._of_worker.get(worker, {}))

    def _go(self, entry: Entry, how: Happening, stage: Stage) -> None:
        if stage not in TRANSITIONS.get((entry.stage, how), ()):
            raise Bug(f"dispatch {entry.lease.dispatch}: {how} may not lead from {entry.stage} to {stage}")
        entry.stage = stage

    def _until(self, entry: Entry, deadline_s: float | None) -> None:
        entry.deadline_s = deadline_s
        if deadline_s is not None:
            self._serial += 1
            heappush(self._due, (deadline_s, self._serial, entry.lease.dispatch))

    def _until_cancelled(self, entry: Entry) -> None:
        """A cancel waits for its answer. A holder whose link is down is waited for as long as one that only lost its
        socket may need to be back, then it is unreachable; never past the instant at which it is dead anyway.
        """
        assert entry.cancel_by_s is not None
        until_s = entry.cancel_by_s
        if not entry.link_up and entry.lost_s is not None and entry.replace_s is not None:
            away_s = max(self._now_s, entry.lost_s + Tempo(entry.lease.grace_s).away_s)
            until_s = min(until_s, away_s, entry.replace_s)
        self._until(entry, until_s)

    def _wall(self, instant_s: float | None) -> int | None:
        return None if instant_s is None else self._now_ms + round((instant_s - self._now_s) * 1000)

    def _must_be_dead(self, entry: Entry) -> bool:
        return entry.replace_s is not None and entry.replace_s <= self._now_s

    def _left(self, entry: Entry) -> tuple[int | None, int | None]:
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
                overdue = entry.replace_s is not None and (entry.deadline_s or 0.0) > entry.replace_s
                assert entry.stage is not Stage.CANCELLING or entry.link_up or not overdue, (
                    f"{dispatch}: the answer to its cancel comes after it is dead"
                )
            assert entry.under_way is not None or not (entry.dirty or entry.writes), (
                f"{dispatch}: forgotten commit"
            )


_REPORTED: Final[Mapping[Outcome, tuple[LeaseState, EndReason]]] = {
    Outcome.SUCCEEDED: (LeaseState.COMPLETED, EndReason.COMPLETED),
    Outcome.FAILED: (LeaseState.FAILED, EndReason.METHOD_FAILED),
    Outcome.TIMED_OUT: (LeaseState.CANCELLED, EndReason.TIMED_OUT),
    Outcome.CANCELLED: (LeaseState.CANCELLED, EndReason.CANCELLED),
}
