"""What the control desk tells the engine about workers and their frames, passed on to the pool and to the flights."""

from typing import TYPE_CHECKING

from swamp_orch.engine.desk import StepDesk
from swamp_orch.engine.flights import Flights
from swamp_orch.engine.placing import Placing
from swamp_proto.envelope import Request
from swamp_proto.errors import LimitExceeded, RefusalCode, SwampError, Unsupported
from swamp_proto.messages.capability import Call, CallAnswer, CallCode
from swamp_proto.messages.dispatch import Finished, LogLines
from swamp_proto.messages.enrollment import HeldDispatch, HeldVerdict, Predecessor

if TYPE_CHECKING:
    from swamp_orch.gateway.control import Member, Reporter


class WorkerDispatches:
    """Implements `gateway.control.Dispatches`."""

    def __init__(self, flights: Flights, placing: Placing, desk: StepDesk, reporter: "Reporter") -> None:
        self._flights = flights
        self._desk = desk
        self._placing = placing
        self._report = reporter

    async def worker_joined(
        self, member: "Member", held: tuple[HeldDispatch, ...], predecessor: Predecessor | None
    ) -> tuple[HeldVerdict, ...]:
        """Decide about what the worker holds; durable when this returns."""
        return await self._flights.worker_joined(member, held, predecessor)

    def worker_ready(self, member: "Member") -> None:
        """Its enrollment is answered: steps may be placed on it, in this very call."""
        self._placing.worker_up(member)

    def worker_left(self, member: "Member") -> None:
        self._placing.worker_down(member)
        self._flights.worker_left(member)

    def worker_changed(self, member: "Member") -> None:
        self._placing.worker_changed(member)

    def enroll_queued(self, worker: str, instance: str) -> None:
        """An enrollment waits for its verification: that is not held against what the worker holds."""
        self._flights.enroll_queued(worker, instance)

    def identity_busy(self, worker: str, instance: str, *, reaped: bool) -> float | None:
        return self._flights.identity_busy(worker, instance, reaped=reaped)

    def mints_at_work(self) -> frozenset[tuple[str, str]]:
        """Token name and mint id of every lease that has not ended."""
        return self._flights.mints_at_work()

    def token_ended(self, mint_id: str, why: RefusalCode) -> None:
        self._flights.token_ended(mint_id, why)

    async def finished(self, member: "Member", request: Request, finished: Finished) -> None:
        self._flights.finished(member, request, finished)

    def called(self, member: "Member", request: Request, call: Call) -> None:
        """A capability call: answered by a task of its own, so that the link goes on being read."""
        self._flights.spawn(self._answer, member, request, call)

    async def _answer(self, member: "Member", request: Request, call: Call) -> None:
        answer = await self._desk.call(call, member.state.name)
        try:
            member.link.reply(request, answer)
        except (LimitExceeded, Unsupported) as error:  # no frame can hold it
            text = f"{call.verb.value}: the answer cannot be sent: {error.message}"
            member.link.reply(request, CallAnswer(call.dispatch, call.number, CallCode.TOO_LARGE, text, {}))
        except SwampError:
            return  # the link is gone: the worker asks again on the next one

    def log_lines(self, member: "Member", lines: LogLines) -> None:
        self._flights.log_lines(member, lines)
