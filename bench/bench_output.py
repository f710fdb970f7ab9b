"""Output at full speed: what a step that prints without end costs itself, and everybody else.

    python bench/bench_output.py [--mib 64 | --gib 1] [--line 128] [--on worker|orchestrator] [--python] [--alone] [--json]

One worker with two slots. A step prints as fast as it can, first alone; then again while a chain of no-op steps runs beside it,
as it ran before without it. Compared in one run: the chain's latency (p50, p99) with the noise against without it; how much
the resident memory of worker and serve grew at most; the rate into the durable log, and what a MiB costs each process in CPU; and
the sealed log, byte for byte, against what was printed. `--on orchestrator` runs the loud step there and the chain too; `--python`
prints from a method in Python instead of a shell.
"""

import argparse
import hashlib
import itertools
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from bench_steps import percentile
from fleet import Fleet, fleet

SETTLE_S = 1.0

PRINTS = """import attrs
from swamp_worker.sdk import PlainContext, method, model


@attrs.frozen
class Much:
    line: str
    size: int


@model("bench/loud", version="2026.1.1")
class Loud:
    @method
    def execute(self, context: PlainContext[None], much: Much) -> None:
        for _ in range(much.size // (len(much.line) + 1)):
            print(much.line)
"""


class Memory:
    """The largest resident sizes of processes while it is open, KiB."""

    def __init__(self, **pids: int) -> None:
        self._pids = pids
        self.before = {name: resident_kib(pid) for name, pid in pids.items()}
        self.most = dict(self.before)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.02):
            for name, pid in self._pids.items():
                self.most[name] = max(self.most[name], resident_kib(pid))


def resident_kib(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4


def cpu_s(pid: int) -> float:
    """What a process itself has used, in user and system mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def chain(it: Fleet, name: str, steps: int) -> list[float]:
    """The spans between the durable ends of no-op steps, one after the other."""
    ends = [time.perf_counter() for event in it.run(name) if event["kind"] == "step_ended"]
    assert len(ends) == steps
    return [later - earlier for earlier, later in itertools.pairwise(ends)]


def expected(line: bytes, size: int) -> tuple[str, int]:
    """Hash and size of the log of `size` printed bytes: its last line has an end, whatever was printed."""
    whole, rest = divmod(size, len(line))
    digest = hashlib.sha256()
    for _ in range(whole // 8_192):
        digest.update(line * 8_192)
    digest.update(line * (whole % 8_192))
    if rest:
        digest.update(line[:rest].rstrip(b"\n") + b"\n")
    return digest.hexdigest(), size + bool(rest)


def stored(root: Path, sha256: str) -> bool:
    """Whether the store has a blob of that name, and it is that blob."""
    path = next(root.glob(f".swamp/data/**/{sha256[:2]}/{sha256[2:]}"), None)
    if path is None:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


class Loud:
    """One run of the loud step, in the background. `seconds` is set once it has ended; the CPU is what each process used meanwhile."""

    def __init__(self, it: Fleet, pids: dict[str, int]) -> None:
        self._it = it
        self._pids = pids
        self.seconds: float | None = None
        self._before = {name: cpu_s(pid) for name, pid in pids.items()}
        self.cpu_s: dict[str, float] = {}
        self._began = time.perf_counter()
        self.run_id = it.session.call("workflow.run", name="loud", inputs={})["runId"]
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()

    def _watch(self) -> None:
        try:
            while self._it.session.call("run.get", runId=self.run_id)["status"] in ("pending", "running"):
                time.sleep(0.05)
        finally:
            self.seconds = time.perf_counter() - self._began
            self.cpu_s = {name: cpu_s(pid) - self._before[name] for name, pid in self._pids.items()}

    def join(self) -> float:
        self._watcher.join()
        run = self._it.session.call("run.get", runId=self.run_id)
        assert run["status"] == "succeeded", run
        assert self.seconds is not None
        return self.seconds


def prepare(it: Fleet, options: argparse.Namespace, size: int, target: str) -> None:
    text = f"{7:0{options.line - 1}}"
    if options.python:
        folder = it.root / "extensions" / "models"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "loud.py").write_text(PRINTS)
        arguments: dict[str, Any] = {"line": text, "size": size}
        kind = "bench/loud"
    else:
        arguments, kind = {"run": f"yes {text} | head -c {size}"}, "command/shell"
    it.session.call("model.create", type=kind, name="noise", arguments={"execute": arguments})
    where = f"        target: {target}\n" if target else ""
    it.session.call(
        "workflow.create",
        name="loud",
        text=f"name: loud\njobs:\n  - name: build\n    steps:\n      - name: noise\n{where}"
        "        task: {type: model_method, modelIdOrName: noise, methodName: execute}\nversion: 1\n",
    )
    it.chain("chain", options.chain, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--gib", type=int, default=0)
    parser.add_argument("--line", type=int, default=128, help="bytes of a line, with its end")
    parser.add_argument("--on", choices=("worker", "orchestrator"), default="worker")
    parser.add_argument("--python", action="store_true")
    parser.add_argument("--alone", action="store_true", help="without the chain")
    parser.add_argument("--chain", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    size = options.gib * 2**30 or options.mib * 2**20
    if options.python:
        size -= size % options.line
    found: dict[str, Any] = {"printed_mib": size / 2**20, "load": os.getloadavg()[0]}
    with fleet() as it:
        pids = {"serve": it.processes[0].pid}
        if options.on == "worker":
            pids["worker"] = it.worker("w1", 2).pid
        prepare(it, options, size, "w1" if options.on == "worker" else "")
        chain(it, "chain", options.chain)
        time.sleep(SETTLE_S)
        with Memory(**pids) as memory:
            alone = Loud(it, pids)
            found["alone_s"] = alone.join()
            found["alone_mib_per_s"] = size / 2**20 / found["alone_s"]
            for name in pids:
                found[f"{name}_cpu_s_per_gib"] = alone.cpu_s[name] / size * 2**30
            if not options.alone:
                quiet = chain(it, "chain", options.chain)
                noise = Loud(it, pids)
                loud: list[float] = []
                while noise.seconds is None:
                    spans = chain(it, "chain", options.chain)
                    if noise.seconds is None:
                        loud += spans
                found["beside_mib_per_s"] = size / 2**20 / noise.join()
        predicate = 'modelName == "noise" && name == "log"'
        (record,) = it.session.call("data.query", predicate=predicate, limit=10)["results"]
        digest, whole = expected(f"{7:0{options.line - 1}}\n".encode(), size)
        found["log_complete"] = record["size"] == whole and stored(it.root, digest)
        for name in pids:
            found[f"{name}_before_mib"] = memory.before[name] / 1024
            found[f"{name}_growth_mib"] = (memory.most[name] - memory.before[name]) / 1024
        if not options.alone:
            found["chain_p50_ms"] = percentile(quiet, 0.5) * 1e3
            found["chain_p99_ms"] = percentile(quiet, 0.99) * 1e3
            if loud:
                found["loud_steps"] = len(loud)
                found["loud_p50_ms"] = percentile(loud, 0.5) * 1e3
                found["loud_p99_ms"] = percentile(loud, 0.99) * 1e3
                found["p50_ratio"] = found["loud_p50_ms"] / found["chain_p50_ms"]
                found["p99_ratio"] = found["loud_p99_ms"] / found["chain_p99_ms"]
    if options.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:24} {value:10.2f}" if isinstance(value, float) else f"{name:24} {value}")


if __name__ == "__main__":
    main()
