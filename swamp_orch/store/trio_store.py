"""Awaiting a commit from trio without a thread per wait.

Rules: all commits answered together wake the loop once (`run_sync_soon`), however many tasks wait for them. Cancelling the wait
does not cancel the commit: what was submitted becomes durable whether anybody waits or not. So a task that is cancelled here
does not know the answer; one that must know before it speaks shields the wait, which lasts about one fsync.

Nothing blocks the loop except, inside `loop_commits`, a commit on a fast disk, and content above the inline bound, which is
written to a blob in the caller: stage it in a thread first.
"""

import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import Final

import trio

from swamp_orch.store.interface import Batch, Committed, Store
from swamp_orch.store.sqlite import SqliteStore
from swamp_proto.errors import SwampError


class _Wakeups:
    """Answers on their way from the store's thread to tasks of one trio run."""

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self._token = token
        self._answered: deque[_Wait] = deque()
        self._scheduled = False
        self._thread = threading.get_ident()
        self.wake = self._wake_soon  # one object, recognised as the same

    def answer(self, wait: "_Wait") -> Callable[[], None]:
        """In the store's thread (or in the task's, when the answer comes at once). The loop is to be woken after all of a
        group: waking it lets go of the interpreter lock, and the loop would run while others still wait for theirs."""
        self._answered.append(wait)
        return self.wake

    def _wake_soon(self) -> None:
        if threading.get_ident() == self._thread:
            self._wake()
        elif not self._scheduled:
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


class _Wait:
    """One task waiting for one answer; `task` is None while it does not wait."""

    __slots__ = ("outcome", "task", "wakeups")

    def __init__(self, wakeups: _Wakeups) -> None:
        self.wakeups = wakeups
        self.task: trio.lowlevel.Task | None = None
        self.outcome: Committed | SwampError | None = None

    def __call__(self, outcome: Committed | SwampError) -> Callable[[], None]:
        self.outcome = outcome
        return self.wakeups.answer(self)

    def future_done(self, _: object) -> None:
        self.wakeups.answer(self)()

    async def sleep(self) -> None:
        self.task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._abort)

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self.task = None
        return trio.lowlevel.Abort.SUCCEEDED


_WAKEUPS: Final = trio.lowlevel.RunVar[_Wakeups]("swamp store wake-ups")


@contextlib.asynccontextmanager
async def loop_commits(store: Store) -> AsyncIterator[None]:
    """Inside, what tasks of this run submit within one turn of the loop is committed together at its end, by the loop itself
    while the disk is fast (`SqliteStore.flush`)."""
    if not isinstance(store, SqliteStore):
        yield
        return
    wanted = trio.Event()

    async def flusher() -> None:
        nonlocal wanted
        while True:
            await wanted.wait()
            wanted = trio.Event()
            store.flush()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flusher)
        store.attach_loop(lambda: wanted.set())
        try:
            yield
        finally:
            store.attach_loop(None)
            nursery.cancel_scope.cancel()


async def commit(store: Store, batch: Batch) -> Committed:
    """`store.commit` for a task. Raises what it raises; a checkpoint in any case.

    Cancelled while waiting, it raises `trio.Cancelled` and the batch commits (or is refused) all the same.
    """
    wait = _Wait(_wakeups())
    store.submit_to(batch, wait)
    if wait.outcome is None:
        await wait.sleep()
    else:
        # The answer is known: it is told, also to a task that is being cancelled.
        await trio.lowlevel.cancel_shielded_checkpoint()
    outcome = wait.outcome
    if isinstance(outcome, Committed):
        return outcome
    assert outcome is not None
    raise outcome


async def answer(future: "Future[Committed]") -> Committed:
    """The answer of a submitted batch. Submit several first to have them in one group commit."""
    wait = _Wait(_wakeups())
    future.add_done_callback(wait.future_done)
    # Looked at after that: what was answered before was told to a task that did not wait yet, and is told once.
    if future.done():
        await trio.lowlevel.cancel_shielded_checkpoint()
    else:
        await wait.sleep()
    return future.result()


def _wakeups() -> _Wakeups:
    try:
        return _WAKEUPS.get()
    except LookupError:
        made = _Wakeups(trio.lowlevel.current_trio_token())
        _WAKEUPS.set(made)
        return made
