"""Who this machine is: the cache directory, the machine id in it, and the lock that lets only one process use
it.

Rules that hold here:

- The machine id is a random UUID in the file `machine-id`, made once and kept for ever; a token binds to
  it. It identifies, it does not authenticate.
- One process per directory: an exclusive `flock` for the life of the process, naming pid and host for
  whoever comes second. The lock ends with the process, however that ends, so a free lock proves the
  predecessor dead.
- A temporary directory is a new machine on every start, and that is said, with the flag that avoids it.
"""

import contextlib
import fcntl
import json
import os
import platform
import socket
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Final

import attrs

from swamp_proto.errors import Broken, Conflict, LocalError
from swamp_proto.ids import is_uuid
from swamp_proto.messages.enrollment import Predecessor
from swamp_worker.execution.registry import boot_id

_MACHINE_ID: Final = "machine-id"
_LOCK: Final = "lock"
_ENROLLED: Final = "enrolled-instance"


@attrs.define
class Identity:
    """Held for the life of the process. `close` gives the lock back."""

    directory: Path
    machine_id: str
    is_temporary: bool
    _lock: int
    instance: str = attrs.field(factory=lambda: str(uuid.uuid4()))
    boot_id: str = attrs.field(factory=boot_id)

    def last_enrolled(self) -> Predecessor | None:
        """The last process of this directory that was let in, whether or not anything it ran still lives."""
        try:
            found = json.loads((self.directory / _ENROLLED).read_text())
            return Predecessor(str(found["instance"]), str(found["bootId"]), reaped=False)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def note_enrolled(self) -> None:
        """This process was let in: a successor will name it as its predecessor."""
        path = self.directory / _ENROLLED
        fresh = path.with_suffix(".new")
        with contextlib.suppress(OSError):  # worth nothing more than an earlier admission
            fresh.write_text(json.dumps({"instance": self.instance, "bootId": self.boot_id}))
            fresh.replace(path)

    def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        if self.is_temporary:
            import shutil

            shutil.rmtree(self.directory, ignore_errors=True)


def open_identity(directory: Path | None) -> Identity:
    """Take the directory (made if missing; None: a fresh temporary one). Raises Conflict, LocalError."""
    is_temporary = directory is None
    path = Path(tempfile.mkdtemp(prefix="swamp-worker-")) if directory is None else directory.absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = _take_lock(path)
    except OSError as error:
        raise LocalError(
            f"the cache directory {path} cannot be used: {error.strerror}",
            hint="choose a directory this user may write with --cache-dir",
        ) from error
    try:
        return Identity(path, _machine_id(path), is_temporary, lock)
    except BaseException:
        os.close(lock)
        raise


def _take_lock(directory: Path) -> int:
    descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 512, 0).decode("utf-8", "replace").strip() or "another process"
        os.close(descriptor)
        raise Conflict(
            f"the cache directory {directory} is in use by {holder}",
            hint="stop that worker, or give this one its own --cache-dir (and its own token)",
            code="cache_dir_in_use",
        ) from None
    except OSError:
        os.close(descriptor)
        raise
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return descriptor


def _machine_id(directory: Path) -> str:
    path = directory / _MACHINE_ID
    with contextlib.suppress(FileNotFoundError, UnicodeDecodeError):
        found = path.read_text().strip()
        if is_uuid(found):
            return found
        if found:
            raise LocalError(
                f"{path} does not hold a machine id",
                hint=f"restore it, or remove it (rm {path}) to become a new machine, with a new token",
            )
    made = str(uuid.uuid4())
    fresh = directory / f"{_MACHINE_ID}.new"
    try:
        with fresh.open("w") as file:
            file.write(made + "\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise Broken(f"cannot write {path}: {error.strerror}") from error
    return made


def this_platform() -> str:
    """`linux`, `darwin`, …"""
    return "linux" if sys.platform.startswith("linux") else sys.platform


def this_arch() -> str:
    """`x86_64`, `aarch64`, …"""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine or "unknown")


def this_host() -> str:
    return socket.gethostname()
