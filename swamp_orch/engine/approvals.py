"""Approvals: a step that waits for a person, with a deadline on the wall clock.

Rules that hold here:

1. That it waits, and until when, is durable before anybody is told; so is what the person decided.
2. The deadline is a stored instant (SEMANTICS §8): it passes also while no orchestrator runs, and a restart does not move it.
3. A decision that another process recorded counts: the record is looked at before the step ends by its deadline.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from swamp_orch.core.lease_values import CancelKind
from swamp_orch.core.runplan import StepStatus
from swamp_orch.engine import records
from swamp_orch.store.bookkeeping import from_iso, iso
from swamp_orch.store.interface import Batch
from swamp_proto.errors import Conflict

if TYPE_CHECKING:
    from swamp_orch.engine.runs import Parts, Run
    from swamp_orch.engine.steps import StepState

LOOK_S: Final = (
    1.0  # how soon a decision that another process recorded is seen, and a deadline that has passed
)


@attrs.frozen
class Decision:
    """What a person said."""

    approved: bool
    by: str
    at_ms: int
    reason: str = ""

    def attributes(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "approved": self.approved,
            "decidedBy": self.by,
            "decidedAt": iso(self.at_ms),
        }
        return found | ({"reason": self.reason} if self.reason else {})


@attrs.frozen
class Approval:
    """What is asked of a person, since when and until when."""

    prompt: str
    asked_ms: int
    deadline_ms: int
    decision: Decision | None = None

    def attributes(self) -> dict[str, Any]:
        """As a step's record holds it."""
        found: dict[str, Any] = {
            "approvalPrompt": self.prompt,
            "approvalAskedAt": iso(self.asked_ms),
            "approvalDeadlineAt": iso(self.deadline_ms),
        }
        return found | ({"approvalDecision": self.decision.attributes()} if self.decision else {})

    def document(self) -> dict[str, Any]:
        """As a run document shows it."""
        found: dict[str, Any] = {
            "prompt": self.prompt,
            "askedAt": iso(self.asked_ms),
            "deadlineAt": iso(self.deadline_ms),
        }
        return found | ({"decision": self.decision.attributes()} if self.decision else {})


def approval_of(row: Mapping[str, Any]) -> Approval | None:
    """The approval a step's record tells of."""
    if "approvalPrompt" not in row:
        return None
    said = row.get("approvalDecision")
    decision = said and Decision(
        said["approved"], said["decidedBy"], from_iso(said["decidedAt"]), said.get("reason", "")
    )
    return Approval(
        row["approvalPrompt"],
        from_iso(row["approvalAskedAt"]),
        from_iso(row["approvalDeadlineAt"]),
        decision or None,
    )


@attrs.frozen
class ApprovalOrder:
    """What a step of this kind asks for."""

    prompt: str
    timeout_s: float


class ApprovalWork:
    """One such step, until it is decided, cancelled or too late."""

    def __init__(self, parts: "Parts", run: "Run", state: "StepState") -> None:
        self._parts = parts
        self._run = run
        self._state = state
        self._news = trio.Event()
        self._version = 0
        self._cancel_reason = ""
        self._cancel_kind = CancelKind.CANCEL
        self.waits_for_person = False
        self.over = trio.Event()

    def ask_cancel(self, reason: str, kind: CancelKind = CancelKind.CANCEL) -> None:
        if not self._cancel_reason:
            self._cancel_reason, self._cancel_kind = reason, kind
            self._news.set()

    def decide(self, decision: Decision) -> bool:
        """Take a decision; False when there was one before, or the step has ended."""
        approval = self._state.approval
        if approval is None or approval.decision is not None or self.over.is_set() or self._cancel_reason:
            return False
        self._state.approval = attrs.evolve(approval, decision=decision)
        self._news.set()
        return True

    async def run(self, order: ApprovalOrder) -> None:
        """Until the step has ended and that is durable."""
        state = self._state
        if state.approval is None:
            now_ms = self._parts.clock_ms()
            state.approval = Approval(order.prompt, now_ms, now_ms + round(order.timeout_s * 1000))
            state.started_ms = now_ms
        state.status, state.reason = StepStatus.RUNNING, ""
        try:
            if not self._ready():
                self._version = await self._save(None)
                self._run.approval_asked(state)
                self.waits_for_person = True
                await self._run.weigh()
                await self._wait()
            self.waits_for_person = False
            await self._end()
        finally:
            self.waits_for_person = False
            self.over.set()

    def _ready(self) -> bool:
        approval = self._state.approval
        assert approval is not None
        late = self._parts.clock_ms() >= approval.deadline_ms
        return bool(self._cancel_reason or approval.decision is not None or late)

    async def _wait(self) -> None:
        while not self._ready():
            with trio.move_on_after(LOOK_S):  # the wall clock may be set
                await self._news.wait()
            if not self._news.is_set():
                await self._look()

    async def _look(self) -> None:
        """What another process recorded. The engine of an orchestrator hears of decisions itself."""
        state = self._state
        if self._parts.serves and not self._ready():
            return
        record, row = await trio.to_thread.run_sync(
            records.read_step, self._parts.store, self._run.id, state.key.job, state.key.step
        )
        self._version = record.version
        found = approval_of(row)
        if found is not None and found.decision is not None and not self._cancel_reason:
            state.approval = found

    async def _end(self) -> None:
        state = self._state
        while True:
            if self._version and self._cancel_reason == "":
                await self._look()
            self._settle()
            try:
                await self._save(self._version or None)
            except Conflict:  # somebody decided at this very instant
                state.status = StepStatus.RUNNING
                await self._look()
                continue
            return

    def _settle(self) -> None:
        """How the step ends, by what is known now."""
        state, approval = self._state, self._state.approval
        assert approval is not None
        state.ended_ms = self._parts.clock_ms()
        decision = approval.decision
        if decision is not None and decision.approved:
            state.status, state.error = StepStatus.SUCCEEDED, ""
            return
        state.status = StepStatus.FAILED
        if decision is not None:
            said = f": {decision.reason}" if decision.reason else ""
            state.error, state.error_code = f"rejected by {decision.by}{said}", "rejected"
        elif self._cancel_reason:
            state.error = self._cancel_reason
            if self._cancel_kind is CancelKind.CANCEL:
                state.status = StepStatus.CANCELLED
        else:
            state.error = f"nobody decided until {iso(approval.deadline_ms)}"
            state.error_code = "approval_expired"
        state.allowed = state.status is StepStatus.FAILED and state.step.allow_failure

    async def _save(self, expect: int | None) -> int:
        state = self._state
        record = records.step_record(self._run.origin(state), state.attributes(self._run.id))
        done = await self._run.keep(Batch((attrs.evolve(record, expect=expect),)))
        return done.records[0].version
