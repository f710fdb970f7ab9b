"""Every `--json` output has a JSON Schema, and real commands in a real repository are held to it.

Each command of `LIFE` runs against the repository's own store in this process.
"""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cli_twins import Ended
from test_cli_entry import leaves

import swamp_orch.cli
from swamp_orch.cli.main import run

SCHEMAS = Path(swamp_orch.cli.__file__).parent / "schemas"
EXTRA = {"error", "properties", "worker-connect"}
"""Schemas that are no leaf of the tree walked here."""

ELSEWHERE = {
    "demo",
    "serve",
    "run-cancel",
    "workflow-cancel",
    "run-attach",
    "worker-drain",
    "worker-undrain",
    "worker-verify",
}
"""Commands that need an orchestrator, or are one: held to their schema where they are tested."""


def schema(name: str) -> dict[str, Any]:
    found = json.loads((SCHEMAS / f"{name}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(found)
    assert isinstance(found, dict)
    return found


def hold(name: str, document: Any) -> None:
    """`document` must be what the schema of that name says."""
    jsonschema.Draft202012Validator(schema(name)).validate(document)


def test_every_command_has_a_schema_and_every_schema_a_command() -> None:
    commands = {"-".join(path) for path, _ in leaves()}
    assert {path.stem for path in SCHEMAS.iterdir()} == commands | EXTRA


def test_schemas_are_schemas_and_refuse_something() -> None:
    for path in SCHEMAS.iterdir():
        assert not jsonschema.Draft202012Validator(schema(path.stem)).is_valid(3), path
        if path.stem not in ("workflow-schema",):
            assert not jsonschema.Draft202012Validator(schema(path.stem)).is_valid({"no": "such thing"}), path


WORKFLOW = """\
name: local
jobs:
  - name: build
    steps:
      - name: good
        task: {type: model_method, modelIdOrName: echo, methodName: execute}
      - name: bad
        task: {type: model_method, modelIdOrName: wrong, methodName: execute}
      - name: never
        dependsOn: [bad]
        task: {type: model_method, modelIdOrName: echo, methodName: execute}
"""

ASKS = """\
name: asks
jobs:
  - name: people
    steps:
      - name: one
        task: {type: manual_approval, prompt: "One?"}
      - name: two
        dependsOn: [one]
        task: {type: manual_approval, prompt: "Two?"}
      - name: below
        task: {type: workflow, workflowIdOrName: local}
        allowFailure: true
"""

LIFE: list[tuple[str, tuple[str, ...], int]] = [
    ("repo-init", ("repo", "init", "--vault", "main"), 0),
    ("repo-init", ("repo", "init", "--force"), 0),
    ("vault-create", ("vault", "create", "local_encryption", "second"), 0),
    ("vault-put", ("vault", "put", "main", "key", "value"), 0),
    ("vault-put", ("vault", "put", "main", "key", "value", "-y"), 0),
    ("vault-get", ("vault", "get", "main"), 0),
    ("vault-read-secret", ("vault", "read-secret", "main", "key"), 0),
    ("vault-list-keys", ("vault", "list-keys", "main"), 0),
    ("vault-audit", ("vault", "audit", "main"), 0),
    ("vault-search", ("vault", "search", "ma"), 0),
    ("vault-list", ("vault", "list"), 0),
    ("vault-delete", ("vault", "delete", "main", "key", "-y"), 0),
    ("vault-delete", ("vault", "delete", "main", "key", "-y"), 0),
    ("worker-token-create", ("worker", "token", "create", "one", "--duration", "1h", "--vault", "main"), 0),
    (
        "worker-token-create",
        (
            "worker",
            "token",
            "create",
            "fleet",
            "--duration",
            "1h",
            "--vault",
            "main",
            "--max-enrollments",
            "unlimited",
        ),
        0,
    ),
    ("worker-token-renew", ("worker", "token", "renew", "one", "--duration", "2h"), 0),
    ("worker-token-revoke", ("worker", "token", "revoke", "one"), 0),
    ("worker-token-revoke", ("worker", "token", "revoke", "one"), 0),
    ("worker-token-list", ("worker", "token", "list"), 0),
    ("worker-list", ("worker", "list"), 0),
    ("worker-queue", ("worker", "queue"), 0),
    ("model-create", ("model", "create", "command/shell", "echo", "--arg", "execute.run=echo hello"), 0),
    (
        "model-create",
        ("model", "create", "command/shell", "wrong", "--arg", "execute.run=echo no; exit 3"),
        0,
    ),
    ("model-create", ("model", "create", "command/shell", "gone", "--arg", "execute.run=true"), 0),
    ("model-get", ("model", "get", "echo"), 0),
    ("model-search", ("model", "search"), 0),
    ("model-edit", ("model", "edit", "gone", "--file", "models/command/shell/gone.yaml"), 0),
    ("model-validate", ("model", "validate", "echo"), 0),
    ("model-validate", ("model", "validate"), 0),
    ("model-method-describe", ("model", "method", "describe", "echo", "execute"), 0),
    ("model-type-search", ("model", "type", "search", "--all"), 0),
    ("model-type-describe", ("model", "type", "describe", "command/shell"), 0),
    ("model-method-run", ("model", "method", "run", "echo", "execute"), 0),
    ("model-delete", ("model", "delete", "gone", "-y"), 0),
    ("workflow-create", ("workflow", "create", "--file", "local.yaml"), 0),
    ("workflow-create", ("workflow", "create", "empty"), 0),
    ("workflow-get", ("workflow", "get", "local"), 0),
    ("workflow-search", ("workflow", "search"), 0),
    ("workflow-edit", ("workflow", "edit", "local", "--file", "local.yaml"), 0),
    ("workflow-validate", ("workflow", "validate", "local"), 0),
    ("workflow-validate", ("workflow", "validate"), 0),
    ("workflow-schema", ("workflow", "schema"), 0),
    ("workflow-run", ("workflow", "run", "local"), 1),
    ("workflow-history-get", ("workflow", "history", "get", "local"), 0),
    ("workflow-history-logs", ("workflow", "history", "logs", "local"), 0),
    ("workflow-history-search", ("workflow", "history", "search"), 0),
    ("workflow-resume", ("workflow", "resume", "local"), 1),
    ("workflow-create", ("workflow", "create", "--file", "asks.yaml"), 0),
    ("workflow-run", ("workflow", "run", "asks"), 0),
    ("workflow-approvals", ("workflow", "approvals"), 0),
    ("run-doctor", ("run", "doctor"), 0),
    ("workflow-history-get", ("workflow", "history", "get", "asks"), 0),
    ("workflow-approve", ("workflow", "approve", "asks", "one", "--reason", "fine"), 0),
    ("workflow-resume", ("workflow", "resume", "asks"), 0),
    ("workflow-reject", ("workflow", "reject", "asks", "two"), 0),
    ("workflow-resume", ("workflow", "resume", "asks"), 1),
    ("workflow-history-get", ("workflow", "history", "get", "asks"), 0),
    ("workflow-delete", ("workflow", "delete", "empty", "-y"), 0),
    ("run-list", ("run", "list"), 0),
    ("model-output-search", ("model", "output", "search"), 0),
    ("model-output-get", ("model", "output", "get", "{output}"), 0),
    ("model-output-logs", ("model", "output", "logs", "{output}"), 0),
    ("report-get", ("report", "get", "@swamp/method-summary", "--model", "echo"), 0),
    ("report-get", ("report", "get", "@swamp/workflow-summary", "--workflow", "local"), 0),
    ("report-search", ("report", "search", "--scope", "method"), 0),
    ("report-describe", ("report", "describe", "@swamp/method-summary"), 0),
    ("report-type-search", ("report", "type", "search"), 0),
    ("data-query", ("data", "query", "true"), 0),
    ("data-query", ("data", "query", 'specName == "result"', "--select", "attributes.stdout"), 0),
    ("data-query", ("data", "query", 'modelType == "swamp/workflow-run"'), 0),
    ("data-get", ("data", "get", "echo", "result"), 0),
    ("data-get", ("data", "get", "echo", "log", "--no-content"), 0),
    ("data-list", ("data", "list", "echo"), 0),
    ("data-list", ("data", "list"), 0),
    ("data-versions", ("data", "versions", "echo", "result"), 0),
    ("data-search", ("data", "search", "res"), 0),
    ("data-export", ("data", "export", "echo", "log"), 0),
    ("data-gc", ("data", "gc", "--dry-run"), 0),
    ("data-gc", ("data", "gc", "-y"), 0),
    ("data-delete", ("data", "delete", "echo", "result", "--version", "1", "-y"), 0),
    ("data-delete", ("data", "delete", "echo", "--all", "-y"), 0),
    ("completions", ("completions", "fish"), 0),
    ("version", ("version",), 0),
    ("properties", ("worker", "list", "--show-properties"), 0),
]


def test_a_life_in_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("SWAMP_REPO_DIR", "SWAMP_SERVE_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "local.yaml").write_text(WORKFLOW)
    (tmp_path / "asks.yaml").write_text(ASKS)
    output = ""
    for name, argv, expected in LIFE:
        argv = tuple(word.format(output=output) if word == "{output}" else word for word in argv)
        code = run([*argv, "--json"])
        out, err = capsys.readouterr()
        assert code == expected, (argv, out, err)
        streams = name in ("workflow-run", "workflow-resume", "model-method-run")
        documents = [json.loads(line) for line in out.splitlines()] if streams else [json.loads(out)]
        for document in documents:
            hold(name, document)
        if name == "model-output-search":
            output = documents[0]["results"][0]["id"]
        if expected:
            hold("error", json.loads(err))
        else:
            assert err == "", argv
    tried = {name for name, _, _ in LIFE}
    assert tried | ELSEWHERE | EXTRA == {path.stem for path in SCHEMAS.iterdir()} | {"properties"}


def test_errors_and_declined_questions(swamp: Any) -> None:
    for argv in (("worker", "lst"), ("worker",), ("worker", "list"), ("data", "gc")):
        ended: Ended = swamp(*argv, "--json")
        hold("error", ended.error)
    declined: Ended = swamp("data", "gc", "--json", answers={}, tty=True, stdin="n\n")
    hold("data-gc", declined.document)
