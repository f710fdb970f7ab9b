"""`swamp worker verify` says which seam is broken: a real executor on a worker with one thing wrong, and the verdicts of a real desk."""

import hashlib
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest
import trio

sys.path.insert(0, str(Path(__file__).parents[1] / "desk"))

from desk_site import Site, Step, Worker, open_site

from swamp_orch.definitions.repository import init
from swamp_proto import codec, dataplane
from swamp_proto.blocks import lines_of
from swamp_proto.capabilities import CallRefused
from swamp_proto.envelope import Event, Frame, Request
from swamp_proto.errors import NotFound
from swamp_proto.messages.capability import CallCode, Verb, Written
from swamp_proto.messages.dispatch import (
    CancelDispatch,
    CancelNoted,
    Dispatch,
    Finished,
    LogBlock,
    LogLines,
    Outcome,
    Output,
)
from swamp_proto.messages.enrollment import Enroll, Enrolled
from swamp_proto.trio_io import memory_pipe_pair
from swamp_proto.version import PROTOCOL_VERSION, SWAMP_VERSION
from swamp_worker.execution.access import Sent
from swamp_worker.execution.bundles import BundleCache
from swamp_worker.execution.environments import Environments
from swamp_worker.execution.executor import StepExecutor
from swamp_worker.execution.interface import Control
from swamp_worker.execution.keeper import Keeper, open_keeper

ALL = {
    "dispatch", "log lines", "secret delivery", "secret masking", "environment", "runner", "capability call", "write and read back",
    "upload and download", "bundle", "cancel",
}  # fmt: skip


@attrs.define
class Fault:
    """What is wrong with the worker; nothing by default."""

    dispatch: Callable[[Dispatch], Dispatch] = lambda dispatch: dispatch
    lines: Callable[[tuple[LogBlock, ...]], tuple[LogBlock, ...]] = lambda lines: lines
    finished: Callable[[str, Finished], Finished] = lambda step, finished: finished
    calls: bool = True
    data: bool = True
    bundles: bool = True
    own: Mapping[str, str] = attrs.field(factory=lambda: {"PATH": "/usr/bin:/bin"})


class StepAccess:
    """`Access` by frames and HTTP, as a worker's; with what the fault says missing."""

    def __init__(self, worker: "ProbeWorker") -> None:
        self._worker = worker
        self._fault = worker.fault

    def _step(self, dispatch: Dispatch) -> Step:
        return Step(self._worker.site, dispatch, self._worker, None)

    def _data(self) -> None:
        if not self._fault.data:
            raise CallRefused(CallCode.UNAVAILABLE, "connection refused")

    async def call(
        self, dispatch: Dispatch, number: int, verb: Verb, arguments: Mapping[str, Any]
    ) -> dict[str, Any]:
        if not self._fault.calls and verb is Verb.QUERY:
            raise CallRefused(CallCode.FORBIDDEN, "no call gets through")
        return await self._step(dispatch).call(verb, number=number, **arguments)

    async def write(self, dispatch: Dispatch, number: int, records: tuple[Output, ...]) -> Written:
        self._data()
        return await self._step(dispatch).write(*records, number=number)

    async def upload(
        self, dispatch: Dispatch, number: int, file: Path, sha256: str = "", sent: Sent | None = None
    ) -> tuple[str, int]:
        self._data()
        await self._step(dispatch).upload(file, number=number)
        data = await trio.Path(file).read_bytes()
        return hashlib.sha256(data).hexdigest(), len(data)

    async def download(self, dispatch: Dispatch, record: str, into: Path) -> None:
        self._data()
        await trio.Path(into).write_bytes((await self._get(dispatch, dataplane.record_path(record))).content)

    async def fetch_bundle(self, dispatch: Dispatch, sha256: str, into: Path) -> None:
        self._data()
        if not self._fault.bundles:
            raise CallRefused(CallCode.NOT_FOUND, "the bundle is not here")
        await trio.Path(into).write_bytes((await self._get(dispatch, dataplane.bundle_path(sha256))).content)

    async def _get(self, dispatch: Dispatch, path: str) -> httpx.Response:
        return await self._step(dispatch).http("GET", path)


class ProbeWorker(Worker):
    """Executes what it is given with the executor that every worker has."""

    def __init__(self, site: Site, pipe: Any, fault: Fault, keeper: Keeper, folder: Path) -> None:
        super().__init__(site, pipe, "w1")
        self.fault = fault
        self._controls: dict[str, Control] = {}
        access = StepAccess(self)
        bundles = BundleCache(folder / "cache", access, Environments(folder / "cache", keeper))
        self._executor = StepExecutor(folder / "work", keeper, fault.own, access=access, bundles=bundles)

    async def work(self) -> None:
        async with trio.open_nursery() as nursery:
            async for dispatch in self.dispatches:
                nursery.start_soon(self._execute, dispatch)

    async def _execute(self, dispatch: Dispatch) -> None:
        control = self._controls[dispatch.dispatch] = Control()
        sink = _Sink(self, dispatch)
        finished = await self._executor.execute(self.fault.dispatch(dispatch), sink, control)
        await self.ask(self.fault.finished(dispatch.place.step, attrs.evolve(finished, last_line=sink.sent)))

    async def _hear(self, frame: Frame) -> None:
        match frame:
            case Request(id=number, body=CancelDispatch() as asked):
                await self._reply(number, CancelDispatch, CancelNoted(asked.dispatch, known=True))
                self._controls[asked.dispatch].ask_cancel(asked.reason, 0.2)
            case _:
                await super()._hear(frame)

    async def tell(self, lines: LogLines) -> None:
        await self._pipe.send(codec.encode(Event(lines)))


@attrs.define
class _Sink:
    worker: ProbeWorker
    dispatch: Dispatch
    sent: int = 0

    async def write(self, first: int, blocks: tuple[LogBlock, ...]) -> None:
        lines = self.worker.fault.lines(tuple(lines_of(blocks)))
        if lines:
            await self.worker.tell(
                LogLines(self.dispatch.dispatch, self.dispatch.fence, self.sent + 1, lines)
            )
            self.sent += len(lines)


@asynccontextmanager
async def worker_with(tmp_path: Path, fault: Fault) -> AsyncIterator[Site]:
    init(tmp_path / "repo")
    folder = tmp_path / "worker"
    folder.mkdir()
    async with (
        open_site(tmp_path / "repo") as site,
        open_keeper(folder, "probe") as keeper,
        trio.open_nursery() as nursery,
    ):
        ours, theirs = memory_pipe_pair()
        site.nursery.start_soon(site.control.serve, theirs, "10.0.0.1")
        worker = ProbeWorker(site, ours, fault, keeper, folder)
        nursery.start_soon(worker.run)
        token = await site.mint("w1")
        enroll = Enroll(
            PROTOCOL_VERSION, SWAMP_VERSION, token, "machine-1", "boot-1", "i-1", 1, "host-1", 4711, "linux", "x86_64", {}, 1, False,
            None, (),
        )  # fmt: skip
        assert isinstance(await worker.ask(enroll), Enrolled)
        nursery.start_soon(worker.work)
        yield site
        nursery.cancel_scope.cancel()


async def verdicts(site: Site) -> tuple[set[str], set[str], dict[str, Any]]:
    """Seams that failed, seams that were skipped, and all that was answered."""
    found = await site.live.call("worker.verify", {"name": "w1", "waitS": 5.0})
    names = {
        status: {one["seam"] for one in found["seams"] if one["status"] == status}
        for status in ("pass", "fail", "skipped")
    }
    assert names["pass"] | names["fail"] | names["skipped"] == ALL
    assert (found["status"] == "pass") == (names["pass"] == ALL)
    return names["fail"], names["skipped"], found


def first_line_lost(lines: tuple[LogBlock, ...]) -> tuple[LogBlock, ...]:
    return tuple(line for line in lines if not line.text.startswith("line 2 "))


def without_secret(dispatch: Dispatch) -> Dispatch:
    arguments = dict(dispatch.arguments)
    if "env" in arguments:
        arguments["env"] = {}
    return attrs.evolve(dispatch, arguments=arguments)


def ended(step: str, **changes: Any) -> Callable[[str, Finished], Finished]:
    return lambda where, finished: attrs.evolve(finished, **changes) if where == step else finished


def no_such_code(dispatch: Dispatch) -> Dispatch:
    if dispatch.program is None or dispatch.program.bundle:
        return dispatch
    return attrs.evolve(
        dispatch, program=attrs.evolve(dispatch.program, entry="swamp_worker/models/nothing.py:Nothing")
    )


FAULTS: dict[str, tuple[Fault, set[str]]] = {
    "nothing": (Fault(), set()),
    "dispatch": (Fault(finished=ended("shell", outcome=Outcome.FAILED, error="it broke")), {"dispatch"}),
    "log lines": (Fault(lines=first_line_lost), {"log lines"}),
    "secret delivery": (Fault(dispatch=without_secret), {"secret delivery", "secret masking"}),
    "secret masking": (
        Fault(dispatch=lambda dispatch: attrs.evolve(dispatch, secrets=())),
        {"secret masking"},
    ),
    "environment not sent on": (
        Fault(dispatch=lambda dispatch: attrs.evolve(dispatch, environment={})),
        {"environment"},
    ),
    "runner": (Fault(dispatch=no_such_code), {"runner"}),
    "capability call": (Fault(calls=False), {"capability call"}),
    "data plane": (Fault(data=False), {"write and read back", "upload and download", "bundle"}),
    "bundle": (Fault(bundles=False), {"bundle"}),
    "cancel: it succeeds": (
        Fault(finished=ended("cancel", outcome=Outcome.SUCCEEDED, error=None)),
        {"cancel"},
    ),
    "cancel: processes are left": (Fault(finished=ended("cancel", left=2)), {"cancel"}),
}
SKIPPED = {
    "dispatch": {"log lines", "secret delivery", "secret masking", "environment"},
    "runner": {"capability call", "write and read back", "upload and download"},
}


@pytest.mark.parametrize("broken", FAULTS)
async def test_exactly_the_broken_seam_fails(tmp_path: Path, broken: str) -> None:
    fault, expected = FAULTS[broken]
    async with worker_with(tmp_path, fault) as site:
        failed, skipped, found = await verdicts(site)
        assert failed == expected, found
        assert skipped == SKIPPED.get(broken, set())
        assert all(one.get("detail") for one in found["seams"] if one["status"] == "fail")
        types = {record.model_type for record in site.records(latest_only=False)}
        assert not {name for name in types if not name.startswith("swamp/")}
        assert "swamp/probe" not in types
        text = str(found)
        assert "probe-" not in text.replace("probe-shell", "").replace("probe-python", "")


async def test_a_worker_that_is_not_there(tmp_path: Path) -> None:
    async with worker_with(tmp_path, Fault()) as site:
        with pytest.raises(NotFound, match="'w2' is not connected"):
            await site.live.call("worker.verify", {"name": "w2"})
