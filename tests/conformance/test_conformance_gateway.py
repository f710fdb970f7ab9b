"""The documented conversation of enrollment, held with a real orchestrator over a real socket by a peer made of bytes.

Every refusal a worker can meet at the door is provoked. `python -m pytest tests/conformance` is the suite that somebody with another
worker, or another orchestrator, runs: `wire` knows nothing of this program.
"""

import socket
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from wire import EVENT, FAILURE, REQUEST, RESPONSE, Wire, dial

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from e2e_site import Site

from swamp_orch.api.client import HttpSession
from swamp_orch.definitions.repository import find

ENROLL = "worker.enroll"


class Door:
    """The orchestrator under test."""

    def __init__(self, site: Site) -> None:
        site.serve("--grace", "40s")
        self.port = site.port
        self._socket = find(site.root).socket_path()

    def call(self, name: str, /, **parameters: Any) -> Any:
        session = HttpSession.unix(self._socket)
        try:
            return session.call(name, **parameters)
        finally:
            session.close()

    def mint(self, name: str, life_s: float = 3600) -> str:
        return str(self.call("token.create", name=name, durationMs=round(life_s * 1000))["token"])


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with Site(tmp_path_factory.mktemp("conformance")) as site:
        yield Door(site)


def offer(token: str, **changes: Any) -> dict[str, Any]:
    """The body of an enroll frame, from the table in the document."""
    return {
        "protocol_version": 1,
        "swamp_version": "0.1.0",
        "token": token,
        "machine_id": "f3b1c2d4-e5f6-4789-8abc-def012345678",
        "boot_id": "7e57ab1e-0000-4000-8000-00000000b007",
        "instance": "11111111-2222-4333-8444-555555555555",
        "counter": 1,
        "host": "builder-7",
        "pid": 4711,
        "platform": "linux",
        "arch": "x86_64",
        "labels": {"gpu": "true"},
        "capacity": 2,
        "draining": False,
        "predecessor": None,
        "held": [],
        **changes,
    }


async def enroll(wire: Wire, token: str, **changes: Any) -> Any:
    await wire.send([REQUEST, 1, ENROLL, offer(token, **changes)])
    return await wire.hear()


async def refusal(door: Door, token: str, **changes: Any) -> dict[str, Any]:
    """The failure that answers this offer; the orchestrator closes after it."""
    async with dial(door.port) as wire:
        answer = await enroll(wire, token, **changes)
        assert answer[:3] == [FAILURE, 1, ENROLL], answer
        assert set(answer[3]) == {"code", "message", "retry_after_s"}
        assert await wire.hear() is None
        found: dict[str, Any] = answer[3]
        return found


async def test_the_conversation(door: Door) -> None:
    """In, a heartbeat each way, a fresh credential, a drain, out by revocation."""
    token = door.mint("talk")
    async with dial(door.port) as wire:
        kind, number, name, body = await enroll(wire, token)
        assert (kind, number, name) == (RESPONSE, 1, ENROLL)
        assert set(body) == {
            "worker", "orchestrator", "link", "session_credential", "session_expires_ms", "token_expires_ms",
            "grace_s", "heartbeat_s", "silence_s", "verdicts",
        }  # fmt: skip
        assert (body["worker"], body["link"], body["grace_s"], body["verdicts"]) == ("talk", 1, 40.0, [])
        assert body["silence_s"] == pytest.approx(3 * body["heartbeat_s"])
        assert body["session_expires_ms"] <= body["token_expires_ms"]
        await wire.send([REQUEST, 2, "link.heartbeat", {"number": 7}])
        assert await wire.hear_of(RESPONSE) == [RESPONSE, 2, "link.heartbeat", {"number": 7}]
        await wire.send([REQUEST, 3, "worker.session.refresh", {}])
        fresh = await wire.hear_of(RESPONSE)
        assert fresh[:3] == [RESPONSE, 3, "worker.session.refresh"]
        assert fresh[3]["session_credential"] != body["session_credential"]
        await wire.send([REQUEST, 4, "worker.drain", {"draining": True, "reason": "to be tested"}])
        assert (await wire.hear_of(RESPONSE))[3] == {"draining": True}
        await trio.to_thread.run_sync(lambda: door.call("token.revoke", name="talk"))
        _, event, last = await wire.hear_of(EVENT)
        assert (event, last["code"]) == ("link.farewell", "revoked")
        assert await wire.hear() is None


async def test_what_is_held_and_unknown_is_dropped(door: Door) -> None:
    token = door.mint("holder")
    held = [{"dispatch": str(uuid.uuid4()), "fence": 3, "phase": "running", "last_line": 12}]
    async with dial(door.port) as wire:
        answer = await enroll(wire, token, held=held)
        assert answer[3]["verdicts"] == [{"dispatch": held[0]["dispatch"], "verdict": "drop"}]


async def test_a_second_process_of_a_live_machine(door: Door) -> None:
    token = door.mint("pair")
    async with dial(door.port) as wire, trio.open_nursery() as nursery:
        assert (await enroll(wire, token))[0] == RESPONSE
        nursery.start_soon(wire.hear_of, FAILURE)  # answers the probe
        no = await refusal(door, token, instance="22222222-2222-4333-8444-555555555555")
        assert no["code"] == "already_connected"
        assert "host builder-7, pid 4711" in no["message"]
        nursery.cancel_scope.cancel()


async def test_a_lower_counter_is_stale_and_a_greater_one_wins(door: Door) -> None:
    token = door.mint("counted")
    async with dial(door.port) as first, dial(door.port) as second:
        assert (await enroll(first, token, counter=5))[0] == RESPONSE
        assert (await refusal(door, token, counter=5))["code"] == "stale_instance"
        assert (await enroll(second, token, counter=6))[3]["link"] == 2
        with trio.fail_after(60):
            while await first.hear() is not None:
                pass


async def test_the_refusals_of_a_token(door: Door) -> None:
    token = door.mint("refused")
    async with dial(door.port) as wire:
        assert (await enroll(wire, token))[0] == RESPONSE
    elsewhere = {"machine_id": str(uuid.uuid4()), "instance": str(uuid.uuid4())}
    found = {
        "already_bound": await refusal(door, token, **elsewhere),
        "does_not_match": await refusal(door, "refused." + "0" * 64),
        "does_not_match ": await refusal(door, "unknown." + "0" * 64),
        "invalid_token": await refusal(door, "nodot"),
        "protocol_mismatch": await refusal(door, token, swamp_version="99.0"),
        "protocol_mismatch ": await refusal(door, token, protocol_version=2),
    }
    await trio.to_thread.run_sync(lambda: door.call("token.revoke", name="refused"))
    found["revoked"] = await refusal(door, token, counter=9)
    short = door.mint("short", life_s=0.3)
    await trio.sleep(0.35)
    found["expired"] = await refusal(door, short, **elsewhere)
    assert {said.strip(): no["code"] for said, no in found.items()} == {
        said.strip(): said.strip() for said in found
    }
    assert all(no["retry_after_s"] is None for no in found.values())
    assert "99.0" in found["protocol_mismatch"]["message"]
    assert "0.1.0" in found["protocol_mismatch"]["message"]


@pytest.mark.parametrize(
    ("first", "code"),
    [
        ([REQUEST, 1, "link.heartbeat", {"number": 1}], "unlawful"),
        ([EVENT, "worker.notice", {"level": "info", "message": "hello"}], "unlawful"),
        ([REQUEST, 1, ENROLL, {**offer("a.b"), "surprise": 1}], "malformed"),
        ([REQUEST, 1, ENROLL, {**offer("a.b"), "capacity": 0}], "malformed"),
        ([REQUEST, 1, ENROLL, {**offer("a.b"), "counter": True}], "malformed"),
        ([REQUEST, 1, ENROLL, {**offer("a.b"), "host": "h" * 600_000}], "too_large"),
        (b"GET / HTTP/1.1\r\n\r\n", "malformed"),
        ("text", "malformed"),
    ],
    ids=[
        "a heartbeat",
        "an event",
        "a field too many",
        "no capacity",
        "a boolean",
        "too large",
        "no frame",
        "text",
    ],
)
async def test_a_first_frame_that_is_no_enrollment(door: Door, first: Any, code: str) -> None:
    async with dial(door.port) as wire:
        if isinstance(first, bytes):
            await wire.send_bytes(first)
        elif isinstance(first, str):
            await wire.send_text(first)
        else:
            await wire.send(first)
        _, event, last = await wire.hear()
        assert (event, last["code"]) == ("link.farewell", code)
        assert await wire.hear() is None


async def test_unlawful_after_enrollment_ends_the_link(door: Door) -> None:
    token = door.mint("rude")
    async with dial(door.port) as wire:
        assert (await enroll(wire, token))[0] == RESPONSE
        await wire.send([REQUEST, 2, ENROLL, offer(token, counter=2)])
        _, event, last = await wire.hear_of(EVENT)
        assert (event, last["code"]) == ("link.farewell", "unlawful")
        assert await wire.hear() is None


async def test_a_stranger_holds_no_socket_past_the_deadline(door: Door) -> None:
    """Neither a WebSocket without a frame, nor a connection without a request, nor half a request."""
    plain = [socket.create_connection(("127.0.0.1", door.port)) for _ in range(2)]
    plain[1].sendall(b"GET /control/v1 HTTP/1.1\r\nHost: localhost\r\n")
    try:
        async with dial(door.port) as wire:
            _, event, last = await wire.hear()
            assert (event, last["code"]) == ("link.farewell", "enroll_timeout")
            assert await wire.hear() is None
        for one in plain:
            one.settimeout(60)
            while await trio.to_thread.run_sync(one.recv, 4096):
                pass
    finally:
        for one in plain:
            one.close()
