"""Output at full speed: what a step that prints without end costs everybody else.

    python bench/bench_output.py [--mib 64 | --gib 1] [--json]

One worker with two slots. In one a step prints as fast as it can; in the other a chain of no-op steps runs, as it did before
alone. Compared in one run: the chain's latency (p50, p99) with the noise against without it; how much the resident memory of worker
and serve grew at most; the rate into the durable log; and the sealed log, byte for byte, against what was printed.
"""

import argparse
import hashlib
import itertools
import json
import threading
import time
from pathlib import Path
from typing import Any

from bench_steps import percentile
from fleet import Fleet, fleet

LINE = f"{7:0127}"  # 128 bytes with its end


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


def chain(it: Fleet, name: str, steps: int) -> list[float]:
    """The spans between the durable ends of no-op steps, one after the other."""
    ends = [time.perf_counter() for event in it.run(name) if event["kind"] == "step_ended"]
    assert len(ends) == steps
    return [later - earlier for earlier, later in itertools.pairwise(ends)]


def expected(size: int) -> str:
    line = LINE.encode() + b"\n"
    whole, rest = divmod(size, len(line))
    digest = hashlib.sha256()
    for _ in range(whole // 8_192):
        digest.update(line * 8_192)
    digest.update(line * (whole % 8_192))
    if rest:
        digest.update(line[:rest].rstrip(b"\n") + b"\n")
    return digest.hexdigest()


def stored(root: Path, sha256: str) -> bool:
    """Whether the store has a blob of that name, and it is that blob."""
    path = next(root.glob(f".swamp/data/**/{sha256[:2]}/{sha256[2:]}"), None)
    if path is None:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--gib", type=int, default=0)
    parser.add_argument("--chain", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    size = options.gib * 2**30 or options.mib * 2**20
    found: dict[str, Any] = {"printed_mib": size / 2**20}
    with fleet() as it:
        worker = it.worker("w1", 2)
        it.session.call(
            "model.create",
            type="command/shell",
            name="noise",
            arguments={"execute": {"run": f"yes {LINE} | head -c {size}"}},
        )
        it.session.call(
            "workflow.create",
            name="loud",
            text="name: loud\njobs:\n  - name: build\n    steps:\n      - name: noise\n        target: w1\n"
            "        task: {type: model_method, modelIdOrName: noise, methodName: execute}\nversion: 1\n",
        )
        it.chain("chain", options.chain, "w1")
        chain(it, "chain", options.chain)
        quiet = chain(it, "chain", options.chain)
        ended: list[float] = []

        def watch(run_id: str) -> None:
            try:
                while it_session.call("run.get", runId=run_id)["status"] in ("pending", "running"):
                    time.sleep(0.05)
            finally:
                ended.append(time.perf_counter())

        it_session = it.session
        with Memory(serve=it.processes[0].pid, worker=worker.pid) as memory:
            began = time.perf_counter()
            run_id = it.session.call("workflow.run", name="loud", inputs={})["runId"]
            loud: list[float] = []
            watcher = threading.Thread(target=watch, args=(run_id,))
            watcher.start()
            while not ended:
                spans = chain(it, "chain", options.chain)
                if not ended:
                    loud += spans
            watcher.join()
        found["seconds"] = ended[0] - began
        found["mib_per_s"] = size / 2**20 / found["seconds"]
        run = it.session.call("run.get", runId=run_id)
        assert run["status"] == "succeeded", run
        (record,) = it.session.call(
            "data.query", predicate='modelName == "noise" && name == "log"', limit=10
        )["results"]
        found["log_complete"] = record["size"] == size and stored(it.root, expected(size))
        for name in ("serve", "worker"):
            found[f"{name}_before_mib"] = memory.before[name] / 1024
            found[f"{name}_growth_mib"] = (memory.most[name] - memory.before[name]) / 1024
        found["chain_p50_ms"] = percentile(quiet, 0.5) * 1e3
        found["chain_p99_ms"] = percentile(quiet, 0.99) * 1e3
        if loud:
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
