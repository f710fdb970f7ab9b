"""The run plan against a naive model, on random workflows and random ends.

The model knows no queues and no counters: after every event it looks at all steps anew, until nothing
changes. At every point the plan rebuilt from what an orchestrator would have recorded goes on exactly like
the plan itself.
"""

from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swamp_orch.core.runplan import (
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
    RunBegun,
    RunEnded,
    RunPlan,
    SkipStep,
    StartStep,
    StepEnded,
    StepKey,
    StepsExpanded,
    StepStarted,
    StepStatus,
)
from swamp_orch.definitions.values import (
    Condition,
    ConditionType,
    Dependency,
    ForEach,
    Job,
    ModelMethodTask,
    Source,
    Step,
    Workflow,
)

WAITING, READY, RUNNING = StepStatus.WAITING, StepStatus.READY, StepStatus.RUNNING
SUCCEEDED, FAILED = StepStatus.SUCCEEDED, StepStatus.FAILED
SKIPPED, CANCELLED = StepStatus.SKIPPED, StepStatus.CANCELLED
ENDED = (SUCCEEDED, FAILED, SKIPPED, CANCELLED)
PLAIN = ("always", "succeeded", "failed", "completed", "skipped")


# ── random workflows ─────────────────────────────────────────────────────────────────────────────


@st.composite
def conditions(draw: Any, depth: int = 1) -> Condition:
    kinds = [*PLAIN, "succeeded", "succeeded", "succeeded", *(["and", "or", "not"] if depth else [])]
    kind = ConditionType(draw(st.sampled_from(kinds)))
    count = {ConditionType.NOT: 1, ConditionType.AND: 2, ConditionType.OR: 2}.get(kind, 0)
    return Condition(kind, tuple(draw(conditions(depth=depth - 1)) for _ in range(count)))


@st.composite
def dependencies(draw: Any, names: list[str]) -> tuple[Dependency, ...]:
    chosen = draw(st.lists(st.sampled_from(names), max_size=2, unique=True)) if names else []
    return tuple(Dependency(name, draw(conditions())) for name in chosen)


@st.composite
def workflows(draw: Any) -> Workflow:
    caps = st.sampled_from([0, 0, 1, 2])
    jobs: list[Job] = []
    for number in range(draw(st.integers(1, 3))):
        steps: list[Step] = []
        for place in range(draw(st.integers(1, 5))):
            steps.append(
                Step(
                    f"s{place}",
                    ModelMethodTask("m", "execute", {}),
                    depends_on=draw(dependencies([step.name for step in steps])),
                    for_each=ForEach("x", "[]") if draw(st.integers(0, 3)) == 0 else None,
                    weight=draw(st.integers(0, 2)),
                    concurrency=draw(caps),
                    allow_failure=draw(st.booleans()),
                )
            )
        # Dependencies point backwards; the declared order is free.
        order = draw(st.permutations(steps))
        name = f"j{number}"
        depends = draw(dependencies([job.name for job in jobs]))
        jobs.append(
            Job(
                name, tuple(order), depends_on=depends, weight=draw(st.integers(0, 1)), concurrency=draw(caps)
            )
        )
    declared = tuple(draw(st.permutations(jobs)))
    cap = draw(caps)
    return Workflow("id", "w", "", declared, 1, {}, {}, cap, None, {}, {}, Source(Path("w.yaml")))


# ── the model ────────────────────────────────────────────────────────────────────────────────────


def holds(condition: Condition, end: StepStatus) -> bool:
    match condition.type:
        case ConditionType.ALWAYS:
            return True
        case ConditionType.SUCCEEDED:
            return end is SUCCEEDED
        case ConditionType.FAILED:
            return end in (FAILED, CANCELLED)
        case ConditionType.COMPLETED:
            return end is not SKIPPED
        case ConditionType.SKIPPED:
            return end is SKIPPED
        case ConditionType.AND:
            return all(holds(operand, end) for operand in condition.conditions)
        case ConditionType.OR:
            return any(holds(operand, end) for operand in condition.conditions)
        case ConditionType.NOT:
            return not holds(condition.conditions[0], end)


class Model:
    """Which steps there are and what they are; everything else is worked out anew each time."""

    def __init__(self, flow: Workflow) -> None:
        self.flow = flow
        self.items: dict[tuple[str, str], list[str] | None] = {}  # None: a forEach that was not expanded
        self.status: dict[StepKey, StepStatus] = {}
        self.expanding: set[tuple[str, str]] = set()
        self.asked: set[StepKey] = set()
        self.failed: dict[str, str] = {}  # job -> the step that failed it
        self.cancelled = False
        for job in flow.jobs:
            for step in job.steps:
                self.items[job.name, step.name] = None if step.for_each else [step.name]
                self.status[StepKey(job.name, step.name)] = WAITING

    def keys(self, job: str, step: str) -> list[StepKey]:
        names = self.items[job, step]
        return [StepKey(job, name) for name in ([step] if names is None else names)]

    def step_end(self, job: str, step: str) -> StepStatus | None:
        ends = [self.status[key] for key in self.keys(job, step)]
        if any(end not in ENDED for end in ends) or (job, step) in self.expanding:
            return None
        return next((end for end in (FAILED, CANCELLED, SUCCEEDED, SKIPPED) if end in ends), SUCCEEDED)

    def job_end(self, job: Job) -> StepStatus | None:
        ends = [self.step_end(job.name, step.name) for step in job.steps]
        if None in ends:
            return None
        if self.decide_job(job) is False and not self.cancelled:
            return SKIPPED
        if job.name in self.failed:
            return FAILED
        all_items = [self.status[key] for step in job.steps for key in self.keys(job.name, step.name)]
        return CANCELLED if CANCELLED in all_items else SUCCEEDED

    def decide_job(self, job: Job) -> bool | None:
        """Whether it may run; None: not known yet."""
        by_name = {other.name: other for other in self.flow.jobs}
        ends = [(one, self.job_end(by_name[one.on])) for one in job.depends_on]
        if any(end is None for _, end in ends):
            return None
        return all(holds(one.condition, end) for one, end in ends if end is not None)

    def settle(self) -> None:
        """Until nothing changes: end what cannot start, and make ready what can."""
        changed = True
        while changed:
            changed = False
            for job in self.flow.jobs:
                may_run = self.decide_job(job)
                for step in job.steps:
                    changed |= self._settle_step(job, step, may_run)

    def _settle_step(self, job: Job, step: Step, may_run: bool | None) -> bool:
        keys = [key for key in self.keys(job.name, step.name) if self.status[key] in (WAITING, READY)]
        keys = [key for key in keys if key not in self.asked]
        if not keys:
            return False
        handler = any(holds(one.condition, FAILED) for one in step.depends_on)
        if self.cancelled:
            return self._end(job, step, keys, CANCELLED)
        if may_run is False or (job.name in self.failed and not handler):
            return self._end(job, step, keys, SKIPPED)
        if may_run is None:
            return False
        ends = [(one, self.step_end(job.name, one.on)) for one in step.depends_on]
        if any(end is None for _, end in ends):
            return False
        if not all(holds(one.condition, end) for one, end in ends if end is not None):
            return self._end(job, step, keys, SKIPPED)
        if self.status[keys[0]] is READY:
            return False
        if self.items[job.name, step.name] is None:
            self.expanding.add((job.name, step.name))
        for key in keys:
            self.status[key] = READY
        return True

    def _end(self, job: Job, step: Step, keys: list[StepKey], status: StepStatus) -> bool:
        self.expanding.discard((job.name, step.name))
        for key in keys:
            self.status[key] = status
        return True

    def startable(self) -> StepKey | None:
        """The first that fits, by weight and declared order."""
        in_flow = sum(self.status[key] not in ENDED for key in self.asked)
        if self.flow.concurrency and in_flow >= self.flow.concurrency:
            return None
        ordered = sorted(
            (job.weight, at, step.weight, number, place, key)
            for at, job in enumerate(self.flow.jobs)
            for number, step in enumerate(job.steps)
            if (job.name, step.name) not in self.expanding
            for place, key in enumerate(self.keys(job.name, step.name))
            if self.status[key] is READY and key not in self.asked
        )
        for _, at, _, number, _, key in ordered:
            job = self.flow.jobs[at]
            step = job.steps[number]
            in_job = [one for one in self.asked if one.job == job.name and self.status[one] not in ENDED]
            in_step = [one for one in self.keys(job.name, step.name) if one in in_job]
            if (not job.concurrency or len(in_job) < job.concurrency) and (
                not step.concurrency or len(in_step) < step.concurrency
            ):
                return key
        return None

    def start(self) -> list[StepKey]:
        started = []
        while (key := self.startable()) is not None:
            self.asked.add(key)
            started.append(key)
        return started

    def end(self, key: StepKey, status: StepStatus, allowed: bool) -> None:
        self.status[key] = status
        by_itself = status is CANCELLED and not self.cancelled
        if by_itself or (status is FAILED and not allowed):
            self.failed.setdefault(key.job, key.step)

    def expand(self, job: str, template: str, names: tuple[str, ...]) -> None:
        self.expanding.discard((job, template))
        del self.status[StepKey(job, template)]
        self.items[job, template] = list(names)
        self.status.update({StepKey(job, name): READY for name in names})

    @property
    def over(self) -> bool:
        return all(self.job_end(job) is not None for job in self.flow.jobs)


# ── the conversation ─────────────────────────────────────────────────────────────────────────────


class Pair:
    """The plan and the model, told the same."""

    def __init__(self, flow: Workflow) -> None:
        self.flow, self.plan, self.model = flow, RunPlan(flow), Model(flow)
        self.said: list[Effect] = []
        self.expansions: dict[tuple[str, str], tuple[str, ...]] = {}
        self.ended: dict[StepKey, StepStatus] = {}  # in order, as an orchestrator records them
        self.allowed: set[StepKey] = set()
        self.cancel: CancelAsked | None = None
        self.alone = (
            False  # a step was cancelled alone: the records do not tell it from one that its run cancelled
        )

    def tell(self, event: Event) -> None:
        effects = self.plan.handle(event)
        self.plan.check()
        self.said.extend(effects)
        match event:
            case StepEnded():
                self.model.end(event.key, event.status, event.allowed)
                self._note(event.key, event.status, event.allowed)
                self.alone |= event.status is CANCELLED and self.cancel is None
            case StepStarted():
                self.model.status[event.key] = RUNNING
            case StepsExpanded():
                self.model.expand(event.job, event.template, event.names)
                self.expansions[event.job, event.template] = event.names
            case ExpansionFailed():
                key = StepKey(event.job, event.template)
                allowed = next(isinstance(one, FailStep) and one.allowed for one in effects)
                self.model.expanding.discard((event.job, event.template))
                self.model.asked.add(key)
                self.model.end(key, FAILED, allowed)
                self._note(key, FAILED, allowed)
            case CancelAsked():
                self.cancel, self.model.cancelled = event, True
        for effect in effects:
            match effect:
                case SkipStep():
                    self._note(effect.key, SKIPPED, False)
                case DropStep():
                    self._note(effect.key, CANCELLED, False)
        self.model.settle()
        started = self.model.start()
        assert [effect.key for effect in effects if isinstance(effect, StartStep)] == started
        assert dict(self.plan.statuses()) == self.model.status
        assert sum(self.plan.counts().values()) == len(self.model.status)
        assert (self.plan.ended is not None) == self.model.over

    def _note(self, key: StepKey, status: StepStatus, allowed: bool) -> None:
        assert key not in self.ended, "a step ends exactly once"
        self.ended[key] = status
        if allowed:
            self.allowed.add(key)

    def rebuild(self) -> None:
        """What a new orchestrator makes of the records is the same plan."""
        running = {key: RUNNING for key in sorted(self.model.asked) if key not in self.ended}
        plan, effects = RunPlan.rebuild(
            self.flow, self.expansions, {**self.ended, **running}, allowed=self.allowed, cancel=self.cancel
        )
        plan.check()
        expected = {key: RUNNING if key in running else status for key, status in self.model.status.items()}
        assert dict(plan.statuses()) == expected
        assert plan.ended == self.plan.ended and plan.job_statuses() == self.plan.job_statuses()
        asks = {effect for effect in effects if isinstance(effect, ExpandStep)}
        assert {(ask.job, ask.template) for ask in asks} == self.model.expanding
        assert not [one for one in effects if isinstance(one, StartStep | SkipStep | DropStep | FailStep)]
        if self.cancel is not None:
            assert {one.key for one in effects if isinstance(one, CancelStep)} == set(running)
        self.plan = plan  # and it goes on
        for key in running:
            self.model.status[key] = RUNNING


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(workflows(), st.data())
def test_the_plan_is_the_naive_model(flow: Workflow, data: st.DataObject) -> None:
    pair = Pair(flow)
    pair.tell(RunBegun())
    turns = 0
    while pair.plan.ended is None:
        turns += 1
        assert turns < 500, "the run does not end"
        open_keys = sorted(key for key in pair.model.asked if key not in pair.ended)
        asked = sorted(pair.model.expanding)
        choices: list[Any] = [*open_keys, *asked]
        assert choices, "nothing is under way and the run has not ended"
        deed = data.draw(st.integers(0, 19))
        if deed == 0 and not pair.alone:
            pair.tell(CancelAsked("stop"))
        elif deed in (1, 2):
            pair.rebuild()
            continue
        chosen = data.draw(st.sampled_from(choices))
        if isinstance(chosen, StepKey):
            if chosen in pair.ended:
                continue
            if pair.model.status[chosen] is READY and data.draw(st.booleans()):
                pair.tell(StepStarted(chosen))
                continue
            status = data.draw(st.sampled_from([SUCCEEDED, SUCCEEDED, SUCCEEDED, FAILED, SKIPPED, CANCELLED]))
            pair.tell(StepEnded(chosen, status, allowed=status is FAILED and data.draw(st.booleans())))
        elif chosen in pair.model.expanding:
            job, template = chosen
            if data.draw(st.integers(0, 5)) == 0:
                pair.tell(ExpansionFailed(job, template, "no"))
            else:
                count = data.draw(st.integers(0, 4))
                pair.tell(StepsExpanded(job, template, tuple(f"{template}-{n}" for n in range(count))))
    pair.rebuild()
    assert set(pair.ended) == set(pair.model.status), "every step ends, and only once"
    jobs = [effect.job for effect in pair.said if isinstance(effect, JobEnded)]
    assert sorted(jobs) == sorted(job.name for job in flow.jobs)
    started = [effect.job for effect in pair.said if isinstance(effect, JobStarted)]
    assert len(started) == len(set(started))
    assert [effect for effect in pair.said if isinstance(effect, RunEnded)] or pair.plan.ended is not None
