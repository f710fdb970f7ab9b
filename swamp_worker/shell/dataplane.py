"""The worker's client of the data plane: one request, said again until it is answered, for as long as the lease may live.

Rules that hold here:

- Every request carries the credential of its dispatch, never the worker's. `StepCalls` is asked before every attempt
  whether the holder has given up: after that nothing leaves.
- Refused connections, cut ones, silence and the statuses of `RETRIED` are tried again, with full jitter. So are, a bounded number of times
  in a row, 408, 429 and 5xx without a code: those are not of our data plane. Any other answer is final. Nothing decides on the text of an
  error.
- Memory stays flat: bodies stream from disk (`sender`) and to disk in pieces.
- An upload goes on behind the last byte that the orchestrator says is safe; a download behind the last byte it wrote, as long
  as the ETag is the same. Both are verified by sha256.
"""

import hashlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeVar, cast

import attrs
import trio

from swamp_proto import dataplane
from swamp_proto.capabilities import CallRefused
from swamp_proto.limits import DATA_RETRY_S_MIN, DATA_STRANGE_MAX, KIB, MIB, UPLOAD_CHUNK, WRITE_BODY_MAX
from swamp_proto.messages.capability import CallCode
from swamp_proto.messages.dispatch import Dispatch
from swamp_worker.execution.access import Sent
from swamp_worker.shell.calls import StepCalls

if TYPE_CHECKING:
    import httpx

    from swamp_worker.shell.exchange import Exchange

DAMAGED_MAX: Final = 3  # downloads that arrived with another digest, before it is given up
CONFLICTS_MAX: Final = 5  # about the place where an upload goes on, in a row
SAID_AFTER: Final = 4  # failed attempts in a row, before a person is told
_KEPT_AT_ONCE: Final = MIB  # of a download, in memory
_ERROR_BODY_MAX: Final = 64 * KIB
_DONE: Final = (200, 201, 204)

T = TypeVar("T")


class Again(Exception):
    """An attempt that another one may better. `why` is for people."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Strange(Again):
    """An answer that tells of trouble and is not the data plane's: somebody on the way gave it, or a defect. Another attempt may better
    it, but not for ever; then it is `refusal`."""

    def __init__(self, refusal: CallRefused) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def untrusted(error: BaseException, url: str) -> CallRefused | None:
    """What `error` is when it comes of a certificate that is not the right one."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return CallRefused(
                CallCode.INTERNAL,
                f"{url} is not trusted: {cause.verify_message}. Give its authority with --ca-file, or its own "
                "fingerprint with --pin-sha256",
            )
        cause = cause.__cause__ or cause.__context__
    return None


@attrs.frozen
class Answer:
    """Of a request whose answer is small."""

    status: int
    body: bytes
    offset: str  # its header Upload-Offset


class DataPlane:
    """One per worker. `tls` makes the context when `base` is https; `say` hears of what does not get better."""

    def __init__(
        self,
        base: str,
        step_calls: StepCalls,
        tls: Callable[[], ssl.SSLContext] | None = None,
        say: Callable[[str], object] = lambda message: None,
    ) -> None:
        self.base = base
        self._calls = step_calls
        self._tls = tls
        self._say = say
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> "DataPlane":
        return self

    async def __aexit__(self, *_: object) -> None:
        with trio.CancelScope(shield=True), trio.move_on_after(1.0):
            await self.aclose()

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────────
    async def put(self, dispatch: Dispatch, path: str, body: bytes, content_type: str) -> bytes:
        """The answer's body. Raises `CallRefused`."""

        async def once() -> bytes:
            return (await self._ask(dispatch, "PUT", path, {"content-type": content_type}, body)).body

        return await self._insist(dispatch, once)

    async def upload(
        self, dispatch: Dispatch, path: str, file: Path, sha256: str = "", sent: Sent | None = None
    ) -> tuple[str, int]:
        """The whole of `file`, until the orchestrator has all of it; its sha256, which is computed meanwhile when it is not said, and its
        size. Raises `CallRefused`, OSError.
        """
        from swamp_worker.shell import sender

        with await trio.to_thread.run_sync(_open, file) as source:
            size = await trio.to_thread.run_sync(_size, source)
            digest = None if sha256 else sender.FileDigest(source, size)
            about = {dataplane.UPLOAD_LENGTH: str(size), "content-type": "application/octet-stream"}
            if sha256:
                about[dataplane.UPLOAD_DIGEST] = sha256
            offset = conflicts = 0
            tries = _Tries()
            async with sender.Sender(self.base, self._tls) as sending:
                while True:
                    part = sender.FilePart(source, offset, min(UPLOAD_CHUNK, size - offset), digest)
                    headers = self._headers(dispatch, about | {dataplane.UPLOAD_OFFSET: str(offset)})
                    before = offset
                    try:
                        with self._calls.guard(dispatch.dispatch):
                            answer = await sending.send("PATCH", path, headers, part)
                        self._check(answer.status, answer.body, "PATCH")
                        offset = _offset(answer.offset)
                        done = offset >= size
                    except (Again, CallRefused) as error:
                        if isinstance(error, CallRefused):
                            # The end of a request that was cut may still be on its way to the disk when we ask how far it came.
                            conflicts += 1
                            if error.call_code is not CallCode.CONFLICT or conflicts > CONFLICTS_MAX:
                                raise
                        tries.count(error)
                        await self._pause(dispatch, tries.failed, str(error))
                        offset = await self._insist(dispatch, partial(self._offset, dispatch, path))
                        done = offset == size > 0
                    if offset > size:
                        raise CallRefused(
                            CallCode.CONFLICT, f"{file.name} has become shorter while it was uploaded"
                        )
                    if offset > before:
                        tries, conflicts = _Tries(), 0
                    if sent is not None:
                        sent(offset, size)
                    if done:
                        break
            return sha256 or await trio.to_thread.run_sync(cast(sender.FileDigest, digest).finish), size

    async def download(self, dispatch: Dispatch, path: str, into: Path, sha256: str | None = None) -> None:
        """The content behind `path` as a new file. Its digest must be `sha256`, or what the ETag says. Raises
        `CallRefused`, OSError.
        """
        part = into.with_name(f"{into.name}.part")
        transfer = _Transfer(part, sha256)
        try:
            while True:
                await self._insist(dispatch, partial(self._get, dispatch, path, transfer), transfer)
                if transfer.is_right():
                    break
                transfer.damaged += 1
                if transfer.damaged >= DAMAGED_MAX:
                    raise CallRefused(
                        CallCode.INTERNAL,
                        f"{path} arrived {DAMAGED_MAX} times with other bytes than its digest",
                    )
                transfer.start_over()
            await trio.to_thread.run_sync(part.replace, into)
        finally:
            transfer.close()
            part.unlink(missing_ok=True)

    # ── one attempt ─────────────────────────────────────────────────────────────────────────────────────────
    async def _offset(self, dispatch: Dispatch, path: str) -> int:
        """How many bytes of an upload are safe."""
        try:
            answer = await self._ask(dispatch, "HEAD", path)
        except CallRefused as refused:
            if refused.call_code is CallCode.NOT_FOUND:
                return 0
            raise
        return _offset(answer.offset)

    async def _get(self, dispatch: Dispatch, path: str, transfer: "_Transfer") -> None:
        headers = {}
        if transfer.have and transfer.etag:
            headers = {"range": f"bytes={transfer.have}-", "if-range": transfer.etag}
        async with self._exchange(dispatch, "GET", path, headers) as answer:
            begins = f"bytes {transfer.have}-"
            if answer.status not in (200, 206, 416):
                raise _refusal(answer.status, await answer.whole(_ERROR_BODY_MAX), self.base)
            if answer.status == 416 or (
                answer.status == 206 and not answer.header("content-range").startswith(begins)
            ):
                transfer.start_over()
                raise Again("another range came than was asked for")
            if answer.status == 200:
                transfer.start_over()
            transfer.etag = answer.header("etag")
            await transfer.take(answer.pieces())

    async def _ask(
        self,
        dispatch: Dispatch,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Answer:
        """One attempt of a request with a small answer. Raises `Again`, `CallRefused`."""
        async with self._exchange(dispatch, method, path, headers or {}, body) as answer:
            content = await answer.whole(WRITE_BODY_MAX if answer.status in _DONE else _ERROR_BODY_MAX)
            self._check(answer.status, content, method)
            return Answer(answer.status, content, answer.header(dataplane.UPLOAD_OFFSET))

    def _check(self, status: int, body: bytes, method: str) -> None:
        """Raises what an answer is that is not wanted."""
        if status not in _DONE:
            raise _refusal(status, body, self.base, method)

    def _exchange(
        self,
        dispatch: Dispatch,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes = b"",
    ) -> "Exchange":
        from swamp_worker.shell.exchange import Exchange, open_client

        if self._client is None:
            is_secure = self.base.startswith("https")
            self._client = open_client(self._tls() if is_secure and self._tls else None)
        return Exchange(self._client, method, self.base + path, self._headers(dispatch, headers), body)

    @staticmethod
    def _headers(dispatch: Dispatch, more: Mapping[str, str]) -> dict[str, str]:
        return {
            "authorization": f"Bearer {dispatch.credential}",
            dataplane.DISPATCH_HEADER: dispatch.dispatch,
            dataplane.FENCE_HEADER: str(dispatch.fence),
            **more,
        }

    # ── again and again ─────────────────────────────────────────────────────────────────────────────────────
    async def _insist(
        self, dispatch: Dispatch, once: Callable[[], Awaitable[T]], transfer: "_Transfer | None" = None
    ) -> T:
        """Attempts until one is answered. What a transfer got meanwhile sets the pause back."""
        tries = _Tries()
        have = -1
        while True:
            try:
                with self._calls.guard(dispatch.dispatch):
                    return await once()
            except Again as again:
                if transfer is not None and transfer.have > have:
                    have, tries = transfer.have, _Tries()
                tries.count(again)
                await self._pause(dispatch, tries.failed, again.why)

    async def _pause(self, dispatch: Dispatch, failed: int, why: str) -> None:
        """After `failed` attempts in a row."""
        if failed == SAID_AFTER:
            self._say(f"Dispatch {dispatch.dispatch[:8]} waits for the data plane at {self.base}: {why}")
        ceiling_s = min(self._calls.pause_s_max, DATA_RETRY_S_MIN * 2.0 ** min(failed - 1, 30))
        with self._calls.guard(dispatch.dispatch):
            await trio.sleep(ceiling_s * self._calls.draw())


@attrs.define
class _Tries:
    """Attempts in a row that brought nothing."""

    failed: int = 0
    strange: int = 0

    def count(self, error: Exception) -> None:
        """One more. Raises `CallRefused` for one that is strange too often."""
        self.failed += 1
        self.strange = self.strange + 1 if isinstance(error, Strange) else 0
        if isinstance(error, Strange) and self.strange >= DATA_STRANGE_MAX:
            raise error.refusal from None


class _Transfer:
    """A file that is being received."""

    def __init__(self, path: Path, sha256: str | None) -> None:
        self._path = path
        self._sha256 = sha256
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()
        self.have = 0
        self.etag = ""
        self.damaged = 0

    def start_over(self) -> None:
        self.close()
        self._digest = hashlib.sha256()
        self.have = 0
        self.etag = ""

    def is_right(self) -> bool:
        expected = self._sha256 or self.etag.strip('"')
        return self._digest.hexdigest() == expected

    async def take(self, source: AsyncIterator[bytes]) -> None:
        if self._file is None:
            self._file = await trio.to_thread.run_sync(_create, self._path)
        pieces: list[bytes] = []
        size = 0
        try:
            async for piece in source:
                pieces.append(piece)
                size += len(piece)
                if size >= _KEPT_AT_ONCE:
                    taken, pieces, size = pieces, [], 0
                    await self._keep(taken)
        finally:
            if pieces:
                with trio.CancelScope(shield=True):
                    await self._keep(pieces)

    async def _keep(self, pieces: list[bytes]) -> None:
        self.have += await trio.to_thread.run_sync(self._write, pieces)

    def _write(self, pieces: list[bytes]) -> int:
        assert self._file is not None
        for piece in pieces:
            self._digest.update(piece)
            self._file.write(piece)
        self._file.flush()
        return sum(map(len, pieces))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _create(path: Path) -> BinaryIO:
    return path.open("wb")


def _open(file: Path) -> BinaryIO:
    return file.open("rb", buffering=0)


def _size(source: BinaryIO) -> int:
    return source.seek(0, 2)


def _offset(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise CallRefused(CallCode.INTERNAL, f"the data plane answered without {dataplane.UPLOAD_OFFSET}")
    return int(text)


def _refusal(status: int, body: bytes, base: str, method: str = "GET") -> CallRefused | Strange:
    """What an answer that is not wanted says."""
    code: CallCode | None = None
    message = ""
    try:
        document: Any = json.loads(body)
        code = CallCode(document["code"])
        message = str(document["error"])
    except (ValueError, KeyError, TypeError):
        pass
    if status == 401:
        why = message or "the credential of the step is not valid any more"
        return CallRefused(CallCode.LEASE_ENDED, why)
    if code is None and (status >= 500 or status in (408, 429)):
        return Strange(CallRefused(CallCode.INTERNAL, f"the data plane at {base} failed: HTTP {status}"))
    if code is None and method == "HEAD":  # has no body to say it
        code = next((each for each, known in dataplane.STATUS.items() if known == status), None)
        message = f"the data plane answered HTTP {status}"
    if code is not None:
        return CallRefused(code, message)
    return CallRefused(
        CallCode.INTERNAL,
        f"{base} answers, but not as the data plane of an orchestrator: HTTP {status}. Check the URL of "
        "swamp worker connect, or its --data-plane-url",
    )
