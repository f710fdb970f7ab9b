"""`dataOutputOverrides`, in a repository, on the loopback."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from swamp_orch.api.inprocess import InProcessSession
from swamp_orch.definitions.repository import find, init
from swamp_orch.engine.overrides import suffix_of

NOTES = '''
from swamp_worker.sdk import Context, method, model, resource


@model("@acme/notes", version="2026.11.21.1")
class Notes:
    """Notes."""

    note = resource({"type": "object"}, "A note")
    other = resource({"type": "object"}, "Something else")

    @method
    async def take(self, context: Context) -> None:
        await context.write_resource(self.note, {"n": 1}, "first")
        await context.write_resource(self.other, {"n": 2}, "second")
'''


@pytest.fixture
def session(tmp_path: Path) -> Iterator[InProcessSession]:
    init(tmp_path)
    (tmp_path / "extensions/models").mkdir(parents=True, exist_ok=True)
    (tmp_path / "extensions/models/notes.py").write_text(NOTES)
    session = InProcessSession(find(tmp_path))
    session.call("model.create", type="command/shell", name="echo", arguments={"execute": {"run": "echo x"}})
    session.call("model.create", type="@acme/notes", name="notes")
    yield session
    session.close()


def run(
    session: InProcessSession, override: Any, model: str = "echo", method: str = "execute", **keys: Any
) -> Any:
    """One step with one override; its end."""
    inputs, more = keys.pop("inputs", {}), keys.pop("workflow", {})
    task = {"type": "model_method", "modelIdOrName": model, "methodName": method, **keys.pop("task", {})}
    step = {"name": "s", "dataOutputOverrides": [override], "task": task, **keys}
    text = json.dumps({"name": "w", "version": 1, "jobs": [{"name": "j", "steps": [step]}], **more})
    session.call("workflow.create", name="w", text=text)
    run_id = session.call("workflow.run", name="w", inputs=inputs)["runId"]
    return list(session.stream("run.attach", runId=run_id))[-1]


def names(session: InProcessSession, model: str = "echo") -> list[str]:
    wanted = f'modelName == "{model}" && dataType != "report"'
    return sorted(session.call("data.query", predicate=wanted, select="name")["results"])


def test_an_override_holds_for_every_record_of_its_output(session: InProcessSession) -> None:
    override = {"specName": "note", "lifetime": "7d", "garbageCollection": 3, "tags": {"job": "mine"}}
    assert run(session, override, "notes", "take")["status"] == "succeeded"
    found = session.call("data.get", model="notes", name="first")
    assert (found["lifetime"], found["garbageCollection"], found["tags"]["job"]) == ("7d", 3, "mine")
    other = session.call("data.get", model="notes", name="second")
    assert (other["lifetime"], other["tags"]["job"]) == ("infinite", "j")


def test_entries_of_a_fan_out_have_records_of_their_own(session: InProcessSession) -> None:
    each = {"item": "host", "in": '${{ [{"name": "a/b"}, {"name": "c"}] }}'}
    ended = run(session, {"specName": "result", "vary": ["host", "zone"]}, forEach=each,
                inputs={"zone": "eu"}, workflow={"inputs": {"zone": {"type": "string"}}})  # fmt: skip
    assert ended["status"] == "succeeded"
    assert names(session) == ["log", "result-a--b-eu", "result-c-eu"]
    made = ended["run"]["jobs"][0]["steps"][0]["dataArtifacts"]
    assert made[0]["name"] == "result-a--b-eu"


@pytest.mark.parametrize(
    ("override", "error"),
    [
        ({"specName": "result", "vary": ["size"]}, "Vary dimension 'size' is no input of the step; there are: pin, run"),
        ({"specName": "result", "vary": ["pin"]}, "Vary dimension 'pin' is sensitive, and names of records are shown"),
        ({"specName": "rsult"}, "dataOutputOverrides names 'rsult', which is no output of command/shell; it has: result, log"),
    ],
)  # fmt: skip
def test_what_can_not_vary_fails_the_step_before_it_is_sent(
    session: InProcessSession, override: Any, error: str
) -> None:
    inputs = {"pin": {"type": "string", "sensitive": True}}
    ended = run(session, override, inputs={"pin": "geheim-1"}, workflow={"inputs": inputs})
    assert ended["status"] == "failed"
    assert ended["error"].endswith(error) and "workflow-w.yaml:" in ended["error"]
    assert names(session) == []


@pytest.mark.parametrize(
    ("value", "suffix"),
    [("a", "a"), (3, "3"), (True, "true"), ({"key": "k", "name": "n"}, "k"), ({"id": 7}, "7"), ("a/b\\c", "a--b--c"), ([1, 2], "[1,2]")],
)  # fmt: skip
def test_how_a_value_stands_in_a_name(value: Any, suffix: str) -> None:
    assert suffix_of(value) == suffix


def test_a_long_value_is_cut() -> None:
    assert len(suffix_of(list(range(99)))) == 64
