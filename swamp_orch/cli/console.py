"""Writing for people and for programs: tables, marks, colours, questions.

Rules
- Results go to stdout, everything else to stderr. With `--json` stdout gets exactly what was asked for, as
  JSON.
- Colours only where a person looks: a terminal, no `--no-color`, no `NO_COLOR`, no `TERM=dumb`. Widths are
  computed before colouring, so that a pipe and a terminal show the same columns.
- Tables: columns padded to their widest cell, joined by two spaces, rows trimmed at the right.
"""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TextIO

STYLES: Final[Mapping[str, str]] = {
    "dim": "2",
    "bold": "1",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "cyan": "36",
}
STATE_STYLES: Final[Mapping[str, str]] = {
    "enrolled": "green",
    "idle": "green",
    "succeeded": "green",
    "busy": "cyan",
    "running": "cyan",
    "draining": "yellow",
    "unverified": "yellow",
    "cancelled": "yellow",
    "failed": "red",
    "disconnected": "red",
    "expired": "red",
    "revoked": "red",
}


def wants_color(stream: TextIO, allowed: bool) -> bool:
    """Whether `stream` is a terminal whose user did not say no."""
    return (
        allowed
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM") != "dumb"
        and hasattr(stream, "isatty")
        and stream.isatty()
    )


def paint(text: str, style: str | None, on: bool) -> str:
    return f"\x1b[{STYLES[style]}m{text}\x1b[0m" if on and style and text else text


def width(text: str) -> int:
    """Columns of a terminal that `text` takes."""
    if text.isascii():
        return len(text)
    import unicodedata

    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def pad(text: str, columns: int) -> str:
    return text + " " * max(0, columns - width(text))


def cell(value: Any) -> str:
    """A value in a table: one line, never JSON noise for plain things."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list | tuple):
        return json.dumps(list(value), ensure_ascii=False)
    return " ".join(str(value).splitlines())


def table(
    headers: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    color: bool = False,
    styled: Mapping[int, Mapping[str, str]] | None = None,
) -> list[str]:
    """Lines of a table. `styled` maps a column to a style per cell text."""
    texts = [[cell(value) for value in row] for row in rows]
    widths = [max([width(header), *(width(row[i]) for row in texts)]) for i, header in enumerate(headers)]
    lines = [paint("  ".join(map(pad, headers, widths)).rstrip(), "dim", color)]
    for row in texts:
        cells = []
        for i, text in enumerate(row):
            padded = pad(text, widths[i]) if i < len(row) - 1 else text
            style = (styled or {}).get(i, {}).get(text)
            cells.append(padded.replace(text, paint(text, style, color), 1) if style else padded)
        lines.append("  ".join(cells).rstrip())
    return lines


def duration(milliseconds: float | None) -> str:
    """`950ms`, `1.2s`, `2m5s`, `1h3m`."""
    if milliseconds is None:
        return "-"
    if milliseconds < 1000:
        return f"{milliseconds:.0f}ms"
    seconds = milliseconds / 1000
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}m{rest}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60}m"


def age(milliseconds: float | None) -> str:
    """`<1s`, `5s`, `3m`, `2h5m`."""
    if milliseconds is None:
        return "-"
    seconds = int(milliseconds // 1000)
    if seconds < 1:
        return "<1s"
    if seconds < 60:
        return f"{seconds}s"
    return f"{seconds // 60}m" if seconds < 3600 else f"{seconds // 3600}h{seconds % 3600 // 60}m"


def size(count: float | None) -> str:
    """`182B`, `1.5KiB`, `3.0MiB`."""
    if count is None:
        return "-"
    if count < 1024:
        return f"{count:.0f}B"
    if count < 1024**2:
        return f"{count / 1024:.1f}KiB"
    return f"{count / 1024**2:.1f}MiB" if count < 1024**3 else f"{count / 1024**3:.1f}GiB"


def prepare_streams() -> None:
    """`✓` and `│` are part of the output: UTF-8 whatever the locale says, no error for a stray byte."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
