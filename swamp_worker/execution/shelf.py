"""Folders kept by a key, made once, checked before use, and taken away when room is needed: bundles and environments.

    <folder>/<key>/content/…      what was made; its files are read-only
    <folder>/<key>/entry.json     every file of it with size and sha256
    <folder>/.….part, .….trash    being made, being removed

Rules that hold here:

- A key's folder appears whole or not at all: it is made beside and renamed. A `kill -9` at any instant leaves at most a `.part`.
- Before its first use in a process every byte is compared with the digests; later, now and then, every size and time. What
  is damaged is made anew.
- Whoever uses an entry holds a shared lock on it. Only what nobody uses, in any process, is removed, the longest unused
  first, when all entries together are larger than the bound.
- An entry that nobody uses any more stays open without its lock for a while. Who comes next locks it again, and looks whether it is
  still the one: step follows step, and its bytes need not be compared, nor a thread be asked, for each.
- Several who want the same key at the same time share one making of it.

It does not know what the folders hold, nor how they are made.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import stat
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from swamp_proto.errors import Broken
from swamp_worker.execution.workspace import remove_tree

CONTENT: Final = "content"
ENTRY: Final = "entry.json"
LOOK_AGAIN_S: Final = 30.0  # between two looks at sizes and times of an entry that is used all the time
IDLE_MAX: Final = 32  # entries that stay open although nobody uses them
_PIECE: Final = 1024 * 1024

Fill = Callable[[Path], Awaitable[None]]
"""Makes the content in an empty folder."""


@attrs.define
class _Held:
    """An entry that is used here; the open folder carries the lock."""

    descriptor: int
    marks: dict[str, tuple[int, int]]  # size and time of every file when it was compared
    looked_at: float
    holders: set[str] = attrs.field(factory=set)


@attrs.define
class _Turn:
    """Who makes an entry, and who waits for it."""

    lock: trio.Lock = attrs.field(factory=trio.Lock)
    users: int = 0


class Shelf:
    """One folder of entries. The folder is made when first needed."""

    def __init__(self, folder: Path, size_max: int) -> None:
        self.folder = folder
        self._size_max = size_max
        self._held: dict[str, _Held] = {}
        self._idle: dict[str, _Held] = {}  # open and not locked; the one that became so last is last
        self._turns: dict[str, _Turn] = {}
        self._made = 0

    async def get(self, key: str, holder: str, fill: Fill) -> Path:
        """The content of `key`, made by `fill` when there is none; `holder` uses it until `release`. Raises `Broken`, and
        what `fill` raises.
        """
        held = self._held.get(key) or self._use_again(key)
        if held is None or time.monotonic() - held.looked_at > LOOK_AGAIN_S:
            turn = self._turns.setdefault(key, _Turn())
            turn.users += 1
            try:
                async with turn.lock:
                    held = await self._take(key, fill)
            except OSError as error:
                raise Broken(
                    f"the cache {self.folder} cannot be used: {error.strerror or error}",
                    hint="is its disk full, or its folder not this user's?",
                ) from error
            finally:
                turn.users -= 1
                if turn.users == 0:
                    del self._turns[key]
        held.holders.add(holder)
        return self.folder / key / CONTENT

    def release(self, holder: str) -> None:
        """It uses nothing any more."""
        for key, held in list(self._held.items()):
            held.holders.discard(holder)
            if not held.holders and key not in self._turns:
                del self._held[key]
                fcntl.flock(held.descriptor, fcntl.LOCK_UN)
                self._idle[key] = held
        while len(self._idle) > IDLE_MAX:
            os.close(self._idle.pop(next(iter(self._idle))).descriptor)

    def sweep(self) -> None:
        """Remove what dead processes left half made. Blocks."""
        with contextlib.suppress(FileNotFoundError):
            for path in self.folder.iterdir():
                if path.name.startswith("."):
                    self._remove_unused(path.name)

    def _use_again(self, key: str) -> _Held | None:
        """The entry that was used here before, locked again; None when there is none, or it may not be that one any more."""
        held = self._idle.pop(key, None)
        if held is None:
            return None
        try:
            fcntl.flock(held.descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if os.stat(self.folder / key).st_ino == os.fstat(held.descriptor).st_ino:  # noqa: PTH116 - on the path of every step
                self._held[key] = held
                return held
        except OSError:  # it is being removed, or has been
            pass
        os.close(held.descriptor)
        return None

    # ── taking ──────────────────────────────────────────────────────────────────────────────────────────────
    async def _take(self, key: str, fill: Fill) -> _Held:
        held = self._held.get(key)
        if held is not None:
            if time.monotonic() - held.looked_at <= LOOK_AGAIN_S:
                return held
            if await trio.to_thread.run_sync(self._is_as_it_was, key, held):
                held.looked_at = time.monotonic()
                return held
            del self._held[key]
            os.close(held.descriptor)
            await trio.to_thread.run_sync(self._throw_away, key)
        while True:
            found = await trio.to_thread.run_sync(self._open, key)
            if found is None:
                found = await self._make(key, fill)
            if found is not None:
                self._held[key] = found
                return found

    def _open(self, key: str) -> _Held | None:
        """The entry, locked and compared; None when there is none, or it is damaged and now gone."""
        path = self.folder / key
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if path.stat().st_ino != os.fstat(descriptor).st_ino:
                raise BlockingIOError  # another took its place
            marks = _compare(path)
            if marks is not None:
                os.utime(path)
                return _Held(descriptor, marks, time.monotonic())
        except (BlockingIOError, FileNotFoundError):  # it is being removed
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        self._throw_away(key)
        return None

    def _is_as_it_was(self, key: str, held: _Held) -> bool:
        path = self.folder / key
        try:
            if path.stat().st_ino != os.fstat(held.descriptor).st_ino:
                return False
            for name, mark in held.marks.items():
                if _mark(os.lstat(path / CONTENT / name)) != mark:
                    return False
            os.utime(path)
        except OSError:
            return False
        return True

    # ── making ──────────────────────────────────────────────────────────────────────────────────────────────
    async def _make(self, key: str, fill: Fill) -> _Held | None:
        """The new entry; None when another process was faster."""
        part = self.folder / f".{key}.{self._next()}.part"
        descriptor = await trio.to_thread.run_sync(_begin, part)
        try:
            await fill(part / CONTENT)
            marks = await trio.to_thread.run_sync(_seal, part)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            try:
                part.rename(self.folder / key)
            except OSError:
                if not (self.folder / key).is_dir():
                    raise
                os.close(descriptor)
                descriptor = -1
                await trio.to_thread.run_sync(remove_tree, str(part))
                return None
            held = _Held(descriptor, marks, time.monotonic())
            descriptor = -1
        finally:
            if descriptor >= 0:
                os.close(descriptor)
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(remove_tree, str(part))
        try:
            await trio.to_thread.run_sync(self._make_room)
        except BaseException:
            os.close(held.descriptor)
            raise
        return held

    def _next(self) -> str:
        self._made += 1
        return f"{os.getpid()}-{id(self):x}-{self._made}"

    # ── removing ────────────────────────────────────────────────────────────────────────────────────────────
    def _make_room(self) -> None:
        entries = []
        for path in self.folder.iterdir():
            if not path.name.startswith("."):
                with contextlib.suppress(OSError, ValueError, KeyError):
                    size = json.loads((path / ENTRY).read_bytes())["size"]
                    entries.append((path.stat().st_mtime_ns, path.name, size))
        total = sum(size for _, _, size in entries)
        for _, name, size in sorted(entries):
            if total <= self._size_max:
                return
            if self._remove_unused(name):
                total -= size

    def _remove_unused(self, name: str) -> bool:
        """Remove an entry that nobody has locked."""
        try:
            descriptor = os.open(self.folder / name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except NotADirectoryError:
            (self.folder / name).unlink(missing_ok=True)
            return True
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._throw_away(name)
        except OSError:
            return False
        finally:
            os.close(descriptor)
        return True

    def _throw_away(self, name: str) -> None:
        trash = self.folder / f".{name.lstrip('.')[:80]}.{self._next()}.trash"
        with contextlib.suppress(FileNotFoundError):
            (self.folder / name).rename(trash)
            remove_tree(str(trash))


def _begin(part: Path) -> int:
    part.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part.mkdir(mode=0o700)
    descriptor = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (part / CONTENT).mkdir(mode=0o700)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _seal(part: Path) -> dict[str, tuple[int, int]]:
    """Note every file, and make it read-only."""
    marks: dict[str, tuple[int, int]] = {}
    files: dict[str, tuple[int, str]] = {}
    content = part / CONTENT
    for folder, _, names in os.walk(content):
        for name in names:
            path = Path(folder, name)
            found = path.lstat()
            if stat.S_ISLNK(found.st_mode):
                continue  # of an installed package, at most; what it leads to is noted where it is
            inside = str(path.relative_to(content))
            path.chmod(0o555 if found.st_mode & 0o100 else 0o444)
            files[inside] = (found.st_size, _digest(path))
            marks[inside] = _mark(path.lstat())
    size = sum(each for each, _ in files.values())
    document = json.dumps({"size": size, "files": files}, separators=(",", ":"))
    (part / ENTRY).write_text(document, encoding="utf-8")
    return marks


def _compare(path: Path) -> dict[str, tuple[int, int]] | None:
    """Size and time of every file of an entry; None when one is not what was noted."""
    marks: dict[str, tuple[int, int]] = {}
    try:
        document: Any = json.loads((path / ENTRY).read_bytes())
        for name, (size, digest) in document["files"].items():
            inside = path / CONTENT / name
            found = os.lstat(inside)
            if not stat.S_ISREG(found.st_mode) or found.st_size != size or _digest(inside) != digest:
                return None
            marks[name] = _mark(found)
        if not (path / CONTENT).is_dir():
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return marks


def _mark(found: os.stat_result) -> tuple[int, int]:
    return found.st_size, found.st_mtime_ns


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        for piece in iter(partial(file.read, _PIECE), b""):
            digest.update(piece)
    return digest.hexdigest()
