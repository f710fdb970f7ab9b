"""The engine: runs that are at work in this process, and the calls about them.

One engine lives in `swamp serve`; a CLI process without an orchestrator has one of its own for a single run, without workers.
It opens one nursery for its runs; leaving `open` waits for them or cancels them with everything they started.
"""

import os
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, Protocol

import attrs
import trio

from swamp_orch.core.runplan import StepKey
from swamp_orch.definitions.repository import Repository
from swamp_orch.engine.children import ChildRuns, Make, NestedOrder
from swamp_orch.engine.feed import RunFeed
from swamp_orch.engine.flights import Flights
from swamp_orch.engine.lineage import Parent
from swamp_orch.engine.orders import Order, Orders
from swamp_orch.engine.owners import is_alive, process_identity
from swamp_orch.engine.placing import Placing, Slot
from swamp_orch.engine.resuming import check_resumable, reopen, starts_anew
from swamp_orch.engine.revival import Found, read_run
from swamp_orch.engine.runs import SUSPENDED, Run, RunRequest
from swamp_orch.engine.steps import StepState
from swamp_orch.store.interface import NewRecord, Store
from swamp_proto.errors import Conflict, NotFound, OperationFailed
from swamp_proto.limits import CONCURRENT_RUNS_MAX_DEFAULT, EVENT_BUFFER_ENDED_BYTES, EVENTS_AT_ONCE
from swamp_worker.execution.interface import Executor

ENDED_RUNS_KEPT: Final = 64  # feeds of ended runs that can still be attached to in full
CHUNKS_APART_S: Final = 0.001  # of one follower: what comes thicker travels together
FULL_CHUNKS_APART_S: Final = 0.02  # … and what comes thicker than one can follow takes no time from others
LOOPBACK_SLOTS: Final = max(4, 2 * (os.cpu_count() or 1))


class Reporter(Protocol):
    """Where the engine says what happens."""

    def info(self, event: str, **fields: Any) -> None: ...

    def warning(self, event: str, **fields: Any) -> None: ...

    def fault(self, event: str, error: BaseException, **fields: Any) -> None:
        """A bug: with its traceback."""
        ...


class Engine:
    """Implements `Parts` for runs and steps, and `Live` for the application."""

    def __init__(
        self,
        repository: Repository,
        store: Store,
        executor: Executor,
        *,
        flights: Flights,
        placing: Placing | None,
        orders: Orders,
        reporter: Reporter,
        clock_ms: Callable[[], int],
        concurrent_runs_max: int = CONCURRENT_RUNS_MAX_DEFAULT,
    ) -> None:
        self.repository = repository
        self.store = store
        self.executor = executor
        self.flights = flights
        self.placing = placing
        self.clock_ms = clock_ms
        self._orders = orders
        self._reporter = reporter
        self._loopback = trio.CapacityLimiter(LOOPBACK_SLOTS)
        self._runs: dict[str, Run] = {}
        self._ended: OrderedDict[str, RunFeed] = OrderedDict()
        self._runs_max = concurrent_runs_max
        self.owner = {"kind": "cli" if placing is None else "serve", **process_identity()}
        self._nursery: trio.Nursery
        self.serves = placing is not None
        self.children = ChildRuns(self, orders)
        flights.lease_ended = self.children.lease_ended
        self._idle = trio.Event()  # set when a loopback slot is given back
        self.stopping = ""
        self.taken_over = trio.Event()  # what a dead process left is this one's now; calls wait for it
        if placing is None:
            self.taken_over.set()  # a command's own engine takes over nothing

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Engine"]:
        """The nursery of all runs. Leaving it cancels what still runs, and everything it started is dead then."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            yield self
            nursery.cancel_scope.cancel()

    # ── what runs and steps need ────────────────────────────────────────────────────────────────────────────────────
    def slot_nowait(self, order: Order, state: StepState, run: Run) -> Slot | None:
        """A slot, when one is free at this instant and nobody waits for it before."""
        if self.stopping and self.children.limiter(run) is None:
            return None
        holder = str(uuid.uuid4())
        if order.placement.is_remote:
            return None if self.placing is None else self.placing.slot_nowait(holder, order, state, run)
        limiter = self.children.limiter(run) or self._loopback
        try:
            limiter.acquire_on_behalf_of_nowait(holder)
        except trio.WouldBlock:
            return None
        return Slot(holder, None, None, lambda: self._release(limiter, holder))

    async def slot(self, order: Order, state: StepState, run: Run) -> Slot:
        """Permission to execute: a worker's slot for a placed step, else one of the loopback's. While the process stops nothing is
        granted any more: what waits is left to the next one."""
        holder = str(uuid.uuid4())
        if order.placement.is_remote:
            if self.placing is None:
                raise OperationFailed(
                    f"step {state.key.step!r} is placed on a worker ({order.requirement}), and no orchestrator is running",
                    hint="start one in another terminal: swamp serve",
                    code="no_orchestrator",
                )
            slot = await self.placing.slot(holder, order, state, run)
        else:
            limiter = self.children.limiter(run) or self._loopback
            await limiter.acquire_on_behalf_of(holder)
            slot = Slot(holder, None, None, lambda: self._release(limiter, holder))
            if limiter is not self._loopback:
                return slot  # what runs here is finished, and this is part of it
        if self.stopping:
            slot.release()
            await trio.sleep_forever()
        return slot

    def taken_slot(self, holder: str, worker: str | None) -> Slot:
        """The slot of an execution that a previous process granted."""
        if worker is not None and self.placing is not None:
            return self.placing.taken_slot(holder, worker)
        return Slot(holder, worker, None, lambda: None)

    # ── calls ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def handlers(self) -> Mapping[str, Callable[[Mapping[str, Any]], Awaitable[Any]]]:
        return {
            "workflow.run": self._workflow_run,
            "model.method_run": self._method_run,
            "run.cancel": self._cancel,
            "workflow.resume": self._resume,
            "workflow.approve": lambda parameters: self._decide(parameters, approved=True),
            "workflow.reject": lambda parameters: self._decide(parameters, approved=False),
            "worker.queue": self._queue,
        }

    def followers(self) -> Mapping[str, Callable[[Mapping[str, Any]], Awaitable["FeedFollower"]]]:
        return {"run.attach": self._attach}

    async def _workflow_run(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        request = await trio.to_thread.run_sync(self._orders.workflow_request, parameters, self.owner)
        return await self.start(request)

    async def _method_run(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        request = await trio.to_thread.run_sync(self._orders.method_request, parameters, self.owner)
        try:
            return await self.start(request)
        except BaseException:
            self._orders.forget(request.id)
            raise

    async def start(self, request: RunRequest) -> dict[str, Any]:
        """Make a run durable and let it go; answers its id."""
        await self.taken_over.wait()
        if self.stopping:
            raise OperationFailed(f"no new runs: {self.stopping}", code="stopping")
        at_work = sum(
            run.request.parent is None for run in self._runs.values()
        )  # else parents could wait for ever
        if at_work >= self._runs_max:
            raise OperationFailed(
                f"{at_work} runs are at work already, the most this orchestrator takes",
                hint="wait for one to end, or start serve with a larger --max-concurrent-runs",
                code="too_many_runs",
            )
        run = await self._begin(request)
        return {"runId": run.id, "workflowName": request.workflow.name}

    async def _begin(self, request: RunRequest, *also: NewRecord) -> Run:
        run = Run(self, self._orders, request)
        self._runs[run.id] = run
        try:
            await run.begin(*also)
        except BaseException:
            del self._runs[run.id]
            raise
        self._reporter.info("run started", run=run.id, **{request.kind: request.workflow.name})
        self.go_on(run)
        return run

    # ── child runs, and runs from their records ─────────────────────────────────────────────────────────────────────
    def live(self, run_id: str) -> Run | None:
        """A run that is at work here."""
        return self._runs.get(run_id)

    async def start_child(self, request: RunRequest, *also: NewRecord) -> Run:
        """Make a child run durable, together with what its parent step says of it, and let it go."""
        if self.stopping:
            assert request.parent is not None
            flight = self.flights.get(request.parent.dispatch)
            if flight is None:
                await trio.sleep_forever()  # a nested workflow: left to the next process
            elif flight.slot.worker is not None:
                raise OperationFailed(f"no new runs: {self.stopping}", code="stopping")
        return await self._begin(request, *also)

    async def nested_request(self, run: Run, order: NestedOrder, parent: Parent) -> RunRequest:
        return await trio.to_thread.run_sync(self._orders.nested_request, run, order, parent)

    async def find(self, run_id: str, again: Make | None = None) -> Run | Mapping[str, Any] | None:
        """A run by its id: at work here, or brought back to work, or the document of one that has ended; None if there is none.
        `again` gives anew what its record does not hold: inputs that are secret.

        :raises Conflict: a living process runs it
        """
        if (run := self._runs.get(run_id)) is not None:
            return run
        found = await trio.to_thread.run_sync(read_run, self.store, run_id)
        if found is None:
            return None
        if found.is_open:
            owner = found.attributes["owner"]
            if is_alive(owner) and owner != self.owner:
                raise self._elsewhere(run_id)
            hidden = [key for key, value in found.attributes["inputs"].items() if value == "***"]
            if again is None or not hidden:
                return await self.revive(found)
            request = await again()
            return await self.revive(found, {key: request.inputs[key] for key in hidden}, request.sensitive)
        return await trio.to_thread.run_sync(self._ended_document, run_id)

    async def revive(
        self, found: Found, inputs: Mapping[str, Any] | None = None, sensitive: tuple[str, ...] = ()
    ) -> Run:
        """Let a run go on from where its records stop; it is this process's then, durably. `inputs` are those that were not stored.

        :raises SwampError: it can not, or another process took it
        """
        request = await trio.to_thread.run_sync(
            self._orders.recovered_request, found.id, found.attributes, self.owner, inputs or {}
        )
        request = attrs.evolve(request, sensitive=sensitive)
        run = self._runs[request.id] = Run(self, self._orders, request)
        try:
            run.restore(found)
            await run.claim()
        except BaseException:
            del self._runs[request.id]
            raise
        self.go_on(run)
        return run

    def cancel_soon(self, run_id: str, reason: str) -> None:
        run = self._runs.get(run_id)
        if run is not None:
            self._nursery.start_soon(run.end_soon, reason)

    def go_on(self, run: Run) -> None:
        self._nursery.start_soon(self._execute, run)

    async def _execute(self, run: Run) -> None:
        try:
            await run.execute()
        except Exception as error:  # a fault in one run must not end the others
            self._reporter.fault("a run ended by a fault of swamp itself", error, run=run.id)
            await run.abort(f"swamp itself failed: {error!r}")
        else:
            told = {"error": run.error} if run.error else {}
            self._reporter.info("run ended", run=run.id, status=run.status, **told)
        finally:
            self._orders.forget(run.id)
            run.feed.end()
            del self._runs[run.id]
            for child in self.active_runs():  # of a run that a fault ended
                if child.request.parent is not None and child.request.parent.run == run.id:
                    self.cancel_soon(child.id, "the run that started it has ended")
            self._ended[run.id] = run.feed
            while len(self._ended) > 1 and (
                len(self._ended) > ENDED_RUNS_KEPT
                or sum(feed.size for feed in self._ended.values()) > EVENT_BUFFER_ENDED_BYTES
            ):
                self._ended.popitem(last=False)

    async def _cancel(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        await self.taken_over.wait()
        run_id = parameters["runId"]
        run = self._runs.get(run_id)
        if run is None and run_id not in self._ended:
            run = await self._abandoned(run_id)
        if run is None:
            return {"runId": run_id, "status": "ended"}
        await run.ask_cancel(parameters.get("reason") or "cancelled")
        if parameters.get("wait") is False:
            return {"runId": run.id, "status": "cancelling"}
        await run.over.wait()
        return {"runId": run.id, "status": run.status, **run.remains()}

    async def _abandoned(self, run_id: str) -> Run | None:
        """A suspended run that no process runs any more, brought back; None for one that has ended."""
        found = await trio.to_thread.run_sync(read_run, self.store, run_id)
        if (
            found is not None
            and found.attributes["status"] == SUSPENDED
            and not is_alive(found.attributes["owner"])
        ):
            return await self.revive(found)
        await trio.to_thread.run_sync(self._ended_document, run_id)
        return None

    # ── people ──────────────────────────────────────────────────────────────────────────────────────────────────────
    async def _decide(self, parameters: Mapping[str, Any], *, approved: bool) -> dict[str, Any]:
        """Here for a run that is at work here; for others the decision is written to their record."""
        from swamp_orch.api.services.approvals import ApprovalService, decided, decision_of

        await self.taken_over.wait()
        service = ApprovalService(self.store)
        row = await trio.to_thread.run_sync(service.choose, parameters)
        run = self._runs.get(row["runId"])
        if run is None:
            return await trio.to_thread.run_sync(partial(service.decide, parameters, approved=approved))
        decision = decision_of(parameters, approved=approved, now_ms=self.clock_ms())
        if not await run.decide(StepKey(row["jobName"], row["stepName"]), decision):
            raise Conflict(
                f"step {row['stepName']!r} does not wait any more",
                hint=f"swamp workflow history get {run.id}",
            )
        return decided(row, decision, live=True, run_status=run.status)

    async def _resume(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        await self.taken_over.wait()
        if self.stopping:
            raise OperationFailed(f"no new runs: {self.stopping}", code="stopping")
        run_id = await trio.to_thread.run_sync(self._to_resume, parameters)
        run = self._runs.get(run_id)
        at_work = run is not None
        if run is None:
            found = await trio.to_thread.run_sync(self._reopened, run_id, parameters)
            run = await self.revive(found, parameters.get("inputs") or {})
        return {"runId": run.id, "workflowName": run.request.workflow.name, "resumed": not at_work}

    def _to_resume(self, parameters: Mapping[str, Any]) -> str:
        """The id of the run that is meant: given, else the one that is suspended, else the last one."""
        from swamp_orch.api.services.runs import RunService

        name = parameters["name"]
        if parameters.get("runId"):
            document = RunService(self.repository, self.store).document(parameters["runId"])
            if name not in (document["workflowName"], document["workflowId"]):
                raise NotFound(
                    f"run {document['id']} is of workflow {document['workflowName']!r}, not {name!r}"
                )
            return str(document["id"])
        rows = RunService(self.repository, self.store).of_workflow(name)
        suspended = [row["runId"] for row in rows if row["status"] == SUSPENDED]
        if len(suspended) > 1:
            raise Conflict(
                f"{name} has {len(suspended)} suspended runs: {', '.join(suspended)}",
                hint="say which one with --run",
            )
        if not rows:
            raise NotFound(f"no run of {name!r} is known", hint=f"run it: swamp workflow run {name}")
        return str(suspended[0] if suspended else rows[0]["runId"])

    def _reopened(self, run_id: str, parameters: Mapping[str, Any]) -> Found:
        """Its records, so that it goes on from them. Blocking."""
        found = read_run(self.store, run_id)
        assert found is not None
        if found.is_open:
            if is_alive(found.attributes["owner"]) and found.attributes["owner"] != self.owner:
                raise self._elsewhere(run_id)
            return found
        check_resumable(found)
        workflow = self._orders.recorded_workflow(found.attributes)
        given = parameters.get("inputs") or {}
        self._orders.recovered_request(
            run_id, found.attributes, self.owner, given
        )  # before anything is written
        anew = starts_anew(found, workflow, parameters.get("fromStep"))
        reopen(self.store, found, anew, self.owner, self.clock_ms(), parameters.get("timeoutS"))
        again = read_run(self.store, run_id)
        assert again is not None
        return again

    async def _queue(self, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [] if self.placing is None else self.placing.queue(bool(parameters.get("explain")))

    async def _attach(self, parameters: Mapping[str, Any]) -> "FeedFollower":
        await self.taken_over.wait()
        run_id = parameters["runId"]
        run = self._runs.get(run_id)
        feed = run.feed if run is not None else self._ended.get(run_id)
        if feed is None:
            feed = self._replay(await trio.to_thread.run_sync(self._ended_document, run_id))
        after = int(parameters.get("after") or 0)
        return FeedFollower(
            feed, after if after <= feed.last else 0
        )  # a feed of another process counted differently

    def _ended_document(self, run_id: str) -> dict[str, Any]:
        """A run that is not at work here, from its records.

        :raises NotFound: there is no such run
        :raises Conflict: it is at work in another process
        """
        from swamp_orch.api.services.runs import RunService

        document = RunService(self.repository, self.store).document(run_id)
        if document["status"] == SUSPENDED:
            raise Conflict(
                f"run {run_id} is suspended and no process runs it",
                hint=f"go on with it: swamp workflow resume {document['workflowName']} --run {run_id}",
            )
        if document["status"] == "running":
            raise self._elsewhere(run_id)
        return document

    @staticmethod
    def _elsewhere(run_id: str) -> Conflict:
        return Conflict(
            f"run {run_id} is not at work in this process: the command that started it executes it",
            hint="follow and cancel it where it was started; what a dead process left, swamp serve takes over as it starts",
        )

    def _replay(self, document: Mapping[str, Any]) -> RunFeed:
        """A run that ended longer ago: its end."""
        run_id = document["id"]
        feed = RunFeed(self.clock_ms)
        feed.emit(
            "run_started",
            runId=run_id,
            run=document["kind"],
            workflowId=document["workflowId"],
            workflowName=document["workflowName"],
            jobs=[
                {"name": job["name"], "steps": [step["name"] for step in job["steps"]]}
                for job in document["jobs"]
            ],
        )
        feed.emit(
            "run_ended",
            runId=run_id,
            status=document["status"],
            counts=document["counts"],
            durationMs=document["duration"],
            run=document,
        )
        feed.end()
        return feed

    async def loopback_idle(self) -> None:
        """Until no step executes here."""
        while self._loopback.borrowed_tokens:
            self._idle = trio.Event()
            await self._idle.wait()

    def _release(self, limiter: trio.CapacityLimiter, holder: str) -> None:
        limiter.release_on_behalf_of(holder)
        self._idle.set()

    def active_runs(self) -> tuple[Run, ...]:
        return tuple(self._runs.values())


class FeedFollower:
    """One client's place in a feed."""

    def __init__(self, feed: RunFeed, after: int) -> None:
        self._feed = feed
        self._after = after
        self._not_before_s = 0.0

    async def more(self) -> bytes:
        """NDJSON of what is new, as soon as there is any; `b""` at the end of the run."""
        if not await self._feed.wait_beyond(self._after):
            return b""
        if trio.current_time() < self._not_before_s:
            await trio.sleep_until(self._not_before_s)
        before = self._after
        lines, self._after = self._feed.after(before)
        is_full = self._after - before >= EVENTS_AT_ONCE
        self._not_before_s = trio.current_time() + (FULL_CHUNKS_APART_S if is_full else CHUNKS_APART_S)
        return lines
