"""The HTTP server's connections: read in larger pieces, kept apart, and each lends its socket to whoever takes in a long body.

Rules that hold here:

1. What goes wrong on one connection ends that one and never the orchestrator: no error passes `Connection.run`. The server library sends
   from two tasks (what a peer's frame asks for, and what the application says) and ends the stream beside its own send lock; when a peer's
   close crosses ours, trio refuses the second sender. (Taking the lock for the end as well would wait for ever behind a peer that does not
   read.)
2. An application that has answered is asked nothing more: what still comes of the request it answered is dropped. In the library's own
   queue, a body that nobody reads any more blocks the connection's reader, and the news of its end behind it, for as long as serve lives.
3. A body is lent (`Stretch`) when its application asked for that, over HTTP/1.1 without TLS, and when much of it is still to come. Its
   messages and the stretch keep their order. Everything else, HTTP/2 above all, goes the library's own way.
"""

from collections.abc import Callable
from typing import Any, Final, cast

import h11
import hypercorn.trio.run as server
import hypercorn.trio.tcp_server as connections
import trio
from h11._readers import ContentLengthReader
from hypercorn.events import Closed, RawData
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.trio.task_group import TaskGroup, _handle
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.typing import ConnectionState

from swamp_orch.gateway.stretch import Stretch
from swamp_proto.limits import KIB

READ_SIZE: Final = 128 * KIB  # at once from a connection: an upload that is not lent costs mostly by the read
LENT_MIN: Final = 256 * KIB  # of a body still to come; less is not worth a thread
CONNECTION: Final = "swamp.connection"  # in the state of a request's scope: the `Connection` it came by
STRETCH: Final = "swamp.stretch"  # in a `http.request`: the `Stretch` behind the bytes of all messages before


class Inbox:
    """What a request's application has not heard yet. The news that there is nobody any more is the last of it, and never waits."""

    def __init__(self, most: int) -> None:
        self._put, self._take = trio.open_memory_channel[Any](most)
        self._last: Any = None

    async def put(self, event: Any) -> None:
        if event["type"].endswith(".disconnect"):
            self._last = self._last or event
            self._put.close()
            return
        try:
            await self._put.send(event)
        except trio.ClosedResourceError:
            if STRETCH in event:
                event[STRETCH].end()

    async def receive(self) -> Any:
        try:
            return await self._take.receive()
        except trio.EndOfChannel:
            return self._last


class Applications(TaskGroup):
    """Of one connection."""

    async def spawn_app(self, app: Any, config: Any, scope: Any, send: Any) -> Any:
        inbox = Inbox(config.max_app_queue_size)
        assert self._nursery is not None
        self._nursery.start_soon(
            _handle, app, config, scope, inbox.receive, send, trio.to_thread.run_sync, trio.from_thread.run
        )
        return inbox.put


class Connection(TCPServer):
    """One of them. `lends` is the application's wish for the request that is at work."""

    say: Callable[[str, BaseException], object]

    def __init__(self, app: Any, config: Any, context: Any, state: Any, stream: Any) -> None:
        super().__init__(app, config, context, ConnectionState({**state, CONNECTION: self}), stream)
        self.lends = False

    async def run(self) -> None:
        try:
            await super().run()
        except* trio.BusyResourceError:
            pass  # the close of the peer crossed ours: both are said
        except* Exception as problem:
            type(self).say("a connection ended by a fault", problem)

    async def _read_data(self) -> None:
        while True:
            try:
                data = await self.stream.receive_some(READ_SIZE)
            except (trio.ClosedResourceError, trio.BrokenResourceError):
                break
            await self.protocol.handle(RawData(bytes(data)))
            if not data:
                break
            if self.lends:
                await self._lend()
        await self.protocol.handle(Closed())

    async def _lend(self) -> None:
        """Have the application read what is to come of its body, when that is much."""
        protocol, stream = self.protocol.protocol, cast(trio.abc.Stream, self.stream)
        if not (isinstance(stream, trio.SocketStream) and isinstance(protocol, H11Protocol)):
            return
        at_work, http = protocol.stream, protocol.connection
        if not (isinstance(at_work, HTTPStream) and isinstance(http, h11.Connection)):
            return
        # The one place where h11 knows how much is to come, and has to learn how much came another way.
        reader: Any = http._reader
        if (
            not isinstance(reader, ContentLengthReader)
            or reader._remaining < LENT_MIN
            or http.trailing_data[0]
        ):
            return
        stretch = Stretch(stream.socket, reader._remaining)
        try:
            message: Any = {"type": "http.request", "body": b"", "more_body": True, STRETCH: stretch}
            await at_work.app_put(message)
            await stretch.over.wait()
        finally:
            stretch.end()
        reader._remaining -= stretch.taken
        if not reader._remaining:
            await protocol._handle_events()


def keep_connections_apart(say: Callable[[str, BaseException], object]) -> None:
    """From now on this process's servers use such connections; `say` hears what went wrong on one."""
    Connection.say = staticmethod(say)
    module: Any = server
    module.TCPServer = Connection
    module = connections
    module.TaskGroup = Applications
