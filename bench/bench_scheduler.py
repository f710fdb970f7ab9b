"""The scheduler alone: cost of placing 10,000 steps over 1,000 workers, and of one event while nothing is
placeable.

Bounds to hold: 50 µs a step; 1 ms an event. Run: `python bench/bench_scheduler.py` (`--json` for one JSON
object).
"""

import json
import sys
import time
from collections.abc import Callable

from swamp_orch.core.pool import PoolWorker
from swamp_orch.core.scheduler import Demand, Scheduler

WORKERS, STEPS = 1_000, 10_000


def worker(number: int, capacity: int = 10) -> PoolWorker:
    labels = {"zone": f"z{number % 10}", "os": "linux"}
    return PoolWorker(f"w{number:04}", f"i{number}", labels, "linux", "x86_64", capacity)


def clock(work: Callable[[], object], times: int = 1) -> float:
    """Seconds of this process per repetition: a core waits for nothing, and others on the machine shall not count."""
    began = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - began) / times


def bulk(zones: int) -> float:
    scheduler = Scheduler()
    for number in range(WORKERS):
        scheduler.worker_changed(worker(number), 0.0)

    def everything() -> None:
        for number in range(STEPS):
            labels = {"os": "linux"} if zones == 1 else {"zone": f"z{number % zones}"}
            scheduler.add(Demand(f"d{number}", queued_at=number, labels=labels))
        assert len(scheduler.take_placements(0)) == STEPS

    return clock(everything) / STEPS


def flow() -> float:
    """Steady state: every worker full, 10,000 waiting, one slot freed and filled at a time."""
    scheduler = Scheduler()
    for number in range(WORKERS):
        scheduler.worker_changed(worker(number, 1), 0.0)
    for number in range(WORKERS + STEPS):
        scheduler.add(Demand(f"d{number}", queued_at=number, labels={"zone": f"z{number % 10}"}))
    running = [one.demand for one in scheduler.take_placements(0)]
    moved = 0

    def one_ends() -> None:
        nonlocal moved
        scheduler.release(running[moved], 1.0)
        running.extend(one.demand for one in scheduler.take_placements(0))
        moved += 1

    return clock(one_ends, STEPS)


def blocked() -> dict[str, float]:
    """10,000 waiting for 20 different things nobody offers: what one event costs."""
    scheduler = Scheduler()
    for number in range(WORKERS):
        scheduler.worker_changed(worker(number), 0.0)
    for number in range(STEPS):
        scheduler.add(Demand(f"d{number}", queued_at=number, labels={"gpu": f"g{number % 20}"}))
    scheduler.take_placements(0)
    count = 0

    def seen() -> None:
        nonlocal count
        scheduler.worker_changed(worker(count % WORKERS), 1.0)
        assert not scheduler.take_placements(0)
        count += 1

    def asked() -> None:
        nonlocal count
        scheduler.add(Demand(f"e{count}", queued_at=count, labels={"gpu": f"g{count % 20}"}))
        assert not scheduler.take_placements(0)
        count += 1

    def asked_anew() -> None:
        nonlocal count
        scheduler.add(Demand(f"f{count}", queued_at=count, labels={"gpu": f"new{count}"}))
        assert not scheduler.take_placements(0)
        count += 1

    return {
        "worker seen": clock(seen, 500),
        "step asks the same": clock(asked, 500),
        "step asks anew": clock(asked_anew, 200),
    }


def main() -> None:
    events = blocked()
    result = {
        "place_us_per_step_one_requirement": bulk(1) * 1e6,
        "place_us_per_step_ten_requirements": bulk(10) * 1e6,
        "refill_us_per_step": flow() * 1e6,
        **{f"blocked_event_us ({name})": cost * 1e6 for name, cost in events.items()},
    }
    if "--json" in sys.argv:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:50} {value:10.1f}")


if __name__ == "__main__":
    main()
