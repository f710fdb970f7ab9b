"""A no-op Python method through the executor against a bare forkserver child, interleaved in the same run.

    python bench/bench_python.py [--steps N] [--json]

The bare child is `multiprocessing`'s forkserver with the same modules preloaded: start a process that does nothing, wait for its end.
The executor does more: a fresh working directory, the step's environment, registration with the keeper, a session and a group, two
pipes that become the log, a channel, the extension's module, arguments, the count of what is left. Also measured: a method that
writes one resource (to an `Access` in memory), a plain method, and a cold runner, as extensions with dependencies get it. Rounds
alternate, so that all meet the same noise.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from swamp_proto.messages.dispatch import Dispatch, LogBlock, Outcome, Place, Program
from swamp_worker.execution.executor import StepExecutor
from swamp_worker.execution.interface import Control
from swamp_worker.execution.keeper import open_keeper
from swamp_worker.sdk.memory import MemoryAccess

ROUNDS = 20
CODE = """
import attrs
from swamp_worker.sdk import Context, PlainContext, method, model, resource

@attrs.frozen
class Thing:
    name: str

@model("bench/python", version="2026.1.1")
class Bench:
    thing = resource(Thing)

    @method
    async def nothing(self, context: Context[None]) -> None:
        pass

    @method
    def plain(self, context: PlainContext[None]) -> None:
        pass

    @method
    async def write(self, context: Context[None]) -> None:
        await context.write_resource(self.thing, Thing("x"))
"""


class Nowhere:
    async def write(self, first: int, blocks: tuple[LogBlock, ...]) -> None:
        raise AssertionError(f"a no-op prints nothing: {blocks}")


class Folders:
    def __init__(self, folder: Path) -> None:
        self.folder_ = folder
        self.needs: Path | None = None

    async def folder(self, dispatch: Dispatch, sha256: str) -> Path:
        return self.folder_

    async def dependencies(
        self, dispatch: Dispatch, folder: Path, say: Callable[[str], object]
    ) -> Path | None:
        return self.needs

    def release(self, dispatch: str) -> None:
        pass


def dispatch(method: str) -> Dispatch:
    return Dispatch(
        dispatch=str(uuid.uuid4()),
        fence=1,
        attempt=1,
        attempt_key="bench",
        place=Place("run", "bench", "wf", "job", "step"),
        model_type="bench/python",
        model_name="no-op",
        model_id="model",
        model_version=1,
        model_tags={},
        method=method,
        program=Program("bundle", "bench_extension.py:Bench", (), ()),
        global_arguments={},
        arguments={},
        environment={f"VARIABLE_{number}": "a value of some length" for number in range(30)},
        bindings={},
        display=None,
        secrets=(),
        timeout_s=None,
        credential="",
    )


async def measure(steps: int) -> dict[str, float]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trio", "attrs", "swamp_worker.execution.runner.main"])
    vars(sys.modules["__main__"]).pop("__file__", None)  # else every bare child would import this file again
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "code"
        root.mkdir()
        (root / "bench_extension.py").write_text(CODE)
        folders = Folders(root)
        async with open_keeper(Path(folder), "bench") as keeper:
            executor = StepExecutor(Path(folder) / "work", keeper, access=MemoryAccess(), bundles=folders)

            async def bare() -> None:
                process = context.Process(target=os.getpid)
                process.start()
                process.join()

            def step(method: str, cold: bool = False) -> Callable[[], Awaitable[None]]:
                async def run() -> None:
                    folders.needs = root if cold else None
                    finished = await executor.execute(dispatch(method), Nowhere(), Control())
                    assert finished.outcome is Outcome.SUCCEEDED, finished.error

                return run

            kinds = {
                "bare": (bare, 1.0),
                "async": (step("nothing"), 1.0),
                "plain": (step("plain"), 1.0),
                "write": (step("write"), 1.0),
                "cold": (step("nothing", cold=True), 0.1),
            }
            for what, _ in kinds.values():
                for _ in range(3):
                    await what()
            walls: dict[str, list[float]] = {name: [] for name in kinds}
            for _ in range(ROUNDS):
                for name, (what, share) in kinds.items():
                    for _ in range(max(1, int(steps * share) // ROUNDS)):
                        began = time.perf_counter()
                        await what()
                        walls[name].append(time.perf_counter() - began)
    result = {}
    for name, found in walls.items():
        found.sort()
        result[f"{name}_p50_ms"] = found[len(found) // 2] * 1e3
        result[f"{name}_p90_ms"] = found[int(len(found) * 0.9)] * 1e3
    result["p50_ratio"] = result["async_p50_ms"] / result["bare_p50_ms"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = trio.run(measure, options.steps)
    if options.json:
        print(json.dumps(found))
        return
    titles = {
        "bare": "bare forkserver child",
        "async": "no-op async method",
        "plain": "no-op plain method",
        "write": "one resource written",
        "cold": "no-op, cold runner",
    }
    print(f"{'':26}{'p50 ms':>9}{'p90 ms':>9}")
    for name, title in titles.items():
        print(f"{title:26}{found[f'{name}_p50_ms']:9.2f}{found[f'{name}_p90_ms']:9.2f}")
    print(f"{'ratio, async to bare':26}{found['p50_ratio']:9.2f}")


if __name__ == "__main__":
    main()
