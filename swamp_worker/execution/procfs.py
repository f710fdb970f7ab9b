"""Processes as `/proc` shows them: who is in a group, who carries a marker, when each was started.

Linux only; elsewhere every answer is empty and callers are left with process groups alone. Answers are old
the moment they are given: whoever kills by them looks again. Standard library only, since the keeper
process imports it.
"""

import os
from collections.abc import Iterable
from typing import Final, NamedTuple

MARKER_NAME: Final = "SWAMP_DISPATCH"  # the variable in a step's environment that names its dispatch
TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


class Process(NamedTuple):
    pid: int
    parent: int
    group: int
    session: int
    dead: bool  # a zombie: ended, not yet reaped
    started_ticks: int  # since boot


def process(pid: int) -> Process | None:
    """One process, or None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:  # noqa: PTH123 - on the keeper's path
            text = file.read()
    except OSError:
        return None
    # The name is in parentheses and may itself hold spaces and parentheses.
    fields = text[text.rindex(b")") + 2 :].split()
    return Process(
        pid=pid,
        parent=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        dead=fields[0] in (b"Z", b"X"),
        started_ticks=int(fields[19]),
    )


def processes() -> list[Process]:
    """Every process that can be seen."""
    try:
        names = os.listdir("/proc")  # noqa: PTH208 - on the keeper's path
    except OSError:
        return []
    return [found for name in names if name.isdigit() and (found := process(int(name))) is not None]


def carries(pid: int, markers: Iterable[str]) -> str | None:
    """Which of `markers` the environment of `pid` has; None also when it may not be read."""
    try:
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:  # noqa: PTH123 - on the keeper's path
            text = b"\0" + file.read()
    except OSError:
        return None
    for marker in markers:
        if f"\0{MARKER_NAME}={marker}\0".encode() in text:
            return marker
    return None


def is_unclear(pid: int) -> bool:
    """Whether it lives and shows no environment: between two programs (`execve`) it has none for an instant."""
    try:
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:  # noqa: PTH123 - on the keeper's path
            if file.read(1):
                return False
    except OSError:
        return False
    found = process(pid)
    return found is not None and not found.dead


def children() -> list[int] | None:
    """Our own children, orphans that became ours included. None where the system does not list them. One
    small read.
    """
    own = os.getpid()
    try:
        with open(f"/proc/{own}/task/{own}/children", "rb", buffering=0) as file:  # noqa: PTH123 - hot path
            return list(map(int, file.read().split()))
    except OSError:
        return None
