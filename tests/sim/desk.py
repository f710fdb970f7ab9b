"""The simulated control desk: who is let in, for how long, and what becomes of a link.

The same order of checks and commits as `swamp_orch.gateway` (enrollment, control, lifetimes); the decisions are
the real token rules. Verifying a secret is a comparison that takes as long as the real one.
"""

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import attrs

from swamp_orch.tokens.records import read_token, read_tokens, read_worker, token_record, worker_record
from swamp_orch.tokens.workers import WorkerState
from swamp_proto.envelope import Event, Request, Response
from swamp_proto.errors import Broken, Conflict, RefusalCode, Refused, SwampError
from swamp_proto.limits import ENROLL_DEADLINE_S, REFUSAL_DELAY_S, TOKEN_TICK_S
from swamp_proto.messages.dispatch import Finished, LogLines
from swamp_proto.messages.enrollment import (
    AnnounceDrain,
    DrainNoted,
    Enroll,
    Enrolled,
    Farewell,
    Heartbeat,
    HeartbeatAnswer,
    HeldVerdict,
    Verdict,
)

from .link import End
from .loop import Signal

if TYPE_CHECKING:
    from .orchestrator import Orchestrator

PROBE_S_MAX = 5.0
VERIFY_S = 0.004
GUESSES = frozenset({RefusalCode.DOES_NOT_MATCH})


@attrs.define(eq=False)
class Member:
    state: WorkerState
    link: End
    gone: Signal = attrs.field(factory=Signal)
    over: Signal = attrs.field(factory=Signal)
    farewell: Refused | None = None

    @property
    def name(self) -> str:
        return self.state.name

    def end(self, farewell: Refused | None = None) -> None:
        self.farewell = self.farewell or farewell
        self.over.set()


class Desk:
    """All worker links of one orchestrator process."""

    def __init__(self, orchestrator: "Orchestrator") -> None:
        self.engine = orchestrator
        self.world, self.loop, self.store = orchestrator.world, orchestrator.loop, orchestrator.store
        self.process, self.tempo = orchestrator.process, orchestrator.tempo
        self.tokens = self.world.cores.tokens
        self.members: dict[str, Member] = {}
        self._doors: dict[str, Signal] = {}
        self._known: dict[str, str] = {}  # mint id -> secret: what was verified
        self._sooner = Signal()
        self.opened = Signal()  # what the last process left was found again

    def accept(self, end: End) -> None:
        """A worker's socket is open."""
        self.loop.spawn(self.process, self._serve(end))

    def _serve(self, end: End) -> Any:
        first = Signal()
        end.on_frame = first.set
        end.on_close = lambda reason: first.set()
        got = yield (first, ENROLL_DEADLINE_S)
        request = first.value
        if not got or request is None:
            end.close("no enroll frame")
            return
        # What a peer says before it is answered would be unlawful; that its socket closes is seen later.
        end.on_frame = lambda frame: None
        end.on_close = lambda reason: None
        try:
            member, reply = yield from self._admit(end, request.body)
        except Refused as refusal:
            if refusal.refusal in GUESSES:
                yield REFUSAL_DELAY_S
            end.refuse(request, refusal.refusal, refusal.message, refusal.retry_after_s)
            end.close("refused")
            return
        except SwampError:
            end.close("the store is in trouble")
            return
        self.engine.checks.enrolled(self.engine, member, reply)
        end.on_frame = lambda frame: self._frame(member, frame)
        end.on_close = lambda reason: member.over.set()
        if end.closed:
            member.over.set()
        silence = self.loop.spawn(self.process, self._watch_silence(member))
        end.reply(request, reply)
        self.engine.worker_ready(member)
        yield member.over
        silence.cancel()
        yield from self._leave(member)

    # ── enrollment ──────────────────────────────────────────────────────────────────────────────────────────
    def _admit(self, end: End, enroll: Enroll) -> Any:
        split = self.tokens.split_token(enroll.token)
        assert split is not None
        admitted = yield from self._redeem(*split, enroll)
        name = admitted.member
        if not self.opened.is_set:
            yield self.opened
        while (door := self._doors.get(name)) is not None:
            yield door
        door = self._doors[name] = Signal()
        try:
            proof = yield from self._settle_duplicate(name, enroll)
            admitted = self._still_good(admitted, enroll)
            state = yield from self._record(name, enroll, admitted)
            member = self.members[name] = Member(state, end)
            try:
                verdicts = yield from self.engine.worker_joined(member, enroll.held, reaped=proof)
            except Refused:
                yield from self._leave(member)
                raise
        finally:
            del self._doors[name]
            door.set()
        return member, Enrolled(
            worker=name,
            orchestrator="sim",
            link=state.link_epoch,
            session_credential="",
            session_expires_ms=0,
            token_expires_ms=admitted.token.expires_ms,
            grace_s=self.tempo.grace_s,
            heartbeat_s=self.tempo.heartbeat_s,
            silence_s=self.tempo.silence_s,
            verdicts=tuple(
                HeldVerdict(name, Verdict.KEEP if keep else Verdict.DROP) for name, keep in verdicts.items()
            ),
        )

    def _redeem(self, name: Any, secret: str, enroll: Enroll) -> Any:
        token = read_token(self.store, name)
        asked = self.tokens.challenge(token)
        if asked.mint_id is None or self._known.get(asked.mint_id) != secret:
            if token is not None and (bound := token.binding(enroll.machine_id)) is not None:
                self.engine.tell(self.engine.core.EnrollQueued(bound.member, enroll.instance))
            yield VERIFY_S + self.world.weather.verify_queue_s()
        right = asked.secret_hash == secret
        if right:
            self._known[asked.mint_id] = secret
        yield self.world.weather.flush_s()
        while True:
            answer = self.tokens.redeem(
                name, read_token(self.store, name), enroll.machine_id, self.engine.wall_ms, asked, right
            )
            refused = isinstance(answer, self.tokens.Refuse)
            written = answer.token if refused or answer.wrote else None
            if written is not None:
                try:
                    yield from self.engine.commit(token_record(written))
                except Conflict:
                    continue
                except Broken:
                    raise Refused(RefusalCode.OVERLOADED, "the disk is full", retry_after_s=1.0) from None
            if refused:
                raise Refused(answer.code, answer.message)
            return answer

    def _still_good(self, admitted: Any, enroll: Enroll) -> Any:
        name = admitted.token.name
        token = read_token(self.store, name)
        right = token is not None and token.mint_id == admitted.token.mint_id
        answer = self.tokens.redeem(
            name, token, enroll.machine_id, self.engine.wall_ms, self.tokens.challenge(token), right
        )
        if isinstance(answer, self.tokens.Refuse):
            raise Refused(answer.code, answer.message)
        return answer

    def _settle_duplicate(self, name: str, enroll: Enroll) -> Any:
        """Whether the predecessor is proved dead."""
        stored = read_worker(self.store, name)
        if stored is not None and stored.instance == enroll.instance and enroll.counter <= stored.counter:
            raise Refused(RefusalCode.STALE_INSTANCE, "a newer link of this process exists")
        current = self.members.get(name)
        if current is not None:
            if current.state.instance != enroll.instance:
                alive = yield from self._is_alive(current)
                if alive:
                    self.engine.checks.called_alive(self.engine, current)
                    raise Refused(RefusalCode.ALREADY_CONNECTED, "already_connected")
            current.end()
            yield current.gone
        proof = enroll.predecessor
        reaped = proof is not None and proof.reaped and (stored is None or stored.instance == proof.instance)
        until_s = self.engine.leases.busy_until(name, enroll.instance, reaped)
        if until_s is not None:
            wait_s = max(0.1, until_s - self.loop.now)
            raise Refused(RefusalCode.IDENTITY_BUSY, "identity_busy", retry_after_s=wait_s)
        return reaped

    def _is_alive(self, member: Member) -> Any:
        answered = Signal()
        member.link.ask(Heartbeat(0), answered.set)
        got = yield (answered, min(self.tempo.silence_s, PROBE_S_MAX))
        return bool(got) and isinstance(answered.value, Response)

    def _record(self, name: str, enroll: Enroll, admitted: Any) -> Any:
        while True:
            old = read_worker(self.store, name)
            now_ms = self.engine.wall_ms
            same = old is not None and old.instance == enroll.instance
            state = WorkerState(
                name=name, token_name=admitted.token.name, mint_id=admitted.token.mint_id,
                machine_id=enroll.machine_id, instance=enroll.instance, boot_id=enroll.boot_id, host=enroll.host,
                pid=enroll.pid, platform=enroll.platform, arch=enroll.arch,
                labels=self.tokens.fleet_labels(admitted.token, enroll.labels), swamp_version=enroll.swamp_version,
                protocol_version=enroll.protocol_version, capacity=enroll.capacity,
                enrolled_ms=old.enrolled_ms if old is not None and same else now_ms, last_seen_ms=now_ms,
                token_expires_ms=admitted.token.expires_ms, link_epoch=1 if old is None else old.link_epoch + 1,
                counter=enroll.counter, operator_drain=old is not None and old.operator_drain,
                announced_drain=enroll.draining, drain_reason="", active=tuple(one.dispatch for one in enroll.held),
                version=0 if old is None else old.version,
            )  # fmt: skip
            try:
                done = yield from self.engine.commit(worker_record(state))
            except Conflict:
                continue
            return attrs.evolve(state, version=done.records[0].version)

    # ── a session ───────────────────────────────────────────────────────────────────────────────────────────
    def _frame(self, member: Member, frame: Request | Event) -> None:
        match frame:
            case Request(body=Finished() as finished):
                self.engine.finished(member, frame, finished)
            case Event(body=LogLines() as lines):
                self.engine.log_lines(member, lines)
            case Request(body=Heartbeat(number)):
                member.link.reply(frame, HeartbeatAnswer(number))
            case Request(body=AnnounceDrain(draining=draining)):
                self.loop.spawn(self.process, self._drains(member, frame, draining))
            case _:
                raise AssertionError(f"nobody answers {frame}")

    def _drains(self, member: Member, request: Request, draining: bool) -> Any:
        yield from self.update(member, announced_drain=draining)
        member.link.reply(request, DrainNoted(draining))

    def update(self, member: Member, **changes: Any) -> Any:
        while True:
            state = attrs.evolve(member.state, last_seen_ms=self.engine.wall_ms, **changes)
            try:
                done = yield from self.engine.commit(worker_record(state))
            except Conflict:
                stored = read_worker(self.store, member.name)
                if stored is None or stored.instance != member.state.instance:
                    return
                drain = stored.operator_drain
                member.state = attrs.evolve(member.state, version=stored.version, operator_drain=drain)
                continue
            except Broken:
                return
            member.state = attrs.evolve(state, version=done.records[0].version)
            self.engine.worker_changed(member)
            return

    def _watch_silence(self, member: Member) -> Any:
        heard, silence_s = -1, self.tempo.silence_s
        while True:
            planned_s = self.loop.now + silence_s
            yield silence_s
            slept = self.loop.now - planned_s > silence_s * 0.5
            if heard == member.link.frames_read and not slept:
                member.over.set()
                return
            heard = member.link.frames_read

    def _leave(self, member: Member) -> Any:
        if member.farewell is not None:
            why = member.farewell
            member.link.post(Farewell(why.refusal, why.message, why.retry_after_s))
        member.link.close("the orchestrator ended the session")
        if self.members.get(member.name) is member:
            del self.members[member.name]
        self.engine.worker_left(member)
        yield from self.update(member, connected=False, disconnected_ms=self.engine.wall_ms, active=())
        member.gone.set()

    def drain(self, name: str, draining: bool, when_safe: bool = False) -> Any:
        """An operator's, of a worker that is connected."""
        member = self.members.get(name)
        if member is not None:
            yield from self.update(member, operator_drain=draining)
        if draining and when_safe and self.engine.reconciled:
            self.engine.tell(self.engine.core.DrainAsked(name))

    # ── tokens' lifetimes ───────────────────────────────────────────────────────────────────────────────────
    def look_again(self) -> None:
        self._sooner.set()

    def watch_tokens(self) -> Any:
        while True:
            yield from self._look()
            yield (self._sooner, TOKEN_TICK_S)
            self._sooner = Signal()

    def _look(self) -> Any:
        members = tuple(self.members.values())
        mints = sorted(
            {(one.token_name, one.mint_id) for one in self.engine.leases.active() if one.mint_id}
            | {
                (one.lease.token_name, one.lease.mint_id)
                for one in self.engine.flights.values()
                if one.lease.mint_id
            }
        )
        now_ms = self.engine.wall_ms
        found = {token.name: token for token in read_tokens(self.store)}
        for token in list(found.values()):
            expired = self.tokens.expire(token, now_ms)
            if expired is not None:
                with suppress(SwampError):  # the next look tries again
                    yield from self.engine.commit(token_record(expired))
                found[token.name] = read_token(self.store, token.name) or token
        for name, mint_id in mints:
            why = self.tokens.mint_over(found.get(name), mint_id, now_ms)
            if why is not None:
                self.engine.tell(self.engine.core.TokenEnded(mint_id, why.value))
        for member in members:
            why = self.tokens.mint_over(found.get(member.state.token_name), member.state.mint_id, now_ms)
            if why is not None:
                self.engine.tell(self.engine.core.TokenEnded(member.state.mint_id, why.value))
                member.end(Refused(why, "the token is over"))
