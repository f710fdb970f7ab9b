"""The orchestrator's disk: the store's twin in memory, whose commits take time and whose crashes lose.

A batch that was submitted is durable after a delay of the weather, and answered then; while the disk is full
it is refused. `found_by` gives what the next process finds. Every batch is shown to the world's witnesses in
the instant it becomes durable, so that what was acknowledged can be compared with it.
"""

import json
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from swamp_orch.store.errors import StoreFull
from swamp_orch.store.interface import Batch, Committed
from swamp_orch.store.memory import MemoryStore, _Disk
from swamp_proto.errors import Broken

from .loop import Loop, Process


class Disk(MemoryStore):
    """`MemoryStore` with weather."""

    def __init__(
        self,
        clock: Callable[[], int],
        loop: Loop,
        owner: Process,
        latency: Callable[[], float],
        is_full: Callable[[], bool],
        on_commit: Callable[[Batch], None],
        before: "Disk | None" = None,
    ) -> None:
        disk: _Disk | None = None if before is None else before._disk
        super().__init__(clock, hold=True, _disk=disk)
        self._loop, self._owner = loop, owner
        self._latency, self._is_full, self._on_commit = latency, is_full, on_commit
        self._read: dict[int, Any] = {} if before is None else before._read
        self._slowest_until = 0.0

    def found_by(self, owner: Process) -> "Disk":
        """This process dies; what the next one finds."""
        self.crash()
        return Disk(
            self._clock, self._loop, owner, self._latency, self._is_full, self._on_commit, before=self
        )

    def submit(self, batch: Batch) -> "Future[Committed]":
        future = super().submit(batch)
        if not future.done():  # batches become durable in the order they came
            self._slowest_until = max(self._slowest_until, self._loop.now + self._latency())
            self._loop.at(self._slowest_until, self._owner, self._reached)
        return future

    def _reached(self) -> None:
        if self.waiting:
            self.flush(1)

    def _apply(self, batch: Batch) -> Committed:
        if self._is_full():
            raise StoreFull("no space left on the device")
        done = super()._apply(batch)
        if not done.replayed:
            self._on_commit(batch)
        return done

    def durable(self, model_id: str, name: str) -> dict[str, Any] | None:
        """The attributes that a process starting at this instant would find."""
        record = self._latest(model_id, name)
        if record is None:
            return None
        if record.content is None:
            raise Broken(f"{name} is a blob")
        found: dict[str, Any] | None = self._read.get(record.seq)
        if found is None:
            found = self._read[record.seq] = json.loads(record.content)
        return found
