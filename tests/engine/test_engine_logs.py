"""The log of one dispatch at the orchestrator: when the holder is told what is durable."""

from pathlib import Path

from swamp_orch.engine.ingress import Ingress
from swamp_orch.engine.logs import LogSpool
from swamp_proto.limits import LINE_MAX, LOG_NOTED_BYTES, LOG_NOTED_LINES, LOG_WINDOW_BYTES
from swamp_proto.messages.dispatch import LogLine, Stream


def lines(count: int, text: str = "") -> tuple[LogLine, ...]:
    return (LogLine(Stream.STDOUT, text),) * count


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
    spool.add(1, (LogLine(Stream.STDERR, "e" * LINE_MAX),))
    sent, number = LINE_MAX + 1, 2
    while not spool.add(number, lines(1, "x" * 1000)):
        sent, number = sent + 1001, number + 1
        assert sent < LOG_WINDOW_BYTES
