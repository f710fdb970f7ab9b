"""The log of one dispatch at the orchestrator: lines in by number, each exactly once, sealed into the `log` record at the end.

They are masked before anything is kept or told of them. Streamed lines are bookkeeping, not writes (SEMANTICS §4). A short log
stays in memory until the completion. A long one goes to a file under `.swamp/data/logs/`, fsynced before its lines are noted, so
that a worker that forgets noted lines and an orchestrator that dies never lose one between them.
"""

import errno
import os
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import attrs
import trio

from swamp_orch.engine.ingress import MaskedLines
from swamp_orch.store.interface import Content, Store
from swamp_proto.limits import INLINE_CONTENT_MAX, LOG_NOTED_BYTES, LOG_NOTED_LINES, STORE_RETRY_S
from swamp_proto.messages.dispatch import LogLine

Emit = Callable[[int, LogLine], None]
"""Called once per new line with its number, in order."""


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
    _lock: trio.Lock = attrs.field(factory=trio.Lock)

    def add(self, first: int, lines: Sequence[LogLine]) -> bool:
        """Take lines `first`, `first + 1`, …; whether the holder is to be told now how far they are durable: when there are
        many that are not, and when it does not know of some that are (the note was lost with its link).
        """
        for number, line in enumerate(lines, first):
            if number != self.through + len(self.masked) + 1:
                continue  # one we have, or one after a gap, which the holder will send again
            for done in self.masked.take(line):
                self._keep(done)
        return (
            self._tail_bytes >= LOG_NOTED_BYTES
            or self.through - self.noted >= LOG_NOTED_LINES
            or first <= self.noted
        )

    def _keep(self, line: LogLine) -> None:
        self.through += 1
        data = line.text.encode("utf-8", "replace").replace(b"\n", b" ") + b"\n"  # a line is one
        self._tail.append(data)
        self._tail_bytes += len(data)
        self.emit(self.through, line)

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
        with self.file.open("r+b" if self._on_disk else "wb") as target:
            target.seek(self._on_disk)
            target.write(data)
            target.truncate()
            target.flush()
            os.fsync(target.fileno())

    async def seal(self, store: Store) -> Content:
        """The whole log as content, ready to commit with the completion."""
        for done in self.masked.rest():
            self._keep(done)
        if not self._on_disk and self._tail_bytes <= INLINE_CONTENT_MAX:
            data = b"".join(self._tail)
            return Content(data, sha256(data).hexdigest(), len(data))
        await self.flush()
        return await trio.to_thread.run_sync(self._stage, store)

    def _stage(self, store: Store) -> Content:
        writer = store.stage()
        try:
            with self.file.open("rb") as source:
                while chunk := source.read(1 << 20):
                    writer.write(chunk)
        except BaseException:
            writer.discard()
            raise
        return writer.finish()

    def remove(self) -> None:
        """The log is sealed, or its dispatch is over: the file has no more use."""
        if self._on_disk:
            self.file.unlink(missing_ok=True)

    @classmethod
    def recover(cls, file: Path, emit: Emit, masked: MaskedLines) -> "LogSpool":
        """After a restart: what was noted is in the file; an unfinished last line is cut."""
        try:
            data = file.read_bytes()
        except FileNotFoundError:
            return cls(file, emit, masked)
        whole = data[: data.rfind(b"\n") + 1]
        lines = whole.count(b"\n")
        return cls(file, emit, masked, through=lines, noted=lines, on_disk=len(whole))
