"""`swamp demo`, as a user types it: it passes here, leaves nothing behind, and fails when it should."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_cli_schemas import hold

from swamp_orch.cli import demo
from swamp_proto.errors import OperationFailed

PROJECT = Path(__file__).parents[2]


def _demo(folder: Path, *flags: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "swamp_orch.cli", "demo", *flags],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PROJECT), "TMPDIR": str(folder), "SWAMP_REPO_DIR": "/nowhere"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_it_passes_and_leaves_nothing_behind(tmp_path: Path) -> None:
    ended = _demo(tmp_path, "--timeout", "200s", "--json")
    assert (ended.returncode, ended.stderr) == (0, ""), ended
    proved = json.loads(ended.stdout)
    hold("demo", proved)
    assert proved["workerPid"] == proved["stepParentPid"]
    outputs = {entry["command"]: entry["output"] for entry in proved["commands"]}
    assert outputs["swamp workflow run remote-demo"].startswith("build" + " " * 59 + "✓echo-on-worker\n")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(proved["workerPid"], 0)


def test_it_fails_when_time_is_over(tmp_path: Path) -> None:
    ended = _demo(tmp_path, "--timeout", "1", "--json")
    assert ended.returncode == 1 and ended.stdout == ""
    hold("error", json.loads(ended.stderr))
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_ran_elsewhere_fails_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same workflow without its target: everything succeeds, but not on the worker."""
    monkeypatch.setattr(demo, "WORKFLOW", demo.WORKFLOW.replace("        target: build-node\n", ""))
    lines: list[str] = []
    with pytest.raises(OperationFailed, match="the step's parent was process"):
        demo.run_demo(lines.append, 200.0, keep=False)
    told = [line for line in lines if line.startswith("$ swamp ")]
    for number, command in enumerate(
        ("repo init", "vault create", "worker token create", "worker token list", "serve", "worker connect")
    ):
        assert told[number].startswith(f"$ swamp {command}"), told
    assert any(line.startswith("  [worker] ") for line in lines)
    assert not any(re.search(r"--token build-node\.", line) for line in lines)


def test_what_does_not_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "STOP_S", 0.2)
    program = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    said: list[str] = []
    process: Any = demo._Background(
        "stubborn", [sys.executable, "-c", program], tmp_path, os.environ, said.append
    )
    process.wait_for(re.compile("up"), "came up", demo.time.monotonic() + 60)
    with pytest.raises(OperationFailed, match="did not stop"):
        process.interrupt()
    assert process.process.returncode == -signal.SIGKILL
    with pytest.raises(OperationFailed, match="ended before it spoke"):
        process.wait_for(re.compile("never"), "spoke", demo.time.monotonic() + 60)
