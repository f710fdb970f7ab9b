"""One step at work: placed, leased, executed, completed; again where the rules say so.

Rules that hold here:

1. A grant is durable before anything is sent or started, an end before anybody hears of it (persist before you speak).
2. A completion commits with its outputs, its log, the step's record and the lease's end in one transaction.
3. Loopback and remote differ in who executes, nowhere else: same `Dispatch`, same `Finished`, same records.
4. What an ended lease means for the step is decided by `swamp_orch.core.leases`, not here.
"""

from collections.abc import Mapping
from concurrent.futures import Future
from hashlib import sha256
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from swamp_orch.core.lease_values import CancelKind, Lease
from swamp_orch.core.runplan import StepKey, StepStatus
from swamp_orch.definitions.values import Step
from swamp_orch.engine import records
from swamp_orch.engine.access_log import Access, access_record, secrets_told
from swamp_orch.engine.approvals import Approval, approval_of
from swamp_orch.engine.failed_reports import failures
from swamp_orch.engine.flights import Again, Flight, Gone, Reported
from swamp_orch.engine.lineage import Child
from swamp_orch.engine.orders import Order
from swamp_orch.engine.placing import Slot
from swamp_orch.engine.records import Producer, artifact
from swamp_orch.engine.run_reports import Given, given_of
from swamp_orch.engine.writes import as_blob, written_under
from swamp_orch.expressions.secret import SecretRef
from swamp_orch.store.bookkeeping import from_iso, iso
from swamp_orch.store.errors import NO_ROOM
from swamp_orch.store.interface import Appended, Batch, Committed, Content, NewRecord, Store
from swamp_orch.store.trio_store import answer as answered
from swamp_proto.errors import SwampError
from swamp_proto.limits import CANCEL_TERM_S, INLINE_CONTENT_MAX, STORE_RETRY_S
from swamp_proto.messages.dispatch import Finished, LogBlock, Outcome, Output
from swamp_worker.execution.interface import Control

if TYPE_CHECKING:
    from swamp_orch.engine.runs import Parts, Run

CREDENTIAL_BYTES: Final = 32  # of a dispatch, for the data plane
WAITING_APPROVAL: Final = "waiting_approval"  # as a step's record says that it waits for a person

STATUS_OF: Final[Mapping[Outcome, StepStatus]] = {
    Outcome.SUCCEEDED: StepStatus.SUCCEEDED,
    Outcome.FAILED: StepStatus.FAILED,
    Outcome.TIMED_OUT: StepStatus.FAILED,
    Outcome.CANCELLED: StepStatus.CANCELLED,
    Outcome.ABANDONED: StepStatus.FAILED,
}


@attrs.define(eq=False)
class StepState:
    """What is known of one concrete step; its record is made from this."""

    key: StepKey
    step: Step
    item: Any = None  # of its forEach
    status: StepStatus = StepStatus.WAITING
    attempt: int = 0  # dispatches sent
    losses: int = 0  # holder processes that died under it
    retries: int = 0  # method failures that were tried again
    fence: int = 0
    worker: str | None = None
    dispatch: str = ""
    model: str = ""
    model_type: str = ""
    method: str = ""
    bundle: str = ""  # sha256 of the code, where that is an extension's
    queued_ms: int = 0
    started_ms: int = 0
    ended_ms: int = 0
    error: str = ""
    error_code: str = ""
    reason: str = ""  # of a skip, or why it waits
    allowed: bool = False
    left: int | None = 0  # processes left after the end; None = unknown
    ends_by_ms: int | None = None  # where that is unknown: when they are dead at the latest
    avoid: tuple[str, ...] = ()  # workers that were lost under it
    records: tuple[dict[str, Any], ...] = ()
    children: dict[str, Child] = attrs.field(factory=dict)  # runs it started, by id, in that order
    approval: Approval | None = None  # of a person, that it waits or waited for
    given: Given | None = None  # to the execution that ended it, where that is to be summarised

    @property
    def shown(self) -> str:
        """Its status as records and documents say it."""
        waits = self.approval is not None and self.status is StepStatus.RUNNING
        return WAITING_APPROVAL if waits else self.status.value

    def attributes(self, run_id: str) -> dict[str, Any]:
        """The step record's attributes, camelCase; what does not apply is left out."""
        found: dict[str, Any] = {
            "runId": run_id,
            "job": self.key.job,
            "step": self.key.step,
            "status": self.shown,
            "attempt": self.attempt,
            "fence": self.fence,
            "worker": self.worker,
        }
        optional = (
            ("losses", self.losses),
            ("retries", self.retries),
            ("dispatchId", self.dispatch),
            ("modelName", self.model),
            ("modelType", self.model_type),
            ("methodName", self.method),
            ("bundle", self.bundle),
            ("queuedAt", iso(self.queued_ms) if self.queued_ms else ""),
            ("startedAt", iso(self.started_ms) if self.started_ms else ""),
            ("endedAt", iso(self.ended_ms) if self.ended_ms else ""),
            ("error", self.error),
            ("errorCode", self.error_code),
            ("reason", self.reason),
            ("allowedFailure", self.allowed),
            ("endsBy", "" if self.ends_by_ms is None else iso(self.ends_by_ms)),
            ("children", [child.attributes() for child in self.children.values()]),
            ("given", self.given.attributes if self.given is not None else None),
        )
        found.update((name, value) for name, value in optional if value)
        if self.approval is not None:
            found |= self.approval.attributes()
        return found

    def restore(self, row: Mapping[str, Any]) -> None:
        """Take up what a previous process recorded."""
        self.status = StepStatus.WAITING if row["status"] == WAITING_APPROVAL else StepStatus(row["status"])
        self.attempt, self.fence, self.worker = row["attempt"], row["fence"], row["worker"]
        self.losses, self.retries = row.get("losses", 0), row.get("retries", 0)
        self.dispatch, self.model = row.get("dispatchId", ""), row.get("modelName", "")
        self.model_type, self.method = row.get("modelType", ""), row.get("methodName", "")
        self.bundle = row.get("bundle", "")
        self.queued_ms, self.started_ms, self.ended_ms = (
            from_iso(row[name]) if name in row else 0 for name in ("queuedAt", "startedAt", "endedAt")
        )
        self.error, self.error_code = row.get("error", ""), row.get("errorCode", "")
        self.reason, self.allowed = row.get("reason", ""), row.get("allowedFailure", False)
        if "endsBy" in row:
            self.left, self.ends_by_ms = None, from_iso(row["endsBy"])
        self.given = given_of(row["given"]) if "given" in row else None
        for child in row.get("children", ()):
            self.children[child["runId"]] = Child(child["runId"], child["kind"], child["name"])
        self.approval = approval_of(row)

    def document(self) -> dict[str, Any]:
        """The step in a run document (`run.get`, `run_ended`)."""
        found: dict[str, Any] = {
            "name": self.key.step,
            "status": self.shown,
            "duration": max(0, self.ended_ms - self.started_ms) if self.started_ms else 0,
            "worker": self.worker,
            "attempts": self.attempt,
            "dataArtifacts": list(self.records),
        }
        if self.error:
            found["error"] = self.error
        if self.reason:
            found["reason"] = self.reason
        if self.allowed:
            found["allowedFailure"] = True
        if self.model:
            found |= {"modelName": self.model, "modelType": self.model_type, "methodName": self.method}
        if self.children:
            found["children"] = [child.document() for child in self.children.values()]
        if self.approval is not None:
            found["approval"] = self.approval.document()
        return found


_UNMASKED: Final = "said a secret of the step unmasked"


def unmasked(warning: str) -> bool:
    """Whether a run's warning says that an executor did not mask."""
    return _UNMASKED in warning


@attrs.define(eq=False)
class _Granting:
    """A grant on its way to the disk."""

    flight: Flight
    future: "Future[Committed]"


@attrs.frozen
class _Later:
    """The method failed, and is tried again after a pause."""

    after_s: float


class StepWork:
    """Executes one step until it has ended. `run` is called once; `ask_cancel` may come at any time."""

    waits_for_person = False
    again = "the step is placed again"  # what is said when its execution was lost

    def __init__(self, parts: "Parts", run: "Run", state: StepState) -> None:
        self._parts = parts
        self._run = run
        self._state = state
        self._waiting = trio.CancelScope()  # around the present wait, if it holds no execution
        self._control = Control()
        self._flight: Flight | None = None
        self._granting: _Granting | None = None
        self._granted = False
        self._cancel_reason = ""
        self._cancel_kind = CancelKind.CANCEL

    def ask_cancel(self, reason: str, kind: CancelKind = CancelKind.CANCEL) -> None:
        """End it: at once while it waits, by TERM, grace, KILL while it executes. A time-out ends it as failed."""
        if self._cancel_reason:
            return
        self._cancel_reason, self._cancel_kind = reason, kind
        self._waiting.cancel()
        self._control.ask_cancel(reason, CANCEL_TERM_S)
        if self._flight is not None and self._granted:
            self._parts.flights.ask_cancel(self._flight, kind, reason)

    @property
    def _cancel_status(self) -> StepStatus:
        return StepStatus.CANCELLED if self._cancel_kind is CancelKind.CANCEL else StepStatus.FAILED

    def begin(self, order: Order) -> None:
        """Go as far as is possible without waiting: where a slot is free, its grant is on its way to the disk on return."""
        if not self._cancel_reason:
            slot = self._parts.slot_nowait(order, self._state, self._run)
            if slot is not None:
                self._granting = self._grant(order, slot)

    async def run(self, order: Order) -> None:
        """Until `state` has ended and that is durable. Raises SwampError when it fails without an execution to record."""
        while True:
            granting, self._granting = self._granting, None
            if granting is None:
                slot: Slot | None = None
                with self._wait():
                    slot = await self._parts.slot(order, self._state, self._run)
                if slot is None:
                    await self._end_waiting()
                    return
                granting = self._grant(order, slot)
            try:
                again = await self._attempt(order, granting)
            except NO_ROOM as error:
                if self._granted:
                    raise
                again = self._not_granted(error)
            finally:
                flight = granting.flight
                if not self._granted or (flight.slot.worker is None and not flight.stuck):
                    flight.slot.release()  # else its lease frees it: what ran there may live on
            if again is None:
                return
            if isinstance(again, _Later):
                with self._wait():
                    await trio.sleep(again.after_s)
                if self._waiting.cancelled_caught:
                    await self._end_waiting()
                    return

    def _wait(self) -> trio.CancelScope:
        """A scope that a cancel ends; at once when one was asked for already."""
        self._waiting = trio.CancelScope()
        if self._cancel_reason:
            self._waiting.cancel()
        return self._waiting

    async def resume(self, order: Order, lease: Lease) -> None:
        """Go on with an execution that a previous process of the orchestrator granted."""
        parts = self._parts
        slot = parts.taken_slot(lease.dispatch, lease.worker)
        message = order.dispatch(lease.dispatch, attempt=lease.attempt, fence=lease.fence, resolve=False)
        told = await trio.to_thread.run_sync(secrets_told, parts.store, lease)
        secrets = await trio.to_thread.run_sync(order.secrets, self._unreadable, told)
        origin = self._run.origin(self._state)
        flight = self._flight = parts.flights.reopen(
            message, slot, lease, order, origin, self._emit_lines, secrets
        )
        flight.on_progress = self._emit_progress
        again: Again | _Later | None = None
        try:
            if lease.wrote:
                flight.written = await trio.to_thread.run_sync(written_under, parts.store, lease)
            parts.flights.found(flight)
            self._granted = True
            if self._cancel_reason:
                parts.flights.ask_cancel(flight, self._cancel_kind, self._cancel_reason)
            again = await self._until_ended(order, flight, here=False)
        finally:
            self._flight = None
            if not self._granted or (slot.worker is None and not flight.stuck):
                slot.release()
            self._close(flight)
        if isinstance(again, _Later):
            with self._wait():
                await trio.sleep(again.after_s)
        if again is not None:
            await self.run(order)

    async def _end_waiting(self) -> None:
        """Cancelled before, or between, executions."""
        state = self._state
        state.status, state.error = self._cancel_status, self._cancel_reason
        state.ended_ms = self._parts.clock_ms()
        await self._run.keep(Batch((self._record(),)))

    # ── one attempt ─────────────────────────────────────────────────────────────────────────────────────────────────
    def _grant(self, order: Order, slot: Slot) -> "_Granting":
        """Submit the grant of one attempt: lease and step, in one transaction."""
        parts, run, state = self._parts, self._run, self._state
        read: list[SecretRef] = []
        try:
            credential = "" if slot.worker is None else token_hex(CREDENTIAL_BYTES)
            message = order.dispatch(
                slot.holder,
                attempt=state.attempt + 1,
                fence=state.fence + 1,
                credential=credential,
                told=read.append,
            )
        except BaseException:
            slot.release()
            raise
        state.attempt, state.fence, state.dispatch = message.attempt, message.fence, message.dispatch
        state.worker, state.status = slot.worker, StepStatus.RUNNING
        state.started_ms, state.reason = parts.clock_ms(), ""
        flight = parts.flights.open(message, slot, order, state, run.origin(state), self._emit_lines)
        flight.on_progress = self._emit_progress
        accesses = (
            access_record(flight, Access("secret", vault=one.vault, key=one.key), state.started_ms)
            for one in read
        )
        future = parts.store.submit(Batch((*slot.handover, flight.grant_record(), self._record(), *accesses)))
        self._flight, self._granted = flight, False
        self._control = Control()
        return _Granting(flight, future)

    def _not_granted(self, error: SwampError) -> "_Later":
        """There was no room to record the grant: it never was. The step waits like any other."""
        state = self._state
        state.attempt -= 1
        state.status, state.reason = StepStatus.WAITING, error.message
        self._warn(f"{error.message}; the step waits")
        return _Later(STORE_RETRY_S)

    async def _attempt(self, order: Order, granting: "_Granting") -> "Again | _Later | None":
        """Execute and end. `Again` or `_Later` when the step is to be placed anew, None when it has ended."""
        flight = granting.flight
        try:
            await answered(granting.future)
            self._parts.flights.granted(flight)
            self._granted = True
            self._tell_started()
            if self._cancel_reason:  # asked while the grant was being made durable
                self._parts.flights.ask_cancel(flight, self._cancel_kind, self._cancel_reason)
            return await self._until_ended(order, flight, here=flight.slot.worker is None)
        finally:
            self._flight = None
            self._close(flight)

    async def _until_ended(self, order: Order, flight: Flight, *, here: bool) -> "Again | _Later | None":
        """Execute here, or follow the worker, to an end that is durable."""
        parts, state = self._parts, self._state
        if here:
            parts.flights.report(
                flight, await parts.executor.execute(flight.message, _Loopback(flight), self._control)
            )
        while True:
            end = await flight.wait()
            match end:
                case Reported():
                    later = self._retry(end.finished)
                    if await self._complete(order, flight, end, later):
                        return later
                case Again():
                    state.losses, state.avoid = (
                        end.losses,
                        (*state.avoid, *((end.avoid,) if end.avoid else ())),
                    )
                    state.attempt -= 0 if end.sent else 1
                    state.status, state.reason = StepStatus.WAITING, end.reason
                    self._warn(f"{end.reason}; {self.again}")
                    return end
                case Gone():
                    cancelled = end.cancelled is CancelKind.CANCEL
                    state.status = StepStatus.CANCELLED if cancelled else StepStatus.FAILED
                    state.error, state.error_code = end.reason, end.code
                    state.left, state.ends_by_ms = end.left, end.ends_by_ms
                    state.ended_ms = parts.clock_ms()
                    state.allowed = end.cancelled is CancelKind.TIMEOUT and state.step.allow_failure
                    await self._seal_partial(order, flight)
                    return None

    def _retry(self, finished: Finished) -> "_Later | None":
        """Whether a failure of the method is tried again, by the step's `retry`: each time after twice the pause. Not while
        something is left of it."""
        retry = self._state.step.retry
        if retry is None or finished.outcome is not Outcome.FAILED or self._cancel_reason:
            return None
        if finished.left != 0:
            return None  # it may still run: not in two places at once
        if self._state.retries >= retry.attempts:
            return None
        return _Later(retry.backoff_s * 2**self._state.retries)

    async def _complete(self, order: Order, flight: Flight, end: Reported, later: "_Later | None") -> bool:
        """Commit outputs, log, step and lease together; False when somebody ended the lease before."""
        parts, state, finished = self._parts, self._state, end.finished
        state.left, state.ends_by_ms, state.ended_ms = finished.left, None, parts.clock_ms()
        state.status = STATUS_OF[finished.outcome]
        state.error = finished.error or ""
        if finished.outcome is Outcome.CANCELLED and self._cancel_reason:
            state.status, state.error = self._cancel_status, self._cancel_reason
        state.allowed = state.status is StepStatus.FAILED and state.step.allow_failure and later is None
        if later is not None:
            state.status, state.retries = StepStatus.WAITING, state.retries + 1
            state.reason = f"{state.error}; tried again in {later.after_s:g} s"
        else:
            self._note(order)
        done: Committed | None = None
        try:
            made = await self._outputs(order, flight, finished)
        except NO_ROOM as error:
            await parts.flights.unsaved(flight, finished, error)
        else:
            batch = (*made, self._record())
            done = await parts.flights.commit_end(flight, end, batch)
        if done is None:
            if later is not None:
                state.retries -= 1
            return False
        if later is not None:
            self._warn(state.reason)
            state.error = ""
        for failure in failures(finished.outputs):
            self._warn(flight.ingress.mask(failure))
        state.records = (*flight.written, *_described(made, done.records))
        flight.spool.remove()
        return True

    async def _outputs(self, order: Order, flight: Flight, finished: Finished) -> tuple[NewRecord, ...]:
        flight.spool.end(finished.last_line, finished.lines_lost)
        log = await flight.spool.seal(self._parts.store)
        contents = await self._contents(flight, finished)
        message = flight.message
        producer = Producer(
            flight.origin, order.model, order.model_type, message.dispatch, message.fence, order.overrides
        )
        return records.output_records(producer, finished, log, contents)

    async def _contents(self, flight: Flight, finished: Finished) -> list[Content]:
        store = self._parts.store
        contents = flight.contents if finished is flight.finished else None
        if contents is None:
            contents = [await _content(store, await _masked(flight, output)) for output in finished.outputs]
        return contents

    async def _seal_partial(self, order: Order, flight: Flight) -> None:
        """The lease ended without a report: what was streamed is kept as evidence, marked with the outcome."""
        run, state = self._run, self._state
        self._note(order)
        outcome = Outcome.CANCELLED if state.status is StepStatus.CANCELLED else Outcome.ABANDONED
        nothing = Finished(
            dispatch=flight.message.dispatch,
            fence=flight.message.fence,
            outcome=outcome,
            error=state.error,
            outputs=(),
            last_line=flight.spool.through,
            lines_lost=0,
            left=state.left,
            started_ms=state.started_ms,
            duration_ms=state.ended_ms - state.started_ms,
        )
        while True:
            try:
                made = await self._outputs(order, flight, nothing)
            except NO_ROOM:
                await trio.sleep(STORE_RETRY_S)
            else:
                break
        done = await run.keep(Batch((*made, self._record())))
        state.records = (*flight.written, *_described(made, done.records))
        flight.spool.remove()

    def _close(self, flight: Flight) -> None:
        if flight.ingress.caught:
            where = "this orchestrator" if flight.slot.worker is None else f"worker {flight.slot.worker}"
            self._warn(f"{where} {_UNMASKED} {flight.ingress.caught} times; it was masked here")
        self._parts.flights.close(flight)

    def _unreadable(self, reference: SecretRef, error: SwampError) -> None:
        text = f"secret {reference.key!r} of vault {reference.vault!r} can not be read again ({error}): what the step prints is masked by"
        trio.from_thread.run_sync(self._warn, f"{text} its executor only")

    # ── what a step tells, and what it is recorded as ───────────────────────────────────────────────────────────────
    def _record(self) -> NewRecord:
        """What is known of it now."""
        return records.step_record(self._run.origin(self._state), self._state.attributes(self._run.id))

    def _note(self, order: Order) -> None:
        """What its end is to say of the execution."""
        self._run.performed.note(order, self._state)

    def _warn(self, text: str) -> None:
        self._run.warn(text, self._state)

    def _tell_started(self) -> None:
        self._run.step_started(self._state)

    def _emit_progress(self, upload: int, here: int, of: int) -> None:
        self._run.step_progress(self._state, upload, here, of)

    def _emit_lines(self, first: int, block: LogBlock) -> None:
        self._run.step_output(self._state, first, block)


@attrs.frozen
class _Loopback:
    """The loopback's log sink: straight into the spool."""

    flight: Flight

    async def write(self, first: int, blocks: tuple[LogBlock, ...]) -> None:
        if self.flight.spool.add(first, blocks):
            await self.flight.spool.flush()


async def _masked(flight: Flight, output: Output) -> Output:
    if flight.ingress.mask and len(output.content) > INLINE_CONTENT_MAX:
        return await trio.to_thread.run_sync(flight.ingress.content, output)
    return flight.ingress.content(output)


async def _content(store: Store, output: Output) -> Content:
    content = Content(output.content, sha256(output.content).hexdigest(), len(output.content))
    if content.size <= INLINE_CONTENT_MAX:
        return content
    return await trio.to_thread.run_sync(as_blob, store, content)


def _described(made: tuple[NewRecord, ...], appended: tuple[Appended, ...]) -> tuple[dict[str, Any], ...]:
    return tuple(artifact(record, done) for record, done in zip(made, appended, strict=False))
