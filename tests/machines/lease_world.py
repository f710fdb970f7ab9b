"""A small world around the lease core: workers, links, a store that commits late, clocks. And the naive
truth.

The core under test is a parameter (a module), so that planted bugs run in the very same world. Everything the
world knows about right and wrong is in `Truth`-like plain facts: which executions live, which writes are
durable, what was said. Each violated rule raises AssertionError with the rule's name.
"""

import random
from types import ModuleType
from typing import Any

import attrs

from swamp_orch.core.lease_values import NOT_RUN, CancelKind, EndReason, Lease, LeaseState
from swamp_orch.definitions.values import OnWorkerLost
from swamp_proto.errors import RefusalCode
from swamp_proto.limits import LOSSES_MAX
from swamp_proto.messages.dispatch import Outcome

G = 8.0
WALL0 = 1_800_000_000_000


@attrs.define(eq=False)
class Execution:
    """A step's process on some machine."""

    dispatch: str
    fence: int
    step: str
    alive: bool = True
    finished: Outcome | None = None  # its holder has this to report
    instance: str = ""
    cancelled: bool = False
    left: int | None = 0  # what its holder counted at the end


@attrs.define(eq=False)
class Worker:
    name: str
    instance: str
    link: int | None = None  # as the worker sees it
    known_link: int | None = None  # as the orchestrator sees it: it notices late
    cut_s: float = 0.0  # when the link was really cut
    missed_s: float | None = None  # since when the orchestrator knows that it is away
    mint: str = "mint-1"
    held: dict[str, Execution] = attrs.field(factory=dict)
    inbox: list[tuple[str, Any]] = attrs.field(factory=list)  # orchestrator -> worker, on this link
    outbox: list[tuple[str, Any]] = attrs.field(factory=list)  # worker -> orchestrator, on this link
    orphans: list[tuple[float, Execution]] = attrs.field(factory=list)  # of a dead predecessor, killed then
    stale: list[int] = attrs.field(factory=list)  # links whose end the orchestrator has not been told yet


@attrs.define(eq=False)
class Step:
    name: str
    rule: OnWorkerLost
    waiting: bool = True
    done: str | None = None
    current: str | None = None
    fence: int = 0
    losses: int = 0
    avoid: str | None = None


@attrs.define(eq=False)
class Pending:
    """A commit on its way to the disk."""

    kind: str  # lease, report, first write, write
    lease: Lease
    request: str = ""


class World:
    def __init__(self, core: ModuleType) -> None:
        self.core = core
        self.leases = core.Leases()
        self.now_s, self.now_ms = 100.0, WALL0
        self.durable: dict[str, Lease] = {}
        self.queue: list[Pending] = []
        self.workers = {name: Worker(name, f"{name}-i1") for name in ("w1", "w2")}
        self.steps: dict[str, Step] = {}
        self.executions: dict[str, Execution] = {}
        self.written: set[str] = set()  # dispatches with a durable write
        self.slots: dict[str, str | None] = {}  # dispatch -> worker
        self.asked: dict[str, str] = {}  # write request -> dispatch
        self.epoch = 0
        self.serial = 0
        self.seen: set[str] = set()  # kinds of effects, for coverage
        self.verdicts: dict[str, str] = {}
        self.cancelled: set[str] = set()  # steps that were asked to end
        for worker in self.workers.values():
            self.connect(worker)

    # ── the orchestrator's shell ────────────────────────────────────────────────────────────────────────────
    def tell(self, event: Any) -> None:
        for effect in self.leases.handle(event, self.now_s, self.now_ms):
            self.perform(effect)

    def perform(self, effect: Any) -> None:
        kind = type(effect).__name__
        self.seen.add(kind)
        dispatch = getattr(effect, "dispatch", "") or getattr(getattr(effect, "lease", None), "dispatch", "")
        stored = self.durable.get(dispatch)
        match kind:
            case "PersistLease":
                self.queue.append(Pending("lease", effect.lease))
            case "AdmitFinish":
                self.queue.append(Pending("report", effect.lease))
            case "AdmitWrite":
                self.queue.append(
                    Pending("first write" if effect.first else "write", effect.lease, effect.request)
                )
            case "RefuseWrite":
                lease = self.leases.get(self.asked[effect.request])
                assert lease is None or not self.leases.admits(lease.dispatch, lease.fence), (
                    "refused while active"
                )
            case "NoteFinish":
                assert stored is not None and stored.state is not LeaseState.ACTIVE, (
                    "acknowledged before durable"
                )
                self.forget_report(dispatch)
            case "RefuseFinish":
                assert stored is None or not (stored.completed), (
                    "a completion was refused after it was stored"
                )
                self.forget_report(dispatch)
            case "Keep":
                self.verdicts[dispatch] = "keep"
            case "Drop":
                assert stored is None or stored.state is not LeaseState.ACTIVE, (
                    "dropped before the end was durable"
                )
                self.verdicts[dispatch] = "drop"
                self.drop(dispatch)
            case "AskCancel":
                assert stored is not None and stored.cancel_kind is not None, (
                    "cancel said before it was durable"
                )
                self.ask_cancel(dispatch, effect.worker)
            case "EndSession":
                worker = self.workers[effect.worker]
                if worker.known_link == effect.link:
                    self.cut(worker)
                    self.notice(worker)
            case "FreeSlot":
                assert dispatch in self.slots, "a slot was freed twice"
                assert not self.lives(dispatch), "a slot was freed under a living execution"
                del self.slots[dispatch]
            case "SlotStuck":
                assert dispatch in self.slots
            case "RequeueStep":
                self.requeue(effect, stored)
            case "FailStep":
                self.fail(effect, stored)
            case "EndStep":
                assert stored is not None, "ended unknown"
                assert stored.state is not LeaseState.ACTIVE, (
                    "a step ended before its lease's end was durable"
                )
                assert effect.left is None or not self.lives(dispatch), "left: 0 is not true"
                self.finish_step(dispatch, "cancelled")
            case _:
                raise AssertionError(f"unknown effect {kind}")

    def requeue(self, effect: Any, stored: Lease | None) -> None:
        lease = effect.lease
        step = self.steps[lease.step]
        assert stored is not None and stored.state is LeaseState.EXPIRED, (
            "requeued before the end was durable"
        )
        assert not self.lives(lease.dispatch), "ROOT RULE: placed again while the old execution lives"
        if step.rule is not OnWorkerLost.REDISPATCH:
            assert lease.dispatch not in self.written, "WRITE THEN FAIL: run again after a write"
        assert (
            step.rule is not OnWorkerLost.FAIL
            or lease.reason in (*NOT_RUN, EndReason.NOT_STARTED)
            or stored.token_name == "outside"
        )
        assert step.done is None and not step.waiting, "requeued twice"
        assert step.name not in self.cancelled, "CANCEL: run again after it was asked to end"
        assert step.current == lease.dispatch, "an older dispatch requeues the step"
        assert effect.losses == lease.losses + effect.counted
        assert effect.losses < LOSSES_MAX, "POISON: lost too often and run again"
        if lease.reason in NOT_RUN:
            assert not effect.counted and not effect.sent
            assert lease.dispatch not in self.executions, "it did run"
        step.losses, step.waiting = effect.losses, True

    def fail(self, effect: Any, stored: Lease | None) -> None:
        lease = effect.lease
        assert stored is not None and stored.state is not LeaseState.ACTIVE, (
            "failed before the end was durable"
        )
        if lease.reason is EndReason.WRITE_THEN_DROP:
            assert lease.dispatch in self.written, "write_then_drop without a write"
            assert stored.wrote and stored.first_write == "out", "the record does not say what was written"
        elif lease.reason is EndReason.ON_WORKER_LOST:
            assert self.steps[lease.step].rule is OnWorkerLost.FAIL and lease.dispatch not in self.written
        elif lease.reason is EndReason.LOST_TOO_OFTEN:
            assert lease.losses + 1 >= LOSSES_MAX
        else:
            assert lease.reason is EndReason.REFUSED or stored.token_name == "outside", (
                f"failed for {lease.reason}"
            )
        assert effect.left is None or not self.lives(lease.dispatch), "left: 0 is not true"
        assert (effect.left is None) == (effect.ends_by_ms is not None) or effect.left is None
        self.finish_step(lease.dispatch, "failed")

    def finish_step(self, dispatch: str, how: str) -> None:
        step = next(one for one in self.steps.values() if one.current == dispatch)
        assert step.done is None, "a step ended twice"
        step.done, step.waiting = how, False

    # ── the disk ────────────────────────────────────────────────────────────────────────────────────────────
    def commit_next(self, *, full: bool = False) -> None:
        pending = self.queue.pop(0)
        lease = pending.lease
        stored = self.durable[lease.dispatch]
        fits = stored.version == lease.version and not full
        if pending.kind == "write":  # guarded, changes nothing of the lease
            if fits:
                assert stored.state is LeaseState.ACTIVE, "FENCE: a write under an ended lease"
                assert stored.wrote
            elif lease.dispatch in self.executions:
                self.tell(self.core.WriteArrived(lease.dispatch, lease.fence, pending.request, "out"))
            return
        if not fits:
            self.tell(self.core.CommitFailed(lease.dispatch, stored))
            if pending.kind == "report":
                self.report_again(self.executions[lease.dispatch])
            return
        assert stored.state is LeaseState.ACTIVE, "an ended lease was changed"
        assert not stored.wrote or lease.wrote, "the mark of a write was taken back"
        self.durable[lease.dispatch] = attrs.evolve(lease, version=lease.version + 1)
        if lease.reason is EndReason.DRAINED:
            assert lease.dispatch not in self.written, "DRAIN: ended although it had written"
            assert self.steps[lease.step].rule is not OnWorkerLost.FAIL, (
                "DRAIN: the author wants no second try"
            )
        if pending.kind == "first write":
            self.written.add(lease.dispatch)
        elif pending.kind == "report":
            assert lease.completed
            self.finish_step(lease.dispatch, lease.state.value)
        self.tell(self.core.Committed(lease.dispatch))

    def report_again(self, execution: Execution) -> None:
        """A report that was not acknowledged is repeated by whoever has it."""
        worker = next((one for one in self.workers.values() if execution.dispatch in one.held), None)
        if worker is None:
            self.report(execution)
        elif worker.link is not None:
            worker.outbox.append(("finished", execution))

    def settle(self) -> None:
        """Commit all that is under way."""
        for _ in range(1_000):
            if not self.queue:
                return
            self.commit_next()
        raise AssertionError("commits without end")

    # ── steps and workers ───────────────────────────────────────────────────────────────────────────────────
    def submit(self, number: int) -> Step:
        rules = (OnWorkerLost.RULE, OnWorkerLost.RULE, OnWorkerLost.REDISPATCH, OnWorkerLost.FAIL)
        step = Step(f"s{len(self.steps)}", rules[number % 4])
        self.steps[step.name] = step
        return step

    def grant(self, step: Step, worker: Worker | None) -> None:
        self.serial += 1
        dispatch = f"d{self.serial}"
        step.fence += 1
        step.current, step.waiting = dispatch, False
        lease = Lease(
            dispatch, step.fence, 1, "run", "wf", "job", step.name, "command/shell", "id", "execute",
            worker=None if worker is None else worker.name,
            instance="" if worker is None else worker.instance,
            mint_id="" if worker is None else worker.mint,
            link=0 if worker is None else worker.known_link or 0,
            granted_ms=self.now_ms, grace_s=G, on_worker_lost=step.rule, losses=step.losses, version=1,
        )  # fmt: skip
        self.durable[dispatch] = Lease.from_attributes(lease.to_attributes(), 1)
        self.slots[dispatch] = lease.worker
        self.tell(self.core.LeaseGranted(lease, link_up=True))
        if worker is None:
            self.executions[dispatch] = Execution(dispatch, step.fence, step.name)
            self.tell(self.core.Accepted(dispatch))
        else:
            worker.inbox.append(("start", (dispatch, step.fence, step.name)))

    def deliver_to_worker(self, worker: Worker, how: str = "accept") -> None:
        what, body = worker.inbox.pop(0)
        if what == "start":
            dispatch, fence, step = body
            if how not in ("accept", "quiet"):  # quiet: the shell tells the core of it later, or never
                worker.outbox.append(("refused", (dispatch, RefusalCode(how))))
                return
            execution = Execution(dispatch, fence, step, instance=worker.instance)
            self.begin(execution)
            worker.held[dispatch] = execution
            if how == "accept":
                worker.outbox.append(("accepted", dispatch))
        elif what == "cancel":
            execution = worker.held.get(body)
            if execution is not None:
                execution.cancelled = True

    def begin(self, execution: Execution) -> None:
        others = [one for one in self.executions.values() if one.step == execution.step and one.alive]
        assert not others, "ROOT RULE: a step runs in two places"
        self.executions[execution.dispatch] = execution

    def deliver_to_orchestrator(self, worker: Worker) -> None:
        what, body = worker.outbox.pop(0)
        if what == "accepted":
            self.tell(self.core.Accepted(body))
        elif what == "empty":
            self.tell(self.core.EmptyConfirmed(body))
        elif what == "refused":
            self.tell(self.core.Refused(body[0], body[1], "no"))
        else:
            execution: Execution = body
            self.report(execution)

    def report(self, execution: Execution) -> None:
        left = execution.left if execution.alive else 0
        self.tell(
            self.core.FinishArrived(execution.dispatch, execution.fence, execution.finished, left, None)
        )

    def write(self, execution: Execution) -> None:
        self.serial += 1
        request = f"r{self.serial}"
        self.asked[request] = execution.dispatch
        self.tell(self.core.WriteArrived(execution.dispatch, execution.fence, request, "out"))

    def late_write(self, execution: Execution) -> None:
        """Bytes of a dead execution that still arrive."""
        self.write(execution)

    def end_execution(self, execution: Execution, outcome: Outcome, *, stuck: bool = False) -> None:
        execution.alive, execution.left = stuck, None if stuck else 0
        execution.finished = Outcome.CANCELLED if execution.cancelled else outcome
        for worker in self.workers.values():
            if worker.held.get(execution.dispatch) is execution:
                if worker.link is not None:
                    worker.outbox.append(("finished", execution))
                return
        self.report(execution)

    def empty(self, execution: Execution) -> None:
        """What was left of it is gone."""
        execution.alive = False
        for worker in self.workers.values():
            if worker.held.get(execution.dispatch) is execution and worker.link is None:
                return
        self.tell(self.core.EmptyConfirmed(execution.dispatch))
        self.forget_report(execution.dispatch)

    def forget_report(self, dispatch: str) -> None:
        for worker in self.workers.values():
            execution = worker.held.get(dispatch)
            if execution is not None and execution.finished is not None and not execution.alive:
                del worker.held[dispatch]
                if execution.left is None and worker.link is not None:
                    worker.outbox.append(("empty", dispatch))

    def ask_cancel(self, dispatch: str, name: str | None) -> None:
        if name is None:
            self.executions[dispatch].cancelled = True
        elif self.workers[name].known_link is not None and self.workers[name].link is not None:
            self.workers[name].inbox.append(("cancel", dispatch))

    def drop(self, dispatch: str) -> None:
        for worker in self.workers.values():
            execution = worker.held.get(dispatch)
            if execution is not None and worker.link is not None:
                execution.alive = False
                del worker.held[dispatch]
                self.tell(self.core.EmptyConfirmed(dispatch))

    def lives(self, dispatch: str) -> bool:
        execution = self.executions.get(dispatch)
        if execution is not None and execution.alive:
            return True
        return any(
            what == "start" and body[0] == dispatch
            for worker in self.workers.values()
            for what, body in worker.inbox
        )

    # ── links and processes ─────────────────────────────────────────────────────────────────────────────────
    def cut(self, worker: Worker) -> None:
        """The link dies; the orchestrator notices later."""
        if worker.link is not None:
            worker.link, worker.cut_s = None, self.now_s
            worker.inbox.clear()
            worker.outbox.clear()

    def notice(self, worker: Worker) -> None:
        if worker.link is None and worker.known_link is not None:
            link, worker.known_link = worker.known_link, None
            worker.missed_s = self.now_s
            self.tell(self.core.LinkLost(worker.name, link))

    def connect(self, worker: Worker, *, reaped: bool = False) -> bool:
        """Enroll; False when told `identity_busy`."""
        if self.leases.busy_until(worker.name, worker.instance, reaped) is not None:
            return False
        self.epoch += 1
        living = [one for _, one in worker.orphans if one.alive and one.finished is None]
        assert reaped or not living, "IDENTITY: let in beside living executions of its predecessor"
        if reaped:
            for _, orphan in worker.orphans:
                orphan.alive = False
            worker.orphans.clear()
        worker.link = self.epoch
        listed = tuple(self.core.Holding(one.dispatch, one.fence) for one in worker.held.values())
        self.verdicts.clear()
        going_on = {lease.dispatch for lease in self.leases.active()} & set(worker.held)
        if worker.known_link is not None:
            worker.stale.append(worker.known_link)
        self.tell(self.core.WorkerReturned(worker.name, worker.instance, self.epoch, listed, reaped))
        refused = {
            pending.lease.dispatch
            for pending in self.queue
            if not self.durable[pending.lease.dispatch].active
        }
        self.settle()
        worker.known_link, worker.missed_s = self.epoch, None
        for one in listed:
            verdict = self.verdicts.get(one.dispatch)
            assert verdict is not None, "a held dispatch got no verdict"
            assert verdict == "keep" or one.dispatch not in going_on or one.dispatch in refused, (
                "BLIP: dropped"
            )
            if verdict == "keep":
                stored = self.durable[one.dispatch]
                assert stored.state is not LeaseState.ACTIVE or stored.link == self.epoch, "kept, not durable"
        for execution in list(worker.held.values()):
            if execution.finished is not None:
                worker.outbox.append(("finished", execution))
        return True

    def kill(self, worker: Worker, *, keeper: bool) -> None:
        """kill -9. With its keeper alive everything it ran dies at once; else when its give-up instant
        comes.
        """
        self.cut(worker)
        self.serial += 1
        worker.instance = f"{worker.name}-i{self.serial}"
        for execution in worker.held.values():
            if keeper:
                execution.alive = False
            elif execution.alive:
                worker.orphans.append((worker.cut_s + G * 7 / 8, execution))
        worker.held.clear()

    def advance(self, seconds: float) -> None:
        self.now_s += seconds
        self.now_ms += round(seconds * 1000)
        for worker in self.workers.values():
            for kill_s, orphan in worker.orphans:
                orphan.alive = orphan.alive and self.now_s < kill_s
            worker.orphans = [one for one in worker.orphans if one[1].alive]
            if worker.link is None and self.now_s >= worker.cut_s + G * 7 / 8:
                for execution in list(worker.held.values()):
                    execution.alive = False
                    if execution.finished is None:
                        del worker.held[execution.dispatch]
        deadline_s = self.leases.next_deadline()
        if deadline_s is not None and deadline_s <= self.now_s:
            self.tell(self.core.DeadlinePassed())

    def crash(self) -> None:
        """kill -9 of the orchestrator, and a start: what was not durable is gone."""
        self.queue.clear()
        self.cancelled.clear()  # whoever asked asks again: the run remembers
        for worker in self.workers.values():
            self.cut(worker)
            worker.known_link, worker.missed_s = None, self.now_s
        for execution in self.executions.values():
            if self.durable[execution.dispatch].worker is None:
                execution.alive = False
        self.leases = self.core.Leases()
        current = {step.current for step in self.steps.values() if step.done is None and step.current}
        found = [lease for name, lease in self.durable.items() if name in current]
        waited_for = [
            lease
            for name, lease in self.durable.items()
            if name not in current and not lease.active and not lease.completed and lease.empty_ms is None
        ]
        self.slots = {lease.dispatch: lease.worker for lease in (*found, *waited_for)}
        for step in self.steps.values():
            if step.current is not None and step.done is None:
                step.waiting = False
        for lease in found:
            again = Lease.from_attributes(lease.to_attributes(), lease.version)
            assert again == lease, "the record does not say everything"
            self.tell(self.core.LeaseFound(again, loopback_dead=True))
        for lease in waited_for:
            self.tell(self.core.LeaseFound(lease, step_ended=True))

    def cancel(self, dispatch: str, kind: CancelKind) -> None:
        lease = self.leases.get(dispatch)
        if lease is not None:
            self.cancelled.add(lease.step)
        self.tell(self.core.CancelAsked(dispatch, kind, "because"))

    def stall(self, seconds: float) -> None:
        """The orchestrator stood still: nobody else did."""
        self.now_s += seconds
        self.now_ms += round(seconds * 1000)
        for worker in self.workers.values():
            worker.missed_s = None if worker.missed_s is None else worker.missed_s + seconds
        self.tell(self.core.Stalled(seconds))
        self.advance(0.0)

    def end_token(self, worker: Worker) -> None:
        """Revoked: leases end first, then the worker is cut."""
        mint = worker.mint
        self.serial += 1
        worker.mint = f"mint-{self.serial}"
        self.tell(self.core.TokenEnded(mint, "revoked"))
        for lease in self.leases.active():
            assert lease.mint_id != mint or not self.leases.admits(lease.dispatch, lease.fence), (
                "a lease outlives its token"
            )
        self.cut(worker)
        self.notice(worker)

    def end_elsewhere(self, dispatch: str) -> None:
        """Another process ends a lease that has not written, by compare-and-swap."""
        lease = self.durable[dispatch]
        self.durable[dispatch] = attrs.evolve(
            lease,
            state=LeaseState.EXPIRED,
            reason=EndReason.ABANDONED,
            token_name="outside",
            cause="ended by an operator",
            replace_ms=self.now_ms + round(G * 1000),
            version=lease.version + 1,
        )

    def check(self) -> None:
        self.leases.check()
        deadline_s = self.leases.next_deadline()
        assert deadline_s is None or deadline_s >= self.now_s or self.queue is not None
        committing = {pending.lease.dispatch for pending in self.queue}
        for lease in self.leases.active():
            if lease.cancel_kind is None or lease.worker is None or lease.dispatch in committing:
                continue
            missed_s = self.workers[lease.worker].missed_s
            if missed_s is not None and self.now_s >= missed_s + G:
                # Asked in the very instant that ends it anyway: that deadline is due now, and not judged yet.
                assert self.now_s == missed_s + G == deadline_s, "CANCEL: waits for an answer of the dead"

    def come_to_an_end(self, execution: Execution) -> None:
        if execution.alive and execution.finished is None:
            self.end_execution(execution, Outcome.SUCCEEDED)
        elif execution.alive:
            self.empty(execution)

    def heal(self) -> None:
        """Liveness: everybody comes back, time passes, and every step ends or waits to be placed."""
        for round_ in range(40):
            self.settle()
            for worker in self.workers.values():
                self.notice(worker)
                self.settle()
                if worker.link is None:
                    self.connect(worker, reaped=round_ % 2 == 0 and not worker.orphans)
                while worker.inbox:
                    self.deliver_to_worker(worker)
                while worker.outbox:
                    self.deliver_to_orchestrator(worker)
                    self.settle()
                while worker.stale:
                    self.tell(self.core.LinkLost(worker.name, worker.stale.pop(0)))
                for execution in list(worker.held.values()):
                    self.come_to_an_end(execution)
            for execution in list(self.executions.values()):
                if self.durable[execution.dispatch].worker is None:
                    self.come_to_an_end(execution)
            self.settle()
            self.advance(G / 4)
            self.check()
        self.settle()
        for step in self.steps.values():
            assert step.done or step.waiting, f"LIVENESS: step {step.name} is lost"
        assert len(self.leases) == 0, "LIVENESS: a lease is kept for ever"
        assert not self.slots, "LIVENESS: a slot was never freed"


WEATHER = (
    ("place", 10), ("hear", 14), ("answer", 12), ("commit", 16), ("full", 4), ("write", 5), ("late write", 2),
    ("end", 5), ("cut", 3), ("notice", 3), ("return", 4), ("return unnoticed", 3), ("not sent", 1), ("kill", 2),
    ("time", 4), ("crash", 1), ("cancel", 3), ("token", 1), ("elsewhere", 1), ("late frame", 2), ("amnesia", 2),
    ("stale", 2), ("drain", 1), ("empty", 2), ("refuse", 1), ("stall", 1), ("queued", 1),
)  # fmt: skip


def blow(world: World, seed: int, times: int) -> None:
    """Weather drawn from a seed: `times` happenings, the harmless ones more often than the others."""
    dice = random.Random(seed)
    names, weights = [name for name, _ in WEATHER], [weight for _, weight in WEATHER]
    for name in dice.choices(names, weights, k=times):
        happen(world, name, dice)
        world.check()


def happen(world: World, name: str, dice: random.Random) -> None:
    core = world.core
    worker = dice.choice(list(world.workers.values()))
    living = [one for one in world.executions.values() if one.alive]
    unfinished = [one for one in living if one.finished is None]
    unended = [one.current for one in world.steps.values() if one.current and one.done is None]
    match name:
        case "place" if len(world.slots) < 4:
            waiting = [one for one in world.steps.values() if one.waiting and one.done is None]
            step = dice.choice(waiting) if waiting else world.submit(dice.randrange(4))
            if worker.known_link is None and dice.random() < 0.7:
                return
            world.grant(step, worker if worker.known_link is not None else None)
            if worker.link is None:
                worker.inbox.clear()
        case "hear" if worker.inbox:
            world.deliver_to_worker(worker, dice.choice(("accept", "accept", "quiet")))
        case "refuse" if worker.inbox:
            world.deliver_to_worker(worker, dice.choice(("busy", "draining", "too_large")))
        case "answer" if worker.outbox:
            world.deliver_to_orchestrator(worker)
        case "late frame" if worker.outbox:  # read from the old link after its end was noticed
            what, body = worker.outbox[0]
            world.cut(worker)
            world.notice(worker)
            worker.outbox.append((what, body))
            world.deliver_to_orchestrator(worker)
        case "amnesia" if worker.held:
            lost = dice.choice(list(worker.held.values()))
            if lost.alive:
                lost.alive = False
                world.cut(worker)
                del worker.held[lost.dispatch]
        case "commit" | "full" if world.queue:
            world.commit_next(full=name == "full")
        case "write" if unfinished:
            world.write(dice.choice(unfinished))
        case "late write" if world.executions:
            world.write(dice.choice(list(world.executions.values())[-4:]))
        case "end" if unfinished:
            outcome = dice.choice((Outcome.SUCCEEDED, Outcome.SUCCEEDED, Outcome.FAILED, Outcome.ABANDONED))
            world.end_execution(dice.choice(unfinished), outcome, stuck=dice.random() < 0.1)
        case "empty" if len(living) > len(unfinished):
            world.empty(dice.choice([one for one in living if one.finished is not None]))
        case "stale" if worker.stale:
            world.tell(core.LinkLost(worker.name, worker.stale.pop(0)))
        case "cut":
            world.cut(worker)
        case "notice":
            world.notice(worker)
        case "return" if worker.link is None:
            world.notice(worker)
            world.connect(worker, reaped=dice.random() < 0.5)
        case "return unnoticed" if worker.link is None:  # the newest socket wins before the old one is missed
            world.connect(worker, reaped=dice.random() < 0.5)
        case "not sent":
            start = next((one for one in worker.inbox if one[0] == "start"), None)
            if start is not None:
                worker.inbox.remove(start)
                if dice.random() < 0.5:  # told after the link's end was noticed
                    world.cut(worker)
                    world.notice(worker)
                world.tell(core.NotSent(start[1][0]))
        case "kill":
            world.kill(worker, keeper=dice.random() < 0.6)
        case "time":
            for other in world.workers.values():
                world.notice(other)
            world.advance(dice.choice((0.1, 1.0, 1.0, 3.0, 8.0, 40.0)))
        case "crash":
            world.crash()
        case "cancel" if unended:
            kind = dice.choice((CancelKind.CANCEL, CancelKind.TIMEOUT))
            world.cancel(dice.choice(unended), kind)
        case "token":
            world.end_token(worker)
        case "drain":
            world.tell(core.DrainAsked(worker.name))
        case "elsewhere":
            stored = [one for one in world.durable.values() if one.active and not one.wrote and one.worker]
            if stored:
                world.end_elsewhere(dice.choice(stored).dispatch)
        case "stall":
            world.stall(6.0)
        case "queued" if worker.link is None:
            world.tell(core.EnrollQueued(worker.name, worker.instance))


__all__ = ["CancelKind", "Execution", "G", "Outcome", "Step", "Worker", "World", "blow"]
