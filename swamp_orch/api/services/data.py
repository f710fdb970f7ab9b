"""The calls `data.*`: JSON answers about records. Shapes and fields: docs/reference/data.md.

Rules: a record is named by its model (a name or an id) and its own name. Deleting a record writes a
tombstone, after which it is no longer found; its versions stay until the collector takes them, or `version`
removes one at once. swamp's own bookkeeping can be read here and never deleted.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from swamp_orch.definitions.repository import Repository
from swamp_orch.query.lookup import Lookup, Model
from swamp_orch.store.bookkeeping import INFRASTRUCTURE_TYPES, iso
from swamp_orch.store.interface import (
    Batch,
    Kind,
    NewRecord,
    Owner,
    OwnerType,
    Record,
    Selection,
    Store,
    json_content,
)
from swamp_proto.errors import Conflict, LocalError, NotFound, SwampError, UsageError
from swamp_proto.limits import ATTRIBUTES_MAX, EXPORT_MAX

SEARCH_LIMIT: Final = 50
_KINDS: Final = tuple(kind.value for kind in Kind)
_ATTEMPTS_MAX: Final = 5


class DataService:
    """Thread-safe."""

    def __init__(self, repository: Repository, store: Store) -> None:
        self._repository = repository
        self._store = store
        self._lookup = Lookup(repository, store)

    def handlers(self) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
        return {
            "data.query": self._query,
            "data.get": self._get,
            "data.list": self._list,
            "data.versions": self._versions,
            "data.search": self._search,
            "data.delete": self._delete,
            "data.gc": self._gc,
            "data.export": self._export,
        }

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────

    def _query(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """`{predicate, results[record], total, limited, skippedRows, skippedReason?, note?}`; with `select`
        `{results[value], total, limited, skippedRows, …}`."""
        from swamp_orch.query.run import prepare, run
        from swamp_orch.query.suggestions import note

        limit = parameters.get("limit")
        if limit is not None and limit < 1:
            raise UsageError(f"the limit must be positive, not {limit}")
        query = prepare(parameters["predicate"], parameters.get("select"))
        found = run(self._store, query, limit)
        answer: dict[str, Any] = {} if query.select else {"predicate": parameters["predicate"]}
        answer |= {
            "results": found.results,
            "total": len(found.results),
            "limited": found.limited,
            "skippedRows": found.skipped,
        }
        if found.skipped:
            answer["skippedReason"] = found.reason
        said = note(self._store, query, found)
        return answer if said is None else answer | {"note": said}

    def _get(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """One record version with its content."""
        record = self._record(parameters)
        with_content = parameters.get("content") is not False
        content, omitted = self._content(record) if with_content else (None, None)
        answer = {
            "id": record.id,
            "name": record.name,
            "modelId": record.model_id,
            "modelName": record.model_name,
            "modelType": record.model_type,
            "version": record.version,
            "contentType": record.content_type,
            "lifetime": record.lifetime,
            "garbageCollection": record.keep,
            "streaming": record.streaming,
            "tags": dict(record.tags),
            "ownerDefinition": _owner(record.owner),
            "createdAt": iso(record.created_ms),
            "size": record.size,
            "checksum": record.sha256,
            "contentPath": self._path(record),
        }
        if with_content:
            answer["content"] = content
        if omitted is not None:
            answer["contentOmitted"] = omitted
        return answer | {
            "specName": record.spec,
            "dataType": record.kind.value,
            "outcome": record.outcome,
            "isLatest": record.is_latest,
            "isDeleted": record.deleted,
        }

    def _list(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """`{modelId, modelName, modelType, groups[{type, items[]}], total}`; without `model`, of all models
        but swamp's own, and items name their model."""
        kind = _kind(parameters.get("type"))
        wanted = parameters.get("model")
        if wanted is None:
            answer: dict[str, Any] = {}
            records: Iterator[Record] = (
                record
                for record in self._store.select(Selection(with_content=False))
                if record.model_type not in INFRASTRUCTURE_TYPES
            )
        else:
            model = self._lookup.model(wanted)
            answer = {"modelId": model.id, "modelName": model.name, "modelType": model.type}
            records = iter(self._lookup.records(model))
        groups: dict[str, list[dict[str, Any]]] = {}
        total = 0
        for record in records:
            if kind is not None and record.kind.value != kind:
                continue
            item = {
                "id": record.id,
                "name": record.name,
                "version": record.version,
                "contentType": record.content_type,
                "type": record.kind.value,
                "streaming": record.streaming,
                "size": record.size,
                "createdAt": iso(record.created_ms),
            }
            if wanted is None:
                item |= {"modelName": record.model_name, "modelType": record.model_type}
            groups.setdefault(record.kind.value, []).append(item)
            total += 1
        in_order = sorted(groups.items(), key=lambda group: _KINDS.index(group[0]))
        return answer | {
            "groups": [{"type": name, "items": items} for name, items in in_order],
            "total": total,
        }

    def _versions(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """`{dataName, modelId, modelName, modelType, versions[{version, createdAt, size, checksum,
        isLatest}], total}`, newest first."""
        model = self._lookup.model(parameters["model"], parameters["name"])
        newest = self._lookup.latest(model, parameters["name"])
        versions = [
            {
                "version": record.version,
                "createdAt": iso(record.created_ms),
                "size": record.size,
                "checksum": record.sha256,
                "isLatest": record.is_latest,
                "isDeleted": record.deleted,
            }
            for record in reversed(self._store.versions(model.id, newest.name))
        ]
        return {
            "dataName": newest.name,
            "modelId": model.id,
            "modelName": newest.model_name,
            "modelType": newest.model_type,
            "versions": versions,
            "total": len(versions),
        }

    def _search(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """`{query, results[], total, limited}`, newest first: records whose name, model, spec or tags contain
        the text. swamp's own are left out unless their model is named."""
        text = (parameters.get("query") or "").casefold()
        kind = _kind(parameters.get("type"))
        limit = parameters.get("limit") or SEARCH_LIMIT
        if limit < 1:
            raise UsageError(f"the limit must be positive, not {limit}")
        wanted = parameters.get("model")
        model = None if wanted is None else self._lookup.model(wanted)
        results: list[dict[str, Any]] = []
        limited = False
        for record in self._store.select(_newest(model), newest_first=True):
            if (model is None and record.model_type in INFRASTRUCTURE_TYPES) or (
                kind is not None and record.kind.value != kind
            ):
                continue
            texts = (
                record.name,
                record.model_name,
                record.spec,
                *(f"{k}={v}" for k, v in record.tags.items()),
            )
            if text and not any(text in part.casefold() for part in texts):
                continue
            if len(results) == limit:
                limited = True
                break
            results.append(_found(record))
        return {
            "query": parameters.get("query") or "",
            "results": results,
            "total": len(results),
            "limited": limited,
        }

    def _export(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """`{name, modelName, version, contentType, size, checksum, base64}`"""
        import base64

        record = self._record(parameters)
        if record.size > EXPORT_MAX:
            raise LocalError(
                f"'{record.name}' is {record.size} bytes; an answer carries up to {EXPORT_MAX}",
                hint=f"its bytes are in {self._path(record)}",
            )
        return {
            "name": record.name,
            "modelName": record.model_name,
            "version": record.version,
            "contentType": record.content_type,
            "size": record.size,
            "checksum": record.sha256,
            "base64": base64.b64encode(self._store.read(record)).decode(),
        }

    def _record(self, parameters: Mapping[str, Any]) -> Record:
        """The version that is asked for, with inline content."""
        name, version = parameters["name"], parameters.get("version")
        model = self._lookup.model(parameters["model"], name)
        if version is not None:
            record = self._store.version(model.id, name, version)
            if record is None:
                newest = self._lookup.latest(model, name)
                raise NotFound(
                    f"'{name}' of model '{model.name}' has no version {version}; "
                    f"the newest is {newest.version}",
                    hint=f"swamp data versions {model.name} {name}",
                )
            return record
        record = self._store.latest(model.id, name)
        if record is None:
            raise self._lookup.unknown_record(model, name)
        if record.deleted:
            raise NotFound(
                f"'{name}' of model '{model.name}' was deleted at {iso(record.created_ms)}",
                hint=f"swamp data versions {model.name} {name}",
            )
        return record

    def _content(self, record: Record) -> tuple[Any, str | None]:
        """The content as JSON or text, or None and why it is left out."""
        if record.size > ATTRIBUTES_MAX:
            return None, f"{record.size} bytes are too many to show; use `swamp data export`"
        raw = self._store.read(record)
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            return None, "the content is not text; use `swamp data export`"
        if "json" not in record.content_type:
            return text, None
        try:
            return json.loads(text), None
        except (ValueError, RecursionError):
            return text, None

    def _path(self, record: Record) -> str | None:
        """Where the bytes are, relative to the repository; None when they are in the store's own file."""
        if record.content is not None:
            return None
        with self._store.open_blob(record.sha256) as file:
            name = getattr(file, "name", None)
        return None if name is None else str(name).removeprefix(f"{self._repository.root}/")

    # ── deleting ────────────────────────────────────────────────────────────────────────────────────────────

    def _delete(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """`{modelId, modelName, dataNames[], totalDeleted, totalVersionsDeleted, failed[{dataName, error}],
        dryRun}`"""
        name, version = parameters.get("name"), parameters.get("version")
        prefix, everything = parameters.get("prefix"), bool(parameters.get("all"))
        if sum((name is not None, prefix is not None, everything)) != 1:
            raise UsageError("say what to delete", hint="exactly one of: a record's name, a prefix, all")
        if version is not None and name is None:
            raise UsageError("a version can be deleted of one named record only")
        model = self._lookup.model(parameters["model"], name)
        if model.type in INFRASTRUCTURE_TYPES:
            raise LocalError(
                f"{model.type} is swamp's own bookkeeping and cannot be deleted",
                hint="what has ended is collected by itself; see swamp data gc",
            )
        dry_run = bool(parameters.get("dryRun"))
        if name is not None and version is not None:
            return self._delete_version(model, name, version, dry_run)
        if name is not None:
            newest = self._lookup.latest(model, name)
            records = [] if newest.deleted else [newest]
        else:
            records = [r for r in self._lookup.records(model) if r.name.startswith(prefix or "")]
        gone, versions, failed = [], 0, []
        for record in records:
            count = sum(not old.deleted for old in self._store.versions(record.model_id, record.name))
            try:
                if not dry_run:
                    self._bury(record)
            except SwampError as error:
                failed.append({"dataName": record.name, "error": error.message})
                continue
            gone.append(record.name)
            versions += count
        return _deleted(model, gone, versions, failed, dry_run)

    def _delete_version(self, model: Model, name: str, version: int, dry_run: bool) -> dict[str, Any]:
        if self._store.version(model.id, name, version, content=False) is None:
            newest = self._lookup.latest(model, name)
            raise NotFound(
                f"'{name}' of model '{model.name}' has no version {version}; the newest is {newest.version}",
                hint=f"swamp data versions {model.name} {name}",
            )
        count = 1 if dry_run else self._store.remove([(model.id, name, version)])
        return _deleted(model, [name], count, [], dry_run) | {"version": version}

    def _bury(self, record: Record) -> None:
        """Write a tombstone after the newest version, whoever else is writing. Raises `Conflict` when that
        never ends."""
        for _ in range(_ATTEMPTS_MAX):
            try:
                self._store.commit(Batch((tombstone(record, time.time_ns() // 1_000_000),)))
                return
            except Conflict:
                newest = self._store.latest(record.model_id, record.name, content=False)
                if newest is None or newest.deleted:
                    return
                record = newest
        raise Conflict(
            f"'{record.name}' is being written all the time", hint="stop what writes it and try again"
        )

    def _gc(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """`{dataEntriesExpired, versionsDeleted, bytesReclaimed, dryRun, expiredEntries[{modelName, dataName,
        reason}]}`"""
        from swamp_orch.store.retention import collect

        dry_run = bool(parameters.get("dryRun"))
        found = collect(self._store, time.time_ns() // 1_000_000, dry_run=dry_run)
        return {
            "dataEntriesExpired": len(found.expired),
            "versionsDeleted": found.versions,
            "bytesReclaimed": found.bytes,
            "dryRun": dry_run,
            "expiredEntries": [
                {"modelName": entry.model_name, "dataName": entry.name, "reason": entry.reason}
                for entry in found.expired
            ],
        }


def tombstone(record: Record, wall_ms: int) -> NewRecord:
    """The version that says a record was deleted: found by nobody who does not ask for `isDeleted`."""
    return NewRecord(
        model_type=record.model_type,
        model_id=record.model_id,
        model_name=record.model_name,
        name=record.name,
        spec=record.spec,
        content=json_content({"deletedAt": iso(wall_ms)}),
        kind=record.kind,
        lifetime=record.lifetime,
        keep=record.keep,
        tags=record.tags,
        owner=Owner(type=OwnerType.MANUAL, ref=record.owner.ref),
        deleted=True,
        expect=record.version,
    )


def _deleted(
    model: Model, names: list[str], versions: int, failed: list[dict[str, str]], dry_run: bool
) -> dict[str, Any]:
    return {
        "modelId": model.id,
        "modelName": model.name,
        "dataNames": names,
        "totalDeleted": len(names),
        "totalVersionsDeleted": versions,
        "failed": failed,
        "dryRun": dry_run,
    }


def _newest(model: Model | None) -> Selection:
    from swamp_orch.store.interface import Comparison, Term

    terms = () if model is None else (Term("modelId", Comparison.EQ, (model.id,)),)
    return Selection(terms, with_content=False)


def _kind(name: str | None) -> str | None:
    if name is not None and name not in _KINDS:
        raise UsageError(f"{name!r} is not a type of data", hint=f"one of: {', '.join(_KINDS)}")
    return name


def _found(record: Record) -> dict[str, Any]:
    return {
        "id": record.id,
        "name": record.name,
        "version": record.version,
        "modelName": record.model_name,
        "modelType": record.model_type,
        "specName": record.spec,
        "dataType": record.kind.value,
        "contentType": record.content_type,
        "lifetime": record.lifetime,
        "ownerType": record.owner.type.value,
        "streaming": record.streaming,
        "size": record.size,
        "createdAt": iso(record.created_ms),
        "tags": dict(record.tags),
    }


def _owner(owner: Owner) -> dict[str, Any]:
    """`{ownerType, ownerRef, workflowId?, workflowRunId?, workflowName?, jobName?, stepName?, dispatch?,
    fence?, source?}`"""
    optional = {
        "workflowId": owner.workflow_id,
        "workflowRunId": owner.run,
        "workflowName": owner.workflow,
        "jobName": owner.job,
        "stepName": owner.step,
        "dispatch": owner.dispatch,
        "fence": owner.fence,
        "source": owner.source,
    }
    return {
        "ownerType": owner.type.value,
        "ownerRef": owner.ref,
        **{key: value for key, value in optional.items() if value},
    }
