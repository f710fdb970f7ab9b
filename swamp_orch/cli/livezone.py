"""The live zone: what goes on right now, below the permanent lines of a terminal.

Rules
- Permanent lines are never overwritten: the zone is erased before one is printed and drawn again below it.
- Every zone line fits the width (control characters removed, cut by columns), and the zone leaves room
  above it, so the terminal never scrolls a part of it away. A zone drawn at one width is erased by the rows
  it takes at the width the terminal has when it is erased.
- The cursor is hidden while the zone is up and shown again whatever happens.
- Only escape codes that every terminal of the last decades knows; nothing is drawn on a pipe or with
  TERM=dumb.
"""

import re
import shutil
from collections.abc import Iterable
from typing import Final, TextIO

from swamp_orch.cli.console import age, paint, size, width
from swamp_orch.cli.runtree import RunTree, StepView

SPINNER: Final = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
FRAME_S: Final = 0.1
ROWS_MAX: Final = 16
_HIDE, _SHOW = "\x1b[?25l", "\x1b[?25h"
_CONTROL: Final = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b.|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)
_COLOUR: Final = re.compile(r"\x1b\[[0-9;:]*m")


def plain(text: str) -> str:
    """`text` without anything that moves a cursor; tabs become blanks."""
    return _CONTROL.sub("", text.replace("\t", "    "))


def tame(text: str) -> str:
    """A permanent line for a terminal: colours stay, everything that could move the cursor goes."""
    if "\x1b" not in text and text.isprintable():
        return text
    found = _CONTROL.sub(lambda m: m[0] if _COLOUR.fullmatch(m[0]) else "", text)
    return found + "\x1b[0m" if "\x1b" in found else found


def fit(text: str, columns: int) -> str:
    """`text` cut to `columns`."""
    if width(text) <= columns:
        return text
    kept, used = [], 0
    for character in text:
        used += width(character)
        if used > columns - 1:
            break
        kept.append(character)
    return "".join(kept) + "…"


class LiveZone:
    """Draws on `out`. Use as a context manager."""

    def __init__(self, out: TextIO, *, color: bool) -> None:
        self._out = out
        self._color = color
        self._drawn: list[int] = []  # widths of the lines on the screen
        self._began: float | None = None

    def __enter__(self) -> "LiveZone":
        self._write(_HIDE)
        return self

    def __exit__(self, *_: object) -> None:
        self._write(self._erased() + _SHOW)

    def draw(self, tree: RunTree, now: float, permanent: Iterable[str] = ()) -> None:
        """Print `permanent` lines and the zone as of `now` (seconds of the caller's clock) below them."""
        if self._began is None:
            self._began = now
        columns, rows = shutil.get_terminal_size()
        zone = self._lines(tree, now, columns, max(1, min(ROWS_MAX, rows - 2))) if tree.ended is None else []
        text = self._erased(columns)
        for line in permanent:
            if len(text) > 64 * 1024:
                self._write(text)
                text = ""
            text += tame(line) + "\n"
        for line in zone:
            text += paint(line, "dim", self._color) + "\n"
        self._drawn = [width(line) for line in zone]
        self._write(text)

    def _erased(self, columns: int | None = None) -> str:
        if not self._drawn:
            return ""
        at = columns or shutil.get_terminal_size()[0]
        rows = sum(max(1, -(-line // max(1, at))) for line in self._drawn)
        self._drawn = []
        return f"\x1b[{rows}A\r\x1b[J"

    def _lines(self, tree: RunTree, now: float, columns: int, most: int) -> list[str]:
        frame = SPINNER[int(now / FRAME_S) % len(SPINNER)]
        steps = [step for job in tree.jobs.values() for step in job.steps.values()]
        running = [step for step in steps if step.phase == "running"]
        waiting = [step for step in steps if step.phase == "waiting"]
        pending = sum(step.phase == "pending" for step in steps)
        done = len(steps) - len(running) - len(waiting) - pending
        head = f"{frame} {tree.name or 'run'} · {done}/{len(steps)} steps · {self._for(now, self._began)}"
        lines = [head]
        for step in running:
            where = f" on {step.worker}" if step.worker else ""
            lines.append(f"  {frame} {self._name(step)}{where} · {self._for(now, step.started)}")
            lines.extend(
                f"    ↑ upload {here * 100 // of} % · {size(here)} of {size(of)}"
                for here, of in step.uploads.values()
            )
            # A single running step has the room for what it prints.
            tail = step.output.tail if len(running) == 1 else step.output.tail[-1:]
            lines.extend(f"    │ {line}" for line in tail)
        for step in waiting:
            why = f" · {step.reason}" if step.reason else ""
            need = f" for {step.requirement}" if step.requirement else ""
            lines.append(f"  ○ {self._name(step)} waiting{need}{why} · {self._for(now, step.waiting_since)}")
        if pending:
            lines.append(f"  ○ {pending} not started")
        if len(lines) > most:
            lines = [line for line in lines if not line.startswith(("    │ ", "    ↑ "))]
        if len(lines) > most:
            lines = [*lines[: max(1, most - 1)], f"  … {len(lines) - most + 1} more"][:most]
        return [fit(plain(line), max(1, columns - 1)) for line in lines]

    def _name(self, step: StepView) -> str:
        return f"{step.job} › {step.name}"

    def _for(self, now: float, since: float | None) -> str:
        return age((now - since) * 1000) if since is not None else "-"

    def _write(self, text: str) -> None:
        if text:
            self._out.write(text)
            self._out.flush()
