"""Awaiting a commit from trio without a thread per wait.

Rules: all commits answered together wake the loop once (`run_sync_soon`), however many tasks wait for them. Cancelling the wait
does not cancel the commit: what was submitted becomes durable whether anybody waits or not. So a task that is cancelled here
does not know the answer; one that must know before it speaks shields the wait, which lasts about one fsync.

Nothing blocks the loop except content above the inline bound, which is written to a blob in the caller: stage it in a
thread first.
"""

import contextlib
from collections import deque
from concurrent.futures import Future
from typing import Final

import attrs
import trio

from swamp_orch.store.interface import Batch, Committed, Store


@attrs.define(eq=False)
class _Wait:
    """One task waiting for one answer; `task` is None once it waits no more."""

    task: trio.lowlevel.Task | None


class _Wakeups:
    """Answers on their way from the store's thread to tasks of one trio run."""

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self._token = token
        self._answered: deque[_Wait] = deque()
        self._scheduled = False

    async def wait(self, future: "Future[Committed]") -> None:
        wait = _Wait(trio.lowlevel.current_task())

        def abort(_: object) -> trio.lowlevel.Abort:
            wait.task = None
            return trio.lowlevel.Abort.SUCCEEDED

        future.add_done_callback(lambda _: self._answer(wait))
        await trio.lowlevel.wait_task_rescheduled(abort)

    def _answer(self, wait: _Wait) -> None:
        """In the store's thread (or in the task's, when the answer came meanwhile)."""
        self._answered.append(wait)
        if not self._scheduled:
            self._scheduled = True
            # With the run over, nobody is left to be woken.
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._wake)

    def _wake(self) -> None:
        # Cleared first: an answer that arrives from now on schedules the next call itself.
        self._scheduled = False
        while self._answered:
            wait = self._answered.popleft()
            if wait.task is not None:
                task, wait.task = wait.task, None
                trio.lowlevel.reschedule(task)


_WAKEUPS: Final = trio.lowlevel.RunVar[_Wakeups]("swamp store wake-ups")


async def commit(store: Store, batch: Batch) -> Committed:
    """`store.commit` for a task. Raises what it raises; a checkpoint on every path that waits.

    Cancelled while waiting, it raises `trio.Cancelled` and the batch commits (or is refused) all the same.
    """
    return await answer(store.submit(batch))


async def answer(future: "Future[Committed]") -> Committed:
    """The answer of a submitted batch. Submit several first to have them in one group commit."""
    if not future.done():
        try:
            wakeups = _WAKEUPS.get()
        except LookupError:
            wakeups = _Wakeups(trio.lowlevel.current_trio_token())
            _WAKEUPS.set(wakeups)
        await wakeups.wait(future)
    else:
        # The answer is known: it is told, also to a task that is being cancelled.
        await trio.lowlevel.cancel_shielded_checkpoint()
    return future.result()
