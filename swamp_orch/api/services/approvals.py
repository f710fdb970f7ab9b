"""`workflow.approvals|approve|reject`: what waits for a person, and what the person says.

A decision is written to the step's record; the process that runs the run sees it there, or the next one that takes it up. Inside an
orchestrator the engine answers these calls for its own runs.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from swamp_orch.engine.approvals import Decision, approval_of
from swamp_orch.engine.owners import is_alive
from swamp_orch.engine.revival import OPEN_STATUSES
from swamp_orch.store.bookkeeping import RUN_RECORD, WORKFLOW_RUN, iso
from swamp_orch.store.interface import (
    Batch,
    Comparison,
    NewRecord,
    Record,
    Selection,
    Store,
    Term,
    json_content,
)
from swamp_proto.errors import Conflict, NotFound, OperationFailed

PENDING: Final = (
    Term("modelType", Comparison.EQ, (WORKFLOW_RUN,)),
    Term("specName", Comparison.EQ, ("step",)),
    Term("attributes.status", Comparison.EQ, ("waiting_approval",)),
)
SHOWN: Final = (
    "workflowName",
    "runId",
    "jobName",
    "stepName",
    "suspendedAt",
    "deadlineAt",
    "prompt",
    "inputs",
)


def _read(store: Store, record: Record) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(record.content if record.content is not None else store.read(record))
    return found


def pending_approvals(store: Store) -> Iterator[dict[str, Any]]:
    """Every step that waits for a person, oldest first, with the owner of its run and whether it is too late."""
    now_ms = time.time_ns() // 1_000_000
    for record in list(store.select(Selection(PENDING))):
        row = _read(store, record)
        run = store.latest(row["runId"], RUN_RECORD)
        approval = approval_of(row)
        if run is None or approval is None or approval.decision is not None:
            continue
        about = _read(store, run)
        if about["status"] not in OPEN_STATUSES:
            continue
        yield {
            "workflowName": about["workflowName"],
            "workflowId": about["workflowId"],
            "runId": row["runId"],
            "jobName": row["job"],
            "stepName": row["step"],
            "suspendedAt": iso(approval.asked_ms),
            "deadlineAt": iso(approval.deadline_ms),
            "prompt": approval.prompt,
            "inputs": about["inputs"],
            "resume": _outermost(store, about),
            "owner": about["owner"],
            "overdue": approval.deadline_ms <= now_ms,
            "record": record,
        }


def _outermost(store: Store, about: dict[str, Any]) -> dict[str, str]:
    """The run that is to be resumed for a run to go on: itself, or the one above all that are above it."""
    while (parent := about.get("parent")) is not None:
        above = store.latest(parent["runId"], RUN_RECORD)
        if above is None:
            break
        about = _read(store, above)
    return {"runId": about["runId"], "workflowName": about["workflowName"]}


class ApprovalService:
    def __init__(self, store: Store) -> None:
        self._store = store

    def handlers(self) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
        return {
            "workflow.approvals": self._list,
            "workflow.approve": lambda parameters: self.decide(parameters, approved=True),
            "workflow.reject": lambda parameters: self.decide(parameters, approved=False),
        }

    def _list(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        rows = [row for row in pending_approvals(self._store) if not row["overdue"]]
        return {"approvals": [{key: row[key] for key in SHOWN} for row in rows]}

    def choose(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The one step that is meant.

        :raises NotFound: none waits under that name
        :raises Conflict: several do
        :raises OperationFailed: it is too late
        """
        name, step, run = parameters["name"], parameters["step"], parameters.get("runId")
        rows = [
            row
            for row in pending_approvals(self._store)
            if name in (row["workflowName"], row["workflowId"])
            and step in (row["stepName"], f"{row['jobName']}/{row['stepName']}")
            and (run is None or row["runId"] == run)
        ]
        if not rows:
            raise NotFound(
                f"no step {step!r} of workflow {name!r} waits for approval", hint="swamp workflow approvals"
            )
        if len(rows) > 1:
            runs = ", ".join(sorted({row["runId"] for row in rows}))
            hint = "say which one with --run" if len({row["runId"] for row in rows}) > 1 else "write JOB/STEP"
            raise Conflict(f"{len(rows)} steps {step!r} of {name!r} wait for approval: {runs}", hint=hint)
        if rows[0]["overdue"]:
            raise OperationFailed(
                f"it is too late: the approval's deadline was {rows[0]['deadlineAt']}",
                hint=f"run it again: swamp workflow run {rows[0]['workflowName']}",
                code="approval_expired",
            )
        return rows[0]

    def decide(self, parameters: Mapping[str, Any], *, approved: bool) -> dict[str, Any]:
        """Write the decision to the step's record."""
        row = self.choose(parameters)
        record: Record = row["record"]
        decision = decision_of(parameters, approved=approved, now_ms=time.time_ns() // 1_000_000)
        attributes = {**_read(self._store, record), "approvalDecision": decision.attributes()}
        try:
            self._store.commit(Batch((_next(record, attributes),)))
        except Conflict:
            raise Conflict(
                f"step {row['stepName']!r} was decided about at the same instant",
                hint="swamp workflow approvals",
            ) from None
        return decided(row, decision, live=is_alive(row["owner"]), run_status="suspended")


def decision_of(parameters: Mapping[str, Any], *, approved: bool, now_ms: int) -> Decision:
    return Decision(approved, parameters.get("by") or "unknown", now_ms, parameters.get("reason") or "")


def decided(row: Mapping[str, Any], decision: Decision, *, live: bool, run_status: str) -> dict[str, Any]:
    """The answer. `live`: a process runs the run, and goes on by itself."""
    return {
        "runId": row["runId"],
        "workflowName": row["workflowName"],
        "stepName": row["stepName"],
        "approved": decision.approved,
        "decidedBy": decision.by,
        "reason": decision.reason,
        "resume": row["resume"],
        "runStatus": run_status,
        "live": live,
    }


def _next(record: Record, attributes: Mapping[str, Any]) -> NewRecord:
    """The next version of a step's record."""
    return NewRecord(
        model_type=record.model_type,
        model_id=record.model_id,
        model_name=record.model_name,
        name=record.name,
        spec=record.spec,
        content=json_content(attributes),
        keep=record.keep,
        tags=record.tags,
        owner=record.owner,
        expect=record.version,
    )
