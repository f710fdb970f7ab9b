"""The token of a step's worker ends: what the step writes and the secrets it asks for are refused at that instant, by the wall clock and
by the store. The watch that looks once a second is off here, so that nothing but the question itself can have noticed."""

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from desk_site import IDS, SCOPE, Site, Step, open_site, output, widened

from swamp_orch.core.tokens import TokenState, revoke
from swamp_orch.gateway.lifetimes import Lifetimes
from swamp_orch.store.interface import Batch
from swamp_orch.tokens.records import read_token, token_record
from swamp_proto.capabilities import CallRefused
from swamp_proto.messages.capability import CallCode, Verb

LIFE_S = 600


def elsewhere(work: Callable[[], object]) -> None:
    """In the middle of a task's turn, as another process would."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


@pytest.fixture(autouse=True)
def unwatched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    async def look(self: Lifetimes) -> None:
        """Sees nothing."""

    monkeypatch.setattr(Lifetimes, "_look", look)
    with widened(SCOPE):
        yield


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path) as opened:
        for name in ("main", "open"):
            opened.parts.application.call("vault.create", {"type": "local_encryption", "name": name})
        opened.parts.application.vaults.choose("main").put("api", "the value", True)
        yield opened


@pytest.fixture
async def step(site: Site) -> Step:
    return await site.step(await site.worker(await site.mint("w1", LIFE_S)))


async def ask(step: Step, what: str) -> object:
    match what:
        case "secret":
            return await step.call(Verb.SECRET, vault="main", key="api")
        case "put_secret":
            return await step.call(Verb.PUT_SECRET, vault="open", key="new", value="one")
        case "delete":
            return await step.call(Verb.DELETE, name="first")
    return await step.write(output(name="late"))


@pytest.mark.parametrize("how", ["expired", "revoked"])
@pytest.mark.parametrize("what", ["write", "delete", "secret", "put_secret"])
async def test_what_a_step_asks_for_ends_with_the_token_at_that_instant(
    site: Site, step: Step, what: str, how: str
) -> None:
    await step.write(output(name="first"))
    if how == "expired":
        site.clock.ahead_ms = LIFE_S * 1000 + 1
    else:
        await site.revoke("w1")
    with pytest.raises(CallRefused) as caught:
        await ask(step, what)
    assert caught.value.call_code is CallCode.LEASE_ENDED
    with pytest.raises(CallRefused):
        await ask(step, what)
    assert site.store.latest(IDS["writer"], "late") is None
    assert [one["verb"] for one in await site.accesses() if one["allowed"] and one["verb"] != "write"] == []
    if what != "put_secret":
        return
    assert site.parts.application.vaults.choose("open").keys() == []


async def test_whoever_sees_the_end_first_keeps_it_and_a_clock_that_steps_back_revives_nothing(
    site: Site, step: Step
) -> None:
    site.clock.ahead_ms = LIFE_S * 1000 + 1
    with pytest.raises(CallRefused):
        await step.write(output(name="late"))
    site.clock.ahead_ms = 0
    token = read_token(site.store, "w1")
    assert token is not None
    assert token.state is TokenState.EXPIRED
    with pytest.raises(CallRefused):
        await step.write(output(name="late"))
    assert site.store.latest(IDS["writer"], "late") is None


async def test_the_last_instant_of_a_token_and_a_renewed_one_write(site: Site, step: Step) -> None:
    site.clock.ahead_ms = LIFE_S * 1000 - 60_000
    await step.write(output(name="in-time"))
    await site.live.call("token.renew", {"name": "w1", "durationMs": 3_600_000})
    site.clock.ahead_ms = LIFE_S * 1000 + 1
    await step.write(output(name="renewed"))
    assert await ask(step, "secret") == {"value": "the value"}


async def test_a_token_of_the_same_name_that_was_minted_anew_is_another_one(site: Site, step: Step) -> None:
    await site.revoke("w1")
    await site.mint("w1")
    with pytest.raises(CallRefused) as caught:
        await ask(step, "write")
    assert caught.value.call_code is CallCode.LEASE_ENDED


async def test_a_step_of_the_loopback_has_no_token_to_end(site: Site) -> None:
    step = await site.step(None)
    site.clock.ahead_ms = 10_000 * 86_400_000
    await step.write(output(name="written"))
    assert await ask(step, "secret") == {"value": "the value"}


@pytest.mark.parametrize("written", [False, True], ids=["the first write", "a later write"])
@pytest.mark.parametrize("what", ["write", "delete", "secret", "put_secret"])
async def test_a_revocation_between_the_look_and_the_commit_comes_first(
    site: Site, step: Step, what: str, written: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store orders them: what was looked at is not what it has any more, so nothing commits."""
    if written or what == "delete":
        await step.write(output(name="first"))
    look = site.parts.flights._standing.over

    def and_then_it_is_revoked(name: str, mint_id: str, now_ms: int) -> object:
        answer = look(name, mint_id, now_ms)
        if answer is None:
            token = read_token(site.store, name)
            assert token is not None
            revoked = revoke(token, now_ms)
            assert revoked is not None
            elsewhere(lambda: site.store.commit(Batch((token_record(revoked),))))
        return answer

    monkeypatch.setattr(site.parts.flights._standing, "over", and_then_it_is_revoked)
    with pytest.raises(CallRefused) as caught:
        await ask(step, what)
    assert caught.value.call_code is CallCode.LEASE_ENDED
    assert site.store.latest(IDS["writer"], "late") is None
    first = site.store.latest(IDS["writer"], "first")
    assert first is None or not first.deleted
    assert [one["verb"] for one in await site.accesses() if one["allowed"] and one["verb"] != "write"] == []


async def test_a_renewal_between_the_look_and_the_commit_is_not_heard_of(
    site: Site, step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, renewals = site.parts.flights._standing.over, [3_700_000, 3_600_000]

    def and_then_it_is_renewed(name: str, mint_id: str, now_ms: int) -> object:
        answer = look(name, mint_id, now_ms)
        if renewals:
            renewal = {"name": name, "durationMs": renewals.pop()}
            elsewhere(lambda: site.parts.application.call("token.renew", renewal))
        return answer

    monkeypatch.setattr(site.parts.flights._standing, "over", and_then_it_is_renewed)
    written = await step.write(output(name="first"))
    assert (written.records[0].version, renewals) == (1, [])
    renewals += [3_800_000]
    assert (await step.write(output(name="second"))).records[0].version == 1
    renewals += [3_900_000]
    assert await ask(step, "secret") == {"value": "the value"}
