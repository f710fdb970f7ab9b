"""A run's event feed: numbered, kept for clients that attach later, lines of output encoded when they are read.

The run never waits for a client: what a slow client misses beyond the buffer is told to it as a number, and the logs are in
the store. Lines of output come in blocks (`swamp_proto.blocks`) and are kept as such: each is an event, and becomes one only for who reads
it. Nothing here knows what an event means (`events.py` says).
"""

import json
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final

import attrs
import trio

from swamp_proto.limits import EVENT_BUFFER_BYTES, EVENT_BUFFER_MAX, EVENTS_AT_ONCE
from swamp_proto.messages.dispatch import LogBlock, Stream

_STREAMS: Final = {Stream.STDOUT: "stdout", Stream.STDERR: "stderr"}
_encode: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
_encode_text: Final = json.encoder.encode_basestring  # what that does with text


FOLLOWERS_YIELD: Final = 3
"""Turns a follower leaves to others after it was woken: what is granted and sent in them comes before telling clients, and
what is emitted in them travels in the same chunk."""


@attrs.frozen
class _Output:
    """Consecutive events: a line each, equal but for `seq`, `line` and `n`."""

    at_ms: int
    text: str  # of all lines, a line feed between two
    first: int  # `n` of the first
    fields: dict[str, Any]
    label: str  # every line begins with it
    run: str  # the child run that printed them, or nothing

    def encoded(self, seq: int, skip: int, most: int) -> Iterator[str]:
        """Up to `most` of the events behind the first `skip`; the first of all has the number `seq`."""
        head = _encode({"at": self.at_ms, "kind": "step_output", **self.fields})[1:-1]
        tail = f',"run":{_encode_text(self.run)}' if self.run else ""
        shift = self.first - seq
        lines = self.text.split("\n")
        for number, line in enumerate(islice(lines, skip, skip + most), seq + skip):
            text = _encode_text(self.label + line)
            yield f'{{"seq":{number},{head},"line":{text},"n":{number + shift}{tail}}}\n'


@attrs.frozen
class _Kept:
    first: int  # sequence number
    count: int
    size: int
    event: bytes | _Output  # one event encoded, or lines


class RunFeed:
    """Events of one run, from 1. `emit` never blocks; `wait_beyond` wakes when there is more, or the run is over."""

    def __init__(self, clock_ms: Callable[[], int]) -> None:
        self._clock_ms = clock_ms
        self._kept: deque[_Kept] = deque()
        self.size = 0  # bytes of what is kept, about
        self._news = trio.Event()
        self.last = 0  # sequence number of the newest event, 0 = none
        self.ended = False

    def emit(self, kind: str, **fields: Any) -> None:
        """Append one event and wake whoever follows."""
        event = {"seq": self.last + 1, "at": self._clock_ms(), "kind": kind, **fields}
        line = _line(event)
        self._keep(1, len(line), line)

    def emit_output(self, first: int, block: LogBlock, label: str = "", run: str = "", **fields: Any) -> None:
        """Append an event for every line of `block`; `first` is the number of the first in its log, `label` what each begins with, `run`
        the child run whose log it is."""
        event = _Output(
            self._clock_ms(), block.text, first, {**fields, "stream": _STREAMS[block.stream]}, label, run
        )
        self._keep(block.count, len(block.text), event)

    def _keep(self, count: int, size: int, event: bytes | _Output) -> None:
        self._kept.append(_Kept(self.last + 1, count, size, event))
        self.last += count
        self.size += size
        # Whole blocks go, so that as many as are promised are kept; the newest always is.
        while len(self._kept) > 1 and (
            self.last - self._kept[1].first + 1 >= EVENT_BUFFER_MAX or self.size > EVENT_BUFFER_BYTES
        ):
            self.size -= self._kept.popleft().size
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
        """NDJSON of what comes after `seq`, `EVENTS_AT_ONCE` events at most, and the sequence number reached. A gap becomes one
        `warning` line."""
        first = self._kept[0].first if self._kept else 1
        start = max(seq, first - 1)
        found: list[str | bytes] = []
        left = EVENTS_AT_ONCE
        for kept in self._beyond(start):
            skip = start + 1 - kept.first
            many = min(kept.count - skip, left)
            if isinstance(kept.event, bytes):
                found.append(kept.event)
            else:
                found.append("".join(kept.event.encoded(kept.first, skip, many)))
            start += many
            left -= many
            if not left:
                break
        data = b"".join(one if isinstance(one, bytes) else one.encode("utf-8", "replace") for one in found)
        if first - 1 > seq:
            missed = {
                "seq": first - 1,
                "at": self._clock_ms(),
                "kind": "warning",
                "message": f"{first - 1 - seq} events were not kept",
            }
            data = _line(missed) + data
        return data, start

    def _beyond(self, seq: int) -> list[_Kept]:
        """What holds events after `seq`, oldest first."""
        found: list[_Kept] = []
        for kept in reversed(self._kept):
            if kept.first + kept.count - 1 <= seq:
                break
            found.append(kept)
        found.reverse()
        return found

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
    return _encode(event).encode("utf-8", "replace") + b"\n"
