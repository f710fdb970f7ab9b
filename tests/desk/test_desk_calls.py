"""What a running step asks: answered within its scope, refused outside of it, recorded; the same from a worker and from the loopback."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import pytest
import trio
from desk_site import IDS, SCOPE, Site, Step, Worker, open_site, output, widened

from swamp_orch.store.bookkeeping import LEASES_ID, LEASES_MODEL, STEP_LEASE, lease_record
from swamp_orch.store.interface import Batch, NewRecord, Owner, OwnerType, json_content
from swamp_orch.store.trio_store import commit
from swamp_proto.capabilities import RULE_BY_VERB, CallRefused, check_value
from swamp_proto.messages.capability import CallCode, Verb
from swamp_proto.messages.dispatch import Outcome


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path) as opened:
        for vault in ("main", "open", "closed"):
            opened.parts.application.call("vault.create", {"type": "local_encryption", "name": vault})
        with widened(SCOPE):
            yield opened


@pytest.fixture(params=["loopback", "worker"])
async def worker(request: pytest.FixtureRequest, site: Site) -> Worker | None:
    return None if request.param == "loopback" else await site.worker(await site.mint("w1"))


@pytest.fixture
async def step(site: Site, worker: Worker | None) -> Step:
    return await site.step(worker)


async def refused(code: CallCode, attempt: object) -> str:
    with pytest.raises(CallRefused) as caught:
        await attempt  # type: ignore[misc]
    assert caught.value.call_code is code, caught.value
    return str(caught.value)


async def stored(site: Site, model: str, name: str, value: object = None, **changes: object) -> None:
    fields: dict[str, object] = {
        "model_type": "test/writer",
        "model_id": IDS[model],
        "model_name": model,
        "name": name,
        "spec": "item",
        "content": json_content({"n": 1} if value is None else value),
        "owner": Owner(OwnerType.MANUAL),
    }
    await commit(site.store, Batch((NewRecord(**{**fields, **changes}),)))  # type: ignore[arg-type]


async def put(site: Site, vault: str, key: str, value: str = "s3cret") -> None:
    parameters = {"vault": vault, "key": key, "value": value, "overwrite": True}
    await trio.to_thread.run_sync(site.parts.application.call, "vault.put", parameters)


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_newest_and_any_version_of_a_readable_record(site: Site, step: Step) -> None:
    await stored(site, "other", "a", {"n": 1})
    await stored(site, "other", "a", {"n": 2})
    await stored(site, "other", "a", {"n": 3}, outcome="failed")
    await stored(site, "writer", "own")
    latest = await step.call(Verb.LATEST, model="other", name="a")
    assert (latest["record"]["version"], json.loads(latest["content"])) == (2, {"n": 2})
    third = await step.call(Verb.VERSION, model="other", name="a", version=3)
    assert (third["record"]["outcome"], json.loads(third["content"])) == ("failed", {"n": 3})
    found = await step.call(Verb.VERSIONS, model="other", name="a")
    assert [one["version"] for one in found["versions"]] == [1, 2, 3]
    assert (await step.call(Verb.LATEST, name="own"))["record"]["modelName"] == "writer"
    assert await step.call(Verb.LATEST, name="nothing") == {"found": False}
    assert await step.call(Verb.VERSION, name="own", version=9) == {"found": False}
    assert await step.call(Verb.VERSIONS, name="nothing") == {"versions": []}


async def test_a_step_reads_what_it_wrote_and_not_what_it_deleted(site: Site, step: Step) -> None:
    await step.write(output(name="a", value={"n": 5}))
    assert json.loads((await step.call(Verb.LATEST, name="a"))["content"]) == {"n": 5}
    assert await step.call(Verb.DELETE, name="a") == {"deleted": True, "version": 2}
    assert await step.call(Verb.LATEST, name="a") == {"found": False}
    assert await step.call(Verb.DELETE, name="a") == {"deleted": False}


async def test_large_content_is_not_in_the_answer(site: Site, step: Step, tmp_path: Path) -> None:
    file = tmp_path / "big"
    file.write_bytes(b"x" * (1 << 20) + b"y")
    number = await step.upload(file)
    import hashlib

    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    await step.write(output("artifact", "big", content=b"", staged=number, size=(1 << 20) + 1, sha256=digest))
    found = await step.call(Verb.LATEST, name="big")
    assert found["record"]["size"] == (1 << 20) + 1
    assert "content" not in found


async def test_a_query_finds_only_what_may_be_read(site: Site, step: Step) -> None:
    for model in ("writer", "other", "foreign"):
        await stored(site, model, "q")
    found = await step.call(Verb.QUERY, predicate='name == "q"', select="modelName")
    assert found == {"rows": ["writer", "other"], "failed": 0}
    rows = (await step.call(Verb.QUERY, predicate='name == "q"', limit=1))["rows"]
    assert [row["modelName"] for row in rows] == ["writer"]
    everything = await step.call(
        Verb.QUERY, predicate="version > 0 && (isDeleted || true)", select="modelType"
    )
    assert set(everything["rows"]) == {"test/writer"}
    hidden = 'modelType.startsWith("swamp/") && (version > 0 || isDeleted)'
    assert (await step.call(Verb.QUERY, predicate=hidden))["rows"] == []


async def test_bookkeeping_under_a_readable_name_is_not_found(site: Site, worker: Worker | None) -> None:
    """A model may be called like one of swamp's own: that opens nothing."""
    scope = attrs.evolve(SCOPE, models=frozenset({"writer", LEASES_MODEL, "access", "worker-w1"}))
    with widened(scope):
        step = await site.step(worker)
        name = lease_record(step.dispatch.dispatch)
        assert site.store.latest(LEASES_ID, name) is not None
        assert await step.call(Verb.LATEST, model=LEASES_MODEL, name=name) == {"found": False}
        assert await step.call(Verb.VERSION, model=LEASES_MODEL, name=name, version=1) == {"found": False}
        assert await step.call(Verb.VERSIONS, model=LEASES_MODEL, name=name) == {"versions": []}
        found = await step.call(Verb.QUERY, predicate=f'modelType == "{STEP_LEASE}" && version > 0')
        assert found["rows"] == []


async def test_a_broken_query_and_a_large_answer_are_said(site: Site, step: Step) -> None:
    assert "Unknown field" in await refused(CallCode.INVALID, step.call(Verb.QUERY, predicate="nam == 1"))
    assert "positive" in await refused(CallCode.INVALID, step.call(Verb.QUERY, predicate="true", limit=0))
    for number in range(4):
        await stored(site, "writer", f"big{number}", {"n": 1, "text": "x" * (1 << 20)})
    text = await refused(CallCode.TOO_LARGE, step.call(Verb.QUERY, predicate="true"))
    assert "select less" in text


async def test_a_definition_comes_as_its_file_says_it(site: Site, step: Step) -> None:
    own = (await step.call(Verb.DEFINITION))["definition"]
    assert (own["name"], own["type"], own["tags"]) == ("writer", "test/writer", {"team": "core"})
    other = (await step.call(Verb.DEFINITION, model="other"))["definition"]
    assert other["id"] == IDS["other"]


async def test_the_newest_ended_output_is_told_and_never_the_step_itself(
    site: Site, worker: Worker | None
) -> None:
    first = await site.step(worker)
    await first.write(output(name="a"))
    await first.end(Outcome.FAILED)
    await site.over()
    second = await site.step(worker)
    found = await second.call(Verb.OUTPUT)
    assert (found["output"]["id"], found["output"]["status"]) == (first.dispatch.dispatch, "failed")
    names = [one["name"] for one in found["output"]["artifacts"]["dataArtifacts"]]
    assert names == ["a", "log"]
    assert await second.call(Verb.OUTPUT, model="other") == {"found": False}
    assert await second.call(Verb.OUTPUT, method="elsewhere") == {"found": False}


async def test_answers_are_what_the_table_says(site: Site, step: Step) -> None:
    await put(site, "main", "api")
    await step.write(output(name="a"))
    asked = {
        Verb.LATEST: {"name": "a"}, Verb.VERSION: {"name": "a", "version": 1}, Verb.VERSIONS: {"name": "a"},
        Verb.QUERY: {"predicate": "true"}, Verb.DEFINITION: {}, Verb.SECRET: {"vault": "main", "key": "api"},
        Verb.PUT_SECRET: {"vault": "main", "key": "api", "value": "v"}, Verb.OUTPUT: {}, Verb.DELETE: {"name": "a"},
    }  # fmt: skip
    for verb, arguments in asked.items():
        check_value(verb, await step.call(verb, **arguments))
    await refused(CallCode.INVALID, step.call(Verb.LATEST))
    await refused(CallCode.INVALID, step.call(Verb.LATEST, name="a", more=1))
    assert set(asked) | {Verb.RUN_MODEL} == set(RULE_BY_VERB)


# ── who may ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("verb", [Verb.LATEST, Verb.VERSION, Verb.VERSIONS, Verb.DEFINITION, Verb.OUTPUT])
async def test_another_model_is_refused_whatever_it_is(site: Site, step: Step, verb: Verb) -> None:
    arguments = {
        Verb.LATEST: {"name": "a"},
        Verb.VERSION: {"name": "a", "version": 1},
        Verb.VERSIONS: {"name": "a"},
    }
    await stored(site, "foreign", "a")
    for model in ("foreign", "nobody", LEASES_MODEL, IDS["foreign"]):
        text = await refused(CallCode.FORBIDDEN, step.call(verb, model=model, **arguments.get(verb, {})))
        assert model in text
    told = [(one["verb"], one["model"], one["allowed"]) for one in await site.accesses()]
    assert (verb.value, "foreign", False) in told


async def test_secrets_are_read_where_the_definition_says_so_and_nowhere_else(site: Site, step: Step) -> None:
    for vault, key in (("main", "api"), ("open", "any"), ("closed", "api"), ("main", "worker-token-x")):
        await put(site, vault, key, f"{vault}-{key}")
    assert await step.call(Verb.SECRET, vault="main", key="api") == {"value": "main-api"}
    assert await step.call(Verb.SECRET, vault="open", key="any") == {"value": "open-any"}
    await refused(CallCode.FORBIDDEN, step.call(Verb.SECRET, vault="closed", key="api"))
    await refused(CallCode.FORBIDDEN, step.call(Verb.SECRET, vault="main", key="other"))
    for key in ("worker-token-x", "server-token-x", "access-token-x"):
        assert "swamp's own" in await refused(
            CallCode.FORBIDDEN, step.call(Verb.SECRET, vault="open", key=key)
        )
        await refused(CallCode.FORBIDDEN, step.call(Verb.PUT_SECRET, vault="open", key=key, value="x"))
    await refused(CallCode.NOT_FOUND, step.call(Verb.SECRET, vault="open", key="missing"))
    rows = [(one["verb"], one["vault"], one["key"], one["allowed"]) for one in await site.accesses()]
    assert ("secret", "main", "api", True) in rows
    assert ("secret", "closed", "api", False) in rows
    assert ("put_secret", "open", "worker-token-x", False) in rows
    assert "main-api" not in json.dumps(await site.accesses())


async def test_a_secrets_access_is_durable_before_the_value_is_told(site: Site, step: Step) -> None:
    await put(site, "main", "api")
    await step.call(Verb.SECRET, vault="main", key="api")
    (access,) = site.attributes('modelType == "swamp/access" && attributes.verb == "secret"')
    assert access["dispatchId"] == step.dispatch.dispatch
    assert (access["stepName"], access["workflowName"]) == ("s", "w")
    assert access["workerName"] == (None if step.worker is None else "w1")


# ── changing ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_secret_that_was_put_is_a_write_of_the_step(site: Site, step: Step) -> None:
    await step.call(Verb.PUT_SECRET, number=1, vault="open", key="new", value="one")
    vault = site.parts.application.vaults.choose("open")
    assert vault.get("new") == "one"
    (lease,) = site.attributes(f'modelType == "{STEP_LEASE}"')
    assert (lease["hasWrites"], lease["firstWrite"]) == (True, "secret open/new")
    vault.put("new", "lost", True)  # as if the orchestrator had died before it put it
    await step.call(Verb.PUT_SECRET, number=1, vault="open", key="new", value="one")
    assert vault.get("new") == "one"
    attempt = step.call(Verb.PUT_SECRET, number=1, vault="open", key="new", value="two")
    await refused(CallCode.IDEMPOTENCY_CONFLICT, attempt)
    assert vault.get("new") == "one"


async def test_a_deletion_is_a_write_said_twice_it_deletes_once(site: Site, step: Step) -> None:
    await stored(site, "writer", "a")
    assert await step.call(Verb.DELETE, number=1, name="a") == {"deleted": True, "version": 2}
    await stored(site, "writer", "a")
    assert await step.call(Verb.DELETE, number=1, name="a") == {"deleted": True, "version": 2}
    newest = site.store.latest(IDS["writer"], "a")
    assert newest is not None
    assert (newest.version, newest.deleted) == (3, False)
    (lease,) = site.attributes(f'modelType == "{STEP_LEASE}"')
    assert (lease["hasWrites"], lease["firstWrite"]) == (True, "a")


async def test_models_are_not_run_where_nobody_runs_them(site: Site, step: Step) -> None:
    site.parts.desk.children = None
    text = await refused(CallCode.INVALID, step.call(Verb.RUN_MODEL, model="other", method="work"))
    assert "not supported" in text


# ── the wire ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_worker_asks_for_its_own_dispatches_only(site: Site) -> None:
    step = await site.step(await site.worker(await site.mint("w1")))
    thief = await site.worker(await site.mint("w2"))
    stolen = Step(site, step.dispatch, thief, None)
    await refused(CallCode.LEASE_ENDED, stolen.call(Verb.DEFINITION))
    await refused(CallCode.LEASE_ENDED, Step(site, step.dispatch, None, None).call(Verb.DEFINITION))


async def test_a_slow_call_does_not_hold_up_the_link(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = await site.worker(await site.mint("w1"))
    step = await site.step(worker)
    import threading

    gate = threading.Event()
    monkeypatch.setattr(
        site.parts.desk._readings, "definition", lambda *_: gate.wait(60) and {"definition": {}}
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(step.call, Verb.DEFINITION)
        assert await step.call(Verb.LATEST, name="a") == {"found": False}
        gate.set()
