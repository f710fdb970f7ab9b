"""Bugs planted in the rules of the control session: the session pair machine (tests/proto) finds each of them."""

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from planted import planted

sys.path.insert(0, str(Path(__file__).parents[1] / "proto"))

import test_proto_session_machine as pair

from swamp_proto import session as real
from swamp_proto.errors import Broken, Bug, UnlawfulMessage

SHARED = ("Answered", "Asked", "Moved", "Session", "State", "Told", "Withdrawn")

BUGS = {
    "a second enrollment is lawful": ("            if self._enroll_seen:\n", "            if False:\n"),
    "ids may come again": ("        if frame.id <= sender.last_id:\n", "        if False:\n"),
    "an event may be sent as a request": ("        if rule.reply is None:\n", "        if False:\n"),
    "a request may be sent as an event": ("        if rule.reply is not None:\n", "        if False:\n"),
    "anybody may say anything": (
        "        if kind not in PERMITTED[self._state][sender.sender]:\n",
        "        if kind not in RULE_BY_BODY:\n",
    ),
    "a cancel of what was never sent is lawful": (
        "        if not 0 < frame.id <= sender.last_id:\n",
        "        if False:\n",
    ),
    "an enrollment can be cancelled": ("        if found[1].body is Enroll:\n", "        if False:\n"),
    "a crossing cancel is unlawful": (
        "            return None  # the answer crossed it\n",
        "            raise _Unlawful('a cancel of what was answered')\n",
    ),
    "an answer may name another request": ("        if frame.name != rule.name:\n", "        if False:\n"),
    "an answer may be of another class": (
        "        if isinstance(frame, Response) and type(frame.body) is not rule.reply:\n",
        "        if False:\n",
    ),
    "an answer may come twice": ("        del other.open[frame.id]\n", "        other.open[frame.id]\n"),
    "a refused enrollment opens the session": (
        "Happening.ENROLLED if isinstance(frame, Response) else Happening.ENROLL_REFUSED",
        "Happening.ENROLLED",
    ),
    "after the farewell the orchestrator may go on": (
        "self._state is State.DRAINING and sender.sender is _O",
        "self._state is State.DRAINING and False",
    ),
    "a farewell changes nothing": ("            self._move(Happening.FAREWELL)\n", "            pass\n"),
    "an unlawful frame leaves the session open": (
        "            self._state = State.CLOSED\n            raise UnlawfulMessage",
        "            raise UnlawfulMessage",
    ),
    "an enroll frame that crossed the farewell is unlawful": (
        "_bodies(_W, enrolled=True) | {Enroll}, _O: _NOTHING",
        "_bodies(_W, enrolled=True), _O: _NOTHING",
    ),
}


def profile(examples: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=40,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    core = planted((real,), *BUGS[bug])
    for name in SHARED:
        monkeypatch.setattr(pair, name, getattr(core, name))
    with pytest.raises((AssertionError, Bug, Broken, KeyError, UnlawfulMessage)):
        run_state_machine_as_test(pair.Conversation, settings=profile(1_000))


def test_without_a_bug_nothing_is_caught() -> None:
    """The other side of the coin: the same harness over an unchanged copy is silent."""
    run_state_machine_as_test(pair.Conversation, settings=profile(20))
