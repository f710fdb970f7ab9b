"""An orchestrator at work, and steps whose code is the test: real engine, store, desk and data plane; the worker is frames and HTTP.

A `Step` asks as a step on a worker does (calls over the control link, bytes over HTTP) or as one of the loopback; which of the two is the
only difference, so that tests of what is asked run on both.
"""

import hashlib
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest
import trio
import trio.testing
from hypercorn.config import Config
from hypercorn.trio import serve as http_serve

from swamp_orch.api.application import Application, LiveApplication
from swamp_orch.core.tokens import Token, mint, revoke
from swamp_orch.definitions.extensions import Extensions
from swamp_orch.definitions.repository import Repository, find, init
from swamp_orch.definitions.types import INTERNAL, TypeRegistry
from swamp_orch.engine import orders
from swamp_orch.engine.access_scope import AccessScope
from swamp_orch.engine.assembly import Assembled, assemble
from swamp_orch.engine.loopback import LoopbackAccess
from swamp_orch.gateway.asgi import Gateway
from swamp_orch.gateway.control import ControlDesk
from swamp_orch.gateway.dataplane import DataPlane
from swamp_orch.gateway.listener import keep_connections_apart
from swamp_orch.store.interface import Batch, Record, Selection
from swamp_orch.store.sqlite import SqliteStore, open_store
from swamp_orch.store.trio_store import commit
from swamp_orch.tokens.records import read_token, token_record
from swamp_orch.tokens.verification import Verifier, new_secret
from swamp_proto import codec, dataplane
from swamp_proto.capabilities import CallRefused
from swamp_proto.envelope import Event, Failure, Frame, Request, Response
from swamp_proto.ids import MintId, TokenName
from swamp_proto.limits import Tempo
from swamp_proto.messages import RULE_BY_BODY
from swamp_proto.messages.capability import Call, CallAnswer, CallCode, Verb, WriteBatch, Written
from swamp_proto.messages.dispatch import (
    Accepted,
    CancelDispatch,
    Dispatch,
    Finished,
    FinishNoted,
    Outcome,
    Output,
)
from swamp_proto.messages.enrollment import (
    Enroll,
    Enrolled,
    Heartbeat,
    HeartbeatAnswer,
    HeldDispatch,
    HeldPhase,
    Predecessor,
)
from swamp_proto.trio_io import MemoryPipe, memory_pipe_pair
from swamp_proto.version import PROTOCOL_VERSION, SWAMP_VERSION
from swamp_worker.execution.interface import Control, LogSink
from swamp_worker.models.built_in import BUILT_IN
from swamp_worker.models.interface import MethodSpec, ModelType, OutputSpec

NOTHING: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
ITEM = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "text": {"type": "string"}},
    "required": ["n"],
    "additionalProperties": False,
}
WRITER = ModelType(
    name="test/writer",
    version="2026.11.21.1",
    description="Writes what a test says",
    global_arguments=NOTHING,
    methods={"work": MethodSpec("work", "Whatever the test does", NOTHING)},
    outputs={
        "item": OutputSpec("item", "resource", "application/json", "A number", ITEM, keep=None),
        "artifact": OutputSpec("artifact", "file", "application/octet-stream", "Bytes", lifetime="30d"),
        "log": OutputSpec("log", "file", "text/plain", "What it printed"),
    },
)
IDS = {name: str(uuid.uuid5(uuid.NAMESPACE_OID, name)) for name in ("writer", "other", "foreign")}


class Quiet:
    """The reporter's twin."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def info(self, event: str, **fields: Any) -> None:
        self.said.append(f"{event} {fields}")

    warning = info

    def fault(self, event: str, error: BaseException, **fields: Any) -> None:
        raise error


class Scripted:
    """The loopback's executor: hands every dispatch to the test, and reports what the test says."""

    def __init__(self) -> None:
        self.put, self.take = trio.open_memory_channel["Here"](10)

    async def execute(self, dispatch: Dispatch, sink: LogSink, control: Control) -> Finished:
        here = Here(dispatch)
        await self.put.send(here)
        await here.over.wait()
        assert here.finished is not None
        return here.finished


@attrs.define(eq=False)
class Here:
    dispatch: Dispatch
    finished: Finished | None = None
    over: trio.Event = attrs.field(factory=trio.Event)


def output(spec: str = "item", name: str = "item", value: Any = None, **changes: Any) -> Output:
    """A record to write: a number by default."""
    content = changes.pop("content", None)
    if content is None:
        content = json.dumps({"n": 1} if value is None else value, separators=(",", ":")).encode()
    kind, content_type = (
        ("resource", "application/json") if spec == "item" else ("file", "application/octet-stream")
    )
    made = Output.of(spec, name, kind, content_type, content, changes.pop("tags", None))
    return attrs.evolve(made, **changes)


def ending(
    dispatch: Dispatch, outcome: Outcome = Outcome.SUCCEEDED, *outputs: Output, **changes: Any
) -> Finished:
    error = None if outcome is Outcome.SUCCEEDED else "the method failed"
    made = Finished(dispatch.dispatch, dispatch.fence, outcome, error, outputs, 0, 0, 0, 1, 1)
    return attrs.evolve(made, **changes)


class Worker:
    """A worker's end of the control link: answers heartbeats, accepts dispatches, asks what it is told to ask."""

    def __init__(self, site: "Site", pipe: MemoryPipe, name: str) -> None:
        self.site = site
        self.name = name
        self._pipe = pipe
        self._next = 1
        self._waiting: dict[int, Any] = {}
        self._scope = trio.CancelScope()
        self.put, self.dispatches = trio.open_memory_channel[Dispatch](100)
        self.cancels: list[CancelDispatch] = []

    async def ask(self, body: Any) -> Any:
        number, self._next = self._next, self._next + 1
        put, take = trio.open_memory_channel[Any](1)
        self._waiting[number] = put
        await self._pipe.send(codec.encode(Request(number, body)))
        return await take.receive()

    async def run(self) -> None:
        with self._scope:
            while True:
                for frame in codec.decode_message(await self._pipe.receive()):
                    await self._hear(frame)

    async def _hear(self, frame: Frame) -> None:
        match frame:
            case Response(id=number, body=body):
                self._waiting.pop(number).send_nowait(body)
            case Failure(id=number, failure=failure):
                self._waiting.pop(number).send_nowait(failure)
            case Request(id=number, body=Heartbeat(number=beat)):
                await self._reply(number, Heartbeat, HeartbeatAnswer(beat))
            case Request(id=number, body=Dispatch() as dispatch):
                await self._reply(number, Dispatch, Accepted(dispatch.dispatch))
                self.put.send_nowait(dispatch)
            case Event():
                pass

    async def _reply(self, number: int, asked: type[Any], body: Any) -> None:
        await self._pipe.send(codec.encode(Response(number, body, RULE_BY_BODY[asked].name)))

    async def drop(self) -> None:
        """The cable is pulled."""
        self._scope.cancel()
        await self._pipe.aclose()


class Step:
    """One dispatch at work; `call` and `write` ask as its code would."""

    def __init__(self, site: "Site", dispatch: Dispatch, worker: Worker | None, here: Here | None) -> None:
        self.site = site
        self.dispatch = dispatch
        self.worker = worker
        self._here = here
        self._number = 0

    def number(self) -> int:
        self._number += 1
        return self._number

    async def call(self, verb: Verb, /, *, number: int = 0, **arguments: Any) -> dict[str, Any]:
        """What it gives. Raises `CallRefused`."""
        number = number or self.number()
        if self.worker is None:
            return await self.site.access.call(self.dispatch, number, verb, arguments)
        asked = Call(self.dispatch.dispatch, self.dispatch.fence, number, verb, arguments)
        answer = await self.worker.ask(asked)
        assert isinstance(answer, CallAnswer), answer
        if answer.code is not None:
            raise CallRefused(answer.code, answer.message)
        return answer.value

    async def write(self, *records: Output, number: int = 0) -> Written:
        number = number or self.number()
        if self.worker is None:
            return await self.site.access.write(self.dispatch, number, records)
        body = codec.encode_body(WriteBatch(records))
        path = dataplane.write_path(self.dispatch.dispatch, number)
        return codec.decode_body((await self.http("PUT", path, content=body)).content, Written, 1 << 22)

    async def upload(self, file: Path, *, number: int = 0) -> int:
        """All of it in one request."""
        number = number or self.number()
        data = await trio.Path(file).read_bytes()
        if self.worker is None:
            await self.site.access.upload(self.dispatch, number, file, hashlib.sha256(data).hexdigest())
        else:
            await self.patch(number, 0, data, data)
        return number

    async def patch(
        self, number: int, offset: int, part: bytes, whole: bytes, **headers: str
    ) -> httpx.Response:
        about = {
            dataplane.UPLOAD_OFFSET: str(offset),
            dataplane.UPLOAD_LENGTH: str(len(whole)),
            dataplane.UPLOAD_DIGEST: hashlib.sha256(whole).hexdigest(),
            **headers,
        }
        path = dataplane.upload_path(self.dispatch.dispatch, number)
        return await self.http("PATCH", path, content=part, headers=about)

    async def http(
        self, method: str, path: str, *, headers: dict[str, str] | None = None, **more: Any
    ) -> httpx.Response:
        """A request of the data plane. Raises `CallRefused` with the code of the answer."""
        answer = await self.site.http.request(method, path, headers=self.headers() | (headers or {}), **more)
        if answer.status_code >= 400:
            told = answer.json() if answer.content else {"code": "internal", "error": "no body"}
            raise CallRefused(CallCode(told["code"]), f"{answer.status_code}: {told['error']}")
        return answer

    def headers(self) -> dict[str, str]:
        return {
            "authorization": f"Bearer {self.dispatch.credential}",
            dataplane.DISPATCH_HEADER: self.dispatch.dispatch,
            dataplane.FENCE_HEADER: str(self.dispatch.fence),
        }

    async def end(self, outcome: Outcome = Outcome.SUCCEEDED, *outputs: Output, **changes: Any) -> bool:
        """Report the end; whether it was taken."""
        finished = ending(self.dispatch, outcome, *outputs, **changes)
        if self._here is not None:
            self._here.finished = finished
            self._here.over.set()
            return True
        assert self.worker is not None
        noted = await self.worker.ask(finished)
        assert isinstance(noted, FinishNoted), noted
        return noted.accepted


@attrs.define(eq=False)
class Site:
    root: Path
    store: SqliteStore
    parts: Assembled
    control: ControlDesk
    access: LoopbackAccess
    executor: Scripted
    nursery: trio.Nursery
    live: LiveApplication
    http: httpx.AsyncClient
    clock: "Wall"
    port: int
    reporter: Quiet
    ready: bool = True  # of the data plane
    _tokens: int = 0

    # ── workers ─────────────────────────────────────────────────────────────────────────────────────────────────────
    async def mint(self, name: str, life_s: float = 36_000) -> str:
        secret = new_secret()
        self._tokens += 1
        token = mint(
            read_token(self.store, name),
            name=TokenName(name),
            now_ms=self.clock(),
            duration_ms=round(life_s * 1000),
            vault_name="v",
            secret_key="k",
            max_enrollments=1,
            mint_id=MintId(f"mint-{self._tokens}"),
            secret_hash=Verifier().hash(secret),
        )
        assert isinstance(token, Token)
        await commit(self.store, Batch((token_record(token),)))
        return f"{name}.{secret}"

    async def revoke(self, name: str) -> None:
        token = read_token(self.store, name)
        assert token is not None
        revoked = revoke(token, self.clock())
        assert revoked is not None
        await commit(self.store, Batch((token_record(revoked),)))
        self.control.look_again()

    async def worker(
        self,
        token: str,
        *held: Dispatch,
        instance: str = "i-1",
        counter: int = 1,
        predecessor: Predecessor | None = None,
    ) -> Worker:
        ours, theirs = memory_pipe_pair()
        self.nursery.start_soon(self.control.serve, theirs, "10.0.0.1")
        worker = Worker(self, ours, token.partition(".")[0])
        self.nursery.start_soon(worker.run)
        holding = tuple(HeldDispatch(one.dispatch, one.fence, HeldPhase.RUNNING, 0) for one in held)
        enroll = Enroll(
            PROTOCOL_VERSION, SWAMP_VERSION, token, "machine-1", "boot-1", instance, counter, "host-1", 4711,
            "linux", "x86_64", {}, 4, False, predecessor, holding,
        )  # fmt: skip
        enrolled = await worker.ask(enroll)
        assert isinstance(enrolled, Enrolled), enrolled
        return worker

    # ── steps ───────────────────────────────────────────────────────────────────────────────────────────────────────
    async def start(self, worker: Worker | None, more: str = "") -> str:
        """A run of one step of model `writer`; its id."""
        target = "" if worker is None else f"        target: {worker.name}\n"
        text = (
            f"name: w\njobs:\n  - name: j\n    steps:\n      - name: s\n{target}{more}"
            "        task: {type: model_method, modelIdOrName: writer, methodName: work}\nversion: 1\n"
        )
        (self.root / "workflows" / "workflow-w.yaml").write_text(text)
        run: str = (await self.live.call("workflow.run", {"name": "w"}))["runId"]
        return run

    async def step(self, worker: Worker | None, more: str = "") -> Step:
        await self.start(worker, more)
        return await self.next_step(worker)

    async def next_step(self, worker: Worker | None) -> Step:
        if worker is None:
            here = await self.executor.take.receive()
            return Step(self, here.dispatch, None, here)
        return Step(self, await worker.dispatches.receive(), worker, None)

    async def over(self) -> dict[str, Any]:
        """The document of the run, once every run has ended."""
        while self.parts.engine.active_runs():
            run = self.parts.engine.active_runs()[0]
            await run.over.wait()
            await trio.testing.wait_all_tasks_blocked()
        runs = await self.live.call("run.list", {})
        found: dict[str, Any] = await self.live.call("run.get", {"runId": runs["runs"][0]["runId"]})
        return found

    def records(self, *terms: Any, **options: Any) -> list[Record]:
        return list(self.store.select(Selection(terms, **options)))

    def attributes(self, predicate: str) -> list[dict[str, Any]]:
        query = {"predicate": predicate, "select": "attributes"}
        found: list[dict[str, Any]] = self.parts.application.call("data.query", query)["results"]
        return found

    async def accesses(self) -> list[dict[str, Any]]:
        """What was asked so far, as recorded."""
        await self.parts.desk.flush()
        return self.attributes('modelType == "swamp/access"')


class Wall:
    """A wall clock that a test may push."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def __call__(self) -> int:
        import time

        return time.time_ns() // 1_000_000 + self.ahead_ms


def make_repository(root: Path) -> None:
    init(root)
    for name, identity in IDS.items():
        folder = root / "models" / "test" / "writer"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.yaml").write_text(
            f"type: test/writer\nid: {identity}\nname: {name}\nversion: 1\ntags: {{team: core}}\n"
        )


@contextmanager
def widened(scope: AccessScope) -> Iterator[None]:
    """Steps may see this much, whatever their definitions say."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(orders, "scope_of", lambda *_: scope)
        yield


SCOPE = AccessScope(
    "writer",
    IDS["writer"],
    frozenset({"writer", "other"}),
    secrets=frozenset({("main", "api"), ("main", "worker-token-x")}),
    vaults=frozenset({"open"}),
)


@asynccontextmanager
async def open_site(root: Path, *, grace_s: float = 60.0) -> AsyncIterator[Site]:
    """An orchestrator over the repository in `root`, made when it is not one."""
    if not (root / ".swamp.yaml").exists():
        make_repository(root)
    repository = find(root)
    store = open_store(repository.data)
    wall, reporter, tempo = Wall(), Quiet(), Tempo(grace_s)
    application = Application(repository, store)
    try:
        async with (
            assemble(application, reporter=reporter, tempo=tempo, workers=True, clock_ms=wall) as parts,
            trio.open_nursery() as nursery,
        ):
            executor = Scripted()
            parts.engine.executor = executor
            assert parts.dispatches is not None
            control = ControlDesk(
                store,
                parts.dispatches,
                reporter,
                repository_id=repository.repo_id,
                tempo=tempo,
                clock_ms=wall,
            )
            live = LiveApplication(application, parts.live(control))
            data = DataPlane(parts.desk, parts.flights, store, lambda: made[0].ready)
            gateway = Gateway(
                live, control, credential="c" * 64, loopback_only=True, ready=lambda: True, data=data
            )
            keep_connections_apart(reporter.fault)
            port = await nursery.start(_listen, gateway.app(trusted=False))
            await parts.reconcile()
            control.open()
            nursery.start_soon(control.watch_tokens)
            access = LoopbackAccess(parts.desk, parts.flights, store)
            limits = httpx.Limits(max_connections=200)
            made: list[Site] = []
            async with httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{port}", timeout=60, limits=limits
            ) as http:
                made.append(
                    Site(
                        root,
                        store,
                        parts,
                        control,
                        access,
                        executor,
                        nursery,
                        live,
                        http,
                        wall,
                        port,
                        reporter,
                    )
                )
                with trio.fail_after(60):
                    yield made[0]
            nursery.cancel_scope.cancel()
    finally:
        store.close()


async def _listen(app: Any, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.accesslog = config.errorlog = None
    config.keep_alive_max_requests = 1_000_000
    config.graceful_timeout = config.shutdown_timeout = 0.1
    async with trio.open_nursery() as nursery:
        (bound,) = await nursery.start(http_serve, app, config)
        task_status.started(int(bound.rpartition(":")[2]))


def with_writer(repository: Repository) -> TypeRegistry:
    """The registry with the type of these tests."""
    known = {**BUILT_IN, WRITER.name: WRITER}
    return TypeRegistry([*known.values(), *INTERNAL], Extensions(repository, known))
