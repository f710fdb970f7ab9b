"""The capability calls of running steps: which are open, which may be sent next, which are sent again.

Rules that hold here:

- A call is open from the moment it is asked until it is answered, withdrawn by whoever asked, or its dispatch is
  closed. It keeps its number: said again, it is the same call.
- A new link begins with nothing sent: every open call whose dispatch was kept is sent again, oldest first.
- "Not now" is no answer: the call rests (full jitter, doubling; a hint is waited for first) and is sent again, for as long
  as its dispatch is open.
- A closed dispatch has no open call, and gets none: whatever is asked under it is refused.
- Dispatches take turns. At most `CALLS_PER_DISPATCH_MAX` calls of one are open, and at most `CALLS_PER_LINK_MAX` of all are
  unanswered on a link: heartbeats and ends find room beside them.

It does not know what a call says, what an answer means, sockets or clocks; `draw` is passed in.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Final

import attrs

from swamp_proto.errors import Bug
from swamp_proto.limits import (
    CALL_REST_S_MAX,
    CALL_REST_S_MIN,
    CALLS_PER_DISPATCH_MAX,
    CALLS_PER_LINK_MAX,
)


class State(StrEnum):
    WAITING = "waiting"  # for a link that takes it
    SENT = "sent"  # on this link, and not answered
    RESTING = "resting"  # put off, until `Rested`


# ── events ──────────────────────────────────────────────────────────────────────────────────────────────────


@attrs.frozen
class Asked:
    dispatch: str
    number: int


@attrs.frozen
class Sent:
    dispatch: str
    number: int


@attrs.frozen
class Answered:
    """Done, or refused for good."""

    dispatch: str
    number: int


@attrs.frozen
class PutOff:
    """Answered with "not now"."""

    dispatch: str
    number: int
    retry_after_s: float | None = None


@attrs.frozen
class Rested:
    """The pause of a `RestFor` is over."""

    dispatch: str
    number: int


@attrs.frozen
class Withdrawn:
    """Nobody waits for it any more."""

    dispatch: str
    number: int


@attrs.frozen
class LinkDown:
    pass


@attrs.frozen
class Closed:
    """Given up, dropped by its verdict, or over: nothing is said under this dispatch any more."""

    dispatch: str


@attrs.frozen
class Forgotten:
    """Nothing of the dispatch is held."""

    dispatch: str


Happening = Asked | Sent | Answered | PutOff | Rested | Withdrawn | LinkDown | Closed | Forgotten


# ── effects ─────────────────────────────────────────────────────────────────────────────────────────────────


@attrs.frozen
class RestFor:
    dispatch: str
    number: int
    pause_s: float


@attrs.frozen
class Refuse:
    """Tell whoever asked that nothing is admitted any more."""

    dispatch: str
    number: int


Effect = RestFor | Refuse

TRANSITIONS: Final[dict[tuple[State | None, type[object]], State | None]] = {
    (None, Asked): State.WAITING,
    (State.WAITING, Sent): State.SENT,
    (State.SENT, Answered): None,
    (State.SENT, PutOff): State.RESTING,
    (State.RESTING, Rested): State.WAITING,
    (State.WAITING, Withdrawn): None,
    (State.SENT, Withdrawn): None,
    (State.RESTING, Withdrawn): None,
    (State.SENT, LinkDown): State.WAITING,
    (State.WAITING, LinkDown): State.WAITING,
    (State.RESTING, LinkDown): State.RESTING,
    (State.WAITING, Closed): None,
    (State.SENT, Closed): None,
    (State.RESTING, Closed): None,
}
"""Of one call. A call asked under a closed dispatch is refused at once and was never open."""


@attrs.define
class _Call:
    state: State
    put_off: int = 0  # times in a row


class Calls:
    """`handle` an event and get what to do; see the module for the rules."""

    def __init__(self, draw: Callable[[], float]) -> None:
        self._draw = draw  # evenly from [0, 1)
        self._open: dict[str, dict[int, _Call]] = {}
        self._closed: set[str] = set()
        self._sent = 0
        self._turn: str | None = None  # whose call went last

    # ── what others ask ─────────────────────────────────────────────────────────────────────────────────────
    def open_of(self, dispatch: str) -> int:
        """How many calls of a dispatch are open."""
        return len(self._open.get(dispatch, ()))

    def state(self, dispatch: str, number: int) -> State | None:
        call = self._open.get(dispatch, {}).get(number)
        return call.state if call else None

    def is_closed(self, dispatch: str) -> bool:
        return dispatch in self._closed

    def sendable(self) -> tuple[str, int] | None:
        """Dispatch and number of the call for the link to take next."""
        if not self._open or self._sent >= CALLS_PER_LINK_MAX:
            return None
        names = list(self._open)
        if self._turn in self._open:
            turn = names.index(self._turn) + 1
            names = names[turn:] + names[:turn]
        for name in names:
            for number, call in self._open[name].items():
                if call.state is State.WAITING:
                    return name, number
        return None

    # ── events ──────────────────────────────────────────────────────────────────────────────────────────────
    def handle(self, event: Happening) -> tuple[Effect, ...]:
        """Raises Bug for an event that cannot happen now."""
        effects = self._apply(event)
        self.check()
        return effects

    def check(self) -> None:
        """Invariants."""
        sent = 0
        for name, calls in self._open.items():
            assert calls
            assert len(calls) <= CALLS_PER_DISPATCH_MAX
            assert name not in self._closed
            sent += sum(call.state is State.SENT for call in calls.values())
        assert sent == self._sent <= CALLS_PER_LINK_MAX

    def _apply(self, event: Happening) -> tuple[Effect, ...]:
        match event:
            case Asked(dispatch, number):
                if dispatch in self._closed:
                    return (Refuse(dispatch, number),)
                if self.open_of(dispatch) >= CALLS_PER_DISPATCH_MAX:
                    raise Bug(f"calls: {event} with {CALLS_PER_DISPATCH_MAX} open")
                self._move(event, dispatch, number)
            case Sent(dispatch, number):
                self._move(event, dispatch, number)
                self._turn = dispatch
            case Answered(dispatch, number) | Withdrawn(dispatch, number) | Rested(dispatch, number):
                self._move(event, dispatch, number)
            case PutOff(dispatch, number, retry_after_s):
                call = self._move(event, dispatch, number)
                ceiling_s = min(CALL_REST_S_MAX, CALL_REST_S_MIN * 2.0 ** min(call.put_off, 30))
                call.put_off += 1
                return (RestFor(dispatch, number, (retry_after_s or 0.0) + ceiling_s * self._draw()),)
            case LinkDown():
                for dispatch, calls in self._open.items():
                    for number in calls:
                        self._move(event, dispatch, number)
            case Closed(dispatch):
                numbers = tuple(self._open.get(dispatch, ()))
                for number in numbers:
                    self._move(event, dispatch, number)
                self._closed.add(dispatch)
                return tuple(Refuse(dispatch, number) for number in numbers)
            case Forgotten(dispatch):
                if dispatch in self._open:
                    raise Bug(f"calls: {event} with open calls")
                self._closed.discard(dispatch)
        return ()

    def _move(self, event: object, dispatch: str, number: int) -> _Call:
        calls = self._open.get(dispatch, {})
        call = calls.get(number)
        before = call.state if call else None
        key = (before, type(event))
        if key not in TRANSITIONS:
            raise Bug(f"calls: {event} while {before.value if before else 'not open'}")
        after = TRANSITIONS[key]
        self._sent += (after is State.SENT) - (before is State.SENT)
        if call is None:
            assert after is not None
            call = self._open.setdefault(dispatch, {})[number] = _Call(after)
        elif after is None:
            del calls[number]
            if not calls:
                del self._open[dispatch]
        else:
            call.state = after
        return call
