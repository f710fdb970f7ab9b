"""A fresh directory per dispatch, below one directory of ours.

A step's working directory is its own, empty and private, and gone afterwards; local and remote alike.
Making and removing an empty one costs two system calls. What a step left behind is removed in a thread: it
may be a million files.
"""

import contextlib
import os
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import trio

from swamp_proto.errors import Broken

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Workspace:
    """All directories of one executor. The parent is made when first needed."""

    def __init__(self, parent: Path) -> None:
        self.parent = parent
        self._prefix = f"{parent}{os.sep}"

    def make(self, dispatch: str) -> str:
        """The directory of a dispatch. Raises Broken."""
        if _NAME.fullmatch(dispatch) is None:
            raise Broken(f"{dispatch!r} cannot name a directory")
        path = self._prefix + dispatch
        try:
            try:
                os.mkdir(path, 0o700)
            except FileNotFoundError:
                self.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                os.mkdir(path, 0o700)
        except OSError as error:
            raise Broken(f"cannot make the step's directory {path}: {error.strerror}") from error
        return path

    async def remove(self, path: str) -> None:
        """Remove it with whatever is in it. Never fails: what resists is left for `sweep`. Not cancellable."""
        try:
            os.rmdir(path)
        except FileNotFoundError:
            return
        except OSError:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(remove_tree, path)

    def sweep(self) -> None:
        """Remove what dead predecessors left. Blocks; the caller holds the lock of the directory."""
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(self.parent):
                remove_tree(entry.path)


def remove_tree(path: str) -> None:
    """Remove a file or a tree, also one with directories that forbid it. Never fails."""

    def allow(function: Callable[..., Any], name: str, _: object) -> None:
        with contextlib.suppress(OSError):
            os.chmod(os.path.dirname(name), stat.S_IRWXU)
            if os.path.isdir(name) and not os.path.islink(name):
                os.chmod(name, stat.S_IRWXU)
                if function is not os.rmdir:  # it could not be listed: try again as a tree
                    shutil.rmtree(name, ignore_errors=True)
                    return
            function(name)

    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, onerror=allow)
    with contextlib.suppress(OSError):
        os.rmdir(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)
