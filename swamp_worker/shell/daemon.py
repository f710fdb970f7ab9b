"""The worker: one task tree that dials, is let in, runs what it is given, and leaves in order.

    run ─┬─ the links, one after another; each is a nursery of its own (reader, writer, heartbeat, refresh)
         ├─ the steps: one task per dispatch. They outlive every link; a drop does not touch them.
         ├─ the watch over the give-up instants (¾G, ⅞G on the boot clock)
         └─ the idle watch, the drain, the look at stuck slots

Rules that hold here:

- Decisions are the cores' (`dialing`, `slots`, `holdings`); this module turns frames, clocks and process
  ends into their events and their effects into calls.
- A slot is taken, `Accepted` queued and the step's task started in one go: the spawn does not wait for the
  frame.
- The old link is closed before the next enroll frame lists what is held.
- L is the instant at which the request was handed to the writer: never later than the true send.
- Leaving: first a drain (announced, then finished), then cancel, then KILL. A permanent refusal kills and
  reaps what is held.
"""

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Final

import attrs
import trio

from swamp_proto.envelope import Event, Failure, Frame, Request, Response
from swamp_proto.errors import PERMANENT_REFUSALS, Broken, ExitCode, RefusalCode, Refused
from swamp_proto.ids import is_uuid
from swamp_proto.limits import (
    CANCEL_TERM_S,
    GRACE_S_MAX,
    GRACE_S_MIN,
    LOG_FRAME_BYTES,
    LOG_FRAME_LINES,
    SESSION_CREDENTIAL_S,
    SESSION_REFRESH_FRACTION,
    STUCK_S,
)
from swamp_proto.messages.dispatch import (
    Accepted,
    CancelDispatch,
    CancelNoted,
    Dispatch,
    Finished,
    FinishNoted,
    LogBlock,
    LogLines,
    LogNoted,
    Outcome,
)
from swamp_proto.messages.enrollment import (
    AnnounceDrain,
    Enroll,
    Enrolled,
    Heartbeat,
    HeartbeatAnswer,
    HeldDispatch,
    Notice,
    Predecessor,
    RefreshSession,
    SessionRefreshed,
)
from swamp_proto.trio_io import MessagePipe
from swamp_proto.version import PROTOCOL_VERSION, SWAMP_VERSION
from swamp_worker.core import dialing, holdings, slots
from swamp_worker.execution.interface import Control, Executor
from swamp_worker.execution.spool import Spool, SpoolRoom
from swamp_worker.shell.calls import StepCalls
from swamp_worker.shell.control import Link, LinkEnded, Reply
from swamp_worker.shell.dial import NoLink
from swamp_worker.shell.voice import Voice

FINISH_RETRY_S: Final = 1.0  # before an end that could not be stored is sent again
DRAIN_NOTE_S: Final = 5.0  # for the orchestrator to answer that it knows
LEAVE_DELIVER_S: Final = 5.0  # for ends to be noted after a second signal
STUCK_LOOK_S: Final = 1.0
REFRESH_S_MIN: Final = 1.0
HEARTBEAT_S_MIN: Final = 0.02

_FINISH_REFUSED_FOR_GOOD: Final = frozenset(
    {
        RefusalCode.LEASE_ENDED,
        RefusalCode.UNKNOWN_DISPATCH,
        RefusalCode.MALFORMED,
        RefusalCode.UNLAWFUL,
        RefusalCode.TOO_LARGE,
    }
)


@attrs.frozen
class Settings:
    """What the operator decided."""

    url: str  # for people
    token: str = attrs.field(repr=False)
    capacity: int = 1
    labels: dict[str, str] = attrs.field(factory=dict)
    reconnect: bool = True
    dispatches_max: int | None = None
    idle_timeout_s: float | None = None


@attrs.frozen
class Machine:
    """Who this process is."""

    machine_id: str
    boot_id: str
    instance: str
    host: str
    pid: int
    platform: str
    arch: str
    predecessor: Predecessor | None = None


@attrs.frozen
class Ports:
    """The outside: real ones in `cli`, twins in tests and in the simulator."""

    dial: Callable[[], AbstractAsyncContextManager[MessagePipe]]
    executor: Executor
    spool: SpoolRoom
    draw: Callable[[], float]  # evenly from [0, 1)
    boot_s: Callable[[], float]  # a clock that counts suspended time
    renew: Callable[[float, float], object] = lambda sent_at, grace_s: None  # tell the keeper
    settle: Callable[[str], bool] = lambda dispatch: True  # is nothing left of a stuck one
    on_enrolled: Callable[[], object] = lambda: None
    wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    calls: StepCalls = attrs.field(factory=StepCalls)  # what the executor's `Access` asks through


@attrs.frozen
class Ending:
    code: ExitCode
    reason: str


@attrs.define(eq=False)
class _Step:
    """One dispatch while anything of it is held."""

    dispatch: Dispatch
    spool: Spool
    control: Control = attrs.field(factory=Control)
    finished: Finished | None = None


class Worker:
    """`run` is the whole life; `drain`, `leave` and `kill` are what three signals mean."""

    def __init__(self, settings: Settings, machine: Machine, ports: Ports, voice: Voice) -> None:
        self._settings = settings
        self._machine = machine
        self._ports = ports
        self._voice = voice
        self._dialing = dialing.Dialing(ports.draw, reconnect=settings.reconnect)
        self._slots = slots.Slots(settings.capacity, settings.dispatches_max)
        self._holdings = holdings.Holdings()
        self._steps: dict[str, _Step] = {}
        self._link: Link | None = None
        self._turn: str | None = None  # whose lines went last
        self._enrolls = 0
        self._last_answer_at = 0.0
        self._drain_reason: str | None = None
        self._drain_noted = False
        self._ending: Ending | None = None
        self._life = trio.CancelScope()
        self._changed = trio.lowlevel.ParkingLot()
        self._nursery: trio.Nursery | None = None
        ports.calls.attach(self)

    # ── what the outside may ask ────────────────────────────────────────────────────────────────────────────
    @property
    def is_draining(self) -> bool:
        return self._slots.draining

    @property
    def held(self) -> int:
        """How many dispatches are held."""
        return len(self._holdings)

    async def run(self) -> Ending:
        """Until it leaves. Everything it started is dead and reaped when it returns."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._watch_grace)
            if self._settings.idle_timeout_s is not None:
                nursery.start_soon(self._watch_idle, self._settings.idle_timeout_s)
            with self._life:
                await self._dial_and_serve()
            ending = self._ending or Ending(ExitCode.DONE, "stopped")
            await self._end_what_runs("the worker stops")
            nursery.cancel_scope.cancel()
        self._voice.stopped(ending.reason)
        return ending

    def drain(self, reason: str) -> None:
        """Take nothing new, finish what runs, deliver it, leave. Announced at once."""
        if self._slots.draining:
            return
        self._drain_reason = reason
        self._slots.handle(slots.DrainSet(True))
        self._voice.draining(reason)
        self._announce_drain()
        self._start(self._finish_drain)

    def leave(self) -> None:
        """Cancel what runs, tell if anybody listens, and leave; ends with `INTERRUPTED`."""
        if not self._slots.draining:
            self._slots.handle(slots.DrainSet(True))
        self._drain_reason = self._drain_reason or "stopped"
        self._announce_drain()
        self._ending = Ending(ExitCode.INTERRUPTED, "stopped before the drain was complete")
        self._act(holdings.EverythingRefused("the worker was stopped", CANCEL_TERM_S))
        self._start(self._finish_leaving)

    def kill(self) -> None:
        """KILL everything and leave at once."""
        self._ending = Ending(ExitCode.INTERRUPTED, "killed")
        self._act(holdings.EverythingRefused("the worker was killed", 0.0))
        self._life.cancel()

    # ── links ───────────────────────────────────────────────────────────────────────────────────────────────
    async def _dial_and_serve(self) -> None:
        effects = self._dialing.handle(dialing.Started(), self._ports.boot_s())
        while True:
            (effect,) = effects
            match effect:
                case dialing.Stop(reason, refusal, failed):
                    self._ending = self._stopped(reason, refusal, failed)
                    return
                case dialing.Wait(delay_s):
                    self._voice.retrying(delay_s)
                    await self._wait_to_dial()
                    effects = self._dialing.handle(dialing.WaitOver(), self._ports.boot_s())
                case dialing.Dial(attempt, timeout_s):
                    event = await self._one_link(attempt, timeout_s)
                    self._note_holding()
                    effects = self._dialing.handle(event, self._ports.boot_s())

    async def _wait_to_dial(self) -> None:
        while (deadline := self._dialing.next_deadline()) is not None:
            left_s = deadline - self._ports.boot_s()
            if left_s <= 0:
                return
            await trio.sleep(min(left_s, 1.0))  # the boot clock goes on while trio's does not
            self._note_holding()

    def _note_holding(self) -> None:
        holding = len(self._holdings) > 0
        grace_s = self._holdings.tempo.grace_s
        self._dialing.handle(dialing.HoldingChanged(holding, grace_s), self._ports.boot_s())

    def _stopped(self, reason: str, refusal: RefusalCode | None, failed: bool) -> Ending:
        if refusal is not None:
            return Ending(PERMANENT_REFUSALS[refusal], reason)
        if not failed:
            return Ending(ExitCode.DONE, reason)
        return Ending(self._hopeless or ExitCode.NOT_CONNECTED, reason)

    _hopeless: ExitCode | None = None

    async def _one_link(self, attempt: int, timeout_s: float) -> dialing.Happening:
        """Dial, enroll, serve; how it ended."""
        self._voice.connecting(self._settings.url, attempt)
        event: dialing.Happening | None = None
        with trio.move_on_after(timeout_s) as scope:
            try:
                async with self._ports.dial() as pipe:
                    event = await self._talk(pipe, scope)
            except NoLink as error:
                if error.permanent:
                    self._hopeless = ExitCode.PIN_MISMATCH
                self._voice.disconnected(error.message)
                if error.hint:
                    self._voice.warn(error.hint)
                if self._dialing.phase is dialing.Phase.ENROLLED:  # it broke below us, after it was open
                    return dialing.LinkLost(error.message)
                return dialing.DialFailed(error.message, error.permanent)
        if event is None:
            event = dialing.DialFailed(f"no answer within {timeout_s:.1f} s")
            self._voice.disconnected(event.reason)
        return event

    async def _talk(self, pipe: MessagePipe, scope: trio.CancelScope) -> dialing.Happening:
        link = Link(pipe, self._feed)
        listing = self._holdings.listing()
        self._enrolls += 1
        sent_at = self._ports.boot_s()
        try:
            answer = await link.enroll(self._enroll_frame(listing))
        except Refused as refused:
            if refused.permanent:
                self._voice.refused(refused.refusal, refused.message)
            else:
                self._voice.disconnected(f"{refused.refusal.value}: {refused.message}")
            return dialing.Refused(refused.refusal, refused.retry_after_s)
        except LinkEnded as ended:
            self._voice.disconnected(ended.message)
            return dialing.DialFailed(ended.message)
        if not _is_sane(answer):
            self._voice.disconnected("the orchestrator's grace, heartbeat and silence make no sense together")
            return dialing.DialFailed("nonsense in the enrollment")
        scope.deadline = float("inf")
        reconnect = self._dialing.ever_enrolled
        self._dialing.handle(dialing.Enrolled(), sent_at)
        self._ports.on_enrolled()
        self._voice.enrolled(answer.worker, reconnect, self._settings.capacity)
        self._link = link
        self._last_answer_at = sent_at
        try:
            self._ports.renew(sent_at, answer.grace_s)
            listed = tuple(held.dispatch for held in listing)
            self._act(holdings.LinkUp(sent_at, answer.grace_s, listed, answer.verdicts))
            if self._slots.draining:
                self._announce_drain()
            return await self._serve(link, answer)
        finally:
            self._link = None
            self._drain_noted = False
            self._act(holdings.LinkDown())
            self._ports.calls.link_down()
            self._changed.unpark_all()

    def _enroll_frame(self, listing: tuple[HeldDispatch, ...]) -> Enroll:
        machine = self._machine
        return Enroll(
            protocol_version=PROTOCOL_VERSION,
            swamp_version=SWAMP_VERSION,
            token=self._settings.token,
            machine_id=machine.machine_id,
            boot_id=machine.boot_id,
            instance=machine.instance,
            counter=self._enrolls,
            host=machine.host,
            pid=machine.pid,
            platform=machine.platform,
            arch=machine.arch,
            labels=dict(self._settings.labels),
            capacity=self._settings.capacity,
            draining=self._slots.draining,
            predecessor=machine.predecessor,
            held=listing,
        )

    async def _serve(self, link: Link, answer: Enrolled) -> dialing.LinkLost:
        lost = dialing.LinkLost("the connection was lost")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._heartbeat, link, answer.heartbeat_s, answer.silence_s, answer.grace_s)
            nursery.start_soon(self._refresh, link, answer.session_expires_ms)
            try:
                await link.run(lambda frame: self._on_frame(link, frame))
            except LinkEnded as ended:
                lost = dialing.LinkLost(ended.message, ended.retry_after_s)
            nursery.cancel_scope.cancel()
        self._voice.disconnected(lost.reason)
        return lost

    async def _heartbeat(self, link: Link, every_s: float, silence_s: float, grace_s: float) -> None:
        number = 0
        while True:
            number += 1
            sent_at = self._ports.boot_s()
            link.ask(Heartbeat(number), self._renewer(sent_at, grace_s))
            await trio.sleep(every_s)
            now = self._ports.boot_s()
            stalled = now - sent_at > 2 * every_s  # we slept ourselves: what came meanwhile is read first
            if not stalled and now - self._last_answer_at > silence_s:
                link.end(f"no heartbeat was answered for {now - self._last_answer_at:.0f} s")

    def _renewer(self, sent_at: float, grace_s: float) -> Callable[[Reply], None]:
        def renew(reply: Reply) -> None:
            if isinstance(reply, Response):
                self._last_answer_at = max(self._last_answer_at, sent_at)
                self._act(holdings.Renewed(sent_at))
                self._ports.renew(sent_at, grace_s)

        return renew

    async def _refresh(self, link: Link, expires_ms: int) -> None:
        while True:
            left_s = (expires_ms - self._ports.wall_ms()) / 1000
            # Clocks of two machines differ; a refresh too many is cheap, a storm of them is not.
            wait_s = max(REFRESH_S_MIN, min(left_s, SESSION_CREDENTIAL_S) * SESSION_REFRESH_FRACTION)
            await trio.sleep(wait_s)
            answered = trio.Event()
            replies: list[Reply] = []

            def on_reply(
                reply: Reply, replies: list[Reply] = replies, answered: trio.Event = answered
            ) -> None:
                replies.append(reply)
                answered.set()

            link.ask(RefreshSession(), on_reply)
            await answered.wait()  # a silent peer is the heartbeat's business
            match replies[0]:
                case Response(body=SessionRefreshed(session_expires_ms=expires_ms)):
                    self._voice.refreshed(_iso(expires_ms))
                case Failure(failure=failure):
                    link.end(f"the session credential was not refreshed: {failure.message}")
                    return

    # ── frames ──────────────────────────────────────────────────────────────────────────────────────────────
    def _on_frame(self, link: Link, frame: Request | Event) -> None:
        match frame:
            case Request(body=Dispatch() as dispatch):
                self._on_dispatch(link, frame, dispatch)
            case Request(body=CancelDispatch() as cancel):
                known = self._holdings.fence(cancel.dispatch) == cancel.fence
                if known:
                    self._on_cancel(cancel)
                link.reply(frame, CancelNoted(cancel.dispatch, known))
            case Request(body=Heartbeat(number)):
                link.reply(frame, HeartbeatAnswer(number))
            case Event(body=LogNoted(dispatch, through)):
                self._act(holdings.LinesNoted(dispatch, through))
                link.wake()  # the window is open again
            case Event(body=Notice(level, message)):
                self._voice.notice(level, message)
            case Request():
                link.refuse(frame, RefusalCode.UNLAWFUL, "this worker does not know the request")
            case _:
                pass

    def _on_dispatch(self, link: Link, frame: Request, dispatch: Dispatch) -> None:
        name = dispatch.dispatch
        if not is_uuid(name):  # it names files and marks processes here
            link.refuse(frame, RefusalCode.MALFORMED, "the dispatch id is not a UUID")
            return
        if name in self._holdings and name not in self._slots.taken:  # ended, and its end is on its way
            link.reply(frame, Accepted(name))
            return
        if self._holdings.is_late(self._ports.boot_s()) and name not in self._holdings:
            # It lay in a socket while we stood still: by now its step may run elsewhere.
            link.refuse(frame, RefusalCode.BUSY, "the worker stood still for too long to begin this")
            return
        (effect,) = self._slots.handle(slots.Offered(name))
        match effect:
            case slots.Accept():
                link.reply(frame, Accepted(name))
                self._act(holdings.Taken(name, dispatch.fence))
                step = self._steps[name] = _Step(dispatch, self._ports.spool.open(name))
                self._start(self._run_step, step)
                if self._slots.is_spent:
                    self.drain("reached max dispatches")
            case slots.AcceptAgain():
                link.reply(frame, Accepted(name))
            case slots.Refuse(_, code, message):
                link.refuse(frame, code, message)

    def _on_cancel(self, cancel: CancelDispatch) -> None:
        self._act(holdings.CancelAsked(cancel.dispatch))
        if cancel.dispatch in self._slots.taken:
            self._slots.handle(slots.EndAsked(cancel.dispatch))
        step = self._steps[cancel.dispatch]
        if step.finished is None:
            step.control.ask_cancel(cancel.reason, cancel.term_s)

    def _feed(self, link: Link) -> Frame | None:
        """The next call, log lines or end for the writer; nothing when all is sent."""
        call = self._ports.calls.feed(link)  # each waits for its answer: they cannot crowd out the lines
        if call is not None:
            return call
        sendable = self._holdings.sendable(self._turn)
        if sendable is None:
            return None
        self._turn = sendable.dispatch
        step = self._steps[sendable.dispatch]
        now = self._ports.boot_s()
        if sendable.first is not None:
            batch = step.spool.read(sendable.first, LOG_FRAME_LINES, LOG_FRAME_BYTES)
            through = sendable.first + batch.count - 1
            self._holdings.handle(holdings.LinesSent(sendable.dispatch, through, batch.size), now)
            return Event(LogLines(sendable.dispatch, step.dispatch.fence, sendable.first, batch.blocks))
        assert step.finished is not None
        self._holdings.handle(holdings.FinishSent(sendable.dispatch), now)
        said = step.finished
        return link.request(said, lambda reply: self._on_finish_reply(step, said, reply))

    def _on_finish_reply(self, step: _Step, said: Finished, reply: Reply) -> None:
        name = step.dispatch.dispatch
        if name not in self._holdings:
            return
        match reply:
            case Response(body=FinishNoted(accepted=accepted)):
                if not accepted:
                    self._voice.notice(
                        "info", f"Dispatch {name[:8]}: its lease had ended; the late result was not taken"
                    )
                self._act(holdings.FinishNoted(name))
                if step.finished is not said:  # what was left of it went away while the answer was on its way
                    self._tell_empty(step)
            case Failure(failure=failure) if failure.code in _FINISH_REFUSED_FOR_GOOD:
                self._voice.warn(f"Dispatch {name[:8]}: the result was refused: {failure.message}")
                self._act(holdings.FinishNoted(name))
            case Failure(failure=failure):
                self._start(self._send_finish_again, name, failure.retry_after_s or FINISH_RETRY_S)

    async def _send_finish_again(self, name: str, after_s: float) -> None:
        await trio.sleep(after_s)
        self._act(holdings.FinishRefused(name))
        if self._link is not None:
            self._link.wake()

    # ── steps ───────────────────────────────────────────────────────────────────────────────────────────────
    async def _run_step(self, step: _Step) -> None:
        dispatch = step.dispatch
        self._voice.dispatch_started(dispatch)
        try:
            finished = await self._ports.executor.execute(dispatch, _Lines(self, step), step.control)
        except Exception as error:  # a defect of ours fails the step and is shown; it must not end the others
            self._voice.warn(f"internal error while executing {dispatch.dispatch[:8]}: {error!r}")
            text = f"internal error of the worker: {type(error).__name__}"
            started_ms = self._ports.wall_ms()
            last = step.spool.last
            finished = Finished(
                dispatch.dispatch, dispatch.fence, Outcome.FAILED, text, (), last, 0, None, started_ms, 0
            )
        if self._holdings.is_late(self._ports.boot_s()) and finished.outcome is not Outcome.ABANDONED:
            finished = attrs.evolve(
                finished,
                outcome=Outcome.ABANDONED,
                error="Abandoned: it ended after its holder's give-up instant",
            )
        step.finished = finished
        self._voice.dispatch_finished(dispatch, finished)
        (effect,) = self._slots.handle(slots.Ended(dispatch.dispatch, finished.left))
        if isinstance(effect, slots.ReportStuck):
            left = "an unknown number of" if finished.left is None else str(finished.left)
            self._voice.warn(
                f"Dispatch {dispatch.dispatch[:8]}: {left} processes are left {STUCK_S:.0f} s after KILL; "
                "its slot stays taken until they are gone"
            )
            self._start(self._watch_stuck, step)
        self._act(holdings.Ended(dispatch.dispatch, finished.last_line))
        if self._link is not None:
            self._link.wake()
        self._changed.unpark_all()

    async def _watch_stuck(self, step: _Step) -> None:
        name = step.dispatch.dispatch
        while not self._ports.settle(name):  # noqa: ASYNC110 - the kernel has no event for an emptied group
            await trio.sleep(STUCK_LOOK_S)
        self._slots.handle(slots.Emptied(name))
        assert step.finished is not None
        step.finished = attrs.evolve(step.finished, left=0)  # what is still to be said, or is said again
        if name not in self._holdings:  # the end was noted, with something left
            self._tell_empty(step)
        self._voice.notice("info", f"Dispatch {name[:8]}: nothing is left; its slot is free again")
        self._changed.unpark_all()

    def _tell_empty(self, step: _Step) -> None:
        """Nothing is left of a step whose end was noted already. A lost link needs no word: the next list is without it."""
        if self._link is not None and step.finished is not None:
            self._link.ask(step.finished, lambda reply: None)

    async def keep_lines(self, step: _Step, first: int, blocks: tuple[LogBlock, ...]) -> None:
        """Where a running step's lines go."""
        name = step.dispatch.dispatch
        if self._holdings.phase(name) is holdings.Phase.DROPPED:
            return  # nobody wants them
        await step.spool.add(first, blocks)
        if name in self._holdings:
            self._holdings.handle(holdings.LinesKept(name, step.spool.last), self._ports.boot_s())
            if self._link is not None:
                self._link.wake()

    def closed(self, dispatch: str) -> str | None:
        """Why nothing may be sent for a step any more; None while it may."""
        step = self._steps.get(dispatch)
        if step is None:
            return "this worker does not hold it"
        if step.control.abandon:
            return step.control.reason
        if self._holdings.is_late(self._ports.boot_s()):
            return "no heartbeat was answered for so long that the step is given up"
        return None

    def wake(self) -> None:
        """The link's writer may have something to send."""
        if self._link is not None:
            self._link.wake()

    @property
    def pause_s_max(self) -> float:
        return self._holdings.tempo.redial_s_max

    def _act(self, event: holdings.Happening) -> None:
        """Tell the holdings, and do what they say."""
        for effect in self._holdings.handle(event, self._ports.boot_s()):
            match effect:
                case holdings.EndIt(name, reason, term_s):
                    if name in self._slots.taken:
                        self._slots.handle(slots.EndAsked(name))
                    control = self._steps[name].control
                    control.abandon = True
                    self._ports.calls.close(name, reason)
                    control.ask_cancel(reason, term_s)
                case holdings.DropLines(name, through):
                    self._steps[name].spool.let_go(through)
                case holdings.Forget(name):
                    self._steps.pop(name).spool.close()
                    self._ports.calls.forget(name)
                    self._changed.unpark_all()

    # ── clocks ──────────────────────────────────────────────────────────────────────────────────────────────
    async def _watch_grace(self) -> None:
        """The give-up instants, by the boot clock: looked at often, since trio's clock stops in suspend."""
        while True:
            deadline = self._holdings.next_deadline()
            now = self._ports.boot_s()
            if deadline is not None and deadline <= now:
                self._act(holdings.TimePassed())
                continue
            look_s = min(1.0, self._holdings.tempo.grace_s / 24)
            await trio.sleep(look_s if deadline is None else min(look_s, deadline - now))

    async def _watch_idle(self, timeout_s: float) -> None:
        while True:
            with trio.move_on_after(timeout_s) as idle:
                if self._slots.taken or len(self._holdings):
                    idle.deadline = float("inf")
                await self._changed.park()
            if idle.cancelled_caught and not self._slots.taken and not len(self._holdings):
                self.drain("idle timeout elapsed")
                return

    # ── leaving ─────────────────────────────────────────────────────────────────────────────────────────────
    def _announce_drain(self) -> None:
        link = self._link
        if link is not None:

            def on_reply(reply: Reply) -> None:
                self._drain_noted = True
                self._changed.unpark_all()

            link.ask(AnnounceDrain(True, self._drain_reason or "draining"), on_reply)

    async def _finish_drain(self) -> None:
        with trio.move_on_after(DRAIN_NOTE_S):
            while self._link is not None and not self._drain_noted:
                await self._changed.park()
        while self._holdings.running:
            await self._changed.park()
        with trio.move_on_after(self._holdings.tempo.grace_s):
            while len(self._holdings):
                await self._changed.park()
        for name in self._holdings.undelivered:
            self._voice.warn(f"Dispatch {name[:8]}: its result could not be delivered and is lost")
        self._voice.drain_complete()
        if self._ending is None:
            self._ending = Ending(ExitCode.DONE, self._drain_reason or "drained")
        self._life.cancel()

    async def _finish_leaving(self) -> None:
        while self._holdings.running:
            await self._changed.park()
        with trio.move_on_after(LEAVE_DELIVER_S):
            while self._link is not None and len(self._holdings):
                await self._changed.park()
        self._life.cancel()

    async def _end_what_runs(self, reason: str) -> None:
        """KILL and reap everything that still runs: after a refusal, a kill, or any other end."""
        if self._holdings.running:
            self._act(holdings.EverythingRefused(reason, 0.0))
            with trio.move_on_after(STUCK_S):
                while self._holdings.running:
                    await self._changed.park()

    def _start(self, task: Callable[..., object], *arguments: object) -> None:
        if self._nursery is None:
            raise Broken("the worker does not run")
        self._nursery.start_soon(task, *arguments)  # type: ignore[arg-type]


class _Lines:
    """The executor's sink for one step."""

    def __init__(self, worker: Worker, step: _Step) -> None:
        self._worker = worker
        self._step = step

    async def write(self, first: int, blocks: tuple[LogBlock, ...]) -> None:
        await self._worker.keep_lines(self._step, first, blocks)


def _is_sane(answer: Enrolled) -> bool:
    return (
        GRACE_S_MIN <= answer.grace_s <= GRACE_S_MAX
        and HEARTBEAT_S_MIN <= answer.heartbeat_s < answer.silence_s < answer.grace_s
    )


def _iso(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
