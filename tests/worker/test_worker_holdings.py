"""What is held across a drop: nothing lost, nothing doubled, and the holder gives up first."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from swamp_proto.errors import Bug
from swamp_proto.limits import LOG_WINDOW_BYTES, LOG_WINDOW_LINES, Tempo
from swamp_proto.messages.enrollment import HeldDispatch, HeldPhase, HeldVerdict, Verdict
from swamp_worker.core import holdings as h
from swamp_worker.core.holdings import Holdings, Phase, Sendable

G = 60.0


def linked(*names: str, at: float = 0.0) -> Holdings:
    held = Holdings()
    held.handle(h.LinkUp(at, G, (), ()), at)
    for name in names:
        held.handle(h.Taken(name, 3), at)
    return held


def keep(*names: str) -> tuple[HeldVerdict, ...]:
    return tuple(HeldVerdict(name, Verdict.KEEP) for name in names)


# ── lines and ends ──────────────────────────────────────────────────────────────────────────────────────────


def test_lines_first_then_the_end_then_nothing() -> None:
    held = linked("a")
    assert held.sendable() is None
    held.handle(h.LinesKept("a", 2), 1)
    assert held.sendable() == Sendable("a", 1)
    held.handle(h.LinesSent("a", 2), 1)
    assert held.sendable() is None
    held.handle(h.LinesKept("a", 3), 2)
    held.handle(h.Ended("a", 3), 2)
    assert held.sendable() == Sendable("a", 3)
    held.handle(h.LinesSent("a", 3), 2)
    assert held.sendable() == Sendable("a", None)
    held.handle(h.FinishSent("a"), 2)
    assert held.sendable() is None
    assert held.handle(h.FinishNoted("a"), 3) == (h.Forget("a"),)
    assert len(held) == 0


def test_a_new_link_begins_behind_the_last_noted_line() -> None:
    held = linked("a")
    held.handle(h.LinesKept("a", 10), 1)
    held.handle(h.LinesSent("a", 8), 1)
    assert held.handle(h.LinesNoted("a", 5), 1) == (h.DropLines("a", 5),)
    held.handle(h.LinkDown(), 2)
    held.handle(h.LinkUp(3, G, ("a",), keep("a")), 3)
    assert held.sendable() == Sendable("a", 6)


def test_a_full_window_waits_for_a_note_and_others_take_their_turn() -> None:
    held = linked("a", "b")
    held.handle(h.LinesKept("a", 2 * LOG_WINDOW_LINES), 1)
    held.handle(h.LinesKept("b", 1), 1)
    held.handle(h.LinesSent("a", LOG_WINDOW_LINES, 1), 1)
    assert held.sendable("b") == Sendable("b", 1)
    held.handle(h.LinesSent("b", 1, LOG_WINDOW_BYTES), 1)
    held.handle(h.LinesKept("b", 2), 1)
    assert held.sendable() is None
    held.handle(h.LinesNoted("a", 1), 2)
    assert held.sendable() == Sendable("a", LOG_WINDOW_LINES + 1)
    held.handle(h.LinesSent("a", LOG_WINDOW_LINES + 1, 1), 1)
    assert held.sendable() is None
    held.handle(h.LinesNoted("b", 1), 2)
    assert held.sendable() == Sendable("b", 2)
    held.handle(h.LinkDown(), 3)
    held.handle(h.LinkUp(3, G, ("a", "b"), keep("a", "b")), 3)
    assert held.sendable("b") == Sendable("a", 2)


def test_an_end_is_sent_again_until_it_is_noted() -> None:
    held = linked("a")
    held.handle(h.Ended("a", 0), 1)
    for now in range(2, 6):
        assert held.sendable() == Sendable("a", None)
        held.handle(h.FinishSent("a"), now)
        held.handle(h.LinkDown(), now)
        assert held.listing() == (HeldDispatch("a", 3, HeldPhase.FINISHED, 0),)
        held.handle(h.LinkUp(now, G, ("a",), keep("a")), now)
    held.handle(h.FinishSent("a"), 9)
    held.handle(h.FinishRefused("a"), 9)
    assert held.sendable() == Sendable("a", None)


def test_dispatches_take_turns() -> None:
    held = linked("a", "b", "c")
    for name in "abc":
        held.handle(h.LinesKept(name, 100), 1)
    order, turn = [], None
    for _ in range(6):
        sendable = held.sendable(turn)
        assert sendable is not None
        turn = sendable.dispatch
        order.append(turn)
    assert order == ["a", "b", "c", "a", "b", "c"]


def test_a_note_of_what_is_gone_or_was_never_sent_is_harmless() -> None:
    held = linked("a")
    held.handle(h.LinesKept("a", 2), 1)
    assert held.handle(h.LinesNoted("zzz", 4), 1) == ()
    assert held.handle(h.LinesNoted("a", 99), 1) == (h.DropLines("a", 2),)
    assert held.handle(h.LinesNoted("a", 1), 1) == ()


# ── verdicts ────────────────────────────────────────────────────────────────────────────────────────────────


def test_w1_what_is_dropped_is_ended_and_never_reported() -> None:
    held = linked("run", "done", "kept")
    held.handle(h.Ended("done", 0), 1)
    held.handle(h.LinkDown(), 2)
    listed = tuple(each.dispatch for each in held.listing())
    effects = held.handle(h.LinkUp(3, G, listed, keep("kept")), 3)
    assert effects == (h.EndIt("run", "the orchestrator has given it up", 0.0), h.Forget("done"))
    assert held.phase("run") is Phase.DROPPED
    held.handle(h.LinesKept("run", 5), 4)
    assert held.sendable() is None
    assert HeldDispatch("run", 3, HeldPhase.ENDING, 5) in held.listing()
    assert held.handle(h.Ended("run", 5), 5) == (h.Forget("run"),)
    assert held.phase("kept") is Phase.RUNNING


def test_a_verdict_touches_only_what_was_listed() -> None:
    held = linked("listed")
    held.handle(h.LinkDown(), 1)
    held.handle(h.Taken("later", 1), 1)
    assert held.handle(h.LinkUp(2, G, ("listed",), keep("listed")), 2) == ()
    assert held.phase("later") is Phase.RUNNING


# ── the clock ───────────────────────────────────────────────────────────────────────────────────────────────


def test_the_holder_gives_up_first() -> None:
    held = linked("a", at=100.0)
    assert held.next_deadline() == 145.0
    assert held.handle(h.TimePassed(), 144.9) == ()
    (term,) = held.handle(h.TimePassed(), 145.0)
    assert isinstance(term, h.EndIt)
    assert term.term_s == pytest.approx(7.5)
    assert held.next_deadline() == 152.5
    assert not held.is_late(152.4)
    (kill,) = held.handle(h.TimePassed(), 152.5)
    assert kill == h.EndIt("a", "no answered heartbeat for 52 s", 0.0)
    assert held.is_late(152.5)
    assert held.next_deadline() is None
    held.handle(h.Ended("a", 0), 153)
    assert held.listing()[0].phase is HeldPhase.FINISHED


def test_a_suspended_machine_goes_straight_to_kill() -> None:
    held = linked("a")
    (kill,) = held.handle(h.TimePassed(), 5000.0)
    assert isinstance(kill, h.EndIt)
    assert kill.term_s == 0.0


def test_only_a_newer_answered_heartbeat_renews() -> None:
    held = linked("a")
    held.handle(h.Renewed(30.0), 30.1)
    held.handle(h.Renewed(10.0), 31.0)  # an answer that was long on its way
    assert held.next_deadline() == 30.0 + 45.0
    held.handle(h.LinkDown(), 40.0)
    assert held.next_deadline() == 75.0


def test_nothing_running_has_no_deadline() -> None:
    held = linked("a")
    held.handle(h.Ended("a", 0), 1)
    assert held.next_deadline() is None


def test_one_taken_after_a_give_up_has_its_own() -> None:
    held = linked("a")
    held.handle(h.TimePassed(), 100.0)
    held.handle(h.Taken("b", 1), 100.0)
    effects = held.handle(h.TimePassed(), 100.0)
    assert {effect.dispatch for effect in effects if isinstance(effect, h.EndIt)} == {"a", "b"}


def test_a_permanent_refusal_ends_everything() -> None:
    held = linked("a", "b")
    held.handle(h.Ended("b", 0), 1)
    assert held.handle(h.EverythingRefused("revoked", 0.0), 2) == (h.EndIt("a", "revoked", 0.0),)


def test_every_row_of_the_table_and_every_gap() -> None:
    def at(phase: Phase | None) -> Holdings:
        held = linked("a") if phase is not None else linked()
        if phase is Phase.ENDING:
            held.handle(h.CancelAsked("a"), 1)
        if phase is Phase.DROPPED:
            held.handle(h.LinkUp(1, G, ("a",), ()), 1)
        if phase is Phase.FINISHED:
            held.handle(h.Ended("a", 0), 1)
        assert held.phase("a") is phase
        return held

    events: list[h.Happening] = [h.Taken("a", 1), h.CancelAsked("a"), h.Ended("a", 0), h.FinishNoted("a")]
    for phase in (None, *Phase):
        for event in events:
            held = at(phase)
            allowed = h.TRANSITIONS.get((phase, type(event)))
            if allowed is None:
                with pytest.raises(Bug):
                    held.handle(event, 2)
            else:
                held.handle(event, 2)
                assert held.phase("a") in allowed


# ── against a naive orchestrator ────────────────────────────────────────────────────────────────────────────


class Drops(RuleBasedStateMachine):
    """A worker's holdings and an orchestrator that only appends what arrives in order; links drop at any
    point.

    Frames in flight are lost with the link, and so may be the orchestrator's notes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.held = Holdings()
        self.up = False
        self.printed: dict[str, int] = {}  # lines each step printed
        self.stored: dict[str, int] = {}  # lines the orchestrator has
        self.finished: set[str] = set()  # ends the orchestrator has
        self.ended: set[str] = set()
        self.running: set[str] = set()
        self.dropped: set[str] = set()  # by verdict
        self.turn: str | None = None
        self.count = 0

    @initialize()
    def first_link(self) -> None:
        self.link(keep_all=True)

    @precondition(lambda self: not self.up)
    @rule(keep_all=st.booleans())
    def link(self, keep_all: bool) -> None:
        listed = tuple(each.dispatch for each in self.held.listing())
        kept = tuple(name for name in listed if keep_all or int(name[1:]) % 2)
        self.dropped.update(set(listed) - set(kept))
        self.held.handle(h.LinkUp(self.now, G, listed, keep(*kept)), self.now)
        self.up = True

    @precondition(lambda self: self.up)
    @rule()
    def drop(self) -> None:
        self.held.handle(h.LinkDown(), self.now)
        self.up = False

    @precondition(lambda self: self.up)
    @rule()
    def take(self) -> None:
        self.count += 1
        name = f"d{self.count}"
        self.held.handle(h.Taken(name, self.count), self.now)
        self.printed[name] = self.stored[name] = 0
        self.running.add(name)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), lines=st.integers(1, 5))
    def print_lines(self, data: st.DataObject, lines: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.running)))
        self.printed[name] += lines
        self.held.handle(h.LinesKept(name, self.printed[name]), self.now)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.running)))
        self.running.remove(name)
        self.ended.add(name)
        self.held.handle(h.Ended(name, self.printed[name]), self.now)

    @precondition(lambda self: self.up)
    @rule(arrives=st.booleans(), noted=st.booleans(), most=st.integers(1, 3))
    def send(self, arrives: bool, noted: bool, most: int) -> None:
        sendable = self.held.sendable(self.turn)
        if sendable is None:
            return
        self.turn = name = sendable.dispatch
        if sendable.first is not None:
            last = min(sendable.first + most - 1, self.printed[name])
            self.held.handle(h.LinesSent(name, last), self.now)
            if not arrives:
                self.drop()
                return
            assert sendable.first <= self.stored[name] + 1, "a gap"
            self.stored[name] = max(self.stored[name], last)
            if noted:
                self.held.handle(h.LinesNoted(name, self.stored[name]), self.now)
            return
        self.held.handle(h.FinishSent(name), self.now)
        if not arrives:
            self.drop()
            return
        assert self.stored[name] == self.printed[name], "an end before its last line"
        self.finished.add(name)
        if noted:
            self.held.handle(h.FinishNoted(name), self.now)
        else:
            self.drop()

    @rule(passed=st.floats(0.1, 30.0))
    def time(self, passed: float) -> None:
        self.now += passed
        if self.up:
            self.held.handle(h.Renewed(self.now), self.now)
        for effect in self.held.handle(h.TimePassed(), self.now):
            assert isinstance(effect, h.EndIt)
            assert not self.up
            assert effect.dispatch in self.running

    @invariant()
    def nothing_ended_is_forgotten_unnoted(self) -> None:
        assert all(name in self.held for name in self.ended - self.finished - self.dropped)

    @invariant()
    def deadlines_are_bounded(self) -> None:
        deadline = self.held.next_deadline()
        assert deadline is None or deadline <= self.now + Tempo(G).kill_s

    def teardown(self) -> None:
        """Heal the world: everything held is delivered, each line once and in order."""
        if not self.up:
            self.link(keep_all=True)
        for name in sorted(self.running):
            if self.held.phase(name) is not Phase.DROPPED:
                self.running.remove(name)
                self.ended.add(name)
                self.held.handle(h.Ended(name, self.printed[name]), self.now)
        for _ in range(10_000):
            if self.held.sendable() is None:
                break
            self.send(arrives=True, noted=True, most=3)
        assert self.held.undelivered == ()
        assert self.ended - self.dropped <= self.finished
        assert all(self.stored[name] == self.printed[name] for name in self.finished)


Drops.TestCase.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
TestDrops = Drops.TestCase
