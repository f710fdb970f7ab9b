"""What the control desk tells the engine about workers and their frames, passed on to the pool and to the flights."""

from typing import TYPE_CHECKING

from swamp_orch.engine.flights import Flights
from swamp_orch.engine.placing import Placing
from swamp_proto.envelope import Request
from swamp_proto.errors import RefusalCode
from swamp_proto.messages.dispatch import Finished, LogLines
from swamp_proto.messages.enrollment import HeldDispatch, HeldVerdict, Predecessor

if TYPE_CHECKING:
    from swamp_orch.gateway.control import Member, Reporter


class WorkerDispatches:
    """Implements `gateway.control.Dispatches`."""

    def __init__(self, flights: Flights, placing: Placing, reporter: "Reporter") -> None:
        self._flights = flights
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

    def token_ended(self, member: "Member", why: RefusalCode) -> None:
        self._flights.token_ended(member, why)

    async def finished(self, member: "Member", request: Request, finished: Finished) -> None:
        self._flights.finished(member, request, finished)

    def log_lines(self, member: "Member", lines: LogLines) -> None:
        self._flights.log_lines(member, lines)
