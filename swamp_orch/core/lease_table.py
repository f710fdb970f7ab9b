"""The table of the step-lease machine: where a lease can be, what can happen to it, and what may follow.

Legality is here and nowhere else. Which of several lawful stages follows is decided by what was written and asked
(`swamp_orch.core.lease_ends`, `swamp_orch.core.leases`). docs/machines/lease.mmd is generated from this.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class Stage(StrEnum):
    """Where a lease is: the phases of an active one, then the ends."""

    GRANTED = "granted"  # sent, not yet accepted
    RUNNING = "running"
    SUSPENDED = "suspended"  # the link is down, grace runs
    CANCELLING = "cancelling"
    FINISHING = "finishing"  # its completion is being committed
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class Happening(StrEnum):
    ACCEPTED = "accepted"
    REFUSED = "refused"
    NOT_SENT = "not sent"
    LINK_LOST = "link lost"
    RETURNED_HOLDING = "returned holding"
    RETURNED_WITHOUT = "returned without"
    REPLACED = "returned as another process"
    GRACE_OVER = "grace over"
    FINISHED = "finish arrived"
    FINISH_COMMITTED = "finish committed"
    FINISH_UNSAVED = "finish not saved"
    ABANDONED = "abandoned"
    CANCEL_ASKED = "cancel asked"
    CANCEL_OVERDUE = "cancel overdue"
    TOKEN_ENDED = "token ended"  # noqa: S105 - not a secret
    DRAINED = "drained when safe"  # it had not written
    HOLDER_GONE = "orchestrator restarted"  # loopback only


_LOST: Final = (Stage.EXPIRED, Stage.FAILED)

TRANSITIONS: Final[Mapping[tuple[Stage, Happening], tuple[Stage, ...]]] = {
    (Stage.GRANTED, Happening.ACCEPTED): (Stage.RUNNING,),
    (Stage.GRANTED, Happening.REFUSED): (Stage.EXPIRED, Stage.FAILED),
    (Stage.GRANTED, Happening.NOT_SENT): (Stage.EXPIRED,),
    (Stage.GRANTED, Happening.LINK_LOST): (Stage.SUSPENDED,),
    (Stage.GRANTED, Happening.RETURNED_HOLDING): (Stage.RUNNING,),
    (Stage.GRANTED, Happening.RETURNED_WITHOUT): _LOST,
    (Stage.GRANTED, Happening.REPLACED): _LOST,
    (Stage.GRANTED, Happening.FINISHED): (Stage.FINISHING,),
    (Stage.GRANTED, Happening.ABANDONED): _LOST,
    (Stage.GRANTED, Happening.CANCEL_ASKED): (Stage.CANCELLING,),
    (Stage.GRANTED, Happening.TOKEN_ENDED): _LOST,
    (Stage.GRANTED, Happening.DRAINED): (Stage.EXPIRED,),
    (Stage.GRANTED, Happening.HOLDER_GONE): _LOST,
    (Stage.RUNNING, Happening.LINK_LOST): (Stage.SUSPENDED,),
    (Stage.RUNNING, Happening.RETURNED_HOLDING): (Stage.RUNNING,),
    (Stage.RUNNING, Happening.RETURNED_WITHOUT): _LOST,
    (Stage.RUNNING, Happening.REPLACED): _LOST,
    (Stage.RUNNING, Happening.FINISHED): (Stage.FINISHING,),
    (Stage.RUNNING, Happening.ABANDONED): _LOST,
    (Stage.RUNNING, Happening.CANCEL_ASKED): (Stage.CANCELLING,),
    (Stage.RUNNING, Happening.TOKEN_ENDED): _LOST,
    (Stage.RUNNING, Happening.DRAINED): (Stage.EXPIRED,),
    (Stage.RUNNING, Happening.HOLDER_GONE): _LOST,
    (Stage.SUSPENDED, Happening.ACCEPTED): (Stage.SUSPENDED,),
    (Stage.SUSPENDED, Happening.REFUSED): (Stage.EXPIRED, Stage.FAILED),
    (Stage.SUSPENDED, Happening.NOT_SENT): (Stage.EXPIRED,),
    (Stage.SUSPENDED, Happening.RETURNED_HOLDING): (Stage.RUNNING,),
    (Stage.SUSPENDED, Happening.RETURNED_WITHOUT): _LOST,
    (Stage.SUSPENDED, Happening.REPLACED): _LOST,
    (Stage.SUSPENDED, Happening.GRACE_OVER): _LOST,
    (Stage.SUSPENDED, Happening.FINISHED): (Stage.FINISHING,),
    (Stage.SUSPENDED, Happening.ABANDONED): _LOST,
    (Stage.SUSPENDED, Happening.CANCEL_ASKED): (Stage.CANCELLING,),
    (Stage.SUSPENDED, Happening.TOKEN_ENDED): _LOST,
    (Stage.SUSPENDED, Happening.DRAINED): (Stage.EXPIRED,),
    (Stage.CANCELLING, Happening.ACCEPTED): (Stage.CANCELLING,),
    (Stage.CANCELLING, Happening.REFUSED): (Stage.CANCELLED,),
    (Stage.CANCELLING, Happening.NOT_SENT): (Stage.CANCELLED,),
    (Stage.CANCELLING, Happening.LINK_LOST): (Stage.CANCELLING,),
    (Stage.CANCELLING, Happening.RETURNED_HOLDING): (Stage.CANCELLING,),
    (Stage.CANCELLING, Happening.RETURNED_WITHOUT): (Stage.CANCELLED,),
    (Stage.CANCELLING, Happening.REPLACED): (Stage.CANCELLED,),
    (Stage.CANCELLING, Happening.FINISHED): (Stage.FINISHING,),
    (Stage.CANCELLING, Happening.ABANDONED): (Stage.CANCELLED,),
    (Stage.CANCELLING, Happening.CANCEL_OVERDUE): (Stage.CANCELLED,),
    (Stage.CANCELLING, Happening.TOKEN_ENDED): (Stage.CANCELLED,),
    (Stage.CANCELLING, Happening.HOLDER_GONE): (Stage.CANCELLED,),
    (Stage.FINISHING, Happening.LINK_LOST): (Stage.FINISHING,),
    (Stage.FINISHING, Happening.RETURNED_HOLDING): (Stage.FINISHING,),
    (Stage.FINISHING, Happening.FINISH_COMMITTED): (Stage.COMPLETED, Stage.FAILED, Stage.CANCELLED),
    (Stage.FINISHING, Happening.FINISH_UNSAVED): (Stage.RUNNING, Stage.SUSPENDED, Stage.CANCELLING),
}
"""(stage, happening) -> the stages that may follow; which one is decided by what was written and asked."""
