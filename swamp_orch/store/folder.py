"""The store's folder on disk: private, on a local file system, with a store file that is whole from its first instant.

Rules: folder 0700, files 0600; a new store is built beside its final name and linked there when complete, so an empty or
half-made file is never taken for a new store; a file of a newer schema is not opened.

While a store of this process has its file open, nobody but SQLite opens that file (`entering`). The system drops every lock that a
process has on a file as soon as the process closes any descriptor of it; without them another process that comes and goes takes
SQLite's log for abandoned and removes it, and what is committed afterwards is lost. Knows nothing of records.
"""

import contextlib
import os
import sqlite3
import struct
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from swamp_orch.store.blobs import sync_folder
from swamp_orch.store.errors import StoreOnNetwork, StoreTooNew, corrupt, translated, translated_os
from swamp_orch.store.schema import APPLICATION_ID, BALLAST_NAME, FILE_NAME, SCHEMA, SCHEMA_VERSION
from swamp_proto.limits import BALLAST_BYTES
from swamp_proto.version import SWAMP_VERSION

NETWORK_FILE_SYSTEMS: Final = frozenset({
    "9p", "afs", "ceph", "cifs", "coda", "davfs", "fuse.ceph", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs",
    "gfs2", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "pvfs2", "smb2", "smb3", "smbfs",
})  # fmt: skip
"""Types as in /proc/self/mountinfo whose locks, shared memory or syncs are not those of a local disk."""

_HEADER: Final = 100  # bytes of an SQLite file header
_MAGIC: Final = b"SQLite format 3\0"


_entering = threading.Lock()
_entered: Counter[tuple[int, int]] = Counter()
"""How many stores of this process have a file open, by device and inode."""


class Presence:
    """One store of this process at its file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._key = _key(file)

    def begin(self) -> None:
        _entered[self._key] += 1

    def end(self) -> None:
        """Once, when all of its connections are closed."""
        with _entering:
            _entered[self._key] -= 1
            if not _entered[self._key]:
                del _entered[self._key]


@contextlib.contextmanager
def entering(folder: Path) -> Iterator[Presence]:
    """To open the store in `folder`, one at a time: the body connects, and its store is present from then on. Raises as `prepare`."""
    with _entering:
        presence = Presence(prepare(folder))
        yield presence
        presence.begin()


def prepare(folder: Path) -> Path:
    """The store file in `folder`, made when missing; `_entering` is held. Raises `StoreReadOnly`, `StoreFull`, `StoreCorrupt`,
    `StoreTooNew`, `StoreOnNetwork`."""
    file = folder / FILE_NAME
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_mode & 0o077:
            folder.chmod(0o700)
        refuse_network(folder)
        if not file.exists():
            _create(file)
        if _key(file) not in _entered:  # who has it open has looked
            check_header(file)
    except OSError as error:
        raise translated_os(error, file) from error
    return file


def _key(file: Path) -> tuple[int, int]:
    about = file.stat()
    return about.st_dev, about.st_ino


def check_header(file: Path) -> None:
    """Refuse what is not a store of ours, before SQLite may touch it."""
    with file.open("rb") as opened:
        header = opened.read(_HEADER)
    if len(header) < _HEADER:
        raise corrupt(file, f"it is only {len(header)} bytes long")
    if not header.startswith(_MAGIC):
        raise corrupt(file, "it is not an SQLite file")
    (version,) = struct.unpack_from(">I", header, 60)
    (application,) = struct.unpack_from(">I", header, 68)
    if application != APPLICATION_ID:
        raise corrupt(file, "it is an SQLite file of another program")
    if version > SCHEMA_VERSION:
        raise StoreTooNew(
            f"the store {file} was written by a newer swamp (its schema is {version}, swamp {SWAMP_VERSION} knows "
            f"{SCHEMA_VERSION})",
            hint="use the swamp that wrote it, or restore the backup made before the upgrade",
        )


def refuse_network(folder: Path, mountinfo: str | None = None) -> None:
    """Raises `StoreOnNetwork`. Where the system does not say (not Linux) nothing is refused."""
    if mountinfo is None:
        try:
            mountinfo = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
        except OSError:
            return
    kind = file_system(folder.resolve(), mountinfo)
    if kind in NETWORK_FILE_SYSTEMS:
        raise StoreOnNetwork(
            f"the folder {folder} is on a network file system ({kind}); its locks and syncs cannot be relied on",
            hint="move the repository to a local disk",
        )


def file_system(folder: Path, mountinfo: str) -> str:
    """The type of the file system that holds `folder`: of the longest mount point above it, the newest mount."""
    best, kind = -1, ""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        if len(fields) < 5 or not right:
            continue
        point = Path(fields[4].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\"))
        if (folder == point or point in folder.parents) and len(point.parts) >= best:
            best, kind = len(point.parts), right.split(" ")[0]
    return kind


def _create(file: Path) -> None:
    fresh = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    os.close(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        db = sqlite3.connect(fresh, isolation_level=None)
        try:
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT")
            db.execute("INSERT INTO meta VALUES ('epoch', ?)", (str(uuid.uuid4()),))
        except sqlite3.Error as error:
            raise translated(error, file) from error
        finally:
            db.close()
        fd = os.open(fresh, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        # Somebody else's store, made in the same instant, is as good as ours.
        with contextlib.suppress(FileExistsError):
            os.link(fresh, file)
    finally:
        fresh.unlink(missing_ok=True)
    sync_folder(file.parent)


class Ballast:
    """A file of nothing, given back to a full disk so that work under way can be finished."""

    def __init__(self, folder: Path, size: int = BALLAST_BYTES) -> None:
        self.file = folder / BALLAST_NAME
        self.size = size

    def lay(self) -> bool:
        """Have it; False when there is no room for it (twice its size must be free)."""
        try:
            if self.file.exists() and self.file.stat().st_size >= self.size:
                return True
            room = os.statvfs(self.file.parent)
            if room.f_bavail * room.f_frsize < 2 * self.size:
                return False
            fd = os.open(self.file, os.O_CREAT | os.O_WRONLY, 0o600)
            try:
                os.posix_fallocate(fd, 0, self.size)
            finally:
                os.close(fd)
        except OSError:
            self.release()
            return False
        return True

    def release(self) -> bool:
        """Give the space back; False when there was none."""
        try:
            self.file.unlink()
        except OSError:
            return False
        return True
