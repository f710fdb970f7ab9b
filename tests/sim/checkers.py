"""The promises, as checkers. Each is a function whose docstring is the promise; each is named in a failure.

Two kinds: witnesses are called at the instant something happens (an execution begins, something is
acknowledged, a batch is durable); invariants are looked at after every step. They see the machines themselves
and the durable records, never what a core believes, except where what a core believes is the subject.
"""

import json
from typing import TYPE_CHECKING, Any

from swamp_orch.core.lease_values import AskCancel, EndReason, LeaseState, RefuseWrite, RequeueStep
from swamp_orch.core.runplan import ENDS, StepStatus
from swamp_orch.definitions.values import OnWorkerLost
from swamp_orch.engine.steps import StepState
from swamp_orch.store.bookkeeping import LEASES_ID, RUN_RECORD, STEP_LEASE, lease_record, step_record
from swamp_orch.store.interface import Batch
from swamp_proto.limits import LOSSES_MAX, TOKEN_TICK_S
from swamp_proto.messages.dispatch import Finished, Outcome
from swamp_proto.messages.enrollment import Enrolled, Verdict

if TYPE_CHECKING:
    from .machine import Execution
    from .orchestrator import Flight, Orchestrator, Slot
    from .worker import SimWorker
    from .world import World

StepId = tuple[str, str, str]
NEVER_STARTED = frozenset({"not_sent", "busy", "draining", "refused", "not_started"})


class Broke(AssertionError):
    """A promise was broken: which, and how."""


def demand(holds: bool, promise: str, story: str) -> None:
    if not holds:
        raise Broke(f"{promise}: {story}")


class Checks:
    """What was witnessed so far in one world."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.executions: dict[str, Execution] = {}  # by dispatch
        self.of_step: dict[StepId, list[Execution]] = {}
        self.written: dict[str, StepId] = {}  # dispatches with a durable write
        self.acted: set[str] = set()  # names of records that code wrote while it ran
        self.heard: set[str] = set()  # … whose author was told so
        self.fences: dict[StepId, int] = {}
        self.ended_steps: dict[tuple[str, str], str] = {}  # (run, record name) -> status
        self.ended_runs: dict[str, str] = {}
        self.runs: set[str] = set()
        self.holder_deaths: dict[StepId, int] = {}
        self.over_since: dict[str, float] = {}  # mint id -> since when its token is over
        self.steps = 0

    # ── where steps run ─────────────────────────────────────────────────────────────────────────────────────
    def execution_began(self, execution: "Execution") -> None:
        """No step runs in two places at once, and none runs again after a write was admitted, unless its
        author said so. No machine runs more than it offered. A loopback and a worker are judged alike.
        """
        key, message = execution.key, execution.dispatch
        for other in self.of_step.get(key, ()):
            demand(
                not other.alive or other.ended, "one place", f"{key} runs as {other.dispatch.dispatch} too"
            )
            demand(other.dispatch.fence < message.fence, "fences grow", f"{key}: {message.fence}")
            if self.rule(key) is not OnWorkerLost.REDISPATCH:
                demand(
                    other.dispatch.dispatch not in self.written,
                    "write, then fail",
                    f"{key} runs again as {message.dispatch} after {other.dispatch.dispatch} wrote",
                )
        lease = self.durable_lease(message.dispatch)
        demand(lease is not None, "persist before you speak", f"{message.dispatch} runs without a record")
        self.of_step.setdefault(key, []).append(execution)
        self.executions[message.dispatch] = execution
        machine = execution.machine
        if machine is not self.world.home:
            living = [one for one in machine.executions if one.alive and not one.ended]
            capacity = self.world.capacities[machine.name]
            demand(
                len(living) <= capacity, "slots", f"{machine.name} runs {len(living)} of {capacity}: {living}"
            )

    def grant_asked(self, engine: "Orchestrator", run: str, state: StepState, slot: "Slot") -> None:
        """A step is granted again only when its old execution is dead, and never more often than the limit of
        losses allows. The pool gives no worker more than its capacity.
        """
        key = (run, state.key.job, state.key.step)
        for other in self.of_step.get(key, ()):
            demand(
                not other.alive or other.ended,
                "root rule",
                f"{key} is placed again while {other.dispatch.dispatch} lives on {other.machine.name}",
            )
        demand(state.losses < LOSSES_MAX, "poison", f"{key} lost {state.losses} holders and is granted again")
        if slot.worker is not None:
            pool = engine.scheduler.pool
            taken, capacity = len(pool.holders(slot.worker)), self.world.capacities[slot.worker]
            demand(taken <= capacity, "slots", f"{taken} of {capacity} slots of {slot.worker} are given away")

    def step_requeued(self, engine: "Orchestrator", run: str, state: StepState, flight: "Flight") -> None:
        """Losses count holders that died, and are never more than the deaths that were witnessed."""
        key = (run, state.key.job, state.key.step)
        demand(state.losses <= LOSSES_MAX, "poison", f"{key} lost {state.losses} holders")
        demand(state.status is StepStatus.WAITING, "requeue", f"{key} is {state.status}")

    def step_gone(self, flight: "Flight", end: Any) -> None:
        """`left: 0` is true, and `write_then_drop` is said of steps that wrote, only."""
        dispatch = flight.message.dispatch
        execution = self.executions.get(dispatch)
        if end.left == 0 and execution is not None:
            demand(not execution.alive or execution.ended, "left: 0", f"{dispatch} lives on")
        if "write_then_drop" in end.code:
            demand(
                dispatch in self.written, "write, then fail", f"{dispatch} failed for a write it never made"
            )

    def completes(self, engine: "Orchestrator", flight: "Flight", finished: Finished) -> None:
        """A result is the result of an execution that ended so, with every line it printed before it."""
        execution = self.executions.get(finished.dispatch)
        demand(execution is not None, "no result from nowhere", finished.dispatch)
        assert execution is not None
        demand(execution.ended, "no result from nowhere", f"{finished.dispatch} has not ended")
        if finished.outcome in (Outcome.SUCCEEDED, Outcome.FAILED):
            demand(not execution.killed, "never reported as success", f"{finished.dispatch} was killed")
        if execution.machine is not self.world.home:
            demand(
                flight.read == finished.last_line,
                "no line is lost",
                f"{finished.dispatch}: {flight.read} of {finished.last_line} lines came before the end",
            )

    # ── what is durable ─────────────────────────────────────────────────────────────────────────────────────
    def committed(self, batch: Batch) -> None:
        """Nothing is admitted under an ended lease. An ended lease never changes, a mark of a write is never
        taken back, an ended step or run never changes. A completion and its step's end are one transaction.
        """
        ends: dict[str, bool] = {}
        for new in batch.records:
            if new.model_type == STEP_LEASE:
                self._lease_committed(new.name, json.loads(new.content.inline or b""), ends)
        for new in batch.records:
            if new.spec == "out":
                dispatch = new.owner.dispatch
                if new.owner.source == "write":
                    lease = self.durable_lease(dispatch)
                    holds = lease is not None and lease["state"] == "active" and lease["hasWrites"]
                    demand(holds, "fence", f"a write of {dispatch} was admitted: {lease}")
                    self.written.setdefault(dispatch, (new.owner.run, new.owner.job, new.owner.step))
                    demand(new.name not in self.acted, "a write acts once", new.name)
                    self.acted.add(new.name)
                else:
                    demand(ends.get(dispatch) is True, "one transaction", f"outputs of {dispatch} alone")
            elif new.spec == "step":
                self._ends_once(new.model_id, new.name, json.loads(new.content.inline or b"")["status"])

    def _lease_committed(self, name: str, now: dict[str, Any], ends: dict[str, bool]) -> None:
        before = self.world.before.get(name)
        self.world.before[name] = now
        ends[now["dispatchId"]] = now["completed"]
        if before is None:
            return
        demand(
            before["state"] == "active",
            "an end is an end",
            f"{name} was {before['state']}, is {now['state']}",
        )
        demand(not before["hasWrites"] or now["hasWrites"], "a write is not forgotten", name)
        demand(
            now.get("reason") != EndReason.DRAINED.value or not before["hasWrites"],
            "a drain ends nothing that has written",
            name,
        )
        demand(before["fence"] == now["fence"], "fences grow", name)

    def _ends_once(self, run: str, name: str, status: str) -> None:
        before = self.ended_steps.get((run, name))
        demand(before is None, "a step ends once", f"{name} of {run} was {before}, is {status}")
        if StepStatus(status) in ENDS:
            self.ended_steps[run, name] = status

    # ── what is acknowledged ────────────────────────────────────────────────────────────────────────────────
    def effect(self, engine: "Orchestrator", effect: Any) -> None:
        """Nothing is said before it is durable: no cancel, no end of a lease, no place for its step. A write under a lease that
        lives is not refused.
        """
        match effect:
            case AskCancel(dispatch=dispatch):
                lease = self.durable_lease(dispatch)
                holds = lease is not None and ("cancelKind" in lease or lease["state"] != "active")
                demand(
                    holds,
                    "persist before you speak",
                    f"{dispatch} was asked to end, and the record says {lease}",
                )
            case RequeueStep(lease=decided):
                lease = self.durable_lease(decided.dispatch)
                holds = lease is not None and lease["state"] == LeaseState.EXPIRED.value
                demand(holds, "persist before you speak", f"{decided.dispatch} is placed again: {lease}")
                wrote = decided.dispatch in self.written
                rule = decided.on_worker_lost is OnWorkerLost.REDISPATCH
                demand(not wrote or rule, "write, then fail", f"{decided.dispatch} wrote and is placed again")
            case RefuseWrite(request=request):
                message = engine.write_of(request)
                lease = self.durable_lease(message.dispatch)
                is_over = lease is None or lease["state"] != "active"
                holds = is_over or engine.leases.admits(message.dispatch, message.fence) is None
                demand(holds, "a live lease admits writes", f"{request} was refused")

    def finish_noted(self, engine: "Orchestrator", dispatch: str, accepted: bool) -> None:
        """A worker forgets a result when it is told to: only when its end is durable."""
        lease = self.durable_lease(dispatch)
        demand(
            lease is not None and lease["state"] != "active",
            "nothing acknowledged is forgotten",
            f"the end of {dispatch} was noted, and its record says {lease}",
        )

    def write_acknowledged(self, engine: "Orchestrator", execution: "Execution", number: int) -> None:
        """A write whose answer was yes is there."""
        dispatch = execution.dispatch.dispatch
        found = self.world.disk.durable("m", f"out-{dispatch}-{number}")
        demand(found is not None, "nothing acknowledged is forgotten", f"write {number} of {dispatch}")

    def write_heard(self, execution: "Execution", number: int) -> None:
        """What its author was told to be written is there when he hears of it."""
        name = f"out-{execution.dispatch.dispatch}-{number}"
        self.heard.add(name)
        found = self.world.disk.durable("m", name)
        demand(found is not None, "nothing acknowledged is forgotten", f"{name}, as its author heard of it")

    def orchestrator_died(self) -> None:
        """An acknowledged write survives any crash."""
        for name in sorted(self.heard):
            demand(
                self.world.disk.durable("m", name) is not None,
                "nothing acknowledged is forgotten",
                f"{name} went with the orchestrator",
            )

    def run_acknowledged(self, engine: "Orchestrator", run: str) -> None:
        """A run whose id was told to somebody is known after any crash."""
        self.runs.add(run)
        found = self.world.disk.durable(run, RUN_RECORD)
        demand(found is not None, "nothing acknowledged is forgotten", f"run {run}")

    def cancel_acknowledged(self, engine: "Orchestrator", run: str) -> None:
        """A cancel is durable before it is acknowledged."""
        found = self.world.disk.durable(run, RUN_RECORD)
        demand(
            bool(found and found.get("cancelReason")), "nothing acknowledged is forgotten", f"cancel of {run}"
        )

    def step_ended(self, engine: "Orchestrator", run: str, state: StepState) -> None:
        """An end is durable before anybody hears of it (steps that end unstarted are heard of by nobody)."""
        if state.status is StepStatus.SKIPPED or not state.dispatch:
            return
        name = step_record(state.key.job, state.key.step)
        found = self.world.disk.durable(run, name)
        demand(
            found is not None and found["status"] == state.status.value,
            "nothing acknowledged is forgotten",
            f"{name} of {run} ended {state.status}, the record says {found and found['status']}",
        )

    def run_ended(self, engine: "Orchestrator", run: str, status: str) -> None:
        """A run ends once, durably, with no step of it still running anywhere the orchestrator can know of."""
        demand(run not in self.ended_runs, "a run ends once", run)
        self.ended_runs[run] = status
        found = self.world.disk.durable(run, RUN_RECORD)
        demand(found is not None and found["status"] == status, "nothing acknowledged is forgotten", run)

    # ── links ───────────────────────────────────────────────────────────────────────────────────────────────
    def enrolled(self, engine: "Orchestrator", member: Any, reply: Enrolled) -> None:
        """A verdict rests on what is durable: what is kept lives on the new link, in the record too."""
        for one in reply.verdicts:
            lease = self.durable_lease(one.dispatch)
            if one.verdict is Verdict.KEEP and lease is not None and lease["state"] == "active":
                finishing = engine.leases.admits(one.dispatch, lease["fence"]) is None
                demand(
                    finishing or lease["linkEpoch"] == reply.link,
                    "persist before you speak",
                    f"{one.dispatch} is kept on link {reply.link}, the record says {lease['linkEpoch']}",
                )

    def verdicts_came(self, worker: "SimWorker", listed: tuple[str, ...], reply: Enrolled) -> None:
        """A blip, or a restart of the orchestrator, hurts no running step: what the same process holds under an
        active lease is kept.
        """
        for one in reply.verdicts:
            lease = self.durable_lease(one.dispatch)
            if one.verdict is Verdict.DROP and one.dispatch in listed and lease is not None:
                engine = self.world.orchestrator
                believed = None if engine is None else engine.leases.get(one.dispatch)
                ending = believed is not None and not believed.active
                demand(
                    lease["state"] != "active" or ending or lease["instanceUuid"] != worker.instance,
                    "a blip is not noticed",
                    f"{one.dispatch} was dropped, its lease is {lease['phase']}",
                )

    def called_alive(self, engine: "Orchestrator", member: Any) -> None:
        """`already_connected` is said of a process that lives, or died while its answer to the probe was on its way."""
        worker = self.world.workers.get(member.name)
        alive = worker is not None and worker.process.alive and worker.instance == member.state.instance
        died_s = self.world.died_s.get(member.state.instance)
        just_now = died_s is not None and self.world.loop.now - died_s <= self.world.tempo.silence_s
        demand(alive or just_now, "already_connected", f"{member.name} {member.state.instance} is dead")

    # ── after every step ────────────────────────────────────────────────────────────────────────────────────
    def after_step(self) -> None:
        self.steps += 1
        engine = self.world.orchestrator
        if engine is None:
            return
        if self.steps % 4 == 0:
            engine.leases.check()
        if self.steps % 32 == 0:
            tokens_cut(self, engine)
            somebody_waits_for_nothing(engine)
        if self.steps % 256 == 0:
            engine.scheduler.check()

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────
    def durable_lease(self, dispatch: str) -> dict[str, Any] | None:
        return self.world.disk.durable(LEASES_ID, lease_record(dispatch))

    def rule(self, key: StepId) -> OnWorkerLost:
        run, job, step = key
        for one in self.world.workflows[run].jobs:
            for found in one.steps:
                if (one.name, found.name) == (job, step):
                    return found.on_worker_lost
        raise AssertionError(f"no step {key}")


def tokens_cut(checks: Checks, engine: "Orchestrator") -> None:
    """A revoked or expired token has no connected worker, and no lease that admits anything, for longer than
    a look takes.
    """
    world = checks.world
    now, process = world.loop.now, engine.process
    patience_s = TOKEN_TICK_S + 1.5 + 2 * world.slowest_commit_s
    for member in engine.desk.members.values():
        since = world.over_since(member.state.mint_id)
        if since is None:
            continue
        began = max(since, world.orchestrator_since, process.stopped_until, world.disk_was_bad_until)
        demand(
            now - began <= patience_s,
            "a token that is over has no worker",
            f"{member.name} is connected {now - began:.1f} s after the end of its token",
        )


def somebody_waits_for_nothing(engine: "Orchestrator") -> None:
    """Whoever waits has a reason: no worker is free for a step that waits."""
    if not engine.reconciled:
        return
    for demanded in engine.scheduler.waiting():
        why = engine.scheduler.explain(demanded, engine.loop.now, engine.wall_ms)
        free = [name for name, obstacles in why.workers.items() if not obstacles]
        demand(not free, "every demand has a reason", f"{demanded.id} waits, and {free} is free")
        demand(bool(why.change), "every demand has a reason", f"{demanded.id} waits for nothing")


def everything_is_over(checks: Checks) -> None:
    """After the weather every run has ended, no lease is held, no slot is taken, nothing runs, and no worker
    holds anything.
    """
    world = checks.world
    engine = world.orchestrator
    assert engine is not None
    ended = {
        run for run in checks.runs if (world.disk.durable(run, RUN_RECORD) or {}).get("status") != "running"
    }
    demand(ended == checks.runs, "every run ends", f"{sorted(checks.runs - ended)} run for ever")
    demand(not engine.runs, "every run ends", f"{sorted(engine.runs)} are still at work")
    demand(len(engine.leases) == 0, "every lease ends", f"{engine.leases.active()} are kept")
    demand(not len(engine.scheduler), "every demand ends", f"{engine.scheduler.waiting()} wait")
    for worker in engine.scheduler.pool.workers():
        holders = engine.scheduler.pool.holders(worker.name)
        demand(not holders, "every slot is freed", f"{worker.name} is held by {holders}")
    for record, lease in world.before.items():
        demand(lease["state"] != "active", "every lease ends", f"{record} is active")
    checks.orchestrator_died()
    for (run, name), status in checks.ended_steps.items():
        demand(StepStatus(status) in ENDS, "every step ends", f"{name} of {run}")
    for machine in world.machines.values():
        demand(not machine.living(), "nothing is left", f"{machine.living()} on {machine.name}")
    for found in world.workers.values():
        if found is not None and found.process.alive:
            demand(len(found.holdings) == 0, "nothing is left", f"{found.name} holds {found.held}")
