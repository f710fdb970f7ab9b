"""A client's session with a running orchestrator, over its unix socket or TCP.

Rules
- A call is `POST /client/v1/<name>` with a JSON object; an answer is JSON, a stream is NDJSON, one object a
  line (empty lines only keep the link alive). Errors `{"error", "code", "hint"?}` come back as the
  `SwampError` with that code.
- Nobody there is `NotConnected`, with the command that helps. A request that was sent is never sent again: a
  link that fails midway is `Broken`, because nobody here knows whether it was carried out.
- Safe from several threads: every request has its own connection while it lasts; finished ones are kept for
  the next.
- Only the standard library: this is on the start-up path of every command.

Knows nothing of what the calls mean; that is `swamp_orch.api.interface`. Who does the work is
`swamp_orch.api.choice`.
"""

import json
import select
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from swamp_proto import errors as tree
from swamp_proto.errors import Broken, NotConnected, RefusalCode, Refused, SwampError, UsageError

if TYPE_CHECKING:
    import ssl


PATH: Final = "/client/v1/"
CONNECT_S: Final = 10.0  # one attempt to reach an orchestrator
ANSWER_S: Final = 300.0  # one answer; calls that last longer are streams
SILENCE_S: Final = (
    60.0  # a stream carries at least an empty line every 15 s; this long without is a dead link
)
IDLE_CONNECTIONS_MAX: Final = 4

ERRORS: Final[Mapping[str, type[SwampError]]] = {
    kind.code: kind
    for kind in (
        tree.UsageError,
        tree.LocalError,
        tree.InvalidDefinition,
        tree.NotFound,
        tree.AlreadyExists,
        tree.Conflict,
        tree.Unsupported,
        tree.OperationFailed,
        tree.RemoteError,
        tree.UnlawfulMessage,
        tree.LimitExceeded,
        tree.NotConnected,
        tree.Interrupted,
        tree.Broken,
    )
}
"""Code of an error document -> the class it came from (refusals and malformed messages aside)."""


def error_from(document: Any, status: int) -> SwampError:
    """The error an orchestrator answered, as the class that has its exit code."""
    if not isinstance(document, dict) or not isinstance(document.get("error"), str):
        return Broken(f"the orchestrator answered HTTP {status} without an error document")
    code, message, hint = str(document.get("code", "error")), document["error"], document.get("hint")
    if code in ERRORS:
        return ERRORS[code](message, hint=hint, code=code)
    if code in RefusalCode._value2member_map_:
        return Refused(RefusalCode(code), message, hint=hint)
    return SwampError(message, hint=hint, code=code)


class _UnixConnection(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=CONNECT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(CONNECT_S)
            self.sock.connect(str(self._path))
        except BaseException:
            self.sock.close()
            raise


class HttpSession:
    """A `Session` over HTTP/1.1. `dial` makes an unopened connection; `where` is for people."""

    def __init__(
        self,
        dial: Callable[[], HTTPConnection],
        where: str,
        *,
        credential: str | None = None,
        hint: str = "is it running? start it with: swamp serve",
    ) -> None:
        self.where = where
        self._dial = dial
        self._hint = hint
        self._headers = {
            "Content-Type": "application/json",
            "Accept": "application/json, application/x-ndjson",
        }
        if credential is not None:
            self._headers["Authorization"] = f"Bearer {credential}"
        self._idle: list[HTTPConnection] = []
        self._lock = threading.Lock()
        self._closed = False

    @classmethod
    def unix(cls, path: Path) -> "HttpSession":
        """Over the unix socket of a local orchestrator; needs no credential."""
        return cls(lambda: _UnixConnection(path), str(path))

    @classmethod
    def tcp(cls, url: str, *, credential: str | None = None, ca_cert: str | None = None) -> "HttpSession":
        """To an http, https, ws or wss URL. `ca_cert` is a PEM file trusted instead of the system's."""
        scheme, host, port = server_address(url)
        if scheme == "https":
            context = _tls(ca_cert)

            def dial() -> HTTPConnection:
                from http.client import HTTPSConnection

                return HTTPSConnection(host, port, timeout=CONNECT_S, context=context)
        else:

            def dial() -> HTTPConnection:
                return HTTPConnection(host, port, timeout=CONNECT_S)

        return cls(
            dial,
            url,
            credential=credential,
            hint="check the address and that `swamp serve` runs there, or unset --server/SWAMP_SERVE_URL",
        )

    def call(self, name: str, /, **parameters: Any) -> Any:
        """One JSON answer. Raises the orchestrator's error, `NotConnected`, `Broken` for a failed link."""
        connection, response = self._request(name, parameters, ANSWER_S)
        try:
            body = response.read()
        except (OSError, HTTPException) as problem:
            connection.close()
            raise self._lost(problem) from problem
        self._release(connection, response)
        document = self._parsed(body)
        if response.status != 200:
            raise error_from(document, response.status)
        return document

    def stream(self, name: str, /, **parameters: Any) -> Iterator[dict[str, Any]]:
        """JSON objects as they come, until the stream ends. A link that breaks is `Broken`."""
        connection, response = self._request(name, parameters, SILENCE_S)
        done = False
        try:
            if response.status != 200:
                body = response.read()
                done = True
                raise error_from(self._parsed(body), response.status)
            while line := response.readline():
                if line.strip():
                    event = self._parsed(line)
                    if not isinstance(event, dict):
                        raise Broken(f"{self.where} sent something that is not an event")
                    if "error" in event and "code" in event and "kind" not in event:
                        raise error_from(event, response.status)
                    yield event
            done = True
        except (OSError, HTTPException) as problem:
            raise self._lost(problem) from problem
        finally:
            if done:
                self._release(connection, response)
            else:
                connection.close()

    def probe(self) -> None:
        """Connect, and keep the connection for the first call. Raises `NotConnected`."""
        connection = self._connected()
        with self._lock:
            self._idle.append(connection)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    # ── one request ───────────────────────────────────────────────────────────────────────────────────────

    def _request(
        self, name: str, parameters: Mapping[str, Any], timeout_s: float
    ) -> tuple[HTTPConnection, HTTPResponse]:
        body = json.dumps(parameters).encode()
        connection = self._reusable() or self._connected()
        try:
            if connection.sock is not None:
                connection.sock.settimeout(timeout_s)
            connection.request("POST", PATH + name, body, self._headers)
            return connection, connection.getresponse()
        except (OSError, HTTPException) as problem:
            connection.close()
            raise self._lost(problem) from problem

    def _reusable(self) -> HTTPConnection | None:
        """A kept connection that the other side has not closed: no request is sent into a dead one."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if connection.sock is not None and not select.select([connection.sock], [], [], 0)[0]:
                return connection
            connection.close()

    def _connected(self) -> HTTPConnection:
        connection = self._dial()
        try:
            connection.connect()
        except (OSError, HTTPException) as problem:
            connection.close()
            raise self._unreachable(problem) from problem
        return connection

    def _release(self, connection: HTTPConnection, response: HTTPResponse) -> None:
        with self._lock:
            if not self._closed and not response.will_close and len(self._idle) < IDLE_CONNECTIONS_MAX:
                self._idle.append(connection)
                return
        connection.close()

    def _parsed(self, body: bytes) -> Any:
        try:
            return json.loads(body)
        except ValueError as problem:
            raise Broken(
                f"{self.where} answered something that is not JSON; is it a swamp orchestrator?",
                hint="check --server/SWAMP_SERVE_URL",
            ) from problem

    def _unreachable(self, problem: Exception) -> NotConnected:
        return NotConnected(
            f"cannot reach the orchestrator at {self.where}: {reason(problem)}", hint=self._hint
        )

    def _lost(self, problem: Exception) -> SwampError:
        if isinstance(problem, TimeoutError):
            return Broken(
                f"the orchestrator at {self.where} did not answer in time",
                hint="see its log; the work may go on",
            )
        return Broken(f"lost the connection to the orchestrator at {self.where}: {reason(problem)}")


def reason(problem: Exception) -> str:
    """What an exception of the network says, in words: `connection refused`, `certificate has expired`."""
    verified = getattr(problem, "verify_message", "")
    if verified:
        return f"TLS: {verified}"
    if isinstance(problem, TimeoutError):
        return "no answer in time"
    if isinstance(problem, socket.gaierror):
        return "the host name is not known"
    text = getattr(problem, "strerror", None) or str(problem) or type(problem).__name__
    return str(text)[:1].lower() + str(text)[1:]


def server_address(url: str) -> tuple[str, str, int]:
    """`ws://h:p` -> `("http", "h", p)`. Raises `UsageError`."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as problem:
        raise UsageError(f"'{url}' is not a URL: {problem}") from problem
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    if scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(
            f"the server URL must start with ws://, wss://, http:// or https:// (got '{url}')",
            hint="for example: --server ws://localhost:9090",
        )
    if parts.username is not None or parts.password is not None:
        raise UsageError("the server URL must not contain a credential", hint="set SWAMP_SERVER_TOKEN")
    return scheme, parts.hostname, port or (443 if scheme == "https" else 80)


def _tls(ca_cert: str | None) -> "ssl.SSLContext":
    import ssl

    try:
        return ssl.create_default_context(cafile=ca_cert)
    except (OSError, ssl.SSLError) as problem:
        raise UsageError(f"cannot use {ca_cert} as CA certificates: {reason(problem)}") from problem
