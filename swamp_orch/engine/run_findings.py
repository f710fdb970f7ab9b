"""Which reports a run of a workflow is to have of the code of authors, and what they may see of it.

Rules that hold here:

1. A type's reports of workflow scope are made of every run that executed a method of the type. The definitions of its models choose,
   and then the workflow: one model that wants a report is enough, and the workflow's word is the last.
2. What the workflow requires is made also where no such method was executed, by the one type that has a report of that name.
3. A name is one report of a run. Where two types have one, it is that of the first by name, and that is said.

Everything here reads files and records, and may run a process: it belongs into a thread.
"""

import json
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import attrs

from swamp_orch.core.runplan import StepKey
from swamp_orch.definitions.selection import is_chosen
from swamp_orch.engine.orders import Orders
from swamp_orch.reports import method_summary, workflow_summary
from swamp_orch.store.interface import Comparison, Selection, Store, Term
from swamp_proto.errors import SwampError
from swamp_worker.models.interface import ModelType

if TYPE_CHECKING:
    from swamp_orch.engine.runs import Run

BUILT_IN: Final = frozenset({method_summary.NAME, workflow_summary.NAME})
_RUNS_MAX: Final = 10_000  # below one run, that its reports can read from
_AT_ONCE: Final = 500


@attrs.define
class Chosen:
    """`made`: by name, the type that makes it. `missing`: by name, why it can not be made. `notes`: for who watches."""

    made: dict[str, str] = attrs.field(factory=dict)
    missing: dict[str, str] = attrs.field(factory=dict)
    notes: list[str] = attrs.field(factory=list)


def may_have_reports(run: "Run") -> bool:
    """Whether it is worth looking: without an extension and without a word of the workflow there are none."""
    request = run.request
    if request.kind != "workflow":
        return False
    return bool(request.workflow.reports.get("require")) or any(state.bundle for state in run.states())


def choose(run: "Run", orders: Orders) -> Chosen:
    chosen = Chosen()
    selection = run.request.workflow.reports
    for name, models in sorted(_executed(run).items()):
        try:
            model_type = orders.code.of_type(run.id, name)
        except SwampError as error:
            chosen.notes.append(f"the reports of {name} can not be known: {error.message}")
            continue
        levels = [orders.reports_of(run.id, model) for model in sorted(models)]
        for report in _of_runs(model_type):
            if any(is_chosen(report, level, selection) for level in levels):
                _take(chosen, report, name)
    skipped = selection.get("skip", ())
    wanted = [
        name for name in selection.get("require", ()) if name not in (*chosen.made, *skipped, *BUILT_IN)
    ]
    if wanted:
        _require(chosen, wanted, orders.code.all_types())
    return chosen


def _executed(run: "Run") -> dict[str, set[str]]:
    """Models that were executed, by the extension's type they are of."""
    found: dict[str, set[str]] = {}
    for state in run.states():
        if state.bundle and state.dispatch:
            found.setdefault(state.model_type, set()).add(state.model)
    return found


def _of_runs(model_type: ModelType) -> list[str]:
    return [report.name for report in model_type.reports.values() if report.scope == "workflow"]


def _take(chosen: Chosen, report: str, type_name: str) -> None:
    first = chosen.made.setdefault(report, type_name)
    if first != type_name:
        chosen.notes.append(f"{first} and {type_name} both have a report {report}; that of {first} is made")


def _require(chosen: Chosen, wanted: Iterable[str], types: list[ModelType]) -> None:
    for report in wanted:
        makers = [found.name for found in types if report in _of_runs(found)]
        if len(makers) == 1:
            chosen.made[report] = makers[0]
        elif makers:
            chosen.missing[report] = (
                f"{' and '.join(makers)} have a report of that name, and the run used none of them"
            )
        elif not any(report in found.reports for found in types):  # else it is of method scope
            chosen.missing[report] = (
                "no type has a report of that name; swamp report type search shows those there are"
            )


def runs_below(store: Store, run: "Run") -> frozenset[str]:
    """The run, and every run that its steps started, theirs included; of very many, the first."""
    found = {run.id}
    todo = [child for state in run.states() for child in state.children]
    while todo and len(found) < _RUNS_MAX:
        some, todo = todo[:_AT_ONCE], todo[_AT_ONCE:]
        found.update(some)
        steps = Selection(
            (Term("modelId", Comparison.EQ, tuple(some)), Term("specName", Comparison.EQ, ("step",)))
        )
        for record in store.select(steps):
            row = json.loads(record.content if record.content is not None else store.read(record))
            todo += [child["runId"] for child in row.get("children", ()) if child["runId"] not in found]
    return frozenset(found)


def findings_of(run: "Run", status: str, error: str) -> Mapping[str, Any]:
    """The run document as reports are given it: how the run is going to end, though that is not recorded yet; its steps in the order of
    the workflow, whichever began first."""
    document = run.document()
    jobs = [
        {**job, "steps": sorted(job["steps"], key=partial(_place, run.places(), job["name"]))}
        for job in document["jobs"]
    ]
    return {**document, "jobs": jobs, "status": status} | ({"error": error} if error else {})


def _place(places: Mapping[StepKey, tuple[int, int]], job: str, step: Mapping[str, Any]) -> tuple[int, int]:
    return places[StepKey(job, step["name"])]
