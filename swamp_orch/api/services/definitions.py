"""The calls `model.*` and `workflow.*` that do not run anything: create, read, change, check and remove
definitions.

Rules:
1. Text comes back as it was typed, and goes in as it is typed; only a missing `id` is added.
2. What cannot be parsed is listed (`problems`) and named, never left out. `source` and `edit` work on such a
   file, so that it can be repaired with the same commands.
3. A model that a workflow names is not deleted. Its data is marked deleted first and the file removed last,
   so that a crash in between is finished by the same command.

Shapes: docs/reference/models.md and docs/reference/workflows.md.
"""

import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from swamp_orch.definitions.documents import task_document, workflow_document
from swamp_orch.definitions.fields import DefinitionProblems
from swamp_orch.definitions.inputs import mask_inputs
from swamp_orch.definitions.lookup import Folder, Listing
from swamp_orch.definitions.models import Models
from swamp_orch.definitions.repository import Repository
from swamp_orch.definitions.types import TypeRegistry, built_in, normalise_type
from swamp_orch.definitions.values import (
    ModelDefinition,
    ModelMethodTask,
    Workflow,
    WorkflowTask,
)
from swamp_orch.definitions.workflow_checks import Check, WorkflowChecks
from swamp_orch.definitions.workflows import Workflows
from swamp_orch.definitions.yaml_source import decode
from swamp_orch.store.interface import (
    Batch,
    Comparison,
    NewRecord,
    Owner,
    OwnerType,
    Record,
    Selection,
    Store,
    Term,
    json_content,
)
from swamp_proto.errors import Conflict, InvalidDefinition, SwampError, UsageError
from swamp_proto.limits import BATCH_RECORDS_MAX, IDENTIFIER_PREFIX_MIN
from swamp_worker.models.interface import MethodSpec, ModelType

Parameters = Mapping[str, Any]
Document = dict[str, Any]


class DefinitionService:
    """Thread-safe: it holds no state beyond what it was made from."""

    def __init__(self, repository: Repository, store: Store, types: TypeRegistry | None = None) -> None:
        self._repository = repository
        self._store = store
        self._types = types or built_in()
        self._models = Models(repository, self._types)
        self._workflows = Workflows(repository)

    def handlers(self) -> dict[str, Callable[[Parameters], Any]]:
        return {
            "model.create": self._model_create,
            "model.get": self._model_get,
            "model.search": self._model_search,
            "model.source": self._model_source,
            "model.edit": self._model_edit,
            "model.delete": self._model_delete,
            "model.validate": self._model_validate,
            "model.method_describe": self._method_describe,
            "model.type_search": self._type_search,
            "model.type_describe": self._type_describe,
            "workflow.create": self._workflow_create,
            "workflow.get": self._workflow_get,
            "workflow.search": self._workflow_search,
            "workflow.source": self._workflow_source,
            "workflow.edit": self._workflow_edit,
            "workflow.delete": self._workflow_delete,
            "workflow.validate": self._workflow_validate,
            "workflow.schema": self._workflow_schema,
        }

    # ── models
    # ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _model_create(self, parameters: Parameters) -> Document:
        """`{id, type, name, path, version, typeVersion, globalArguments (schema), methods[{name, description,
        arguments}]}`"""
        arguments = parameters.get("arguments") or {}
        for method, given in arguments.items():
            if not isinstance(given, dict):
                raise UsageError(
                    f"the arguments of '{method}' must be a map", hint="--arg METHOD.ARGUMENT=VALUE"
                )
        made = self._models.create(
            parameters["type"], parameters["name"], parameters.get("globalArguments") or {}, arguments
        )
        model_type = self._types.get(made.type)
        return {
            "id": made.id,
            "type": made.type,
            "name": made.name,
            "path": str(made.source.file),
            "version": made.version,
            "typeVersion": made.type_version,
            "globalArguments": dict(model_type.global_arguments),
            "methods": _methods(model_type),
        }

    def _model_get(self, parameters: Parameters) -> Document:
        """`{id, name, type, version, tags, globalArguments, typeVersion, globalArgumentsSchema, methods[],
        methodArguments, inputs?, path}`; sensitive values are `***`."""
        found = self._models.find(parameters["name"])
        model_type = self._models.type_of(found)
        document: Document = {
            "id": found.id,
            "name": found.name,
            "type": found.type,
            "version": found.version,
            "tags": dict(found.tags),
            "globalArguments": _masked(model_type.global_arguments, found.global_arguments),
            "typeVersion": found.type_version or model_type.version,
            "globalArgumentsSchema": dict(model_type.global_arguments),
            "methods": _methods(model_type),
            "methodArguments": {
                name: _masked(spec.arguments if (spec := model_type.methods.get(name)) else {}, given)
                for name, given in found.methods.items()
            },
            "path": str(found.source.file),
        }
        if found.inputs.get("properties"):
            document["inputs"] = dict(found.inputs)
        return document

    def _model_search(self, parameters: Parameters) -> Document:
        """`{query, results[{id, name, type}], problems?[{path, error}]}`; `query` is part of name, type or
        id."""
        query = parameters.get("query") or ""
        listing = self._models.all()
        results = [
            {"id": found.id, "name": found.name, "type": found.type}
            for found in listing.found
            if _matches(query, found.name, found.type, found.id)
        ]
        return {"query": query, "results": results} | self._problems(self._models.folder, listing)

    def _model_source(self, parameters: Parameters) -> Document:
        """`{name, path, text}`, also of a file that does not parse."""
        return _source(self._models.folder, parameters["name"])

    def _model_edit(self, parameters: Parameters) -> Document:
        """`{path, editor, status: updated|unchanged, name, type, editType}`"""
        folder = self._models.folder
        path, text = _path(folder, parameters["name"]), parameters["text"]
        before = _read(folder, path)
        made = self._models.rewrite(path, text)
        return {
            "path": str(made.source.file),
            "editor": None,
            "status": "unchanged" if before == text else "updated",
            "name": made.name,
            "type": made.type,
            "editType": "text",
        }

    def _model_delete(self, parameters: Parameters) -> Document:
        """`{deleted{id, name, type, inputPath}, resourceDeleted, outputsDeleted, evaluatedInputDeleted,
        dataDeleted, expiredDataAutoCollected}`. Raises `Conflict` while a workflow names the model."""
        found = self._models.find(parameters["name"])
        users = sorted(self._users(found))
        if users:
            raise Conflict(
                f"the model '{found.name}' is used by {', '.join(users)}",
                hint="change or delete those workflows first",
                code="in_use",
            )
        removed = self._delete_data(found)
        self._models.remove(found)
        return {
            "deleted": {
                "id": found.id,
                "name": found.name,
                "type": found.type,
                "inputPath": str(found.source.file),
            },
            "resourceDeleted": removed > 0,
            "outputsDeleted": 0,
            "evaluatedInputDeleted": False,
            "dataDeleted": removed,
            "expiredDataAutoCollected": 0,
        }

    def _users(self, model: ModelDefinition) -> Iterator[str]:
        """Workflows that name the model: by name, id or the beginning of it. One that cannot be read counts
        when the name is anywhere in its text."""
        listing = self._workflows.all()
        for workflow in listing.found:
            for job in workflow.jobs:
                for step in job.steps:
                    if isinstance(step.task, ModelMethodTask) and _names(
                        step.task.model, model.name, model.id
                    ):
                        yield f"workflow '{workflow.name}' (step '{step.name}')"
        for item in listing.unreadable:
            text = _read(self._workflows.folder, item.path, lenient=True)
            if model.name in text or model.id in text:
                yield f"{self._workflows.folder.shown(item.path)}, which cannot be read ({item.error.message})"

    def _delete_data(self, model: ModelDefinition) -> int:
        """Mark every record of the model deleted; answers how many names there were."""
        selection = Selection(
            terms=(Term("modelId", Comparison.EQ, (model.id,)),), latest_only=True, with_content=False
        )
        count = 0
        waiting: list[NewRecord] = []
        for record in list(self._store.select(selection)):
            waiting.append(_tombstone(record))
            if len(waiting) == BATCH_RECORDS_MAX:
                count += len(self._store.commit(Batch(records=tuple(waiting))).records)
                waiting.clear()
        if waiting:
            count += len(self._store.commit(Batch(records=tuple(waiting))).records)
        return count

    def _model_validate(self, parameters: Parameters) -> Document:
        """One: `{modelId, modelName, type, validations[{name, passed, error?}], warnings[{name, message,
        envVars?}], passed}`. All: `{models[], totalPassed, totalFailed, totalWarnings, passed}`."""
        name = parameters.get("name")
        if name is not None:
            path = self._models.folder.path_of(name)
            if path is None:
                return self._validate_model(self._models.find(name))
            try:
                return self._validate_model(self._models.find(name))
            except InvalidDefinition as error:
                return self._invalid_model(path, error)
        listing = self._models.all(write_id=False)
        documents = [self._validate_model(found) for found in listing.found]
        documents += [self._invalid_model(item.path, item.error) for item in listing.unreadable]
        return {
            "models": documents,
            "totalPassed": sum(item["passed"] for item in documents),
            "totalFailed": sum(not item["passed"] for item in documents),
            "totalWarnings": sum(len(item["warnings"]) for item in documents),
            "passed": all(item["passed"] for item in documents),
        }

    def _validate_model(self, found: ModelDefinition) -> Document:
        from swamp_orch.definitions.model_checks import model_checks

        validations, warnings = model_checks(self._repository, found, self._models)
        return {
            "modelId": found.id,
            "modelName": found.name,
            "type": found.type,
            "validations": validations,
            "warnings": warnings,
            "passed": all(item["passed"] for item in validations),
        }

    def _invalid_model(self, path: Path, error: InvalidDefinition) -> Document:
        folder = path.parent.relative_to(self._repository.models).as_posix()
        return {
            "modelId": "",
            "modelName": self._models.folder.name_of(path) or path.name,
            "type": "" if folder == "." else folder,
            "validations": _schema_problems(error),
            "warnings": [],
            "passed": False,
        }

    def _method_describe(self, parameters: Parameters) -> Document:
        """`{modelName, modelType, version, method{name, description, arguments}, dataOutputSpecs[]}`"""
        found = self._models.find(parameters["name"])
        model_type = self._models.type_of(found)
        method = self._types.method(model_type, parameters["method"])
        return {
            "modelName": found.name,
            "modelType": found.type,
            "version": model_type.version,
            "method": _method(method),
            "dataOutputSpecs": _outputs(model_type),
        }

    def _type_search(self, parameters: Parameters) -> Document:
        """`{query, results[{type, version, description, methods[]}]}`; swamp's own types only with `all`."""
        query = parameters.get("query") or ""
        results = [
            {
                "type": found.name,
                "version": found.version,
                "description": found.description,
                "methods": list(found.methods),
            }
            for found in self._types.all(internal=bool(parameters.get("all")))
            if _matches(query, found.name, found.description) or _matches(normalise_type(query), found.name)
        ]
        return {"query": query, "results": results}

    def _type_describe(self, parameters: Parameters) -> Document:
        """`{type{raw, normalized}, version, description, globalArguments, dataOutputSpecs[], methods[]}`"""
        found = self._types.get(parameters["type"])
        return {
            "type": {"raw": parameters["type"], "normalized": found.name},
            "version": found.version,
            "description": found.description,
            "globalArguments": dict(found.global_arguments),
            "dataOutputSpecs": _outputs(found),
            "methods": _methods(found),
        }

    # ── workflows
    # ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _workflow_create(self, parameters: Parameters) -> Document:
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

    def _workflow_get(self, parameters: Parameters) -> Document:
        """The workflow as a document, defaults left out, and `path`."""
        found = self._workflows.find(parameters["name"])
        return workflow_document(found) | {"path": str(found.source.file)}

    def _workflow_search(self, parameters: Parameters) -> Document:
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
            if _matches(query, found.name, found.description, found.id)
        ]
        return {"query": query, "results": results} | self._problems(self._workflows.folder, listing)

    def _workflow_source(self, parameters: Parameters) -> Document:
        """`{name, path, text}`, also of a file that does not parse."""
        return _source(self._workflows.folder, parameters["name"])

    def _workflow_edit(self, parameters: Parameters) -> Document:
        """`{path, editor, status: updated|unchanged, name}`"""
        folder = self._workflows.folder
        path, text = _path(folder, parameters["name"]), parameters["text"]
        before = _read(folder, path)
        made = self._workflows.rewrite(path, text)
        return {
            "path": str(made.source.file),
            "editor": None,
            "status": "unchanged" if before == text else "updated",
            "name": made.name,
        }

    def _workflow_delete(self, parameters: Parameters) -> Document:
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
            if isinstance(step.task, WorkflowTask) and _names(step.task.workflow, found.name, found.id)
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

    def _workflow_validate(self, parameters: Parameters) -> Document:
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
            "validations": _schema_problems(error),
            "totalWarnings": 0,
            "passed": False,
        }

    def _workflow_schema(self, parameters: Parameters) -> Document:
        """A JSON Schema (draft 2020-12)."""
        from swamp_orch.definitions.workflow_schema import workflow_schema

        return workflow_schema()

    def _problems(self, folder: Folder, listing: Listing) -> Document:
        found = [
            {"path": str(folder.shown(item.path)), "error": item.error.message} for item in listing.unreadable
        ]
        return {"problems": found} if found else {}


# ── shapes
# ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _method(spec: MethodSpec) -> Document:
    return {"name": spec.name, "description": spec.description, "arguments": dict(spec.arguments)}


def _methods(model_type: ModelType) -> list[Document]:
    return [_method(spec) for spec in model_type.methods.values()]


def _outputs(model_type: ModelType) -> list[Document]:
    found = []
    for spec in model_type.outputs.values():
        document: Document = {
            "name": spec.name,
            "kind": spec.kind,
            "contentType": spec.content_type,
            "description": spec.description,
            "lifetime": spec.lifetime,
            "garbageCollection": spec.keep,
        }
        if spec.schema is not None:
            document["schema"] = dict(spec.schema)
        found.append(document)
    return found


def _masked(schema: Mapping[str, Any], values: Mapping[str, Any]) -> Document:
    return mask_inputs(schema, values)


def _matches(query: str, *texts: str) -> bool:
    return any(query.lower() in text.lower() for text in texts)


def _names(reference: str, name: str, identity: str) -> bool:
    """Whether `reference` in a workflow means the definition."""
    return reference in (name, identity) or (
        len(reference) >= IDENTIFIER_PREFIX_MIN and identity.startswith(reference)
    )


def _tombstone(record: Record) -> NewRecord:
    """The next version of a record, which says that it was deleted."""
    return NewRecord(
        model_type=record.model_type,
        model_id=record.model_id,
        model_name=record.model_name,
        name=record.name,
        spec=record.spec,
        content=json_content({}),
        kind=record.kind,
        content_type=record.content_type,
        lifetime=record.lifetime,
        keep=record.keep,
        tags=record.tags,
        owner=Owner(type=OwnerType.MANUAL, source="model-delete"),
        deleted=True,
        expect=record.version,
    )


def _validated(checks: WorkflowChecks, workflow: Workflow) -> Document:
    found: list[Check] = checks.check(workflow)
    return {
        "workflowId": workflow.id,
        "workflowName": workflow.name,
        "validations": [check.document() for check in found],
        "totalWarnings": sum(check.warning is not None for check in found),
        "passed": all(check.passed for check in found),
    }


def _schema_problems(error: InvalidDefinition) -> list[Document]:
    if isinstance(error, DefinitionProblems):
        return [
            {
                "name": "Schema validation",
                "passed": False,
                "error": str(problem) + (f" ({problem.hint})" if problem.hint else ""),
            }
            for problem in error.problems
        ]
    hint = f" ({error.hint})" if error.hint else ""
    return [{"name": "Schema validation", "passed": False, "error": error.message + hint}]


def _path(folder: Folder, name: str) -> Path:
    """The file of a definition, whether it parses or not. Raises `NotFound`."""
    path = folder.path_of(name)
    if path is not None:
        return path
    definition: ModelDefinition | Workflow = folder.find(name)
    return folder.repository.root / definition.source.file


def _source(folder: Folder, name: str) -> Document:
    path = _path(folder, name)
    return {"name": folder.name_of(path), "path": str(folder.shown(path)), "text": _read(folder, path)}


def _read(folder: Folder, path: Path, *, lenient: bool = False) -> str:
    from swamp_orch.definitions.files import disk_error

    try:
        raw = path.read_bytes()
    except OSError as error:
        raise disk_error("read", path, error) from error
    if lenient:
        return raw.decode(errors="replace")
    return decode(raw, folder.shown(path))
