"""What is said to and by the run plan, and what its words mean: statuses, events, effects, conditions.

Rules: `TRANSITIONS` is every change a step's status may make; `SATISFIED_BY` is what each plain condition means. Values
only: how a run moves is `runplan.py`.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Final

import attrs

from swamp_orch.definitions.values import Condition, ConditionType, Dependency


class StepStatus(StrEnum):
    WAITING = "waiting"  # dependencies have not ended
    READY = "ready"  # may start; held by a cap, or asked to start, or (forEach) being expanded
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"


class JobStatus(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"


class RunStatus(StrEnum):
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDS: Final = frozenset({StepStatus.SUCCEEDED, StepStatus.FAILED, StepStatus.SKIPPED, StepStatus.CANCELLED})
"""Statuses that never change again."""

TRANSITIONS: Final[Mapping[StepStatus, frozenset[StepStatus]]] = {
    StepStatus.WAITING: frozenset({StepStatus.READY, StepStatus.SKIPPED, StepStatus.CANCELLED}),
    StepStatus.READY: frozenset({StepStatus.RUNNING})
    | ENDS,  # guards and bad expressions end a step before it runs
    StepStatus.RUNNING: ENDS,
    StepStatus.SUCCEEDED: frozenset(),
    StepStatus.FAILED: frozenset(),
    StepStatus.SKIPPED: frozenset(),
    StepStatus.CANCELLED: frozenset(),
}

SATISFIED_BY: Final[Mapping[ConditionType, frozenset[StepStatus]]] = {
    ConditionType.ALWAYS: ENDS,
    ConditionType.SUCCEEDED: frozenset({StepStatus.SUCCEEDED}),
    ConditionType.FAILED: frozenset({StepStatus.FAILED, StepStatus.CANCELLED}),
    ConditionType.COMPLETED: frozenset({StepStatus.SUCCEEDED, StepStatus.FAILED, StepStatus.CANCELLED}),
    ConditionType.SKIPPED: frozenset({StepStatus.SKIPPED}),
}
"""The plain conditions, by the end of what they look at. A step that was cancelled alone counts as failed."""


@attrs.frozen(order=True)
class StepKey:
    """A concrete step: `step` is the name after forEach expansion."""

    job: str
    step: str


# ── events: what happened ───────────────────────────────────────────────────────────────────────
@attrs.frozen
class RunBegun:
    pass


@attrs.frozen
class StepStarted:
    key: StepKey


@attrs.frozen
class StepEnded:
    """`status` is one of `ENDS`. `allowed`: a failure that does not fail the job (the engine decides: some
    are never allowed).
    """

    key: StepKey
    status: StepStatus
    allowed: bool = False
    reason: str = ""


@attrs.frozen
class StepsExpanded:
    """Answers `ExpandStep`: the names of the concrete steps, in order."""

    job: str
    template: str
    names: tuple[str, ...]


@attrs.frozen
class ExpansionFailed:
    """Answers `ExpandStep`: `forEach.in` could not be evaluated."""

    job: str
    template: str
    error: str


@attrs.frozen
class CancelAsked:
    reason: str = ""


Event = RunBegun | StepStarted | StepEnded | StepsExpanded | ExpansionFailed | CancelAsked


# ── effects: what to do ─────────────────────────────────────────────────────────────────────────
@attrs.frozen
class ExpandStep:
    """Evaluate `forEach.in` and answer with `StepsExpanded` or `ExpansionFailed`."""

    job: str
    template: str


@attrs.frozen
class StartStep:
    """Begin. Answered by `StepStarted` and `StepEnded`, or by `StepEnded` alone (guarded, bad expression,
    …).
    """

    key: StepKey


@attrs.frozen
class SkipStep:
    """It has ended `skipped`: record that. Not answered."""

    key: StepKey
    reason: str


@attrs.frozen
class FailStep:
    """It has ended `failed` without having been started (its expansion failed): record that. Not answered."""

    key: StepKey
    reason: str
    allowed: bool


@attrs.frozen
class DropStep:
    """It has ended `cancelled` without having been started: record that. Not answered."""

    key: StepKey
    reason: str


@attrs.frozen
class CancelStep:
    """End what is under way. Answered by `StepEnded`, whatever its status then is."""

    key: StepKey


@attrs.frozen
class JobStarted:
    job: str


@attrs.frozen
class JobEnded:
    """A job can end without having started: `skipped` or `cancelled`."""

    job: str
    status: JobStatus


@attrs.frozen
class RunEnded:
    """`failed_step`: the first whose failure was not allowed."""

    status: RunStatus
    failed_step: StepKey | None = None


Effect = (
    ExpandStep | StartStep | SkipStep | FailStep | DropStep | CancelStep | JobStarted | JobEnded | RunEnded
)


def satisfying(condition: Condition) -> frozenset[StepStatus]:
    """The ends of a dependency under which `condition` holds. A condition depends on nothing else."""
    operands = [satisfying(operand) for operand in condition.conditions]
    if condition.type is ConditionType.NOT:
        return ENDS - operands[0]
    if condition.type is ConditionType.AND:
        return ENDS.intersection(*operands)
    if condition.type is ConditionType.OR:
        return frozenset[StepStatus]().union(*operands)
    return SATISFIED_BY[condition.type]


def is_handler(dependencies: Iterable[Dependency]) -> bool:
    """Whether a step may still start after its job has failed: one of its conditions holds for a failed
    step.
    """
    return any(StepStatus.FAILED in satisfying(dependency.condition) for dependency in dependencies)


def combined(ends: Mapping[StepStatus, int]) -> StepStatus:
    """The end of a forEach step, from how many of its items ended how: what conditions on it look at.

    `failed` if any item failed, else `cancelled` if any was cancelled, else `succeeded` if any succeeded or
    there are no items, else (all were skipped) `skipped`.
    """
    for status in (StepStatus.FAILED, StepStatus.CANCELLED, StepStatus.SUCCEEDED, StepStatus.SKIPPED):
        if ends.get(status):
            return status
    return StepStatus.SUCCEEDED
