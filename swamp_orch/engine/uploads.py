"""Uploads of running steps: bytes on their way to a record, resumable, below `.swamp/data/uploads/<dispatch>/`.

Rules that hold here (SEMANTICS §7):

1. `<n>` holds the bytes, `<n>.json` what the upload is and how many bytes of it are safe. The offset that is told counts fsynced
   bytes; what an orchestrator that died left beyond it is cut off.
2. The sha256 is computed as bytes arrive; after a restart it is computed again from the file. It is compared with what the requests said,
   when they said any, as soon as the upload is whole: bytes that are not those are thrown away, and the upload is at 0 again. And always
   with what the record says that names the upload (`take`).
3. One request at a time receives: a newer one takes over from one whose connection is half-open.
4. Memory is bounded: one block is written while the next arrives; files are written in threads, and fsynced while more is written. A
   `Stretch` is read, hashed and written by one thread, block by block.
5. A whole upload becomes a blob when something names it (`take`), a text only after it was masked.
   What nothing names goes with its dispatch (`drop`).

It does not know leases: whoever calls holds one.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

import attrs
import trio

from swamp_orch.store.blobs import sync_folder
from swamp_orch.store.interface import Content, Store
from swamp_proto.capabilities import CallRefused
from swamp_proto.errors import SwampError
from swamp_proto.limits import (
    DATA_BODY_MAX,
    INLINE_CONTENT_MAX,
    MIB,
    UPLOAD_CACHED_MAX,
    UPLOAD_SYNC,
    UPLOADS_PER_DISPATCH_MAX,
)
from swamp_proto.messages.capability import CallCode
from swamp_proto.redaction import Mask

BLOCK: Final = 1 * MIB  # written and hashed at once
POURED: Final = 4 * MIB  # in one go of a thread
THREADS: Final = 8  # of all uploads
LAST_BYTES_S: Final = 1.0  # for a request whose connection was cut to take in what came before
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Stretch(Protocol):
    """The next bytes of a request, for a thread to read them where they are."""

    left: int

    async def more(self) -> bool:
        """Waits until there is something to pour; False at the end."""
        ...

    def pour(self, into: Callable[[memoryview], object], most: int) -> None:
        """Hand on about `most` of the bytes that are there. Blocks for a bounded time."""
        ...

    def end(self) -> None: ...


Body = Callable[[], Awaitable[bytes | Stretch]]
"""The next bytes of a request, `b""` at its end. Raises what ends the request."""
Progress = Callable[[int, int], object]
"""Hears how many bytes are here, and of how many."""


class WrongOffset(CallRefused):
    """The bytes do not begin where the safe ones end: at `offset`."""

    def __init__(self, offset: int) -> None:
        super().__init__(CallCode.CONFLICT, f"the upload goes on at byte {offset}")
        self.offset = offset


@attrs.define(eq=False)
class _Upload:
    """One upload, as far as this process knows it. The file is open while it is not whole."""

    path: Path
    length: int
    sha256: str  # as it was said, or "", and found when it is whole
    safe: int = 0
    whole: bool = False
    stored: tuple[str, int] | None = None  # sha256 and size of what it became when it was masked
    content: Content | None = None  # once it was taken
    masked: bool = False  # … by something that is masked
    prepared: bool = False  # its files are there
    fd: int = -1
    hash: Any = None
    written: int = 0  # and hashed
    holder: trio.CancelScope | None = None
    turn: trio.Lock = attrs.field(factory=trio.Lock)

    @property
    def note(self) -> Path:
        return self.path.with_name(self.path.name + ".json")

    # ── in a thread ─────────────────────────────────────────────────────────────────────────────────────────────────
    def open(self) -> None:
        """Have the file open with its safe bytes hashed, and nothing behind them."""
        if self.fd >= 0:
            return
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, self.safe)
            found = hashlib.sha256()
            while block := os.read(fd, BLOCK):
                found.update(block)
        except BaseException:
            os.close(fd)
            raise
        self.fd, self.hash, self.written = fd, found, self.safe

    def write(self, block: bytes | memoryview) -> None:
        view = memoryview(block)
        at = self.written
        while view:
            count = os.pwrite(self.fd, view, at)
            view, at = view[count:], at + count
        self.hash.update(block)
        self.written = at

    def sync_until(self, at: int) -> None:
        """The first `at` bytes, which are not all, become safe while more are written."""
        os.fdatasync(self.fd)
        self._let_go(at)
        self.safe = at
        self.save()

    def sync(self) -> None:
        """What was written becomes safe; the whole is compared with what was said. Raises `CallRefused`."""
        if self.written == self.safe and not (self.written == self.length and not self.whole):
            return
        os.fdatasync(self.fd)
        self._let_go(self.written)
        if self.written < self.length:
            self.safe = self.written
            self.save()
            return
        found = self.hash.hexdigest()
        if self.sha256 not in ("", found):
            self.forget()
            self.safe = 0
            self.save()
            raise CallRefused(
                CallCode.INVALID, "the bytes of the upload do not have the sha256 that was said"
            )
        self.safe, self.whole, self.sha256 = self.written, True, found
        self.save()
        self.forget()

    def _let_go(self, at: int) -> None:
        """What is on disk of a large upload leaves the page cache: what is read all the time is not pushed out by it, and what comes next
        is written to the same pages again."""
        if self.length > UPLOAD_CACHED_MAX and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.fd, self.safe, at - self.safe, os.POSIX_FADV_DONTNEED)

    def save(self) -> None:
        about = {"length": self.length, "sha256": self.sha256, "safe": self.safe, "whole": self.whole}
        data = (
            json.dumps(about | {"stored": self.stored}).encode().ljust(400) + b"\n"
        )  # one sector, written over in place
        fd = os.open(self.note, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(fd, data, 0)
            os.fdatasync(fd)
        finally:
            os.close(fd)

    def mask(self, mask: Mask) -> None:
        """Have the file masked; what it held is gone. Dies halfway? Then it is done again, or was done."""
        beside = self.path.with_name(self.path.name + ".masked")
        if self.stored is None and self.path.exists():
            self.stored = _mask_file(self.path, beside, mask)
            if self.stored == (self.sha256, self.length):
                self.stored = None
                beside.unlink()
                return
            self.save()
        if self.stored is not None and beside.exists():
            beside.replace(self.path)
            sync_folder(self.path.parent)

    def forget(self) -> None:
        """Close the file; what is not safe is cut off when it is opened again."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd, self.hash = -1, None


@attrs.define(eq=False)
class _Filling:
    """The bytes of one request on their way into the file, made safe while more comes."""

    upload: _Upload
    thread: Callable[..., Awaitable[Any]]
    progress: Progress | None
    nursery: trio.Nursery
    begun: int = 0  # what is before it is safe, or is being made so
    syncing: trio.Event | None = None

    async def take(self, source: "trio.MemoryReceiveChannel[bytes | Stretch]") -> None:
        self.begun = self.upload.safe
        async for piece in source:
            if isinstance(piece, bytes):
                await self.thread(self.upload.write, piece)
                await self._wrote()
            else:
                await self._pour(piece)

    async def _pour(self, stretch: Stretch) -> None:
        try:
            while await stretch.more():
                await self.thread(stretch.pour, self.upload.write, POURED)
                await self._wrote()
        finally:
            stretch.end()

    async def _wrote(self) -> None:
        upload = self.upload
        if upload.written - self.begun >= UPLOAD_SYNC and upload.written < upload.length:
            if self.syncing is not None:
                await self.syncing.wait()  # one at a time: so much and no more is not safe yet
            self.begun, self.syncing = upload.written, trio.Event()
            self.nursery.start_soon(self._sync, self.begun, self.syncing)
        if self.progress is not None:
            self.progress(upload.written, upload.length)

    async def _sync(self, at: int, done: trio.Event) -> None:
        await self.thread(self.upload.sync_until, at)
        done.set()


class Uploads:
    """All uploads of this orchestrator."""

    def __init__(self, folder: Path, store: Store) -> None:
        self._folder = folder
        self._store = store
        self._open: dict[str, dict[int, _Upload]] = {}
        self._threads = trio.CapacityLimiter(THREADS)

    async def offset(self, dispatch: str, number: int) -> int:
        """How many bytes are safe; 0 for one that was never begun. Who asks will go on from there: a request that is still at work may
        read to the end of its cut connection, but only for a moment, and what it brought is safe before the answer.
        """
        upload = await self._find(dispatch, number)
        if upload is None:
            return 0
        with trio.move_on_after(LAST_BYTES_S):
            async with upload.turn:
                return upload.safe
        if upload.holder is not None:
            upload.holder.cancel()
        async with upload.turn:
            return upload.safe

    async def found(self, dispatch: str, number: int) -> tuple[str, int]:
        """The sha256 and size of a whole upload, as its bytes are."""
        upload = await self._find(dispatch, number)
        assert upload is not None and upload.whole
        return upload.sha256, upload.length

    async def receive(
        self,
        dispatch: str,
        number: int,
        *,
        offset: int,
        length: int,
        sha256: str,
        body: Body,
        progress: Progress | None = None,
    ) -> int:
        """Take the bytes of one request; how many are safe then. What arrived before a request was cut is kept. `sha256` of the whole may
        be `""` until it is known.

        :raises WrongOffset: the safe bytes end elsewhere
        :raises CallRefused: another upload has this number, it is too large, its bytes are wrong, or the disk is full
        """
        upload = await self._find(dispatch, number) or self._begin(dispatch, number, length, sha256)
        if upload.length != length or (upload.sha256 and sha256 and upload.sha256 != sha256):
            raise CallRefused(
                CallCode.IDEMPOTENCY_CONFLICT, f"upload {number} was begun with another length or sha256"
            )
        upload.sha256 = upload.sha256 or sha256
        if upload.holder is not None:
            upload.holder.cancel()
        async with upload.turn:
            if not upload.prepared:
                await self._thread(_prepare, upload)
            if offset != upload.safe:
                raise WrongOffset(upload.safe)
            if upload.whole:
                if await body():
                    raise _too_long(length)
                return upload.safe
            scope = upload.holder = trio.CancelScope()
            try:
                with scope:
                    await self._fill(upload, body, progress)
            finally:
                if upload.holder is scope:
                    upload.holder = None
            if scope.cancelled_caught:
                raise CallRefused(CallCode.UNAVAILABLE, "a newer request goes on with this upload")
            return upload.safe

    async def take(
        self, dispatch: str, number: int, said: tuple[str, int], mask: Mask | None = None
    ) -> Content:
        """The content of a whole upload, ready to be named by a record that says this sha256 and size of it; a text masked before, and
        then of another sha256 and size. Raises `CallRefused`, `StoreFull`."""
        upload = await self._find(dispatch, number)
        if upload is not None and not upload.whole and upload.safe == upload.length:
            async with upload.turn:  # its last bytes were safe when an orchestrator died
                await self._thread(_finish, upload)
        if upload is None or not upload.whole:
            have = "was never begun" if upload is None else f"has {upload.safe} of {upload.length} bytes"
            raise CallRefused(CallCode.INVALID, f"upload {number} {have}")
        if said != (upload.sha256, upload.length):
            raise CallRefused(CallCode.INVALID, f"upload {number} holds other bytes than its record says")
        async with upload.turn:
            if upload.content is None:
                upload.content, upload.masked = (
                    await self._thread(self._adopt, upload, mask),
                    mask is not None,
                )
            elif mask is not None and not upload.masked:
                raise CallRefused(
                    CallCode.INVALID,
                    f"upload {number} is a binary record's already, and can not be masked any more",
                )
        return upload.content

    async def drop(self, dispatch: str) -> None:
        """The dispatch is over: what nothing names goes."""
        uploads = self._open.pop(dispatch, None)
        if uploads is None:
            return
        for upload in uploads.values():
            if upload.holder is not None:
                upload.holder.cancel()
            async with upload.turn:
                upload.forget()
        await self._thread(shutil.rmtree, self._folder / dispatch, True)

    def knows(self, dispatch: str) -> bool:
        return dispatch in self._open

    async def sweep(self, keep: Collection[str]) -> None:
        """After a start: remove what belongs to dispatches that are over."""

        def remove() -> None:
            with suppress(FileNotFoundError):
                for folder in self._folder.iterdir():
                    if folder.name in keep:
                        self._open.setdefault(folder.name, {})
                    else:
                        shutil.rmtree(folder, ignore_errors=True)

        await self._thread(remove)

    # ── one upload ──────────────────────────────────────────────────────────────────────────────────────────────────
    async def _fill(self, upload: _Upload, body: Body, progress: Progress | None) -> None:
        await self._thread(upload.open)
        put, take = trio.open_memory_channel[bytes | Stretch](0)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_Filling(upload, self._thread, progress, nursery).take, take)
                async with put:
                    await _read(body, put, upload.length - upload.written)
        except BaseExceptionGroup as group:
            ended, rest = group.split(SwampError)
            if ended is None:
                raise
            if rest is not None:  # cancelled as well: nobody asks any more how it ended
                raise rest from None
            raise _single(ended) from None
        finally:
            with trio.CancelScope(shield=True):
                await self._thread(upload.sync)

    def _adopt(self, upload: _Upload, mask: Mask | None) -> Content:
        if mask is not None:
            upload.mask(mask)
        sha256, size = upload.stored or (upload.sha256, upload.length)
        if size <= INLINE_CONTENT_MAX:
            return Content(upload.path.read_bytes(), sha256, size)
        if not upload.path.exists():  # taken by a process that died before it could commit
            return Content(None, sha256, size)
        return self._store.adopt(upload.path, sha256, size)

    async def _find(self, dispatch: str, number: int) -> _Upload | None:
        known = self._open.get(dispatch, {}).get(number)
        if known is None:
            known = await self._thread(_load, self._folder / dispatch / str(number))
            if known is not None:
                known = self._open.setdefault(dispatch, {}).setdefault(number, known)
        return known

    def _begin(self, dispatch: str, number: int, length: int, sha256: str) -> _Upload:
        if length > DATA_BODY_MAX:
            raise CallRefused(
                CallCode.TOO_LARGE, f"an upload of {length} bytes; a record holds up to {DATA_BODY_MAX}"
            )
        uploads = self._open.setdefault(dispatch, {})
        if sum(not upload.whole for upload in uploads.values()) >= UPLOADS_PER_DISPATCH_MAX:
            raise CallRefused(
                CallCode.TOO_LARGE,
                f"{UPLOADS_PER_DISPATCH_MAX} uploads of one step are open; finish some first",
            )
        return uploads.setdefault(number, _Upload(self._folder / dispatch / str(number), length, sha256))

    async def _thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return await trio.to_thread.run_sync(lambda: work(*arguments), limiter=self._threads)
        except OSError as error:
            if error.errno in _FULL:
                raise CallRefused(CallCode.UNAVAILABLE, "the orchestrator's disk is full") from None
            raise CallRefused(CallCode.INTERNAL, f"the upload could not be kept: {error.strerror}") from error


async def _read(body: Body, put: "trio.MemorySendChannel[bytes | Stretch]", room: int) -> None:
    """Pass on what arrives in blocks, and what arrived before the request broke, too."""
    parts: list[bytes] = []
    size = total = 0
    try:
        while piece := await body():
            total += len(piece) if isinstance(piece, bytes) else piece.left
            if total > room:
                raise _too_long(room)
            if not isinstance(piece, bytes):
                if parts:
                    await put.send(b"".join(parts))
                    parts, size = [], 0
                await put.send(piece)
                continue
            parts.append(piece)
            size += len(piece)
            if size >= BLOCK:
                await put.send(b"".join(parts))
                parts, size = [], 0
    except SwampError:
        if parts and total <= room:
            await put.send(b"".join(parts))
        raise
    if parts:
        await put.send(b"".join(parts))


def _prepare(upload: _Upload) -> None:
    folder = upload.path.parent
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_folder(folder.parent)
    upload.open()
    upload.save()
    sync_folder(folder)
    upload.prepared = True


def _mask_file(source: Path, into: Path, mask: Mask) -> tuple[str, int]:
    """A masked copy, fsynced; its sha256 and size."""
    stream, digest, size = mask.for_stream(), hashlib.sha256(), 0
    with source.open("rb") as file, into.open("wb") as copy:
        while True:
            block = file.read(BLOCK)
            piece = stream.feed(block) if block else stream.flush()
            digest.update(piece)
            size += len(piece)
            copy.write(piece)
            if not block:
                break
        copy.flush()
        os.fdatasync(copy.fileno())
    into.chmod(0o600)
    return digest.hexdigest(), size


def _finish(upload: _Upload) -> None:
    if not upload.whole:
        upload.open()
        upload.sync()


def _load(path: Path) -> _Upload | None:
    """An upload of an orchestrator that died."""
    try:
        about = json.loads(path.with_name(path.name + ".json").read_bytes())
        stored = about["stored"] and (about["stored"][0], about["stored"][1])
        return _Upload(
            path, about["length"], about["sha256"], about["safe"], about["whole"], stored, prepared=True
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError):
        return None  # torn as it was begun: nothing of it was safe


def _too_long(most: int) -> CallRefused:
    return CallRefused(CallCode.TOO_LARGE, f"the body is longer than the {most} bytes that are missing")


def _single(group: BaseExceptionGroup[SwampError]) -> SwampError:
    found: SwampError | BaseExceptionGroup[SwampError] = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
