"""Reports of a run by the code of authors: made when its last step has ended, before its own end is recorded.

Rules that hold here:

1. A report executes like a step of the orchestrator: a dispatch under a lease, in a runner process, on a slot of the loopback; wherever
   the steps were. Its records, its log, what the run knows of it (spec `reporting`) and the end of its lease are one transaction.
2. So each is made once: after a restart, what has ended is not made again, and what had begun follows the rule for leases, as steps do.
3. Every one that was chosen leaves a record: itself, or what stands for it, with the reason; and then the run is warned.
4. Nothing of it changes how the run ends. A cancel ends those that are being made, and no more are begun.
5. It is given what the run document says, sees what the run's steps left, and changes nothing (`access_scope`).
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from swamp_orch.core.lease_values import Lease
from swamp_orch.core.runplan import ENDS, StepKey, StepStatus
from swamp_orch.definitions.values import (
    ModelDefinition,
    ModelMethodTask,
    OnWorkerLost,
    Placement,
    Step,
)
from swamp_orch.engine import records
from swamp_orch.engine.access_scope import scope_of_report
from swamp_orch.engine.failed_reports import warning
from swamp_orch.engine.flights import Flight
from swamp_orch.engine.orders import Order, Orders
from swamp_orch.engine.run_findings import choose, findings_of, may_have_reports, runs_below
from swamp_orch.engine.steps import StepState, StepWork
from swamp_orch.reports.report import LIFETIME, VERSIONS_KEPT, WORKFLOW_TYPE, Report, ReportScope
from swamp_orch.store.bookkeeping import report_record
from swamp_orch.store.interface import (
    Batch,
    Comparison,
    Content,
    Kind,
    NewRecord,
    Owner,
    OwnerType,
    Selection,
    Term,
    json_content,
)
from swamp_proto.errors import NotFound, SwampError
from swamp_proto.limits import REPORT_S, REPORT_SHOWN_MAX
from swamp_proto.messages.dispatch import Finished, Outcome, Place, Program
from swamp_worker.sdk.report_forms import JSON, failed_form, json_name, record_name, tags_of

if TYPE_CHECKING:
    from swamp_orch.engine.runs import Parts, Run

SCOPE: Final = ReportScope.WORKFLOW.value
_NO_JOB: Final = ""  # jobs have names: what a report is recorded under is no step's


class RunReports:
    """Of one run. `make` is called once; `ask_cancel` may come at any time."""

    def __init__(self, parts: "Parts", orders: Orders, run: "Run") -> None:
        self._parts = parts
        self._orders = orders
        self._run = run
        self._states: dict[str, StepState] = {}
        self._works: dict[str, ReportWork] = {}
        self._leases: dict[str, Lease] = {}
        self.cancel_reason = ""

    def restore(self, rows: Mapping[str, Mapping[str, Any]], leases: Mapping[str, Lease]) -> None:
        """Take up what a previous process recorded. What was made before a person resumed the run is made anew."""
        for name, row in rows.items():
            state = self._state(name)
            state.restore(row)
            if state.ended_ms and state.ended_ms <= self._run.resumed_ms:
                state.status, state.ended_ms, state.started_ms = StepStatus.WAITING, 0, 0
                state.error = state.error_code = ""
            elif state.bundle:
                self._orders.code.take_recorded(self._run.id, state.model_type, state.bundle)
            if state.status is StepStatus.RUNNING:
                if state.dispatch in leases:
                    self._leases[name] = leases[state.dispatch]
                else:
                    state.status = StepStatus.WAITING

    def ask_cancel(self, reason: str) -> None:
        """End those that are being made, and begin no more."""
        self.cancel_reason = self.cancel_reason or reason
        for work in tuple(self._works.values()):
            work.ask_cancel(reason)

    async def make(self, status: str, error: str) -> None:
        """All that are chosen, until each has ended and that is durable. `status` and `error` are what the run ends with."""
        if not self._states and not may_have_reports(self._run):
            return
        chosen = await trio.to_thread.run_sync(choose, self._run, self._orders)
        for note in chosen.notes:
            self._run.warn(note)
        for name, state in self._states.items():  # begun by a previous process: its choice stands
            if state.status is not StepStatus.WAITING and name not in chosen.made:
                chosen.made[name] = state.model_type
        document = findings_of(self._run, status, error)
        async with trio.open_nursery() as nursery:
            for name, reason in chosen.missing.items():
                nursery.start_soon(self._leave_out, self._state(name), reason)
            for name, type_name in chosen.made.items():
                state = self._state(name)
                state.model_type = type_name
                if state.status not in ENDS:
                    nursery.start_soon(self._one, state, document)

    def _state(self, name: str) -> StepState:
        if name not in self._states:
            step = Step(name, ModelMethodTask("", "", {}), timeout_s=REPORT_S)
            self._states[name] = StepState(StepKey(_NO_JOB, name), step)
        return self._states[name]

    # ── one ─────────────────────────────────────────────────────────────────────────────────────────────────────────
    async def _one(self, state: StepState, document: Mapping[str, Any]) -> None:
        name = state.key.step
        lease = self._leases.pop(name, None)
        try:
            order = await trio.to_thread.run_sync(self._order, state, document)
            work = self._works[name] = ReportWork(self._parts, self._run, state)
            if self.cancel_reason:
                work.ask_cancel(self.cancel_reason)
            if lease is not None:
                await work.resume(order, lease)
            else:
                await work.run(order)
        except SwampError as error:
            await self._leave_out(state, error.message)
            return
        finally:
            self._works.pop(name, None)
        if state.status is not StepStatus.SUCCEEDED:
            self._run.warn(warning(name, told(state)))

    async def _leave_out(self, state: StepState, reason: str) -> None:
        state.status, state.error, state.ended_ms = StepStatus.FAILED, reason, self._parts.clock_ms()
        await self._run.keep(
            Batch((instead(self._run, state, owner_of(self._run)), state_record(self._run, state)))
        )
        self._run.warn(warning(state.key.step, reason))

    def _order(self, state: StepState, document: Mapping[str, Any]) -> Order:
        """Blocking. Raises SwampError when there is no code for it."""
        run, name = self._run, state.key.step
        request, workflow = run.request, run.request.workflow
        model_type = self._orders.code.of_type(run.id, state.model_type)
        if name not in model_type.reports:
            raise NotFound(f"{model_type.name} has no report {name!r}")
        state.bundle = model_type.bundle
        model = ModelDefinition(
            type=WORKFLOW_TYPE,
            id=workflow.id,
            name=workflow.name,
            version=workflow.version,
            tags={**workflow.tags, **request.tags},
            global_arguments={},
            methods={},
            inputs={},
            source=workflow.source,
        )
        return self._orders.report_order(
            place=Place(run.id, workflow.name, workflow.id, _NO_JOB, name),
            model=model,
            model_type=model_type,
            method="",
            arguments=document,
            global_arguments={},
            scope=scope_of_report(model_type, workflow.id, runs_below(self._parts.store, run)),
            program=Program(model_type.bundle, model_type.entry, (), (name,)),
            placement=Placement(),
            timeout_s=REPORT_S,
            on_worker_lost=OnWorkerLost.RULE,
            sensitive=run.sensitive,
        )

    # ── what was made ───────────────────────────────────────────────────────────────────────────────────────────────
    async def made(self) -> list[Report]:
        """Those that were made, by this process or one before, in the order of their names."""
        names = sorted(name for name, state in self._states.items() if state.status is StepStatus.SUCCEEDED)
        return [await trio.to_thread.run_sync(self._read, name) for name in names]

    def _read(self, name: str) -> Report:
        store, workflow = self._parts.store, self._run.request.workflow
        terms = (
            Term("workflowRunId", Comparison.EQ, (self._run.id,)),
            Term("modelId", Comparison.EQ, (workflow.id,)),
            Term("name", Comparison.EQ, (record_name(name), json_name(name))),
        )
        text, data = "", b"{}"
        for record in store.select(Selection(terms, latest_only=False)):
            if record.size > REPORT_SHOWN_MAX:
                text = f"It is larger than what is shown here: swamp report get {name} --workflow {workflow.name}"
            elif record.name == json_name(name):
                data = record.content if record.content is not None else store.read(record)
            else:
                text = (record.content if record.content is not None else store.read(record)).decode()
        return Report(name, ReportScope.WORKFLOW, text, json.loads(data))


class ReportWork(StepWork):
    """One report, until it has ended. What it tells people is the run's to tell, when it has ended."""

    again = "it is made again"

    def _record(self) -> NewRecord:
        return state_record(self._run, self._state)

    def _note(self, order: Order) -> None: ...

    def _warn(self, text: str) -> None:
        self._run.warn(f"report {self._state.key.step}: {text}")

    def _tell_started(self) -> None: ...

    def _emit_progress(self, upload: int, here: int, of: int) -> None: ...

    def _emit_line(self, number: int, line: Any) -> None: ...

    async def _end_waiting(self) -> None:
        state = self._state
        state.status, state.error = self._cancel_status, self._cancel_reason
        state.ended_ms = self._parts.clock_ms()
        await self._run.keep(Batch((instead(self._run, state, owner_of(self._run)), self._record())))

    async def _outputs(self, order: Order, flight: Flight, finished: Finished) -> tuple[NewRecord, ...]:
        """Its two forms, or what stands for it; then what it printed, if anything."""
        flight.spool.end(finished.last_line, finished.lines_lost)
        log = await flight.spool.seal(self._parts.store)
        owner = owner_of(self._run, flight)
        made = []
        if finished.outcome is Outcome.SUCCEEDED:
            contents = await self._contents(flight, finished)
            made = [
                of_workflow(self._run, output.name, output.content_type, content, dict(output.tags), owner)
                for output, content in zip(finished.outputs, contents, strict=True)
            ]
        else:
            made = [instead(self._run, self._state, owner)]
        if log.size:
            name = f"{record_name(self._state.key.step)}-log"
            printed = of_workflow(self._run, name, "text/plain", log, {"type": "file"}, owner)
            made.append(attrs.evolve(printed, kind=Kind.FILE, spec="log", streaming=True))
        return tuple(made)


# ── records ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def state_record(run: "Run", state: StepState) -> NewRecord:
    """What is known of the making of a report; the next process goes on from it."""
    record = records.step_record(run.origin(state), state.attributes(run.id))
    return attrs.evolve(record, name=report_record(state.key.step), spec="reporting")


def owner_of(run: "Run", flight: Flight | None = None) -> Owner:
    workflow = run.request.workflow
    owner = Owner(
        OwnerType.WORKFLOW_STEP, ref=workflow.id, workflow_id=workflow.id, workflow=workflow.name, run=run.id
    )
    if flight is None:
        return owner
    return attrs.evolve(owner, dispatch=flight.dispatch, fence=flight.message.fence)


def of_workflow(
    run: "Run", name: str, content_type: str, content: Content, tags: Mapping[str, str], owner: Owner
) -> NewRecord:
    """A record that belongs to the workflow, as its built-in summary does."""
    workflow = run.request.workflow
    return NewRecord(
        model_type=WORKFLOW_TYPE,
        model_id=workflow.id,
        model_name=workflow.name,
        name=name,
        spec="report",
        content=content,
        kind=Kind.REPORT,
        content_type=content_type,
        lifetime=LIFETIME,
        keep=VERSIONS_KEPT,
        tags={**workflow.tags, **run.request.tags, **tags},
        owner=owner,
    )


def instead(run: "Run", state: StepState, owner: Owner) -> NewRecord:
    """What stands for a report that was not made."""
    name = state.key.step
    content = json_content(json.loads(failed_form(name, SCOPE, told(state))))
    tags = tags_of(name, SCOPE, failed=True)
    return of_workflow(run, json_name(name), JSON, content, tags, owner)


def told(state: StepState) -> str:
    """Why it was not made."""
    return f"not made: {state.error}" if state.status is StepStatus.CANCELLED else state.error
