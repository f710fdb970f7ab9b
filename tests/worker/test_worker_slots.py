"""Slots: never over capacity, free only when empty, nothing new while draining."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from swamp_proto.errors import Bug, RefusalCode
from swamp_worker.core.slots import (
    TRANSITIONS,
    Accept,
    AcceptAgain,
    DrainSet,
    Emptied,
    EndAsked,
    Ended,
    FreeSlot,
    Offered,
    Refuse,
    ReportStuck,
    Slots,
    SlotState,
    Unknown,
)


def test_w7_a_slot_is_free_when_its_group_is_empty_and_not_before() -> None:
    slots = Slots(1)
    assert slots.handle(Offered("a")) == (Accept("a"),)
    slots.handle(EndAsked("a"))
    (refused,) = slots.handle(Offered("b"))
    assert isinstance(refused, Refuse)
    assert refused.code is RefusalCode.BUSY
    assert "1/1" in refused.message
    assert slots.handle(Ended("a", 2)) == (ReportStuck("a", 2),)
    assert isinstance(slots.handle(Offered("b"))[0], Refuse)
    assert slots.handle(Emptied("a")) == (FreeSlot("a"),)
    assert slots.handle(Offered("b")) == (Accept("b"),)
    assert slots.handle(Ended("b", 0)) == (FreeSlot("b"),)


def test_an_unknown_number_left_is_not_none_left() -> None:
    slots = Slots(1)
    slots.handle(Offered("a"))
    slots.handle(Ended("a", None))
    assert slots.taken == {"a": SlotState.STUCK}


def test_the_same_offer_twice_starts_once() -> None:
    slots = Slots(2)
    slots.handle(Offered("a"))
    assert slots.handle(Offered("a")) == (AcceptAgain("a"),)
    assert slots.accepted == 1


def test_w15_a_draining_worker_takes_nothing() -> None:
    slots = Slots(2)
    slots.handle(Offered("a"))
    slots.handle(DrainSet(True))
    (refused,) = slots.handle(Offered("b"))
    assert isinstance(refused, Refuse)
    assert refused.code is RefusalCode.DRAINING
    slots.handle(DrainSet(False))
    assert slots.handle(Offered("b")) == (Accept("b"),)


def test_max_dispatches_counts_what_was_accepted() -> None:
    slots = Slots(4, accept_max=2)
    slots.handle(Offered("a"))
    assert not slots.is_spent
    slots.handle(Offered("b"))
    assert slots.is_spent
    slots.handle(Ended("a", 0))
    (refused,) = slots.handle(Offered("c"))
    assert isinstance(refused, Refuse)
    assert refused.code is RefusalCode.DRAINING


def test_illegal_events_are_bugs() -> None:
    slots = Slots(1)
    for event in (Ended("a", 0), Emptied("a")):
        with pytest.raises(Bug):
            slots.handle(event)
    assert slots.handle(EndAsked("a")) == (Unknown("a"),)


class SlotsMachine(RuleBasedStateMachine):
    """Against a naive model: two sets and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = Slots(3)
        self.alive: set[str] = set()
        self.draining = False

    names = st.sampled_from(["a", "b", "c", "d", "e"])

    @rule(name=names)
    def offer(self, name: str) -> None:
        (effect,) = self.slots.handle(Offered(name))
        if name in self.alive:
            assert effect == AcceptAgain(name)
        elif self.draining or len(self.alive) == 3:
            assert isinstance(effect, Refuse)
        else:
            assert effect == Accept(name)
            self.alive.add(name)

    @rule(name=names)
    def ask(self, name: str) -> None:
        assert (self.slots.handle(EndAsked(name)) == (Unknown(name),)) == (name not in self.alive)

    @rule(name=names, left=st.sampled_from([0, 1, None]))
    def end(self, name: str, left: int | None) -> None:
        if self.slots.taken.get(name) in (SlotState.TAKEN, SlotState.ENDING):
            self.slots.handle(Ended(name, left))
            if left == 0:
                self.alive.remove(name)

    @precondition(lambda self: SlotState.STUCK in self.slots.taken.values())
    @rule(data=st.data())
    def empty(self, data: st.DataObject) -> None:
        stuck = [name for name, state in self.slots.taken.items() if state is SlotState.STUCK]
        name = data.draw(st.sampled_from(stuck))
        self.slots.handle(Emptied(name))
        self.alive.remove(name)

    @rule(draining=st.booleans())
    def drain(self, draining: bool) -> None:
        self.slots.handle(DrainSet(draining))
        self.draining = draining

    @invariant()
    def what_lives_has_a_slot(self) -> None:
        assert set(self.slots.taken) == self.alive


SlotsMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSlots = SlotsMachine.TestCase


def at(state: SlotState | None) -> Slots:
    """Slots in which `a` is in that state."""
    slots = Slots(2)
    if state is not None:
        slots.handle(Offered("a"))
    if state is SlotState.ENDING:
        slots.handle(EndAsked("a"))
    if state is SlotState.STUCK:
        slots.handle(Ended("a", 1))
    assert slots.taken.get("a") == state
    return slots


EVENTS = {Offered: Offered("a"), EndAsked: EndAsked("a"), Ended: Ended("a", 0), Emptied: Emptied("a")}


@pytest.mark.parametrize("state", [None, *SlotState])
@pytest.mark.parametrize("kind", EVENTS)
def test_every_row_of_the_table_and_every_gap(state: SlotState | None, kind: type[object]) -> None:
    slots = at(state)
    allowed = TRANSITIONS.get((state, kind))
    if allowed is None:
        with pytest.raises(Bug):
            slots.handle(EVENTS[kind])
        assert slots.taken.get("a") == state
    else:
        slots.handle(EVENTS[kind])
        assert slots.taken.get("a") in allowed
