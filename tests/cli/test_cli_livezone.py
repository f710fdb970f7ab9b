"""The live zone on a real pseudo-terminal, read by a small terminal of our own."""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest
from cli_twins import SUMMARY

from swamp_orch.cli.livezone import SPINNER, LiveZone, fit, plain, tame
from swamp_orch.cli.runtree import RunTree

PROJECT = Path(__file__).parents[2]


class Terminal:
    """Just enough of one: text, CR, LF, CUU, ED below, cursor visibility, colours. Scrollback is kept."""

    TOKEN = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|\r|\n|[^\x1b\r\n]+|\x1b")

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self.lines = [""]  # everything ever shown, the screen is the last `rows`
        self.row = self.column = 0
        self.cursor_visible = True

    def feed(self, text: str) -> None:
        for token in self.TOKEN.finditer(text):
            argument, command = token[1], token[2]
            if command == "A":
                top = max(0, len(self.lines) - self.rows)
                self.row = max(top, self.row - int(argument or 1))
            elif command == "J":
                assert argument in ("", "0")
                self.lines = self.lines[: self.row + 1]
                self.lines[self.row] = self.lines[self.row][: self.column]
            elif command in ("h", "l"):
                assert argument == "?25"
                self.cursor_visible = command == "h"
            elif command == "m":
                continue
            elif command is not None:
                raise AssertionError(f"unexpected sequence {token[0]!r}")
            elif token[0] == "\r":
                self.column = 0
            elif token[0] == "\n":
                self._down()
                self.column = 0
            else:
                for character in token[0]:
                    self._put(character)

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append("")

    def _put(self, character: str) -> None:
        if self.column == self.columns:
            self._down()
            self.column = 0
        line = self.lines[self.row].ljust(self.column)
        self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
        self.column += 1

    def text(self) -> list[str]:
        lines = [line.rstrip() for line in self.lines]
        while lines and not lines[-1]:
            lines.pop()
        return lines


PROGRAM = """
import sys, threading
sys.path.insert(0, {tests!r})
from cli_twins import SUMMARY, FakeSession, job_events, run_events
from swamp_orch.cli import following, invocation, main, runtree

# Each `when` event waits until the watching side has said the word: no frame is hoped for.
said = dict((word, threading.Event()) for word in ("queued", "waiting", "running"))
tick, draw = runtree.RunTree.tick, following.LiveZone.draw

def noting_tick(self, now):
    for line in tick(self, now):
        yield line
        said["queued"].set()

def noting_draw(self, tree, now, permanent=()):
    draw(self, tree, now, permanent)
    for job in tree.jobs.values():
        for step in job.steps.values():
            if step.phase in said:
                said[step.phase].set()

runtree.RunTree.tick = noting_tick
following.LiveZone.draw = noting_draw

waiting = dict(kind="step_waiting", job="build", step="echo-on-worker", reason="no worker named build-node",
               requirement="target=build-node")
one = job_events(lines=tuple("line %d \\x1b[2J\\x1b[31mred\\rmoved\\tx" % n for n in range({lines})))
over = dict(kind="job_ended", job="build", status="succeeded")
middle = [waiting, *{words!r}, *one[:-1], *(["running"] if "waiting" in {words!r} else []), one[-1], over]

class Session(FakeSession):
    def stream(self, name, /, **parameters):
        for number, event in enumerate(run_events(middle, markdown=SUMMARY), 1):
            if isinstance(event, str):
                assert said[event].wait(60), event
            else:
                yield dict(seq=number, **event)

invocation.Invocation.session = lambda self: Session(dict([("workflow.run", dict(runId="r1"))]))
sys.argv = ["swamp", "workflow", "run", "remote-demo", *{flags!r}]
main.main()
"""


def _on_a_terminal(
    columns: int,
    rows: int,
    lines: int = 1,
    flags: tuple[str, ...] = (),
    words: tuple[str, ...] = ("waiting", "queued"),
    **extra: str,
) -> tuple[Terminal, str, int]:
    """Run a watched run on a pty; answers the terminal at the end, all bytes, and the exit code."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    environment = {
        key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "LINES", "TERM")
    }
    program = PROGRAM.format(tests=str(Path(__file__).parent), lines=lines, flags=flags, words=words)
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**environment, "PYTHONPATH": str(PROJECT), "TERM": "xterm", **extra},
        stdin=follower,
        stdout=follower,
        stderr=follower,
    )
    os.close(follower)
    raw = bytearray()

    def read() -> None:
        while True:
            try:
                chunk = os.read(leader, 65536)
            except OSError:  # the other end is closed
                return
            if not chunk:
                return
            raw.extend(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    code = process.wait(60)
    reader.join(60)
    os.close(leader)
    text = raw.decode().replace("\r\n", "\n")
    terminal = Terminal(columns, rows)
    terminal.feed(text)
    return terminal, text, code


HEAD = "build" + " " * 59 + "✓echo-on-worker"
TAIL = ["── @swamp/workflow-summary ─────────────────────────────────", *SUMMARY.rstrip("\n").split("\n")]
QUEUED = (
    "○ build › echo-on-worker queued, waiting for worker matching target=build-node "
    "(no worker named build-node)"
)


def test_permanent_lines_are_whole_and_the_zone_is_gone() -> None:
    terminal, raw, code = _on_a_terminal(120, 24)
    assert code == 0
    assert terminal.text() == [QUEUED, HEAD, "│ line 0 redmoved\tx", *TAIL]
    assert terminal.cursor_visible
    assert "waiting for target=build-node · no worker named build-node" in raw  # the zone was there
    assert "build › echo-on-worker on build-node" in raw
    assert any(frame in raw for frame in SPINNER)


def test_an_upload_is_shown_while_it_is_on_its_way() -> None:
    tree, screen = RunTree(), io.StringIO()
    place = {"job": "build", "step": "pack"}

    def drawn(*events: dict[str, object]) -> str:
        screen.seek(0)
        screen.truncate()
        for event in events:
            assert list(tree.take({**place, **event}, 1.0)) == []
        LiveZone(screen, color=False).draw(tree, 2.0)
        return screen.getvalue()

    started = {"kind": "step_started", "attempt": 1, "worker": "build-node"}
    some = {"kind": "step_progress", "upload": 3, "bytes": 3 * 1024**2, "of": 12 * 1024**2}
    assert "    ↑ upload 25 % · 3.0MiB of 12.0MiB\n" in drawn(started, some)
    assert drawn({**some, "upload": 4}).count("↑") == 2
    assert drawn({**some, "bytes": 12 * 1024**2}).count("↑") == 1
    assert "↑" not in drawn({**started, "attempt": 2})  # an attempt begins anew


def test_a_small_terminal_scrolls_and_loses_nothing() -> None:
    terminal, _, code = _on_a_terminal(130, 5, lines=40)
    assert code == 0
    assert terminal.text() == [QUEUED, HEAD, *(f"│ line {n} redmoved\tx" for n in range(40)), *TAIL]


def test_a_narrow_terminal_wraps_permanent_lines_only() -> None:
    terminal, raw, _ = _on_a_terminal(20, 10)
    shown = "".join(line.ljust(20) for line in terminal.text())
    assert "✓echo-on-worker" in shown and "1 succeeded" in shown
    assert "⠋" not in shown and "waiting for target" not in shown.replace("waiting for worker", "")
    assert "…" in raw


@pytest.mark.parametrize(
    ("flags", "words", "extra"), [(("-q",), (), {}), ((), ("queued",), {"TERM": "dumb"})]
)
def test_no_zone_where_it_is_not_wanted(
    flags: tuple[str, ...], words: tuple[str, ...], extra: dict[str, str]
) -> None:
    _, raw, code = _on_a_terminal(120, 24, flags=flags, words=words, **extra)
    assert code == 0 and "\x1b[?25l" not in raw and "⠋" not in raw


def test_no_colour_is_no_colour() -> None:
    _, raw, _ = _on_a_terminal(120, 24, flags=("--no-color",))
    assert "\x1b[2m" not in raw and "\x1b[32m" not in raw


def test_lines_are_tamed() -> None:
    assert tame("plain") == "plain"
    assert tame("a\x1b[31mb\x1b[0m") == "a\x1b[31mb\x1b[0m\x1b[0m"
    assert tame("a\x1b[2J\x1b]0;title\x07b\rc\x1bM\x9bx") == "abcx"
    assert tame("tab\tstays") == "tab\tstays"
    assert plain("a\tb\x1b[31mc") == "a    bc"
    assert fit("日本語", 5) == "日本…" and fit("abc", 3) == "abc"


def test_a_zone_drawn_wide_is_erased_when_the_terminal_became_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    size = [os.terminal_size((60, 20))]
    monkeypatch.setattr("shutil.get_terminal_size", lambda *_: size[0])

    class Screen:
        def __init__(self) -> None:
            self.written: list[str] = []

        def write(self, text: str) -> int:
            self.written.append(text)
            return len(text)

        def flush(self) -> None:
            return

    screen, tree = Screen(), RunTree()
    waiting = {"kind": "step_waiting", "job": "b", "step": "s", "requirement": "r", "reason": "x" * 200}
    list(tree.take(waiting, 0.0))
    with LiveZone(screen, color=False) as zone:  # type: ignore[arg-type] # writes and flushes, which is all it uses
        zone.draw(tree, 0.0)
        drawn = screen.written[-1]
        assert max(map(len, drawn.split("\n"))) == 59
        size[0] = os.terminal_size((30, 20))
        zone.draw(tree, 0.1, ["permanent"])
    rows = sum(-(-len(line) // 30) for line in drawn.strip("\n").split("\n"))
    assert screen.written[2].startswith(f"\x1b[{rows}A\r\x1b[J")
    assert screen.written[-1].endswith("\x1b[?25h")


def test_many_steps_fit_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = RunTree()
    for number in range(50):
        list(tree.take({"kind": "step_started", "job": "b", "step": f"s{number}", "worker": "w"}, 0.0))
    zone = LiveZone(sys.stdout, color=False)
    for most in (1, 3, 16):
        lines = zone._lines(tree, 1.0, 80, most)
        assert len(lines) == most and all(len(line) < 80 for line in lines)
    begin = time.process_time()
    zone._lines(tree, 1.0, 80, 16)
    assert time.process_time() - begin < 0.1
