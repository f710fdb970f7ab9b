"""Simulated machines: what really runs where. The witnesses of the promises live here.

A machine has a boot clock, at most one worker process, its keeper, and executions. An execution goes on
whatever becomes of the process that started it, until it ends, is killed, or the machine reboots: nobody
tells the orchestrator what is true here, it can only reason.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs

from swamp_proto.limits import Tempo
from swamp_proto.messages.dispatch import Dispatch, Outcome

from .loop import Process
from .workload import Behaviour

if TYPE_CHECKING:
    from .world import World


@attrs.define(eq=False)
class Execution:
    """A step's process group."""

    dispatch: Dispatch
    machine: "Machine"
    does: Behaviour
    on_line: Callable[[int], None]
    on_end: Callable[[Outcome | None], None]  # None: killed; the holder knows why
    began_s: float = 0.0
    alive: bool = True  # something of it lives
    ended: bool = False  # its end was seen
    killed: bool = False
    wrote: int = 0  # writes whose answer it has
    asked: int = 0
    answered: set[int] = attrs.field(factory=set)

    @property
    def key(self) -> tuple[str, str, str]:
        place = self.dispatch.place
        return (place.run, place.job, place.step)


@attrs.define(eq=False)
class Keeper:
    """Kills what its holder may not have any more. It outlives the holder."""

    machine: "Machine"
    give_up_s: float | None = None  # boot clock; None: never renewed, nothing runs
    held: dict[str, Execution] = attrs.field(factory=dict)
    asleep: bool = False  # it is starved: only the instants in its registry are kept

    def renew(self, sent_at: float, grace_s: float) -> None:
        give_up_s = sent_at + Tempo(grace_s).kill_s
        if self.give_up_s is None or give_up_s > self.give_up_s:
            self.give_up_s = give_up_s
            self.machine.world.loop.at(
                give_up_s + self.machine.booted_s, self.machine.host, self._look, give_up_s
            )

    def _look(self, give_up_s: float) -> None:
        if self.give_up_s == give_up_s:
            self.kill_all()

    def kill_all(self) -> None:
        for execution in tuple(self.held.values()):
            self.machine.kill(execution)

    def holder_died(self) -> None:
        """The pipe to its holder ended."""
        if not self.asleep:
            self.kill_all()


class Machine:
    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.name = name
        self.host = Process(name)  # the system itself: what runs on it belongs to it
        self.booted_s = 0.0
        self.boots = 1
        self.executions: list[Execution] = []
        self.keepers: list[Keeper] = []

    @property
    def boot_id(self) -> str:
        return f"{self.name}-boot-{self.boots}"

    def boot_s(self) -> float:
        return self.world.loop.now - self.booted_s

    def living(self) -> list[Execution]:
        return [one for one in self.executions if one.alive]

    # ── executions ──────────────────────────────────────────────────────────────────────────────────────────
    def begin(self, execution: Execution, keeper: Keeper) -> None:
        """A process starts. Its holder may die under it."""
        loop, does = self.world.loop, execution.does
        execution.began_s = loop.now
        self.executions.append(execution)
        keeper.held[execution.dispatch.dispatch] = execution
        self.world.checks.execution_began(execution)
        for number in range(1, does.lines + 1):
            loop.after(does.duration_s * number / (does.lines + 1), self.host, self._line, execution, number)
        for place, share in enumerate(does.writes):
            loop.after(does.duration_s * share, self.host, self.world.write, execution, place)
        loop.after(does.duration_s, self.host, self._ends, execution)

    def _line(self, execution: Execution, number: int) -> None:
        if execution.alive and not execution.ended:
            execution.on_line(number)

    def _ends(self, execution: Execution) -> None:
        if execution.ended:
            return
        if execution.asked > execution.wrote:  # it waits for the answer of a write
            self.world.loop.after(0.05, self.host, self._ends, execution)
            return
        self._over(execution, execution.does.outcome)

    def term(self, execution: Execution, kill_after_s: float) -> None:
        """TERM, and KILL when it does not obey."""
        wait_s = min(execution.does.dies_after_term_s, kill_after_s)
        self.world.loop.after(wait_s, self.host, self.kill, execution)

    def kill(self, execution: Execution) -> None:
        if not execution.ended:
            execution.killed = True
            self._over(execution, None)

    def _over(self, execution: Execution, outcome: Outcome | None) -> None:
        execution.ended = True
        if outcome is not None and execution.does.stuck_s:
            self.world.loop.after(execution.does.stuck_s, self.host, self._emptied, execution)
        else:
            execution.alive = False
        execution.on_end(outcome)

    def _emptied(self, execution: Execution) -> None:
        execution.alive = False

    # ── the machine itself ──────────────────────────────────────────────────────────────────────────────────
    def reboot(self) -> None:
        """Everything on it is gone; the system comes back at once, its worker when somebody starts it."""
        self.host.alive = False
        for execution in self.executions:
            execution.alive, execution.ended = False, True
        self.executions.clear()
        self.keepers.clear()
        self.boots += 1
        self.booted_s = self.world.loop.now
        self.host = Process(self.name)

    def forget_dead(self) -> None:
        self.executions = [one for one in self.executions if one.alive]
