"""The store: what a durable commit costs beside a bare fsync, what many writers gain, what questions cost among many records.

    python bench/bench_store.py [--json] [--quick] [--records N] [--folder F]

Every number stands beside something measured in the same run on the same folder, because disks and machines differ: the ratios
are the result. `--quick` asks among 50,000 records and takes a few seconds; the default is 1,000,000.
"""

import argparse
import gc
import json
import os
import random
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from swamp_orch.store.interface import Batch, Comparison, NewRecord, Selection, Term, json_content
from swamp_orch.store.rows import CREATED, ID, SEQ, VERSION, Ids, to_row
from swamp_orch.store.schema import FILE_NAME, RECORD_COLUMNS
from swamp_orch.store.sqlite import SqliteStore, open_store
from swamp_orch.store.trio_store import commit

MODELS = 100
SPECS = 100
WRITERS = 64
Seconds = float


def quantile(times: list[Seconds], at: float) -> Seconds:
    return sorted(times)[min(len(times) - 1, int(len(times) * at))]


def record(name: str, model: int = 0, spec: int = 0, value: int = 0) -> NewRecord:
    document = {
        "state": "active" if value % 97 == 0 else "completed",
        "leaseId": f"{value:032x}",
        "workerName": f"worker-{value % 50}",
        "hasWrites": value % 2 == 0,
        "exitCode": value % 7,
        "stdout": "executed on a worker",
        "durationMs": value / 8,
    }
    return NewRecord(
        "command/shell",
        f"model-{model}",
        f"model-{model}",
        name,
        f"spec-{spec}",
        json_content(document),
        tags={"type": "resource", "specName": f"spec-{spec}"},
        expect=0,
    )


@contextmanager
def fresh(parent: Path, **options: Any) -> Iterator[SqliteStore]:
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        store = open_store(Path(folder) / "data", **options)
        try:
            yield store
        finally:
            store.close()


def bare_fsync(parent: Path, rounds: int) -> list[Seconds]:
    """Appending a log page's worth and syncing, as a database without any work of its own would."""
    times = []
    with tempfile.NamedTemporaryFile(dir=parent) as file:
        for _ in range(rounds):
            started = time.perf_counter()
            os.write(file.fileno(), b"x" * 24_000)
            os.fsync(file.fileno())
            times.append(time.perf_counter() - started)
    return times


def alone(store: SqliteStore, rounds: int, records: int) -> list[Seconds]:
    """One commit at a time, submit to answer."""
    times = []
    for n in range(rounds):
        batch = Batch(tuple(record(f"alone-{rounds}-{n}-{k}", value=n) for k in range(records)))
        started = time.perf_counter()
        store.commit(batch)
        times.append(time.perf_counter() - started)
    return times


def writers_trio(store: SqliteStore, writers: int, each: int) -> Seconds:
    """Seconds for a number of trio tasks to commit `each` records, one after the other."""

    ready = [
        [Batch((record(f"trio-{writers}-{each}-{w}-{n}"),)) for n in range(each)] for w in range(writers)
    ]

    gc.freeze()  # what waits to be written is not the store's

    async def one(writer: int) -> None:
        for batch in ready[writer]:
            await commit(store, batch)

    async def all_of_them() -> Seconds:
        started = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for writer in range(writers):
                nursery.start_soon(one, writer)
        return time.perf_counter() - started

    return trio.run(all_of_them)


def writers_threads(store: SqliteStore, writers: int, each: int) -> Seconds:
    """The same with threads."""

    ready = [
        [Batch((record(f"threads-{writers}-{each}-{w}-{n}"),)) for n in range(each)] for w in range(writers)
    ]

    gc.freeze()

    def one(writer: int) -> None:
        for batch in ready[writer]:
            store.commit(batch)

    threads = [threading.Thread(target=one, args=(writer,)) for writer in range(writers)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started


def commits(parent: Path, quick: bool) -> dict[str, float]:
    rounds = 300 if quick else 1_500
    found: dict[str, float] = {}
    with fresh(parent) as store:
        alone(store, 50, 3)
        syncs = bare_fsync(parent, rounds)
        times = alone(store, rounds, 3)
        syncs += bare_fsync(parent, rounds)
        sync, lone = statistics.median(syncs), statistics.median(times)
        found["bare fsync µs"] = sync * 1e6
        found["lone commit of 3 records µs"] = lone * 1e6
        found["lone commit p99 µs"] = quantile(times, 0.99) * 1e6
        found["lone commit / bare fsync"] = lone / sync
        found["lone commit beside the fsync µs"] = (lone - sync) * 1e6
        count = 2_000 if quick else 10_000
        batches = [
            Batch(tuple(record(f"many-{n}-{k}", value=n) for k in range(4))) for n in range(count // 4)
        ]
        started = time.perf_counter()
        for future in [store.submit(batch) for batch in batches]:
            future.result()
        found["submitted together, µs a record"] = (time.perf_counter() - started) / count * 1e6
    each = 20 if quick else 60
    for name, run in (("tasks", writers_trio), ("threads", writers_threads)):
        with fresh(parent) as store:
            run(store, WRITERS, 5)
            single = 10 * each / run(store, 1, 10 * each)
            many = WRITERS * each / run(store, WRITERS, each)
        found[f"1 writer ({name}) commits/s"] = single
        found[f"{WRITERS} writers ({name}) commits/s"] = many
        found[f"{WRITERS} writers / 1 ({name})"] = many / single
    return found


def fill(store: SqliteStore, file: Path, count: int) -> Seconds:
    """Many records by the shortest way: the same rows, one transaction a hundred thousand."""
    luck = random.Random(1)
    started = time.perf_counter()
    db = sqlite3.connect(file, isolation_level=None)
    db.execute("PRAGMA synchronous = OFF")
    insert = f"INSERT INTO record VALUES ({', '.join('?' * len(RECORD_COLUMNS))})"

    def rows(first: int, last: int) -> Iterator[list[Any]]:
        for seq, id_ in zip(range(first, last), Ids().make(last - first, 1_700_000_000_000), strict=True):
            new = record(f"r{seq}", seq % MODELS, luck.randrange(SPECS), seq)
            row = to_row(new, new.content)
            row[SEQ], row[ID], row[VERSION], row[CREATED] = seq, id_, 1, 1_700_000_000_000 + seq
            yield row

    for first in range(1, count + 1, 100_000):
        db.execute("BEGIN")
        db.executemany(insert, rows(first, min(first + 100_000, count + 1)))
        db.execute("COMMIT")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    return time.perf_counter() - started


def timed(question: Callable[[], int], rounds: int = 7) -> tuple[Seconds, int]:
    """The median of a few rounds after the first, and what was found."""
    count = question()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        question()
        times.append(time.perf_counter() - started)
    return statistics.median(times), count


def questions(parent: Path, count: int) -> dict[str, float]:
    found: dict[str, float] = {"records": count}
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        store = open_store(Path(folder), thread=False)
        file = Path(folder) / FILE_NAME
        found["filling µs a record"] = fill(store, file, count) / count * 1e6
        found["bytes a record"] = file.stat().st_size / count

        def eq(field: str, value: Any) -> Term:
            return Term(field, Comparison.EQ, (value,))

        def ask(
            *terms: Term, fields: tuple[str, ...] = ("id", "name", "modelName", "attributes", "tags")
        ) -> int:
            return sum(1 for _ in store.scan(Selection(terms), fields))

        raw = sqlite3.connect(file)
        one, _ = timed(lambda: len(raw.execute("SELECT 1").fetchall()), 50)
        found["SELECT 1 µs"] = one * 1e6
        model = eq("modelName", "model-7")
        for label, terms in {
            "model and spec": (model, eq("specName", "spec-5")),
            "model and text attribute": (model, eq("attributes.state", "active")),
            "model and integer attribute": (model, eq("attributes.exitCode", 3)),
            "model and float attribute": (model, Term("attributes.durationMs", Comparison.GT, (1.25,))),
            "model": (model,),
        }.items():
            seconds, rows = timed(lambda terms=terms: ask(*terms))  # type: ignore[misc]
            found[f"{label} ms"] = seconds * 1e3
            found[f"{label} rows"] = rows
        scan = "SELECT id, name, model_name, tags, content FROM record ORDER BY seq"

        def raw_scan() -> int:
            return sum(1 for _ in raw.execute(scan))

        bare, _ = timed(raw_scan, 2)
        full, rows = timed(ask, 2)
        parsed, _ = timed(
            lambda: sum(len(json.loads(row[0])) for row in store.scan(Selection(), ("attributes",))), 2
        )
        objects, _ = timed(lambda: sum(1 for _ in store.select(Selection())), 1)
        found["full scan records/s"] = rows / full
        found["full scan, JSON parsed, records/s"] = rows / parsed
        found["full scan as Record objects, records/s"] = rows / objects
        found["full scan / bare sqlite3 scan"] = full / bare
        raw.close()
        store.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--records", type=int)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    given = parser.parse_args()
    found = commits(given.folder, given.quick)
    found |= questions(given.folder, given.records or (50_000 if given.quick else 1_000_000))
    if given.json:
        json.dump(
            {name: round(value, 3) for name, value in found.items()}, sys.stdout, ensure_ascii=False, indent=2
        )
        print()
    else:
        for name, value in found.items():
            print(f"{name:<45}{value:>14,.1f}")


if __name__ == "__main__":
    main()
