"""Large content: files named by their sha256 in `blobs/<first two>/<other 62>`, and blobs being written in `blobs/staged/`.

Rules: a blob has its final name only once its bytes are fsynced, and `finish` returns only once that name is durable too; a
blob is never changed; what no row names is garbage, removed by the store's writer (this module never decides that). A blob
finished again is written again, so that its age says when it was last staged.
"""

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from swamp_orch.store.errors import corrupt, translated_os
from swamp_orch.store.interface import Content
from swamp_proto.errors import NotFound
from swamp_proto.limits import DATA_BODY_MAX, INLINE_CONTENT_MAX

_STAGED = "staged"
_NO_LINKS = frozenset({errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS})


class BlobFolder:
    """All blobs of one store. Thread-safe; several processes may use it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def stage(self) -> "StagedFile":
        """A blob to write; small ones never touch the disk. Raises `StoreFull`, `StoreReadOnly`."""
        return StagedFile(self)

    def put(self, data: bytes) -> Content:
        """Store bytes as a blob whatever their size."""
        with contextlib.closing(StagedFile(self)) as staged:
            staged.write(data)
            staged.spill()
            return staged.finish()

    def adopt(self, file: Path, sha256: str, size: int, *, keep: bool = False) -> Content:
        """`file`, whole and fsynced, becomes the blob of that name; see `Store.adopt`. Raises `StoreFull`."""
        target = self.path(sha256)
        try:
            os.utime(file)  # its age says when it was last staged
            self.make_shard(target.parent)
            if keep:
                file = self._second_name(file)
            file.rename(target)
            sync_folder(target.parent)
            if keep:
                file.unlink(missing_ok=True)  # renaming one name of a file to another one of it does nothing
        except OSError as error:
            raise translated_os(error, target) from error
        return Content(inline=None, sha256=sha256, size=size)

    def _second_name(self, file: Path) -> Path:
        """Another name for a file, or for a copy where the file system knows one name only. Raises OSError."""
        folder = self.folder / _STAGED
        folder.mkdir(mode=0o700, exist_ok=True)
        name = folder / os.urandom(16).hex()
        try:
            name.hardlink_to(file)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            shutil.copyfile(file, name)
            with name.open("rb") as copy:
                os.fsync(copy.fileno())
        return name

    def make_shard(self, folder: Path) -> None:
        if not folder.is_dir():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync_folder(folder.parent)

    def path(self, sha256: str) -> Path:
        return self.folder / sha256[:2] / sha256[2:]

    def holds(self, sha256: str) -> bool:
        return self.path(sha256).exists()

    def open(self, sha256: str) -> BinaryIO:
        """The blob's bytes, not verified; raises NotFound."""
        try:
            return self.path(sha256).open("rb")
        except FileNotFoundError:
            raise NotFound(
                f"the blob {sha256} is not in {self.folder}", hint=f"restore {self.folder} from a backup"
            ) from None
        except OSError as error:
            raise translated_os(error, self.path(sha256)) from error

    def read(self, sha256: str) -> bytes:
        """The blob's bytes, verified; raises NotFound, `StoreCorrupt`."""
        with self.open(sha256) as file:
            data = file.read()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise corrupt(self.path(sha256), "its bytes do not match its name")
        return data

    def older_than(self, instant_s: float) -> Iterator[str]:
        """Names of blobs last staged before `instant_s` (seconds since the epoch), in order of name."""
        for shard in sorted(self._folders()):
            if shard.name == _STAGED:
                continue
            for file in sorted(shard.iterdir()):
                with contextlib.suppress(FileNotFoundError):
                    if file.stat().st_mtime < instant_s:
                        yield shard.name + file.name

    def staged_before(self, sha256: str, instant_s: float) -> bool:
        """Whether it is there and was last staged before `instant_s`."""
        try:
            return self.path(sha256).stat().st_mtime < instant_s
        except FileNotFoundError:
            return False

    def remove(self, sha256: str) -> int:
        """Remove a blob; returns the bytes freed. Only the store's writer calls this, inside its transaction."""
        file = self.path(sha256)
        try:
            size = file.stat().st_size
            file.unlink()
        except FileNotFoundError:
            return 0
        return size

    def sweep_staged(self, instant_s: float) -> int:
        """Remove what writers that died left half-written before `instant_s`; returns the bytes freed."""
        freed = 0
        staged = self.folder / _STAGED
        if not staged.is_dir():
            return 0
        for file in sorted(staged.iterdir()):
            with contextlib.suppress(FileNotFoundError):
                found = file.stat()
                if found.st_mtime < instant_s:
                    file.unlink()
                    freed += found.st_size
        return freed

    def _folders(self) -> list[Path]:
        return [entry for entry in self.folder.iterdir() if entry.is_dir()] if self.folder.is_dir() else []


class StagedFile:
    """One blob being written (`BlobWriter`): in memory while small, then in a file."""

    def __init__(self, blobs: BlobFolder) -> None:
        self._blobs = blobs
        self._hash = hashlib.sha256()
        self._size = 0
        self._small: list[bytes] | None = []
        self._fd: int | None = None
        self._temporary: Path | None = None

    def write(self, chunk: bytes) -> None:
        """Append bytes. Raises `StoreFull`."""
        self._hash.update(chunk)
        self._size += len(chunk)
        if self._size > DATA_BODY_MAX:
            self.discard()
            raise ValueError(f"content larger than {DATA_BODY_MAX} bytes")
        if self._small is not None:
            self._small.append(bytes(chunk))
            if self._size > INLINE_CONTENT_MAX:
                self.spill()
            return
        self._append(chunk)

    def spill(self) -> None:
        """Go on in a file."""
        if self._small is None:
            return
        folder = self._blobs.folder / _STAGED
        try:
            self._blobs.folder.mkdir(mode=0o700, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            self._temporary = folder / os.urandom(16).hex()
            self._fd = os.open(self._temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise translated_os(error, folder) from error
        data, self._small = b"".join(self._small), None
        self._append(data)

    def finish(self) -> Content:
        """Flush, fsync and name it by its hash; small content comes back inline."""
        sha256 = self._hash.hexdigest()
        if self._small is not None:
            return Content(inline=b"".join(self._small), sha256=sha256, size=self._size)
        assert self._fd is not None, "finished or discarded before"
        assert self._temporary is not None
        target = self._blobs.path(sha256)
        try:
            os.fsync(self._fd)
            os.close(self._fd)
            self._fd = None
            self._blobs.make_shard(target.parent)
            self._temporary.rename(target)
            self._temporary = None
            sync_folder(target.parent)
        except OSError as error:
            self.discard()
            raise translated_os(error, target) from error
        return Content(inline=None, sha256=sha256, size=self._size)

    def discard(self) -> None:
        """Forget it; harmless after `finish`."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)
            self._temporary = None

    close = discard

    def _append(self, chunk: bytes) -> None:
        assert self._fd is not None, "finished or discarded before"
        view = memoryview(chunk)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            self.discard()
            raise translated_os(error, self._blobs.folder) from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
