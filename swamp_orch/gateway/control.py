"""Workers' sockets: from the first frame to the last, and what becomes of a link.

Rules that hold here (SEMANTICS §6, SPEC §7):

1. One enrollment per socket, its frame received within the enroll deadline; who is let in is `enrollment`'s, how many may wait at
   the door is `door`'s business.
2. A refusal is told and the socket closed. A wrong secret is told late, so that guessing is slow; nobody is locked out by it.
3. A session is a nursery inside `Member.scope`. Whoever ends it (a newer link, silence, the end of its token: `lifetimes`)
   cancels that scope; the last words are written and the record is made after it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol

import attrs
import trio

from swamp_orch.core.tokens import mint_over
from swamp_orch.gateway.door import Verifications, Waiters, overloaded
from swamp_orch.gateway.enrollment import Enrollment, Holders
from swamp_orch.gateway.lifetimes import Leases, Lifetimes, Reporter
from swamp_orch.gateway.link import Link, Pipe, farewell, refusal_of, refused
from swamp_orch.gateway.members import Member, Sessions
from swamp_orch.store.bookkeeping import iso
from swamp_orch.store.interface import Batch, Store
from swamp_orch.store.trio_store import commit
from swamp_orch.tokens.records import read_token, read_worker, worker_record
from swamp_orch.tokens.verification import Verifier
from swamp_orch.tokens.watch import TokenWatch
from swamp_orch.tokens.workers import WorkerState
from swamp_proto.blocks import count_of
from swamp_proto.envelope import Event, Request
from swamp_proto.errors import (
    Broken,
    Conflict,
    LimitExceeded,
    LocalError,
    NotFound,
    RefusalCode,
    Refused,
    RemoteError,
    SwampError,
)
from swamp_proto.limits import (
    ENROLL_DEADLINE_S,
    KIB,
    LOG_BATCH_LINES_MAX,
    REFUSAL_DELAY_S,
    REFUSALS_DELAYED_PER_ADDRESS_MAX,
    UNAUTHENTICATED_SOCKETS_MAX,
    UNAUTHENTICATED_SOCKETS_PER_ADDRESS_MAX,
    Tempo,
)
from swamp_proto.messages.capability import Call
from swamp_proto.messages.dispatch import Finished, LogLines
from swamp_proto.messages.enrollment import (
    AnnounceDrain,
    DrainNoted,
    Enroll,
    Enrolled,
    Heartbeat,
    HeartbeatAnswer,
    RefreshSession,
    SessionRefreshed,
)

__all__ = ["ControlDesk", "Dispatches", "Member", "Reporter"]

FAREWELL_S: Final = 1.0
PARTING_S: Final = 3.0  # for all farewells when the orchestrator stops
STUCK_WRITER_S: Final = 1.0
STALL_SHARE: Final = 0.5  # of the silence bound: later than this we slept ourselves
GUESSES: Final = frozenset({RefusalCode.DOES_NOT_MATCH})  # answered late


LOUD_BYTES: Final = 4 * KIB
LOUD_YIELDS: Final = 4
"""Turns a link leaves to all others after a frame with so much log: a step that prints without end costs them little."""


class Dispatches(Holders, Leases, Protocol):
    """The engine's side: what runs where (`swamp_orch.engine.dispatches`)."""

    def worker_ready(self, member: Member) -> None: ...

    def worker_left(self, member: Member) -> None: ...

    def worker_changed(self, member: Member) -> None: ...

    async def finished(self, member: Member, request: Request, finished: Finished) -> None: ...

    def log_lines(self, member: Member, lines: LogLines) -> None: ...

    def called(self, member: Member, request: Request, call: Call) -> None: ...


class ControlDesk:
    """All worker links of this orchestrator. `expire_due` records the end of tokens whose lifetime is over."""

    def __init__(
        self,
        store: Store,
        dispatches: Dispatches,
        reporter: Reporter,
        *,
        repository_id: str,
        tempo: Tempo,
        clock_ms: Callable[[], int],
        expire_due: Callable[[], object] = lambda: None,
    ) -> None:
        self._store = store
        self._dispatches = dispatches
        self._report = reporter
        self._tempo = tempo
        self._clock_ms = clock_ms
        self._strangers = Waiters(UNAUTHENTICATED_SOCKETS_MAX, UNAUTHENTICATED_SOCKETS_PER_ADDRESS_MAX)
        self._delayed = Waiters(UNAUTHENTICATED_SOCKETS_MAX, REFUSALS_DELAYED_PER_ADDRESS_MAX)
        self.members: dict[str, Member] = {}
        self.sessions = Sessions()
        self.verifications = Verifications(Verifier())
        self._enrollment = Enrollment(
            store,
            self.verifications,
            dispatches,
            self.sessions,
            self.members,
            repository_id=repository_id,
            tempo=tempo,
            clock_ms=clock_ms,
            leave=self._leave,
        )
        self._lifetimes = Lifetimes(
            TokenWatch(store),
            self.members,
            dispatches,
            reporter,
            clock_ms=clock_ms,
            expire_due=expire_due,
            update=self.update,
        )
        self.watch_tokens = self._lifetimes.watch
        self.look_again = self._lifetimes.look_again
        self.closing: Refused | None = None

    def open(self) -> None:
        """Let workers in: what the last process left was found again. Until then they wait, verified."""
        self._enrollment.opened.set()
        self._lifetimes.look_again()  # leases that were found may belong to tokens that ended meanwhile

    # ── a socket ────────────────────────────────────────────────────────────────────────────────────────────────────
    async def serve(self, pipe: Pipe, address: str) -> None:
        """The whole life of one socket. Returns when it is over; never raises for what a peer does."""
        link = Link(pipe)
        try:
            member, request, reply = await self._enroll(link, address)
        except (Broken, trio.BrokenResourceError):
            return
        async with trio.open_nursery() as outside:
            outside.start_soon(self._see_off, member)
            try:
                await self._session(member, request, reply)
            finally:
                member.parted.set()
            outside.cancel_scope.cancel()

    async def _session(self, member: Member, request: Request, reply: Enrolled) -> None:
        try:
            with member.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch_silence, member)
                    member.link.reply(request, reply)
                    self._dispatches.worker_ready(member)
                    await member.link.run(partial(self._frame, member))
                    nursery.cancel_scope.cancel()
        except* (Broken, trio.BrokenResourceError):
            pass
        except* (RemoteError, LocalError) as group:
            error = _first(group)
            self._report.warning("worker broke the protocol", worker=member.name, error=str(error))
            member.farewell = Refused(refusal_of(error), str(error))
        finally:
            with trio.CancelScope(shield=True):
                await self._leave(member)
                if member.farewell is not None:
                    with trio.move_on_after(FAREWELL_S):
                        await member.link.say_last(farewell(member.farewell))

    async def _see_off(self, member: Member) -> None:
        """A session that was cut is over, also when a half-open socket keeps its writer: the server shields what it sends."""
        await member.ending.wait()
        await trio.sleep(STUCK_WRITER_S)
        with trio.CancelScope(shield=True):
            await self._leave(member)

    async def _enroll(self, link: Link, address: str) -> tuple[Member, Request, Enrolled]:
        """Admit the peer, or tell it why not and raise Broken."""
        request: Request | None = None
        try:
            request = await self._first_frame(link, address)
            if not isinstance(request.body, Enroll):
                raise Refused(RefusalCode.UNLAWFUL, "the first frame must be worker.enroll")
            if self.closing is not None:
                raise self.closing
            member, reply = await self._enrollment.admit(link, request.body, address)
        except SwampError as error:
            if isinstance(error, Broken):
                raise
            refusal = error if isinstance(error, Refused) else Refused(refusal_of(error), str(error))
            self._report.warning(
                "enrollment refused", address=address, code=refusal.refusal.value, reason=str(refusal)
            )
            if refusal.refusal in GUESSES:
                with self._delayed.waiting(address, REFUSAL_DELAY_S):
                    await trio.sleep(REFUSAL_DELAY_S)
            with trio.move_on_after(2):
                await link.say_last(farewell(refusal) if request is None else refused(request, refusal))
            raise Broken("refused") from None
        state = member.state
        self._report.info(
            "worker connected",
            worker=member.name,
            host=state.host,
            pid=state.pid,
            machine=state.machine_id,
            capacity=state.capacity,
            session_until=iso(reply.session_expires_ms),
        )
        return member, request, reply

    async def _first_frame(self, link: Link, address: str) -> Request:
        """What a stranger says first. Its receipt has a deadline, its verification does not."""
        with self._strangers.waiting(address, ENROLL_DEADLINE_S) as waiting:
            request = await link.first()
        if not waiting.cancelled_caught:
            return request
        if trio.current_time() < waiting.deadline:
            raise overloaded("too many sockets are waiting to enroll")
        raise Refused(RefusalCode.ENROLL_TIMEOUT, f"no enroll frame within {ENROLL_DEADLINE_S:g} s")

    # ── a session ───────────────────────────────────────────────────────────────────────────────────────────────────
    async def _frame(self, member: Member, frame: Request | Event) -> None:
        body = frame.body
        match body:
            case LogLines():
                if count_of(body.blocks) > LOG_BATCH_LINES_MAX:
                    raise LimitExceeded(f"dispatch.log holds more than {LOG_BATCH_LINES_MAX} lines")
                self._dispatches.log_lines(member, body)
                if sum(len(block.text) for block in body.blocks) > LOUD_BYTES:
                    for _ in range(LOUD_YIELDS):
                        await trio.lowlevel.checkpoint()
            case Finished() if isinstance(frame, Request):
                await self._dispatches.finished(member, frame, body)
            case Call() if isinstance(frame, Request):
                self._dispatches.called(member, frame, body)
            case Heartbeat(number=number) if isinstance(frame, Request):
                member.link.reply(frame, HeartbeatAnswer(number))
            case RefreshSession() if isinstance(frame, Request):
                self._refresh(member, frame)
            case AnnounceDrain(draining=draining, reason=reason) if isinstance(frame, Request):
                await self.update(member, announced_drain=draining, drain_reason=reason if draining else "")
                self._report.info(
                    "worker drains" if draining else "worker takes work again",
                    worker=member.name,
                    reason=reason,
                )
                member.link.reply(frame, DrainNoted(draining))

    def _refresh(self, member: Member, request: Request) -> None:
        """A fresh session credential, if the token still lives at this very instant."""
        now_ms = self._clock_ms()
        why = mint_over(read_token(self._store, member.state.token_name), member.state.mint_id, now_ms)
        if why is not None:
            self._lifetimes.cut(member, why)
            return
        credential, ends_ms = self.sessions.issue(member, now_ms)
        self._report.info("session credential refreshed", worker=member.name, until=iso(ends_ms))
        member.link.reply(request, SessionRefreshed(credential, ends_ms))

    async def update(self, member: Member, **changes: Any) -> None:
        """Change what is recorded about a connected worker, then let the scheduler know."""
        while True:
            state = attrs.evolve(member.seen(self._clock_ms()), **changes)
            try:
                done = await commit(self._store, Batch((worker_record(state),)))
            except Conflict:
                stored = read_worker(self._store, member.name)
                if stored is None or stored.instance != member.state.instance:
                    return
                member.state = attrs.evolve(
                    member.state,
                    version=stored.version,
                    operator_drain=stored.operator_drain,
                    drain_reason=stored.drain_reason,
                )
                continue
            member.state = attrs.evolve(state, version=done.records[0].version)
            self._dispatches.worker_changed(member)
            return

    async def _watch_silence(self, member: Member) -> None:
        """A link without any frame for the silence bound is over, whatever the socket says."""
        silence_s = self._tempo.silence_s
        heard = -1
        while True:
            planned_s = trio.current_time() + silence_s
            await trio.sleep_until(planned_s)
            # When we slept ourselves (SIGSTOP, swap), what came meanwhile is read before anybody is judged.
            slept = trio.current_time() - planned_s > silence_s * STALL_SHARE
            if heard == member.link.frames_read and not slept:
                break
            heard = member.link.frames_read
        self._report.warning("worker is silent", worker=member.name, silence_s=silence_s)
        member.end()

    async def _leave(self, member: Member) -> None:
        """Everything that counts on this member lets go of it; once."""
        if member.left:
            await member.gone.wait()
            return
        member.left = True
        self.sessions.end(member)
        member.link.closed = True
        if self.members.get(member.name) is member:
            del self.members[member.name]
        self._dispatches.worker_left(member)
        now_ms = self._clock_ms()
        try:
            member.state = member.seen(now_ms)
            await self.update(member, connected=False, disconnected_ms=now_ms, active=())
        except SwampError as error:
            self._report.warning("worker's end not recorded", worker=member.name, error=str(error))
        self._report.info("worker disconnected", worker=member.name)
        member.gone.set()

    def states(self) -> dict[str, WorkerState]:
        """The connected workers as of this instant, with when each was last heard."""
        now_ms = self._clock_ms()
        return {name: member.seen(now_ms) for name, member in self.members.items()}

    async def drain(self, name: str, draining: bool, reason: str) -> dict[str, Any]:
        """An operator's drain, stored until it is taken back; also for a worker that is away."""
        member = self.members.get(name)
        if member is not None:
            await self.update(member, operator_drain=draining, drain_reason=reason if draining else "")
            state = member.state
        else:
            while True:
                stored = await trio.to_thread.run_sync(read_worker, self._store, name)
                if stored is None:
                    raise NotFound(f"Worker '{name}' not found.", hint="swamp worker list --all")
                state = attrs.evolve(stored, operator_drain=draining, drain_reason=reason if draining else "")
                try:
                    await commit(self._store, Batch((worker_record(state),)))
                except Conflict:
                    continue
                break
        self._report.info(
            "worker drains" if draining else "worker takes work again",
            worker=name,
            reason=reason or "operator",
        )
        return {
            "name": name,
            "draining": state.draining,
            "status": state.status.value,
            "reason": state.drain_reason,
        }

    async def is_draining(self, name: str) -> bool:
        """Whether an operator's drain is in force."""
        stored = await trio.to_thread.run_sync(read_worker, self._store, name)
        return stored is not None and stored.operator_drain

    async def close(self, farewell: Refused) -> None:
        """The orchestrator stops: tell every worker and let their links end."""
        self.closing = farewell
        members = tuple(self.members.values())
        for member in members:
            member.end(farewell)
        with trio.move_on_after(PARTING_S):
            for member in members:
                await member.parted.wait()


def _first(group: BaseExceptionGroup[SwampError]) -> SwampError:
    """One of the errors: a link's tasks are in nurseries of their own, so groups are in groups."""
    found: SwampError | BaseExceptionGroup[SwampError] = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
