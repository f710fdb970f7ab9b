"""Whether the process that owns a run still lives."""

import os
import subprocess
import sys
from typing import Any

from swamp_orch.engine.owners import is_alive, process_identity, started_at


def owner(pid: int) -> dict[str, Any]:
    return {**process_identity(), "pid": pid, "started": started_at(pid)}


def test_a_killed_process_is_dead_before_its_parent_has_noticed() -> None:
    """Its successor could start (the lock was free) and took the runs for those of a living process: nobody ended them."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        found = owner(child.pid)
        assert is_alive(found)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, and left as it is
        assert not is_alive(found)
    finally:
        child.kill()
        child.wait()
    assert not is_alive(found)


def test_another_process_with_the_same_pid_is_not_the_owner() -> None:
    assert is_alive(owner(os.getpid()))
    assert not is_alive({**owner(os.getpid()), "started": "1"})
    assert not is_alive({**owner(os.getpid()), "bootId": "an earlier boot"})


def test_what_runs_on_another_machine_counts_as_alive() -> None:
    assert is_alive({**owner(os.getpid()), "host": "elsewhere", "pid": 1, "started": "1"})
