"""Resuming a run that ended: which steps start anew, and the records that say so.

Rules that hold here (docs/reference/workflows-execution.md tells them to users):

1. What succeeded is kept. Everything else starts anew: failed steps, also allowed ones; cancelled and skipped ones. `--from` adds a
   step and all that depends on it, whatever became of them.
2. The run stays the same run: its id, its inputs, its workflow as it was when it started. Fences and attempts go on counting.
3. A nested workflow that did not succeed is resumed by the same rules, not run anew.
4. Records of steps are written first, the run's last: a crash in between leaves a run that has ended and can be resumed again.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from swamp_orch.core.runplan import StepKey
from swamp_orch.definitions.values import Dependency, Workflow
from swamp_orch.engine import records
from swamp_orch.engine.revival import Found, read_run
from swamp_orch.store.bookkeeping import iso
from swamp_orch.store.interface import Batch, Store
from swamp_proto.errors import Conflict, NotFound, OperationFailed
from swamp_proto.limits import BATCH_RECORDS_MAX

RESUMABLE: Final = ("failed", "cancelled")
_OF_AN_END: Final = (
    "endedAt",
    "counts",
    "durationMs",
    "error",
    "failedStep",
    "cancelReason",
    "reportsCancelReason",
)


def check_resumable(found: Found) -> None:
    """Refuse what can not be resumed.

    :raises OperationFailed: it is no failed or cancelled run of a workflow
    :raises Conflict: it is a child
    """
    about = found.attributes
    if about["kind"] != "workflow":
        raise OperationFailed(
            f"run {found.id} is of one method: there is nothing to go on with",
            hint=f"run it again: swamp model method run {about['workflowName']} {about.get('methodName', '')}".rstrip(),
        )
    if "parent" in about:
        raise Conflict(
            f"run {found.id} belongs to step {about['parent']['step']!r} of run {about['parent']['runId']}",
            hint=f"resume that one: swamp workflow resume {about['parent']['chain'][0]} --run {about['parent']['runId']}",
        )
    if about["status"] not in RESUMABLE:
        raise OperationFailed(f"run {found.id} {about['status']}: there is nothing to go on with")


def unsuccessful(found: Found) -> frozenset[StepKey]:
    """The steps with records that did not succeed."""
    return frozenset(key for key, row in found.steps.items() if row["status"] != "succeeded")


def starts_anew(found: Found, workflow: Workflow, start: str | None) -> frozenset[StepKey]:
    """The steps that have records and are not kept. `start`: a step's name, or `job/step`.

    :raises NotFound: there is no such step
    """
    anew = set(unsuccessful(found))
    if start is None:
        return frozenset(anew)
    templates = {
        (job, name): template for (job, template), items in found.expansions.items() for name in items
    }
    named = {
        (job.name, step.name)
        for job in workflow.jobs
        for step in job.steps
        if start in (step.name, f"{job.name}/{step.name}")
    }
    named |= {
        (key.job, templates.get((key.job, key.step), key.step)) for key in found.steps if start == key.step
    }
    if len({job for job, _ in named}) != 1:
        known = ", ".join(f"{job.name}/{step.name}" for job in workflow.jobs for step in job.steps)
        raise NotFound(f"no one step is named {start!r}", hint=f"the steps are: {known}")
    ((job_name, _),) = list(named)[:1]
    job = next(one for one in workflow.jobs if one.name == job_name)
    steps = _with_dependants({step for _, step in named}, {one.name: one.depends_on for one in job.steps})
    jobs = _with_dependants({job_name}, {one.name: one.depends_on for one in workflow.jobs}) - {job_name}
    for key in found.steps:
        if key.job in jobs or (key.job == job_name and templates.get((key.job, key.step), key.step) in steps):
            anew.add(key)
    return frozenset(anew)


def _with_dependants(first: set[str], edges: Mapping[str, Iterable[Dependency]]) -> set[str]:
    found = set(first)
    while True:
        more = {
            name
            for name, depends_on in edges.items()
            if name not in found and any(one.on in found for one in depends_on)
        }
        if not more:
            return found
        found |= more


def reopen(
    store: Store,
    found: Found,
    anew: frozenset[StepKey],
    owner: Mapping[str, Any],
    now_ms: int,
    timeout_s: float | None = None,
) -> None:
    """Write what makes the run go on from here, children first. Blocking.

    :raises Conflict: somebody else changed the run
    """
    rows = []
    for key in sorted(anew):
        row = found.steps[key]
        children = _unfinished(store, row)
        for child in children:
            reopen(store, child, unsuccessful(child), owner, now_ms)
        kept = {name: row[name] for name in ("runId", "job", "step", "attempt", "fence")}
        fresh = {**kept, "status": "waiting", "worker": None}
        if children:
            fresh["children"] = row["children"]
        elif row.get("children"):
            fresh["attempt"] += 1  # its child is a new one
        rows.append(fresh)
    origin = _origins(found)
    for at in range(0, len(rows), BATCH_RECORDS_MAX):
        some = rows[at : at + BATCH_RECORDS_MAX]
        store.commit(Batch(tuple(records.step_record(origin(row), row) for row in some)))
    about = {key: value for key, value in found.attributes.items() if key not in _OF_AN_END}
    about |= {"status": "running", "owner": dict(owner), "resumedAt": iso(now_ms)}
    if timeout_s is not None:
        about["timeoutS"] = timeout_s
    store.commit(Batch((records.run_record(found.id, found.record.model_name, about, found.record.version),)))


def _unfinished(store: Store, row: Mapping[str, Any]) -> list[Found]:
    """The nested run of this step, if it is to go on."""
    if row["status"] == "succeeded" or not row.get("children") or "dispatchId" in row:
        return []
    child = read_run(store, row["children"][-1]["runId"])
    return [child] if child is not None and child.attributes["status"] in RESUMABLE else []


def _origins(found: Found) -> Callable[[Mapping[str, Any]], records.StepOrigin]:
    about = found.attributes

    def origin(row: Mapping[str, Any]) -> records.StepOrigin:
        return records.StepOrigin(
            run=found.id,
            kind=about["kind"],
            workflow=about["workflowName"],
            workflow_id=about["workflowId"],
            job=row["job"],
            step=row["step"],
            tags={},
        )

    return origin
