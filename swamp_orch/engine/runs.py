"""Runs: a nursery per run, a task per step, the run plan in the middle.

Rules that hold here:

1. Which step may start is `swamp_orch.core.runplan`'s decision; this module performs its effects and reports back.
2. A run belongs to the engine, never to a client: clients follow its feed (`RunFeed`) and may come and go.
3. An end is durable before its event is emitted, and before the plan hears of it.
4. A run is over when its nursery is: no step's task outlives it.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final, Protocol

import attrs
import trio

from swamp_orch.core.lease_values import CancelKind, Lease
from swamp_orch.core.runplan import (
    ENDS,
    CancelAsked,
    CancelStep,
    DropStep,
    Effect,
    Event,
    ExpandStep,
    ExpansionFailed,
    FailStep,
    JobEnded,
    JobStarted,
    RunBegun,
    RunEnded,
    RunPlan,
    RunStatus,
    SkipStep,
    StartStep,
    StepEnded,
    StepKey,
    StepsExpanded,
    StepStarted,
    StepStatus,
)
from swamp_orch.definitions.inputs import sensitive_texts
from swamp_orch.definitions.values import Job, ModelDefinition, Step, Workflow
from swamp_orch.engine import records, run_reports
from swamp_orch.engine.approvals import ApprovalOrder, ApprovalWork, Decision
from swamp_orch.engine.children import ChildRuns, NestedOrder, NestedWork, Upward
from swamp_orch.engine.feed import RunFeed
from swamp_orch.engine.flights import Flights
from swamp_orch.engine.lineage import Child, Parent
from swamp_orch.engine.orders import Order, Orders, TypeNotFixed
from swamp_orch.engine.placing import Slot
from swamp_orch.engine.revival import Found
from swamp_orch.engine.steps import StepState, StepWork
from swamp_orch.engine.workflow_reports import RunReports
from swamp_orch.expressions.secret import mask_tree
from swamp_orch.store.bookkeeping import from_iso, iso
from swamp_orch.store.errors import NO_ROOM
from swamp_orch.store.interface import Batch, Committed, NewRecord, Store
from swamp_orch.store.trio_store import answer as answered
from swamp_orch.store.trio_store import commit
from swamp_proto.errors import SwampError
from swamp_proto.limits import BATCH_RECORDS_MAX, STORE_RETRY_S
from swamp_proto.messages.dispatch import LogBlock
from swamp_worker.execution.interface import Executor

SUSPENDED: Final = "suspended"  # a run of which only steps that wait for people are left


class Parts(Protocol):
    """What runs and steps need from the engine."""

    store: Store
    flights: Flights
    executor: Executor
    clock_ms: Callable[[], int]

    async def slot(self, order: Order, state: StepState, run: "Run") -> Slot: ...

    def slot_nowait(self, order: Order, state: StepState, run: "Run") -> Slot | None: ...

    def taken_slot(self, holder: str, worker: str | None) -> Slot: ...

    children: ChildRuns
    serves: bool  # an orchestrator, which every client asks

    async def nested_request(self, run: "Run", order: NestedOrder, parent: Parent) -> "RunRequest": ...


Work = StepWork | NestedWork | ApprovalWork
Task = Order | NestedOrder | ApprovalOrder
"""What a step may ask for; None: it has ended already."""


@attrs.frozen
class RunRequest:
    """What to run. Everything needed to go on after a restart is in the run's record."""

    id: str
    kind: str  # workflow, method
    workflow: Workflow
    definition: str  # the YAML text the workflow was read from; empty for a method run
    inputs: Mapping[str, Any]  # as given and checked
    stored_inputs: Mapping[str, Any]  # the same with sensitive values as `***`
    tags: Mapping[str, str]
    timeout_s: float | None
    owner: Mapping[str, Any]  # process that runs it
    parent: Parent | None = None  # of a child run
    sensitive: tuple[str, ...] = attrs.field(
        repr=False, default=()
    )  # values to mask, from what it was started by


class Run:
    """One execution of a workflow, from `RunBegun` to its last record."""

    def __init__(self, parts: Parts, orders: Orders, request: RunRequest) -> None:
        self._parts = parts
        self._orders = orders
        self.request = request
        self.id = request.id
        self.feed = RunFeed(parts.clock_ms)
        self.plan = RunPlan(request.workflow)
        self.status = "running"
        self.error = ""
        self.started_ms = 0
        self.ended_ms = 0
        self.resumed_ms = 0  # by a person, after it had ended
        self._failed_step: StepKey | None = None
        self._version = 0
        self._owned = False  # durably: nothing else may be recorded before
        self._recording = trio.Lock()  # a cancel, the beginning and the end may come together
        self._steps: dict[StepKey, StepState] = {}
        self._work: dict[StepKey, Work] = {}
        self.performed = run_reports.Performed(request)
        self._expanding = 0
        self.upward: Upward | None = None  # of a child run
        self._declared = {(job.name, step.name): step for job in request.workflow.jobs for step in job.steps}
        self._paths = {
            (job.name, step.name): ("jobs", j, "steps", s)
            for j, job in enumerate(request.workflow.jobs)
            for s, step in enumerate(job.steps)
        }
        self._items: dict[StepKey, tuple[Step, Any]] = {}
        self._jobs: dict[str, dict[str, Any]] = {
            job.name: {"status": "waiting"} for job in request.workflow.jobs
        }
        self._nursery: trio.Nursery  # steps
        self._watchers: trio.Nursery  # deadlines; ends with the steps
        self._outcome: RunEnded | None = None
        self.reports = RunReports(parts, orders, self)
        self._cancel_reason = ""
        self._timed_out = False
        self._restored: tuple[Effect, ...] | None = None
        self._found: dict[StepKey, Lease] = {}
        self._untold: list[StepState] = []  # steps whose end a previous process told
        self.over = trio.Event()

    def restore(self, found: Found) -> None:
        """Take up what the records of a previous process say; then `execute` goes on from there."""
        attributes, expansions, leases = found.attributes, found.expansions, found.leases
        self._version, self.started_ms = found.record.version, from_iso(attributes["startedAt"])
        self._cancel_reason = attributes.get("cancelReason", "")
        self.resumed_ms = from_iso(attributes["resumedAt"]) if "resumedAt" in attributes else 0
        for (job, template), items in expansions.items():
            self._take_items(job, template, items)
        for key, row in found.steps.items():
            state = self.state(key)
            state.restore(row)
            if state.bundle:
                self._orders.code.take_recorded(self.id, state.model_type, state.bundle)
            state.records = tuple(found.made.get(state.dispatch, ()))
            if state.status is StepStatus.RUNNING:
                if state.dispatch in leases:
                    self._found[key] = leases[state.dispatch]
                else:
                    state.status = StepStatus.WAITING  # it was to be placed again
        self.reports.restore(found.reports, leases)
        self.reports.cancel_reason = attributes.get("reportsCancelReason", "")
        statuses = {key: state.status for key, state in self._steps.items()}
        self._untold = [state for state in self._steps.values() if state.status in ENDS]
        for state in sorted(self._untold, key=lambda one: one.ended_ms):
            if state.ended_ms > self.resumed_ms:  # else the end before told of it
                self.performed.ended(state)
        self.plan, self._restored = RunPlan.rebuild(
            self.request.workflow,
            {key: tuple(items) for key, items in expansions.items()},
            statuses,
            allowed=[key for key, state in self._steps.items() if state.allowed],
            cancel=CancelAsked(self._cancel_reason) if self._cancel_reason else None,
        )
        self._announce()

    # ── the whole ───────────────────────────────────────────────────────────────────────────────────────────────────
    async def begin(self, *also: NewRecord) -> None:
        """Make the run durable, together with `also`; only then may its id be told to anybody."""
        self.started_ms = self._parts.clock_ms()
        async with self._recording:
            done = await commit(self._parts.store, Batch((self._record(expect=0), *also)))
            self._version, self._owned = done.records[0].version, True
        self._announce()

    async def claim(self) -> None:
        """After `restore`: this process runs it now, durably. Raises Conflict when another one took it."""
        async with self._recording:
            done = await commit(self._parts.store, Batch((self._record(expect=self._version),)))
            self._version, self._owned = done.records[0].version, True

    def _announce(self) -> None:
        workflow = self.request.workflow
        self.feed.emit(
            "run_started",
            runId=self.id,
            run=self.request.kind,
            workflowId=workflow.id,
            workflowName=workflow.name,
            jobs=[{"name": job.name, "steps": [step.name for step in job.steps]} for job in workflow.jobs],
        )

    async def execute(self) -> None:
        """Until every step has ended and the run's end is durable."""
        async with trio.open_nursery() as watchers:
            self._watchers = watchers
            if self.request.timeout_s is not None:
                watchers.start_soon(self._watch_deadline, self.request.timeout_s)
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for state, lease in self._found.items():
                    self._start(state, lease)
                await self._apply(self.plan.handle(RunBegun()) if self._restored is None else self._restored)
            watchers.cancel_scope.cancel()
        await self._finish()

    async def _watch_deadline(self, timeout_s: float) -> None:
        due_ms = (self.resumed_ms or self.started_ms) + round(timeout_s * 1000)  # also after a restart
        await trio.sleep(max(0.0, (due_ms - self._parts.clock_ms()) / 1000))
        self._timed_out = True
        await self._cancel(f"the run timed out after {timeout_s:g} s", self.keep)

    async def ask_cancel(self, reason: str) -> None:
        """Durable before it is acknowledged; the steps then end by themselves."""
        await self._cancel(reason or "cancelled", lambda batch: commit(self._parts.store, batch))

    async def end_soon(self, reason: str) -> None:
        """A cancel that nobody waits for: it is carried through whatever the disk says."""
        await self._cancel(reason, self.keep)

    async def _cancel(self, reason: str, record: Callable[[Batch], Awaitable[Committed]]) -> None:
        async with self._recording:
            if self.ended_ms or self._cancel_reason or self.reports.cancel_reason or not self._owned:
                return  # it ended first, or is asked already, or did not even begin
            only_reports = self._outcome is not None
            if only_reports:
                self.reports.ask_cancel(reason)
            about = "" if only_reports else reason
            done = await record(Batch((self._record(expect=self._version, cancel_reason=about),)))
            self._version, self._cancel_reason = done.records[0].version, about
        if not only_reports:
            await self._advance(CancelAsked(reason))

    async def keep(self, batch: Batch, *, large: bool = False) -> Committed:
        """Commit what must be recorded. While there is no room for it, it is tried again; who watches is told once."""
        told = False
        while True:
            try:
                if not large:
                    return await commit(self._parts.store, batch)
                # What does not fit a row is written as a blob, which is not for the loop.
                return await answered(await trio.to_thread.run_sync(self._parts.store.submit, batch))
            except NO_ROOM as error:
                if not told:
                    self.warn(f"{error.message}; it is tried again until there is")
                told = True
                await trio.sleep(STORE_RETRY_S)

    async def _finish(self) -> None:
        await self._parts.children.settle(self)
        assert self._outcome is not None
        status, error = self._outcome.status.value, ""
        if self._timed_out:
            status, error = RunStatus.FAILED.value, self._cancel_reason
        elif self._outcome.status is RunStatus.CANCELLED:
            error = self._cancel_reason
        elif self._outcome.failed_step is not None:
            error = self._steps[self._outcome.failed_step].error
        if self._cancel_reason:
            self.reports.ask_cancel(self._cancel_reason)
        await self.reports.make(status, error)
        async with self._recording:
            self.status, self.error, self._failed_step = status, error, self._outcome.failed_step
            await self._record_end()

    async def _record_end(self) -> None:
        self.ended_ms = self._parts.clock_ms()
        document = self.document()
        made = list(self.performed.records(self))
        report = run_reports.summary_of(self.request, document)
        if report is not None:
            made += run_reports.summary_records(self.request, report)
        while len(made) >= BATCH_RECORDS_MAX:
            await self.keep(Batch(tuple(made[:BATCH_RECORDS_MAX])), large=True)
            made = made[BATCH_RECORDS_MAX:]
        await self.keep(Batch((self._record(expect=self._version), *made)), large=True)
        for shown in (*await self.reports.made(), *(() if report is None else (report,))):
            self.feed.emit(
                "report",
                name=shown.name,
                scope=shown.scope.value,
                markdown=shown.markdown,
                json=dict(shown.json),
            )
        ended: dict[str, Any] = {
            "runId": self.id,
            "status": self.status,
            "counts": self.counts(),
            "durationMs": self.ended_ms - self.started_ms,
            **self.remains(),
            "run": document,
        }
        if self.error:
            ended["error"] = self.error
        if self._failed_step is not None:
            ended["failedStep"] = self._failed_step.step
        self.feed.emit("run_ended", **ended)
        self.feed.end()
        self.over.set()

    async def abort(self, error: str) -> None:
        """A fault of swamp ended it: say so, durably where that is still possible."""
        self.status, self.error, self.ended_ms = RunStatus.FAILED.value, error, self._parts.clock_ms()
        # Where the store itself is the fault, the disk still says `running`, and the next start takes the run over.
        with suppress(SwampError):
            await self.keep(Batch((self._record(expect=self._version),)))
        duration_ms = self.ended_ms - self.started_ms
        self.feed.emit(
            "run_ended",
            runId=self.id,
            status=self.status,
            counts=self.counts(),
            durationMs=duration_ms,
            error=error,
            left=None,
            run=self.document(),
        )
        self.feed.end()
        self.over.set()

    # ── the plan's effects ──────────────────────────────────────────────────────────────────────────────────────────
    async def _advance(self, event: Event) -> None:
        """Tell the plan what happened and perform what it answers."""
        await self._apply(self.plan.handle(event))

    async def _apply(self, effects: tuple[Effect, ...]) -> None:
        unstarted = [effect for effect in effects if isinstance(effect, SkipStep | FailStep | DropStep)]
        for at in range(0, len(unstarted), BATCH_RECORDS_MAX):
            states = [self._unstarted(effect) for effect in unstarted[at : at + BATCH_RECORDS_MAX]]
            batch = tuple(
                records.step_record(self.origin(state), state.attributes(self.id)) for state in states
            )
            await self.keep(Batch(batch))
        for effect in effects:
            match effect:
                case StartStep(key=key):
                    self._start(key, None)
                case SkipStep(key=key) | FailStep(key=key) | DropStep(key=key):
                    self._emit_end(self._steps[key])
                case CancelStep(key=key):
                    if (work := self._work.get(key)) is not None:
                        work.ask_cancel(self._cancel_reason)
                case ExpandStep(job=job, template=template):
                    self._nursery.start_soon(self._expand, job, template)
                case JobStarted(job=job):
                    self._jobs[job] = {"status": "running", "startedMs": self._parts.clock_ms()}
                    self.feed.emit("job_started", job=job)
                    self._tell_again(job)
                    self._watch_job(job)
                case JobEnded(job=job, status=status):
                    self._end_job(job, status.value)
                case RunEnded():
                    self._outcome = effect

    def _tell_again(self, job: str) -> None:
        """Whoever watches this run in this process is told what ended before."""
        for state in self._untold:
            if state.key.job == job:
                self._emit_end(state)
        self._untold = [state for state in self._untold if state.key.job != job]

    def _unstarted(self, effect: SkipStep | FailStep | DropStep) -> StepState:
        """A step that ends without having been asked to start."""
        state = self.state(effect.key)
        state.ended_ms = self._parts.clock_ms()
        match effect:
            case SkipStep():
                state.status, state.reason = StepStatus.SKIPPED, effect.reason
            case FailStep():
                state.status, state.error, state.allowed = StepStatus.FAILED, effect.reason, effect.allowed
            case DropStep():
                state.status, state.error = StepStatus.CANCELLED, effect.reason
        return state

    def state(self, key: StepKey) -> StepState:
        found = self._steps.get(key)
        if found is None:
            step, item = self._items.get(key) or (self._declared[key.job, key.step], None)
            found = self._steps[key] = StepState(key, step, item)
        return found

    async def _expand(self, job: str, template: str) -> None:
        self._expanding += 1
        try:
            await self._expand_now(job, template)
        finally:
            self._expanding -= 1
        await self.weigh()

    async def _expand_now(self, job: str, template: str) -> None:
        try:
            items = self._orders.expand(self, job, self._declared[job, template])
        except SwampError as error:
            await self._advance(ExpansionFailed(job, template, str(error)))
            return
        self._take_items(job, template, items)
        expansion = records.expansion_record(
            self.origin(self.state(StepKey(job, template))), template, mask_tree(items)
        )
        del self._steps[StepKey(job, template)]
        await self.keep(Batch((expansion,)))
        await self._advance(StepsExpanded(job, template, tuple(items)))

    def _take_items(self, job: str, template: str, items: Mapping[str, Any]) -> None:
        for name, item in items.items():
            self._items[StepKey(job, name)] = (self._declared[job, template], item)

    def _watch_job(self, name: str) -> None:
        job = self._job(name)
        if job.timeout_s is not None:
            self._watchers.start_soon(self._watch_job_deadline, job, job.timeout_s)

    async def _watch_job_deadline(self, job: Job, timeout_s: float) -> None:
        await trio.sleep(timeout_s)
        for key, work in list(self._work.items()):
            if key.job == job.name:
                work.ask_cancel(f"job {job.name!r} timed out after {timeout_s:g} s", CancelKind.TIMEOUT)

    def _job(self, name: str) -> Job:
        return next(job for job in self.request.workflow.jobs if job.name == name)

    def _end_job(self, name: str, status: str) -> None:
        job = self._jobs[name]
        job["status"] = status
        job["durationMs"] = self._parts.clock_ms() - job["startedMs"] if "startedMs" in job else 0
        self.feed.emit("job_ended", job=name, status=status, durationMs=job["durationMs"])

    # ── a step ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def _start(self, key: StepKey, lease: Lease | None) -> None:
        """Begin a step, or go on with one whose lease a previous process left."""
        state = self.state(key)
        state.queued_ms = state.queued_ms or self._parts.clock_ms()
        order: Task | SwampError | TypeNotFixed | None
        try:
            order = self._orders.make(self, state)
        except (SwampError, TypeNotFixed) as error:
            order = error
        work = self._work[key] = self._work_for(order, state)
        if self._cancel_reason:
            work.ask_cancel(self._cancel_reason)
        if isinstance(order, Order) and isinstance(work, StepWork) and lease is None:
            try:
                work.begin(order)
            except SwampError as error:
                order = error
        self._nursery.start_soon(self._step, state, work, order, lease)

    def _work_for(self, order: Task | SwampError | TypeNotFixed | None, state: StepState) -> Work:
        if isinstance(order, NestedOrder):
            return NestedWork(self._parts, self, state)
        if isinstance(order, ApprovalOrder):
            return ApprovalWork(self._parts, self, state)
        return StepWork(self._parts, self, state)

    async def _step(
        self,
        state: StepState,
        work: Work,
        order: Task | SwampError | TypeNotFixed | None,
        lease: Lease | None,
    ) -> None:
        recorded = False
        try:
            if isinstance(order, TypeNotFixed):
                order = await self._fix(state, order.definition)
            if isinstance(order, SwampError):
                raise order
            if isinstance(order, Order) and lease is not None:
                assert isinstance(work, StepWork)
                await work.resume(order, lease)
            elif order is not None:
                await self._advance(StepStarted(state.key))
                await work.run(order)  # type: ignore[arg-type] # `_work_for` chose it for this order
            recorded = order is not None
        except SwampError as error:
            state.status, state.error, state.error_code = StepStatus.FAILED, _told(error), error.error_code
            state.allowed = state.step.allow_failure
            state.ended_ms = self._parts.clock_ms()
        self.performed.ended(state)
        if not recorded:
            state.ended_ms = state.ended_ms or self._parts.clock_ms()
            await self.keep(Batch((records.step_record(self.origin(state), state.attributes(self.id)),)))
        self._emit_end(state)
        del self._work[state.key]
        await self._advance(StepEnded(state.key, state.status, state.allowed, state.reason or state.error))
        await self.weigh()

    # ── people and children ─────────────────────────────────────────────────────────────────────────────────────────
    async def weigh(self) -> None:
        """Whether nothing goes on but waiting for people: then the run is suspended, durably, and says so."""
        if self.ended_ms or self._waits_for_people() == (self.status == SUSPENDED):
            return
        async with self._recording:
            if self.ended_ms or self._waits_for_people() == (self.status == SUSPENDED):
                return
            self.status = "running" if self.status == SUSPENDED else SUSPENDED
            done = await self.keep(Batch((self._record(expect=self._version),)))
            self._version = done.records[0].version
        if self.status == SUSPENDED:
            self.feed.emit("run_suspended", runId=self.id, approvals=self.approvals(), run=self.document())
        if self.upward is not None:
            self.upward.weigh()

    def weigh_soon(self) -> None:
        self._nursery.start_soon(self.weigh)

    def _waits_for_people(self) -> bool:
        works = self._work.values()
        return bool(works) and not self._expanding and all(work.waits_for_person for work in works)

    def approvals(self) -> list[dict[str, Any]]:
        """What people are asked, here and in nested workflows."""
        found: list[dict[str, Any]] = []
        for key, work in self._work.items():
            if isinstance(work, NestedWork) and work.child is not None:
                found += work.child.approvals()
            elif isinstance(work, ApprovalWork) and work.waits_for_person:
                found.append(self._asked(self.state(key)))
        return found

    def _asked(self, state: StepState) -> dict[str, Any]:
        assert state.approval is not None
        about = state.approval.document()
        return {
            "runId": self.id,
            "workflowName": self.request.workflow.name,
            "job": state.key.job,
            "step": state.key.step,
            "prompt": about["prompt"],
            "deadlineAt": about["deadlineAt"],
        }

    def approval_asked(self, state: StepState) -> None:
        """A person is to decide about this step."""
        asked = self._asked(state)
        event = {
            **asked,
            "approval": {"runId": self.id, "workflowName": asked["workflowName"], "step": state.key.step},
        }
        del event["runId"], event["workflowName"]
        self.feed.emit("approval_waiting", **event)
        if self.upward is not None:
            self.upward.asked(event)

    def pass_on(self, state: StepState, event: Mapping[str, Any]) -> None:
        """What a run below `state` says to people."""
        event = {**event, "job": state.key.job, "step": state.key.step}
        self.feed.emit("approval_waiting", **event)
        if self.upward is not None:
            self.upward.asked(event)

    async def decide(self, key: StepKey, decision: Decision) -> bool:
        """A person decided about a step; True when that ended it, durably."""
        work = self._work.get(key)
        if not isinstance(work, ApprovalWork) or not work.decide(decision):
            return False
        await work.over.wait()
        return True

    def child_started(self, state: StepState, child: Child) -> None:
        self.feed.emit("child_started", job=state.key.job, step=state.key.step, child=child.attributes())

    def child_ended(self, state: StepState, child: Child) -> None:
        self.feed.emit("child_ended", job=state.key.job, step=state.key.step, child=child.document())

    def child_output(self, state: StepState, child: str, label: str, first: int, block: LogBlock) -> None:
        """Lines that a run below this step printed, `label` before each; `first` is the first one's number in the log of the run
        `child`."""
        where = {"job": state.key.job, "step": state.key.step}
        self.feed.emit_output(first, block, label, child, **where)
        if self.upward is not None:
            self.upward.lines(child, f"{self._label(state)} │ {label}", first, block)

    def _label(self, state: StepState) -> str:
        """How a line of this step is introduced one run further up."""
        if self.request.kind == "method":
            return f"{state.model}.{state.method}"
        return (
            state.key.step if len(self.request.workflow.jobs) == 1 else f"{state.key.job} › {state.key.step}"
        )

    @property
    def sensitive(self) -> tuple[str, ...]:
        """Values to mask in what is made of the whole run."""
        request = self.request
        return tuple(
            dict.fromkeys((*request.sensitive, *sensitive_texts(request.workflow.inputs, request.inputs)))
        )

    @property
    def depth(self) -> int:
        return 0 if self.request.parent is None else self.request.parent.depth

    @property
    def chain(self) -> tuple[str, ...]:
        """What is being run from the outermost run down to this one."""
        above = () if self.request.parent is None else self.request.parent.chain
        return (*above, self.request.workflow.name) if self.request.kind == "workflow" else above

    async def _fix(self, state: StepState, definition: ModelDefinition) -> Task | None:
        """The order of the step that first uses a type of an extension: from now on, also after a restart, the run keeps its code."""
        await trio.to_thread.run_sync(self._orders.code.fix, self.id, definition)
        order = self._orders.make(self, state)
        if state.bundle and state.status is StepStatus.WAITING:
            record = records.step_record(self.origin(state), state.attributes(self.id))
            await commit(self._parts.store, Batch((record,)))
        return order

    def where(self, job: str, step: Step) -> str:
        """File and line of a step, for errors."""
        return self.request.workflow.source.at(*self._paths[job, step.name])

    # ── what steps say ──────────────────────────────────────────────────────────────────────────────────────────────
    def origin(self, state: StepState) -> records.StepOrigin:
        workflow = self.request.workflow
        return records.StepOrigin(
            run=self.id,
            kind=self.request.kind,
            workflow=workflow.name,
            workflow_id=workflow.id,
            job=state.key.job,
            step=state.key.step,
            tags={**workflow.tags, **self.request.tags},
        )

    def step_waiting(self, state: StepState, reason: str, requirement: str) -> None:
        state.reason = reason
        self.feed.emit(
            "step_waiting", job=state.key.job, step=state.key.step, reason=reason, requirement=requirement
        )

    def step_started(self, state: StepState) -> None:
        self.feed.emit(
            "step_started",
            job=state.key.job,
            step=state.key.step,
            worker=state.worker,
            attempt=state.attempt,
            model=state.model,
            modelType=state.model_type,
            method=state.method,
            dispatchId=state.dispatch,
        )

    def step_output(self, state: StepState, first: int, block: LogBlock) -> None:
        """Lines that a step printed; the first of them has the number `first`."""
        self.feed.emit_output(first, block, job=state.key.job, step=state.key.step)
        if self.upward is not None:
            self.upward.lines(self.id, f"{self._label(state)} │ ", first, block)

    def step_progress(self, state: StepState, upload: int, here: int, of: int) -> None:
        """So many bytes of an upload of the step that takes long are here. Told and not kept."""
        self.feed.emit(
            "step_progress", job=state.key.job, step=state.key.step, upload=upload, bytes=here, of=of
        )

    def warn(self, message: str, state: StepState | None = None) -> None:
        where = {} if state is None else {"job": state.key.job, "step": state.key.step}
        self.feed.emit("warning", message=message, **where)

    def _emit_end(self, state: StepState) -> None:
        ended: dict[str, Any] = {
            "job": state.key.job,
            "step": state.key.step,
            "status": state.status.value,
            "worker": state.worker,
            "attempts": state.attempt,
            "durationMs": max(0, state.ended_ms - state.started_ms) if state.started_ms else 0,
            "records": list(state.records),
        }
        if state.error:
            ended["error"] = state.error
        if state.reason:
            ended["reason"] = state.reason
        if state.allowed:
            ended["allowedFailure"] = True
        self.feed.emit("step_ended", **ended)

    # ── the run as a value ──────────────────────────────────────────────────────────────────────────────────────────
    @property
    def left(self) -> int | None:
        """Processes left by all steps: 0, or None where that is not known."""
        counts = [state.left for state in self._steps.values()]
        return None if any(count is None for count in counts) else sum(count or 0 for count in counts)

    def remains(self) -> dict[str, Any]:
        """What an end says of processes: `left`, and where that is unknown, `endsBy`: the instant by which none is."""
        return {"left": self.left} | ({} if self.ends_by_ms is None else {"endsBy": iso(self.ends_by_ms)})

    @property
    def ends_by_ms(self) -> int | None:
        """Where it is unknown how many processes are left: the instant by which none is."""
        known = [state.ends_by_ms for state in self._steps.values() if state.left is None]
        return max((instant for instant in known if instant), default=None)

    def counts(self) -> dict[str, int]:
        found = {"succeeded": 0, "failed": 0, "skipped": 0, "cancelled": 0}
        for state in self._steps.values():
            if state.status.value in found:
                found[state.status.value] += 1
        return found

    def _to_come(self) -> Iterator[StepState]:
        """Steps nothing is known of yet, for who looks at a run at work."""
        if self.ended_ms:
            return
        expanded = {(key.job, step.name) for key, (step, _) in self._items.items()}
        for (job, name), step in self._declared.items():
            if StepKey(job, name) not in self._steps and (job, name) not in expanded:
                yield StepState(StepKey(job, name), step)

    def places(self) -> dict[StepKey, tuple[int, int]]:
        """Where each step stands in its job, and in its fan-out."""
        items = {key: number for number, key in enumerate(self._items)}
        return {
            key: (
                int(self._paths[key.job, (self._items.get(key) or (state.step,))[0].name][3]),
                items.get(key, 0),
            )
            for key, state in self._steps.items()
        }

    def states(self) -> tuple[StepState, ...]:
        return tuple(self._steps.values())

    def attributes(self, cancel_reason: str = "") -> dict[str, Any]:
        """The run record's attributes; `cancel_reason`: as it is about to be asked for."""
        request = self.request
        found: dict[str, Any] = {
            "runId": self.id,
            "kind": request.kind,
            "workflowName": request.workflow.name,
            "workflowId": request.workflow.id,
            "status": self.status,
            "startedAt": iso(self.started_ms),
            "inputs": dict(request.stored_inputs),
            "tags": dict(request.tags),
            "owner": dict(request.owner),
        }
        if request.parent is not None:
            found["parent"] = request.parent.attributes()
        if request.timeout_s is not None:
            found["timeoutS"] = request.timeout_s
        if self.resumed_ms:
            found["resumedAt"] = iso(self.resumed_ms)
        if self._cancel_reason or cancel_reason:
            found["cancelReason"] = self._cancel_reason or cancel_reason
        if self.reports.cancel_reason and not self._cancel_reason:
            found["reportsCancelReason"] = self.reports.cancel_reason
        if self.ended_ms:
            found |= {
                "endedAt": iso(self.ended_ms),
                "counts": self.counts(),
                "durationMs": self.ended_ms - self.started_ms,
            }
        if self.error:
            found["error"] = self.error
        if self._failed_step is not None:
            found["failedStep"] = self._failed_step.step
        if request.definition:
            found["definition"] = request.definition
        else:
            found["methodName"] = request.workflow.jobs[0].steps[0].name
        return found

    def document(self) -> dict[str, Any]:
        """The run document: what `workflow run --json` ends with and `run.get` answers."""
        by_job: dict[str, list[dict[str, Any]]] = {}
        for state in (*self._steps.values(), *self._to_come()):
            by_job.setdefault(state.key.job, []).append(state.document())
        now_ms = self._parts.clock_ms()
        found: dict[str, Any] = {
            "id": self.id,
            "kind": self.request.kind,
            "workflowId": self.request.workflow.id,
            "workflowName": self.request.workflow.name,
            "inputs": dict(self.request.stored_inputs),
            "status": self.status,
            "startedAt": iso(self.started_ms),
            "completedAt": iso(self.ended_ms) if self.ended_ms else None,
            "duration": (self.ended_ms or now_ms) - self.started_ms,
            "counts": self.counts(),
            "jobs": [
                {
                    "name": name,
                    "status": job["status"],
                    "duration": job.get("durationMs", now_ms - job.get("startedMs", now_ms)),
                    "steps": by_job.get(name, []),
                }
                for name, job in self._jobs.items()
            ],
        }
        if self.request.parent is not None:
            found["parent"] = self.request.parent.document()
        if self.error:
            found["error"] = self.error
        if self._failed_step is not None:
            found["failedStep"] = self._failed_step.step
        return found

    def _record(self, expect: int, cancel_reason: str = "") -> NewRecord:
        name = self.request.workflow.name
        return records.run_record(self.id, name, self.attributes(cancel_reason), expect)


def _told(error: SwampError) -> str:
    return f"{error.message} ({error.hint})" if error.hint else error.message
