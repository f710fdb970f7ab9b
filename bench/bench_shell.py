"""A no-op shell step through the executor against a captured shell of trio, interleaved in the same run.

    python bench/bench_shell.py [--steps N] [--json]

Both start `sh -c true` and read its output to the end. The executor does more: a fresh working directory, the step's environment,
registration with the keeper, its own session and group, the count of what is left, and the result record. Wall time is what a
step waits; CPU time is what this process spends (the child's is not in it). Rounds alternate, so that both meet the same noise.
"""

import argparse
import json
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from swamp_proto.messages.dispatch import Dispatch, LogBlock, Outcome, Place
from swamp_worker.execution.executor import StepExecutor
from swamp_worker.execution.interface import Control
from swamp_worker.execution.keeper import open_keeper

ROUNDS = 20


class Nowhere:
    async def write(self, first: int, blocks: tuple[LogBlock, ...]) -> None:
        raise AssertionError("a no-op prints nothing")


def no_op() -> Dispatch:
    return Dispatch(
        dispatch=str(uuid.uuid4()),
        fence=1,
        attempt=1,
        attempt_key="bench",
        place=Place("run", "bench", "wf", "job", "step"),
        model_type="command/shell",
        model_name="no-op",
        model_id="model",
        model_version=1,
        model_tags={},
        method="execute",
        program=None,
        global_arguments={},
        arguments={"run": "true"},
        environment={f"VARIABLE_{number}": "a value of some length" for number in range(30)},
        bindings={},
        display=None,
        secrets=(),
        timeout_s=None,
        credential="",
    )


async def measure(steps: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        async with open_keeper(Path(folder), "bench") as keeper:
            executor = StepExecutor(Path(folder) / "work", keeper)

            async def bare() -> None:
                await trio.run_process(["sh", "-c", "true"], capture_stdout=True)

            async def step() -> None:
                finished = await executor.execute(no_op(), Nowhere(), Control())
                assert finished.outcome is Outcome.SUCCEEDED

            async def spans(what: Callable[[], Awaitable[None]], count: int) -> tuple[list[float], float]:
                found = []
                cpu = time.process_time()
                for _ in range(count):
                    began = time.perf_counter()
                    await what()
                    found.append(time.perf_counter() - began)
                return found, time.process_time() - cpu

            for warm in (bare, step):
                await spans(warm, 30)
            walls: dict[str, list[float]] = {"bare": [], "step": []}
            cpus = {"bare": 0.0, "step": 0.0}
            for _ in range(ROUNDS):
                for name, what in (("bare", bare), ("step", step)):
                    found, cpu = await spans(what, max(1, steps // ROUNDS))
                    walls[name] += found
                    cpus[name] += cpu
    result = {}
    for name, found in walls.items():
        found.sort()
        result[f"{name}_p50_ms"] = found[len(found) // 2] * 1e3
        result[f"{name}_p99_ms"] = found[int(len(found) * 0.99)] * 1e3
        result[f"{name}_cpu_ms"] = cpus[name] / len(found) * 1e3
    for what in ("p50", "p99", "cpu"):
        result[f"{what}_ratio"] = result[f"step_{what}_ms"] / result[f"bare_{what}_ms"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = trio.run(measure, options.steps)
    if options.json:
        print(json.dumps(found))
        return
    print(f"{'':24}{'p50 ms':>9}{'p99 ms':>9}{'own CPU ms':>12}")
    for name, title in (("bare", "trio.run_process"), ("step", "executor.execute")):
        print(
            f"{title:24}{found[f'{name}_p50_ms']:9.3f}{found[f'{name}_p99_ms']:9.3f}{found[f'{name}_cpu_ms']:12.3f}"
        )
    print(f"{'ratio':24}{found['p50_ratio']:9.2f}{found['p99_ratio']:9.2f}{found['cpu_ratio']:12.2f}")


if __name__ == "__main__":
    main()
