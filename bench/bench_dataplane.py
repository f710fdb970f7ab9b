"""The data plane with real processes: one serve and one worker on loopback, and a Python step that gives it work.

    python bench/bench_dataplane.py [--mib 256 | --gib 1] [--records 10000] [--repeat 3] [--json]

Three figures, each beside what it is compared with in the same run (medians of `--repeat`):

- *artefact*: a step has written a file into `open_file`; from the close until its record is durable in the orchestrator's store (sha256,
  upload, sha256 again, fsync, commit), against `cp` and fsync of an equal file on the same disk. And how much the resident memory of serve
  and worker grew at most meanwhile. Both begin with dirty pages: what the step wrote is written back by nobody before.
- *back*: another step reads that file (`read_file`), until all of it is a file beside it, verified.
- *records*: small resources, durable, by one `write_resources`; and one awaited `write_resource` at a time (a tenth as many).
- *bundle*: a step whose code comes with 5 MiB that cannot be compressed, the first time on a worker against the second, with the bytes that
  passed on the worker's way to the data plane. The worker has run Python before, so that only the code is cold.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from bench_output import Memory
from fleet import Fleet, fleet

MIB = 2**20
BUNDLE_MIB = 5
UNIT = """
import json
import os
import time

import attrs
from swamp_worker.sdk import Context, Resources, file, method, model, resource


@attrs.frozen
class Row:
    number: int
    text: str


@attrs.frozen
class Amount:
    count: int


@model("@bench/{name}", version="2026.11.21.1")
class Unit:
    row = resource(Row)
    dump = file("application/octet-stream")

    @method
    async def nothing(self, context: Context[None]) -> None:
        pass

    @method
    async def big(self, context: Context[None], arguments: Amount) -> None:
        piece = os.urandom(1 << 20)
        dump = context.open_file(self.dump)
        for number in range(arguments.count):
            await dump.write(number.to_bytes(8, "big") + piece[8:])
        began = time.perf_counter()
        await dump.close()
        print(json.dumps(time.perf_counter() - began))

    @method
    async def back(self, context: Context[None]) -> None:
        began = time.perf_counter()
        found = await context.read_file("dump")
        print(json.dumps(time.perf_counter() - began))
        found.path.unlink()

    @method
    async def many(self, context: Context[None], arguments: Amount) -> None:
        items = [Resources(self.row, f"row-{{n}}", Row(n, "x" * 40)) for n in range(arguments.count)]
        began = time.perf_counter()
        await context.write_resources(items)
        print(json.dumps(time.perf_counter() - began))

    @method
    async def single(self, context: Context[None], arguments: Amount) -> None:
        began = time.perf_counter()
        for n in range(arguments.count):
            await context.write_resource(self.row, Row(n, "x" * 40), f"single-{{n}}")
        print(json.dumps(time.perf_counter() - began))
"""


class Route:
    """A way to the orchestrator that counts the bytes that come back."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.came = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            far = socket.create_connection(("127.0.0.1", self._to))
            threading.Thread(target=self._pass, args=(near, far, False), daemon=True).start()
            threading.Thread(target=self._pass, args=(far, near, True), daemon=True).start()

    def _pass(self, source: socket.socket, into: socket.socket, counted: bool) -> None:
        try:
            while piece := source.recv(256 * 1024):
                if counted:
                    with self._lock:
                        self.came += len(piece)
                into.sendall(piece)
            into.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def add_unit(root: Path, name: str, mib: int = 0) -> None:
    unit = root / "extensions" / "models" / name
    unit.mkdir(parents=True)
    (unit / f"{name}.py").write_text(UNIT.format(name=name))
    if mib:
        (unit / "asset.bin").write_bytes(os.urandom(mib * MIB))


def flow(it: Fleet, unit: str, method: str, target: str, count: int | None = None, model: str = "") -> str:
    """A workflow of one step, of a model of its own if none is named."""
    name = f"{unit}-{method}-{target}"
    given = {} if count is None else {"count": count}
    if not model:
        it.session.call("model.create", type=f"@bench/{unit}", name=name, arguments={method: given})
    text = (
        f"name: {name}\njobs:\n  - name: j\n    steps:\n      - name: s\n        target: {target}\n"
        f"        task: {{type: model_method, modelIdOrName: {model or name}, methodName: {method}}}\nversion: 1\n"
    )
    it.session.call("workflow.create", name=name, text=text)
    return name


def run(it: Fleet, name: str) -> tuple[float, float]:
    """What the step measured (0: nothing), and from the request until its end was heard of."""
    began = time.perf_counter()
    said, over = 0.0, 0.0
    for event in it.run(name):
        if event["kind"] == "step_output":
            said = float(json.loads(event["line"]))
        elif event["kind"] == "step_ended":
            over = time.perf_counter() - began
            assert event["status"] == "succeeded", event
    return said, over


def copied(folder: Path, mib: int) -> float:
    """Seconds of `cp` and fsync of a file that was just written."""
    source, into = folder / "cp-source", folder / "cp-into"
    piece = os.urandom(MIB)
    with source.open("wb") as file:
        for number in range(mib):
            file.write(number.to_bytes(8, "big") + piece[8:])
    began = time.perf_counter()
    subprocess.run(["cp", str(source), str(into)], check=True)
    fd = os.open(into, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    seconds = time.perf_counter() - began
    source.unlink()
    into.unlink()
    return seconds


def cpu_s(pid: int) -> float:
    """Of a process so far, its threads' too, its children's not."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def artefact(it: Fleet, pids: dict[str, int], mib: int, repeat: int) -> dict[str, float]:
    run(it, flow(it, "plain", "nothing", "w1"))
    name = flow(it, "plain", "big", "w1", mib)
    small = flow(it, "again", "big", "w1", 32)
    run(it, small)  # what is loaded once is loaded
    closes, copies = [], []
    used = {who: cpu_s(pid) for who, pid in pids.items()}
    with Memory(**pids) as memory:
        for _ in range(repeat):
            copies.append(copied(it.root, mib))
            closes.append(run(it, name)[0])
    found = {
        "artefact_mib_per_s": mib / statistics.median(closes),
        "cp_mib_per_s": mib / statistics.median(copies),
        "artefact_to_cp": statistics.median(c / a for c, a in zip(copies, closes, strict=True)),
    }
    for who in pids:
        found[f"{who}_cpu_s_per_gib"] = (cpu_s(pids[who]) - used[who]) / repeat / mib * 1024
        found[f"{who}_growth_mib"] = (memory.most[who] - memory.before[who]) / 1024
    return found


def read_back(it: Fleet, pids: dict[str, int], mib: int, repeat: int) -> dict[str, float]:
    """What `artefact` left."""
    name = flow(it, "plain", "back", "w1", model="plain-big-w1")
    used = {who: cpu_s(pid) for who, pid in pids.items()}
    with Memory(**pids) as memory:
        took = [run(it, name)[0] for _ in range(repeat)]
    found = {"back_mib_per_s": mib / statistics.median(took)}
    for who in pids:
        found[f"back_{who}_cpu_s_per_gib"] = (cpu_s(pids[who]) - used[who]) / repeat / mib * 1024
        found[f"back_{who}_growth_mib"] = (memory.most[who] - memory.before[who]) / 1024
    return found


def records(it: Fleet, count: int, repeat: int) -> dict[str, float]:
    many = flow(it, "plain", "many", "w1", count)
    single = flow(it, "plain", "single", "w1", count // 10)
    return {
        "many_per_s": count / statistics.median(run(it, many)[0] for _ in range(repeat)),
        "single_per_s": count // 10 / statistics.median(run(it, single)[0] for _ in range(repeat)),
    }


def bundle(it: Fleet, route: Route, repeat: int) -> dict[str, float]:
    run(it, flow(it, "again", "nothing", "w2"))
    names = [flow(it, f"heavy{number}", "nothing", "w2") for number in range(repeat)]
    cold, warm, shipped, again = [], [], 0, 0
    for name in names:
        before = route.came
        cold.append(run(it, name)[1])
        shipped = route.came - before
        before = route.came
        warm.append(statistics.median(run(it, name)[1] for _ in range(3)))
        again = max(again, route.came - before)
    return {
        "cold_ms": statistics.median(cold) * 1e3,
        "warm_ms": statistics.median(warm) * 1e3,
        "cold_more_ms": statistics.median(c - w for c, w in zip(cold, warm, strict=True)) * 1e3,
        "cold_shipped_mib": shipped / MIB,
        "warm_shipped_bytes": again,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--gib", type=int, default=0)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", choices=("artefact", "records", "bundle"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    mib = options.gib * 1024 or options.mib
    found: dict[str, Any] = {"load": os.getloadavg()[0], "artefact_mib": mib, "records": options.records}
    with fleet() as it:
        for name in ("plain", "again"):
            add_unit(it.root, name)
        for number in range(options.repeat):
            add_unit(it.root, f"heavy{number}", BUNDLE_MIB)
        worker = it.worker("w1", 1)
        route = Route(int(it.url.rpartition(":")[2].rstrip("/")))
        if options.only in (None, "bundle"):
            it.worker("w2", 1, "--data-plane-url", f"http://127.0.0.1:{route.port}")
            found |= bundle(it, route, options.repeat)
        if options.only in (None, "records"):
            found |= records(it, options.records, options.repeat)
        if options.only in (None, "artefact"):
            pids = {"serve": it.processes[0].pid, "worker": worker.pid}
            found |= artefact(it, pids, mib, options.repeat)
            found |= read_back(it, pids, mib, options.repeat)
    if options.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:24} {value:10.2f}" if isinstance(value, float) else f"{name:24} {value:10}")


if __name__ == "__main__":
    main()
