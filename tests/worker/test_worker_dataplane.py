"""The worker's data-plane client against a real HTTP server: cut, refused, put off, and never twice."""

# ruff: noqa: ASYNC110, ASYNC240 - facts that nobody announces are looked at every 10 ms; a temporary folder does not block

import hashlib
import os
import ssl
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio
import trustme
from conftest import shell
from data_twin import CuttingProxy, DataTwin, data_twin

from swamp_proto import dataplane
from swamp_proto.capabilities import CallRefused
from swamp_proto.errors import UsageError
from swamp_proto.limits import DATA_STRANGE_MAX, MIB
from swamp_proto.messages.capability import CallCode
from swamp_proto.messages.dispatch import Output
from swamp_worker.shell import dataplane as dataplane_client
from swamp_worker.shell import sender
from swamp_worker.shell.access import RemoteAccess
from swamp_worker.shell.calls import StepCalls
from swamp_worker.shell.dataplane import DataPlane
from swamp_worker.shell.dial import Address

RECORD = "5f0c3d2e-1111-4222-8333-444455556666"


@attrs.define
class Holder:
    """A gate whose word the test decides."""

    reason: str | None = None
    pause_s_max: float = 0.01
    asked: int = 0
    close_after: int | None = None

    def closed(self, dispatch: str) -> str | None:
        self.asked += 1
        if self.close_after is not None and self.asked > self.close_after:
            return "given up"
        return self.reason

    def wake(self) -> None:
        pass


@attrs.define
class Worker:
    access: RemoteAccess
    holder: Holder
    calls: StepCalls
    said: list[str]


Make = Callable[..., Worker]


@pytest.fixture
async def worker() -> AsyncIterator[Make]:
    planes: list[DataPlane] = []

    def make(base: str, tls: Callable[[], ssl.SSLContext] | None = None) -> Worker:
        holder, said = Holder(), list[str]()
        calls = StepCalls(lambda: 0.5)
        calls.attach(holder)
        planes.append(DataPlane(base, calls, tls, said.append))
        return Worker(RemoteAccess(calls, planes[-1]), holder, calls, said)

    yield make
    with trio.fail_after(60):
        for plane in planes:
            await plane.aclose()


@pytest.fixture
async def twin() -> AsyncIterator[DataTwin]:
    with trio.fail_after(60):
        async with data_twin() as made:
            yield made


@pytest.fixture
async def proxy(twin: DataTwin, nursery: trio.Nursery) -> CuttingProxy:
    made = CuttingProxy(int(twin.base.rpartition(":")[2]))
    await nursery.start(made.serve)
    return made


def output(name: str, spec: str = "result") -> Output:
    return Output.of(spec, name, "resource", "application/json", b'{"a":1}')


# ── writes ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_write_is_durable_and_says_what_became_of_it(worker: Make, twin: DataTwin) -> None:
    step = shell("true")
    written = await worker(twin.base).access.write(step, 1, (output("a"), output("b")))
    assert [record.name for record in written.records] == ["a", "b"]
    method, path, headers = twin.requests[0]
    assert (method, path) == ("PUT", dataplane.write_path(step.dispatch, 1))
    assert headers[dataplane.DISPATCH_HEADER] == step.dispatch
    assert headers[dataplane.FENCE_HEADER] == "7"


async def test_a_write_whose_answer_is_lost_is_said_again_and_acts_once(
    worker: Make, twin: DataTwin, proxy: CuttingProxy
) -> None:
    proxy.down += [0, 0]
    written = await worker(proxy.base).access.write(shell("true"), 1, (output("a"),))
    assert written.records[0].name == "a"
    assert twin.committed == ["a"]
    assert len(twin.requests) == 3


async def test_what_is_unavailable_is_tried_again_inside_the_lease(worker: Make, twin: DataTwin) -> None:
    twin.statuses += [502, 503, 504, 507, 507]
    here = worker(twin.base)
    await here.access.write(shell("true"), 1, (output("a"),))
    assert twin.committed == ["a"]
    assert len(here.said) == 1
    assert "waits for the data plane" in here.said[0]


async def test_a_refused_connection_is_tried_again_until_somebody_listens(
    worker: Make, twin: DataTwin, nursery: trio.Nursery
) -> None:
    reserved = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = reserved.socket.getsockname()[1]
    await reserved.aclose()
    here = worker(f"http://127.0.0.1:{port}")
    results: list[object] = []

    async def write() -> None:
        results.append(await here.access.write(shell("true"), 1, (output("a"),)))

    nursery.start_soon(write)
    while not here.said:
        await trio.sleep(0.01)
    late = CuttingProxy(int(twin.base.rpartition(":")[2]))
    listener = (await trio.open_tcp_listeners(port, host="127.0.0.1"))[0]
    nursery.start_soon(trio.serve_listeners, late._one, [listener])
    while not results:
        await trio.sleep(0.01)
    assert twin.committed == ["a"]


async def test_an_ended_lease_and_a_dead_credential_are_final(worker: Make, twin: DataTwin) -> None:
    here = worker(twin.base)
    twin.ended = True
    with pytest.raises(CallRefused) as refused:
        await here.access.write(shell("true"), 1, (output("a"),))
    assert refused.value.call_code is CallCode.LEASE_ENDED
    step = attrs.evolve(shell("true"), credential="another")
    with pytest.raises(CallRefused) as refused:
        await here.access.write(step, 1, (output("a"),))
    assert refused.value.call_code is CallCode.LEASE_ENDED
    assert len(twin.requests) == 2


async def test_a_refusal_carries_its_code_and_words(worker: Make, twin: DataTwin) -> None:
    with pytest.raises(CallRefused, match="not declared") as refused:
        await worker(twin.base).access.write(shell("true"), 1, (output("a", "undeclared"),))
    assert refused.value.call_code is CallCode.INVALID
    assert len(twin.requests) == 1


async def test_a_server_that_is_not_an_orchestrator_is_named_with_the_fix(
    worker: Make, nursery: trio.Nursery
) -> None:
    async def other(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno")

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, other, listeners)
    here = worker(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}")
    with trio.fail_after(60), pytest.raises(CallRefused, match="--data-plane-url"):
        await here.access.write(shell("true"), 1, (output("a"),))
    nursery.cancel_scope.cancel()


# ── after the holder gave up ────────────────────────────────────────────────────────────────────────────────


async def test_nothing_leaves_after_the_holder_gave_up(worker: Make, twin: DataTwin, tmp_path: Path) -> None:
    here = worker(twin.base)
    here.holder.reason = "no heartbeat was answered"
    step = shell("true")
    (tmp_path / "file").write_bytes(b"x")
    for attempt in (
        lambda: here.access.write(step, 1, (output("a"),)),
        lambda: here.access.upload(step, 1, tmp_path / "file", "0" * 64),
        lambda: here.access.download(step, RECORD, tmp_path / "got"),
    ):
        with pytest.raises(CallRefused, match="no heartbeat was answered") as refused:
            await attempt()
        assert refused.value.call_code is CallCode.LEASE_ENDED
    assert twin.requests == []


async def test_a_repetition_asks_the_holder_again(worker: Make, twin: DataTwin) -> None:
    twin.statuses += [503] * 100
    here = worker(twin.base)
    here.holder.close_after = 8
    with pytest.raises(CallRefused, match="given up") as refused:
        await here.access.write(shell("true"), 1, (output("a"),))
    assert refused.value.call_code is CallCode.LEASE_ENDED
    assert 0 < len(twin.requests) < 8


async def test_a_dispatch_that_is_closed_ends_its_requests_at_once(
    worker: Make, twin: DataTwin, nursery: trio.Nursery
) -> None:
    twin.delay_s = 60
    here, step = worker(twin.base), shell("true")
    refused: list[CallRefused] = []

    async def write() -> None:
        try:
            await here.access.write(step, 1, (output("a"),))
        except CallRefused as error:
            refused.append(error)

    nursery.start_soon(write)
    while not twin.requests:
        await trio.sleep(0.01)
    here.calls.close(step.dispatch, "dropped by its verdict")
    while not refused:
        await trio.sleep(0.01)
    assert refused[0].call_code is CallCode.LEASE_ENDED
    assert "dropped by its verdict" in refused[0].message


# ── uploads ─────────────────────────────────────────────────────────────────────────────────────────────────


def big(path: Path, size: int) -> str:
    content = os.urandom(size)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


async def test_an_upload_goes_on_where_the_connection_was_cut(
    worker: Make, twin: DataTwin, proxy: CuttingProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataplane_client, "UPLOAD_CHUNK", 8 * MIB)
    size = 19 * MIB
    digest = big(tmp_path / "file", size)
    proxy.up += [3 * MIB, 9 * MIB, 100, 5 * MIB]
    told: list[tuple[int, int]] = []
    await worker(proxy.base).access.upload(
        shell("true"), 4, tmp_path / "file", digest, lambda safe, whole: told.append((safe, whole))
    )
    assert twin.uploads[4].whole
    assert hashlib.sha256(twin.uploads[4].content).hexdigest() == digest
    assert told[-1] == (size, size)
    assert [safe for safe, _ in told] == sorted(safe for safe, _ in told)
    assert proxy.passed_up < size + 5 * 64 * 1024, "bytes that were safe were sent again"


async def test_bytes_that_reach_the_disk_after_the_question_how_far_they_came_are_no_conflict(
    worker: Make, twin: DataTwin, proxy: CuttingProxy, tmp_path: Path
) -> None:
    digest = big(tmp_path / "file", 2 * MIB)
    proxy.up.append(MIB)
    twin.behind = 2
    await worker(proxy.base).access.upload(shell("true"), 2, tmp_path / "file", digest)
    assert twin.uploads[2].whole
    assert twin.behind == 0
    twin.behind = 1_000_000
    digest = big(tmp_path / "file", 2 * MIB)
    proxy.up.append(MIB)
    with pytest.raises(CallRefused) as refused:
        await worker(proxy.base).access.upload(shell("true"), 3, tmp_path / "file", digest)
    assert refused.value.call_code is CallCode.CONFLICT


async def test_an_upload_whose_last_answer_is_lost_is_complete(
    worker: Make, twin: DataTwin, proxy: CuttingProxy, tmp_path: Path
) -> None:
    digest = big(tmp_path / "file", 1000)
    proxy.down.append(0)
    await worker(proxy.base).access.upload(shell("true"), 2, tmp_path / "file", digest)
    assert twin.uploads[2].whole
    assert [method for method, _, _ in twin.requests] == ["PATCH", "HEAD"]


async def test_an_empty_file_is_a_whole_upload(
    worker: Make, twin: DataTwin, proxy: CuttingProxy, tmp_path: Path
) -> None:
    digest = big(tmp_path / "file", 0)
    proxy.down.append(0)
    await worker(proxy.base).access.upload(shell("true"), 2, tmp_path / "file", digest)
    assert twin.uploads[2].whole


@pytest.mark.parametrize("way", ["kernel", "pieces"])
async def test_the_sha256_of_an_upload_is_found_on_its_way_also_when_it_was_cut(
    way: str,
    worker: Make,
    twin: DataTwin,
    proxy: CuttingProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dataplane_client, "UPLOAD_CHUNK", 2 * MIB)
    if way == "pieces":
        monkeypatch.delattr(sender.os, "sendfile")
    size = 5 * MIB + 1
    digest = big(tmp_path / "file", size)
    proxy.up += [MIB, 3 * MIB]
    found = await worker(proxy.base).access.upload(shell("true"), 4, tmp_path / "file")
    assert found == (digest, size)
    assert twin.uploads[4].whole
    assert hashlib.sha256(twin.uploads[4].content).hexdigest() == digest
    assert proxy.connections == 3, "a connection is kept for the parts of an upload; HEAD has another"


async def test_an_answer_that_comes_early_is_heard_while_nobody_takes_more(
    worker: Make, tmp_path: Path
) -> None:
    """A proxy passes on an answer, or that the orchestrator has ended, and reads no further, and does not close either."""
    big(tmp_path / "file", 30 * MIB)
    said = b'{"error": "it is over", "code": "lease_ended"}'
    ends = [b"", b"HTTP/1.1 410 Gone\r\ncontent-length: %d\r\n\r\n%s" % (len(said), said)]

    async def deaf(stream: trio.SocketStream) -> None:
        head = await stream.receive_some(64 * 1024)
        if head.startswith(b"HEAD"):
            await stream.send_all(b"HTTP/1.1 404 Not Found\r\nswamp: no\r\ncontent-length: 0\r\n\r\n")
        else:
            await stream.send_all(ends.pop(0))
            await stream.send_eof()
        await trio.sleep_forever()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, deaf, 0, host="127.0.0.1"))
            base = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
            with pytest.raises(CallRefused, match="it is over") as refused:
                await worker(base).access.upload(shell("true"), 1, tmp_path / "file")
            assert refused.value.call_code is CallCode.LEASE_ENDED
            assert not ends
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("status", [500, 520, 429])
async def test_trouble_that_is_not_the_data_planes_is_tried_again_for_a_while(
    status: int, worker: Make, twin: DataTwin, tmp_path: Path
) -> None:
    digest = big(tmp_path / "file", 1000)
    client = worker(twin.base)
    twin.statuses += [status] * 3
    await client.access.upload(shell("true"), 2, tmp_path / "file", digest)
    assert twin.uploads[2].whole
    twin.statuses += [status] * 3
    await client.access.write(shell("x"), 3, (output("a"),))
    twin.statuses += [status] * DATA_STRANGE_MAX
    with pytest.raises(CallRefused, match=f"failed: HTTP {status}") as refused:
        await client.access.write(shell("x"), 4, (output("b"),))
    assert refused.value.call_code is CallCode.INTERNAL
    assert not twin.statuses
    twin.statuses += [status] * 100
    with pytest.raises(CallRefused, match=f"failed: HTTP {status}"):
        await client.access.upload(shell("true"), 5, tmp_path / "file", digest)
    assert len(twin.statuses) >= 100 - 2 * DATA_STRANGE_MAX


async def test_an_upload_with_another_digest_is_refused(worker: Make, twin: DataTwin, tmp_path: Path) -> None:
    big(tmp_path / "file", 1000)
    with pytest.raises(CallRefused, match="digest"):
        await worker(twin.base).access.upload(shell("true"), 2, tmp_path / "file", "0" * 64)


async def test_an_upload_that_is_put_off_does_not_spin(worker: Make, twin: DataTwin, tmp_path: Path) -> None:
    digest = big(tmp_path / "file", 1000)
    twin.statuses += [507, 507, 507]
    await worker(twin.base).access.upload(shell("true"), 2, tmp_path / "file", digest)
    assert twin.uploads[2].whole
    assert len(twin.requests) < 8


async def test_a_file_that_is_not_there_is_an_os_error(worker: Make, twin: DataTwin, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await worker(twin.base).access.upload(shell("true"), 2, tmp_path / "none", "0" * 64)


# ── downloads ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_download_goes_on_where_the_connection_was_cut(
    worker: Make, twin: DataTwin, proxy: CuttingProxy, tmp_path: Path
) -> None:
    content = twin.records[RECORD] = os.urandom(5 * MIB)
    proxy.down += [2 * MIB, 1 * MIB]
    await worker(proxy.base).access.download(shell("true"), RECORD, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == content
    asked = [headers.get("range") for _, _, headers in twin.requests]
    assert asked[0] is None
    assert all(asked[1:]), "the rest was not asked for by range"
    assert [path.name for path in tmp_path.iterdir()] == ["got"]


async def test_a_record_that_changed_under_a_download_is_begun_anew(
    worker: Make, twin: DataTwin, proxy: CuttingProxy, tmp_path: Path, nursery: trio.Nursery
) -> None:
    twin.records[RECORD] = os.urandom(2 * MIB)
    proxy.down.append(1 * MIB)
    twin_requests = twin.requests

    async def change() -> None:
        while len(twin_requests) < 1:
            await trio.sleep(0.001)
        twin.records[RECORD] = b"another content"

    nursery.start_soon(change)
    await worker(proxy.base).access.download(shell("true"), RECORD, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == b"another content"


async def test_damaged_bytes_are_fetched_again_and_then_refused(
    worker: Make, twin: DataTwin, tmp_path: Path
) -> None:
    content = twin.records[RECORD] = os.urandom(1000)
    twin.damaged = 1
    here = worker(twin.base)
    await here.access.download(shell("true"), RECORD, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == content
    twin.damaged = 100
    with pytest.raises(CallRefused, match="other bytes than its digest"):
        await here.access.download(shell("true"), RECORD, tmp_path / "damaged")
    assert not (tmp_path / "damaged").exists()


async def test_a_bundle_is_held_to_its_name(worker: Make, twin: DataTwin, tmp_path: Path) -> None:
    content = b"PK..."
    name = hashlib.sha256(content).hexdigest()
    twin.bundles[name] = content
    here = worker(twin.base)
    await here.access.fetch_bundle(shell("true"), name, tmp_path / "bundle")
    assert (tmp_path / "bundle").read_bytes() == content
    twin.bundles[name] = b"PK, and something else"
    with pytest.raises(CallRefused, match="other bytes"):
        await here.access.fetch_bundle(shell("true"), name, tmp_path / "wrong")


async def test_what_is_not_there_is_not_found(worker: Make, twin: DataTwin, tmp_path: Path) -> None:
    with pytest.raises(CallRefused) as refused:
        await worker(twin.base).access.download(shell("true"), RECORD, tmp_path / "got")
    assert refused.value.call_code is CallCode.NOT_FOUND


# ── TLS ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


async def test_tls_is_checked_on_this_connection_too(
    worker: Make, authority: trustme.CA, tmp_path: Path
) -> None:
    made = authority.issue_cert("127.0.0.1")
    made.private_key_pem.write_to_path(tmp_path / "key")
    for each in made.cert_chain_pems:
        each.write_to_path(tmp_path / "cert", append=True)
    authority.cert_pem.write_to_path(tmp_path / "ca")
    big(tmp_path / "file", 2 * MIB)
    pin = hashlib.sha256(ssl.PEM_cert_to_DER_cert((tmp_path / "cert").read_text())).hexdigest()
    good = (
        Address.parse("wss://127.0.0.1", ca_file=tmp_path / "ca"),
        Address.parse("wss://127.0.0.1", pin=pin),
        Address.parse("wss://127.0.0.1", ca_file=tmp_path / "ca", pin=pin),
    )
    bad = (
        (Address.parse("wss://127.0.0.1"), "is not trusted"),
        (Address.parse("wss://127.0.0.1", pin="0" * 64), f"fingerprint {pin}, which is not the pinned one"),
        (Address.parse("wss://127.0.0.1", ca_file=tmp_path / "ca", pin="0" * 64), "not the pinned one"),
    )
    with trio.fail_after(60):
        async with data_twin(certfile=tmp_path / "cert", keyfile=tmp_path / "key") as twin:
            for number, address in enumerate(good, 1):
                client = worker(twin.base, address.pinned_context)
                await client.access.write(shell("x"), number, (output("a"),))
                await client.access.upload(shell("x"), 10 + number, tmp_path / "file")
                assert bytes(twin.uploads[10 + number].content) == (tmp_path / "file").read_bytes()
            for address, words in bad:
                with pytest.raises(CallRefused, match=words):
                    await worker(twin.base, address.pinned_context).access.write(
                        shell("x"), 9, (output("a"),)
                    )
                with pytest.raises(CallRefused, match=words):
                    await worker(twin.base, address.pinned_context).access.upload(
                        shell("x"), 19, tmp_path / "file"
                    )
            assert len(twin.requests) == 2 * len(good), (
                "something was sent over a connection that is not trusted"
            )


def test_the_base_follows_the_url() -> None:
    def base(url: str, chosen: str | None = None) -> str:
        return Address.parse(url, data_plane=chosen).data_plane

    assert base("ws://host") == "http://host:80"
    assert base("wss://host") == "https://host:443"
    assert base("wss://host:9090/team/a/") == "https://host:9090/team/a"
    assert base("ws://[::1]:9090") == "http://[::1]:9090"
    assert base("ws://host", "https://data.example/swamp/") == "https://data.example/swamp"
    for wrong in ("ftp://host", "https://", "https://host:port", "https://user:pw@host", "https://host/?a=b"):
        with pytest.raises(UsageError, match="--data-plane-url"):
            base("ws://host", wrong)
