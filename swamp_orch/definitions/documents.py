"""Definitions as documents: what `get --json` prints, and what a generated file holds.

Rule: what has its default is left out, and keys come in the order of the tutorial (`id, name, description,
jobs, version`), so that a written definition reads like one a person wrote.
"""

from collections.abc import Mapping
from typing import Any

from swamp_orch.definitions.conditions import SUCCEEDED, condition_document
from swamp_orch.definitions.durations import format_duration
from swamp_orch.definitions.inputs import NO_INPUTS
from swamp_orch.definitions.values import (
    AssertTask,
    Dependency,
    Job,
    ManualApprovalTask,
    ModelMethodTask,
    OnWorkerLost,
    Placement,
    Step,
    Task,
    Workflow,
    WorkflowTask,
)


def workflow_document(workflow: Workflow) -> dict[str, Any]:
    """A workflow as its file says it, placement shown at the steps it is in force for."""
    found: dict[str, Any] = {"id": workflow.id, "name": workflow.name}
    if workflow.description:
        found["description"] = workflow.description
    if workflow.tags:
        found["tags"] = dict(workflow.tags)
    if workflow.inputs != NO_INPUTS:
        found["inputs"] = dict(workflow.inputs)
    if workflow.trigger:
        found["trigger"] = dict(workflow.trigger)
    _limits(found, workflow.concurrency, workflow.timeout_s)
    if workflow.reports:
        found["reports"] = dict(workflow.reports)
    found["jobs"] = [_job(job) for job in workflow.jobs]
    found["version"] = workflow.version
    return found


def _job(job: Job) -> dict[str, Any]:
    found: dict[str, Any] = {"name": job.name}
    if job.description:
        found["description"] = job.description
    if job.depends_on:
        found["dependsOn"] = [_dependency(item, "job") for item in job.depends_on]
    if job.weight:
        found["weight"] = job.weight
    _limits(found, job.concurrency, job.timeout_s)
    found["steps"] = [_step(step) for step in job.steps]
    return found


def _step(step: Step) -> dict[str, Any]:
    found: dict[str, Any] = {"name": step.name}
    if step.description:
        found["description"] = step.description
    if step.depends_on:
        found["dependsOn"] = [_dependency(item, "step") for item in step.depends_on]
    if step.for_each is not None:
        found["forEach"] = {"item": step.for_each.item, "in": step.for_each.expression}
    if step.guard is not None:
        found["guard"] = step.guard
    found |= _placement(step.placement)
    if step.weight:
        found["weight"] = step.weight
    _limits(found, step.concurrency, step.timeout_s)
    if step.retry is not None:
        found["retry"] = {"attempts": step.retry.attempts, "backoff": format_duration(step.retry.backoff_s)}
    if step.allow_failure:
        found["allowFailure"] = True
    if step.on_worker_lost is not OnWorkerLost.RULE:
        found["onWorkerLost"] = step.on_worker_lost.value
    if step.overrides:
        found["dataOutputOverrides"] = [_plain(item) for item in step.overrides]
    found["task"] = task_document(step.task)
    return found


def task_document(task: Task) -> dict[str, Any]:
    found: dict[str, Any]
    match task:
        case ModelMethodTask():
            found = {"type": "model_method", "modelIdOrName": task.model, "methodName": task.method}
            if task.inputs:
                found["inputs"] = _plain(task.inputs)
        case WorkflowTask():
            found = {"type": "workflow", "workflowIdOrName": task.workflow}
            if task.inputs:
                found["inputs"] = _plain(task.inputs)
        case ManualApprovalTask():
            found = {"type": "manual_approval", "prompt": task.prompt}
            if task.timeout_s is not None:
                found["timeout"] = format_duration(task.timeout_s)
        case AssertTask():
            found = {"type": "assert", "expr": task.expr}
            if task.message:
                found["message"] = task.message
            if task.severity != "high":
                found["severity"] = task.severity
    return found


def _placement(placement: Placement) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if placement.target is not None:
        found["target"] = placement.target
    if placement.labels:
        found["labels"] = dict(placement.labels)
    if placement.platform is not None:
        found["platform"] = placement.platform
    if placement.queue_timeout_s is not None:
        found["queueTimeout"] = format_duration(placement.queue_timeout_s)
    return found


def _dependency(dependency: Dependency, noun: str) -> str | dict[str, Any]:
    if dependency.condition == SUCCEEDED:
        return dependency.on
    return {noun: dependency.on, "condition": condition_document(dependency.condition)}


def _limits(found: dict[str, Any], concurrency: int, timeout_s: float | None) -> None:
    if concurrency:
        found["concurrency"] = concurrency
    if timeout_s is not None:
        found["timeout"] = format_duration(timeout_s)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
