"""The HTTP server's connections, read in larger pieces, and kept apart: what goes wrong on one of them ends that one
and never the orchestrator.

The server library sends from two tasks (what a peer's frame asks for, and what the application says) and ends the stream beside its own
send lock; when a peer's close crosses ours, trio refuses the second sender and the error would leave through the listener's nursery.
No error of a connection passes `run` here. (Taking the lock for the end as well would wait for ever behind a peer that does not read.)
"""

from collections.abc import Callable
from typing import Any, Final

import hypercorn.trio.run as server
import hypercorn.trio.tcp_server as connections
import trio
from hypercorn.trio.tcp_server import TCPServer

from swamp_proto.limits import KIB

READ_SIZE: Final = 128 * KIB  # at once from a connection: an upload costs mostly by the read


def keep_connections_apart(say: Callable[[str, BaseException], object]) -> None:
    """From now on this process's servers use connections that cannot end it; `say` hears what went wrong on one."""

    class Connection(TCPServer):
        async def run(self) -> None:
            try:
                await super().run()
            except* trio.BusyResourceError:
                pass  # the close of the peer crossed ours: both are said
            except* Exception as problem:
                say("a connection ended by a fault", problem)

    module: Any = server
    module.TCPServer = Connection
    module = connections
    module.MAX_RECV = READ_SIZE
