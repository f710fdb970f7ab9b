"""The rules of a control session: which frame is lawful when, and from whom. One machine for both ends.

Rules
- Every frame goes through it, sent or received. The machine looks at *who sends*, never at which end it is:
  `Session` is told its side once and takes the other one for what it receives.
- `TRANSITIONS` is the law of states, `PERMITTED` that of requests and events; a reply is lawful when it
  answers an open request of the other side, by id, name and class, once.
- One enrollment per socket, and it comes first. A refused enrollment ends the session.
- A farewell is the orchestrator's last frame. After it the session is `DRAINING`: what the worker sent before
  it knew is still lawful and still read, until somebody closes. (A worker that takes no new steps is another
  matter: that is `worker.drain`, and it changes nothing here, because a `dispatch.start` may be on its way
  already and is refused.)
- Ids of one sender grow. A cancel names a request that was sent; that it was answered meanwhile is no fault.
- An unlawful frame ends the session: received, it is `UnlawfulMessage`, whose code goes into the farewell;
  sent, it is a `Bug`, and it must not leave.

It knows no bytes, no clock and no socket. How long a state may last is its owner's business (`limits.py`).
"""

from enum import Enum
from typing import Any, Final

import attrs

from swamp_proto.envelope import Cancel, Event, Failure, Frame, Request, Response
from swamp_proto.errors import Broken, Bug, LimitExceeded, UnlawfulMessage
from swamp_proto.limits import REQUESTS_OUTSTANDING_MAX
from swamp_proto.messages import RULE_BY_BODY, RULES, Rule, Side
from swamp_proto.messages.enrollment import Enroll, Farewell


class State(Enum):
    OPENING = "opening"  # the socket is open, nothing was said
    ENROLLING = "enrolling"  # worker.enroll was sent, and is not answered
    OPEN = "open"
    DRAINING = "draining"  # the farewell was said
    CLOSED = "closed"


class Happening(Enum):
    ENROLL_ASKED = "enroll asked"
    ENROLLED = "enrolled"
    ENROLL_REFUSED = "enroll refused"
    FAREWELL = "farewell"
    ENDED = "ended"  # the socket closed, or an unlawful frame


TRANSITIONS: Final[dict[tuple[State, Happening], State]] = {
    (State.OPENING, Happening.ENROLL_ASKED): State.ENROLLING,
    (State.OPENING, Happening.FAREWELL): State.DRAINING,
    (State.OPENING, Happening.ENDED): State.CLOSED,
    (State.ENROLLING, Happening.ENROLLED): State.OPEN,
    (State.ENROLLING, Happening.ENROLL_REFUSED): State.CLOSED,
    (State.ENROLLING, Happening.FAREWELL): State.DRAINING,
    (State.ENROLLING, Happening.ENDED): State.CLOSED,
    (State.OPEN, Happening.FAREWELL): State.DRAINING,
    (State.OPEN, Happening.ENDED): State.CLOSED,
    (State.DRAINING, Happening.ENROLL_ASKED): State.DRAINING,  # it crossed the farewell
    (State.DRAINING, Happening.ENDED): State.CLOSED,
    (State.CLOSED, Happening.ENDED): State.CLOSED,
}


def _bodies(sender: Side, *, enrolled: bool) -> frozenset[type[Any]]:
    """Requests and events that `sender` may send before or after enrollment."""
    early: tuple[type[Any], ...] = (Enroll, Farewell)
    return frozenset(
        rule.body
        for rule in RULES
        if sender in rule.senders and (rule.body is not Enroll if enrolled else rule.body in early)
    )


_W: Final = Side.WORKER
_O: Final = Side.ORCHESTRATOR
_NOTHING: Final[frozenset[type[Any]]] = frozenset()

PERMITTED: Final[dict[State, dict[Side, frozenset[type[Any]]]]] = {
    State.OPENING: {_W: _bodies(_W, enrolled=False), _O: _bodies(_O, enrolled=False)},
    State.ENROLLING: {_W: _NOTHING, _O: _bodies(_O, enrolled=False)},
    State.OPEN: {_W: _bodies(_W, enrolled=True), _O: _bodies(_O, enrolled=True)},
    State.DRAINING: {_W: _bodies(_W, enrolled=True) | {Enroll}, _O: _NOTHING},
    State.CLOSED: {_W: _NOTHING, _O: _NOTHING},
}
"""Requests and events by state and sender. Replies and cancels follow from the requests."""


# ── what a frame meant ──────────────────────────────────────────────────────────────────────────────────────


@attrs.frozen
class Asked:
    """The peer wants an answer to `request`: exactly one, also after `Withdrawn`."""

    request: Request


@attrs.frozen
class Answered:
    """The peer answered `request`, which this side had sent, with `reply`."""

    request: Request
    reply: Response | Failure


@attrs.frozen
class Told:
    """The peer sent an event."""

    event: Event


@attrs.frozen
class Withdrawn:
    """The peer no longer waits for the answer to its request `id`, which is still due."""

    id: int


@attrs.frozen
class Moved:
    """The session is in another state now; also said of what this side sent."""

    state: State


Happened = Asked | Answered | Told | Withdrawn | Moved


class _Unlawful(Exception):
    """Why a frame is not lawful, without its content."""


@attrs.define
class _Direction:
    """What one side has asked."""

    sender: Side
    last_id: int = 0
    open: dict[int, tuple[Request, Rule]] = attrs.field(factory=dict)


class Session:
    """The state of one control session, as seen from `side`. `send` and `receive` keep it; neither waits."""

    def __init__(self, side: Side) -> None:
        other = _O if side is _W else _W
        self._ours = _Direction(side)
        self._theirs = _Direction(other)
        self._state = State.OPENING
        self._enroll_seen = False

    @property
    def state(self) -> State:
        return self._state

    @property
    def unanswered(self) -> tuple[Request, ...]:
        """Requests of this side that have no answer yet, oldest first."""
        return tuple(request for request, _ in self._ours.open.values())

    @property
    def due(self) -> tuple[Request, ...]:
        """Requests of the peer that this side has not answered yet, oldest first."""
        return tuple(request for request, _ in self._theirs.open.values())

    def next_id(self) -> int:
        """The id for this side's next request."""
        return self._ours.last_id + 1

    def send(self, frame: Frame) -> tuple[Happened, ...]:
        """Note that this side sends `frame` now.

        Raises `LimitExceeded` when too many requests are unanswered (nothing has changed then), `Broken` on a
        session that is closed, and `Bug` for what is not lawful.
        """
        if self._state is State.CLOSED:
            raise Broken("the control session is closed")
        if isinstance(frame, Request) and len(self._ours.open) >= REQUESTS_OUTSTANDING_MAX:
            raise LimitExceeded(f"{REQUESTS_OUTSTANDING_MAX} requests are unanswered on this link")
        before = self._state
        try:
            self._apply(frame, self._ours, self._theirs)
        except _Unlawful as why:
            raise Bug(f"{self._ours.sender.value} would send an unlawful frame: {why}") from None
        return () if self._state is before else (Moved(self._state),)

    def receive(self, frame: Frame) -> tuple[Happened, ...]:
        """Take `frame` from the peer and say what it means; a state that changed comes last.

        Raises `UnlawfulMessage`, and the session is closed; everything after that is unlawful too.
        """
        before = self._state
        try:
            happened = self._apply(frame, self._theirs, self._ours)
        except _Unlawful as why:
            self._state = State.CLOSED
            raise UnlawfulMessage(f"unlawful message from the {self._theirs.sender.value}: {why}") from None
        if self._state is not before:
            return (happened, Moved(self._state)) if happened is not None else (Moved(self._state),)
        return (happened,) if happened is not None else ()

    def end(self) -> tuple[Happened, ...]:
        """The socket has closed, from whichever side. What is in `unanswered` will never be answered."""
        before = self._state
        self._move(Happening.ENDED)
        return () if self._state is before else (Moved(self._state),)

    # ── one frame ───────────────────────────────────────────────────────────────────────────────────────────

    def _apply(self, frame: Frame, sender: _Direction, other: _Direction) -> Happened | None:
        if isinstance(frame, Request):
            return self._request(frame, sender)
        if isinstance(frame, Event):
            return self._event(frame, sender)
        if isinstance(frame, Cancel):
            return self._cancel(frame, sender)
        return self._reply(frame, sender, other)

    def _request(self, frame: Request, sender: _Direction) -> Happened:
        rule = self._permitted(frame.body, sender)
        if rule.reply is None:
            raise _Unlawful(f"{rule.name} is an event, sent as a request")
        if frame.id <= sender.last_id:
            raise _Unlawful(f"{rule.name} has an id that is not greater than the last one")
        if len(sender.open) >= REQUESTS_OUTSTANDING_MAX:
            raise _Unlawful(f"more than {REQUESTS_OUTSTANDING_MAX} unanswered requests")
        if rule.body is Enroll:
            if self._enroll_seen:
                raise _Unlawful("a second worker.enroll on one socket")
            self._enroll_seen = True
            self._move(Happening.ENROLL_ASKED)
        sender.last_id = frame.id
        sender.open[frame.id] = (frame, rule)
        return Asked(frame)

    def _event(self, frame: Event, sender: _Direction) -> Happened:
        rule = self._permitted(frame.body, sender)
        if rule.reply is not None:
            raise _Unlawful(f"{rule.name} is a request, sent as an event")
        if rule.body is Farewell:
            self._move(Happening.FAREWELL)
        return Told(frame)

    def _cancel(self, frame: Cancel, sender: _Direction) -> Happened | None:
        self._refuse_silenced("a cancel", sender)
        if not 0 < frame.id <= sender.last_id:
            raise _Unlawful("a cancel of a request that was never sent")
        found = sender.open.get(frame.id)
        if found is None:
            return None  # the answer crossed it
        if found[1].body is Enroll:
            raise _Unlawful("a cancel of worker.enroll; close the socket instead")
        return Withdrawn(frame.id)

    def _reply(self, frame: Response | Failure, sender: _Direction, other: _Direction) -> Happened:
        self._refuse_silenced("an answer", sender)
        found = other.open.get(frame.id)
        if found is None:
            raise _Unlawful("an answer to a request that is not open")
        request, rule = found
        if frame.name != rule.name:
            raise _Unlawful(f"an answer that names another request than {rule.name}")
        if isinstance(frame, Response) and type(frame.body) is not rule.reply:
            raise _Unlawful(f"an answer to {rule.name} of another class than its reply")
        del other.open[frame.id]
        if rule.body is Enroll:
            self._move(Happening.ENROLLED if isinstance(frame, Response) else Happening.ENROLL_REFUSED)
        return Answered(request, frame)

    def _refuse_silenced(self, word: str, sender: _Direction) -> None:
        if self._state is State.CLOSED or (self._state is State.DRAINING and sender.sender is _O):
            raise _Unlawful(f"{word} from the {sender.sender.value} while the session is {self._state.value}")

    def _permitted(self, body: Any, sender: _Direction) -> Rule:
        kind = type(body)
        if kind not in PERMITTED[self._state][sender.sender]:
            rule = RULE_BY_BODY.get(kind)
            name = "a body that is no message" if rule is None else rule.name
            raise _Unlawful(f"{name} from the {sender.sender.value} while the session is {self._state.value}")
        return RULE_BY_BODY[kind]

    def _move(self, happening: Happening) -> None:
        target = TRANSITIONS.get((self._state, happening))
        if target is None:
            raise Bug(f"no transition from {self._state.value} on {happening.value}")
        self._state = target
