"""The rest of a request's body while it still lies in its socket, for a thread to read from there.

What passes through the server library is copied five times and hops through the loop for every piece of it; 1 GiB costs seconds of CPU in
that way. A thread that reads, hashes and writes one block after another needs a third, and the loop none of it.

Rules that hold here:

- It has a descriptor of its own: whoever closes the connection meanwhile can not have its number given to another one under our hands.
- It reads what is left of the body and never a byte behind it.
- A call is bounded, in bytes and in time without any: who awaits it can be cancelled between two of them.
- `end` gives the connection back to its reader, who must be told how many bytes were `taken`. An end read here is read there again.
"""

import select
import socket
import time
from collections.abc import Callable
from typing import Final

import trio

from swamp_proto.limits import KIB

BLOCK: Final = (
    256 * KIB
)  # what is read before it is handed on: it stays in the processor's cache until it is hashed and written
WAIT_S: Final = 0.05  # for more, in the thread


class Stretch:
    """Implements `swamp_orch.engine.uploads.Stretch`."""

    def __init__(self, connection: trio.socket.SocketType, left: int) -> None:
        self._socket = socket.fromfd(connection.fileno(), connection.family, connection.type)
        self._socket.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._buffer = memoryview(bytearray(min(BLOCK, left)))
        self._gone = self._pouring = False
        self.over = trio.Event()
        self.left = left
        self.taken = 0

    async def more(self) -> bool:
        """Waits until there is something to pour; False at the end of the body, or of its connection."""
        if self._gone or not self.left:
            return False
        await trio.lowlevel.wait_readable(self._socket)
        return True

    def pour(self, into: Callable[[memoryview], object], most: int) -> None:
        """Hand on, block by block, what is here: about `most` bytes, and what comes within a moment. Blocks for that long."""
        self._pouring = True
        until = self.taken + most
        patience = time.monotonic() + WAIT_S
        enough = False
        try:
            while self.left and self.taken < until and not enough:
                count, enough = self._fill(min(len(self._buffer), self.left), patience)
                if count:
                    into(self._buffer[:count])
                    self.left -= count
                    self.taken += count
        finally:
            self._pouring = False
            if self.over.is_set():
                self._socket.close()

    def _fill(self, wanted: int, patience: float) -> tuple[int, bool]:
        """How many bytes came into the buffer, and whether it is enough for now."""
        have = 0
        while have < wanted and not self.over.is_set():
            try:
                count = self._socket.recv_into(self._buffer[have:wanted])
            except BlockingIOError:
                pause_s = patience - time.monotonic()
                if pause_s <= 0 or not self._poll.poll(pause_s * 1000):
                    return have, True
                continue
            except OSError:  # reset: its reader meets the same
                count = 0
            if not count:
                self._gone = True
                return have, True
            have += count
        return have, self.over.is_set()

    def end(self) -> None:
        """The connection is its reader's again. Harmless a second time, and while a thread still pours: that one closes the descriptor."""
        self.over.set()
        if not self._pouring:
            self._socket.close()
