"""The keeper process: `python -I -S keeper_main.py REGISTRY LIFELINE READY`.

It holds the read end of a pipe (`LIFELINE`) whose only write end is its parent's. Nothing is ever written
to it: it ends when the parent does, however that happens. Then, and whenever an instant in the registry has
passed, it kills.

- End of the lifeline: KILL to everything in the registry until nothing is found, note that in the registry,
  exit.
- The holder's give-up instant, or a dispatch's own latest instant: mark the entry, then KILL it; the parent
  reads the mark and knows that it was not the step's doing.

It looks once a second at least, by the boot clock: entries and renewals are plain memory that the parent
changes without telling. It ignores the signals that a terminal or a service manager sends to everybody: it
leaves when its work is done.
"""

import os
import select
import signal
import sys
from pathlib import Path

_LOOK_S_MAX = 1.0
_CLEAN_WITHIN_S = 60.0


def main(arguments: list[str]) -> int:
    """Exit code: 0 when everything was found gone, 1 when something was left."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from swamp_worker.execution import reaping, registry

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    book = registry.Registry.open(Path(arguments[0]))
    if book is None:
        return 2
    lifeline, ready = int(arguments[1]), int(arguments[2])
    poll = select.poll()
    poll.register(lifeline, select.POLLIN | select.POLLHUP)
    os.write(ready, b"\n")
    os.close(ready)

    wait_s = 0.0
    while not poll.poll(wait_s * 1000):
        now = registry.boot_ns()
        give_up = book.header().give_up_ns
        entries = book.entries()
        overdue = []
        next_ns = give_up if give_up > now else 0
        for entry in entries:
            limits = [at for at in (give_up, entry.kill_by_ns) if at]
            if not limits:
                continue
            if min(limits) <= now:
                overdue.append(entry)
            else:
                next_ns = min(next_ns or min(limits), min(limits))
        for entry in overdue:
            book.mark_killed(entry.place)
        if overdue:
            reaping.kill(overdue, strict=False)
        wait_s = min(_LOOK_S_MAX, max(0.001, (next_ns - now) / 1e9)) if next_ns else _LOOK_S_MAX

    entries = book.entries()
    left = reaping.kill_all(entries, strict=False, within_s=_CLEAN_WITHIN_S)
    if left:
        return 1
    for entry in entries:
        book.clear(entry.place)
    book.set_cleaned()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
