"""Reconciling at start: what becomes of leases that the last process left.

Rules that hold here (SEMANTICS §2, §8):

1. An active lease of a worker is suspended: its holder may come back with it. The deadline is now (the listener is
   ready) plus the lease's own grace window, and stored; at most `GRACE_RESETS_MAX` starts extend one lease, after
   that the stored deadline stands.
2. An active lease of the loopback ends: its holder was the last process. The write-then-fail rule decides.
3. An ended lease whose step has not ended: what its end means is said again. Its step is placed again when the
   execution is known dead; a holder whose link was up at the end may have lived until just now.

4. An ended lease whose step has ended too, and whose execution may still live, is only waited for: until then another
   process of that machine is told `identity_busy`.

Which steps have not ended is for the caller to know; it tells of every such lease once (`LeaseFound`).
"""

from collections.abc import Iterator

import attrs

from swamp_orch.core.lease_ends import Ends
from swamp_orch.core.lease_events import LeaseFound
from swamp_orch.core.lease_table import Happening, Stage
from swamp_orch.core.lease_values import Effect, EndReason, EndStep, FailStep, Lease, LeaseState, Phase
from swamp_proto.limits import CANCEL_WAIT_S, GRACE_RESETS_MAX


class Reconciling(Ends):
    """What the last process left; part of `Leases`."""

    def _found(self, event: LeaseFound) -> Iterator[Effect]:
        lease = event.lease
        if not lease.active:
            yield from self._found_ended(lease, step_ended=event.step_ended)
            return
        stage = Stage(lease.phase.value)
        if lease.worker is None:
            entry = self._enter(lease, stage, link_up=True)
            entry.replace_s = self._now_s + lease.grace_s
            yield from self._lost(
                entry,
                Happening.HOLDER_GONE,
                EndReason.ORCHESTRATOR_RESTARTED,
                "the orchestrator ended under it",
                counted=True,
                dead=event.loopback_dead,
            )
            return
        left_s = lease.grace_s
        again = lease.resets < GRACE_RESETS_MAX
        if not again and lease.deadline_ms is not None:
            left_s = min(left_s, max(0, lease.deadline_ms - self._now_ms) / 1000)
        if stage is not Stage.CANCELLING:
            stage = Stage.SUSPENDED
        entry = self._enter(lease, stage, link_up=False)
        entry.replace_s, entry.lost_s = self._now_s + left_s, self._now_s
        if stage is Stage.SUSPENDED:
            self._until(entry, entry.replace_s)
        else:
            entry.cancel_by_s = self._now_s + CANCEL_WAIT_S
            self._until_cancelled(entry)
        entry.lease = attrs.evolve(
            lease,
            phase=Phase(stage.value),
            suspended_ms=self._now_ms if lease.suspended_ms is None else lease.suspended_ms,
            deadline_ms=self._wall(entry.deadline_s),
            resets=lease.resets + again,
        )
        yield from self._save(entry)

    def _found_ended(self, lease: Lease, *, step_ended: bool) -> Iterator[Effect]:
        """The end is durable, but its step does not know: say it again; once its execution is dead, if it
        matters.
        """
        entry = self._enter(lease, Stage(lease.state.value), link_up=False)
        entry.end_durable = True
        left_s = min(lease.grace_s, max(0, (lease.replace_ms or 0) - self._now_ms) / 1000)
        if lease.worker is not None and lease.suspended_ms is None:
            left_s = lease.grace_s  # its link was up when it ended: the holder may have lived until just now
        entry.replace_s = self._now_s + left_s
        entry.dead = lease.empty_ms is not None or left_s <= 0
        left = 0 if lease.empty_ms is not None else None
        ends_by = None if entry.dead else self._wall(entry.replace_s)
        if step_ended:
            pass
        elif lease.completed:  # its run had failed under it
            yield FailStep(lease, "its end was recorded, and its outputs were not", left, ends_by)
        elif lease.state is LeaseState.EXPIRED:
            entry.requeue = self._requeue(lease)
        elif lease.cancel_kind is not None and lease.state is LeaseState.CANCELLED:
            yield EndStep(lease, lease.cancel_kind, lease.cancel_reason, left, ends_by)
        else:
            yield FailStep(lease, lease.error, left, ends_by)
        if entry.dead:
            yield from self._over(entry)
        else:
            self._until(entry, entry.replace_s)
