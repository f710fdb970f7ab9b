"""`swamp demo`: the tutorial, typed by a program, with real processes in a temporary repository.

Rules
- Every command is run as a user would run it, as a process of its own, and its real output is shown.
- It passes only if the step really ran under the worker: the step prints the id of its parent process, and
  that must be the worker's. Everything else (the text of the result, exit codes, a clean stop by Ctrl-C) is
  checked too.
- One deadline over all of it; whatever happens, the processes it started are ended, by group, and the
  folder is removed.
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from swamp_proto.errors import OperationFailed

STOP_S: Final = 15.0  # after Ctrl-C, until a process of ours is killed
LISTENING: Final = re.compile(r"\b(?:ws|http)s?://[^\s:/]+:(\d+)")
ENROLLED: Final = re.compile(r"enrolled", re.IGNORECASE)
PARENT: Final = re.compile(r"parent process (\d+)")
RUN: Final = 'echo "executed on a worker"; echo "parent process $PPID" >&2'
WORKFLOW: Final = """\
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


class _Background:
    """A process in a terminal of its own, so to speak: its lines are shown under its name as they come."""

    def __init__(
        self, name: str, argv: Sequence[str], cwd: Path, env: Mapping[str, str], say: Callable[[str], None]
    ) -> None:
        self.name = name
        self._say = say
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._over = False
        self.process = subprocess.Popen(
            argv,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._say(f"  [{self.name}] {line.rstrip()}")
            with self._news:
                self._lines.append(line)
                self._news.notify_all()
        with self._news:
            self._over = True
            self._news.notify_all()

    def wait_for(
        self, pattern: re.Pattern[str], what: str, deadline: float, *needs: "_Background"
    ) -> re.Match[str]:
        """The first line that matches, also one that was said already. Raises `OperationFailed`, also when one
        of the processes it `needs` has ended."""
        looked = 0
        with self._news:
            while True:
                for line in self._lines[looked:]:
                    found = pattern.search(line)
                    if found:
                        return found
                looked = len(self._lines)
                if self._over:
                    raise OperationFailed(f"{self.name} ended before it {what}")
                for other in needs:
                    if other._ended():
                        raise OperationFailed(f"{other.name} ended before {self.name} {what}")
                if time.monotonic() >= deadline:
                    raise OperationFailed(f"{self.name} has not {what} in time")
                self._news.wait(min(0.5, max(0.0, deadline - time.monotonic())))

    def interrupt(self) -> int:
        """Ctrl-C, and the exit code. What does not end is killed, and that is a failure."""
        self.process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + STOP_S
        while not self._ended():
            if time.monotonic() > deadline:
                self.kill()
                raise OperationFailed(f"{self.name} did not stop within {STOP_S:.0f}s of Ctrl-C")
            time.sleep(0.02)
        self.kill()
        return self.process.returncode

    def _ended(self) -> bool:
        """Whether it has exited; it stays unreaped, so that its group's number can not be somebody else's."""
        if self.process.returncode is not None:
            return True
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def kill(self) -> None:
        """The whole group, whatever state it is in. Harmless when done before."""
        if self.process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(STOP_S)
        if self.process.stdout is not None:
            self.process.stdout.close()


class Demo:
    """One run of it. `say` gets every line of the story."""

    def __init__(self, say: Callable[[str], None], timeout_s: float) -> None:
        self._say = say
        self._deadline = time.monotonic() + timeout_s
        self._folder = Path(tempfile.mkdtemp(prefix="swamp-demo-"))
        self._repository = self._folder / "repo"
        self._repository.mkdir()
        self._background: list[_Background] = []
        self._environment = {
            key: value
            for key, value in os.environ.items()
            # Nothing of the caller's own set-up may decide where the demo's commands go.
            if not key.startswith(("SWAMP_", "_SWAMP_"))
        }
        package = str(Path(__file__).resolve().parents[2])
        inherited = self._environment.get("PYTHONPATH")
        self._environment["PYTHONPATH"] = f"{package}{os.pathsep}{inherited}" if inherited else package
        self._environment["PYTHONUNBUFFERED"] = "1"
        self.commands: list[dict[str, Any]] = []

    def run(self) -> dict[str, Any]:
        """The whole tutorial. Answers what was proved; raises `OperationFailed` at what is not so."""
        self._tell("A repository with a vault, in a temporary folder.")
        self._swamp("repo", "init")
        self._swamp("vault", "create", "local_encryption", "sandbox-vault")

        self._tell("Mint an enrollment token for one worker. Its secret is shown once.")
        created = self._swamp("worker", "token", "create", "build-node", "--duration", "1h")
        found = re.search(r"^ {2}(build-node\.[0-9a-f]{64})$", created, re.MULTILINE)
        token = _required(found, "token create printed no token")[1]
        self._expect("unused" in self._swamp("worker", "token", "list"), "the new token is not `unused`")

        self._tell("Start the orchestrator, and connect a worker to it: two processes of their own.")
        serve = self._start("orchestrator", "serve", "--port", "0")
        port = serve.wait_for(LISTENING, "said where it listens", self._deadline)[1]
        url, cache = f"ws://localhost:{port}", str(self._folder / "cache")
        worker = self._start(
            "worker", "worker", "connect", url, "--token", token, "--cache-dir", cache, hide=token
        )
        worker.wait_for(ENROLLED, "enrolled", self._deadline, serve)
        self._expect("enrolled" in self._swamp("worker", "token", "list"), "the token is not `enrolled`")

        self._tell("A model whose step says who its parent process is, first run here, without a worker.")
        self._swamp("model", "create", "command/shell", "remote-echo", "--arg", f"execute.run={RUN}")
        here = self._swamp("model", "method", "run", "remote-echo", "execute")
        self._expect("executed on a worker" in here, "the model did not print its line")

        self._tell("A workflow that places the step on the worker, and its run.")
        (self._repository / "remote-demo.yaml").write_text(WORKFLOW)
        self._swamp("workflow", "create", "--file", "remote-demo.yaml")
        shown = self._swamp("workflow", "run", "remote-demo")
        self._expect("✓echo-on-worker" in shown, "the step is not shown as succeeded")

        self._tell("The result came back into the store.")
        result = 'modelName == "remote-echo" && specName == "result"'
        stdout = self._swamp("data", "query", result, "--select", "attributes.stdout")
        self._expect(stdout == "executed on a worker\n", "the stored result is not what the step printed")
        self._swamp("data", "query", 'modelType == "swamp/worker"')

        self._tell("Did it run on the worker? The parent of the step's process must be the worker.")
        said = self._swamp("data", "query", result, "--select", "attributes.stderr")
        parent = int(_required(PARENT.search(said), "the step did not say who its parent was")[1])
        pid = worker.process.pid
        self._expect(parent == pid, f"the step's parent was process {parent}, the worker is process {pid}")
        self._say(f"  yes: the step's parent was process {parent}, the worker is process {pid}")

        self._tell("Ctrl-C stops the worker, then the orchestrator.")
        for process in (worker, serve):
            code = process.interrupt()
            self._say(f"  {process.name}: exit code {code}")
            self._expect(code == 0, f"the {process.name} ended with exit code {code} after Ctrl-C")
        return {"passed": True, "workerPid": pid, "stepParentPid": parent, "commands": self.commands}

    def clean_up(self, keep: bool) -> Path | None:
        """End what still runs; answers the folder when it was kept."""
        for process in reversed(self._background):
            process.kill()
        if keep:
            return self._folder
        shutil.rmtree(self._folder, ignore_errors=True)
        return None

    # ── steps ───────────────────────────────────────────────────────────────────────────────────────────────

    def _tell(self, text: str) -> None:
        self._say(f"\n# {text}")

    def _expect(self, holds: bool, problem: str) -> None:
        if not holds:
            raise OperationFailed(
                f"the demo failed: {problem}", hint="run it again with --keep and look around"
            )

    def _argv(self, *argv: str) -> list[str]:
        return [sys.executable, "-m", "swamp_orch.cli", *argv]

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise OperationFailed("the demo took too long", hint="give it more time: swamp demo --timeout 5m")
        return left

    def _swamp(self, *argv: str) -> str:
        shown = f"swamp {shlex.join(argv)}"
        self._say(f"$ {shown}")
        try:
            ended = subprocess.run(
                self._argv(*argv),
                cwd=self._repository,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                encoding="utf-8",
                errors="replace",
                timeout=self._left(),
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise OperationFailed(f"the demo failed: `{shown}` did not end in time") from None
        for line in (ended.stdout + ended.stderr).splitlines():
            self._say(line)
        self.commands.append({"command": shown, "exitCode": ended.returncode, "output": ended.stdout})
        self._expect(ended.returncode == 0, f"`{shown}` ended with exit code {ended.returncode}")
        return ended.stdout

    def _start(self, name: str, *argv: str, hide: str | None = None) -> _Background:
        shown = f"swamp {shlex.join(argv)}".replace(hide or "\0", "<token>")
        self._say(f"$ {shown}")
        self._left()
        process = _Background(name, self._argv(*argv), self._repository, self._environment, self._say)
        self._background.append(process)
        return process


def _required(found: "re.Match[str] | None", problem: str) -> "re.Match[str]":
    if found is None:
        raise OperationFailed(f"the demo failed: {problem}")
    return found


def run_demo(say: Callable[[str], None], timeout_s: float, keep: bool) -> dict[str, Any]:
    """Run it and clean up. Raises `OperationFailed`."""

    def terminated(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, terminated) if main_thread else None
    demo = Demo(say, timeout_s)
    try:
        return demo.run()
    finally:
        kept = demo.clean_up(keep)
        if kept is not None:
            say(f"\nEverything is still in {kept}")
        if main_thread:
            signal.signal(signal.SIGTERM, before)
