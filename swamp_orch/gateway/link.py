"""One control link, orchestrator's side: frames out through a bounded outbox, replies matched, the rest handed on.

Rules: nothing here decides about workers or steps; `swamp_proto.session` says what is lawful, and an unlawful or malformed
frame ends the link with a code. A full outbox ends it too: a peer that does not read must not hold memory. `post` and `ask`
never wait, so a caller that has just committed can speak at once. What is said to a worker whose enrollment is not answered yet
(a cancel that its return set off) goes right behind the answer: until then only the answer is lawful.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import attrs
import trio

from swamp_proto import codec
from swamp_proto.envelope import Cancel, Event, Failure, FailureBody, Frame, Request, Response
from swamp_proto.errors import (
    Broken,
    LimitExceeded,
    MalformedMessage,
    RefusalCode,
    Refused,
    SwampError,
    UnlawfulMessage,
    VersionMismatch,
)
from swamp_proto.limits import (
    BUNDLE_BYTES_MAX,
    BUNDLE_FRAMES_MAX,
    CONTROL_FRAME_MAX,
    ENROLL_FRAME_MAX,
    OUTBOX_FRAMES_MAX,
)
from swamp_proto.messages import RULE_BY_BODY, Side
from swamp_proto.messages.enrollment import Farewell
from swamp_proto.session import Session, State


class Pipe(Protocol):
    """Whole binary messages both ways; `Broken` when the other end is gone."""

    async def send(self, data: bytes) -> None: ...

    async def receive(self) -> bytes: ...

    async def aclose(self) -> None: ...


@attrs.define(eq=False)
class Answer:
    """The reply to come of one request."""

    _done: trio.Event = attrs.field(factory=trio.Event)
    _frame: Response | Failure | None = None
    _then: "Callable[[Answer], None] | None" = None

    def settle(self, frame: Response | Failure) -> None:
        self._frame = frame
        self._finish()

    def abandon(self) -> None:
        self._finish()

    def _finish(self) -> None:
        self._done.set()
        if self._then is not None:
            self._then(self)

    def then(self, callback: "Callable[[Answer], None]") -> None:
        """Call this when it is settled or abandoned, in the reader's task: for what needs no task of its own."""
        self._then = callback
        if self._done.is_set():
            callback(self)

    async def wait(self) -> Any:
        """The reply's body. Raises `Refused` for a failure, `Broken` when the link ended first."""
        await self._done.wait()
        return self.result()

    def result(self) -> Any:
        """What `wait` answers or raises, of a settled or abandoned answer."""
        match self._frame:
            case Response(body=body):
                return body
            case Failure(failure=failure):
                raise Refused(failure.code, failure.message, retry_after_s=failure.retry_after_s)
        raise Broken("the link ended before the answer came")


Handler = Callable[[Request | Event], Awaitable[None]]


class Link:
    """See the module's text. `run` reads until the end; everything else may be called from any task meanwhile."""

    def __init__(self, pipe: Pipe, session: Session | None = None) -> None:
        self._pipe = pipe
        self._session = session or Session(Side.ORCHESTRATOR)
        self._next_id = 1
        self._asked: dict[int, Answer] = {}
        self._early: list[Frame] = []  # said before the enrollment was answered
        self._put, self._take = trio.open_memory_channel[bytes](OUTBOX_FRAMES_MAX)
        self._scope = trio.CancelScope()
        self.frames_read = 0  # grows with everything heard; silence is judged by it
        self.heard_s = trio.current_time()
        self.closed = False

    async def first(self) -> Request:
        """The first frame, which must be a request. Raises like `run`."""
        frame = self._decode(await self._pipe.receive(), ENROLL_FRAME_MAX)
        self.heard_s = trio.current_time()
        if not isinstance(frame, Request):
            raise UnlawfulMessage("the first frame must be worker.enroll")
        return frame

    async def run(self, handler: Handler) -> None:
        """Read and write until the peer is gone (`Broken`) or `close` is called (returns)."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                try:
                    await self._read(handler)
                finally:
                    self.closed = True
                    for answer in self._asked.values():
                        answer.abandon()
                    self._asked.clear()
                    nursery.cancel_scope.cancel()
        self.closed = True

    async def _read(self, handler: Handler) -> None:
        while True:
            for frame in codec.decode_message(await self._pipe.receive()):
                self._session.receive(frame)
                self.frames_read += 1
                self.heard_s = trio.current_time()
                match frame:
                    case Response() | Failure():
                        answer = self._asked.pop(frame.id, None)
                        if answer is not None:
                            answer.settle(frame)
                    case Cancel():
                        pass  # every request is answered from what is already known; there is nothing to stop
                    case _:
                        await handler(frame)

    async def _write(self) -> None:
        await self._pipe.send(await self._take.receive())  # the answer to the enrollment travels alone
        async for data in self._take:
            parts, size = [data], len(data)
            while size < BUNDLE_BYTES_MAX and len(parts) < BUNDLE_FRAMES_MAX:
                try:
                    part = self._take.receive_nowait()
                except trio.WouldBlock:
                    break
                if len(part) > BUNDLE_BYTES_MAX:  # a large frame travels alone
                    await self._pipe.send(codec.bundle(parts))
                    parts, size = [], 0
                parts.append(part)
                size += len(part)
            await self._pipe.send(codec.bundle(parts))

    def _decode(self, data: bytes, most: int = CONTROL_FRAME_MAX) -> Frame:
        frame = codec.decode(data, most)
        self._session.receive(frame)
        return frame

    def _send(self, frame: Frame) -> None:
        if self.closed:
            return
        if self._session.state is State.ENROLLING and not isinstance(frame, Response | Failure):
            self._early.append(frame)
            return
        data = codec.encode(frame)
        self._session.send(frame)
        try:
            self._put.send_nowait(data)
        except trio.WouldBlock:
            self.close()
        early, self._early = self._early, []
        for waiting in early:
            self._send(waiting)

    def post(self, body: Any) -> None:
        """Send an event."""
        self._send(Event(body))

    def ask(self, body: Any) -> Answer:
        """Send a request; its `Answer` settles with the reply, or when the link ends."""
        answer = Answer()
        if self.closed:
            answer.abandon()
            return answer
        request = Request(self._next_id, body)
        self._next_id += 1
        self._asked[request.id] = answer
        try:
            self._send(request)
        except LimitExceeded:
            del self._asked[request.id]
            raise
        return answer

    def reply(self, request: Request, body: Any) -> None:
        self._send(Response(request.id, body, RULE_BY_BODY[type(request.body)].name))

    def refuse(self, request: Request, refusal: Refused) -> None:
        self._send(refused(request, refusal))

    def close(self) -> None:
        """End the link now; frames not yet written are lost."""
        self._scope.cancel()

    async def say_last(self, frame: Frame) -> None:
        """Write one frame past the outbox and close: for a link that does not run (any more)."""
        try:
            await self._pipe.send(codec.encode(frame))
            await self._pipe.aclose()
        except (Broken, trio.BrokenResourceError, trio.ClosedResourceError):
            return  # nobody is left to hear it


def refused(request: Request, refusal: Refused) -> Failure:
    """The frame that answers `request` with a no."""
    failure = FailureBody(refusal.refusal, refusal.message, refusal.retry_after_s)
    return Failure(request.id, RULE_BY_BODY[type(request.body)].name, failure)


def farewell(refusal: Refused) -> Event:
    return Event(Farewell(refusal.refusal, refusal.message, refusal.retry_after_s))


def refusal_of(error: SwampError) -> RefusalCode:
    """The code that tells a peer what it did wrong."""
    match error:
        case Refused():
            return error.refusal
        case VersionMismatch():
            return RefusalCode.PROTOCOL_MISMATCH
        case MalformedMessage():
            return RefusalCode.MALFORMED
        case LimitExceeded():
            return RefusalCode.TOO_LARGE
        case UnlawfulMessage():
            return RefusalCode.UNLAWFUL
    return RefusalCode.INTERNAL
