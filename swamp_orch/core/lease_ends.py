"""How leases end, and when their step may be placed again.

Rules that hold here (SEMANTICS §1, §5):

1. **Ending a lease and placing its step again are two instants.** `_close` decides the end, `_end` makes it durable
   and says it; `_over` frees the slot and asks for the step to be placed again, once the execution is known dead.
2. **Write, then fail.** `_lost` is the only place where that is decided.
3. An end remembers how it was decided: when its commit fails it is decided again on what the store has.
"""

from collections.abc import Callable, Iterator

import attrs

from swamp_orch.core.lease_events import CancelAsked
from swamp_orch.core.lease_ledger import End, Entry, Ledger
from swamp_orch.core.lease_table import Happening, Stage
from swamp_orch.core.lease_values import (
    NOT_RUN,
    AskCancel,
    CancelKind,
    Drop,
    Effect,
    EndReason,
    EndStep,
    FailStep,
    Keep,
    Lease,
    LeaseState,
    Phase,
    RequeueStep,
)
from swamp_orch.definitions.values import OnWorkerLost
from swamp_orch.store.bookkeeping import iso
from swamp_proto.errors import Bug
from swamp_proto.limits import LOSSES_MAX


class Ends(Ledger):
    """The ends of leases; part of `Leases`."""

    def _never_ran(self, entry: Entry, how: Happening, reason: EndReason, text: str) -> Iterator[Effect]:
        """It certainly did not start: nothing is counted, nothing has to die first."""
        if entry.stage is Stage.CANCELLING:
            yield from self._cancelled(entry, how, dead=True)
            return

        def again() -> Iterator[Effect]:
            return self._never_ran(entry, how, reason, text)

        self._close(entry, how, Stage.EXPIRED, reason, text, again, dead=True)
        entry.requeue = self._requeue(entry.lease)
        yield from self._end(entry)

    def _refused_for_good(self, entry: Entry, message: str) -> Iterator[Effect]:
        def again() -> Iterator[Effect]:
            return self._refused_for_good(entry, message)

        text = f"{entry.lease.holder} refused the step: {message}"
        self._close(entry, Happening.REFUSED, Stage.FAILED, EndReason.REFUSED, text, again, dead=True)
        yield from self._end(entry, FailStep(entry.lease, text, 0, None))

    def _lost(
        self, entry: Entry, how: Happening, reason: EndReason, text: str, *, counted: bool, dead: bool
    ) -> Iterator[Effect]:
        """The holder is gone, or its execution is: write, then fail (SEMANTICS §5)."""
        lease = entry.lease
        if entry.stage is Stage.CANCELLING:
            yield from self._cancelled(entry, how, dead=dead)
            return

        def again() -> Iterator[Effect]:
            return self._lost(entry, how, reason, text, counted=counted, dead=dead)

        code: EndReason | None = None
        if lease.wrote and lease.on_worker_lost is not OnWorkerLost.REDISPATCH:
            code = EndReason.WRITE_THEN_DROP
        elif lease.on_worker_lost is OnWorkerLost.FAIL:
            code = EndReason.ON_WORKER_LOST
        elif counted and lease.losses + 1 >= LOSSES_MAX:
            code = EndReason.LOST_TOO_OFTEN
        if code is None:
            self._close(entry, how, Stage.EXPIRED, reason, text, again, dead=dead, counted=counted)
            entry.requeue = self._requeue(entry.lease)
            yield from self._end(entry)
            return
        message = _told(lease, code, text)
        self._close(entry, how, Stage.FAILED, code, message, again, dead=dead, counted=counted, cause=text)
        yield from self._end(entry, FailStep(entry.lease, message, *self._left(entry)))

    def _cancelled(self, entry: Entry, how: Happening, *, dead: bool) -> Iterator[Effect]:
        kind, text = entry.lease.cancel_kind, entry.lease.cancel_reason
        if kind is None:
            raise Bug(f"dispatch {entry.lease.dispatch} is cancelled and nobody asked")

        def again() -> Iterator[Effect]:
            return self._cancelled(entry, how, dead=dead)

        reason = EndReason.TIMED_OUT if kind is CancelKind.TIMEOUT else EndReason.CANCELLED
        self._close(entry, how, Stage.CANCELLED, reason, text, again, dead=dead)
        yield from self._end(entry, EndStep(entry.lease, kind, text, *self._left(entry)))

    def _drained(self, entry: Entry, *, again: bool = False) -> Iterator[Effect]:
        """It has not written: its step goes to another worker. The commit expects exactly that; one that wrote after all
        goes on, and finishes where it is.
        """
        lease = entry.lease
        if lease.wrote:
            if again:  # a commit that failed said so: the end is taken back, nobody had heard of it
                entry.stage = Stage.RUNNING if entry.link_up else Stage.SUSPENDED
                entry.replace_s = None if entry.link_up else entry.replace_s
                entry.lease = attrs.evolve(lease, phase=Phase(entry.stage.value))
                self._until(entry, entry.replace_s)
                yield from self._save(entry)
            return

        def once_more() -> Iterator[Effect]:
            return self._drained(entry, again=True)

        text = f"worker '{lease.worker}' is drained, and it had not written"
        dead = self._must_be_dead(entry)
        self._close(entry, Happening.DRAINED, Stage.EXPIRED, EndReason.DRAINED, text, once_more, dead=dead)
        entry.requeue = self._requeue(entry.lease)
        yield from self._end(entry, Drop(lease.dispatch))

    def _token_over(self, entry: Entry, why: str) -> Iterator[Effect]:
        revoked = why == "revoked"
        reason = EndReason.TOKEN_REVOKED if revoked else EndReason.TOKEN_EXPIRED
        text = f"the token of worker '{entry.lease.worker}' {'was revoked' if revoked else 'has expired'}"
        dead = self._must_be_dead(entry)
        yield from self._lost(entry, Happening.TOKEN_ENDED, reason, text, counted=False, dead=dead)

    def _close(
        self,
        entry: Entry,
        how: Happening,
        stage: Stage,
        reason: EndReason,
        error: str,
        again: Callable[[], Iterator[Effect]],
        *,
        dead: bool,
        counted: bool = False,
        cause: str = "",
    ) -> None:
        """Decide the end of a lease. Nothing is admitted under it from here on."""
        entry.end = End(entry.stage, entry.lease, again)
        self._go(entry, how, stage)
        self._until(entry, None)
        if entry.replace_s is None:
            entry.replace_s = self._now_s + entry.lease.grace_s
        entry.dead = entry.dead or dead
        entry.lease = attrs.evolve(
            entry.lease,
            state=LeaseState(stage.value),
            reason=reason,
            error=error,
            cause=cause or error,
            loss_counted=counted,
            ended_ms=self._now_ms,
            deadline_ms=None,
            replace_ms=self._now_ms if entry.dead else self._wall(entry.replace_s),
            empty_ms=self._now_ms if entry.dead else None,
        )

    def _end(self, entry: Entry, *say: Effect) -> Iterator[Effect]:
        """Make a decided end durable, then say it; the execution is waited for."""
        yield from self._refuse_writes(entry)
        # Verdicts and orders that were not said yet are overtaken by the end.
        kept = tuple(
            Drop(one.dispatch) if isinstance(one, Keep) else one
            for one in entry.to_say
            if not isinstance(one, AskCancel)
        )
        entry.to_say = kept
        if not entry.dead:
            self._until(entry, entry.replace_s)
        yield from self._save(entry, *say)

    def _ended_elsewhere(self, entry: Entry, stored: Lease) -> Iterator[Effect]:
        """Another process ended it by compare-and-swap (drain --when-safe, run doctor)."""
        yield from self._refuse_writes(entry)
        asked, kind = entry.asked, entry.lease.cancel_kind
        if kind is not None:
            asked = CancelAsked(stored.dispatch, kind, entry.lease.cancel_reason)
        entry.lease, entry.stage = stored, Stage(stored.state.value)
        entry.end, entry.finish, entry.end_durable, entry.dirty = None, None, True, False
        entry.to_say = ()
        if entry.replace_s is None:
            entry.replace_s = self._now_s + stored.grace_s
        yield Drop(stored.dispatch)
        if stored.state is LeaseState.EXPIRED:
            entry.requeue = RequeueStep(stored, stored.cause, counted=False, losses=stored.losses, sent=True)
            if asked is not None:
                entry.requeue = None
                yield EndStep(stored, asked.kind, asked.reason, *self._left(entry))
        else:
            yield FailStep(stored, stored.error, None, self._wall(entry.replace_s))
        if entry.dead:
            yield from self._over(entry)
        else:
            self._until(entry, entry.replace_s)

    def _found_dead(self, entry: Entry) -> Iterator[Effect]:
        """Nothing is left of an ended lease's execution; what follows waits until the end is durable."""
        entry.dead = True
        self._until(entry, None)
        if entry.end_durable:
            yield from self._over(entry)

    def _over(self, entry: Entry) -> Iterator[Effect]:
        yield from self._free(entry)
        if entry.requeue is not None:
            yield entry.requeue
        self._forget(entry)

    def _requeue(self, lease: Lease) -> RequeueStep:
        ran = lease.reason not in NOT_RUN
        return RequeueStep(
            lease,
            lease.cause,
            counted=lease.loss_counted,
            losses=lease.losses + lease.loss_counted,
            sent=ran,
            avoid=lease.worker if ran or lease.reason in (EndReason.BUSY, EndReason.DRAINING) else None,
        )


def _told(lease: Lease, code: EndReason, cause: str) -> str:
    """Why the step fails, for people."""
    if code is EndReason.WRITE_THEN_DROP:
        when = "" if lease.first_write_ms is None else f" at {iso(lease.first_write_ms)}"
        what = f" '{lease.first_write}'" if lease.first_write else ""
        return f"{cause}, after step '{lease.step}' had written{what}{when}; it is not run again (write_then_drop)"
    if code is EndReason.LOST_TOO_OFTEN:
        return (
            f"{cause}; step '{lease.step}' has lost its holder {lease.losses + 1} times and is not run again"
        )
    return f"{cause}, and step '{lease.step}' asks to fail then (onWorkerLost: fail)"
