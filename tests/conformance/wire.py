"""A peer that knows nothing of this program: bytes of msgpack over a WebSocket, as docs/protocol.md describes them.

No class, codec or constant of swamp is used here on purpose: what passes is what the document says.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import msgpack
import trio
import trio_websocket

REQUEST, RESPONSE, FAILURE, EVENT, CANCEL, BUNDLE = range(6)
PATH: Final = "/control/v1"
ANSWER_S: Final = 60.0


class Wire:
    """One WebSocket; frames in and out as lists."""

    def __init__(self, connection: trio_websocket.WebSocketConnection) -> None:
        self._connection = connection
        self._heard: list[Any] = []

    async def send(self, frame: Any) -> None:
        await self._connection.send_message(msgpack.packb(frame))

    async def send_bytes(self, data: bytes) -> None:
        await self._connection.send_message(data)

    async def send_text(self, text: str) -> None:
        await self._connection.send_message(text)

    async def hear(self, within_s: float = ANSWER_S) -> Any:
        """The next frame; None when the peer closed."""
        if self._heard:
            return self._heard.pop(0)
        with trio.fail_after(within_s):
            try:
                data = await self._connection.get_message()
            except trio_websocket.ConnectionClosed:
                return None
        frame = msgpack.unpackb(data, strict_map_key=False)
        if frame[0] == BUNDLE:
            self._heard = list(frame[1])
            return self._heard.pop(0)
        return frame

    async def hear_of(self, kind: int, within_s: float = ANSWER_S) -> Any:
        """The next frame of a kind; heartbeats of the peer are answered meanwhile."""
        while True:
            frame = await self.hear(within_s)
            if frame is None or frame[0] == kind:
                return frame
            if frame[0] == REQUEST and frame[2] == "link.heartbeat":
                await self.send([RESPONSE, frame[1], "link.heartbeat", frame[3]])


@asynccontextmanager
async def dial(port: int) -> AsyncIterator[Wire]:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream, trio.open_nursery() as nursery:
        connection = await trio_websocket.wrap_client_stream(nursery, stream, f"127.0.0.1:{port}", PATH)
        yield Wire(connection)
        with trio.move_on_after(1):
            await connection.aclose()
        nursery.cancel_scope.cancel()
