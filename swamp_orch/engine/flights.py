"""Flights: dispatches under a lease, from grant to end. (First shape: the lease core decides once it is in place.)"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import trio

from swamp_orch.core.runplan import StepStatus
from swamp_orch.engine.logs import LogSpool
from swamp_orch.engine.orders import Order
from swamp_orch.engine.placing import Placing, Slot
from swamp_orch.store import bookkeeping
from swamp_orch.store.interface import Batch, NewRecord, Owner, OwnerType, Store, json_content
from swamp_orch.store.trio_store import commit
from swamp_proto.envelope import Request
from swamp_proto.errors import Broken, RefusalCode, Refused, SwampError
from swamp_proto.limits import BOOKKEEPING_VERSIONS_KEPT, CANCEL_WAIT_S, LOSSES_MAX, Tempo
from swamp_proto.messages.dispatch import (
    CancelDispatch,
    Dispatch,
    Finished,
    FinishNoted,
    LogLine,
    LogLines,
    LogNoted,
    Outcome,
)
from swamp_proto.messages.enrollment import HeldDispatch, HeldVerdict, Predecessor, Verdict

if TYPE_CHECKING:
    from swamp_orch.engine.steps import StepState
    from swamp_orch.gateway.control import Member, Reporter


@attrs.frozen
class Reported:
    """The holder said how it ended."""

    finished: Finished
    note: Callable[[], None]  # tell the holder that it is durable


@attrs.frozen
class Again:
    """The lease ended without a result; the step is to be placed anew, not before that instant (trio's clock)."""

    not_before_s: float
    reason: str
    counted: bool  # a holder process died under it


@attrs.frozen
class Gone:
    """The lease ended without a result, and so does the step."""

    status: str
    reason: str
    code: str
    left: int | None


@attrs.define(eq=False)
class Flight:
    """One dispatch at work."""

    message: Dispatch
    slot: Slot
    order: Order
    state: "StepState"
    spool: LogSpool
    granted_ms: int
    version: int = 0
    phase: str = "granted"
    end: Reported | Again | Gone | None = None
    ended: trio.Event = attrs.field(factory=trio.Event)
    cancel_reason: str = ""
    lost_at: float = math.inf
    lease_state: str = "active"
    clock_ms: Callable[[], int] = lambda: 0

    def settle(self, end: Reported | Again | Gone) -> None:
        if self.end is None:
            self.end = end
            self.ended.set()

    async def wait(self) -> Reported | Again | Gone:
        await self.ended.wait()
        assert self.end is not None
        return self.end

    def grant_record(self) -> NewRecord:
        return self._record(0)

    def end_record(self, end: Reported) -> NewRecord:
        states = {Outcome.SUCCEEDED: "completed", Outcome.CANCELLED: "cancelled"}
        self.lease_state = states.get(end.finished.outcome, "failed")
        return self._record(self.version or 1, error=end.finished.error)

    def ended_record(self, state: str, error: str) -> NewRecord:
        self.lease_state = state
        return self._record(self.version or 1, error=error)

    def _record(self, expect: int, error: str | None = None) -> NewRecord:
        place, message = self.message.place, self.message
        attributes: dict[str, Any] = {
            "leaseId": message.dispatch,
            "dispatchId": message.dispatch,
            "workerName": self.slot.worker,
            "modelType": message.model_type,
            "modelId": message.model_id,
            "methodName": message.method,
            "workflowName": place.workflow,
            "jobName": place.job,
            "stepName": place.step,
            "runId": place.run,
            "state": self.lease_state,
            "hasWrites": False,
            "fence": message.fence,
            "attempt": message.attempt,
            "createdAt": bookkeeping.iso(self.granted_ms),
        }
        if self.lease_state != "active":
            attributes["endedAt"] = bookkeeping.iso(self.clock_ms())
        if error:
            attributes["error"] = error
        return NewRecord(
            model_type=bookkeeping.STEP_LEASE,
            model_id=bookkeeping.LEASES_ID,
            model_name=bookkeeping.LEASES_MODEL,
            name=bookkeeping.lease_record(message.dispatch),
            spec="lease",
            content=json_content(attributes),
            keep=BOOKKEEPING_VERSIONS_KEPT,
            tags={"type": "resource"},
            owner=Owner(
                OwnerType.SYSTEM,
                ref=place.run,
                workflow_id=place.workflow_id,
                workflow=place.workflow,
                run=place.run,
                job=place.job,
                step=place.step,
                dispatch=message.dispatch,
                fence=message.fence,
            ),
            expect=expect,
        )


class Flights:
    def __init__(
        self,
        store: Store,
        logs: Path,
        tempo: Tempo,
        clock_ms: Callable[[], int],
        placing: Placing | None,
        reporter: "Reporter",
    ) -> None:
        self._store = store
        self._logs = logs
        self._tempo = tempo
        self._clock_ms = clock_ms
        self._placing = placing
        self._report = reporter
        self._flights: dict[str, Flight] = {}
        self._nursery: trio.Nursery

    async def watch(self) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await trio.sleep_forever()

    def open(
        self, message: Dispatch, slot: Slot, order: Order, state: "StepState", emit: Callable[[int, LogLine], None]
    ) -> Flight:
        spool = LogSpool(self._logs / message.dispatch, emit)
        flight = Flight(message, slot, order, state, spool, self._clock_ms(), clock_ms=self._clock_ms)
        self._flights[message.dispatch] = flight
        return flight

    def close(self, flight: Flight) -> None:
        self._flights.pop(flight.message.dispatch, None)

    def send(self, flight: Flight) -> None:
        member = flight.slot.member
        if member is None or member.link.closed:
            self._nursery.start_soon(self._end, flight, "expired", Again(trio.current_time(), "never sent", False))
            return
        place = flight.message.place
        self._report.info(
            "dispatching", step=place.step, workflow=place.workflow, worker=flight.slot.worker, dispatch=flight.message.dispatch[:8]
        )
        answer = member.link.ask(flight.message)
        self._nursery.start_soon(self._accepted, flight, answer)

    async def _accepted(self, flight: Flight, answer: Any) -> None:
        try:
            await answer.wait()
            flight.phase = "running"
        except Refused as refusal:
            flight.slot.release()
            await self._end(flight, "expired", Again(trio.current_time(), str(refusal), False))
        except Broken:
            return  # the link is gone: grace decides

    async def _end(self, flight: Flight, state: str, end: Again | Gone) -> None:
        if flight.end is not None:
            return
        reason = end.reason
        try:
            await commit(self._store, Batch((flight.ended_record(state, reason),)))
        except SwampError as error:
            self._report.warning("lease end not recorded", dispatch=flight.message.dispatch, error=str(error))
        flight.settle(end)

    def loopback_finished(self, flight: Flight, finished: Finished) -> Reported:
        return Reported(finished, lambda: None)

    def ask_cancel(self, flight: Flight, reason: str, term_s: float) -> None:
        member = flight.slot.member
        flight.cancel_reason = reason
        if member is None:
            return
        member.link.ask(CancelDispatch(flight.message.dispatch, flight.message.fence, reason, term_s))
        self._nursery.start_soon(self._await_cancel, flight, reason)

    async def _await_cancel(self, flight: Flight, reason: str) -> None:
        with trio.move_on_after(CANCEL_WAIT_S):
            await flight.ended.wait()
            return
        await self._end(flight, "cancelled", Gone(StepStatus.CANCELLED.value, reason, "cancelled", None))

    # ── what workers say ────────────────────────────────────────────────────────────────────────────────────────────
    async def worker_joined(
        self, member: "Member", held: tuple[HeldDispatch, ...], predecessor: Predecessor | None
    ) -> tuple[HeldVerdict, ...]:
        verdicts = []
        named = {one.dispatch for one in held}
        for one in held:
            flight = self._flights.get(one.dispatch)
            keep = flight is not None and flight.message.fence == one.fence and flight.end is None
            if flight is not None and keep:
                flight.slot.member = member
                flight.lost_at = math.inf
            verdicts.append(HeldVerdict(one.dispatch, Verdict.KEEP if keep else Verdict.DROP))
        for flight in list(self._flights.values()):
            if flight.slot.worker == member.name and flight.message.dispatch not in named:
                await self._lost(flight, f"worker {member.name!r} came back without it")
        return tuple(verdicts)

    def worker_left(self, member: "Member") -> None:
        for flight in list(self._flights.values()):
            if flight.slot.member is member:
                flight.phase, flight.lost_at = "suspended", trio.current_time()
                self._nursery.start_soon(self._grace, flight, member)

    async def _grace(self, flight: Flight, member: "Member") -> None:
        await trio.sleep(self._tempo.grace_s)
        if flight.slot.member is member and flight.end is None:
            await self._lost(flight, f"worker {member.name!r} did not come back within {self._tempo.grace_s:g} s")

    async def _lost(self, flight: Flight, reason: str) -> None:
        flight.slot.release()
        if flight.state.losses + 1 >= LOSSES_MAX:
            message = f"the step lost its worker {LOSSES_MAX} times; last: {reason}"
            await self._end(flight, "failed", Gone(StepStatus.FAILED.value, message, "worker_lost", None))
        else:
            await self._end(flight, "expired", Again(trio.current_time(), reason, True))

    def token_ended(self, member: "Member", why: RefusalCode) -> None:
        for flight in list(self._flights.values()):
            if flight.slot.member is member:
                self._nursery.start_soon(self._lost, flight, f"the token of worker {member.name!r} is {why.value}")

    async def finished(self, member: "Member", request: Request, finished: Finished) -> None:
        flight = self._flights.get(finished.dispatch)
        if flight is None or flight.message.fence != finished.fence or flight.end is not None:
            member.link.reply(request, FinishNoted(finished.dispatch, accepted=False))
            return
        flight.settle(Reported(finished, lambda: member.link.reply(request, FinishNoted(finished.dispatch, accepted=True))))

    def log_lines(self, member: "Member", lines: LogLines) -> None:
        flight = self._flights.get(lines.dispatch)
        if flight is not None and flight.message.fence == lines.fence and flight.spool.add(lines.first, lines.lines):
            self._nursery.start_soon(self._flush, member, flight)

    async def _flush(self, member: "Member", flight: Flight) -> None:
        through = await flight.spool.flush()
        member.link.post(LogNoted(flight.message.dispatch, through))
