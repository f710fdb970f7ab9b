"""`Access` of the loopback: what a step that runs in the orchestrator asks, answered by the desk without a wire.

The very same desk, checks and records as for a worker; only the carrying differs: calls are calls, and files are read and written where
they are. What is not possible now (the disk is full) is tried again for as long as the lease lives, as a worker does.
"""

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import trio

from swamp_orch.engine.desk import StepDesk
from swamp_orch.engine.flights import Flights
from swamp_orch.engine.uploads import BLOCK
from swamp_orch.store.interface import Record, Store
from swamp_proto.capabilities import CallRefused
from swamp_proto.errors import Broken
from swamp_proto.limits import STORE_RETRY_S
from swamp_proto.messages.capability import Call, CallCode, Verb, WriteBatch, Written
from swamp_proto.messages.dispatch import Dispatch, Output
from swamp_worker.execution.access import Sent

T = TypeVar("T")


class LoopbackAccess:
    """Implements `swamp_worker.execution.access.Access`."""

    def __init__(self, desk: StepDesk, flights: Flights, store: Store) -> None:
        self._desk = desk
        self._flights = flights
        self._store = store

    async def call(
        self, dispatch: Dispatch, number: int, verb: Verb, arguments: Mapping[str, Any]
    ) -> dict[str, Any]:
        return await _insist(partial(self._call, dispatch, number, verb, arguments))

    async def _call(
        self, dispatch: Dispatch, number: int, verb: Verb, arguments: Mapping[str, Any]
    ) -> dict[str, Any]:
        asked = Call(dispatch.dispatch, dispatch.fence, number, verb, dict(arguments))
        answer = await self._desk.call(asked, None)
        if answer.code is not None:
            raise CallRefused(answer.code, answer.message)
        return answer.value

    async def write(self, dispatch: Dispatch, number: int, records: tuple[Output, ...]) -> Written:
        return await _insist(partial(self._write, dispatch, number, records))

    async def _write(self, dispatch: Dispatch, number: int, records: tuple[Output, ...]) -> Written:
        with self._flights.under(dispatch.dispatch, dispatch.fence) as flight:
            return await self._desk.write(flight, number, WriteBatch(records))

    async def upload(
        self, dispatch: Dispatch, number: int, file: Path, sha256: str = "", sent: Sent | None = None
    ) -> tuple[str, int]:
        return await _insist(partial(self._upload, dispatch, number, file, sha256, sent))

    async def _upload(
        self, dispatch: Dispatch, number: int, file: Path, sha256: str, sent: Sent | None
    ) -> tuple[str, int]:
        with self._flights.under(dispatch.dispatch, dispatch.fence) as flight:
            length = (await trio.to_thread.run_sync(file.stat)).st_size
            async with await trio.open_file(file, "rb") as source:
                offset = await self._desk.uploads.offset(dispatch.dispatch, number)
                await source.seek(offset)
                await self._desk.receive(
                    flight,
                    number,
                    offset=offset,
                    length=length,
                    sha256=sha256,
                    body=lambda: source.read(BLOCK),
                    heard=sent,
                )
            return await self._desk.uploads.found(dispatch.dispatch, number)

    async def download(self, dispatch: Dispatch, record: str, into: Path) -> None:
        with self._flights.under(dispatch.dispatch, dispatch.fence) as flight:
            found = await self._desk.record(flight, record)
            await trio.to_thread.run_sync(self._save, found, into)

    async def fetch_bundle(self, dispatch: Dispatch, sha256: str, into: Path) -> None:
        with self._flights.under(dispatch.dispatch, dispatch.fence) as flight:
            source = await self._desk.bundle(flight, sha256)
            await trio.to_thread.run_sync(_copy, source.open("rb"), into)

    def _save(self, record: Record, into: Path) -> None:
        if record.content is not None:
            into.write_bytes(record.content)
        elif _copy(self._store.open_blob(record.sha256), into) != record.sha256:
            into.unlink()
            raise Broken(f"the blob {record.sha256} is damaged", hint="restore .swamp/data from a backup")


async def _insist(once: Callable[[], Awaitable[T]]) -> T:
    """What `once` gives, when it is not put off any more. The end of the lease ends it: `CallRefused`."""
    while True:
        try:
            return await once()
        except CallRefused as refused:
            if refused.call_code is not CallCode.UNAVAILABLE:
                raise
        await trio.sleep(STORE_RETRY_S)


def _copy(source: BinaryIO, into: Path) -> str:
    """Copy all of it; the sha256 of what was copied."""
    found = hashlib.sha256()
    with source, into.open("xb") as target:
        while block := source.read(BLOCK):
            found.update(block)
            target.write(block)
    return found.hexdigest()
