"""One control link as the worker sees it: frames out, frames in, replies to whoever asked.

Rules that hold here:

- Every frame passes the session rules (`swamp_proto.session`) in the order in which it leaves or arrives;
  an unlawful or malformed one ends the link, never the worker.
- `post`, `ask`, `reply` and `refuse` never wait: they queue, and one writer sends. When the queue is empty
  the writer asks its `feed` for more, so that log lines are made into frames only as fast as the peer
  reads, and never delay a heartbeat.
- A queue of `OUTBOX_FRAMES_MAX` frames means that the peer does not read: the link ends.
- A reply is handed to the callback of its request; when the link ends first, the callback is never called.
  What must survive a link is held elsewhere (`core.holdings`).

It does not know what a dispatch is, and keeps no time.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Final

import trio

from swamp_proto import codec
from swamp_proto.envelope import Event, Failure, FailureBody, Frame, Request, Response
from swamp_proto.errors import (
    Broken,
    LimitExceeded,
    MalformedMessage,
    RefusalCode,
    Refused,
    RemoteError,
    Unsupported,
)
from swamp_proto.limits import BUNDLE_BYTES_MAX, BUNDLE_FRAMES_MAX, LOG_FRAME_BYTES, OUTBOX_FRAMES_MAX
from swamp_proto.messages import RULE_BY_BODY, Side
from swamp_proto.messages.dispatch import Accepted, LogLines
from swamp_proto.messages.enrollment import Enroll, Enrolled, Farewell
from swamp_proto.session import Answered, Asked, Session, Told
from swamp_proto.trio_io import MessagePipe, PipeBroken

ACCEPTED_WAITS_S: Final = 0.003
"""That a step was accepted waits this long for its end, which says the same and more."""

Reply = Response | Failure
OnReply = Callable[[Reply], None]
Handler = Callable[[Request | Event], None]


class LinkEnded(Broken):
    """Why a link is over; `retry_after_s` is the server's hint."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Link:
    """Use: `enroll`, then `run` until it raises `LinkEnded`. Everything else is called from other tasks
    meanwhile.
    """

    def __init__(self, pipe: MessagePipe, feed: Callable[["Link"], Frame | None]) -> None:
        self._pipe = pipe
        self._feed = feed
        self._session = Session(Side.WORKER)
        self._outbox: deque[Frame] = deque()
        self._large: bytes | None = None  # an encoded frame that waits to travel alone
        self._waiting: dict[int, OnReply] = {}
        self._writer = trio.lowlevel.ParkingLot()
        self._farewell: Farewell | None = None
        self._scope = trio.CancelScope()
        self._ended: LinkEnded | None = None

    # ── before anything else ────────────────────────────────────────────────────────────────────────────────
    async def enroll(self, body: Enroll) -> Enrolled:
        """Ask to be let in. Raises `Refused`, or `LinkEnded` when no lawful answer comes."""
        request = Request(self._session.next_id(), body)
        self._session.send(request)
        try:
            await self._pipe.send(codec.encode(request))
            while True:
                for happened in self._session.receive(codec.decode(await self._pipe.receive())):
                    match happened:
                        case Answered(reply=Response(body=Enrolled() as enrolled)):
                            return enrolled
                        case Answered(reply=Failure(failure=failure)):
                            raise Refused(failure.code, failure.message, retry_after_s=failure.retry_after_s)
                        case Told(event=Event(body=Farewell() as farewell)):
                            raise Refused(
                                farewell.code, farewell.message, retry_after_s=farewell.retry_after_s
                            )
        except PipeBroken as broken:
            raise LinkEnded(_goodbye(broken)) from None
        except RemoteError as error:
            raise await self._unlawful(error) from None

    # ── while it is open ────────────────────────────────────────────────────────────────────────────────────
    async def run(self, handler: Handler) -> None:
        """Read and write until the link is over. Always raises `LinkEnded`; `handler` must not raise
        SwampError.
        """
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                await self._read(handler)
        assert self._ended is not None
        raise self._ended

    def end(self, reason: str, retry_after_s: float | None = None) -> None:
        """End it from this side; the first reason stays."""
        if self._ended is None:
            self._ended = LinkEnded(reason, retry_after_s)
        self._scope.cancel()

    def post(self, body: Any) -> None:
        """An event."""
        self._queue(Event(body))

    def ask(self, body: Any, on_reply: OnReply) -> None:
        """A request."""
        self._queue(self.request(body, on_reply))

    def request(self, body: Any, on_reply: OnReply) -> Request:
        """A request for the feed to hand over itself. It must be sent next."""
        request = Request(self._session.next_id(), body)
        self._waiting[request.id] = on_reply
        return request

    def reply(self, request: Request, body: Any) -> None:
        self._queue(Response(request.id, body, RULE_BY_BODY[type(request.body)].name))

    def refuse(
        self, request: Request, code: RefusalCode, message: str, retry_after_s: float | None = None
    ) -> None:
        body = FailureBody(code, message, retry_after_s)
        self._queue(Failure(request.id, RULE_BY_BODY[type(request.body)].name, body))

    def wake(self) -> None:
        """The feed has something."""
        self._writer.unpark()

    def _queue(self, frame: Frame) -> None:
        if self._ended is not None:
            return
        if len(self._outbox) >= OUTBOX_FRAMES_MAX:
            self.end("the orchestrator does not read: too many frames wait")
            return
        try:
            self._session.send(frame)
        except LimitExceeded as error:
            self.end(error.message)
            return
        except Broken as error:
            self.end(error.message)
            return
        self._outbox.append(frame)
        self._writer.unpark()

    async def _write(self) -> None:
        try:
            while True:
                parts, urgent = self._collect()
                if not parts:
                    await self._writer.park()
                    continue
                if not urgent:
                    # Only that steps were accepted: a short one has ended in a moment, and both travel together.
                    with trio.move_on_after(ACCEPTED_WAITS_S):
                        await self._writer.park()
                    more, _ = self._collect(BUNDLE_FRAMES_MAX - len(parts))
                    if sum(map(len, more)) > BUNDLE_BYTES_MAX:
                        await self._pipe.send(codec.bundle(parts))
                        parts = more
                    else:
                        parts += more
                await self._pipe.send(codec.bundle(parts))
        except PipeBroken as broken:
            self.end(self._why(broken))
        except (
            RemoteError,
            Unsupported,
        ) as error:  # a frame of ours that is too large: a bug of ours, but not one to die of
            self.end(f"a frame could not be sent: {error.message}")

    def _collect(self, most: int = BUNDLE_FRAMES_MAX) -> tuple[list[bytes], bool]:
        """Encoded frames that can travel in one message, and whether any of them is in a hurry."""
        parts: list[bytes] = []
        size = 0
        urgent = False
        if self._large is not None:
            parts, self._large = [self._large], None
            return parts, True
        while len(parts) < most and size < BUNDLE_BYTES_MAX:
            if self._outbox:
                frame: Frame | None = self._outbox.popleft()
            else:
                frame = self._feed(self)
                if frame is None:
                    break
                self._session.send(frame)
            assert frame is not None
            part = codec.encode(frame)
            if len(part) > BUNDLE_BYTES_MAX and parts:  # a large frame travels alone
                self._large = part
                break
            parts.append(part)
            size += len(part)
            if isinstance(frame, Event) and isinstance(frame.body, LogLines) and size > LOG_FRAME_BYTES // 2:
                return (
                    parts,
                    True,
                )  # the peer reads a message as one: what is said next must not wait for more of this
            urgent = urgent or not (isinstance(frame, Response) and isinstance(frame.body, Accepted))
        return parts, urgent

    async def _read(self, handler: Handler) -> None:
        try:
            while True:
                for frame in codec.decode_message(await self._pipe.receive()):
                    self._heard(frame, handler)
        except PipeBroken as broken:
            self.end(self._why(broken))
        except RemoteError as error:
            ended = await self._unlawful(error)
            self.end(ended.message)

    def _heard(self, frame: Frame, handler: Handler) -> None:
        for happened in self._session.receive(frame):
            match happened:
                case Asked(request=request):
                    handler(request)
                case Told(event=Event(body=Farewell() as farewell)):
                    self._farewell = farewell
                    self.end(f"{farewell.code.value}: {farewell.message}", farewell.retry_after_s)
                case Told(event=event):
                    handler(event)
                case Answered(request=request, reply=reply):
                    self._waiting.pop(request.id)(reply)
                case _:
                    pass  # withdrawn: every answer of ours is given at once; moved: nothing to do

    async def _unlawful(self, error: RemoteError) -> LinkEnded:
        code = RefusalCode.MALFORMED if isinstance(error, MalformedMessage) else RefusalCode.UNLAWFUL
        await self._pipe.aclose(1002, code.value)
        return LinkEnded(f"the orchestrator broke the protocol: {error.message}")

    def _why(self, broken: PipeBroken) -> str:
        if self._farewell is not None:
            return f"{self._farewell.code.value}: {self._farewell.message}"
        return _goodbye(broken)


def _goodbye(broken: PipeBroken) -> str:
    if broken.reason:
        return broken.reason
    return "the connection was closed" if broken.close_code == 1000 else "the connection was lost"
