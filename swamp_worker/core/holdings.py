"""What a worker holds across a drop of its link: running steps, unsent lines, undelivered ends, and for how
long.

Rules that hold here:

- A dispatch is held from its acceptance until its end was noted by the orchestrator, or dropped by its
  verdict and then reaped.
- L is the send instant, on the boot clock, of the newest heartbeat (or enroll frame) whose answer arrived.
  Nothing else renews. At L + ¾G everything that runs is asked to end (TERM), at L + ⅞G it is killed; what
  ends after that is `abandoned`.
- Lines are numbered per dispatch from 1 and kept until noted; the end is sent after the last line, on
  whatever link there is, until it is noted. A new link begins again behind the last noted line. No more than
  `LOG_WINDOW_*` is sent and not noted: what waits in buffers on the way delays everything behind it.
- Verdicts touch only what was listed in the enroll frame they answer. One that is missing is a drop: who
  does not know a dispatch does not want it.

All instants are seconds of one boot clock. It does not know processes, files, frames or what a line says.
"""

from collections import deque
from enum import StrEnum
from typing import Final

import attrs

from swamp_proto.errors import Bug
from swamp_proto.limits import LOG_WINDOW_BYTES, LOG_WINDOW_LINES, Tempo
from swamp_proto.messages.enrollment import HeldDispatch, HeldPhase, HeldVerdict, Verdict


class Phase(StrEnum):
    RUNNING = "running"
    ENDING = "ending"  # asked to end, not yet reaped; its end will be reported
    DROPPED = "dropped"  # not wanted any more, not yet reaped; nobody wants its end
    FINISHED = "finished"  # its end waits to be noted


WIRE_PHASE: Final[dict[Phase, HeldPhase]] = {
    Phase.RUNNING: HeldPhase.RUNNING,
    Phase.ENDING: HeldPhase.ENDING,
    Phase.DROPPED: HeldPhase.ENDING,
    Phase.FINISHED: HeldPhase.FINISHED,
}


# ── events ──────────────────────────────────────────────────────────────────────────────────────────────────


@attrs.frozen
class Taken:
    """Accepted, and about to run."""

    dispatch: str
    fence: int


@attrs.frozen
class LinesKept:
    """Every line up to `through` can be sent."""

    dispatch: str
    through: int


@attrs.frozen
class LinesSent:
    """`size`: bytes of their text, a line end for each."""

    dispatch: str
    through: int
    size: int = 0


@attrs.frozen
class LinesNoted:
    dispatch: str
    through: int


@attrs.frozen
class CancelAsked:
    """By the orchestrator."""

    dispatch: str


@attrs.frozen
class Ended:
    """The execution is over; what is left of its processes is the slots' business."""

    dispatch: str
    last_line: int


@attrs.frozen
class FinishSent:
    dispatch: str


@attrs.frozen
class FinishRefused:
    """Answered with a failure that another try may overcome."""

    dispatch: str


@attrs.frozen
class FinishNoted:
    """Durable, or refused for good: nothing more to do either way."""

    dispatch: str


@attrs.frozen
class Renewed:
    """A request sent at `sent_at` was answered."""

    sent_at: float


@attrs.frozen
class LinkUp:
    """The enroll frame sent at `sent_at` was answered."""

    sent_at: float
    grace_s: float
    listed: tuple[str, ...]
    verdicts: tuple[HeldVerdict, ...]


@attrs.frozen
class LinkDown:
    pass


@attrs.frozen
class TimePassed:
    """`next_deadline()` may have come."""


@attrs.frozen
class EverythingRefused:
    """The worker will never be let in again, or leaves by force. TERM, then KILL after `term_s`."""

    reason: str
    term_s: float


Happening = (
    Taken
    | LinesKept
    | LinesSent
    | LinesNoted
    | CancelAsked
    | Ended
    | FinishSent
    | FinishRefused
    | FinishNoted
    | Renewed
    | LinkUp
    | LinkDown
    | TimePassed
    | EverythingRefused
)


# ── effects ─────────────────────────────────────────────────────────────────────────────────────────────────


@attrs.frozen
class EndIt:
    """Ask the execution to end, TERM then KILL after `term_s`. Its end is `abandoned`, for `reason`."""

    dispatch: str
    reason: str
    term_s: float


@attrs.frozen
class DropLines:
    """Lines up to `through` need not be kept."""

    dispatch: str
    through: int


@attrs.frozen
class Forget:
    """Nothing of it is needed any more."""

    dispatch: str


Effect = EndIt | DropLines | Forget

TRANSITIONS: Final[dict[tuple[Phase | None, type[object]], frozenset[Phase | None]]] = {
    (None, Taken): frozenset({Phase.RUNNING}),
    (Phase.RUNNING, CancelAsked): frozenset({Phase.ENDING}),
    (Phase.ENDING, CancelAsked): frozenset({Phase.ENDING}),
    (Phase.DROPPED, CancelAsked): frozenset({Phase.DROPPED}),
    (Phase.FINISHED, CancelAsked): frozenset({Phase.FINISHED}),
    (Phase.RUNNING, Ended): frozenset({Phase.FINISHED}),
    (Phase.ENDING, Ended): frozenset({Phase.FINISHED}),
    (Phase.DROPPED, Ended): frozenset({None}),
    (Phase.FINISHED, FinishNoted): frozenset({None}),
}
"""Of one dispatch. Renewals, lines and links change no phase, except that a link or the clock may end a
`RUNNING` one.
"""


@attrs.define
class _Held:
    dispatch: str
    fence: int
    phase: Phase = Phase.RUNNING
    kept: int = 0  # last line that can be sent
    noted: int = 0
    sent: int = 0  # on this link
    unnoted: deque[tuple[int, int]] = attrs.field(factory=deque)  # (through, size) of what was sent on it
    unnoted_size: int = 0
    last_line: int | None = None  # of the whole, once ended
    finish_sent: bool = False  # on this link, and not answered yet


@attrs.frozen
class Sendable:
    """What a link may send next for one dispatch: lines from `first` on, or its end."""

    dispatch: str
    first: int | None  # None: the end


class Holdings:
    """See the module for the rules."""

    def __init__(self) -> None:
        self._held: dict[str, _Held] = {}
        self._renewed_at: float | None = None  # L
        self._tempo = Tempo()
        self._is_up = False
        self._asked_to_end = False  # since the last renewal
        self._killed = False

    # ── what others ask ─────────────────────────────────────────────────────────────────────────────────────
    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, dispatch: str) -> bool:
        return dispatch in self._held

    @property
    def tempo(self) -> Tempo:
        return self._tempo

    def phase(self, dispatch: str) -> Phase | None:
        held = self._held.get(dispatch)
        return held.phase if held else None

    def fence(self, dispatch: str) -> int | None:
        held = self._held.get(dispatch)
        return held.fence if held else None

    @property
    def undelivered(self) -> tuple[str, ...]:
        """Ends that nobody has noted."""
        return tuple(name for name, held in self._held.items() if held.phase is Phase.FINISHED)

    @property
    def running(self) -> tuple[str, ...]:
        """Everything not yet reaped."""
        return tuple(name for name, held in self._held.items() if held.phase is not Phase.FINISHED)

    def listing(self) -> tuple[HeldDispatch, ...]:
        """For the enroll frame: everything held, oldest first."""
        return tuple(
            HeldDispatch(held.dispatch, held.fence, WIRE_PHASE[held.phase], held.kept)
            for held in self._held.values()
        )

    def sendable(self, after: str | None = None) -> Sendable | None:
        """The next thing for the link, taking turns: beginning behind the dispatch named `after`."""
        names = list(self._held)
        if after in self._held:
            turn = names.index(after) + 1
            names = names[turn:] + names[:turn]
        for name in names:
            held = self._held[name]
            if held.phase is Phase.DROPPED:
                continue
            if held.sent < held.kept:
                if held.sent - held.noted < LOG_WINDOW_LINES and held.unnoted_size < LOG_WINDOW_BYTES:
                    return Sendable(name, held.sent + 1)
                continue
            if held.phase is Phase.FINISHED and not held.finish_sent:
                return Sendable(name, None)
        return None

    def is_late(self, now: float) -> bool:
        """Whether what runs must be dead by now."""
        return self._renewed_at is not None and now >= self._renewed_at + self._tempo.kill_s

    def next_deadline(self) -> float | None:
        """The next instant at which `TimePassed` does something."""
        if self._renewed_at is None or not self.running or self._killed:
            return None
        return self._renewed_at + (self._tempo.kill_s if self._asked_to_end else self._tempo.term_s)

    # ── events ──────────────────────────────────────────────────────────────────────────────────────────────
    def handle(self, event: Happening, now: float) -> tuple[Effect, ...]:
        """Raises Bug for an event that cannot happen now."""
        effects = self._apply(event, now)
        self.check()
        return effects

    def check(self) -> None:
        """Invariants."""
        for name, held in self._held.items():
            assert held.dispatch == name
            assert 0 <= held.noted <= held.kept
            assert held.noted <= held.sent <= held.kept or held.phase is Phase.DROPPED
            assert held.last_line is None or held.kept <= held.last_line
            assert not held.finish_sent or held.phase is Phase.FINISHED
            assert held.unnoted_size >= 0
            assert held.unnoted or held.unnoted_size == 0
        assert not self._killed or self._asked_to_end

    def _move(self, held: _Held | None, event: object, dispatch: str, to: Phase | None) -> None:
        before = held.phase if held else None
        if to not in TRANSITIONS.get((before, type(event)), frozenset()):
            raise Bug(f"holdings: {event} while {before.value if before else 'not held'}")
        if to is None:
            del self._held[dispatch]
        elif held is not None:
            held.phase = to

    def _apply(self, event: Happening, now: float) -> tuple[Effect, ...]:
        match event:
            case Taken(dispatch, fence):
                self._move(self._held.get(dispatch), event, dispatch, Phase.RUNNING)
                self._held[dispatch] = _Held(dispatch, fence)
                self._asked_to_end = self._killed = False  # of this one nothing was asked yet
            case LinesKept(dispatch, through):
                held = self._known(dispatch, event)
                if through < held.kept:
                    raise Bug(f"holdings: {event} after line {held.kept}")
                held.kept = through
            case LinesSent(dispatch, through, size):
                held = self._known(dispatch, event)
                held.sent = max(held.sent, min(through, held.kept))
                held.unnoted.append((held.sent, size))
                held.unnoted_size += size
            case LinesNoted(dispatch, through):
                return self._noted(dispatch, through)
            case CancelAsked(dispatch):
                held = self._known(dispatch, event)
                self._move(held, event, dispatch, Phase.ENDING if held.phase is Phase.RUNNING else held.phase)
            case Ended(dispatch, last_line):
                return self._ended(dispatch, last_line, event)
            case FinishSent(dispatch):
                self._known(dispatch, event).finish_sent = True
            case FinishRefused(dispatch):
                if (found := self._held.get(dispatch)) is not None:
                    found.finish_sent = False
            case FinishNoted(dispatch):
                held = self._known(dispatch, event)
                self._move(held, event, dispatch, None)
                return (Forget(dispatch),)
            case Renewed(sent_at):
                self._renew(sent_at)
            case LinkUp():
                return self._link_up(event)
            case LinkDown():
                self._is_up = False
                for held in self._held.values():
                    held.sent, held.finish_sent = held.noted, False
                    held.unnoted.clear()
                    held.unnoted_size = 0
            case TimePassed():
                return self._time_passed(now)
            case EverythingRefused(reason, term_s):
                return self._end_all(reason, term_s)
        return ()

    def _known(self, dispatch: str, event: object) -> _Held:
        held = self._held.get(dispatch)
        if held is None:
            raise Bug(f"holdings: {event} while not held")
        return held

    def _noted(self, dispatch: str, through: int) -> tuple[Effect, ...]:
        held = self._held.get(dispatch)
        if held is None:
            return ()  # it crossed the note of the end
        through = min(through, held.kept)
        if through <= held.noted:
            return ()
        held.noted = through
        held.sent = max(held.sent, through)
        while held.unnoted and held.unnoted[0][0] <= through:
            held.unnoted_size -= held.unnoted.popleft()[1]
        return (DropLines(dispatch, through),)

    def _ended(self, dispatch: str, last_line: int, event: object) -> tuple[Effect, ...]:
        held = self._known(dispatch, event)
        if held.phase is Phase.DROPPED:
            self._move(held, event, dispatch, None)
            return (Forget(dispatch),)
        held.last_line = max(last_line, held.kept)
        self._move(held, event, dispatch, Phase.FINISHED)
        return ()

    def _renew(self, sent_at: float) -> None:
        if self._renewed_at is None or sent_at > self._renewed_at:
            self._renewed_at = sent_at
            self._asked_to_end = self._killed = False

    def _link_up(self, event: LinkUp) -> tuple[Effect, ...]:
        self._is_up = True
        self._tempo = Tempo(event.grace_s)
        self._renew(event.sent_at)
        said = {each.dispatch: each.verdict for each in event.verdicts}
        effects: list[Effect] = []
        for name in event.listed:
            held = self._held.get(name)
            if held is None or said.get(name, Verdict.DROP) is Verdict.KEEP:
                continue
            if held.phase is Phase.FINISHED:
                del self._held[name]
                effects.append(Forget(name))
            else:
                held.phase = Phase.DROPPED
                effects.append(EndIt(name, "the orchestrator has given it up", 0.0))
        return tuple(effects)

    def _time_passed(self, now: float) -> tuple[Effect, ...]:
        if self._renewed_at is None:
            return ()
        effects: tuple[Effect, ...] = ()
        reason = f"no answered heartbeat for {now - self._renewed_at:.0f} s"
        left_s = max(0.0, self._renewed_at + self._tempo.kill_s - now)
        if not self._asked_to_end and now >= self._renewed_at + self._tempo.term_s:
            self._asked_to_end = True
            effects = self._end_all(reason, left_s)
        if not self._killed and now >= self._renewed_at + self._tempo.kill_s:
            self._killed = True
            effects = self._end_all(reason, 0.0)
        return effects

    def _end_all(self, reason: str, term_s: float) -> tuple[Effect, ...]:
        effects: list[Effect] = []
        for name, held in self._held.items():
            if held.phase in (Phase.RUNNING, Phase.ENDING):
                held.phase = Phase.ENDING
                effects.append(EndIt(name, reason, term_s))
            elif held.phase is Phase.DROPPED:
                effects.append(EndIt(name, reason, term_s))
        return tuple(effects)
