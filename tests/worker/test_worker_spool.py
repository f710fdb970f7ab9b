"""Log lines until they are noted: in order, bounded, blocking instead of dropping."""

from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swamp_proto.blocks import lines_of
from swamp_proto.messages.dispatch import LogBlock, Stream
from swamp_worker.execution import spool as spool_module
from swamp_worker.execution.spool import Spool, SpoolRoom


def lines(*texts: str) -> tuple[LogBlock, ...]:
    return tuple(LogBlock(Stream.STDERR if "e" in text else Stream.STDOUT, text) for text in texts)


def blocks(first: int, counts: list[int]) -> tuple[LogBlock, ...]:
    """Blocks of so many numbered lines, of changing streams."""
    found = []
    for turn, count in enumerate(counts):
        text = "\n".join(f"{number:08d}" for number in range(first, first + count))
        found.append(LogBlock(Stream.STDOUT if turn % 3 else Stream.STDERR, text))
        first += count
    return tuple(found)


def numbered(first: int, count: int, width: int = 8) -> tuple[LogBlock, ...]:
    return lines(*(f"{number:0{width}d}" for number in range(first, first + count)))


def read_all(spool: Spool, first: int, most: int = 7) -> list[str]:
    found: list[str] = []
    while first + len(found) <= spool.last:
        batch = spool.read(first + len(found), most, 100_000)
        texts = [line.text for line in lines_of(batch.blocks)]
        assert (batch.count, batch.size) == (len(texts), sum(len(text.encode()) + 1 for text in texts))
        found += texts
    return found


async def test_what_is_added_is_read_until_it_is_let_go(tmp_path: Path) -> None:
    spool = SpoolRoom(tmp_path / "spool").open("d")
    await spool.add(1, lines("one", "two"))
    await spool.add(3, lines("three"))
    assert read_all(spool, 1) == ["one", "two", "three"]
    blocks = spool.read(1, 9, 999).blocks
    assert [block.stream for block in blocks] == [Stream.STDERR, Stream.STDOUT, Stream.STDERR]
    spool.let_go(2)
    assert read_all(spool, 3) == ["three"]
    with pytest.raises(LookupError):
        spool.read(4, 1, 1)
    with pytest.raises(LookupError):
        spool.read(1, 1, 1)
    assert not (tmp_path / "spool").exists()


async def test_a_repeated_batch_is_kept_once(tmp_path: Path) -> None:
    """A write that was cancelled after it was kept is written again with the same numbers."""
    spool = SpoolRoom(tmp_path).open("d")
    await spool.add(1, lines("one", "two"))
    await spool.add(1, lines("one", "two", "three"))
    assert read_all(spool, 1) == ["one", "two", "three"]
    assert spool.last == 3


async def test_at_least_one_line_however_long(tmp_path: Path) -> None:
    spool = SpoolRoom(tmp_path).open("d")
    await spool.add(1, lines("x" * 5000, "y" * 5000))
    assert spool.read(1, 512, 100).count == 1
    assert spool.read(1, 512, 20_000).count == 2
    assert spool.read(1, 1, 20_000).count == 1


async def test_many_lines_go_to_disk_and_leave_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "SEGMENT_SIZE", 64 * 1024)
    room = SpoolRoom(tmp_path / "spool")
    spool = room.open("d")
    for first in range(1, 20_001, 100):
        await spool.add(first, numbered(first, 100))
    segments = sorted((tmp_path / "spool").iterdir())
    assert len(segments) > 2
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in segments)
    assert spool._in_memory <= spool_module.MEMORY_MAX
    assert read_all(spool, 1, 997) == [f"{number:08d}" for number in range(1, 20_001)]
    spool.let_go(10_000)
    assert len(list((tmp_path / "spool").iterdir())) < len(segments)
    assert read_all(spool, 10_001, 997) == [f"{number:08d}" for number in range(10_001, 20_001)]
    spool.close()
    assert list((tmp_path / "spool").iterdir()) == []
    assert room.used == 0


async def test_a_full_room_blocks_and_says_so_and_drops_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    room = SpoolRoom(tmp_path, limit=20_000, say=said.append)
    fast, slow = room.open("fast"), room.open("slow")
    await slow.add(1, numbered(1, 100))
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:

            async def print_much() -> None:
                for first in range(1, 1001, 100):
                    await fast.add(first, numbered(first, 100))

            nursery.start_soon(print_much)
            await trio.testing.wait_all_tasks_blocked()
            assert fast.last < 1000
            assert room.used <= 20_000
            assert said
            assert "back-pressure" in said[0]
            taken: list[str] = []
            while len(taken) < 1000:
                taken += [line.text for line in lines_of(fast.read(len(taken) + 1, 64, 10_000).blocks)]
                fast.let_go(len(taken))
                await trio.testing.wait_all_tasks_blocked()
    assert taken == [f"{number:08d}" for number in range(1, 1001)]


async def test_a_cancelled_wait_has_kept_nothing(tmp_path: Path) -> None:
    room = SpoolRoom(tmp_path, limit=1_000)
    spool = room.open("d")
    await spool.add(1, numbered(1, 10))
    with trio.move_on_after(0):
        await spool.add(11, numbered(11, 10))
    assert spool.last == 10
    spool.let_go(10)
    await spool.add(11, numbered(11, 10))
    assert spool.last == 20
    assert room.used <= 1_000


async def test_a_disk_without_room_is_a_full_spool(tmp_path: Path) -> None:
    """The folder cannot be made: lines stay in memory up to their bound, then the step waits."""
    (tmp_path / "file").write_text("in the way")
    spool = SpoolRoom(tmp_path / "file" / "spool").open("d")
    with trio.move_on_after(0.2) as scope:
        for first in range(1, 100_001, 100):
            await spool.add(first, numbered(first, 100))
    assert scope.cancelled_caught
    kept = spool.last
    assert kept >= 100
    assert read_all(spool, 1) == [f"{number:08d}" for number in range(1, kept + 1)]
    spool.let_go(kept)
    with trio.fail_after(60):
        await spool.add(kept + 1, numbered(kept + 1, 100))


def test_sweep_removes_what_a_predecessor_left(tmp_path: Path) -> None:
    room = SpoolRoom(tmp_path / "spool")
    room.sweep()
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "dead-1.lines").write_text("x")
    room.sweep()
    assert list((tmp_path / "spool").iterdir()) == []


ADDED = st.lists(st.integers(1, 20), min_size=1, max_size=4)


@given(st.lists(st.tuples(ADDED, st.integers(0, 60)), max_size=30))
@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_any_order_of_adding_and_letting_go(tmp_path: Path, moves: list[tuple[list[int], int]]) -> None:
    room = SpoolRoom(tmp_path / "any")
    spool = room.open("d")
    gone = 0
    kept_memory, spool_module.MEMORY_MAX = spool_module.MEMORY_MAX, 900  # type: ignore[misc]
    try:
        for add, let_go in moves:
            await spool.add(spool.last + 1, blocks(spool.last + 1, add))
            assert read_all(spool, gone + 1) == [
                f"{number:08d}" for number in range(gone + 1, spool.last + 1)
            ]
            gone = max(gone, min(spool.last, let_go * 5))
            spool.let_go(gone)
            gone = min(gone, spool.last)
            assert read_all(spool, gone + 1) == [
                f"{number:08d}" for number in range(gone + 1, spool.last + 1)
            ]
    finally:
        spool_module.MEMORY_MAX = kept_memory  # type: ignore[misc]
        spool.close()
    assert room.used == 0


async def test_little_by_little_is_few_chunks_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that prints line by line: what is known of its lines is as little as of one that prints much at once."""
    monkeypatch.setattr(spool_module, "MEMORY_MAX", 1_000)
    monkeypatch.setattr(spool_module, "CHUNK_SIZE", 4_000)
    spool = SpoolRoom(tmp_path).open("d")
    for number in range(1, 3_001):
        await spool.add(number, numbered(number, 1))
    assert len(spool._chunks) < 50
    assert read_all(spool, 1) == [f"{number:08d}" for number in range(1, 3_001)]
    spool.let_go(1_500)
    assert read_all(spool, 1_501) == [f"{number:08d}" for number in range(1_501, 3_001)]
    spool.close()


async def test_a_block_is_cut_at_its_lines_to_what_may_be_sent(tmp_path: Path) -> None:
    spool = SpoolRoom(tmp_path).open("d")
    await spool.add(1, (LogBlock(Stream.STDOUT, "\n".join(["ü" * 50] * 10)),))
    batch = spool.read(1, 100, 320)
    assert (batch.count, batch.size) == (3, 303)
    assert spool.read(2, 4, 10_000).count == 4
    assert spool.read(10, 4, 1).count == 1
