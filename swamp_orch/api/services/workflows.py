"""The calls `workflow.*` that run nothing: create, read, change, check and remove workflows.

The rules are those of `models.py`: text is kept as typed, what cannot be parsed is named and can be repaired
by `edit`, and a workflow that another one runs is not deleted. Runs of a deleted workflow stay as history.

Shapes: docs/reference/workflows.md.
"""

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from swamp_orch.api.services.definition_files import (
    Document,
    Parameters,
    matches,
    path_of,
    problems,
    read_text,
    refers_to,
    schema_problems,
    source_document,
)
from swamp_orch.definitions.documents import task_document, workflow_document
from swamp_orch.definitions.models import Models
from swamp_orch.definitions.repository import Repository
from swamp_orch.definitions.values import ModelDefinition, ModelMethodTask, Workflow, WorkflowTask
from swamp_orch.definitions.workflow_checks import Check, WorkflowChecks
from swamp_orch.definitions.workflows import Workflows
from swamp_proto.errors import Conflict, InvalidDefinition, SwampError, UsageError
from swamp_worker.models.interface import MethodSpec, ModelType


class WorkflowCalls:
    """Thread-safe: it holds no state beyond what it was made from."""

    def __init__(self, repository: Repository, models: Models, workflows: Workflows) -> None:
        self._repository = repository
        self._models = models
        self._workflows = workflows

    def handlers(self) -> dict[str, Callable[[Parameters], Any]]:
        return {
            "workflow.create": self._create,
            "workflow.get": self._get,
            "workflow.search": self._search,
            "workflow.source": self._source,
            "workflow.edit": self._edit,
            "workflow.delete": self._delete,
            "workflow.validate": self._validate,
            "workflow.schema": self._schema,
        }

    def _create(self, parameters: Parameters) -> Document:
        """`{id, name, path, jobs[{name, steps[]}]}`"""
        name, text = parameters.get("name"), parameters.get("text")
        if text is None:
            if name is None:
                raise UsageError(
                    "a new workflow needs a name or a text", hint="swamp workflow create NAME --file F"
                )
            text = self._scaffold(name)
        made = self._workflows.create(name, text)
        return {
            "id": made.id,
            "name": made.name,
            "path": str(made.source.file),
            "jobs": [{"name": job.name, "steps": [step.name for step in job.steps]} for job in made.jobs],
        }

    def _scaffold(self, name: str) -> str:
        """A small workflow that passes `workflow validate`: with the first model that can run as it is, or
        with an assertion where there is none."""
        from swamp_orch.definitions.yaml_edit import dump

        return dump(
            {
                "id": str(uuid.uuid4()),
                "name": name,
                "description": "Say here what this workflow does",
                "jobs": [{"name": "main", "steps": [{"name": "example", "task": self._example()}]}],
                "version": 1,
            }
        )

    def _example(self) -> Document:
        for model in self._models.all().found:
            try:
                model_type = self._models.type_of(model)
            except SwampError:
                continue
            for method in model_type.methods.values():
                task = ModelMethodTask(model.name, method.name, {})
                if self._runs_as_it_is(model, model_type, method):
                    return task_document(task)
        return {"type": "assert", "expr": "1 + 1 == 2", "message": "replace this step by one of your own"}

    def _runs_as_it_is(self, model: ModelDefinition, model_type: ModelType, method: MethodSpec) -> bool:
        from swamp_orch.definitions.inputs import method_arguments

        try:
            method_arguments(model_type, method, model, {})
        except SwampError:
            return False
        return True

    def _get(self, parameters: Parameters) -> Document:
        """The workflow as a document, defaults left out, and `path`."""
        found = self._workflows.find(parameters["name"])
        return workflow_document(found) | {"path": str(found.source.file)}

    def _search(self, parameters: Parameters) -> Document:
        """`{query, results[{id, name, description, jobs, steps}], problems?[{path, error}]}`"""
        query = parameters.get("query") or ""
        listing = self._workflows.all()
        results = [
            {
                "id": found.id,
                "name": found.name,
                "description": found.description,
                "jobs": len(found.jobs),
                "steps": sum(len(job.steps) for job in found.jobs),
            }
            for found in listing.found
            if matches(query, found.name, found.description, found.id)
        ]
        return {"query": query, "results": results} | problems(self._workflows.folder, listing)

    def _source(self, parameters: Parameters) -> Document:
        """`{name, path, text}`, also of a file that does not parse."""
        return source_document(self._workflows.folder, parameters["name"])

    def _edit(self, parameters: Parameters) -> Document:
        """`{path, editor, status: updated|unchanged, name}`"""
        folder = self._workflows.folder
        path, text = path_of(folder, parameters["name"]), parameters["text"]
        before = read_text(folder, path)
        made = self._workflows.rewrite(path, text)
        return {
            "path": str(made.source.file),
            "editor": None,
            "status": "unchanged" if before == text else "updated",
            "name": made.name,
        }

    def _delete(self, parameters: Parameters) -> Document:
        """`{deleted{id, name, workflowPath}, runsDeleted}`; its runs stay as history. Raises `Conflict` while
        another workflow names it."""
        found = self._workflows.find(parameters["name"])
        listing = self._workflows.all()
        users = [
            f"workflow '{other.name}' (step '{step.name}')"
            for other in listing.found
            if other.id != found.id
            for job in other.jobs
            for step in job.steps
            if isinstance(step.task, WorkflowTask) and refers_to(step.task.workflow, found.name, found.id)
        ]
        if users:
            raise Conflict(
                f"the workflow '{found.name}' is used by {', '.join(users)}",
                hint="change or delete those workflows first",
                code="in_use",
            )
        self._workflows.remove(found)
        return {
            "deleted": {"id": found.id, "name": found.name, "workflowPath": str(found.source.file)},
            "runsDeleted": 0,
        }

    def _validate(self, parameters: Parameters) -> Document:
        """One: `{workflowId, workflowName, validations[{name, passed, warning?, error?}], totalWarnings,
        passed}`. All: `{workflows[], totalPassed, totalFailed, totalWarnings, passed}`."""
        name = parameters.get("name")
        checks = WorkflowChecks(self._repository, self._models, self._workflows)
        if name is not None:
            path = self._workflows.folder.path_of(name)
            try:
                return _validated(checks, self._workflows.find(name))
            except InvalidDefinition as error:
                if path is None:
                    raise
                return self._invalid_workflow(path, error)
        listing = self._workflows.all(write_id=False)
        documents = [_validated(checks, found) for found in listing.found]
        documents += [self._invalid_workflow(item.path, item.error) for item in listing.unreadable]
        return {
            "workflows": documents,
            "totalPassed": sum(item["passed"] for item in documents),
            "totalFailed": sum(not item["passed"] for item in documents),
            "totalWarnings": sum(item["totalWarnings"] for item in documents),
            "passed": all(item["passed"] for item in documents),
        }

    def _invalid_workflow(self, path: Path, error: InvalidDefinition) -> Document:
        return {
            "workflowId": "",
            "workflowName": self._workflows.folder.name_of(path) or path.name,
            "validations": schema_problems(error),
            "totalWarnings": 0,
            "passed": False,
        }

    def _schema(self, parameters: Parameters) -> Document:
        """A JSON Schema (draft 2020-12)."""
        from swamp_orch.definitions.workflow_schema import workflow_schema

        return workflow_schema()


def _validated(checks: WorkflowChecks, workflow: Workflow) -> Document:
    found: list[Check] = checks.check(workflow)
    return {
        "workflowId": workflow.id,
        "workflowName": workflow.name,
        "validations": [check.document() for check in found],
        "totalWarnings": sum(check.warning is not None for check in found),
        "passed": all(check.passed for check in found),
    }
