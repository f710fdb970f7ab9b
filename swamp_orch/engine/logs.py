"""The log of one dispatch at the orchestrator: lines in by number, each exactly once, sealed into the `log` record at the end.

They are masked before anything is kept or told of them. Streamed lines are bookkeeping, not writes (SEMANTICS §4). A short log
stays in memory until the completion. A long one goes to a file under `.swamp/data/logs/`, fsynced before its lines are noted, so
that a worker that forgets noted lines and an orchestrator that dies never lose one between them.

A sealed file becomes the record's blob without being copied: it gets the blob's name beside its own, which it keeps until the end
is committed, for an orchestrator that dies before that. From then on it does not change: lines that come later are not
taken, and a file that an earlier process sealed is copied before anything is added to it.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import trio

from swamp_orch.engine.ingress import MaskedLines
from swamp_orch.store.interface import Content, Store
from swamp_proto.blocks import without
from swamp_proto.limits import INLINE_CONTENT_MAX, LOG_NOTED_BYTES, LOG_NOTED_LINES, MIB, STORE_RETRY_S
from swamp_proto.messages.dispatch import LogBlock, Stream

if TYPE_CHECKING:
    from hashlib import _Hash

Emit = Callable[[int, LogBlock], None]
"""Called once per new block with the number of its first line, in order."""

_READ: Final = 1 * MIB


@attrs.define(eq=False)
class LogSpool:
    """Lines of one dispatch. `add` may be given lines it has (after a drop): they are skipped."""

    file: Path
    emit: Emit
    masked: MaskedLines
    through: int = 0  # number of the newest line that is here
    noted: int = 0  # … that is on disk
    _tail: list[bytes] = attrs.field(factory=list)  # not yet on disk
    _tail_bytes: int = 0
    _on_disk: int = 0  # bytes of the file that are whole lines
    _hash: "_Hash | None" = attrs.field(factory=sha256)  # of those; None: not known
    _linked: bool = False  # an earlier process made a blob of the file
    _ended: bool = False  # that lines are missing was said
    _sealed: Content | None = None
    _lock: trio.Lock = attrs.field(factory=trio.Lock)

    def add(self, first: int, blocks: Sequence[LogBlock]) -> bool:
        """Take lines from number `first` on; whether the holder is to be told now how far they are durable: when there are
        many that are not, and when it does not know of some that are (the note was lost with its link).
        """
        known = self.through + len(self.masked) + 1 - first
        if known >= 0 and self._sealed is None:  # else they come after a gap: the holder will send them again
            for block in without(blocks, known):
                for done in self.masked.take(block):
                    self._keep(done)
        return (
            self._tail_bytes >= LOG_NOTED_BYTES
            or self.through - self.noted >= LOG_NOTED_LINES
            or first <= self.noted
        )

    @property
    def is_full(self) -> bool:
        """Whether so much is not durable that the holder is to be told how far it is."""
        return self._tail_bytes >= LOG_NOTED_BYTES or self.through - self.noted >= LOG_NOTED_LINES

    def _keep(self, block: LogBlock) -> None:
        first = self.through + 1
        self.through += block.count
        data = block.text.encode("utf-8", "replace")
        self._tail += (data, b"\n")
        self._tail_bytes += len(data) + 1
        self.emit(first, block)

    async def flush(self) -> int:
        """Bring the tail to disk; answers the number of the newest line that is durable."""
        async with self._lock:
            if self._tail:
                pieces, through = len(self._tail), self.through
                data = b"".join(self._tail)
                await self._append_at_last(data)
                del self._tail[:pieces]
                self._tail_bytes -= len(data)
                self._on_disk += len(data)
                self.noted = through
        return self.noted

    async def _append_at_last(self, data: bytes) -> None:
        """While the disk is full it is tried again: whoever waits for these lines to be noted sends no more meanwhile."""
        while True:
            try:
                await trio.to_thread.run_sync(self._append, data)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                await trio.sleep(STORE_RETRY_S)
            else:
                return

    def _append(self, data: bytes) -> None:
        self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._linked:
            self._part()
        with os.fdopen(os.open(self.file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600), "r+b") as target:
            target.seek(self._on_disk)
            target.write(data)
            target.truncate()
            target.flush()
            os.fsync(target.fileno())
        if self._hash is not None:
            self._hash.update(data)

    def _part(self) -> None:
        """Leave the blob to itself and go on with a copy."""
        copy = self.file.with_suffix(".copy")
        shutil.copyfile(self.file, copy)
        copy.replace(self.file)
        self._linked = False

    def end(self, last_line: int, lost: int) -> None:
        """What its holder says at the end: the number of its last line, and how many more it could not keep. What did not come is
        counted in the log itself. Said again, it is said once."""
        missing = last_line - self.through - len(self.masked) + lost
        if missing <= 0 or self._ended or self._sealed is not None:
            return
        self._ended = True
        for done in self.masked.rest():
            self._keep(done)
        self._keep(
            LogBlock(Stream.STDERR, f"swamp: {missing} line{'s are' if missing > 1 else ' is'} missing here")
        )

    async def seal(self, store: Store) -> Content:
        """The whole log as content, ready to commit with the completion. Nothing is taken any more."""
        if self._sealed is None:
            for done in self.masked.rest():
                self._keep(done)
            if not self._on_disk and self._tail_bytes <= INLINE_CONTENT_MAX:
                data = b"".join(self._tail)
                return Content(data, sha256(data).hexdigest(), len(data))
            await self.flush()
            self._sealed = await trio.to_thread.run_sync(self._adopt, store)
        return self._sealed

    def _adopt(self, store: Store) -> Content:
        if self._hash is None:
            self._hash = sha256()
            with self.file.open("rb") as source:
                while chunk := source.read(_READ):
                    self._hash.update(chunk)
        return store.adopt(self.file, self._hash.hexdigest(), self._on_disk, keep=True)

    def remove(self) -> None:
        """The log is sealed, or its dispatch is over: the file has no more use."""
        if self._on_disk:
            self.file.unlink(missing_ok=True)

    @classmethod
    def recover(cls, file: Path, emit: Emit, masked: MaskedLines) -> "LogSpool":
        """After a restart: what was noted is in the file; an unfinished last line is cut."""
        lines = size = whole = 0
        linked = False
        with contextlib.suppress(FileNotFoundError), file.open("rb") as source:
            linked = os.fstat(source.fileno()).st_nlink > 1
            while chunk := source.read(_READ):
                lines += chunk.count(b"\n")
                end = chunk.rfind(b"\n")
                whole = size + end + 1 if end >= 0 else whole
                size += len(chunk)
        found = cls(file, emit, masked, through=lines, noted=lines, on_disk=whole, linked=linked)
        if whole:
            found._hash = None
        return found
