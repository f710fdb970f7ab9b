"""The lease core alone: a thousand leases suspended at start and resolved, and the cost of a short step's life.

Bound to hold: 1,000 suspended leases resolved in under 2 s (the commits of the store come on top). Run: `python
bench/bench_leases.py` (`--json` for one JSON object).
"""

import json
import sys
import time
from typing import Any

from swamp_orch.core import leases as core
from swamp_orch.core.lease_values import AdmitFinish, Lease, PersistLease, Phase
from swamp_proto.messages.dispatch import Outcome

NOON = 1_781_519_657_833


def lease(number: int, phase: Phase = Phase.GRANTED) -> Lease:
    return Lease(
        f"d{number}", 1, 1, "run", "wf", "job", f"s{number}", "command/shell", "model", "execute",
        worker=f"w{number % 50}", instance=f"i{number % 50}", link=1, granted_ms=NOON, phase=phase, version=1,
    )  # fmt: skip


def told(leases: core.Leases, event: Any, now_s: float) -> int:
    """Tell it, commit at once; answers how many commits that took."""
    commits, effects = 0, list(leases.handle(event, now_s, NOON))
    while effects:
        effect = effects.pop()
        if isinstance(effect, PersistLease | AdmitFinish):
            commits += 1
            effects += leases.handle(core.Committed(effect.lease.dispatch), now_s, NOON)
    return commits


def boot(count: int = 1_000) -> float:
    leases = core.Leases()
    began = time.perf_counter()
    for number in range(count):
        told(leases, core.LeaseFound(lease(number, Phase.RUNNING)), 0.0)
    for worker in range(25):
        held = tuple(core.Holding(f"d{number}", 1) for number in range(worker, count, 50))
        told(leases, core.WorkerReturned(f"w{worker}", f"i{worker}", 2, held), 1.0)
    told(leases, core.DeadlinePassed(), 100.0)
    took = time.perf_counter() - began
    assert len(leases) == count // 2
    return took


def life(count: int = 5_000) -> tuple[float, float]:
    """Microseconds and commits beside the grant of one short step."""
    leases = core.Leases()
    commits = 0
    began = time.perf_counter()
    for number in range(count):
        told(leases, core.LeaseGranted(lease(number)), 0.0)
        told(leases, core.Accepted(f"d{number}"), 0.0)
        commits += told(leases, core.FinishArrived(f"d{number}", 1, Outcome.SUCCEEDED, 0), 0.0)
    return (time.perf_counter() - began) / count * 1e6, commits / count


def main() -> None:
    cost, commits = life()
    result = {"boot_s_1000_leases": boot(), "life_us_per_step": cost, "commits_per_step_after_grant": commits}
    if "--json" in sys.argv:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:35} {value:10.3f}")


if __name__ == "__main__":
    main()
