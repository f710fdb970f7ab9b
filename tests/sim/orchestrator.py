"""A simulated orchestrator: the real lease machine, scheduler, run plan and token rules in a thin shell.

The shell does what `swamp_orch.engine` (flights, placing, steps, runs, recovery) and `swamp_orch.gateway`
(enrollment, control, lifetimes) do, in the same order, as tasks of the simulated loop. Records are made by the
real functions. One object is one process: after a crash a new one is made over what the disk kept.
"""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import attrs

from swamp_orch.core.lease_values import (
    AdmitFinish,
    AdmitWrite,
    AskCancel,
    CancelKind,
    Drop,
    EndSession,
    EndStep,
    FailStep,
    FreeSlot,
    Keep,
    Lease,
    NoteFinish,
    PersistLease,
    RefuseFinish,
    RefuseWrite,
    RequeueStep,
    SlotStuck,
)
from swamp_orch.core.pool import PoolWorker
from swamp_orch.core.runplan import StepKey, StepStatus
from swamp_orch.core.scheduler import Demand
from swamp_orch.engine import records
from swamp_orch.engine.flights import Again, Gone, Reported, record_of
from swamp_orch.engine.revival import OPEN_RUNS
from swamp_orch.engine.steps import STATUS_OF, StepState
from swamp_orch.store.bookkeeping import LEASES_ID, iso, lease_record
from swamp_orch.store.interface import Batch, Comparison, NewRecord, Record, Selection, Term
from swamp_orch.tokens.records import read_workers, worker_record
from swamp_orch.tokens.workers import WorkerState
from swamp_proto.blocks import count_of
from swamp_proto.envelope import Failure, Response
from swamp_proto.errors import Broken, Conflict, RefusalCode, Refused, SwampError
from swamp_proto.limits import CANCEL_TERM_S, STALL_S
from swamp_proto.messages.dispatch import (
    CancelDispatch,
    Dispatch,
    Finished,
    FinishNoted,
    LogLines,
    LogNoted,
    Outcome,
    Place,
)

from .desk import Desk, Member
from .disk import Disk
from .link import Reply
from .loop import Process, Signal
from .machine import Execution, Keeper
from .workload import Workflow

if TYPE_CHECKING:
    from .world import World

TICK_S = 0.5
STORE_RETRY_S = 1.0


@attrs.define(eq=False)
class Slot:
    holder: str
    worker: str | None
    member: Member | None
    orchestrator: "Orchestrator"
    held: bool = True

    def release(self) -> None:
        if self.held:
            self.held = False
            if self.worker is not None:
                self.orchestrator.release(self.holder)


@attrs.define(eq=False)
class Flight:
    message: Dispatch
    slot: Slot
    lease: Lease
    through: int = 0  # lines on disk
    read: int = 0  # lines taken
    finished: Finished | None = None
    ends: list[Any] = attrs.field(factory=list)
    ended: Signal = attrs.field(factory=Signal)

    def settle(self, end: Any) -> None:
        self.ends[:] = [end]
        self.ended.set()

    def wait(self) -> Any:
        """The next end (a task's subroutine)."""
        yield self.ended
        self.ended = Signal()
        return self.ends.pop()


@attrs.define(eq=False)
class Ticket:
    demand: Demand
    placed: Signal = attrs.field(factory=Signal)  # or left: then `worker` is empty
    worker: str = ""


@attrs.define(eq=False)
class Work:
    """One step at work: `StepWork`."""

    state: StepState
    ticket: Ticket | None = None
    flight: Flight | None = None
    granted: bool = False
    cancel_reason: str = ""
    cancel_kind: CancelKind = CancelKind.CANCEL
    order: Any = None


@attrs.define(eq=False)
class Run:
    id: str
    workflow: Workflow
    plan: Any
    version: int = 0
    started_ms: int = 0
    status: str = "running"
    cancel_reason: str = ""
    steps: dict[StepKey, StepState] = attrs.field(factory=dict)
    work: dict[StepKey, Work] = attrs.field(factory=dict)
    outcome: Any = None
    tasks: int = 0
    over: Signal = attrs.field(factory=Signal)
    recording: Signal | None = None  # a cancel's commit is under way
    found: dict[StepKey, Lease] = attrs.field(factory=dict)

    def origin(self, key: StepKey) -> records.StepOrigin:
        return records.StepOrigin(
            self.id, "workflow", self.workflow.name, self.workflow.id, key.job, key.step, {}
        )

    def step(self, key: StepKey) -> Any:
        job = next(one for one in self.workflow.jobs if one.name == key.job)
        return next(one for one in job.steps if one.name == key.step)

    def state(self, key: StepKey) -> StepState:
        found = self.steps.get(key)
        if found is None:
            found = self.steps[key] = StepState(key, self.step(key))
        return found

    def record(self, expect: int, ended_ms: int = 0) -> NewRecord:
        attributes: dict[str, Any] = {
            "runId": self.id,
            "workflowName": self.workflow.name,
            "status": self.status,
            "startedAt": iso(self.started_ms),
            "owner": {"kind": "serve"},
        }
        if self.cancel_reason:
            attributes["cancelReason"] = self.cancel_reason
        if ended_ms:
            attributes["endedAt"] = iso(ended_ms)
        return records.run_record(self.id, self.workflow.name, attributes, expect)


class Orchestrator:
    """One process of it."""

    def __init__(self, world: "World", process: Process, store: Disk) -> None:
        self.world, self.process, self.store = world, process, store
        self.loop, self.tempo, self.checks = world.loop, world.tempo, world.checks
        number = world.incarnations
        self.core = world.cores.leases
        self.leases = world.journal.core(f"leases {number}", world.cores.new_leases)
        self.scheduler = world.cores.scheduler.Scheduler()
        self.keeper = Keeper(world.home)
        self.flights: dict[str, Flight] = {}
        self.tickets: dict[str, Ticket] = {}
        self.runs: dict[str, Run] = {}
        self.connected: dict[str, Member] = {}  # placing.members
        self.reconciled = False
        self._unnoted: dict[str, list[tuple[Member, Any]]] = {}
        self._verdicts: dict[str, bool] = {}
        self._judged = Signal()
        self._sooner = Signal()
        self._writes: dict[str, tuple[Execution, int]] = {}
        self._unresumed: dict[str, None] = {}  # executions found at start that no step has taken up yet
        self.desk = Desk(self)
        self.loop.spawn(process, self._watch())
        self.loop.spawn(process, self.desk.watch_tokens())

    def start(self) -> None:
        self.loop.spawn(self.process, self._reconcile())

    @property
    def wall_ms(self) -> int:
        return self.world.wall_ms()

    def commit(self, *new: NewRecord) -> Any:
        """A task's subroutine: commit and wait. Raises what the store says."""
        self.process.effect()
        answer = yield self.loop.future(self.store.submit(Batch(tuple(new))))
        if isinstance(answer, BaseException):
            raise answer
        return answer

    # ── the lease machine ───────────────────────────────────────────────────────────────────────────────────
    def _watch(self) -> Any:
        while True:
            due_s = self.leases.next_deadline()
            planned_s = self.loop.now + TICK_S
            if due_s is not None:
                planned_s = min(planned_s, due_s)
            yield (self._sooner, max(0.0, planned_s - self.loop.now))
            self._sooner = Signal()
            late_s = self.loop.now - planned_s
            if late_s > STALL_S:
                yield 0.0  # what is readable is read before deadlines are judged
                self.tell(self.core.Stalled(late_s))
            due_s = self.leases.next_deadline()
            if due_s is not None and due_s <= self.loop.now:
                self.tell(self.core.DeadlinePassed())

    def tell(self, event: Any) -> None:
        before_s = self.leases.next_deadline()
        for effect in self.leases.handle(event, self.loop.now, self.wall_ms):
            self.perform(effect)
        after_s = self.leases.next_deadline()
        if after_s is not None and (before_s is None or after_s < before_s):
            self._sooner.set()

    def perform(self, effect: Any) -> None:
        self.process.effect()
        self.checks.effect(self, effect)
        match effect:
            case PersistLease(lease=lease):
                self._persist(lease)
            case AdmitFinish(lease=lease):
                flight = self.flights.get(lease.dispatch)
                if flight is not None and flight.finished is not None:
                    flight.settle(Reported(flight.finished, lease))
                else:
                    self._persist(lease)
            case AdmitWrite(request=request, lease=lease, first=first):
                self.loop.spawn(self.process, self._write(request, lease, first))
            case RefuseWrite(request=request):
                execution, number = self._writes.pop(request)
                self.world.write_answered(execution, number, None)
            case NoteFinish(dispatch=dispatch):
                self._answer_finish(dispatch, accepted=True)
            case RefuseFinish(dispatch=dispatch):
                self._answer_finish(dispatch, accepted=False)
            case FreeSlot(dispatch=dispatch):
                flight = self.flights.get(dispatch)
                if flight is not None:
                    flight.slot.release()
                else:
                    self.release(dispatch)
            case RequeueStep(lease=lease, text=text, losses=losses, sent=sent, avoid=avoid):
                self._settle(lease.dispatch, Again(text, losses, sent, avoid))
            case FailStep(lease=lease, message=message, left=left, ends_by_ms=ends_by_ms):
                self._settle(lease.dispatch, Gone(None, message, str(lease.reason), left, ends_by_ms))
            case EndStep(lease=lease, kind=kind, reason=reason, left=left, ends_by_ms=ends_by_ms):
                self._settle(lease.dispatch, Gone(kind, reason, str(lease.reason), left, ends_by_ms))
            case AskCancel(dispatch=dispatch, reason=reason):
                self._ask_holder(dispatch, reason)
            case Keep(dispatch=dispatch):
                self._judge(dispatch, True)
            case Drop(dispatch=dispatch):
                self._judge(dispatch, False)
                self._ask_holder(dispatch, "its lease has ended")
            case EndSession(worker=worker):
                if worker in self.connected:
                    self.connected[worker].end()
            case SlotStuck():
                pass
            case _:
                raise AssertionError(f"an effect nobody carries out: {effect}")

    def _persist(self, lease: Lease) -> None:
        future = self.store.submit(Batch((record_of(lease),)))
        self.loop.spawn(self.process, self._persisted(lease, self.loop.future(future)))

    def _persisted(self, lease: Lease, answered: Signal) -> Any:
        answer = yield answered
        if isinstance(answer, SwampError):
            yield from self._commit_failed(lease.dispatch, answer)
        else:
            self.tell(self.core.Committed(lease.dispatch))

    def _commit_failed(self, dispatch: str, error: SwampError) -> Any:
        if not isinstance(error, Conflict):
            yield STORE_RETRY_S
        stored = self.stored(dispatch)
        assert stored is not None, f"lease {dispatch} was granted without a record"
        self.tell(self.core.CommitFailed(dispatch, stored))

    def stored(self, dispatch: str) -> Lease | None:
        record = self.store.latest(LEASES_ID, lease_record(dispatch))
        if record is None:
            return None
        return Lease.from_attributes(json.loads(record.content or b""), record.version)

    def _ask_holder(self, dispatch: str, reason: str) -> None:
        flight = self.flights.get(dispatch)
        if flight is not None and flight.slot.member is not None:
            flight.slot.member.link.ask(CancelDispatch(dispatch, flight.message.fence, reason, CANCEL_TERM_S))
        elif flight is not None and flight.slot.worker is None:
            execution = self.keeper.held.get(dispatch)
            if execution is not None:
                self.world.home.term(execution, CANCEL_TERM_S)

    def _judge(self, dispatch: str, keep: bool) -> None:
        self._verdicts[dispatch] = keep
        judged, self._judged = self._judged, Signal()
        judged.set()

    def _settle(self, dispatch: str, end: Any) -> None:
        flight = self.flights.get(dispatch)
        if flight is not None:
            flight.settle(end)

    def _report_again(self, flight: Flight) -> None:
        """A report that could not be saved: its holder has it still, and is told to say it again."""
        for member, request in self._unnoted.pop(flight.message.dispatch, ()):
            member.link.refuse(request, RefusalCode.OVERLOADED, "the end could not be saved", STORE_RETRY_S)
        if flight.slot.worker is None and flight.finished is not None:
            self._report(flight.finished)

    def _answer_finish(self, dispatch: str, *, accepted: bool) -> None:
        for member, request in self._unnoted.pop(dispatch, ()):
            self.checks.finish_noted(self, dispatch, accepted)
            member.link.reply(request, FinishNoted(dispatch, accepted=accepted))

    # ── the data plane ──────────────────────────────────────────────────────────────────────────────────────
    def write_arrived(self, execution: Execution, number: int, key: str) -> None:
        """A request of running code. The same request may come more than once, at once and much later."""
        if key not in self._writes:
            self._writes[key] = (execution, number)
            self._ask_to_write(execution, number, key)

    def write_of(self, key: str) -> Dispatch:
        """Whose write it is."""
        return self._writes[key][0].dispatch

    def _ask_to_write(self, execution: Execution, number: int, key: str) -> None:
        dispatch = execution.dispatch
        self.tell(self.core.WriteArrived(dispatch.dispatch, dispatch.fence, key, f"out-{number}"))

    def _write(self, key: str, lease: Lease, first: bool) -> Any:
        """As `engine/admissions.py`: the store knows whether it knows the key."""
        execution, number = self._writes[key]
        batch = self.world.data_batch(execution, number, key, lease, first)
        answer = yield self.loop.future(self.store.submit(batch))
        if first and isinstance(answer, SwampError):
            yield from self._commit_failed(lease.dispatch, answer)
        elif first and answer.replayed:
            yield from self._commit_failed(lease.dispatch, Conflict("the write is known already"))
        elif first:
            self.tell(self.core.Committed(lease.dispatch))
        elif isinstance(answer, Conflict):
            stored = self.stored(lease.dispatch)
            assert stored is not None
            self.tell(self.core.StoredOtherwise(lease.dispatch, stored))
        if isinstance(answer, Conflict):
            self._ask_to_write(execution, number, key)
            return
        del self._writes[key]
        if isinstance(answer, SwampError):
            return  # no room: it is said so, and the request comes again
        self.checks.write_acknowledged(self, execution, number)
        self.world.write_answered(execution, number, True)

    # ── workers, as the desk tells of them ──────────────────────────────────────────────────────────────────
    def worker_joined(self, member: Member, held: Any, *, reaped: bool) -> Any:
        state = member.state
        for one in held:
            flight = self.flights.get(one.dispatch)
            if flight is not None and flight.message.fence == one.fence and flight.slot.worker == state.name:
                flight.slot.member = member
        for one in held:
            self._verdicts.pop(one.dispatch, None)
        self.tell(
            self.core.WorkerReturned(
                state.name,
                state.instance,
                state.link_epoch,
                tuple(self.core.Holding(one.dispatch, one.fence) for one in held),
                reaped=reaped,
            )
        )
        until_s = self.loop.now + self.tempo.silence_s
        while any(one.dispatch not in self._verdicts for one in held):
            came = yield (self._judged, max(0.0, until_s - self.loop.now))
            if not came:
                break
        if any(one.dispatch not in self._verdicts for one in held):
            raise Refused(RefusalCode.OVERLOADED, "not recorded yet", retry_after_s=STORE_RETRY_S)
        return {one.dispatch: self._verdicts.pop(one.dispatch) for one in held}

    def worker_ready(self, member: Member) -> None:
        self.connected[member.name] = member
        self._worker_is(member.state, None)

    def worker_changed(self, member: Member) -> None:
        if self.connected.get(member.name) is member:
            self._worker_is(member.state, None)

    def worker_left(self, member: Member) -> None:
        if self.connected.get(member.name) is member:
            del self.connected[member.name]
            self._worker_is(attrs.evolve(member.state, connected=False), self.loop.now)
        self.tell(self.core.LinkLost(member.name, member.state.link_epoch))

    def _worker_is(self, state: WorkerState, offline_since: float | None) -> None:
        self.scheduler.worker_changed(
            PoolWorker(
                name=state.name,
                instance=state.instance,
                labels=state.labels,
                platform=state.platform,
                arch=state.arch,
                capacity=state.capacity,
                connected=state.connected,
                draining=state.draining,
                drain_reason=state.drain_reason,
                unverified=state.unverified,
                stuck=state.stuck,
                token_expires_ms=state.token_expires_ms,
                offline_since=offline_since,
            ),
            self.loop.now,
        )
        self.pump()

    def finished(self, member: Member, request: Any, finished: Finished) -> None:
        self._unnoted.setdefault(finished.dispatch, []).append((member, request))
        flight = self.flights.get(finished.dispatch)
        if flight is not None:
            flight.finished = finished
        self._report(finished)

    def _report(self, finished: Finished) -> None:
        self.tell(
            self.core.FinishArrived(
                finished.dispatch, finished.fence, finished.outcome, finished.left, finished.error
            )
        )

    def log_lines(self, member: Member, lines: LogLines) -> None:
        flight = self.flights.get(lines.dispatch)
        if flight is None or flight.message.fence != lines.fence:
            return
        last = lines.first + count_of(lines.blocks) - 1
        assert lines.first <= flight.read + 1, f"LINES: {lines.dispatch} goes on at {lines.first}"
        if last > flight.read:
            flight.read = last
        self.loop.after(
            self.world.weather.flush_s(), self.process, self._flushed, member, flight, flight.read
        )

    def _flushed(self, member: Member, flight: Flight, through: int) -> None:
        flight.through = max(flight.through, through)
        self.world.log_on_disk[flight.message.dispatch] = flight.through
        member.link.post(LogNoted(flight.message.dispatch, flight.through))

    # ── placing ─────────────────────────────────────────────────────────────────────────────────────────────
    def release(self, holder: str) -> None:
        self.scheduler.release(holder, self.loop.now)
        self.pump()

    def pump(self) -> None:
        if not self.reconciled:
            return
        for placement in self.scheduler.take_placements(self.wall_ms):
            ticket = self.tickets[placement.demand]
            ticket.worker = placement.worker
            ticket.placed.set()

    def _slot(self, run: Run, work: Work) -> Any:
        """Wait for permission to execute once; None when it was cancelled first."""
        placement, state = work.state.step.placement, work.state
        holder = self.world.chance.uuid()
        if not placement.is_remote:
            return None if work.cancel_reason else Slot(holder, None, None, self)
        demand = Demand(
            id=holder,
            queued_at=state.queued_ms,
            target=placement.target,
            labels=placement.labels,
            avoid=frozenset(state.avoid),
            affinity=f"{run.id}:{state.key.job}" if placement.affinity else None,
        )
        ticket = work.ticket = self.tickets[holder] = Ticket(demand)
        self.scheduler.add(demand)
        self.pump()
        if not work.cancel_reason:
            yield ticket.placed
        work.ticket = None
        del self.tickets[holder]
        if work.cancel_reason:
            self.scheduler.remove(holder)
            if ticket.worker:
                self.release(holder)
            return None
        return Slot(holder, ticket.worker, self.connected.get(ticket.worker), self)

    # ── steps ───────────────────────────────────────────────────────────────────────────────────────────────
    def _step(self, run: Run, work: Work, lease: Lease | None) -> Any:
        """One step until it has ended: `Run._step` with `StepWork` in it."""
        state = work.state
        again: Any = True
        if lease is not None:
            again = yield from self._resume(run, work, lease)
        else:
            yield from self._advance(run, self.world.cores.runplan.StepStarted(state.key))
        while again:
            slot = yield from self._slot(run, work)
            if slot is None:
                state.status, state.error = StepStatus.CANCELLED, work.cancel_reason
                state.ended_ms = self.wall_ms
                yield from self._keep_trying(self._step_record(run, state))
                break
            again = yield from self._attempt(run, work, slot)
        del run.work[state.key]
        self.checks.step_ended(self, run.id, state)
        ended = self.world.cores.runplan.StepEnded(state.key, state.status, state.allowed)
        yield from self._advance(run, ended)
        self._task_over(run)

    def _attempt(self, run: Run, work: Work, slot: Slot) -> Any:
        state = work.state
        place = Place(run.id, run.workflow.name, run.workflow.id, state.key.job, state.key.step)
        message = _message(slot.holder, state.fence + 1, state.attempt + 1, place)
        state.attempt, state.fence, state.dispatch = message.attempt, message.fence, message.dispatch
        state.worker, state.status, state.started_ms = slot.worker, StepStatus.RUNNING, self.wall_ms
        lease = self._lease(message, slot, state)
        flight = self.flights[message.dispatch] = Flight(message, slot, lease)
        work.flight, work.granted = flight, False
        self.checks.grant_asked(self, run.id, state, slot)
        self.process.effect()
        batch = Batch((record_of(lease), self._step_record(run, state)))
        self.world.moment(run, work)
        while True:
            answer = yield self.loop.future(self.store.submit(batch))
            if not isinstance(answer, SwampError):
                break
            yield STORE_RETRY_S
        self._granted(flight)
        self.world.moment(run, work)
        work.granted = True
        if work.cancel_reason:
            self.tell(self.core.CancelAsked(message.dispatch, work.cancel_kind, work.cancel_reason))
        try:
            return (yield from self._until_ended(run, work, flight))
        finally:
            self._close(work, flight)

    def _close(self, work: Work, flight: Flight) -> None:
        work.flight = None
        if self.process.alive:
            self.flights.pop(flight.message.dispatch, None)
            self._verdicts.pop(flight.message.dispatch, None)
            if flight.slot.worker is None:
                flight.slot.release()

    def _lease(self, message: Dispatch, slot: Slot, state: StepState) -> Lease:
        member, place = slot.member, message.place
        return Lease(
            dispatch=message.dispatch,
            fence=message.fence,
            attempt=message.attempt,
            losses=state.losses,
            run=place.run,
            workflow=place.workflow,
            job=place.job,
            step=place.step,
            model_type=message.model_type,
            model_id=message.model_id,
            model_name=message.model_name,
            method=message.method,
            worker=slot.worker,
            instance="" if member is None else member.state.instance,
            token_name="" if member is None else member.state.token_name,
            mint_id="" if member is None else member.state.mint_id,
            link=0 if member is None else member.state.link_epoch,
            grace_s=self.tempo.grace_s,
            on_worker_lost=state.step.on_worker_lost,
            granted_ms=self.wall_ms,
        )

    def _granted(self, flight: Flight) -> None:
        slot, dispatch = flight.slot, flight.message.dispatch
        link_up = slot.worker is None or (slot.member is not None and not slot.member.link.closed)
        self.tell(self.core.LeaseGranted(attrs.evolve(flight.lease, version=1), link_up=link_up))
        if slot.worker is None:
            self.tell(self.core.Accepted(dispatch))
            self._run_here(flight)
        elif self.world.cannot_be_sent():
            self.tell(self.core.Refused(dispatch, RefusalCode.TOO_LARGE, "no frame can hold it"))
        elif slot.member is not None and link_up:
            slot.member.link.ask(flight.message, lambda reply: self._answered(dispatch, reply))

    def _answered(self, dispatch: str, reply: Reply | None) -> None:
        match reply:
            case Response():
                self.tell(self.core.Accepted(dispatch))
            case Failure(failure=failure):
                self.tell(self.core.Refused(dispatch, failure.code, failure.message))

    def _run_here(self, flight: Flight) -> None:
        """The loopback: the same execution, without a socket."""

        def line(number: int) -> None:
            flight.read = flight.through = number

        def ended(outcome: Outcome | None) -> None:
            self.loop.at(self.loop.now, self.process, self._ended_here, flight, execution, outcome)

        message = flight.message
        execution = Execution(message, self.world.home, self.world.behaviour(message), line, ended)
        self.world.home.begin(execution, self.keeper)

    def _ended_here(self, flight: Flight, execution: Execution, outcome: Outcome | None) -> None:
        message = flight.message
        self.keeper.held.pop(message.dispatch, None)
        flight.finished = Finished(
            message.dispatch, message.fence, outcome or Outcome.CANCELLED, None, (), flight.through, 0,
            1 if execution.alive else 0, 0, 0,
        )  # fmt: skip
        self._report(flight.finished)
        if execution.alive:
            self.loop.after(1.0, self.process, self._look_at_stuck, execution)

    def _look_at_stuck(self, execution: Execution) -> None:
        if execution.alive:
            self.loop.after(1.0, self.process, self._look_at_stuck, execution)
        else:
            self.tell(self.core.EmptyConfirmed(execution.dispatch.dispatch))

    def _resume(self, run: Run, work: Work, lease: Lease) -> Any:
        state = work.state
        if lease.worker is not None:
            self.scheduler.occupy(lease.worker, lease.dispatch)
        slot = Slot(lease.dispatch, lease.worker, self.connected.get(lease.worker or ""), self)
        place = Place(run.id, run.workflow.name, run.workflow.id, state.key.job, state.key.step)
        flight = Flight(_message(lease.dispatch, lease.fence, lease.attempt, place), slot, lease)
        flight.read = flight.through = self.world.log_on_disk.get(lease.dispatch, 0)
        self.flights[lease.dispatch] = flight
        work.flight = flight
        try:
            self._unresumed.pop(lease.dispatch, None)
            self.tell(self.core.LeaseFound(lease))
            work.granted = True
            if work.cancel_reason:
                self.tell(self.core.CancelAsked(lease.dispatch, work.cancel_kind, work.cancel_reason))
            return (yield from self._until_ended(run, work, flight))
        finally:
            self._close(work, flight)

    def _until_ended(self, run: Run, work: Work, flight: Flight) -> Any:
        """Whether the step is to be placed again."""
        state = work.state
        while True:
            end = yield from flight.wait()
            match end:
                case Reported():
                    if (yield from self._complete(run, work, flight, end)):
                        return False
                case Again():
                    state.losses = end.losses
                    state.avoid = (*state.avoid, *((end.avoid,) if end.avoid else ()))
                    state.attempt -= 0 if end.sent else 1
                    state.status = StepStatus.WAITING
                    self.checks.step_requeued(self, run.id, state, flight)
                    return True
                case Gone():
                    cancelled = end.cancelled is CancelKind.CANCEL
                    state.status = StepStatus.CANCELLED if cancelled else StepStatus.FAILED
                    state.error, state.error_code = end.reason, end.code
                    state.left, state.ended_ms = end.left, self.wall_ms
                    self.checks.step_gone(flight, end)
                    yield from self._keep_trying(self._step_record(run, state))
                    return False

    def _complete(self, run: Run, work: Work, flight: Flight, end: Reported) -> Any:
        state, finished = work.state, end.finished
        self.world.moment(run, work)
        state.left, state.ended_ms = finished.left, self.wall_ms
        state.status, state.error = STATUS_OF[finished.outcome], finished.error or ""
        state.allowed = state.status is StepStatus.FAILED and state.step.allow_failure
        self.checks.completes(self, flight, finished)
        try:
            output = self.world.output(flight.message, end.lease.fence)
            yield from self.commit(output, self._step_record(run, state), record_of(end.lease))
        except SwampError as error:
            state.status = StepStatus.RUNNING
            yield from self._commit_failed(flight.message.dispatch, error)
            self._report_again(flight)
            return False
        self.tell(self.core.Committed(flight.message.dispatch))
        return True

    def _step_record(self, run: Run, state: StepState) -> NewRecord:
        return records.step_record(run.origin(state.key), state.attributes(run.id))

    def _keep_trying(self, *new: NewRecord) -> Any:
        """Commit, also when the disk is full for a while."""
        while True:
            try:
                return (yield from self.commit(*new))
            except Broken:
                yield STORE_RETRY_S

    # ── runs ────────────────────────────────────────────────────────────────────────────────────────────────
    def submit(self, workflow: Workflow) -> None:
        """An operator asks for a run."""
        run = Run(self.world.chance.uuid(), workflow, self.world.cores.runplan.RunPlan(workflow))
        self.world.workflows[run.id] = workflow
        self.loop.spawn(self.process, self._begin(run))

    def _begin(self, run: Run) -> Any:
        run.started_ms = self.wall_ms
        self.runs[run.id] = run
        try:
            done = yield from self.commit(run.record(expect=0))
        except SwampError:
            del self.runs[run.id]
            return
        run.version = done.records[0].version
        self.checks.run_acknowledged(self, run.id)
        yield from self._apply(run, run.plan.handle(self.world.cores.runplan.RunBegun()))

    def cancel_run(self, run: Run, reason: str) -> None:
        if not run.cancel_reason and not run.over.is_set:
            run.cancel_reason = reason
            self.loop.spawn(self.process, self._cancel(run, reason))

    def _cancel(self, run: Run, reason: str) -> Any:
        while run.recording is not None:
            yield run.recording
        if run.status != "running":
            return  # it ended first
        recording = run.recording = Signal()
        done = yield from self._keep_trying(run.record(expect=run.version))
        run.recording = None
        recording.set()
        run.version = done.records[0].version
        self.checks.cancel_acknowledged(self, run.id)
        yield from self._advance(run, self.world.cores.runplan.CancelAsked(reason))

    def time_out(self, run: Run, key: StepKey) -> None:
        if (work := run.work.get(key)) is not None:
            self._ask_cancel(work, CancelKind.TIMEOUT, "it took too long")

    def _ask_cancel(self, work: Work, kind: CancelKind, reason: str) -> None:
        if work.cancel_reason:
            return
        work.cancel_reason, work.cancel_kind = reason, kind
        if work.ticket is not None:
            work.ticket.placed.set()
        if work.flight is not None and work.granted:
            self.tell(self.core.CancelAsked(work.flight.message.dispatch, kind, reason))

    def _advance(self, run: Run, event: Any) -> Any:
        if run.plan.ended is None:
            yield from self._apply(run, run.plan.handle(event))

    def _apply(self, run: Run, effects: Any) -> Any:
        plan = self.world.cores.runplan
        unstarted = [one for one in effects if isinstance(one, (plan.SkipStep, plan.FailStep, plan.DropStep))]
        made = [self._step_record(run, self._unstarted(run, one)) for one in unstarted]
        if made:
            yield from self._keep_trying(*made)
        for effect in effects:
            self.process.effect()
            match effect:
                case plan.StartStep(key=key):
                    self._start(run, key, None)
                case plan.CancelStep(key=key):
                    if (work := run.work.get(key)) is not None:
                        self._ask_cancel(work, CancelKind.CANCEL, run.cancel_reason)
                case plan.RunEnded():
                    run.outcome = effect
                    self._task_over(run)
                case plan.ExpandStep():
                    raise AssertionError("no simulated workflow has a forEach")

    def _unstarted(self, run: Run, effect: Any) -> StepState:
        state = run.state(effect.key)
        names = {
            "SkipStep": StepStatus.SKIPPED,
            "FailStep": StepStatus.FAILED,
            "DropStep": StepStatus.CANCELLED,
        }
        state.status, state.reason, state.ended_ms = names[type(effect).__name__], effect.reason, self.wall_ms
        self.checks.step_ended(self, run.id, state)
        return state

    def _start(self, run: Run, key: StepKey, lease: Lease | None) -> None:
        state = run.state(key)
        state.queued_ms = state.queued_ms or self.wall_ms
        work = run.work[key] = Work(state)
        if run.cancel_reason:
            work.cancel_reason = run.cancel_reason
        run.tasks += 1
        self.loop.spawn(self.process, self._step(run, work, lease))

    def _task_over(self, run: Run) -> None:
        if run.outcome is not None and not run.work and run.status == "running":
            run.status = run.outcome.status.value
            self.loop.spawn(self.process, self._finish(run))

    def _finish(self, run: Run) -> Any:
        while run.recording is not None:
            yield run.recording
        yield from self._keep_trying(run.record(expect=run.version, ended_ms=self.wall_ms))
        del self.runs[run.id]
        run.over.set()
        self.checks.run_ended(self, run.id, run.status)

    # ── after a start ───────────────────────────────────────────────────────────────────────────────────────
    def _reconcile(self) -> Any:
        """`Recovery.run`: links are forgotten, runs taken over; then things are granted."""
        yield self.world.weather.flush_s()
        for worker in read_workers(self.store):
            state = worker
            if worker.connected:
                state = attrs.evolve(worker, connected=False, disconnected_ms=self.wall_ms, active=())
                try:
                    done = yield from self.commit(worker_record(state))
                except (Conflict, Broken):
                    done = None
                if done is not None:
                    state = attrs.evolve(state, version=done.records[0].version)
            if state.name not in self.connected:
                self._worker_is(attrs.evolve(state, connected=False), self.loop.now)
        held = []
        for record in list(self.store.select(Selection(OPEN_RUNS))):
            if record.model_id not in self.runs:  # one that began meanwhile has a living owner
                held += self._take_over(record)
        self.reconciled = True
        self.pump()
        while any(dispatch in self._unresumed for dispatch in held):
            yield 0.001
        self.desk.opened.set()
        self.desk.look_again()

    def _take_over(self, record: Record) -> list[str]:
        attributes = json.loads(record.content or b"")
        rows: dict[StepKey, Any] = {}
        for row in self._of_run(record.model_id):
            if row.spec == "step":
                values = json.loads(row.content or b"")
                rows[StepKey(values["job"], values["step"])] = values
        workflow = self.world.workflows[record.model_id]
        run = Run(record.model_id, workflow, None, record.version, record.created_ms)
        run.cancel_reason = attributes.get("cancelReason", "")
        for key, row in rows.items():
            state = run.state(key)
            state.restore(row)
            if state.status is StepStatus.RUNNING:
                lease = self.stored(state.dispatch)
                if lease is not None:
                    run.found[key] = lease
                else:
                    state.status = StepStatus.WAITING
        plan = self.world.cores.runplan
        run.plan, effects = plan.RunPlan.rebuild(
            workflow,
            {},
            {key: state.status for key, state in run.steps.items()},
            allowed=[key for key, state in run.steps.items() if state.allowed],
            cancel=plan.CancelAsked(run.cancel_reason) if run.cancel_reason else None,
        )
        self.runs[run.id] = run
        for key, lease in run.found.items():
            self._unresumed[lease.dispatch] = None
            self._start(run, key, lease)
        self.loop.spawn(self.process, self._apply(run, effects))
        return [lease.dispatch for lease in run.found.values()]

    def _of_run(self, run_id: str) -> Iterator[Record]:
        return self.store.select(Selection((Term("modelId", Comparison.EQ, (run_id,)),)))


def _message(dispatch: str, fence: int, attempt: int, place: Place) -> Dispatch:
    return Dispatch(
        dispatch=dispatch, fence=fence, attempt=attempt, attempt_key="", place=place, model_type="command/shell",
        model_name="m", model_id="m", model_version=1, model_tags={}, method="execute", program=None,
        global_arguments={}, arguments={}, environment={}, bindings={}, display=None,
        secrets=(), timeout_s=None, credential="",
    )  # fmt: skip
