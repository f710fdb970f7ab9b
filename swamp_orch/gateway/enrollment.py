"""From a first frame to a member of the pool: who is let in.

Rules that hold here (SEMANTICS §6, SPEC §7):

1. Checks in order: frame and version, token shape, secret, revoked, expired, binding, live duplicate, verdicts. Decisions about
   tokens are `swamp_orch.core.tokens`'s; this module carries.
2. Verification is slow: what it rests on is looked at again when it answers, and once more when the door is ours.
3. The same instance simply wins, if its counter says that it is the newer one. Another process of the same machine: the old link is
   probed. Alive: `already_connected`. Dead: the link is closed; the newcomer waits (`identity_busy`) for what the old process
   may still run, unless it proved that it reaped just that process.
4. Nothing is answered before it is durable.
5. Nobody is let in before what the last process left was found again (`opened`): a verdict on what a worker holds needs its lease.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol

import attrs
import trio

from swamp_orch.core.tokens import Admit, Refuse, fleet_labels, redeem, split_token
from swamp_orch.gateway.door import Verifications
from swamp_orch.gateway.link import Link
from swamp_orch.gateway.members import Member, Sessions
from swamp_orch.store.bookkeeping import iso
from swamp_orch.store.interface import Batch, Store
from swamp_orch.store.trio_store import commit
from swamp_orch.tokens.records import read_token, read_worker, worker_record
from swamp_orch.tokens.redemption import look, settle
from swamp_orch.tokens.workers import WorkerState
from swamp_proto.errors import Conflict, RefusalCode, Refused, SwampError
from swamp_proto.ids import MachineId, TokenName
from swamp_proto.limits import CAPACITY_MAX, Tempo
from swamp_proto.messages.enrollment import (
    Enroll,
    Enrolled,
    Heartbeat,
    HeldDispatch,
    HeldVerdict,
    Predecessor,
)
from swamp_proto.version import PROTOCOL_VERSION, SWAMP_VERSION

PROBE_S_MAX: Final = 5.0  # the newcomer waits for it with a socket open
BUSY_S_MIN: Final = 0.1


class Holders(Protocol):
    """What is asked of the engine about those who hold dispatches (`swamp_orch.engine.dispatches`)."""

    async def worker_joined(
        self, member: Member, held: tuple[HeldDispatch, ...], predecessor: Predecessor | None
    ) -> tuple[HeldVerdict, ...]: ...

    def enroll_queued(self, worker: str, instance: str) -> None: ...

    def identity_busy(self, worker: str, instance: str, *, reaped: bool) -> float | None: ...


class Enrollment:
    """Admits workers into `members`. One per orchestrator."""

    def __init__(
        self,
        store: Store,
        verifications: Verifications,
        holders: Holders,
        sessions: Sessions,
        members: dict[str, Member],
        *,
        repository_id: str,
        tempo: Tempo,
        clock_ms: Callable[[], int],
        leave: Callable[[Member], Any],
    ) -> None:
        self._store = store
        self._verifications = verifications
        self._holders = holders
        self._sessions = sessions
        self._members = members
        self._repository_id = repository_id
        self._tempo = tempo
        self._clock_ms = clock_ms
        self._leave = leave
        self.opened = trio.Event()
        self._doors: dict[str, trio.Lock] = {}  # one enrollment at a time per member name

    async def admit(self, link: Link, enroll: Enroll, address: str) -> tuple[Member, Enrolled]:
        """Let it in, or raise Refused. The member is in `members` when this returns."""
        check_version(enroll)
        split = split_token(enroll.token)
        if split is None:
            raise Refused(RefusalCode.INVALID_TOKEN, "Enrollment token must have the form '<name>.<secret>'")
        if not 1 <= enroll.capacity <= CAPACITY_MAX:
            raise Refused(RefusalCode.MALFORMED, f"capacity must be between 1 and {CAPACITY_MAX}")
        admitted = await self._redeem(*split, enroll, address)
        name = admitted.member
        await self.opened.wait()
        async with self._doors.setdefault(name, trio.Lock()):
            proof = await self._settle_duplicate(name, enroll)
            admitted = self._still_good(admitted, enroll)
            state = await self._record(name, enroll, admitted)
            member = self._members[name] = Member(state, link)
            try:
                verdicts = await self._holders.worker_joined(member, enroll.held, proof)
            except BaseException:
                with trio.CancelScope(shield=True):
                    await self._leave(member)
                raise
        credential, ends_ms = self._sessions.issue(member, self._clock_ms())
        reply = Enrolled(
            worker=name,
            orchestrator=self._repository_id,
            link=state.link_epoch,
            session_credential=credential,
            session_expires_ms=ends_ms,
            token_expires_ms=admitted.token.expires_ms,
            grace_s=self._tempo.grace_s,
            heartbeat_s=self._tempo.heartbeat_s,
            silence_s=self._tempo.silence_s,
            verdicts=verdicts,
        )
        return member, reply

    # ── the token ───────────────────────────────────────────────────────────────────────────────────────────────────
    async def _redeem(self, name: TokenName, secret: str, enroll: Enroll, address: str) -> Admit:
        """Verify and redeem, both off the loop; raises the refusal."""
        machine = MachineId(enroll.machine_id)
        asked = look(self._store, name)
        if self._verifications.must_wait and not self._verifications.verifier.knows(asked, secret):
            self._pause_grace(name, enroll)
        right = await self._verifications.verify(address, asked, secret)
        answer = await trio.to_thread.run_sync(
            partial(settle, self._store, name, machine, asked, right, self._clock_ms)
        )
        if isinstance(answer, Refuse):
            raise Refused(answer.code, answer.message, hint=answer.hint)
        return answer

    def _pause_grace(self, name: TokenName, enroll: Enroll) -> None:
        """What this instance holds must not be lost to our queue. Nothing is proved yet, but an instance's uuid is known to
        it alone, and the pause comes once and is bounded."""
        token = read_token(self._store, name)
        bound = None if token is None else token.binding(MachineId(enroll.machine_id))
        if bound is not None:
            self._holders.enroll_queued(bound.member, enroll.instance)

    def _still_good(self, admitted: Admit, enroll: Enroll) -> Admit:
        """The same decision on the token as it is now: a probe takes seconds."""
        name = admitted.token.name
        token = read_token(self._store, name)
        asked = look(self._store, name)
        right = token is not None and token.mint_id == admitted.token.mint_id
        answer = redeem(name, token, MachineId(enroll.machine_id), self._clock_ms(), asked, right)
        if isinstance(answer, Refuse):
            raise Refused(answer.code, answer.message, hint=answer.hint)
        return answer

    # ── who else has this name ──────────────────────────────────────────────────────────────────────────────────────
    async def _settle_duplicate(self, name: str, enroll: Enroll) -> Predecessor | None:
        """End the link this enrollment replaces, or refuse the newcomer. Answers the predecessor that is proved dead."""
        stored = read_worker(self._store, name)
        if stored is not None and stored.instance == enroll.instance and enroll.counter <= stored.counter:
            raise Refused(RefusalCode.STALE_INSTANCE, "a newer link of this process exists")
        current = self._members.get(name)
        if current is not None:
            if current.state.instance != enroll.instance and await self._is_alive(current):
                old = current.state
                raise Refused(
                    RefusalCode.ALREADY_CONNECTED,
                    f"Worker '{name}' is already connected (already_connected): host {old.host}, pid {old.pid}, "
                    f"since {iso(old.enrolled_ms)}",
                )
            current.end()
            await current.gone.wait()
        # A proof is about one process. That it was another than the one we know proves nothing about that one.
        proof = enroll.predecessor
        if proof is not None and not (proof.reaped and (stored is None or stored.instance == proof.instance)):
            proof = None
        wait_s = self._holders.identity_busy(name, enroll.instance, reaped=proof is not None)
        if wait_s is not None:
            raise Refused(
                RefusalCode.IDENTITY_BUSY,
                f"an earlier process of worker '{name}' may still run its steps",
                retry_after_s=max(BUSY_S_MIN, wait_s),
            )
        return proof

    async def _is_alive(self, member: Member) -> bool:
        """Whether the old link's process answers now. Half-open, it does not."""
        with trio.move_on_after(min(self._tempo.silence_s, PROBE_S_MAX)):
            try:
                await member.link.ask(Heartbeat(0)).wait()
            except SwampError:
                return False
            return True
        return False

    # ── the record ──────────────────────────────────────────────────────────────────────────────────────────────────
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


def check_version(enroll: Enroll) -> None:
    """Lockstep: raises Refused unless both numbers are ours."""
    if enroll.protocol_version != PROTOCOL_VERSION or enroll.swamp_version != SWAMP_VERSION:
        raise Refused(
            RefusalCode.PROTOCOL_MISMATCH,
            f"protocol_mismatch: the worker is swamp {enroll.swamp_version} (protocol {enroll.protocol_version}), "
            f"the orchestrator is swamp {SWAMP_VERSION} (protocol {PROTOCOL_VERSION})",
            hint="Upgrade both to the same version",
        )
