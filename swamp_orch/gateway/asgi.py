"""The one application both listeners serve: routing, Host and Origin, and nothing about workers or runs.

`/control/v1` is the workers' WebSocket, `/data/v1/` the data plane of running steps, `/client/v1/<call>` the client API, `/healthz` and
`/readyz` say whether the process lives and accepts work. Host and Origin are checked everywhere: a web page must not be able to run a
workflow through `ws://localhost` (SEMANTICS §10). The unix socket is trusted by its file mode; every TCP client needs a credential, and
the data plane that of a dispatch wherever it is asked.
"""

import hmac
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from ipaddress import ip_address
from typing import Any, Final, Protocol

import trio

from swamp_orch.api.interface import CALLS
from swamp_proto import dataplane
from swamp_proto.errors import (
    AlreadyExists,
    Broken,
    Conflict,
    LocalError,
    MalformedMessage,
    NotFound,
    SwampError,
    UsageError,
)
from swamp_proto.limits import CLIENT_BODY_MAX
from swamp_proto.version import SWAMP_VERSION

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

CONTROL_PATH: Final = "/control/v1"
CLIENT_PREFIX: Final = "/client/v1/"
DATA_PREFIX: Final = dataplane.PREFIX + "/"
STREAM_KEEPALIVE_S: Final = 15.0  # an empty line, so that proxies and clients see a live stream


class Calls(Protocol):
    """What serves client calls (`swamp_orch.api.application`)."""

    async def call(self, name: str, parameters: Mapping[str, Any]) -> Any: ...

    async def follow(self, name: str, parameters: Mapping[str, Any]) -> "Follower": ...


class Follower(Protocol):
    """One stream: `more` answers NDJSON as soon as there is any, `b""` at its end."""

    async def more(self) -> bytes: ...


class Control(Protocol):
    """What serves a worker's socket (`swamp_orch.gateway.control`)."""

    async def serve(self, pipe: "AsgiPipe", address: str) -> None: ...


class Data(Protocol):
    """What serves the data plane (`swamp_orch.gateway.dataplane`)."""

    async def serve(self, scope: Scope, headers: Mapping[str, str], receive: Receive, send: Send) -> None: ...


class AsgiPipe:
    """A `Pipe` over an accepted ASGI WebSocket."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send

    async def send(self, data: bytes) -> None:
        await self._say({"type": "websocket.send", "bytes": data, "text": None})

    async def _say(self, message: dict[str, Any]) -> None:
        try:
            await self._send(message)
        except (trio.BusyResourceError, trio.BrokenResourceError, trio.ClosedResourceError):
            # Busy: the server library is answering the peer's close at this instant.
            raise Broken("the worker's socket closed") from None

    async def receive(self) -> bytes:
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            raise Broken("the worker's socket closed")
        data: bytes | None = message.get("bytes")
        if data is None:
            raise MalformedMessage("$", "a text message; frames are binary")
        return data

    async def aclose(self) -> None:
        await self._say({"type": "websocket.close", "code": 1000, "reason": ""})


class _ClientGone(Exception):
    """The client closed its connection; what it started goes on."""


class Gateway:
    """Builds the application for each listener."""

    def __init__(
        self,
        calls: Calls,
        control: Control,
        *,
        credential: str,
        loopback_only: bool,
        ready: Callable[[], bool],
        data: Data | None = None,
    ) -> None:
        self._data = data
        self._calls = calls
        self._control = control
        self._credential = credential.encode()
        self._loopback_only = loopback_only
        self._ready = ready

    def app(self, *, trusted: bool) -> App:
        """`trusted`: the unix socket, which only its owner can open."""

        async def handle(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                await _lifespan(receive, send)
            elif scope["type"] == "websocket":
                await self._websocket(scope, receive, send, trusted)
            else:
                await self._http(scope, receive, send, trusted)

        return handle

    async def _websocket(self, scope: Scope, receive: Receive, send: Send, trusted: bool) -> None:
        await receive()  # websocket.connect
        problem = None if trusted else self._improper(_headers(scope))
        if problem or scope["path"].rstrip("/") not in (CONTROL_PATH, ""):
            await send({"type": "websocket.close", "code": 1008, "reason": problem or "no such path"})
            return
        await send({"type": "websocket.accept"})
        client = scope.get("client") or ("local", 0)
        await self._control.serve(AsgiPipe(receive, send), str(client[0]))

    async def _http(self, scope: Scope, receive: Receive, send: Send, trusted: bool) -> None:
        headers = _headers(scope)
        path: str = scope["path"]
        try:
            if not trusted and (problem := self._improper(headers)):
                await _answer(send, 403, {"error": problem, "code": "forbidden"})
            elif path == "/healthz":
                await _answer(send, 200, {"status": "ok", "version": SWAMP_VERSION})
            elif path == "/readyz":
                ready = self._ready()
                await _answer(send, 200 if ready else 503, {"status": "ready" if ready else "not ready"})
            elif self._data is not None and path.startswith(DATA_PREFIX):
                await self._data.serve(scope, headers, receive, send)
            elif not path.startswith(CLIENT_PREFIX):
                await _answer(send, 404, {"error": f"nothing is served at {path}", "code": "not_found"})
            elif scope["method"] != "POST":
                await _answer(send, 405, {"error": "client calls are POST requests", "code": "usage"})
            elif not trusted and not self._authorised(headers):
                hint = "pass the credential that serve left in .swamp/client-credential as a bearer token"
                await _answer(
                    send, 401, {"error": "a credential is needed", "code": "unauthorized", "hint": hint}
                )
            else:
                await self._client(path.removeprefix(CLIENT_PREFIX), receive, send)
        except _ClientGone:
            return

    async def _client(self, name: str, receive: Receive, send: Send) -> None:
        try:
            parameters = await _parameters(receive)
            call = CALLS.get(name)
            if call is not None and call.streams:
                await self._stream(name, parameters, receive, send)
                return
            answer = await self._calls.call(name, parameters)
        except SwampError as error:
            await _answer(send, _status(error), error.document())
            return
        await _answer(send, 200, answer)

    async def _stream(self, name: str, parameters: Mapping[str, Any], receive: Receive, send: Send) -> None:
        follower = await self._calls.follow(name, parameters)
        head = [(b"content-type", b"application/x-ndjson"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            while True:
                lines: bytes | None = None
                with trio.move_on_after(STREAM_KEEPALIVE_S):
                    lines = await follower.more()
                if lines == b"":
                    break
                await send({"type": "http.response.body", "body": lines or b"\n", "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            nursery.cancel_scope.cancel()

    def _authorised(self, headers: Mapping[str, str]) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._credential)

    def _improper(self, headers: Mapping[str, str]) -> str | None:
        """Why a browser-borne or rebound request is refused, or None. swamp's own clients send no Origin."""
        if "origin" in headers:
            return "requests from web pages are not served here"
        if self._loopback_only and not _is_loopback(_host(headers.get("host", ""))):
            return "the Host header does not name this machine's loopback address"
        return None


def _host(value: str) -> str:
    if value.startswith("["):
        return value[1:].partition("]")[0]
    return value.rpartition(":")[0] if value.count(":") == 1 else value


def _is_loopback(host: str) -> bool:
    if host.lower() in ("localhost", ""):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False  # a name, such as one that only begins like an address


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _parameters(receive: Receive) -> dict[str, Any]:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientGone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > CLIENT_BODY_MAX:
            raise LocalError(f"the request body is larger than {CLIENT_BODY_MAX} bytes", code="too_large")
        if not message.get("more_body"):
            break
    try:
        found = json.loads(b"".join(parts) or b"{}")
    except ValueError as error:
        raise UsageError(f"the request body is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise UsageError("the request body must be a JSON object")
    return found


async def _answer(send: Send, status: int, value: Any) -> None:
    body = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _status(error: SwampError) -> int:
    match error:
        case NotFound():
            return 404
        case AlreadyExists() | Conflict():
            return 409
        case UsageError() | LocalError():
            return 400
        case Broken():
            return 503
    return 422
