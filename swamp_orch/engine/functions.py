"""The functions expressions can call about stored data and workers: `data.*`, `file.contents`, `workers.connected`.

A record is given as `{id, name, version, attributes, tags, modelName, specName, …}`. What executions that did not succeed left behind
carries an `outcome`; `data.latest` passes over it, `data.version` and queries show it. What is not there is null.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from swamp_orch.api.application import Application
from swamp_orch.engine.overrides import suffix_of
from swamp_orch.store.bookkeeping import WORKER, iso
from swamp_orch.store.interface import Comparison, Kind, Record, Selection, Store, Term
from swamp_proto.errors import NotFound


class DataFunctions:
    """Bound to one application; synchronous."""

    def __init__(self, application: Application) -> None:
        self._application = application

    @property
    def _store(self) -> Store:
        return self._application.store

    def functions(self) -> dict[str, Callable[..., Any]]:
        return {
            "data.latest": self._latest,
            "data.version": self._version,
            "data.listVersions": self._versions,
            "data.findByTag": lambda key, value: self._find(Term(f"tags.{key}", Comparison.EQ, (value,))),
            "data.findBySpec": lambda model, spec: self._find(
                *_of(model), Term("specName", Comparison.EQ, (spec,))
            ),
            "data.query": self._query,
            "file.contents": self._contents,
            "workers.connected": self._workers,
        }

    def _latest(self, model: str, name: str, vary: list[Any] | None = None) -> dict[str, Any] | None:
        selection = Selection(
            (*_of(model), Term("name", Comparison.EQ, (_varied(name, vary),))), latest_only=False
        )
        for record in self._store.select(selection, newest_first=True):
            if not record.outcome:
                return None if record.deleted else self._document(record)
        return None

    def _version(self, model: str, name: str, *rest: Any) -> dict[str, Any] | None:
        *vary, number = rest
        terms = (
            *_of(model),
            Term("name", Comparison.EQ, (_varied(name, vary[0] if vary else None),)),
            Term("version", Comparison.EQ, (number,)),
        )
        found = next(self._store.select(Selection(terms, latest_only=False)), None)
        return None if found is None else self._document(found)

    def _versions(self, model: str, name: str, vary: list[Any] | None = None) -> list[int]:
        terms = (*_of(model), Term("name", Comparison.EQ, (_varied(name, vary),)))
        selection = Selection(terms, latest_only=False, with_content=False)
        return [record.version for record in self._store.select(selection)]

    def _find(self, *terms: Term) -> list[dict[str, Any]]:
        return self._documents(self._store.select(Selection(terms)))

    def _query(self, predicate: str, select: str | None = None) -> list[Any]:
        parameters = {"predicate": predicate} | ({"select": select} if select else {})
        found: list[Any] = self._application.call("data.query", parameters)["results"]
        return found

    def _contents(self, model: str, spec: str) -> str:
        selection = Selection((*_of(model), Term("specName", Comparison.EQ, (spec,))))
        record = next(self._store.select(selection, newest_first=True), None)
        if record is None:
            raise NotFound(f"model {model!r} has no data of spec {spec!r}", hint=f"swamp data list {model}")
        return self._bytes(record).decode("utf-8", "replace")

    def _workers(self) -> list[dict[str, Any]]:
        selection = Selection((Term("modelType", Comparison.EQ, (WORKER,)),))
        found = [json.loads(self._bytes(record)) for record in self._store.select(selection)]
        return [worker for worker in found if worker["status"] != "disconnected"]

    def _documents(self, records: Iterable[Record]) -> list[dict[str, Any]]:
        return [self._document(record) for record in records]

    def _document(self, record: Record) -> dict[str, Any]:
        attributes: Mapping[str, Any] = {}
        if record.kind is Kind.RESOURCE:
            attributes = json.loads(self._bytes(record))
        return {
            "id": record.id,
            "name": record.name,
            "version": record.version,
            "createdAt": iso(record.created_ms),
            "attributes": attributes,
            "tags": dict(record.tags),
            "modelName": record.model_name,
            "modelType": record.model_type,
            "specName": record.spec,
            "contentType": record.content_type,
            "size": record.size,
            "outcome": record.outcome,
        }

    def _bytes(self, record: Record) -> bytes:
        return record.content if record.content is not None else self._store.read(record)


def _of(model: str) -> tuple[Term, ...]:
    return (Term("modelName", Comparison.EQ, (model,)),)


def _varied(name: str, vary: list[Any] | None) -> str:
    return "-".join((name, *(suffix_of(value) for value in vary or ())))
