"""Workers' sockets: who is let in, for how long, and what becomes of a link.

Rules that hold here (SEMANTICS §6, SPEC §7):

1. One enrollment per socket, its frame received within the enroll deadline; unauthenticated sockets are few.
2. Checks in order: frame and version, token shape, secret, revoked, expired, binding, live duplicate, verdicts. The decisions
   are `swamp_orch.core.tokens`'s; this module carries.
3. Nothing is answered before it is durable.
4. A session is a cancel scope inside the token's lifetime: one task looks at the wall clock and at the token records at least every
   second and ends what has no live token any more, also when another process revoked it.
5. The same instance coming again simply wins. Another process of the same machine gets in once the old link is proved dead.
"""

import secrets
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, Protocol

import attrs
import trio

from swamp_orch.core.tokens import (
    Admit,
    Refuse,
    TokenState,
    effective_state,
    fleet_labels,
    split_token,
    warning_instants,
)
from swamp_orch.gateway.link import Link, Pipe, farewell, refusal_of, refused
from swamp_orch.store.interface import Batch, Store
from swamp_orch.store.trio_store import commit
from swamp_orch.tokens.records import read_token, read_worker, worker_record
from swamp_orch.tokens.redemption import look, settle
from swamp_orch.tokens.verification import Verifier
from swamp_orch.tokens.workers import WorkerState
from swamp_proto.envelope import Event, Request
from swamp_proto.errors import (
    Broken,
    Conflict,
    LocalError,
    NotFound,
    RefusalCode,
    Refused,
    RemoteError,
    SwampError,
)
from swamp_proto.ids import MachineId
from swamp_proto.limits import (
    CAPACITY_MAX,
    ENROLL_DEADLINE_S,
    REFUSAL_DELAY_S,
    SESSION_CREDENTIAL_S,
    TOKEN_TICK_S,
    UNAUTHENTICATED_SOCKETS_MAX,
    VERIFICATION_QUEUE_MAX,
    VERIFICATIONS_AT_ONCE,
    Tempo,
)
from swamp_proto.messages.dispatch import Finished, LogLines
from swamp_proto.messages.enrollment import (
    AnnounceDrain,
    DrainNoted,
    Enroll,
    Enrolled,
    Heartbeat,
    HeartbeatAnswer,
    HeldDispatch,
    HeldVerdict,
    Notice,
    Predecessor,
    RefreshSession,
    SessionRefreshed,
)
from swamp_proto.version import PROTOCOL_VERSION, SWAMP_VERSION

RETRY_SOON_S: Final = 1.0


@attrs.define(eq=False)
class Member:
    """A connected worker: its state as recorded, its link, and the scope that is its session."""

    state: WorkerState
    link: Link
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    credential: str = attrs.field(repr=False, default="")
    credential_ends_ms: int = 0
    warned: int = 0  # token warnings already given
    farewell: Refused | None = None  # said before the link ends
    gone: trio.Event = attrs.field(factory=trio.Event)

    @property
    def name(self) -> str:
        return self.state.name

    def end(self, farewell: Refused | None = None) -> None:
        """Cut the session; `farewell` tells the worker why."""
        self.farewell = self.farewell or farewell
        self.scope.cancel()


class Dispatches(Protocol):
    """The engine's side: what runs where (`swamp_orch.engine.dispatcher`)."""

    async def worker_joined(
        self, member: Member, held: tuple[HeldDispatch, ...], predecessor: Predecessor | None
    ) -> tuple[HeldVerdict, ...]: ...

    def worker_ready(self, member: Member) -> None: ...

    def worker_left(self, member: Member) -> None: ...

    def worker_changed(self, member: Member) -> None: ...

    def token_ended(self, member: Member, why: RefusalCode) -> None: ...

    async def finished(self, member: Member, request: Request, finished: Finished) -> None: ...

    def log_lines(self, member: Member, lines: LogLines) -> None: ...


class Reporter(Protocol):
    """Says what happens, to the operator and to the log."""

    def info(self, event: str, **fields: Any) -> None: ...

    def warning(self, event: str, **fields: Any) -> None: ...


class ControlDesk:
    """All worker links of this orchestrator."""

    def __init__(
        self,
        store: Store,
        dispatches: Dispatches,
        reporter: Reporter,
        *,
        repository_id: str,
        tempo: Tempo,
        clock_ms: Callable[[], int],
    ) -> None:
        self._store = store
        self._dispatches = dispatches
        self._report = reporter
        self._repository_id = repository_id
        self._tempo = tempo
        self._clock_ms = clock_ms
        self._verifier = Verifier()
        self._limiter = trio.CapacityLimiter(VERIFICATIONS_AT_ONCE)
        self._strangers = 0
        self._doors: dict[str, trio.Lock] = {}  # one enrollment at a time per member name
        self._tick = trio.Event()
        self.members: dict[str, Member] = {}
        self.closing: Refused | None = None

    # ── a socket ────────────────────────────────────────────────────────────────────────────────────────────────────
    async def serve(self, pipe: Pipe, address: str) -> None:
        """The whole life of one socket. Returns when it is over; never raises for what a peer does."""
        link = Link(pipe)
        try:
            member, request, reply = await self._enroll(link, address)
        except (Broken, trio.BrokenResourceError):
            return
        if member is None:
            return
        try:
            with member.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch_silence, member)
                    link.reply(request, reply)
                    self._dispatches.worker_ready(member)
                    await link.run(partial(self._frame, member))
                    nursery.cancel_scope.cancel()
        except* (Broken, trio.BrokenResourceError):
            pass
        except* (RemoteError, LocalError) as group:
            error = group.exceptions[0]
            self._report.warning("worker broke the protocol", worker=member.name, error=str(error))
            if isinstance(error, SwampError):
                member.farewell = Refused(refusal_of(error), str(error))
        finally:
            with trio.CancelScope(shield=True):
                await self._leave(member)

    async def _enroll(self, link: Link, address: str) -> tuple[Member | None, Request, Enrolled]:
        """Admit the peer, or tell it why not. The frame's receipt has a deadline, its verification does not."""
        request: Request | None = None
        try:
            with self._stranger(address), trio.move_on_after(ENROLL_DEADLINE_S) as waiting:
                request = await link.first()
            if request is None or waiting.cancelled_caught:
                raise Refused(RefusalCode.ENROLL_TIMEOUT, f"no enroll frame within {ENROLL_DEADLINE_S:g} s")
            if not isinstance(request.body, Enroll):
                raise Refused(RefusalCode.UNLAWFUL, "the first frame must be worker.enroll")
            member, reply = await self._admit(link, request.body)
            return member, request, reply
        except SwampError as error:
            if isinstance(error, Broken):
                raise
            refusal = error if isinstance(error, Refused) else Refused(refusal_of(error), str(error))
            self._report.warning(
                "enrollment refused", address=address, code=refusal.refusal.value, reason=str(refusal)
            )
            if refusal.permanent:
                await trio.sleep(REFUSAL_DELAY_S)
            with trio.move_on_after(2):
                await link.say_last(farewell(refusal) if request is None else refused(request, refusal))
            raise Broken("refused") from None

    @contextmanager
    def _stranger(self, address: str) -> Any:
        """Sockets that have not enrolled yet are few and bounded."""
        if self._strangers >= UNAUTHENTICATED_SOCKETS_MAX:
            raise Refused(
                RefusalCode.OVERLOADED, "too many sockets are waiting to enroll", retry_after_s=RETRY_SOON_S
            )
        self._strangers += 1
        try:
            yield
        finally:
            self._strangers -= 1

    # ── enrollment ──────────────────────────────────────────────────────────────────────────────────────────────────
    async def _admit(self, link: Link, enroll: Enroll) -> tuple[Member, Enrolled]:
        if self.closing is not None:
            raise self.closing
        _check_version(enroll)
        split = split_token(enroll.token)
        if split is None:
            raise Refused(RefusalCode.INVALID_TOKEN, "Enrollment token must have the form '<name>.<secret>'")
        if not 1 <= enroll.capacity <= CAPACITY_MAX:
            raise Refused(RefusalCode.MALFORMED, f"capacity must be between 1 and {CAPACITY_MAX}")
        admitted = await self._redeem(*split, MachineId(enroll.machine_id))
        name = admitted.member
        async with self._doors.setdefault(name, trio.Lock()):
            await self._settle_duplicate(name, enroll)
            token = read_token(self._store, admitted.token.name)
            if token is None or token.mint_id != admitted.token.mint_id:
                raise Refused(
                    RefusalCode.DOES_NOT_MATCH, f"Enrollment token '{admitted.token.name}' does not match"
                )
            state = await self._record(name, enroll, admitted)
            member = Member(state, link)
            verdicts = await self._dispatches.worker_joined(member, enroll.held, enroll.predecessor)
            self._issue_credential(member)
            self.members[name] = member
        self._report.info(
            "worker connected",
            worker=name,
            host=enroll.host,
            pid=enroll.pid,
            machine=enroll.machine_id,
            capacity=enroll.capacity,
        )
        reply = Enrolled(
            worker=name,
            orchestrator=self._repository_id,
            link=state.link_epoch,
            session_credential=member.credential,
            session_expires_ms=member.credential_ends_ms,
            token_expires_ms=admitted.token.expires_ms,
            grace_s=self._tempo.grace_s,
            heartbeat_s=self._tempo.heartbeat_s,
            silence_s=self._tempo.silence_s,
            verdicts=verdicts,
        )
        return member, reply

    async def _redeem(self, name: str, secret: str, machine: MachineId) -> Admit:
        """Verify and redeem, both off the loop; raises the refusal."""
        asked = look(self._store, name)
        if self._verifier.knows(asked, secret):
            right = True
        else:
            if self._limiter.statistics().tasks_waiting >= VERIFICATION_QUEUE_MAX:
                raise Refused(
                    RefusalCode.OVERLOADED, "too many enrollments at once", retry_after_s=RETRY_SOON_S
                )
            right = await trio.to_thread.run_sync(self._verifier.verify, asked, secret, limiter=self._limiter)
        answer = await trio.to_thread.run_sync(
            settle, self._store, name, machine, asked, right, self._clock_ms
        )
        if isinstance(answer, Refuse):
            raise Refused(answer.code, answer.message, hint=answer.hint)
        return answer

    async def _settle_duplicate(self, name: str, enroll: Enroll) -> None:
        """End the link this enrollment replaces, or refuse the newcomer while the old one lives."""
        current = self.members.get(name)
        if current is None:
            return
        if current.state.instance == enroll.instance:
            if enroll.counter <= current.state.counter:
                raise Refused(RefusalCode.STALE_INSTANCE, "a newer link of this process exists")
        elif await self._is_alive(current):
            since = _ago(self._clock_ms() - current.state.enrolled_ms)
            raise Refused(
                RefusalCode.ALREADY_CONNECTED,
                f"Worker '{name}' is already connected (already_connected): host {current.state.host}, "
                f"pid {current.state.pid}, for {since}",
                hint="Check for duplicate worker processes; revoke and re-create the token",
            )
        current.end()
        await current.gone.wait()

    async def _is_alive(self, member: Member) -> bool:
        with trio.move_on_after(min(self._tempo.heartbeat_s, 5.0)):
            try:
                await member.link.ask(Heartbeat(0)).wait()
            except SwampError:
                return False
            return True
        return False

    async def _record(self, name: str, enroll: Enroll, admitted: Admit) -> WorkerState:
        """Make the enrollment durable; answers the state with the version it was stored as."""
        while True:
            old = read_worker(self._store, name)
            now_ms = self._clock_ms()
            same = old is not None and old.instance == enroll.instance
            state = WorkerState(
                name=name,
                token_name=admitted.token.name,
                mint_id=admitted.token.mint_id,
                machine_id=enroll.machine_id,
                instance=enroll.instance,
                boot_id=enroll.boot_id,
                host=enroll.host,
                pid=enroll.pid,
                platform=enroll.platform,
                arch=enroll.arch,
                labels=fleet_labels(admitted.token, enroll.labels),
                swamp_version=enroll.swamp_version,
                protocol_version=enroll.protocol_version,
                capacity=enroll.capacity,
                enrolled_ms=old.enrolled_ms if old is not None and same else now_ms,
                last_seen_ms=now_ms,
                token_expires_ms=admitted.token.expires_ms,
                link_epoch=1 if old is None else old.link_epoch + 1,
                counter=enroll.counter,
                operator_drain=old is not None and old.operator_drain,
                announced_drain=enroll.draining,
                drain_reason=old.drain_reason if old is not None and old.operator_drain else "",
                active=tuple(held.dispatch for held in enroll.held),
                version=0 if old is None else old.version,
            )
            try:
                done = await commit(self._store, Batch((worker_record(state),)))
            except Conflict:
                continue
            return attrs.evolve(state, version=done.records[0].version)

    def _issue_credential(self, member: Member) -> None:
        """A fresh session credential; never valid beyond the token."""
        member.credential = secrets.token_hex(32)
        ends_ms = self._clock_ms() + round(SESSION_CREDENTIAL_S * 1000)
        member.credential_ends_ms = min(ends_ms, member.state.token_expires_ms)

    # ── a session ───────────────────────────────────────────────────────────────────────────────────────────────────
    async def _frame(self, member: Member, frame: Request | Event) -> None:
        body = frame.body
        match body:
            case LogLines():
                self._dispatches.log_lines(member, body)
            case Finished() if isinstance(frame, Request):
                await self._dispatches.finished(member, frame, body)
            case Heartbeat(number=number) if isinstance(frame, Request):
                member.link.reply(frame, HeartbeatAnswer(number))
            case RefreshSession() if isinstance(frame, Request):
                self._issue_credential(member)
                self._report.info("session credential refreshed", worker=member.name)
                member.link.reply(frame, SessionRefreshed(member.credential, member.credential_ends_ms))
            case AnnounceDrain(draining=draining, reason=reason) if isinstance(frame, Request):
                await self.update(member, announced_drain=draining, drain_reason=reason if draining else "")
                self._report.info(
                    "worker drains" if draining else "worker takes work again",
                    worker=member.name,
                    reason=reason,
                )
                member.link.reply(frame, DrainNoted(draining))

    async def update(self, member: Member, **changes: Any) -> None:
        """Change what is recorded about a connected worker, then let the scheduler know."""
        while True:
            state = attrs.evolve(member.state, last_seen_ms=self._clock_ms(), **changes)
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
        heard = -1
        while heard != member.link.frames_read:
            heard = member.link.frames_read
            await trio.sleep(self._tempo.silence_s)
        self._report.warning("worker is silent", worker=member.name, silence_s=self._tempo.silence_s)
        member.scope.cancel()

    async def _leave(self, member: Member) -> None:
        if member.farewell is not None:
            with trio.move_on_after(1):
                await member.link.say_last(farewell(member.farewell))
        member.link.closed = True
        if self.members.get(member.name) is member:
            del self.members[member.name]
        self._dispatches.worker_left(member)
        try:
            await self.update(member, connected=False, disconnected_ms=self._clock_ms(), active=())
        except SwampError as error:
            self._report.warning("worker's end not recorded", worker=member.name, error=str(error))
        self._report.info("worker disconnected", worker=member.name)
        member.gone.set()

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

    # ── tokens' lifetimes ───────────────────────────────────────────────────────────────────────────────────────────
    def look_again(self) -> None:
        """Token records may have changed: look now rather than at the next tick."""
        self._tick.set()

    async def watch_tokens(self) -> None:
        """Every second, or sooner when asked: end the sessions that have no live token."""
        while True:
            with trio.move_on_after(TOKEN_TICK_S):
                await self._tick.wait()
            self._tick = trio.Event()
            self._check_tokens(tuple(self.members.values()))

    def _check_tokens(self, members: Iterable[Member]) -> None:
        now_ms = self._clock_ms()
        for member in members:
            token = read_token(self._store, member.state.token_name)
            if token is None or token.mint_id != member.state.mint_id or token.state is TokenState.REVOKED:
                self._cut(
                    member,
                    RefusalCode.REVOKED,
                    f"Enrollment token '{member.state.token_name}' has been revoked",
                )
            elif effective_state(token, now_ms) is TokenState.EXPIRED:
                self._cut(member, RefusalCode.EXPIRED, f"Enrollment token '{token.name}' has expired")
            else:
                if token.expires_ms != member.state.token_expires_ms:
                    member.state = attrs.evolve(member.state, token_expires_ms=token.expires_ms)
                    member.warned = 0
                due = sum(1 for instant in warning_instants(token) if instant <= now_ms)
                if due > member.warned:
                    left = _ago(token.expires_ms - now_ms)
                    text = f"token '{token.name}' expires in {left}; extend it: swamp worker token renew {token.name} --duration <d>"
                    self._report.warning("token about to expire", worker=member.name, left=left)
                    member.link.post(Notice("warn", text))
                member.warned = max(member.warned, due)

    def _cut(self, member: Member, code: RefusalCode, message: str) -> None:
        self._report.warning("session ended", worker=member.name, code=code.value, reason=message)
        self._dispatches.token_ended(member, code)
        member.end(Refused(code, message))

    async def close(self, farewell: Refused) -> None:
        """The orchestrator stops: tell every worker and let their links end."""
        self.closing = farewell
        members = tuple(self.members.values())
        for member in members:
            member.end(farewell)
        for member in members:
            await member.gone.wait()


def _check_version(enroll: Enroll) -> None:
    if enroll.protocol_version != PROTOCOL_VERSION or enroll.swamp_version != SWAMP_VERSION:
        raise Refused(
            RefusalCode.PROTOCOL_MISMATCH,
            f"protocol_mismatch: the worker is swamp {enroll.swamp_version} (protocol {enroll.protocol_version}), "
            f"the orchestrator is swamp {SWAMP_VERSION} (protocol {PROTOCOL_VERSION})",
            hint="Upgrade both to the same version",
        )


def _ago(span_ms: int) -> str:
    """`3 s`, `4 m`, `2 h`, `5 d`."""
    seconds = max(0, span_ms // 1000)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
