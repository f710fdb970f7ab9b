"""A control link with weather: two ends, each with the real session rules, and a wire that delays, stalls,
breaks, and lies still.

A link is a stream, as its transport is: frames of one direction arrive in order or not at all. The weather
decides how long they take, whether a direction is blocked (a partition, a half-open socket), and which end
notices when it breaks. With `wire` every frame travels as bytes through the real codec.
"""

from collections.abc import Callable
from typing import Any

from swamp_proto import codec
from swamp_proto.envelope import Event, Failure, FailureBody, Frame, Request, Response
from swamp_proto.errors import Broken, LimitExceeded, RefusalCode, RemoteError
from swamp_proto.messages import RULE_BY_BODY, Side
from swamp_proto.session import Answered, Asked, Session, State, Told

from .loop import Loop, Process

Reply = Response | Failure
OnReply = Callable[[Reply | None], None]


class End:
    """One end of a link, as its process sees it."""

    def __init__(self, wire: "Wire", side: Side, owner: Process) -> None:
        self.wire = wire
        self.side = side
        self.owner = owner
        self.session = Session(side)
        self.closed = False
        self.frames_read = 0
        self.on_frame: Callable[[Request | Event], None] = lambda frame: None
        self.on_close: Callable[[str], None] = lambda reason: None
        self._asked: dict[int, OnReply] = {}
        self._early: list[Frame] = []  # said before the enrollment was answered
        self._next_id = 1

    def post(self, body: Any) -> None:
        self._send(Event(body))

    def ask(self, body: Any, on_reply: OnReply = lambda reply: None) -> None:
        """`on_reply` gets the answer; None when the link ends without one."""
        if self.closed:
            on_reply(None)
            return
        request = Request(self._next_id, body)
        self._next_id += 1
        self._asked[request.id] = on_reply
        self._send(request)

    def reply(self, request: Request, body: Any) -> None:
        self._send(Response(request.id, body, RULE_BY_BODY[type(request.body)].name))

    def refuse(
        self, request: Request, code: RefusalCode, message: str, retry_after_s: float | None = None
    ) -> None:
        name = RULE_BY_BODY[type(request.body)].name
        self._send(Failure(request.id, name, FailureBody(code, message, retry_after_s)))

    def _send(self, frame: Frame) -> None:
        if self.closed:
            return
        if (
            self.side is Side.ORCHESTRATOR
            and self.session.state is State.ENROLLING
            and not isinstance(frame, Response | Failure)
        ):
            self._early.append(frame)
            return
        self.owner.effect()
        try:
            self.session.send(frame)
        except (LimitExceeded, Broken):
            self.close("the session is over")
            return
        self.wire.carry(self, frame)
        early, self._early = self._early, []
        for waiting in early:
            self._send(waiting)

    def take(self, frame: Frame) -> None:
        """A frame has arrived."""
        if self.closed or not self.owner.alive:
            return
        self.frames_read += 1
        try:
            happened = self.session.receive(frame)
        except RemoteError as error:
            raise AssertionError(f"{self.side.value} was sent an unlawful frame: {error}") from error
        for one in happened:
            match one:
                case Asked(request=request):
                    self.on_frame(request)
                case Told(event=event):
                    self.on_frame(event)
                case Answered(request=request, reply=reply):
                    self._asked.pop(request.id)(reply)

    def close(self, reason: str, *, tell: bool = True) -> None:
        """This end is over; the other one hears of it if the weather lets it."""
        if self.closed:
            return
        self.closed = True
        self.session.end()
        asked, self._asked = self._asked, {}
        if tell:
            self.wire.closed_by(self)
        for on_reply in asked.values():
            on_reply(None)
        self.on_close(reason)


class Wire:
    """What lies between two ends."""

    def __init__(
        self,
        loop: Loop,
        worker: Process,
        orchestrator: Process,
        delay: Callable[[], float],
        blocked_until: Callable[[Side], float],
        *,
        as_bytes: bool,
    ) -> None:
        self._loop = loop
        self._delay = delay
        self._blocked_until = blocked_until
        self._as_bytes = as_bytes
        self.ends = {Side.WORKER: End(self, Side.WORKER, worker)}
        self.ends[Side.ORCHESTRATOR] = End(self, Side.ORCHESTRATOR, orchestrator)
        self._last = {Side.WORKER: 0.0, Side.ORCHESTRATOR: 0.0}  # when the newest frame of a sender arrives
        self.mute = {Side.WORKER: False, Side.ORCHESTRATOR: False}  # half-open: what it sends is lost

    def other(self, end: End) -> End:
        return self.ends[Side.ORCHESTRATOR if end.side is Side.WORKER else Side.WORKER]

    def _arrival(self, sender: Side) -> float:
        when = max(self._loop.now + self._delay(), self._blocked_until(sender) + self._delay())
        when = self._last[sender] = max(when, self._last[sender])
        return when

    def carry(self, end: End, frame: Frame) -> None:
        if self.mute[end.side]:
            return
        to = self.other(end)
        if self._as_bytes:
            frame = codec.decode(codec.encode(frame))
        self._loop.at(self._arrival(end.side), to.owner, self._deliver, end.side, to, frame)

    def _deliver(self, sender: Side, to: End, frame: Frame) -> None:
        if not self.mute[sender]:
            to.take(frame)

    def closed_by(self, end: End) -> None:
        if not self.mute[end.side]:
            to = self.other(end)
            self._loop.at(self._arrival(end.side), to.owner, to.close, "the connection was closed")

    def died(self, side: Side) -> None:
        """The process of one end is gone: its system closes the socket, if the wire carries that."""
        end = self.ends[side]
        end.closed = True
        self.closed_by(end)

    def cut(self, notice: dict[Side, float]) -> None:
        """Broken: nothing passes any more. Each end notices after its own time; missing: only by silence."""
        self.mute = {Side.WORKER: True, Side.ORCHESTRATOR: True}
        for side, delay_s in notice.items():
            end = self.ends[side]
            self._loop.after(delay_s, end.owner, end.close, "the connection was lost")
