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

from collections.abc import Iterator
from typing import Final

import attrs

from swamp_orch.core.lease_events import (
    Accepted,
    CancelAsked,
    CommitFailed,
    Committed,
    DeadlinePassed,
    DrainAsked,
    EmptyConfirmed,
    EnrollQueued,
    Event,
    FinishArrived,
    Holding,
    LeaseFound,
    LeaseGranted,
    LinkLost,
    NotSent,
    Refused,
    Stalled,
    StoredOtherwise,
    TokenEnded,
    WorkerReturned,
    WriteArrived,
)
from swamp_orch.core.lease_ledger import Commit, Entry
from swamp_orch.core.lease_table import TRANSITIONS, Happening, Stage
from swamp_orch.core.lease_values import (
    AskCancel,
    Drop,
    Effect,
    EndReason,
    EndSession,
    EndStep,
    Keep,
    NoteFinish,
    Phase,
    RefuseFinish,
    RefuseWrite,
    SlotStuck,
)
from swamp_orch.core.reconcile import Reconciling
from swamp_orch.definitions.values import OnWorkerLost
from swamp_proto.errors import Bug, RefusalCode
from swamp_proto.limits import CANCEL_WAIT_S, STUCK_S
from swamp_proto.messages.dispatch import Outcome

__all__ = [
    "TRANSITIONS",
    "Accepted",
    "CancelAsked",
    "CommitFailed",
    "Committed",
    "DeadlinePassed",
    "DrainAsked",
    "EmptyConfirmed",
    "EnrollQueued",
    "Event",
    "FinishArrived",
    "Happening",
    "Holding",
    "LeaseFound",
    "LeaseGranted",
    "Leases",
    "LinkLost",
    "NotSent",
    "Refused",
    "Stage",
    "Stalled",
    "StoredOtherwise",
    "TokenEnded",
    "WorkerReturned",
    "WriteArrived",
]

GRACE_PAUSE_FRACTION: Final = 0.25  # of G: what a queued enrollment adds to the grace window, once
RUNNING_RECORD_S: Final = 0.25  # longer steps are recorded as running, shorter ones save the commit


class Leases(Reconciling):
    """All active leases, and the ended ones whose execution may still live."""

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
            case StoredOtherwise():
                found = self._stored_otherwise(event)
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
            case DrainAsked():
                found = self._drain(event)
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
        phase = Phase.RUNNING if entry.stage is Stage.RUNNING else entry.lease.phase
        entry.lease = attrs.evolve(entry.lease, accepted=True, running_ms=self._now_ms, phase=phase)
        if entry.stage is Stage.RUNNING:
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
            message = f"late result from {entry.lease.holder}: the lease had ended, {entry.lease.reason}"
            if entry.lease.completed:
                yield NoteFinish(event.dispatch)
            else:  # its holder forgets what is refused
                yield from self._say_ended(entry, RefuseFinish(event.dispatch, message))
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

    # ── commits ─────────────────────────────────────────────────────────────────────────────────────────────
    def _committed(self, event: Committed) -> Iterator[Effect]:
        entry = self._entries.get(event.dispatch)
        if entry is None or entry.under_way is None:
            raise Bug(f"dispatch {event.dispatch}: a commit that was not under way")
        commit, entry.under_way = entry.under_way, None
        said, entry.said = entry.said, ()
        yield from said
        if commit is Commit.REPORT:
            yield from self._report_durable(entry)
            return
        entry.lease = attrs.evolve(entry.lease, version=entry.lease.version + 1)
        if not entry.active and not entry.dirty:
            entry.end_durable = True
            if entry.dead:
                yield from self._over(entry)
                return
        yield from self._pump(entry)

    def _report_durable(self, entry: Entry) -> Iterator[Effect]:
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
        answers = tuple(
            one for one in (*said, *entry.to_say) if isinstance(one, NoteFinish | RefuseFinish | Drop)
        )
        if not stored.active:
            yield from self._ended_elsewhere(entry, stored)
            yield from (one for one in answers if not isinstance(one, Drop))
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
            entry.stage, entry.to_say, entry.requeue = end.stage, answers, None
            yield from end.again()
            if entry.asked is not None:
                yield from self._cancel(entry.asked)
        elif commit is Commit.REPORT:
            yield from self._report_unsaved(entry)
        else:
            entry.to_say = (*said, *entry.to_say)
            entry.dirty = True
            yield from self._pump(entry)

    def _stored_otherwise(self, event: StoredOtherwise) -> Iterator[Effect]:
        """Another process was faster. A commit under way finds that out by itself."""
        entry, stored = self._entries.get(event.dispatch), event.stored
        if entry is None or not entry.active or entry.under_way is not None:
            return
        if stored.version <= entry.lease.version:
            return  # it changed once more since
        if not stored.active:
            yield from self._ended_elsewhere(entry, stored)
            return
        entry.lease = attrs.evolve(
            entry.lease,
            wrote=stored.wrote,
            first_write=stored.first_write,
            first_write_ms=stored.first_write_ms,
            version=stored.version,
        )

    def _report_unsaved(self, entry: Entry) -> Iterator[Effect]:
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
            entry.cancel_by_s = self._now_s + CANCEL_WAIT_S
            self._until_cancelled(entry)
        if entry.token_why is not None:
            yield from self._token_over(entry, entry.token_why)
        elif stage is not Stage.CANCELLING and lease.cancel_kind is not None:
            entry.lease = attrs.evolve(lease, cancel_kind=None)
            yield from self._cancel(CancelAsked(lease.dispatch, lease.cancel_kind, lease.cancel_reason))
        else:
            yield from self._save(entry)

    # ── links ───────────────────────────────────────────────────────────────────────────────────────────────
    def _link_lost(self, event: LinkLost) -> Iterator[Effect]:
        for entry in self._at(event.worker):
            if not entry.link_up or entry.lease.link != event.link:
                continue
            entry.link_up, entry.paused, entry.lost_s = False, False, self._now_s
            entry.replace_s = self._now_s + entry.lease.grace_s
            if not entry.active:
                self._until(entry, entry.replace_s)
                continue
            entry.lease = attrs.evolve(entry.lease, suspended_ms=self._now_ms)
            if entry.stage in (Stage.FINISHING, Stage.CANCELLING):
                self._go(entry, Happening.LINK_LOST, entry.stage)
                if entry.stage is Stage.CANCELLING:
                    self._until_cancelled(entry)
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
            ended = self._entries.get(dispatch)
            if ended is None or ended.active:
                yield Drop(dispatch)
            else:  # its holder forgets what is dropped
                yield from self._say_ended(ended, Drop(dispatch))

    def _adopt(self, entry: Entry, link: int) -> Iterator[Effect]:
        dispatch = entry.lease.dispatch
        stage = entry.stage if entry.stage in (Stage.CANCELLING, Stage.FINISHING) else Stage.RUNNING
        self._go(entry, Happening.RETURNED_HOLDING, stage)
        entry.link_up, entry.replace_s, entry.lost_s = True, None, None
        # A verdict that an earlier link still waits for says nothing about this one.
        entry.said = tuple(one for one in entry.said if not isinstance(one, Keep))
        entry.to_say = tuple(one for one in entry.to_say if not isinstance(one, Keep))
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
            self._until_cancelled(entry)
            entry.lease = attrs.evolve(entry.lease, deadline_ms=self._wall(entry.deadline_s))
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
            entry.asked = event  # should its end have to be decided again
            if entry.requeue is not None:  # the step only waits for its old execution to be dead
                entry.requeue = None
                end = EndStep(entry.lease, event.kind, event.reason, *self._left(entry))
                yield from self._say_ended(entry, end)
            return
        if entry.lease.cancel_kind is not None:
            return
        entry.lease = attrs.evolve(
            entry.lease, cancel_kind=event.kind, cancel_reason=event.reason, cancel_ms=self._now_ms
        )
        if entry.stage is Stage.FINISHING:
            return  # the report wins, unless it can not be saved
        self._go(entry, Happening.CANCEL_ASKED, Stage.CANCELLING)
        entry.cancel_by_s = self._now_s + CANCEL_WAIT_S
        self._until_cancelled(entry)
        entry.lease = attrs.evolve(
            entry.lease, phase=Phase.CANCELLING, deadline_ms=self._wall(entry.deadline_s)
        )
        ask = AskCancel(event.dispatch, entry.lease.worker, event.reason)
        yield from self._save(entry, *((ask,) if entry.link_up else ()))

    def _drain(self, event: DrainAsked) -> Iterator[Effect]:
        for entry in self._at(event.worker):
            tried_once = entry.lease.on_worker_lost is OnWorkerLost.FAIL  # its author wants no second try
            if entry.stage in (Stage.GRANTED, Stage.RUNNING, Stage.SUSPENDED) and not tried_once:
                yield from self._drained(entry)

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
            if entry.lost_s is not None:
                entry.lost_s += event.seconds
            if entry.cancel_by_s is not None:
                entry.cancel_by_s += event.seconds
            if entry.replace_s is not None:
                entry.replace_s += event.seconds
            if entry.deadline_s is not None:
                self._until(entry, entry.deadline_s + event.seconds)
        yield from ()
