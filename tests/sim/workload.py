"""What the simulated people want done: workflows, and what each of their executions will do.

A workflow is a real `Workflow` value for the real run plan. What an execution does (how long, what it prints,
what it writes, how it ends) is drawn from the seed by step and fence, so that a step that runs twice may
behave differently, as programs do.
"""

import random
from pathlib import Path

import attrs

from swamp_orch.definitions.values import (
    Condition,
    ConditionType,
    Dependency,
    Job,
    ModelMethodTask,
    OnWorkerLost,
    Placement,
    Source,
    Step,
    Workflow,
)
from swamp_proto.messages.dispatch import Outcome

from .seed import Chance

RULES = (OnWorkerLost.RULE, OnWorkerLost.RULE, OnWorkerLost.REDISPATCH, OnWorkerLost.FAIL)


@attrs.frozen
class Behaviour:
    """One execution, as it will go if nobody stops it. Instants are fractions of `duration_s`."""

    duration_s: float
    lines: int
    writes: tuple[float, ...]
    outcome: Outcome
    dies_after_term_s: float  # how long it takes to obey a TERM; KILL is always obeyed
    stuck_s: float  # after its end something is left of it for that long (0: nothing)


def behaviour(chance: Chance, step: str, fence: int, grace_s: float) -> Behaviour:
    dice = chance.of(f"work/{step}/{fence}")
    duration_s = grace_s * dice.choice((0.002, 0.02, 0.1, 0.3, 0.7, 1.5, 3.0)) * (0.5 + dice.random())
    writes: tuple[float, ...] = ()
    if dice.random() < 0.3:
        writes = tuple(sorted(dice.random() for _ in range(dice.choice((1, 1, 2, 3)))))
    outcome = dice.choices((Outcome.SUCCEEDED, Outcome.FAILED, Outcome.TIMED_OUT), (90, 8, 2))[0]
    stuck_s = dice.choice((1.0, 40.0)) if dice.random() < 0.02 else 0.0
    return Behaviour(
        duration_s, dice.choice((0, 1, 3, 10)), writes, outcome, dice.choice((0.0, 0.01, 0.5, 1e9)), stuck_s
    )


def workflow(dice: random.Random, name: str, workers: list[str], sizes: list[str]) -> Workflow:
    """A small graph: one or two jobs of up to five steps, most of them placed, all of them on somebody."""
    jobs = []
    for j in range(dice.choice((1, 1, 2))):
        steps: list[Step] = []
        for s in range(dice.randint(1, 5)):
            depends = tuple(
                Dependency(before.name, dice.choice((SUCCEEDED, SUCCEEDED, ALWAYS)))
                for before in steps
                if dice.random() < 0.3
            )
            steps.append(
                Step(
                    name=f"s{s}",
                    task=ModelMethodTask("m", "execute", {}),
                    depends_on=depends,
                    placement=_placement(dice, workers, sizes),
                    allow_failure=dice.random() < 0.2,
                    on_worker_lost=dice.choice(RULES),
                )
            )
        after = (Dependency(jobs[-1].name, dice.choice((SUCCEEDED, ALWAYS))),) if jobs else ()
        jobs.append(Job(f"j{j}", tuple(steps), depends_on=after, concurrency=dice.choice((0, 0, 2))))
    return Workflow(
        id=f"id-{name}",
        name=name,
        description="",
        jobs=tuple(jobs),
        version=1,
        tags={},
        inputs={},
        concurrency=0,
        timeout_s=None,
        trigger={},
        reports={},
        source=Source(Path(f"{name}.yaml")),
    )


def _placement(dice: random.Random, workers: list[str], sizes: list[str]) -> Placement:
    kind = dice.random()
    if kind < 0.1:
        return Placement()  # the loopback
    if kind < 0.3:
        return Placement(target=dice.choice(workers))
    if kind > 0.9:  # a group asks for what every worker has: it goes where its first step goes
        return Placement(labels={"pool": "any"}, affinity=True)
    return Placement(labels={"pool": "any"} if kind < 0.7 else {"size": dice.choice(sizes)})


SUCCEEDED = Condition(ConditionType.SUCCEEDED)
ALWAYS = Condition(ConditionType.ALWAYS)
