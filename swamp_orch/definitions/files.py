"""Writing small text files so that a crash leaves the old file or the new one, never half of one.

Rules: the new content is written to a temporary file in the same folder, flushed and fsynced, then renamed
over the old one, and the folder is fsynced. An existing file keeps its permission bits. A symbolic link is
followed, so that a file somebody linked into place stays linked. Disk errors leave as `Broken`, with what to
do about them.

It does not know what the text means.
"""

import contextlib
import errno
import os
import tempfile
from pathlib import Path
from typing import Final

from swamp_proto.errors import AlreadyExists, Broken

_HINTS: Final = {
    errno.EACCES: "check who owns the folder and its permissions",
    errno.EPERM: "check who owns the folder and its permissions",
    errno.EROFS: "the file system is mounted read-only: choose another folder with --repo-dir",
    errno.ENOSPC: "the disk is full: free some space and try again",
    errno.EDQUOT: "the disk quota is used up: free some space and try again",
}


def disk_error(action: str, path: Path, error: OSError) -> Broken:
    """`error` in our words: `cannot write /x/y: permission denied`."""
    text = (error.strerror or str(error) or type(error).__name__).lower()
    return Broken(f"cannot {action} {path}: {text}", hint=_HINTS.get(error.errno or 0))


def make_folder(path: Path, mode: int = 0o777) -> None:
    """Make `path` and its parents (as `mkdir -p`); `mode` is for the last one. Raises `Broken`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=mode, exist_ok=True)
    except OSError as error:
        raise disk_error("make the folder", path, error) from error


def write_atomically(path: Path, text: str, *, mode: int = 0o644, new: bool = False) -> None:
    """Replace `path` by `text` (UTF-8). `mode` is used for a file that does not exist yet. With `new`, the
    file must not exist: of two processes that create it at once exactly one succeeds. Raises `Broken`, and
    `AlreadyExists` with `new`."""
    path = Path(os.path.realpath(path))
    make_folder(path.parent)
    temporary = ""
    try:
        with contextlib.suppress(FileNotFoundError):
            mode = path.stat().st_mode & 0o777
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode(errors="surrogateescape"))
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        if new:
            os.link(temporary, path)  # fails when it exists, which a rename would not
        else:
            Path(temporary).replace(path)
            temporary = ""
        _sync_folder(path.parent)
    except FileExistsError:
        raise AlreadyExists(f"{path} exists already") from None
    except OSError as error:
        raise disk_error("write", path, error) from error
    finally:
        if temporary:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()


def remove_file(path: Path) -> bool:
    """Remove `path` durably; False when there was none. Raises `Broken`."""
    try:
        path.unlink()
        _sync_folder(path.parent)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise disk_error("remove", path, error) from error
    return True


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
