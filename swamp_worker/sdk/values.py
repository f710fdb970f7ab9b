"""What method code is given and gives back, as values."""

import enum
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs

from swamp_worker.sdk.shapes import from_json

T = TypeVar("T")


@attrs.frozen
class ModelInfo:
    """The model that the step is about."""

    name: str
    id: str
    type: str
    version: int
    tags: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen
class Place:
    """Where in a run the step belongs."""

    run: str
    workflow: str
    job: str
    step: str


@attrs.frozen
class Written:
    """A record that is durable now."""

    id: str
    spec: str
    name: str
    version: int
    size: int
    sha256: str


@attrs.frozen
class Record:
    """A record version as it was read. `fields` is everything known about it, by the names of the query language."""

    id: str
    model: str
    name: str
    version: int
    spec: str
    content_type: str
    size: int
    tags: Mapping[str, str]
    fields: Mapping[str, Any] = attrs.field(repr=False)
    content: bytes = attrs.field(repr=False)

    def text(self) -> str:
        return self.content.decode()

    def json(self) -> Any:
        """The content of a resource."""
        return json.loads(self.content)

    def into(self, cls: type[T]) -> T:
        """The content as an attrs class. Raises `InvalidArguments` when it is not one."""
        return from_json(cls, self.json(), self.name)


@attrs.frozen
class StoredFile:
    """A file artefact that was read: its record (without content), and where its bytes are, until the step ends."""

    record: Record
    path: Path


@attrs.frozen
class ModelRun:
    """What became of `run_model`."""

    run: str
    status: str
    records: tuple[Mapping[str, Any], ...]
    error: str = ""


@attrs.frozen
class FollowUp:
    """A method to be called after this one, in the same step."""

    method: str
    arguments: Mapping[str, Any]
    after_s: float = 0.0


@attrs.frozen
class Findings:
    """What a report of method scope is made of. `error` is the method's."""

    method: str
    succeeded: bool
    error: str
    records: tuple[Written, ...]
    outputs: tuple[str, ...]  # names of what the end will store
    follow_ups: int = 0


@attrs.frozen
class RecordRef:
    """A record version that a step left: what `read_resource` and `read_file` are to be given."""

    id: str
    model: str
    name: str
    version: int
    spec: str


@attrs.frozen
class ChildFindings:
    """A run that a step started: a nested workflow, or a model that its code ran."""

    run: str
    kind: str  # workflow, method
    name: str
    status: str


@attrs.frozen
class StepFindings:
    """How one step of a run ended."""

    job: str
    name: str
    status: str  # succeeded, failed, skipped, cancelled
    error: str = ""
    reason: str = ""  # why it was skipped
    allowed_failure: bool = False
    model: str = ""  # empty: it is no step of a model
    model_type: str = ""
    method: str = ""
    worker: str = ""  # empty: it ran in the orchestrator, or not at all
    attempts: int = 0
    duration_ms: int = 0
    records: tuple[RecordRef, ...] = ()
    children: tuple[ChildFindings, ...] = ()


@attrs.frozen
class RunFindings:
    """What a report of workflow scope is made of: a run whose last step has ended."""

    run: str
    workflow: str
    status: str  # succeeded, failed
    error: str = ""
    started_at: str = ""  # ISO 8601
    duration_ms: int = 0
    inputs: Mapping[str, Any] = attrs.field(factory=dict)  # what is sensitive is `***`
    jobs: Mapping[str, str] = attrs.field(factory=dict)  # name -> status, in the order of the workflow
    steps: tuple[StepFindings, ...] = ()

    def count(self, status: str) -> int:
        """How many steps ended so."""
        return sum(step.status == status for step in self.steps)

    @property
    def records(self) -> tuple[RecordRef, ...]:
        """What all its steps left."""
        return tuple(record for step in self.steps for record in step.records)


def run_findings(document: Mapping[str, Any]) -> RunFindings:
    """From a run document, as `swamp workflow run --json` ends with."""
    return RunFindings(
        run=document["id"],
        workflow=document["workflowName"],
        status=document["status"],
        error=document.get("error") or "",
        started_at=document["startedAt"],
        duration_ms=document["duration"],
        inputs=document.get("inputs") or {},
        jobs={job["name"]: job["status"] for job in document["jobs"]},
        steps=tuple(_step_findings(job["name"], step) for job in document["jobs"] for step in job["steps"]),
    )


def _step_findings(job: str, step: Mapping[str, Any]) -> StepFindings:
    return StepFindings(
        job=job,
        name=step["name"],
        status=step["status"],
        error=step.get("error") or "",
        reason=step.get("reason") or "",
        allowed_failure=bool(step.get("allowedFailure")),
        model=step.get("modelName") or "",
        model_type=step.get("modelType") or "",
        method=step.get("methodName") or "",
        worker=step.get("worker") or "",
        attempts=step.get("attempts") or 0,
        duration_ms=step.get("duration") or 0,
        records=tuple(
            RecordRef(one["dataId"], one["modelName"], one["name"], one["version"], one["specName"])
            for one in step.get("dataArtifacts") or ()
        ),
        children=tuple(
            ChildFindings(one["runId"], one["kind"], one["name"], one.get("status") or "")
            for one in step.get("children") or ()
        ),
    )


@attrs.frozen
class Report:
    """Markdown for people, and the same as data for programs."""

    markdown: str
    data: Mapping[str, Any] = attrs.field(factory=dict)


class Stage(enum.Enum):
    """What runs: it decides which members of the context work."""

    CHECK = "a pre-flight check"
    METHOD = "a method"
    REPORT = "a report"
