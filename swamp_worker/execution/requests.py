"""What a running Python step asks, answered through its `Access`: numbered, masked, writes put together.

    requests = Requests(dispatch, access, mask, directory)
    value = await requests.answer({"ask": "write", "records": [...]})      # raises CallRefused

Rules that hold here:

- Calls, writes and uploads of a dispatch are counted together, from 1; a number is used for one request and never again.
- Writes that wait at the same time become one: one commit for as many as fit. When such a write is refused, each is tried by itself,
  so that nobody pays for a neighbour's mistake.
- Content that is too large for a write is uploaded first, from disk.
- Everything textual is masked before it leaves. A secret that is handed out is in the mask before its reader has it.
- `LEASE_ENDED` is final: whoever runs the step is told once.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from swamp_proto.capabilities import CallRefused
from swamp_proto.errors import SwampError
from swamp_proto.limits import (
    COMPLETION_OUTPUTS_MAX,
    INLINE_WRITE_MAX,
    UPLOADS_PER_DISPATCH_MAX,
    WRITE_BODY_MAX,
    WRITE_RECORDS_MAX,
)
from swamp_proto.messages.capability import CallCode, Verb, WrittenRecord
from swamp_proto.messages.dispatch import Dispatch, Output
from swamp_proto.redaction import NAME_REFUSED, Mask, is_text, short_warning
from swamp_worker.execution.access import Access

_READ_SIZE: Final = 1024 * 1024
_OVERHEAD: Final = 512  # of one record in a write, beside its content and its words


@attrs.define(eq=False)
class _Waiting:
    """A write that waits for its commit."""

    records: tuple[Output, ...]
    weight: int
    written: tuple[WrittenRecord, ...] | None = None
    refused: CallRefused | None = None

    @property
    def is_over(self) -> bool:
        return self.written is not None or self.refused is not None


class Requests:
    """Of one dispatch. Its tasks may call `answer` at the same time."""

    def __init__(
        self,
        dispatch: Dispatch,
        access: Access | None,
        mask: Mask,
        directory: Path,
        lease_ended: Callable[[], object] = lambda: None,
        say: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._dispatch = dispatch
        self._directory = directory
        self._access = access
        self._mask = mask
        self._lease_ended = lease_ended
        self._say = say
        self._number = 0
        self._waiting: list[_Waiting] = []
        self._writing = trio.Lock()
        self._uploading = trio.CapacityLimiter(max(1, UPLOADS_PER_DISPATCH_MAX // 16))

    async def answer(self, ask: Mapping[str, Any]) -> dict[str, Any]:
        """What was asked for. Raises `CallRefused`."""
        try:
            match ask:
                case {"ask": "write", "records": [*records]}:
                    return {"records": [attrs.asdict(one) for one in await self._write(records)]}
                case {"ask": "call", "verb": str(verb), "arguments": dict(arguments)}:
                    return await self._call(Verb(verb), arguments)
                case {"ask": "download", "record": str(record), "path": str(path)}:
                    await self._own_access().download(self._dispatch, record, Path(path))
                    return {}
            raise CallRefused(CallCode.INVALID, "not a question that a step can ask")
        except CallRefused as refused:
            if refused.call_code is CallCode.LEASE_ENDED:
                self._lease_ended()
            raise CallRefused(refused.call_code, self._mask(refused.message)) from None
        except OSError as error:
            raise CallRefused(CallCode.FAILED, self._mask(f"{error.strerror}: {error.filename}")) from None
        except SwampError as error:
            raise CallRefused(CallCode.INTERNAL, self._mask(error.message)) from None
        except (
            KeyError,
            TypeError,
            ValueError,
        ) as error:  # a runner that does not keep to the shape of its questions
            raise CallRefused(
                CallCode.INVALID, f"a question without its shape ({type(error).__name__})"
            ) from None

    def _own_access(self) -> Access:
        if self._access is None:
            raise CallRefused(CallCode.UNAVAILABLE, "this executor can not reach its orchestrator's data")
        return self._access

    def _next(self) -> int:
        self._number += 1
        return self._number

    # ── calls ───────────────────────────────────────────────────────────────────────────────────────────────
    async def _call(self, verb: Verb, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if verb is Verb.PUT_SECRET and isinstance(arguments.get("value"), str):
            self._learn(arguments["value"])
        access = self._own_access()
        value = await access.call(self._dispatch, self._next(), verb, arguments)
        if verb is Verb.SECRET:
            self._learn(value["value"])
        return value

    def _learn(self, secret: str) -> None:
        short = self._mask.too_short
        self._mask.add([secret])
        if self._mask.too_short > short:
            self._say(short_warning(self._mask.too_short))

    # ── writes ──────────────────────────────────────────────────────────────────────────────────────────────
    async def _write(self, records: list[Mapping[str, Any]]) -> tuple[WrittenRecord, ...]:
        self._own_access()
        outputs = tuple([await self._output(record) for record in records])
        weight = sum(_weight(output) for output in outputs)
        if weight > WRITE_BODY_MAX or len(outputs) > WRITE_RECORDS_MAX:
            raise CallRefused(
                CallCode.TOO_LARGE, f"{len(outputs)} records of {weight} bytes do not fit in one write"
            )
        mine = _Waiting(outputs, weight)
        self._waiting.append(mine)
        async with self._writing:
            if not mine.is_over:
                await self._commit(self._take())
        if mine.refused is not None:
            raise mine.refused
        assert mine.written is not None
        return mine.written

    def _take(self) -> list[_Waiting]:
        """The oldest that wait, as many as fit in one write."""
        count = records = size = 0
        for each in self._waiting:
            records += len(each.records)
            size += each.weight
            if count and (records > WRITE_RECORDS_MAX or size > WRITE_BODY_MAX):
                break
            count += 1
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return taken

    async def _commit(self, batch: list[_Waiting]) -> None:
        access = self._own_access()
        records = tuple(record for each in batch for record in each.records)
        try:
            written = (await access.write(self._dispatch, self._next(), records)).records
        except CallRefused as refused:
            if len(batch) == 1 or refused.call_code is CallCode.LEASE_ENDED:
                for each in batch:
                    each.refused = refused
                return
            for each in batch:
                await self._commit([each])
            return
        at = 0
        for each in batch:
            each.written = written[at : at + len(each.records)]
            at += len(each.records)

    # ── content ─────────────────────────────────────────────────────────────────────────────────────────────
    async def outputs(
        self, records: list[Mapping[str, Any]], room: int = COMPLETION_OUTPUTS_MAX
    ) -> tuple[Output, ...]:
        """Records of a step's end: those that do not fit in what is left of its completion are staged. Raises `CallRefused`, OSError."""
        found: list[Output] = []
        for record in records:
            output = await self._output(record, room)
            room -= len(output.content)
            found.append(output)
        return tuple(found)

    async def _output(self, record: Mapping[str, Any], inline_max: int = INLINE_WRITE_MAX) -> Output:
        """One record, masked; its content uploaded when it is larger than `inline_max`."""
        words = (record["spec"], record["name"], record["kind"], record["content_type"])
        if any(self._mask.finds(word) for word in words):
            raise CallRefused(CallCode.INVALID, NAME_REFUSED)
        tags = {self._mask(key): self._mask(value) for key, value in record["tags"].items()}
        content_type = record["content_type"] if record["kind"] == "file" else "application/json"
        if "content" in record:
            content = self._mask.content(content_type, record["content"])
            if len(content) <= inline_max:
                return Output.of(*words, content, tags)
            path = self._directory / f".staged-{self._next()}"
            await trio.to_thread.run_sync(path.write_bytes, content)
            return await self._staged(path, words, tags, None)
        path = Path(record["file"])
        size = await trio.to_thread.run_sync(lambda: path.stat().st_size)
        if size <= min(inline_max, INLINE_WRITE_MAX):
            content = await trio.to_thread.run_sync(path.read_bytes)
            content = self._mask.content(content_type, content)
            if len(content) <= inline_max:
                return Output.of(*words, content, tags)
        return await self._staged(
            path, words, tags, self._mask if self._mask and is_text(content_type) else None
        )

    async def _staged(
        self, path: Path, words: tuple[str, str, str, str], tags: dict[str, str], mask: Mask | None
    ) -> Output:
        access = self._own_access()
        async with self._uploading:
            known = "" if mask is None else await trio.to_thread.run_sync(_mask_file, path, mask)
            number = self._next()
            sha256, size = await access.upload(self._dispatch, number, path, known)
        return Output(*words, tags, number, sha256, size, b"")


def _weight(output: Output) -> int:
    words = sum(len(key) + len(value) for key, value in output.tags.items())
    return len(output.content) + _OVERHEAD + 4 * (len(output.name) + words)


def _mask_file(path: Path, mask: Mask) -> str:
    """Mask a file in place; its sha256. Blocks."""
    digest, stream = hashlib.sha256(), mask.for_stream()
    masked = path.with_name(path.name + ".masked")
    with path.open("rb") as file, masked.open("wb") as into:
        while chunk := file.read(_READ_SIZE):
            piece = stream.feed(chunk)
            digest.update(piece)
            into.write(piece)
        piece = stream.flush()
        digest.update(piece)
        into.write(piece)
    masked.replace(path)
    return digest.hexdigest()
