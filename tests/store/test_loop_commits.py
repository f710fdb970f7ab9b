"""Commits by the loop itself: grouped by turn, in order, and handed to the writer thread when the disk is slow."""

import threading
from pathlib import Path

import pytest
import trio

from swamp_orch.store import sqlite
from swamp_orch.store.interface import Batch, NewRecord, json_content
from swamp_orch.store.sqlite import SqliteStore, open_store
from swamp_orch.store.trio_store import commit, loop_commits
from swamp_proto.errors import Conflict


def batch(name: str, value: int = 0, expect: int | None = None) -> Batch:
    return Batch((NewRecord("t", "m", "m", name, "s", json_content({"value": value}), expect=expect),))


class Spy:
    """Notes on which thread each group is committed, and how many batches it has; can play a slow disk."""

    def __init__(self, store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.groups: list[tuple[int, int]] = []
        self.clock_s = 0.0
        self.takes_s = 0.0
        original = store._commit

        def spied(group: list[sqlite._Waiting]) -> None:
            self.groups.append((threading.get_ident(), len(group)))
            original(group)
            self.clock_s += self.takes_s

        monkeypatch.setattr(store, "_commit", spied)
        monkeypatch.setattr(sqlite.time, "monotonic", lambda: self.clock_s)


@pytest.fixture
def store(tmp_path: Path) -> SqliteStore:
    return open_store(tmp_path / "data")


async def test_one_turn_is_one_commit_in_the_loops_thread(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(store, monkeypatch)
    with trio.fail_after(60):
        async with loop_commits(store), trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(commit, store, batch(f"r{number}"))
        store.close()
    assert spy.groups == [(threading.get_ident(), 10)]


async def test_a_refused_batch_is_told_and_its_neighbours_commit(store: SqliteStore) -> None:
    refused: list[str] = []

    async def one(name: str, expect: int | None) -> None:
        try:
            await commit(store, batch(name, expect=expect))
        except Conflict:
            refused.append(name)

    with trio.fail_after(60):
        async with loop_commits(store), trio.open_nursery() as nursery:
            nursery.start_soon(one, "good", 0)
            nursery.start_soon(one, "bad", 7)
        assert store.latest("m", "good") is not None
        store.close()
    assert refused == ["bad"]


async def test_a_slow_commit_sends_the_next_ones_to_the_thread(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(store, monkeypatch)
    here = threading.get_ident()
    with trio.fail_after(60):
        async with loop_commits(store):
            spy.takes_s = 0.5
            await commit(store, batch("a"))
            spy.takes_s = 0.0
            await commit(store, batch("b"))
            spy.clock_s += 10
            with store._lock:
                pass  # the thread answers before it lets go; while it holds on, the loop rightly leaves commits to it
            await commit(store, batch("c"))
        store.close()
    assert [thread == here for thread, _ in spy.groups] == [True, False, True]


async def test_order_is_kept_while_the_thread_is_busy(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the loop submits later must not overtake what it handed over."""
    spy = Spy(store, monkeypatch)
    with trio.fail_after(60):
        async with loop_commits(store):
            spy.takes_s = 0.5
            await commit(store, batch("x", 0))
            spy.takes_s = 0.0
            futures = [store.submit(batch("x", 1))]
            store.flush()  # handed over
            spy.clock_s += 10  # the disk counts as fast again
            futures.append(store.submit(batch("x", 2)))
            store.flush()
            versions = [
                (await trio.to_thread.run_sync(future.result)).records[0].version for future in futures
            ]
        assert versions == [2, 3]
        record = store.version("m", "x", 3)
        assert record is not None
        assert record.content == b'{"value":2}'
        store.close()


async def test_leaving_commits_what_waits(store: SqliteStore) -> None:
    with trio.fail_after(60):
        async with loop_commits(store):
            future = store.submit(batch("last"))
        assert future.result(timeout=60).records[0].version == 1
        store.close()
