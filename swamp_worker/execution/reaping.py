"""Ending what a registry names: which processes those are, and killing them until none is found.

Used by the keeper process when its parent is gone or late, and by a successor in the same directory. Rules:

- A group is only taken for the registered one when its leader was started between the two readings of the
  boot clock in the entry, or, its leader being gone, when a member carries the marker (`strict`) or cannot
  be anything else (not `strict`: the look follows the holder's end at once, and a number is not reused
  while its group exists).
- The marker alone is enough, whatever the group or the session: that is what finds `setsid` and double forks.
- "None left" is believed after three looks in a row that found nothing: a process between fork and exec
  still shows its parent's environment.

Out of reach, and said so in the documentation: other users' processes, and those that dropped the marker
*and* left the group. Standard library only.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable
from typing import Final

from swamp_worker.execution import procfs
from swamp_worker.execution.registry import Entry, State

_LOOKS: Final = 3
_PAUSE_S: Final = 0.03


def alive(entries: Iterable[Entry], strict: bool) -> list[procfs.Process]:
    """Living processes that belong to the entries."""
    named = list(entries)
    if not named:
        return []
    groups = {entry.group: entry for entry in named if entry.state is State.RUNNING and entry.group > 1}
    markers = [entry.marker for entry in named if entry.marker]
    everything = procfs.processes()
    by_pid = {process.pid: process for process in everything}
    own = os.getpid()
    found = []
    for process in everything:
        if process.dead or process.pid == own:
            continue
        entry = groups.get(process.group)
        if (entry is not None and _is_group(entry, by_pid.get(process.group), strict)) or procfs.carries(
            process.pid, markers
        ):
            found.append(process)
    return found


def _is_group(entry: Entry, leader: procfs.Process | None, strict: bool) -> bool:
    if leader is None:
        return not strict
    ticks = procfs.TICKS_PER_S
    return (
        entry.from_ns * ticks // 1_000_000_000 - 1
        <= leader.started_ticks
        <= entry.until_ns * ticks // 1_000_000_000 + 1
    )


def kill(entries: Iterable[Entry], strict: bool) -> int:
    """KILL what belongs to the entries, once. How many were found."""
    named = list(entries)
    if sys.platform != "linux":
        for entry in named:
            if entry.state is State.RUNNING and entry.group > 1:
                _send(-entry.group)
        return 0
    found = alive(named, strict)
    for process in found:
        _send(process.pid)
    return len(found)


def kill_all(entries: Iterable[Entry], strict: bool, within_s: float) -> int:
    """KILL again and again until nothing is found, or `within_s` has passed. How many are left. Blocks."""
    named = list(entries)
    if not named:
        return 0
    until = time.monotonic() + within_s
    clean = 0
    while True:
        left = kill(named, strict)
        clean = clean + 1 if left == 0 else 0
        if clean >= _LOOKS or time.monotonic() > until:
            return left
        time.sleep(_PAUSE_S)


def _send(target: int) -> None:
    """KILL a pid, or a group when negative."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(target, signal.SIGKILL)
