"""Slots: where a step may execute next, and what is said about steps that wait.

`swamp_orch.core.scheduler` decides; this module keeps the steps that wait, wakes them when they are placed, writes the
`swamp/pending-dispatch` records of those that wait longer than a moment, and answers `swamp worker queue`. A step whose queue
timeout elapses fails; without one it waits until a worker connects (seeds/004).
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

import attrs
import trio

from swamp_orch.core.pool import PoolWorker
from swamp_orch.core.scheduler import Demand, Requirement, Scheduler
from swamp_orch.engine.orders import Order
from swamp_orch.store.bookkeeping import PENDING_DISPATCH, PENDING_ID, PENDING_MODEL, iso, pending_record
from swamp_orch.store.interface import Batch, NewRecord, Owner, OwnerType, Store, json_content
from swamp_orch.store.trio_store import commit
from swamp_orch.tokens.workers import WorkerState
from swamp_proto.errors import OperationFailed, SwampError
from swamp_proto.limits import BATCH_RECORDS_MAX, BOOKKEEPING_VERSIONS_KEPT

if TYPE_CHECKING:
    from swamp_orch.engine.runs import Run
    from swamp_orch.engine.steps import StepState
    from swamp_orch.gateway.link import Link

FEW_WAITING: Final = 64
RECORD_AFTER_S: Final = (
    1.0  # a step that waits longer than this gets a queue record, and its run is told why …
)
RECORD_MANY_AFTER_S: Final = 5.0  # … or than this, where many wait and most will start in a moment
RECORD_TICK_S: Final = 0.5


class Member(Protocol):
    """A connected worker (`swamp_orch.gateway.control.Member`)."""

    state: WorkerState
    link: "Link"

    def end(self) -> None: ...


@attrs.define(eq=False)
class Slot:
    """Permission to execute once. `holder` is the dispatch's id. `release` may be called more than once."""

    holder: str
    worker: str | None  # None: loopback
    member: Member | None
    _release: Callable[[], None]
    handover: tuple[NewRecord, ...] = ()  # commits with the grant
    _held: bool = True

    def release(self) -> None:
        if self._held:
            self._held = False
            self._release()


@attrs.define(eq=False)
class _Ticket:
    demand: Demand
    order: Order
    state: "StepState"
    run: "Run"
    queued_s: float
    queued_ms: int
    placed: trio.Event = attrs.field(factory=trio.Event)
    worker: str = ""
    recorded: bool = False


class Placing:
    """The pool, the scheduler and the steps that wait, around one trio loop."""

    def __init__(self, store: Store, clock_ms: Callable[[], int]) -> None:
        self._store = store
        self._clock_ms = clock_ms
        self.scheduler = Scheduler()
        self.members: dict[str, Member] = {}
        self._tickets: dict[str, _Ticket] = {}

    # ── workers ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def worker_up(self, member: Member) -> None:
        self.members[member.state.name] = member
        self._changed(member.state, None)

    def worker_changed(self, member: Member) -> None:
        if self.members.get(member.state.name) is member:
            self._changed(member.state, None)

    def worker_down(self, member: Member) -> None:
        if self.members.get(member.state.name) is member:
            del self.members[member.state.name]
            self._changed(attrs.evolve(member.state, connected=False), trio.current_time())

    def _changed(self, state: WorkerState, offline_since: float | None) -> None:
        self.scheduler.worker_changed(
            PoolWorker(
                name=state.name,
                instance=state.instance,
                labels=state.labels,
                platform=state.platform,
                arch=state.arch,
                capacity=state.capacity,
                connected=state.connected,
                draining=state.draining,
                drain_reason=state.drain_reason,
                unverified=state.unverified,
                stuck=state.stuck,
                token_expires_ms=state.token_expires_ms,
                offline_since=offline_since,
            ),
            trio.current_time(),
        )
        self.pump()

    # ── slots ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def slot_nowait(self, holder: str, order: Order, state: "StepState", run: "Run") -> Slot | None:
        """A worker's slot, when one is free for this step right now. It does not wait: what waits keeps its turn."""
        ticket = self._enqueue(holder, order, state, run)
        self.pump()
        if ticket.placed.is_set():
            return self._slot_of(ticket)
        self._leave(ticket)
        return None

    def _enqueue(self, holder: str, order: Order, state: "StepState", run: "Run") -> _Ticket:
        placement = order.placement
        demand = Demand(
            id=holder,
            queued_at=state.queued_ms,
            target=placement.target,
            labels=placement.labels,
            platform=placement.platform,
            avoid=frozenset(state.avoid),
            affinity=f"{run.id}:{state.key.job}" if placement.affinity else None,
            timeout_s=order.timeout_s,
        )
        ticket = _Ticket(demand, order, state, run, trio.current_time(), self._clock_ms())
        self._tickets[holder] = ticket
        self.scheduler.add(demand)
        return ticket

    def _leave(self, ticket: _Ticket) -> None:
        """Give up the place in the queue, or the slot that was just given."""
        del self._tickets[ticket.demand.id]
        self.scheduler.remove(ticket.demand.id)
        if ticket.placed.is_set():
            self.release(ticket.demand.id)
        if ticket.recorded:
            self._store.submit(Batch((self._record(ticket, "cancelled"),)))

    def _slot_of(self, ticket: _Ticket) -> Slot:
        holder = ticket.demand.id
        del self._tickets[holder]
        handover = (self._record(ticket, "dispatched"),) if ticket.recorded else ()
        return Slot(
            holder, ticket.worker, self.members.get(ticket.worker), lambda: self.release(holder), handover
        )

    async def slot(self, holder: str, order: Order, state: "StepState", run: "Run") -> Slot:
        """Wait for a worker. Raises OperationFailed when the queue timeout elapses; cancellation leaves the queue."""
        placement = order.placement
        ticket = self._enqueue(holder, order, state, run)
        demand = ticket.demand
        try:
            self.pump()
            if not ticket.placed.is_set():
                if not self.scheduler.known(demand):
                    self._tell(ticket)
                with trio.move_on_after(
                    placement.queue_timeout_s if placement.queue_timeout_s is not None else float("inf")
                ):
                    await ticket.placed.wait()
            if not ticket.placed.is_set():
                raise OperationFailed(
                    f"no worker matching {_requirement(demand)} became available within {placement.queue_timeout_s:g} s",
                    hint="swamp worker queue --explain",
                    code="queue_timeout",
                )
        except BaseException:
            self._leave(ticket)
            raise
        return self._slot_of(ticket)

    def taken_slot(self, holder: str, worker: str) -> Slot:
        """The slot of an execution found at start; its worker is known by then, connected or not."""
        self.scheduler.occupy(worker, holder)
        return Slot(holder, worker, self.members.get(worker), lambda: self.release(holder))

    def worker_known(self, state: WorkerState) -> None:
        """A worker from the records of a previous process: not connected, and part of every explanation."""
        self._changed(attrs.evolve(state, connected=False), trio.current_time())

    def release(self, holder: str) -> None:
        """The slot of `holder` is free: its execution is known dead, or never was."""
        self.scheduler.release(holder, trio.current_time())
        self.pump()

    def pump(self) -> None:
        """Hand out what can start now; called after every change."""
        for placement in self.scheduler.take_placements(self._clock_ms()):
            ticket = self._tickets[placement.demand]
            ticket.worker = placement.worker
            ticket.placed.set()

    # ── what waits ──────────────────────────────────────────────────────────────────────────────────────────────────
    def _tell(self, ticket: _Ticket) -> None:
        ticket.run.step_waiting(ticket.state, self._reason(ticket), _requirement(ticket.demand))

    def _reason(self, ticket: _Ticket) -> str:
        """The smallest change that would start it, in words."""
        now_ms = self._clock_ms()
        return self.scheduler.explain(ticket.demand, trio.current_time(), now_ms).change

    def _record(self, ticket: _Ticket, state: str) -> NewRecord:
        demand, origin = ticket.demand, ticket.run.origin(ticket.state)
        attributes: dict[str, Any] = {
            "queueId": demand.id,
            "state": state,
            "runId": origin.run,
            "workflowName": origin.workflow,
            "jobName": origin.job,
            "stepName": origin.step,
            "modelType": ticket.order.model.type,
            "methodName": ticket.order.method,
            "requirement": _requirement(demand),
            "queuedAt": iso(ticket.queued_ms),
        }
        if demand.target is not None:
            attributes["target"] = demand.target
        if demand.labels:
            attributes["labels"] = dict(demand.labels)
        if demand.platform is not None:
            attributes["platform"] = demand.platform
        if state == "dispatched":
            attributes |= {"dispatchId": demand.id, "workerName": ticket.worker}
        if state != "waiting":
            attributes["endedAt"] = iso(self._clock_ms())
        return NewRecord(
            model_type=PENDING_DISPATCH,
            model_id=PENDING_ID,
            model_name=PENDING_MODEL,
            name=pending_record(demand.id),
            spec="dispatch",
            content=json_content(attributes),
            keep=BOOKKEEPING_VERSIONS_KEPT,
            owner=Owner(
                OwnerType.SYSTEM,
                ref=origin.run,
                workflow=origin.workflow,
                run=origin.run,
                job=origin.job,
                step=origin.step,
            ),
        )

    async def watch(self) -> None:
        """Record and tell what waits longer than a moment."""
        while True:
            await trio.sleep(RECORD_TICK_S)
            few = len(self._tickets) <= FEW_WAITING
            due_s = trio.current_time() - (RECORD_AFTER_S if few else RECORD_MANY_AFTER_S)
            due = [
                ticket
                for ticket in self._tickets.values()
                if not ticket.recorded and ticket.queued_s <= due_s
            ]
            for at in range(0, len(due), BATCH_RECORDS_MAX):
                page = [ticket for ticket in due[at : at + BATCH_RECORDS_MAX] if not ticket.placed.is_set()]
                for ticket in page:
                    ticket.recorded = True
                try:
                    await commit(
                        self._store, Batch(tuple(self._record(ticket, "waiting") for ticket in page))
                    )
                except SwampError:
                    for ticket in page:
                        ticket.recorded = False  # tried again next time; what waits is in memory all the same
                    break
                for ticket in page:
                    if not ticket.state.reason and not ticket.placed.is_set():
                        self._tell(ticket)

    def queue(self, explain: bool) -> list[dict[str, Any]]:
        """`swamp worker queue`: waiting steps, in the order they are considered."""
        now_ms, now_s = self._clock_ms(), trio.current_time()
        found = []
        for demand in self.scheduler.waiting():
            ticket = self._tickets[demand.id]
            origin = ticket.run.origin(ticket.state)
            row: dict[str, Any] = {
                "queueId": demand.id,
                "requirement": _requirement(demand),
                "runId": origin.run,
                "workflowName": origin.workflow,
                "jobName": origin.job,
                "stepName": origin.step,
                "modelType": ticket.order.model.type,
                "methodName": ticket.order.method,
                "queuedAt": iso(ticket.queued_ms),
                "ageMs": now_ms - ticket.queued_ms,
            }
            if explain:
                explanation = self.scheduler.explain(demand, now_s, now_ms)
                row["change"] = explanation.change
                row["workers"] = {
                    name: [obstacle.reason for obstacle in obstacles]
                    for name, obstacles in explanation.workers.items()
                }
            found.append(row)
        return found

    def active(self) -> Mapping[str, tuple[str, ...]]:
        """Worker name -> dispatches that hold its slots."""
        return {
            worker.name: self.scheduler.pool.holders(worker.name) for worker in self.scheduler.pool.workers()
        }


def _requirement(demand: Demand) -> str:
    return Requirement(demand.target, tuple(sorted(demand.labels.items())), demand.platform).text()
