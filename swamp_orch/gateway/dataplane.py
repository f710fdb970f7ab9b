"""The data plane: bytes of running steps by HTTP, on the one port. Paths, headers and statuses are `swamp_proto.dataplane`'s.

Rules that hold here:

1. Every request is asked under a lease: the credential is compared with the hash in the lease, and the whole of the request lives in the
   lease's cancel scope. A lease that ends, ends the request.
2. Bodies are bounded before and while they are read; nothing is held in memory but one block of it. A request that is refused before its
   body was read is answered at once, and its connection closed. What is long is read by a thread, from the socket (`Stretch`), where the
   connection lends it.
3. What is not asked for properly gets a 4xx with a code, never a stranger's traceback.

What a request means is `swamp_orch.engine.desk`'s business.
"""

import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, Final

import trio

from swamp_orch.engine.desk import StepDesk, translated
from swamp_orch.engine.flights import Flight, Flights
from swamp_orch.engine.uploads import BLOCK, WrongOffset
from swamp_orch.gateway.listener import CONNECTION, STRETCH, Connection
from swamp_orch.gateway.stretch import Stretch
from swamp_orch.store.interface import Record, Store
from swamp_proto import codec, dataplane
from swamp_proto.capabilities import CallRefused
from swamp_proto.dataplane import ByteRange, Route, Target
from swamp_proto.errors import Broken, LimitExceeded, MalformedMessage, SwampError
from swamp_proto.ids import is_uuid
from swamp_proto.limits import DATA_BODY_MAX, MIB, WRITE_BODY_MAX
from swamp_proto.messages.capability import CallCode, WriteBatch

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Header = tuple[bytes, bytes]

METHODS: Final[Mapping[Route, tuple[str, ...]]] = {
    Route.RECORD: ("GET", "HEAD"),
    Route.BUNDLE: ("GET", "HEAD"),
    Route.UPLOAD: ("HEAD", "PATCH"),
    Route.WRITE: ("PUT",),
}
DRAIN_MAX: Final = 16 * MIB
DRAIN_S: Final = 2.0
_LENGTH_DIGITS_MAX: Final = len(str(DATA_BODY_MAX)) + 1


class _Answered(Exception):
    """The request is refused with this status."""

    def __init__(self, status: int, code: CallCode, message: str, headers: tuple[Header, ...] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers


class _Body:
    """The body of a request as it arrives. `connection` can lend what is still to come."""

    def __init__(self, receive: Receive, connection: Connection | None) -> None:
        self._receive = receive
        self._connection = connection
        self._stretch: Stretch | None = None
        self._more = True

    async def __call__(self) -> bytes:
        """The next bytes, `b""` at the end. Raises `Broken` when the connection ends before."""
        while True:
            piece = await self.stretches()
            if isinstance(piece, bytes):
                return piece
            piece.end()  # lent before, and not wanted any more

    async def stretches(self) -> bytes | Stretch:
        """The same, or what is to be read where it lies; only inside `lent`."""
        while self._more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._more = False
                raise Broken("the connection ended before the body did")
            self._more = bool(message.get("more_body"))
            if STRETCH in message:
                self._stretch = message[STRETCH]
                return self._stretch
            if piece := message.get("body", b""):
                return bytes(piece)
        return b""

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Much of what comes may be lent to be read in a thread."""
        if self._connection is not None:
            self._connection.lends = True
        try:
            yield
        finally:
            if self._connection is not None:
                self._connection.lends = False
            if self._stretch is not None:
                self._stretch.end()

    @property
    def read(self) -> bool:
        return not self._more

    async def drain(self) -> None:
        """Read on, for a moment: who still sends does not listen, and would never hear why it was refused."""
        size = 0
        with trio.move_on_after(DRAIN_S), suppress(Broken):
            while size < DRAIN_MAX and (piece := await self()):
                size += len(piece)


class DataPlane:
    """Serves `swamp_proto.dataplane.PREFIX`. `ready` is false until what the last process left was found again."""

    def __init__(self, desk: StepDesk, flights: Flights, store: Store, ready: Callable[[], bool]) -> None:
        self._desk = desk
        self._flights = flights
        self._store = store
        self._ready = ready

    async def serve(self, scope: Scope, headers: Mapping[str, str], receive: Receive, send: Send) -> None:
        """One request, whole. Never raises for what it asks."""
        version: str = scope.get("http_version", "")
        body = _Body(receive, scope.get("state", {}).get(CONNECTION) if version.startswith("1") else None)
        head: list[Header] = []
        begun = False

        async def noting(message: dict[str, Any]) -> None:
            nonlocal begun
            begun = True
            # The server library's connection is not usable any more when a send is cancelled half way: the end of the lease
            # is met between two of them.
            with trio.CancelScope(shield=True):
                await send(message)

        try:
            await self._request(scope, headers, body, noting)
            return
        except _Answered as answered:
            status, code, message = answered.status, answered.code, str(answered)
            head += answered.headers
        except WrongOffset as wrong:
            status, code, message = dataplane.STATUS[wrong.call_code], wrong.call_code, wrong.message
            head.append((dataplane.UPLOAD_OFFSET.encode(), str(wrong.offset).encode()))
        except Broken as error:
            if body.read and scope["method"] in ("PATCH", "PUT"):
                return  # nobody is left to be answered
            status, code, message = 500, CallCode.INTERNAL, error.message
        except SwampError as error:
            refused = translated(error)
            status, code, message = dataplane.STATUS[refused.call_code], refused.call_code, refused.message
        if begun:
            return  # an answer that stops short of its length says that it is not whole
        if code is not CallCode.LEASE_ENDED:
            await body.drain()
        if not body.read and version.startswith("1"):
            head.append((b"connection", b"close"))  # what is left of the body is not waited for
        await _answer(send, status, {"error": message, "code": code.value}, head)

    async def _request(self, scope: Scope, headers: Mapping[str, str], body: _Body, send: Send) -> None:
        target = dataplane.parse_path(scope["path"])
        method: str = scope["method"]
        if target is None:
            raise _Answered(404, CallCode.NOT_FOUND, "nothing of the data plane has this path")
        if method not in METHODS[target.route]:
            allowed = ", ".join(METHODS[target.route])
            raise _Answered(
                405, CallCode.INVALID, f"{method} is not {allowed}", ((b"allow", allowed.encode()),)
            )
        if not self._ready():
            raise _Answered(
                503, CallCode.UNAVAILABLE, "the orchestrator is starting", ((b"retry-after", b"1"),)
            )
        flight = self._who(headers, target)
        with self._flights.under(flight.dispatch, flight.message.fence):
            match target.route, method:
                case Route.RECORD, _:
                    await self._record(flight, target.key, method, headers, send)
                case Route.BUNDLE, _:
                    await self._bundle(flight, target.key, method, headers, send)
                case Route.UPLOAD, "HEAD":
                    offset = await self._desk.uploads.offset(flight.dispatch, target.number)
                    await _empty(send, 200, [(dataplane.UPLOAD_OFFSET.encode(), str(offset).encode())])
                case Route.UPLOAD, _:
                    await self._upload(flight, target.number, headers, body, send)
                case _:
                    await self._write(flight, target.number, headers, body, send)

    def _who(self, headers: Mapping[str, str], target: Target) -> Flight:
        """The dispatch that asks. Raises `_Answered` 401, and `CallRefused` (`lease_ended`)."""
        dispatch = headers.get(dataplane.DISPATCH_HEADER, "")
        fence = headers.get(dataplane.FENCE_HEADER, "")
        scheme, _, credential = headers.get("authorization", "").partition(" ")
        flight = None
        if (
            is_uuid(dispatch)
            and fence.isascii()
            and fence.isdigit()
            and len(fence) < 10
            and scheme.lower() == "bearer"
        ):
            flight = self._desk.authenticate(dispatch, int(fence), credential.strip())
        if flight is None:
            raise _Answered(
                401,
                CallCode.FORBIDDEN,
                "the credential of a dispatch whose lease lives is needed",
                ((b"www-authenticate", b"Bearer"),),
            )
        if target.route in (Route.UPLOAD, Route.WRITE) and target.key != dispatch:
            raise CallRefused(CallCode.FORBIDDEN, "the path names another dispatch than the request")
        return flight

    # ── bytes in ────────────────────────────────────────────────────────────────────────────────────────────────────
    async def _write(
        self, flight: Flight, number: int, headers: Mapping[str, str], body: _Body, send: Send
    ) -> None:
        said = _number(headers, "content-length", required=False)
        if said is not None and said > WRITE_BODY_MAX:
            raise _too_large(said)
        parts: list[bytes] = []
        size = 0
        while piece := await body():
            parts.append(piece)
            size += len(piece)
            if size > WRITE_BODY_MAX:
                raise _too_large(size)
        try:
            batch = codec.decode_body(b"".join(parts), WriteBatch, WRITE_BODY_MAX)
        except LimitExceeded as error:
            raise CallRefused(CallCode.TOO_LARGE, error.message) from None
        except MalformedMessage as error:
            raise CallRefused(CallCode.INVALID, error.message) from None
        written = await self._desk.write(flight, number, batch)
        data = codec.encode_body(written)
        head = [(b"content-type", dataplane.BODY_TYPE.encode()), (b"content-length", str(len(data)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": data, "more_body": False})

    async def _upload(
        self, flight: Flight, number: int, headers: Mapping[str, str], body: _Body, send: Send
    ) -> None:
        offset = _number(headers, dataplane.UPLOAD_OFFSET)
        length = _number(headers, dataplane.UPLOAD_LENGTH)
        digest = headers.get(dataplane.UPLOAD_DIGEST)
        assert offset is not None
        assert length is not None
        if digest is not None and (len(digest) != 64 or set(digest) - set("0123456789abcdef")):
            raise CallRefused(
                CallCode.INVALID, f"{dataplane.UPLOAD_DIGEST} must be a sha256 in lower case hex"
            )
        said = _number(headers, "content-length", required=False)
        if said is not None and offset + said > length:
            raise CallRefused(
                CallCode.TOO_LARGE, f"{offset} and {said} bytes are more than the {length} of the upload"
            )
        with body.lent():
            safe = await self._desk.receive(
                flight, number, offset=offset, length=length, sha256=digest or "", body=body.stretches
            )
        await _empty(send, 204, [(dataplane.UPLOAD_OFFSET.encode(), str(safe).encode())])

    # ── bytes out ───────────────────────────────────────────────────────────────────────────────────────────────────
    async def _record(
        self, flight: Flight, record_id: str, method: str, headers: Mapping[str, str], send: Send
    ) -> None:
        record = await self._desk.record(flight, record_id)
        content = record.content
        source = None if content is not None else await _open(self._store, record)
        await _give(send, method, headers, record.sha256, record.size, record.content_type, content, source)

    async def _bundle(
        self, flight: Flight, name: str, method: str, headers: Mapping[str, str], send: Send
    ) -> None:
        file = await self._desk.bundle(flight, name)
        source = await trio.to_thread.run_sync(file.open, "rb")
        size = file.stat().st_size
        await _give(send, method, headers, name, size, "application/zip", None, source)


async def _open(store: Store, record: Record) -> BinaryIO:
    return await trio.to_thread.run_sync(store.open_blob, record.sha256)


async def _give(
    send: Send,
    method: str,
    headers: Mapping[str, str],
    name: str,
    size: int,
    content_type: str,
    content: bytes | None,
    source: BinaryIO | None,
) -> None:
    """Send an immutable content, the part that is asked for, or that it has not changed."""
    try:
        etag = f'"{name}"'
        head: list[Header] = [
            (b"etag", etag.encode()),
            (b"accept-ranges", b"bytes"),
            (b"cache-control", b"private, immutable"),
        ]
        known = headers.get("if-none-match", "")
        if known.strip() == "*" or etag in (one.strip().removeprefix("W/") for one in known.split(",")):
            await _empty(send, 304, head)
            return
        part = _range(headers, etag, size)
        first, length = (0, size) if part is None else (part.first, part.length)
        if part is not None:
            head.append((b"content-range", f"bytes {part.first}-{part.last}/{size}".encode()))
        head += [
            (b"content-type", content_type.encode("latin-1", "replace")),
            (b"content-length", str(length).encode()),
        ]
        await send({"type": "http.response.start", "status": 200 if part is None else 206, "headers": head})
        if method == "HEAD":
            length = 0
        if content is not None:
            await send(
                {"type": "http.response.body", "body": content[first : first + length], "more_body": True}
            )
        elif source is not None and length:
            await _stream(send, source, first, length)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    finally:
        if source is not None:
            source.close()


async def _stream(send: Send, source: BinaryIO, first: int, length: int) -> None:
    """One block is read while the one before it is sent."""
    source.seek(first)
    left = length
    while left:
        block = await trio.to_thread.run_sync(source.read, min(BLOCK, left))
        if not block:
            raise Broken("the blob is shorter than its record says", hint="restore .swamp/data from a backup")
        left -= len(block)
        await send({"type": "http.response.body", "body": block, "more_body": True})


def _range(headers: Mapping[str, str], etag: str, size: int) -> ByteRange | None:
    """The part that is asked for; None: all of it."""
    asked = headers.get("range")
    if asked is None or headers.get("if-range", etag) != etag:
        return None
    try:
        found = dataplane.parse_range(asked, size)
    except MalformedMessage as error:
        raise _Answered(400, CallCode.INVALID, error.message) from None
    if found is None:
        unsatisfied = ((b"content-range", f"bytes */{size}".encode()),)
        raise _Answered(416, CallCode.INVALID, f"the content has {size} bytes", unsatisfied)
    return found


def _number(headers: Mapping[str, str], name: str, *, required: bool = True) -> int | None:
    text = headers.get(name)
    if text is None and not required:
        return None
    if text is None or not (text.isascii() and text.isdigit()) or len(text) > _LENGTH_DIGITS_MAX:
        raise CallRefused(CallCode.INVALID, f"{name} must be a number of bytes")
    return int(text)


def _too_large(size: int) -> CallRefused:
    return CallRefused(
        CallCode.TOO_LARGE,
        f"a write of {size} bytes or more; at most {WRITE_BODY_MAX}: write fewer records at once, upload large ones before",
    )


async def _empty(send: Send, status: int, head: list[Header]) -> None:
    length = [] if status in (204, 304) else [(b"content-length", b"0")]
    await send({"type": "http.response.start", "status": status, "headers": [*head, *length]})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _answer(send: Send, status: int, value: Mapping[str, str], head: list[Header]) -> None:
    data = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    about = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*head, *about]})
    await send({"type": "http.response.body", "body": data, "more_body": False})
