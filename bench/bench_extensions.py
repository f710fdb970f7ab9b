"""Extensions: what 50 units cost when nothing is known of them, when nothing changed, and when one did; and what they cost `worker list`.

    python bench/bench_extensions.py [--units 50] [--repeat 7] [--json]

Commands are whole processes, as somebody types them, in a temporary repository; the goal is that `model type search` with unchanged
units costs little more than `worker list`, which looks at no unit. Medians of `--repeat` runs; the cold scan is one run. Beside the time on
the clock stands the processor's (`cpu`), which says more where others work on the same machine.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from swamp_orch.definitions.repository import find, init
from swamp_orch.definitions.types import types_of

ROOT = Path(__file__).resolve().parent.parent
UNIT = '''\
import attrs
from swamp_worker.sdk import Context, about, method, model, resource


@attrs.frozen
class Row:
    name: str


@attrs.frozen
class Look:
    names: list[str] = attrs.field(metadata=about("What to look at"))


@model("@bench/unit{number}", version="2026.02.09.1")
class Unit:
    """A unit."""

    row = resource(Row, "A row")

    @method
    async def look(self, context: Context, arguments: Look) -> None:
        """Look."""
'''


def seconds(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--units", type=int, default=50)
    options.add_argument("--repeat", type=int, default=7)
    options.add_argument("--json", action="store_true")
    given = options.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="swamp-bench-") as folder:
        root = Path(folder, "repo")
        init(root)

        def swamp(*words: str) -> None:
            subprocess.run(
                [sys.executable, "-m", "swamp_orch.cli", *words],
                cwd=root,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.DEVNULL,
                check=True,
            )

        def median(name: str, *words: str) -> None:
            clock, cpu = [], []
            for _ in range(given.repeat):
                before = cpu_of_children()
                clock.append(seconds(lambda: swamp(*words)))
                cpu.append(cpu_of_children() - before)
            figures[f"{name}_s"] = statistics.median(clock)
            figures[f"{name}_cpu_s"] = statistics.median(cpu)

        swamp("worker", "list")
        median("worker_list_without_units", "worker", "list")
        median("type_search_without_units", "model", "type", "search")
        for number in range(given.units):
            path = root / "extensions/models" / f"unit{number}.py"
            path.write_text(UNIT.format(number=number))
        figures["type_search_cold_s"] = seconds(lambda: swamp("model", "type", "search"))
        time.sleep(2.5)  # file times have settled: from now on a look reads no source
        swamp("model", "type", "search")
        median("worker_list", "worker", "list")
        median("type_search_warm", "model", "type", "search")
        (root / "extensions/models/unit0.py").write_text(UNIT.format(number=0) + "\n# changed\n")
        figures["type_search_one_changed_s"] = seconds(lambda: swamp("model", "type", "search"))
        types = types_of(find(root))
        types.get("@bench/unit1")
        looks = [seconds(lambda: types.get("@bench/unit1")) for _ in range(200)]
        figures["look_in_a_process_that_stays_ms"] = statistics.median(looks) * 1000
        figures["cold_ms_each"] = figures["type_search_cold_s"] / given.units * 1000
        listed = figures["worker_list_cpu_s"]
        figures["warm_to_worker_list_cpu"] = figures["type_search_warm_cpu_s"] / listed
        figures["worker_list_with_to_without_units_cpu"] = listed / figures["worker_list_without_units_cpu_s"]
    if given.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:40} {value:8.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
