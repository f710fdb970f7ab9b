"""One exchange of the data plane by the HTTP library: a request out, an open answer in. The only module that names the library.

Rules that hold here:

- What the library raises leaves as `Again` (another attempt may better it) or, for a certificate that is not the right one, as
  `CallRefused`. Nothing of it gets out.
- HTTP/1.1 and no more than `DATA_CONNECTIONS_MAX` connections; the address is dialled directly: no proxy, no redirect.
- Answers pass in pieces. One that is not read to its end leaves nothing open: no generators. Long bodies are not sent by this library:
  it could not hear an answer while it sends (`sender`).

Loading it costs 7 MiB, so it is loaded with the first request. It decides nothing about repetition and knows no dispatch.
"""

import ssl
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import httpx
from httpcore import AsyncHTTP11Connection

from swamp_proto import dataplane
from swamp_proto.capabilities import CallRefused
from swamp_proto.limits import DATA_ANSWER_S, DATA_CONNECT_S, DATA_CONNECTIONS_MAX, DATA_TAKE_S, KIB, MIB
from swamp_proto.messages.capability import CallCode
from swamp_worker.shell.dataplane import Again, untrusted

READ_SIZE: Final = 256 * KIB  # at once from a connection: a download costs mostly by the read
_IDLE_S: Final = 30.0  # a connection nobody needs is closed with the next request after this


def open_client(context: ssl.SSLContext | None) -> httpx.AsyncClient:
    """A client without a connection yet. `context` for https."""
    http11: Any = AsyncHTTP11Connection
    http11.READ_NUM_BYTES = READ_SIZE
    return httpx.AsyncClient(
        verify=context or False,
        http2=False,
        trust_env=False,
        follow_redirects=False,
        timeout=httpx.Timeout(connect=DATA_CONNECT_S, read=DATA_ANSWER_S, write=DATA_TAKE_S, pool=None),
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
        body: bytes,
    ) -> None:
        self._client = client
        self._url = url
        self._request = client.build_request(method, url, headers=headers, content=body or None)
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
        return untrusted(error, self._url) or Again(f"{type(error).__name__}: {error}".rstrip(": "))
