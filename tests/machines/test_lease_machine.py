"""The write-then-fail rule as a hypothesis state machine, and planted bugs that it must find."""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from lease_world import CancelKind, Execution, Outcome, Step, Worker, World, blow
from planted import planted

from swamp_orch.core import lease_ends, lease_ledger, reconcile
from swamp_orch.core import leases as real
from swamp_proto.errors import Bug

PICK = st.integers(0, 7)
LUCK = st.integers(0, 7)  # rare things happen on a 3
OUTCOMES = st.sampled_from((Outcome.SUCCEEDED, Outcome.FAILED, Outcome.ABANDONED, Outcome.TIMED_OUT))


def machine_of(core: ModuleType) -> type[RuleBasedStateMachine]:
    """The machine over one implementation of the core."""

    class LeaseMachine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.world = World(core)

        def workers(self, *, up: bool) -> list[Worker]:
            return [one for one in self.world.workers.values() if (one.link is not None) is up]

        def waiting(self) -> list[Step]:
            return [step for step in self.world.steps.values() if step.waiting and step.done is None]

        def living(self) -> list[Execution]:
            return [one for one in self.world.executions.values() if one.alive and one.finished is None]

        @precondition(lambda self: len(self.world.slots) < 4)
        @rule(which=PICK, where=PICK)
        def place(self, which: int, where: int) -> None:
            places = [one for one in self.world.workers.values() if one.known_link is not None]
            worker: Worker | None = (*places, *places, None)[where % (2 * len(places) + 1)]
            waiting = self.waiting()
            step = waiting[which % len(waiting)] if waiting else self.world.submit(which)
            self.world.grant(step, worker)
            if worker is not None and worker.link is None:  # the link is dead, nobody knows yet
                worker.inbox.clear()

        @rule(which=PICK, where=PICK, picks=st.lists(PICK, min_size=2, max_size=6))
        def place_and_start(self, which: int, where: int, picks: list[int]) -> None:
            if len(self.world.slots) < 4:
                self.place(which, where)
            self.goes_on(picks)

        @precondition(lambda self: self.workers(up=True))
        @rule(which=PICK, reaped=st.booleans(), picks=st.lists(PICK, max_size=6))
        def blip(self, which: int, reaped: bool, picks: list[int]) -> None:
            worker = self.workers(up=True)[which % len(self.workers(up=True))]
            self.world.cut(worker)
            self.world.notice(worker)
            self.goes_on(picks)
            self.world.connect(worker, reaped=reaped)

        def work(self) -> list[Callable[[], None]]:
            """Everything that is on its way, by itself."""
            world = self.world
            found: list[Callable[[], None]] = []
            for worker in world.workers.values():
                if worker.inbox:
                    found.append(lambda worker=worker: world.deliver_to_worker(worker))  # type: ignore[misc]
                if worker.outbox:
                    found.append(lambda worker=worker: world.deliver_to_orchestrator(worker))  # type: ignore[misc]
            if world.queue:
                found.append(world.commit_next)
            return found

        @precondition(lambda self: self.work())
        @rule(picks=st.lists(PICK, min_size=1, max_size=4))
        def goes_on(self, picks: list[int]) -> None:
            for pick in picks:
                work = self.work()
                if work:
                    work[pick % len(work)]()

        @precondition(lambda self: self.work())
        @rule(picks=st.lists(PICK, min_size=4, max_size=12))
        def goes_on_a_while(self, picks: list[int]) -> None:
            self.goes_on(picks)

        @precondition(lambda self: any(one.inbox for one in self.world.workers.values()))
        @rule(how=st.sampled_from(("busy", "draining", "too_large")))
        def worker_refuses(self, how: str) -> None:
            worker = next(one for one in self.world.workers.values() if one.inbox)
            self.world.deliver_to_worker(worker, how)

        @precondition(lambda self: self.living())
        @rule(which=PICK)
        def writes(self, which: int) -> None:
            self.world.write(self.living()[which % len(self.living())])

        @precondition(lambda self: self.world.executions)
        @rule(which=PICK)
        def writes_late(self, which: int) -> None:
            self.world.late_write(
                list(self.world.executions.values())[-1 - which % len(self.world.executions)]
            )

        @precondition(lambda self: self.living())
        @rule(which=PICK, outcome=OUTCOMES, luck=st.booleans())
        def ends(self, which: int, outcome: Outcome, luck: bool) -> None:
            if luck:
                self.world.end_execution(self.living()[which % len(self.living())], outcome)

        @precondition(lambda self: self.world.queue)
        @rule()
        def disk_refuses(self) -> None:
            self.world.commit_next(full=True)

        @precondition(lambda self: self.workers(up=True))
        @rule(which=PICK, noticed=st.booleans())
        def link_drops(self, which: int, noticed: bool) -> None:
            worker = self.workers(up=True)[which % len(self.workers(up=True))]
            self.world.cut(worker)
            if noticed:
                self.world.notice(worker)

        @precondition(lambda self: self.workers(up=False))
        @rule(which=PICK)
        def drop_is_noticed(self, which: int) -> None:
            self.world.notice(self.workers(up=False)[which % len(self.workers(up=False))])

        @precondition(lambda self: self.workers(up=False))
        @rule(which=PICK, reaped=st.booleans())
        def returns(self, which: int, reaped: bool) -> None:
            worker = self.workers(up=False)[which % len(self.workers(up=False))]
            self.world.notice(worker)
            self.world.connect(worker, reaped=reaped)

        @rule(which=PICK, keeper=st.booleans(), luck=LUCK)
        def worker_dies(self, which: int, keeper: bool, luck: int) -> None:
            if luck == 3:
                self.world.kill(list(self.world.workers.values())[which % 2], keeper=keeper)

        @rule(seconds=st.sampled_from((0.1, 1.0, 3.0, 8.0, 40.0)))
        def time_passes(self, seconds: float) -> None:
            for worker in self.workers(up=False):
                self.world.notice(worker)
            self.world.advance(seconds)

        @rule(luck=LUCK)
        def orchestrator_dies(self, luck: int) -> None:
            if luck == 3:
                self.world.crash()

        @precondition(lambda self: self.world.leases.active())
        @rule(which=PICK, kind=st.sampled_from(CancelKind))
        def cancel(self, which: int, kind: CancelKind) -> None:
            active = self.world.leases.active()
            self.world.cancel(active[which % len(active)].dispatch, kind)

        @rule(which=PICK, luck=LUCK)
        def token_ends(self, which: int, luck: int) -> None:
            if luck == 3:
                self.world.end_token(list(self.world.workers.values())[which % 2])

        @precondition(lambda self: any(one.active and not one.wrote for one in self.world.durable.values()))
        @rule(which=PICK)
        def ended_elsewhere(self, which: int) -> None:
            unwritten = [
                one for one in self.world.durable.values() if one.active and not one.wrote and one.worker
            ]
            if unwritten:
                self.world.end_elsewhere(unwritten[which % len(unwritten)].dispatch)

        @rule(seed=st.integers(0, 2**32), times=st.integers(5, 60))
        def weather(self, seed: int, times: int) -> None:
            blow(self.world, seed, times)

        @invariant()
        def sound(self) -> None:
            self.world.check()

        def teardown(self) -> None:
            if sys.exc_info()[0] is None:
                self.world.heal()

    return LeaseMachine


def storm_of(core: ModuleType) -> type[RuleBasedStateMachine]:
    """The same world in long weather only: fewer decisions for hypothesis, many more happenings a second."""

    class Storm(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.world = World(core)

        @rule(seed=st.integers(0, 2**64))
        def weather(self, seed: int) -> None:
            blow(self.world, seed, 100)

        def teardown(self) -> None:
            if sys.exc_info()[0] is None:
                self.world.heal()

    return Storm


def profile(examples: int, steps: int = 50, *, find_only: bool = False) -> settings:
    phases = (Phase.generate,) if find_only else (Phase.generate, Phase.shrink)
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        database=None,
        phases=phases,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )


def test_the_lease_machine_keeps_its_rules() -> None:
    run_state_machine_as_test(machine_of(real), settings=profile(100))


def test_every_row_of_the_table_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    reached: set[tuple[object, object, object]] = set()
    go = real.Leases._go

    def counted(self: real.Leases, entry: Any, how: real.Happening, stage: real.Stage) -> None:
        reached.add((entry.stage, how, stage))
        go(self, entry, how, stage)

    monkeypatch.setattr(real.Leases, "_go", counted)
    rows = {(stage, how, then) for (stage, how), after in real.TRANSITIONS.items() for then in after}
    for seed in range(5_000):  # 600 are usually enough
        world = World(real)
        blow(world, seed, 200)
        world.heal()
        if rows <= reached:
            break
    assert rows == reached, rows ^ reached


def test_a_cancel_in_the_instant_of_the_deadline() -> None:
    """Found by `./dev machines`: after a restart, a cancel was made durable in the very instant in which the lease was to end."""
    world = World(real)
    for seed in (*[0] * 25, 115, 2_155_081_891_473, 42_147):
        blow(world, seed, 100)
    world.heal()


BUGS = {
    "boot gives no time to come back": (
        "entry.replace_s, entry.lost_s = self._now_s + left_s, self._now_s\n",
        "entry.replace_s, entry.lost_s = self._now_s, self._now_s\n",
    ),
    "placed again at the end, not when dead": (
        """        entry.dead = entry.dead or dead
""",
        """        entry.dead = True
""",
    ),
    "identity_busy is never said": (
        "return None if reaped else max(waits, default=None)",
        "return None",
    ),
    "writes do not matter": (
        "if lease.wrote and lease.on_worker_lost is not OnWorkerLost.REDISPATCH:",
        "if False:",
    ),
    "the author's word does not matter": (
        "        elif lease.on_worker_lost is OnWorkerLost.FAIL:\n            code = EndReason.ON_WORKER_LOST\n",
        "",
    ),
    "poison walks on": ("elif counted and lease.losses + 1 >= LOSSES_MAX:", "elif False:"),
    "grace is half as long": (
        "            entry.replace_s = self._now_s + entry.lease.grace_s\n            if not entry.active:",
        "            entry.replace_s = self._now_s + entry.lease.grace_s / 2\n            if not entry.active:",
    ),
    "a stale link's end counts": (
        "if not entry.link_up or entry.lease.link != event.link:",
        "if not entry.link_up:",
    ),
    "ends are said before they are durable": (
        "        yield from self._save(entry, *say)\n",
        "        yield from say\n        yield from self._save(entry)\n",
    ),
    "cancel is said before it is durable": (
        "        yield from self._save(entry, *((ask,) if entry.link_up else ()))\n",
        "        yield from ((ask,) if entry.link_up else ())\n        yield from self._save(entry)\n",
    ),
    "a lost write commit is believed": (
        "            version=stored.version,\n            wrote=stored.wrote,\n",
        "            version=stored.version,\n            wrote=base.wrote,\n",
    ),
    "a lost end is not decided again": (
        "            yield from end.again()\n",
        "            yield from ()\n",
    ),
    "writes after the end": (
        "if entry is None or not entry.active or entry.lease.fence != fence or entry.stage is Stage.FINISHING:",
        "if entry is None or entry.lease.fence != fence or entry.stage is Stage.FINISHING:",
    ),
    "the first write is not marked": (
        "                    wrote=True,\n",
        "                    wrote=False,\n",
    ),
    "a held dispatch is dropped on return": (
        "            elif holds:\n",
        "            elif False:\n",
    ),
    "a token's leases live on": (
        "            if entry.lease.mint_id == event.mint_id and entry.active:\n",
        "            if entry.lease.mint_id == event.mint_id and entry.active and entry.link_up:\n",
    ),
    "a step is cancelled before the end of its lease is durable": (
        "                yield from self._say_ended(entry, end)\n",
        "                yield end\n",
    ),
    "a result is dropped before the end of its lease is durable": (
        "                yield from self._say_ended(ended, Drop(dispatch))\n",
        "                yield Drop(dispatch)\n",
    ),
    "a cancel is forgotten when the end is decided again": (
        "            if entry.asked is not None:\n                yield from self._cancel(entry.asked)\n",
        "",
    ),
    "a drain ends what has written": (
        "        if lease.wrote:\n            if again:",
        "        if False:\n            if again:",
    ),
    "a drain does not ask the worker to end it": (
        "        yield from self._end(entry, Drop(lease.dispatch))\n",
        "        yield from self._end(entry)\n        entry.dead = True\n",
    ),
    "no deadline for a cancel": (
        "        self._until_cancelled(entry)\n        entry.lease = attrs.evolve(\n            entry.lease, phase",
        "        self._until(entry, None)\n        entry.lease = attrs.evolve(\n            entry.lease, phase",
    ),
    "a cancel waits for a holder that is dead": (
        "        if not entry.link_up and entry.lost_s is not None and entry.replace_s is not None:\n",
        "        if False:\n",
    ),
    "a slot is freed before the execution is dead": (
        "        if event.left == 0:\n            yield from self._free(entry)\n        yield from self._pump(entry)\n",
        "        yield from self._free(entry)\n        yield from self._pump(entry)\n        yield from self._free(entry)\n",
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(bug: str) -> None:
    core = planted((lease_ledger, lease_ends, reconcile, real), *BUGS[bug])
    with pytest.raises((AssertionError, Bug, KeyError)):
        run_state_machine_as_test(storm_of(core), settings=profile(300, 3, find_only=True))
