"""One exchange of the data plane by the HTTP library: a request out, an open answer in. The only module that names the library.

Rules that hold here:

- What the library raises leaves as `Again` (another attempt may better it) or, for a certificate that is not the right one, as
  `CallRefused`. Nothing of it gets out.
- HTTP/1.1 and no more than `DATA_CONNECTIONS_MAX` connections; the address is dialled directly: no proxy, no redirect.
- Bodies pass in pieces. One that is not read to its end leaves nothing open: no generators.

Loading it costs 7 MiB, so it is loaded with the first request. It decides nothing about repetition and knows no dispatch.
"""

import os
import ssl
from collections.abc import AsyncIterator, Mapping
from typing import BinaryIO, Final

import httpx
import trio

from swamp_proto import dataplane
from swamp_proto.capabilities import CallRefused
from swamp_proto.limits import DATA_ANSWER_S, DATA_CONNECTIONS_MAX, KIB, MIB
from swamp_proto.messages.capability import CallCode
from swamp_worker.shell.dataplane import Again

PIECE: Final = 512 * KIB  # of a body, in memory
_CONNECT_S: Final = 10.0
_TAKE_S: Final = (
    15.0  # without the peer taking a byte: it has ended, and somebody on the way keeps that to himself
)
_IDLE_S: Final = 30.0  # a connection nobody needs is closed with the next request after this


class FilePart(httpx.AsyncByteStream):
    """`length` bytes of a file from `offset` on, as the body of a request."""

    def __init__(self, source: BinaryIO, offset: int, length: int) -> None:
        self._source = source
        self._offset = offset
        self._end = offset + length

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._offset == self._end:
            raise StopAsyncIteration
        wanted = min(PIECE, self._end - self._offset)
        piece = await trio.to_thread.run_sync(os.pread, self._source.fileno(), wanted, self._offset)
        if not piece:
            raise CallRefused(CallCode.CONFLICT, "the file has become shorter while it was uploaded")
        self._offset += len(piece)
        return piece


def open_client(context: ssl.SSLContext | None) -> httpx.AsyncClient:
    """A client without a connection yet. `context` for https."""
    return httpx.AsyncClient(
        verify=context or False,
        http2=False,
        trust_env=False,
        follow_redirects=False,
        timeout=httpx.Timeout(connect=_CONNECT_S, read=DATA_ANSWER_S, write=_TAKE_S, pool=None),
        limits=httpx.Limits(
            max_connections=DATA_CONNECTIONS_MAX,
            max_keepalive_connections=DATA_CONNECTIONS_MAX,
            keepalive_expiry=_IDLE_S,
        ),
        headers={"accept-encoding": "identity", "user-agent": "swamp-worker"},
    )


class Exchange:
    """`async with`: a request is sent, and its answer is open inside. Raises `Again`, `CallRefused`."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | FilePart,
    ) -> None:
        self._client = client
        self._url = url
        if isinstance(body, bytes):
            self._request = client.build_request(method, url, headers=headers, content=body or None)
        else:  # the caller says its length
            self._request = client.build_request(method, url, headers=headers)
            self._request.stream = body
        self._response: httpx.Response | None = None

    async def __aenter__(self) -> "Exchange":
        try:
            self._response = await self._client.send(self._request, stream=True)
        except httpx.TransportError as error:
            raise self._translated(error) from None
        if self.status in dataplane.RETRIED:
            await self._response.aclose()
            raise Again(f"HTTP {self.status}")
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        assert self._response is not None
        await self._response.aclose()
        if isinstance(error, httpx.TransportError):
            raise self._translated(error) from None

    @property
    def status(self) -> int:
        assert self._response is not None
        return self._response.status_code

    def header(self, name: str) -> str:
        assert self._response is not None
        found: str = self._response.headers.get(name, "")
        return found

    def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        assert self._response is not None
        return self._response.aiter_raw()

    async def whole(self, most: int) -> bytes:
        """The body, when it is no longer than `most`."""
        found = bytearray()
        over = False
        async for piece in self.pieces():
            over = over or len(found) + len(piece) > most
            if not over:
                found += piece
        if over:
            raise CallRefused(
                CallCode.INTERNAL, f"the answer of {self._url} is longer than {most // MIB or 1} MiB"
            )
        return bytes(found)

    def _translated(self, error: httpx.TransportError) -> Exception:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLCertVerificationError):
                return CallRefused(
                    CallCode.INTERNAL,
                    f"{self._url} is not trusted: {cause.verify_message}. Give its authority with --ca-file, or its own "
                    "fingerprint with --pin-sha256",
                )
            cause = cause.__cause__ or cause.__context__
        return Again(f"{type(error).__name__}: {error}".rstrip(": "))
