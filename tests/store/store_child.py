"""A process that forks writers on request, so that each costs a fork and not a start of Python.

Run as a script. A line `<mode> <folder> <first> <ack fd>` on stdin forks a child and answers with its pid; `wait` answers once it is
dead. A child acknowledges each committed version with one `ACK` struct on the inherited descriptor, after the store
answered. What it writes is a function of (name, version), so that the parent can check it.
"""

import hashlib
import os
import struct
import subprocess
import sys
from pathlib import Path

from swamp_orch.store import sqlite
from swamp_orch.store.interface import Batch, Content, Guard, IdempotencyKey, NewRecord, Store
from swamp_orch.store.sqlite import open_store

ACK = struct.Struct("<cI")
TRIPLE = "abc"


def content(name: str, version: int) -> Content:
    """What version `version` of `name` holds; every seventh is large enough for a blob."""
    size = 40_000 if version % 7 == 0 and name == "c" else 20 + version % 50
    data = hashlib.sha256(f"{name}{version}".encode()).digest() * (size // 32 + 1)
    return Content(data, hashlib.sha256(data).hexdigest(), len(data))


def record(name: str, version: int, expect: int | None) -> NewRecord:
    return NewRecord(
        "test/crash",
        "m",
        "crash",
        name,
        "s",
        content(name, version),
        content_type="x/y",
        keep=version,
        expect=expect,
    )


def write_triples(store: Store, ack: int) -> None:
    """For ever: one batch with the next version of `a`, `b` and `c`, compare-and-swapped, two batches on the way at a time."""
    newest = store.latest("m", "a")
    version = newest.version if newest else 0
    waiting = []
    while True:
        version += 1
        batch = Batch(
            tuple(record(name, version, version - 1) for name in TRIPLE),
            guards=(Guard("m", "a", version - 1),),
            idempotency=IdempotencyKey(f"k{version}", "d") if version % 5 == 0 else None,
        )
        waiting.append((version, store.submit(batch)))
        if len(waiting) >= 2:
            done, future = waiting.pop(0)
            assert [appended.version for appended in future.result().records] == [done] * 3
            os.write(ack, b"".join(ACK.pack(name.encode(), done) for name in TRIPLE))


def append(store: Store, ack: int, count: int) -> None:
    """`count` versions of one name that others write too."""
    for _ in range(count):
        new = NewRecord("test/race", "m", "race", "r", "s", content("r", 1), content_type="x/y")
        (appended,) = store.commit(Batch((new,))).records
        os.write(ack, ACK.pack(b"r", appended.version))


class Spawner:
    """The parent's side."""

    def __init__(self) -> None:
        self.acks, self._write_end = os.pipe()
        os.set_blocking(self.acks, False)
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(self._write_end)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[self._write_end],
            env={**os.environ, "PYTHONPATH": str(Path(sqlite.__file__).parents[2])},
        )

    def spawn(self, mode: str, folder: Path, number: int = 0) -> int:
        return int(self._ask(f"{mode} {folder} {number}"))

    def wait(self, pid: int) -> int:
        """The exit status of a child (as os.waitpid gives it), once it is dead."""
        return int(self._ask(f"wait {pid} 0"))

    def acknowledged(self) -> list[tuple[str, int]]:
        """What arrived so far."""
        data = b""
        while True:
            try:
                data += os.read(self.acks, 1 << 16)
            except BlockingIOError:
                break
        return [(name.decode(), version) for name, version in ACK.iter_unpack(data)]

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()
        os.close(self.acks)
        os.close(self._write_end)

    def _ask(self, line: str) -> bytes:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()


def serve(ack: int) -> None:
    """The spawner's own loop; children never come back from it."""
    for line in sys.stdin:
        mode, target, number = line.split()
        if mode == "wait":
            _, status = os.waitpid(int(target), 0)
            print(status, flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                # Folding often, so that crashes meet it too.
                sqlite.WAL_CHECKPOINT_PAGES = 60  # type: ignore[misc]
                store = open_store(Path(target), thread=mode != "append-inline")
                if mode == "triples":
                    write_triples(store, ack)
                else:
                    append(store, ack, int(number))
                    store.close()
                status = 0
            finally:
                os._exit(status)
        print(pid, flush=True)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
