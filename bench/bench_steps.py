"""Latency and rate of placed no-op shell steps, over the real sockets, against captured shells of the same run.

    python bench/bench_steps.py [--latency-steps N] [--python-steps N] [--rate-steps N ...] [--json]

Latency: a chain of steps on one worker; from the instant the client sees one step's durable end to the next one's. That is:
ready -> granted (durable) -> sent -> executed -> reported -> committed with its outputs -> visible to the client. The same for a
method in Python that does nothing, against a bare child of a forkserver with the same modules.
Rate: N independent steps, one worker with two slots, from submit to the last durable end, against a bare trio script that runs
two captured shells at a time. Absolute numbers belong to this machine; the ratios are what is compared.
"""

import argparse
import itertools
import json
import multiprocessing
import sys
import time

import trio
from fleet import Fleet, fleet, tree_pss_kib

NOTHING = """
from swamp_worker.sdk import Context, method, model

@model("bench/nothing", version="2026.1.1")
class Nothing:
    @method
    async def nothing(self, context: Context[None]) -> None:
        pass
"""


async def _shells(count: int) -> list[float]:
    spans = []
    for _ in range(count):
        began = time.perf_counter()
        await trio.run_process(["sh", "-c", "true"], capture_stdout=True)
        spans.append(time.perf_counter() - began)
    return spans


async def _pairs(count: int) -> float:
    async def half() -> None:
        for _ in range(count // 2):
            await trio.run_process(["sh", "-c", "true"], capture_stdout=True)

    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(half)
        nursery.start_soon(half)
    return count / (time.perf_counter() - began)


def percentile(spans: list[float], share: float) -> float:
    ordered = sorted(spans)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def _children(count: int) -> list[float]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trio", "attrs", "swamp_worker.execution.runner.main"])
    vars(sys.modules["__main__"]).pop("__file__", None)  # else every bare child would import this file again
    spans = []
    for _ in range(count):
        began = time.perf_counter()
        child = context.Process(target=int)
        child.start()
        child.join()
        spans.append(time.perf_counter() - began)
    return spans


def _chain(it: Fleet, name: str, steps: int) -> list[float]:
    """Seconds between the durable ends of a chain's steps, without the first twenty."""
    ends = [
        time.perf_counter()
        for event in it.run(name)
        if event["kind"] == "step_ended" and event["status"] == "succeeded"
    ]
    assert len(ends) == steps, f"only {len(ends)} steps succeeded"
    return [later - earlier for earlier, later in itertools.pairwise(ends[20:])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latency-steps", type=int, default=500)
    parser.add_argument("--python-steps", type=int, default=200)
    parser.add_argument("--rate-steps", type=int, nargs="*", default=[200, 2_000, 10_000])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found: dict[str, float] = {}
    with fleet() as it:
        serve = it.processes[0]
        worker = it.worker("w1", 2)
        time.sleep(1)
        found["serve_pss_mib"] = tree_pss_kib(serve.pid) / 1024
        found["worker_pss_mib"] = tree_pss_kib(worker.pid) / 1024
        trio.run(_shells, 50)
        before = trio.run(_shells, 300)
        it.chain("chain", options.latency_steps, "w1")
        spans = _chain(it, "chain", options.latency_steps)
        shells = before + trio.run(_shells, 300)
        base = percentile(shells, 0.5)
        found |= {
            "shell_p50_ms": base * 1e3,
            "step_p50_ms": percentile(spans, 0.5) * 1e3,
            "step_p99_ms": percentile(spans, 0.99) * 1e3,
            "step_p50_ratio": percentile(spans, 0.5) / base,
            "step_p99_ratio": percentile(spans, 0.99) / base,
        }
        (it.root / "extensions" / "models").mkdir(parents=True, exist_ok=True)
        (it.root / "extensions" / "models" / "bench_nothing.py").write_text(NOTHING)
        it.session.call("model.create", type="bench/nothing", name="nothing", arguments={})
        it.chain("python", options.python_steps, "w1", "nothing", "nothing")
        children = _children(150)
        python = percentile(_chain(it, "python", options.python_steps), 0.5)
        child = percentile((children + _children(150))[10:], 0.5)
        found |= {
            "child_p50_ms": child * 1e3,
            "python_p50_ms": python * 1e3,
            "python_p50_ratio": python / child,
        }
        found["bare_rate"] = trio.run(_pairs, 1_000)
        it.many("many", "w1")
        for count in options.rate_steps:
            began = time.perf_counter()
            last = [
                event for event in it.run("many", numbers=list(range(count))) if event["kind"] == "run_ended"
            ][-1]
            took = time.perf_counter() - began
            assert last["counts"]["succeeded"] == count, last["counts"]
            found[f"rate_{count}"] = count / took
        found["bare_rate"] = (found["bare_rate"] + trio.run(_pairs, 1_000)) / 2
        for count in options.rate_steps:
            found[f"rate_{count}_ratio"] = found[f"rate_{count}"] / found["bare_rate"]
        time.sleep(2)
        found["serve_pss_after_mib"] = tree_pss_kib(serve.pid) / 1024
        found["worker_pss_after_mib"] = tree_pss_kib(worker.pid) / 1024
    if options.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:24} {value:10.2f}")


if __name__ == "__main__":
    main()
