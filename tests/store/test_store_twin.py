"""The twin's own ability: to be crashed. And the one wake-up of a group commit."""

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest
import trio
import trio.testing

from swamp_orch.store import trio_store
from swamp_orch.store.interface import Batch, Committed, NewRecord, json_content
from swamp_orch.store.memory import MemoryStore
from swamp_orch.store.sqlite import open_store
from swamp_orch.store.trio_store import answer
from swamp_proto.errors import Broken, Conflict


def batch(name: str, expect: int | None = None) -> Batch:
    return Batch((NewRecord("t", "m", "n", name, "s", json_content(name), expect=expect),))


def test_a_crash_forgets_what_was_not_answered() -> None:
    store = MemoryStore(lambda: 0, hold=True)
    first, second, third = (store.submit(batch(name)) for name in "abc")
    assert (store.waiting, first.done()) == (3, False)
    assert store.latest("m", "a") is None, "nothing is visible before it is durable"
    store.flush(1)
    assert first.result().records[0].version == 1
    after = store.crash()
    assert not second.done()
    assert not third.done(), "nobody who waited is ever answered"
    assert after.latest("m", "a") is not None
    assert after.latest("m", "b") is None
    assert after.epoch == store.epoch
    with pytest.raises(Broken):
        store.latest("m", "a")
    with pytest.raises(Broken):
        store.commit(batch("d"))
    store.flush()
    assert after.latest("m", "b") is None, "the dead write nothing"
    assert after.submit(batch("b", 0)).done() is False, "the next process holds as well"
    assert after.commit(batch("b")).records[0].version == 2


def test_the_same_calls_give_the_same_store() -> None:
    def run() -> list[object]:
        store = MemoryStore(lambda: 5, hold=True)
        futures = [store.submit(batch(name, 0)) for name in "aba"]
        store.flush()
        assert isinstance(futures[2].exception(), Conflict)
        return [store.epoch, store.latest("m", "a"), store.latest("m", "b")]

    assert run() == run()


class CountingToken:
    """A trio token that counts what is asked of it."""

    def __init__(self) -> None:
        self.token = trio.lowlevel.current_trio_token()
        self.calls = 0

    def run_sync_soon(self, call: Callable[[], object]) -> None:
        self.calls += 1
        self.token.run_sync_soon(call)


async def test_one_group_wakes_the_loop_once() -> None:
    store = MemoryStore(lambda: 0, hold=True)
    token = CountingToken()
    wakeups = trio_store._Wakeups(token)  # type: ignore[arg-type]
    wakeups._thread = 0  # the answers are taken to come from another thread than the loop's
    trio_store._WAKEUPS.set(wakeups)
    answers: list[int] = []

    async def one(name: str) -> None:
        answers.append((await answer(store.submit(batch(name)))).records[0].version)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for n in range(20):
                nursery.start_soon(one, f"r{n}")
            await trio.testing.wait_all_tasks_blocked()
            assert store.waiting == 20
            store.flush()
    assert answers == [1] * 20
    assert token.calls == 1


async def test_a_wait_given_up_does_not_wake_the_next_one() -> None:
    store = MemoryStore(lambda: 0, hold=True)
    with trio.fail_after(60):
        with trio.move_on_after(0):
            await answer(store.submit(batch("a")))
        futures = [store.submit(batch("b")), store.submit(batch("c"))]
        async with trio.open_nursery() as nursery:
            done: list[str] = []

            async def one() -> None:
                await answer(futures[1])
                done.append("c")

            nursery.start_soon(one)
            await trio.testing.wait_all_tasks_blocked()
            store.flush(2)
            await trio.testing.wait_all_tasks_blocked()
            assert done == [], "it waits for its own answer"
            store.flush()
    assert done == ["c"]


async def test_the_loop_may_end_before_the_answer(tmp_path: Path) -> None:
    """A batch whose waiter is gone with its loop is committed, and the store's thread survives."""
    store = open_store(tmp_path, thread=True)

    async def leave() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await answer(store.submit(batch("a")))

    def elsewhere() -> None:
        for _ in range(20):
            trio.run(leave)

    with trio.fail_after(60):
        await trio.to_thread.run_sync(elsewhere)
        done = await answer(store.submit(batch("a")))
    assert done.records[0].version == 21
    store.close()


class JustNow(Future[Committed]):
    """Answered in the instant between the look whether it is and the request to be told."""

    def add_done_callback(self, fn: Callable[[Future[Committed]], object]) -> None:
        self.set_result(Committed())
        super().add_done_callback(fn)


async def test_an_answer_that_comes_before_its_task_waits_is_not_lost() -> None:
    """Runs stayed open for ever by it: a machine that is busy enough found that instant."""
    with trio.fail_after(60):
        assert (await answer(JustNow())).records == ()
