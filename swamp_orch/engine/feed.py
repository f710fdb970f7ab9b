"""A run's event feed: numbered, kept for clients that attach later, a line of output encoded when it is first read.

The run never waits for a client: what a slow client misses beyond the buffer is told to it as a number, and the logs are in
the store. Nothing here knows what an event means (`events.py` says).
"""

import json
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import trio

from swamp_proto.limits import EVENT_BUFFER_MAX

_encode: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


FOLLOWERS_YIELD: Final = 3
"""Turns a follower leaves to others after it was woken: what is granted and sent in them comes before telling clients, and
what is emitted in them travels in the same chunk."""


class RunFeed:
    """Events of one run, from 1. `emit` never blocks; `wait_beyond` wakes when there is more, or the run is over."""

    def __init__(self, clock_ms: Callable[[], int]) -> None:
        self._clock_ms = clock_ms
        self._lines: deque[bytes | dict[str, Any]] = deque()  # encoded once somebody has read it
        self._first = 1  # sequence number of _lines[0]
        self._news = trio.Event()
        self.ended = False

    @property
    def last(self) -> int:
        """Sequence number of the newest event, 0 = none."""
        return self._first + len(self._lines) - 1

    def emit(self, kind: str, **fields: Any) -> None:
        """Append one event and wake whoever follows."""
        event = {"seq": self.last + 1, "at": self._clock_ms(), "kind": kind, **fields}
        lazily = (
            kind == "step_output"
        )  # there are millions of them, and of plain values: nothing can change before it is read
        self._lines.append(event if lazily else _line(event))
        if len(self._lines) > EVENT_BUFFER_MAX:
            self._lines.popleft()
            self._first += 1
        self._wake()

    def end(self) -> None:
        """No more events will come."""
        self.ended = True
        self._wake()

    def _wake(self) -> None:
        if self._news.statistics().tasks_waiting:
            self._news.set()
            self._news = trio.Event()

    def after(self, seq: int) -> tuple[bytes, int]:
        """NDJSON of everything after `seq`, and the sequence number reached. A gap becomes one `warning` line."""
        start = max(seq, self._first - 1)
        found = (
            [self._encoded(index) for index in range(start - self._first + 1, len(self._lines))]
            if start < self.last
            else []
        )
        if start > seq:
            missed = {
                "seq": start,
                "at": self._clock_ms(),
                "kind": "warning",
                "message": f"{start - seq} events were not kept",
            }
            found.insert(0, _line(missed))
        return b"".join(found), max(self.last, seq)

    def _encoded(self, index: int) -> bytes:
        line = self._lines[index]
        if isinstance(line, dict):
            line = self._lines[index] = _line(line)
        return line

    async def wait_beyond(self, seq: int) -> bool:
        """Until there is an event after `seq` (True) or the run is over and there is none (False)."""
        while self.last <= seq:
            if self.ended:
                return False
            await self._news.wait()
            for _ in range(FOLLOWERS_YIELD):
                await trio.lowlevel.checkpoint()
        return True


def _line(event: dict[str, Any]) -> bytes:
    return _encode(event).encode() + b"\n"
