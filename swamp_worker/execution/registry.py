"""What a holder runs, in a file that its keeper and its successor can read: a table in shared memory.

The holder maps the file and writes entries as plain memory: no system call, no message, nothing that could
block its loop. The bytes outlive `kill -9` of the holder at any instruction (they belong to the file), so

- its **keeper** reads them when the pipe ends or an instant passes, and
- its **successor** in the same directory reads them when both are dead.

Layout, little endian: a header of 128 bytes, then `ENTRIES_MAX` entries of 128 bytes.

    header  magic 8s · version I · entries I · pid I · cleaned I · started_ns Q · give_up_ns Q · instance
    36s · boot id 36s entry   state B · flags B · group I · from_ns Q · until_ns Q · kill_by_ns Q · marker
    64s

Rules that hold here:

- An entry is written with its state last and cleared with its state first: a reader sees it whole or not at
  all.
- `EXPECTED` comes before the process is started and names only the marker in its environment; `RUNNING`
  adds its group and the two readings of the boot clock between which it was started, which is how a reused
  number is told from the right one.
- All instants are `CLOCK_BOOTTIME` in nanoseconds; 0 is "none".

It imports nothing but the standard library: the keeper starts with `python -I -S`.
"""

import mmap
import os
import struct
import time
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple

ENTRIES_MAX: Final = 2_048
_ENTRY_SIZE: Final = 128
_HEADER_SIZE: Final = 128
_SIZE: Final = _HEADER_SIZE + ENTRIES_MAX * _ENTRY_SIZE
_MAGIC: Final = b"swampkpr"
_VERSION: Final = 1
_HEADER: Final = struct.Struct("<8sIIII QQ 36s36s")
_BODY: Final = struct.Struct("<IQQQ64s")  # of an entry, after state and flags, at offset 4
_U64: Final = struct.Struct("<Q")
_AT_CLEANED: Final = 20
_AT_GIVE_UP: Final = 32
_MARKER_MAX: Final = 64

assert _HEADER.size <= _HEADER_SIZE
assert 4 + _BODY.size <= _ENTRY_SIZE

_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boot_ns() -> int:
    """Nanoseconds since boot, suspended time included (where the system can tell)."""
    return time.clock_gettime_ns(_CLOCK)


def boot_id() -> str:
    """Differs after every boot. Where the system has none, derived from the instant of boot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        minute = int(time.time() - boot_ns() / 1e9) // 60
        return f"00000000-0000-0000-0000-{minute:012d}"


class State(IntEnum):
    FREE = 0
    EXPECTED = 1  # a process with this marker may exist
    RUNNING = 2  # its group is known


class Entry(NamedTuple):
    """One entry as read."""

    place: int
    state: State
    killed: bool  # the keeper ended it
    group: int
    from_ns: int
    until_ns: int
    kill_by_ns: int
    marker: str


class Header(NamedTuple):
    pid: int
    cleaned: bool  # the keeper found everything of this holder gone, after its end
    give_up_ns: int
    instance: str
    boot_id: str


class Registry:
    """The mapped file. One writer (the holder); the keeper only sets `killed`, `cleaned` and clears after the
    end.
    """

    def __init__(self, path: Path, mapped: mmap.mmap) -> None:
        self.path = path
        self._map = mapped
        self._free = list(range(ENTRIES_MAX - 1, -1, -1))

    @classmethod
    def create(cls, path: Path, instance: str) -> "Registry":
        """A new file for this process. Raises OSError."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, _SIZE)
            mapped = mmap.mmap(descriptor, _SIZE)
        finally:
            os.close(descriptor)
        header = (_MAGIC, _VERSION, ENTRIES_MAX, os.getpid(), 0, boot_ns(), 0)
        _HEADER.pack_into(mapped, 0, *header, instance.encode()[:36], boot_id().encode()[:36])
        return cls(path, mapped)

    @classmethod
    def open(cls, path: Path) -> "Registry | None":
        """An existing file; None when it is not one of ours or was never finished. Raises OSError."""
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.fstat(descriptor).st_size != _SIZE:
                return None
            mapped = mmap.mmap(descriptor, _SIZE)
        finally:
            os.close(descriptor)
        magic, version, entries, *_ = _HEADER.unpack_from(mapped, 0)
        if (magic, version, entries) != (_MAGIC, _VERSION, ENTRIES_MAX):
            mapped.close()
            return None
        return cls(path, mapped)

    def header(self) -> Header:
        _, _, _, pid, cleaned, _, give_up, instance, boot = _HEADER.unpack_from(self._map, 0)
        return Header(pid, bool(cleaned), give_up, _text(instance), _text(boot))

    def set_give_up(self, at_ns: int) -> None:
        _U64.pack_into(self._map, _AT_GIVE_UP, at_ns)

    def set_cleaned(self) -> None:
        self._map[_AT_CLEANED] = 1

    # ── the holder's side ───────────────────────────────────────────────────────────────────────────────────
    def expect(self, marker: str, kill_by_ns: int) -> int:
        """Take an entry before a process with `marker` in its environment is started. Raises IndexError when
        full.
        """
        place = self._free.pop()
        at = _HEADER_SIZE + place * _ENTRY_SIZE
        _BODY.pack_into(self._map, at + 4, 0, boot_ns(), 0, kill_by_ns, marker.encode()[:_MARKER_MAX])
        self._map[at + 1] = 0
        self._map[at] = State.EXPECTED
        return place

    def register(self, place: int, group: int, from_ns: int = 0) -> None:
        """The process runs; its group is its pid. `from_ns`: not before this instant, where it was started before it was expected."""
        at = _HEADER_SIZE + place * _ENTRY_SIZE
        struct.pack_into("<I", self._map, at + 4, group)
        if from_ns:
            _U64.pack_into(self._map, at + 8, from_ns)
        _U64.pack_into(self._map, at + 16, boot_ns())
        self._map[at] = State.RUNNING

    def set_kill_by(self, place: int, at_ns: int) -> None:
        _U64.pack_into(self._map, _HEADER_SIZE + place * _ENTRY_SIZE + 24, at_ns)

    def forget(self, place: int) -> None:
        """The group is empty and reaped."""
        self._map[_HEADER_SIZE + place * _ENTRY_SIZE] = State.FREE
        self._free.append(place)

    def killed(self, place: int) -> bool:
        return self._map[_HEADER_SIZE + place * _ENTRY_SIZE + 1] != 0

    # ── the reader's side ───────────────────────────────────────────────────────────────────────────────────
    def entries(self) -> list[Entry]:
        """Every entry in use."""
        found = []
        states = self._map[_HEADER_SIZE:_SIZE:_ENTRY_SIZE]
        for place, state in enumerate(states):
            if state in (State.EXPECTED, State.RUNNING):
                at = _HEADER_SIZE + place * _ENTRY_SIZE
                group, from_ns, until_ns, kill_by_ns, marker = _BODY.unpack_from(self._map, at + 4)
                killed = self._map[at + 1] != 0
                found.append(
                    Entry(place, State(state), killed, group, from_ns, until_ns, kill_by_ns, _text(marker))
                )
        return found

    def mark_killed(self, place: int) -> None:
        self._map[_HEADER_SIZE + place * _ENTRY_SIZE + 1] = 1

    def clear(self, place: int) -> None:
        self._map[_HEADER_SIZE + place * _ENTRY_SIZE] = State.FREE

    def close(self) -> None:
        self._map.close()


def _text(field: bytes) -> str:
    return field.rstrip(b"\0").decode("ascii", "replace")
