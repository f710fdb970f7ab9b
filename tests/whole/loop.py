"""One trio run without threads, on a clock that jumps, whose order of tasks is drawn from a seed.

`live(main, seed)` runs `main`. Inside, what would run in a thread runs in the loop, before or after a pause that the dice
draw (`Disk.pause_s`): so nothing waits for anything real, and the clock jumps as soon as all tasks sleep. Real files are read and
written; no socket, no process, no thread.
"""

import os
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import trio
import trio._core._run as scheduler
import trio.testing

T = TypeVar("T")


@contextmanager
def _drawn(seed: int, pause_s: Callable[[], float]) -> Iterator[None]:
    dice = random.Random(seed)

    async def run_sync(work: Callable[..., T], *arguments: Any, **how: Any) -> T:
        """`trio.to_thread.run_sync` as its caller sees it: once begun it is not cancelled."""
        await trio.lowlevel.checkpoint_if_cancelled()
        late, wait_s = dice.random() < 0.5, pause_s()
        with trio.CancelScope(shield=True):
            if late:
                await trio.sleep(wait_s)
            found = work(*arguments)
            if not late:
                await trio.sleep(wait_s)
        return found

    patched: list[tuple[Any, str, Any]] = [
        (trio.to_thread, "run_sync", run_sync),
        (scheduler, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
        (scheduler, "_r", random.Random(seed)),
    ]
    before = [(place, name, getattr(place, name)) for place, name, _ in patched]
    for place, name, value in patched:
        setattr(place, name, value)
    try:
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)


def scratch() -> Path | None:
    """Where files cost no disk, when there is such a place: nothing here is about disks."""
    memory = Path("/dev/shm")
    return memory if os.access(memory, os.W_OK) else None


def live(
    main: Callable[[], Awaitable[T]],
    seed: int,
    pause_s: Callable[[], float] = lambda: 0.0,
    at_most_s: float = 100_000.0,
) -> T:
    """What `main` gives; `TooSlowError` after so much time of the world."""

    async def bounded() -> T:
        with trio.fail_after(at_most_s):
            return await main()

    with _drawn(seed, pause_s):
        return trio.run(bounded, clock=trio.testing.MockClock(autojump_threshold=0))
