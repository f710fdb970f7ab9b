"""The blip test: the link breaks before and after every frame of a step's life, and nobody notices.

A small world in fair weather: one worker, one step, and a socket that breaks once, at the k-th frame that arrives at either end, for
every k; before it (it is lost) or after it; noticed by both ends, or by silence alone. The step prints in a burst, writes, is cancelled,
completes. It has to run once, lose no line, and end as if nothing had been; any loss would fail it (`onWorkerLost: fail`).
"""

from pathlib import Path
from typing import Any, Final

import attrs
import pytest

from swamp_orch.definitions.values import (
    Job,
    ModelMethodTask,
    OnWorkerLost,
    Placement,
    Source,
    Step,
    Workflow,
)
from swamp_proto.messages import Side
from swamp_proto.messages.dispatch import Dispatch, Outcome

from .checkers import everything_is_over
from .workload import Behaviour
from .world import World


@attrs.frozen
class Story:
    does: Behaviour
    cancelled_s: float | None  # after the start of everything
    ends: str


SUBMITTED_S: Final = 2.0
STORIES: Final = {
    "a burst of lines, and the end": Story(
        Behaviour(0.4, 25, (), Outcome.SUCCEEDED, 0.0, 0.0), None, "succeeded"
    ),
    "writes": Story(Behaviour(1.0, 3, (0.2, 0.6, 0.9), Outcome.SUCCEEDED, 0.0, 0.0), None, "succeeded"),
    "a cancel": Story(Behaviour(60.0, 5, (), Outcome.SUCCEEDED, 0.3, 0.0), SUBMITTED_S + 1.0, "cancelled"),
}


def _fair_seed() -> int:
    """One worker, the shortest window, a quick link: the length of a world is what this test costs."""
    for seed in range(1, 1_000):
        world = World(seed)
        if (len(world.machines), world.tempo.grace_s) == (1, 4.0) and world.weather.delay_s <= 0.005:
            return seed
    raise AssertionError("no such world")


SEED: Final = _fair_seed()


class Blip(World):
    """A world whose link breaks at the `at`-th frame; never when that is 0."""

    def __init__(self, story: Story, at: int = 0, *, lost: bool = False, silent: bool = False) -> None:
        self.story, self.at, self.lost, self.silent = story, at, lost, silent
        self.arrived = self.executed = 0
        self.broke = False
        super().__init__(SEED)
        self.weather.clear_up()
        self.weather.as_bytes = self.weather.short_tokens = False

    def _plan_people(self, dice: object) -> None:
        self.loop.at(SUBMITTED_S, None, self._submit, 0)
        if self.story.cancelled_s is not None:
            self.loop.at(self.story.cancelled_s, None, self._cancel_it)

    def _submit(self, number: int) -> None:
        step = Step(
            name="s",
            task=ModelMethodTask("m", "execute", {}),
            placement=Placement(labels={"pool": "any"}),
            on_worker_lost=OnWorkerLost.FAIL,
        )
        made = Workflow(
            id="id", name="wf", description="", jobs=(Job("j", (step,)),), version=1, tags={}, inputs={},
            concurrency=0, timeout_s=None, trigger={}, reports={}, source=Source(Path("wf.yaml")),
        )  # fmt: skip
        assert self.orchestrator is not None
        self.loop.at(self.loop.now, self.orchestrator.process, self.orchestrator.submit, made)

    def _cancel_it(self) -> None:
        engine = self.orchestrator
        assert engine is not None
        for run in list(engine.runs.values()):
            self.loop.at(self.loop.now, engine.process, engine.cancel_run, run, "stop")

    def behaviour(self, dispatch: Dispatch) -> Behaviour:
        self.executed += 1
        return self.story.does

    def _connected(self, worker: Any, opened: Any) -> None:
        super()._connected(worker, opened)
        _, wire = self.wires[-1]
        deliver = wire._deliver

        def count(sender: Side, to: Any, frame: Any) -> None:
            self.arrived += self.loop.now >= SUBMITTED_S
            breaks = self.arrived == self.at and not self.broke and self.at > 0
            if not (breaks and self.lost):
                deliver(sender, to, frame)
            if breaks:
                self.broke = True
                wire.cut({} if self.silent else dict.fromkeys(Side, 0.001))

        wire._deliver = count  # type: ignore[method-assign]

    def live(self) -> None:
        self._go(SUBMITTED_S + 0.5)
        while not self._is_over():
            assert self.loop.now < 120, "no end"
            self._one()
        everything_is_over(self.checks)


@pytest.mark.parametrize("silent", [False, True], ids=["noticed", "by silence"])
@pytest.mark.parametrize("name", STORIES)
def test_a_link_that_breaks_before_or_after_any_frame_is_not_noticed(name: str, silent: bool) -> None:
    story = STORIES[name]
    fair = Blip(story)
    fair.live()
    assert fair.arrived > 10 and fair.executed == 1
    for at in range(1, fair.arrived + 1):
        for lost in (True, False):
            blip = Blip(story, at, lost=lost, silent=silent)
            try:
                blip.live()
                assert blip.broke
                # A cancel may come before a start that was lost with the link is said again.
                assert blip.executed == 1 or (story.ends == "cancelled" and blip.executed == 0), "not once"
                assert list(blip.checks.ended_runs.values()) == [story.ends]
            except Exception as error:  # raised again, with the frame it happened at
                error.add_note(f"the link broke {'before' if lost else 'after'} frame {at} of {fair.arrived}")
                raise
