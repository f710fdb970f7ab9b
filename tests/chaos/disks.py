"""Small disks under what the orchestrator and each worker keep: they can be filled to the last byte and emptied again.

They are file systems in memory, mounted in a mount namespace of the harness alone (`unshare --user --mount`), so nothing has to be cleaned
up and no privilege is needed where the system allows user namespaces. What is full is really full: ENOSPC comes from the kernel, in
whatever call it hits.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

INSIDE: Final = "SWAMP_CHAOS_NAMESPACE"


def enter() -> bool:
    """Execute this very command again in a namespace of its own. Returns True inside it, False where the system has none."""
    if os.environ.get(INSIDE):
        return os.environ[INSIDE] == "1"
    tried = subprocess.run(
        [
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            "mount -t tmpfs -o size=1m none /mnt",
        ],
        capture_output=True,
    )
    if tried.returncode != 0:
        os.environ[INSIDE] = "0"
        return False
    os.environ[INSIDE] = "1"
    command = ["unshare", "--user", "--map-root-user", "--mount", "--propagation", "private", sys.executable]
    os.execvp("unshare", [*command, *sys.orig_argv[1:]])
    raise AssertionError("execvp returned")


def mount(folder: Path, mib: int) -> None:
    """A disk of its own under `folder`; what is in there already moves along."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    before = folder.with_name(folder.name + ".before")
    shutil.move(folder, before)
    folder.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=0700", "none", str(folder)], check=True)
    shutil.copytree(before, folder, symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(before)


def fill(folder: Path) -> None:
    """Until not a byte is free."""
    filler = os.open(folder / "filler", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    try:
        for _ in range(3):  # who writes meanwhile may take or give some
            room = os.fstatvfs(filler)
            with contextlib.suppress(OSError):
                os.posix_fallocate(filler, os.fstat(filler).st_size, max(1, room.f_bavail * room.f_frsize))
        with contextlib.suppress(OSError):
            while True:
                os.write(filler, b"\0" * 4096)
    finally:
        os.close(filler)


def empty(folder: Path) -> None:
    (folder / "filler").unlink(missing_ok=True)
