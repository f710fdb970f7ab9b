"""Text output: the seeds to the letter, and the tables, for answers of the shapes the services give."""

import base64
import json
from typing import Any

import pytest

from swamp_orch.cli.console import age, duration, size, table
from swamp_proto.errors import AlreadyExists

Run = Any

SECRET = "5c40afd8d0f90c70f521d18861e0ec89a3ddc2f8a3dd49329c6aec87a1f0bc55"
CREATED = {
    "name": "build-node",
    "token": f"build-node.{SECRET}",
    "expiresAt": "2026-06-15T11:34:58.961Z",
    "maxEnrollments": 1,
    "vaultRef": {"vaultName": "sandbox-vault", "secretKey": "worker-token-build-node"},
}
TOKEN = {
    "name": "build-node",
    "state": "unused",
    "effectiveState": "unused",
    "createdAt": "2026-06-15T10:34:58.961Z",
    "expiresAt": "2026-06-15T11:34:58.961Z",
    "vaultName": "sandbox-vault",
    "secretKey": "worker-token-build-node",
    "boundMachine": None,
}


def test_token_create_is_the_seed(swamp: Run) -> None:
    ended = swamp(
        "worker", "token", "create", "build-node", "--duration", "1h", answers={"token.create": CREATED}
    )
    assert ended.out == (
        "Token: build-node\n"
        "Expires: 2026-06-15T11:34:58.961Z\n"
        "Vault: sandbox-vault (key worker-token-build-node)\n"
        "\n"
        f"  build-node.{SECRET}\n"
        "\n"
        "This token is shown once and will not be displayed again — store it now.\n"
    )
    assert ended.session.calls == [("token.create", {"name": "build-node", "durationMs": 3_600_000})]


def test_token_create_of_a_fleet_says_how_many(swamp: Run) -> None:
    answers = {"token.create": {**CREATED, "maxEnrollments": "unlimited"}}
    ended = swamp(
        "worker",
        "token",
        "create",
        "f",
        "--duration",
        "7d",
        "--max-enrollments",
        "unlimited",
        answers=answers,
    )
    assert "\nMax enrollments: unlimited\n" in ended.out
    assert ended.session.calls[0][1]["maxEnrollments"] == "unlimited"
    three = swamp(
        "worker", "token", "create", "f", "--duration", "7d", "--max-enrollments", "3", answers=answers
    )
    assert three.session.calls[0][1]["maxEnrollments"] == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--duration", "1x"), 'Invalid duration format: "1x". Expected format like 1h, 1d, 7d, 1w, 1mo'),
        (("--duration", "0h"), 'Invalid --duration value "0h": must be positive'),
        (
            ("--duration", "1h", "--max-enrollments", "0"),
            'Invalid --max-enrollments value "0": must be a positive integer or "unlimited"',
        ),
    ],
)
def test_token_create_refuses_bad_values(swamp: Run, flags: tuple[str, ...], message: str) -> None:
    ended = swamp("worker", "token", "create", "x", *flags, answers={})
    assert (ended.code, ended.err.splitlines()[0]) == (2, f"Error: {message}")
    assert ended.session.calls == []


def test_token_list_is_the_seed(swamp: Run) -> None:
    ended = swamp("worker", "token", "list", answers={"token.list": [TOKEN]})
    assert ended.out == (
        "NAME        STATE   EXPIRES                   BOUND MACHINE\n"
        "build-node  unused  2026-06-15T11:34:58.961Z  -\n"
    )
    machine = "0b5e0d7e-6f83-4ac5-8f2a-8fdd9e2ad3ac"
    bound = {**TOKEN, "state": "enrolled", "effectiveState": "enrolled", "boundMachine": machine}
    assert swamp("worker", "token", "list", answers={"token.list": [bound]}).out.splitlines()[1] == (
        f"build-node  enrolled  2026-06-15T11:34:58.961Z  {machine}"
    )


def test_token_list_json_is_what_the_call_answered(swamp: Run) -> None:
    ended = swamp("worker", "token", "list", "--json", answers={"token.list": [TOKEN]})
    assert ended.document == [TOKEN]
    assert ended.out.startswith('[\n  {\n    "name": "build-node",\n')


def test_token_list_empty(swamp: Run) -> None:
    assert swamp("worker", "token", "list", answers={"token.list": []}).out == (
        "No enrollment tokens found.\nMint one with: swamp worker token create <name> --duration 24h\n"
    )


def test_token_revoke_is_the_seed_and_does_not_ask(swamp: Run) -> None:
    answer = {"name": "ci-runner", "state": "revoked", "revokedAt": "2026-06-15T10:34:39.736Z"}
    ended = swamp("worker", "token", "revoke", "ci-runner", answers={"token.revoke": answer})
    assert ended.out == "✓ Token ci-runner revoked.\nRevoked at: 2026-06-15T10:34:39.736Z\n"
    again = swamp(
        "worker", "token", "revoke", "ci-runner", answers={"token.revoke": {**answer, "alreadyRevoked": True}}
    )
    assert (again.code, again.out) == (0, "Token ci-runner was already revoked.\n")


WORKER = {
    "name": "build-node",
    "status": "idle",
    "labels": {"gpu": "true", "env": "ci"},
    "platform": "linux",
    "arch": "x86_64",
    "capacity": 2,
    "activeDispatchIds": ["a"],
    "lastSeenAt": "2026-06-15T10:34:58.961Z",
}


def test_worker_list(swamp: Run) -> None:
    empty = {"workers": [], "count": 0}
    assert swamp("worker", "list", answers={"worker.list": empty}).out == (
        "No workers found.\n"
        "Workers appear here after enrolling with: swamp worker token create <name> --duration 24h\n"
    )
    footer = "1 disconnected worker(s) hidden — use 'swamp worker list --all' to show all."
    hidden = {**empty, "filteredDisconnectedCount": 1}
    assert (
        swamp("worker", "list", answers={"worker.list": hidden}).out
        == f"No connected workers found.\n{footer}\n"
    )
    full = {"workers": [WORKER], "count": 1, "filteredDisconnectedCount": 1}
    ended = swamp("worker", "list", answers={"worker.list": full})
    assert ended.out == (
        "NAME        STATUS  SLOTS  LABELS           PLATFORM/ARCH  LAST SEEN\n"
        "build-node  idle    1/2    env=ci,gpu=true  linux/x86_64   2026-06-15T10:34:58.961Z\n"
        f"{footer}\n"
    )
    assert ended.session.calls == [("worker.list", {"all": False})]


def test_worker_queue(swamp: Run) -> None:
    assert swamp("worker", "queue", answers={"worker.queue": []}).out == "No steps are currently queued.\n"
    row = {
        "requirement": "target=x",
        "stepName": "s",
        "modelType": "command/shell",
        "methodName": "execute",
        "queuedAt": "T",
        "ageMs": 61_000,
    }
    table = (
        "REQUIREMENT  STEP  MODEL          QUEUED AT  AGE\ntarget=x     s     command/shell  T          1m\n"
    )
    assert swamp("worker", "queue", answers={"worker.queue": [row]}).out == table
    why = {**row, "workers": {"w1": ["busy 1/1", "draining"]}, "change": "connect a worker named x"}
    ended = swamp("worker", "queue", "--explain", answers={"worker.queue": [why]})
    assert ended.out == table + "  w1: busy 1/1; draining\n  To start it: connect a worker named x\n"
    assert ended.session.calls == [("worker.queue", {"explain": True})]


QUERY = {"predicate": "p", "total": 2, "limited": False}


@pytest.mark.parametrize(
    ("results", "out"),
    [
        (["executed on a worker"], "executed on a worker\n"),
        ([1, 2.5, True, None, "a\nb"], "1\n2.5\ntrue\n\na\nb\n"),
        ([{"n": "a", "v": 1}, {"n": "bb"}], "n   v\na   1\nbb\n"),
        ([["a", 1], ["b"]], "1  2\na  1\nb\n"),
        ([["a"], "b"], '["a"]\nb\n'),
        ([], ""),
    ],
)
def test_query_with_a_projection(swamp: Run, results: list[Any], out: str) -> None:
    answers = {"data.query": {**QUERY, "results": results}}
    assert swamp("data", "query", "p", "--select", "x", answers=answers).out == out


def test_query_without_a_projection(swamp: Run) -> None:
    row = {
        "name": "result",
        "modelName": "remote-echo",
        "specName": "result",
        "dataType": "resource",
        "version": 2,
        "size": 9,
    }
    ended = swamp("data", "query", "p", answers={"data.query": {**QUERY, "results": [row]}})
    assert ended.out == (
        "name    modelName    specName  dataType  version  size\n"
        "result  remote-echo  result    resource  2        9\n"
        "\n"
        "1 result\n"
    )
    limited = swamp(
        "data",
        "query",
        "p",
        "--limit",
        "1",
        answers={"data.query": {**QUERY, "results": [row], "limited": True}},
    )
    assert limited.out.endswith("\nShowing 1 results (limit reached)\n")
    assert (
        swamp("data", "query", "p", answers={"data.query": {**QUERY, "results": []}}).out
        == "No matching data found.\n"
    )
    assert swamp("data", "query", "p", "--limit", "0", answers={}).code == 2


def test_query_says_how_many_rows_failed(swamp: Run) -> None:
    ended = swamp("data", "query", "p", answers={"data.query": {**QUERY, "results": [], "skippedRows": 3}})
    assert ended.err == "Warning: 3 row(s) could not be evaluated and are left out\n"


RECORD = {
    "id": "x",
    "name": "result",
    "modelName": "remote-echo",
    "modelType": "command/shell",
    "version": 3,
    "contentType": "application/json",
    "size": 182,
    "lifetime": "infinite",
    "garbageCollection": 10,
    "tags": {"type": "resource"},
    "ownerDefinition": {"ownerType": "model-method", "ownerRef": "u"},
    "createdAt": "2026-06-15T10:34:58.961Z",
    "content": {"stdout": "é"},
}


def test_data_get(swamp: Run) -> None:
    ended = swamp("data", "get", "remote-echo", "result", answers={"data.get": RECORD})
    assert ended.out == (
        "Data: result (v3)\n"
        "Model: remote-echo (command/shell)\n"
        "Content: application/json, 182B\n"
        "Lifetime: infinite | GC: 10\n"
        "Tags: type=resource\n"
        "Owner: model-method (u)\n"
        "Created: 2026-06-15T10:34:58.961Z\n"
        '\n{\n  "stdout": "é"\n}\n'
    )
    short = swamp("data", "get", "remote-echo", "result", "--no-content", answers={"data.get": RECORD})
    assert short.session.calls[0][1]["content"] is False and "stdout" not in short.out


def test_data_export_writes_the_bytes(swamp: Run, tmp_path: Any) -> None:
    raw = bytes(range(256))
    answers = {"data.export": {"name": "log", "base64": base64.b64encode(raw).decode()}}
    assert swamp("data", "export", "m", "log", "--out", "x.bin", answers=answers).code == 0
    assert (tmp_path / "x.bin").read_bytes() == raw
    assert swamp("data", "export", "m", "log", "--out", "/nowhere/x", answers=answers).code == 1
    assert swamp("data", "export", "m", "log", "--json", answers=answers).document["name"] == "log"


def test_data_delete_takes_exactly_one_choice(swamp: Run) -> None:
    for argv in ((), ("n", "--all"), ("--prefix", "a", "--all"), ("--all", "--version", "1")):
        ended = swamp("data", "delete", "m", *argv, "-y", answers={})
        assert ended.code == 2 and ended.session.calls == []
    ended = swamp(
        "data", "delete", "m", "--all", "--dry-run", answers={"data.delete": {"totalVersionsDeleted": 4}}
    )
    assert ended.out == "Would delete 4 version(s) of every record of m\n"


def test_vault_put_reads_stdin_and_never_overwrites_silently(swamp: Run) -> None:
    stored = {"vaultName": "v", "secretKey": "k", "overwritten": False}
    ended = swamp("vault", "put", "v", "k", stdin="deep\n", answers={"vault.put": stored})
    assert ended.out == "Stored secret k in vault v\n"
    assert ended.session.calls[0][1]["value"] == "deep"
    split = swamp("vault", "put", "v", "k=a=b", answers={"vault.put": stored})
    assert split.session.calls[0][1] | {"overwrite": False} == {
        "vault": "v",
        "key": "k",
        "value": "a=b",
        "overwrite": False,
    }
    exists = AlreadyExists("Secret 'k' already exists in vault 'v'.")
    for flags in ((), ("--json",)):
        refused = swamp("vault", "put", "v", "k", "x", *flags, answers={"vault.put": exists})
        assert refused.code == 1 and "-y" in refused.err
        assert len(refused.session.calls) == 1 and refused.session.calls[0][1]["overwrite"] is False
    forced = swamp("vault", "put", "v", "k", "x", "-y", answers={"vault.put": stored})
    assert forced.session.calls[0][1]["overwrite"] is True


def test_vault_read_secret_prints_the_bare_value_on_a_pipe(swamp: Run) -> None:
    answer = {"vaultName": "v", "secretKey": "k", "vaultType": "local_encryption", "value": "deep"}
    assert swamp("vault", "read-secret", "v", "k", answers={"vault.read_secret": answer}).out == "deep"
    asked = swamp(
        "vault", "read-secret", "v", "k", answers={"vault.read_secret": answer}, tty=True, stdin="n\n"
    )
    assert "deep" not in asked.out and asked.session.calls == []


def test_vault_audit(swamp: Run) -> None:
    read = {
        "at": "2026-06-15T11:36:02.114Z", "secretKey": "api-key", "action": "read", "allowed": True, "count": 1,
        "runId": "r1", "workflowName": "release", "jobName": "build", "stepName": "publish",
        "modelName": "deploy", "methodName": "execute", "workerName": "build-node", "dispatchId": "d1",
    }  # fmt: skip
    no = {"action": "write", "allowed": False, "code": "forbidden", "reason": "not yours", "count": 3}
    results = [read | no | {"workerName": None}, read]
    found = {"vaultName": "main", "secretKey": None, "results": results, "limited": True}
    ended = swamp("vault", "audit", "main", "--limit", "2", answers={"vault.audit": found})
    assert ended.session.calls == [("vault.audit", {"vault": "main", "limit": 2})]
    assert ended.out == (
        "AT                        KEY      ACTION      STEP                       MODEL             WORKER      RUN\n"
        "2026-06-15T11:36:02.114Z  api-key  refused ×3  release › build › publish  deploy → execute  -           r1\n"
        "2026-06-15T11:36:02.114Z  api-key  read        release › build › publish  deploy → execute  build-node  r1\n"
        "refused write of api-key: not yours\n"
    )
    assert "limit reached" in ended.err
    none = found | {"results": [], "limited": False}
    assert swamp("vault", "audit", "main", "--key", "k", answers={"vault.audit": none}).out == (
        "No step has asked for secret k of vault main.\n"
    )
    assert swamp("vault", "audit", "main", "--limit", "0", answers={}).code == 2


def test_model_create_sends_method_arguments(swamp: Run) -> None:
    made = {
        "name": "remote-echo",
        "type": "command/shell",
        "path": "models/command/shell/remote-echo.yaml",
        "version": 1,
    }
    ended = swamp(
        "model", "create", "command/shell", "remote-echo", "--arg", 'execute.run=echo "executed on a worker"',
        "--arg", "execute.timeout:json=500", "--global-arg", "a.b=c", answers={"model.create": made},
    )  # fmt: skip
    assert ended.out.startswith(
        "Created: remote-echo (command/shell)\nPath: models/command/shell/remote-echo.yaml\n"
    )
    assert ended.session.calls[0][1] == {
        "type": "command/shell",
        "name": "remote-echo",
        "arguments": {"execute": {"run": 'echo "executed on a worker"', "timeout": 500}},
        "globalArguments": {"a": {"b": "c"}},
    }
    assert swamp("model", "create", "command/shell", "x", "--arg", "run=y", answers={}).code == 2


def test_workflow_create_reads_file_or_stdin(swamp: Run, tmp_path: Any) -> None:
    made = {"id": "i", "name": "w", "path": "workflows/workflow-w.yaml", "jobs": [{"name": "build"}]}
    (tmp_path / "w.yaml").write_text("name: w\n")
    ended = swamp("workflow", "create", "--file", "w.yaml", answers={"workflow.create": made})
    assert ended.session.calls == [("workflow.create", {"text": "name: w\n"})]
    assert ended.out == "Created: w\nPath: workflows/workflow-w.yaml\nJobs:\n  build\n"
    piped = swamp("workflow", "create", "w", "--stdin", stdin="name: w\n", answers={"workflow.create": made})
    assert piped.session.calls == [("workflow.create", {"name": "w", "text": "name: w\n"})]
    assert swamp("workflow", "create", answers={}).code == 2
    missing = swamp("workflow", "create", "--file", "none.yaml", answers={})
    assert missing.code == 2 and "cannot read none.yaml" in missing.err


def test_validate_says_what_failed_and_exits_1(swamp: Run) -> None:
    checks = [{"name": "Schema", "passed": True}, {"name": "Arguments", "passed": False, "error": "x:3: no"}]
    one = {"workflowName": "w", "validations": checks, "warnings": [], "passed": False}
    ended = swamp("workflow", "validate", "w", answers={"workflow.validate": one})
    assert ended.code == 1
    assert ended.out == (
        "Validating: w\n  ✓ Schema\n  ✗ Arguments\n    → x:3: no\n"
        "Summary: 1/2 validations passed\nResult: FAILED\n"
    )
    many = {"workflows": [{**one, "passed": True}], "passed": True}
    assert swamp("workflow", "validate", "--json", answers={"workflow.validate": many}).code == 0


def test_edit_keeps_what_was_typed_when_it_is_refused(swamp: Run, tmp_path: Any) -> None:
    from swamp_proto.errors import InvalidDefinition

    (tmp_path / "new.yaml").write_text("name: new\n")
    ok = swamp(
        "model", "edit", "m", "--file", "new.yaml", answers={"model.edit": {"path": "p", "status": "updated"}}
    )
    assert ok.session.calls == [("model.edit", {"name": "m", "text": "name: new\n"})]
    assert ok.out == "Updated: m\nPath: p\n"
    refused = swamp(
        "model", "edit", "m", "--stdin", stdin="x", answers={"model.edit": InvalidDefinition("m:1: bad")}
    )
    assert refused.code == 1 and refused.err == "Error: m:1: bad\n"
    nowhere = swamp("model", "edit", "m", answers={"model.source": {"text": "name: m\n"}})
    assert nowhere.code == 2 and "--file or --stdin" in nowhere.err


def test_edit_in_an_editor(swamp: Run, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from swamp_proto.errors import InvalidDefinition

    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\necho "# changed" >> "$1"\n')
    editor.chmod(0o755)
    monkeypatch.setenv("VISUAL", str(editor))
    answers = {"model.source": {"text": "name: m\n"}, "model.edit": {"path": "p"}}
    ended = swamp("model", "edit", "m", answers=answers, tty=True)
    assert ended.session.calls[1] == ("model.edit", {"name": "m", "text": "name: m\n# changed\n"})
    refused = swamp(
        "model", "edit", "m", answers={**answers, "model.edit": InvalidDefinition("bad")}, tty=True
    )
    kept = refused.err.split("kept in ")[1].split(";")[0]
    with open(kept) as text:
        assert text.read() == "name: m\n# changed\n"
    monkeypatch.setenv("VISUAL", "true")
    assert swamp("model", "edit", "m", answers=answers, tty=True).out == "Unchanged: m\n"


def test_runs_are_listed_and_shown(swamp: Run) -> None:
    row = {
        "runId": "r",
        "kind": "workflow",
        "workflowName": "w",
        "status": "failed",
        "startedAt": "T",
        "duration": 1234,
    }
    ended = swamp("run", "list", "--active", answers={"run.list": {"runs": [row], "total": 1}})
    assert (
        ended.out
        == "STATUS  KIND      NAME  ID  STARTED  DURATION\nfailed  workflow  w     r   T        1.2s\n"
    )
    assert ended.session.calls == [("run.list", {"active": True})]
    run = {
        "id": "r",
        "workflowName": "w",
        "status": "failed",
        "duration": 34,
        "jobs": [
            {
                "name": "build",
                "status": "failed",
                "duration": 12,
                "steps": [
                    {"name": "s", "status": "failed", "error": "exit code 3", "worker": "n", "duration": 10}
                ],
            }
        ],
    }
    latest = {"run.list": {"runs": [row]}, "run.get": run}
    shown = swamp("workflow", "history", "get", "w", answers=latest)
    assert shown.out == (
        "Workflow: w (Run ID: r)\n  ✗ build (12ms)\n    ✗ s (10ms) on n\n      -> exit code 3\n"
        "Result: FAILED (34ms)\n"
    )
    assert swamp("workflow", "history", "get", "w", answers={"run.list": {"runs": []}}).code == 1


def test_logs(swamp: Run) -> None:
    lines = [{"job": "b", "step": "s", "line": "hello"}]
    answers = {
        "run.list": {"runs": [{"runId": "r"}]},
        "run.logs": {"runId": "r", "lines": lines, "lineCount": 1},
    }
    assert swamp("workflow", "history", "logs", "w", "--tail", "5", answers=answers).out == "b › s │ hello\n"
    plain = {"output.logs": {"id": "d", "lines": ["hello"], "lineCount": 1}}
    assert swamp("model", "output", "logs", "d", answers=plain).out == "hello\n"


def test_doctor_fails_while_something_is_left(swamp: Run) -> None:
    assert swamp("run", "doctor", answers={"run.doctor": {"findings": []}}).code == 0
    found = {"findings": [{"kind": "run", "id": "r", "state": "running", "problem": "past its deadline"}]}
    assert swamp("run", "doctor", answers={"run.doctor": found}).code == 1
    fixed = {"findings": [{**found["findings"][0], "fixed": True}]}
    assert swamp("run", "doctor", "--fix", answers={"run.doctor": fixed}).code == 0


def test_tables_measure_columns_not_characters() -> None:
    assert table(("A", "B"), [("日本", 1), ("é", 2)]) == ["A     B", "日本  1", "é     2"]
    coloured = table(("A", "B"), [("ok", "x")], color=True, styled={0: {"ok": "green"}})
    assert coloured[1] == "\x1b[32mok\x1b[0m  x"


def test_units() -> None:
    assert [duration(n) for n in (5, 1200, 125_000, 3_780_000, None)] == ["5ms", "1.2s", "2m5s", "1h3m", "-"]
    assert [age(n) for n in (5, 5000, 125_000, 3_780_000)] == ["<1s", "5s", "2m", "1h3m"]
    assert [size(n) for n in (182, 1536, 3 * 1024**2, 5 * 1024**3)] == ["182B", "1.5KiB", "3.0MiB", "5.0GiB"]


def test_completions_offer_commands_and_names(
    swamp: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_SWAMP_COMPLETE" in swamp("completions", shell).out
    assert swamp("completions", "tcsh").code == 2
    assert "complete" in swamp("completions", "bash", "--json").document["script"]
    monkeypatch.setenv("_SWAMP_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_CWORD", "2")
    monkeypatch.setenv("COMP_WORDS", "swamp worker to")
    assert swamp().out.split() == ["plain,token"]
    monkeypatch.setenv("COMP_CWORD", "3")
    monkeypatch.setenv("COMP_WORDS", "swamp workflow run rem")
    ended = swamp(answers={"names": ["remote-demo", "other"]})
    assert ended.out.split() == ["plain,remote-demo"]
    assert ended.session.calls == [("names", {"kind": "workflow"})]
    assert swamp().out == "\n"  # no repository: nothing is completed, nothing is said
    assert json.dumps(ended.err) == '""'
