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
- No line is an object: what is kept, written and read are blocks (`swamp_proto.blocks`), and what goes to disk in little pieces is
  one chunk there.

What is spooled is masked already. It does not know links, frames or who notes lines.
"""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from itertools import dropwhile
from pathlib import Path
from struct import Struct
from typing import Final

import attrs
import trio

from swamp_proto.blocks import count_of, fitting, merged, size_of, without
from swamp_proto.limits import KIB, LOG_BLOCKS_MAX, LOG_SPOOL_MAX, MIB
from swamp_proto.messages.dispatch import LogBlock, Stream

MEMORY_MAX: Final = 256 * KIB  # of one dispatch
SEGMENT_SIZE: Final = 4 * MIB
CHUNK_SIZE: Final = 64 * KIB  # what is less is joined with what follows it on the disk
_BLOCK_COST: Final = 64  # of a block, beside its text
_DISK_RETRY_S: Final = 1.0
_STREAMS: Final = {stream.value: stream for stream in Stream}
_HEAD: Final = Struct("<BI")  # of a block on disk: stream, bytes of its text


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


@attrs.frozen
class Batch:
    """Lines to send."""

    blocks: tuple[LogBlock, ...]
    count: int
    size: int  # bytes of their text, a line end for each


@attrs.define(eq=False)
class _Segment:
    """A file of chunks. Deleted when its last chunk is let go."""

    path: Path
    descriptor: int | None  # while it is written
    size: int = 0
    chunks: int = 0


@attrs.define(eq=False)
class _Chunk:
    """Consecutive lines: in memory, or at a place in a segment."""

    first: int
    count: int
    size: int
    blocks: tuple[LogBlock, ...] | None
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
        self._decoded: tuple[_Chunk, int, tuple[LogBlock, ...]] | None = (
            None  # the chunk that was read last from disk, and how many lines it had then
        )
        self.last = 0  # number of the newest line

    async def add(self, first: int, blocks: tuple[LogBlock, ...]) -> None:
        """Keep lines. Waits while there is no room; a cancelled wait has kept nothing. Lines known already
        are skipped.
        """
        blocks = without(blocks, self.last + 1 - first)
        if not blocks:
            return
        size = sum(size_of(block.text) + _BLOCK_COST for block in blocks)
        while not self._room.fits(size):
            await self._room.wait(self._dispatch)
        chunk = _Chunk(self.last + 1, count_of(blocks), size, blocks)
        if self._in_memory + size > MEMORY_MAX and self._in_memory:
            while not self._write(chunk):
                with trio.move_on_after(_DISK_RETRY_S):  # the disk is full: as if the spool were
                    await self._room.wait(self._dispatch)
                if self._in_memory + size <= MEMORY_MAX:
                    break
        self._room.take(size)
        self.last = chunk.last
        if chunk.blocks is not None:
            self._in_memory += size
            self._chunks.append(chunk)
        elif not self._joined(chunk):
            self._chunks.append(chunk)

    def read(self, first: int, lines_max: int, size_max: int) -> Batch:
        """Kept lines from number `first` on, at least one. Raises LookupError when it is not kept (any more
        or yet).
        """
        found: list[LogBlock] = []
        count = size = turns = 0  # `turns`: of the streams
        for chunk in self._from(first):
            if chunk.first > first:
                break
            for block in without(self._blocks(chunk), first - chunk.first):
                room = size_max - size
                turns += not found or found[-1].stream is not block.stream
                if found and (room <= 0 or count >= lines_max or turns > LOG_BLOCKS_MAX):
                    return Batch(merged(found), count, size)
                cut = fitting(block, lines_max - count, room)
                if cut is not None:
                    if (
                        size > size_max // 2
                    ):  # where one was added whole it is sent whole: what is cut is looked through again
                        return Batch(merged(found), count, size)
                    block = LogBlock(block.stream, block.text[:cut])
                taken = size_of(block.text)
                if found and taken > room:
                    return Batch(merged(found), count, size)
                found.append(block)
                count += block.count
                size += taken + 1
                if cut is not None:
                    return Batch(merged(found), count, size)
            first = chunk.last + 1
        if not found:
            raise LookupError(f"line {first} is not kept")
        return Batch(merged(found), count, size)

    def let_go(self, through: int) -> None:
        """Lines up to `through` are noted."""
        while self._chunks and self._chunks[0].last <= through:
            self._remove(self._chunks.popleft())

    def close(self) -> None:
        """Let go of everything."""
        self.let_go(self.last)
        self._decoded = None
        if self._segment is not None:
            self._close(self._segment)
            self._delete(self._segment)
            self._segment = None

    def _from(self, first: int) -> Iterator[_Chunk]:
        """The chunks from the one that holds line `first` on, looked for from the nearer end."""
        chunks = self._chunks
        if not chunks or first - chunks[0].first <= self.last - first:
            return dropwhile(lambda chunk: chunk.last < first, chunks)
        found: list[_Chunk] = []
        for chunk in reversed(chunks):
            if chunk.last < first:
                break
            found.append(chunk)
        return reversed(found)

    # ── disk ────────────────────────────────────────────────────────────────────────────────────────────────
    def _write(self, chunk: _Chunk) -> bool:
        """Move a chunk to disk; False when it has no room."""
        assert chunk.blocks is not None
        data = b"".join(map(_packed, chunk.blocks))
        segment = self._segment
        try:
            if segment is None or segment.size >= SEGMENT_SIZE:
                segment = self._next_segment()
            assert segment.descriptor is not None
            _write_all(segment.descriptor, data, segment.size)
        except OSError:
            return False
        chunk.segment, chunk.offset, chunk.length = segment, segment.size, len(data)
        chunk.blocks = None
        segment.size += len(data)
        segment.chunks += 1
        return True

    def _next_segment(self) -> _Segment:
        """One to write to; the one before is only read any more. Raises OSError."""
        self._room.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._room.folder / f"{self._dispatch}-{self._segments + 1}.lines"
        descriptor = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        self._segments += 1
        before, self._segment = self._segment, _Segment(path, descriptor)
        if before is not None:
            self._close(before)
            if before.chunks == 0:
                self._delete(before)
        return self._segment

    def _joined(self, chunk: _Chunk) -> bool:
        """Whether a chunk on disk became a part of the one before it."""
        before = self._chunks[-1] if self._chunks else None
        if before is None or before.segment is not chunk.segment or chunk.segment is None:
            return False
        if before.length + chunk.length > CHUNK_SIZE:
            return False
        before.count += chunk.count
        before.size += chunk.size
        before.length += chunk.length
        chunk.segment.chunks -= 1
        return True

    def _blocks(self, chunk: _Chunk) -> tuple[LogBlock, ...]:
        if chunk.blocks is not None:
            return chunk.blocks
        if self._decoded is not None and self._decoded[0] is chunk and self._decoded[1] == chunk.count:
            return self._decoded[2]
        assert chunk.segment is not None
        with chunk.segment.path.open("rb") as file:
            file.seek(chunk.offset)
            data = file.read(chunk.length)
        blocks = merged(_unpacked(data))
        self._decoded = (chunk, chunk.count, blocks)
        return blocks

    def _remove(self, chunk: _Chunk) -> None:
        if chunk.segment is None:
            self._in_memory -= chunk.size
        else:
            chunk.segment.chunks -= 1
            if chunk.segment.chunks == 0 and chunk.segment is not self._segment:
                self._delete(chunk.segment)
        self._room.give_back(chunk.size)

    @staticmethod
    def _close(segment: _Segment) -> None:
        if segment.descriptor is not None:
            os.close(segment.descriptor)
            segment.descriptor = None

    @staticmethod
    def _delete(segment: _Segment) -> None:
        with contextlib.suppress(OSError):
            segment.path.unlink()


def _packed(block: LogBlock) -> bytes:
    text = block.text.encode("utf-8", "replace")
    return _HEAD.pack(block.stream.value, len(text)) + text


def _unpacked(data: bytes) -> Iterator[LogBlock]:
    at = 0
    while at < len(data):
        stream, size = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        yield LogBlock(_STREAMS[stream], data[at : at + size].decode())
        at += size


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written
