"""Message pipes: whole binary messages both ways, over a WebSocket or in memory. Only this module names trio.

Rules
- One message is one frame (`codec`); what is inside is not looked at.
- Every end of a pipe, from either side, in either direction, is `PipeBroken` with the close code and reason
  where the peer gave one. Nothing of the WebSocket library gets out.
- `aclose` says goodbye and comes back within `CLOSE_HANDSHAKE_S`, whether or not the peer answers, also in a
  cancelled scope: the last frame and the close are worth that much, and a half-open peer is worth no more.
- Backpressure is real: `send` waits while the peer does not read.

It does not dial, listen, retry or measure time otherwise.
"""

from typing import Final, Protocol

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection

from swamp_proto.errors import Broken, LimitExceeded, MalformedMessage
from swamp_proto.limits import CLOSE_HANDSHAKE_S, CONTROL_FRAME_MAX

CLOSED_NORMALLY: Final = 1000
CLOSED_ABNORMALLY: Final = 1006  # no close frame was seen
NOT_BINARY: Final = 1003
REASON_BYTES_MAX: Final = 123  # of a WebSocket close frame
MEMORY_PIPE_FRAMES: Final = 64


class PipeBroken(Broken):
    """The pipe has ended. `close_code` is the WebSocket close code, 1006 when there was no goodbye."""

    def __init__(self, close_code: int = CLOSED_ABNORMALLY, reason: str = "") -> None:
        said = f": {reason}" if reason else ""
        super().__init__(f"the link is closed ({close_code}{said})")
        self.close_code = close_code
        self.reason = reason


class MessagePipe(Protocol):
    """Whole binary messages both ways. One task may send while another receives."""

    async def send(self, data: bytes) -> None:
        """Hand one message to the peer. Raises `PipeBroken`, `LimitExceeded` (over `CONTROL_FRAME_MAX`)."""
        ...

    async def receive(self) -> bytes:
        """The next message. Raises `PipeBroken`, `MalformedMessage` (a text message)."""
        ...

    async def aclose(self, code: int = CLOSED_NORMALLY, reason: str = "") -> None:
        """End the pipe; idempotent, bounded, never raises for what the peer does."""
        ...


class WebSocketPipe:
    """A pipe over a trio-websocket connection, which must have been opened with `max_message_size`
    of `CONTROL_FRAME_MAX`. The connection's nursery stays with whoever opened it."""

    def __init__(self, connection: WebSocketConnection) -> None:
        self._connection = connection

    async def send(self, data: bytes) -> None:
        _check_size(data)
        try:
            await self._connection.send_message(data)
        except ConnectionClosed as closed:
            raise _broken(closed) from None
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise PipeBroken from None

    async def receive(self) -> bytes:
        try:
            message: str | bytes = await self._connection.get_message()
        except ConnectionClosed as closed:
            raise _broken(closed) from None
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise PipeBroken from None
        if isinstance(message, str):
            raise MalformedMessage("$", "a text message; frames are binary")
        return bytes(message)

    async def aclose(self, code: int = CLOSED_NORMALLY, reason: str = "") -> None:
        with trio.move_on_after(CLOSE_HANDSHAKE_S, shield=True):
            try:
                await self._connection.aclose(code, fitted(reason) or None)
            except (ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError):
                return  # the peer was first


class MemoryPipe:
    """One end of `memory_pipe_pair`: the twin of a WebSocket, for tests and for the simulator."""

    def __init__(self, outgoing: "_Way", incoming: "_Way") -> None:
        self._outgoing = outgoing
        self._incoming = incoming

    async def send(self, data: bytes) -> None:
        _check_size(data)
        await self._outgoing.put(bytes(data))

    async def receive(self) -> bytes:
        return await self._incoming.take()

    async def aclose(self, code: int = CLOSED_NORMALLY, reason: str = "") -> None:
        """The peer still reads what was sent before; this end reads nothing more."""
        self._outgoing.end(code, fitted(reason), keep=True)
        self._incoming.end(code, fitted(reason), keep=False)
        await trio.lowlevel.checkpoint()

    def cut(self) -> None:
        """As if the cable were pulled and both ends had noticed: nothing in flight arrives."""
        self._outgoing.end(CLOSED_ABNORMALLY, "", keep=False)
        self._incoming.end(CLOSED_ABNORMALLY, "", keep=False)


class _Way:
    """One direction of a memory pipe."""

    def __init__(self, frames: int) -> None:
        self._put, self._take = trio.open_memory_channel[bytes](frames)
        self._end: PipeBroken | None = None

    async def put(self, data: bytes) -> None:
        try:
            await self._put.send(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise self._broken() from None

    async def take(self) -> bytes:
        try:
            return await self._take.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise self._broken() from None

    def end(self, code: int, reason: str, *, keep: bool) -> None:
        if self._end is None:
            self._end = PipeBroken(code, reason)
        self._put.close()
        if not keep:
            self._take.close()

    def _broken(self) -> PipeBroken:
        end = self._end or PipeBroken()
        return PipeBroken(end.close_code, end.reason)  # a fresh one: an exception is raised once


def memory_pipe_pair(frames: int = MEMORY_PIPE_FRAMES) -> tuple[MemoryPipe, MemoryPipe]:
    """Two ends of one pipe; each direction holds `frames` messages before `send` waits."""
    there, back = _Way(frames), _Way(frames)
    return MemoryPipe(there, back), MemoryPipe(back, there)


def fitted(reason: str) -> str:
    """`reason` cut to what a close frame can carry."""
    return reason.encode(errors="replace")[:REASON_BYTES_MAX].decode(errors="ignore")


def _check_size(data: bytes) -> None:
    if len(data) > CONTROL_FRAME_MAX:
        raise LimitExceeded(f"a control frame would have {len(data)} bytes; the limit is {CONTROL_FRAME_MAX}")


def _broken(closed: ConnectionClosed) -> PipeBroken:
    why = closed.reason
    return PipeBroken() if why is None else PipeBroken(why.code, why.reason or "")
