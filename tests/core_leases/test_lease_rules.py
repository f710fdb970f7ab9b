"""The rules of SEMANTICS as short stories: what is told to the lease machine, and what it answers."""

from typing import Any

import attrs
import pytest

from swamp_orch.core.lease_values import (
    AdmitFinish,
    AdmitWrite,
    AskCancel,
    CancelKind,
    Drop,
    EndReason,
    EndSession,
    EndStep,
    FailStep,
    FreeSlot,
    Keep,
    Lease,
    LeaseState,
    NoteFinish,
    PersistLease,
    Phase,
    RefuseFinish,
    RefuseWrite,
    RequeueStep,
    SlotStuck,
)
from swamp_orch.core.leases import (
    Accepted,
    CancelAsked,
    CommitFailed,
    Committed,
    DeadlinePassed,
    EmptyConfirmed,
    EnrollQueued,
    FinishArrived,
    Holding,
    LeaseFound,
    LeaseGranted,
    Leases,
    LinkLost,
    NotSent,
    Refused,
    Stalled,
    TokenEnded,
    WorkerReturned,
    WriteArrived,
)
from swamp_orch.definitions.values import OnWorkerLost
from swamp_proto.errors import Bug, RefusalCode
from swamp_proto.limits import CANCEL_WAIT_S, GRACE_RESETS_MAX, LOSSES_MAX, STUCK_S
from swamp_proto.messages.dispatch import Outcome

G = 60.0
NOON = 1_781_519_657_833


class Story:
    """A lease machine with two clocks that go together, and one lease."""

    def __init__(self, *, granted: bool = True, **about: Any) -> None:
        self.leases = Leases()
        self.now_s = 1_000.0
        self.lease = Lease(
            "d1", 3, 2, "run", "wf", "build", "compile", "command/shell", "model", "execute",
            worker="w", instance="i1", mint_id="mint", link=7, granted_ms=NOON, grace_s=G, version=1,
        )  # fmt: skip
        self.lease = attrs.evolve(self.lease, **about)
        if granted:
            self.tell(LeaseGranted(self.lease))

    def tell(self, event: Any) -> list[Any]:
        effects = self.leases.handle(event, self.now_s, NOON + round((self.now_s - 1_000) * 1000))
        self.leases.check()
        return list(effects)

    def told(self, event: Any) -> list[Any]:
        """Told, and every commit done at once; without the commits themselves."""
        found = []
        effects = self.tell(event)
        while effects:
            effect = effects.pop(0)
            if isinstance(effect, PersistLease | AdmitFinish):
                effects += self.tell(Committed("d1"))
            if not isinstance(effect, PersistLease):
                found.append(effect)
        return found

    def later(self, seconds: float) -> list[Any]:
        self.now_s += seconds
        return self.told(DeadlinePassed())

    def running(self) -> "Story":
        self.tell(Accepted("d1"))
        return self

    def wrote(self) -> "Story":
        (admitted,) = self.tell(WriteArrived("d1", 3, "r0", "artifact"))
        assert admitted.first
        self.tell(Committed("d1"))
        return self

    def lost(self) -> "Story":
        self.told(LinkLost("w", 7))
        return self


def kinds(effects: list[Any]) -> list[type]:
    return [type(effect) for effect in effects]


# ── a link drops ────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_blip_changes_nothing_for_the_step() -> None:
    story = Story().running().wrote().lost()
    assert story.later(G - 1) == []
    assert story.told(WorkerReturned("w", "i1", 8, (Holding("d1", 3),))) == [Keep("d1")]
    lease = story.leases.get("d1")
    assert lease is not None
    assert (lease.phase, lease.link, lease.suspended_ms) == (Phase.RUNNING, 8, None)
    assert story.later(10 * G) == []


def test_a_verdict_waits_until_it_is_durable() -> None:
    story = Story().running().lost()
    (persist,) = story.tell(WorkerReturned("w", "i1", 8, (Holding("d1", 3),)))
    assert isinstance(persist, PersistLease)
    assert story.tell(Committed("d1")) == [Keep("d1")]


def test_grace_over_without_a_write_places_the_step_again_elsewhere() -> None:
    story = Story().running().lost()
    effects = story.later(G)
    assert kinds(effects) == [FreeSlot, RequeueStep]
    again = effects[1]
    assert (again.counted, again.losses, again.sent, again.avoid) == (True, 1, True, "w")
    assert again.lease.state is LeaseState.EXPIRED
    assert again.lease.reason is EndReason.WORKER_LOST
    assert len(story.leases) == 0


def test_grace_over_after_a_write_fails_the_step_and_says_what_was_written() -> None:
    story = Story().running().wrote().lost()
    fail, free = story.later(G)
    assert isinstance(fail, FailStep)
    assert isinstance(free, FreeSlot)
    assert fail.lease.reason is EndReason.WRITE_THEN_DROP
    for part in ("worker 'w'", "'artifact'", "2026-06-15T10:34:17.833Z", "write_then_drop"):
        assert part in fail.message
    assert fail.left == 0


def test_the_authors_word_is_the_only_exception() -> None:
    again = Story(on_worker_lost=OnWorkerLost.REDISPATCH).running().wrote().lost().later(G)
    assert kinds(again) == [FreeSlot, RequeueStep]
    never = Story(on_worker_lost=OnWorkerLost.FAIL).running().lost().later(G)
    assert kinds(never) == [FailStep, FreeSlot]
    assert never[0].lease.reason is EndReason.ON_WORKER_LOST


def test_a_stale_link_says_nothing_about_a_newer_one() -> None:
    story = Story().running()
    story.told(WorkerReturned("w", "i1", 8, (Holding("d1", 3),)))
    assert story.tell(LinkLost("w", 7)) == []
    assert story.leases.next_deadline() is None or story.later(10 * G) == []


def test_the_same_process_without_the_dispatch_has_given_it_up() -> None:
    effects = Story().running().lost().told(WorkerReturned("w", "i1", 8))
    assert kinds(effects) == [FreeSlot, RequeueStep]
    assert not effects[1].counted


def test_a_new_process_needs_a_proof() -> None:
    story = Story().running().lost()
    assert story.leases.busy_until("w", "i2", False) == story.now_s + G
    assert story.leases.busy_until("w", "i2", True) is None
    assert story.leases.busy_until("w", "i1", False) is None
    assert story.told(WorkerReturned("w", "i2", 8)) == []
    effects = story.told(WorkerReturned("w", "i3", 9, (), reaped=True))
    assert kinds(effects) == [FreeSlot, RequeueStep]
    assert effects[1].counted


def test_what_nobody_knows_is_dropped() -> None:
    story = Story()
    assert story.told(WorkerReturned("other", "i9", 9, (Holding("d9", 1),))) == [Drop("d9")]
    story = Story().running().lost()
    effects = story.told(WorkerReturned("w", "i1", 8, (Holding("d1", 2),)))
    assert Drop("d1") in effects, "another fence is another dispatch"


def test_a_dispatch_granted_on_this_very_link_is_left_alone() -> None:
    story = Story(link=8)
    assert story.told(WorkerReturned("w", "i1", 8)) == []
    lease = story.leases.get("d1")
    assert lease is not None
    assert lease.active


# ── ending, and placing again ───────────────────────────────────────────────────────────────────────────────────────
def test_a_revoked_token_ends_the_lease_now_and_places_again_when_it_is_dead() -> None:
    story = Story().running()
    assert story.told(TokenEnded("mint", "revoked")) == []
    assert story.leases.admits("d1", 3) is None
    story.told(LinkLost("w", 7))
    assert story.later(G - 1) == []
    assert kinds(story.later(1)) == [FreeSlot, RequeueStep]


def test_a_report_of_being_empty_is_enough() -> None:
    story = Story().running()
    story.told(TokenEnded("mint", "expired"))
    effects = story.told(EmptyConfirmed("d1"))
    assert kinds(effects) == [FreeSlot, RequeueStep]
    assert effects[1].lease.reason is EndReason.TOKEN_EXPIRED


def test_while_the_link_is_up_no_instant_is_a_proof() -> None:
    """Its holder's heartbeats are answered: it has no reason to give up. The session has to end first."""
    story = Story().running()
    story.told(TokenEnded("mint", "revoked"))
    effects = story.later(G)
    assert kinds(effects) == [EndSession]
    assert kinds(story.later(G)) == [FreeSlot, RequeueStep]


def test_a_poison_step_does_not_walk_through_the_fleet() -> None:
    story = Story(losses=LOSSES_MAX - 1).running().lost()
    fail, _ = story.later(G)
    assert fail.lease.reason is EndReason.LOST_TOO_OFTEN
    assert f"{LOSSES_MAX} times" in fail.message


def test_an_end_is_said_only_when_it_is_durable() -> None:
    story = Story().running().lost()
    story.now_s += G
    (persist,) = story.tell(DeadlinePassed())
    assert isinstance(persist, PersistLease)
    assert persist.lease.state is LeaseState.EXPIRED
    assert kinds(story.tell(Committed("d1"))) == [FreeSlot, RequeueStep]


# ── not started ─────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (NotSent("d1"), EndReason.NOT_SENT),
        (Refused("d1", RefusalCode.BUSY, "2/2"), EndReason.BUSY),
        (Refused("d1", RefusalCode.DRAINING, "leaving"), EndReason.DRAINING),
    ],
)
def test_what_never_started_is_placed_again_at_once_and_not_counted(event: Any, reason: EndReason) -> None:
    effects = Story().told(event)
    assert kinds(effects) == [FreeSlot, RequeueStep]
    assert (effects[1].lease.reason, effects[1].counted, effects[1].sent) == (reason, False, False)


def test_a_grant_on_a_link_that_is_gone() -> None:
    story = Story(granted=False)
    assert kinds(story.told(LeaseGranted(story.lease, link_up=False))) == [FreeSlot, RequeueStep]


def test_any_other_refusal_fails_the_step() -> None:
    effects = Story().told(Refused("d1", RefusalCode.TOO_LARGE, "the frame is too large"))
    assert kinds(effects) == [FailStep, FreeSlot]
    assert "too large" in effects[0].message


# ── writes ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_first_write_carries_the_mark_and_the_others_are_guarded() -> None:
    story = Story().running()
    (first,) = story.tell(WriteArrived("d1", 3, "r1", "artifact"))
    assert (first.first, first.lease.wrote, first.lease.version) == (True, True, 1)
    assert story.tell(WriteArrived("d1", 3, "r2", "other")) == []
    (second,) = story.tell(Committed("d1"))
    assert (second.request, second.first, second.lease.version) == ("r2", False, 2)


def test_a_write_under_an_ended_lease_is_refused() -> None:
    story = Story().running()
    story.told(TokenEnded("mint", "revoked"))
    assert story.tell(WriteArrived("d1", 3, "r1", "x")) == [RefuseWrite("r1", RefusalCode.LEASE_ENDED)]
    assert Story().tell(WriteArrived("d1", 2, "r1", "x")) == [RefuseWrite("r1", RefusalCode.LEASE_ENDED)]


def test_a_write_that_lost_its_commit_does_not_count() -> None:
    """The end was decided while the write was under way; the store says that it never happened."""
    story = Story().running()
    (write,) = story.tell(WriteArrived("d1", 3, "r1", "artifact"))
    assert isinstance(write, AdmitWrite)
    story.tell(LinkLost("w", 7))
    story.now_s += G
    assert story.tell(DeadlinePassed()) == []
    (end,) = story.tell(CommitFailed("d1", story.lease))
    assert (end.lease.state, end.lease.reason) == (LeaseState.EXPIRED, EndReason.WORKER_LOST)


def test_a_write_that_won_decides_the_end() -> None:
    story = Story().running()
    story.tell(WriteArrived("d1", 3, "r1", "artifact"))
    story.tell(LinkLost("w", 7))
    story.now_s += G
    story.tell(DeadlinePassed())
    (end,) = story.tell(Committed("d1"))
    assert (end.lease.state, end.lease.reason) == (LeaseState.FAILED, EndReason.WRITE_THEN_DROP)


# ── reports ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_completion_ends_the_lease_together_with_its_outputs() -> None:
    story = Story().running()
    free, admit = story.tell(FinishArrived("d1", 3, Outcome.SUCCEEDED, 0))
    assert isinstance(free, FreeSlot)
    assert (admit.lease.state, admit.expect) == (LeaseState.COMPLETED, 1)
    assert story.tell(Committed("d1")) == [NoteFinish("d1")]
    assert len(story.leases) == 0
    assert story.tell(FinishArrived("d1", 3, Outcome.SUCCEEDED, 0)) == [NoteFinish("d1")]


def test_a_completion_under_way_wins_over_an_end() -> None:
    story = Story().running()
    story.tell(FinishArrived("d1", 3, Outcome.SUCCEEDED, 0))
    assert story.tell(CancelAsked("d1", CancelKind.CANCEL, "stop")) == []
    assert story.tell(TokenEnded("mint", "revoked")) == []
    assert story.tell(Committed("d1")) == [NoteFinish("d1")]


def test_a_result_that_comes_too_late_is_refused_and_named() -> None:
    story = Story().running().lost()
    story.later(G)
    (refused,) = story.tell(FinishArrived("d1", 3, Outcome.SUCCEEDED, 0))
    assert isinstance(refused, RefuseFinish)
    assert "late result" in refused.text


def test_what_is_left_keeps_the_slot() -> None:
    story = Story().running()
    effects = story.told(FinishArrived("d1", 3, Outcome.FAILED, None))
    assert kinds(effects) == [AdmitFinish, NoteFinish]
    assert story.later(STUCK_S) == [SlotStuck("d1", "w")]
    assert story.told(EmptyConfirmed("d1")) == [FreeSlot("d1", "w")]


def test_an_abandoned_execution_is_never_the_steps_fault() -> None:
    effects = Story().running().told(FinishArrived("d1", 3, Outcome.ABANDONED, 0, "the keeper ended it"))
    assert kinds(effects) == [NoteFinish, FreeSlot, RequeueStep]
    assert not effects[2].counted


# ── cancel ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_cancel_is_durable_before_anybody_hears_of_it() -> None:
    story = Story().running()
    (persist,) = story.tell(CancelAsked("d1", CancelKind.CANCEL, "stop"))
    assert persist.lease.phase is Phase.CANCELLING
    assert story.tell(Committed("d1")) == [AskCancel("d1", "w", "stop")]


def test_a_worker_that_does_not_answer_a_cancel_loses_its_session() -> None:
    story = Story().running()
    story.told(CancelAsked("d1", CancelKind.TIMEOUT, "the step's timeout of 5 s"))
    effects = story.later(CANCEL_WAIT_S)
    assert kinds(effects) == [EndSession, EndStep]
    end = effects[1]
    assert (end.kind, end.left, end.lease.reason) == (CancelKind.TIMEOUT, None, EndReason.TIMED_OUT)
    assert end.ends_by_ms == NOON + round((CANCEL_WAIT_S + G) * 1000)


def test_a_cancel_while_the_link_is_down_is_carried_on_when_it_is_back() -> None:
    story = Story().running().lost()
    assert story.told(CancelAsked("d1", CancelKind.CANCEL, "stop")) == []
    effects = story.told(WorkerReturned("w", "i1", 8, (Holding("d1", 3),)))
    assert effects == [Keep("d1"), AskCancel("d1", "w", "stop")]


def test_a_cancel_says_that_its_worker_is_away_as_soon_as_that_is_known() -> None:
    """One that only lost its socket is back within two redials (G/6); who is not is unreachable, until `replace_at`."""
    story = Story().running().lost()
    assert story.told(CancelAsked("d1", CancelKind.CANCEL, "stop")) == []
    assert story.later(G / 6 - 0.1) == []
    (end,) = story.later(0.1)
    assert (type(end), end.left, end.ends_by_ms) == (EndStep, None, NOON + round(G * 1000))
    assert kinds(story.later(G - G / 6)) == [FreeSlot], "its slot is free when it is dead, not before"
    away = Story().running().lost()
    away.later(G / 2)
    away.told(CancelAsked("d1", CancelKind.CANCEL, "stop"))
    (end,) = away.later(0)
    assert (end.left, end.ends_by_ms) == (None, NOON + round(G * 1000)), "it was away for long: said at once"


def test_a_cancel_whose_worker_goes_away_meanwhile_does_not_wait_longer_than_it_can_live() -> None:
    story = Story().running()
    story.told(CancelAsked("d1", CancelKind.CANCEL, "stop"))
    story.later(1)
    assert story.told(LinkLost("w", 7)) == []
    (end,) = story.later(G / 6)
    assert (end.left, end.ends_by_ms) == (None, NOON + round((1 + G) * 1000))


def test_a_step_that_only_waits_to_be_placed_again_is_cancelled_at_once() -> None:
    story = Story().running()
    story.told(TokenEnded("mint", "revoked"))
    effects = story.told(CancelAsked("d1", CancelKind.CANCEL, "stop"))
    assert kinds(effects) == [EndStep]
    story.told(LinkLost("w", 7))
    assert kinds(story.later(G)) == [FreeSlot]


# ── time ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_stall_of_the_orchestrator_costs_nobody_else() -> None:
    story = Story().running().lost()
    story.now_s += G + 5
    assert story.tell(Stalled(G)) == []
    assert story.told(DeadlinePassed()) == []
    assert kinds(story.later(G)) == [FreeSlot, RequeueStep]


def test_a_queued_enrollment_pauses_the_grace_once() -> None:
    story = Story().running().lost()
    before = story.leases.next_deadline()
    assert before is not None
    for _ in range(3):
        story.tell(EnrollQueued("w", "i1"))
    after = story.leases.next_deadline()
    assert after is not None
    assert before < after <= before + G / 2


# ── start ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_start_gives_every_worker_its_grace_again() -> None:
    story = Story(granted=False, phase=Phase.RUNNING, accepted=True)
    (persist,) = story.tell(LeaseFound(story.lease))
    assert (persist.lease.phase, persist.lease.resets) == (Phase.SUSPENDED, 1)
    assert persist.lease.deadline_ms == NOON + round(G * 1000)
    story.tell(Committed("d1"))
    assert story.told(WorkerReturned("w", "i1", 1_000, (Holding("d1", 3),))) == [Keep("d1")]


def test_only_so_many_starts_extend_one_lease() -> None:
    story = Story(
        granted=False, phase=Phase.SUSPENDED, accepted=True, resets=GRACE_RESETS_MAX, deadline_ms=NOON + 5_000
    )
    (persist,) = story.tell(LeaseFound(story.lease))
    assert persist.lease.resets == GRACE_RESETS_MAX
    assert persist.lease.deadline_ms == NOON + 5_000


def test_a_step_of_the_loopback_ends_with_its_orchestrator() -> None:
    story = Story(granted=False, worker=None, instance="", mint_id="", phase=Phase.RUNNING, accepted=True)
    effects = story.told(LeaseFound(story.lease, loopback_dead=True))
    assert kinds(effects) == [FreeSlot, RequeueStep]
    assert effects[1].lease.reason is EndReason.ORCHESTRATOR_RESTARTED


def test_a_cancel_is_carried_on_after_a_crash() -> None:
    story = Story(
        granted=False,
        phase=Phase.CANCELLING,
        accepted=True,
        cancel_kind=CancelKind.CANCEL,
        cancel_reason="stop",
    )
    story.told(LeaseFound(story.lease))
    effects = story.told(WorkerReturned("w", "i1", 8, (Holding("d1", 3),)))
    assert effects == [Keep("d1"), AskCancel("d1", "w", "stop")]


def test_an_end_that_nobody_heard_of_is_said_again() -> None:
    ended = {
        "state": LeaseState.EXPIRED,
        "reason": EndReason.TOKEN_REVOKED,
        "cause": "revoked",
        "accepted": True,
    }
    story = Story(granted=False, **ended, replace_ms=NOON + 1_000)
    assert story.tell(LeaseFound(story.lease)) == []
    assert story.later(G - 1) == [], "its link was up when it ended: it may have lived until just now"
    assert kinds(story.later(1)) == [FreeSlot, RequeueStep]
    known_dead = Story(granted=False, **ended, replace_ms=NOON, empty_ms=NOON)
    assert kinds(known_dead.tell(LeaseFound(known_dead.lease))) == [FreeSlot, RequeueStep]


def test_what_may_still_live_is_waited_for_although_its_step_has_ended() -> None:
    story = Story(
        granted=False, state=LeaseState.CANCELLED, reason=EndReason.CANCELLED, replace_ms=NOON + 1_000
    )
    assert story.tell(LeaseFound(story.lease, step_ended=True)) == []
    assert story.leases.busy_until("w", "i2", False) == story.now_s + G
    assert kinds(story.later(G)) == [FreeSlot]
    assert story.leases.busy_until("w", "i2", False) is None


# ── the record ──────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_lease_is_read_back_as_it_was_written() -> None:
    for story in (Story().running().wrote().lost(), Story(worker=None, link=0)):
        lease = story.leases.get("d1")
        assert lease is not None
        assert Lease.from_attributes(lease.to_attributes(), lease.version) == lease
    attributes = Story().running().wrote().leases.active()[0].to_attributes()
    assert attributes["hasWrites"] is True
    assert attributes["firstWriteAt"] == "2026-06-15T10:34:17.833Z"


def test_an_answer_to_a_commit_that_was_not_under_way_is_a_bug() -> None:
    with pytest.raises(Bug):
        Story().tell(Committed("d1"))
    with pytest.raises(Bug):
        Story().tell(LeaseGranted(Story().lease))
