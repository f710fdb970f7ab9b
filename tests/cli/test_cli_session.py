"""HttpSession against a real HTTP server, on a unix socket and on TCP, and who does the work."""

import fcntl
import http.server
import json
import os
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from swamp_orch.api import choice, client
from swamp_orch.api.choice import open_session
from swamp_orch.api.client import HttpSession, error_from, server_address
from swamp_orch.api.interface import CALLS
from swamp_orch.definitions.repository import Repository, find, init
from swamp_proto import errors
from swamp_proto.errors import (
    Broken,
    ExitCode,
    NotConnected,
    NotFound,
    RefusalCode,
    Refused,
    SwampError,
    UsageError,
)


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers by path; keeps what it saw."""

    protocol_version = "HTTP/1.1"
    seen: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = self.path.removeprefix("/client/v1/")
        self.seen.append(
            {"name": name, "body": body, "headers": dict(self.headers), "peer": id(self.connection)}
        )
        getattr(self, f"_{name.replace('.', '_')}", self._echo)(body)

    def _send(self, status: int, document: Any) -> None:
        raw = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def _echo(self, body: Any) -> None:
        self._send(200, body)

    def _chunk(self, raw: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(raw), raw))
        self.wfile.flush()

    def _begin(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _run_attach(self, body: dict[str, Any]) -> None:
        self._begin()
        self._chunk(b'{"seq": 1, "kind": "run_started"}\n\n{"seq": 2, "ki')
        self._chunk(b'nd": "run_ended", "line": "' + "✓".encode() + b'"}\n')
        if body.get("after") == 7:
            self._chunk(b'{"seq": 3')
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self._chunk(b"")

    def _vault_get(self, body: dict[str, Any]) -> None:
        self._send(404, {"error": "Vault 'x' not found.", "code": "not_found", "hint": "swamp vault list"})

    def _run_get(self, body: dict[str, Any]) -> None:
        self._send(502, b"<html>proxy</html>")

    def _run_list(self, body: dict[str, Any]) -> None:
        self._send(200, b"<html>not swamp</html>")

    def _token_list(self, body: dict[str, Any]) -> None:
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def _names(self, body: dict[str, Any]) -> None:
        self._echo(body)
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        return


class _Quiet(socketserver.ThreadingMixIn):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients here leave early and refuse handshakes on purpose."""


class _Tcp(_Quiet, http.server.HTTPServer):
    pass


class _Unix(_Quiet, socketserver.UnixStreamServer):
    def get_request(self) -> tuple[socket.socket, Any]:
        return self.socket.accept()[0], ("local", 0)


@contextmanager
def _serving(server: Any) -> Iterator[Any]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(60)


def _handler() -> type[_Handler]:
    return type("Handler", (_Handler,), {"seen": []})


@pytest.fixture
def unix(tmp_path: Path) -> Iterator[Any]:
    with _serving(_Unix(str(tmp_path / "s.sock"), _handler())) as server:
        yield server


@pytest.fixture
def tcp() -> Iterator[Any]:
    with _serving(_Tcp(("127.0.0.1", 0), _handler())) as server:
        yield server


def _url(server: Any) -> str:
    return f"ws://127.0.0.1:{server.server_address[1]}"


@pytest.fixture(params=["unix", "tcp"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[HttpSession, list[dict[str, Any]]]]:
    """A session and what its server saw, on both transports."""
    server = request.getfixturevalue(request.param)
    if request.param == "unix":
        session = HttpSession.unix(Path(server.server_address))
    else:
        session = HttpSession.tcp(_url(server), credential="secret")
    yield session, server.RequestHandlerClass.seen
    session.close()


Pair = tuple[HttpSession, list[dict[str, Any]]]


def test_a_call_is_a_post_of_its_parameters(pair: Pair) -> None:
    session, seen = pair
    assert session.call("worker.list", all=True, text="✓") == {"all": True, "text": "✓"}
    assert seen[0]["name"] == "worker.list" and seen[0]["headers"]["Content-Type"] == "application/json"


def test_connections_are_used_again_and_replaced_when_closed(pair: Pair) -> None:
    session, seen = pair
    for _ in range(3):
        session.call("worker.list")
    assert len({request["peer"] for request in seen}) == 1
    session.call("names", kind="model")  # after this the server closes
    deadline = time.monotonic() + 60
    while session._idle and time.monotonic() < deadline:
        idle = session._reusable()
        if idle is None:
            break
        session._idle.append(idle)
    assert session.call("worker.list") == {}


def test_calls_from_several_threads_do_not_mix(pair: Pair) -> None:
    session, _ = pair
    wrong: list[Any] = []

    def ask(number: int) -> None:
        for turn in range(20):
            if session.call("worker.list", n=[number, turn]) != {"n": [number, turn]}:
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


def test_a_stream_is_objects_one_a_line(pair: Pair) -> None:
    session, seen = pair
    events = list(session.stream("run.attach", runId="r", after=0))
    assert events == [
        {"seq": 1, "kind": "run_started"},
        {"seq": 2, "kind": "run_ended", "line": "✓"},
    ]
    session.call("worker.list")
    assert len({request["peer"] for request in seen}) == 1


def test_a_stream_that_breaks_is_broken_after_what_came(pair: Pair) -> None:
    session, _ = pair
    got = []
    with pytest.raises(Broken):
        for event in session.stream("run.attach", runId="r", after=7):
            got.append(event["seq"])
    assert got == [1, 2]


def test_a_stream_left_early_leaves_the_session_usable(pair: Pair) -> None:
    session, _ = pair
    stream = session.stream("run.attach", runId="r")
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert session.call("worker.list", all=False) == {"all": False}


def test_errors_come_back_as_what_they_are(pair: Pair) -> None:
    session, _ = pair
    with pytest.raises(NotFound) as caught:
        session.call("vault.get", name="x")
    assert caught.value.document() == {
        "error": "Vault 'x' not found.",
        "code": "not_found",
        "hint": "swamp vault list",
    }
    assert session.call("worker.list") == {}


@pytest.mark.parametrize("name", ["run.get", "run.list"])
def test_what_is_not_json_is_not_swamp(pair: Pair, name: str) -> None:
    with pytest.raises(Broken, match="not JSON"):
        pair[0].call(name)


def test_a_connection_cut_before_the_answer_is_broken_not_repeated(pair: Pair) -> None:
    session, seen = pair
    with pytest.raises(Broken, match="lost the connection"):
        session.call("token.list")
    assert len(seen) == 1


def test_only_tcp_carries_the_credential(unix: Any, tcp: Any) -> None:
    with closing(HttpSession.unix(Path(unix.server_address))) as session:
        session.call("worker.list")
    assert "Authorization" not in unix.RequestHandlerClass.seen[0]["headers"]
    with closing(HttpSession.tcp(_url(tcp), credential="deep")) as session:
        session.call("worker.list")
    headers = tcp.RequestHandlerClass.seen[0]["headers"]
    assert headers["Authorization"] == "Bearer deep" and "Origin" not in headers


def test_nobody_there(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(NotConnected, match="connection refused") as caught:
        HttpSession.tcp(f"ws://127.0.0.1:{port}").call("worker.list")
    assert caught.value.exit_code is ExitCode.NOT_CONNECTED and "swamp serve" in str(caught.value.hint)
    with pytest.raises(NotConnected, match="no such file"):
        HttpSession.unix(tmp_path / "none.sock").call("worker.list")


def test_a_server_that_does_not_answer_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ANSWER_S", 0.05)
    monkeypatch.setattr(client, "SILENCE_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        session = HttpSession.tcp(f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(Broken, match="did not answer in time"):
            session.call("worker.list")
        with pytest.raises(Broken, match="did not answer in time"):
            next(session.stream("run.attach", runId="r"))
        session.close()


def test_tls_is_verified(tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    server = _Tcp(("127.0.0.1", 0), _handler())
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with _serving(server):
        url = f"wss://localhost:{server.server_address[1]}"
        session = HttpSession.tcp(url, ca_cert=str(tmp_path / "ca.pem"))
        assert session.call("worker.list", all=True) == {"all": True}
        session.close()
        with pytest.raises(NotConnected, match="TLS: unable to get local issuer certificate"):
            HttpSession.tcp(url).call("worker.list")
    with pytest.raises(UsageError, match="CA certificates"):
        HttpSession.tcp("wss://h:1", ca_cert=str(tmp_path / "none.pem"))


@pytest.mark.parametrize(
    "url", ["localhost:9090", "ftp://h", "ws://", "ws://h:x", "ws://h:99999", "http://u:p@h"]
)
def test_wrong_urls(url: str) -> None:
    with pytest.raises(UsageError):
        server_address(url)


def test_urls() -> None:
    assert server_address("ws://h:9090/x") == ("http", "h", 9090)
    assert server_address("wss://h") == ("https", "h", 443)
    assert server_address("http://[::1]:8") == ("http", "::1", 8)


def test_every_error_code_keeps_its_class_and_exit_code() -> None:
    for name in (
        "UsageError",
        "NotFound",
        "Conflict",
        "InvalidDefinition",
        "Unsupported",
        "Interrupted",
        "LimitExceeded",
    ):
        kind = getattr(errors, name)
        found = error_from(kind("m", hint="h").document(), 400)
        assert type(found) is kind and found.exit_code is kind.exit_code and found.hint == "h"
    refused = error_from({"error": "m", "code": "revoked"}, 403)
    assert isinstance(refused, Refused) and refused.refusal is RefusalCode.REVOKED
    own = error_from({"error": "m", "code": "port_in_use"}, 409)
    assert type(own) is SwampError and own.error_code == "port_in_use"
    assert isinstance(error_from(["?"], 500), Broken)


# ── who does the work ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    init(tmp_path / "r")
    return find(tmp_path / "r")


def _hold(repository: Repository) -> int:
    handle = os.open(repository.serve_lock, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def test_without_an_orchestrator_it_is_this_process(repository: Repository) -> None:
    session = open_session(repository)
    assert session.where == "in process"
    session.close()
    os.close(_hold(repository))  # a lock that nobody holds any more
    session = open_session(repository)
    assert session.where == "in process"
    session.close()


def test_a_held_lock_is_that_orchestrator(repository: Repository) -> None:
    lock = _hold(repository)
    server = _Unix(str(repository.socket_path()), _handler())
    with _serving(server):
        session = open_session(repository)
        assert session.where == str(repository.socket_path())
        assert session.call("worker.list") == {}
        session.close()
    os.close(lock)


def test_a_held_lock_without_an_answer_is_an_error_never_a_fallback(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "STARTING_S", 0.1)
    repository.serve_file.write_text(json.dumps({"pid": 4242}))
    lock = _hold(repository)
    with pytest.raises(NotConnected, match=r"swamp serve \(pid 4242\) holds this repository"):
        open_session(repository)
    os.close(lock)


def test_an_orchestrator_that_is_starting_is_waited_for(repository: Repository) -> None:
    lock = _hold(repository)
    servers: list[Any] = []

    def later() -> None:
        server = _Unix(str(repository.socket_path()), _handler())
        servers.append(server)
        server.serve_forever(poll_interval=0.01)

    timer = threading.Timer(0.2, later)
    timer.daemon = True
    timer.start()
    session = open_session(repository)
    assert session.call("worker.list") == {}
    session.close()
    servers[0].shutdown()
    servers[0].server_close()
    os.close(lock)


def test_the_own_credential_goes_to_the_own_orchestrator_only(repository: Repository, tcp: Any) -> None:
    repository.credential_file.write_text("own\n")
    repository.serve_file.write_text(json.dumps({"pid": 1, "url": _url(tcp)}))

    def sent(where: Repository | None, url: str, **extra: Any) -> str | None:
        with closing(open_session(where, url, **extra)) as session:
            session.call("worker.list")
        found: str | None = tcp.RequestHandlerClass.seen[-1]["headers"].get("Authorization")
        return found

    assert sent(repository, _url(tcp).replace("127.0.0.1", "localhost")) == "Bearer own"
    assert sent(repository, _url(tcp), credential="given") == "Bearer given"
    repository.serve_file.write_text(json.dumps({"pid": 1, "url": "ws://127.0.0.1:1"}))
    assert sent(repository, _url(tcp)) is None
    assert sent(None, _url(tcp)) is None
    with pytest.raises(UsageError):
        open_session(None)


def test_the_catalogue_is_what_the_client_speaks() -> None:
    assert CALLS["run.attach"].streams and not CALLS["run.cancel"].streams
