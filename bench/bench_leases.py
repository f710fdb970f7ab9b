"""A thousand leases suspended at start and resolved, in the lease core alone and with engine and store; and the cost of a short
step's life in the core.

Bound to hold: 1,000 leases that the last process left are suspended, durably, in under 2 s after a start. Run: `python
bench/bench_leases.py` (`--json` for one JSON object).
"""

import json
import sys
import tempfile
import time
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import trio

from swamp_orch.api.application import Application
from swamp_orch.core import leases as core
from swamp_orch.core.lease_values import AdmitFinish, Lease, PersistLease, Phase
from swamp_orch.definitions.repository import find, init
from swamp_orch.engine import records
from swamp_orch.engine.assembly import assemble
from swamp_orch.engine.flights import record_of
from swamp_orch.engine.owners import process_identity
from swamp_orch.serve import wall_ms
from swamp_orch.store.bookkeeping import iso
from swamp_orch.store.interface import Batch
from swamp_orch.store.sqlite import open_store
from swamp_orch.tokens.records import worker_record
from swamp_orch.tokens.workers import WorkerState
from swamp_proto.limits import Tempo
from swamp_proto.messages.dispatch import Outcome
from swamp_proto.version import PROTOCOL_VERSION, SWAMP_VERSION

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
    began = time.process_time()
    for number in range(count):
        told(leases, core.LeaseFound(lease(number, Phase.RUNNING)), 0.0)
    for worker in range(25):
        held = tuple(core.Holding(f"d{number}", 1) for number in range(worker, count, 50))
        told(leases, core.WorkerReturned(f"w{worker}", f"i{worker}", 2, held), 1.0)
    told(leases, core.DeadlinePassed(), 100.0)
    took = time.process_time() - began
    assert len(leases) == count // 2
    return took


def life(count: int = 5_000) -> tuple[float, float]:
    """Microseconds and commits beside the grant of one short step."""
    leases = core.Leases()
    commits = 0
    began = time.process_time()
    for number in range(count):
        told(leases, core.LeaseGranted(lease(number)), 0.0)
        told(leases, core.Accepted(f"d{number}"), 0.0)
        commits += told(leases, core.FinishArrived(f"d{number}", 1, Outcome.SUCCEEDED, 0), 0.0)
    return (time.process_time() - began) / count * 1e6, commits / count


class Silent:
    """A reporter of nothing but faults."""

    def info(self, event: str, **fields: Any) -> None:
        return

    def warning(self, event: str, **fields: Any) -> None:
        return

    def fault(self, event: str, error: BaseException, **fields: Any) -> None:
        raise error


RUNS, STEPS = 40, 25


def left_behind(root: Path) -> None:
    """What a killed orchestrator leaves: 40 runs at work, each with 25 placed steps under leases of 25 workers."""
    init(root)
    repository = find(root)
    model = str(uuid.uuid4())
    folder = repository.models / "command" / "shell"
    folder.mkdir(parents=True)
    (folder / "m.yaml").write_text(
        f"type: command/shell\nid: {model}\nname: m\nmethods: {{execute: {{arguments: {{run: 'true'}}}}}}\n"
    )
    names = [f"s{number}" for number in range(STEPS)]
    task = "{type: model_method, modelIdOrName: m, methodName: execute}"
    lines = "".join(f"      - {{name: {name}, labels: {{pool: any}}, task: {task}}}\n" for name in names)
    workflow = str(uuid.uuid4())
    text = f"id: {workflow}\nname: wf\njobs:\n  - name: job\n    steps:\n{lines}"
    now = iso(wall_ms())
    with closing(open_store(repository.data)) as store:
        workers = [
            WorkerState(
                name=f"w{number}", token_name=f"w{number}", mint_id="m", machine_id=str(uuid.uuid4()), instance=f"i{number}",
                boot_id="b", host="h", pid=1, platform="linux", arch="x86_64", labels={"pool": "any"},
                swamp_version=SWAMP_VERSION, protocol_version=PROTOCOL_VERSION, capacity=RUNS, enrolled_ms=wall_ms(),
                last_seen_ms=wall_ms(), token_expires_ms=wall_ms() + 3_600_000, link_epoch=1, counter=1,
            )
            for number in range(STEPS)
        ]  # fmt: skip
        store.commit(Batch(tuple(worker_record(state) for state in workers)))
        for run in (str(uuid.uuid4()) for _ in range(RUNS)):
            attributes = {
                "runId": run, "kind": "workflow", "workflowName": "wf", "workflowId": workflow, "status": "running",
                "startedAt": now, "inputs": {}, "tags": {}, "definition": text,
                "owner": {**process_identity(), "kind": "serve", "bootId": "gone"},
            }  # fmt: skip
            batch = [records.run_record(run, "wf", attributes)]
            for number, name in enumerate(names):
                dispatch = str(uuid.uuid4())
                held = Lease(
                    dispatch, 1, 1, run, "wf", "job", name, "command/shell", model, "execute", worker=f"w{number}",
                    instance=f"i{number}", link=1, granted_ms=wall_ms(), phase=Phase.RUNNING, accepted=True,
                )  # fmt: skip
                origin = records.StepOrigin(run, "workflow", "wf", workflow, "job", name, {})
                step = {
                    "runId": run, "job": "job", "step": name, "status": "running", "attempt": 1, "fence": 1,
                    "worker": held.worker, "dispatchId": dispatch, "modelName": "m", "modelType": "command/shell",
                    "methodName": "execute", "queuedAt": now, "startedAt": now,
                }  # fmt: skip
                batch += [record_of(held), records.step_record(origin, step)]
            store.commit(Batch(tuple(batch)))


async def start(root: Path) -> tuple[float, float]:
    """Until all leases of a start are taken up and recorded as suspended: seconds, and those of this process."""
    repository = find(root)
    with closing(open_store(repository.data)) as store:
        async with assemble(
            Application(repository, store), reporter=Silent(), tempo=Tempo(), workers=True, clock_ms=wall_ms
        ) as parts:
            began, own = time.perf_counter(), time.process_time()
            await parts.reconcile()
            found = parts.flights._leases.active()
            assert len(found) == RUNS * STEPS, len(found)
            with trio.fail_after(60):
                # a look again and again: the engine tells nobody when a lease is recorded, and a benchmark is no reason that it should
                while any(lease.version < 2 for lease in parts.flights._leases.active()):  # noqa: ASYNC110
                    await trio.sleep(0.001)
            return time.perf_counter() - began, time.process_time() - own


def main() -> None:
    cost, commits = life()
    with tempfile.TemporaryDirectory() as folder:
        left_behind(Path(folder))
        recorded, own = trio.run(start, Path(folder))
    result = {
        "start_s_1000_leases_recorded": recorded,
        "start_s_1000_leases_recorded_of_this_process": own,
        "boot_s_1000_leases": boot(),
        "life_us_per_step": cost,
        "commits_per_step_after_grant": commits,
    }
    if "--json" in sys.argv:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:35} {value:10.3f}")


if __name__ == "__main__":
    main()
