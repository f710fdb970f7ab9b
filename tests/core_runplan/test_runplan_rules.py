"""The run plan, rule by rule: small workflows, the whole conversation."""

import sys
from pathlib import Path
from typing import Any

import pytest

from swamp_orch.core import runplan as rp
from swamp_orch.core.runplan import (
    CancelAsked,
    CancelStep,
    DropStep,
    ExpandStep,
    ExpansionFailed,
    FailStep,
    JobEnded,
    JobStarted,
    JobStatus,
    RunBegun,
    RunEnded,
    RunPlan,
    RunStatus,
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
from swamp_proto.errors import Bug

SUCCEEDED, FAILED, SKIPPED, CANCELLED = (
    StepStatus.SUCCEEDED,
    StepStatus.FAILED,
    StepStatus.SKIPPED,
    StepStatus.CANCELLED,
)
TASK = ModelMethodTask("m", "execute", {})


def on(name: str, kind: str = "succeeded") -> Dependency:
    return Dependency(name, Condition(ConditionType(kind)))


def step(name: str, *depends: Dependency | str, **more: Any) -> Step:
    return Step(name, TASK, depends_on=tuple(on(d) if isinstance(d, str) else d for d in depends), **more)


def job(name: str, *steps: Step, depends: tuple[Dependency, ...] = (), **more: Any) -> Job:
    return Job(name, steps, depends_on=depends, **more)


def workflow(*jobs: Job, concurrency: int = 0) -> Workflow:
    return Workflow("id", "w", "", jobs, 1, {}, {}, concurrency, None, {}, {}, Source(Path("w.yaml")))


def key(name: str, job_name: str = "j") -> StepKey:
    return StepKey(job_name, name)


class Run:
    """A plan with the small engine that a conversation needs: `start` answers every StartStep."""

    def __init__(self, flow: Workflow) -> None:
        self.plan = RunPlan(flow)
        self.said: list[rp.Effect] = []

    def tell(self, *events: rp.Event) -> list[rp.Effect]:
        new: list[rp.Effect] = []
        for event in events:
            new.extend(self.plan.handle(event))
            self.plan.check()
        self.said.extend(new)
        return new

    def end(self, name: str, status: StepStatus = SUCCEEDED, *, allowed: bool = False, job_name: str = "j"):
        return self.tell(StepStarted(key(name, job_name)), StepEnded(key(name, job_name), status, allowed))

    @property
    def status(self) -> dict[str, str]:
        return {k.step: s.value for k, s in self.plan.statuses().items()}


def begin(*jobs: Job, concurrency: int = 0) -> Run:
    run = Run(workflow(*jobs, concurrency=concurrency))
    run.tell(RunBegun())
    return run


def started(effects: list[rp.Effect]) -> list[str]:
    return [effect.key.step for effect in effects if isinstance(effect, StartStep)]


def skipped(effects: list[rp.Effect]) -> dict[str, str]:
    return {effect.key.step: effect.reason for effect in effects if isinstance(effect, SkipStep)}


def test_one_step() -> None:
    run = begin(job("j", step("a")))
    assert run.said == [JobStarted("j"), StartStep(key("a"))]
    assert run.tell(StepStarted(key("a"))) == []
    assert run.tell(StepEnded(key("a"), SUCCEEDED)) == [
        JobEnded("j", JobStatus.SUCCEEDED),
        RunEnded(RunStatus.SUCCEEDED),
    ]
    assert run.plan.counts()[SUCCEEDED] == 1 and sum(run.plan.counts().values()) == 1


def test_a_step_starts_when_its_own_dependencies_ended_not_when_a_level_did_w23() -> None:
    run = begin(job("j", step("slow"), step("fast"), step("next", "fast"), step("after-slow", "slow")))
    assert started(run.said) == ["slow", "fast"]
    assert started(run.end("fast")) == ["next"]  # slow still runs


def test_jobs_wait_for_their_jobs_and_a_failed_job_skips_only_its_dependants() -> None:
    run = begin(
        job("one", step("a")),
        job("two", step("b"), depends=(on("one"),)),
        job("three", step("c"), depends=(on("two", "completed"),)),
        job("four", step("d"), depends=(on("one", "failed"),)),
        job("five", step("e")),
    )
    assert started(run.said) == ["a", "e"]
    effects = run.end("a", FAILED, job_name="one")
    assert effects == [
        JobEnded("one", JobStatus.FAILED),
        SkipStep(key("b", "two"), "job 'one' failed"),
        JobEnded("two", JobStatus.SKIPPED),
        JobStarted("four"),
        SkipStep(key("c", "three"), "job 'two' was skipped"),
        JobEnded("three", JobStatus.SKIPPED),
        StartStep(key("d", "four")),
    ]
    run.end("d", job_name="four")
    assert run.end("e", job_name="five")[-1] == RunEnded(RunStatus.FAILED, key("a", "one"))


def test_after_a_failure_siblings_finish_default_steps_skip_and_handlers_run_w22() -> None:
    run = begin(
        job(
            "j",
            step("compile"),
            step("sibling"),
            step("independent", weight=9),
            step("default", "compile"),
            step("after-sibling", "sibling"),
            step("always", on("default", "always")),
            step("failed", on("compile", "failed")),
            step("completed", on("sibling", "completed")),
            step("tail", "always"),
            concurrency=2,
        )
    )
    assert started(run.said) == ["compile", "sibling"]
    effects = run.end("compile", FAILED)
    assert skipped(effects) == dict.fromkeys(
        ["independent", "default", "after-sibling", "tail"], "step 'compile' failed"
    )
    assert started(effects) == ["always"]  # the cap holds: sibling is still under way
    assert started(run.end("sibling")) == ["failed"]
    assert started(run.end("always")) == ["completed"]
    run.end("failed")
    assert run.end("completed") == [
        JobEnded("j", JobStatus.FAILED),
        RunEnded(RunStatus.FAILED, key("compile")),
    ]
    assert set(run.status.values()) <= {"succeeded", "failed", "skipped"}


def test_an_allowed_failure_shows_failed_and_the_job_goes_on() -> None:
    run = begin(
        job(
            "j",
            step("lint", allow_failure=True),
            step("strict", "lint"),
            step("either", on("lint", "completed")),
            step("fix", on("lint", "failed")),
            step("other"),
            concurrency=1,
        )
    )
    effects = run.end("lint", FAILED, allowed=True)
    assert skipped(effects) == {"strict": "step 'lint' failed"}
    for name in ("either", "fix", "other"):
        effects = run.end(name)
    assert effects == [JobEnded("j", JobStatus.SUCCEEDED), RunEnded(RunStatus.SUCCEEDED)]
    assert run.status["lint"] == "failed"


def test_a_failure_of_an_allow_failure_step_that_the_engine_does_not_allow_fails_the_job() -> None:
    run = begin(job("j", step("a", allow_failure=True)))
    assert run.end("a", FAILED, allowed=False)[-1] == RunEnded(RunStatus.FAILED, key("a"))


def test_a_guarded_step_is_skipped_and_so_are_its_default_dependants() -> None:
    run = begin(job("j", step("a"), step("b", "a"), step("c", on("a", "skipped"))))
    effects = run.tell(StepEnded(key("a"), SKIPPED, reason="guarded"))
    assert effects == [SkipStep(key("b"), "step 'a' was skipped"), StartStep(key("c"))]
    assert run.end("c")[-1] == RunEnded(RunStatus.SUCCEEDED)


CASES = {
    "always": {SUCCEEDED, FAILED, SKIPPED, CANCELLED},
    "succeeded": {SUCCEEDED},
    "failed": {FAILED, CANCELLED},
    "completed": {SUCCEEDED, FAILED, CANCELLED},
    "skipped": {SKIPPED},
}


@pytest.mark.parametrize("kind", list(CASES))
@pytest.mark.parametrize("status", [SUCCEEDED, FAILED, SKIPPED])
def test_every_condition_on_every_end(kind: str, status: StepStatus) -> None:
    run = begin(job("j", step("a"), step("b", on("a", kind))))
    effects = run.end("a", status, allowed=True)
    assert (started(effects) == ["b"]) is (status in CASES[kind])
    assert rp.satisfying(Condition(ConditionType(kind))) == CASES[kind]


def test_and_or_not() -> None:
    succeeded, failed = Condition(ConditionType.SUCCEEDED), Condition(ConditionType.FAILED)
    skipped_ = Condition(ConditionType.SKIPPED)
    either = Condition(ConditionType.OR, (succeeded, skipped_))
    assert rp.satisfying(either) == {SUCCEEDED, SKIPPED}
    assert rp.satisfying(Condition(ConditionType.NOT, (either,))) == {FAILED, CANCELLED}
    assert rp.satisfying(Condition(ConditionType.AND, (succeeded, failed))) == frozenset()
    assert not rp.is_handler([Dependency("x", either)])
    assert rp.is_handler(
        [Dependency("x", succeeded), Dependency("y", Condition(ConditionType.NOT, (either,)))]
    )


def test_weight_then_declared_order_under_a_cap() -> None:
    run = begin(
        job("late", step("l"), weight=5),
        job("j", step("c", weight=2), step("a"), step("b", weight=1), step("d", weight=2)),
        concurrency=1,
    )
    order = started(run.said)
    while run.plan.ended is None:
        last = run.said[-1]
        assert isinstance(last, StartStep)
        order += started(run.tell(StepStarted(last.key), StepEnded(last.key, SUCCEEDED)))
    assert order == ["a", "b", "c", "d", "l"]


def each(name: str, *depends: Dependency | str, **more: Any) -> Step:
    return step(name, *depends, for_each=ForEach("x", "${{ [1] }}"), **more)


def test_foreach_is_expanded_when_its_own_dependencies_ended_and_capped_over_its_items() -> None:
    run = begin(job("j", step("a"), each("t", "a", concurrency=2), step("z", "t")))
    assert started(run.said) == ["a"]
    assert run.end("a") == [ExpandStep("j", "t")]
    effects = run.tell(StepsExpanded("j", "t", ("t-1", "t-2", "t-3")))
    assert started(effects) == ["t-1", "t-2"]
    assert started(run.end("t-2")) == ["t-3"]
    run.end("t-1")
    assert started(run.end("t-3")) == ["z"]
    assert list(run.status) == ["a", "t-1", "t-2", "t-3", "z"]


@pytest.mark.parametrize(
    ("ends", "combined"),
    [
        ([SUCCEEDED, SUCCEEDED], SUCCEEDED),
        ([SUCCEEDED, SKIPPED], SUCCEEDED),
        ([SKIPPED, SKIPPED], SKIPPED),
        ([SUCCEEDED, FAILED, SKIPPED], FAILED),
        ([], SUCCEEDED),
    ],
)
def test_a_dependency_on_a_template_is_on_all_its_items_w20(
    ends: list[StepStatus], combined: StepStatus
) -> None:
    kinds = ["succeeded", "failed", "completed", "skipped", "always"]
    run = begin(job("j", each("t", allow_failure=True), *(step(kind, on("t", kind)) for kind in kinds)))
    names = tuple(f"t-{index}" for index in range(len(ends)))
    effects = run.tell(StepsExpanded("j", "t", names))
    for name, status in zip(names, ends, strict=True):
        assert not [effect for effect in effects if isinstance(effect, SkipStep)]
        effects = run.end(name, status, allowed=True)
    assert started(effects) == [kind for kind in kinds if combined in CASES[kind]]


def test_foreach_items_obey_the_conditions_of_their_template_w21() -> None:
    run = begin(job("j", step("a", allow_failure=True), each("t", "a")))
    assert run.end("a", FAILED, allowed=True) == [
        SkipStep(key("t"), "step 'a' failed"),
        JobEnded("j", JobStatus.SUCCEEDED),
        RunEnded(RunStatus.SUCCEEDED),
    ]


def test_a_failed_item_skips_the_items_that_were_not_asked_to_start() -> None:
    run = begin(job("j", each("t", concurrency=2), step("clean", on("t", "failed"))))
    run.tell(StepsExpanded("j", "t", ("t-0", "t-1", "t-2", "t-3")))
    assert skipped(run.end("t-0", FAILED)) == {"t-2": "step 't-0' failed", "t-3": "step 't-0' failed"}
    assert started(run.end("t-1")) == ["clean"]


@pytest.mark.parametrize("names", [("x", "x"), ("ok", "other"), ("other",)])
def test_names_that_clash_fail_the_template_and_say_which(names: tuple[str, ...]) -> None:
    run = begin(job("j", each("t"), step("other", on("t", "failed"))))
    effects = run.tell(StepsExpanded("j", "t", names))
    assert isinstance(effects[0], FailStep) and names[-1] in effects[0].reason
    assert started(effects) == ["other"]
    assert run.end("other")[-1] == RunEnded(RunStatus.FAILED, key("t"))


def test_an_expansion_that_fails_obeys_allow_failure_w24() -> None:
    run = begin(job("j", each("t", allow_failure=True)))
    assert run.tell(ExpansionFailed("j", "t", "no such key")) == [
        FailStep(key("t"), "no such key", allowed=True),
        JobEnded("j", JobStatus.SUCCEEDED),
        RunEnded(RunStatus.SUCCEEDED),
    ]


def test_cancel_drops_what_waits_and_asks_what_runs() -> None:
    run = begin(
        job("j", step("a"), step("b"), step("c", "a"), each("t"), concurrency=1),
        job("k", step("d"), depends=(on("j", "always"),)),
    )
    run.tell(StepStarted(key("a")))
    effects = run.tell(CancelAsked("Ctrl-C"))
    assert effects == [
        CancelStep(key("a")),
        DropStep(key("b"), "Ctrl-C"),
        DropStep(key("c"), "Ctrl-C"),
        DropStep(key("t"), "Ctrl-C"),
        DropStep(key("d", "k"), "Ctrl-C"),
        JobEnded("k", JobStatus.CANCELLED),
    ]
    assert run.tell(StepsExpanded("j", "t", ("t-1",))) == []  # the answer is late
    assert run.tell(CancelAsked("again")) == []
    assert run.tell(StepEnded(key("a"), CANCELLED)) == [
        JobEnded("j", JobStatus.CANCELLED),
        RunEnded(RunStatus.CANCELLED),
    ]
    assert run.tell(CancelAsked("late")) == []


def test_a_cancel_that_came_too_late_to_change_anything_is_a_success() -> None:
    run = begin(job("j", step("a")))
    assert run.tell(CancelAsked()) == [CancelStep(key("a"))]
    assert run.tell(StepEnded(key("a"), SUCCEEDED))[-1] == RunEnded(RunStatus.SUCCEEDED)


def test_a_step_cancelled_alone_counts_as_a_failure_of_its_job() -> None:
    run = begin(job("j", step("a"), step("b", "a"), step("clean", on("a", "failed"))))
    effects = run.end("a", CANCELLED)
    assert skipped(effects) == {"b": "step 'a' failed"} and started(effects) == ["clean"]
    assert run.end("clean")[-1] == RunEnded(RunStatus.FAILED, key("a"))


def test_events_that_cannot_happen_are_bugs_that_carry_the_story() -> None:
    flow = workflow(job("j", step("a"), step("b", "a"), each("t", "a")))
    with pytest.raises(Bug, match="has not begun"):
        RunPlan(flow).handle(StepStarted(key("a")))
    for event in (
        RunBegun(),
        StepStarted(key("b")),
        StepStarted(key("nowhere")),
        StepEnded(key("b"), SUCCEEDED),
        StepEnded(key("a"), StepStatus.RUNNING),
        StepsExpanded("j", "t", ()),
        StepsExpanded("j", "a", ()),
    ):
        run = Run(flow)
        run.tell(RunBegun())
        with pytest.raises(Bug) as caught:
            run.tell(event)
        assert "RunBegun()" in caught.value.story
    run = begin(job("j", step("a"), step("b")))
    run.end("a")
    with pytest.raises(Bug):
        run.tell(StepEnded(key("a"), FAILED))


@pytest.mark.parametrize(
    "jobs",
    [
        (job("j", step("a", "b"), step("b", "a")),),
        (job("j", step("a", "a")),),
        (job("j", step("a", "zz")),),
        (job("j", step("a")), job("j", step("a"))),
        (job("j", step("a"), step("a")),),
        (job("j", step("a"), depends=(on("k"),)), job("k", step("a"), depends=(on("j"),))),
    ],
)
def test_a_workflow_that_could_not_end_is_refused(jobs: tuple[Job, ...]) -> None:
    with pytest.raises(Bug):
        RunPlan(workflow(*jobs))


def test_rebuild_goes_on_where_the_records_stop() -> None:
    flow = workflow(
        job("j", step("a"), each("t", "a"), step("z", "t"), step("lint", allow_failure=True)),
        job("k", step("d"), depends=(on("j"),)),
    )
    plan, effects = RunPlan.rebuild(
        flow,
        {("j", "t"): ("t-1", "t-2", "t-3")},
        {
            key("a"): SUCCEEDED,
            key("lint"): FAILED,
            key("t-2"): SUCCEEDED,
            key("t-1"): StepStatus.RUNNING,
            key("t-3"): StepStatus.READY,
        },
        allowed=[key("lint")],
    )
    assert effects == (JobStarted("j"), StartStep(key("t-3")))
    plan.check()
    plan.handle(StepEnded(key("t-1"), SUCCEEDED))
    assert plan.handle(StepEnded(key("t-3"), SUCCEEDED)) == (StartStep(key("z")),)
    assert plan.handle(StepEnded(key("z"), SUCCEEDED)) == (
        JobEnded("j", JobStatus.SUCCEEDED),
        JobStarted("k"),
        StartStep(key("d", "k")),
    )


def test_rebuild_finishes_what_a_crash_cut_off() -> None:
    flow = workflow(job("j", step("a"), step("b", "a"), step("c", on("a", "failed"))))
    _, effects = RunPlan.rebuild(flow, {}, {key("a"): FAILED})
    assert effects == (
        JobStarted("j"),
        SkipStep(key("b"), "step 'a' failed"),
        StartStep(key("c")),
    )
    _, effects = RunPlan.rebuild(flow, {}, {key("a"): FAILED, key("b"): SKIPPED, key("c"): SUCCEEDED})
    assert effects[-2:] == (JobEnded("j", JobStatus.FAILED), RunEnded(RunStatus.FAILED, key("a")))


def test_rebuild_carries_a_cancel_on() -> None:
    flow = workflow(job("j", step("a"), step("b"), concurrency=1))
    plan, effects = RunPlan.rebuild(flow, {}, {key("a"): StepStatus.RUNNING}, cancel=CancelAsked("stop"))
    assert effects == (JobStarted("j"), CancelStep(key("a")), DropStep(key("b"), "stop"))
    assert plan.handle(StepEnded(key("a"), CANCELLED))[-1] == RunEnded(RunStatus.CANCELLED)


def calls_of(size: int, concurrency: int) -> int:
    """Python and C calls that a whole run of one job with `size` chained, free and forEach steps costs."""
    steps = [step(f"s{i}", *([f"s{i - 1}"] if i % 2 else [])) for i in range(size // 2)]
    run_plan = RunPlan(workflow(job("j", *steps, each("t"), concurrency=concurrency)))
    count = 0

    def tally(frame: object, event: str, arg: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(tally)
    try:
        pending = list(run_plan.handle(RunBegun()))
        while pending:
            effect = pending.pop()
            if isinstance(effect, ExpandStep):
                names = tuple(f"t{i}" for i in range(size // 2))
                pending.extend(run_plan.handle(StepsExpanded("j", "t", names)))
            elif isinstance(effect, StartStep):
                run_plan.handle(StepStarted(effect.key))
                pending.extend(run_plan.handle(StepEnded(effect.key, SUCCEEDED)))
    finally:
        sys.setprofile(before)
    assert run_plan.ended == RunEnded(RunStatus.SUCCEEDED)
    return count


@pytest.mark.parametrize("concurrency", [0, 3])
def test_ten_thousand_steps_cost_ten_times_a_thousand(concurrency: int) -> None:
    small, large = calls_of(500, concurrency), calls_of(5_000, concurrency)
    assert large < 10.5 * small


def test_every_status_and_only_statuses_have_transitions() -> None:
    assert set(rp.TRANSITIONS) == set(StepStatus)
    assert {status for status, following in rp.TRANSITIONS.items() if not following} == rp.ENDS


def test_every_transition_is_reached_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    reached: set[tuple[StepStatus, StepStatus]] = set()
    move = RunPlan._move

    def noted(self: RunPlan, item: Any, status: StepStatus) -> None:
        reached.add((item.status, status))
        move(self, item, status)

    monkeypatch.setattr(RunPlan, "_move", noted)
    for status in (SUCCEEDED, FAILED, SKIPPED, CANCELLED):
        for first in ([], [StepStarted(key("a"))]):
            run = begin(job("j", step("a"), step("b", "a"), step("c"), concurrency=1))
            run.tell(*first, StepEnded(key("a"), status))
            run.tell(CancelAsked())
    run = begin(job("j", step("a"), step("b", "a"), concurrency=1))
    run.tell(CancelAsked())
    assert reached == {(status, then) for status, following in rp.TRANSITIONS.items() for then in following}
