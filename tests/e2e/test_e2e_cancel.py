"""Cancelling: Ctrl-C and the commands, wherever the step runs. Afterwards nothing of it is alive, and the state says so."""

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from e2e_site import SHORT_GRACE, SHORT_GRACE_S, Running, Site, alive, ended, processes, step, until

from swamp_proto.limits import CANCEL_WAIT_S

STUBBORN = """\
trap '' TERM INT HUP
echo $$ >> {0}
sh -c 'trap "" TERM; echo $$ >> {0}; while :; do sleep 1; done' &
setsid sh -c 'trap "" TERM; echo $$ >> {0}; while :; do sleep 1; done' &
until [ $(wc -l < {0}) -ge 3 ]; do sleep 0.02; done
echo begun
while :; do sleep 1; done
"""
"""A shell, a child and a grandchild in a session of its own; none heeds TERM. Their pids go to a file."""


@pytest.fixture(scope="module")
def pool(site: Site) -> Iterator[Site]:
    site.serve()
    site.worker("w")
    yield site


def pids(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()]


def begun(running: Running, times: int = 1) -> None:
    at = 0
    for _ in range(times):
        running.wait_for("begun", after=at)
        at = next(n for n, (_, line) in enumerate(running.lines[at:], at) if "begun" in line) + 1


def test_ctrl_c_leaves_nothing_alive_however_stubborn(pool: Site, tmp_path: Path) -> None:
    """TERM, grace, KILL; the answer is counted from the operating system. On the worker and in the orchestrator at once."""
    for name in ("here", "there"):
        pool.model(name, STUBBORN.format(tmp_path / name))
    pool.model("never", f"touch {tmp_path}/never")
    pool.workflow(
        "stubborn",
        step("h", "here"),
        step("t", "there", target="w"),
        step("next", "never", dependsOn=["h"]),
    )
    running = pool.start("workflow", "run", "stubborn", "--verbose")
    begun(running, 2)
    found = pids(tmp_path / "here") + pids(tmp_path / "there")
    assert len(found) == 6 and all(alive(pid) for pid in found)
    done = running.interrupt()
    assert done.code == 130
    assert "left: 0\n" in done.out and "Cancelling run " in done.out + done.err
    assert [pid for pid in found if alive(pid)] == []
    assert not (tmp_path / "never").exists()
    assert pool.query('modelType == "swamp/step-lease"') == []
    (document,) = pool.json("run", "list", "--workflow", "stubborn")["runs"]
    assert document["status"] == "cancelled"
    (worker,) = pool.json("worker", "list")["workers"]
    assert worker["status"] == "idle" and worker["activeDispatchIds"] == []
    leases = pool.query(
        'modelType == "swamp/step-lease" && attributes.state == "cancelled"', "attributes.stepName"
    )
    assert sorted(leases) == ["h", "t"]


@pytest.mark.parametrize("placement", [{}, {"target": "w"}], ids=["loopback", "worker"])
def test_ctrl_c_with_json(pool: Site, placement: dict[str, Any]) -> None:
    """What it printed is kept, what ends gently ends at once."""
    pool.shell("gentle", "echo begun; exec sleep 60", **placement)
    running = pool.start("workflow", "run", "gentle", "--json")
    begun(running)
    done = running.interrupt()
    assert done.code == 130 and json.loads(done.err)["code"] == "interrupted"
    last = done.events[-1]
    assert (last["kind"], last["status"], last["left"]) == ("run_ended", "cancelled", 0)
    assert ended(done.events, "s")["status"] == "cancelled"
    assert "begun" in pool.ok("workflow", "history", "logs", last["runId"]).out


def test_ctrl_c_while_it_waits_for_a_worker(pool: Site) -> None:
    pool.shell("waits", "echo never", target="nobody")
    running = pool.start("workflow", "run", "waits")
    running.wait_for("queued")
    done = running.interrupt()
    assert done.code == 130 and "left: 0\n" in done.out
    assert pool.json("worker", "queue") == []


def test_a_second_ctrl_c_leaves_and_the_cancel_goes_on(pool: Site, tmp_path: Path) -> None:
    """The first is durable: nobody has to stay for it."""
    pool.shell(
        "slowly",
        f"trap 'until [ -e {tmp_path}/go ]; do sleep 0.02; done; exit 0' TERM; echo begun; sleep 60 & wait",
        target="w",
    )
    running = pool.start("workflow", "run", "slowly", "--verbose")
    begun(running)
    running.send(signal.SIGINT)
    running.wait_for("Cancelling run")
    done = running.interrupt()
    assert done.code == 130
    run_id = re.search(r"swamp run attach ([0-9a-f-]{36})", done.err)
    assert run_id, done
    (tmp_path / "go").touch()
    attached = pool.swamp("run", "attach", run_id[1])
    assert attached.code == 1 and "left: 0" in attached.out and "was cancelled" in attached.err


@pytest.mark.parametrize("command", ["run", "workflow"])
def test_a_cancel_from_elsewhere(pool: Site, command: str) -> None:
    pool.shell("cancelled-elsewhere", "echo begun; exec sleep 60", target="w")
    watching = pool.start("workflow", "run", "cancelled-elsewhere", "--verbose")
    begun(watching)
    (row,) = pool.json("run", "list", "--active")["runs"]
    name = row["runId"] if command == "run" else "cancelled-elsewhere"
    done = pool.ok(command, "cancel", name, "--reason", "not needed")
    assert done.out == f"Cancelled run {row['runId']}\nleft: 0\n"
    watched = watching.end()
    assert watched.code == 1 and "left: 0\n" in watched.out
    assert pool.ok("run", "cancel", row["runId"]).out == f"Run {row['runId']} had already ended.\n"
    unknown = pool.swamp("run", "cancel", "00000000-0000-4000-8000-000000000000")
    assert unknown.code == 1 and "is not known" in unknown.err


def test_a_cancel_says_when_a_worker_that_is_away_will_have_ended_it(own_site: Site) -> None:
    """Its worker stands still: the command answers as soon as that is known, not after the 30 s of a worker that is there."""
    own_site.serve(*SHORT_GRACE)
    worker = own_site.worker("w")
    own_site.shell("away", "echo begun; exec sleep 60", target="w")
    watching = own_site.start("workflow", "run", "away", "--verbose")
    begun(watching)
    (row,) = own_site.json("run", "list", "--active")["runs"]
    os.killpg(worker.pid, signal.SIGSTOP)
    stopped = time.time()
    done = own_site.json("run", "cancel", row["runId"])
    answered = time.time()
    assert answered - stopped < CANCEL_WAIT_S
    assert (done["status"], done["left"]) == ("cancelled", None)
    ends_by = datetime.fromisoformat(done["endsBy"]).timestamp()
    assert stopped < ends_by < answered + 1.5 * SHORT_GRACE_S
    assert re.search(r"^left: unknown, ends by \d\d:\d\d:\d\d$", watching.end().out, re.MULTILINE)
    os.killpg(worker.pid, signal.SIGCONT)

    def idle() -> bool:
        workers = own_site.json("worker", "list")["workers"]
        return [(one["status"], one["activeDispatchIds"]) for one in workers] == [("idle", [])]

    until(idle, "the worker is back and its slot is free")
    assert own_site.json("run", "doctor")["findings"] == []


def test_ctrl_c_of_a_run_in_process(own_site: Site, tmp_path: Path) -> None:
    own_site.shell("alone", f"echo $$ > {tmp_path}/pid; sleep 61 & echo begun; wait")
    running = own_site.start("workflow", "run", "alone", "--verbose")
    begun(running)
    done = running.interrupt()
    assert done.code == 130 and "left: 0\n" in done.out
    assert processes(own_site.mark) == []
    (row,) = own_site.json("run", "list")["runs"]
    assert row["status"] == "cancelled"


def test_kill_of_a_run_in_process_takes_its_steps_along(own_site: Site, tmp_path: Path) -> None:
    """The keeper sees to it; the next command tells what happened to the run."""
    own_site.shell("alone", STUBBORN.format(tmp_path / "pids"))
    running = own_site.start("workflow", "run", "alone", "--verbose")
    begun(running)
    found = pids(tmp_path / "pids")
    os.kill(running.pid, signal.SIGKILL)
    until(lambda: not [pid for pid in found if alive(pid)], "the keeper ended the step's processes")
    until(lambda: processes(own_site.mark) == [], "the keeper is gone too")
