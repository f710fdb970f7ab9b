"""What definition files say, as frozen values. Reading and checking them is `models.py` and `workflows.py`.

A value knows where it came from (`Source`) so that later errors can still name file and line. Text that may
hold `${{ … }}` is kept as read; `swamp_orch.expressions` parses it once.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import attrs


@attrs.frozen
class Source:
    """A file, and the 1-based line of every node in it, by path: `("jobs", 0, "steps", 1, "target")`.

    `texts` has the text of every scalar that is not text to YAML, as it was written: `1.10` for the number
    1.1."""

    file: Path  # relative to the repository where it lies inside one
    lines: Mapping[tuple[str | int, ...], int] = attrs.field(repr=False, factory=dict)
    texts: Mapping[tuple[str | int, ...], str] = attrs.field(repr=False, factory=dict)

    def at(self, *path: str | int) -> str:
        """`models/x.yaml:12` for the nearest node that has a line."""
        while path and path not in self.lines:
            path = path[:-1]
        line = self.lines.get(path)
        return f"{self.file}:{line}" if line else str(self.file)


@attrs.frozen
class ModelDefinition:
    """`models/{type}/{name}.yaml`."""

    type: str  # normalised: `command/shell`
    id: str
    name: str
    version: int
    tags: Mapping[str, str]
    global_arguments: Mapping[str, Any]
    methods: Mapping[str, Mapping[str, Any]]  # method name -> stored arguments
    inputs: Mapping[str, Any]  # input schema, `{type: object, properties, required}` form
    source: Source = attrs.field(repr=False, eq=False)
    type_version: str = ""  # CalVer of the type when the file was written; empty: not said
    checks: Mapping[str, Sequence[str]] = attrs.field(factory=dict)  # `require`, `skip`
    reports: Mapping[str, Sequence[str]] = attrs.field(factory=dict)  # the same


class ConditionType(StrEnum):
    ALWAYS = "always"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    COMPLETED = "completed"  # succeeded or failed
    SKIPPED = "skipped"
    AND = "and"
    OR = "or"
    NOT = "not"


@attrs.frozen
class Condition:
    type: ConditionType
    conditions: tuple["Condition", ...] = ()  # operands of and/or/not


@attrs.frozen
class Dependency:
    """On a step of the same job, or on a job."""

    on: str
    condition: Condition = Condition(ConditionType.SUCCEEDED)


@attrs.frozen
class Placement:
    """Effective or declared placement. All empty: loopback."""

    target: str | None = None
    labels: Mapping[str, str] = attrs.field(factory=dict)
    platform: str | None = None  # `os` or `os/arch`
    queue_timeout_s: float | None = None  # None = wait
    affinity: bool = False

    @property
    def is_remote(self) -> bool:
        return self.target is not None or bool(self.labels) or self.platform is not None


@attrs.frozen
class Retry:
    attempts: int  # further attempts after the first
    backoff_s: float


class OnWorkerLost(StrEnum):
    RULE = "rule"  # the write-then-fail rule decides
    REDISPATCH = "redispatch"
    FAIL = "fail"


@attrs.frozen
class ModelMethodTask:
    model: str  # name or id
    method: str
    inputs: Mapping[str, Any] | str  # a map, or one whole expression that yields a map


@attrs.frozen
class WorkflowTask:
    workflow: str
    inputs: Mapping[str, Any] | str


@attrs.frozen
class ManualApprovalTask:
    prompt: str
    timeout_s: float | None


@attrs.frozen
class AssertTask:
    expr: str
    message: str
    severity: str  # low, medium, high


Task = ModelMethodTask | WorkflowTask | ManualApprovalTask | AssertTask


@attrs.frozen
class ForEach:
    item: str
    expression: str  # `in`


@attrs.frozen
class Step:
    name: str
    task: Task
    description: str = ""
    depends_on: tuple[Dependency, ...] = ()
    placement: Placement = Placement()  # effective: inherited from job and workflow
    for_each: ForEach | None = None
    weight: int = 0
    concurrency: int = 0  # 0 = no limit
    allow_failure: bool = False
    guard: str | None = None  # a true guard skips
    timeout_s: float | None = None
    retry: Retry | None = None
    on_worker_lost: OnWorkerLost = OnWorkerLost.RULE
    overrides: tuple[Mapping[str, Any], ...] = ()  # dataOutputOverrides


@attrs.frozen
class Job:
    name: str
    steps: tuple[Step, ...]
    description: str = ""
    depends_on: tuple[Dependency, ...] = ()
    weight: int = 0
    concurrency: int = 0
    timeout_s: float | None = None


@attrs.frozen
class Workflow:
    """`workflows/workflow-{name}.yaml`."""

    id: str
    name: str
    description: str
    jobs: tuple[Job, ...]
    version: int
    tags: Mapping[str, str]
    inputs: Mapping[str, Any]  # input schema, `{type: object, properties, required}` form
    concurrency: int
    timeout_s: float | None
    trigger: Mapping[str, Any]
    reports: Mapping[str, Any]
    source: Source = attrs.field(repr=False, eq=False)
