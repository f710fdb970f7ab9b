"""Reports as runs store them: in a repository, on the loopback."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from swamp_orch.api.inprocess import InProcessSession
from swamp_orch.definitions.repository import find, init
from swamp_proto.errors import SwampError

SUMMARY = "report-swamp-method-summary"


class Place:
    """A repository and a session on it."""

    def __init__(self, root: Path) -> None:
        init(root)
        self.root = root
        self.session = InProcessSession(find(root))

    def call(self, call: str, /, **parameters: Any) -> Any:
        return self.session.call(call, **parameters)

    def model(self, name: str, run: str, more: str = "") -> None:
        self.call("model.create", type="command/shell", name=name, arguments={"execute": {"run": run}})
        if more:
            text = self.call("model.source", name=name)["text"]
            self.call("model.edit", name=name, text=text + more)

    def workflow(self, *steps: Mapping[str, Any], **keys: Any) -> None:
        document = {"name": "w", "version": 1, "jobs": [{"name": "j", "steps": list(steps)}], **keys}
        self.call("workflow.create", name="w", text=json.dumps(document))

    def watch(self, call: str, /, **parameters: Any) -> dict[str, Any]:
        events = list(self.session.stream("run.attach", runId=self.call(call, **parameters)["runId"]))
        self.warnings = [event["message"] for event in events if event["kind"] == "warning"]
        assert events[-1]["kind"] == "run_ended"
        return dict(events[-1])

    def run(self, **inputs: Any) -> dict[str, Any]:
        return self.watch("workflow.run", name="w", inputs=inputs)

    def method(self, model: str, method: str = "execute", **inputs: Any) -> dict[str, Any]:
        return self.watch("model.method_run", name=model, method=method, inputs=inputs)

    def records(self, predicate: str, *fields: str) -> list[Any]:
        select = f"[{', '.join(fields)}]"
        return list(self.call("data.query", predicate=predicate, select=select)["results"])

    def json(self, model: str, name: str) -> Any:
        return self.call("data.get", model=model, name=name)["content"]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.session.close()


def step(name: str, model: str, inputs: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    task: dict[str, Any] = {"type": "model_method", "modelIdOrName": model, "methodName": "execute"}
    return {"name": name, "task": task | ({"inputs": inputs} if inputs else {}), **more}


# ── the built-in ones ───────────────────────────────────────────────────────────────────────────────────────


def test_a_method_run_stores_its_summary(place: Place) -> None:
    place.model("echo", "echo hello")
    place.method("echo")
    found = place.call("data.get", model="echo", name=SUMMARY)
    assert found["content"].splitlines()[0] == "# echo (command/shell) → execute: succeeded"
    assert "| run | `echo hello` |" in found["content"]
    assert (found["contentType"], found["lifetime"], found["garbageCollection"]) == (
        "text/markdown",
        "30d",
        5,
    )
    marks = {"type": "report", "reportName": "@swamp/method-summary", "reportScope": "method"}
    assert marks.items() <= found["tags"].items()
    summary = place.json("echo", f"{SUMMARY}-json")
    assert (summary["status"], summary["methodArgs"]) == ("succeeded", {"run": "echo hello"})
    assert [(made["name"], made["kind"]) for made in summary["dataProduced"]] == [
        ("result", "resource"),
        ("log", "file"),
    ]


def test_a_summary_is_of_the_last_execution_of_each_method(place: Place) -> None:
    place.model("echo", "echo ${{ inputs.word }}", "inputs: {word: {type: string}}\n")
    place.model("bad", "exit 3")
    place.workflow(
        step("one", "echo", {"word": "first"}),
        step("two", "echo", {"word": "second"}, dependsOn=["one"]),
        step("three", "bad", dependsOn=["two"]),
        step("never", "bad", dependsOn=["three"]),
    )
    place.run()
    assert place.records(f'name == "{SUMMARY}-json"', "modelName", "version", "stepName") == [
        ["echo", 1, "two"],
        ["bad", 1, "three"],
    ]
    assert "second" in place.json("echo", f"{SUMMARY}-json")["methodArgs"]["run"]
    failed = place.json("bad", f"{SUMMARY}-json")
    assert failed["status"] == "failed" and failed["error"]


def test_what_is_sensitive_is_hidden_in_a_summary(place: Place) -> None:
    place.model(
        "echo",
        'echo "${{ inputs.word }}"',
        "inputs: {word: {type: string, sensitive: true}, more: {type: string}}\n",
    )
    place.workflow(
        step("s", "echo", {"word": "${{ inputs.pin }}", "env": {"A": "x-${{ inputs.pin }}"}}),
        inputs={"pin": {"type": "string", "sensitive": True}},
    )
    place.run(pin="geheim-1234")
    summary = place.json("echo", f"{SUMMARY}-json")
    assert summary["methodArgs"] == {"run": 'echo "***"', "env": {"A": "x-***"}}
    place.method("echo", word="geheim-5678")
    for kept in sorted((place.root / ".swamp").rglob("*")):
        if kept.is_file():
            assert b"geheim" not in kept.read_bytes(), kept


@pytest.mark.parametrize(
    ("definition", "workflow", "kept"),
    [
        ("", {}, [SUMMARY, "report-swamp-workflow-summary"]),
        ("reports: {skip: ['@swamp/method-summary']}\n", {}, ["report-swamp-workflow-summary"]),
        (
            "reports: {skip: ['@swamp/method-summary']}\n",
            {"reports": {"require": ["@swamp/method-summary"]}},
            [SUMMARY, "report-swamp-workflow-summary"],
        ),
        ("", {"reports": {"skip": ["@swamp/workflow-summary", "@swamp/method-summary"]}}, []),
    ],
)
def test_built_in_reports_can_be_skipped(
    place: Place, definition: str, workflow: dict[str, Any], kept: list[str]
) -> None:
    place.model("echo", "true", definition)
    place.workflow(step("s", "echo"), **workflow)
    place.run()
    markdown = 'dataType == "report" && contentType == "text/markdown"'
    assert [name for (name,) in place.records(markdown, "name")] == kept


# ── an extension's ──────────────────────────────────────────────────────────────────────────────────────────

COUNTER = '''
from swamp_worker.sdk import Context, Findings, Report, method, model, report


@model("@acme/counter", version="2026.11.21.1")
class Counter:
    """Counts."""

    @method
    async def count(self, context: Context) -> None:
        print("counted")

    @report
    async def tally(self, context: Context, findings: Findings) -> Report:
        return Report(f"# {findings.method}", {"succeeded": findings.succeeded})

    @report
    async def broken(self, context: Context, findings: Findings) -> str:
        raise RuntimeError("no paper")
'''


def test_an_extensions_reports_are_kept_and_one_that_fails_is_said_and_nothing_else(place: Place) -> None:
    (place.root / "extensions/models").mkdir(parents=True, exist_ok=True)
    (place.root / "extensions/models/counter.py").write_text(COUNTER)
    place.call("model.create", type="@acme/counter", name="c")
    count = {"type": "model_method", "modelIdOrName": "c", "methodName": "count"}
    place.workflow({"name": "s", "task": count, "retry": {"attempts": 3, "backoff": "1s"}})
    ended = place.run()
    assert ended["run"]["jobs"][0]["steps"][0]["attempts"] == 1  # nothing is run again for it
    assert ended["status"] == "succeeded"
    (warning,) = place.warnings
    assert warning.startswith("the report broken failed: RuntimeError: no paper (counter.py:")
    fields = ("name", "contentType", "lifetime", "tags.reportName", "tags.reportScope")
    assert place.records(
        'modelName == "c" && tags.type == "report" && name.startsWith("report-tally")', *fields
    ) == [
        ["report-tally", "text/markdown", "30d", "tally", "method"],
        ["report-tally-json", "application/json", "30d", "tally", "method"],
    ]
    told = place.json("c", "report-broken-json")
    assert (told["error"], told["reportName"]) == (True, "broken")
    produced = place.json("c", f"{SUMMARY}-json")["dataProduced"]
    assert {"name": "report-tally", "kind": "report"}.items() <= produced[0].items()


# ── asked for ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def told(place: Place) -> Place:
    """Two models, each executed twice, and a workflow."""
    place.model("echo", "echo hello")
    place.model("other", "exit 3")
    place.workflow(step("s", "echo"))
    place.run()
    place.method("echo")
    place.method("other")
    return place


def test_a_report_is_read_by_name_and_owner(told: Place) -> None:
    found = told.call("report.get", name="@swamp/method-summary", model="echo")
    assert (found["modelName"], found["version"], found["scope"]) == ("echo", 2, "method")
    assert found["markdown"].startswith("# echo (command/shell) → execute: succeeded")
    assert found["json"]["methodName"] == "execute"
    first = told.call("report.get", name="@swamp/method-summary", model="echo", version=1)
    assert (first["version"], first["workflowName"], first["stepName"]) == (1, "w", "s")
    by_id = told.call("report.get", name="report-swamp-method-summary", model=found["modelId"])
    assert by_id == found
    assert told.call("report.get", name="@swamp/method-summary")["modelName"] == "other"
    run = told.call("report.get", name="@swamp/workflow-summary", workflow="w")
    assert run["markdown"] == "# w: succeeded\n\n1 succeeded · 0 failed · 0 skipped"
    assert (run["scope"], run["modelType"]) == ("workflow", "workflow")


@pytest.mark.parametrize(
    ("asked", "message", "hint"),
    [
        ({"name": "@swamp/method-sumary"}, "no report '@swamp/method-sumary' is stored", "did you mean @swamp/method-summary?"),
        ({"name": "x", "model": "nobody"}, "no report 'x' of 'nobody' is stored", "swamp report search"),
        ({"name": "@swamp/workflow-summary", "model": "w"}, "no report '@swamp/workflow-summary' of 'w' is stored", "swamp report search"),
        (
            {"name": "@swamp/method-summary", "model": "echo", "version": 9},
            "the report '@swamp/method-summary' of 'echo' has no version 9; the newest is 2",
            "swamp data versions echo report-swamp-method-summary-json",
        ),
        ({"name": "x", "model": "a", "workflow": "b"}, "a report belongs to a model or to a workflow", "give one of the two"),
    ],
)  # fmt: skip
def test_a_report_that_is_not_there_is_said(
    told: Place, asked: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(SwampError) as caught:
        told.call("report.get", **asked)
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_reports_are_found_by_text_owner_and_scope(told: Place) -> None:
    def rows(**asked: Any) -> list[tuple[str, str]]:
        found = told.call("report.search", **asked)
        return [(row["name"].rpartition("/")[2], row["modelName"]) for row in found["results"]]

    everything = [("method-summary", "other"), ("method-summary", "echo"), ("workflow-summary", "w")]
    assert rows() == everything
    assert rows(query="WORKFLOW") == everything[2:]
    assert rows(query="oth") == everything[:1]
    assert rows(model="echo") == everything[1:2]
    assert rows(workflow="w") == rows(scope="workflow") == everything[2:]
    assert told.call("report.search", limit=1)["limited"] is True
    with pytest.raises(SwampError, match="unknown scope 'run'"):
        told.call("report.search", scope="run")


def test_reports_that_can_be_made_are_described(place: Place) -> None:
    (place.root / "extensions/models").mkdir(parents=True, exist_ok=True)
    (place.root / "extensions/models/counter.py").write_text(COUNTER)
    names = [kind["name"] for kind in place.call("report.type_search")["results"]]
    assert {"@swamp/method-summary", "@swamp/workflow-summary", "tally", "broken"} <= set(names)
    tally = place.call("report.describe", name="tally")
    assert (tally["scope"], tally["types"], tally["builtIn"]) == ("method", ["@acme/counter"], False)
    with pytest.raises(SwampError, match="there is no report 'tallly'"):
        place.call("report.describe", name="tallly")
