"""Queries over a store of many records, each measured beside a bare SQLite query of the same run.

    python bench/bench_query.py [--records 1000000] [--repeat 5] [--folder DIR] [--json]

The store is filled through its own `commit` (kept in `--folder` for the next run when given). Models have
10,000 records each, one in a hundred of which has the spec `result`. Times are the median of `--repeat` runs
in one process, compilation included, import of the CEL engine not.
"""

import argparse
import json
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from swamp_orch.query.run import prepare, run
from swamp_orch.store.interface import Batch, NewRecord, Owner, OwnerType, json_content
from swamp_orch.store.schema import FILE_NAME
from swamp_orch.store.sqlite import SqliteStore, open_store

PER_MODEL = 10_000
MODEL = "model-7"


def fill(store: SqliteStore, records: int) -> None:
    models = max(1, records // PER_MODEL)
    batch: list[NewRecord] = []
    waiting = []
    for number in range(records):
        model = f"model-{number % models}"
        batch.append(
            NewRecord(
                model_type="command/shell",
                model_id=f"id-{model}",
                model_name=model,
                name=f"record-{number // models}",
                spec="result" if (number // models) % 100 == 0 else "row",
                content=json_content(
                    {"stdout": f"line {number}", "exitCode": number % 7, "host": f"h{number % 50}"}
                ),
                tags={"type": "resource", "step": f"s{number % 10}"},
                owner=Owner(OwnerType.WORKFLOW_STEP, ref=f"id-{model}", run=f"run-{number % 1000}"),
            )
        )
        if len(batch) == 1_000:
            waiting.append(store.submit(Batch(tuple(batch))))
            batch = []
            if len(waiting) > 20:
                waiting.pop(0).result()
    if batch:
        waiting.append(store.submit(Batch(tuple(batch))))
    for future in waiting:
        future.result()


def timed(repeat: int, call: Callable[[], Any]) -> tuple[float, Any]:
    found: Any = call()  # once to warm caches, as a running orchestrator has them
    times = []
    for _ in range(repeat):
        begun = time.perf_counter()
        found = call()
        times.append(time.perf_counter() - begun)
    return statistics.median(times), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = arguments.folder or Path(temporary)
        store = open_store(folder, thread=True)
        (count,) = sqlite3.connect(folder / FILE_NAME).execute("SELECT count(*) FROM record").fetchone()
        begun = time.perf_counter()
        if not count:
            fill(store, arguments.records)
            count = arguments.records
        filled_s = time.perf_counter() - begun
        rows = list(measure(store, folder, count, arguments.repeat))
        store.close()
    if arguments.json:
        print(json.dumps({"records": count, "filledS": round(filled_s, 1), "rows": rows}, indent=2))
        return
    print(f"{count:,} records, filled in {filled_s:.0f} s; medians of {arguments.repeat}")
    print(f"{'query':58} {'found':>9} {'ms':>9} {'raw ms':>9} {'ratio':>6} {'to reach':>16}")
    for row in rows:
        times = f"{row['ms']:>9.2f} {row['rawMs']:>9.2f} {row['ratio']:>6.1f}"
        print(f"{row['query']:58} {row['found']:>9,} {times} {row['target']:>16}")


def measure(store: SqliteStore, folder: Path, count: int, repeat: int) -> Any:
    raw = sqlite3.connect(folder / FILE_NAME)

    def sql(text: str, *parameters: Any) -> Callable[[], Any]:
        return lambda: raw.execute(text, parameters).fetchall()

    model = f"modelName == {json.dumps(MODEL)}"
    of_model = "FROM record WHERE model_name = ? AND is_latest = 1 AND deleted = 0"
    every = "FROM record WHERE is_latest = 1 AND deleted = 0 ORDER BY seq"
    questions: list[tuple[str, str, str | None, Callable[[], Any], str]] = [
        (
            "model and spec",
            f'{model} && specName == "result"',
            None,
            sql(f"SELECT * {of_model} AND spec = 'result' ORDER BY seq", MODEL),
            "<= 5 ms",
        ),
        (
            "model and spec, --select attributes.stdout",
            f'{model} && specName == "result"',
            "attributes.stdout",
            sql(f"SELECT content {of_model} AND spec = 'result' ORDER BY seq", MODEL),
            "<= 5 ms",
        ),
        (
            "JSON attribute over a model's 10,000 (pushed down)",
            f'{model} && attributes.host == "h7" && attributes.exitCode == 3',
            None,
            sql(
                f"SELECT * {of_model} AND json_extract(CAST(content AS TEXT), '$.host') = 'h7'"
                " AND json_extract(CAST(content AS TEXT), '$.exitCode') = 3 ORDER BY seq",
                MODEL,
            ),
            "<= 60 ms",
        ),
        (
            "JSON attribute over a model's 10,000 (CEL only)",
            f"{model} && attributes.exitCode > 5",
            "name",
            sql(f"SELECT name, content {of_model} ORDER BY seq", MODEL),
            "<= 60 ms",
        ),
        (
            "whole scan, CEL only: one field",
            'name.endsWith("-77")',
            None,
            sql(f"SELECT name {every}"),
            ">= 100,000 rec/s",
        ),
        (
            "whole scan, CEL only: three fields",
            'name.endsWith("-77") && (specName != "row" || version > 1)',
            None,
            sql(f"SELECT spec, version, name {every}"),
            ">= 100,000 rec/s",
        ),
        (
            "whole scan, CEL on an attribute of every record",
            'attributes.host.endsWith("9") && attributes.exitCode > 7',
            None,
            sql(f"SELECT content {every}"),
            "",
        ),
    ]
    for name, predicate, select, bare, target in questions:
        whole = name.startswith("whole")
        times = 2 if whole and count > 100_000 else repeat
        seconds, answer = timed(times, lambda p=predicate, s=select: run(store, prepare(p, s)))
        raw_seconds, _ = timed(times, bare)
        assert not answer.skipped, answer.reason
        yield {
            "query": name + (f": {count / seconds:,.0f} rec/s" if whole else ""),
            "predicate": predicate,
            "found": len(answer.results),
            "ms": round(seconds * 1000, 3),
            "rawMs": round(raw_seconds * 1000, 3),
            "ratio": round(seconds / raw_seconds, 2) if raw_seconds else 0,
            "target": target,
        }
    raw.close()


if __name__ == "__main__":
    main()
