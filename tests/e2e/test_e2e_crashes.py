"""`kill -9` of each process in the middle of a run, and orderly ends beside running steps: what goes on, what runs again, what does not.

A witness file gets a line for every start of a step; it tells how often it really ran.
"""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_site import GRACE, SHORT_GRACE, Running, Site, alive, ended, order, processes, step, until

WAITS = "echo $$ >> {0}/{1}.started; echo begun; until [ -e {0}/go ]; do sleep 0.02; done; echo done"


@pytest.fixture
def served(own_site: Site) -> Iterator[Site]:
    own_site.serve(*GRACE)
    yield own_site


def starts(folder: Path, name: str) -> list[int]:
    """Pids of the shells that started."""
    path = folder / f"{name}.started"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def started(folder: Path, name: str, times: int = 1) -> list[int]:
    def look() -> list[int] | None:
        found = starts(folder, name)
        return found if len(found) >= times else None

    return until(look, f"{name} started {times} times")


def again(site: Site) -> Running:
    """The next orchestrator, where the last one was."""
    return site.serve(*GRACE, port=site.port)


def test_kill_of_the_orchestrator_in_the_middle_of_a_run(served: Site, tmp_path: Path) -> None:
    """The run goes on: what a worker runs is not run twice, what ran in the orchestrator is, what waited starts; the client that
    watched is told the end, and so is one that attaches later."""
    assert served.orchestrator is not None
    worker = served.worker("w")
    for name in ("placed", "here", "after"):
        served.model(name, WAITS.format(tmp_path, name))
    served.workflow(
        "survives",
        step("placed", "placed", target="w"),
        step("here", "here"),
        step("after", "after", dependsOn=["placed", "here"], target="w"),
    )
    watching = served.start("workflow", "run", "survives", "--json", name="client")
    run_id = json.loads(watching.wait_for('"run_started"').string)["runId"]
    (placed,), (here,) = started(tmp_path, "placed"), started(tmp_path, "here")
    served.orchestrator.kill()
    until(lambda: not alive(here), "the keeper ended the step that ran in the orchestrator")
    assert alive(placed), "a worker's step does not depend on the orchestrator's life"
    again(served)
    served.orchestrator.wait_for(f"run goes on run={run_id}")
    worker.wait_for("Enrolled as w", after=3)
    started(tmp_path, "here", 2)
    assert alive(placed)
    (tmp_path / "go").touch()
    done = watching.end()
    assert done.code == 0, done
    last = done.events[-1]
    assert (last["kind"], last["status"], last["counts"]["succeeded"]) == ("run_ended", "succeeded", 3)
    assert {name: len(starts(tmp_path, name)) for name in ("placed", "here", "after")} == {
        "placed": 1,
        "here": 2,
        "after": 1,
    }
    later = served.ok("run", "attach", run_id, "--json").events
    assert later[-1]["run"] == last["run"]
    attempts = {row["name"]: row["attempts"] for row in last["run"]["jobs"][0]["steps"]}
    assert attempts == {"placed": 1, "here": 2, "after": 1}
    logs = served.ok("workflow", "history", "logs", run_id).out
    assert logs.count("done") == 3
    assert served.query('modelName == "placed" && specName == "result"', "attributes.stdout") == [
        "begun\ndone"
    ]
    assert served.query('modelType == "swamp/step-lease"') == []


def test_a_result_that_was_ready_while_nobody_listened(served: Site, tmp_path: Path) -> None:
    """The worker ends its step with no orchestrator there; it is delivered to the next one."""
    assert served.orchestrator is not None
    worker = served.worker("w")
    served.shell("held", WAITS.format(tmp_path, "held"), target="w")
    run_id = served.json("workflow", "run", "held", "--detach")["runId"]
    (pid,) = started(tmp_path, "held")
    served.orchestrator.kill()
    (tmp_path / "go").touch()
    until(lambda: not alive(pid), "the step has ended")
    worker.wait_for("Dispatch [0-9a-f]+: command/shell.execute succeeded")
    again(served)
    done = served.swamp("run", "attach", run_id, "--json")
    assert done.code == 0, done
    assert len(starts(tmp_path, "held")) == 1
    assert served.query('modelName == "held" && specName == "result"', "attributes.stdout") == ["begun\ndone"]


def test_an_orderly_stop_leaves_placed_and_waiting_steps_to_the_next(served: Site, tmp_path: Path) -> None:
    """Ctrl-C on serve lets what runs in it finish, starts nothing more, and cancels no run."""
    assert served.orchestrator is not None
    served.worker("w")
    for name in ("placed", "here", "after", "queued"):
        served.model(name, WAITS.format(tmp_path, name).replace("/go", f"/go-{name}"))
    served.workflow(
        "stays",
        step("placed", "placed", target="w"),
        step("here", "here"),
        step("after", "after", dependsOn=["here"]),
        step("queued", "queued", target="nobody-yet"),
    )
    run_id = served.json("workflow", "run", "stays", "--detach")["runId"]
    (placed,), (here,) = started(tmp_path, "placed"), started(tmp_path, "here")
    first = served.orchestrator
    first.send(signal.SIGINT)
    first.wait_for("Stopping: no new work; finishing what runs here")
    assert alive(here)
    (tmp_path / "go-here").touch()
    assert first.end().code == 0
    assert not alive(here) and alive(placed) and starts(tmp_path, "after") == []
    again(served)
    served.worker("nobody-yet")
    for name in ("after", "placed", "queued"):
        (tmp_path / f"go-{name}").touch()
    done = served.swamp("run", "attach", run_id, "--json")
    assert done.code == 0, done
    assert [len(starts(tmp_path, name)) for name in ("placed", "here", "after", "queued")] == [1, 1, 1, 1]


def test_kill_of_a_worker_places_its_step_on_another(own_site: Site, tmp_path: Path) -> None:
    """The keeper ends the step's process; the step is placed again on the other worker, and not before the old one is dead."""
    served = own_site
    served.serve(*SHORT_GRACE)
    served.token("first"), served.token("second")
    first = served.worker("first", "--label", "pool=a")
    served.shell("moves", WAITS.format(tmp_path, "moves"), labels={"pool": "a"})
    watching = served.start("workflow", "run", "moves", "--json", name="client")
    (pid,) = started(tmp_path, "moves")
    second = served.worker("second", "--label", "pool=a")
    first.kill()
    _, other = started(tmp_path, "moves", 2)
    assert not alive(pid) and alive(other) and alive(second.pid)
    (tmp_path / "go").touch()
    done = watching.end()
    assert done.code == 0, done
    end = ended(done.events, "s")
    assert (end["worker"], end["attempts"]) == ("second", 2)
    assert [kind for kind, _ in order(done.events)] == ["started", "started", "ended"]
    (warning,) = [event for event in done.events if event["kind"] == "warning"]
    assert "first" in warning["message"] and "placed again" in warning["message"]
    states = served.query(
        'modelType == "swamp/step-lease" && attributes.state != "active"', "attributes.state"
    )
    assert sorted(states) == ["completed", "expired"]


def test_a_killed_worker_that_comes_back_proves_that_its_step_is_dead(own_site: Site, tmp_path: Path) -> None:
    """With the default grace window of a minute nobody has to wait for it: the successor reaped its predecessor."""
    own_site.serve()
    own_site.worker("w")
    own_site.shell("again", WAITS.format(tmp_path, "again"), target="w")
    watching = own_site.start("workflow", "run", "again", "--json", name="client")
    (pid,) = started(tmp_path, "again")
    own_site.workers["w"].kill()
    until(lambda: not alive(pid), "the keeper ended the step")
    own_site.worker("w")
    started(tmp_path, "again", 2)
    (tmp_path / "go").touch()
    done = watching.end()
    assert done.code == 0 and ended(done.events, "s")["attempts"] == 2, done


def test_a_worker_that_is_stopped_three_times_leaves_nothing(served: Site, tmp_path: Path) -> None:
    """The first signal drains, the second cancels, the third kills; the exit code says that it was forced."""
    worker = served.worker("hasty")
    stubborn = f"trap '' TERM; echo $$ >> {tmp_path}/held.started; echo begun; while :; do sleep 1; done"
    served.shell("held", stubborn, target="hasty")
    served.ok("workflow", "run", "held", "--detach")
    (pid,) = started(tmp_path, "held")
    worker.send(signal.SIGINT)
    worker.wait_for("Draining")
    assert worker.process.poll() is None and alive(pid)
    worker.send(signal.SIGTERM)
    worker.wait_for("once more to kill it")
    worker.send(signal.SIGINT)
    assert worker.end().code == 130
    assert not alive(pid)


def test_a_drained_worker_finishes_what_it_runs(served: Site, tmp_path: Path) -> None:
    """Ctrl-C on a busy worker: its step ends well, nothing new comes, exit 0."""
    worker = served.worker("w")
    served.shell("last", WAITS.format(tmp_path, "last"), target="w")
    watching = served.start("workflow", "run", "last", "--json", name="client")
    started(tmp_path, "last")
    worker.send(signal.SIGINT)
    worker.wait_for("Draining")
    until(
        lambda: served.json("worker", "list")["workers"][0]["status"] == "draining" or None,
        "the orchestrator knows that it drains",
    )
    (tmp_path / "go").touch()
    assert watching.end().code == 0
    stopped = worker.end()
    assert stopped.code == 0 and "Drain complete" in stopped.out


def test_a_drain_when_safe_moves_what_has_not_written_and_waits_for_the_rest(
    served: Site, tmp_path: Path
) -> None:
    """`onWorkerLost: fail` stands for a step that must not be repeated: it finishes where it is."""
    served.worker("old", "--label", "pool=build", "--concurrency", "2")
    for name in ("moves", "stays"):
        served.model(name, WAITS.format(tmp_path, name).replace("/go", f"/go-{name}"))
    pool = {"labels": {"pool": "build"}}
    served.workflow(
        "busy", step("moves", "moves", **pool), step("stays", "stays", onWorkerLost="fail", **pool)
    )
    watching = served.start("workflow", "run", "busy", "--json", name="client")
    (moved,), (stays,) = started(tmp_path, "moves"), started(tmp_path, "stays")
    served.worker("new", "--label", "pool=build")
    draining = served.start("worker", "drain", "old", "--when-safe", "--reason", "new kernel", name="drain")
    draining.wait_for("Moved to another worker, since nothing was written: job › moves")
    draining.wait_for("Finishing here: job › stays")
    _, second = started(tmp_path, "moves", 2)
    assert not alive(moved) and alive(second) and alive(stays), "never in two places at once"
    assert draining.process.poll() is None, "it waits for the step that must not be repeated"
    (lease,) = served.query('modelType == "swamp/step-lease" && attributes.state == "expired"', "attributes")
    assert (lease["reason"], lease["workerName"], lease["lossCounted"]) == ("drained", "old", False)
    (tmp_path / "go-stays").touch()
    done = draining.end()
    assert done.code == 0 and "Nothing runs on old any more: it can be switched off." in done.out
    assert not alive(stays)
    (tmp_path / "go-moves").touch()
    watched = watching.end()
    assert watched.code == 0, watched
    assert {name: ended(watched.events, name)["worker"] for name in ("moves", "stays")} == {
        "moves": "new", "stays": "old",
    }  # fmt: skip
    idle = served.json("worker", "drain", "old", "--when-safe")
    assert (idle["moved"], idle["finishing"], idle["status"]) == ([], [], "draining")


def test_kill_of_everything_leaves_no_process_and_no_half_record(served: Site, tmp_path: Path) -> None:
    """Also with nobody to come back: keepers end the steps, and the store opens with what was acknowledged."""
    assert served.orchestrator is not None
    served.worker("w")
    for name in ("placed", "here"):
        served.model(name, WAITS.format(tmp_path, name))
    served.workflow("lost", step("placed", "placed", target="w"), step("here", "here"))
    run_id = served.json("workflow", "run", "lost", "--detach")["runId"]
    started(tmp_path, "placed"), started(tmp_path, "here")
    served.workers["w"].kill()
    served.orchestrator.kill()
    until(lambda: processes(served.mark) == [], "keepers and steps are gone")
    (row,) = served.json("run", "list")["runs"]
    assert (row["runId"], row["status"]) == (run_id, "running")
    again(served)
    served.worker("w")
    (tmp_path / "go").touch()
    done = served.swamp("run", "attach", run_id, "--json")
    assert done.code == 0 and done.events[-1]["counts"]["succeeded"] == 2, done
