"""The judge: what the store says, what clients were told, and what the witnesses saw must be one story.

Reads only; each broken promise is a sentence. It looks once, after everything has ended.
"""

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from workload import LINES, MODEL_OF

REASONS = ("write_then_drop", "onWorkerLost: fail", "has lost its holder")
"""Why a run of this work may fail."""


@attrs.frozen
class Witness:
    """What a step's executions wrote, in order: fences that began, with their dispatches, and those that ended."""

    begun: tuple[tuple[int, str], ...]
    ended: tuple[int, ...]
    overlaps: tuple[int, ...]
    wrote: tuple[tuple[int, int], ...]  # fence, number: acknowledged to running code
    order: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> "Witness":
        lines = path.read_text().splitlines() if path.exists() else []
        begun, ended, overlaps, wrote = [], [], [], []
        for line in lines:
            word, fence, *rest = line.split()
            if word == "begin":
                begun.append((int(fence), rest[0]))
            elif word == "end":
                ended.append(int(fence))
            elif word == "wrote":
                wrote.append((int(fence), int(rest[0])))
            else:
                overlaps.append(int(fence))
        return cls(tuple(begun), tuple(ended), tuple(overlaps), tuple(wrote), tuple(lines))


@attrs.define
class Told:
    """What clients were told."""

    accepted: dict[str, str] = attrs.field(factory=dict)  # run -> workflow, as soon as its id was answered
    ended: dict[str, str] = attrs.field(factory=dict)  # run -> status, as a follower heard it
    cancelled: set[str] = attrs.field(factory=set)  # runs whose cancel was acknowledged
    broken: list[str] = attrs.field(factory=list)  # promises that were seen broken while it ran


def is_free(lock: Path) -> bool:
    """Whether no process of the step lives."""
    with lock.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def judge(
    told: Told,
    runs: Mapping[str, Mapping[str, Any]],
    leases: Sequence[Mapping[str, Any]],
    logs: Mapping[str, list[str]],
    notes: Mapping[str, set[tuple[int, int]]],
    witness: Path,
) -> Iterator[str]:
    """Every broken promise. `runs`: run documents; `leases`: the last version of every lease; `logs`: lines by dispatch;
    `notes`: fence and number of every version of a record that running code wrote, by the record's name."""
    yield from told.broken
    by_dispatch = {lease["dispatchId"]: lease for lease in leases}
    for lease in leases:
        if lease["state"] == "active":
            yield f"lease {lease['dispatchId']} of {lease['stepName']} is active for ever: {json.dumps(lease)}"
    for run, workflow in told.accepted.items():
        if run not in runs:
            yield f"run {run} of {workflow} was acknowledged and is not there"
    for run, document in runs.items():
        status, workflow = document["status"], document["workflowName"]
        if status == "running":
            yield f"run {run} of {workflow} never ended"
        error = str(document.get("error"))
        if status == "failed" and not any(reason in error for reason in REASONS):
            yield f"run {run} of {workflow} failed for no reason that was made: {error}"
        if run in told.ended and told.ended[run] != status:
            yield f"a client was told that run {run} ended {told.ended[run]}; the store says {status}"
        if run in told.cancelled and status not in ("cancelled", "succeeded", "failed"):
            yield f"the cancel of run {run} was acknowledged, and it is {status}"
        for job in document["jobs"]:
            for step in job["steps"]:
                yield from _step(run, workflow, step, by_dispatch, leases, logs, witness)
                if workflow in ("writes", "rewrites") and step["name"] == "a":
                    yield from _writes(run, workflow, step, leases, notes, witness)


def _step(
    run: str,
    workflow: str,
    step: Mapping[str, Any],
    by_dispatch: Mapping[str, Mapping[str, Any]],
    leases: Sequence[Mapping[str, Any]],
    logs: Mapping[str, list[str]],
    folder: Path,
) -> Iterator[str]:
    name, where = step["name"], f"step {step['name']} of {workflow} {run}"
    seen = Witness.read(folder / f"{run}.{name}")
    if seen.overlaps:
        yield f"{where} ran in two places at once: {seen.order}"
    if step["status"] not in ("succeeded", "failed", "cancelled", "skipped"):
        yield f"{where} is {step['status']} for ever"
    fences = [fence for fence, _ in seen.begun]
    if fences != sorted(set(fences)):
        yield f"{where}: fences do not grow: {fences}"
    for fence, dispatch in seen.begun:
        lease = by_dispatch.get(dispatch)
        if lease is None or lease["fence"] != fence:
            yield f"{where}: dispatch {dispatch} ran under fence {fence}, and the store says {lease}"
    own = [lease for lease in leases if (lease["runId"], lease["stepName"]) == (run, name)]
    completed = [lease for lease in own if lease["state"] == "completed"]
    if step["status"] == "succeeded":
        if len(completed) != 1:
            yield f"{where} succeeded with {len(completed)} completed leases"
            return
        fence, dispatch = completed[0]["fence"], completed[0]["dispatchId"]
        if fence not in seen.ended:
            yield f"{where} succeeded under fence {fence}, and its witness did not see the end: {seen.order}"
        if fences and max(fences) > fence:
            yield f"{where} ran again after it had succeeded under fence {fence}: {seen.order}"
        lines = [f"line {number}" for number in range(1, LINES[MODEL_OF[workflow, name]] + 1)]
        # A type without an output `log` keeps no log.
        if MODEL_OF[workflow, name] != "writer" and logs.get(dispatch) != lines:
            yield f"{where}: its log is not what it printed: {_difference(lines, logs.get(dispatch))}"
    elif completed:
        yield f"{where} is {step['status']}, and a lease of it completed"
    if workflow == "once" and len(seen.begun) > 1:
        yield f"{where} ran {len(seen.begun)} times although its author forbade it: {seen.order}"
    lock = folder / f"{run}.{name}.lock"
    if lock.exists() and not is_free(lock):
        yield f"{where}: something of it still lives"


def _writes(
    run: str,
    workflow: str,
    step: Mapping[str, Any],
    leases: Sequence[Mapping[str, Any]],
    notes: Mapping[str, set[tuple[int, int]]],
    folder: Path,
) -> Iterator[str]:
    """The write-then-fail rule, held against what running code was told."""
    where = f"step {step['name']} of {workflow} {run}"
    seen = Witness.read(folder / f"{run}.{step['name']}")
    stored = notes.get(f"note-{run}-{step['name']}", set())
    if not set(seen.wrote) <= stored:
        yield f"{where}: writes {sorted(set(seen.wrote) - stored)} were acknowledged and are not there"
    own = {
        lease["fence"]: lease
        for lease in leases
        if (lease["runId"], lease["stepName"]) == (run, step["name"])
    }
    for fence in {fence for fence, _ in stored}:
        if not own[fence]["hasWrites"]:
            yield f"{where}: fence {fence} wrote, and its lease does not say so"
        began_later = [later for later, _ in seen.begun if later > fence]
        if workflow == "writes" and began_later:
            yield f"{where} ran again under {began_later} after it had written under {fence}: {seen.order}"
    for lease in own.values():
        wrote = lease["fence"] in {fence for fence, _ in stored}
        if (lease.get("reason") == "write_then_drop") and not wrote:
            yield f"{where}: write_then_drop without a write: {lease}"
        if lease.get("reason") == "drained" and lease["hasWrites"]:
            yield f"{where}: a drain ended what had written: {lease}"


def _difference(wanted: list[str], found: list[str] | None) -> str:
    if found is None:
        return "there is none"
    for number, (one, other) in enumerate(zip(wanted, found, strict=False)):
        if one != other:
            return (
                f"{len(found)} of {len(wanted)} lines, at {number}: {found[max(0, number - 2) : number + 3]}"
            )
    return f"{len(found)} of {len(wanted)} lines, the last {found[-2:]}"
