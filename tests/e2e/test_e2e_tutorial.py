"""The tutorial as a newcomer types it: every command in its order, every output to the letter, then the same with `--json`.

No flag that the tutorial does not show: `swamp serve` gets a port of its own only where 9090 is taken on this machine.
"""

import json
import os
import re
import socket
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from e2e_site import Site

import swamp_orch.cli

SCHEMAS = Path(swamp_orch.cli.__file__).parent / "schemas"
VOLATILE = (
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", "<instant>"),
    (r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "<uuid>"),
    (r"\b[0-9a-f]{64}\b", "<secret>"),
    (r"\b\d+(\.\d+)?m?s\b", "<duration>"),
    (r"\b(pid|port)[= ]\d+", r"\1=<number>"),
    (r"(?<=host=)\S+", "<host>"),
)

CREATED = """\
Token: build-node
Expires: <instant>
Vault: sandbox-vault (key worker-token-build-node)

  build-node.<secret>

This token is shown once and will not be displayed again — store it now.
"""
UNUSED = """\
NAME        STATE   EXPIRES                   BOUND MACHINE
build-node  unused  <instant>  -
"""
ENROLLED = """\
NAME        STATE     EXPIRES                   BOUND MACHINE
build-node  enrolled  <instant>  <uuid>
"""
NO_WORKERS = """\
No workers found.
Workers appear here after enrolling with: swamp worker token create <name> --duration 24h
"""
WORKFLOW = """\
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
RAN = """\
build                                                           ✓echo-on-worker
│ executed on a worker
── @swamp/workflow-summary ─────────────────────────────────
# remote-demo: succeeded

1 succeeded · 0 failed · 0 skipped
"""
PREDICATE = 'modelName == "remote-echo" && specName == "result"'


def settled(text: str) -> str:
    """`text` with everything replaced that differs from one moment or machine to the next."""
    for pattern, name in VOLATILE:
        text = re.sub(pattern, name, text)
    return text


def hold(name: str, document: Any) -> None:
    """`document` is what the published schema says."""
    jsonschema.Draft202012Validator(json.loads((SCHEMAS / f"{name}.json").read_text())).validate(document)


def default_port_is_free() -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", 9090))
        except OSError:
            return False
    return True


def start(site: Site) -> None:
    """`swamp serve`, with no flag if that can be."""
    if default_port_is_free():
        serve = site.start("serve", name="serve")
        said = serve.wait_for(r"listening on ws://127\.0\.0\.1:(\d+)|is in use") if serve else None
        if said and said[1]:
            assert said[1] == "9090"
            site.port, site.orchestrator = 9090, serve
            return
        serve.end()
    site.serve()


def test_the_tutorial_command_by_command(site: Site) -> None:
    created = site.ok("worker", "token", "create", "build-node", "--duration", "1h")
    assert (settled(created.out), created.err) == (CREATED, "")
    site.tokens["build-node"] = created.out.split("\n")[4].strip()
    assert settled(site.ok("worker", "token", "list").out) == UNUSED
    assert site.ok("worker", "list").out == NO_WORKERS

    start(site)
    assert site.orchestrator is not None
    assert site.ok("worker", "list").out == NO_WORKERS
    worker = site.worker("build-node")
    worker.wait_for("Waiting for work")
    assert site.orchestrator.wait_for("worker connected worker=build-node ")
    assert settled(site.ok("worker", "token", "list").out) == ENROLLED
    assert "build-node" in site.ok("worker", "list").out

    site.ok(
        "model", "create", "command/shell", "remote-echo", "--arg", 'execute.run=echo "executed on a worker"'
    )
    ran = site.ok("model", "method", "run", "remote-echo", "execute")
    assert "executed on a worker" in ran.out.splitlines()[0] and ran.err == ""
    (site.root / "remote-demo.yaml").write_text(WORKFLOW)
    site.ok("workflow", "create", "--file", "remote-demo.yaml")
    kept = (site.root / "workflows" / "workflow-remote-demo.yaml").read_text()
    assert re.fullmatch(r"id: [0-9a-f-]{36}\n", kept.replace(WORKFLOW, "")), kept
    done = site.ok("workflow", "run", "remote-demo")
    assert (done.out, done.err) == (RAN, "")
    site.orchestrator.wait_for("dispatching step=echo-on-worker workflow=remote-demo worker=build-node")
    worker.wait_for(r"✓ Dispatch [0-9a-f]{8}: command/shell\.execute succeeded")

    queried = site.ok("data", "query", PREDICATE, "--select", "attributes.stdout")
    assert (queried.out, queried.err) == ("executed on a worker\n", "")
    assert site.ok("data", "query", 'modelType == "swamp/worker"').out.splitlines()[0].split() == [
        "name",
        "modelName",
        "specName",
        "dataType",
        "version",
        "size",
    ]
    assert "build-node" in site.ok("data", "query", 'modelType == "swamp/enrollment-token"').out
    assert site.ok("data", "query", 'modelType == "swamp/step-lease"').out == "No matching data found.\n"
    ended = site.query(
        'modelType == "swamp/step-lease" && attributes.state == "completed"', "attributes.workerName"
    )
    assert "build-node" in ended


def test_every_command_of_it_with_json(site: Site) -> None:
    for name, argv in (
        ("worker-token-list", ("worker", "token", "list")),
        ("worker-list", ("worker", "list")),
        ("vault-list", ("vault", "list")),
        ("model-get", ("model", "get", "remote-echo")),
        ("workflow-get", ("workflow", "get", "remote-demo")),
        ("data-query", ("data", "query", PREDICATE, "--select", "attributes.stdout")),
        ("data-query", ("data", "query", 'modelType == "swamp/worker"')),
        ("worker-token-create", ("worker", "token", "create", "other", "--duration", "1h")),
        ("worker-token-revoke", ("worker", "token", "revoke", "other")),
        ("model-create", ("model", "create", "command/shell", "another", "--arg", "execute.run=true")),
        ("model-validate", ("model", "validate")),
        ("workflow-validate", ("workflow", "validate")),
        ("run-list", ("run", "list")),
    ):
        hold(name, site.json(*argv))
    token = site.json("worker", "token", "list")[0]
    assert list(token)[:7] == [
        "name",
        "state",
        "effectiveState",
        "createdAt",
        "expiresAt",
        "vaultName",
        "secretKey",
    ]
    events = site.ok("workflow", "run", "remote-demo", "--json").events
    for event in events:
        hold("workflow-run", event)
    for event in site.ok("model", "method", "run", "remote-echo", "execute", "--json").events:
        hold("model-method-run", event)
    made = site.ok("workflow", "create", "--stdin", "--json", stdin=WORKFLOW.replace("remote-demo", "second"))
    hold("workflow-create", made.json)
    hold("repo-init", site.json("repo", "init", str(site.elsewhere / "another")))
    created = site.json(
        "vault", "create", "local_encryption", "second", "--repo-dir", str(site.elsewhere / "another")
    )
    hold("vault-create", created)


@pytest.mark.parametrize("way", ["found", "http", "variable"])
def test_whichever_way_to_the_orchestrator(site: Site, way: str) -> None:
    """Found by itself from a folder below, by `--server`, by `SWAMP_SERVE_URL` with the credential."""
    assert site.orchestrator is not None
    flags, cwd, env = (), site.root / "models", {}
    if way == "http":
        flags = ("--server", f"http://127.0.0.1:{site.port}")
    elif way == "variable":
        secret = (site.root / ".swamp" / "client-credential").read_text().strip()
        cwd, env = site.elsewhere, {"SWAMP_SERVE_URL": site.url, "SWAMP_SERVER_TOKEN": secret}
    assert site.ok("workflow", "run", "remote-demo", *flags, cwd=cwd, env=env).out == RAN
    site.orchestrator.wait_for("dispatching step=echo-on-worker")


def test_ctrl_c_ends_both_and_what_was_stored_stays(site: Site) -> None:
    assert site.orchestrator is not None
    stopped = site.workers["build-node"].interrupt()
    assert (stopped.code, stopped.err) == (0, "")
    assert stopped.out.endswith(
        "Draining (received shutdown signal) — finishing in-flight work...\n"
        "Drain complete — disconnecting\n"
        "Worker stopped: received shutdown signal\n"
    )
    site.orchestrator.wait_for("worker disconnected worker=build-node")
    stopped = site.orchestrator.interrupt()
    assert (stopped.code, stopped.err) == (0, "") and stopped.out.endswith("\nStopped.\n")
    state = site.root / ".swamp"
    for left in ("serve.json", "serve.sock", "client-credential"):
        assert not (state / left).exists(), left
    # Nothing runs: this process does the work now, with the same answers.
    assert site.ok(
        "data", "query", PREDICATE, "--select", "attributes.stdout"
    ).out == "executed on a worker\n" * len(site.query(PREDICATE))
    assert settled(site.ok("worker", "token", "list").out).splitlines()[1] == ENROLLED.splitlines()[1]
    ran = site.ok("model", "method", "run", "remote-echo", "execute")
    assert "executed on a worker" in ran.out.splitlines()[0]
    # A placed step does not fall back to this process in silence.
    done = site.swamp("workflow", "run", "remote-demo")
    assert done.code == 1 and "swamp serve" in done.out + done.err
    assert "0 succeeded · 1 failed · 0 skipped" in done.out


def test_the_same_machine_comes_back_with_the_same_token(site: Site) -> None:
    before = site.ok("worker", "token", "list").out
    site.serve()
    site.worker("build-node")
    assert site.ok("worker", "token", "list").out == before
    assert site.ok("workflow", "run", "remote-demo").out == RAN


def test_in_process_without_an_orchestrator(own_site: Site) -> None:
    """One command after another, no daemon: the step's shell is a child of the command itself."""
    own_site.model("parent", "echo $PPID; echo $$")
    own_site.workflow("here", {"name": "s", "task": _task("parent")}, {"name": "t", "task": _task("parent")})
    done = own_site.start("workflow", "run", "here", "--json")
    pid, ended = done.pid, done.end()
    assert ended.code == 0, ended
    first = [e["line"] for e in ended.events if e["kind"] == "step_output" and e["n"] == 1]
    assert first == [str(pid)] * 2
    assert len(own_site.query('modelName == "parent" && specName == "result" && version > 0')) == 2
    refused = own_site.swamp("workflow", "run", "here", "--detach")
    assert refused.code == 3 and "swamp serve" in refused.err
    assert os.stat(own_site.root / ".swamp").st_mode & 0o077 == 0


def _task(model: str) -> dict[str, str]:
    return {"type": "model_method", "modelIdOrName": model, "methodName": "execute"}
