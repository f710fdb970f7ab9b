"""A simulated worker: the real dialing, slots, holdings and session rules in a thin shell.

The shell does what `swamp_worker.shell.daemon` does, in the same order, with events instead of tasks: dial,
enroll with what is held, send lines and ends until they are noted, end what the holdings say must end.
"""

from typing import TYPE_CHECKING, Any

import attrs

from swamp_proto.envelope import Event, Failure, Request, Response
from swamp_proto.errors import RefusalCode
from swamp_proto.limits import STUCK_S
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
    Stream,
)
from swamp_proto.messages.enrollment import (
    AnnounceDrain,
    Enroll,
    Enrolled,
    Farewell,
    Heartbeat,
    HeartbeatAnswer,
    HeldDispatch,
    Predecessor,
)
from swamp_proto.version import PROTOCOL_VERSION, SWAMP_VERSION
from swamp_worker.core import dialing, holdings, slots

from .link import End, Reply
from .loop import Process, Signal
from .machine import Execution, Keeper, Machine

if TYPE_CHECKING:
    from .world import World

FINISH_RETRY_S = 1.0
LINE_BATCH = 4


@attrs.define(eq=False)
class Held:
    """One dispatch while anything of it is held: the shell's `_Step`."""

    dispatch: Dispatch
    execution: Execution | None = None
    last_line: int = 0
    reason: str = ""
    abandon: bool = False
    asked: bool = False
    finished: Finished | None = None


class SimWorker:
    """One worker process, from its start to its death."""

    def __init__(self, world: "World", machine: Machine, name: str, token: str, capacity: int) -> None:
        self.world = world
        self.machine = machine
        self.name = name  # the token's name, which is its name in the pool
        self.token = token
        self.process = Process(f"worker {name}")
        self.instance = world.chance.uuid()
        self.pid = world.next_pid()
        self.keeper = Keeper(machine)
        self.predecessor = self._reap_predecessor()
        machine.keepers.append(self.keeper)
        core = world.cores
        journal = world.journal
        self.dialing = journal.core(
            f"dialing {self.pid}", lambda: core.dialing.Dialing(world.chance.of(f"dial/{name}").random)
        )
        self.slots = journal.core(f"slots {self.pid}", lambda: core.slots.Slots(capacity))
        self.holdings = journal.core(f"holdings {self.pid}", lambda: core.holdings.Holdings())
        self.held: dict[str, Held] = {}
        self.end: End | None = None
        self.stopped: str | None = None  # why it will never dial again
        self._turn: str | None = None
        self._enrolls = 0
        self._answered_s = 0.0
        world.loop.spawn(self.process, self._life())
        world.loop.spawn(self.process, self._watch_grace())

    @property
    def boot_s(self) -> float:
        return self.machine.boot_s()

    def _reap_predecessor(self) -> Predecessor | None:
        """What the directory's registry says of the process before: kill what it left, if that can be done."""
        before = self.world.last_instance.get(self.name)
        self.world.last_instance[self.name] = (self.instance, self.machine.boot_id)
        if before is None:
            return None
        instance, boot_id = before
        if boot_id != self.machine.boot_id:
            return Predecessor(instance, boot_id, True)
        if self.world.weather.can_reap():
            for keeper in self.machine.keepers:
                keeper.kill_all()
            return Predecessor(instance, boot_id, True)
        return Predecessor(instance, boot_id, False)

    def died(self) -> None:
        """kill -9: its keeper notices, its sockets close."""
        if self.end is not None:
            self.end.wire.died(self.end.side)
        loop, machine = self.world.loop, self.machine
        self.keeper.asleep = self.world.weather.keeper_sleeps()
        loop.after(self.world.weather.keeper_delay_s(), machine.host, self.keeper.holder_died)

    # ── links ───────────────────────────────────────────────────────────────────────────────────────────────
    def _life(self) -> Any:
        effects = self.dialing.handle(dialing.Started(), self.boot_s)
        while True:
            (effect,) = effects
            self.process.effect()
            match effect:
                case dialing.Stop(reason=reason):
                    self.stopped = reason
                    self._act(holdings.EverythingRefused(reason, 0.0))
                    return
                case dialing.Wait():
                    while (deadline := self.dialing.next_deadline()) is not None and self.boot_s < deadline:
                        yield min(deadline - self.boot_s, 1.0)
                        self._note_holding()
                    effects = self.dialing.handle(dialing.WaitOver(), self.boot_s)
                case dialing.Dial(timeout_s=timeout_s):
                    event = yield from self._one_link(timeout_s)
                    self._note_holding()
                    effects = self.dialing.handle(event, self.boot_s)

    def _note_holding(self) -> None:
        changed = dialing.HoldingChanged(len(self.holdings) > 0, self.holdings.tempo.grace_s)
        self.dialing.handle(changed, self.boot_s)

    def _one_link(self, timeout_s: float) -> Any:
        until = self.boot_s + timeout_s
        opened: Signal = self.world.dial(self)
        got = yield (opened, timeout_s)
        if not got or opened.value is None:
            return dialing.DialFailed("no answer" if not got else "refused")
        end: End = opened.value
        listing = self.holdings.listing()
        self._enrolls += 1
        sent_at = self.boot_s
        answer, closed = Signal(), Signal()
        farewell: list[Farewell] = []
        end.on_close = lambda reason: (answer.set(None), closed.set(reason))[0]

        unread: list[Request | Event] = []

        def before(frame: Request | Event) -> None:
            if isinstance(frame, Event) and isinstance(frame.body, Farewell):
                farewell.append(frame.body)
            else:
                unread.append(frame)  # it came right behind the answer, which nobody has looked at yet

        end.on_frame = before
        end.ask(self._enroll_frame(listing), answer.set)
        got = yield (answer, max(0.0, until - self.boot_s))
        reply: Reply | None = answer.value
        match reply:
            case Response(body=Enrolled() as enrolled):
                pass
            case Failure(failure=failure):
                end.close("refused")
                return dialing.Refused(failure.code, failure.retry_after_s)
            case _:
                end.close("no answer to the enroll frame")
                if farewell:
                    return dialing.Refused(farewell[0].code, farewell[0].retry_after_s)
                return dialing.DialFailed("the connection was lost" if got else "no answer")
        self.dialing.handle(dialing.Enrolled(), sent_at)
        self.end = end
        self._answered_s = sent_at
        end.on_frame = lambda frame: self._on_frame(end, frame, farewell)
        self.keeper.renew(sent_at, enrolled.grace_s)
        listed = tuple(one.dispatch for one in listing)
        self.world.checks.verdicts_came(self, listed, enrolled)
        self._act(holdings.LinkUp(sent_at, enrolled.grace_s, listed, enrolled.verdicts))
        beating = self.world.loop.spawn(self.process, self._heartbeat(end, enrolled))
        self._feed()
        for frame in unread:
            end.on_frame(frame)
        yield closed
        beating.cancel()
        self.end = None
        self._act(holdings.LinkDown())
        hint = farewell[0].retry_after_s if farewell else None
        return dialing.LinkLost(str(closed.value), hint)

    def _enroll_frame(self, listing: tuple[HeldDispatch, ...]) -> Enroll:
        return Enroll(
            protocol_version=PROTOCOL_VERSION,
            swamp_version=SWAMP_VERSION,
            token=self.token,
            machine_id=self.machine.name,
            boot_id=self.machine.boot_id,
            instance=self.instance,
            counter=self._enrolls,
            host=self.machine.name,
            pid=self.pid,
            platform="linux",
            arch="x86_64",
            labels=dict(self.world.labels[self.name]),
            capacity=self.slots.capacity,
            draining=self.slots.draining,
            predecessor=self.predecessor,
            held=listing,
        )

    def _heartbeat(self, end: End, enrolled: Enrolled) -> Any:
        number, every_s = 0, enrolled.heartbeat_s
        while not end.closed:
            number += 1
            sent_at = self.boot_s
            end.ask(Heartbeat(number), self._renewer(sent_at, enrolled.grace_s))
            yield every_s
            now = self.boot_s
            if now - sent_at <= 2 * every_s and now - self._answered_s > enrolled.silence_s:
                end.close("no heartbeat was answered")

    def _renewer(self, sent_at: float, grace_s: float) -> Any:
        def renew(reply: Reply | None) -> None:
            if isinstance(reply, Response):
                self._answered_s = max(self._answered_s, sent_at)
                self._act(holdings.Renewed(sent_at))
                self.keeper.renew(sent_at, grace_s)

        return renew

    # ── frames ──────────────────────────────────────────────────────────────────────────────────────────────
    def _on_frame(self, end: End, frame: Request | Event, farewell: list[Farewell]) -> None:
        match frame:
            case Request(body=Dispatch() as dispatch):
                self._on_dispatch(end, frame, dispatch)
            case Request(body=CancelDispatch() as cancel):
                known = self.holdings.fence(cancel.dispatch) == cancel.fence
                if known:
                    self._on_cancel(cancel)
                end.reply(frame, CancelNoted(cancel.dispatch, known))
            case Request(body=Heartbeat(number)):
                end.reply(frame, HeartbeatAnswer(number))
            case Event(body=LogNoted(dispatch, through)):
                self._act(holdings.LinesNoted(dispatch, through))
            case Event(body=Farewell() as body):
                farewell.append(body)
                end.close(f"{body.code.value}: {body.message}")
            case _:
                pass

    def _on_dispatch(self, end: End, frame: Request, dispatch: Dispatch) -> None:
        name = dispatch.dispatch
        if name in self.holdings and name not in self.slots.taken:
            end.reply(frame, Accepted(name))
            return
        if self.holdings.is_late(self.boot_s) and name not in self.holdings:
            end.refuse(frame, RefusalCode.BUSY, "the worker stood still for too long to begin this")
            return
        (effect,) = self.slots.handle(slots.Offered(name))
        match effect:
            case slots.Accept():
                end.reply(frame, Accepted(name))
                self._act(holdings.Taken(name, dispatch.fence))
                held = self.held[name] = Held(dispatch)
                self.process.effect()
                self._run(held)
            case slots.AcceptAgain():
                end.reply(frame, Accepted(name))
            case slots.Refuse(_, code, message):
                end.refuse(frame, code, message)

    def _on_cancel(self, cancel: CancelDispatch) -> None:
        self._act(holdings.CancelAsked(cancel.dispatch))
        if cancel.dispatch in self.slots.taken:
            self.slots.handle(slots.EndAsked(cancel.dispatch))
        held = self.held[cancel.dispatch]
        if held.finished is None:
            self._ask_end(held, cancel.reason, cancel.term_s)

    def _ask_end(self, held: Held, reason: str, term_s: float) -> None:
        held.asked, held.reason = True, reason
        if held.execution is not None:
            self.machine.term(held.execution, term_s)

    # ── steps ───────────────────────────────────────────────────────────────────────────────────────────────
    def _run(self, held: Held) -> None:
        execution = Execution(
            held.dispatch,
            self.machine,
            self.world.behaviour(held.dispatch),
            on_line=lambda number: self._for_process(self._line, held, number),
            on_end=lambda outcome: self._for_process(self._ended, held, outcome),
        )
        held.execution = execution
        self.machine.begin(execution, self.keeper)

    def _for_process(self, what: Any, *arguments: Any) -> None:
        """The machine tells its worker, if that lives; a stopped one hears when it goes on."""
        self.world.loop.at(self.world.loop.now, self.process, what, *arguments)

    def _line(self, held: Held, number: int) -> None:
        name = held.dispatch.dispatch
        if name not in self.holdings or self.holdings.phase(name) is holdings.Phase.DROPPED:
            return
        held.last_line = number
        self._act(holdings.LinesKept(name, number))
        self._feed()

    def _ended(self, held: Held, outcome: Outcome | None) -> None:
        name, execution = held.dispatch.dispatch, held.execution
        assert execution is not None
        left = 1 if execution.alive else 0
        if held.abandon or (outcome is None and not held.asked):
            outcome = Outcome.ABANDONED
        elif outcome is None:
            outcome = Outcome.CANCELLED
        if self.holdings.is_late(self.boot_s):
            outcome = Outcome.ABANDONED
        held.finished = Finished(
            name, held.dispatch.fence, outcome, None if outcome is Outcome.SUCCEEDED else outcome.value, (),
            held.last_line, 0, left, 0, 0,
        )  # fmt: skip
        self.keeper.held.pop(name, None)
        (effect,) = self.slots.handle(slots.Ended(name, left))
        if isinstance(effect, slots.ReportStuck):
            self.world.loop.after(min(1.0, STUCK_S), self.process, self._look_at_stuck, held)
        self._act(holdings.Ended(name, held.last_line))
        self._feed()

    def _look_at_stuck(self, held: Held) -> None:
        assert held.execution is not None
        if held.execution.alive:
            self.world.loop.after(1.0, self.process, self._look_at_stuck, held)
            return
        self.slots.handle(slots.Emptied(held.dispatch.dispatch))
        assert held.finished is not None
        held.finished = attrs.evolve(held.finished, left=0)  # if it is still to be said, or said again
        if self.end is not None and held.dispatch.dispatch not in self.holdings:
            self.end.ask(held.finished)

    def _feed(self) -> None:
        """Send what the link may send next: lines, then ends, taking turns."""
        while self.end is not None and not self.end.closed:
            sendable = self.holdings.sendable(self._turn)
            if sendable is None:
                return
            self._turn = name = sendable.dispatch
            held = self.held[name]
            if sendable.first is not None:
                through = min(sendable.first + LINE_BATCH - 1, held.last_line)
                text = "\n".join(f"{number}" for number in range(sendable.first, through + 1))
                blocks = (LogBlock(Stream.STDOUT, text),)
                self.holdings.handle(holdings.LinesSent(name, through), self.boot_s)
                self.end.post(LogLines(name, held.dispatch.fence, sendable.first, blocks))
            else:
                assert held.finished is not None
                self.holdings.handle(holdings.FinishSent(name), self.boot_s)
                said = held.finished
                self.end.ask(
                    said,
                    lambda reply, held=held, said=said: self._on_finish_reply(held, said, reply),  # type: ignore[misc]
                )

    def _on_finish_reply(self, held: Held, said: Finished, reply: Reply | None) -> None:
        name = held.dispatch.dispatch
        if name not in self.holdings or reply is None:
            return
        match reply:
            case Response(body=FinishNoted()):
                self._act(holdings.FinishNoted(name))
                if held.finished is not said and self.end is not None:
                    assert held.finished is not None
                    self.end.ask(held.finished)  # nothing is left by now
            case Failure(failure=failure) if failure.code is RefusalCode.LEASE_ENDED:
                self._act(holdings.FinishNoted(name))
            case Failure():
                self.world.loop.after(FINISH_RETRY_S, self.process, self._finish_again, name)

    def _finish_again(self, name: str) -> None:
        if name in self.holdings:
            self.holdings.handle(holdings.FinishRefused(name), self.boot_s)
            self._feed()

    def _act(self, event: Any) -> None:
        for effect in self.holdings.handle(event, self.boot_s):
            self.process.effect()
            match effect:
                case holdings.EndIt(name, reason, term_s):
                    if name in self.slots.taken:
                        self.slots.handle(slots.EndAsked(name))
                    held = self.held[name]
                    held.abandon = True
                    if held.finished is None:
                        self._ask_end(held, reason, term_s)
                case holdings.Forget(name):
                    self.held.pop(name)
                case holdings.DropLines():
                    pass

    def _watch_grace(self) -> Any:
        while True:
            deadline = self.holdings.next_deadline()
            if deadline is not None and deadline <= self.boot_s:
                self._act(holdings.TimePassed())
                continue
            look_s = min(1.0, self.holdings.tempo.grace_s / 24)
            yield look_s if deadline is None else min(look_s, deadline - self.boot_s)

    # ── signals ─────────────────────────────────────────────────────────────────────────────────────────────
    def drain(self) -> None:
        """The first signal, without the leaving: takes nothing new and says so."""
        if not self.slots.draining:
            self.slots.handle(slots.DrainSet(True))
            if self.end is not None:
                self.end.ask(AnnounceDrain(True, "asked to"))
