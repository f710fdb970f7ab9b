"""When a worker dials: only closed codes stop it, waiting is jittered and capped, held steps shorten it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swamp_proto.errors import PERMANENT_REFUSALS, Bug, RefusalCode
from swamp_proto.limits import RECONNECT_S_MAX, Tempo
from swamp_worker.core import dialing
from swamp_worker.core.dialing import (
    Dial,
    DialFailed,
    Dialing,
    Enrolled,
    HoldingChanged,
    LinkLost,
    Phase,
    Refused,
    Started,
    Stop,
    Wait,
    WaitOver,
)


def after_failures(count: int, draw: float = 1.0, **options: bool) -> tuple[Dialing, list[float]]:
    machine = Dialing(lambda: draw, **options)
    machine.handle(Started(), 0.0)
    waits = []
    for _ in range(count):
        (effect,) = machine.handle(DialFailed("nobody there"), 0.0)
        assert isinstance(effect, Wait)
        waits.append(effect.delay_s)
        machine.handle(WaitOver(), 0.0)
    return machine, waits


def test_w5_no_number_of_failures_stops_it() -> None:
    machine, waits = after_failures(1000)
    assert machine.phase is Phase.DIALING
    assert waits[:8] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert max(waits) == RECONNECT_S_MAX


def test_jitter_is_full() -> None:
    _, lowest = after_failures(10, draw=0.0)
    assert set(lowest) == {0.0}


def test_an_enrollment_sets_the_waiting_back() -> None:
    machine, _ = after_failures(10)
    machine.handle(Enrolled(), 0.0)
    (wait,) = machine.handle(LinkLost("gone"), 0.0)
    assert wait == Wait(0.5)


@pytest.mark.parametrize("code", list(RefusalCode))
def test_w28_only_closed_codes_are_permanent(code: RefusalCode) -> None:
    machine = Dialing(lambda: 1.0)
    machine.handle(Started(), 0.0)
    (effect,) = machine.handle(Refused(code), 0.0)
    if code in PERMANENT_REFUSALS:
        assert effect == Stop(code.value, code)
        assert machine.phase is Phase.STOPPED
    else:
        assert isinstance(effect, Wait)


def test_w28_a_reason_that_quotes_a_keyword_is_not_permanent() -> None:
    machine = Dialing(lambda: 1.0)
    machine.handle(Started(), 0.0)
    (effect,) = machine.handle(DialFailed("token 'expired-x' revoked, already_connected"), 0.0)
    assert isinstance(effect, Wait)


def test_a_pin_that_does_not_match_is_permanent() -> None:
    machine = Dialing(lambda: 1.0)
    machine.handle(Started(), 0.0)
    (effect,) = machine.handle(DialFailed("pin", permanent=True), 0.0)
    assert isinstance(effect, Stop)


def test_a_hint_is_waited_for_with_jitter_on_top() -> None:
    machine = Dialing(lambda: 0.5)
    machine.handle(Started(), 0.0)
    assert machine.handle(Refused(RefusalCode.OVERLOADED, 7.0), 100.0) == (Wait(7.25),)
    assert machine.next_deadline() == 107.25


def test_w47_without_reconnection_a_failure_is_one_only_if_it_never_enrolled() -> None:
    never, _ = after_failures(0, reconnect=False)
    assert never.handle(DialFailed("dead"), 0.0) == (Stop("dead", failed=True),)
    once = Dialing(lambda: 1.0, reconnect=False)
    once.handle(Started(), 0.0)
    once.handle(Enrolled(), 0.0)
    assert once.handle(LinkLost("gone"), 0.0) == (Stop("gone", failed=False),)


@given(
    st.floats(1.0, 3600.0), st.floats(0.0, 0.999), st.one_of(st.none(), st.floats(0, 1e6)), st.integers(0, 40)
)
def test_while_steps_are_held_it_hurries(
    grace_s: float, draw: float, hint: float | None, failures: int
) -> None:
    machine, _ = after_failures(failures, draw)
    machine.handle(HoldingChanged(True, grace_s), 0.0)
    (effect,) = machine.handle(Refused(RefusalCode.RESTARTING, hint), 0.0)
    assert isinstance(effect, Wait)
    assert effect.delay_s <= Tempo(grace_s).redial_s_max
    (dial,) = machine.handle(WaitOver(), 0.0)
    assert isinstance(dial, Dial)
    assert dial.timeout_s <= max(dialing.CONNECT_S_MIN, grace_s / 12)


def test_holding_shortens_a_wait_that_has_begun() -> None:
    machine, _ = after_failures(10)
    machine.handle(DialFailed("dead"), 0.0)
    assert machine.next_deadline() == 30.0
    machine.handle(HoldingChanged(True, 60.0), 1.0)
    assert machine.next_deadline() == 6.0


def test_illegal_events_are_bugs() -> None:
    machine = Dialing(lambda: 1.0)
    for event in (WaitOver(), Enrolled(), LinkLost("x"), DialFailed("x"), Refused(RefusalCode.BUSY)):
        with pytest.raises(Bug):
            machine.handle(event, 0.0)
    machine.handle(Started(), 0.0)
    with pytest.raises(Bug):
        machine.handle(Started(), 0.0)


EVENTS = st.one_of(
    st.just(WaitOver()),
    st.builds(DialFailed, st.just("x"), st.just(False)),
    st.builds(Refused, st.sampled_from(RefusalCode), st.one_of(st.none(), st.floats(0, 60))),
    st.just(Enrolled()),
    st.builds(LinkLost, st.just("x"), st.one_of(st.none(), st.floats(0, 60))),
    st.builds(HoldingChanged, st.booleans(), st.floats(1, 100)),
)


@given(st.lists(EVENTS, max_size=60), st.floats(0, 0.999))
def test_every_legal_history_keeps_the_rules(events: list[dialing.Happening], draw: float) -> None:
    machine = Dialing(lambda: draw)
    attempts = 0
    effect: dialing.Effect | None
    (effect,) = machine.handle(Started(), 0.0)
    for now, event in enumerate(events):
        if isinstance(effect, Dial):
            attempts += 1
            assert effect.attempt == attempts
            effect = None
        if (machine.phase, type(event)) not in dialing.TRANSITIONS:
            continue
        effects = machine.handle(event, float(now))
        if isinstance(event, HoldingChanged | Enrolled):
            assert effects == ()
            effect = None
        else:
            (effect,) = effects
        assert (machine.next_deadline() is None) == (machine.phase is not Phase.WAITING)
        if machine.phase is Phase.STOPPED:
            assert isinstance(effect, Stop | None)
            assert not isinstance(effect, Stop) or effect.refusal in PERMANENT_REFUSALS
