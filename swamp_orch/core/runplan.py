"""The run plan: which steps of a run may start, and how steps, jobs and the run end.

Rules that hold here (docs/reference/workflows-execution.md tells them to users):

1. Dataflow. A job is decided when the jobs it depends on have ended, a step when the steps it depends on
   have ended (and its job has begun). There are no levels and no barriers.
2. A decided step starts if all its conditions hold, else it ends `skipped` and the reason names what stood
   in the way. Conditions look at the status as shown: an allowed failure *is* `failed`.
3. After a failure that was not allowed, only *handlers* of that job still start: steps with at least one
   condition that a failed step satisfies (`always`, `failed`, `completed`, `not succeeded`, …). All other
   steps that were not asked to start end `skipped`, naming the failed step. What runs goes on.
4. `concurrency` caps what is under way: over the items of one `forEach` step, in a job, in the workflow. A
   step is under way from `StartStep` to `StepEnded`. Ready steps go by weight, then by declared order (jobs
   first, then steps, then items).
5. A dependency on a `forEach` step is on all its items: see `combined`. It is expanded when its own
   conditions hold.
6. Cancelled: what was not asked to start ends `cancelled` at once, what is under way gets `CancelStep` and
   ends by itself.
7. Every step ends exactly once; a job ends with its last step, the run with its last job.

Cost: O(dependants · log steps) per event; whole-job sweeps happen once per job.

It does not know: what a step does, guards, placement, retries, time-outs, workers, or the clock. The engine
evaluates `forEach.in` and guards, and reports what became of a step.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from enum import Enum
from heapq import heappop, heappush
from typing import Final, TypeVar

import attrs

from swamp_orch.core.runplan_values import (
    ENDS,
    SATISFIED_BY,
    TRANSITIONS,
    CancelAsked,
    CancelStep,
    DropStep,
    Effect,
    Event,
    ExpandStep,
    ExpansionFailed,
    FailStep,
    JobEnded,
    JobStarted,
    JobStatus,
    RunBegun,
    RunEnded,
    RunStatus,
    SkipStep,
    StartStep,
    StepEnded,
    StepKey,
    StepsExpanded,
    StepStarted,
    StepStatus,
    combined,
    is_handler,
    satisfying,
)
from swamp_orch.definitions.values import Dependency, Job, Step, Workflow
from swamp_proto.errors import Bug

__all__ = [
    "ENDS",
    "SATISFIED_BY",
    "TRANSITIONS",
    "CancelAsked",
    "CancelStep",
    "DropStep",
    "Effect",
    "Event",
    "ExpandStep",
    "ExpansionFailed",
    "FailStep",
    "JobEnded",
    "JobStarted",
    "JobStatus",
    "RunBegun",
    "RunEnded",
    "RunPlan",
    "RunStatus",
    "SkipStep",
    "StartStep",
    "StepEnded",
    "StepKey",
    "StepStarted",
    "StepStatus",
    "StepsExpanded",
    "combined",
    "is_handler",
    "satisfying",
]


# ── state ───────────────────────────────────────────────────────────────────────────────────────
class _Phase(Enum):
    WAITING = "waiting"
    EXPANDING = "expanding"  # forEach: asked, no answer yet
    OPEN = "open"  # its items are ready, running or ended
    ENDED = "ended"


@attrs.define(eq=False)
class _Item:
    """A concrete step."""

    key: StepKey
    group: "_Group"
    status: StepStatus = StepStatus.WAITING
    asked: bool = False  # StartStep was said
    allowed: bool = False


@attrs.define(eq=False)
class _Group:
    """A declared step: one item, or those of its forEach. Before the expansion a stand-in with the
    template's name.
    """

    job: "_Job"
    step: Step
    index: int
    handler: bool
    wants: tuple[tuple[str, frozenset[StepStatus]], ...]
    items: list[_Item] = attrs.field(factory=list)
    dependants: list["_Group"] = attrs.field(factory=list)
    waits_for: int = 0
    phase: _Phase = _Phase.WAITING
    open_items: int = 1
    ends: dict[StepStatus, int] = attrs.field(factory=dict)
    outcome: StepStatus | None = None
    ready: deque[_Item] = attrs.field(factory=deque)
    under_way: int = 0
    queued: bool = False  # in job.queue

    @property
    def has_room(self) -> bool:
        return not self.step.concurrency or self.under_way < self.step.concurrency


@attrs.define(eq=False)
class _Job:
    job: Job
    index: int
    wants: tuple[tuple[str, frozenset[StepStatus]], ...]
    groups: list[_Group] = attrs.field(factory=list)
    by_name: dict[str, _Group] = attrs.field(factory=dict)
    names: set[str] = attrs.field(factory=set)  # of concrete steps and stand-ins; membership only
    dependants: list["_Job"] = attrs.field(factory=list)
    waits_for: int = 0
    status: JobStatus = JobStatus.WAITING
    open_groups: int = 0
    failed_by: StepKey | None = None
    cancelled: bool = False
    under_way: int = 0
    queue: list[tuple[int, int]] = attrs.field(factory=list)  # heap of (weight, group index)
    queued: bool = False  # in plan._queue

    @property
    def has_room(self) -> bool:
        return not self.job.concurrency or self.under_way < self.job.concurrency


_JOB_ENDS: Final = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.SKIPPED, JobStatus.CANCELLED})
_VERB: Final = {
    StepStatus.SUCCEEDED: "succeeded",
    StepStatus.FAILED: "failed",
    StepStatus.SKIPPED: "was skipped",
    StepStatus.CANCELLED: "was cancelled",
}
_STORY_MAX: Final = 32


class RunPlan:
    """One run's plan. Pure: `handle(event)` returns what to do, in order."""

    def __init__(self, workflow: Workflow) -> None:
        """`workflow` has been checked: unique names, known dependencies, no cycles (else `Bug`)."""
        self._workflow = workflow
        self._jobs: list[_Job] = []
        self._job_by_name: dict[str, _Job] = {}
        self._items: dict[StepKey, _Item] = {}
        self._counts: dict[StepStatus, int] = dict.fromkeys(StepStatus, 0)
        self._queue: list[tuple[int, int]] = []  # heap of (weight, job index)
        self._under_way = 0
        self._open_jobs = len(workflow.jobs)
        self._begun = False
        self._ended: RunEnded | None = None
        self._cancel: CancelAsked | None = None
        self._failed_step: StepKey | None = None
        self._settled: deque[_Group | _Job] = deque()  # ended; their dependants are to be looked at
        self._effects: list[Effect] = []
        self._story: deque[str] = deque(maxlen=_STORY_MAX)
        for index, job in enumerate(workflow.jobs):
            self._add_job(index, job)
        for node in self._jobs:
            _connect([node], self._job_by_name, node.job.depends_on, "job")
            for group in node.groups:
                _connect([group], node.by_name, group.step.depends_on, "step")
        _refuse_cycles(self._jobs)
        for node in self._jobs:
            _refuse_cycles(node.groups)

    def _add_job(self, index: int, job: Job) -> None:
        node = _Job(job, index, _wants(job.depends_on), open_groups=len(job.steps))
        if job.name in self._job_by_name:
            raise Bug(f"two jobs are named {job.name!r}")
        self._jobs.append(node)
        self._job_by_name[job.name] = node
        for place, step in enumerate(job.steps):
            if step.name in node.by_name:
                raise Bug(f"two steps of job {job.name!r} are named {step.name!r}")
            group = _Group(node, step, place, is_handler(step.depends_on), _wants(step.depends_on))
            node.groups.append(group)
            node.by_name[step.name] = group
            self._add_item(group, step.name)

    def _add_item(self, group: _Group, name: str) -> None:
        item = _Item(StepKey(group.job.job.name, name), group)
        group.items.append(item)
        group.job.names.add(name)
        self._items[item.key] = item
        self._counts[item.status] += 1

    # ── looking ──────────────────────────────────────────────────────────────────────────────────
    def statuses(self) -> Mapping[StepKey, StepStatus]:
        """Every concrete step in declared order; a forEach step that was not expanded under its own name."""
        return {item.key: item.status for item in self._every_item()}

    def counts(self) -> Mapping[StepStatus, int]:
        """How many concrete steps have which status. All statuses are present; they add up to
        `len(statuses())`.
        """
        return dict(self._counts)

    def job_statuses(self) -> Mapping[str, JobStatus]:
        return {node.job.name: node.status for node in self._jobs}

    @property
    def ended(self) -> RunEnded | None:
        return self._ended

    def _every_item(self) -> Iterator[_Item]:
        return (item for node in self._jobs for group in node.groups for item in group.items)

    # ── going on after a crash ───────────────────────────────────────────────────────────────────
    @classmethod
    def rebuild(
        cls,
        workflow: Workflow,
        expansions: Mapping[tuple[str, str], tuple[str, ...]],
        statuses: Mapping[StepKey, StepStatus],
        *,
        allowed: Collection[StepKey] = (),
        cancel: CancelAsked | None = None,
    ) -> "tuple[RunPlan, tuple[Effect, ...]]":
        """A plan that goes on where the records stop, and what is to be done now.

        `expansions`: `(job, template) -> names` of every answered `ExpandStep`. `statuses`: what was
        recorded, those that ended in the order they did (missing, `waiting` and `ready` are the same: worked
        out anew). `allowed`: failed steps whose failure was allowed. `cancel`: a cancel that was accepted
        before the crash; every cancelled step then counts as cancelled by it. Steps recorded as running stay
        running: the engine decides about them. `JobStarted`, `JobEnded` and `RunEnded` have no trace in the
        statuses and are said again: the engine drops those it has recorded. Raises `Bug` when the records do
        not fit the workflow.
        """
        plan = cls(workflow)
        plan._begun = True
        plan._cancel = cancel
        plan._story.append("rebuilt")
        for (job, template), names in expansions.items():
            group = plan._group(job, template)
            if plan._clashes(group, names):
                raise plan._bug(f"recorded expansion of {template!r} repeats a name")
            plan._expand(group, names)
        forgiven = frozenset(allowed)
        for key, status in statuses.items():
            plan._restore(plan._item(key), status, key in forgiven)
        for node in plan._jobs:
            for group in node.groups:
                plan._restore_group(group)
        for node in plan._jobs:
            if not node.waits_for and node.status is JobStatus.WAITING:
                plan._decide_job(node)
        effects = plan._settle()
        if cancel is not None:
            plan._cancel_open_jobs()
            effects += plan._settle()
        return plan, effects

    def _restore(self, item: _Item, status: StepStatus, allowed: bool) -> None:
        if status in (StepStatus.WAITING, StepStatus.READY):
            return
        group = item.group
        self._counts[item.status] -= 1
        self._counts[status] += 1
        item.status, item.asked, item.allowed = status, True, allowed
        if status is StepStatus.RUNNING:
            self._occupy(group, 1)
        else:
            group.open_items -= 1
            group.ends[status] = group.ends.get(status, 0) + 1
            self._book_end(item)
        if group.phase is _Phase.WAITING:
            group.phase = _Phase.OPEN

    def _restore_group(self, group: _Group) -> None:
        if group.phase is not _Phase.OPEN or group.open_items:
            return
        group.phase, group.outcome = _Phase.ENDED, combined(group.ends)
        group.job.open_groups -= 1
        for dependant in group.dependants:
            dependant.waits_for -= 1

    # ── events ───────────────────────────────────────────────────────────────────────────────────
    def handle(self, event: Event) -> tuple[Effect, ...]:
        """What follows from `event`, in order. An event that cannot happen now is a `Bug`."""
        self._story.append(str(event))
        if not self._begun and not isinstance(event, RunBegun):
            raise self._bug("the run has not begun")
        handler: Callable[[RunPlan, Event], None] = _HANDLERS[type(event)]
        handler(self, event)
        return self._settle()

    def _on_begun(self, event: RunBegun) -> None:
        if self._begun:
            raise self._bug("the run has begun already")
        self._begun = True
        for node in self._jobs:
            if not node.waits_for:
                self._decide_job(node)

    def _on_started(self, event: StepStarted) -> None:
        item = self._item(event.key)
        if not item.asked:
            raise self._bug(f"{event.key} started, but nobody asked for it")
        self._move(item, StepStatus.RUNNING)

    def _on_ended(self, event: StepEnded) -> None:
        item = self._item(event.key)
        if event.status not in ENDS or not item.asked:
            raise self._bug(f"{event.key} cannot end {event.status.value} now")
        item.allowed = event.allowed and event.status is StepStatus.FAILED
        self._end_item(item, event.status)
        self._occupy(item.group, -1)

    def _on_expanded(self, event: StepsExpanded) -> None:
        group = self._expanding(event.job, event.template)
        if group is None:
            return
        clashes = self._clashes(group, event.names)
        if clashes:
            self._fail_expansion(group, f"forEach gives two steps the same name: {clashes[0]!r}")
            return
        self._expand(group, event.names)
        if not group.items:
            self._end_group(group)
        for item in group.items:
            self._make_ready(item)

    def _on_expansion_failed(self, event: ExpansionFailed) -> None:
        group = self._expanding(event.job, event.template)
        if group is not None:
            self._fail_expansion(group, event.error)

    def _on_cancel(self, event: CancelAsked) -> None:
        if self._cancel is not None or self._ended is not None:
            return
        self._cancel = event
        self._cancel_open_jobs()

    def _cancel_open_jobs(self) -> None:
        for node in self._jobs:
            if node.status not in _JOB_ENDS:
                self._cancel_job(node)

    # ── jobs ─────────────────────────────────────────────────────────────────────────────────────
    def _decide_job(self, node: _Job) -> None:
        """All jobs it depends on have ended."""
        unmet = self._unmet(node)
        if self._cancel is not None and (unmet is None or node.open_groups or node.cancelled):
            self._end_job_if_done(node)  # what is open, `_cancel_open_jobs` sees to
            return
        if unmet is not None:
            for group in node.groups:
                self._close(group, SkipStep, StepStatus.SKIPPED, unmet)
            self._end_job(node, JobStatus.SKIPPED)
            return
        node.status = JobStatus.RUNNING
        self._effects.append(JobStarted(node.job.name))
        if node.failed_by is not None:  # only after a rebuild
            self._sweep(node)
        for group in node.groups:
            if group.phase is _Phase.WAITING and not group.waits_for:
                self._decide(group)
            elif group.phase is _Phase.OPEN:  # only after a rebuild
                for item in group.items:
                    if item.status is StepStatus.WAITING:
                        self._make_ready(item)
        self._end_job_if_done(node)

    def _unmet(self, node: _Job) -> str | None:
        """Why the job must not run, if so."""
        for on, ends in node.wants:
            outcome = StepStatus(self._job_by_name[on].status.value)
            if outcome not in ends:
                return f"job '{on}' {_VERB[outcome]}"
        return None

    def _cancel_job(self, node: _Job) -> None:
        assert self._cancel is not None
        if node.under_way and node.status is JobStatus.WAITING:  # only after a rebuild
            node.status = JobStatus.RUNNING
            self._effects.append(JobStarted(node.job.name))
        reason = self._cancel.reason or "the run was cancelled"
        for group in node.groups:
            for item in group.items:
                if item.asked and item.status not in ENDS:
                    self._effects.append(CancelStep(item.key))
            self._close(group, DropStep, StepStatus.CANCELLED, reason)
        self._end_job_if_done(node)

    def _end_job_if_done(self, node: _Job) -> None:
        if node.open_groups or node.status in _JOB_ENDS:
            return
        if node.failed_by is not None:
            self._end_job(node, JobStatus.FAILED)
        elif node.cancelled:
            self._end_job(node, JobStatus.CANCELLED)
        else:
            self._end_job(node, JobStatus.SUCCEEDED)

    def _end_job(self, node: _Job, status: JobStatus) -> None:
        node.status = status
        self._open_jobs -= 1
        self._effects.append(JobEnded(node.job.name, status))
        self._settled.append(node)

    # ── steps ────────────────────────────────────────────────────────────────────────────────────
    def _decide(self, group: _Group) -> None:
        """All its dependencies have ended and its job runs."""
        failed = group.job.failed_by
        if failed is not None and not group.handler:
            self._close(group, SkipStep, StepStatus.SKIPPED, f"step '{failed.step}' failed")
            return
        for on, ends in group.wants:
            outcome = group.job.by_name[on].outcome
            assert outcome is not None
            if outcome not in ends:
                self._close(group, SkipStep, StepStatus.SKIPPED, f"step '{on}' {_VERB[outcome]}")
                return
        if group.step.for_each is None:
            group.phase = _Phase.OPEN
            self._make_ready(group.items[0])
        else:
            group.phase = _Phase.EXPANDING
            self._move(group.items[0], StepStatus.READY)
            self._effects.append(ExpandStep(group.job.job.name, group.step.name))

    def _sweep(self, node: _Job) -> None:
        """A failure that was not allowed: only handlers may still start."""
        assert node.failed_by is not None
        for group in node.groups:
            if not group.handler:
                self._close(group, SkipStep, StepStatus.SKIPPED, f"step '{node.failed_by.step}' failed")

    def _close(
        self, group: _Group, say: type[SkipStep] | type[DropStep], status: StepStatus, reason: str
    ) -> None:
        """End every item that was not asked to start."""
        if group.phase is _Phase.ENDED:
            return
        group.phase = _Phase.OPEN
        group.ready.clear()
        for item in group.items:
            if not item.asked and item.status not in ENDS:
                self._effects.append(say(item.key, reason))
                self._end_item(item, status)

    def _make_ready(self, item: _Item) -> None:
        self._move(item, StepStatus.READY)
        item.group.ready.append(item)
        self._enqueue(item.group)

    def _move(self, item: _Item, status: StepStatus) -> None:
        if status not in TRANSITIONS[item.status]:
            raise self._bug(f"{item.key} is {item.status.value} and cannot become {status.value}")
        self._counts[item.status] -= 1
        self._counts[status] += 1
        item.status = status

    def _end_item(self, item: _Item, status: StepStatus) -> None:
        self._move(item, status)
        group = item.group
        group.ends[status] = group.ends.get(status, 0) + 1
        group.open_items -= 1
        first = self._book_end(item)
        if not group.open_items:
            self._end_group(group)
        if first and self._cancel is None:
            self._sweep(group.job)

    def _book_end(self, item: _Item) -> bool:
        """Note a failure or a cancelled step; whether it is the first failure of its job. A step that was
        cancelled while its run was not has failed.
        """
        node = item.group.job
        cancelled = item.status is StepStatus.CANCELLED
        if cancelled and self._cancel is not None:
            node.cancelled = True
        elif cancelled or (item.status is StepStatus.FAILED and not item.allowed):
            self._failed_step = self._failed_step or item.key
            if node.failed_by is None:
                node.failed_by = item.key
                return True
        return False

    def _end_group(self, group: _Group) -> None:
        group.phase, group.outcome = _Phase.ENDED, combined(group.ends)
        group.job.open_groups -= 1
        self._settled.append(group)

    # ── forEach ──────────────────────────────────────────────────────────────────────────────────
    def _expanding(self, job: str, template: str) -> _Group | None:
        """None: the answer is late, the step was closed in between."""
        group = self._group(job, template)
        if group.step.for_each is None or group.phase is _Phase.WAITING:
            raise self._bug(f"nobody asked to expand {job}/{template}")
        return group if group.phase is _Phase.EXPANDING else None

    def _clashes(self, group: _Group, names: tuple[str, ...]) -> list[str]:
        seen: set[str] = set()
        found = []
        for name in names:
            if name in seen or (name in group.job.names and name != group.step.name):
                found.append(name)
            seen.add(name)
        return found

    def _expand(self, group: _Group, names: tuple[str, ...]) -> None:
        stand_in = group.items.pop()
        del self._items[stand_in.key]
        group.job.names.discard(stand_in.key.step)
        self._counts[stand_in.status] -= 1
        group.phase, group.open_items = _Phase.OPEN, len(names)
        for name in names:
            self._add_item(group, name)

    def _fail_expansion(self, group: _Group, error: str) -> None:
        group.phase = _Phase.OPEN
        item = group.items[0]
        item.allowed = group.step.allow_failure
        self._effects.append(FailStep(item.key, error, item.allowed))
        self._end_item(item, StepStatus.FAILED)

    # ── caps ─────────────────────────────────────────────────────────────────────────────────────
    def _occupy(self, group: _Group, change: int) -> None:
        group.under_way += change
        group.job.under_way += change
        self._under_way += change
        if change < 0:
            self._enqueue(group)
            self._enqueue_job(group.job)

    def _enqueue(self, group: _Group) -> None:
        if group.ready and group.has_room and not group.queued:
            group.queued = True
            heappush(group.job.queue, (group.step.weight, group.index))
        self._enqueue_job(group.job)

    def _enqueue_job(self, node: _Job) -> None:
        if node.queue and node.has_room and not node.queued:
            node.queued = True
            heappush(self._queue, (node.job.weight, node.index))

    def _start_what_fits(self) -> None:
        cap = self._workflow.concurrency
        while self._queue and (not cap or self._under_way < cap):
            node = self._jobs[self._queue[0][1]]
            if not node.queue or not node.has_room:
                heappop(self._queue)
                node.queued = False
                continue
            group = node.groups[node.queue[0][1]]
            if not group.ready or not group.has_room:
                heappop(node.queue)
                group.queued = False
                continue
            item = group.ready.popleft()
            item.asked = True
            self._occupy(group, 1)
            self._effects.append(StartStep(item.key))

    def _settle(self) -> tuple[Effect, ...]:
        """Look at the dependants of what ended until nothing more follows, then start what fits."""
        while self._settled:
            ended = self._settled.popleft()
            for dependant in ended.dependants:
                dependant.waits_for -= 1
                if dependant.waits_for:
                    continue
                if isinstance(dependant, _Job):
                    if dependant.status is JobStatus.WAITING:
                        self._decide_job(dependant)
                elif dependant.phase is _Phase.WAITING and dependant.job.status is JobStatus.RUNNING:
                    self._decide(dependant)
            if isinstance(ended, _Group):
                self._end_job_if_done(ended.job)
        self._start_what_fits()
        if not self._open_jobs and self._ended is None:
            self._ended = RunEnded(self._run_status(), self._failed_step)
            self._effects.append(self._ended)
        effects, self._effects = tuple(self._effects), []
        return effects

    def _run_status(self) -> RunStatus:
        if all(node.status in (JobStatus.SUCCEEDED, JobStatus.SKIPPED) for node in self._jobs):
            return RunStatus.SUCCEEDED
        return RunStatus.CANCELLED if self._cancel is not None else RunStatus.FAILED

    # ── checking ─────────────────────────────────────────────────────────────────────────────────
    def check(self) -> None:
        """Invariants; raises `Bug`. Costs a walk over all steps: for tests and the simulator."""
        seen: dict[StepStatus, int] = dict.fromkeys(StepStatus, 0)
        under_way = 0
        for node in self._jobs:
            in_job = 0
            for group in node.groups:
                for item in group.items:
                    seen[item.status] += 1
                asked = sum(item.asked and item.status not in ENDS for item in group.items)
                self._must(asked == group.under_way, f"{group.step.name}: under way is miscounted")
                cap = group.step.concurrency
                self._must(not cap or asked <= cap, f"{group.step.name}: over its cap")
                still_open = sum(item.status not in ENDS for item in group.items)
                self._must(still_open == group.open_items, f"{group.step.name}: open items are miscounted")
                if group.phase is _Phase.ENDED:
                    self._must(not still_open and group.outcome is not None, f"{group.step.name}: ended open")
                in_job += asked
            self._must(in_job == node.under_way, f"job {node.job.name}: under way is miscounted")
            cap = node.job.concurrency
            self._must(not cap or in_job <= cap, f"job {node.job.name}: over its cap")
            left = sum(group.phase is not _Phase.ENDED for group in node.groups)
            self._must(left == node.open_groups, f"job {node.job.name}: open steps are miscounted")
            self._must(not (node.status in _JOB_ENDS and left), f"job {node.job.name}: ended open")
            under_way += in_job
        cap = self._workflow.concurrency
        self._must(under_way == self._under_way and (not cap or under_way <= cap), "workflow: over its cap")
        self._must(seen == self._counts, "counts do not add up")
        stuck = self._begun and self._ended is None and not under_way and not self._expands()
        self._must(not stuck, "nothing is under way and the run has not ended")

    def _expands(self) -> bool:
        return any(group.phase is _Phase.EXPANDING for node in self._jobs for group in node.groups)

    def _must(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise self._bug(otherwise)

    def _bug(self, message: str) -> Bug:
        return Bug(f"run plan of {self._workflow.name!r}: {message}", tuple(self._story))

    def _group(self, job: str, step: str) -> _Group:
        node = self._job_by_name.get(job)
        group = node.by_name.get(step) if node is not None else None
        if group is None:
            raise self._bug(f"there is no step {job}/{step}")
        return group

    def _item(self, key: StepKey) -> _Item:
        item = self._items.get(key)
        if item is None:
            raise self._bug(f"there is no step {key.job}/{key.step}")
        return item


_HANDLERS: Final[Mapping[type, Callable[..., None]]] = {
    RunBegun: RunPlan._on_begun,
    StepStarted: RunPlan._on_started,
    StepEnded: RunPlan._on_ended,
    StepsExpanded: RunPlan._on_expanded,
    ExpansionFailed: RunPlan._on_expansion_failed,
    CancelAsked: RunPlan._on_cancel,
}

_Node = TypeVar("_Node", _Job, _Group)


def _wants(dependencies: Iterable[Dependency]) -> tuple[tuple[str, frozenset[StepStatus]], ...]:
    return tuple((dependency.on, satisfying(dependency.condition)) for dependency in dependencies)


def _connect(
    dependants: list[_Node], by_name: Mapping[str, _Node], dependencies: Iterable[Dependency], what: str
) -> None:
    for dependant in dependants:
        for dependency in dependencies:
            if dependency.on not in by_name:
                raise Bug(f"a dependency names {what} {dependency.on!r}, which is not there")
            by_name[dependency.on].dependants.append(dependant)
            dependant.waits_for += 1


def _refuse_cycles(nodes: list[_Node]) -> None:
    """A cycle would be a run that never ends."""
    waits = {id(node): node.waits_for for node in nodes}
    free = deque(node for node in nodes if not node.waits_for)
    done = 0
    while free:
        done += 1
        for dependant in free.popleft().dependants:
            waits[id(dependant)] -= 1
            if not waits[id(dependant)]:
                free.append(dependant)
    if done != len(nodes):
        raise Bug("the dependencies have a cycle")
