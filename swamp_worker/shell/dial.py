"""From a URL to an open message pipe: TCP, TLS, the WebSocket handshake, and what to say when one of them
fails.

Rules that hold here:

- Verification is on: the system's authorities, or `--ca-file`. A pin (`--pin-sha256`: SHA-256 of the
  server's certificate, DER) is checked in any case; alone, it stands in for the authorities. A pin that
  does not match is permanent.
- Every failure names its cause and a fix; all but the pin are worth another try. Nothing decides on the
  text of an error.
- All limits are passed on explicitly. There is no support for HTTP proxies (docs say so): the address is
  dialled directly.
"""

import contextlib
import hashlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import attrs
import trio
import trio_websocket
import wsproto.utilities

from swamp_proto.errors import Broken, LocalError, UsageError
from swamp_proto.limits import CONTROL_FRAME_MAX
from swamp_proto.trio_io import MessagePipe, WebSocketPipe
from swamp_proto.version import CONTROL_PATH

_QUEUED_MESSAGES_MAX: Final = 64
_READ_SIZE: Final = 64 * 1024
_GOODBYE_S: Final = 0.25  # for the peer to answer a close; a silent one must not delay the next attempt
_GONE: Final = (trio_websocket.ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError)


class NoLink(Broken):
    """No link came about. `permanent` says that trying again cannot help."""

    def __init__(self, message: str, *, hint: str | None = None, permanent: bool = False) -> None:
        super().__init__(message, hint=hint, code="pin_mismatch" if permanent else "no_link")
        self.permanent = permanent


@attrs.frozen
class Address:
    """Where and how to dial."""

    url: str  # as given
    host: str
    port: int
    secure: bool
    resource: str
    ca_file: Path | None = None
    pin: str | None = None  # 64 hex digits
    data_plane: str = ""  # its base URL, without a slash at the end

    @classmethod
    def parse(
        cls, url: str, *, ca_file: Path | None = None, pin: str | None = None, data_plane: str | None = None
    ) -> "Address":
        """`data_plane`: what `--data-plane-url` says; else it is the same host, port and path over HTTP(S). Raises UsageError."""
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            raise UsageError(f"the port in {url!r} is not a number between 1 and 65535") from None
        if parts.scheme not in ("ws", "wss") or not parts.hostname:
            raise UsageError(
                f"Orchestrator URL must start with ws:// or wss:// (got '{url}')",
                hint="swamp worker connect ws://localhost:9090 --token <token>",
            )
        if parts.username or parts.password:
            raise UsageError("the orchestrator URL must not hold a user or password")
        if pin is not None:
            pin = pin.lower().removeprefix("sha256:").replace(":", "")
            if len(pin) != 64 or not set(pin) <= set("0123456789abcdef"):
                raise UsageError("--pin-sha256 takes the 64 hex digits of the SHA-256 of the certificate")
        secure = parts.scheme == "wss"
        port = port or (443 if secure else 80)
        prefix = parts.path.rstrip("/")
        if data_plane:
            data_plane = _checked_data_plane(data_plane)
        else:
            host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
            data_plane = f"{'https' if secure else 'http'}://{host}:{port}{prefix}"
        address = cls(url, parts.hostname, port, secure, prefix + CONTROL_PATH, ca_file, pin, data_plane)
        if (pin or ca_file) and not address.uses_tls:
            raise UsageError("--pin-sha256 and --ca-file need a wss:// URL, or a data plane at https://")
        return address

    @property
    def uses_tls(self) -> bool:
        """On either of the two connections."""
        return self.secure or self.data_plane.startswith("https:")

    def context(self) -> ssl.SSLContext:
        """Raises LocalError when the authorities cannot be read."""
        try:
            context = ssl.create_default_context(cafile=str(self.ca_file) if self.ca_file else None)
        except (OSError, ssl.SSLError) as error:
            raise LocalError(
                f"--ca-file {self.ca_file} cannot be read as certificates: {error.strerror or error}"
            ) from None
        if self.pin and not self.ca_file:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE  # the pin names the one certificate that is right
        return context

    def pinned_context(self) -> ssl.SSLContext:
        """For connections that others open: a handshake with another certificate than the pinned one raises
        `WrongPin`, before a byte of the request is sent. Raises LocalError.
        """
        context = self.context()
        if self.pin is not None:
            pin = self.pin

            class Pinned(ssl.SSLObject):
                def do_handshake(self) -> None:
                    super().do_handshake()
                    found = hashlib.sha256(self.getpeercert(binary_form=True) or b"").hexdigest()
                    if found != pin:
                        raise WrongPin(found)

            context.sslobject_class = Pinned
        return context


def _checked_data_plane(url: str) -> str:
    parts = urlsplit(url)
    try:
        port_is_right = parts.port is None or parts.port > 0
    except ValueError:
        port_is_right = False
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_right:
        raise UsageError(
            f"--data-plane-url must start with http:// or https:// and name a host (got '{url}')"
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageError("--data-plane-url must hold no user, password, query or fragment")
    return url.rstrip("/")


class WrongPin(ssl.SSLCertVerificationError):
    """The server's certificate is not the pinned one."""

    def __init__(self, found: str) -> None:
        super().__init__(f"its certificate has the fingerprint {found}, which is not the pinned one")
        self.verify_message = str(self)


@contextlib.asynccontextmanager
async def open_pipe(address: Address) -> AsyncIterator[MessagePipe]:
    """An open pipe for the length of the block. Raises NoLink before it, nothing for what happens in it.

    Also raised, as NoLink, is what the WebSocket library's own task trips over; the block is cancelled then.
    """
    failure: NoLink | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                connection = await _connect(address, nursery)
            except NoLink as error:
                failure = error
            else:
                try:
                    yield WebSocketPipe(connection)
                finally:
                    with trio.move_on_after(_GOODBYE_S, shield=True), contextlib.suppress(*_GONE):
                        await connection.aclose()
            nursery.cancel_scope.cancel()
    except* trio_websocket.ConnectionRejected as rejected:
        status = _first(rejected).status_code
        failure = NoLink(
            f"{address.host}:{address.port} answers, but not as an orchestrator: HTTP {status}",
            hint="check the URL and the port: it is the one that swamp serve printed",
        )
    except* (trio_websocket.HandshakeError, wsproto.utilities.ProtocolError) as broken:
        failure = NoLink(f"the WebSocket broke: {_first(broken)!r}")
    if failure is not None:
        raise failure


def _first(group: BaseExceptionGroup[Any]) -> Any:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


async def _connect(address: Address, nursery: trio.Nursery) -> trio_websocket.WebSocketConnection:
    where = f"{address.host}:{address.port}"
    try:
        stream: trio.SocketStream | trio.SSLStream[trio.SocketStream]
        stream = await trio.open_tcp_stream(address.host, address.port)
    except socket.gaierror as error:
        raise NoLink(
            f"the name {address.host} cannot be resolved: {error.strerror}",
            hint="check the host name, or this machine's DNS",
        ) from None
    except OSError as error:
        raise NoLink(
            f"nobody answers at {where}: {_first_cause(error)}",
            hint="is the orchestrator running there? start it with: swamp serve",
        ) from None
    try:
        if address.secure:
            stream = await _secure(stream, address, where)
        watched = _Watched(stream)
        opened: list[trio_websocket.WebSocketConnection] = []
        async with trio.open_nursery() as opening:
            opening.start_soon(watched.cancel_when_ended, opening.cancel_scope)
            connection = await trio_websocket.wrap_client_stream(
                nursery,
                watched,  # type: ignore[arg-type]  # any stream will do: it only sends, receives and closes
                address.host if address.port in (80, 443) else where,
                address.resource,
                message_queue_size=_QUEUED_MESSAGES_MAX,
                max_message_size=CONTROL_FRAME_MAX,
                receive_buffer_size=_READ_SIZE,
            )
            opened.append(connection)
            opening.cancel_scope.cancel()
    except BaseException:
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(stream)
        raise
    if not opened:
        await trio.aclose_forcefully(stream)
        tls = "" if address.secure else ", or it expects wss://"
        raise NoLink(
            f"{where} closed the connection before the WebSocket was open",
            hint=f"it may not be a swamp orchestrator{tls}",
        )
    return opened[0]


class _Watched(trio.abc.Stream):
    """A stream that tells when the peer has hung up: the WebSocket library would wait for its answer for
    ever.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._ended = trio.Event()

    async def cancel_when_ended(self, scope: trio.CancelScope) -> None:
        await self._ended.wait()
        scope.cancel()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        try:
            data = await self._stream.receive_some(max_bytes)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._ended.set()
            raise
        if not data:
            self._ended.set()
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _secure(
    stream: trio.SocketStream, address: Address, where: str
) -> trio.SSLStream[trio.SocketStream]:
    try:
        context = address.context()
    except LocalError as error:
        raise NoLink(error.message) from None
    secured = trio.SSLStream(stream, context, server_hostname=address.host, https_compatible=True)
    try:
        await secured.do_handshake()
    except trio.BrokenResourceError as error:
        cause = error.__cause__
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise NoLink(
                f"the certificate of {where} is not trusted: {cause.verify_message}",
                hint="give its authority with --ca-file, or its own fingerprint with --pin-sha256",
            ) from None
        why = getattr(cause, "reason", None) or cause or "the connection was closed"
        raise NoLink(
            f"TLS with {where} failed: {why}",
            hint="does the orchestrator serve TLS there? ws:// is the form without",
        ) from None
    if address.pin is not None:
        certificate = secured.getpeercert(binary_form=True) or b""
        found = hashlib.sha256(certificate).hexdigest()
        if found != address.pin:
            raise NoLink(
                f"the certificate of {where} has the fingerprint {found}, which is not the pinned one",
                hint="if the certificate was renewed, pass the new fingerprint with --pin-sha256",
                permanent=True,
            )
    return secured


def _first_cause(error: OSError) -> str:
    """`open_tcp_stream` groups the failures of several addresses; one of them is enough for a person."""
    cause = error.__cause__
    if isinstance(cause, BaseExceptionGroup):
        inner = cause.exceptions[0]
        return inner.strerror or str(inner) if isinstance(inner, OSError) else str(inner)
    return error.strerror or str(error)
