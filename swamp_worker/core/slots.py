"""Which dispatches occupy this worker, and whether another one fits.

Rules that hold here:

- A slot is taken when a dispatch is accepted and free when its process group is known empty: not when a
  cancel was sent, and not when a message said so. A group that could not be emptied keeps its slot:
  `STUCK`, and the capacity is reduced.
- A draining worker accepts nothing. A dispatch that came twice is accepted once.
- `accept_max` bounds how many are ever accepted (`--max-dispatches`): the one after the last is refused as
  draining.

It does not know results, links or clocks; what is held across a drop is `holdings`.
"""

from enum import StrEnum
from typing import Final

import attrs

from swamp_proto.errors import Bug, RefusalCode


class SlotState(StrEnum):
    TAKEN = "taken"  # accepted; runs, or is about to
    ENDING = "ending"  # was asked to end
    STUCK = "stuck"  # ended, and processes are left


@attrs.frozen
class Offered:
    dispatch: str


@attrs.frozen
class EndAsked:
    """By a cancel, a verdict, a give-up or a signal."""

    dispatch: str


@attrs.frozen
class Ended:
    """`left` counted by the operating system; None: unknown."""

    dispatch: str
    left: int | None


@attrs.frozen
class Emptied:
    """Nothing is left of a stuck one after all."""

    dispatch: str


@attrs.frozen
class DrainSet:
    draining: bool


Happening = Offered | EndAsked | Ended | Emptied | DrainSet


@attrs.frozen
class Accept:
    dispatch: str


@attrs.frozen
class AcceptAgain:
    """It is held already; nothing is started."""

    dispatch: str


@attrs.frozen
class Refuse:
    dispatch: str
    code: RefusalCode
    message: str


@attrs.frozen
class Unknown:
    """Nothing of that name is held."""

    dispatch: str


@attrs.frozen
class FreeSlot:
    dispatch: str


@attrs.frozen
class ReportStuck:
    dispatch: str
    left: int | None


Effect = Accept | AcceptAgain | Refuse | Unknown | FreeSlot | ReportStuck

FREE: Final = None
TRANSITIONS: Final[dict[tuple[SlotState | None, type[object]], frozenset[SlotState | None]]] = {
    (FREE, Offered): frozenset({SlotState.TAKEN, FREE}),  # FREE: refused
    (SlotState.TAKEN, Offered): frozenset({SlotState.TAKEN}),
    (SlotState.ENDING, Offered): frozenset({SlotState.ENDING}),
    (SlotState.STUCK, Offered): frozenset({SlotState.STUCK}),
    (FREE, EndAsked): frozenset({FREE}),
    (SlotState.TAKEN, EndAsked): frozenset({SlotState.ENDING}),
    (SlotState.ENDING, EndAsked): frozenset({SlotState.ENDING}),
    (SlotState.STUCK, EndAsked): frozenset({SlotState.STUCK}),
    (SlotState.TAKEN, Ended): frozenset({FREE, SlotState.STUCK}),
    (SlotState.ENDING, Ended): frozenset({FREE, SlotState.STUCK}),
    (SlotState.STUCK, Emptied): frozenset({FREE}),
}


class Slots:
    """`capacity` slots; see the module for the rules."""

    def __init__(self, capacity: int, accept_max: int | None = None) -> None:
        self.capacity = capacity
        self.draining = False
        self.accepted = 0
        self._accept_max = accept_max
        self._slots: dict[str, SlotState] = {}

    @property
    def taken(self) -> dict[str, SlotState]:
        """What occupies slots now, oldest first. A copy."""
        return dict(self._slots)

    @property
    def is_spent(self) -> bool:
        """Whether `accept_max` is reached."""
        return self._accept_max is not None and self.accepted >= self._accept_max

    def next_deadline(self) -> None:
        """No state here ends by a clock: an execution has its own timeout, and its holder its own give-up."""

    def handle(self, event: Happening) -> tuple[Effect, ...]:
        """Raises Bug for an event that cannot happen now."""
        if isinstance(event, DrainSet):
            self.draining = event.draining
            return ()
        before = self._slots.get(event.dispatch)
        allowed = TRANSITIONS.get((before, type(event)))
        if allowed is None:
            raise Bug(f"slots: {event} while {before.value if before else 'free'}")
        effects = self._apply(event, before)
        if self._slots.get(event.dispatch) not in allowed:
            raise Bug(f"slots: {event} made {self._slots.get(event.dispatch)}")
        self.check()
        return effects

    def check(self) -> None:
        """Invariants."""
        assert len(self._slots) <= self.capacity
        assert self._accept_max is None or self.accepted <= self._accept_max

    def _apply(self, event: Happening, before: SlotState | None) -> tuple[Effect, ...]:
        match event:
            case Offered(dispatch):
                return (self._offer(dispatch, before),)
            case EndAsked(dispatch):
                if before is None:
                    return (Unknown(dispatch),)
                if before is SlotState.TAKEN:
                    self._slots[dispatch] = SlotState.ENDING
                return ()
            case Ended(dispatch, left):
                if left == 0:
                    del self._slots[dispatch]
                    return (FreeSlot(dispatch),)
                self._slots[dispatch] = SlotState.STUCK
                return (ReportStuck(dispatch, left),)
            case Emptied(dispatch):
                del self._slots[dispatch]
                return (FreeSlot(dispatch),)
            case _:
                raise Bug(f"slots: {event}")

    def _offer(self, dispatch: str, before: SlotState | None) -> Effect:
        if before is not None:
            return AcceptAgain(dispatch)
        if self.draining or self.is_spent:
            return Refuse(dispatch, RefusalCode.DRAINING, "the worker is draining and takes nothing new")
        if len(self._slots) >= self.capacity:
            message = f"the worker is at capacity ({len(self._slots)}/{self.capacity} slots in use)"
            return Refuse(dispatch, RefusalCode.BUSY, message)
        self._slots[dispatch] = SlotState.TAKEN
        self.accepted += 1
        return Accept(dispatch)
