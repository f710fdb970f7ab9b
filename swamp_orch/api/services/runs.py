"""`run.*` and `output.*`: runs and method executions as their records tell them.

An *output* is one execution of a method: one dispatch, whatever run it belonged to. Live runs are shown by the engine; what is
here works on the records alone, in any process.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from swamp_orch.api.services.approvals import pending_approvals
from swamp_orch.api.services.logs import read_log
from swamp_orch.definitions.repository import Repository
from swamp_orch.definitions.workflows import Workflows
from swamp_orch.engine.approvals import approval_of
from swamp_orch.engine.lineage import parent_of
from swamp_orch.engine.owners import is_alive
from swamp_orch.engine.records import made_by_dispatch, run_record
from swamp_orch.engine.revival import OPEN_STATUSES, read_open_runs
from swamp_orch.store.bookkeeping import (
    RUN_RECORD,
    STEP_LEASE,
    WORKFLOW_RUN,
    from_iso,
    iso,
)
from swamp_orch.store.interface import Batch, Comparison, Record, Selection, Store, Term
from swamp_proto.errors import NotFound

LIST_LIMIT: Final = 50
LATE_MS: Final = 5_000  # past a deadline by more than this
PREFIX_LENGTH_MIN: Final = 8  # of a run's or execution's id
LATEST_MS: Final = 1 << 62
WAITING_FIELDS: Final = (
    "runId",
    "workflowName",
    "jobName",
    "stepName",
    "suspendedAt",
    "deadlineAt",
    "prompt",
)


class RunService:
    def __init__(self, repository: Repository, store: Store) -> None:
        self._repository = repository
        self._store = store

    def handlers(self) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
        return {
            "run.get": lambda parameters: self.document(parameters["runId"]),
            "run.list": self._list,
            "run.logs": self._logs,
            "run.doctor": self._doctor,
            "output.get": lambda parameters: self._output(self._execution(parameters["id"])),
            "output.search": self._outputs,
            "output.logs": self._output_logs,
        }

    # ── runs ────────────────────────────────────────────────────────────────────────────────────────────────────────
    def document(self, run_id: str) -> dict[str, Any]:
        """The run document, in the shape `run_ended` carries it."""
        run = self._run(run_id)
        attributes = self._read(run)
        steps = self._steps(run.model_id)
        made = made_by_dispatch(self._store, run.model_id)
        now_ms = time.time_ns() // 1_000_000
        at_work = attributes["status"] in OPEN_STATUSES
        by_job: dict[str, list[Mapping[str, Any]]] = {}
        for step in self._with_those_to_come(run, attributes, steps) if at_work else steps:
            by_job.setdefault(step["job"], []).append(step)
        found: dict[str, Any] = {
            "id": run.model_id,
            "kind": attributes["kind"],
            "workflowId": attributes["workflowId"],
            "workflowName": attributes["workflowName"],
            "inputs": attributes["inputs"],
            "status": attributes["status"],
            "startedAt": attributes["startedAt"],
            "completedAt": attributes.get("endedAt"),
            "duration": now_ms - from_iso(attributes["startedAt"])
            if at_work
            else attributes.get("durationMs", 0),
            "counts": attributes.get("counts") or _counts(steps),
            "jobs": [
                {
                    "name": name,
                    "status": _job_status(rows),
                    "duration": _job_duration(rows, now_ms),
                    "steps": [
                        _step_document(row, made.get(row.get("dispatchId", ""), []), self._children(row))
                        for row in rows
                    ],
                }
                for name, rows in by_job.items()
            ],
        }
        if (parent := parent_of(attributes)) is not None:
            found["parent"] = parent.document()
        found.update((key, attributes[key]) for key in ("error", "failedStep") if key in attributes)
        return found

    def _with_those_to_come(
        self, run: Record, attributes: Mapping[str, Any], steps: list[dict[str, Any]]
    ) -> list[Mapping[str, Any]]:
        """The steps of a run at work, in the order of its definition: a step has no record before it starts."""
        if "definition" not in attributes:
            return list(steps)
        workflow = Workflows(self._repository).parse_recorded(attributes["definition"], run.model_name)
        selection = Selection(
            (Term("modelId", Comparison.EQ, (run.model_id,)), Term("specName", Comparison.EQ, ("expansion",)))
        )
        expanded = {
            (found["job"], found["template"]): list(found["items"])
            for found in map(self._read, self._store.select(selection))
        }
        known = {(step["job"], step["step"]): step for step in steps}
        return [
            known.get((job.name, name)) or {"job": job.name, "step": name, "status": "waiting"}
            for job in workflow.jobs
            for step in job.steps
            for name in expanded.get((job.name, step.name), [step.name])
        ]

    def _children(self, step: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The runs a step started, with their present status."""
        found = []
        for child in step.get("children", ()):
            record = self._store.latest(child["runId"], RUN_RECORD)
            if record is not None:  # else collected
                found.append({**child, "status": self._read(record)["status"]})
        return found

    def _list(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        terms = [Term("modelType", Comparison.EQ, (WORKFLOW_RUN,)), Term("specName", Comparison.EQ, ("run",))]
        if parameters.get("workflow"):
            terms.append(Term("modelName", Comparison.EQ, (parameters["workflow"],)))
        if parameters.get("active"):
            terms.append(Term("attributes.status", Comparison.EQ, OPEN_STATUSES))
        limit = parameters.get("limit") or LIST_LIMIT
        selection = Selection(tuple(terms))
        runs = []
        for record in self._store.select(selection, limit=limit, newest_first=True):
            attributes = self._read(record)
            row = {
                "runId": record.model_id,
                "kind": attributes["kind"],
                "workflowName": attributes["workflowName"],
                "workflowId": attributes["workflowId"],
                "status": attributes["status"],
                "startedAt": attributes["startedAt"],
                "completedAt": attributes.get("endedAt"),
                "duration": attributes.get("durationMs"),
                "counts": attributes.get("counts"),
                "tags": attributes["tags"],
            }
            if (parent := parent_of(attributes)) is not None:
                row["parent"] = parent.document()
            row.update((key, attributes[key]) for key in ("error", "failedStep") if key in attributes)
            runs.append(row)
        return {"runs": runs, "total": len(runs)}

    def of_workflow(self, name: str) -> list[dict[str, Any]]:
        """Runs of a workflow by name or id that no step started, newest first: `{runId, status}`."""
        terms = (Term("modelType", Comparison.EQ, (WORKFLOW_RUN,)), Term("specName", Comparison.EQ, ("run",)))
        found = []
        for record in self._store.select(Selection(terms), newest_first=True):
            attributes = self._read(record)
            own = attributes["kind"] == "workflow" and "parent" not in attributes
            if own and name in (attributes["workflowName"], attributes["workflowId"]):
                found.append({"runId": record.model_id, "status": attributes["status"]})
        return found

    def _logs(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        run = self._run(parameters["runId"])
        lines, count = self._lines(run.model_id, parameters.get("tail"))
        return {"runId": run.model_id, "lines": lines, "lineCount": count}

    def _lines(self, run_id: str, tail: int | None) -> tuple[list[dict[str, Any]], int]:
        """What a run's steps printed, and behind that what the runs below them did, as lines of the step they hang below; the last
        `tail` of them, and how many there are."""
        found: list[tuple[int, list[dict[str, Any]]]] = []
        count = 0
        for record in self._of_run(run_id, "log"):
            place = {"job": record.owner.job, "step": record.owner.step}
            log = read_log(self._store, record, tail)
            found.append((record.created_ms, [{**place, "line": line} for line in log.lines]))
            count += log.count
        for step in self._steps(run_id):
            ended_ms = from_iso(step["endedAt"]) if "endedAt" in step else LATEST_MS
            for child in step.get("children", ()):
                below, more = self._lines_below(step, child, tail)
                found.append((ended_ms, below))
                count += more
        return _tail(
            [line for _, lines in sorted(found, key=lambda one: one[0]) for line in lines], tail
        ), count

    def _lines_below(
        self, step: Mapping[str, Any], child: Mapping[str, Any], tail: int | None
    ) -> tuple[list[dict[str, Any]], int]:
        below, count = self._lines(child["runId"], tail)
        one_job = len({row["job"] for row in below}) == 1
        found = []
        for row in below:
            label = row["step"] if one_job else f"{row['job']} › {row['step']}"
            if child["kind"] == "method":
                label = f"{child['name']}.{row['step']}"
            found.append({"job": step["job"], "step": step["step"], "line": f"{label} │ {row['line']}"})
        return found, count

    def _doctor(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """What is past its deadline or has nobody behind it. `fix` ends runs whose owner is dead; a starting orchestrator
        would take them over instead."""
        findings = [self._orphan(record, bool(parameters.get("fix"))) for record in self._orphans()]
        now_ms = time.time_ns() // 1_000_000
        terms = (
            Term("modelType", Comparison.EQ, (STEP_LEASE,)),
            Term("attributes.state", Comparison.EQ, ("active",)),
        )
        for record in self._store.select(Selection(terms)):
            lease = self._read(record)
            if "deadlineAt" in lease and from_iso(lease["deadlineAt"]) + LATE_MS < now_ms:
                problem = f"its deadline was {lease['deadlineAt']}; it ends when the orchestrator runs"
                findings.append(
                    {"kind": "lease", "id": lease["leaseId"], "state": lease["phase"], "problem": problem}
                )
        waiting = []
        for row in pending_approvals(self._store):
            if row["overdue"] and not is_alive(row.pop("owner")):
                findings.append(
                    {
                        "kind": "approval",
                        "id": row["runId"],
                        "state": "waiting_approval",
                        "problem": f"nobody decided about step '{row['stepName']}' until {row['deadlineAt']}; it ends when the"
                        f" run goes on: swamp workflow resume {row['resume']['workflowName']} --run {row['resume']['runId']}",
                    }
                )
            else:
                waiting.append({key: row[key] for key in WAITING_FIELDS})
        return {"findings": findings, "waiting": waiting}

    def _orphans(self) -> list[Record]:
        """Running, and its process is dead. A suspended run needs no process: it waits for a person."""
        return [
            record
            for record, attributes in read_open_runs(self._store)
            if attributes["status"] == "running" and not is_alive(attributes["owner"])
        ]

    def _orphan(self, record: Record, fix: bool) -> dict[str, Any]:
        attributes = self._read(record)
        owner = attributes["owner"]
        problem = f"the process that ran it is gone (pid {owner['pid']} on {owner['host']})"
        found = {"kind": "run", "id": record.model_id, "state": "running", "problem": problem, "fixed": False}
        if fix:
            ended = {
                **attributes,
                "status": "failed",
                "error": problem,
                "endedAt": iso(time.time_ns() // 1_000_000),
            }
            self._store.commit(
                Batch((run_record(record.model_id, record.model_name, ended, record.version),))
            )
            found["fixed"] = True
        return found

    def _run(self, run_id: str) -> Record:
        record = self._store.latest(run_id, RUN_RECORD)
        if record is None and len(run_id) >= PREFIX_LENGTH_MIN:
            selection = Selection(
                (Term("modelType", Comparison.EQ, (WORKFLOW_RUN,)), Term("specName", Comparison.EQ, ("run",)))
            )
            record = next(
                (one for one in self._store.select(selection) if one.model_id.startswith(run_id)), None
            )
        if record is None:
            raise NotFound(f"run {run_id!r} is not known", hint="swamp run list")
        return record

    def _steps(self, run_id: str) -> list[dict[str, Any]]:
        selection = Selection(
            (Term("modelId", Comparison.EQ, (run_id,)), Term("specName", Comparison.EQ, ("step",)))
        )
        return [self._read(record) for record in self._store.select(selection)]

    def _of_run(self, run_id: str, spec: str) -> Iterator[Record]:
        terms = (Term("workflowRunId", Comparison.EQ, (run_id,)), Term("specName", Comparison.EQ, (spec,)))
        return self._store.select(Selection(terms, latest_only=False))

    # ── executions ──────────────────────────────────────────────────────────────────────────────────────────────────
    def _execution(self, execution_id: str) -> dict[str, Any]:
        terms = (
            Term("modelType", Comparison.EQ, (WORKFLOW_RUN,)),
            Term("specName", Comparison.EQ, ("step",)),
        )
        exact = Selection((*terms, Term("attributes.dispatchId", Comparison.EQ, (execution_id,))))
        for record in self._store.select(exact):
            return self._read(record)
        raise NotFound(f"execution {execution_id!r} is not known", hint="swamp model output search")

    def _outputs(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        terms = [
            Term("modelType", Comparison.EQ, (WORKFLOW_RUN,)),
            Term("specName", Comparison.EQ, ("step",)),
        ]
        if parameters.get("model"):
            terms.append(Term("attributes.modelName", Comparison.EQ, (parameters["model"],)))
        limit = parameters.get("limit") or LIST_LIMIT
        rows = []
        for record in self._store.select(Selection(tuple(terms)), newest_first=True):
            attributes = self._read(record)
            if "dispatchId" in attributes:
                rows.append(self._summary(attributes))
            if len(rows) == limit:
                break
        return {"results": rows, "total": len(rows)}

    def latest_output(self, model: str, method: str | None, *, without: str) -> dict[str, Any] | None:
        """The newest execution of a model that has ended, in the shape of `output.get`; not `without`, which asks."""
        terms = [
            Term("modelType", Comparison.EQ, (WORKFLOW_RUN,)),
            Term("specName", Comparison.EQ, ("step",)),
            Term("attributes.modelName", Comparison.EQ, (model,)),
        ]
        if method is not None:
            terms.append(Term("attributes.methodName", Comparison.EQ, (method,)))
        for record in self._store.select(Selection(tuple(terms)), newest_first=True):
            step = self._read(record)
            if step.get("dispatchId", without) != without and "endedAt" in step:
                return self._output(step)
        return None

    def _summary(self, step: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "id": step["dispatchId"],
            "modelName": step["modelName"],
            "type": step["modelType"],
            "methodName": step["methodName"],
            "status": step["status"],
            "startedAt": step.get("startedAt"),
            "completedAt": step.get("endedAt"),
        }

    def _output(self, step: Mapping[str, Any]) -> dict[str, Any]:
        made = made_by_dispatch(self._store, step["runId"]).get(step["dispatchId"], [])
        found = self._summary(step) | {
            "durationMs": _duration(step),
            "retryCount": step.get("retries", 0),
            "provenance": {
                "workflowRunId": step["runId"],
                "job": step["job"],
                "step": step["step"],
                "worker": step["worker"],
            },
            "artifacts": {"dataArtifacts": made},
        }
        if "error" in step:
            found["error"] = {"message": step["error"]}
        return found

    def _output_logs(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        step = self._execution(parameters["id"])
        lines: list[str] = []
        count, tail = 0, parameters.get("tail")
        for record in self._of_run(step["runId"], "log"):
            if record.owner.dispatch == step["dispatchId"]:
                log = read_log(self._store, record, tail)
                lines += log.lines
                count += log.count
        return {"id": step["dispatchId"], "lines": _tail(lines, tail), "lineCount": count}

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def _read(self, record: Record) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            record.content if record.content is not None else self._store.read(record)
        )
        return found


def _tail(lines: list[Any], tail: int | None) -> list[Any]:
    return lines if tail is None else lines[-tail:] if tail else []


def _duration(step: Mapping[str, Any]) -> int:
    if "startedAt" not in step or "endedAt" not in step:
        return 0
    return from_iso(step["endedAt"]) - from_iso(step["startedAt"])


def _step_document(
    step: Mapping[str, Any], made: list[dict[str, Any]], children: list[dict[str, Any]]
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": step["step"],
        "status": step["status"],
        "duration": _duration(step),
        "worker": step.get("worker"),
        "attempts": step.get("attempt", 0),
        "dataArtifacts": made,
    }
    kept = ("error", "reason", "allowedFailure", "modelName", "modelType", "methodName")
    found.update((key, step[key]) for key in kept if key in step)
    if children:
        found["children"] = children
    if (approval := approval_of(step)) is not None:
        found["approval"] = approval.document()
    return found


def _counts(steps: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    found = {"succeeded": 0, "failed": 0, "skipped": 0, "cancelled": 0}
    for step in steps:
        if step["status"] in found:
            found[step["status"]] += 1
    return found


def _job_duration(steps: list[Mapping[str, Any]], now_ms: int) -> int:
    """From the first of its steps that was under way to the end of the last; to now while one is to come."""
    begun = [from_iso(step.get("queuedAt", step["startedAt"])) for step in steps if "startedAt" in step]
    if not begun:
        return 0
    ends = [from_iso(step["endedAt"]) if "endedAt" in step else now_ms for step in steps]
    return max(0, max(ends) - min(begun))


def _job_status(steps: list[Mapping[str, Any]]) -> str:
    """A job's status, from its steps' (docs/reference/workflows-execution.md)."""
    statuses = {step["status"] for step in steps}
    if statuses & {"running", "waiting", "waiting_approval"}:
        return "waiting" if statuses == {"waiting"} else "running"
    ends = {step["status"] for step in steps if not step.get("allowedFailure")}
    for status in ("failed", "cancelled", "succeeded"):
        if status in ends:
            return status
    return "succeeded" if any(step.get("allowedFailure") for step in steps) else "skipped"
