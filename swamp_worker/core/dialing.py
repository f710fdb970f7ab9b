"""When to dial, how long to wait, and when never to dial again.

Rules that hold here:

- Only the refusals of `errors.PERMANENT_REFUSALS` (and a pin that does not match) stop a worker for good.
  Everything else is retried for ever: no number of failures ends it, and nothing is read from the text of
  an error.
- Waiting is full jitter: evenly between nothing and a ceiling that starts at 0.5 s, doubles with each
  failure in a row, and ends at 30 s. An enrollment sets it back. While steps are held, the ceiling is G/12:
  they die of waiting.
- A hint of the server is waited for first, the jitter comes on top; not while steps are held beyond G/12.
- Without reconnection the first end of anything is the end; it is a failure only if the worker never
  enrolled.

It does not know sockets, and draws no random number itself: `draw` is passed in.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Final

import attrs

from swamp_proto.errors import PERMANENT_REFUSALS, Bug, RefusalCode
from swamp_proto.limits import RECONNECT_S_MAX, RECONNECT_S_MIN, Tempo

CONNECT_S_MAX: Final = 10.0  # one attempt, from the name to the answered enroll frame
CONNECT_S_MIN: Final = 0.5  # … also while steps are held under a very short grace


class Phase(StrEnum):
    RESTING = "resting"  # nothing has begun
    WAITING = "waiting"  # for the next attempt
    DIALING = "dialing"
    ENROLLED = "enrolled"
    STOPPED = "stopped"


# ── events: what happened ───────────────────────────────────────────────────────────────────────────────────


@attrs.frozen
class Started:
    pass


@attrs.frozen
class WaitOver:
    """The deadline of `next_deadline` has come."""


@attrs.frozen
class DialFailed:
    """No link, or one that ended before the enroll frame was answered."""

    reason: str
    permanent: bool = False  # a pin that does not match


@attrs.frozen
class Refused:
    """The enroll frame was answered with a no."""

    code: RefusalCode
    retry_after_s: float | None = None


@attrs.frozen
class Enrolled:
    pass


@attrs.frozen
class LinkLost:
    """An enrolled link ended."""

    reason: str
    retry_after_s: float | None = None


@attrs.frozen
class HoldingChanged:
    """Whether anything is held, and the grace window that counts for it."""

    holding: bool
    grace_s: float


Happening = Started | WaitOver | DialFailed | Refused | Enrolled | LinkLost | HoldingChanged


# ── effects: what to do ─────────────────────────────────────────────────────────────────────────────────────


@attrs.frozen
class Dial:
    attempt: int  # from 1, over the life of the process
    timeout_s: float


@attrs.frozen
class Wait:
    """Until `next_deadline()`; for people `delay_s`."""

    delay_s: float


@attrs.frozen
class Stop:
    """Never dial again. `failed` is false when it was asked for and had enrolled."""

    reason: str
    refusal: RefusalCode | None = None
    failed: bool = True


Effect = Dial | Wait | Stop

TRANSITIONS: Final[dict[tuple[Phase, type[object]], frozenset[Phase]]] = {
    (Phase.RESTING, Started): frozenset({Phase.DIALING}),
    (Phase.WAITING, WaitOver): frozenset({Phase.DIALING}),
    (Phase.WAITING, HoldingChanged): frozenset({Phase.WAITING}),
    (Phase.DIALING, HoldingChanged): frozenset({Phase.DIALING}),
    (Phase.ENROLLED, HoldingChanged): frozenset({Phase.ENROLLED}),
    (Phase.RESTING, HoldingChanged): frozenset({Phase.RESTING}),
    (Phase.STOPPED, HoldingChanged): frozenset({Phase.STOPPED}),
    (Phase.DIALING, DialFailed): frozenset({Phase.WAITING, Phase.STOPPED}),
    (Phase.DIALING, Refused): frozenset({Phase.WAITING, Phase.STOPPED}),
    (Phase.DIALING, Enrolled): frozenset({Phase.ENROLLED}),
    (Phase.ENROLLED, LinkLost): frozenset({Phase.WAITING, Phase.STOPPED}),
}


class Dialing:
    """`handle` an event at `now` (seconds, any steady clock) and get at most one thing to do."""

    def __init__(self, draw: Callable[[], float], *, reconnect: bool = True) -> None:
        self._draw = draw  # evenly from [0, 1)
        self._reconnect = reconnect
        self.phase = Phase.RESTING
        self.ever_enrolled = False
        self._attempt = 0
        self._failures = 0  # in a row
        self._holding_s: float | None = None  # grace window while something is held
        self._deadline: float | None = None

    def next_deadline(self) -> float | None:
        """When to say `WaitOver`."""
        return self._deadline

    def handle(self, event: Happening, now: float) -> tuple[Effect, ...]:
        """Raises Bug for an event that cannot happen now."""
        if (self.phase, type(event)) not in TRANSITIONS:
            raise Bug(f"dialing: {event} while {self.phase.value}")
        before = self.phase
        effects = self._apply(event, now)
        if self.phase not in TRANSITIONS[before, type(event)]:
            raise Bug(f"dialing: {before.value} to {self.phase.value} by {event}")
        self.check()
        return effects

    def check(self) -> None:
        """Invariants."""
        assert (self._deadline is not None) == (self.phase is Phase.WAITING)
        assert self._failures >= 0

    def _apply(self, event: Happening, now: float) -> tuple[Effect, ...]:
        match event:
            case Started() | WaitOver():
                return self._dial()
            case HoldingChanged(holding, grace_s):
                self._holding_s = grace_s if holding else None
                if self.phase is Phase.WAITING and self._holding_s is not None:
                    assert self._deadline is not None
                    self._deadline = min(self._deadline, now + Tempo(self._holding_s).redial_s_max)
                return ()
            case Enrolled():
                self.phase, self.ever_enrolled, self._failures = Phase.ENROLLED, True, 0
                return ()
            case DialFailed(reason, permanent):
                return self._stop(reason) if permanent else self._again(reason, None, now)
            case Refused(code, retry_after_s):
                if code in PERMANENT_REFUSALS:
                    return self._stop(code.value, code)
                return self._again(code.value, retry_after_s, now)
            case LinkLost(reason, retry_after_s):
                return self._again(reason, retry_after_s, now)

    def _dial(self) -> tuple[Effect, ...]:
        self.phase, self._deadline = Phase.DIALING, None
        self._attempt += 1
        timeout_s = CONNECT_S_MAX
        if self._holding_s is not None:
            timeout_s = min(timeout_s, max(CONNECT_S_MIN, Tempo(self._holding_s).redial_s_max))
        return (Dial(self._attempt, timeout_s),)

    def _again(self, reason: str, retry_after_s: float | None, now: float) -> tuple[Effect, ...]:
        if not self._reconnect:
            self.phase, self._deadline = Phase.STOPPED, None
            return (Stop(reason, failed=not self.ever_enrolled),)
        ceiling_s = min(RECONNECT_S_MAX, RECONNECT_S_MIN * 2.0 ** min(self._failures, 30))
        self._failures += 1
        delay_s = (retry_after_s or 0.0) + ceiling_s * self._draw()
        if self._holding_s is not None:
            limit_s = Tempo(self._holding_s).redial_s_max
            delay_s = min((retry_after_s or 0.0) + min(ceiling_s, limit_s) * self._draw(), limit_s)
        self.phase, self._deadline = Phase.WAITING, now + delay_s
        return (Wait(delay_s),)

    def _stop(self, reason: str, refusal: RefusalCode | None = None) -> tuple[Effect, ...]:
        self.phase, self._deadline = Phase.STOPPED, None
        return (Stop(reason, refusal),)
