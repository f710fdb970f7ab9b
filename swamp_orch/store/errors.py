"""What can go wrong with the store itself. Each error names the file and what to do about it.

`sqlite3` exceptions never leave this package: `translated` turns them into this tree by their result code, never by text.
"""

import errno
import os
import sqlite3
from pathlib import Path
from typing import ClassVar, Final

from swamp_proto.errors import Broken, SwampError, Unsupported

_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class StoreCorrupt(Broken):
    """The file is not a store any more. Nothing was written to it."""

    code = "store_corrupt"


class StoreFull(Broken):
    """No space left. Retryable: nothing of the batch was written, and the same batch may be sent again."""

    code = "store_full"
    retryable: ClassVar[bool] = True


class StoreReadOnly(Broken):
    """The folder or file cannot be written by this user."""

    code = "store_read_only"


class StoreBusy(Broken):
    """Another process held the write lock for too long. Nothing was written."""

    code = "store_busy"
    retryable: ClassVar[bool] = True


NO_ROOM: Final = (StoreFull, StoreBusy)
"""Nothing was written and the same batch may be sent again. What must be recorded waits for that."""


class StoreTooNew(Unsupported):
    """Written by a newer swamp; this one does not touch it."""

    code = "store_too_new"


class StoreOnNetwork(Unsupported):
    """The folder is on a network file system, whose locks and syncs cannot be relied on."""

    code = "store_on_network"


def corrupt(file: Path, problem: str) -> StoreCorrupt:
    return StoreCorrupt(
        f"the store {file} is damaged: {problem}",
        hint=f"stop swamp serve, keep a copy of {file.parent}, and put a backup of that folder in its place",
    )


def full(file: Path) -> StoreFull:
    return StoreFull(
        f"no space left for the store {file}; nothing of this write was kept",
        hint=f"free space on the disk of {file.parent} (see `swamp data gc --dry-run`), then try again",
    )


def read_only(file: Path) -> StoreReadOnly:
    return StoreReadOnly(
        f"the store {file} cannot be written",
        hint=f"make {file.parent} writable for this user (ls -ld {file.parent})",
    )


def translated(error: sqlite3.Error, file: Path) -> SwampError:
    """The error of our tree for what SQLite reported about `file`."""
    code = getattr(error, "sqlite_errorcode", None)
    match code & 0xFF if code is not None else None:
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return corrupt(file, str(error))
        case sqlite3.SQLITE_FULL:
            return full(file)
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_CANTOPEN:
            return read_only(file)
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StoreBusy(
                f"another process has been writing to the store {file} for too long",
                hint=f"see which one it is with `fuser -v {file}`, then try again",
            )
        case sqlite3.SQLITE_IOERR if _no_space(file):
            return full(file)
    return Broken(
        f"the store {file} failed: {error}", hint="look at the disk's health in the system log (dmesg)"
    )


def translated_os(error: OSError, file: Path) -> SwampError:
    """The same for what the operating system reported about `file`."""
    if error.errno in _FULL_ERRNOS:
        return full(file)
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return read_only(file)
    return Broken(
        f"the store {file} failed: {os.strerror(error.errno or 0)}", hint="look at the system log (dmesg)"
    )


def _no_space(file: Path) -> bool:
    """SQLite reports some full disks (quotas, shared memory) as plain I/O errors."""
    try:
        room = os.statvfs(file.parent)
    except OSError:
        return False
    return room.f_bavail * room.f_frsize < 256 * 1024
