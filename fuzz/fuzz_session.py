"""Invariant: whatever a peer sends, the session says what it meant, once, or is closed and stays closed.

python fuzz/fuzz_session.py --seconds 10 --seed 1
"""

import random
import sys

from wire_frames import frame, instance, run

from swamp_proto.envelope import Cancel, Event, Failure, FailureBody, Frame, Request, Response
from swamp_proto.errors import Broken, Bug, LimitExceeded, UnlawfulMessage
from swamp_proto.messages import RULE_BY_BODY, RULES, Side
from swamp_proto.messages.enrollment import Enroll, Enrolled
from swamp_proto.session import Answered, Asked, Session, State


def likely(dice: random.Random, session: Session, peer: Side, last: int) -> Frame:
    """Something the peer may well say now, so that conversations get somewhere."""
    if session.state is State.OPENING and peer is Side.WORKER:
        return Request(last + 1, instance(dice, Enroll))
    if session.unanswered and dice.random() < 0.5:
        request = dice.choice(session.unanswered)
        rule = RULE_BY_BODY[type(request.body)]
        if dice.random() < 0.2:
            return Failure(request.id, rule.name, instance(dice, FailureBody))
        assert rule.reply is not None
        return Response(request.id, instance(dice, rule.reply), rule.name)
    if session.due and dice.random() < 0.1:
        return Cancel(dice.choice(session.due).id)
    rule = dice.choice([rule for rule in RULES if peer in rule.senders])
    body = instance(dice, rule.body)
    return Event(body) if rule.reply is None else Request(last + 1, body)


def speak(dice: random.Random, session: Session, side: Side) -> None:
    """This end answers, asks or errs; erring must be noticed before anything leaves."""
    before = (session.state, session.unanswered, session.due)
    try:
        if session.due and dice.random() < 0.7:
            request = dice.choice(session.due)
            rule = RULE_BY_BODY[type(request.body)]
            assert rule.reply is not None
            session.send(Response(request.id, instance(dice, rule.reply), rule.name))
        elif session.state is State.OPENING and side is Side.WORKER:
            session.send(Request(session.next_id(), instance(dice, Enroll)))
        else:
            rule = dice.choice(RULES)
            body = instance(dice, rule.body)
            session.send(Event(body) if rule.reply is None else Request(session.next_id(), body))
    except (Bug, Broken, LimitExceeded):
        assert (session.state, session.unanswered, session.due) == before


def one(dice: random.Random) -> None:
    side = dice.choice(list(Side))
    peer = Side.ORCHESTRATOR if side is Side.WORKER else Side.WORKER
    session, last = Session(side), 0
    asked: set[int] = set()
    for _ in range(dice.randint(1, 60)):
        if dice.random() < 0.4:
            speak(dice, session, side)
            continue
        heard = likely(dice, session, peer, last) if dice.random() < 0.97 else frame(dice)
        open_before = {request.id for request in session.unanswered}
        was_closed = session.state is State.CLOSED
        try:
            happened = session.receive(heard)
        except UnlawfulMessage:
            assert session.state is State.CLOSED
            continue
        assert not was_closed, "a closed session took a frame"
        for event in happened:
            if isinstance(event, Asked):
                assert event.request.id not in asked
                asked.add(event.request.id)
                last = event.request.id
            if isinstance(event, Answered):
                assert event.request.id in open_before
                assert event.request not in session.unanswered
                if isinstance(event.reply, Response) and type(event.reply.body) is Enrolled:
                    assert session.state is State.OPEN
    session.end()
    assert session.state is State.CLOSED


if __name__ == "__main__":
    sys.exit(run(one, "fuzz_session"))
