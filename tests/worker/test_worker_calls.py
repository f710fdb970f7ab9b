"""Capability calls: one count, kept until answered, said again on the next link, and none after the holder gave up."""
# ruff: noqa: ASYNC110 - the clock jumps: a look every 0.1 s costs nothing and hopes for nothing

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from conftest import shell
from test_worker_daemon import World, world

from swamp_proto.capabilities import CallRefused
from swamp_proto.errors import Bug, RefusalCode
from swamp_proto.limits import CALLS_PER_DISPATCH_MAX, CONTROL_FRAME_MAX
from swamp_proto.messages.capability import Call, CallAnswer, CallCode, Verb
from swamp_proto.messages.dispatch import Dispatch
from swamp_proto.messages.enrollment import Verdict
from swamp_worker.core import calls as c
from swamp_worker.core.calls import Calls, State
from swamp_worker.shell.access import RemoteAccess
from swamp_worker.shell.calls import StepCalls
from swamp_worker.shell.dataplane import DataPlane

# ── the core ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_call_is_sent_once_per_link_until_it_is_answered() -> None:
    calls = Calls(lambda: 0.5)
    calls.handle(c.Asked("a", 1))
    assert calls.sendable() == ("a", 1)
    calls.handle(c.Sent("a", 1))
    assert calls.sendable() is None
    calls.handle(c.LinkDown())
    assert calls.sendable() == ("a", 1)
    calls.handle(c.Sent("a", 1))
    assert calls.handle(c.Answered("a", 1)) == ()
    calls.handle(c.LinkDown())
    assert calls.sendable() is None


def test_dispatches_take_turns_and_calls_go_in_the_order_they_were_asked() -> None:
    calls = Calls(lambda: 0.5)
    for name, number in (("a", 1), ("a", 2), ("a", 3), ("b", 1)):
        calls.handle(c.Asked(name, number))
    order = []
    while (key := calls.sendable()) is not None:
        order.append(key)
        calls.handle(c.Sent(*key))
    assert order == [("a", 1), ("b", 1), ("a", 2), ("a", 3)]


def test_what_is_put_off_rests_ever_longer() -> None:
    calls = Calls(lambda: 1.0)
    calls.handle(c.Asked("a", 1))
    pauses = []
    for hint in (None, None, 7.0, *(None,) * 10):
        calls.handle(c.Sent("a", 1))
        (rest,) = calls.handle(c.PutOff("a", 1, hint))
        assert isinstance(rest, c.RestFor)
        pauses.append(rest.pause_s)
        assert calls.sendable() is None
        calls.handle(c.Rested("a", 1))
    assert pauses[:4] == [0.2, 0.4, 7.8, 1.6]
    assert pauses[-1] == 5.0


def test_a_closed_dispatch_gets_no_call() -> None:
    calls = Calls(lambda: 0.5)
    calls.handle(c.Asked("a", 1))
    calls.handle(c.Asked("a", 2))
    calls.handle(c.Sent("a", 1))
    assert calls.handle(c.Closed("a")) == (c.Refuse("a", 1), c.Refuse("a", 2))
    assert calls.handle(c.Asked("a", 3)) == (c.Refuse("a", 3),)
    assert calls.sendable() is None
    calls.handle(c.Forgotten("a"))
    assert not calls.is_closed("a")


def test_a_number_is_open_once_and_the_bound_holds() -> None:
    calls = Calls(lambda: 0.5)
    for number in range(1, CALLS_PER_DISPATCH_MAX + 1):
        calls.handle(c.Asked("a", number))
    for event in (c.Asked("a", 1), c.Asked("a", 99), c.Answered("a", 1), c.Rested("a", 1), c.Forgotten("a")):
        with pytest.raises(Bug):
            calls.handle(event)


@pytest.mark.parametrize("first_seed", [0, 50])
def test_every_lawful_course_keeps_the_invariants_and_every_row_is_reached(first_seed: int) -> None:
    kinds = (c.Asked, c.Sent, c.Answered, c.PutOff, c.Rested, c.Withdrawn, c.LinkDown, c.Closed, c.Forgotten)
    reached: set[tuple[State | None, type[object]]] = set()
    for seed in range(first_seed, first_seed + 50):
        draw = random.Random(seed)
        calls = Calls(draw.random)
        for _ in range(200):
            kind: Any = draw.choices(kinds, (9, 9, 3, 3, 3, 2, 1, 1, 1))[0]
            name, number = draw.choice("abc"), draw.randint(1, 4)
            states = {each: calls.state(name, each) for each in range(1, 5)}
            if kind is c.LinkDown:
                calls.handle(c.LinkDown())
            elif kind is c.Closed:
                told = calls.handle(c.Closed(name))
                assert {each.number for each in told} == {each for each in states if states[each]}
            elif kind is c.Forgotten:
                if calls.open_of(name):
                    continue
                calls.handle(c.Forgotten(name))
                continue
            elif calls.is_closed(name) or (states[number], kind) not in c.TRANSITIONS:
                continue
            else:
                calls.handle(kind(name, number))
                assert calls.state(name, number) == c.TRANSITIONS[states[number], kind]
                reached.add((states[number], kind))
                continue
            reached |= {(state, kind) for state in states.values() if state}
    assert reached == set(c.TRANSITIONS)


# ── across links ────────────────────────────────────────────────────────────────────────────────────────────


def access(calls: StepCalls) -> RemoteAccess:
    return RemoteAccess(calls, DataPlane("http://nobody.invalid", calls))


async def delete(calls: StepCalls, step: Dispatch, number: int, told: list[Any]) -> None:
    try:
        told.append(await access(calls).call(step, number, Verb.DELETE, {"name": "x"}))
    except CallRefused as refused:
        told.append(refused)


async def until(look: Callable[[], object]) -> None:
    while not look():
        await trio.sleep(0.1)


async def running(w: World) -> Dispatch:
    await w.orchestrator.linked()
    step = shell("true")
    await w.orchestrator.start(step)
    await until(lambda: step.dispatch in w.executor.running)
    return step


async def test_a_call_is_answered(tmp_path: Path, autojump_clock: Any) -> None:
    calls, told = StepCalls(lambda: 0.5), list[Any]()
    async with world(tmp_path, calls=calls) as w:
        step = await running(w)
        await delete(calls, step, 1, told)
        assert told == [{"deleted": True, "version": 1}]


async def test_calls_survive_a_cut_and_act_once(tmp_path: Path, autojump_clock: Any) -> None:
    calls, told = StepCalls(lambda: 0.5), list[Any]()
    async with world(tmp_path, calls=calls) as w:
        step = await running(w)
        w.orchestrator.answers_calls = False
        for number in range(1, 6):
            w.nursery.start_soon(delete, calls, step, number, told)
        await w.orchestrator.until(lambda: len(w.orchestrator.calls) == 5)
        w.orchestrator.cut()
        w.orchestrator.answers_calls = True
        await until(lambda: len(told) == 5)
        assert sorted(each["version"] for each in told) == [1, 2, 3, 4, 5]
        sent = [call.number for call in w.orchestrator.calls]
        assert sorted(sent[:5]) == [1, 2, 3, 4, 5]
        assert sent[5:] == sent[:5]
        assert len(w.orchestrator.acted) == 5


async def test_a_call_asked_while_offline_waits_for_the_next_link(
    tmp_path: Path, autojump_clock: Any
) -> None:
    calls, told = StepCalls(lambda: 0.5), list[Any]()
    async with world(tmp_path, calls=calls) as w:
        step = await running(w)
        w.orchestrator.offline = True
        w.orchestrator.cut()
        w.nursery.start_soon(delete, calls, step, 1, told)
        await trio.sleep(20)
        assert told == []
        w.orchestrator.offline = False
        await until(lambda: told)
        assert told == [{"deleted": True, "version": 1}]


async def test_a_dropped_dispatch_ends_its_calls_with_lease_ended(
    tmp_path: Path, autojump_clock: Any
) -> None:
    calls, told = StepCalls(lambda: 0.5), list[Any]()
    async with world(tmp_path, calls=calls) as w:
        step = await running(w)
        w.orchestrator.answers_calls = False
        w.nursery.start_soon(delete, calls, step, 1, told)
        await w.orchestrator.until(lambda: w.orchestrator.calls)
        w.orchestrator.verdict = lambda held: Verdict.DROP
        w.orchestrator.cut()
        await until(lambda: told)
        assert told[0].call_code is CallCode.LEASE_ENDED
        assert "given it up" in told[0].message
        await until(lambda: w.worker.held == 0)
        await delete(calls, step, 2, told)
        assert told[1].call_code is CallCode.LEASE_ENDED
        assert [call.number for call in w.orchestrator.calls] == [1]


async def test_nothing_is_sent_after_the_give_up_instant(tmp_path: Path, autojump_clock: Any) -> None:
    """Also when the executor has not noticed yet, and when a link is there again."""
    calls, told = StepCalls(lambda: 0.5), list[Any]()
    boot: list[float] = [0.0]
    async with world(tmp_path, calls=calls, boot_s=lambda: trio.current_time() + boot[0]) as w:
        step = await running(w)
        boot[0] = 56.0  # the machine slept: ⅞G is over, and no task of ours has run since
        await delete(calls, step, 1, told)
        assert told[0].call_code is CallCode.LEASE_ENDED
        assert w.orchestrator.calls == []
        w.executor.end(step)


async def test_not_now_is_asked_again_and_a_failure_for_good_is_told(
    tmp_path: Path, autojump_clock: Any
) -> None:
    calls, told = StepCalls(lambda: 0.5), list[Any]()
    async with world(tmp_path, calls=calls) as w:
        step = await running(w)
        w.orchestrator.unavailable = 3
        w.orchestrator.call_failures += [RefusalCode.OVERLOADED, RefusalCode.RESTARTING]
        await delete(calls, step, 1, told)
        assert told == [{"deleted": True, "version": 1}]
        assert len(w.orchestrator.calls) == 6
        w.orchestrator.call_failures += [RefusalCode.LEASE_ENDED]
        await delete(calls, step, 2, told)
        assert told[1].call_code is CallCode.LEASE_ENDED


async def test_a_call_that_nobody_waits_for_is_not_said_again(tmp_path: Path, autojump_clock: Any) -> None:
    calls, told = StepCalls(lambda: 0.5), list[Any]()
    async with world(tmp_path, calls=calls) as w:
        step = await running(w)
        w.orchestrator.answers_calls = False
        with trio.move_on_after(1):
            await delete(calls, step, 1, told)
        w.orchestrator.cut()
        await w.orchestrator.linked(2)
        await trio.testing.wait_all_tasks_blocked()
        assert [call.number for call in w.orchestrator.calls] == [1]
        w.executor.end(step)
        await until(lambda: w.worker.held == 0)


async def test_more_calls_than_may_be_open_wait_their_turn(tmp_path: Path, autojump_clock: Any) -> None:
    calls, told = StepCalls(lambda: 0.5), list[Any]()
    async with world(tmp_path, calls=calls) as w:
        step = await running(w)
        w.orchestrator.answers_calls = False
        for number in range(1, CALLS_PER_DISPATCH_MAX + 11):
            w.nursery.start_soon(delete, calls, step, number, told)
        await trio.testing.wait_all_tasks_blocked()
        assert len(w.orchestrator.calls) == CALLS_PER_DISPATCH_MAX
        w.orchestrator.answers_calls = True
        w.orchestrator.cut()
        await until(lambda: len(told) == CALLS_PER_DISPATCH_MAX + 10)
        assert len(w.orchestrator.acted) == CALLS_PER_DISPATCH_MAX + 10


async def test_what_cannot_be_sent_is_refused_here(tmp_path: Path, autojump_clock: Any) -> None:
    calls = StepCalls(lambda: 0.5)
    async with world(tmp_path, calls=calls) as w:
        step = await running(w)
        ask = access(calls).call
        with pytest.raises(CallRefused, match="takes no 'nme'"):
            await ask(step, 1, Verb.DELETE, {"nme": "x"})
        with pytest.raises(CallRefused, match="larger than 4 MiB") as refused:
            await ask(step, 2, Verb.DELETE, {"name": "x" * CONTROL_FRAME_MAX})
        assert refused.value.call_code is CallCode.TOO_LARGE
        assert w.orchestrator.calls == []
        w.orchestrator.acted[step.dispatch, 3] = CallAnswer(step.dispatch, 3, None, "", {"deleted": "yes"})
        with pytest.raises(CallRefused, match="orchestrator's answer") as refused:
            await ask(step, 3, Verb.DELETE, {"name": "x"})
        assert refused.value.call_code is CallCode.INTERNAL
        assert w.orchestrator.calls == [Call(step.dispatch, step.fence, 3, Verb.DELETE, {"name": "x"})]
