"""`@swamp/workflow-summary`: how a run ended, from its run document.

Every step of the run is counted, whatever its kind and however far it got, and the counts add up to the
number of steps. The first three lines are a contract: title, blank, `1 succeeded · 0 failed · 0 skipped`;
what is rarer (cancelled, unfinished) is added behind only where it occurs. A run without a failed step has
nothing more to say.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from swamp_orch.reports.report import ABSENT, Report, ReportScope, code, retrieval_commands, table

NAME: Final = "@swamp/workflow-summary"
ALWAYS_SHOWN: Final = ("succeeded", "failed", "skipped")
COUNTED: Final = (*ALWAYS_SHOWN, "cancelled", "unfinished")


def workflow_summary(document: Mapping[str, Any]) -> Report:
    """`document` is a run document: `{id, workflowId, workflowName, status, error?, jobs: [{name, steps:
    [{name, status, error?, reason?, allowedFailure?, modelName?, modelType?, methodName?, dataArtifacts:
    [{name, version, modelName}]}]}]}`."""
    steps = [_step(job, step) for job, step in _steps(document)]
    counts = dict.fromkeys(COUNTED, 0)
    for step in steps:
        counts[step["status"] if step["status"] in counts else "unfinished"] += 1
    failures = [step for step in steps if step["status"] == "failed"]
    title = f"# {document['workflowName']}: {document['status']}"
    tally = " · ".join(f"{counts[name]} {name}" for name in COUNTED if counts[name] or name in ALWAYS_SHOWN)
    parts = [title, tally]
    if document.get("error") and not any(step.get("error") == document["error"] for step in failures):
        parts.append(f"Error: {document['error']}")
    if failures:
        parts.append(
            table(("Job", "Step", "Model", "Error", "See the data"), [_row(step) for step in failures])
        )
    found: dict[str, Any] = {
        "status": document["status"],
        "workflowId": document["workflowId"],
        "workflowRunId": document["id"],
        "workflowName": document["workflowName"],
        "totalSteps": len(steps),
        **counts,
        "failures": failures,
        "steps": steps,
    }
    if document.get("error"):
        found["error"] = document["error"]
    return Report(NAME, ReportScope.WORKFLOW, "\n\n".join(parts), found)


def _steps(document: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for job in document["jobs"]:
        for step in job["steps"]:
            yield job["name"], step


def _step(job: str, step: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "jobName": job,
        "stepName": step["name"],
        "modelName": step.get("modelName"),
        "modelType": step.get("modelType"),
        "methodName": step.get("methodName"),
        "status": step["status"],
    }
    found.update((key, step[key]) for key in ("error", "reason", "allowedFailure") if step.get(key))
    found["retrievalCommands"] = retrieval_commands(step)
    return found


def _row(step: Mapping[str, Any]) -> tuple[str, ...]:
    model = f"{step['modelName']} → {step['methodName']}" if step["modelName"] else ABSENT
    error = str(step.get("error") or ABSENT) + (" (allowed)" if step.get("allowedFailure") else "")
    commands = ", ".join(code(command) for command in step["retrievalCommands"])
    return step["jobName"], step["stepName"], model, error, commands
