"""Latency and rate of placed no-op shell steps, over the real sockets, against captured shells of the same run.

    python bench/bench_steps.py [--latency-steps N] [--rate-steps N ...] [--json]

Latency: a chain of steps on one worker; from the instant the client sees one step's durable end to the next one's. That is:
ready -> granted (durable) -> sent -> executed -> reported -> committed with its outputs -> visible to the client.
Rate: N independent steps, one worker with two slots, from submit to the last durable end, against a bare trio script that runs
two captured shells at a time. Absolute numbers belong to this machine; the ratios are what is compared.
"""

import argparse
import itertools
import json
import time

import trio
from fleet import fleet, tree_pss_kib


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latency-steps", type=int, default=500)
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
        ends = [
            time.perf_counter()
            for event in it.run("chain")
            if event["kind"] == "step_ended" and event["status"] == "succeeded"
        ]
        assert len(ends) == options.latency_steps, f"only {len(ends)} steps succeeded"
        spans = [later - earlier for earlier, later in itertools.pairwise(ends[20:])]
        shells = before + trio.run(_shells, 300)
        base = percentile(shells, 0.5)
        found |= {
            "shell_p50_ms": base * 1e3,
            "step_p50_ms": percentile(spans, 0.5) * 1e3,
            "step_p99_ms": percentile(spans, 0.99) * 1e3,
            "step_p50_ratio": percentile(spans, 0.5) / base,
            "step_p99_ratio": percentile(spans, 0.99) / base,
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
