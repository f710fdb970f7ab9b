"""Who is let in, in which order it is checked, who may wait at the door, and what ends with a token."""

import threading
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from gateway_twins import Gate, Peer, enrollment, gate

from swamp_orch.core.tokens import Challenge
from swamp_orch.gateway import control
from swamp_orch.gateway.door import Verifications, Waiters
from swamp_orch.tokens.records import read_token, read_worker
from swamp_orch.tokens.verification import Verifier
from swamp_proto import codec
from swamp_proto.envelope import Event, Request
from swamp_proto.errors import Broken, RefusalCode, Refused
from swamp_proto.limits import LOG_BATCH_LINES_MAX, REFUSAL_DELAY_S, Tempo
from swamp_proto.messages.dispatch import LogBlock, LogLines, Stream
from swamp_proto.messages.enrollment import (
    Enrolled,
    Farewell,
    HeldDispatch,
    HeldPhase,
    Notice,
    Predecessor,
    RefreshSession,
    SessionRefreshed,
)
from swamp_proto.trio_io import MemoryPipe, memory_pipe_pair


def code(answer: Any) -> RefusalCode:
    assert not isinstance(answer, Enrolled), answer
    found: RefusalCode = answer.code
    return found


# ── the order of checks ─────────────────────────────────────────────────────────────────────────────────────────────
async def test_checks_come_in_order_and_only_the_holder_learns_anything() -> None:
    """Each offer is wrong in one more way than the next one; the first wrong is what is said."""
    async with gate() as it:
        token = it.mint("node")
        name = token.partition(".")[0]
        assert isinstance(await it.dial().enroll(token), Enrolled)
        it.wall_ms += 1
        wrong = f"{name}.{'0' * 64}"
        foreign = {"machine_id": "machine-2", "instance": "instance-2"}
        assert (
            code(await it.dial().enroll("nodot", swamp_version="9", **foreign))
            is RefusalCode.PROTOCOL_MISMATCH
        )
        assert code(await it.dial().enroll("nodot", **foreign)) is RefusalCode.INVALID_TOKEN
        assert code(await it.dial().enroll(token, **foreign)) is RefusalCode.ALREADY_BOUND
        it.revoke("node")
        assert code(await it.dial().enroll(wrong, **foreign)) is RefusalCode.DOES_NOT_MATCH
        assert code(await it.dial().enroll(token, **foreign)) is RefusalCode.REVOKED
        it.wall_ms += 3_600_000
        assert code(await it.dial().enroll(token, **foreign)) is RefusalCode.REVOKED
        over = it.mint("over", life_s=1)
        it.wall_ms += 1_000
        assert code(await it.dial().enroll(over, **foreign)) is RefusalCode.EXPIRED
        ended = read_token(it.store, "over")
        assert ended is not None
        assert ended.state.value == "expired", "who sees the end first records it"


async def test_one_verification_of_the_same_cost_whether_the_name_exists_or_not() -> None:
    async with gate() as it:
        it.mint("known")
        spent = it.desk.verifications.verifier
        said = []
        for name in ("known", "unknown"):
            before = spent.spent
            answer = await it.dial().enroll(f"{name}.{'0' * 64}")
            assert spent.spent == before + 1
            said.append((answer.code, answer.message.replace(name, "NAME")))
        assert said[0] == said[1]


async def test_a_verified_secret_costs_nothing_the_second_time() -> None:
    async with gate() as it:
        token = it.mint("node")
        verifier = it.desk.verifications.verifier
        for counter in (1, 2, 3):
            assert isinstance(await it.dial().enroll(token, counter=counter), Enrolled)
        assert verifier.spent == 1


async def test_guesses_are_answered_late() -> None:
    async with gate() as it:
        it.mint("node")
        began = trio.current_time()
        assert code(await it.dial("6.6.6.6").enroll(f"node.{'0' * 64}")) is RefusalCode.DOES_NOT_MATCH
        assert trio.current_time() - began >= REFUSAL_DELAY_S


async def test_guesses_that_wait_for_their_answer_lock_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would wait for an hour here; the holder, from their very address, does not."""
    monkeypatch.setattr(control, "REFUSAL_DELAY_S", 3600.0)
    async with gate() as it:
        token = it.mint("node")
        for _ in range(20):
            await it.dial("6.6.6.6").ask(enrollment(f"node.{'0' * 64}"))
        assert isinstance(await it.dial("6.6.6.6").enroll(token), Enrolled)


async def test_nobody_is_let_in_before_what_was_left_is_found() -> None:
    async with gate(opened=False) as it:
        token = it.mint("node")
        peer = it.dial()
        await peer.ask(enrollment(token))
        with trio.move_on_after(0.2) as early:
            await peer.answer()
        assert early.cancelled_caught
        assert it.desk.members == {}
        it.desk.open()
        assert isinstance(await peer.answer(), Enrolled)


# ── duplicates ──────────────────────────────────────────────────────────────────────────────────────────────────────
async def serve_heartbeats(peer: Peer) -> None:
    try:
        while True:
            await peer.answer()
    except (Broken, trio.ClosedResourceError):  # the link ended, as the tests want it to
        return


async def test_the_same_instance_wins_if_its_counter_is_greater() -> None:
    async with gate() as it:
        token = it.mint("node")
        first = it.dial()
        one = await first.enroll(token, counter=5)
        for stale in (4, 5):
            assert code(await it.dial().enroll(token, counter=stale)) is RefusalCode.STALE_INSTANCE
        two = await it.dial().enroll(token, counter=6)
        assert isinstance(two, Enrolled)
        assert two.link == one.link + 1
        assert two.session_credential != one.session_credential
        assert it.desk.sessions.member(one.session_credential, it.wall_ms) is None
        assert it.desk.sessions.member(two.session_credential, it.wall_ms) is it.desk.members["node"]
        state = it.desk.members["node"].state
        assert code(await it.dial().enroll(token, counter=5)) is RefusalCode.STALE_INSTANCE
        assert it.desk.members["node"].state.link_epoch == state.link_epoch


async def test_a_stale_frame_is_refused_when_no_link_is_left_too() -> None:
    async with gate() as it:
        token = it.mint("node")
        peer = it.dial()
        assert isinstance(await peer.enroll(token, counter=7), Enrolled)
        member = it.desk.members["node"]
        await peer.pipe.aclose()
        await member.gone.wait()
        assert code(await it.dial().enroll(token, counter=7)) is RefusalCode.STALE_INSTANCE


async def test_a_live_duplicate_is_named() -> None:
    async with gate() as it:
        token = it.mint("node")
        old = it.dial()
        assert isinstance(await old.enroll(token), Enrolled)
        it.nursery.start_soon(serve_heartbeats, old)
        proof = Predecessor("instance-1", "boot-1", reaped=True)
        no = await it.dial().enroll(token, instance="instance-2", predecessor=proof)
        assert code(no) is RefusalCode.ALREADY_CONNECTED
        assert "host host-1, pid 4711, since 2027-01-15T08:00:00.000Z" in no.message
        assert it.desk.members["node"].state.instance == "instance-1"


@pytest.mark.parametrize(
    ("predecessor", "answer"),
    [
        (None, RefusalCode.IDENTITY_BUSY),
        (Predecessor("instance-1", "boot-1", reaped=False), RefusalCode.IDENTITY_BUSY),
        (Predecessor("another", "boot-1", reaped=True), RefusalCode.IDENTITY_BUSY),
        (Predecessor("instance-1", "boot-1", reaped=True), None),
    ],
    ids=["no word", "not reaped", "another process", "reaped"],
)
async def test_a_dead_link_is_closed_and_the_newcomer_waits_unless_it_proves(
    predecessor: Predecessor | None, answer: RefusalCode | None
) -> None:
    async with gate(Tempo(2.0)) as it:
        token = it.mint("node")
        assert isinstance(await it.dial().enroll(token), Enrolled)  # and never speaks again
        it.engine.busy["node"] = 1.5
        found = await it.dial().enroll(token, instance="instance-2", predecessor=predecessor)
        assert ("left", "node") in it.engine.told, "the old link was closed"
        if answer is None:
            assert isinstance(found, Enrolled)
            assert (
                it.engine.told[-1] == ("ready", "node") or ("joined", "node", predecessor) in it.engine.told
            )
        else:
            assert code(found) is answer
            assert found.retry_after_s == 1.5
            assert "node" not in it.desk.members


class Stuck:
    """A pipe whose peer has vanished behind full buffers: a send never ends, and can not be cancelled (the server shields it)."""

    def __init__(self, pipe: MemoryPipe) -> None:
        self._pipe = pipe
        self.stuck = False
        self.released = trio.Event()

    async def send(self, data: bytes) -> None:
        if self.stuck:
            with trio.CancelScope(shield=True):
                await self.released.wait()
        await self._pipe.send(data)

    async def receive(self) -> bytes:
        return await self._pipe.receive()

    async def aclose(self) -> None:
        await self._pipe.aclose()


async def test_a_half_open_socket_with_full_buffers_keeps_nobody_out() -> None:
    async with gate() as it:
        token = it.mint("node")
        ours, theirs = memory_pipe_pair()
        pipe = Stuck(theirs)
        it.nursery.start_soon(it.desk.serve, pipe, "10.0.0.1")
        assert isinstance(await Peer(ours).enroll(token), Enrolled)
        old = it.desk.members["node"]
        pipe.stuck = True
        old.link.post(Notice("info", "never written"))
        await trio.testing.wait_all_tasks_blocked()
        try:
            assert isinstance(await it.dial().enroll(token, counter=2), Enrolled)
            assert it.desk.members["node"] is not old
            assert not old.parted.is_set()
        finally:
            pipe.released.set()
        await old.parted.wait()
        assert it.desk.members["node"].state.connected


# ── the door ────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_the_longest_waiting_stranger_of_an_address_makes_room() -> None:
    waiters = Waiters(most=100, most_per_address=2)
    left: list[str] = []

    async def wait(name: str, address: str) -> None:
        with waiters.waiting(address, 60) as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught
        left.append(name)

    async with trio.open_nursery() as nursery:
        for name, address in (("a", "x"), ("b", "x"), ("other", "y"), ("c", "x")):
            nursery.start_soon(wait, name, address)
            await trio.testing.wait_all_tasks_blocked()
        assert left == ["a"]
        assert len(waiters) == 3
        nursery.cancel_scope.cancel()
    assert len(waiters) == 0


async def test_when_all_are_too_many_the_most_crowded_address_makes_room() -> None:
    waiters = Waiters(most=3, most_per_address=3)
    left: list[str] = []

    async def wait(name: str, address: str) -> None:
        with waiters.waiting(address, 60):
            await trio.sleep_forever()
        left.append(name)

    async with trio.open_nursery() as nursery:
        for name, address in (("lone", "y"), ("a", "x"), ("b", "x"), ("c", "z")):
            nursery.start_soon(wait, name, address)
            await trio.testing.wait_all_tasks_blocked()
        assert left == ["a"]
        nursery.cancel_scope.cancel()


class Slow(Verifier):
    """Verifies when told; notes in which order."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[str] = []
        self.told = threading.Event()

    def verify(self, asked: Challenge, secret: str) -> bool:
        self.order.append(secret)
        assert self.told.wait(60)
        return False


async def test_a_flood_from_one_address_waits_behind_itself() -> None:
    slow = Slow()
    verifications = Verifications(slow, at_once=1)
    asked = Challenge(None, None)

    async def one(address: str, name: str) -> None:
        await verifications.verify(address, asked, name)

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(one, "6.6.6.6", f"flood-{number}")
        await trio.testing.wait_all_tasks_blocked(0.001)
        nursery.start_soon(one, "10.0.0.1", "owner")
        await trio.testing.wait_all_tasks_blocked(0.001)
        slow.told.set()
    assert slow.order.index("owner") <= 3
    assert len(slow.order) == 11


async def test_a_full_queue_turns_the_flood_away_and_not_the_owner() -> None:
    slow = Slow()
    verifications = Verifications(slow, at_once=1, waiting_max=4)
    asked = Challenge(None, None)
    refused: list[tuple[str, float | None]] = []

    async def one(address: str, name: str) -> None:
        try:
            await verifications.verify(address, asked, name)
        except Refused as no:
            assert no.refusal is RefusalCode.OVERLOADED
            refused.append((name, no.retry_after_s))

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(one, "6.6.6.6", f"flood-{number}")
        await trio.testing.wait_all_tasks_blocked(0.001)
        nursery.start_soon(one, "10.0.0.1", "owner")
        await trio.testing.wait_all_tasks_blocked(0.001)
        slow.told.set()
    assert [name for name, _ in refused if name == "owner"] == []
    assert len(refused) == 2
    assert all(hint == 1.0 for _, hint in refused)
    assert not verifications.must_wait


async def test_waiting_in_the_queue_pauses_the_grace_of_that_instance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with gate() as it:
        token = it.mint("node")
        assert isinstance(await it.dial().enroll(token), Enrolled)
        it.desk.verifications.verifier._remembered.clear()  # a cold cache
        monkeypatch.setattr(it.desk.verifications, "_free", 0)
        held = (HeldDispatch("0b9c1f6e-6f0e-4f0a-9a55-2f1f6c3f7a10", 1, HeldPhase.RUNNING, 0),)
        peer = it.dial()
        await peer.ask(enrollment(token, counter=2, held=held))
        while ("queued", "node", "instance-1") not in it.engine.told:  # noqa: ASYNC110 - what is told is a list
            await trio.sleep(0.01)
        it.desk.verifications._next()
        assert isinstance(await peer.answer(), Enrolled)


# ── the end of a token ──────────────────────────────────────────────────────────────────────────────────────────────
async def connected(it: Gate, token: str) -> tuple[Peer, Enrolled]:
    peer = it.dial()
    answer = await peer.enroll(token)
    assert isinstance(answer, Enrolled)
    return peer, answer


async def test_more_lines_than_an_event_may_hold_end_the_link() -> None:
    """A few KiB of line feeds are more lines than a few MiB of text: their number is bounded too."""
    async with gate() as it:
        peer, _ = await connected(it, it.mint("node"))
        blocks = (LogBlock(Stream.STDOUT, "\n" * (LOG_BATCH_LINES_MAX // 2)),) * 2
        await peer.pipe.send(codec.encode(Event(LogLines("d", 1, 1, blocks))))
        assert code(await peer.answer()) is RefusalCode.TOO_LARGE


async def test_a_revocation_ends_leases_then_the_session() -> None:
    async with gate() as it:
        it.nursery.start_soon(it.desk.watch_tokens)
        token = it.mint("node")
        peer, answer = await connected(it, token)
        member = it.desk.members["node"]
        it.revoke("node")
        no = await peer.answer()
        await member.gone.wait()
        assert isinstance(no, Farewell)
        assert no.code is RefusalCode.REVOKED
        told = [one[0] for one in it.engine.told]
        assert told.index("token ended") < told.index("left")
        assert it.desk.sessions.member(answer.session_credential, it.wall_ms) is None


async def test_leases_of_a_dead_token_end_while_its_worker_is_away() -> None:
    async with gate() as it:
        it.nursery.start_soon(it.desk.watch_tokens)
        it.mint("away")
        token = read_token(it.store, "away")
        assert token is not None
        it.engine.mints = {("away", token.mint_id)}
        it.revoke("away")
        while ("token ended", token.mint_id, RefusalCode.REVOKED) not in it.engine.told:  # noqa: ASYNC110 - what is told is a list
            await trio.sleep(0.01)


async def test_another_mint_of_the_name_cuts() -> None:
    """Revoked and minted again between two looks: the name lives, what was admitted under the old mint does not."""
    async with gate() as it:
        token = it.mint("node")
        peer, _ = await connected(it, token)
        it.revoke("node")
        it.mint("node")
        it.nursery.start_soon(it.desk.watch_tokens)
        assert (await peer.answer()).code is RefusalCode.REVOKED


async def test_warnings_come_at_a_tenth_and_at_a_minute_and_the_end_is_the_end() -> None:
    async with gate() as it:
        token = it.mint("node", life_s=3600)
        peer, _ = await connected(it, token)
        it.nursery.start_soon(it.desk.watch_tokens)
        ends_ms = it.desk.members["node"].state.token_expires_ms
        last: list[Any] = []

        async def listen() -> None:
            last.append(await peer.answer())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            for left_s, notices in ((400, 0), (359, 1), (120, 1), (59, 2), (0, 2)):
                it.wall_ms = ends_ms - left_s * 1000
                it.desk.look_again()
                await trio.sleep(0.1)  # for one too many
                while len(peer.notices) < notices:  # noqa: ASYNC110 - notices are a list
                    await trio.sleep(0.01)
                assert len(peer.notices) == notices, left_s
        (no,) = last
        assert "expires in 5 m; extend it: swamp worker token renew node --duration <d>" in peer.notices[0]
        assert (type(no), no.code) == (Farewell, RefusalCode.EXPIRED)


async def test_a_clock_that_steps_back_revives_nothing() -> None:
    async with gate() as it:
        token = it.mint("node", life_s=10)
        await connected(it, token)
        it.wall_ms += 10_000
        assert code(await it.dial().enroll(token, counter=2)) is RefusalCode.EXPIRED
        it.wall_ms -= 9_000
        assert code(await it.dial().enroll(token, counter=3)) is RefusalCode.EXPIRED


# ── session credentials ─────────────────────────────────────────────────────────────────────────────────────────────
async def test_a_session_credential_is_refreshed_never_beyond_the_token_and_dies_with_the_session() -> None:
    async with gate() as it:
        token = it.mint("node", life_s=1_000)
        peer, first = await connected(it, token)
        assert first.session_expires_ms == it.wall_ms + 900_000
        it.wall_ms += 600_000
        await peer.ask(RefreshSession())
        second = await peer.answer()
        assert isinstance(second, SessionRefreshed)
        assert second.session_expires_ms == first.token_expires_ms, "not beyond the token"
        member = it.desk.members["node"]
        held = it.desk.sessions.member
        assert held(first.session_credential, it.wall_ms) is member, "a request with it may be on its way"
        assert held(first.session_credential, first.session_expires_ms) is None
        assert held(second.session_credential, it.wall_ms) is member
        assert any("session credential refreshed" in line for line in it.reporter.said)
        await peer.pipe.aclose()
        await member.gone.wait()
        assert held(second.session_credential, it.wall_ms) is None


async def test_no_credential_is_issued_for_a_token_that_has_ended() -> None:
    async with gate() as it:
        token = it.mint("node", life_s=10)
        peer, _ = await connected(it, token)
        it.wall_ms += 10_000
        await peer.ask(RefreshSession())
        assert (await peer.answer()).code is RefusalCode.EXPIRED


# ── nothing of a secret anywhere ────────────────────────────────────────────────────────────────────────────────────
async def test_no_secret_in_logs_records_or_representations() -> None:
    async with gate() as it:
        token = it.mint("canary")
        secret = token.partition(".")[2]
        peer, answer = await connected(it, token)
        await it.dial().enroll(token, swamp_version="9")
        await it.dial().enroll(token, machine_id="machine-2")
        await it.dial().enroll(token, counter=1)
        frame = Request(1, enrollment(token))
        shown = [repr(frame), repr(answer), repr(it.desk.members["canary"].state), *it.reporter.said]
        shown += [repr(read_token(it.store, "canary")), repr(read_worker(it.store, "canary"))]
        shown += [repr(attrs.asdict(it.desk.members["canary"].state))]
        for text in shown:
            assert secret not in text
            assert answer.session_credential not in text
        damaged = codec.encode(frame)[:-7]
        with pytest.raises(Exception) as caught:
            codec.decode(damaged)
        assert secret not in f"{caught.value!r}{caught.value}"
        await peer.pipe.aclose()
