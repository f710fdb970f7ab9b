"""The tutorial typed against a real orchestrator and a real worker: every output to the letter, and more.

One orchestrator and one worker serve the whole module; commands run in this process, over the unix socket or TCP.
"""

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from test_cli_schemas import hold

from swamp_orch.cli.main import run

PROJECT = Path(__file__).parents[2]
DEADLINE_S = 60.0


class Process:
    """A `swamp` process; its lines can be waited for."""

    def __init__(self, argv: list[str], cwd: Path) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SWAMP_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "swamp_orch.cli", *argv],
            cwd=cwd,
            env={**environment, "PYTHONPATH": str(PROJECT), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.seen: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def wait_for(self, pattern: str) -> re.Match[str]:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            line = self._lines.get(timeout=max(0.01, deadline - time.monotonic()))
            assert line is not None, f"it ended before {pattern!r}: {self.seen}"
            self.seen.append(line)
            if found := re.search(pattern, line):
                return found

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(DEADLINE_S)
        self._close()
        return code

    def kill(self) -> None:
        if self.process.returncode is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(DEADLINE_S)
        self._close()

    def _close(self) -> None:
        self._reader.join(DEADLINE_S)
        if self.process.stdout is not None:
            self.process.stdout.close()


@attrs.frozen
class World:
    root: Path
    port: int
    token: str
    serve: Process
    worker: Process


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("tutorial")
    started: list[Process] = []
    os.environ.pop("SWAMP_SERVE_URL", None)

    def quietly(*argv: str) -> str:
        ended = subprocess.run(
            [sys.executable, "-m", "swamp_orch.cli", *argv],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        assert ended.returncode == 0, ended
        return ended.stdout

    try:
        quietly("repo", "init")
        quietly("vault", "create", "local_encryption", "sandbox-vault")
        created = quietly("worker", "token", "create", "build-node", "--duration", "1h")
        assert re.fullmatch(
            r"Token: build-node\n"
            r"Expires: \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\n"
            r"Vault: sandbox-vault \(key worker-token-build-node\)\n"
            r"\n"
            r"  build-node\.[0-9a-f]{64}\n"
            r"\n"
            r"This token is shown once and will not be displayed again — store it now\.\n",
            created,
        )
        token = created.split("\n")[4].strip()
        listed = quietly("worker", "token", "list").splitlines()
        assert listed[0] == "NAME        STATE   EXPIRES                   BOUND MACHINE"
        assert re.fullmatch(r"build-node  unused  \S{24}  -", listed[1])
        assert quietly("worker", "list") == (
            "No workers found.\n"
            "Workers appear here after enrolling with: swamp worker token create <name> --duration 24h\n"
        )
        serve = Process(["serve", "--port", "0"], root)
        started.append(serve)
        port = int(serve.wait_for(r"listening on ws://127\.0\.0\.1:(\d+)")[1])
        worker = Process(
            [
                "worker",
                "connect",
                f"ws://localhost:{port}",
                "--token",
                token,
                "--cache-dir",
                str(root / "cache"),
            ],
            root,
        )
        started.append(worker)
        worker.wait_for("Enrolled as build-node")
        yield World(root, port, token, serve, worker)
        # Ctrl-C in their terminals: both end cleanly.
        assert worker.interrupt() == 0
        assert serve.interrupt() == 0
    finally:
        for process in reversed(started):
            process.kill()


@pytest.fixture
def typed(world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Type a command line in the tutorial's folder: `(exit code, stdout, stderr)`."""
    monkeypatch.chdir(world.root)

    def type_it(*argv: str) -> tuple[int, str, str]:
        code = run(argv)
        out, err = capsys.readouterr()
        return int(code), out, err

    return type_it


def _model(typed: Any, name: str, text: str) -> None:
    if typed("model", "get", name)[0] != 0:
        assert typed("model", "create", "command/shell", name, "--arg", f"execute.run={text}")[0] == 0


WORKFLOW = """\
name: {name}
description: Run a step on a remote worker
jobs:
  - name: build
    steps:
      - name: {step}
        {placement}
        task:
          type: model_method
          modelIdOrName: {model}
          methodName: execute
version: 1
"""


def _workflow(
    world: World, typed: Any, name: str, model: str, placement: str = "target: build-node", step: str = "s"
) -> None:
    text = WORKFLOW.format(name=name, model=model, placement=placement, step=step)
    (world.root / f"{name}.yaml").write_text(text)
    code, _, err = typed("workflow", "create", "--file", f"{name}.yaml")
    assert code == 0, err


def test_the_tutorial_to_the_letter(world: World, typed: Any) -> None:
    code, out, _ = typed("worker", "token", "list")
    assert re.fullmatch(r"build-node  enrolled  \S{24}  [0-9a-f-]{36}", out.splitlines()[1])
    assert "  BOUND MACHINE" in out.splitlines()[0]
    _model(typed, "remote-echo", 'echo "executed on a worker"')
    code, out, _ = typed("model", "method", "run", "remote-echo", "execute")
    assert code == 0 and "executed on a worker" in out.splitlines()[0]
    _workflow(world, typed, "remote-demo", "remote-echo", step="echo-on-worker")
    code, out, err = typed("workflow", "run", "remote-demo")
    assert (code, err) == (0, "")
    assert out == (
        "build                                                           ✓echo-on-worker\n"
        "│ executed on a worker\n"
        "── @swamp/workflow-summary ─────────────────────────────────\n"
        "# remote-demo: succeeded\n"
        "\n"
        "1 succeeded · 0 failed · 0 skipped\n"
    )
    predicate = 'modelName == "remote-echo" && specName == "result"'
    assert typed("data", "query", predicate, "--select", "attributes.stdout") == (
        0,
        "executed on a worker\n",
        "",
    )
    for kind in ("worker", "enrollment-token", "step-lease"):
        code, out, _ = typed("data", "query", f'modelType == "swamp/{kind}" && version > 0', "--json")
        assert code == 0 and json.loads(out)["total"] >= 1, kind
    code, out, _ = typed("worker", "list")
    assert code == 0 and re.match(r"build-node  idle    0/1    -       ", out.splitlines()[1])


def test_json_is_what_the_schemas_say(world: World, typed: Any) -> None:
    _model(typed, "remote-echo", 'echo "executed on a worker"')
    _workflow(world, typed, "json-demo", "remote-echo")
    code, out, err = typed("workflow", "run", "json-demo", "--json")
    assert (code, err) == (0, "")
    events = [json.loads(line) for line in out.splitlines()]
    for event in events:
        hold("workflow-run", event)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["kind"] == "run_ended"
    run_id = events[0]["runId"]
    code, out, _ = typed("run", "attach", run_id, "--json")
    again = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and again == events
    for name, argv in (
        ("worker-list", ("worker", "list")),
        ("worker-token-list", ("worker", "token", "list")),
        ("worker-queue", ("worker", "queue")),
        ("worker-drain", ("worker", "drain", "build-node", "--reason", "test")),
        ("worker-undrain", ("worker", "undrain", "build-node")),
        ("run-list", ("run", "list", "--active")),
        ("workflow-history-get", ("workflow", "history", "get", run_id)),
        ("run-cancel", ("run", "cancel", run_id)),
        ("data-query", ("data", "query", 'modelType == "swamp/worker"')),
    ):
        code, out, err = typed(*argv, "--json")
        assert code == 0, (argv, err)
        hold(name, json.loads(out))


def test_a_failing_step_on_the_worker(world: World, typed: Any) -> None:
    _model(typed, "wrong", "echo seen; echo bad >&2; exit 3")
    _workflow(world, typed, "failing", "wrong")
    code, out, err = typed("workflow", "run", "failing")
    assert code == 1
    lines = out.splitlines()
    assert lines[0] == "build" + " " * 59 + "✗s"
    assert sorted(lines[1:3]) == ["│ bad", "│ seen"] and lines[3].startswith("│ Error: ")
    assert lines[4:] == [
        "── @swamp/workflow-summary ─────────────────────────────────",
        "# failing: failed",
        "",
        "0 succeeded · 1 failed · 0 skipped",
    ]
    assert err.startswith("Error: run ") and "Hint: its log: swamp workflow history logs " in err
    assert (
        typed(
            "data", "query", 'modelName == "wrong" && specName == "result"', "--select", "attributes.exitCode"
        )[1]
        == "3\n"
    )


def test_over_tcp_with_and_without_the_credential(
    world: World, typed: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = f"ws://localhost:{world.port}"
    code, out, _ = typed("worker", "list", "--server", url)
    assert code == 0 and "build-node" in out
    monkeypatch.setenv("SWAMP_SERVE_URL", url.replace("ws", "http", 1))
    assert typed("worker", "list")[0] == 0
    monkeypatch.chdir(tmp_path)  # elsewhere there is no credential to find
    code, _, err = typed("worker", "list")
    assert code == 1 and "credential" in err
    monkeypatch.setenv(
        "SWAMP_SERVER_TOKEN", (world.root / ".swamp" / "client-credential").read_text().strip()
    )
    assert typed("worker", "list")[0] == 0


def test_ctrl_c_cancels_a_placed_step(world: World, typed: Any) -> None:
    _model(typed, "slow", "echo started; exec sleep 60")
    _workflow(world, typed, "slow", "slow")
    watched = Process(["workflow", "run", "slow", "-v"], world.root)
    try:
        watched.wait_for("started")
        assert watched.interrupt() == 130
    finally:
        watched.kill()
    rest = []
    while (line := watched._lines.get(timeout=DEADLINE_S)) is not None:
        rest.append(line)
    assert any("Cancelling run" in line for line in rest) and "left: 0\n" in rest
    assert any(line.startswith("build" + " " * 59 + "✖s") for line in rest)


def test_detach_attach_and_cancel(world: World, typed: Any) -> None:
    _model(typed, "slow", "echo started; exec sleep 60")
    _workflow(world, typed, "detached", "slow")
    code, out, _ = typed("workflow", "run", "detached", "--detach")
    assert code == 0
    run_id = out.strip()
    assert re.fullmatch(r"[0-9a-f-]{36}", run_id)
    watched = Process(["run", "attach", run_id, "-v"], world.root)
    try:
        watched.wait_for("started")
        assert watched.interrupt() == 130  # leaves; the run goes on
    finally:
        watched.kill()
    code, out, _ = typed("run", "list", "--active", "--json")
    assert [row["runId"] for row in json.loads(out)["runs"]] == [run_id]
    assert typed("workflow", "cancel", "detached") == (0, f"Cancelled run {run_id}\nleft: 0\n", "")
    assert typed("run", "cancel", run_id)[1] == f"Run {run_id} had already ended.\n"


def test_a_step_that_waits_is_said_with_its_reason(world: World, typed: Any) -> None:
    _model(typed, "remote-echo", 'echo "executed on a worker"')
    _workflow(world, typed, "waiting", "remote-echo", "target: nobody")
    watched = Process(["workflow", "run", "waiting"], world.root)
    try:
        line = watched.wait_for("queued")[0] and watched.seen[-1]
        assert line.startswith("○ build › s queued, waiting for worker matching target=nobody")
        code, out, _ = typed("worker", "queue", "--explain")
        assert code == 0 and "target=nobody" in out and "  build-node: " in out
        assert watched.interrupt() == 130
    finally:
        watched.kill()
