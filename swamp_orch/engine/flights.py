"""Flights: dispatches under a lease, from grant to end. The shell around `swamp_orch.core.leases`.

Rules that hold here:

1. What happens to a lease is the core's decision; this module tells it what happened and carries out what it answers, in order.
   A commit that the core asks for is answered with `Committed` or `CommitFailed`, and nothing else speaks for it.
2. A step's task waits on its flight (`wait`) and commits a completion itself, with outputs and lease in one transaction.
3. While the disk is full, commits are tried again: results must not be lost to that.
"""

import json
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio
import trio.lowlevel

from swamp_orch.core import leases as core
from swamp_orch.core.lease_values import (
    AdmitFinish,
    AdmitWrite,
    AskCancel,
    CancelKind,
    Drop,
    Effect,
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
from swamp_orch.engine.admissions import Admissions, lease_ended
from swamp_orch.engine.ingress import Ingress
from swamp_orch.engine.logs import LogSpool
from swamp_orch.engine.pace import Pace
from swamp_orch.engine.placing import Placing, Slot
from swamp_orch.store.bookkeeping import LEASES_ID, LEASES_MODEL, STEP_LEASE, lease_record
from swamp_orch.store.interface import (
    Batch,
    Committed,
    Content,
    Guard,
    NewRecord,
    OutcomeMark,
    Owner,
    OwnerType,
    Store,
    json_content,
)
from swamp_orch.store.trio_store import answer as answered
from swamp_orch.tokens.standing import Standing
from swamp_proto.envelope import Request
from swamp_proto.errors import Broken, Conflict, RefusalCode, Refused, SwampError
from swamp_proto.limits import BOOKKEEPING_VERSIONS_KEPT, CANCEL_TERM_S, STALL_S, STORE_RETRY_S, Tempo
from swamp_proto.messages.dispatch import (
    CancelDispatch,
    Dispatch,
    Finished,
    FinishNoted,
    LogBlock,
    LogLines,
    LogNoted,
)
from swamp_proto.messages.enrollment import HeldDispatch, HeldVerdict, Predecessor, Verdict
from swamp_proto.redaction import Mask

if TYPE_CHECKING:
    from swamp_orch.engine.engine import Reporter
    from swamp_orch.engine.orders import Order
    from swamp_orch.engine.records import StepOrigin
    from swamp_orch.engine.steps import StepState
    from swamp_orch.gateway.control import Member
    from swamp_orch.gateway.link import Answer

TICK_S: Final = 0.5
STUCK_LOOK_S: Final = 1.0  # between two looks at what can not be killed


@attrs.frozen
class Reported:
    """The holder said how it ended; `lease` is the ended lease to commit with the outputs."""

    finished: Finished
    lease: Lease


@attrs.frozen
class Again:
    """The lease ended without a result and the old execution is known dead: the step is to be placed anew."""

    reason: str
    losses: int  # the step's new count
    sent: bool  # whether this dispatch was an attempt
    avoid: str | None  # a worker to use last


@attrs.frozen
class Gone:
    """The lease ended without a result, and so does the step."""

    cancelled: CancelKind | None  # None: it failed
    reason: str
    code: str
    left: int | None
    ends_by_ms: int | None  # when what is left is dead at the latest


End = Reported | Again | Gone


@attrs.define(eq=False)
class Flight:
    """One dispatch at work. `order` and `origin` say for which step; `written` describes the records it has written so far."""

    message: Dispatch
    slot: Slot
    lease: Lease
    spool: LogSpool
    ingress: Ingress
    order: "Order"
    origin: "StepOrigin"
    finished: Finished | None = None
    contents: list[Content] | None = None  # of the outputs of `finished`, where they were checked
    entering: bool = False  # they are being checked
    stuck: bool = False  # of the loopback: something is left of it, and watched
    written: list[dict[str, Any]] = attrs.field(factory=list)
    teller: "Member | None" = None  # who sent lines last
    flushing: bool = False  # lines are being made durable
    requests: set[trio.CancelScope] = attrs.field(
        factory=set
    )  # what it asks for at this moment; ends with its lease
    on_progress: Callable[[int, int, int], object] = lambda number, here, of: (
        None
    )  # of an upload that takes long
    _pace: Pace = attrs.field(factory=Pace)
    _end: End | None = None
    _ended: trio.Event = attrs.field(factory=trio.Event)

    @property
    def dispatch(self) -> str:
        return self.message.dispatch

    def progress(self, number: int, here: int, of: int) -> None:
        """So many bytes of upload `number` are here; told now and then."""
        if self._pace.due(number, here, of, trio.current_time()):
            self.on_progress(number, here, of)

    def grant_record(self) -> NewRecord:
        return record_of(self.lease)

    def settle(self, end: End) -> None:
        """The step's task goes on with this."""
        self._end = end
        self._ended.set()

    async def wait(self) -> End:
        """The next end. A completion that could not be committed is followed by another."""
        await self._ended.wait()
        end, self._end, self._ended = self._end, None, trio.Event()
        assert end is not None
        return end


def record_of(lease: Lease) -> NewRecord:
    """The next version of a lease's record, with the place in its run."""
    owner = Owner(
        OwnerType.SYSTEM,
        ref=lease.run,
        workflow=lease.workflow,
        run=lease.run,
        job=lease.job,
        step=lease.step,
        dispatch=lease.dispatch,
        fence=lease.fence,
    )
    return NewRecord(
        model_type=STEP_LEASE,
        model_id=LEASES_ID,
        model_name=LEASES_MODEL,
        name=lease_record(lease.dispatch),
        spec="lease",
        content=json_content(lease.to_attributes()),
        keep=BOOKKEEPING_VERSIONS_KEPT,
        tags={"type": "resource"},
        owner=owner,
        expect=lease.version,
    )


def lease_batch(lease: Lease, *records: NewRecord) -> Batch:
    """`records` and the lease's; with the end of a lease, what was written under it learns how it ended."""
    marked = lease.wrote and lease.outcome
    marks = (OutcomeMark(lease.run, lease.dispatch, lease.outcome),) if marked else ()
    return Batch((*records, record_of(lease)), marks=marks)


def credential_hash(credential: str) -> str:
    """What a lease's record keeps of a dispatch's credential (256 random bits: a plain digest is enough)."""
    return sha256(credential.encode()).hexdigest() if credential else ""


EnterEnd = Callable[[Flight, Finished], Awaitable[tuple[Finished, list[Content]]]]
"""Checks the outputs of an end: the end as it is then, and their contents. Raises SwampError where that must be tried again."""


async def _nothing_above(flight: Flight, record: str) -> None:
    """A dispatch that no other one started."""


class Flights:
    """All dispatches of this process, and the lease core."""

    def __init__(
        self,
        store: Store,
        logs: Path,
        tempo: Tempo,
        clock_ms: Callable[[], int],
        placing: Placing | None,
        reporter: "Reporter",
        *,
        settle: Callable[[str], bool] = lambda dispatch: True,
    ) -> None:
        """`settle`: whether nothing is left, by now, of an execution of the loopback that could not be emptied."""
        self._store = store
        self._logs = logs
        self._tempo = tempo
        self._clock_ms = clock_ms
        self._placing = placing
        self._report = reporter
        self._settled_here = settle
        self._standing = Standing(store)
        self._leases = core.Leases()
        self._flights: dict[str, Flight] = {}
        self._unnoted: dict[
            str, list[tuple[Member, Request]]
        ] = {}  # reports whose answer waits for their commit
        self._verdicts: dict[str, Verdict] = {}
        self._nursery: trio.Nursery
        self.lease_ended: Callable[[str], None] = lambda dispatch: None  # told of every end, at that instant
        self.before_write: Callable[[Flight, str], Awaitable[None]] = _nothing_above
        self.expire_due: Callable[[], object] = lambda: None  # records the end of tokens whose life is over
        self.token_seen_over: Callable[[], object] = lambda: None  # told when a write finds that one is
        self._sooner = trio.Event()
        self._judged = trio.lowlevel.ParkingLot()
        self._told = trio.lowlevel.ParkingLot()  # something happened to a lease
        self._resumed: set[str] = set()  # found at start
        self._resuming = trio.lowlevel.ParkingLot()
        self._asking: dict[str, Flight] = {}  # those with requests
        self._closed: list[Callable[[str], object]] = []
        self.enter_end: EnterEnd | None = None
        self._admissions = Admissions(
            store, tell=self._tell, commit_failed=self._commit_failed, record_of=record_of
        )

    # ── the loop ────────────────────────────────────────────────────────────────────────────────────────────────────
    async def watch(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Deadlines of leases, and this loop's own stalls. Runs as long as the engine."""
        async with trio.open_nursery() as nursery:
            self._nursery = self._admissions.nursery = nursery
            task_status.started()
            while True:
                due_s = self._leases.next_deadline()
                planned_s = trio.current_time() + TICK_S
                if due_s is not None:
                    planned_s = min(planned_s, due_s)
                with trio.move_on_at(planned_s):
                    await self._sooner.wait()
                self._sooner = trio.Event()
                late_s = trio.current_time() - planned_s
                if late_s > STALL_S:
                    self._report.warning("this process stood still", seconds=round(late_s, 1))
                    await trio.lowlevel.checkpoint()  # what is readable is read before deadlines are judged
                    self._tell(core.Stalled(late_s))
                due_s = self._leases.next_deadline()
                if due_s is not None and due_s <= trio.current_time():
                    self._tell(core.DeadlinePassed())

    def _tell(self, event: core.Event) -> None:
        """Tell the core what happened and carry out what it answers."""
        before_s = self._leases.next_deadline()
        self._perform_all(self._leases.handle(event, trio.current_time(), self._clock_ms()))
        if self._told:
            self._told.unpark_all()
        if self._asking:
            self._end_requests(event)
        after_s = self._leases.next_deadline()
        if after_s is not None and (before_s is None or after_s < before_s):
            self._sooner.set()

    def _end_requests(self, event: core.Event) -> None:
        """What a dispatch asks for ends with its lease, at the instant that is decided."""
        concerned = getattr(event, "dispatch", None)
        flights = self._asking.values() if concerned is None else filter(None, [self._asking.get(concerned)])
        for flight in tuple(flights):
            if self._leases.admits(flight.dispatch, flight.message.fence) is None:
                for scope in flight.requests:
                    scope.cancel()

    def _perform_all(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            self._perform(effect)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case PersistLease(lease=lease):
                if not lease.active:
                    self.lease_ended(lease.dispatch)
                self._nursery.start_soon(self._persist, lease, self._store.submit(lease_batch(lease)))
            case AdmitFinish(lease=lease):
                self.lease_ended(lease.dispatch)
                flight = self._flights.get(lease.dispatch)
                if flight is not None and flight.finished is not None:
                    flight.settle(Reported(flight.finished, lease))
                else:  # nobody waits for its outputs any more: its end is recorded all the same
                    self._nursery.start_soon(self._persist, lease, self._store.submit(lease_batch(lease)))
            case AdmitWrite() | RefuseWrite():
                self._admissions.settle(effect)
            case NoteFinish(dispatch=dispatch):
                self._answer_finish(dispatch, accepted=True)
            case RefuseFinish(dispatch=dispatch, text=text):
                self._report.warning("a result came too late", dispatch=dispatch, reason=text)
                self._answer_finish(dispatch, accepted=False)
            case FreeSlot(dispatch=dispatch):
                flight = self._flights.get(dispatch)
                if flight is not None:
                    flight.slot.release()
                elif self._placing is not None:
                    self._placing.release(dispatch)
            case RequeueStep(lease=lease, text=text, losses=losses, sent=sent, avoid=avoid):
                self._settle(lease.dispatch, Again(text, losses, sent, avoid))
            case FailStep(lease=lease, message=message, left=left, ends_by_ms=ends_by_ms):
                code = "" if lease.reason is None else lease.reason.value
                self._settle(lease.dispatch, Gone(None, message, code, left, ends_by_ms))
            case EndStep(lease=lease, kind=kind, reason=reason, left=left, ends_by_ms=ends_by_ms):
                code = "" if lease.reason is None else lease.reason.value
                self._settle(lease.dispatch, Gone(kind, reason, code, left, ends_by_ms))
            case AskCancel(dispatch=dispatch, reason=reason):
                self._ask_holder(dispatch, reason)
            case Keep(dispatch=dispatch):
                self._judge(dispatch, Verdict.KEEP)
            case Drop(dispatch=dispatch):
                self._judge(dispatch, Verdict.DROP)
                self._ask_holder(dispatch, "its lease has ended")
            case EndSession(worker=worker, reason=reason):
                if self._placing is not None and worker in self._placing.members:
                    self._report.warning("session ended", worker=worker, reason=reason)
                    self._placing.members[worker].end()
            case SlotStuck(dispatch=dispatch, worker=worker):
                self._report.warning(
                    "a slot is stuck: processes of a step can not be killed", worker=worker, dispatch=dispatch
                )

    async def _persist(self, lease: Lease, future: Any) -> None:
        """A commit the core asked for."""
        try:
            await answered(future)
        except SwampError as error:
            await self._commit_failed(lease.dispatch, error)
        else:
            self._tell(core.Committed(lease.dispatch))

    async def _commit_failed(self, dispatch: str, error: SwampError) -> None:
        """Tell the core what the store has instead; after a pause when that is what the disk needs."""
        self._report.warning("a lease could not be recorded", dispatch=dispatch, error=str(error))
        if not isinstance(error, Conflict):
            await trio.sleep(STORE_RETRY_S)
        record = await trio.to_thread.run_sync(self._store.latest, LEASES_ID, lease_record(dispatch))
        assert record is not None and record.content is not None, (
            f"lease {dispatch} was granted without a record"
        )
        self._tell(
            core.CommitFailed(dispatch, Lease.from_attributes(json.loads(record.content), record.version))
        )

    def _ask_holder(self, dispatch: str, reason: str) -> None:
        flight = self._flights.get(dispatch)
        if flight is not None and flight.slot.member is not None:
            flight.slot.member.link.ask(CancelDispatch(dispatch, flight.message.fence, reason, CANCEL_TERM_S))

    def _judge(self, dispatch: str, verdict: Verdict) -> None:
        self._verdicts[dispatch] = verdict
        self._judged.unpark_all()

    def _settle(self, dispatch: str, end: End) -> None:
        flight = self._flights.get(dispatch)
        if flight is not None:
            flight.settle(end)

    def _answer_finish(self, dispatch: str, *, accepted: bool) -> None:
        for member, request in self._unnoted.pop(dispatch, ()):
            member.link.reply(request, FinishNoted(dispatch, accepted=accepted))

    def get(self, dispatch: str) -> Flight | None:
        """A dispatch at work."""
        return self._flights.get(dispatch)

    # ── steps ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def open(
        self,
        message: Dispatch,
        slot: Slot,
        order: "Order",
        state: "StepState",
        origin: "StepOrigin",
        emit: Callable[[int, LogBlock], None],
    ) -> Flight:
        """A new dispatch, not yet granted: the caller commits `grant_record` and then calls `granted`."""
        member, place = slot.member, message.place
        lease = Lease(
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
            grace_s=self._tempo.grace_s,
            on_worker_lost=order.on_worker_lost,
            granted_ms=self._clock_ms(),
            credential_hash=credential_hash(message.credential),
        )
        ingress = Ingress(Mask(message.secrets))
        spool = LogSpool(self._logs / message.dispatch, emit, ingress.lines())
        flight = Flight(message, slot, lease, spool, ingress, order, origin)
        self._flights[message.dispatch] = flight
        return flight

    def reopen(
        self,
        message: Dispatch,
        slot: Slot,
        lease: Lease,
        order: "Order",
        origin: "StepOrigin",
        emit: Callable[[int, LogBlock], None],
        secrets: Iterable[str],
    ) -> Flight:
        """A dispatch that a previous process granted, with the log as far as it is on disk. `secrets` are its own, read anew: the
        message does not hold them."""
        ingress = Ingress(Mask(secrets))
        spool = LogSpool.recover(self._logs / lease.dispatch, emit, ingress.lines())
        flight = self._flights[lease.dispatch] = Flight(message, slot, lease, spool, ingress, order, origin)
        return flight

    def found(self, flight: Flight) -> None:
        """Tell the core of a lease that was found in the store."""
        self._tell(core.LeaseFound(flight.lease))
        self._resumed.add(flight.dispatch)
        self._resuming.unpark_all()

    def disown(self, lease: Lease, reason: str) -> None:
        """A lease that was found in the store, of a run that can not go on: it ends, and its holder is told when it comes back."""
        self._tell(core.LeaseFound(lease))
        self._tell(core.CancelAsked(lease.dispatch, CancelKind.CANCEL, reason))

    async def until_resumed(self, dispatches: Iterable[str]) -> None:
        """Wait until all of these were found. Before that, a verdict on what a worker holds would be wrong."""
        waited = set(dispatches)
        while not waited <= self._resumed:
            await self._resuming.park()

    def granted(self, flight: Flight) -> None:
        """The grant is durable: send it, or for the loopback, it begins."""
        member = flight.slot.member
        link_up = flight.slot.worker is None or (member is not None and not member.link.closed)
        self._tell(core.LeaseGranted(attrs.evolve(flight.lease, version=1), link_up=link_up))
        if flight.slot.worker is None:
            self._tell(core.Accepted(flight.dispatch))
        elif member is not None and link_up:
            place = flight.message.place
            self._report.info(
                "dispatching",
                step=place.step,
                workflow=place.workflow,
                worker=flight.slot.worker,
                dispatch=flight.dispatch[:8],
            )
            try:
                member.link.ask(flight.message).then(lambda answer: self._answered(flight, answer))
            except SwampError as error:  # no frame can hold it: this step's fault, nobody else's
                self._tell(core.Refused(flight.dispatch, RefusalCode.TOO_LARGE, str(error)))

    def _answered(self, flight: Flight, answer: "Answer") -> None:
        try:
            answer.result()
        except Refused as refusal:
            self._tell(core.Refused(flight.dispatch, refusal.refusal, flight.ingress.mask(refusal.message)))
        except Broken:
            return  # the link is gone: the core hears of that
        else:
            self._tell(core.Accepted(flight.dispatch))

    def report(self, flight: Flight, finished: Finished) -> None:
        """How a loopback execution ended."""
        if finished.left != 0 and not flight.stuck:
            flight.stuck = True
            self._nursery.start_soon(self._watch_stuck, flight)
        self._end_arrived(flight, finished)

    async def _watch_stuck(self, flight: Flight) -> None:
        """Something of a loopback execution could not be killed: its slot stays taken until that is gone."""
        while not self._settled_here(flight.dispatch):  # noqa: ASYNC110 - the kernel has no event for an emptied group
            await trio.sleep(STUCK_LOOK_S)
        self._tell(core.EmptyConfirmed(flight.dispatch))
        flight.slot.release()

    async def commit_end(
        self, flight: Flight, end: Reported, records: tuple[NewRecord, ...]
    ) -> Committed | None:
        """Commit a completion with its lease. None when that was not to be: the next end decides (`flight.wait`)."""
        try:
            done = await answered(self._store.submit(lease_batch(end.lease, *records)))
        except SwampError as error:
            await self._commit_failed(flight.dispatch, error)
            self._ask_again(flight, end.finished)
            return None
        self._tell(core.Committed(flight.dispatch))
        return done

    async def unsaved(self, flight: Flight, finished: Finished, error: SwampError) -> None:
        """The outputs of a completion could not even be staged: as if its commit had failed."""
        await self._commit_failed(flight.dispatch, error)
        self._ask_again(flight, finished)

    def _ask_again(self, flight: Flight, finished: Finished) -> None:
        """A report could not be saved. Its holder has it still, and says it again when it is told so."""
        again = Refused(
            RefusalCode.OVERLOADED, "the end could not be recorded yet", retry_after_s=STORE_RETRY_S
        )
        for member, request in self._unnoted.pop(flight.dispatch, ()):
            member.link.refuse(request, again)
        if flight.slot.worker is None:
            self.report(flight, finished)

    def ask_cancel(self, flight: Flight, kind: CancelKind, reason: str) -> None:
        self._tell(core.CancelAsked(flight.dispatch, kind, reason))

    def close(self, flight: Flight) -> None:
        """The step's task is done with it."""
        self._flights.pop(flight.dispatch, None)
        self._verdicts.pop(flight.dispatch, None)
        for scope in flight.requests:
            scope.cancel()
        if self._leases.admits(flight.dispatch, flight.message.fence) is None:
            for hear in self._closed:  # else this process stops, and the next one goes on with it
                hear(flight.dispatch)

    # ── what a dispatch asks for while it runs ──────────────────────────────────────────────────────────────────────────
    def on_close(self, hear: Callable[[str], object]) -> None:
        """`hear` is called with every dispatch whose step is done with it."""
        self._closed.append(hear)

    def at_work(self) -> frozenset[str]:
        """Every dispatch whose step is not done with it."""
        return frozenset(self._flights)

    def find(self, dispatch: str) -> Flight | None:
        return self._flights.get(dispatch)

    def lease(self, dispatch: str, fence: int) -> Lease | None:
        """The lease under which this dispatch may read and ask for writes at this instant; None: it has ended."""
        return self._leases.admits(dispatch, fence)

    @contextmanager
    def under(self, dispatch: str, fence: int) -> Iterator[Flight]:
        """A scope that the end of the lease cancels. Raises `CallRefused` (`lease_ended`) then, and when it has ended before."""
        flight = self._flights.get(dispatch)
        if flight is None or self._leases.admits(dispatch, fence) is None:
            raise lease_ended(dispatch)
        scope = trio.CancelScope()
        flight.requests.add(scope)
        self._asking[dispatch] = flight
        try:
            with scope:
                yield flight
        finally:
            flight.requests.discard(scope)
            if not flight.requests:
                self._asking.pop(dispatch, None)
        if scope.cancelled_caught:
            raise lease_ended(dispatch)

    def spawn(self, work: Callable[..., Awaitable[object]], *arguments: Any) -> None:
        """A task that lives as long as the engine."""
        self._nursery.start_soon(work, *arguments)

    async def commit_write(self, flight: Flight, record: str, batch: Batch) -> Committed:
        """Commit what a dispatch writes, as `Admissions.commit` says; `record` names it for people. In the store's order it is
        before every revocation of its token."""
        named = flight.ingress.mask(record)
        while True:
            guards = await self._token_lives(flight)
            await self.before_write(flight, named)
            guarded = attrs.evolve(batch, guards=(*batch.guards, *guards))
            try:
                return await self._admissions.commit(flight.dispatch, flight.message.fence, named, guarded)
            except Conflict:
                if all(self._standing.holds(guard) for guard in guards):
                    raise  # it was not the token that changed

    async def commit_read(self, flight: Flight, batch: Batch) -> Committed:
        """Commit what is no write, under a lease that the store must find active, and a token that lives. Raises `CallRefused`
        (`lease_ended`)."""
        while True:
            guards = await self._token_lives(flight)
            lease = self._leases.admits(flight.dispatch, flight.message.fence)
            if lease is None:
                raise lease_ended(flight.dispatch)
            try:
                done = await self._admissions.commit_read(
                    lease, attrs.evolve(batch, guards=(*batch.guards, *guards))
                )
            except Conflict:
                if all(self._standing.holds(guard) for guard in guards):
                    raise
                continue
            if done is not None:
                return done

    async def _token_lives(self, flight: Flight) -> tuple[Guard, ...]:
        """The leases of a token that is over by the wall clock or in the store end at this instant, whoever else will see that; raises
        `CallRefused` (`lease_ended`) then. An end that is seen first here is made durable. Else, what a batch must be guarded with."""
        name, mint_id = flight.lease.token_name, flight.lease.mint_id
        if not mint_id:
            return ()  # the loopback's
        why = self._standing.over(name, mint_id, self._clock_ms())
        if why is None:
            return (self._standing.guard(name),)
        try:
            await trio.to_thread.run_sync(self.expire_due)
        except SwampError as error:  # a full disk makes no token live longer
            self._report.warning("the end of a token could not be recorded", error=str(error))
        self.token_ended(mint_id, why)
        self.token_seen_over()
        raise lease_ended(flight.dispatch)

    # ── workers ─────────────────────────────────────────────────────────────────────────────────────────────────────
    async def worker_joined(
        self, member: "Member", held: tuple[HeldDispatch, ...], predecessor: Predecessor | None
    ) -> tuple[HeldVerdict, ...]:
        """The verdicts on what a worker holds; what they rest on is durable when this returns. Refused for a moment when
        the disk is too slow for that: to guess would lose a running step, or a result."""
        state = member.state
        returned = core.WorkerReturned(
            worker=state.name,
            instance=state.instance,
            link=state.link_epoch,
            held=tuple(core.Holding(one.dispatch, one.fence) for one in held),
            reaped=predecessor is not None and predecessor.reaped,
        )
        for one in held:
            flight = self._flights.get(one.dispatch)
            if flight is not None and flight.message.fence == one.fence and flight.slot.worker == state.name:
                flight.slot.member = member
        for one in held:
            self._verdicts.pop(one.dispatch, None)  # on an earlier link, which did not wait for it
        self._tell(returned)
        with trio.move_on_after(self._tempo.silence_s):
            while any(one.dispatch not in self._verdicts for one in held):
                await self._judged.park()  # verdicts follow their commits; several workers may wait
        if any(one.dispatch not in self._verdicts for one in held):
            raise Refused(
                RefusalCode.OVERLOADED,
                "what becomes of the held dispatches could not be recorded yet",
                retry_after_s=STORE_RETRY_S,
            )
        return tuple(HeldVerdict(one.dispatch, self._verdicts.pop(one.dispatch)) for one in held)

    def worker_left(self, member: "Member") -> None:
        self._tell(core.LinkLost(member.state.name, member.state.link_epoch))

    def token_ended(self, mint_id: str, why: RefusalCode) -> None:
        self._tell(core.TokenEnded(mint_id, why.value))

    def drain(self, worker: str) -> tuple[Lease, ...]:
        """End what this worker has not written under, so that it goes elsewhere. Answers all that it held, with its
        decided ends.
        """
        held = self.held_by(worker)
        self._tell(core.DrainAsked(worker))
        return tuple(self._leases.get(lease.dispatch) or lease for lease in held)

    def held_by(self, worker: str) -> tuple[Lease, ...]:
        """What a worker has under a lease, or may still have living under one that ended."""
        return self._leases.held_by(worker)

    async def until_idle(self, worker: str) -> None:
        """Until that is nothing."""
        while self.held_by(worker):
            await self._told.park()

    def mints_at_work(self) -> frozenset[tuple[str, str]]:
        """Token name and mint id of every lease whose step still waits for its end."""
        return frozenset(
            (flight.lease.token_name, flight.lease.mint_id)
            for flight in self._flights.values()
            if flight.lease.mint_id
        )

    def enroll_queued(self, worker: str, instance: str) -> None:
        """This instance is at the door: its grace is paused, once."""
        self._tell(core.EnrollQueued(worker, instance))

    def identity_busy(self, worker: str, instance: str, *, reaped: bool) -> float | None:
        """For how many seconds another process of this machine must wait, or None: it may enroll."""
        until_s = self._leases.busy_until(worker, instance, reaped)
        return None if until_s is None else max(0.0, until_s - trio.current_time())

    def finished(self, member: "Member", request: Request, finished: Finished) -> None:
        self._unnoted.setdefault(finished.dispatch, []).append((member, request))
        flight = self._flights.get(finished.dispatch)
        if flight is not None and flight.message.fence == finished.fence:
            self._end_arrived(flight, finished)
        else:
            self._tell_finish(finished)

    # ── ends ────────────────────────────────────────────────────────────────────────────────────────────────────────────
    def _end_arrived(self, flight: Flight, finished: Finished) -> None:
        """What code of an author made is checked before anything is decided on it; what swamp's own types make is not."""
        if flight.entering:
            return  # the same report again: both are answered when it is durable
        finished = flight.ingress.finished(finished)
        checked = flight.message.program is not None or any(
            one.staged is not None for one in finished.outputs
        )
        if checked and self.enter_end is not None:
            flight.entering = True
            self._nursery.start_soon(self._enter, flight, finished, self.enter_end)
        else:
            flight.finished = finished
            self._tell_finish(finished)

    async def _enter(self, flight: Flight, finished: Finished, enter: "EnterEnd") -> None:
        try:
            flight.finished, flight.contents = await enter(flight, finished)
        except SwampError as error:  # the disk is full: the holder has it still
            self._report.warning("outputs could not be kept yet", dispatch=flight.dispatch, error=str(error))
            await trio.sleep(STORE_RETRY_S)
            flight.entering = False
            self._ask_again(flight, finished)
            return
        flight.entering = False
        self._tell_finish(flight.finished)

    def _tell_finish(self, finished: Finished) -> None:
        self._tell(
            core.FinishArrived(
                finished.dispatch, finished.fence, finished.outcome, finished.left, finished.error
            )
        )

    def log_lines(self, member: "Member", lines: LogLines) -> None:
        flight = self._flights.get(lines.dispatch)
        if flight is None or flight.message.fence != lines.fence:
            return
        flight.teller = member
        if flight.spool.add(lines.first, lines.blocks) and not flight.flushing:
            flight.flushing = True
            self._nursery.start_soon(self._flush, flight)

    async def _flush(self, flight: Flight) -> None:
        """Make lines durable and tell whoever sent them last, until there are few that are not."""
        try:
            while True:
                through = await flight.spool.flush()
                if flight.teller is not None:
                    flight.teller.link.post(LogNoted(flight.dispatch, through))
                if not flight.spool.is_full:
                    return
        finally:
            flight.flushing = False
