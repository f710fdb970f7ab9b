"""`swamp worker connect` as a real process against a real WebSocket server (the orchestrator's twin behind
it).
"""
# ruff: noqa: ASYNC240 - reading /proc does not block

import json
import os
import signal
import ssl
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio_websocket
import trustme
from click.testing import CliRunner
from conftest import shell
from fake_orchestrator import Orchestrator

from swamp_proto.errors import ExitCode, RefusalCode, UsageError
from swamp_proto.limits import CONTROL_FRAME_MAX
from swamp_proto.messages.dispatch import Outcome
from swamp_proto.trio_io import WebSocketPipe
from swamp_proto.version import CONTROL_PATH
from swamp_worker.cli import WorkerOptions, connect, read_options, without_token
from swamp_worker.execution import procfs
from swamp_worker.shell.dial import Address
from swamp_worker.shell.identity import open_identity

ROOT = Path(__file__).parents[2]
TOKEN = "build-node." + "5c40afd8" * 8
GIVEN = ("--token", "-")  # from standard input, which spares the second start of an interpreter
MAIN = """
import sys
from swamp_proto.errors import SwampError
from swamp_worker.cli import connect
class Globals:
    json = "--json" in sys.argv
    def get(self, name): return None
try:
    sys.exit(connect.main([a for a in sys.argv[2:] if a != "--json"], standalone_mode=False, obj=Globals()))
except SwampError as error:
    print("Error:", error, error.hint, file=sys.stderr)
    sys.exit(int(error.exit_code))
"""


class Server:
    """The twin on a real port."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.twin = Orchestrator(nursery, grace_s=60.0)
        self.twin.wall_ms = lambda: time.time_ns() // 1_000_000
        self.port = 0
        self.requested: list[str] = []

    async def accept(self, request: trio_websocket.WebSocketRequest) -> None:
        self.requested.append(request.path)
        if request.path != CONTROL_PATH:
            await request.reject(404)
            return
        connection = await request.accept()
        await self.twin.serve(WebSocketPipe(connection))


@asynccontextmanager
async def serving(context: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    async with trio.open_nursery() as nursery:
        server = Server(nursery)
        listening = await nursery.start(
            partial(
                trio_websocket.serve_websocket,
                server.accept,
                "127.0.0.1",
                0,
                context,
                max_message_size=CONTROL_FRAME_MAX,
            )
        )
        server.port = listening.port
        with trio.fail_after(60):
            yield server
        nursery.cancel_scope.cancel()


class Process:
    """One `connect`, its output read as it comes."""

    def __init__(self, process: trio.Process, nursery: trio.Nursery) -> None:
        self.process = process
        self.out = b""
        self.err = b""
        self._heard = {"out": trio.Event(), "err": trio.Event()}
        nursery.start_soon(self._read, "out", process.stdout)
        nursery.start_soon(self._read, "err", process.stderr)

    async def _read(self, name: str, stream: Any) -> None:
        async for data in stream:
            setattr(self, name, getattr(self, name) + data)
        self._heard[name].set()

    async def says(self, text: str, where: str = "out") -> None:
        while text.encode() not in getattr(self, where):
            assert not self._heard[where].is_set(), (self.out, self.err)
            await trio.sleep(0.01)

    async def ended(self) -> int:
        """Its exit code, once everything that it said was read."""
        for heard in self._heard.values():
            await heard.wait()
        return await self.process.wait()


@asynccontextmanager
async def connecting(
    *arguments: str, env: dict[str, str] | None = None, under: tuple[str, ...] = ()
) -> AsyncIterator[Process]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    environment.pop("PYTEST_CURRENT_TEST", None)
    async with trio.open_nursery() as nursery:
        process = await trio.lowlevel.open_process(
            [*under, sys.executable, "-c", MAIN, "connect", *arguments],
            stdin=-1,
            stdout=-1,
            stderr=-1,
            env=environment,
        )
        assert process.stdin is not None
        await process.stdin.send_all(TOKEN.encode() + b"\n")
        found = Process(process, nursery)
        try:
            yield found
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(60):
                if process.poll() is None:
                    process.kill()
                await process.wait()
            nursery.cancel_scope.cancel()


def url(server: Server, scheme: str = "ws") -> str:
    return f"{scheme}://127.0.0.1:{server.port}"


# ── the ordinary life ───────────────────────────────────────────────────────────────────────────────────────


async def test_enrolls_runs_and_drains_on_the_first_signal(tmp_path: Path) -> None:
    async with (
        serving() as server,
        connecting(url(server), "--token", TOKEN, "--cache-dir", str(tmp_path)) as worker,
    ):
        twin = server.twin
        await twin.linked()
        assert server.requested == [CONTROL_PATH]
        assert twin.enrolls[0].token == TOKEN
        await worker.says("✓ Enrolled as build-node")
        kept = await twin.start(shell("ps -o ppid= -p $$; sleep 0.3; env"))
        await twin.until(lambda: kept.lines)
        assert int(kept.lines[0].text) == worker.process.pid
        worker.process.send_signal(signal.SIGTERM)
        await twin.until(lambda: twin.drains)
        assert kept.finished is None
        finished = await twin.finished(kept)
        assert finished.outcome is Outcome.SUCCEEDED
        assert await worker.ended() == 0
        assert TOKEN not in str(kept.lines)
        lines = worker.out.decode().splitlines()
        assert lines[0] == f"Connecting to {url(server)} (attempt 1)..."
        assert lines[1:3] == ["✓ Enrolled as build-node", "Waiting for work (1 slot)"]
        short = kept.dispatch.dispatch[:8]
        assert lines[3] == f"▶ Dispatch {short}: command/shell.execute (demo › compile)"
        assert lines[4] == "Draining (received shutdown signal) — finishing in-flight work..."
        assert lines[5].startswith(f"✓ Dispatch {short}: command/shell.execute succeeded in ")
        assert lines[6:] == ["Drain complete — disconnecting", "Worker stopped: received shutdown signal"]
        assert worker.err == b""


async def test_a_script_s_background_job_heeds_ctrl_c_and_nohup_keeps_what_it_ignores(tmp_path: Path) -> None:
    """A shell starts `worker connect &` of a script with SIGINT ignored; nohup ignores SIGHUP and means it."""
    under = ("sh", "-c", 'trap "" INT HUP; exec "$@"', "sh")
    async with (
        serving() as server,
        connecting(url(server), *GIVEN, "--cache-dir", str(tmp_path), under=under) as worker,
    ):
        await server.twin.linked()
        worker.process.send_signal(signal.SIGHUP)
        kept = await server.twin.start(shell("kill -INT $$; echo ignored"))
        assert (await server.twin.finished(kept)).outcome is Outcome.FAILED
        assert not server.twin.drains
        worker.process.send_signal(signal.SIGINT)
        assert await worker.ended() == 0
        assert b"Draining (received shutdown signal)" in worker.out


async def test_json_is_one_object_a_line(tmp_path: Path) -> None:
    async with (
        serving() as server,
        connecting(url(server), "--json", *GIVEN, "--cache-dir", str(tmp_path)) as worker,
    ):
        await server.twin.linked()
        await server.twin.finished(await server.twin.start(shell("exit 3")))
        worker.process.send_signal(signal.SIGINT)
        assert await worker.ended() == 0
        said = [json.loads(line) for line in worker.out.decode().splitlines()]
        assert [each["kind"] for each in said] == [
            "connecting",
            "enrolled",
            "waiting",
            "dispatch_started",
            "dispatch_finished",
            "draining",
            "drain_complete",
            "stopped",
        ]
        assert said[4]["status"] == "failed"
        assert said[4]["error"] == "Command exited with code 3"


async def test_the_token_is_nowhere_to_be_seen(tmp_path: Path) -> None:
    """On the command line and in the environment alike; neither in this process nor in what it starts."""
    secret = TOKEN.partition(".")[2]
    for arguments, env in (
        (("--token", TOKEN), {}),
        ((f"--token={TOKEN}",), {}),
        ((), {"SWAMP_WORKER_TOKEN": TOKEN}),
    ):
        async with (
            serving() as server,
            connecting(url(server), *arguments, "--cache-dir", str(tmp_path), env=env) as worker,
        ):
            await server.twin.linked()
            assert server.twin.enrolls[0].token == TOKEN
            tree = [worker.process.pid]
            tree += [each.pid for each in procfs.processes() if each.parent == worker.process.pid]
            assert len(tree) == 2
            for pid in tree:
                assert secret.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
                assert secret.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
            worker.process.send_signal(signal.SIGTERM)
            assert await worker.ended() == 0
            assert secret.encode() not in worker.out + worker.err


async def test_the_whole_tree_at_rest_is_small(tmp_path: Path) -> None:
    async with (
        serving() as server,
        connecting(url(server), *GIVEN, "--cache-dir", str(tmp_path)) as worker,
    ):
        await server.twin.linked()
        await server.twin.finished(await server.twin.start(shell("true")))
        tree = [worker.process.pid]
        tree += [each.pid for each in procfs.processes() if each.parent == worker.process.pid]
        pss = 0
        for pid in tree:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                pss += int(line.split()[1]) if line.startswith("Pss:") else 0
        assert pss < 60 * 1024, f"{pss} KiB"


async def test_kill_9_and_return_with_proof(tmp_path: Path) -> None:
    """The next process is the same machine, names its predecessor, and has made sure that nothing of it runs."""
    async with serving() as server:
        twin = server.twin
        arguments = (url(server), *GIVEN, "--cache-dir", str(tmp_path))
        async with connecting(*arguments) as worker:
            await twin.linked()
            kept = await twin.start(shell("(setsid sleep 300 &); echo up; sleep 300"))
            await twin.until(lambda: kept.lines)
            worker.process.send_signal(signal.SIGKILL)
            await worker.ended()
        async with connecting(*arguments) as worker:
            await twin.linked(2)
            first, second = twin.enrolls
            assert second.machine_id == first.machine_id
            assert second.instance != first.instance
            assert second.predecessor is not None
            assert second.predecessor.instance == first.instance
            assert second.predecessor.reaped
            markers = [procfs.carries(each.pid, [kept.dispatch.dispatch]) for each in procfs.processes()]
            assert markers == [None] * len(markers)


async def test_the_predecessor_is_the_last_one_that_was_let_in(tmp_path: Path) -> None:
    async with serving() as server:
        twin = server.twin
        arguments = (url(server), *GIVEN, "--cache-dir", str(tmp_path))
        async with connecting(*arguments) as worker:
            await twin.linked()
            await worker.says("Waiting")
            worker.process.send_signal(signal.SIGTERM)
            await worker.ended()
        twin.refusals.append(
            (RefusalCode.ALREADY_CONNECTED, "Worker 'build-node' is already connected", None)
        )
        async with connecting(*arguments) as worker:
            assert await worker.ended() == ExitCode.ALREADY_CONNECTED
            assert "Error: already_connected: Worker 'build-node'" in worker.err.decode()
            assert "Fix:   Check for duplicate worker processes" in worker.err.decode()
        async with connecting(*arguments) as worker:
            await twin.linked(3)
            assert twin.enrolls[2].predecessor is not None
            assert twin.enrolls[2].predecessor.instance == twin.enrolls[0].instance


async def test_one_process_per_cache_directory(tmp_path: Path) -> None:
    async with (
        serving() as server,
        connecting(url(server), *GIVEN, "--cache-dir", str(tmp_path)) as first,
    ):
        await server.twin.linked()
        async with connecting(url(server), *GIVEN, "--cache-dir", str(tmp_path)) as second:
            assert await second.ended() == 1
            assert f"is in use by pid {first.process.pid} on " in second.err.decode()
        assert len(server.twin.enrolls) == 1


async def test_without_a_cache_directory_there_is_a_warning(tmp_path: Path) -> None:
    async with serving() as server, connecting(url(server), *GIVEN) as worker:
        await server.twin.linked()
        await worker.says("--cache-dir", "err")
        text = worker.err.decode()
        assert "different machine" in text
        assert "SWAMP_WORKER_CACHE_DIR" in text
        worker.process.send_signal(signal.SIGTERM)
        assert await worker.ended() == 0


# ── dials that cannot work ──────────────────────────────────────────────────────────────────────────────────


async def test_nobody_there_is_said_and_retried(tmp_path: Path) -> None:
    async with serving() as server:
        port = server.port
    with trio.fail_after(60):
        async with connecting(
            f"ws://127.0.0.1:{port}", *GIVEN, "--cache-dir", str(tmp_path), "--no-reconnect"
        ) as worker:
            assert await worker.ended() == ExitCode.NOT_CONNECTED
            assert f"nobody answers at 127.0.0.1:{port}" in worker.out.decode()
            assert "swamp serve" in worker.err.decode()
        async with connecting(f"ws://127.0.0.1:{port}", *GIVEN, "--cache-dir", str(tmp_path)) as worker:
            await worker.says("(attempt 3)")


async def test_a_server_that_is_not_swamp_is_said(tmp_path: Path) -> None:
    async with (
        serving() as server,
        connecting(f"{url(server)}/elsewhere", *GIVEN, "--cache-dir", str(tmp_path)) as worker,
    ):
        await worker.says("answers, but not as an orchestrator: HTTP 404")
        assert server.requested[0] == "/elsewhere" + CONTROL_PATH
        await worker.says("(attempt 2)")


async def test_a_server_that_hangs_up_is_said(tmp_path: Path) -> None:
    async def hang_up(stream: trio.SocketStream) -> None:
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, hang_up, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        with trio.fail_after(60):
            async with connecting(f"ws://127.0.0.1:{port}", *GIVEN, "--cache-dir", str(tmp_path)) as worker:
                await worker.says("closed the connection before the WebSocket was open")
                await worker.says("wss://", "err")
                await worker.says("(attempt 2)")
        nursery.cancel_scope.cancel()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


async def test_tls_by_authority_and_by_pin(tmp_path: Path, authority: trustme.CA) -> None:
    certificate = authority.issue_cert("127.0.0.1")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    leaf = ssl.PEM_cert_to_DER_cert(certificate.cert_chain_pems[0].bytes().decode())
    pin = sha256(leaf).hexdigest()
    common = (*GIVEN, "--cache-dir", str(tmp_path / "cache"))
    async with serving(context) as server:
        for trust in (("--ca-file", str(tmp_path / "ca.pem")), ("--pin-sha256", pin.upper())):
            times = len(server.twin.enrolls) + 1
            async with connecting(url(server, "wss"), *common, *trust) as worker:
                await server.twin.linked(times)
                await server.twin.finished(await server.twin.start(shell("true")))
                worker.process.send_signal(signal.SIGTERM)
                assert await worker.ended() == 0
        async with connecting(url(server, "wss"), *common) as worker:
            await worker.says("is not trusted")
            await worker.says("--ca-file", "err")
            await worker.says("(attempt 2)")
        async with connecting(url(server, "wss"), *common, "--pin-sha256", "0" * 64) as worker:
            assert await worker.ended() == ExitCode.PIN_MISMATCH
            assert pin in worker.out.decode()


# ── options ─────────────────────────────────────────────────────────────────────────────────────────────────

URL = "ws://localhost:9090"


def options(environ: dict[str, str] | None = None, **given: Any) -> WorkerOptions:
    return read_options({"url": URL, "token": TOKEN, **given}, environ or {})


def test_flags_beat_variables_and_defaults_are_documented() -> None:
    assert options() == WorkerOptions(url=URL, token=TOKEN)
    environ = {
        "SWAMP_ORCHESTRATOR_URL": "wss://from-env:1",
        "SWAMP_WORKER_TOKEN": "env.token",
        "SWAMP_WORKER_LABELS": "a=1, b=2",
        "SWAMP_WORKER_CACHE_DIR": "/cache",
        "SWAMP_WORKER_CONCURRENCY": "3",
        "SWAMP_WORKER_MAX_DISPATCHES": "5",
        "SWAMP_WORKER_IDLE_TIMEOUT": "10m",
        "SWAMP_WORKER_NO_RECONNECT": "1",
    }
    found = read_options({}, environ)
    assert (found.url, found.token, found.cache_dir) == ("wss://from-env:1", "env.token", Path("/cache"))
    assert (found.labels, found.concurrency, found.max_dispatches) == ({"a": "1", "b": "2"}, 3, 5)
    assert (found.idle_timeout_s, found.reconnect) == (600.0, False)
    found = options(environ, labels=("b=3",), concurrency="auto", idle_timeout="45")
    assert found.labels == {"a": "1", "b": "3"}
    assert found.concurrency >= 1
    assert found.idle_timeout_s == 45.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"url": None}, "Missing orchestrator URL — pass it as a positional argument"),
        ({"url": "http://x"}, "Orchestrator URL must start with ws:// or wss:// (got 'http://x')"),
        ({"url": "ws://x:port"}, "the port in"),
        ({"url": "ws://u:p@x"}, "must not hold a user"),
        ({"token": None}, "Missing enrollment token — pass --token or set SWAMP_WORKER_TOKEN"),
        ({"token": "nodot"}, "must have the form <name>.<secret>"),
        ({"token": ".x"}, "must have the form"),
        ({"token_file": "/x"}, "exclude each other"),
        ({"token": None, "token_file": "/nonexistent"}, "cannot read the token from /nonexistent"),
        ({"labels": ("gpu",)}, "Invalid label 'gpu' — expected the form key=value"),
        ({"labels": ("=x",)}, "Invalid label '=x'"),
        ({"concurrency": "0"}, '--concurrency must be a positive integer or "auto"'),
        ({"concurrency": "many"}, "--concurrency must be"),
        ({"max_dispatches": "-1"}, "--max-dispatches must be a positive integer"),
        ({"idle_timeout": "soon"}, "Invalid --idle-timeout"),
        ({"idle_timeout": "0"}, "Invalid --idle-timeout"),
        ({"ca_file": "/x"}, "need a wss:// URL"),
        ({"url": "wss://x", "pin_sha256": "abc"}, "64 hex digits"),
        ({"data_plane_url": "ftp://x"}, "--data-plane-url must start with"),
    ],
)
def test_improper_options_are_usage_errors(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        options(**given)
    assert message in str(caught.value)
    assert "5c40afd8" not in str(caught.value)


def test_the_token_from_a_file_and_from_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert options(token=None, token_file=str(tmp_path / "token")).token == TOKEN
    assert options({"SWAMP_WORKER_TOKEN_FILE": str(tmp_path / "token")}, token=None).token == TOKEN
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{TOKEN}\n"))
    assert options(token="-").token == TOKEN
    assert TOKEN not in repr(options())


def test_an_own_command_line_without_its_token() -> None:
    line = ["python", "swamp", "worker", "connect", URL, "--token", TOKEN, "--label", "a=b"]
    assert without_token(line) == ["python", "swamp", "worker", "connect", URL, "--label", "a=b"]
    assert without_token(["swamp", f"--token={TOKEN}", "x"]) == ["swamp", "x"]
    assert without_token(["swamp", "connect", URL]) is None


def test_help_names_every_flag() -> None:
    text = CliRunner().invoke(connect, ["--help"]).output
    flags = ("--token", "--token-file", "--label", "--data-plane-url", "--cache-dir", "--no-reconnect")
    flags += ("--concurrency", "--max-dispatches", "--idle-timeout", "--ca-file", "--pin-sha256")
    for flag in flags:
        assert flag in text
    assert "--token-fd" not in text


def test_addresses() -> None:
    assert attrs.astuple(Address.parse("ws://h"))[1:5] == ("h", 80, False, CONTROL_PATH)
    assert attrs.astuple(Address.parse("wss://h:9090/"))[1:5] == ("h", 9090, True, CONTROL_PATH)
    assert Address.parse("ws://[::1]:9/base/").resource == "/base" + CONTROL_PATH


# ── identity ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_machine_id_is_made_once(tmp_path: Path) -> None:
    first = open_identity(tmp_path / "cache")
    first.close()
    second = open_identity(tmp_path / "cache")
    assert second.machine_id == first.machine_id
    assert second.instance != first.instance
    assert (tmp_path / "cache" / "machine-id").read_text().strip() == first.machine_id
    second.close()


def test_a_temporary_identity_goes_away(tmp_path: Path) -> None:
    identity = open_identity(None)
    assert identity.is_temporary
    assert identity.directory.exists()
    identity.close()
    assert not identity.directory.exists()


def test_a_damaged_machine_id_is_not_replaced(tmp_path: Path) -> None:
    from swamp_proto.errors import LocalError

    (tmp_path / "machine-id").write_text("not an id\n")
    with pytest.raises(LocalError, match="does not hold a machine id"):
        open_identity(tmp_path)
    assert (tmp_path / "machine-id").read_text() == "not an id\n"
    (tmp_path / "machine-id").write_text("")
    open_identity(tmp_path).close()


def test_a_directory_that_cannot_be_used_says_so(tmp_path: Path) -> None:
    from swamp_proto.errors import LocalError

    (tmp_path / "file").write_text("x")
    with pytest.raises(LocalError, match="cannot be used"):
        open_identity(tmp_path / "file")
