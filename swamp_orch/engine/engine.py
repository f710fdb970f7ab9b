"""The engine: runs that are at work in this process, and the calls about them.

One engine lives in `swamp serve`; a CLI process without an orchestrator has one of its own for a single run, without workers.
It opens one nursery for its runs; leaving `open` waits for them or cancels them with everything they started.
"""

import os
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

import trio

from swamp_orch.definitions.repository import Repository
from swamp_orch.engine.feed import RunFeed
from swamp_orch.engine.flights import Flights
from swamp_orch.engine.orders import Order, Orders
from swamp_orch.engine.owners import process_identity
from swamp_orch.engine.placing import Placing, Slot
from swamp_orch.engine.runs import Run, RunRequest
from swamp_orch.engine.steps import StepState
from swamp_orch.store.interface import Store
from swamp_proto.errors import Conflict, OperationFailed
from swamp_proto.limits import CONCURRENT_RUNS_MAX_DEFAULT
from swamp_worker.execution.interface import Executor

ENDED_RUNS_KEPT: Final = 64  # feeds of ended runs that can still be attached to in full
CHUNKS_APART_S: Final = 0.001  # of one follower: what comes thicker travels together
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
        self._owner = {"kind": "cli" if placing is None else "serve", **process_identity()}
        self._nursery: trio.Nursery
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
        if self.stopping:
            return None
        holder = str(uuid.uuid4())
        if order.placement.is_remote:
            return None if self.placing is None else self.placing.slot_nowait(holder, order, state, run)
        try:
            self._loopback.acquire_on_behalf_of_nowait(holder)
        except trio.WouldBlock:
            return None
        return Slot(holder, None, None, lambda: self._release_loopback(holder))

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
            await self._loopback.acquire_on_behalf_of(holder)
            slot = Slot(holder, None, None, lambda: self._release_loopback(holder))
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
            "worker.queue": self._queue,
        }

    def followers(self) -> Mapping[str, Callable[[Mapping[str, Any]], Awaitable["FeedFollower"]]]:
        return {"run.attach": self._attach}

    async def _workflow_run(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        request = await trio.to_thread.run_sync(self._orders.workflow_request, parameters, self._owner)
        return await self.start(request)

    async def _method_run(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        request = await trio.to_thread.run_sync(self._orders.method_request, parameters, self._owner)
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
        if len(self._runs) >= self._runs_max:
            raise OperationFailed(
                f"{len(self._runs)} runs are at work already, the most this orchestrator takes",
                hint="wait for one to end, or start serve with a larger --max-concurrent-runs",
                code="too_many_runs",
            )
        run = Run(self, self._orders, request)
        self._runs[run.id] = run
        try:
            await run.begin()
        except BaseException:
            del self._runs[run.id]
            raise
        self._reporter.info("run started", run=run.id, **{request.kind: request.workflow.name})
        self.go_on(run)
        return {"runId": run.id, "workflowName": request.workflow.name}

    def new_run(self, request: RunRequest) -> Run:
        """A run to be restored from its records, and then to `go_on`."""
        run = self._runs[request.id] = Run(self, self._orders, request)
        return run

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
            self._ended[run.id] = run.feed
            while len(self._ended) > ENDED_RUNS_KEPT:
                self._ended.popitem(last=False)

    async def _cancel(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        await self.taken_over.wait()
        run_id = parameters["runId"]
        run = self._runs.get(run_id)
        if run is None:
            if run_id not in self._ended:
                await trio.to_thread.run_sync(self._ended_document, run_id)
            return {"runId": run_id, "status": "ended"}
        await run.ask_cancel(parameters.get("reason") or "cancelled")
        if parameters.get("wait") is False:
            return {"runId": run.id, "status": "cancelling"}
        await run.over.wait()
        return {"runId": run.id, "status": run.status, **run.remains()}

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
        if document["status"] == "running":
            raise Conflict(
                f"run {run_id} is not at work in this process: the command that started it executes it",
                hint="follow and cancel it where it was started; what a dead process left, swamp serve takes over as it starts",
            )
        return document

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

    def _release_loopback(self, holder: str) -> None:
        self._loopback.release_on_behalf_of(holder)
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
        self._not_before_s = trio.current_time() + CHUNKS_APART_S
        lines, self._after = self._feed.after(self._after)
        return lines
