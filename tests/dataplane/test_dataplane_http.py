"""The data plane as a client meets it: over a real socket, with right and wrong requests, cut connections and ended leases."""

import errno
import hashlib
import json
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest
import trio
from desk_site import IDS, Site, Step, Worker, ending, open_site, output

from swamp_orch.engine import pace, recovery, uploads
from swamp_orch.gateway.stretch import Stretch
from swamp_orch.store.blobs import BlobFolder
from swamp_proto import codec, dataplane
from swamp_proto.capabilities import CallRefused
from swamp_proto.limits import KIB, MIB, UPLOAD_SYNC, WRITE_BODY_MAX
from swamp_proto.messages.capability import CallCode, WriteBatch
from swamp_proto.messages.dispatch import Outcome

DATA = bytes(range(256)) * 400  # 100 KiB: more than a row holds


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path) as opened:
        yield opened


@pytest.fixture
async def step(site: Site) -> Step:
    return await site.step(await site.worker(await site.mint("w1")))


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def staged(number: int, data: bytes = DATA, name: str = "artifact") -> Any:
    return output("artifact", name, content=b"", staged=number, sha256=sha(data), size=len(data))


async def refused(code: CallCode, attempt: Any, told: str = "") -> None:
    with pytest.raises(CallRefused) as caught:
        await attempt
    assert caught.value.call_code is code, caught.value
    assert told in str(caught.value)


async def offset(step: Step, number: int) -> int:
    answer = await step.http("HEAD", dataplane.upload_path(step.dispatch.dispatch, number))
    return int(answer.headers[dataplane.UPLOAD_OFFSET])


# ── who asks ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_every_request_needs_the_credential_of_a_live_dispatch(site: Site, step: Step) -> None:
    path = dataplane.write_path(step.dispatch.dispatch, 1)
    right = step.headers()
    for wrong in (
        {},
        {**right, "authorization": "Bearer " + "0" * 64},
        {**right, "authorization": step.dispatch.credential},
        {**right, "authorization": ""},
        {**right, dataplane.DISPATCH_HEADER: "nobody"},
        {**right, dataplane.DISPATCH_HEADER: IDS["writer"]},
        {**right, dataplane.FENCE_HEADER: "x"},
    ):
        answer = await site.http.put(path, headers=wrong, content=b"x")
        assert answer.status_code == 401, wrong
        assert answer.json()["code"] == "forbidden"
    answer = await site.http.put(path, headers={**right, dataplane.FENCE_HEADER: "2"}, content=b"x")
    assert (answer.status_code, answer.json()["code"]) == (410, "lease_ended")
    other = await site.step(step.worker)
    await refused(CallCode.FORBIDDEN, other.http("PUT", path, content=b"x"), "another dispatch")
    answer = await site.http.put(path, headers={**right, "origin": "http://evil"}, content=b"x")
    assert answer.status_code == 403
    assert step.dispatch.credential not in repr(step.dispatch)
    hashes = [lease["credentialHash"] for lease in site.attributes('modelType == "swamp/step-lease"')]
    assert sorted(hashes) == sorted(sha(one.dispatch.credential.encode()) for one in (step, other))


async def test_a_credential_lives_as_long_as_its_lease_however_long_that_is(tmp_path: Path) -> None:
    """A step of ten hours: the wall clock is pushed, the session's credential is long over, the dispatch's is not."""
    async with open_site(tmp_path) as site:
        step = await site.step(await site.worker(await site.mint("w1", life_s=11 * 3600)))
        await step.write(output(name="begin"))
        site.clock.ahead_ms += 10 * 3600 * 1000
        await step.write(output(name="after-ten-hours"))
        await step.end()
        await site.over()
        answer = await site.http.put(
            dataplane.write_path(step.dispatch.dispatch, 9), headers=step.headers(), content=b"x"
        )
        assert answer.status_code in (401, 410)


async def test_what_is_not_served_is_said(site: Site, step: Step) -> None:
    for method, path, status in (
        ("GET", "/data/v1/elsewhere", 404),
        ("GET", dataplane.write_path(step.dispatch.dispatch, 1), 405),
        ("POST", dataplane.record_path(IDS["writer"]), 405),
        ("GET", dataplane.record_path(IDS["writer"]), 404),
        ("GET", dataplane.bundle_path("0" * 64), 403),
    ):
        answer = await site.http.request(method, path, headers=step.headers())
        assert answer.status_code == status, (method, path)
        assert set(answer.json()) == {"error", "code"}


async def test_the_first_check_that_fails_is_the_answer(site: Site, step: Step) -> None:
    """In the order of docs/protocol.md: each request is wrong in all that follows, too."""
    dispatch = step.dispatch.dispatch
    write, other = dataplane.write_path(dispatch, 1), dataplane.write_path(IDS["writer"], 1)
    nobody = {**step.headers(), "authorization": "Bearer nobody"}
    ended = {**step.headers(), dataplane.FENCE_HEADER: "9"}

    async def ask(method: str, path: str, headers: dict[str, str]) -> tuple[int, str, httpx.Headers]:
        answer = await site.http.request(method, path, headers=headers, content=b"nonsense")
        return answer.status_code, answer.json()["code"], answer.headers

    site.ready = False
    assert (await ask("POST", "/data/v1/elsewhere", nobody))[:2] == (404, "not_found")
    status, code, headers = await ask("POST", write, nobody)
    assert (status, code, headers["allow"]) == (405, "invalid", "PUT")
    status, code, headers = await ask("PUT", other, nobody)
    assert (status, code, headers["retry-after"]) == (503, "unavailable", "1")
    site.ready = True
    status, code, headers = await ask("PUT", other, nobody)
    assert (status, code, headers["www-authenticate"]) == (401, "forbidden", "Bearer")
    assert (await ask("PUT", other, ended))[:2] == (410, "lease_ended")
    assert (await ask("PUT", other, step.headers()))[:2] == (403, "forbidden")
    assert (await ask("PUT", write, step.headers()))[:2] == (422, "invalid")


# ── writes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_write_that_is_none_is_refused(site: Site, step: Step) -> None:
    path = dataplane.write_path(step.dispatch.dispatch, 1)
    await refused(CallCode.INVALID, step.http("PUT", path, content=b"nonsense"))
    await refused(CallCode.INVALID, step.http("PUT", path, content=codec.pack_value({"records": []})))
    await refused(CallCode.TOO_LARGE, step.http("PUT", path, content=b"x" * (WRITE_BODY_MAX + 1)))

    assert (await step.write(output(name="a"), number=1)).records[0].version == 1


async def test_many_small_writes_at_once_are_all_there_in_their_versions(site: Site, step: Step) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(1, 51):
            nursery.start_soon(lambda n=number: step.write(output(name="a", value={"n": n}), number=n))
    found = site.store.versions(IDS["writer"], "a")
    assert [one.version for one in found] == list(range(1, 51))


# ── uploads ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_upload_is_resumed_where_its_safe_bytes_end(site: Site, step: Step) -> None:
    assert await offset(step, 1) == 0
    await step.patch(1, 0, DATA[:1000], DATA)
    assert await offset(step, 1) == 1000
    with pytest.raises(CallRefused) as wrong:
        await step.patch(1, 500, DATA[500:], DATA)
    assert wrong.value.call_code is CallCode.CONFLICT
    assert "goes on at byte 1000" in str(wrong.value)
    await refused(CallCode.INVALID, step.write(staged(1)), f"1000 of {len(DATA)} bytes")
    answer = await step.patch(1, 1000, DATA[1000:], DATA)
    assert (answer.status_code, answer.headers[dataplane.UPLOAD_OFFSET]) == (204, str(len(DATA)))
    await step.patch(1, len(DATA), b"", DATA)  # the answer was lost, and it is said again
    await step.write(staged(1), number=2)
    await step.write(staged(1), number=2)
    record = site.store.latest(IDS["writer"], "artifact")
    assert record is not None
    assert site.store.read(record) == DATA
    assert (record.version, record.lifetime) == (1, "30d")


def raw_patch(step: Step, number: int, begin: int, data: bytes = DATA) -> bytes:
    """The head of a request for the rest of `data`, as bytes on the wire."""
    about = {
        **step.headers(),
        dataplane.UPLOAD_OFFSET: str(begin),
        dataplane.UPLOAD_LENGTH: str(len(data)),
        dataplane.UPLOAD_DIGEST: sha(data),
        "content-length": str(len(data) - begin),
        "host": "127.0.0.1",
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in about.items())
    return f"PATCH {dataplane.upload_path(step.dispatch.dispatch, number)} HTTP/1.1\r\n{head}\r\n".encode()


async def test_a_cut_connection_keeps_what_arrived(site: Site, step: Step) -> None:
    half = len(DATA) // 2
    async with await trio.open_tcp_stream("127.0.0.1", site.port) as stream:
        await stream.send_all(raw_patch(step, 1, 0) + DATA[:half])
    while (safe := await offset(step, 1)) < half:  # noqa: ASYNC110 - the other side tells nobody
        await trio.sleep(0.01)
    assert safe == half
    await step.patch(1, half, DATA[half:], DATA)
    await step.write(staged(1))


async def test_what_came_is_safe_while_more_of_the_same_request_comes(
    site: Site, step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of a large one, what is safe leaves the page cache, all of it and nothing that is not safe."""
    let_go: list[tuple[int, int]] = []
    monkeypatch.setattr(uploads, "UPLOAD_CACHED_MAX", 0)
    monkeypatch.setattr(uploads.os, "posix_fadvise", lambda fd, at, size, advice: let_go.append((at, size)))
    data = os.urandom(2 * UPLOAD_SYNC + MIB)
    head = raw_patch(step, 1, 0, data)
    with trio.fail_after(60):
        async with await trio.open_tcp_stream("127.0.0.1", site.port) as stream:
            await stream.send_all(head + data[:-1])
            note = (
                site.parts.desk.uploads._folder / step.dispatch.dispatch / "1.json"
            )  # what a successor would find
            safe = 0
            while safe < UPLOAD_SYNC:
                await trio.sleep(0.01)
                safe = json.loads((note.exists() and note.read_bytes()) or b'{"safe": 0}')["safe"]
            assert safe < len(data)
            await stream.send_all(data[-1:])
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 204")
    ends = [at + size for at, size in let_go]
    assert [at for at, _ in let_go] == [0, *ends[:-1]]
    assert ends[-1] == len(data)
    await step.write(staged(1, data))


async def test_who_asks_where_to_go_on_is_told_what_came_before_not_less(
    site: Site, step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request before may still be at work: its connection is cut and nobody here has noticed. What it brought is not sent again."""
    monkeypatch.setattr(pace, "PROGRESS_S", 0.0)
    monkeypatch.setattr(uploads, "LAST_BYTES_S", 0.05)
    flight = site.parts.flights.find(step.dispatch.dispatch)
    assert flight is not None
    first_block = trio.Event()
    flight.on_progress = lambda number, here, of: first_block.set() if here == uploads.BLOCK else None
    whole = bytes(range(256)) * (2 * MIB // 256)
    with trio.fail_after(60):
        async with await trio.open_tcp_stream("127.0.0.1", site.port) as cut:
            await cut.send_all(raw_patch(step, 1, 0, whole) + whole[: uploads.BLOCK])
            await first_block.wait()
            assert await offset(step, 1) == uploads.BLOCK
            assert (await cut.receive_some()).startswith(b"HTTP/1.1 507"), "it is over"
        await step.patch(1, uploads.BLOCK, whole[uploads.BLOCK :], whole)
    await step.write(staged(1, whole), number=2)


async def test_a_newer_request_takes_an_upload_over_from_one_that_is_stuck(
    site: Site, step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the stuck one brought is safe; what the newer one believed before is corrected."""
    monkeypatch.setattr(pace, "PROGRESS_S", 0.0)
    flight = site.parts.flights.find(step.dispatch.dispatch)
    assert flight is not None
    first_block = trio.Event()
    flight.on_progress = lambda number, here, of: first_block.set() if here == uploads.BLOCK else None
    whole = bytes(range(256)) * (3 * MIB // 256)
    async with await trio.open_tcp_stream("127.0.0.1", site.port) as stuck:
        await stuck.send_all(raw_patch(step, 1, 0, whole) + whole[: uploads.BLOCK])
        await first_block.wait()  # it is written, and the request waits for more
        await refused(CallCode.CONFLICT, step.patch(1, 0, whole, whole), f"goes on at byte {uploads.BLOCK}")
        assert await offset(step, 1) == uploads.BLOCK
        await step.patch(1, uploads.BLOCK, whole[uploads.BLOCK :], whole)
        await stuck.send_all(whole[uploads.BLOCK :])
        assert (await stuck.receive_some()).startswith(b"HTTP/1.1 507")
    await step.write(staged(1, whole), number=2)
    record = site.store.latest(IDS["writer"], "artifact")
    assert record is not None
    assert site.store.read(record) == whole


async def test_a_long_body_is_read_where_it_lies_and_its_connection_goes_on(
    site: Site, step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of them on one connection, with what comes right behind each; nearly all of it passes the server library by."""
    poured: list[int] = []
    pour = Stretch.pour

    def counted(self: Stretch, into: Any, most: int) -> None:
        before = self.taken
        pour(self, into, most)
        poured.append(self.taken - before)

    monkeypatch.setattr(Stretch, "pour", counted)
    data = os.urandom(4 * MIB + 5)
    async with await trio.open_tcp_stream("127.0.0.1", site.port) as stream:
        for number in (1, 2):
            await stream.send_all(raw_patch(step, number, 0, data) + data)
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 204")
        both = raw_patch(step, 3, 0, data) + data + raw_patch(step, 3, len(data), data)
        await stream.send_all(both)
        answers = b""
        while answers.count(b"HTTP/1.1 204") < 2:
            answers += await stream.receive_some()
    await step.write(staged(1, data, "a"), staged(2, data, "b"), staged(3, data, "c"), number=4)
    assert sum(poured) > 2 * len(data)
    assert max(poured) <= uploads.POURED + MIB


async def test_a_body_that_ends_while_it_is_read_where_it_lies_is_kept_as_far_as_it_came(
    site: Site, step: Step
) -> None:
    data = os.urandom(3 * MIB)
    async with await trio.open_tcp_stream("127.0.0.1", site.port) as stream:
        await stream.send_all(raw_patch(step, 1, 0, data) + data[: 2 * MIB + 7])
        await stream.send_eof()
    while await offset(step, 1) < 2 * MIB + 7:  # noqa: ASYNC110 - the other side tells nobody
        await trio.sleep(0.01)
    await step.patch(1, 2 * MIB + 7, data[2 * MIB + 7 :], data)
    await step.write(staged(1, data))


async def test_a_lease_that_ends_ends_the_upload_that_is_read_where_it_lies(site: Site, step: Step) -> None:
    data = os.urandom(3 * MIB)
    async with await trio.open_tcp_stream("127.0.0.1", site.port) as stream:
        await stream.send_all(raw_patch(step, 1, 0, data) + data[: 2 * MIB])
        while not (site.root / ".swamp/data/uploads").is_dir():  # noqa: ASYNC110 - the other side tells nobody
            await trio.sleep(0.01)
        await step.end()
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 410")
        with suppress(trio.BrokenResourceError):
            while await stream.receive_some():
                pass


@pytest.mark.parametrize("path", ["/data/v1/bundles/" + "0" * 64, "/client/v1/model.get"])
async def test_a_refused_body_that_goes_on_for_ever_ends_with_its_connection(site: Site, path: str) -> None:
    """Nobody reads it, and the reader of the connection must not wait for somebody who does."""
    head = f"PATCH {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {1 << 40}\r\n\r\n"
    async with await trio.open_tcp_stream("127.0.0.1", site.port) as stream:
        await stream.send_all(head.encode())
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await stream.send_all(bytes(MIB))


async def test_wrong_bytes_are_thrown_away_and_the_upload_begins_again(site: Site, step: Step) -> None:
    wrong = bytes(len(DATA))
    await refused(CallCode.INVALID, _patch_as(step, 1, wrong), "do not have the sha256")
    assert await offset(step, 1) == 0
    await step.patch(1, 0, DATA, DATA)
    await step.write(staged(1))


async def test_the_sha256_may_be_said_by_the_record_alone(site: Site, step: Step) -> None:
    """By nobody before; by a request that comes later; by a record that says another one, which names nothing then."""
    path = dataplane.upload_path(step.dispatch.dispatch, 1)
    half = len(DATA) // 2
    about = {dataplane.UPLOAD_LENGTH: str(len(DATA))}
    for at, part in ((0, DATA[:half]), (half, DATA[half:])):
        await step.http("PATCH", path, content=part, headers=about | {dataplane.UPLOAD_OFFSET: str(at)})
    wrong = attrs.evolve(staged(1), sha256=sha(b"other"))
    await refused(CallCode.INVALID, step.write(wrong, number=2), "other bytes")
    await refused(CallCode.IDEMPOTENCY_CONFLICT, step.patch(1, len(DATA), b"", bytes(len(DATA))))
    await step.patch(1, len(DATA), b"", DATA)
    await step.write(staged(1), number=3)
    late = dataplane.upload_path(step.dispatch.dispatch, 4)
    await step.http("PATCH", late, content=DATA[:half], headers=about | {dataplane.UPLOAD_OFFSET: "0"})
    await refused(
        CallCode.INVALID, step.patch(4, half, DATA[half:], bytes(len(DATA))), "do not have the sha256"
    )
    assert await offset(step, 4) == 0


async def _patch_as(step: Step, number: int, sent: bytes) -> httpx.Response:
    """`sent`, under the name of `DATA`."""
    return await step.patch(number, 0, sent, DATA)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({dataplane.UPLOAD_OFFSET: "x"}, CallCode.INVALID),
        ({dataplane.UPLOAD_OFFSET: "-1"}, CallCode.INVALID),
        ({dataplane.UPLOAD_LENGTH: "9" * 30}, CallCode.INVALID),
        ({dataplane.UPLOAD_LENGTH: str(11 * 1024 * MIB)}, CallCode.TOO_LARGE),
        ({dataplane.UPLOAD_LENGTH: "10"}, CallCode.TOO_LARGE),
        ({dataplane.UPLOAD_DIGEST: "ABC"}, CallCode.INVALID),
        ({dataplane.UPLOAD_DIGEST: "A" * 64}, CallCode.INVALID),
    ],
)
async def test_an_upload_that_makes_no_sense(step: Step, headers: dict[str, str], code: CallCode) -> None:
    await refused(code, step.patch(1, 0, DATA, DATA, **headers))


async def test_a_body_longer_than_it_said_is_refused(step: Step) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield DATA
        yield b"more"

    about = {
        dataplane.UPLOAD_OFFSET: "0",
        dataplane.UPLOAD_LENGTH: str(len(DATA)),
        dataplane.UPLOAD_DIGEST: sha(DATA),
    }
    path = dataplane.upload_path(step.dispatch.dispatch, 1)
    await refused(CallCode.TOO_LARGE, step.http("PATCH", path, content=pieces(), headers=about), "longer")


async def test_the_same_number_is_the_same_upload(step: Step) -> None:
    await step.patch(1, 0, DATA[:10], DATA)
    await refused(CallCode.IDEMPOTENCY_CONFLICT, step.patch(1, 10, b"x", bytes(len(DATA))))


async def test_the_same_bytes_are_stored_once(site: Site, step: Step) -> None:
    for number in (1, 2):
        await step.patch(number, 0, DATA, DATA)
        await step.write(staged(number, name=f"copy-{number}"), number=10 + number)
    blobs = BlobFolder(site.root / ".swamp" / "data" / "blobs")
    assert list(blobs.older_than(1e12)) == [sha(DATA)]
    small = b"small"
    await step.patch(3, 0, small, small)
    await step.write(staged(3, small, "small"), number=20)
    record = site.store.latest(IDS["writer"], "small")
    assert record is not None
    assert record.content == small


async def test_a_full_disk_is_told_and_the_upload_goes_on_when_there_is_room(
    step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(uploads.os, "pwrite", full)
        with pytest.raises(CallRefused) as caught:
            await step.patch(1, 0, DATA, DATA)
    assert caught.value.call_code is CallCode.UNAVAILABLE
    assert str(caught.value).startswith("507")
    await step.patch(1, await offset(step, 1), DATA, DATA)
    await step.write(staged(1))


async def test_uploads_end_with_their_lease_and_leave_nothing(site: Site, step: Step) -> None:
    await step.patch(1, 0, DATA, DATA)
    await step.patch(2, 0, DATA[:100], DATA)
    folder = site.root / ".swamp" / "data" / "uploads"
    assert [one.name for one in folder.iterdir()] == [step.dispatch.dispatch]
    async with await trio.open_tcp_stream("127.0.0.1", site.port) as stream:
        await stream.send_all(raw_patch(step, 2, 100) + DATA[100:200])
        while not step.site.parts.flights.find(step.dispatch.dispatch).requests:  # type: ignore[union-attr]  # noqa: ASYNC110
            await trio.sleep(0.01)
        await step.end()
        answer = b""
        while piece := await stream.receive_some():
            answer += piece
        assert answer.startswith(b"HTTP/1.1 410")
        assert b'"lease_ended"' in answer
    await site.over()
    while any(folder.iterdir()):  # noqa: ASYNC110 - the other side tells nobody
        await trio.sleep(0.01)


async def test_an_upload_survives_the_orchestrator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "is_alive", lambda owner: False)  # the first one is this very process
    async with open_site(tmp_path, grace_s=20) as site:
        token = await site.mint("w1")
        step = await site.step(await site.worker(token))
        await step.patch(1, 0, DATA[:70_000], DATA)
        await step.patch(2, 0, DATA, DATA)
        stale = site.root / ".swamp" / "data" / "uploads" / IDS["foreign"]
        stale.mkdir()
        part = site.root / ".swamp" / "data" / "uploads" / step.dispatch.dispatch / "1"
    part.write_bytes(part.read_bytes() + b"not synced")
    async with open_site(tmp_path, grace_s=20) as site:
        again = Step(site, step.dispatch, Worker(site, None, "w1"), None)  # type: ignore[arg-type]
        assert await offset(again, 1) == 70_000
        await again.patch(1, 70_000, DATA[70_000:], DATA)
        await again.write(staged(1, name="resumed"), staged(2, name="whole"), number=3)
        assert not stale.exists()
        worker = await site.worker(token, step.dispatch, counter=2)
        await worker.ask(ending(step.dispatch))
        await site.over()
        for name in ("resumed", "whole"):
            record = site.store.latest(IDS["writer"], name)
            assert record is not None
            assert site.store.read(record) == DATA


# ── ends ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_staged_output_commits_with_the_end_of_the_step(site: Site, step: Step) -> None:
    await step.patch(1, 0, DATA, DATA)
    assert await step.end(Outcome.SUCCEEDED, staged(1), output(name="small"))
    document = await site.over()
    assert document["status"] == "succeeded"
    names = [one["name"] for one in document["jobs"][0]["steps"][0]["dataArtifacts"]]
    assert names == ["artifact", "small", "log"]
    record = site.store.latest(IDS["writer"], "artifact")
    assert record is not None
    assert site.store.read(record) == DATA
    (lease,) = site.attributes('modelType == "swamp/step-lease" && attributes.state != ""')
    assert (lease["state"], lease["hasWrites"]) == ("completed", False)


async def test_an_output_that_is_not_what_was_declared_fails_the_step(site: Site, step: Step) -> None:
    await step.patch(1, 0, DATA, DATA)
    bad = output(name="bad", value={"n": "text"})
    await step.end(Outcome.SUCCEEDED, staged(1), bad, staged(7, name="missing"))
    document = await site.over()
    (row,) = document["jobs"][0]["steps"]
    assert row["status"] == "failed"
    assert "n must be an integer" in row["error"]
    assert "upload 7 was never begun" in row["error"]
    assert [one["name"] for one in row["dataArtifacts"]] == ["artifact", "log"]


# ── bytes out ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [0, 10, len(DATA)])
async def test_a_record_is_read_whole_in_part_or_not_again(step: Step, size: int) -> None:
    data = DATA[:size]
    await step.patch(1, 0, data, data)
    (written,) = (await step.write(staged(1, data))).records
    path = dataplane.record_path(written.id)
    answer = await step.http("GET", path)
    assert (answer.status_code, answer.content) == (200, data)
    assert answer.headers["etag"] == f'"{sha(data)}"'
    assert answer.headers["content-type"] == "application/octet-stream"
    head = await step.http("HEAD", path)
    assert (head.headers["content-length"], head.content) == (str(size), b"")
    for known in (answer.headers["etag"], "*", f'"x", W/{answer.headers["etag"]}'):
        assert (await step.http("GET", path, headers={"if-none-match": known})).status_code == 304
    if size:
        for asked, part in (("bytes=2-5", data[2:6]), ("bytes=5-", data[5:]), ("bytes=-3", data[-3:])):
            found = await step.http("GET", path, headers={"range": asked})
            assert (found.status_code, found.content) == (206, part)
        assert found.headers["content-range"] == f"bytes {size - 3}-{size - 1}/{size}"
        old = await step.http("GET", path, headers={"range": "bytes=2-5", "if-range": '"other"'})
        assert (old.status_code, old.content) == (200, data)
    answer = await step.site.http.get(path, headers=step.headers() | {"range": f"bytes={size}-"})
    assert (answer.status_code, answer.headers["content-range"]) == (416, f"bytes */{size}")
    answer = await step.site.http.get(path, headers=step.headers() | {"range": "bytes=5-2"})
    assert answer.status_code == 400


async def test_records_outside_of_the_scope_are_not_there(site: Site, step: Step) -> None:
    leases = site.records()
    assert leases
    for record in leases:  # swamp's own, all of them
        await refused(CallCode.NOT_FOUND, step.http("GET", dataplane.record_path(record.id)))


async def test_a_reader_whose_lease_ends_is_cut_off(site: Site, step: Step) -> None:
    data = bytes(64 * MIB)
    await step.patch(1, 0, data, data)
    (written,) = (await step.write(staged(1, data))).records
    path = dataplane.record_path(written.id)
    with pytest.raises(httpx.RemoteProtocolError):
        async with site.http.stream("GET", path, headers=step.headers()) as answer:
            assert answer.status_code == 200
            got = 0
            async for piece in answer.aiter_raw(64 * KIB):
                got += len(piece)
                if got == 64 * KIB:
                    await step.end()
                    await site.over()
    assert got < len(data)


async def test_http_2_is_spoken_too(site: Site, step: Step) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{site.port}", http1=False, http2=True) as two:
        over_two = Step(attrs.evolve(site, http=two), step.dispatch, step.worker, None)
        await over_two.patch(1, 0, DATA, DATA)
        (written,) = (await over_two.write(staged(1), number=2)).records
        answer = await over_two.http("GET", dataplane.record_path(written.id))
        assert (answer.http_version, answer.content) == ("HTTP/2", DATA)
        body = codec.encode_body(WriteBatch((output("nothing", content=b"x"),)))
        path = dataplane.write_path(step.dispatch.dispatch, 3)
        await refused(CallCode.INVALID, over_two.http("PUT", path, content=body))
        await refused(CallCode.TOO_LARGE, over_two.http("PUT", path, content=b"x" * (WRITE_BODY_MAX + 1)))


async def test_before_the_orchestrator_knows_its_leases_it_asks_for_patience(site: Site, step: Step) -> None:
    site.ready = False
    answer = await site.http.put(
        dataplane.write_path(step.dispatch.dispatch, 1), headers=step.headers(), content=b""
    )
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert 503 in dataplane.RETRIED
