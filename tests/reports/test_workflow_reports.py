"""Reports of workflow scope in Python: made after the run's last step, in a repository, on the loopback."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from swamp_orch.api.inprocess import InProcessSession
from swamp_orch.definitions.repository import find, init
from swamp_orch.vaults import VaultSet

HEAD = """
import os
import pathlib
import sys
import trio
from swamp_worker.sdk import CallFailed, Context, NotPossible, PlainContext, Report, RunFindings, method, model, report, resource
"""

HOSTS = (
    HEAD
    + '''

@model("@acme/hosts", version="2026.11.21.1", reads=["network"], secrets=["main/token"])
class Hosts:
    """Hosts."""

    host = resource({"type": "object"}, "A host")

    @method
    async def probe(self, context: Context) -> None:
        await context.write_resource(self.host, {"name": context.model.name, "run": context.place.run}, "host")

'''
)

FLEET = '''
    @report(scope="workflow")
    async def fleet(self, context: Context, run: RunFindings) -> Report:
        """Who was looked at"""
        hosts = [one for one in run.records if one.spec == "host"]
        found = [(await context.read_resource(one.name, model=one.model, version=one.version)).json() for one in hosts]
        assert all(one["run"] == run.run for one in found)
        steps = {f"{one.job}/{one.name}": [one.status, one.error, one.model, one.method] for one in run.steps}
        data = {"hosts": sorted(one["name"] for one in found), "status": run.status, "error": run.error,
                "inputs": dict(run.inputs), "steps": steps, "place": [context.place.workflow, context.place.step]}
        return Report(f"# {run.workflow}: {len(hosts)} hosts", data)
'''


class Place:
    def __init__(self, root: Path) -> None:
        init(root)
        self.root = root
        self.session = InProcessSession(find(root))
        self.events: list[dict[str, Any]] = []

    def call(self, call: str, /, **parameters: Any) -> Any:
        return self.session.call(call, **parameters)

    def hosts(self, reports: str = FLEET, *names: str, head: str = HOSTS, file: str = "hosts") -> None:
        folder = self.root / "extensions/models"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{file}.py").write_text(head + reports)
        for name in names or ("a", "b"):
            self.call("model.create", type="@acme/hosts", name=name)

    def shell(self, name: str, run: str) -> None:
        self.call("model.create", type="command/shell", name=name, arguments={"execute": {"run": run}})

    def workflow(self, *steps: Mapping[str, Any], name: str = "w", **keys: Any) -> None:
        document = {"name": name, "version": 1, "jobs": [{"name": "j", "steps": list(steps)}], **keys}
        self.call("workflow.create", name=name, text=json.dumps(document))

    def follow(
        self, run_id: str, on: Callable[[dict[str, Any]], None] = lambda event: None
    ) -> dict[str, Any]:
        self.events = []
        for event in self.session.stream("run.attach", runId=run_id):
            self.events.append(event)
            on(event)
        assert self.events[-1]["kind"] == "run_ended"
        return self.events[-1]

    def run(self, name: str = "w", **inputs: Any) -> dict[str, Any]:
        return self.follow(self.call("workflow.run", name=name, inputs=inputs)["runId"])

    def shown(self) -> list[str]:
        return [event["name"] for event in self.events if event["kind"] == "report"]

    def warnings(self) -> list[str]:
        return [event["message"] for event in self.events if event["kind"] == "warning"]

    def stored(self, report: str) -> dict[str, Any]:
        found: dict[str, Any] = self.call("report.get", name=report, workflow="w")
        return found


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.session.close()


def step(name: str, model: str | None = None, **more: Any) -> dict[str, Any]:
    method = more.pop("method", "probe")
    task = {"type": "model_method", "modelIdOrName": model or name, "methodName": method}
    return {"name": name, "task": task, **more}


# ── what one is made of ─────────────────────────────────────────────────────────────────────────────────────


def test_it_is_made_of_the_run_shown_and_kept(place: Place) -> None:
    place.hosts()
    inputs = {"pin": {"type": "string", "sensitive": True}, "zone": {"type": "string"}}
    place.workflow(step("a"), step("b"), inputs=inputs)
    ended = place.run(pin="geheim-1234", zone="eu")
    assert (ended["status"], place.warnings()) == ("succeeded", [])
    assert place.shown() == ["fleet", "@swamp/workflow-summary"]
    found = place.stored("fleet")
    assert (found["markdown"], found["scope"], found["modelType"]) == ("# w: 2 hosts", "workflow", "workflow")
    assert found["runId"] == ended["runId"]
    assert found["json"] == {
        "hosts": ["a", "b"],
        "status": "succeeded",
        "error": "",
        "inputs": {"pin": "***", "zone": "eu"},
        "steps": {"j/a": ["succeeded", "", "a", "probe"], "j/b": ["succeeded", "", "b", "probe"]},
        "place": ["w", "fleet"],
    }
    record = place.call("data.get", model="w", name="report-fleet")
    marks = {"type": "report", "reportName": "fleet", "reportScope": "workflow"}
    assert (record["lifetime"], record["garbageCollection"]) == ("30d", 5)
    assert marks.items() <= record["tags"].items()
    about = place.call("report.describe", name="fleet")
    assert (about["scope"], about["types"], about["description"]) == (
        "workflow",
        ["@acme/hosts"],
        "Who was looked at",
    )


def test_a_failed_run_has_its_reports_and_is_resumed_with_new_ones(place: Place, tmp_path: Path) -> None:
    place.hosts(FLEET, "a")
    place.shell("bad", f"test -e {tmp_path}/go")
    place.workflow(step("a"), step("bad", method="execute", dependsOn=["a"]))
    ended = place.run()
    assert (ended["status"], place.shown()) == ("failed", ["fleet", "@swamp/workflow-summary"])
    told = place.stored("fleet")["json"]
    assert (told["status"], told["error"]) == ("failed", ended["error"])
    assert told["steps"]["j/bad"][0] == "failed"
    (tmp_path / "go").touch()
    again = place.follow(place.call("workflow.resume", name="w")["runId"])
    assert (again["runId"], again["status"]) == (ended["runId"], "succeeded")
    found = place.stored("fleet")
    assert (found["version"], found["json"]["status"], found["json"]["hosts"]) == (2, "succeeded", ["a"])


def test_what_nested_workflows_left_may_be_read(place: Place) -> None:
    place.hosts(
        '''
    @report(scope="workflow")
    async def fleet(self, context: Context, run: RunFindings) -> Report:
        (child,) = run.steps[1].children
        assert (child.kind, child.name, child.status) == ("workflow", "inner", "succeeded")
        rows = await context.query('specName == "host"', select="attributes.name")
        return Report(f"# {sorted(rows)}", {"b": (await context.read_resource("host", model="b")).json()["name"]})
''',
        "a", "b",
    )  # fmt: skip
    place.workflow(step("b"), name="inner")
    place.workflow(step("a"), {"name": "n", "task": {"type": "workflow", "workflowIdOrName": "inner"}})
    assert place.run()["status"] == "succeeded"
    assert (place.warnings(), place.stored("fleet")["json"]) == ([], {"b": "b"})
    assert place.stored("fleet")["markdown"] == "# ['a', 'b']"


# ── which are made ──────────────────────────────────────────────────────────────────────────────────────────


CHOICES: list[tuple[list[str], dict[str, Any], bool]] = [
    (["", ""], {}, True),
    (["skip", ""], {}, True),
    (["skip", "skip"], {}, False),
    (["skip", "skip"], {"require": ["fleet"]}, True),
    (["", ""], {"skip": ["fleet"]}, False),
    (["", ""], {"require": ["fleet"], "skip": ["fleet"]}, False),
]


def test_definitions_and_then_the_workflow_choose(place: Place) -> None:
    place.hosts()
    written = {name: place.call("model.source", name=name)["text"] for name in ("a", "b")}
    for number, (words, reports, shown) in enumerate(CHOICES):
        for (name, text), word in zip(written.items(), words, strict=True):
            more = f"reports: {{{word}: [fleet]}}\n" if word else ""
            place.call("model.edit", name=name, text=text + more)
        more = {"reports": reports} if reports else {}
        place.workflow(step("a"), step("b"), name=f"w{number}", **more)
        place.run(f"w{number}")
        assert ("fleet" in place.shown(), place.warnings()) == (shown, []), (words, reports)


def test_what_is_required_is_made_without_a_step_of_its_type_or_said_to_be_missing(place: Place) -> None:
    place.hosts(FLEET, "a")
    alone = f"""{HEAD}
@model("@acme/alone", version="2026.11.21.1")
class Alone:
    @report(scope="workflow")
    def tally(self, context: PlainContext, run: RunFindings) -> str:
        return f"# {{len(run.steps)}} steps"
"""
    (place.root / "extensions/models/alone.py").write_text(alone)
    place.shell("s", "true")
    wanted = ["tally", "nobody", "@swamp/method-summary"]
    place.workflow(step("s", method="execute"), reports={"require": wanted})
    ended = place.run()
    assert (ended["status"], place.shown()) == ("succeeded", ["tally", "@swamp/workflow-summary"])
    assert place.stored("tally")["markdown"] == "# 1 steps"
    why = "no type has a report of that name; swamp report type search shows those there are"
    assert place.warnings() == [f"the report nobody failed: {why}"]
    told = {"error": True, "reportName": "nobody", "scope": "workflow", "message": why}
    assert place.stored("nobody")["json"] == told


# ── what it may ─────────────────────────────────────────────────────────────────────────────────────────────

LOOKS = """
    @report(scope="workflow")
    async def fleet(self, context: Context, run: RunFindings) -> Report:
        told = {}
        async def ask(what, make):
            try:
                found = await make()
                told[what] = found if found is None or isinstance(found, (list, str)) else found.json()
            except (CallFailed, NotPossible) as error:
                told[what] = type(error).__name__
        await ask("a declared model", lambda: context.read_resource("result", model="network"))
        await ask("an older record of the run's model", lambda: context.read_resource("host", model="a", version=1))
        await ask("a record of another model", lambda: context.read_resource("result", model="stranger"))
        await ask("its earlier version", lambda: context.read_resource("report-fleet-json"))
        wanted = 'name == "host" || modelName == "stranger" || modelName == "network"'
        await ask("a query", lambda: context.query(wanted, select="modelName + ' ' + name"))
        await ask("infrastructure", lambda: context.query('modelType == "swamp/step-lease" && version > 0'))
        await ask("runs", lambda: context.query('modelType == "swamp/workflow-run"'))
        await ask("a definition", lambda: context.read_model("a"))
        await ask("an output", lambda: context.read_output("stranger"))
        await ask("a secret", lambda: context.secret("main", "other"))
        await ask("writing", lambda: context.write_resource(self.host, {}))
        await ask("running", lambda: context.run_model("a", "probe"))
        return Report("", told)
"""


def test_it_sees_what_its_run_left_and_what_its_type_declares(place: Place) -> None:
    place.hosts(LOOKS, "a")
    place.shell("network", "echo net")
    place.shell("stranger", "echo strange")
    for name in ("network", "stranger"):
        place.follow(place.call("model.method_run", name=name, method="execute", inputs={})["runId"])
    place.workflow(step("a"))
    place.run()
    first = place.run()
    told = place.stored("fleet")["json"]
    assert told.pop("a declared model")["stdout"] == "net"
    assert told.pop("its earlier version")["an older record of the run's model"]["run"] != first["runId"]
    assert sorted(told.pop("a query")) == sorted(
        ["a host", "network log", "network report-swamp-method-summary", "network report-swamp-method-summary-json",
         "network result"]
    )  # fmt: skip
    assert told == {
        "an older record of the run's model": None,
        "a record of another model": None,
        "infrastructure": [],
        "runs": [],
        "a definition": "Forbidden",
        "an output": "Forbidden",
        "a secret": "Forbidden",
        "writing": "NotPossible",
        "running": "NotPossible",
    }


# ── those that go wrong ─────────────────────────────────────────────────────────────────────────────────────

WRONG = """
    @report(scope="workflow")
    async def raises(self, context: Context, run: RunFindings) -> str:
        token = await context.secret("main", "token")
        print("about to fail with", token)
        raise RuntimeError(f"no paper for {token}")

    @report(scope="workflow")
    def exits(self, context: PlainContext, run: RunFindings) -> str:
        os._exit(7)

    @report(scope="workflow")
    def nonsense(self, context: PlainContext, run: RunFindings) -> str:
        return 42

    @report(scope="workflow")
    async def tells(self, context: Context, run: RunFindings) -> Report:
        token = await context.secret("main", "token")
        return Report(f"# {token}", {"token": token, token: 1})
"""


def test_one_that_goes_wrong_harms_nothing_but_itself_and_is_said(place: Place) -> None:
    vaults = VaultSet(find(place.root))
    vaults.create("local_encryption", "main")
    vaults.choose("main").put("token", "geheim-canary-1", False)
    place.hosts(FLEET + WRONG, "a")
    place.workflow(step("a"))
    ended = place.run()
    assert ended["status"] == "succeeded"
    assert place.shown() == ["fleet", "tells", "@swamp/workflow-summary"]
    assert place.stored("tells")["json"] == {"token": "***", "***": 1}
    messages = {name: place.stored(name)["json"]["message"] for name in ("raises", "exits", "nonsense")}
    assert messages["raises"].startswith("RuntimeError: no paper for *** (hosts.py:")
    assert messages["exits"] == "The report's process ended with code 7 before the report did"
    assert messages["nonsense"].startswith("the report nonsense returns Markdown or a Report, not int")
    assert sorted(place.warnings()) == sorted(
        f"the report {name} failed: {message}" for name, message in messages.items()
    )
    assert "about to fail with ***" in place.call("data.get", model="w", name="report-raises-log")["content"]
    place.session.close()
    for kept in sorted((place.root / ".swamp").rglob("*")):
        if kept.is_file():
            assert b"geheim-canary" not in kept.read_bytes(), kept


def test_a_cancelled_run_has_no_report_and_says_so(place: Place) -> None:
    place.hosts(FLEET, "a")
    place.shell("hangs", "echo begun; sleep 600")
    place.workflow(step("a"), step("hangs", method="execute", dependsOn=["a"]))
    run_id = place.call("workflow.run", name="w")["runId"]

    def cancel(event: dict[str, Any]) -> None:
        if event["kind"] == "step_output" and event["line"] == "begun":
            place.call("run.cancel", runId=run_id, reason="enough", wait=False)

    assert place.follow(run_id, cancel)["status"] == "cancelled"
    assert place.shown() == ["@swamp/workflow-summary"]
    assert place.stored("fleet")["json"]["message"] == "not made: enough"
    assert place.warnings() == ["the report fleet failed: not made: enough"]


def test_a_cancel_while_it_is_made_ends_it_and_not_the_run(place: Place, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    hangs = f"""
    @report(scope="workflow")
    async def fleet(self, context: Context, run: RunFindings) -> str:
        pathlib.Path({str(begun)!r}).touch()
        await trio.sleep_forever()
"""
    place.hosts(hangs, "a")
    place.workflow(step("a"))
    run_id = place.call("workflow.run", name="w")["runId"]

    def cancel(event: dict[str, Any]) -> None:
        if event["kind"] == "job_ended":
            give_up = time.monotonic() + 60
            while not begun.exists():
                assert time.monotonic() < give_up
                time.sleep(0.01)
            place.call("run.cancel", runId=run_id, reason="enough", wait=False)

    ended = place.follow(run_id, cancel)
    assert (ended["status"], ended.get("error")) == ("succeeded", None)
    assert place.stored("fleet")["json"]["message"] == "not made: enough"
