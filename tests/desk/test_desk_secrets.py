"""A running step that says its secrets to the orchestrator by every way there is: none is kept. No executor masks anything here."""

import json
from collections.abc import AsyncIterator, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import attrs
import jsonschema
import pytest
import trio
from desk_site import IDS, SCOPE, Site, Step, Worker, ending, open_site, output, widened

import swamp_orch.cli
from swamp_orch.engine import recovery
from swamp_orch.store.bookkeeping import ACCESS, STEP_LEASE
from swamp_orch.store.interface import Batch
from swamp_orch.store.sqlite import SqliteStore
from swamp_proto.capabilities import CallRefused
from swamp_proto.errors import NotFound, UsageError
from swamp_proto.limits import MIB
from swamp_proto.messages.capability import CallCode, Verb
from swamp_proto.messages.dispatch import FinishNoted, Outcome, Output

SCHEMAS = Path(swamp_orch.cli.__file__).parent / "schemas"
SECRET = 'canary "42" of the desk'
FORMS = (SECRET.encode(), json.dumps(SECRET)[1:-1].encode())


@pytest.fixture(autouse=True)
def scope() -> Iterator[None]:
    with widened(SCOPE):
        yield


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path) as opened:
        await plant(opened)
        yield opened


async def plant(site: Site) -> None:
    site.parts.application.call("vault.create", {"type": "local_encryption", "name": "main"})
    value = {"vault": "main", "key": "api", "value": SECRET, "overwrite": True}
    await trio.to_thread.run_sync(site.parts.application.call, "vault.put", value)


@pytest.fixture(params=["loopback", "worker"])
async def step(request: pytest.FixtureRequest, site: Site) -> Step:
    """A step that has read the secret."""
    found = await site.step(None if request.param == "loopback" else await site.worker(await site.mint("w1")))
    assert await found.call(Verb.SECRET, vault="main", key="api") == {"value": SECRET}
    return found


async def kept(site: Site) -> list[str]:
    """Files below the repository in which the secret can be read, of the store as it was last synced."""
    await site.parts.desk.flush()
    return [
        str(path)
        for path in site.root.rglob("*")
        if path.is_file() and any(form in path.read_bytes() for form in FORMS)
    ]


def text_file(content: bytes, staged: int | None = None) -> Output:
    made = output("artifact", "paper", content=content, content_type="text/markdown")
    return made if staged is None else attrs.evolve(made, staged=staged, content=b"")


async def test_what_is_written_is_masked(site: Site, step: Step) -> None:
    text = f"a {SECRET} b".encode()
    await step.write(
        output(name="a", value={"n": 1, "text": f"it is {SECRET}"}, tags={"of": SECRET}),
        text_file(text),
        output("artifact", "bytes", content=text),
    )
    a, paper, raw = (site.store.latest(IDS["writer"], name) for name in ("a", "paper", "bytes"))
    assert a is not None and paper is not None and raw is not None
    assert (json.loads(site.store.read(a)), a.tags["of"]) == ({"n": 1, "text": "it is ***"}, "***")
    assert site.store.read(paper) == b"a *** b"
    assert (paper.sha256, paper.size) == (sha256(b"a *** b").hexdigest(), 7)
    assert site.store.read(raw) == text  # a binary type is left alone


@pytest.mark.parametrize("size", [0, 3 * MIB])
async def test_an_uploaded_text_is_masked_and_its_raw_bytes_are_gone(
    site: Site, step: Step, tmp_path: Path, size: int
) -> None:
    before = b"x" * (size - 9) if size else b""  # the secret lies across a border of blocks
    content = before + SECRET.encode() + b" end"
    file = tmp_path.parent / f"{tmp_path.name}-upload"
    file.write_bytes(content)
    number = await step.upload(file)
    file.unlink()
    (written,) = (await step.write(text_file(content, number))).records
    masked = before + b"*** end"
    assert (written.sha256, written.size) == (sha256(masked).hexdigest(), len(masked))
    record = site.store.latest(IDS["writer"], "paper")
    assert record is not None
    assert site.store.read(record) == masked
    assert await kept(site) == []


async def test_an_uploaded_text_at_the_end_is_masked_and_binary_is_not(
    site: Site, step: Step, tmp_path: Path
) -> None:
    content = SECRET.encode() * 3_000
    file = tmp_path.parent / f"{tmp_path.name}-upload"
    file.write_bytes(content)
    text, raw = await step.upload(file), await step.upload(file)
    file.unlink()
    binary = attrs.evolve(text_file(content, raw), name="raw", content_type="application/octet-stream")
    assert await step.end(Outcome.SUCCEEDED, text_file(content, text), binary)
    assert (await site.over())["status"] == "succeeded"
    for name, expected in (("paper", b"***" * 3_000), ("raw", content)):
        record = site.store.latest(IDS["writer"], name)
        assert record is not None
        assert site.store.read(record) == expected


async def test_a_binary_upload_is_not_named_as_text_afterwards(
    site: Site, step: Step, tmp_path: Path
) -> None:
    content = SECRET.encode() * 3_000
    file = tmp_path / "upload"
    file.write_bytes(content)
    number = await step.upload(file)
    await step.write(
        attrs.evolve(text_file(content, number), name="raw", content_type="application/octet-stream")
    )
    with pytest.raises(CallRefused, match="binary record's already"):
        await step.write(text_file(content, number))


async def test_a_name_that_holds_it_is_refused_and_told_nowhere(site: Site, step: Step) -> None:
    for wrong in (
        output(name=f"of {SECRET}"),
        output("artifact", f"of {SECRET}", content=b"x" * 100_000),
        output(name=f"of {SECRET}", spec="undeclared"),
    ):
        with pytest.raises(CallRefused) as caught:
            await step.write(wrong)
        assert caught.value.call_code is CallCode.INVALID
    assert await step.call(Verb.DELETE, name=f"of {SECRET}") == {"deleted": False}
    with pytest.raises(CallRefused):
        await step.call(Verb.QUERY, predicate=f"attributes.text == '{SECRET}' && nonsense ==")
    await step.call(Verb.QUERY, predicate=f"attributes.text == '{SECRET}'")
    with pytest.raises(CallRefused):
        await step.call(Verb.LATEST, model=SECRET, name=SECRET)
    told = json.dumps(await site.accesses())
    assert told.count("***") >= 6
    assert await kept(site) == []
    (lease,) = site.attributes('modelType == "swamp/step-lease"')
    assert lease["firstWrite"] == "of ***"


async def test_an_end_that_says_it_is_masked(site: Site, step: Step) -> None:
    await step.call(Verb.PUT_SECRET, vault="main", key="api", value="another canary")
    wrong = output(name="wrong", value={"n": SECRET})
    assert await step.end(Outcome.FAILED, wrong, error=f"not with {SECRET} nor another canary")
    document = await site.over()
    (row,) = document["jobs"][0]["steps"]
    assert row["error"].startswith("not with *** nor ***")
    assert SECRET not in json.dumps(document)
    assert await kept(site) == []


async def test_what_it_was_told_is_masked_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The orchestrator that takes the dispatch over did not make it; it knows from its records what the step was told."""
    monkeypatch.setattr(recovery, "is_alive", lambda owner: False)  # the first one is this very process
    async with open_site(tmp_path, grace_s=20) as site:
        await plant(site)
        token = await site.mint("w1")
        step = await site.step(await site.worker(token))
        await step.call(Verb.SECRET, number=1, vault="main", key="api")
    async with open_site(tmp_path, grace_s=20) as site:
        again = Step(site, step.dispatch, Worker(site, None, "w1"), None)  # type: ignore[arg-type]
        await again.write(output(name="after", value={"n": 1, "text": SECRET}), number=2)
        worker = await site.worker(token, step.dispatch, counter=2)
        told = ending(step.dispatch, Outcome.FAILED, error=f"not with {SECRET}")
        assert await worker.ask(told) == FinishNoted(step.dispatch.dispatch, accepted=True)
        (row,) = (await site.over())["jobs"][0]["steps"]
        assert row["error"] == "not with ***"
        assert await kept(site) == []


async def test_a_secret_that_goes_out_with_a_dispatch_is_recorded_in_the_transaction_of_its_grant(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = site.root / "models" / "command" / "shell"
    folder.mkdir(parents=True)
    run = 'echo ${{ vault.get("main", "api") }}'
    (folder / "sh.yaml").write_text(
        f"type: command/shell\nid: {IDS['foreign'][:-4]}aaaa\nname: sh\nversion: 1\n"
        f"methods: {{execute: {{arguments: {{run: {json.dumps(run)}}}}}}}\n"
    )
    batches: list[Batch] = []
    submit = SqliteStore.submit

    def noting(self: SqliteStore, batch: Batch) -> Any:
        batches.append(batch)
        return submit(self, batch)

    monkeypatch.setattr(SqliteStore, "submit", noting)
    await site.live.call("model.method_run", {"name": "sh", "method": "execute"})
    step = await site.next_step(None)
    (grant,) = (
        batch
        for batch in batches
        if any(one.model_type == STEP_LEASE and one.expect == 0 for one in batch.records)
    )
    assert [one.model_type for one in grant.records].count(ACCESS) == 1
    (access,) = site.attributes('modelType == "swamp/access"')  # nobody flushed anything
    assert (access["verb"], access["vault"], access["key"], access["allowed"]) == (
        "secret",
        "main",
        "api",
        True,
    )
    assert access["dispatchId"] == step.dispatch.dispatch
    await step.end()
    await site.over()


async def test_the_audit_tells_who_read_who_wrote_and_who_was_refused(site: Site, step: Step) -> None:
    await site.live.call("vault.create", {"type": "local_encryption", "name": "open"})
    await step.call(Verb.PUT_SECRET, vault="open", key="new", value=SECRET)
    with pytest.raises(CallRefused):
        await step.call(Verb.SECRET, vault="main", key="worker-token-x")
    await site.parts.desk.flush()
    found = await site.live.call("vault.audit", {"vault": "main"})
    refused, read = found["results"]
    assert (read["secretKey"], read["action"], read["allowed"]) == ("api", "read", True)
    assert (read["workflowName"], read["jobName"], read["stepName"]) == ("w", "j", "s")
    assert (read["modelName"], read["methodName"]) == ("writer", "work")
    assert (read["dispatchId"], read["workerName"]) == (
        step.dispatch.dispatch,
        None if step.worker is None else "w1",
    )
    assert (refused["secretKey"], refused["allowed"], refused["code"]) == (
        "worker-token-x",
        False,
        "forbidden",
    )
    assert "swamp's own" in refused["reason"]
    (wrote,) = (await site.live.call("vault.audit", {"vault": "open", "key": "new"}))["results"]
    assert (wrote["action"], wrote["allowed"]) == ("write", True)
    newest = await site.live.call("vault.audit", {"vault": "main", "limit": 1})
    assert (newest["results"], newest["limited"]) == ([refused], True)
    jsonschema.validate(found, json.loads((SCHEMAS / "vault-audit.json").read_text()))
    assert SECRET not in json.dumps(found)


async def test_the_audit_of_what_is_not_there_is_an_error_and_of_what_is_gone_is_not(
    site: Site, step: Step
) -> None:
    with pytest.raises(NotFound, match="Vault 'nix' not found"):
        await site.live.call("vault.audit", {"vault": "nix"})
    for limit in (0, -1, 10_001):
        with pytest.raises(UsageError, match="limit must be"):
            await site.live.call("vault.audit", {"vault": "main", "limit": limit})
    (site.root / "vaults" / "local_encryption" / "main.yaml").unlink()
    assert len((await site.live.call("vault.audit", {"vault": "main"}))["results"]) == 1
