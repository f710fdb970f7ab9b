"""What a running step writes: admitted by its lease and by the store, once, checked, and kept whatever becomes of the step."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import pytest
import trio
from desk_site import IDS, Site, Step, Worker, ending, open_site, output

from swamp_orch.core.lease_values import Lease, LeaseState
from swamp_orch.engine import recovery
from swamp_orch.engine.flights import lease_batch
from swamp_orch.store.bookkeeping import LEASES_ID, iso, lease_record
from swamp_orch.store.trio_store import commit
from swamp_proto.capabilities import CallRefused
from swamp_proto.limits import WRITE_RECORDS_MAX
from swamp_proto.messages.capability import CallCode
from swamp_proto.messages.dispatch import FinishNoted, Outcome
from swamp_proto.messages.enrollment import Predecessor


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path) as opened:
        yield opened


@pytest.fixture(params=["loopback", "worker"])
async def worker(request: pytest.FixtureRequest, site: Site) -> Worker | None:
    return None if request.param == "loopback" else await site.worker(await site.mint("w1"))


@pytest.fixture
async def step(site: Site, worker: Worker | None) -> Step:
    return await site.step(worker)


def stored_lease(site: Site, step: Step) -> Lease:
    record = site.store.latest(LEASES_ID, lease_record(step.dispatch.dispatch))
    assert record is not None
    assert record.content is not None
    return Lease.from_attributes(json.loads(record.content), record.version)


async def refused(code: CallCode, attempt: object) -> str:
    with pytest.raises(CallRefused) as caught:
        await attempt  # type: ignore[misc]
    assert caught.value.call_code is code, caught.value
    return str(caught.value)


async def test_as_many_records_as_a_write_may_hold_commit_with_the_mark(site: Site, step: Step) -> None:
    many = tuple(output(name=f"r{number}", value={"n": number}) for number in range(WRITE_RECORDS_MAX))
    written = await step.write(*many)
    assert len(written.records) == WRITE_RECORDS_MAX
    assert stored_lease(site, step).wrote


async def test_a_write_is_a_record_and_marks_the_lease_in_one_transaction(site: Site, step: Step) -> None:
    assert not stored_lease(site, step).wrote
    written = await step.write(output(name="a", value={"n": 7}, tags={"k": "v"}))
    (one,) = written.records
    record = site.store.latest(IDS["writer"], "a")
    assert record is not None
    assert (record.id, record.version, record.sha256, record.size) == (
        one.id,
        one.version,
        one.sha256,
        one.size,
    )
    assert record.content == b'{"n":7}'
    assert (record.owner.dispatch, record.owner.step, record.owner.fence) == (step.dispatch.dispatch, "s", 1)
    assert record.tags["k"] == "v"
    assert record.tags["team"] == "core"
    assert record.tags["specName"] == "item"
    lease = stored_lease(site, step)
    assert (lease.wrote, lease.first_write) == (True, "a")
    mark = site.store.latest(LEASES_ID, lease_record(step.dispatch.dispatch))
    assert mark is not None
    assert (mark.seq, mark.created_ms) == (record.seq + 1, record.created_ms)
    await step.write(
        output(name="b"), output(name="b", value={"n": 2}), output("artifact", "f", content=b"\x00x")
    )
    assert stored_lease(site, step).version == lease.version  # only the first one is marked
    await step.end(Outcome.SUCCEEDED, output(name="end"))
    document = await site.over()
    (row,) = document["jobs"][0]["steps"]
    named = [(one["name"], one["version"]) for one in row["dataArtifacts"]]
    assert named == [("a", 1), ("b", 1), ("b", 2), ("f", 1), ("end", 1), ("log", 1)]


async def test_the_same_number_writes_once_and_another_content_is_a_conflict(site: Site, step: Step) -> None:
    first = await step.write(output(name="a"), number=1)
    assert await step.write(output(name="a"), number=1) == first
    text = await refused(
        CallCode.IDEMPOTENCY_CONFLICT, step.write(output(name="a", value={"n": 2}), number=1)
    )
    assert "another content" in text
    assert len(site.store.versions(IDS["writer"], "a")) == 1


async def test_the_same_number_many_times_at_once_writes_once(site: Site, step: Step) -> None:
    found = []

    async def write() -> None:
        found.append(await step.write(output(name="a"), number=1))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(write)
    assert found == [found[0]] * 10
    assert len(site.store.versions(IDS["writer"], "a")) == 1


@pytest.mark.parametrize(
    ("record", "code", "told"),
    [
        (output("nothing", content=b"{}"), "invalid", "declares no output 'nothing'; it declares: artifact, item, log"),
        (output(value={"n": "x"}), "invalid", "resource 'item': it violates the schema of 'item': n must be an integer"),
        (output(value={}), "invalid", "n is required"),
        (output(content=b'{"n": NaN}'), "invalid", "it is not JSON: NaN is no JSON number"),
        (output(content=b"\xff"), "invalid", "it is not JSON"),
        (output(kind="file"), "invalid", "output 'item' is a resource, not a file"),
        (output(name=" a"), "invalid", "printable"),
        (output(name=""), "invalid", "printable"),
        (output(name="a\nb"), "invalid", "printable"),
        (output(tags={"k": "v\0"}), "invalid", "NUL"),
        (output("log", "log", content=b"x", kind="file", content_type="text/plain"), "invalid", "what the step prints"),
        (output(sha256="0" * 64), "invalid", "not those its sha256"),
        (output(size=3), "invalid", "not those its sha256"),
        (output("artifact", staged=9, content=b"", size=1, sha256="0" * 64), "invalid", "upload 9 was never begun"),
        (output("artifact", content=b"x" * (1 << 20) + b"y"), "too_large", "is uploaded before"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_refused_by_name_and_writes_nothing(
    site: Site, step: Step, record: object, code: str, told: str
) -> None:
    text = await refused(CallCode(code), step.write(output(name="right"), record))  # type: ignore[arg-type]
    assert told in text
    assert site.store.latest(IDS["writer"], "right") is None
    assert not stored_lease(site, step).wrote
    (access,) = await site.accesses()
    assert (access["verb"], access["allowed"], access["code"]) == ("write", False, code)


async def test_nothing_is_admitted_under_an_ended_lease_in_the_store(site: Site, step: Step) -> None:
    """Another process ended the lease: the engine does not know it, the store does."""
    lease = stored_lease(site, step)
    ended = attrs.evolve(lease, state=LeaseState.FAILED, ended_ms=1, error="ended by somebody else")
    await commit(site.store, lease_batch(ended))
    text = await refused(CallCode.LEASE_ENDED, step.write(output(name="late")))
    assert "has ended" in text
    assert site.store.latest(IDS["writer"], "late") is None


async def test_a_guarded_write_meets_the_end_in_the_store_too(site: Site, step: Step) -> None:
    await step.write(output(name="first"))
    ended = attrs.evolve(
        stored_lease(site, step), state=LeaseState.FAILED, ended_ms=1, error="by somebody else"
    )
    await commit(site.store, lease_batch(ended))
    await refused(CallCode.LEASE_ENDED, step.write(output(name="late")))
    assert site.store.latest(IDS["writer"], "late") is None
    (first,) = site.records()[:0] or [site.store.latest(IDS["writer"], "first")]
    assert first is not None
    assert first.outcome == "abandoned"


async def test_a_wrong_fence_and_a_finished_step_are_refused(site: Site, step: Step) -> None:
    late = Step(site, attrs.evolve(step.dispatch, fence=2), step.worker, None)
    await refused(CallCode.LEASE_ENDED, late.write(output(name="late")))
    await step.end()
    await site.over()
    with pytest.raises(CallRefused):
        await step.write(output(name="late"))
    assert site.store.latest(IDS["writer"], "late") is None


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.TIMED_OUT, Outcome.SUCCEEDED])
async def test_what_a_step_wrote_says_how_the_step_ended(site: Site, step: Step, outcome: Outcome) -> None:
    await step.write(output(name="a"))
    await step.end(outcome)
    await site.over()
    record = site.store.latest(IDS["writer"], "a")
    assert record is not None
    assert record.outcome == ("" if outcome is Outcome.SUCCEEDED else outcome.value)
    latest = site.parts.orders._functions["data.latest"]
    found = latest("writer", "a")
    assert (found is None) is (outcome is not Outcome.SUCCEEDED)


async def test_write_then_drop_names_worker_record_and_instant(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        token = await site.mint("w1")
        worker = await site.worker(token)
        step = await site.step(worker)
        await step.write(output(name="half"))
        wrote_ms = stored_lease(site, step).first_write_ms
        assert wrote_ms is not None
        await worker.drop()
        await site.worker(token, instance="i-2", predecessor=Predecessor("i-1", "boot-1", reaped=True))
        document = await site.over()
        assert document["status"] == "failed"
        (row,) = document["jobs"][0]["steps"]
        assert "worker 'w1'" in row["error"]
        assert f"after step 's' had written 'half' at {iso(wrote_ms)}" in row["error"]
        assert "write_then_drop" in row["error"]
        assert [one["name"] for one in row["dataArtifacts"]] == ["half", "log"]
        record = site.store.latest(IDS["writer"], "half")
        assert record is not None
        assert record.outcome == "abandoned"
        await refused(CallCode.LEASE_ENDED, _put(step))


async def _put(step: Step) -> None:
    try:
        await step.write(output(name="late"))
    except CallRefused as error:
        # The flight is gone with its step: a stranger's credential now.
        raise CallRefused(CallCode.LEASE_ENDED, str(error)) from None


async def test_a_suspended_lease_admits_writes(site: Site) -> None:
    token = await site.mint("w1")
    worker = await site.worker(token)
    step = await site.step(worker)
    await worker.drop()
    while stored_lease(site, step).phase.value != "suspended":  # noqa: ASYNC110 - a commit has no event here
        await trio.sleep(0.01)
    await step.write(output(name="while-away"))
    again = await site.worker(token, step.dispatch, counter=2)
    assert (await again.ask(ending(step.dispatch))) == FinishNoted(step.dispatch.dispatch, accepted=True)
    assert (await site.over())["status"] == "succeeded"
    assert site.store.latest(IDS["writer"], "while-away") is not None


async def test_a_restarted_orchestrator_admits_writes_of_leases_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "is_alive", lambda owner: False)  # the first one is this very process
    async with open_site(tmp_path, grace_s=20) as site:
        token = await site.mint("w1")
        step = await site.step(await site.worker(token))
        await step.write(output(name="before"), number=1)
    async with open_site(tmp_path, grace_s=20) as site:
        again = Step(site, step.dispatch, Worker(site, None, "w1"), None)  # type: ignore[arg-type]
        await again.write(output(name="before"), number=1)
        await again.write(output(name="after"), number=2)
        assert len(site.store.versions(IDS["writer"], "before")) == 1
        worker = await site.worker(token, step.dispatch, counter=2)
        await worker.ask(ending(step.dispatch))
        document = await site.over()
        assert document["status"] == "succeeded"
        (row,) = document["jobs"][0]["steps"]
        assert [one["name"] for one in row["dataArtifacts"]] == ["before", "after", "log"]
