"""What is between the two sides: control links and requests of the data plane, in memory, that break where they are told to.

Rules that hold here:

- Everything that arrives at either end is a crossing: a message of a control link, the head of a request, a piece of its body, the
  head of an answer, a piece of its body. `Crossings.at` is told of each, and says what happens to it.
- A break before a crossing loses it; one after it lets it arrive. Noticed: both ends hear of it at once. Silent: nobody hears
  anything any more, of this connection only; who waits has his own deadlines.
- The library's client is real, above its transport; the orchestrator's application is real, below its server.
"""

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from enum import Enum
from typing import Any, Final

import attrs
import h11
import httpx
import trio

from swamp_proto.limits import KIB
from swamp_proto.trio_io import MemoryPipe, memory_pipe_pair

App = Callable[
    [dict[str, Any], Callable[[], Awaitable[Any]], Callable[[dict[str, Any]], Awaitable[None]]],
    Awaitable[None],
]


class Break(Enum):
    BEFORE = "before"
    AFTER = "after"


@attrs.frozen
class Fate:
    """Of one crossing."""

    breaks: Break | None = None
    silent: bool = False
    delay_s: float = 0.0


FAIR = Fate()


class Crossings:
    """Counts what arrives, and asks `judge` about each: `judge(what)`."""

    def __init__(self, judge: Callable[[str], Fate] = lambda what: FAIR) -> None:
        self.judge = judge
        self.count = 0
        self.told: list[str] = []

    def at(self, what: str) -> Fate:
        self.count += 1
        self.told.append(what)
        return self.judge(what)


# ── control links ───────────────────────────────────────────────────────────────────────────────────────────
class WirePipe:
    """One end of a control link."""

    def __init__(self, pipe: MemoryPipe, crossings: Crossings, towards: str) -> None:
        self._pipe = pipe
        self._crossings = crossings
        self._towards = towards
        self.peer: WirePipe
        self.deaf = False
        self._broken = trio.Event()

    async def send(self, data: bytes) -> None:
        if self.deaf:
            await trio.lowlevel.checkpoint()
            return
        await self._pipe.send(data)

    async def receive(self) -> bytes:
        data = await self._pipe.receive()
        if self.deaf:
            await trio.sleep_forever()
        fate = self._crossings.at(f"link message to the {self._towards}")
        if fate.delay_s:
            await trio.sleep(fate.delay_s)
        if fate.breaks is not None:
            self.break_it(silent=fate.silent)
            if fate.breaks is Break.BEFORE:
                if self.deaf:
                    await trio.sleep_forever()
                return await self._pipe.receive()  # raises that it is broken
        return data

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        if self.deaf:
            await trio.lowlevel.checkpoint()
            return  # nobody hears that
        await self._pipe.aclose(code, reason)

    def break_it(self, *, silent: bool) -> None:
        if silent:
            self.deaf = self.peer.deaf = True
        else:
            self._pipe.cut()


def link(crossings: Crossings) -> tuple[WirePipe, WirePipe]:
    """The worker's end and the orchestrator's."""
    ours, theirs = memory_pipe_pair()
    worker = WirePipe(ours, crossings, "worker")
    orchestrator = WirePipe(theirs, crossings, "orchestrator")
    worker.peer, orchestrator.peer = orchestrator, worker
    return worker, orchestrator


# ── the data plane ──────────────────────────────────────────────────────────────────────────────────────────
class Gone(Exception):
    """The connection ended."""


class Connection:
    """One request and its answer."""

    def __init__(self, crossings: Crossings) -> None:
        self._crossings = crossings
        self.cut = trio.Event()  # both ends know
        self.silent = False
        self._up_put, self._up = trio.open_memory_channel[dict[str, Any]](math.inf)
        self._down_put, self._down = trio.open_memory_channel[dict[str, Any]](math.inf)

    def _cross(self, what: str) -> Fate:
        fate = self._crossings.at(what)
        if fate.breaks is not None:
            if fate.silent:
                self.silent = True
            else:
                self.cut.set()
        return fate

    # the orchestrator's end: ASGI
    async def receive(self) -> dict[str, Any]:
        return await self._next(self._up) or {"type": "http.disconnect"}

    async def _next(self, way: "trio.MemoryReceiveChannel[dict[str, Any]]") -> dict[str, Any] | None:
        """What came before the connection ended is read first; None after that."""
        try:
            return way.receive_nowait()
        except trio.WouldBlock:
            pass
        found: dict[str, Any] | None = None
        async with trio.open_nursery() as nursery:

            async def arrival() -> None:
                nonlocal found
                found = await way.receive()
                nursery.cancel_scope.cancel()

            nursery.start_soon(arrival)
            await self.cut.wait()
            nursery.cancel_scope.cancel()
        return found

    async def send(self, message: dict[str, Any]) -> None:
        await trio.lowlevel.checkpoint()
        if not self.cut.is_set() and not self.silent:
            self._down_put.send_nowait(message)

    # the worker's end
    async def up(self, what: str, message: dict[str, Any]) -> None:
        await trio.lowlevel.checkpoint()
        if self.silent:
            await trio.sleep_forever()
        fate = self._cross(what)
        if fate.delay_s:
            await trio.sleep(fate.delay_s)
        if fate.breaks is not Break.BEFORE:
            self._up_put.send_nowait(message)
        if fate.breaks is not None:
            if fate.silent:
                return
            raise Gone

    async def down(self) -> dict[str, Any]:
        found = await self._next(self._down)
        if found is None:
            raise Gone
        kind = "head" if found["type"].endswith("start") else "piece"
        fate = self._cross(f"{kind} of an answer")
        if fate.delay_s:
            await trio.sleep(fate.delay_s)
        if fate.breaks is Break.BEFORE:
            if fate.silent:
                await trio.sleep_forever()
            raise Gone
        return found

    def finished(self) -> None:
        """The orchestrator's end is done: what it has not said will not come."""
        self.cut.set()

    def answered(self) -> bool:
        return self._down.statistics().current_buffer_used > 0


class Transport(httpx.AsyncBaseTransport):
    """Of the worker's HTTP client. `serve` hands a connection to the orchestrator that runs, or says that none does."""

    def __init__(self, crossings: Crossings, serve: Callable[[dict[str, Any], Connection], bool]) -> None:
        self._crossings = crossings
        self._serve = serve
        self.requests = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        timeouts = request.extensions["timeout"]
        connection = Connection(self._crossings)
        self.requests += 1
        path = request.url.path
        try:
            with trio.fail_after(timeouts["read"]):
                return await self._exchange(request, connection, f"{request.method} {path.split('/')[3]}")
        except trio.TooSlowError:
            connection.silent = True
            raise httpx.ReadTimeout("no answer", request=request) from None
        except Gone:
            raise httpx.ReadError("cut", request=request) from None

    async def _exchange(self, request: httpx.Request, connection: Connection, what: str) -> httpx.Response:
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": request.method,
            "path": request.url.path,
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "client": ("10.0.0.1", 1),
        }
        # The head travels with the first piece of the body, or alone.
        begun = False

        async def begin() -> None:
            nonlocal begun
            fate = connection._cross(f"{what}: head")
            if fate.delay_s:
                await trio.sleep(fate.delay_s)
            if fate.breaks is Break.BEFORE:
                if fate.silent:
                    await trio.sleep_forever()
                raise Gone
            if not self._serve(scope, connection):
                raise httpx.ConnectError("refused", request=request)
            begun = True
            if fate.breaks is not None:
                if fate.silent:
                    await trio.sleep_forever()
                raise Gone

        await begin()
        assert isinstance(request.stream, httpx.AsyncByteStream)
        body: Any = request.stream.__aiter__()
        try:
            async for piece in body:
                for at in range(0, len(piece), PIECE):
                    if connection.answered():
                        break
                    part = piece[at : at + PIECE]
                    await connection.up(
                        f"{what}: piece", {"type": "http.request", "body": part, "more_body": True}
                    )
        finally:
            if hasattr(body, "aclose"):
                await body.aclose()
        if not connection.answered():
            await connection.up(f"{what}: end", {"type": "http.request", "body": b"", "more_body": False})
        start = await connection.down()
        return httpx.Response(start["status"], headers=start["headers"], stream=_Stream(connection, request))


PIECE: Final = 32 * KIB
"""Of a body, in one crossing."""


class UploadStream(trio.abc.Stream):
    """The connection of a worker's `Sender`: HTTP/1.1 is read and written here, as a server does."""

    def __init__(self, crossings: Crossings, serve: Callable[[dict[str, Any], Connection], bool]) -> None:
        self._crossings = crossings
        self._serve = serve
        self._http = h11.Connection(h11.SERVER)
        self._connection: Connection | None = None
        self._begun = trio.Event()
        self._what = ""
        self._mute = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._mute:
            await trio.sleep_forever()
        try:
            self._http.receive_data(bytes(data))
            while (event := self._http.next_event()) is not h11.NEED_DATA:
                if isinstance(event, h11.Request):
                    await self._begin(event)
                elif isinstance(event, h11.Data):
                    for at in range(0, len(event.data), PIECE):
                        await self._up("piece", bytes(event.data[at : at + PIECE]), more=True)
                elif isinstance(event, h11.EndOfMessage):
                    await self._up("end", b"", more=False)
                else:
                    return
        except Gone:
            raise trio.BrokenResourceError("cut") from None

    async def _begin(self, event: h11.Request) -> None:
        path = event.target.decode()
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": event.method.decode(),
            "path": path,
            "headers": [(bytes(name), bytes(value)) for name, value in event.headers],
            "client": ("10.0.0.1", 1),
        }
        self._what = f"{scope['method']} {path.split('/')[3]}"
        made = Connection(self._crossings)
        fate = made._cross(f"{self._what}: head")
        if fate.delay_s:
            await trio.sleep(fate.delay_s)
        if fate.breaks is not Break.BEFORE and not self._serve(scope, made):
            raise Gone
        if fate.breaks is not None:
            self._mute = fate.silent
            if fate.silent:
                await trio.sleep_forever()
            self._connection = made
            self._begun.set()
            raise Gone
        self._connection = made
        self._begun.set()

    async def _up(self, kind: str, data: bytes, *, more: bool) -> None:
        assert self._connection is not None
        if not self._connection.answered():
            message = {"type": "http.request", "body": data, "more_body": more}
            await self._connection.up(f"{self._what}: {kind}", message)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await self._begun.wait()
        assert self._connection is not None
        try:
            message = await self._connection.down()
        except Gone:
            raise trio.BrokenResourceError("cut") from None
        if message["type"] == "http.response.start":
            head = h11.Response(status_code=message["status"], headers=message["headers"])
            return self._http.send(head) or b""
        data = self._http.send(h11.Data(data=message.get("body", b""))) or b""
        if not message.get("more_body"):
            data += self._http.send(h11.EndOfMessage()) or b""
            self._begun, self._connection = trio.Event(), None
            if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
                self._http.start_next_cycle()
        return data or await self.receive_some()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        if self._connection is not None:
            self._connection.cut.set()
        await trio.lowlevel.checkpoint()


class _Stream(httpx.AsyncByteStream):
    def __init__(self, connection: Connection, request: httpx.Request) -> None:
        self._connection = connection
        self._within_s = request.extensions["timeout"]["read"]
        self._over = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while not self._over:
            try:
                with trio.fail_after(self._within_s):
                    message = await self._connection.down()
            except Gone:
                raise httpx.ReadError("cut") from None
            except trio.TooSlowError:
                raise httpx.ReadTimeout("no answer") from None
            self._over = not message.get("more_body")
            if message.get("body"):
                yield message["body"]

    async def aclose(self) -> None:
        if not self._over:
            self._connection.cut.set()
