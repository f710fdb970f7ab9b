"""A site: one repository with a real orchestrator, real workers and real commands, for the tests of this folder.

Rules
- Every process is one a user would start, over real sockets and a real store, in a group of its own. Leaving the site ends every
  group and then proves that nothing is left: all processes of a site, steps and keepers included, carry `MARK` in their environment.
- Every wait has a deadline and waits for a fact: a line that was printed, a file, an answer, a process that is gone.
- What was printed is kept, and shown when a test fails (`conftest.py`).
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs

PROJECT: Final = Path(__file__).parents[2]
DEADLINE_S: Final = float(os.environ.get("E2E_DEADLINE_S", "90"))
LOOK_S: Final = 0.02  # between two looks at a fact that nobody announces
MARK: Final = "E2E_SITE"
GRACE: Final = ("--grace", "20s")
"""For who restarts an orchestrator under running steps: a worker looks for it every 2 s, and has 17 s on a slow machine."""
SHORT_GRACE_S: Final = 5.0
SHORT_GRACE: Final = ("--grace", f"{SHORT_GRACE_S:g}s")
"""For who waits until it is over; nothing in such a test may depend on a link that lasts."""
SWAMP: Final = (sys.executable, "-m", "swamp_orch.cli")

T = TypeVar("T")


def until(look: Callable[[], T | None], what: str, within_s: float = DEADLINE_S) -> T:
    """What `look` answers, once that is neither None nor False."""
    deadline = time.monotonic() + within_s
    while True:
        found = look()
        if found is not None and found is not False:
            return found
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(LOOK_S)


def alive(pid: int) -> bool:
    """Whether a process exists and is not merely waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def processes(marked: str) -> list[tuple[int, str]]:
    """Every live process whose environment holds `marked`: its pid and command line."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if marked.encode() in (folder / "environ").read_bytes() and alive(int(folder.name)):
                    line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found.append((int(folder.name), line.strip()))
            except OSError:
                continue
    return found


@attrs.frozen
class Ended:
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


class Running:
    """A process of the site that stays; its lines can be waited for."""

    def __init__(self, name: str, argv: Sequence[str], cwd: Path, env: Mapping[str, str]) -> None:
        self.name = name
        self.lines: list[tuple[str, str]] = []  # (stream, line)
        self._news = threading.Condition()
        self._open = 2
        self.process = subprocess.Popen(
            argv,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        self._readers = [
            threading.Thread(target=self._read, args=(stream, getattr(self.process, stream)), daemon=True)
            for stream in ("stdout", "stderr")
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: str, source: Any) -> None:
        for line in source:
            with self._news:
                self.lines.append((stream, line))
                self._news.notify_all()
        with self._news:
            self._open -= 1
            self._news.notify_all()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def said(self) -> str:
        """Everything so far, both streams."""
        with self._news:
            return "".join(line for _, line in self.lines)

    def stream(self, name: str) -> str:
        with self._news:
            return "".join(line for stream, line in self.lines if stream == name)

    def wait_for(self, pattern: str, *, after: int = 0) -> re.Match[str]:
        """The first line from number `after` on that matches."""
        deadline = time.monotonic() + DEADLINE_S
        with self._news:
            while True:
                for _, line in self.lines[after:]:
                    if found := re.search(pattern, line):
                        return found
                after = len(self.lines)
                left_s = deadline - time.monotonic()
                assert self._open and left_s > 0, f"{self.name} did not say {pattern!r}"
                self._news.wait(left_s)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> Ended:
        """Wait for its own end."""
        code = self.process.wait(DEADLINE_S)
        self._close()
        return Ended(code, self.stream("stdout"), self.stream("stderr"))

    def interrupt(self) -> Ended:
        """Ctrl-C in its terminal, once."""
        self.send(signal.SIGINT)
        return self.end()

    def kill(self) -> None:
        """`kill -9`, the process alone: what it started is its keeper's business."""
        self.send(signal.SIGKILL)
        self.process.wait(DEADLINE_S)

    def clear(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(DEADLINE_S)
        self._close()

    def _close(self) -> None:
        for reader in self._readers:
            reader.join(DEADLINE_S)
        for source in (self.process.stdout, self.process.stderr):
            if source is not None:
                source.close()


class Site:
    """A repository and everything that runs for it. A context manager."""

    def __init__(self, folder: Path, *, vault: str | None = "sandbox-vault") -> None:
        self.folder = folder
        self.root = folder / "repo"
        self.elsewhere = folder / "elsewhere"  # a folder outside every repository
        self.temporary = folder / "tmp"
        for path in (self.root, self.elsewhere, self.temporary):
            path.mkdir(parents=True)
        self.mark = f"{MARK}={uuid.uuid4()}"
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("SWAMP_", "PYTEST_", "COV_"))
        }
        self.env: dict[str, str] = kept | {
            "PYTHONPATH": str(PROJECT),
            "PYTHONUNBUFFERED": "1",
            "TMPDIR": str(self.temporary),
            "HOME": str(folder),
            "NO_COLOR": "1",
            MARK: self.mark.partition("=")[2],
        }
        self.port = 0
        self.orchestrator: Running | None = None
        self.workers: dict[str, Running] = {}
        self.tokens: dict[str, str] = {}
        self.typed: list[tuple[Sequence[str], Ended]] = []
        self._running: list[Running] = []
        try:
            self.ok("repo", "init")
            if vault is not None:
                self.ok("vault", "create", "local_encryption", vault)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def __enter__(self) -> "Site":
        return self

    def __exit__(self, *_: object) -> None:
        for running in reversed(self._running):
            running.clear()
        try:
            until(lambda: not processes(self.mark), "everything of the site is gone")
        finally:
            for pid, _ in processes(self.mark):
                os.kill(pid, signal.SIGKILL)

    @property
    def url(self) -> str:
        return f"ws://localhost:{self.port}"

    # ── commands ────────────────────────────────────────────────────────────────────────────────────────────
    def swamp(
        self, *argv: str, cwd: Path | None = None, stdin: str = "", env: Mapping[str, str] | None = None
    ) -> Ended:
        """Type a command and wait for its end."""
        process = subprocess.Popen(
            [*SWAMP, *argv],
            cwd=cwd or self.root,
            env={**self.env, **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        with process:
            try:
                out, err = process.communicate(stdin, timeout=DEADLINE_S)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        ended = Ended(process.returncode, out, err)
        assert "Traceback" not in ended.err, ended.err
        self.typed.append((argv, ended))
        return ended

    def ok(self, *argv: str, **how: Any) -> Ended:
        """Type a command that has to work."""
        ended = self.swamp(*argv, **how)
        assert ended.code == 0, (argv, ended)
        return ended

    def json(self, *argv: str, **how: Any) -> Any:
        """The JSON answer of a command that has to work."""
        ended = self.ok(*argv, "--json", **how)
        assert ended.err == "", (argv, ended)
        return ended.json

    def query(self, predicate: str, select: str = "") -> list[Any]:
        """`data query --json`: the records, or what `select` makes of them."""
        chosen = ("--select", select) if select else ()
        found: list[Any] = self.json("data", "query", predicate, *chosen)["results"]
        return found

    def start(self, *argv: str, name: str = "", cwd: Path | None = None) -> Running:
        """Start a command that stays."""
        running = Running(name or " ".join(argv[:3]), [*SWAMP, *argv], cwd or self.root, self.env)
        self._running.append(running)
        return running

    # ── definitions ─────────────────────────────────────────────────────────────────────────────────────────
    def model(self, name: str, run: str, **arguments: Any) -> None:
        """Write a `command/shell` model."""
        document = {"type": "command/shell", "id": _id("model", name), "name": name, "version": 1}
        inputs = arguments.pop("inputs", None)
        if inputs is not None:
            document["inputs"] = inputs
        document["methods"] = {"execute": {"arguments": {"run": run, **arguments}}}
        path = self.root / "models" / "command" / "shell" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1))  # JSON is YAML

    def workflow(self, name: str, *steps: Mapping[str, Any], **keys: Any) -> None:
        """Write a workflow of one job `job`, or of `jobs`. Steps are `step(…)`."""
        document = {
            "id": _id("workflow", name),
            "name": name,
            "version": 1,
            "jobs": [{"name": "job", "steps": list(steps)}],
            **keys,
        }
        path = self.root / "workflows" / f"workflow-{name}.yaml"
        path.write_text(json.dumps(document, indent=1))

    def shell(self, name: str, run: str, *, model: Mapping[str, Any] | None = None, **keys: Any) -> None:
        """A model and a workflow of that name whose only step `s` runs it; `keys` are the step's."""
        self.model(name, run, **(model or {}))
        self.workflow(name, step("s", name, **keys))

    # ── the orchestrator and its workers ────────────────────────────────────────────────────────────────────
    def serve(self, *flags: str, port: int = 0) -> Running:
        """Start the orchestrator and wait until it listens."""
        running = self.start("serve", "--port", str(port), *flags, name="serve")
        self.port = int(running.wait_for(r"listening on wss?://\S+:(\d+) for")[1])
        self.orchestrator = running
        return running

    def token(self, name: str) -> str:
        """The token of that name, minted on first use."""
        if name not in self.tokens:
            printed = self.ok("worker", "token", "create", name, "--duration", "1h").out
            self.tokens[name] = printed.split("\n")[4].strip()
        return self.tokens[name]

    def worker(self, name: str, *flags: str, url: str = "", enrolled: bool = True) -> Running:
        """Connect a worker with the token of that name, as the same machine each time."""
        running = self.start(
            "worker",
            "connect",
            url or self.url,
            "--token",
            self.token(name),
            "--cache-dir",
            str(self.folder / f"cache-{name}"),
            *flags,
            name=f"worker {name}",
            cwd=self.elsewhere,
        )
        self.workers[name] = running
        if enrolled:
            running.wait_for(f"Enrolled as {name}")
        return running

    # ── for the reader of a failure ─────────────────────────────────────────────────────────────────────────
    def story(self) -> list[tuple[str, str]]:
        """What the site's processes printed, and the last commands."""
        told = [(running.name, running.said) for running in self._running]
        commands = "".join(
            f"$ swamp {' '.join(argv)}\n{ended.out}{ended.err}[{ended.code}]\n"
            for argv, ended in self.typed[-6:]
        )
        return [*told, ("commands", commands)]


def _id(kind: str, name: str) -> str:
    """The same for every writing, so that a definition that is written anew keeps its data."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{kind}/{name}"))


def step(name: str, model: str, *, inputs: Mapping[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
    """A step that executes a `command/shell` model."""
    task: dict[str, Any] = {"type": "model_method", "modelIdOrName": model, "methodName": "execute"}
    if inputs is not None:
        task["inputs"] = dict(inputs)
    return {"name": name, **keys, "task": task}


def ended(events: Sequence[Mapping[str, Any]], step: str) -> Mapping[str, Any]:
    """The end of a step among a run's events."""
    (found,) = (event for event in events if event["kind"] == "step_ended" and event["step"] == step)
    return found


def order(events: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """`(kind, step)` of what happened to steps, in order."""
    kinds = ("step_waiting", "step_started", "step_ended")
    return [
        (event["kind"].removeprefix("step_"), event["step"]) for event in events if event["kind"] in kinds
    ]
