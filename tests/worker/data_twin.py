"""A twin of the orchestrator's data plane: its grammar on a real server (hypercorn), its state in memory.

It holds the client to the rules: the credential, the fence, one content per number. Weather is in the hands of the test:
`statuses` are answered instead of acting; a `CuttingProxy` in front cuts connections after so many bytes (after none of an
answer: it is lost).
"""

import contextlib
import hashlib
import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import hypercorn.trio
import trio
from hypercorn.config import Config

from swamp_proto import codec, dataplane
from swamp_proto.errors import SwampError
from swamp_proto.limits import WRITE_BODY_MAX
from swamp_proto.messages.capability import CallCode, WriteBatch, Written, WrittenRecord

CREDENTIAL = "credential-of-the-step"


class Refusal(Exception):
    def __init__(self, code: CallCode | None, message: str, status: int | None = None) -> None:
        self.status = status or dataplane.STATUS[code or CallCode.INTERNAL]
        self.body = {"error": message, "code": code.value if code else "unauthorized"}


@attrs.define
class Upload:
    content: bytearray = attrs.field(factory=bytearray)
    patches: int = 0
    whole: bool = False


@attrs.define
class DataTwin:
    base: str = ""
    records: dict[str, bytes] = attrs.field(factory=dict)  # content by record id
    bundles: dict[str, bytes] = attrs.field(factory=dict)
    uploads: dict[int, Upload] = attrs.field(factory=dict)
    writes: dict[int, tuple[bytes, bytes]] = attrs.field(factory=dict)  # number: body, answer
    committed: list[str] = attrs.field(factory=list)  # names of records in the order of their commit
    requests: list[tuple[str, str, dict[str, str]]] = attrs.field(factory=list)
    statuses: deque[int] = attrs.field(factory=deque)
    ended: bool = False
    damaged: int = 0  # answers whose last byte is another
    delay_s: float = 0.0
    behind: int = 0  # times that an upload's offset is told as it was before its last bytes came

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.requests.append((scope["method"], scope["path"], headers))
        await trio.sleep(self.delay_s)
        try:
            if self.statuses:
                status = self.statuses.popleft()
                await self._drain(receive)
                raise Refusal(None, "weather", status)
            status, extra, body = await self._act(scope["method"], scope["path"], headers, receive)
        except Refusal as refusal:
            status, extra, body = refusal.status, {}, json.dumps(refusal.body).encode()
        lines = [(name.encode(), value.encode()) for name, value in extra.items()]
        lines.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": lines})
        if scope["method"] == "HEAD":
            body = b""
        for at in range(0, max(1, len(body)), 65_536):
            more = at + 65_536 < len(body)
            await send({"type": "http.response.body", "body": body[at : at + 65_536], "more_body": more})

    @staticmethod
    async def _drain(receive: Any) -> bytes:
        found = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return bytes(found)
            found += message.get("body", b"")
            if not message.get("more_body"):
                return bytes(found)

    async def _act(
        self, method: str, path: str, headers: dict[str, str], receive: Any
    ) -> tuple[int, dict[str, str], bytes]:
        if headers.get("authorization") != f"Bearer {CREDENTIAL}":
            raise Refusal(None, "no such credential", 401)
        if self.ended:
            raise Refusal(CallCode.LEASE_ENDED, "the lease has ended")
        target = dataplane.parse_path(path)
        assert target is not None, path
        match target.route, method:
            case dataplane.Route.RECORD, "GET":
                return self._content(self.records.get(target.key), headers)
            case dataplane.Route.BUNDLE, "GET":
                return self._content(self.bundles.get(target.key), headers, target.key)
            case dataplane.Route.UPLOAD, "HEAD":
                upload = self.uploads.get(target.number)
                if upload is None:
                    raise Refusal(CallCode.NOT_FOUND, "no such upload")
                size = len(upload.content)
                if self.behind and size:
                    self.behind, size = self.behind - 1, size - 1
                return 200, {dataplane.UPLOAD_OFFSET: str(size)}, b""
            case dataplane.Route.UPLOAD, "PATCH":
                return await self._patch(target.number, headers, receive)
            case dataplane.Route.WRITE, "PUT":
                return self._write(target.number, await self._drain(receive))
            case _:
                raise Refusal(CallCode.INVALID, "no such thing to do", 405)

    def _content(
        self, content: bytes | None, headers: dict[str, str], name: str = ""
    ) -> tuple[int, dict[str, str], bytes]:
        if content is None:
            raise Refusal(CallCode.NOT_FOUND, "no such record")
        etag = f'"{name or hashlib.sha256(content).hexdigest()}"'
        if self.damaged:
            self.damaged -= 1
            content = content[:-1] + bytes([content[-1] ^ 1])
        if "range" in headers and headers.get("if-range") == etag:
            asked = dataplane.parse_range(headers["range"], len(content))
            if asked is None:
                raise Refusal(None, "no such range", 416)
            span = f"bytes {asked.first}-{asked.last}/{len(content)}"
            return 206, {"etag": etag, "content-range": span}, content[asked.first : asked.last + 1]
        return 200, {"etag": etag}, content

    async def _patch(
        self, number: int, headers: dict[str, str], receive: Any
    ) -> tuple[int, dict[str, str], bytes]:
        upload = self.uploads.setdefault(number, Upload())
        if int(headers[dataplane.UPLOAD_OFFSET]) != len(upload.content):
            raise Refusal(CallCode.CONFLICT, "another offset")
        upload.patches += 1
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            upload.content += message.get("body", b"")
            if not message.get("more_body"):
                break
        if len(upload.content) == int(headers[dataplane.UPLOAD_LENGTH]):
            found = hashlib.sha256(upload.content).hexdigest()
            if found != headers.get(dataplane.UPLOAD_DIGEST, found):
                raise Refusal(CallCode.INVALID, "the digest is another")
            upload.whole = True
        return 204, {dataplane.UPLOAD_OFFSET: str(len(upload.content))}, b""

    def _write(self, number: int, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if number in self.writes:
            kept, answer = self.writes[number]
            if kept != body:
                raise Refusal(CallCode.IDEMPOTENCY_CONFLICT, "the same number, another content")
            return 200, {}, answer
        try:
            batch = codec.decode_body(body, WriteBatch, WRITE_BODY_MAX)
        except SwampError as error:
            raise Refusal(CallCode.INVALID, error.message) from None
        for record in batch.records:
            if record.spec == "undeclared":
                raise Refusal(CallCode.INVALID, "spec 'undeclared' is not declared")
        answer = codec.encode_body(
            Written(
                tuple(
                    WrittenRecord(f"id-{record.name}", record.name, 1, record.size, record.sha256)
                    for record in batch.records
                )
            )
        )
        self.committed += [record.name for record in batch.records]
        self.writes[number] = (body, answer)
        return 200, {"content-type": dataplane.BODY_TYPE}, answer


@asynccontextmanager
async def data_twin(*, certfile: Path | None = None, keyfile: Path | None = None) -> AsyncIterator[DataTwin]:
    twin = DataTwin()
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.errorlog = None
    config.accesslog = None
    if certfile is not None:
        config.certfile, config.keyfile = str(certfile), str(keyfile)
    over = trio.Event()
    async with trio.open_nursery() as nursery:
        binds = await nursery.start(
            partial(hypercorn.trio.serve, twin.app, config, shutdown_trigger=over.wait, mode="asgi")
        )
        scheme = "https" if certfile else "http"
        twin.base = f"{scheme}://127.0.0.1:{binds[0].rpartition(':')[2]}"
        try:
            yield twin
        finally:
            nursery.cancel_scope.cancel()


@attrs.define
class CuttingProxy:
    """A TCP proxy; `cuts` holds after how many bytes towards the server, or back, the next connections end."""

    target: int
    port: int = 0
    up: deque[int] = attrs.field(factory=deque)
    down: deque[int] = attrs.field(factory=deque)
    connections: int = 0
    passed_up: int = 0

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._one, listeners)

    async def _one(self, near: trio.SocketStream) -> None:
        self.connections += 1
        up = self.up.popleft() if self.up else None
        down = self.down.popleft() if self.down else None
        far = await trio.open_tcp_stream("127.0.0.1", self.target)
        async with near, far, trio.open_nursery() as nursery:
            nursery.start_soon(self._pump, near, far, up, nursery.cancel_scope)
            nursery.start_soon(self._pump, far, near, down, nursery.cancel_scope)

    async def _pump(
        self, source: trio.SocketStream, sink: trio.SocketStream, left: int | None, scope: trio.CancelScope
    ) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await source.receive_some(65_536):
                if left is not None:
                    data = data[:left]
                    left -= len(data)
                await sink.send_all(data)
                self.passed_up += len(data)
                if left == 0:
                    break
        scope.cancel()
