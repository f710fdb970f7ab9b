"""Runs that outlive the process that began them: of a model that running code runs, and of a command."""

from pathlib import Path
from typing import Any, Final

from e2e_site import GRACE, Site, step, until

CALLER: Final = """\
import attrs

from swamp_worker.sdk import Context, method, model, resource


@attrs.frozen
class Where:
    folder: str


@model("@test/caller", version="2026.11.21.1", reads=["slow"])
class Caller:
    seen = resource({"type": "object"})

    @method
    async def call(self, context: Context, arguments: Where) -> None:
        with open(arguments.folder + "/called", "a") as witness:
            witness.write("x")
        run = await context.run_model("slow", "execute")
        told = {"status": run.status, "records": [one["name"] for one in run.records]}
        await context.write_resource("seen", told, "seen")
"""


def test_its_caller_is_answered_by_the_next_orchestrator(own_site: Site, tmp_path: Path) -> None:
    site = own_site
    extensions = site.root / "extensions" / "models"
    extensions.mkdir(parents=True, exist_ok=True)
    (extensions / "caller.py").write_text(CALLER)
    flags = (*GRACE, "--max-concurrent-runs", "1")
    serve = site.serve(*flags)
    worker = site.worker("w")
    begun, go = tmp_path / "begun", tmp_path / "go"
    site.model("slow", f"echo x >> {begun}; until [ -e {go} ]; do sleep 0.02; done; echo worked")
    site.ok("model", "create", "@test/caller", "caller", "--arg", f"call.folder={tmp_path}")
    task = {"type": "model_method", "modelIdOrName": "caller", "methodName": "call"}
    site.workflow("outer", {"name": "s", "target": "w", "task": task})
    run_id = site.json("workflow", "run", "outer", "--detach")["runId"]
    until(begun.exists, "the child's step started")
    full = site.swamp("workflow", "run", "outer", "--json")
    assert full.code != 0 and "too_many_runs" in full.err, "the child does not count, its parent does"
    serve.kill()
    site.serve(*flags, port=site.port)
    worker.wait_for("Enrolled as w", after=3)
    go.touch()
    done = site.ok("run", "attach", run_id, "--json")
    last = done.events[-1]
    assert last["status"] == "succeeded", last
    assert (tmp_path / "called").read_text() == "x", "the caller ran once"
    (child,) = last["run"]["jobs"][0]["steps"][0]["children"]
    assert (child["name"], child["status"]) == ("slow", "succeeded")
    assert len(site.json("run", "list")["runs"]) == 2
    (seen,) = site.query('modelName == "caller" && name == "seen"', "attributes")
    assert seen == {"status": "succeeded", "records": ["result", "log"]}
    assert site.query('modelName == "slow" && specName == "result"', "attributes.stdout") == ["worked"]
    assert site.json("run", "doctor")["findings"] == []


def test_the_run_of_a_command_that_is_killed_goes_on_in_the_orchestrator_that_runs(
    own_site: Site, tmp_path: Path
) -> None:
    """The command was first, without an orchestrator; one is started; the command is killed."""
    site = own_site
    begun, go = tmp_path / "begun", tmp_path / "go"
    site.model("slow", f"echo $$ >> {begun}; until [ -e {go} ]; do sleep 0.02; done; echo worked")
    site.workflow("alone", step("s", "slow"))
    command = site.start("workflow", "run", "alone", name="command")
    until(begun.exists, "its step started")
    site.serve(*GRACE)
    (run,) = site.json("run", "list")["runs"]
    command.kill()
    go.touch()
    last = until(lambda: _ended(site, run["runId"]), "the run has ended")
    assert last["status"] == "succeeded", last
    assert not list((site.root / ".swamp").glob("loopback-*"))
    assert site.json("run", "doctor")["findings"] == []


def _ended(site: Site, run_id: str) -> dict[str, Any] | None:
    (found,) = [one for one in site.json("run", "list")["runs"] if one["runId"] == run_id]
    return None if found["status"] == "running" else dict(found)
