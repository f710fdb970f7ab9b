"""Who may ask, and how: credential, Host, Origin, the unix socket, TLS; one orchestrator per repository and port."""

import base64
import http.client
import json
import os
import socket
import ssl
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import trustme
from e2e_site import DEADLINE_S, Site

HEADERS = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def served(site: Site) -> Iterator[Site]:
    site.model("hello", "echo hello")
    site.serve()
    yield site


def credential(site: Site) -> str:
    return (site.root / ".swamp" / "client-credential").read_text().strip()


def ask(site: Site, call: str = "worker.list", **headers: str) -> tuple[int, dict[str, object]]:
    """A client call over TCP with exactly these headers (`Host` included)."""
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=DEADLINE_S)
    try:
        connection.putrequest(
            "POST", f"/client/v1/{call}", skip_host="Host" in headers, skip_accept_encoding=True
        )
        for name, value in {**HEADERS, "Content-Length": "2", **headers}.items():
            connection.putheader(name, value)
        connection.endheaders(b"{}")
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def upgrade(site: Site, path: str, headers: Mapping[str, str]) -> int:
    """The status that answers a WebSocket handshake; 101 opens the link."""
    with socket.create_connection(("127.0.0.1", site.port), timeout=DEADLINE_S) as link:
        given = {
            "Host": f"127.0.0.1:{site.port}",
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
            "Sec-WebSocket-Version": "13",
            **headers,
        }
        told = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        link.sendall(f"GET {path} HTTP/1.1\r\n{told}\r\n".encode())
        with link.makefile("rb") as answer:
            return int(answer.readline().split()[1])


def test_a_client_over_tcp_needs_the_credential(served: Site) -> None:
    bearer = {"Authorization": f"Bearer {credential(served)}"}
    assert ask(served, **bearer)[0] == 200
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {credential(served)}"},
        {"Authorization": f"Bearer {credential(served)[:-1]}"},
    ):
        status, document = ask(served, **headers)
        assert (
            status == 401
            and document["code"] == "unauthorized"
            and ".swamp/client-credential" in str(document["hint"])
        )
    for word in ("workflow.run", "data.query", "no.such.call"):
        assert ask(served, word)[0] == 401  # nothing is said about what exists


def test_the_credential_is_found_in_the_repository_and_nowhere_else(served: Site) -> None:
    assert served.ok("worker", "list", "--server", served.url).out.startswith("No workers found.")
    refused = served.swamp("worker", "list", "--server", served.url, cwd=served.elsewhere)
    assert refused.code == 1 and "credential" in refused.err and refused.out == ""
    refused = served.swamp("worker", "list", "--json", "--server", served.url, cwd=served.elsewhere)
    assert json.loads(refused.err)["code"] == "unauthorized"
    wrong = served.swamp("worker", "list", "--server", served.url, "--server-token", "wrong")
    assert wrong.code == 1 and "credential" in wrong.err
    right = ("--server", served.url, "--server-token", credential(served))
    assert served.ok("worker", "list", *right, cwd=served.elsewhere).code == 0


def test_a_web_page_gets_nothing(served: Site) -> None:
    """Its Origin is refused before the credential is looked at, on the client API and on the control link."""
    bearer = {"Authorization": f"Bearer {credential(served)}"}
    for origin in ("http://evil.example", f"http://localhost:{served.port}", "null"):
        status, document = ask(served, Origin=origin, **bearer)
        assert (status, document["code"]) == (403, "forbidden")
        assert upgrade(served, "/control/v1", {"Origin": origin}) == 403, origin
        assert upgrade(served, "/", {"Origin": origin}) == 403, origin
    assert upgrade(served, "/control/v1", {}) == 101
    assert upgrade(served, "/elsewhere", {}) == 403


def test_a_rebound_name_gets_nothing(served: Site) -> None:
    bearer = {"Authorization": f"Bearer {credential(served)}"}
    for host in (
        "evil.example",
        f"evil.example:{served.port}",
        f"127.0.0.1.evil.example:{served.port}",
        "10.0.0.1",
    ):
        status, document = ask(served, Host=host, **bearer)
        assert (status, document["code"]) == (403, "forbidden"), host
        assert upgrade(served, "/control/v1", {"Host": host}) == 403, host
    for host in (f"localhost:{served.port}", f"127.0.0.1:{served.port}", f"[::1]:{served.port}", "LOCALHOST"):
        assert ask(served, Host=host, **bearer)[0] == 200, host


def test_what_is_private_is_private(served: Site) -> None:
    state = served.root / ".swamp"
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    found = os.stat(state / "serve.sock")
    assert stat.S_ISSOCK(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o600
    for name in ("client-credential", "serve.json", "serve.lock"):
        assert stat.S_IMODE((state / name).stat().st_mode) == 0o600, name
    open_to_others = [
        path for path in (state / "secrets").rglob("*") if stat.S_IMODE(path.stat().st_mode) & 0o077
    ]
    assert open_to_others == []


def test_a_repository_too_deep_for_a_socket(own_site: Site) -> None:
    """The socket goes to a private folder, and commands find it."""
    deep = own_site.folder.joinpath(*["a-folder-with-a-long-name"] * 5)
    deep.mkdir(parents=True)
    own_site.ok("repo", "init", str(deep))
    serve = own_site.start("serve", "--port", "0", cwd=deep, name="deep serve")
    serve.wait_for("listening on")
    about = json.loads((deep / ".swamp" / "serve.json").read_text())
    path = Path(about["socket"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    own_site.ok("model", "create", "command/shell", "where", "--arg", "execute.run=echo $PPID", cwd=deep)
    assert str(serve.pid) in own_site.ok("model", "method", "run", "where", "execute", cwd=deep).out
    assert serve.interrupt().code == 0 and not path.exists()


def test_a_second_serve_is_refused_and_names_the_first(served: Site) -> None:
    assert served.orchestrator is not None
    second = served.swamp("serve", "--port", "0")
    assert second.code == 1 and second.out == ""
    assert (
        f"an orchestrator is already running for {served.root} (pid {served.orchestrator.pid}, " in second.err
    )
    assert f"ws://127.0.0.1:{served.port}" in second.err and "Hint: stop it first" in second.err
    assert json.loads(served.swamp("serve", "--port", "0", "--json").err)["code"] == "already_running"
    assert served.ok("worker", "list").code == 0  # the first is as it was
    assert (served.root / ".swamp" / "serve.sock").exists()


def test_a_port_in_use(own_site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = own_site.swamp("serve", "--port", str(port))
        assert refused.code == 1 and refused.out == ""
        assert refused.err == (
            f"Error: port {port} on 127.0.0.1 is in use by another program\n"
            f"Hint: stop it, or choose another port: swamp serve --port {port + 1}\n"
        )
    left = sorted(path.name for path in (own_site.root / ".swamp").iterdir())
    assert "serve.sock" not in left and "serve.json" not in left and "client-credential" not in left
    own_site.serve(port=port)
    own_site.ok("worker", "list")


def test_off_the_loopback_without_tls_it_warns(own_site: Site) -> None:
    serve = own_site.serve("--host", "0.0.0.0")
    serve.wait_for("LISTENING WITHOUT TLS")
    assert ask(own_site)[0] == 401
    own_site.ok("worker", "list", "--server", own_site.url)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def test_tls_from_end_to_end(own_site: Site, authority: trustme.CA) -> None:
    """A worker and a client over wss with the authority's file; without it both refuse the certificate."""
    issued = authority.issue_cert("localhost")
    paths = {name: own_site.folder / f"{name}.pem" for name in ("authority", "cert", "key")}
    authority.cert_pem.write_to_path(str(paths["authority"]))
    issued.private_key_pem.write_to_path(str(paths["key"]))
    for blob in issued.cert_chain_pems:
        blob.write_to_path(str(paths["cert"]), append=True)
    serve = own_site.serve("--tls-cert", str(paths["cert"]), "--tls-key", str(paths["key"]))
    url = f"wss://localhost:{own_site.port}"
    assert f"listening on wss://127.0.0.1:{own_site.port}" in serve.said
    distrustful = own_site.worker("distrustful", "--no-reconnect", url=url, enrolled=False).end()
    assert distrustful.code != 0 and "certificate" in distrustful.out + distrustful.err
    own_site.worker("secure", "--ca-file", str(paths["authority"]), url=url)
    own_site.shell("over-tls", "echo encrypted", target="secure")
    flags = ("--server", url, "--ca-cert", str(paths["authority"]))
    assert "│ encrypted\n" in own_site.ok("workflow", "run", "over-tls", *flags).out
    assert (
        "│ encrypted\n" in own_site.ok("workflow", "run", "over-tls").out
    )  # the unix socket needs none of it
    refused = own_site.swamp("worker", "list", "--server", url)
    assert refused.code == 3 and "certificate" in refused.err
    with socket.create_connection(("127.0.0.1", own_site.port), timeout=DEADLINE_S) as link:
        context = ssl.create_default_context(cafile=str(paths["authority"]))
        with context.wrap_socket(link, server_hostname="localhost") as secure:
            assert secure.version() in ("TLSv1.2", "TLSv1.3")
    plain = own_site.swamp("worker", "list", "--server", f"ws://localhost:{own_site.port}")
    assert plain.code in (1, 3) and plain.err.startswith("Error: ")
    assert own_site.workers["secure"].interrupt().code == 0
    assert serve.interrupt().code == 0


def test_tls_files_that_are_not(own_site: Site, authority: trustme.CA) -> None:
    for flags, told in (
        (("--tls-cert", "here.pem"), "--tls-key"),
        (("--tls-cert", "absent.pem", "--tls-key", "absent.pem"), "absent.pem"),
    ):
        refused = own_site.swamp("serve", "--port", "0", *flags)
        assert refused.code in (1, 2) and told in refused.err and refused.out == "", refused
    (own_site.root / "bad.pem").write_text("not a certificate\n")
    refused = own_site.swamp("serve", "--port", "0", "--tls-cert", "bad.pem", "--tls-key", "bad.pem")
    assert refused.code in (1, 2) and "bad.pem" in refused.err and refused.out == "", refused
