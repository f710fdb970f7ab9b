"""The log of one dispatch at the orchestrator: when the holder is told what is durable, and what it is sealed to."""

from hashlib import sha256
from pathlib import Path

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swamp_orch.engine.ingress import Ingress
from swamp_orch.engine.logs import LogSpool
from swamp_orch.store.interface import Content, Store
from swamp_orch.store.memory import MemoryStore
from swamp_orch.store.sqlite import open_store
from swamp_proto.limits import LINE_MAX, LOG_NOTED_BYTES, LOG_NOTED_LINES, LOG_WINDOW_BYTES
from swamp_proto.messages.dispatch import LogBlock, Stream


def lines(count: int, text: str = "") -> tuple[LogBlock, ...]:
    return (LogBlock(Stream.STDOUT, text),) * count


async def test_many_short_lines_and_few_long_ones_are_both_noted(tmp_path: Path) -> None:
    """Else a worker whose window is full of them would wait for ever."""
    spool = LogSpool(tmp_path / "log", lambda number, line: None, Ingress().lines())
    assert not spool.add(1, lines(LOG_NOTED_LINES - 1))
    assert spool.add(LOG_NOTED_LINES, lines(1))
    assert await spool.flush() == LOG_NOTED_LINES
    assert spool.add(LOG_NOTED_LINES + 1, lines(1, "x" * LOG_NOTED_BYTES))


async def test_lines_that_were_noted_before_are_noted_again(tmp_path: Path) -> None:
    """The note was lost with its link; the holder begins behind the last one it heard of."""
    spool = LogSpool(tmp_path / "log", lambda number, line: None, Ingress().lines())
    assert spool.add(1, lines(LOG_NOTED_LINES))
    await spool.flush()
    assert spool.add(1, lines(10))
    assert not spool.add(LOG_NOTED_LINES + 1, lines(10))


async def test_a_piece_that_waits_for_its_line_holds_no_window_shut(tmp_path: Path) -> None:
    """A full piece on one stream, then only the other stream: what waits behind it is bounded below the worker's window."""
    ingress = Ingress()
    ingress.learn(["hunter2-hunter2"])
    spool = LogSpool(tmp_path / "log", lambda number, line: None, ingress.lines())
    spool.add(1, (LogBlock(Stream.STDERR, "e" * LINE_MAX),))
    sent, number = LINE_MAX + 1, 2
    while not spool.add(number, lines(1, "x" * 1000)):
        sent, number = sent + 1001, number + 1
        assert sent < LOG_WINDOW_BYTES


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 30)), max_size=25))
@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_whatever_is_sent_again_each_line_is_there_once(
    tmp_path: Path, moves: list[tuple[int, int]]
) -> None:
    """Sent again from any line on, in other blocks; what comes after a gap is not taken."""
    told: list[str] = []
    spool = LogSpool(
        tmp_path / "log", lambda number, block: told.extend(block.text.split("\n")), Ingress().lines()
    )
    for back, count in moves:
        first = max(1, spool.through + 1 - back) if back < 50 else spool.through + 2
        texts = [f"{number}" for number in range(first, first + count)]
        spool.add(
            first, tuple(LogBlock(Stream.STDOUT, "\n".join(texts[at : at + 7])) for at in range(0, count, 7))
        )
    assert told == [f"{number}" for number in range(1, spool.through + 1)]
    assert (await sealed(spool, MemoryStore(lambda: 0))).inline == b"".join(
        b"%d\n" % n for n in range(1, spool.through + 1)
    )


async def test_lines_that_never_came_are_counted_in_the_log(tmp_path: Path) -> None:
    for last_line, lost, said in [
        (3, 0, b""),
        (4, 0, b"swamp: 1 line is missing here\n"),
        (3, 7, b"swamp: 7 lines are missing here\n"),
    ]:
        spool = LogSpool(tmp_path / "log", lambda number, block: None, Ingress().lines())
        spool.add(1, lines(3, "x"))
        spool.end(last_line, lost)
        spool.end(last_line, lost)  # the end was said again: it could not be saved at first
        assert (await sealed(spool, MemoryStore(lambda: 0))).inline == b"x\n" * 3 + said


async def sealed(spool: LogSpool, store: Store) -> Content:
    with trio.fail_after(60):
        return await spool.seal(store)


async def test_a_long_log_is_sealed_without_a_copy_and_does_not_change_after_it(tmp_path: Path) -> None:
    store = open_store(tmp_path / "data")
    try:
        spool = LogSpool(tmp_path / "data" / "log", lambda number, block: None, Ingress().lines())
        spool.add(1, lines(50, "x" * 1000))
        await spool.flush()
        spool.add(51, lines(50, "x" * 1000))
        content = await sealed(spool, store)
        expected = (b"x" * 1000 + b"\n") * 100
        assert (content.sha256, content.size) == (sha256(expected).hexdigest(), len(expected))
        (blob,) = blobs(tmp_path)
        assert blob.samefile(spool.file)
        assert blob.read_bytes() == expected
        spool.add(101, lines(1, "late"))
        await spool.flush()
        assert await sealed(spool, store) == content
        assert blob.read_bytes() == expected
        spool.remove()
        assert not spool.file.exists()
        assert blobs(tmp_path) == [blob]
    finally:
        store.close()


async def test_a_log_that_was_sealed_by_a_process_that_died_goes_on_in_a_copy(tmp_path: Path) -> None:
    """It died before the end was committed: the blob is nobody's yet, and what comes must not change it."""
    store = open_store(tmp_path / "data")
    try:
        file = tmp_path / "data" / "log"
        spool = LogSpool(file, lambda number, block: None, Ingress().lines())
        spool.add(1, lines(100, "x" * 1000))
        first = await sealed(spool, store)
        (blob,) = blobs(tmp_path)
        again = LogSpool.recover(file, lambda number, block: None, Ingress().lines())
        assert (again.through, again.noted) == (100, 100)
        assert await sealed(again, store) == first
        more = LogSpool.recover(file, lambda number, block: None, Ingress().lines())
        more.add(101, lines(100, "y" * 1000))
        second = await sealed(more, store)
        expected = (b"x" * 1000 + b"\n") * 100 + (b"y" * 1000 + b"\n") * 100
        assert (second.sha256, second.size) == (sha256(expected).hexdigest(), len(expected))
        assert sha256(blob.read_bytes()).hexdigest() == first.sha256
        assert sorted(one.stat().st_size for one in blobs(tmp_path)) == [100_100, 200_200]
    finally:
        store.close()


def blobs(folder: Path) -> list[Path]:
    return [path for path in (folder / "data" / "blobs").rglob("*") if path.is_file()]


def test_an_unfinished_last_line_is_cut_when_a_log_is_found_again(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"one\n" * 300_000 + b"tw")
    spool = LogSpool.recover(tmp_path / "log", lambda number, block: None, Ingress().lines())
    assert (spool.through, spool._on_disk) == (300_000, 1_200_000)
    nothing = LogSpool.recover(tmp_path / "none", lambda number, block: None, Ingress().lines())
    assert (nothing.through, nothing._on_disk) == (0, 0)
