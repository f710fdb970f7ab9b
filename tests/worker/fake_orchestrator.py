"""A twin of the orchestrator's end of a control link: admits, grants, notes, and remembers what it was told.

It holds the worker to the protocol: lines without gap, an end only after its last line, one enrollment
first. Weather is in the hands of the test: `offline`, `cut()`, `deaf` (nothing is answered any more),
`refusals`.
"""

import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import attrs
import trio

from swamp_proto import codec
from swamp_proto.blocks import lines_of
from swamp_proto.envelope import Event, Failure, FailureBody, Request, Response
from swamp_proto.errors import RefusalCode
from swamp_proto.messages import RULE_BY_BODY, Side
from swamp_proto.messages.capability import Call, CallAnswer, CallCode
from swamp_proto.messages.dispatch import (
    Accepted,
    CancelDispatch,
    Dispatch,
    Finished,
    FinishNoted,
    LogBlock,
    LogLines,
    LogNoted,
)
from swamp_proto.messages.enrollment import (
    AnnounceDrain,
    DrainNoted,
    Enroll,
    Enrolled,
    Farewell,
    Heartbeat,
    HeartbeatAnswer,
    HeldDispatch,
    HeldVerdict,
    RefreshSession,
    SessionRefreshed,
    Verdict,
)
from swamp_proto.session import Answered, Asked, Session, State, Told
from swamp_proto.trio_io import MemoryPipe, MessagePipe, PipeBroken, memory_pipe_pair
from swamp_worker.shell.dial import NoLink


@attrs.define
class Kept:
    """What is known of one dispatch."""

    dispatch: Dispatch
    lines: list[LogBlock] = attrs.field(factory=list)
    finished: Finished | None = None
    accepted: bool = False
    refused: RefusalCode | None = None
    cancel_known: bool | None = None
    doubles: int = 0  # lines that came more than once


class Orchestrator:
    def __init__(self, nursery: trio.Nursery, *, grace_s: float = 60.0) -> None:
        self._nursery = nursery
        self.grace_s = grace_s
        self.kept: dict[str, Kept] = {}
        self.enrolls: list[Enroll] = []
        self.drains: list[AnnounceDrain] = []
        self.refreshes = 0
        self.heartbeats = 0
        self.offline = False
        self.deaf = False
        self.notes_lines = True
        self.notes_ends = True
        self.refusals: deque[tuple[RefusalCode, str, float | None]] = deque()
        self.end_failures: deque[RefusalCode] = deque()
        self.calls: list[Call] = []  # as they arrived, repeated ones too
        self.acted: dict[tuple[str, int], CallAnswer] = {}
        self.answers_calls = True
        self.call_failures: deque[RefusalCode] = deque()
        self.unavailable = 0  # calls that are put off
        self.verdict: Callable[[HeldDispatch], Verdict] = lambda held: Verdict.KEEP
        self.session_s = 900.0
        self.wall_ms: Callable[[], int] = lambda: int(trio.current_time() * 1000)
        self.dials = 0
        self.order: list[str] = []  # wire names as they arrived
        self._pipe: MessagePipe | None = None
        self._session: Session | None = None
        self._changed = trio.lowlevel.ParkingLot()

    # ── the worker's side of the wire ───────────────────────────────────────────────────────────────────────
    @contextlib.asynccontextmanager
    async def dial(self) -> AsyncIterator[MessagePipe]:
        self.dials += 1
        await trio.lowlevel.checkpoint()
        if self.offline:
            self._changed.unpark_all()
            raise NoLink("nobody answers", hint="start it")
        ours, theirs = memory_pipe_pair()
        self._nursery.start_soon(self.serve, theirs)
        try:
            yield ours
        finally:
            await ours.aclose()

    # ── what tests do ───────────────────────────────────────────────────────────────────────────────────────
    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            await self._changed.park()

    async def linked(self, times: int = 1) -> None:
        await self.until(lambda: len(self.enrolls) >= times and self._session is not None)

    async def start(self, dispatch: Dispatch) -> Kept:
        kept = self.kept[dispatch.dispatch] = Kept(dispatch)
        await self._ask(dispatch)
        return kept

    async def cancel(self, dispatch: Dispatch, *, term_s: float = 1.0, fence: int | None = None) -> None:
        await self._ask(
            CancelDispatch(dispatch.dispatch, dispatch.fence if fence is None else fence, "asked to", term_s)
        )

    async def finished(self, kept: Kept) -> Finished:
        await self.until(lambda: kept.finished is not None)
        assert kept.finished is not None
        return kept.finished

    def cut(self) -> None:
        """Both ends notice; what was in flight is lost."""
        assert isinstance(self._pipe, MemoryPipe)
        self._pipe.cut()

    async def farewell(self, code: RefusalCode, message: str, retry_after_s: float | None = None) -> None:
        await self._send(Event(Farewell(code, message, retry_after_s)))

    async def tell(self, body: Any) -> None:
        await self._send(Event(body))

    # ── the wire ────────────────────────────────────────────────────────────────────────────────────────────
    async def serve(self, pipe: MessagePipe) -> None:
        session = Session(Side.ORCHESTRATOR)
        try:
            while True:
                for frame in codec.decode_message(await pipe.receive()):
                    for happened in session.receive(frame):
                        if isinstance(happened, Asked):
                            if isinstance(happened.request.body, Enroll):
                                self._pipe, self._session = pipe, session
                            await self._answer(happened.request)
                        elif isinstance(happened, Told):
                            await self._told(happened.event.body)
                        elif isinstance(happened, Answered):
                            self._answered(happened)
                self._changed.unpark_all()
        except PipeBroken:
            pass
        finally:
            if self._session is session:
                self._pipe = self._session = None
            self._changed.unpark_all()
            with trio.CancelScope(shield=True):
                await pipe.aclose()

    async def _send(self, frame: Any) -> None:
        if self._session is None or self._pipe is None:
            return
        if self._session.state in (State.DRAINING, State.CLOSED):
            return  # after the farewell nothing more is said
        with contextlib.suppress(PipeBroken):
            self._session.send(frame)
            await self._pipe.send(codec.encode(frame))

    async def _ask(self, body: Any) -> None:
        assert self._session is not None
        await self._send(Request(self._session.next_id(), body))

    async def _reply(self, request: Request, body: Any) -> None:
        await self._send(Response(request.id, body, RULE_BY_BODY[type(request.body)].name))

    async def _refuse(self, request: Request, code: RefusalCode, message: str, after_s: float | None) -> None:
        name = RULE_BY_BODY[type(request.body)].name
        await self._send(Failure(request.id, name, FailureBody(code, message, after_s)))

    async def _answer(self, request: Request) -> None:
        self.order.append(RULE_BY_BODY[type(request.body)].name)
        match request.body:
            case Enroll() as enroll:
                if self.refusals:
                    code, message, after_s = self.refusals.popleft()
                    self.enrolls.append(enroll)
                    await self._refuse(request, code, message, after_s)
                    return
                self.enrolls.append(enroll)
                await self._reply(request, self._admit(enroll))
            case Heartbeat(number):
                self.heartbeats += 1
                if not self.deaf:
                    await self._reply(request, HeartbeatAnswer(number))
            case RefreshSession():
                self.refreshes += 1
                await self._reply(
                    request, SessionRefreshed("c" * 64, self.wall_ms() + int(self.session_s * 1000))
                )
            case AnnounceDrain() as drain:
                self.drains.append(drain)
                await self._reply(request, DrainNoted(drain.draining))
            case Finished() as finished:
                await self._finish(request, finished)
            case Call() as call:
                await self._call(request, call)

    def _admit(self, enroll: Enroll) -> Enrolled:
        every_s = min(10.0, self.grace_s / 12)
        now_ms = self.wall_ms()
        return Enrolled(
            worker=enroll.token.partition(".")[0],
            orchestrator="repo",
            link=len(self.enrolls),
            session_credential="c" * 64,
            session_expires_ms=now_ms + int(self.session_s * 1000),
            token_expires_ms=now_ms + 3_600_000,
            grace_s=self.grace_s,
            heartbeat_s=every_s,
            silence_s=3 * every_s,
            verdicts=tuple(HeldVerdict(held.dispatch, self.verdict(held)) for held in enroll.held),
        )

    async def _call(self, request: Request, call: Call) -> None:
        """Acts once on a number; `notes` of what was asked come back as versions."""
        self.calls.append(call)
        assert call.fence == self.kept[call.dispatch].dispatch.fence
        if self.call_failures:
            await self._refuse(request, self.call_failures.popleft(), "not now", None)
            return
        if self.unavailable:
            self.unavailable -= 1
            await self._reply(
                request, CallAnswer(call.dispatch, call.number, CallCode.UNAVAILABLE, "the disk is full", {})
            )
            return
        key = (call.dispatch, call.number)
        if key not in self.acted:
            value = {"deleted": True, "version": call.number}
            self.acted[key] = CallAnswer(call.dispatch, call.number, None, "", value)
        if self.answers_calls:
            await self._reply(request, self.acted[key])

    async def _finish(self, request: Request, finished: Finished) -> None:
        kept = self.kept[finished.dispatch]
        if self.end_failures:
            await self._refuse(request, self.end_failures.popleft(), "not now", None)
            return
        assert finished.last_line - finished.lines_lost <= len(kept.lines), "an end before its last line"
        again = None if kept.finished is None else attrs.evolve(kept.finished, left=finished.left)
        assert again in (None, finished), "two different ends"  # what was left may be gone since
        kept.finished = finished
        if self.notes_ends:
            await self._reply(request, FinishNoted(finished.dispatch, True))

    async def _told(self, body: Any) -> None:
        assert isinstance(body, LogLines)
        self.order.append("dispatch.log")
        kept = self.kept[body.dispatch]
        assert body.first <= len(kept.lines) + 1, "a gap in the log"
        known = len(kept.lines) - body.first + 1
        lines = list(lines_of(body.blocks))
        kept.doubles += max(0, min(known, len(lines)))
        assert lines[:known] == kept.lines[body.first - 1 : body.first - 1 + len(lines[:known])]
        kept.lines += lines[known:]
        if self.notes_lines:
            await self._send(Event(LogNoted(body.dispatch, len(kept.lines))))

    def _answered(self, answered: Answered) -> None:
        asked, reply = answered.request.body, answered.reply
        kept = self.kept.get(getattr(asked, "dispatch", ""))
        if kept is None:
            return
        if isinstance(asked, Dispatch):
            if isinstance(reply, Response):
                assert isinstance(reply.body, Accepted)
                kept.accepted = True
            else:
                kept.refused = reply.failure.code
        elif isinstance(asked, CancelDispatch) and isinstance(reply, Response):
            kept.cancel_known = reply.body.known
