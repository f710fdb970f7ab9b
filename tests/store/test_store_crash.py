"""`kill -9` at any point of a write loop: what was acknowledged is there, whole, and nothing is there by halves."""

import os
import random
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_child import TRIPLE, Spawner, content

from swamp_orch.store.interface import Selection
from swamp_orch.store.sqlite import open_store

KILLS = 200
TIME_S = 18.0  # on a slow machine fewer kills, but never fewer than KILLS_MIN
KILLS_MIN = 100


@pytest.fixture
def spawner() -> Iterator[Spawner]:
    opened = Spawner()
    yield opened
    opened.close()


def test_kill_minus_nine_loses_nothing_and_halves_nothing(spawner: Spawner, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    luck = random.Random(seed)
    newest = 0
    kills = 0
    started = time.monotonic()
    while kills < KILLS and (kills < KILLS_MIN or time.monotonic() - started < TIME_S):
        pid = spawner.spawn("triples", folder)
        wanted = luck.randrange(12)
        deadline = time.monotonic() + 60
        seen: list[tuple[str, int]] = []
        while len(seen) < 3 * wanted:
            assert select.select([spawner.acks], [], [], deadline - time.monotonic())[0], "the writer hangs"
            seen += spawner.acknowledged()
        # From "at once" to a few commits later, in steps far shorter than one.
        until = time.perf_counter() + luck.random() ** 3 * 0.003
        while time.perf_counter() < until:
            pass
        os.kill(pid, signal.SIGKILL)
        assert os.WTERMSIG(spawner.wait(pid)) == signal.SIGKILL, "the writer ended by itself"
        kills += 1
        seen += spawner.acknowledged()
        newest = verify(folder, seen, newest)
    verify_everything(folder, newest)
    print(f"{kills} kills, {newest} versions of each name")
    assert newest >= kills


def verify(folder: Path, acknowledged: list[tuple[str, int]], before: int) -> int:
    """Check what this round added; the newest version of every name."""
    store = open_store(folder, thread=False)
    try:
        latest = [store.latest("m", name, content=False) for name in TRIPLE]
        counts = {record.version if record else 0 for record in latest}
        assert len(counts) == 1, f"half a batch is visible: {counts}"
        (newest,) = counts
        for name, version in acknowledged:
            assert version <= newest, f"version {version} of {name} was acknowledged and is gone"
        for name in TRIPLE:
            for version in range(before + 1, newest + 1):
                record = store.version("m", name, version)
                assert record is not None, f"version {version} of {name} is missing"
                assert record.keep == version
                assert record.is_latest == (version == newest)
                assert store.read(record) == content(name, version).inline
    finally:
        store.close()
    return newest


def verify_everything(folder: Path, newest: int) -> None:
    store = open_store(folder, thread=False)
    try:
        records = list(store.select(Selection(latest_only=False, with_content=False)))
        assert len(records) == 3 * newest
        assert len({record.id for record in records}) == len(records)
        assert [record.seq for record in records] == sorted({record.seq for record in records})
        for name in TRIPLE:
            assert [r.version for r in records if r.name == name] == list(range(1, newest + 1))
        for record in records:
            assert store.read(record) == content(record.name, record.version).inline
        assert store._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    finally:
        store.close()


def test_processes_append_to_one_name_without_gaps(spawner: Spawner, tmp_path: Path) -> None:
    open_store(tmp_path, thread=False).close()
    pids = [spawner.spawn(mode, tmp_path, 60) for mode in ("append", "append-inline", "append")]
    for pid in pids:
        assert spawner.wait(pid) == 0
    seen = [version for _, version in spawner.acknowledged()]
    assert sorted(seen) == list(range(1, 181))
    store = open_store(tmp_path, thread=False)
    try:
        found = store.versions("m", "r")
        assert [record.version for record in found] == list(range(1, 181))
        assert [record.is_latest for record in found] == [False] * 179 + [True]
    finally:
        store.close()
