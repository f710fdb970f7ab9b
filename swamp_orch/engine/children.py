"""Child runs: nested workflows, and models that running code runs.

Rules that hold here (SEMANTICS §4, §9):

1. A child's id is derived from where it hangs (`Parent`); its record commits together with its parent step's. Asked for again, by a
   resent call or after a restart, it is found and followed.
2. A child never waits for a slot that its parent holds: what a step of the orchestrator runs uses that step's slot, one after another.
3. A child ends with what started it: a cancelled step cancels it, and so does the end of the lease whose code asked for it.
4. What a child writes, every dispatch above it has written: they are marked before.
"""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import trio

from swamp_orch.core.lease_values import CancelKind
from swamp_orch.core.runplan import StepKey, StepStatus
from swamp_orch.engine import records
from swamp_orch.engine.lineage import NESTED_CALL, Child, Parent
from swamp_orch.store.errors import NO_ROOM
from swamp_orch.store.interface import Batch
from swamp_proto.capabilities import CallRefused
from swamp_proto.errors import NotFound, SwampError
from swamp_proto.limits import RUN_MODEL_CALLS_MAX, STORE_RETRY_S
from swamp_proto.messages.capability import CallCode
from swamp_proto.messages.dispatch import LogBlock

if TYPE_CHECKING:
    from swamp_orch.engine.engine import Engine
    from swamp_orch.engine.flights import Flight
    from swamp_orch.engine.orders import Orders
    from swamp_orch.engine.runs import Parts, Run, RunRequest
    from swamp_orch.engine.steps import StepState


Make = Callable[[], Awaitable["RunRequest"]]
Marks = Callable[["Flight", str], Awaitable[None]]
"""Makes it durable that a dispatch has written, and what. Raises `CallRefused` when its lease has ended."""


@attrs.frozen
class NestedOrder:
    """What a step of the kind `workflow` asks for."""

    workflow: str
    inputs: Mapping[str, Any] = attrs.field(repr=False)  # evaluated; may hold `Secret`s
    timeout_s: float | None


@attrs.frozen
class Upward:
    """From a child to the step it hangs below."""

    run: "Run"
    state: "StepState"

    def lines(self, child: str, label: str, first: int, block: LogBlock) -> None:
        self.run.child_output(self.state, child, label, first, block)

    def asked(self, event: Mapping[str, Any]) -> None:
        """A person is asked something further down."""
        self.run.pass_on(self.state, event)

    def weigh(self) -> None:
        """Whether the child waits for a person has changed."""
        self.run.weigh_soon()


@attrs.frozen
class ChildEnd:
    """How a child run ended."""

    document: Mapping[str, Any]
    left: int | None
    ends_by_ms: int | None = None  # where that is unknown

    @property
    def status(self) -> str:
        return str(self.document["status"])

    @property
    def told(self) -> str:
        """What to say of a child that did not succeed."""
        document = self.document
        step = f" at step {document['failedStep']!r}" if document.get("failedStep") else ""
        why = f": {document['error']}" if document.get("error") else ""
        look = f"swamp workflow history get {document['id']}"
        return f"{_what(document)} {self.status}{step}{why} (look at it: {look})"


def _child_of(request: "RunRequest") -> Child:
    return Child(request.id, request.kind, request.workflow.name)


def _what(document: Mapping[str, Any]) -> str:
    return f"{'workflow' if document['kind'] == 'workflow' else 'model'} '{document['workflowName']}'"


class ChildRuns:
    """Starts, finds and follows child runs."""

    def __init__(self, engine: "Engine", orders: "Orders") -> None:
        self._engine = engine
        self._orders = orders
        self._of_dispatch: dict[str, dict[str, None]] = {}  # ids of runs that a dispatch's code asked for
        self._starting: dict[str, trio.Lock] = {}
        self.marks: Marks | None = None  # who marks leases as having written
        self._slots: dict[str, trio.CapacityLimiter] = {}  # of dispatches, for what they run

    # ── following ───────────────────────────────────────────────────────────────────────────────────────────────────
    async def follow(
        self,
        run: "Run",
        state: "StepState",
        child_id: str,
        make: Make,
        watch: "Watch | None" = None,
    ) -> ChildEnd:
        """Find the run, or start what `make` gives, and wait for its end. `watch` may ask for its cancel."""
        async with self._starting.setdefault(
            child_id, trio.Lock()
        ):  # a call and its resend may come together
            found = await self._engine.find(child_id, None if watch is None else make)
            if found is None:
                found = await self._start(run, state, await make())
        self._starting.pop(child_id, None)
        if isinstance(found, Mapping):
            child = Child(child_id, found["kind"], found["workflowName"], found["status"])
            state.children[child_id] = child
            return ChildEnd(found, 0)
        child = state.children.setdefault(child_id, _child_of(found.request))
        found.upward = Upward(run, state)
        run.child_started(state, child)
        async with trio.open_nursery() as nursery:
            if watch is not None:
                nursery.start_soon(watch.until_cancelled, found)
            await found.over.wait()
            nursery.cancel_scope.cancel()
        child.status = found.status
        run.child_ended(state, child)
        return ChildEnd(found.document(), found.left, found.ends_by_ms)

    async def _start(self, run: "Run", state: "StepState", request: "RunRequest") -> "Run":
        state.children[request.id] = _child_of(request)
        step = records.step_record(run.origin(state), state.attributes(run.id))
        try:
            return await self._engine.start_child(request, step)
        except BaseException:
            del state.children[request.id]
            raise

    # ── run_model ───────────────────────────────────────────────────────────────────────────────────────────────────
    async def run_model(
        self, parent: "Flight", number: int, model: str, method: str, inputs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """A model's method, run for a dispatch's code; what `Verb.RUN_MODEL` gives. The caller has checked that this dispatch may.

        :raises CallRefused: it was not run
        """
        await self._engine.taken_over.wait()
        place, dispatch = parent.message.place, parent.dispatch
        run = self._engine.live(place.run)
        if run is None:
            raise CallRefused(CallCode.LEASE_ENDED, "its run has ended")
        state = run.state(StepKey(place.job, place.step))
        own = f"{parent.message.model_name}.{parent.message.method}"
        chain = (*run.chain, own)
        hangs = Parent(
            place.run, place.job, place.step, parent.message.attempt, number, run.depth + 1, chain, dispatch
        )
        asked = self._of_dispatch.setdefault(dispatch, {})
        if hangs.child_id not in asked and len(asked) >= RUN_MODEL_CALLS_MAX:
            raise CallRefused(
                CallCode.INVALID, f"this step ran {RUN_MODEL_CALLS_MAX} models already, the most it may"
            )
        asked[hangs.child_id] = None

        async def make() -> "RunRequest":
            request, mutates = await trio.to_thread.run_sync(
                self._orders.run_model_request, run, hangs, model, method, inputs, parent.ingress.mask.secrets
            )
            if mutates:
                await self._mark((*self.ancestors(run), parent), f"run_model {model}.{method}")
            return request

        try:
            end = await self.follow(run, state, hangs.child_id, make)
        except CallRefused:
            raise
        except NotFound as error:
            raise CallRefused(CallCode.NOT_FOUND, error.message) from None
        except NO_ROOM as error:
            raise CallRefused(CallCode.UNAVAILABLE, error.message) from None
        except SwampError as error:
            code = CallCode.UNAVAILABLE if error.error_code == "stopping" else CallCode.INVALID
            raise CallRefused(code, error.message) from None
        return run_model_value(end)

    def ancestors(self, run: "Run") -> tuple["Flight", ...]:
        """The dispatches whose code is above this run, outermost first."""
        found: list[Flight] = []
        above: Run | None = run
        while above is not None and (parent := above.request.parent) is not None:
            flight = self._engine.flights.get(parent.dispatch) if parent.dispatch else None
            if flight is not None:
                found.append(flight)
            above = self._engine.live(parent.run)
        return tuple(reversed(found))

    async def mark_ancestors(self, flight: "Flight", what: str) -> None:
        """Before a write of `flight` commits: every dispatch above it has written too.

        :raises CallRefused: the lease of one has ended
        """
        run = self._engine.live(flight.message.place.run)
        if run is not None and run.request.parent is not None:
            await self._mark(self.ancestors(run), what)

    async def _mark(self, flights: tuple["Flight", ...], what: str) -> None:
        assert self.marks is not None, "nobody admits writes"
        for flight in flights:
            lease = self._engine.flights.lease(flight.dispatch, flight.message.fence)
            if lease is None or not lease.wrote:
                await self.marks(flight, what)

    # ── slots ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def limiter(self, run: "Run") -> trio.CapacityLimiter | None:
        """Where a step of `run` takes its slot, if not from the loopback's own: from the step of the orchestrator that runs it."""
        parent = run.request.parent
        if parent is None or not parent.dispatch:
            return None
        flight = self._engine.flights.get(parent.dispatch)
        if flight is None or flight.slot.worker is not None:
            return None
        return self._slots.setdefault(parent.dispatch, trio.CapacityLimiter(1))

    async def settle(self, run: "Run") -> None:
        """Wait for what a run's steps left behind: children that were asked to end when their step did."""
        for state in run.states():
            for child in state.children.values():
                if (below := self._engine.live(child.run)) is not None:
                    await below.over.wait()
                    child.status = below.status

    # ── ends ────────────────────────────────────────────────────────────────────────────────────────────────────────
    def lease_ended(self, dispatch: str) -> None:
        """What this dispatch's code asked for ends with it."""
        for run_id in self._of_dispatch.pop(dispatch, ()):
            self._engine.cancel_soon(run_id, "the step that ran it has ended")
        self._slots.pop(dispatch, None)

    def adopt(self, run: "Run") -> None:
        """A child that a previous process started: it goes on as long as what it hangs below does."""
        parent = run.request.parent
        if parent is None:
            return
        if parent.dispatch and self._engine.flights.get(parent.dispatch) is not None:
            self._of_dispatch.setdefault(parent.dispatch, {})[run.id] = None
        elif parent.dispatch or self._engine.live(parent.run) is None:
            self._engine.cancel_soon(run.id, "what it was started by has ended")


def run_model_value(end: ChildEnd) -> dict[str, Any]:
    """`Verb.RUN_MODEL`'s answer."""
    made = [
        record for job in end.document["jobs"] for step in job["steps"] for record in step["dataArtifacts"]
    ]
    found: dict[str, Any] = {"run": end.document["id"], "status": end.status, "records": made}
    if end.status != "succeeded":
        found["error"] = end.document.get("error") or f"it ended {end.status}"
    return found


class Watch:
    """Asks a child run to end, when its step is asked to or its time is over."""

    def __init__(self, work: "NestedWork", deadline_s: float | None) -> None:
        self._work = work
        self._deadline_s = deadline_s

    async def until_cancelled(self, child: "Run") -> None:
        self._work.child = child
        with trio.move_on_after(float("inf") if self._deadline_s is None else max(0.0, self._deadline_s)):
            await self._work.asked.wait()
        if not self._work.asked.is_set():
            self._work.time_out()
        await child.ask_cancel(self._work.cancel_reason)


class NestedWork:
    """One step whose task is a workflow, until its child run has ended."""

    def __init__(self, parts: "Parts", run: "Run", state: "StepState") -> None:
        self._parts = parts
        self._run = run
        self._state = state
        self.asked = trio.Event()
        self.cancel_reason = ""
        self._cancel_kind = CancelKind.CANCEL
        self.child: Run | None = None

    @property
    def waits_for_person(self) -> bool:
        return self.child is not None and self.child.status == "suspended"

    def ask_cancel(self, reason: str, kind: CancelKind = CancelKind.CANCEL) -> None:
        if not self.cancel_reason:
            self.cancel_reason, self._cancel_kind = reason, kind
            self.asked.set()

    def time_out(self) -> None:
        self.ask_cancel(f"timed out after {self._state.step.timeout_s:g} s", CancelKind.TIMEOUT)

    async def run(self, order: NestedOrder) -> None:
        """Until the step has ended and that is durable. Raises SwampError when no child could be started."""
        state, retry = self._state, self._state.step.retry
        while not self.cancel_reason:
            end = await self._attempt(order)
            state.left, state.ends_by_ms, state.ended_ms = end.left, end.ends_by_ms, self._parts.clock_ms()
            state.status = StepStatus(end.status)
            state.error = "" if end.status == "succeeded" else end.told
            if state.status is not StepStatus.FAILED or self.cancel_reason:
                break
            if retry is None or state.retries >= retry.attempts:
                break
            pause_s = retry.backoff_s * 2**state.retries
            state.retries, state.attempt = state.retries + 1, state.attempt + 1
            self._run.warn(f"{state.error}; tried again in {pause_s:g} s", state)
            with trio.move_on_after(pause_s):
                await self.asked.wait()
        if self.cancel_reason and state.status is not StepStatus.SUCCEEDED:
            cancelled = self._cancel_kind is CancelKind.CANCEL
            state.status = StepStatus.CANCELLED if cancelled else StepStatus.FAILED
            state.error = self.cancel_reason
        state.ended_ms = self._parts.clock_ms()
        state.error_code = "child_failed" if state.status is StepStatus.FAILED else ""
        state.allowed = state.status is StepStatus.FAILED and state.step.allow_failure
        await self._run.keep(
            Batch((records.step_record(self._run.origin(state), state.attributes(self._run.id)),))
        )

    async def _attempt(self, order: NestedOrder) -> ChildEnd:
        run, state = self._run, self._state
        if not state.attempt:
            state.attempt = 1
        hangs = Parent(
            run.id, state.key.job, state.key.step, state.attempt, NESTED_CALL, run.depth + 1, run.chain
        )
        state.status, state.reason = StepStatus.RUNNING, ""
        if hangs.child_id not in state.children or not state.started_ms:  # else it goes on
            state.started_ms = self._parts.clock_ms()
        left_s = None
        if order.timeout_s is not None:
            left_s = order.timeout_s - (self._parts.clock_ms() - state.started_ms) / 1000
        try:
            while True:
                try:
                    return await self._parts.children.follow(
                        run,
                        state,
                        hangs.child_id,
                        partial(self._parts.nested_request, run, order, hangs),
                        Watch(self, left_s),
                    )
                except NO_ROOM as error:
                    run.warn(f"{error.message}; its run starts when there is room", state)
                    with trio.move_on_after(STORE_RETRY_S):
                        await self.asked.wait()
                    if self.cancel_reason:
                        raise
        finally:
            self.child = None
