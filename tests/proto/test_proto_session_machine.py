"""Two sessions and a wire that delays and cuts, against a naive model: a conversation, written down.

The wire is two queues. Each end does what is lawful *for it, now*, so frames cross in every way they can.
Invariants: what one end sends lawfully, the other never finds unlawful; every request is answered at most
once, and nobody is asked or told what was not said; each end is in the state that what it said and heard
amounts to; a peer that breaks the law is found out in every state; a cut ends both.
"""

import copy
from collections import deque
from typing import Any

import attrs
import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from swamp_proto import codec
from swamp_proto.envelope import Cancel, Event, Failure, FailureBody, Frame, Request, Response
from swamp_proto.errors import RefusalCode, UnlawfulMessage
from swamp_proto.messages import RULE_BY_BODY, RULES, Rule, Side
from swamp_proto.messages.enrollment import Enroll, Farewell
from swamp_proto.session import Answered, Asked, Moved, Session, State, Told, Withdrawn
from swamp_proto.vectors.samples import VALID

OTHER = {Side.WORKER: Side.ORCHESTRATOR, Side.ORCHESTRATOR: Side.WORKER}
DAILY = {side: [r for r in RULES if side in r.senders and r.body not in (Enroll, Farewell)] for side in Side}
REQUESTS = [law for law in RULES if law.is_request]


def said(law: Rule) -> Any:
    """A body of this message: the one of its vector. What is inside does not matter here."""
    return VALID[f"{law.name}.{'request' if law.is_request else 'event'}"].body  # type: ignore[union-attr]


def answered(law: Rule) -> Any:
    return VALID[f"{law.name}.response"].body  # type: ignore[union-attr]


ENROLL = said(RULE_BY_BODY[Enroll])
FAREWELL = Event(said(RULE_BY_BODY[Farewell]))


@attrs.define
class End:
    """One end, with the model's own memory of what it said and heard."""

    side: Side
    session: Session
    wire: deque[bytes] = attrs.field(factory=deque)  # towards this end
    asked: dict[int, Request] = attrs.field(factory=dict)  # by this end, unanswered
    due: dict[int, Request] = attrs.field(factory=dict)  # heard by this end, unanswered
    enrolling: bool = False  # the enroll frame was said, or heard
    enrolled: bool = False
    refused: bool = False
    parted: bool = False  # the farewell was said, or heard
    gone: bool = False

    @property
    def state(self) -> State:
        if self.gone or self.refused:
            return State.CLOSED
        if self.parted:
            return State.DRAINING
        if self.enrolled:
            return State.OPEN
        return State.ENROLLING if self.enrolling else State.OPENING

    @property
    def may_speak(self) -> bool:
        return not (self.gone or self.refused or (self.parted and self.side is Side.ORCHESTRATOR))

    @property
    def cancellable(self) -> list[int]:
        return sorted(number for number, request in self.asked.items() if request.body is not ENROLL)

    def enroll_ended(self, reply: Frame) -> None:
        if not self.parted:  # an answer and a farewell do not cross: the same end says both
            self.enrolled, self.refused = isinstance(reply, Response), isinstance(reply, Failure)


class Conversation(RuleBasedStateMachine):
    @initialize()
    def connect(self) -> None:
        self.ends = {side: End(side, Session(side)) for side in Side}

    def _able(self, what: str) -> list[Side]:
        able = {
            "talk": lambda end: end.may_speak and end.enrolled,
            "answer": lambda end: end.may_speak and end.due,
            "withdraw": lambda end: end.may_speak and end.cancellable,
            "hear": lambda end: end.wire,
        }[what]
        return [side for side, end in self.ends.items() if able(end)]

    def _say(self, side: Side, frame: Frame) -> None:
        self.ends[side].session.send(frame)
        self.ends[OTHER[side]].wire.append(codec.encode(frame))

    def _ask(self, side: Side, body: object) -> None:
        end = self.ends[side]
        request = Request(end.session.next_id(), body)
        self._say(side, request)
        end.asked[request.id] = request

    # ── what the ends do ────────────────────────────────────────────────────────────────────────────────────

    @precondition(lambda self: self.ends[Side.WORKER].state is State.OPENING)
    @rule()
    def enroll(self) -> None:
        self._ask(Side.WORKER, ENROLL)
        self.ends[Side.WORKER].enrolling = True

    @precondition(lambda self: self._able("talk"))
    @rule(data=st.data())
    def talk(self, data: st.DataObject) -> None:
        side = data.draw(st.sampled_from(self._able("talk")), label="side")
        law = data.draw(st.sampled_from(DAILY[side]), label="message")
        if law.is_request:
            self._ask(side, said(law))
        else:
            self._say(side, Event(said(law)))

    @precondition(lambda self: self._able("answer"))
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        side = data.draw(st.sampled_from(self._able("answer")), label="side")
        end = self.ends[side]
        number = data.draw(st.sampled_from(sorted(end.due)), label="request")
        law = RULE_BY_BODY[type(end.due[number].body)]
        reply: Frame = Response(number, answered(law), law.name)
        if data.draw(st.integers(0, 5), label="refuse at 0") == 0:
            reply = Failure(
                number, law.name, FailureBody(data.draw(st.sampled_from(RefusalCode)), "no", None)
            )
        self._say(side, reply)
        asker = self.ends[OTHER[side]]
        if asker.may_speak and number in asker.cancellable and data.draw(st.booleans(), label="crossed"):
            self._say(asker.side, Cancel(number))
        if end.due.pop(number).body is not ENROLL:
            return
        end.enroll_ended(reply)

    @precondition(lambda self: self._able("withdraw"))
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        side = data.draw(st.sampled_from(self._able("withdraw")), label="side")
        self._say(side, Cancel(data.draw(st.sampled_from(self.ends[side].cancellable))))

    @precondition(lambda self: self.ends[Side.ORCHESTRATOR].may_speak)
    @rule(sure=st.integers(0, 3))
    def farewell(self, sure: int) -> None:
        if sure:  # not too early in most conversations
            return
        self._say(Side.ORCHESTRATOR, FAREWELL)
        self.ends[Side.ORCHESTRATOR].parted = True

    # ── what the wire does ──────────────────────────────────────────────────────────────────────────────────

    @precondition(lambda self: self._able("hear"))
    @rule(data=st.data(), count=st.integers(1, 6))
    def deliver(self, data: st.DataObject, count: int) -> None:
        end = self.ends[data.draw(st.sampled_from(self._able("hear")), label="to")]
        for _ in range(min(count, len(end.wire))):
            self._hear(end)

    def _hear(self, end: End) -> None:
        frame = codec.decode(end.wire.popleft())
        before = end.session.state
        heard = end.session.receive(frame)  # UnlawfulMessage here is what this machine looks for
        moves = [happened for happened in heard if isinstance(happened, Moved)]
        assert [move.state for move in moves] == ([] if end.session.state is before else [end.session.state])
        rest = [happened for happened in heard if not isinstance(happened, Moved)]
        match frame:
            case Request():
                assert rest == [Asked(frame)]
                end.due[frame.id] = frame
                end.enrolling |= type(frame.body) is Enroll
                if type(frame.body) is Enroll:
                    end.due[frame.id] = Request(frame.id, ENROLL)
            case Event():
                assert rest == [Told(frame)]
                end.parted |= type(frame.body) is Farewell
            case Cancel():
                assert rest == ([Withdrawn(frame.id)] if frame.id in end.due else [])
            case _:
                request = end.asked.pop(frame.id)
                assert rest == [Answered(request, frame)]
                if request.body is ENROLL:
                    end.enroll_ended(frame)

    @precondition(lambda self: not self.ends[Side.WORKER].gone)
    @rule(side=st.sampled_from(Side), sure=st.integers(0, 5), lossy=st.booleans())
    def hang_up(self, side: Side, sure: int, lossy: bool) -> None:
        """One end closes. What it had sent arrives, or is lost; then the other end hears of it."""
        if sure:
            return
        end, other = self.ends[side], self.ends[OTHER[side]]
        end.session.end()
        end.gone = True
        while other.wire and not lossy:
            self._hear(other)
        other.session.end()
        other.gone = True
        end.wire.clear()
        other.wire.clear()

    # ── what a peer must not do ─────────────────────────────────────────────────────────────────────────────

    @rule(side=st.sampled_from(Side), data=st.data())
    def mischief(self, side: Side, data: st.DataObject) -> None:
        """A copy of this end hears something unlawful, whatever its state: it must say so, and be closed."""
        end = self.ends[side]
        session = copy.deepcopy(end.session)
        frame = data.draw(st.sampled_from(self._unlawful_for(end)), label="frame")
        try:
            session.receive(frame)
        except UnlawfulMessage:
            assert session.state is State.CLOSED
            return
        raise AssertionError(f"{side.value} in {end.state.value} took {frame}")

    def _unlawful_for(self, end: End) -> list[Frame]:
        peer = OTHER[end.side]
        late = 1 << 40
        found: list[Frame] = [Cancel(late), Response(late, answered(REQUESTS[1]), REQUESTS[1].name)]
        found += [Event(said(law)) for law in RULES if not law.is_request and peer not in law.senders]
        found += [Request(late, said(law)) for law in REQUESTS if peer not in law.senders]
        found += [Event(said(law)) for law in REQUESTS]
        found += [Request(late, said(law)) for law in RULES if not law.is_request and peer in law.senders]
        found += [Request(number, said(DAILY[peer][0])) for number in end.due]  # an id again
        if end.enrolling or peer is not Side.WORKER:
            found.append(Request(late, ENROLL))
        for number, request in end.asked.items():
            law = RULE_BY_BODY[type(request.body)]
            for stranger in REQUESTS:
                if stranger is not law:
                    found.append(Response(number, answered(stranger), stranger.name))
                    found.append(Response(number, answered(stranger), law.name))
                    found.append(Response(number, answered(law), stranger.name))
        if any(request.body is ENROLL for request in end.due.values()):
            found += [Cancel(number) for number, request in end.due.items() if request.body is ENROLL]
        if end.state is State.CLOSED or (end.parted and peer is Side.ORCHESTRATOR):
            found += [Cancel(number) for number in range(1, 3)]
            found += [Request(late, said(law)) for law in REQUESTS]
        if end.parted and peer is Side.ORCHESTRATOR:  # what would be lawful, were it not for the farewell
            found = found[:4] + [
                Response(number, answered(law), law.name)
                for number, request in end.asked.items()
                for law in [RULE_BY_BODY[type(request.body)]]
            ]
        return found

    # ── what is always so ───────────────────────────────────────────────────────────────────────────────────

    @invariant()
    def each_end_is_where_what_it_said_and_heard_puts_it(self) -> None:
        for end in getattr(self, "ends", {}).values():
            assert end.session.state is end.state
            assert end.session.unanswered == tuple(end.asked.values())
            assert end.session.due == tuple(end.due.values())

    @invariant()
    def an_empty_wire_means_one_state(self) -> None:
        if hasattr(self, "ends") and not self._able("hear"):
            worker, orchestrator = (self.ends[side].session.state for side in Side)
            assert worker is orchestrator


Conversation.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestConversation = Conversation.TestCase
