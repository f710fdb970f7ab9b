"""Every event that was fed to every core, in order: the digest of a world, its trace, and its replay.

A core is wrapped when it is made. `replay` makes all cores anew, feeds them the same events, and demands the
same effects: what a core does depends on what it was told, on nothing else.
"""

import hashlib
from collections.abc import Callable
from typing import Any


class Recorded:
    """A core whose `handle` is written down; everything else is the core's own."""

    def __init__(self, journal: "Journal", name: str, core: Any) -> None:
        self._journal = journal
        self._name = name
        self._core = core
        self._handle = core.handle

    def handle(self, event: Any, *arguments: Any) -> tuple[Any, ...]:
        effects: tuple[Any, ...] = self._handle(event, *arguments)
        self._journal.note(self._name, event, arguments, effects)
        return effects

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._core, name)
        if callable(found):
            setattr(self, name, found)  # a method stays the same for the life of the core
        return found

    def __len__(self) -> int:
        return len(self._core)

    def __contains__(self, name: object) -> bool:
        return name in self._core


class Journal:
    def __init__(self, now: Callable[[], float], *, keep: bool = False, say: bool = False) -> None:
        self._now = now
        self._keep = keep
        self._say = say
        self._digest = hashlib.sha256()
        self._makers: dict[str, Callable[[], Any]] = {}
        self.entries: list[tuple[str, Any, tuple[Any, ...], tuple[Any, ...]]] = []
        self.count = 0

    def core(self, name: str, make: Callable[[], Any]) -> Any:
        self._makers[name] = make
        return Recorded(self, name, make())

    def note(self, name: str, event: Any, arguments: tuple[Any, ...], effects: tuple[Any, ...]) -> None:
        self.count += 1
        said = ",".join(_short(effect) for effect in effects)
        line = f"{self._now():.6f} {name} {_short(event)} > {said}"
        self._digest.update(line.encode())
        if self._say:
            print(line)
        if self._keep:
            self.entries.append((name, event, arguments, effects))

    def remark(self, text: str) -> None:
        """Something the world did; part of the trace and of the digest."""
        line = f"{self._now():.6f} -- {text}"
        self._digest.update(line.encode())
        if self._say:
            print(line)

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()

    def replay(self, skip: str = "dialing") -> int:
        """Feed everything to new cores; the number of events. Cores that draw chance are left out."""
        cores: dict[str, Any] = {}
        for name, event, arguments, effects in self.entries:
            if name.startswith(skip):
                continue
            core = cores.get(name)
            if core is None:
                core = cores[name] = self._makers[name]()
            again = core.handle(event, *arguments)
            assert again == effects, f"{name}: {event} had {effects}, and now {again}"
        return len(self.entries)


def _short(value: Any) -> str:
    """The name of an event or effect and which dispatch it is about; the ends and the writes in more words."""
    lease = getattr(value, "lease", None)
    about = getattr(value, "dispatch", None) or getattr(lease, "dispatch", None)
    parts = [type(value).__name__]
    if about:
        parts.append(str(about)[:8])
    for name in ("request", "outcome", "worker", "link", "code", "seconds", "through"):
        found = getattr(value, name, None)
        if found is not None and found != "":
            parts.append(f"{name}={found}")
    if lease is not None:
        parts.append(f"{lease.state.value}/{lease.phase.value}")
    return " ".join(parts)
