"""What the benchmarks share: a repository in a temporary folder, one serve and its workers as real processes, ended by group."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from swamp_orch.api.client import HttpSession
from swamp_orch.definitions.repository import find, init

SWAMP = [sys.executable, "-m", "swamp_orch.cli"]
DEADLINE_S = 60.0


class Fleet:
    """One orchestrator and its workers."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.processes: list[subprocess.Popen[bytes]] = []
        self.session: HttpSession

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        log = (self.root / f"{len(self.processes)}.log").open("wb")
        process = subprocess.Popen(
            [*SWAMP, *command],
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def serve(self) -> subprocess.Popen[bytes]:
        process = self.start("serve", "--port", "0")
        repository = find(self.root)
        until = time.monotonic() + DEADLINE_S
        while not repository.serve_file.exists():
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"serve did not start: {(self.root / '0.log').read_text()}")
            time.sleep(0.02)
        self.url = json.loads(repository.serve_file.read_text())["url"]
        self.session = HttpSession.unix(repository.socket_path())
        return process

    def worker(self, name: str, slots: int, *more: str) -> subprocess.Popen[bytes]:
        token = self.session.call("token.create", name=name, durationMs=3_600_000)["token"]
        file = self.root / f"{name}.token"
        file.write_text(token)
        cache = self.root / f"cache-{name}"
        process = self.start(
            "worker",
            "connect",
            self.url,
            "--token-file",
            str(file),
            "--cache-dir",
            str(cache),
            "--concurrency",
            str(slots),
            *more,
        )
        until = time.monotonic() + DEADLINE_S
        while not any(row["name"] == name for row in self.session.call("worker.list")["workers"]):
            if time.monotonic() > until:
                raise SystemExit(f"worker {name} did not enroll")
            time.sleep(0.02)
        return process

    def chain(self, name: str, steps: int, target: str, model: str = "noop", method: str = "execute") -> None:
        """`steps` no-op steps, one after the other, on one worker; without `target` on the orchestrator."""
        lines = [f"name: {name}", "jobs:", "  - name: build", "    steps:"]
        for number in range(steps):
            lines += [f"      - name: s{number}", *([f"        target: {target}"] if target else [])]
            if number:
                lines.append(f"        dependsOn: [s{number - 1}]")
            lines.append(
                f"        task: {{type: model_method, modelIdOrName: {model}, methodName: {method}}}"
            )
        self.session.call("workflow.create", name=name, text="\n".join([*lines, "version: 1", ""]))

    def many(self, name: str, target: str) -> None:
        """As many no-op steps as the input says, all at once, on one worker."""
        text = f"""name: {name}
inputs:
  type: object
  properties:
    numbers: {{type: array, items: {{type: integer}}}}
  required: [numbers]
jobs:
  - name: build
    steps:
      - name: step
        target: {target}
        forEach: {{item: number, in: "${{{{ inputs.numbers }}}}"}}
        task: {{type: model_method, modelIdOrName: noop, methodName: execute}}
version: 1
"""
        self.session.call("workflow.create", name=name, text=text)

    def run(self, name: str, **inputs: Any) -> Iterator[dict[str, Any]]:
        run_id = self.session.call("workflow.run", name=name, inputs=inputs)["runId"]
        yield from self.session.stream("run.attach", runId=run_id)

    def stop(self) -> None:
        for process in reversed(self.processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@contextlib.contextmanager
def fleet() -> Iterator[Fleet]:
    with tempfile.TemporaryDirectory(prefix="swamp-bench-") as folder:
        root = Path(folder)
        init(root)
        found = Fleet(root)
        try:
            found.serve()
            found.session.call("vault.create", type="local_encryption", name="bench")
            found.session.call(
                "model.create", type="command/shell", name="noop", arguments={"execute": {"run": "true"}}
            )
            yield found
        finally:
            found.stop()


def tree_pss_kib(pid: int) -> int:
    """Proportional set size of a process and all its descendants, KiB."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    total, todo = 0, [pid]
    while todo:
        one = todo.pop()
        todo += children.get(one, [])
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return total
