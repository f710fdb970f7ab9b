"""Messages on the socket between executor and runner: a length of four bytes, then one msgpack map.

    runner -> executor   {"ask": "write" | "call" | "download", "id": n, ...}      answered
                         {"done": true, "error", "cancelled", "outputs"}          once, at the end
    executor -> runner   {"start": true, ...}                                     once, at the beginning
                         {"id": n, "value": {...}}  or  {"id": n, "code", "message"}

Bounded both ways: no message over `RUNNER_FRAME_MAX`, on neither side believed before its length was looked at. It knows no
socket.
"""

import struct
from typing import Any, Final

from swamp_proto.codec import pack_value, unpack_value
from swamp_proto.errors import LimitExceeded
from swamp_proto.limits import RUNNER_FRAME_MAX

_LENGTH: Final = struct.Struct("<I")
READ_SIZE: Final = 256 * 1024


def pack(message: dict[str, Any]) -> bytes:
    """One message as bytes. Raises `LimitExceeded`, and `Unsupported` for what no message can hold."""
    data = pack_value(message)
    if len(data) > RUNNER_FRAME_MAX:
        raise LimitExceeded(f"a message of {len(data)} bytes; the limit is {RUNNER_FRAME_MAX}")
    return _LENGTH.pack(len(data)) + data


class Inbox:
    """Bytes in, messages out."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> None:
        self._bytes += data

    def take(self) -> dict[str, Any] | None:
        """The next message, when it is whole. Raises `LimitExceeded` and `MalformedMessage`."""
        if len(self._bytes) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._bytes)
        if length > RUNNER_FRAME_MAX:
            raise LimitExceeded(f"a message of {length} bytes; the limit is {RUNNER_FRAME_MAX}")
        end = _LENGTH.size + length
        if len(self._bytes) < end:
            return None
        data = bytes(self._bytes[_LENGTH.size : end])
        del self._bytes[:end]
        return unpack_value(data, RUNNER_FRAME_MAX)
