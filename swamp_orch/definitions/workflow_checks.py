"""Everything about a workflow that can be known without running it: the checks of `swamp workflow validate`.

Rules: each check has a name and passes, warns or fails; a failure says file and line. The checks of the file
by itself are those of the parser: a workflow that got here has passed them. What names something that is only
known at run time (an expression as a model's name, inputs that are one expression) is left out.

It does not change anything.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Final

import attrs

from swamp_orch.definitions.conditions import find_cycle
from swamp_orch.definitions.expression_checks import (
    Finding,
    Names,
    check_shell,
    check_text,
    check_tree,
    lookalike_warnings,
)
from swamp_orch.definitions.fields import has_expression
from swamp_orch.definitions.inputs import method_arguments, resolve_inputs
from swamp_orch.definitions.models import Models
from swamp_orch.definitions.repository import Repository
from swamp_orch.definitions.values import Job, ModelMethodTask, Step, Workflow, WorkflowTask
from swamp_orch.definitions.workflows import Workflows
from swamp_orch.definitions.yaml_source import DocumentPath, load
from swamp_proto.errors import SwampError

_PLAIN_KEYS: Final = ("id", "name", "description", "version", "inputs", "reports", "jobs", "trigger")


@attrs.frozen
class Check:
    """One line of a validation. `error` without `passed`; `warning` with it."""

    name: str
    passed: bool = True
    warning: str | None = None
    error: str | None = None

    def document(self) -> dict[str, Any]:
        """`{name, passed, warning?, error?}`"""
        found: dict[str, Any] = {"name": self.name, "passed": self.passed}
        if self.warning is not None:
            found["warning"] = self.warning
        if self.error is not None:
            found["error"] = self.error
        return found


class WorkflowChecks:
    """Checks workflows of one repository against its models, vaults and each other."""

    def __init__(self, repository: Repository, models: Models, workflows: Workflows) -> None:
        self.repository = repository
        self.models = models
        self.workflows = workflows

    @cached_property
    def _vaults(self) -> list[str]:
        from swamp_orch.vaults import VaultSet

        return list(VaultSet(self.repository).names())

    @cached_property
    def _model_names(self) -> list[str]:
        return self.models.names()

    def check(self, workflow: Workflow) -> list[Check]:
        """All checks, in the order of the file."""
        found = [Check("Schema validation"), Check("Unique job names")]
        found += [Check(f"Unique step names in job '{job.name}'") for job in workflow.jobs]
        found.append(Check("Valid job dependency references"))
        found += [Check(f"Valid step dependency references in job '{job.name}'") for job in workflow.jobs]
        found.append(Check("No cyclic job dependencies"))
        found += [Check(f"No cyclic step dependencies in job '{job.name}'") for job in workflow.jobs]
        data, _ = load(self.workflows.path(workflow), root=self.repository.root)
        found += self._top(workflow, data)
        for number, job in enumerate(workflow.jobs):
            for index, step in enumerate(job.steps):
                path = ("jobs", number, "steps", index)
                found += self._step(workflow, job, step, path, data["jobs"][number]["steps"][index])
        found += self._nesting(workflow)
        return found

    # ── parts ─────────────────────────────────────────────────────────────────────────────────────

    def _names(self, workflow: Workflow, step: Step | None = None, *, webhook: bool = False) -> Names:
        item = step.for_each.item if step is not None and step.for_each is not None else None
        return Names(
            inputs=workflow.inputs,
            self_keys=(item,) if item else (),
            webhook=webhook,
            models=lambda: self._model_names,
            vaults=lambda: self._vaults,
        )

    def _top(self, workflow: Workflow, data: Mapping[str, Any]) -> Iterator[Check]:
        """Expressions outside steps, and the trigger's inputs."""
        rest = {key: value for key, value in data.items() if key not in _PLAIN_KEYS}
        findings = check_tree(rest, (), workflow.source, self._names(workflow))
        for number, job in enumerate(data["jobs"]):
            outer = {key: value for key, value in job.items() if key not in ("name", "description", "steps")}
            findings += check_tree(outer, ("jobs", number), workflow.source, self._names(workflow))
        yield from _as_checks("Expressions of the workflow", findings)
        trigger = workflow.trigger.get("inputs")
        if workflow.trigger:
            name = "Inputs of the trigger"
            findings = check_tree(
                trigger or {}, ("trigger", "inputs"), workflow.source, self._names(workflow, webhook=True)
            )
            yield from _as_checks("Expressions of the trigger", findings)
            try:
                resolve_inputs(workflow.inputs, trigger or {}, expressions=True)
            except SwampError as error:
                yield Check(name, False, error=f"{workflow.source.at('trigger')}: {error.message}")
            else:
                yield Check(name)

    def _step(
        self, workflow: Workflow, job: Job, step: Step, path: DocumentPath, raw: Mapping[str, Any]
    ) -> Iterator[Check]:
        where = f"'{step.name}' in job '{job.name}'"
        match step.task:
            case ModelMethodTask() as task:
                if not has_expression(task.model) and not has_expression(task.method):
                    name = f"Step inputs for {where} ({task.model}.{task.method})"
                    yield self._method(workflow, task, path, name)
            case WorkflowTask() as task:
                if not has_expression(task.workflow):
                    yield self._nested(
                        workflow, task, path, f"Step inputs for {where} (workflow {task.workflow})"
                    )
        yield from self._step_expressions(workflow, job, step, path, raw)
        if isinstance(step.task, ModelMethodTask) and isinstance(step.task.inputs, Mapping):
            yield from _as_checks(f"Shell text of {where}", self._shell(workflow, step.task, path))
        if not step.placement.is_remote:
            if step.placement.queue_timeout_s is not None:
                yield Check(
                    f"queueTimeout without placement in job '{job.name}' step '{step.name}'",
                    warning=f"{workflow.source.at(*path)}: without placement a step never queues",
                )
            if step.placement.affinity:
                yield Check(
                    f"affinity without placement in job '{job.name}' step '{step.name}'",
                    warning=f"{workflow.source.at(*path)}: the step runs in the orchestrator",
                )

    def _step_expressions(
        self, workflow: Workflow, job: Job, step: Step, path: DocumentPath, raw: Mapping[str, Any]
    ) -> Iterator[Check]:
        source = workflow.source
        outside = {key: value for key, value in raw.items() if key not in ("description", "forEach")}
        findings = check_tree(outside, path, source, self._names(workflow, step))
        if step.for_each is not None:
            place = (*path, "forEach", "in")
            findings += check_text(step.for_each.expression, source.at(*place), self._names(workflow))
        task = raw.get("task", {})
        if task.get("type") == "assert":
            place = (*path, "task", "expr")
            found = check_text(f"${{{{ {task['expr']} }}}}", source.at(*place), self._names(workflow, step))
            yield from _as_checks(f"Assert expr in job '{job.name}' step '{step.name}'", found)
        yield from _as_checks(f"Expressions of '{step.name}' in job '{job.name}'", findings)
        for warning in lookalike_warnings(task.get("inputs"), (*path, "task", "inputs"), source):
            yield Check(f"Malformed expressions in '{step.name}' in job '{job.name}'", warning=warning)

    def _method(self, workflow: Workflow, task: ModelMethodTask, path: DocumentPath, name: str) -> Check:
        source = workflow.source
        try:
            definition = self.models.find(task.model)
        except SwampError as error:
            return _failed(name, source.at(*path, "task", "modelIdOrName"), error)
        try:
            model_type = self.models.type_of(definition)
            method = self.models.types.method(model_type, task.method)
        except SwampError as error:
            return _failed(name, source.at(*path, "task", "methodName"), error)
        if isinstance(task.inputs, str):
            return Check(name)
        try:
            method_arguments(model_type, method, definition, task.inputs)
        except SwampError as error:
            return _failed(name, source.at(*path, "task", "inputs"), error)
        return Check(name)

    def _shell(self, workflow: Workflow, task: ModelMethodTask, path: DocumentPath) -> list[Finding]:
        assert isinstance(task.inputs, Mapping)
        try:
            model_type = self.models.type_of(self.models.find(task.model))
        except SwampError:
            return []  # reported by the check of the step's inputs
        return check_shell(
            task.inputs, model_type.shell_arguments, (*path, "task", "inputs"), workflow.source
        )

    def _nested(self, workflow: Workflow, task: WorkflowTask, path: DocumentPath, name: str) -> Check:
        try:
            child = self.workflows.find(task.workflow)
        except SwampError as error:
            return _failed(name, workflow.source.at(*path, "task", "workflowIdOrName"), error)
        if isinstance(task.inputs, str):
            return Check(name)
        try:
            resolve_inputs(child.inputs, task.inputs, expressions=True)
        except SwampError as error:
            return _failed(name, workflow.source.at(*path, "task", "inputs"), error)
        return Check(name)

    def _nesting(self, workflow: Workflow) -> Iterator[Check]:
        """Workflows that call each other in a circle."""
        edges: dict[str, list[str]] = {}
        waiting = [workflow]
        while waiting:
            current = waiting.pop()
            if current.name in edges:
                continue
            edges[current.name] = []
            for job in current.jobs:
                for step in job.steps:
                    if isinstance(step.task, WorkflowTask) and not has_expression(step.task.workflow):
                        try:
                            child = self.workflows.find(step.task.workflow)
                        except SwampError:
                            continue  # reported where it is named
                        edges[current.name].append(child.name)
                        waiting.append(child)
        if any(edges.values()):
            cycle = find_cycle(edges)
            name = "No cyclic nested workflows"
            if cycle and workflow.name in cycle:
                shown = " -> ".join(cycle)
                yield Check(name, False, error=f"{workflow.source.at()}: workflows run each other: {shown}")
            else:
                yield Check(name)


def _as_checks(name: str, findings: list[Finding]) -> Iterator[Check]:
    """One check for a list of findings; nothing when there is nothing to say."""
    errors = [found.text for found in findings if not found.warning]
    warnings = [found.text for found in findings if found.warning]
    if errors:
        yield Check(name, False, error="\n".join(dict.fromkeys(errors)))
    if warnings:
        yield Check(name, warning="\n".join(dict.fromkeys(warnings)))


def _failed(name: str, where: str, error: SwampError) -> Check:
    return Check(name, False, error=f"{where}: {error.message}")
