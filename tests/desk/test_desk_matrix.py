"""Who may do what: every verb of the table and every route of the data plane, with everybody's things. The scope is found from a real
definition and type, as a run finds it.

The rows come from `swamp_proto.capabilities.RULES`: a verb that is added is tried, and a reach without an expectation fails.
"""

from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import desk_site
import httpx
import pytest
import trio
from desk_site import IDS, Site, Step, open_site, output

from swamp_orch.engine.access_scope import scope_of_report
from swamp_orch.engine.flights import Flight
from swamp_orch.store import bookkeeping
from swamp_orch.store.bookkeeping import INFRASTRUCTURE_TYPES, LEASES_ID, lease_record
from swamp_orch.store.interface import Batch, NewRecord, Owner, OwnerType, json_content
from swamp_orch.store.trio_store import commit
from swamp_proto import dataplane
from swamp_proto.capabilities import RULES, CallRefused, Reach, VerbRule
from swamp_proto.messages.capability import CallCode, Verb

MODELS: Final = {
    "own": "writer",
    "named by the definition": "other",
    "declared by the type": "declared",
    "another": "foreign",
    "one that is not there": "nobody",
    **{f"swamp's own {name}": name for name, value in vars(bookkeeping).items() if name.endswith("_MODEL") for name in [value]},
}  # fmt: skip
SECRETS: Final = {
    "referred": ("main", "referred"),
    "declared": ("main", "declared"),
    "another": ("main", "another"),
    "another vault's": ("closed", "referred"),
    "swamp's own": ("main", "worker-token-w"),
    "swamp's own, though declared": ("main", "server-token-s"),
}
MAY: Final[Mapping[Reach, frozenset[str]]] = {
    Reach.OWN: frozenset({"own"}),
    Reach.READABLE: frozenset({"own", "named by the definition", "declared by the type"}),
    Reach.REFERRED: frozenset({"referred", "declared"}),
}
PARTS: Final[Mapping[str, Any]] = {"name": "a", "version": 1, "method": "work", "value": "x"}


@pytest.fixture(autouse=True)
def declaring(monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer's type declares a model, and secrets: among them one that no type may."""
    declared = attrs.evolve(
        desk_site.WRITER,
        global_arguments={"type": "object"},
        reads=frozenset({"declared"}),
        secrets=frozenset({"main/declared", "main/server-token-s"}),
    )
    monkeypatch.setattr(desk_site, "WRITER", declared)
    monkeypatch.setitem(IDS, "declared", "d0000000-0000-4000-8000-00000000000d")


class Runs:
    """The children's twin: whoever gets here was let in."""

    async def run_model(
        self, parent: Flight, number: int, model: str, method: str, inputs: Mapping[str, Any]
    ) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        return {"run": "r", "status": "succeeded", "records": []}


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    desk_site.make_repository(tmp_path)
    definition = tmp_path / "models" / "test" / "writer" / "writer.yaml"
    refers = "globalArguments:\n  n: ${{ data.latest('other', 'a').attributes.n }}\n  s: ${{ vault.get('main', 'referred') }}\n"
    definition.write_text(definition.read_text() + refers)
    async with open_site(tmp_path) as opened:
        opened.parts.desk.children = Runs()
        for vault in ("main", "closed"):
            opened.parts.application.call("vault.create", {"type": "local_encryption", "name": vault})
        for vault, key in SECRETS.values():
            opened.parts.application.vaults.choose(vault).put(key, f"value of {key}", True)
        for model, identity in IDS.items():
            await store(opened, model, identity)
        yield opened


async def store(site: Site, model: str, identity: str, owner: Owner | None = None) -> None:
    record = NewRecord(
        model_type="test/writer", model_id=identity, model_name=model, name="a", spec="item", content=json_content({"n": 1}),
        owner=owner or Owner(OwnerType.MANUAL),
    )  # fmt: skip
    await commit(site.store, Batch((record,)))


@pytest.fixture(params=["loopback", "worker"])
async def step(request: pytest.FixtureRequest, site: Site) -> Step:
    return await site.step(None if request.param == "loopback" else await site.worker(await site.mint("w1")))


def rows(rule: VerbRule) -> Iterator[tuple[str, dict[str, Any]]]:
    """Whose, and the arguments of the call."""
    plain = {name.removesuffix("?") for name in rule.takes}
    given = {name: PARTS[name] for name in plain & set(PARTS)}
    if rule.reach is Reach.REFERRED:
        for whose, (vault, key) in SECRETS.items():
            yield whose, {**given, "vault": vault, "key": key}
        return
    for whose, model in MODELS.items():
        if "predicate" in plain:
            yield whose, {"predicate": f'modelName == "{model}"'}
        elif whose == "own" and "model" not in rule.takes:
            yield whose, given
        else:
            yield whose, {**given, "model": model}


async def test_every_verb_with_everybodys_things(site: Site, step: Step) -> None:
    tried = 0
    for rule in RULES:
        for whose, arguments in rows(rule):
            what = f"{rule.verb.value} of {whose}"
            may = whose in MAY[rule.reach]
            tried += 1
            try:
                value = await step.call(rule.verb, **arguments)
            except CallRefused as refused:
                assert not may, f"{what}: {refused}"
                # A verb for its own model alone takes no other's name.
                expected = CallCode.INVALID if rule.reach is Reach.OWN else CallCode.FORBIDDEN
                assert refused.call_code is expected, f"{what}: {refused}"
                recorded = (rule.verb.value, False, expected.value)
            else:
                if rule.verb is Verb.QUERY:  # is narrowed, not refused
                    assert bool(value["rows"]) == may, what
                else:
                    assert may, f"{what} was answered: {value}"
                recorded = (rule.verb.value, True, None)
            access = await newest_access(site, rule.verb, arguments)
            assert (access["verb"], access["allowed"], access.get("code")) == recorded, what
    assert tried >= len(RULES) * 5


async def test_a_report_of_a_run_sees_what_the_run_left_and_changes_nothing(site: Site) -> None:
    """Whatever its process asks: the SDK refuses before, and is not what holds it."""
    await store(site, "foreign", IDS["foreign"], Owner(OwnerType.WORKFLOW_STEP, run="run-x"))
    await store(site, "foreign", IDS["foreign"])
    scope = scope_of_report(desk_site.WRITER, "a0000000-0000-4000-8000-00000000000a", ["run-x"])
    with desk_site.widened(scope):
        step = await site.step(None)
    asked = {
        rule.verb: dict(arguments)
        for rule in RULES
        for whose, arguments in rows(rule)
        if whose in ("own", "declared")
    }
    for rule in RULES:
        if rule.mutates:
            with pytest.raises(CallRefused, match="only looks") as caught:
                await step.call(rule.verb, **asked[rule.verb])
            assert caught.value.call_code is CallCode.FORBIDDEN
    with pytest.raises(CallRefused, match="only looks"):
        await step.write(output(name="mine"))
    assert (await step.call(Verb.LATEST, model="foreign", name="a"))["record"]["version"] == 2
    for model, version, found in [("foreign", 2, True), ("foreign", 3, False), ("declared", 1, True)]:
        told = await step.call(Verb.VERSION, model=model, name="a", version=version)
        assert told["found"] is found, (model, version)
    rows_ = (await step.call(Verb.QUERY, predicate="true", select="modelName + string(version)"))["rows"]
    assert rows_ == ["declared1"]  # of the foreign one the newest version is not the run's
    assert (await step.call(Verb.QUERY, predicate="version > 0", select="modelName + string(version)"))[
        "rows"
    ] == ["declared1", "foreign2"]
    for verb in (Verb.DEFINITION, Verb.OUTPUT):
        with pytest.raises(CallRefused, match="what its run left") as caught:
            await step.call(verb, model="foreign")
        assert caught.value.call_code is CallCode.FORBIDDEN
    for whose, model in MODELS.items():
        if whose.startswith("swamp's own"):
            assert await step.call(Verb.LATEST, model=model, name="run-main") == {"found": False}
    with pytest.raises(CallRefused):
        await step.call(Verb.SECRET, vault="main", key="another")
    assert (await step.call(Verb.SECRET, vault="main", key="declared"))["value"] == "value of declared"


async def newest_access(site: Site, verb: Verb, arguments: dict[str, Any]) -> dict[str, Any]:
    """The record of the question that was just asked."""
    named = {name: arguments[name] for name in ("model", "vault", "key") if name in arguments}
    if "predicate" in arguments:
        named["name"] = arguments["predicate"]
    found = [
        one for one in await site.accesses() if one["verb"] == verb.value and named.items() <= one.items()
    ]
    assert found, f"{verb.value} {arguments} left no record"
    return found[-1]


# ── the data plane ──────────────────────────────────────────────────────────────────────────────────────────
async def ids(site: Site) -> dict[str, str]:
    """One record of everybody's, swamp's own among them."""
    found = {}
    for whose, model in MODELS.items():
        if model in IDS:
            record = site.store.latest(IDS[model], "a")
            assert record is not None
            found[whose] = record.id
    for record in site.records():
        if record.model_type in INFRASTRUCTURE_TYPES:
            found.setdefault(f"swamp's own {record.model_type}", record.id)
    return found


async def test_a_record_is_read_by_those_who_may(site: Site) -> None:
    step = await site.step(await site.worker(await site.mint("w1")))
    await step.call(Verb.SECRET, vault="main", key="declared")
    found = await ids(site)
    assert {"own", "another", "swamp's own swamp/step-lease", "swamp's own swamp/access"} <= set(found)
    for whose, record in found.items():
        answer = await site.http.get(dataplane.record_path(record), headers=step.headers())
        assert answer.status_code == (200 if whose in MAY[Reach.READABLE] else 404), whose


async def test_every_route_with_every_credential(site: Site) -> None:
    worker = await site.worker(await site.mint("w1"))
    step, neighbour, ended = await site.step(worker), await site.step(worker), await site.step(worker)
    await ended.end()
    while site.parts.flights.find(ended.dispatch.dispatch) is not None:  # noqa: ASYNC110 - its step's task is done with it
        await trio.sleep(0.01)
    record = (await ids(site))["own"]
    mine = step.dispatch.dispatch

    def with_(**changes: str) -> dict[str, str]:
        names = {
            "credential": "authorization",
            "dispatch": dataplane.DISPATCH_HEADER,
            "fence": dataplane.FENCE_HEADER,
        }
        return step.headers() | {names[name]: value for name, value in changes.items()}

    stranger = f"Bearer {'0' * 64}"
    who = {
        "nobody": {},
        "a wrong credential": with_(credential=stranger),
        "no scheme": with_(credential=step.dispatch.credential),
        "a neighbour's credential": with_(credential=f"Bearer {neighbour.dispatch.credential}"),
        "an ended lease's": ended.headers(),
        "a fence to come": with_(fence=str(step.dispatch.fence + 1)),
        "no fence": with_(fence="x"),
        "an unknown dispatch": with_(dispatch="00000000-0000-4000-8000-000000000000"),
        "the serve's own credential": with_(credential=f"Bearer {'c' * 64}"),
    }
    paths = [
        ("GET", dataplane.record_path(record)),
        ("GET", dataplane.bundle_path("0" * 64)),
        ("HEAD", dataplane.upload_path(mine, 1)),
        ("PATCH", dataplane.upload_path(mine, 1)),
        ("PUT", dataplane.write_path(mine, 1)),
    ]

    async def ask(method: str, path: str, headers: dict[str, str]) -> httpx.Response:
        return await site.http.request(
            method, path, headers=headers, content=b"" if method in ("GET", "HEAD") else b"x"
        )

    for name, headers in who.items():
        for method, path in paths:
            answer = await ask(method, path, headers)
            expected = {410} if name == "a fence to come" else {401}
            assert answer.status_code in expected, (name, method, path, answer.text)
    # The right credential, for things of another dispatch.
    theirs = neighbour.dispatch.dispatch
    for method, path in (
        ("HEAD", dataplane.upload_path(theirs, 1)),
        ("PATCH", dataplane.upload_path(theirs, 1)),
        ("PUT", dataplane.write_path(theirs, 1)),
        ("GET", dataplane.bundle_path("0" * 64)),  # a program is named by its dispatch, and by no other
    ):
        answer = await ask(method, path, step.headers())
        assert answer.status_code == 403, (method, path, answer.text)
    await step.write(output(name="mine"))
    assert site.store.latest(IDS["writer"], "mine") is not None
    assert site.store.latest(LEASES_ID, lease_record(mine)) is not None
