"""A run read back from its records, to go on: after a restart, or because a person wants it to.

Reading only; who may take a run over is `recovery.py`'s and the engine's decision.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import attrs

from swamp_orch.core.lease_values import Lease
from swamp_orch.core.runplan import StepKey
from swamp_orch.engine.records import made_by_dispatch
from swamp_orch.store.bookkeeping import LEASES_ID, RUN_RECORD, WORKFLOW_RUN
from swamp_orch.store.bookkeeping import lease_record as lease_name
from swamp_orch.store.interface import Comparison, Record, Selection, Store, Term

OPEN_STATUSES: Final = ("running", "suspended")
OPEN_RUNS: Final = (
    Term("modelType", Comparison.EQ, (WORKFLOW_RUN,)),
    Term("specName", Comparison.EQ, ("run",)),
    Term("attributes.status", Comparison.EQ, OPEN_STATUSES),
)


@attrs.frozen
class Found:
    """A run as its records say it."""

    record: Record
    attributes: Mapping[str, Any]
    steps: Mapping[StepKey, Mapping[str, Any]]  # in the order they were written
    expansions: Mapping[tuple[str, str], Mapping[str, Any]]
    leases: Mapping[str, Lease]  # of running steps, by dispatch
    made: Mapping[str, list[dict[str, Any]]]  # records of ended steps, by dispatch
    reports: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)  # of the run, by name

    @property
    def id(self) -> str:
        return self.record.model_id

    @property
    def is_open(self) -> bool:
        return self.attributes["status"] in OPEN_STATUSES


def read_open_runs(store: Store) -> Iterator[tuple[Record, Mapping[str, Any]]]:
    """Every run that has not ended, with what its record says."""
    for record in list(store.select(Selection(OPEN_RUNS))):
        yield record, _attributes(store, record)


def read_run(store: Store, run_id: str) -> Found | None:
    """A run by its id."""
    record = store.latest(run_id, RUN_RECORD)
    return None if record is None else read_found(store, record, _attributes(store, record))


def read_found(store: Store, record: Record, attributes: Mapping[str, Any]) -> Found:
    steps: dict[StepKey, Mapping[str, Any]] = {}
    expansions: dict[tuple[str, str], Mapping[str, Any]] = {}
    reports: dict[str, Mapping[str, Any]] = {}
    leases: dict[str, Lease] = {}
    of_run = Selection((Term("modelId", Comparison.EQ, (record.model_id,)),))
    for row in store.select(of_run):
        values = _attributes(store, row)
        if row.spec == "expansion":
            expansions[values["job"], values["template"]] = values["items"]
        elif row.spec in ("step", "reporting"):
            if row.spec == "step":
                steps[StepKey(values["job"], values["step"])] = values
            else:
                reports[values["step"]] = values
            if values["status"] == "running" and "dispatchId" in values:
                lease = _lease(store, values["dispatchId"])
                if lease is not None:
                    leases[lease.dispatch] = lease
    made = made_by_dispatch(store, record.model_id)
    return Found(record, attributes, steps, expansions, leases, made, reports)


def _lease(store: Store, dispatch: str) -> Lease | None:
    record = store.latest(LEASES_ID, lease_name(dispatch))
    return None if record is None else Lease.from_attributes(_attributes(store, record), record.version)


def _attributes(store: Store, record: Record) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(record.content if record.content is not None else store.read(record))
    return found
