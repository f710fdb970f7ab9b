"""Who runs a run: enough about a process to tell, later and from another one, whether it still lives."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def process_identity() -> dict[str, Any]:
    """This process: host, boot id, pid and the instant it started, in the kernel's words."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        boot = ""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "bootId": boot,
        "started": started_at(os.getpid()),
    }


def started_at(pid: int) -> str:
    """When a process began: tells it from a later one with the same pid. Empty if unknown, or if it has ended and only its
    parent has not noticed (a killed process under a supervisor that does not wait for it)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return ""


def is_alive(owner: Mapping[str, Any]) -> bool:
    """Whether the process that owns a run still lives. One of another machine can not be seen, and counts as alive."""
    here = process_identity()
    if owner["host"] != here["host"]:
        return True
    if owner["bootId"] != here["bootId"]:
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's process: whether it is the same one, its start tells
    return bool(started_at(owner["pid"]) == owner["started"])
