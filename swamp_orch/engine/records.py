"""Run and step records, and the records a completed step leaves: values in, `NewRecord`s out.

A run's records share one model: type `swamp/workflow-run`, id = the run's id, name = the workflow's name. `run-main` (spec
`run`) says what runs and how it ended; one record per step (spec `step`) has its placement, attempts and end, so that a run
of ten thousand steps costs no more per step than one of ten. Nothing here reads a clock.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from swamp_orch.definitions.values import ModelDefinition
from swamp_orch.engine.overrides import OutputOverride
from swamp_orch.reports.report import LIFETIME as REPORT_LIFETIME
from swamp_orch.reports.report import VERSIONS_KEPT as REPORT_VERSIONS_KEPT
from swamp_orch.store import bookkeeping
from swamp_orch.store.interface import (
    Appended,
    Comparison,
    Content,
    Kind,
    NewRecord,
    Owner,
    OwnerType,
    Record,
    Selection,
    Store,
    Term,
    json_content,
)
from swamp_proto.limits import BOOKKEEPING_VERSIONS_KEPT
from swamp_proto.messages.dispatch import Finished, Outcome
from swamp_worker.models.interface import ModelType, OutputSpec


@attrs.frozen
class StepOrigin:
    """Which step of which run: what every record of an execution carries."""

    run: str
    kind: str  # workflow, method
    workflow: str
    workflow_id: str
    job: str
    step: str
    tags: Mapping[str, str]  # of the workflow and of the run


def run_record(
    run_id: str, workflow: str, attributes: Mapping[str, Any], expect: int | None = None
) -> NewRecord:
    return NewRecord(
        model_type=bookkeeping.WORKFLOW_RUN,
        model_id=run_id,
        model_name=workflow,
        name=bookkeeping.RUN_RECORD,
        spec="run",
        content=json_content(attributes),
        keep=BOOKKEEPING_VERSIONS_KEPT,
        tags={"type": "resource"},
        owner=Owner(OwnerType.SYSTEM, ref=run_id, workflow=workflow, run=run_id),
        expect=expect,
    )


def step_record(origin: StepOrigin, attributes: Mapping[str, Any]) -> NewRecord:
    return NewRecord(
        model_type=bookkeeping.WORKFLOW_RUN,
        model_id=origin.run,
        model_name=origin.workflow,
        name=bookkeeping.step_record(origin.job, origin.step),
        spec="step",
        content=json_content(attributes),
        keep=BOOKKEEPING_VERSIONS_KEPT,
        tags={"type": "resource"},
        owner=Owner(
            OwnerType.SYSTEM,
            ref=origin.run,
            workflow_id=origin.workflow_id,
            workflow=origin.workflow,
            run=origin.run,
            job=origin.job,
            step=origin.step,
        ),
    )


def read_step(store: Store, run_id: str, job: str, step: str) -> tuple[Record, dict[str, Any]]:
    """A step's newest record and what it says. There is one."""
    record = store.latest(run_id, bookkeeping.step_record(job, step))
    assert record is not None, f"step {job}/{step} of run {run_id} has no record"
    attributes: dict[str, Any] = json.loads(
        record.content if record.content is not None else store.read(record)
    )
    return record, attributes


def made_by_dispatch(store: Store, run_id: str) -> dict[str, list[dict[str, Any]]]:
    """What the steps of a run stored, as run documents show it, by the dispatch that did."""
    found: dict[str, list[dict[str, Any]]] = {}
    of_run = Selection(
        (Term("workflowRunId", Comparison.EQ, (run_id,)),), latest_only=False, with_content=False
    )
    for record in store.select(of_run):
        if record.owner.dispatch and record.model_type not in bookkeeping.INFRASTRUCTURE_TYPES:
            found.setdefault(record.owner.dispatch, []).append(
                {
                    "dataId": record.id,
                    "name": record.name,
                    "version": record.version,
                    "specName": record.spec,
                    "modelName": record.model_name,
                }
            )
    return found


def expansion_record(origin: StepOrigin, template: str, items: Mapping[str, Any]) -> NewRecord:
    """What a forEach step became: concrete name -> item, in order. Needed to go on after a restart."""
    attributes = {"runId": origin.run, "job": origin.job, "template": template, "items": dict(items)}
    record = step_record(origin, attributes)
    return attrs.evolve(record, name=f"expansion-{record.name}", spec="expansion")


@attrs.frozen
class Producer:
    """The execution that makes records: which step, which model, which dispatch."""

    origin: StepOrigin
    model: ModelDefinition
    model_type: ModelType
    dispatch: str
    fence: int
    overrides: tuple[OutputOverride, ...] = ()  # of the step

    def owner(self) -> Owner:
        origin = self.origin
        return Owner(
            OwnerType.WORKFLOW_STEP if origin.kind == "workflow" else OwnerType.MODEL_METHOD,
            ref=self.model.id,
            workflow_id=origin.workflow_id,
            workflow=origin.workflow,
            run=origin.run,
            job=origin.job,
            step=origin.step,
            dispatch=self.dispatch,
            fence=self.fence,
            source="step-output",
        )

    def record(
        self,
        spec_name: str,
        name: str,
        kind: str,
        content_type: str,
        content: Content,
        *,
        tags: Mapping[str, str] | None = None,
        outcome: str = "",
    ) -> NewRecord:
        """A declared output of the model, made at the end or while it runs. swamp's own tags win over the execution's."""
        spec = self.model_type.outputs.get(spec_name) or OutputSpec(spec_name, kind, content_type, "")
        if kind == "report":
            spec = attrs.evolve(spec, lifetime=REPORT_LIFETIME, keep=REPORT_VERSIONS_KEPT)
        origin, model = self.origin, self.model
        found = {**(tags or {}), "type": kind, **model.tags, "specName": spec_name, "modelName": model.name}
        if origin.kind == "workflow":
            found |= {
                "source": "step-output",
                "workflow": origin.workflow,
                "job": origin.job,
                "step": origin.step,
            }
        found |= origin.tags
        if outcome:
            found["outcome"] = outcome
        record = NewRecord(
            model_type=model.type,
            model_id=model.id,
            model_name=model.name,
            name=name,
            spec=spec_name,
            content=content,
            kind=Kind(kind),
            content_type=content_type,
            lifetime=spec.lifetime,
            keep=spec.keep,
            streaming=kind == "file" and spec_name == "log",
            tags=found,
            owner=self.owner(),
            outcome=outcome,
        )
        for override in self.overrides:
            if override.spec == spec_name:
                record = override.apply(record)
        return record


def output_records(
    producer: Producer, finished: Finished, log: Content, contents: Sequence[Content]
) -> tuple[NewRecord, ...]:
    """The records of one completion: its outputs (`contents[i]` holds `finished.outputs[i]`), then its log; a type that does not
    declare one has it when there is something in it."""
    outcome = "" if finished.outcome is Outcome.SUCCEEDED else finished.outcome.value
    found = [
        producer.record(
            output.spec,
            output.name,
            output.kind,
            output.content_type,
            content,
            tags=output.tags,
            outcome=outcome,
        )
        for output, content in zip(finished.outputs, contents, strict=True)
    ]
    if "log" in producer.model_type.outputs or log.size:  # what any method printed is kept
        found.append(producer.record("log", "log", "file", "text/plain", log, outcome=outcome))
    return tuple(found)


def artifact(record: NewRecord, done: Appended) -> dict[str, Any]:
    """A record in the `dataArtifacts` of its step."""
    return {
        "dataId": done.id,
        "name": record.name,
        "version": done.version,
        "specName": record.spec,
        "modelName": record.model_name,
    }
