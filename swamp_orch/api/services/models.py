"""The calls `model.*` that run nothing: create, read, change, check and remove models, and look at types.

Rules:
1. Text comes back as it was typed, and goes in as it is typed; only a missing `id` is added.
2. What cannot be parsed is listed (`problems`) and named, never left out. `source` and `edit` work on such a
   file, so that it can be repaired with the same commands.
3. A model that a workflow names is not deleted. Its data is marked deleted first and the file removed last,
   so that a crash in between is finished by the same command.

Shapes: docs/reference/models.md.
"""

from collections.abc import Callable, Iterator
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
from swamp_orch.definitions.inputs import mask_inputs
from swamp_orch.definitions.models import Models
from swamp_orch.definitions.repository import Repository
from swamp_orch.definitions.types import normalise_type
from swamp_orch.definitions.values import ModelDefinition, ModelMethodTask
from swamp_orch.definitions.workflows import Workflows
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
from swamp_proto.errors import Conflict, InvalidDefinition, UsageError
from swamp_proto.limits import BATCH_RECORDS_MAX
from swamp_worker.models.interface import MethodSpec, ModelType


class ModelCalls:
    """Thread-safe: it holds no state beyond what it was made from."""

    def __init__(self, repository: Repository, store: Store, models: Models, workflows: Workflows) -> None:
        self._repository = repository
        self._store = store
        self._models = models
        self._types = models.types
        self._workflows = workflows

    def handlers(self) -> dict[str, Callable[[Parameters], Any]]:
        return {
            "model.create": self._create,
            "model.get": self._get,
            "model.search": self._search,
            "model.source": self._source,
            "model.edit": self._edit,
            "model.delete": self._delete,
            "model.validate": self._validate,
            "model.method_describe": self._method_describe,
            "model.type_search": self._type_search,
            "model.type_describe": self._type_describe,
        }

    def _create(self, parameters: Parameters) -> Document:
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

    def _get(self, parameters: Parameters) -> Document:
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
            "globalArguments": mask_inputs(model_type.global_arguments, found.global_arguments),
            "typeVersion": found.type_version or model_type.version,
            "globalArgumentsSchema": dict(model_type.global_arguments),
            "methods": _methods(model_type),
            "methodArguments": {
                name: mask_inputs(spec.arguments if (spec := model_type.methods.get(name)) else {}, given)
                for name, given in found.methods.items()
            },
            "path": str(found.source.file),
        }
        if found.inputs.get("properties"):
            document["inputs"] = dict(found.inputs)
        return document

    def _search(self, parameters: Parameters) -> Document:
        """`{query, results[{id, name, type}], problems?[{path, error}]}`; `query` is part of name, type or
        id."""
        query = parameters.get("query") or ""
        listing = self._models.all()
        results = [
            {"id": found.id, "name": found.name, "type": found.type}
            for found in listing.found
            if matches(query, found.name, found.type, found.id)
        ]
        return {"query": query, "results": results} | problems(self._models.folder, listing)

    def _source(self, parameters: Parameters) -> Document:
        """`{name, path, text}`, also of a file that does not parse."""
        return source_document(self._models.folder, parameters["name"])

    def _edit(self, parameters: Parameters) -> Document:
        """`{path, editor, status: updated|unchanged, name, type, editType}`"""
        folder = self._models.folder
        path, text = path_of(folder, parameters["name"]), parameters["text"]
        before = read_text(folder, path)
        made = self._models.rewrite(path, text)
        return {
            "path": str(made.source.file),
            "editor": None,
            "status": "unchanged" if before == text else "updated",
            "name": made.name,
            "type": made.type,
            "editType": "text",
        }

    def _delete(self, parameters: Parameters) -> Document:
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
                    if isinstance(step.task, ModelMethodTask) and refers_to(
                        step.task.model, model.name, model.id
                    ):
                        yield f"workflow '{workflow.name}' (step '{step.name}')"
        for item in listing.unreadable:
            text = read_text(self._workflows.folder, item.path, lenient=True)
            if model.name in text or model.id in text:
                shown = self._workflows.folder.shown(item.path)
                yield f"{shown}, which cannot be read ({item.error.message})"

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

    def _validate(self, parameters: Parameters) -> Document:
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
            "validations": schema_problems(error),
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
        """`{query, results[{type, version, description, methods[]}], problems?[{path, error}]}`; swamp's own types only with `all`;
        `problems` are extensions that can not be used."""
        query = parameters.get("query") or ""
        results = [
            {
                "type": found.name,
                "version": found.version,
                "description": found.description,
                "methods": list(found.methods),
            }
            for found in self._types.all(internal=bool(parameters.get("all")))
            if matches(query, found.name, found.description) or matches(normalise_type(query), found.name)
        ]
        wrong = [
            {"path": f"extensions/models/{found.unit}", "error": found.text}
            for found in self._types.problems()
        ]
        return {"query": query, "results": results} | ({"problems": wrong} if wrong else {})

    def _type_describe(self, parameters: Parameters) -> Document:
        """`{type{raw, normalized}, version, description, globalArguments, dataOutputSpecs[], methods[], checks[{name, description,
        labels[], appliesTo[]}], reports[{name, description, scope, labels[]}], secrets[], reads[], bundle?, entry?}`"""
        found = self._types.get(parameters["type"])
        document: Document = {
            "type": {"raw": parameters["type"], "normalized": found.name},
            "version": found.version,
            "description": found.description,
            "globalArguments": dict(found.global_arguments),
            "dataOutputSpecs": _outputs(found),
            "methods": _methods(found),
            "checks": [
                {
                    "name": check.name,
                    "description": check.description,
                    "labels": list(check.labels),
                    "appliesTo": list(check.applies_to),
                }
                for check in found.checks.values()
            ],
            "reports": [
                {
                    "name": report.name,
                    "description": report.description,
                    "scope": report.scope,
                    "labels": list(report.labels),
                }
                for report in found.reports.values()
            ],
            "secrets": sorted(found.secrets),
            "reads": sorted(found.reads),
        }
        if found.bundle:
            document |= {"bundle": found.bundle, "entry": found.entry}
        return document


def _method(spec: MethodSpec) -> Document:
    found: Document = {"name": spec.name, "description": spec.description, "arguments": dict(spec.arguments)}
    if not spec.mutates:
        found["mutates"] = False
    if spec.returns:
        found["returns"] = spec.returns
    return found


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
