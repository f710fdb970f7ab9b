"""The session's law, row by row: who may say what when, what answers what, and what ends it."""

import attrs
import pytest

from swamp_proto.envelope import Cancel, Event, Failure, FailureBody, Frame, Request, Response
from swamp_proto.errors import Broken, Bug, LimitExceeded, RefusalCode, UnlawfulMessage
from swamp_proto.limits import REQUESTS_OUTSTANDING_MAX
from swamp_proto.messages import RULES, Side
from swamp_proto.messages import dispatch as d
from swamp_proto.messages import enrollment as e
from swamp_proto.session import (
    PERMITTED,
    TRANSITIONS,
    Answered,
    Asked,
    Happening,
    Moved,
    Session,
    State,
    Told,
    Withdrawn,
)
from swamp_proto.vectors.samples import ENROLL, START, VALID

W, O = Side.WORKER, Side.ORCHESTRATOR  # noqa: E741 - as in the tables
ENROLLED = VALID["worker.enroll.response"].body  # type: ignore[union-attr]
FAREWELL = VALID["link.farewell.event"]
BODY = {rule.name: VALID[f"{rule.name}.{'request' if rule.is_request else 'event'}"].body for rule in RULES}  # type: ignore[union-attr]
REPLY = {rule.name: VALID[f"{rule.name}.response"].body for rule in RULES if rule.is_request}  # type: ignore[union-attr]


@attrs.define
class Pair:
    """Two ends without a wire between them: what one sends the other has at once."""

    worker: Session = attrs.field(factory=lambda: Session(W))
    orchestrator: Session = attrs.field(factory=lambda: Session(O))

    def end(self, side: Side) -> Session:
        return self.worker if side is W else self.orchestrator

    def say(self, side: Side, frame: Frame) -> tuple[object, ...]:
        self.end(side).send(frame)
        return self.end(O if side is W else W).receive(frame)

    def ask(self, side: Side, body: object) -> Request:
        request = Request(self.end(side).next_id(), body)
        self.say(side, request)
        return request

    def at(self, state: State) -> "Pair":
        """Brought to `state` from `OPENING`."""
        if state is State.OPENING:
            return self
        self.ask(W, ENROLL)
        if state is State.ENROLLING:
            return self
        self.say(O, Response(1, ENROLLED, "worker.enroll"))
        if state is State.DRAINING:
            self.say(O, FAREWELL)
        if state is State.CLOSED:
            self.worker.end()
            self.orchestrator.end()
        assert self.worker.state is self.orchestrator.state is state
        return self


def failure(request: Request, name: str, code: RefusalCode = RefusalCode.BUSY) -> Failure:
    return Failure(request.id, name, FailureBody(code, "no", None))


# ── states ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_ordinary_session_from_the_first_frame_to_the_last() -> None:
    pair = Pair()
    enroll = Request(1, ENROLL)
    assert pair.say(W, enroll) == (Asked(enroll), Moved(State.ENROLLING))
    reply = Response(1, ENROLLED, "worker.enroll")
    assert pair.say(O, reply) == (Answered(enroll, reply), Moved(State.OPEN))
    start = Request(1, START)
    assert pair.say(O, start) == (Asked(start),)
    accepted = Response(1, d.Accepted(START.dispatch), "dispatch.start")
    assert pair.say(W, accepted) == (Answered(start, accepted),)
    lines = VALID["dispatch.log.event"]
    assert pair.say(W, lines) == (Told(lines),)  # type: ignore[arg-type]
    assert pair.say(O, FAREWELL) == (Told(FAREWELL), Moved(State.DRAINING))  # type: ignore[arg-type]
    assert pair.worker.end() == (Moved(State.CLOSED),)
    assert pair.worker.end() == ()


def test_every_state_but_the_last_can_end_and_no_state_is_left_out() -> None:
    for state in State:
        assert TRANSITIONS[state, Happening.ENDED] is State.CLOSED
        assert set(PERMITTED[state]) == set(Side)
    targets = {target for (origin, _), target in TRANSITIONS.items() if origin is not target}
    assert targets == set(State) - {State.OPENING}


LAWFUL = [
    # state, sender, names of requests and events
    (State.OPENING, W, {"worker.enroll"}),
    (State.OPENING, O, {"link.farewell"}),
    (State.ENROLLING, W, set()),
    (State.ENROLLING, O, {"link.farewell"}),
    (State.OPEN, W, {r.name for r in RULES if W in r.senders} - {"worker.enroll"}),
    (State.OPEN, O, {r.name for r in RULES if O in r.senders}),
    (State.DRAINING, W, {r.name for r in RULES if W in r.senders} - {"worker.enroll"}),
    (State.DRAINING, O, set()),
    (State.CLOSED, W, set()),
    (State.CLOSED, O, set()),
]


@pytest.mark.parametrize(("state", "sender", "lawful"), LAWFUL, ids=lambda value: getattr(value, "value", ""))
def test_every_message_in_every_state_from_either_side(state: State, sender: Side, lawful: set[str]) -> None:
    for rule in RULES:
        pair = Pair().at(state)
        receiver = pair.end(O if sender is W else W)
        body = BODY[rule.name]
        frame = Request(100, body) if rule.is_request else Event(body)
        if rule.name in lawful:
            assert receiver.receive(frame)
            pair.end(sender).send(frame)
            continue
        with pytest.raises(UnlawfulMessage) as caught:
            receiver.receive(frame)
        assert caught.value.code == RefusalCode.UNLAWFUL.value
        assert receiver.state is State.CLOSED
        with pytest.raises(Broken if state is State.CLOSED else Bug):
            pair.end(sender).send(frame)


def test_an_enroll_frame_that_crossed_the_farewell_is_lawful_once() -> None:
    orchestrator = Session(O)
    orchestrator.send(FAREWELL)
    assert orchestrator.receive(Request(1, ENROLL)) == (Asked(Request(1, ENROLL)),)
    with pytest.raises(UnlawfulMessage):
        orchestrator.receive(Request(2, ENROLL))


def test_one_enrollment_per_socket() -> None:
    pair = Pair().at(State.OPEN)
    with pytest.raises(UnlawfulMessage, match=r"worker\.enroll from the worker while the session is open"):
        pair.orchestrator.receive(Request(2, ENROLL))


def test_a_refused_enrollment_ends_the_session() -> None:
    pair = Pair().at(State.ENROLLING)
    refused = Failure(1, "worker.enroll", FailureBody(RefusalCode.EXPIRED, "expired", None))
    assert pair.say(O, refused) == (Answered(Request(1, ENROLL), refused), Moved(State.CLOSED))
    assert pair.orchestrator.state is State.CLOSED


def test_what_crossed_a_farewell_is_still_read() -> None:
    pair = Pair().at(State.OPEN)
    start = pair.ask(O, START)
    pair.orchestrator.send(FAREWELL)
    finished = VALID["dispatch.finished.request"]
    for frame in (
        Response(start.id, d.Accepted(START.dispatch), "dispatch.start"),
        attrs.evolve(finished, id=2),
    ):  # type: ignore[misc]
        pair.worker.send(frame)
        assert pair.orchestrator.receive(frame)
    with pytest.raises(Bug):
        pair.orchestrator.send(Response(2, d.FinishNoted(START.dispatch, True), "dispatch.finished"))


# ── replies ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.is_request], ids=lambda rule: rule.name)
def test_every_request_is_answered_by_its_reply_or_by_a_failure_once(rule) -> None:  # type: ignore[no-untyped-def]
    sender = W if W in rule.senders else O
    answerer = O if sender is W else W
    for reply in ("response", "failure"):
        pair = Pair().at(State.OPENING if rule.name == "worker.enroll" else State.OPEN)
        request = pair.ask(sender, BODY[rule.name])
        assert pair.end(sender).unanswered == pair.end(answerer).due == (request,)
        frame: Frame = Response(request.id, REPLY[rule.name], rule.name)
        if reply == "failure":
            frame = failure(request, rule.name)
        assert Answered(request, frame) in pair.say(answerer, frame)  # type: ignore[arg-type]
        assert pair.end(sender).unanswered == pair.end(answerer).due == ()
        with pytest.raises(UnlawfulMessage):
            pair.end(sender).receive(frame)


@pytest.mark.parametrize(
    "reply",
    [
        Response(8, d.Accepted("x"), "dispatch.start"),
        Response(7, d.CancelNoted("x", True), "dispatch.start"),
        Response(7, d.CancelNoted("x", True), "dispatch.cancel"),
        Failure(7, "dispatch.cancel", FailureBody(RefusalCode.BUSY, "no", None)),
    ],
    ids=["another id", "another class", "another name", "a failure of another name"],
)
def test_a_reply_that_does_not_fit_its_request_is_unlawful(reply: Response | Failure) -> None:
    pair = Pair().at(State.OPEN)
    pair.say(O, Request(7, START))
    with pytest.raises(Bug):
        pair.worker.send(reply)
    with pytest.raises(UnlawfulMessage):
        pair.orchestrator.receive(reply)
    assert pair.orchestrator.state is State.CLOSED


def test_replies_need_not_come_in_order_and_the_directions_count_apart() -> None:
    pair = Pair().at(State.OPEN)
    first, second = pair.ask(O, START), pair.ask(O, e.Heartbeat(1))
    beat = pair.ask(W, e.Heartbeat(1))
    assert (first.id, second.id, beat.id) == (1, 2, 2)
    pair.say(W, Response(second.id, e.HeartbeatAnswer(1), "link.heartbeat"))
    assert pair.orchestrator.unanswered == (first,)
    pair.say(O, Response(beat.id, e.HeartbeatAnswer(1), "link.heartbeat"))
    assert pair.worker.due == (first,)


# ── ids, cancels, bounds ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", [4, 5])
def test_ids_grow(number: int) -> None:
    pair = Pair().at(State.OPEN)
    pair.say(O, Request(5, START))
    with pytest.raises(UnlawfulMessage, match="id"):
        pair.worker.receive(Request(number, START))


def test_a_cancel_is_told_once_the_answer_stays_due_and_crossing_is_no_fault() -> None:
    pair = Pair().at(State.OPEN)
    start = pair.ask(O, START)
    assert pair.say(O, Cancel(start.id)) == (Withdrawn(start.id),)
    assert pair.worker.due == (start,)
    pair.say(W, Response(start.id, d.Accepted(START.dispatch), "dispatch.start"))
    assert pair.worker.receive(Cancel(start.id)) == ()
    with pytest.raises(UnlawfulMessage, match="never sent"):
        pair.worker.receive(Cancel(start.id + 1))


def test_enrollment_cannot_be_cancelled_and_nothing_can_when_closed() -> None:
    pair = Pair().at(State.ENROLLING)
    with pytest.raises(UnlawfulMessage):
        pair.orchestrator.receive(Cancel(1))
    with pytest.raises(UnlawfulMessage):
        pair.orchestrator.receive(Cancel(1))


def test_unanswered_requests_are_bounded_each_way() -> None:
    pair = Pair().at(State.OPEN)
    for _ in range(REQUESTS_OUTSTANDING_MAX):
        pair.ask(O, e.Heartbeat(1))
    one_more = Request(pair.orchestrator.next_id(), e.Heartbeat(1))
    with pytest.raises(LimitExceeded):
        pair.orchestrator.send(one_more)
    pair.ask(W, e.Heartbeat(1))
    pair.say(W, Response(1, e.HeartbeatAnswer(1), "link.heartbeat"))
    pair.say(O, one_more)
    with pytest.raises(UnlawfulMessage):
        pair.worker.receive(attrs.evolve(one_more, id=one_more.id + 1))


def test_what_was_not_answered_is_named_when_the_socket_ends() -> None:
    pair = Pair().at(State.OPEN)
    requests = (pair.ask(O, START), pair.ask(O, e.Heartbeat(1)))
    pair.orchestrator.end()
    assert pair.orchestrator.unanswered == requests
    with pytest.raises(Broken):
        pair.orchestrator.send(Event(e.Notice("info", "too late")))


def test_an_unlawful_text_names_messages_never_their_content() -> None:
    session = Session(O)
    with pytest.raises(UnlawfulMessage) as caught:
        session.receive(Request(1, attrs.evolve(START, arguments={"run": "hunter2"})))
    assert "dispatch.start from the worker while the session is opening" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_the_drain_of_a_worker_changes_nothing_here() -> None:
    pair = Pair().at(State.OPEN)
    drain = pair.ask(W, e.AnnounceDrain(True, "signal"))
    start = pair.ask(O, START)  # it was on its way
    pair.say(O, Response(drain.id, e.DrainNoted(True), "worker.drain"))
    pair.say(W, failure(start, "dispatch.start", RefusalCode.DRAINING))
    assert pair.worker.state is State.OPEN
