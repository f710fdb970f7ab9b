"""Log lines of running steps, kept until they are noted: in memory while few, on disk when many, bounded
together.

Rules that hold here:

- Lines are added in order, numbered per dispatch from 1, read from any kept number on, and let go from the
  front.
- Up to `MEMORY_MAX` per dispatch stays in memory; what comes on top goes to segment files, which are
  deleted when all of their lines are noted. All dispatches of a worker share `LOG_SPOOL_MAX`: when it is
  used up (or the disk is full), `add` waits. Nothing is ever dropped here: the step blocks on its pipe
  instead.
- Nothing survives the process, and nothing has to: lines that were never sent die with the machine that
  printed them.

What is spooled is masked already. It does not know links, frames or who notes lines.
"""

import contextlib
import json
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

import attrs
import trio

from swamp_proto.limits import KIB, LOG_SPOOL_MAX, MIB
from swamp_proto.messages.dispatch import LogLine, Stream

MEMORY_MAX: Final = 256 * KIB  # of one dispatch
SEGMENT_SIZE: Final = 4 * MIB
_LINE_COST: Final = 64  # of a line in memory, beside its text
_DISK_RETRY_S: Final = 1.0
_STREAMS: Final = {stream.value: stream for stream in Stream}


class SpoolRoom:
    """What all spools of one worker share: a folder and a budget. `say` hears of back-pressure, once per
    occurrence.
    """

    def __init__(
        self, folder: Path, limit: int = LOG_SPOOL_MAX, say: Callable[[str], None] = lambda message: None
    ) -> None:
        self.folder = folder
        self.used = 0
        self._limit = limit
        self._say = say
        self._waiting = trio.lowlevel.ParkingLot()
        self._told: set[str] = set()  # dispatches whose waiting was said, since there was ample room

    def open(self, dispatch: str) -> "Spool":
        return Spool(self, dispatch)

    def fits(self, size: int) -> bool:
        """An empty room takes anything: a single batch may be larger than the budget."""
        return self.used == 0 or self.used + size <= self._limit

    def take(self, size: int) -> None:
        self.used += size

    def give_back(self, size: int) -> None:
        self.used -= size
        if self.used * 2 < self._limit:
            self._told.clear()
        if size:
            self._waiting.unpark_all()

    async def wait(self, dispatch: str) -> None:
        """Until something was given back."""
        if dispatch not in self._told:
            self._told.add(dispatch)
            self._say(f"log back-pressure: the spool is full, dispatch {dispatch[:8]} waits")
        await self._waiting.park()

    def sweep(self) -> None:
        """Remove what a dead predecessor left. Blocks; the caller holds the lock of the directory."""
        with contextlib.suppress(FileNotFoundError):
            for path in self.folder.glob("*.lines"):
                path.unlink(missing_ok=True)


@attrs.define
class _Segment:
    """A file of chunks. Deleted when its last chunk is let go."""

    path: Path
    size: int = 0
    chunks: int = 0


@attrs.define
class _Chunk:
    """Consecutive lines: in memory, or at a place in a segment."""

    first: int
    count: int
    size: int
    lines: tuple[LogLine, ...] | None
    segment: _Segment | None = None
    offset: int = 0
    length: int = 0

    @property
    def last(self) -> int:
        return self.first + self.count - 1


class Spool:
    """Of one dispatch. Made by `SpoolRoom.open`."""

    def __init__(self, room: SpoolRoom, dispatch: str) -> None:
        self._room = room
        self._dispatch = dispatch
        self._chunks: deque[_Chunk] = deque()
        self._in_memory = 0
        self._segment: _Segment | None = None
        self._segments = 0
        self._decoded: tuple[_Chunk, tuple[LogLine, ...]] | None = (
            None  # the chunk that was read last from disk
        )
        self.last = 0  # number of the newest line

    async def add(self, first: int, lines: tuple[LogLine, ...]) -> None:
        """Keep lines. Waits while there is no room; a cancelled wait has kept nothing. Lines known already
        are skipped.
        """
        if first <= self.last:
            lines = lines[self.last + 1 - first :]
        if not lines:
            return
        size = sum(len(line.text) + _LINE_COST for line in lines)
        while not self._room.fits(size):
            await self._room.wait(self._dispatch)
        chunk = _Chunk(self.last + 1, len(lines), size, lines)
        if self._in_memory + size > MEMORY_MAX and self._in_memory:
            while not self._write(chunk):
                with trio.move_on_after(_DISK_RETRY_S):  # the disk is full: as if the spool were
                    await self._room.wait(self._dispatch)
                if self._in_memory + size <= MEMORY_MAX:
                    break
        if chunk.lines is not None:
            self._in_memory += size
        self._room.take(size)
        self._chunks.append(chunk)
        self.last = chunk.last

    def read(self, first: int, lines_max: int, bytes_max: int) -> tuple[LogLine, ...]:
        """Kept lines from number `first` on, at least one. Raises LookupError when it is not kept (any more
        or yet).
        """
        found: list[LogLine] = []
        size = 0
        for chunk in self._chunks:
            if chunk.last < first:
                continue
            if chunk.first > first:
                break
            for line in self._lines(chunk)[first - chunk.first :]:
                text = line.text
                size += len(text) + 8 if text.isascii() else len(text) * 4 + _LINE_COST
                if found and (size > bytes_max or len(found) >= lines_max):
                    return tuple(found)
                found.append(line)
            first = chunk.last + 1
        if not found:
            raise LookupError(f"line {first} is not kept")
        return tuple(found)

    def let_go(self, through: int) -> None:
        """Lines up to `through` are noted."""
        while self._chunks and self._chunks[0].last <= through:
            self._remove(self._chunks.popleft())

    def close(self) -> None:
        """Let go of everything."""
        self.let_go(self.last)
        self._decoded = None
        if self._segment is not None:
            self._delete(self._segment)
            self._segment = None

    # ── disk ────────────────────────────────────────────────────────────────────────────────────────────────
    def _write(self, chunk: _Chunk) -> bool:
        """Move a chunk to disk; False when it has no room."""
        assert chunk.lines is not None
        data = json.dumps([[line.stream.value, line.text] for line in chunk.lines]).encode()
        segment = self._segment
        try:
            if segment is None or segment.size >= SEGMENT_SIZE:
                if segment is not None and segment.chunks == 0:
                    self._delete(segment)
                self._room.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._segments += 1
                segment = _Segment(self._room.folder / f"{self._dispatch}-{self._segments}.lines")
                segment.path.touch(mode=0o600)
                self._segment = segment
            with segment.path.open("r+b") as file:
                file.seek(segment.size)
                file.write(data)
        except OSError:
            return False
        chunk.segment, chunk.offset, chunk.length = segment, segment.size, len(data)
        chunk.lines = None
        segment.size += len(data)
        segment.chunks += 1
        return True

    def _lines(self, chunk: _Chunk) -> tuple[LogLine, ...]:
        if chunk.lines is not None:
            return chunk.lines
        if self._decoded is not None and self._decoded[0] is chunk:
            return self._decoded[1]
        assert chunk.segment is not None
        with chunk.segment.path.open("rb") as file:
            file.seek(chunk.offset)
            data = file.read(chunk.length)
        lines = tuple(LogLine(_STREAMS[stream], text) for stream, text in json.loads(data))
        self._decoded = (chunk, lines)
        return lines

    def _remove(self, chunk: _Chunk) -> None:
        if chunk.segment is None:
            self._in_memory -= chunk.size
        else:
            chunk.segment.chunks -= 1
            if chunk.segment.chunks == 0 and chunk.segment is not self._segment:
                self._delete(chunk.segment)
        self._room.give_back(chunk.size)

    @staticmethod
    def _delete(segment: _Segment) -> None:
        with contextlib.suppress(OSError):
            segment.path.unlink()
