"""The calls `model.*` and `workflow.*`: what they answer and what they leave behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swamp_orch.api.interface import CALLS
from swamp_orch.api.services.definitions import DefinitionService
from swamp_orch.definitions.repository import Repository
from swamp_orch.store.interface import Batch, NewRecord, Selection, json_content
from swamp_orch.store.memory import MemoryStore
from swamp_proto.errors import AlreadyExists, Conflict, InvalidDefinition, LocalError, NotFound, UsageError
from swamp_worker.models.built_in import BUILT_IN

Ask = Callable[..., Any]

TUTORIAL = """\
id: 0f8fad5b-d9cb-469f-a165-70867728950e
name: remote-demo
description: Run a step on a remote worker
jobs:
  - name: build
    steps:
      - name: echo-on-worker
        target: build-node
        task:
          type: model_method
          modelIdOrName: remote-echo
          methodName: execute
version: 1
"""


def echo(call: Ask, name: str = "remote-echo") -> Any:
    return call(
        "model.create",
        type="command/shell",
        name=name,
        arguments={"execute": {"run": 'echo "executed on a worker"'}},
    )


def files(repository: Repository) -> list[str]:
    return sorted(
        str(path.relative_to(repository.root))
        for folder in (repository.models, repository.workflows)
        for path in folder.rglob("*")
        if path.is_file()
    )


def test_every_call_of_the_catalogue_is_answered(repository: Repository, store: MemoryStore) -> None:
    running = {
        "model.method_run",
        "workflow.run",
        "workflow.resume",
        "workflow.approve",
        "workflow.reject",
        "workflow.approvals",
    }
    expected = {name for name in CALLS if name.split(".")[0] in ("model", "workflow")} - running
    assert set(DefinitionService(repository, store).handlers()) == expected


# ── models ──────────────────────────────────────────────────────────────────────────────────────


def test_create_writes_a_file_like_a_persons(call: Ask, repository: Repository) -> None:
    made = echo(call)
    assert set(made) == {"id", "type", "name", "path", "version", "typeVersion", "globalArguments", "methods"}
    assert made["path"] == "models/command/shell/remote-echo.yaml"
    assert [method["name"] for method in made["methods"]] == ["execute"]
    assert (repository.root / made["path"]).read_text() == (
        f"type: command/shell\ntypeVersion: {made['typeVersion']}\nid: {made['id']}\nname: remote-echo\nversion: 1\n"
        'methods:\n  execute:\n    arguments:\n      run: echo "executed on a worker"\n'
    )


def test_create_turns_texts_into_declared_types(call: Ask) -> None:
    call(
        "model.create",
        type="Command::Shell",
        name="m",
        arguments={
            "execute": {"run": "true", "timeout": "5000", "ignoreExitCode": "true", "env": '{"A": "1"}'}
        },
    )
    assert call("model.get", name="m")["methodArguments"]["execute"] == {
        "run": "true",
        "timeout": 5000,
        "ignoreExitCode": True,
        "env": {"A": "1"},
    }


@pytest.mark.parametrize(
    ("parameters", "kind", "message"),
    [
        (
            {"type": "command/shel", "name": "x"},
            NotFound,
            "Unknown model type: command/shel. Did you mean 'command/shell'?",
        ),
        ({"type": "command/shell", "name": "X y"}, LocalError, "'X y' is not a model name"),
        ({"type": "command/shell", "name": "../x"}, LocalError, "'../x' is not a model name"),
        (
            {"type": "swamp/worker", "name": "x"},
            LocalError,
            "swamp/worker is swamp's own bookkeeping: models of it cannot be created",
        ),
        (
            {"type": "command/shell", "name": "x", "arguments": {"execute": {"rum": "1"}}},
            LocalError,
            "'rum' is not an argument. Did you mean 'run'? Valid arguments are: run, workingDir, timeout, env, ignoreExitCode",
        ),
        (
            {"type": "command/shell", "name": "x", "arguments": {"execute": {"timeout": "1.9"}}},
            LocalError,
            'timeout must be an integer, not "1.9"',
        ),
        (
            {"type": "command/shell", "name": "x", "arguments": {"execut": {"run": "1"}}},
            NotFound,
            "Unknown method 'execut' of command/shell. Did you mean 'execute'? Methods are: execute",
        ),
        (
            {"type": "command/shell", "name": "x", "arguments": {"execute": {"run": "echo ${{ inputs.x"}}},
            InvalidDefinition,
            "models/command/shell/x.yaml:9: ",
        ),
        (
            {"type": "command/shell", "name": "x", "globalArguments": {"a": "1"}},
            LocalError,
            "'a' is not an argument. Valid arguments are: none",
        ),
        (
            {"type": "command/shell", "name": "x", "arguments": {"execute": "x"}},
            UsageError,
            "the arguments of 'execute' must be a map",
        ),
    ],
)
def test_create_refuses_and_writes_nothing(
    call: Ask, repository: Repository, parameters: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as caught:
        call("model.create", **parameters)
    assert str(caught.value).startswith(message)
    assert caught.value.hint  # type: ignore[attr-defined]
    assert files(repository) == []


def test_creating_what_exists_names_the_file(call: Ask, repository: Repository) -> None:
    echo(call)
    before = files(repository)
    with pytest.raises(AlreadyExists) as caught:
        echo(call)
    assert (
        caught.value.message
        == "the model 'remote-echo' exists already: models/command/shell/remote-echo.yaml"
    )
    assert files(repository) == before


def test_get_search_source(call: Ask, repository: Repository) -> None:
    made = echo(call)
    found = call("model.get", name="remote-echo")
    assert found["id"] == made["id"]
    assert found["type"] == "command/shell"
    assert found["globalArguments"] == {}
    assert found["methodArguments"] == {"execute": {"run": 'echo "executed on a worker"'}}
    assert call("model.get", name=made["id"][:8])["name"] == "remote-echo"
    assert call("model.search", query="ECHO") == {
        "query": "ECHO",
        "results": [{"id": made["id"], "name": "remote-echo", "type": "command/shell"}],
    }
    assert call("model.search", query="nothing")["results"] == []
    (repository.models / "bad.yaml").write_text("a: [\n")
    assert call("model.search")["problems"] == [
        {
            "path": "models/bad.yaml",
            "error": "models/bad.yaml:1: a bracket is never closed, or a comma is missing: `]`",
        }
    ]
    assert call("model.source", name="bad") == {"name": "bad", "path": "models/bad.yaml", "text": "a: [\n"}


def test_edit_keeps_the_text_as_typed(call: Ask, repository: Repository) -> None:
    made = echo(call)
    text = f"# mine\ntype: command/shell\nid:   {made['id']}\nname: remote-echo # same\n"
    answer = call("model.edit", name="remote-echo", text=text)
    assert answer == {
        "path": "models/command/shell/remote-echo.yaml",
        "editor": None,
        "status": "updated",
        "name": "remote-echo",
        "type": "command/shell",
        "editType": "text",
    }
    assert call("model.source", name="remote-echo")["text"] == text
    assert call("model.edit", name="remote-echo", text=text)["status"] == "unchanged"


def test_edit_keeps_the_id_and_refuses_what_is_wrong(call: Ask, repository: Repository) -> None:
    made = echo(call)
    path = repository.root / made["path"]
    before = path.read_text()
    for text, problem in [
        ("type: command/shell\nname: other\n", "the name is 'other' but the file stands for 'remote-echo'"),
        (
            "type: command/shell\nid: 0f8fad5b-d9cb-469f-a165-70867728950e\nname: remote-echo\n",
            "cannot change",
        ),
        ("type: [\n", "a bracket is never closed"),
        ("", "the file is empty"),
        ("type: command/shell\nname: remote-echo\nmethds: {}\n", "remote-echo.yaml:3: Unknown key 'methds'"),
    ]:
        with pytest.raises(LocalError) as caught:
            call("model.edit", name="remote-echo", text=text)
        assert problem in caught.value.message
        assert path.read_text() == before
    call("model.edit", name="remote-echo", text="type: command/shell\nname: remote-echo\n")
    assert path.read_text() == f"id: {made['id']}\ntype: command/shell\nname: remote-echo\n"


def test_edit_repairs_a_file_that_does_not_parse_and_keeps_its_id(call: Ask, repository: Repository) -> None:
    made = echo(call)
    path = repository.root / made["path"]
    path.write_text(path.read_text() + "oops: [\n")
    with pytest.raises(InvalidDefinition):
        call("model.get", name="remote-echo")
    call("model.edit", name="remote-echo", text="type: command/shell\nname: remote-echo\n")
    assert call("model.get", name="remote-echo")["id"] == made["id"]


def test_delete_is_refused_while_a_workflow_names_the_model(call: Ask, repository: Repository) -> None:
    made = echo(call)
    call("workflow.create", text=TUTORIAL)
    (repository.workflows / "workflow-bad.yaml").write_text("steps: [remote-echo\n")
    with pytest.raises(Conflict) as caught:
        call("model.delete", name="remote-echo")
    assert "workflow 'remote-demo' (step 'echo-on-worker')" in caught.value.message
    assert "workflows/workflow-bad.yaml, which cannot be read" in caught.value.message
    (repository.workflows / "workflow-bad.yaml").unlink()
    text = TUTORIAL.replace("modelIdOrName: remote-echo", f"modelIdOrName: '{made['id'][:6]}'")
    call("workflow.edit", name="remote-demo", text=text)
    with pytest.raises(Conflict):
        call("model.delete", name="remote-echo")
    assert (repository.root / made["path"]).exists()


def test_delete_marks_data_deleted_and_removes_the_file(
    call: Ask, store: MemoryStore, repository: Repository
) -> None:
    made = echo(call)
    other = echo(call, "other")

    def record(model: dict[str, Any], name: str) -> NewRecord:
        return NewRecord("command/shell", model["id"], model["name"], name, "result", json_content({"x": 1}))

    store.commit(Batch((record(made, "result"), record(made, "log"), record(other, "result"))))
    store.commit(Batch((record(made, "result"),)))
    answer = call("model.delete", name="remote-echo")
    assert answer == {
        "deleted": {
            "id": made["id"],
            "name": "remote-echo",
            "type": "command/shell",
            "inputPath": made["path"],
        },
        "resourceDeleted": True,
        "outputsDeleted": 0,
        "evaluatedInputDeleted": False,
        "dataDeleted": 2,
        "expiredDataAutoCollected": 0,
    }
    assert [found.model_name for found in store.select(Selection())] == ["other"]
    latest = store.latest(made["id"], "result")
    assert latest is not None
    assert (latest.version, latest.deleted) == (3, True)
    assert files(repository) == ["models/command/shell/other.yaml"]
    with pytest.raises(NotFound):
        call("model.delete", name="remote-echo")


def test_validate_one_and_all(call: Ask, repository: Repository) -> None:
    made = echo(call)
    passed = call("model.validate", name="remote-echo")
    assert passed["passed"] is True
    assert passed["modelId"] == made["id"]
    assert all(check["passed"] for check in passed["validations"])
    path = repository.root / made["path"]
    path.write_text(
        path.read_text().replace(
            'run: echo "executed on a worker"',
            "run: echo '${{ inputs.who }}' ${{ env.HOME }} {{ inputs.x }} ${{ nope }}\n      timout: 1",
        )
    )
    found = call("model.validate", name="remote-echo")
    assert found["passed"] is False
    errors = "\n".join(check["error"] for check in found["validations"] if not check["passed"])
    shown = "models/command/shell/remote-echo.yaml"
    assert f"{shown}:10: 'timout' is not an argument. Did you mean 'timeout'?" in errors
    assert f"{shown}:9: expression `inputs.who`: there is no input 'who'. Inputs are: none" in errors
    assert f"{shown}:9: expression `nope`: unknown name `nope`" in errors
    assert "single quotes" in errors
    warnings = {item["name"]: item for item in found["warnings"]}
    assert warnings["Environment variables"]["envVars"] == [
        {"path": "methods.execute.arguments.run", "envVar": "HOME"}
    ]
    assert "{{ inputs.x }}" in warnings["Malformed expressions"]["message"]
    (repository.models / "command" / "shell" / "bad.yaml").write_text("type: [\n")
    everything = call("model.validate")
    assert (everything["totalPassed"], everything["totalFailed"], everything["passed"]) == (0, 2, False)
    assert {item["modelName"] for item in everything["models"]} == {"remote-echo", "bad"}
    one = call("model.validate", name="bad")
    assert one["passed"] is False
    assert one["validations"][0]["error"].startswith("models/command/shell/bad.yaml:1: ")


def test_validate_says_when_the_type_is_gone(call: Ask, repository: Repository) -> None:
    path = repository.models / "docker" / "run" / "d.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("type: docker/run\nname: d\n")
    found = call("model.validate", name="d")
    assert found["passed"] is False
    assert "models/docker/run/d.yaml:2: Unknown model type: docker/run." in found["validations"][1]["error"]
    with pytest.raises(InvalidDefinition, match="Unknown model type"):
        call("model.get", name="d")


def test_types_and_methods_describe_themselves(call: Ask) -> None:
    echo(call)
    assert [item["type"] for item in call("model.type_search", query="shell")["results"]] == ["command/shell"]
    assert [item["type"] for item in call("model.type_search")["results"]] == sorted(BUILT_IN)
    assert "swamp/worker" in [item["type"] for item in call("model.type_search", all=True)["results"]]
    described = call("model.type_describe", type="Command::Shell")
    assert described["type"] == {"raw": "Command::Shell", "normalized": "command/shell"}
    assert {item["name"] for item in described["dataOutputSpecs"]} == {"result", "log"}
    method = call("model.method_describe", name="remote-echo", method="execute")
    assert (method["modelName"], method["modelType"]) == ("remote-echo", "command/shell")
    assert method["method"]["arguments"]["required"] == ["run"]
    with pytest.raises(NotFound, match="Unknown method 'exec'"):
        call("model.method_describe", name="remote-echo", method="exec")


# ── workflows ───────────────────────────────────────────────────────────────────────────────────


def test_create_keeps_the_text_as_typed(call: Ask, repository: Repository) -> None:
    answer = call("workflow.create", text=TUTORIAL)
    assert answer == {
        "id": "0f8fad5b-d9cb-469f-a165-70867728950e",
        "name": "remote-demo",
        "path": "workflows/workflow-remote-demo.yaml",
        "jobs": [{"name": "build", "steps": ["echo-on-worker"]}],
    }
    assert (repository.root / answer["path"]).read_text() == TUTORIAL


def test_create_adds_id_and_name_and_nothing_else(call: Ask, repository: Repository) -> None:
    text = "# mine\n" + "".join(TUTORIAL.splitlines(keepends=True)[2:])
    answer = call("workflow.create", name="other", text=text)
    written = (repository.root / answer["path"]).read_text()
    assert written == text.replace("description:", f"id: {answer['id']}\nname: other\ndescription:", 1)


@pytest.mark.parametrize(
    ("parameters", "kind", "message"),
    [
        (
            {"name": "x", "text": TUTORIAL},
            InvalidDefinition,
            "workflow-x.yaml:2: the name is 'remote-demo' but the file stands for 'x'",
        ),
        ({"name": "A b", "text": TUTORIAL}, LocalError, "'A b' is not a workflow name"),
        ({"text": "jobs: [\n"}, InvalidDefinition, "the given text:1: a bracket is never closed"),
        (
            {"text": "[]"},
            InvalidDefinition,
            "the given text:1: the workflow must be a map of keys, not a list",
        ),
        ({"text": ""}, InvalidDefinition, "the given text:1: the file is empty"),
        (
            {"name": "x", "text": "jobs:\n  - nme: a\n"},
            InvalidDefinition,
            "workflow-x.yaml:2: Unknown key 'nme' on job 1.",
        ),
        ({}, UsageError, "a new workflow needs a name or a text"),
    ],
)
def test_create_of_a_wrong_text_writes_nothing(
    call: Ask, repository: Repository, parameters: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as caught:
        call("workflow.create", **parameters)
    assert str(caught.value).startswith(message)
    assert files(repository) == []


def test_creating_a_workflow_that_exists_names_the_file(call: Ask) -> None:
    call("workflow.create", text=TUTORIAL)
    with pytest.raises(AlreadyExists) as caught:
        call("workflow.create", text=TUTORIAL)
    assert (
        caught.value.message
        == "the workflow 'remote-demo' exists already: workflows/workflow-remote-demo.yaml"
    )


def test_a_copied_text_with_the_id_of_the_original_is_refused(call: Ask, repository: Repository) -> None:
    call("workflow.create", text=TUTORIAL)
    with pytest.raises(InvalidDefinition) as caught:
        call("workflow.create", text=TUTORIAL.replace("remote-demo", "copy"))
    assert (
        caught.value.message == "the given text:1: the id is also that of workflows/workflow-remote-demo.yaml"
    )
    assert caught.value.hint == "remove the `id` line of the copy: swamp writes a new one"
    assert files(repository) == ["workflows/workflow-remote-demo.yaml"]


@pytest.mark.parametrize("with_model", [False, True])
def test_the_scaffold_validates(call: Ask, with_model: bool) -> None:
    call("model.create", type="command/shell", name="aaa-needs-run")
    if with_model:
        echo(call)
    call("workflow.create", name="fresh")
    validated = call("workflow.validate", name="fresh")
    assert validated["passed"] is True
    assert validated["totalWarnings"] == 0
    (step,) = call("workflow.get", name="fresh")["jobs"][0]["steps"]
    assert step["task"]["type"] == ("model_method" if with_model else "assert")


def test_workflow_get_search_source_delete(call: Ask, repository: Repository) -> None:
    call("workflow.create", text=TUTORIAL)
    found = call("workflow.get", name="remote-demo")
    assert list(found) == ["id", "name", "description", "jobs", "version", "path"]
    assert call("workflow.search", query="worker")["results"] == [
        {
            "id": found["id"],
            "name": "remote-demo",
            "description": "Run a step on a remote worker",
            "jobs": 1,
            "steps": 1,
        }
    ]
    assert call("workflow.source", name="remote-demo")["text"] == TUTORIAL
    parent = (
        TUTORIAL.replace("remote-demo", "parent")
        .replace("id: 0f8", "id: 1f8")
        .replace("type: model_method", "type: workflow")
    )
    parent = parent.replace("modelIdOrName: remote-echo", "workflowIdOrName: remote-demo").replace(
        "          methodName: execute\n", ""
    )
    call("workflow.create", text=parent)
    with pytest.raises(Conflict, match=r"used by workflow 'parent' \(step 'echo-on-worker'\)"):
        call("workflow.delete", name="remote-demo")
    call("workflow.delete", name="parent")
    assert call("workflow.delete", name="remote-demo") == {
        "deleted": {
            "id": found["id"],
            "name": "remote-demo",
            "workflowPath": "workflows/workflow-remote-demo.yaml",
        },
        "runsDeleted": 0,
    }
    assert files(repository) == []


def test_workflow_edit(call: Ask) -> None:
    call("workflow.create", text=TUTORIAL)
    text = TUTORIAL.replace("version: 1", "version: 2 # better")
    answer = call("workflow.edit", name="remote-demo", text=text)
    assert (answer["status"], answer["name"]) == ("updated", "remote-demo")
    assert call("workflow.source", name="remote-demo")["text"] == text


def checks(call: Ask, text: str, name: str = "w") -> dict[str, Any]:
    call("workflow.create", name=name, text=text)
    found: dict[str, Any] = call("workflow.validate", name=name)
    return {item["name"]: item for item in found["validations"] if not item["passed"] or "warning" in item}


def steps(*rows: str, top: str = "") -> str:
    return f"{top}jobs:\n  - name: j\n    steps:\n" + "".join(f"      - {row}\n" for row in rows)


def method(
    name: str, model: str = "remote-echo", inputs: str = "{}", extra: str = "", method: str = "execute"
) -> str:
    return f"{{name: {name}, {extra} task: {{type: model_method, modelIdOrName: {model}, methodName: {method}, inputs: {inputs}}}}}"


def test_validate_finds_what_other_files_say(call: Ask) -> None:
    echo(call)
    call("model.create", type="command/shell", name="bare")
    text = steps(
        method("a", model="remote-ecko"),
        method("b", method="run"),
        method("c", inputs="{rum: x}"),
        method("d", model="bare"),
        method("e", inputs="{timeout: '5'}"),
        method("f", model="'${{ inputs.x }}'"),
        method("g", inputs="'${{ {} }}'"),
    )
    found = checks(call, text)
    where = "workflows/workflow-w.yaml"
    name = "Step inputs for '{}' in job 'j' ({}.{})"
    assert found[name.format("a", "remote-ecko", "execute")]["error"] == (
        f"{where}:6: Model not found: remote-ecko. Did you mean 'remote-echo'?"
    )
    assert found[name.format("b", "remote-echo", "run")]["error"] == (
        f"{where}:7: Unknown method 'run' of command/shell. Methods are: execute"
    )
    assert "Unknown method input(s): rum." in found[name.format("c", "remote-echo", "execute")]["error"]
    assert "run is required" in found[name.format("d", "bare", "execute")]["error"]
    assert 'timeout must be an integer, not "5"' in found[name.format("e", "remote-echo", "execute")]["error"]
    assert len(found) == 6
    assert found["Expressions of 'f' in job 'j'"]["error"] == (
        f"{where}:11: expression `inputs.x`: there is no input 'x'. Inputs are: none"
    )


def test_validate_checks_names_in_expressions(call: Ask) -> None:
    echo(call)
    text = steps(
        method(
            "a", inputs="""{run: 'echo ${{ inputs.wo }} ${{ has(inputs.z) }} ${{ inputs.?q.orValue("") }}'}"""
        ),
        method("b", inputs="{run: 'echo ${{ self.x }}'}"),
        method("c", inputs="{run: 'echo ${{ self.y }}'}", extra="forEach: {item: x, in: '${{ [1] }}'},"),
        method("d", inputs="{run: 'echo ${{ webhook.body }}'}"),
        method("e", inputs="""{run: 'echo ${{ vault.get("v", "k") }}'}"""),
        method("f", inputs="""{run: 'echo ${{ data.latest("gone", "result").attributes.x }}'}"""),
        method("g", inputs="""{run: "echo '${{ inputs.who }}'"}"""),
        method("h", inputs="{run: 'echo ${{ [1].map(inputs, inputs) }} {{ inputs.who }}'}"),
        "{name: i, task: {type: assert, expr: nope == 1}}",
        top="inputs: {who: {type: string}}\n",
    )
    found = checks(call, text)
    where = "workflows/workflow-w.yaml"

    def error(step: str) -> str:
        return str(found[f"Expressions of '{step}' in job 'j'"].get("error"))

    assert (
        error("a")
        == f"{where}:7: expression `inputs.wo`: there is no input 'wo'. Did you mean 'who'? Inputs are: who"
    )
    assert "there is no `self` here" in error("b")
    assert "`self` has no 'y'. It has: x" in error("c")
    assert "`webhook` can be used only in the inputs of the workflow's trigger" in error("d")
    assert "there is no vault 'v'. Vaults are: none" in error("e")
    assert "there is no model 'gone'" in found["Expressions of 'f' in job 'j'"]["warning"]
    assert "single quotes" in found["Shell text of 'g' in job 'j'"]["error"]
    assert "Expressions of 'h' in job 'j'" not in found
    assert "{{ inputs.who }}" in found["Malformed expressions in 'h' in job 'j'"]["warning"]
    assert "unknown name `nope`" in found["Assert expr in job 'j' step 'i'"]["error"]


def test_validate_warns_about_queueing_without_placement(call: Ask) -> None:
    echo(call)
    found = checks(call, steps(method("a", extra="queueTimeout: 5m,")))
    assert found["queueTimeout without placement in job 'j' step 'a'"]["passed"] is True


def test_validate_finds_workflows_that_call_each_other(call: Ask) -> None:
    def nested(other: str) -> str:
        return steps(
            f"{{name: s, task: {{type: workflow, workflowIdOrName: {other}, inputs: {{y: 1}}}}}}",
            top="inputs: {x: {required: true}}\n",
        )

    assert (
        "Workflow not found: b"
        in checks(call, nested("b"), "a")["Step inputs for 's' in job 'j' (workflow b)"]["error"]
    )
    found = checks(call, nested("a"), "b")
    assert found["No cyclic nested workflows"]["error"].endswith("workflows run each other: b -> a -> b")
    wrong = found["Step inputs for 's' in job 'j' (workflow a)"]["error"]
    assert "y is not a valid input property" in wrong
    assert "x is required" in wrong


def test_validate_of_all_names_what_cannot_be_read(call: Ask, repository: Repository) -> None:
    echo(call)
    call("workflow.create", text=TUTORIAL)
    (repository.workflows / "workflow-bad.yaml").write_text("name: bad\njobs:\n  - name: j\n    stps: []\n")
    (repository.workflows / "stray.yaml").write_text("x: 1\n")
    found = call("workflow.validate")
    assert (found["totalPassed"], found["totalFailed"], found["passed"]) == (1, 2, False)
    errors = {
        item["workflowName"]: [check.get("error") for check in item["validations"]]
        for item in found["workflows"]
    }
    assert any(
        "workflows/workflow-bad.yaml:4: Unknown key 'stps' on job 'j'." in str(text) for text in errors["bad"]
    )
    assert errors["stray.yaml"] == [
        "workflows/stray.yaml: workflow files are called workflow-NAME.yaml (rename the file)"
    ]
    with pytest.raises(InvalidDefinition, match=r"workflow-bad\.yaml:"):
        call("workflow.get", name="bad")


def test_schema_is_json(call: Ask) -> None:
    import json

    assert json.loads(json.dumps(call("workflow.schema")))["title"] == "swamp workflow"


def test_a_changed_file_is_seen_at_once(call: Ask, repository: Repository) -> None:
    """serve keeps one service for days: what a person saves must count for the next call."""
    call("workflow.create", text=TUTORIAL)
    path = repository.workflows / "workflow-remote-demo.yaml"
    for number in range(2, 12):
        path.write_text(TUTORIAL.replace("version: 1", f"version: {number}"))
        assert call("workflow.get", name="remote-demo")["version"] == number


def test_calls_from_many_threads(repository: Repository, store: MemoryStore) -> None:
    from concurrent.futures import ThreadPoolExecutor

    handlers = DefinitionService(repository, store).handlers()

    def work(number: int) -> str:
        name = f"m{number % 4}"
        try:
            handlers["model.create"](
                {"type": "command/shell", "name": name, "arguments": {"execute": {"run": "true"}}}
            )
            return "made"
        except AlreadyExists:
            return str(handlers["model.get"]({"name": name})["name"])

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(24), timeout=60))
    assert results.count("made") == 4
    assert len(files(repository)) == 4
    assert not list(Path(repository.models).rglob("*.tmp"))
