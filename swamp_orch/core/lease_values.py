"""Leases as values: what the record of a dispatch says, and what the lease machine asks to be done.

A lease is the durable record of one dispatch: one attempt to run one step on one executor. Its fence grows
per step; nothing under an ended lease is admitted. Decisions are `swamp_orch.core.leases`'s; here are only
the words.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

import attrs

from swamp_orch.definitions.values import OnWorkerLost
from swamp_orch.store.bookkeeping import from_iso, iso
from swamp_proto.errors import RefusalCode
from swamp_proto.limits import GRACE_S_DEFAULT


class LeaseState(StrEnum):
    ACTIVE = "active"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class Phase(StrEnum):
    """How far an active lease is; an ended one keeps its last."""

    GRANTED = "granted"
    RUNNING = "running"
    SUSPENDED = "suspended"
    CANCELLING = "cancelling"


class CancelKind(StrEnum):
    CANCEL = "cancel"
    TIMEOUT = "timeout"


class EndReason(StrEnum):
    """Why a lease ended; a code of the record and of errors."""

    COMPLETED = "completed"
    METHOD_FAILED = "method_failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    WRITE_THEN_DROP = "write_then_drop"
    WORKER_LOST = "worker_lost"  # the grace window elapsed
    WORKER_RESTARTED = "worker_restarted"
    ABANDONED = "abandoned"  # its holder gave it up, or came back without it
    ORCHESTRATOR_RESTARTED = "orchestrator_restarted"
    TOKEN_REVOKED = "token_revoked"  # noqa: S105 - a code
    TOKEN_EXPIRED = "token_expired"  # noqa: S105 - a code
    NOT_SENT = "not_sent"
    NOT_STARTED = "not_started"  # never accepted by an instance that came back without it
    BUSY = "busy"
    DRAINING = "draining"
    DRAINED = "drained"  # ended for a drain while it had not written
    REFUSED = "refused"
    ON_WORKER_LOST = "on_worker_lost"  # the author wants a lost worker to fail the step
    LOST_TOO_OFTEN = "lost_too_often"


NOT_RUN: Final = frozenset({EndReason.NOT_SENT, EndReason.BUSY, EndReason.DRAINING})
"""Ends of dispatches that certainly never started: they are no attempt of the step."""


_OUTCOMES: Final[Mapping[EndReason, str]] = {
    EndReason.METHOD_FAILED: "failed",
    EndReason.CANCELLED: "cancelled",
    EndReason.TIMED_OUT: "timed_out",
}


@attrs.frozen
class Lease:
    """One dispatch, as its record says it. Instants `_ms` are wall milliseconds."""

    dispatch: str
    fence: int
    attempt: int
    run: str
    workflow: str
    job: str
    step: str
    model_type: str
    model_id: str
    method: str
    model_name: str = ""
    worker: str | None = None  # None: loopback
    instance: str = ""
    token_name: str = ""
    mint_id: str = ""
    link: int = 0  # epoch of the link it lives on
    granted_ms: int = 0
    grace_s: float = GRACE_S_DEFAULT
    on_worker_lost: OnWorkerLost = OnWorkerLost.RULE
    losses: int = 0  # of the step, before this dispatch
    credential_hash: str = ""
    state: LeaseState = LeaseState.ACTIVE
    phase: Phase = Phase.GRANTED
    accepted: bool = False
    wrote: bool = False
    first_write: str = ""  # the record it wrote first
    first_write_ms: int | None = None
    running_ms: int | None = None
    suspended_ms: int | None = None
    deadline_ms: int | None = None
    resets: int = 0  # boots that extended it
    cancel_kind: CancelKind | None = None
    cancel_reason: str = ""
    cancel_ms: int | None = None
    reason: EndReason | None = None
    cause: str = ""  # what happened to the holder, one sentence
    error: str = ""
    ended_ms: int | None = None
    replace_ms: int | None = None  # its step is not placed again before, unless known dead earlier
    empty_ms: int | None = None  # since when its execution is known dead
    left: int | None = None  # processes counted after the end
    loss_counted: bool = False
    completed: bool = False  # its end is what its holder reported, committed with the outputs
    version: int = 0  # of its record as last known; what the next write must expect

    @property
    def holder(self) -> str:
        """For people."""
        return "the orchestrator" if self.worker is None else f"worker '{self.worker}'"

    @property
    def active(self) -> bool:
        return self.state is LeaseState.ACTIVE

    @property
    def outcome(self) -> str:
        """What the records say that were written under it while it ran; empty while nobody knows, and when it completed."""
        if self.active or self.state is LeaseState.COMPLETED:
            return ""
        return "abandoned" if self.reason is None else _OUTCOMES.get(self.reason, "abandoned")

    def to_attributes(self) -> dict[str, Any]:
        """The record's attributes, camelCase; what does not apply is left out."""
        found: dict[str, Any] = {
            "leaseId": self.dispatch,
            "dispatchId": self.dispatch,
            "fence": self.fence,
            "attempt": self.attempt,
            "workerName": self.worker,
            "runId": self.run,
            "workflowName": self.workflow,
            "jobName": self.job,
            "stepName": self.step,
            "modelType": self.model_type,
            "modelId": self.model_id,
            "methodName": self.method,
            "state": self.state.value,
            "phase": self.phase.value,
            "hasWrites": self.wrote,
            "createdAt": iso(self.granted_ms),
            "accepted": self.accepted,
            "graceS": self.grace_s,
            "onWorkerLost": self.on_worker_lost.value,
            "losses": self.losses,
            "lossCounted": self.loss_counted,
            "graceResets": self.resets,
            "completed": self.completed,
        }
        for name, text in self._texts():
            if text:
                found[name] = text
        for name, instant in self._instants():
            if instant is not None:
                found[name] = iso(instant)
        if self.worker is not None:
            found["linkEpoch"] = self.link
        if self.left is not None:
            found["left"] = self.left
        return found

    def _texts(self) -> tuple[tuple[str, str], ...]:
        return (
            ("modelName", self.model_name),
            ("instanceUuid", self.instance),
            ("tokenName", self.token_name),
            ("mintId", self.mint_id),
            ("credentialHash", self.credential_hash),
            ("firstWrite", self.first_write),
            ("cancelKind", self.cancel_kind or ""),
            ("cancelReason", self.cancel_reason),
            ("reason", self.reason or ""),
            ("cause", self.cause),
            ("error", self.error),
        )

    def _instants(self) -> tuple[tuple[str, int | None], ...]:
        return (
            ("firstWriteAt", self.first_write_ms),
            ("runningAt", self.running_ms),
            ("suspendedAt", self.suspended_ms),
            ("deadlineAt", self.deadline_ms),
            ("cancelAskedAt", self.cancel_ms),
            ("endedAt", self.ended_ms),
            ("replaceAt", self.replace_ms),
            ("emptyAt", self.empty_ms),
        )

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any], version: int = 0) -> "Lease":
        """Read a record's attributes back. Raises KeyError, TypeError or ValueError on anything else."""

        def instant(name: str) -> int | None:
            return from_iso(attributes[name]) if name in attributes else None

        return cls(
            dispatch=attributes["dispatchId"],
            fence=int(attributes["fence"]),
            attempt=int(attributes["attempt"]),
            run=attributes["runId"],
            workflow=attributes["workflowName"],
            job=attributes["jobName"],
            step=attributes["stepName"],
            model_type=attributes["modelType"],
            model_id=attributes["modelId"],
            method=attributes["methodName"],
            model_name=attributes.get("modelName", ""),
            worker=attributes["workerName"],
            instance=attributes.get("instanceUuid", ""),
            token_name=attributes.get("tokenName", ""),
            mint_id=attributes.get("mintId", ""),
            link=int(attributes.get("linkEpoch", 0)),
            granted_ms=from_iso(attributes["createdAt"]),
            grace_s=float(attributes["graceS"]),
            on_worker_lost=OnWorkerLost(attributes["onWorkerLost"]),
            losses=int(attributes["losses"]),
            credential_hash=attributes.get("credentialHash", ""),
            state=LeaseState(attributes["state"]),
            phase=Phase(attributes["phase"]),
            accepted=bool(attributes["accepted"]),
            wrote=bool(attributes["hasWrites"]),
            first_write=attributes.get("firstWrite", ""),
            first_write_ms=instant("firstWriteAt"),
            running_ms=instant("runningAt"),
            suspended_ms=instant("suspendedAt"),
            deadline_ms=instant("deadlineAt"),
            resets=int(attributes["graceResets"]),
            cancel_kind=CancelKind(attributes["cancelKind"]) if "cancelKind" in attributes else None,
            cancel_reason=attributes.get("cancelReason", ""),
            cancel_ms=instant("cancelAskedAt"),
            reason=EndReason(attributes["reason"]) if "reason" in attributes else None,
            cause=attributes.get("cause", ""),
            error=attributes.get("error", ""),
            ended_ms=instant("endedAt"),
            replace_ms=instant("replaceAt"),
            empty_ms=instant("emptyAt"),
            left=attributes.get("left"),
            loss_counted=bool(attributes["lossCounted"]),
            completed=bool(attributes["completed"]),
            version=version,
        )


# ── effects: what is to be done ─────────────────────────────────────────────────────────────────────────────
@attrs.frozen
class PersistLease:
    """Commit the lease's record, expecting `expect`; answer with `Committed` or `CommitFailed`."""

    lease: Lease

    @property
    def expect(self) -> int:
        return self.lease.version


@attrs.frozen
class AdmitWrite:
    """The write `request` may commit. `first`: together with the lease's record, expecting `lease.version`;
    answer with `Committed` or `CommitFailed`. Else guarded by `lease.version`; on a conflict ask again."""

    request: str
    lease: Lease
    first: bool


@attrs.frozen
class RefuseWrite:
    request: str
    code: RefusalCode


@attrs.frozen
class AdmitFinish:
    """Commit outputs, log, the step's record and the lease's together, expecting `expect` of the lease;
    answer with `Committed` or `CommitFailed`."""

    lease: Lease

    @property
    def expect(self) -> int:
        return self.lease.version


@attrs.frozen
class NoteFinish:
    """Tell the holder that its report is dealt with for good."""

    dispatch: str


@attrs.frozen
class RefuseFinish:
    """Tell the holder that its report came too late; keep `text` as an event."""

    dispatch: str
    text: str


@attrs.frozen
class Keep:
    """Verdict on a held dispatch: it goes on."""

    dispatch: str


@attrs.frozen
class Drop:
    """Verdict on a held dispatch, or an order: kill and reap it, report nothing but that it is empty."""

    dispatch: str


@attrs.frozen
class AskCancel:
    """Ask the holder to end it: TERM, grace, KILL."""

    dispatch: str
    worker: str | None
    reason: str


@attrs.frozen
class EndSession:
    """Close this link: its worker did not do what it must."""

    worker: str
    link: int
    reason: str


@attrs.frozen
class FreeSlot:
    """Nothing of this dispatch lives any more: its slot can be used."""

    dispatch: str
    worker: str | None


@attrs.frozen
class SlotStuck:
    """Something of this dispatch can not be killed: show it. The slot stays taken until FreeSlot."""

    dispatch: str
    worker: str | None


@attrs.frozen
class RequeueStep:
    """Place the step again, now: its old execution is dead, or never was. `counted`: its holder died under
    it; `losses` is the step's count with that. `sent`: this dispatch was an attempt. `avoid`: a worker to use
    last.
    """

    lease: Lease
    text: str
    counted: bool
    losses: int
    sent: bool
    avoid: str | None = None


@attrs.frozen
class FailStep:
    """The step fails, and its run. `left` None: unknown, and `ends_by_ms` when it is dead at the latest."""

    lease: Lease
    message: str
    left: int | None
    ends_by_ms: int | None


@attrs.frozen
class EndStep:
    """The step ends because somebody asked. `left` and `ends_by_ms` as in `FailStep`."""

    lease: Lease
    kind: CancelKind
    reason: str
    left: int | None
    ends_by_ms: int | None


Effect = (
    PersistLease
    | AdmitWrite
    | RefuseWrite
    | AdmitFinish
    | NoteFinish
    | RefuseFinish
    | Keep
    | Drop
    | AskCancel
    | EndSession
    | FreeSlot
    | SlotStuck
    | RequeueStep
    | FailStep
    | EndStep
)
