"""What running steps ask of the orchestrator, across links: the shell around `core.calls`, and the gate of the data plane.

Rules that hold here:

- Whoever asks waits for an answer, not for a link. A drop, a restart of the orchestrator or a "not now" is not heard of.
- Before anything is sent for a step, its holder is asked whether it has given up by now (`Gate.closed`, by the clock that
  counts suspended time). Afterwards nothing is sent: neither a call that waited nor a request of the data plane.
- When a dispatch is closed, its open calls and its requests under way end at once with `LEASE_ENDED`.

It does not know HTTP, and decides nothing about order, repetition or pauses.
"""

import contextlib
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, Protocol

import attrs
import trio

from swamp_proto.capabilities import CallRefused
from swamp_proto.envelope import Failure, Request, Response
from swamp_proto.errors import Bug, RefusalCode
from swamp_proto.limits import CALLS_PER_DISPATCH_MAX, DATA_RETRY_S_MAX
from swamp_proto.messages.capability import Call, CallAnswer, CallCode
from swamp_worker.core import calls
from swamp_worker.shell.control import Link, Reply

_FAILURES: Final = {
    RefusalCode.LEASE_ENDED: CallCode.LEASE_ENDED,
    RefusalCode.UNKNOWN_DISPATCH: CallCode.LEASE_ENDED,
    RefusalCode.MALFORMED: CallCode.INVALID,
    RefusalCode.UNLAWFUL: CallCode.INVALID,
    RefusalCode.TOO_LARGE: CallCode.TOO_LARGE,
}
"""A failure in place of an answer. Any other is "not now"."""


class Gate(Protocol):
    """What the holder knows that calls and requests must heed."""

    def closed(self, dispatch: str) -> str | None:
        """Why nothing may be sent for it any more; None while it may."""
        ...

    def wake(self) -> None:
        """There may be something to send."""
        ...

    @property
    def pause_s_max(self) -> float:
        """The longest wait before something is tried again while steps are held."""
        ...


@attrs.define(eq=False)
class _Waiting:
    call: Call
    news: trio.Event = attrs.field(factory=trio.Event)
    answer: CallAnswer | None = None
    refused: CallRefused | None = None
    pause_s: float | None = None

    def tell(self) -> None:
        self.news.set()


class _Unattached:
    def closed(self, dispatch: str) -> str | None:
        return "this worker does not run"

    def wake(self) -> None:
        pass

    pause_s_max = DATA_RETRY_S_MAX


class StepCalls:
    """One per worker. The daemon tells it of links and ends (`feed`, `link_down`, `close`, `forget`); steps use `ask`,
    `check` and `guard`.
    """

    def __init__(self, draw: Callable[[], float] | None = None) -> None:
        self.draw = draw or random.SystemRandom().random
        self._core = calls.Calls(self.draw)
        self._gate: Gate = _Unattached()
        self._waiting: dict[tuple[str, int], _Waiting] = {}
        self._reasons: dict[str, str] = {}  # of closed dispatches
        self._scopes: dict[str, set[trio.CancelScope]] = {}
        self._room = trio.lowlevel.ParkingLot()

    def attach(self, gate: Gate) -> None:
        """The holder whose word counts."""
        self._gate = gate

    @property
    def pause_s_max(self) -> float:
        return min(DATA_RETRY_S_MAX, self._gate.pause_s_max)

    # ── steps ───────────────────────────────────────────────────────────────────────────────────────────────
    def check(self, dispatch: str) -> None:
        """Raises `CallRefused` (`LEASE_ENDED`) when nothing may be sent for the dispatch any more."""
        reason = self._reasons.get(dispatch) or self._gate.closed(dispatch)
        if reason is not None:
            raise _ended(reason)

    @contextlib.contextmanager
    def guard(self, dispatch: str) -> Iterator[None]:
        """What happens inside ends with `CallRefused` (`LEASE_ENDED`) when the dispatch is closed."""
        self.check(dispatch)
        scopes = self._scopes.setdefault(dispatch, set())
        scope = trio.CancelScope()
        scopes.add(scope)
        try:
            with scope:
                yield
        finally:
            scopes.discard(scope)
            if not scopes and self._scopes.get(dispatch) is scopes:
                del self._scopes[dispatch]
        if scope.cancelled_caught:
            raise _ended(self._reasons.get(dispatch, "it is over"))

    async def ask(self, call: Call) -> CallAnswer:
        """The answer to a call; may be a refusal. Raises `CallRefused` when there will be none."""
        key = (call.dispatch, call.number)
        while self._core.open_of(call.dispatch) >= CALLS_PER_DISPATCH_MAX:
            await self._room.park()
        self.check(call.dispatch)
        if key in self._waiting:
            raise Bug(f"call {call.number} of {call.dispatch} is asked twice")
        waiting = self._waiting[key] = _Waiting(call)
        try:
            self._act(calls.Asked(*key))
            self._gate.wake()
            while True:
                if waiting.refused is None and waiting.answer is None:
                    await self._news(waiting)
                if waiting.refused is not None:
                    raise waiting.refused
                if waiting.answer is not None:
                    return waiting.answer
        finally:
            del self._waiting[key]
            if self._core.state(*key) is not None:
                self._core.handle(calls.Withdrawn(*key))
            self._room.unpark_all()

    async def _news(self, waiting: _Waiting) -> None:
        """Until something happened to a call, resting where it was put off."""
        await waiting.news.wait()
        waiting.news = trio.Event()
        if waiting.pause_s is not None:
            pause_s, waiting.pause_s = min(waiting.pause_s, self.pause_s_max), None
            with trio.move_on_after(pause_s):
                await waiting.news.wait()  # it can only be closed meanwhile
            key = (waiting.call.dispatch, waiting.call.number)
            if self._core.state(*key) is calls.State.RESTING:
                self._core.handle(calls.Rested(*key))
                self._gate.wake()

    # ── the daemon ──────────────────────────────────────────────────────────────────────────────────────────
    def feed(self, link: Link) -> Request | None:
        """The next call for the writer of a link."""
        while (key := self._core.sendable()) is not None:
            waiting = self._waiting[key]
            if (reason := self._gate.closed(waiting.call.dispatch)) is not None:
                self.close(waiting.call.dispatch, reason)
                continue
            self._core.handle(calls.Sent(*key))
            return link.request(waiting.call, partial(self._on_reply, waiting))
        return None

    def link_down(self) -> None:
        self._core.handle(calls.LinkDown())

    def close(self, dispatch: str, reason: str) -> None:
        """Nothing is sent for it any more; whoever waits is told. Idempotent: the first reason stays."""
        if self._core.is_closed(dispatch):
            return
        self._reasons[dispatch] = reason
        self._act(calls.Closed(dispatch))
        for scope in self._scopes.get(dispatch, ()):
            scope.cancel()

    def forget(self, dispatch: str) -> None:
        """The dispatch is held no longer; the gate will say so."""
        self.close(dispatch, "the step is over")
        self._core.handle(calls.Forgotten(dispatch))
        del self._reasons[dispatch]

    def _on_reply(self, waiting: _Waiting, reply: Reply) -> None:
        key = (waiting.call.dispatch, waiting.call.number)
        if self._core.state(*key) is not calls.State.SENT or self._waiting.get(key) is not waiting:
            return  # withdrawn or closed meanwhile
        match reply:
            case Response(body=CallAnswer(code=CallCode.UNAVAILABLE)):
                self._act(calls.PutOff(*key))
            case Response(body=CallAnswer() as answer):
                waiting.answer = answer
                self._act(calls.Answered(*key))
            case Failure(failure=failure) if failure.code in _FAILURES:
                waiting.refused = CallRefused(_FAILURES[failure.code], failure.message)
                self._act(calls.Answered(*key))
            case Failure(failure=failure):
                self._act(calls.PutOff(*key, failure.retry_after_s))
        waiting.tell()

    def _act(self, event: calls.Happening) -> None:
        for effect in self._core.handle(event):
            match effect:
                case calls.RestFor(dispatch, number, pause_s):
                    self._waiting[dispatch, number].pause_s = pause_s
                case calls.Refuse(dispatch, number):
                    waiting = self._waiting[dispatch, number]
                    waiting.refused = _ended(self._reasons[dispatch])
                    waiting.tell()


def _ended(reason: str) -> CallRefused:
    return CallRefused(CallCode.LEASE_ENDED, f"nothing is admitted for this step any more: {reason}")
