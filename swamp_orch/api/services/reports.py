"""The calls `report.*`: JSON answers about stored reports, and about what reports there are. Shapes: docs/reference/reports.md.

Rules: a report is two records, Markdown and JSON, of one commit; the JSON one is always there and gives the version. Whose report
is meant says a model or a workflow; where neither does, the newest counts.
"""

import difflib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from swamp_orch.definitions.types import TypeRegistry
from swamp_orch.reports import method_summary, workflow_summary
from swamp_orch.reports.report import WORKFLOW_TYPE, ReportScope
from swamp_orch.store.bookkeeping import iso
from swamp_orch.store.interface import Comparison, Kind, Record, Selection, Store, Term
from swamp_proto.errors import NotFound, UsageError
from swamp_proto.ids import is_uuid

SEARCH_LIMIT: Final = 50
BUILT_IN: Final[Mapping[str, tuple[ReportScope, str]]] = {
    method_summary.NAME: (ReportScope.METHOD, "What one execution of a method was given and what it stored."),
    workflow_summary.NAME: (ReportScope.WORKFLOW, "How a run ended: counts, failures, and every step."),
}
_JSON_END: Final = "-json"


class ReportService:
    """Thread-safe."""

    def __init__(self, store: Store, types: TypeRegistry) -> None:
        self._store = store
        self._types = types

    def handlers(self) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
        return {
            "report.get": self._get,
            "report.search": self._search,
            "report.describe": self._describe,
            "report.type_search": self._type_search,
        }

    # ── stored ──────────────────────────────────────────────────────────────────────────────────────────────
    def _get(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """What `_about` says, and `markdown` (null: there is none) and `json`."""
        name, version = parameters["name"], parameters.get("version")
        owner = self._owner(parameters)
        known = [record for record in self._stored(owner) if name in (_name(record), _base(record))]
        if not known:
            raise self._unknown(name, owner)
        found = known[0]
        if version is not None:
            older = self._store.version(found.model_id, found.name, version)
            if older is None or older.deleted:
                raise NotFound(
                    f"the report '{name}' of '{found.model_name}' has no version {version}; the newest is {found.version}",
                    hint=f"swamp data versions {found.model_name} {found.name}",
                )
            found = older
        markdown = self._markdown(found)
        text = None if markdown is None else self._store.read(markdown).decode("utf-8", "replace")
        return _about(found) | {"markdown": text, "json": json.loads(self._store.read(found))}

    def _search(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """`{query, results[about], total, limited}`, newest first: one row per report and model or workflow."""
        text = (parameters.get("query") or "").casefold()
        scope, limit = _scope(parameters.get("scope")), parameters.get("limit") or SEARCH_LIMIT
        if limit < 1:
            raise UsageError(f"the limit must be positive, not {limit}")
        results = []
        for record in self._stored(self._owner(parameters)):
            about = _about(record)
            if scope is not None and about["scope"] != scope:
                continue
            if text and not any(text in part.casefold() for part in (_name(record), record.model_name)):
                continue
            results.append(about)
        return {
            "query": parameters.get("query") or "",
            "results": results[:limit],
            "total": len(results[:limit]),
            "limited": len(results) > limit,
        }

    def _owner(self, parameters: Mapping[str, Any]) -> tuple[Term, ...]:
        """Whose reports are meant."""
        model, workflow = parameters.get("model"), parameters.get("workflow")
        if model is not None and workflow is not None:
            raise UsageError("a report belongs to a model or to a workflow", hint="give one of the two")
        wanted = model if workflow is None else workflow
        if wanted is None:
            return ()
        whose = Comparison.NE if workflow is None else Comparison.EQ
        field = "modelId" if is_uuid(wanted) else "modelName"
        return (Term("modelType", whose, (WORKFLOW_TYPE,)), Term(field, Comparison.EQ, (wanted,)))

    def _stored(self, owner: tuple[Term, ...]) -> Iterator[Record]:
        """The newest version of each, as its JSON record, newest first."""
        terms = (
            *owner,
            Term("dataType", Comparison.EQ, (Kind.REPORT.value,)),
            Term("contentType", Comparison.EQ, ("application/json",)),
        )
        return iter(self._store.select(Selection(terms, with_content=False), newest_first=True))

    def _markdown(self, report: Record) -> Record | None:
        """The other form, from the same commit."""
        versions = self._store.versions(report.model_id, _base(report))
        made = [one for one in versions if one.owner == report.owner and not one.deleted]
        near = min(made, key=lambda one: abs(one.seq - report.seq), default=None)
        return near if near is not None and near.created_ms == report.created_ms else None

    def _unknown(self, name: str, owner: tuple[Term, ...]) -> NotFound:
        names = sorted({_name(record) for record in self._stored(owner)})
        near = difflib.get_close_matches(name, names, n=1)
        whose = f" of '{owner[1].values[0]}'" if owner else ""
        return NotFound(
            f"no report '{name}'{whose} is stored",
            hint=f"did you mean {near[0]}?" if near else "swamp report search",
        )

    # ── what there is ───────────────────────────────────────────────────────────────────────────────────────
    def _kinds(self) -> dict[str, dict[str, Any]]:
        """By name: `{name, scope, description, labels[], builtIn, types[]}`."""
        found: dict[str, dict[str, Any]] = {
            name: {
                "name": name,
                "scope": scope.value,
                "description": text,
                "labels": [],
                "builtIn": True,
                "types": [],
            }
            for name, (scope, text) in BUILT_IN.items()
        }
        for model_type in self._types.all():
            for report in model_type.reports.values():
                kind = found.setdefault(
                    report.name,
                    {
                        "name": report.name,
                        "scope": report.scope,
                        "description": report.description,
                        "labels": list(report.labels),
                        "builtIn": False,
                        "types": [],
                    },
                )
                kind["types"].append(model_type.name)
        return found

    def _describe(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        name = parameters["name"]
        kinds = self._kinds()
        if name not in kinds:
            near = difflib.get_close_matches(name, kinds, n=1)
            raise NotFound(
                f"there is no report '{name}'",
                hint=f"did you mean {near[0]}?" if near else "swamp report type search",
            )
        return kinds[name]

    def _type_search(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """`{query, results[as described], total}`"""
        text = (parameters.get("query") or "").casefold()
        results = [
            kind
            for kind in self._kinds().values()
            if any(text in part.casefold() for part in (kind["name"], kind["description"], *kind["types"]))
        ]
        return {"query": parameters.get("query") or "", "results": results, "total": len(results)}


def _name(record: Record) -> str:
    return record.tags.get("reportName") or _base(record)


def _base(record: Record) -> str:
    """The name of the Markdown record."""
    return record.name.removesuffix(_JSON_END)


def _scope(wanted: str | None) -> str | None:
    if wanted is not None and wanted not in [scope.value for scope in ReportScope]:
        raise UsageError(f"unknown scope '{wanted}'", hint=f"one of: {', '.join(ReportScope)}")
    return wanted


def _about(record: Record) -> dict[str, Any]:
    """`{name, scope, modelName, modelId, modelType, version, createdAt, recordName, runId, workflowName?, jobName?, stepName?}`"""
    owner = record.owner
    found = {
        "name": _name(record),
        "scope": record.tags.get("reportScope", ReportScope.METHOD.value),
        "modelName": record.model_name,
        "modelId": record.model_id,
        "modelType": record.model_type,
        "version": record.version,
        "createdAt": iso(record.created_ms),
        "recordName": _base(record),
        "runId": owner.run,
    }
    more = (("workflowName", owner.workflow), ("jobName", owner.job), ("stepName", owner.step))
    return found | {key: value for key, value in more if value}
