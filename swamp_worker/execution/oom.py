"""Whether the kernel has killed for memory: a counter it keeps, compared with the last look.

It cannot tell which process; a step that died of SIGKILL while the counter moved is the best guess there
is, and is worded so.
"""

from pathlib import Path


class OutOfMemory:
    """`happened()` is true when the kernel killed something since the last look (or since the beginning)."""

    def __init__(self) -> None:
        self._source = _find_source()
        self._seen = self._read()

    def happened(self) -> bool:
        before, self._seen = self._seen, self._read()
        return self._seen > before

    def _read(self) -> int:
        if self._source is None:
            return 0
        try:
            for line in self._source.read_text().splitlines():
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    return int(value)
        except (OSError, ValueError):
            pass
        return 0


def _find_source() -> Path | None:
    """This process's own cgroup where it has one, else the whole machine."""
    try:
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::/"):
                events = Path("/sys/fs/cgroup") / line[4:] / "memory.events"
                if events.exists():
                    return events
    except OSError:
        pass
    machine = Path("/proc/vmstat")
    return machine if machine.exists() else None
