"""Parts of a file on their way to the data plane: requests with a long body, over a connection of their own.

Rules that hold here:

- Without TLS the kernel takes the bytes from the file (`sendfile`), told to by a thread; they never pass through this process. With TLS, or
  where the kernel can not, they are read and sent in pieces.
- The sha256 of the file is computed behind what is sent, while the peer has enough to do: nobody reads the file for it before.
- The answer is listened for from the beginning. One that comes early ends the sending, and so does a connection that ends: whoever sends
  to somebody that does not read any more would stand still until he gives up.
- A connection is used again for the next part when the answer to the last one was whole, and is closed at any doubt.
- Errors leave as `Again` or `CallRefused`, as from `exchange`; OSError is the file's.

It decides nothing about repetition and knows no dispatch.
"""

import errno
import hashlib
import os
import select
import ssl
import time
from collections.abc import Callable, Mapping
from typing import BinaryIO, Final, cast
from urllib.parse import urlsplit

import h11
import trio

from swamp_proto import dataplane
from swamp_proto.capabilities import CallRefused
from swamp_proto.limits import DATA_ANSWER_S, DATA_CONNECT_S, DATA_TAKE_S, KIB, MIB
from swamp_proto.messages.capability import CallCode
from swamp_worker.shell.dataplane import Again, Answer, untrusted

_POURED: Final = 4 * MIB  # in one go of a thread
_WAIT_S: Final = 0.05  # of a thread for the peer to take more
_PIECE: Final = 512 * KIB  # in memory, where the kernel does not take it from the file
_BLOCK: Final = 256 * KIB  # hashed at once
_BODY_MAX: Final = 64 * KIB  # of an answer
_NOT_BY_THE_KERNEL: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})


class FileDigest:
    """The sha256 of the first `size` bytes of a file, block by block. Its methods block."""

    def __init__(self, source: BinaryIO, size: int) -> None:
        self._source = source
        self._size = size
        self._at = 0
        self._hash = hashlib.sha256()
        self._buffer = memoryview(bytearray(min(_BLOCK, size)))

    def step(self, until: int) -> bool:
        """One block more; False when what is before `until` was seen."""
        wanted = min(len(self._buffer), until - self._at)
        if wanted <= 0:
            return False
        count = os.preadv(self._source.fileno(), [self._buffer[:wanted]], self._at)
        if not count:
            raise _shorter()
        self._hash.update(self._buffer[:count])
        self._at += count
        return True

    def finish(self) -> str:
        while self.step(self._size):
            pass
        return self._hash.hexdigest()


class FilePart:
    """`length` bytes of a file from `offset` on, with a digest that follows them."""

    def __init__(self, source: BinaryIO, offset: int, length: int, digest: FileDigest | None) -> None:
        self._source = source
        self._digest = digest
        self._at = offset
        self._end = offset + length
        self.by_kernel = hasattr(os, "sendfile")

    def __len__(self) -> int:
        return self._end - self._at

    def pour(self, connection: int) -> None:
        """About `_POURED` bytes into the connection, or what it takes within a moment. Blocks."""
        until = min(self._end, self._at + _POURED)
        patience = time.monotonic() + _WAIT_S
        room = select.poll()
        room.register(connection, select.POLLOUT)
        while self._at < until:
            try:
                count = os.sendfile(connection, self._source.fileno(), self._at, until - self._at)
            except BlockingIOError:
                if self._follow():
                    continue
                pause_s = patience - time.monotonic()
                if pause_s <= 0 or not room.poll(pause_s * 1000):
                    return
                continue
            except OSError as error:
                if error.errno in _NOT_BY_THE_KERNEL:
                    self.by_kernel = False
                    return
                raise
            if not count:
                raise _shorter()
            self._at += count

    def read(self) -> bytes:
        """The next piece. Blocks."""
        piece = os.pread(self._source.fileno(), min(_PIECE, len(self)), self._at)
        if not piece:
            raise _shorter()
        self._at += len(piece)
        self.catch_up()
        return piece

    def catch_up(self) -> None:
        """Have the digest see all that was sent. Blocks."""
        while self._follow():
            pass

    def _follow(self) -> bool:
        """One block; whether there was one."""
        return self._digest is not None and self._digest.step(self._at)


class Sender:
    """`async with`: the requests of one upload, one after another."""

    def __init__(self, base: str, context: Callable[[], ssl.SSLContext] | None) -> None:
        self._base = base
        self._url = urlsplit(base)
        self._context = context
        self._stream: trio.SocketStream | trio.SSLStream[trio.SocketStream] | None = None
        self._http = h11.Connection(h11.CLIENT)

    async def __aenter__(self) -> "Sender":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def send(self, method: str, path: str, headers: Mapping[str, str], part: FilePart) -> Answer:
        """One request whose body is `part`. Raises `Again`, `CallRefused`, OSError."""
        stream = self._stream or await self._open()
        request = h11.Request(
            method=method,
            target=self._url.path + path,
            headers=[
                ("host", self._url.netloc),
                ("user-agent", "swamp-worker"),
                ("content-length", str(len(part))),
                *headers.items(),
            ],
        )
        head = self._http.send(request)
        assert head is not None
        self._http.send_with_data_passthrough(
            h11.Data(data=cast(bytes, part))
        )  # it only counts: the bytes go another way
        self._http.send(h11.EndOfMessage())
        try:
            answer = await self._exchange(stream, head, part)
        except BaseException:
            await self._close()
            raise
        if len(part) or self._http.their_state is not h11.DONE:
            await self._close()
        else:
            self._http.start_next_cycle()
        if answer.status in dataplane.RETRIED:
            raise Again(f"HTTP {answer.status}")
        return answer

    async def _exchange(self, stream: trio.abc.Stream, head: bytes, part: FilePart) -> Answer:
        """Send, and listen meanwhile. What one of the two meets ends the other."""
        problem: Exception | None = None
        answer: Answer | None = None
        waiting = trio.CancelScope()
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                nonlocal problem
                try:
                    await self._send(stream, head, part)
                except (Again, CallRefused, OSError) as error:
                    problem = error
                    nursery.cancel_scope.cancel()
                waiting.deadline = trio.current_time() + DATA_ANSWER_S

            nursery.start_soon(send)
            try:
                with waiting:
                    answer = await self._listen(stream)
            except Again as error:
                problem = error
            nursery.cancel_scope.cancel()
        if answer is not None:
            return answer
        raise problem or Again(f"no answer within {DATA_ANSWER_S:g} s")

    # ── out ─────────────────────────────────────────────────────────────────────────────────────────────────
    async def _send(self, stream: trio.abc.Stream, head: bytes, part: FilePart) -> None:
        """Returns early where the connection has ended: whoever listens meets that, or an answer before it."""
        try:
            await self._give(stream, head)
            while part and part.by_kernel and isinstance(stream, trio.SocketStream):
                with trio.move_on_after(DATA_TAKE_S) as patience:
                    await trio.lowlevel.wait_writable(stream.socket)
                if patience.cancelled_caught:
                    raise _not_taken()
                try:
                    await trio.to_thread.run_sync(part.pour, stream.socket.fileno())
                except OSError as error:
                    if error.errno == errno.EIO:
                        raise
                    return
            while part:
                await self._give(stream, await trio.to_thread.run_sync(part.read))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return
        await trio.to_thread.run_sync(part.catch_up)

    async def _give(self, stream: trio.abc.Stream, data: bytes) -> None:
        with trio.move_on_after(DATA_TAKE_S) as patience:
            await stream.send_all(data)
        if patience.cancelled_caught:
            raise _not_taken()

    # ── in ──────────────────────────────────────────────────────────────────────────────────────────────────
    async def _listen(self, stream: trio.abc.Stream) -> Answer:
        response: h11.Response | None = None
        body = bytearray()
        try:
            while True:
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    self._http.receive_data(bytes(await stream.receive_some(_BODY_MAX)))
                elif isinstance(event, h11.Response):
                    response = event
                elif isinstance(event, h11.Data):
                    body += event.data[: _BODY_MAX - len(body)]
                elif isinstance(event, h11.EndOfMessage) and response is not None:
                    offsets = [value for name, value in response.headers if name == b"upload-offset"]
                    offset = offsets[0].decode("latin-1") if offsets else ""
                    return Answer(response.status_code, bytes(body), offset)
                elif not isinstance(event, h11.InformationalResponse):
                    raise Again("the connection ended without an answer")
        except (h11.RemoteProtocolError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Again(f"{type(error).__name__}: {error}".rstrip(": ")) from None

    # ── the connection ──────────────────────────────────────────────────────────────────────────────────────
    async def _open(self) -> trio.abc.Stream:
        secure = self._url.scheme == "https"
        host = self._url.hostname or ""
        raw: trio.SocketStream | None = None
        try:
            with trio.fail_after(DATA_CONNECT_S):
                raw = await trio.open_tcp_stream(host, self._url.port or (443 if secure else 80))
                self._stream = raw
                if secure:
                    context = self._context() if self._context else ssl.create_default_context()
                    context.set_alpn_protocols(["http/1.1"])
                    safe = trio.SSLStream(raw, context, server_hostname=host, https_compatible=True)
                    await safe.do_handshake()
                    self._stream = safe
        except BaseException as error:
            if raw is not None:
                await trio.aclose_forcefully(raw)
            self._stream = None
            if isinstance(error, (OSError, trio.TooSlowError, trio.BrokenResourceError)):
                raise (
                    untrusted(error, self._base) or Again(f"{type(error).__name__}: {error}".rstrip(": "))
                ) from None
            raise
        self._http = h11.Connection(h11.CLIENT)
        return self._stream

    async def _close(self) -> None:
        if self._stream is not None:
            stream, self._stream = self._stream, None
            await trio.aclose_forcefully(stream)


def _not_taken() -> Again:
    return Again(f"nobody has taken a byte for {DATA_TAKE_S:g} s")


def _shorter() -> CallRefused:
    return CallRefused(CallCode.CONFLICT, "the file has become shorter while it was uploaded")
