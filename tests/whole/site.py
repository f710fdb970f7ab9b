"""The two sides as processes that are started and killed: the real parts of `swamp serve` and of `swamp worker connect`.

Left out are sockets, the HTTP server, the keeper and the processes of steps: what a step does is a `lives.Life`, and it asks as the
code of an author does, through the executor's `Requests`. The store is the twin in memory, with commits that take time; uploads,
logs and vaults are real files.

A killed orchestrator answers nobody any more, its commits that were not durable are lost, and what it had written to files is as it
was in that instant.
"""
# ruff: noqa: ASYNC110 - the clock jumps: a look now and then costs nothing and hopes for nothing

import io
import shutil
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import attrs
import h11
import httpx
import trio

from swamp_orch.api.application import Application, LiveApplication
from swamp_orch.core.tokens import Token, mint, revoke
from swamp_orch.definitions.extensions import Extensions
from swamp_orch.definitions.repository import Repository, find, init
from swamp_orch.definitions.types import INTERNAL, TypeRegistry
from swamp_orch.engine.assembly import Assembled, assemble
from swamp_orch.engine.loopback import LoopbackAccess
from swamp_orch.gateway.control import ControlDesk
from swamp_orch.gateway.dataplane import DataPlane as DataServer
from swamp_orch.store.errors import StoreFull
from swamp_orch.store.interface import Answered, Batch, answer_all
from swamp_orch.store.memory import MemoryStore
from swamp_orch.tokens.records import read_token, token_record
from swamp_orch.tokens.verification import Verifier, new_secret
from swamp_proto.errors import Broken, Conflict, SwampError
from swamp_proto.ids import MintId, TokenName
from swamp_proto.limits import KIB, Tempo
from swamp_proto.messages.dispatch import Dispatch, Finished
from swamp_proto.messages.enrollment import Predecessor
from swamp_worker.execution.interface import Control, LogSink
from swamp_worker.execution.spool import SpoolRoom
from swamp_worker.models.built_in import BUILT_IN
from swamp_worker.models.interface import MethodSpec, ModelType, OutputSpec
from swamp_worker.shell.access import RemoteAccess
from swamp_worker.shell.calls import StepCalls
from swamp_worker.shell.daemon import Machine, Ports, Settings, Worker
from swamp_worker.shell.dataplane import DataPlane
from swamp_worker.shell.dial import NoLink
from swamp_worker.shell.sender import Sender
from swamp_worker.shell.voice import Voice

from .wires import Connection, Crossings, Transport, UploadStream, WirePipe, link

EPOCH_MS: Final = 1_790_000_000_000
NOTHING: Final[dict[str, Any]] = {"type": "object", "properties": {}, "additionalProperties": False}
ITEM: Final = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
METHODS: Final = {"work": True, "look": False}
"""By name, whether it says that it changes something; both may write."""
WRITER: Final = ModelType(
    name="test/writer",
    version="2026.11.21.1",
    description="Does what a test says",
    global_arguments=NOTHING,
    methods={
        name: MethodSpec(name, "Whatever the test does", NOTHING, mutates)
        for name, mutates in METHODS.items()
    },
    outputs={
        "item": OutputSpec("item", "resource", "application/json", "A number", ITEM, keep=None),
        "artifact": OutputSpec("artifact", "file", "application/octet-stream", "Bytes", keep=None),
        "log": OutputSpec("log", "file", "text/plain", "What it printed"),
    },
    reads=frozenset({"writer", "child", "here"}),
    secrets=frozenset({"main/api", "main/made"}),
)
IDS: Final = {name: str(uuid.uuid5(uuid.NAMESPACE_OID, name)) for name in ("writer", "child", "here")}
TOKEN: Final = "pool"
CRASHED: Final = "the process of this store has crashed"
ANSWER_S: Final = 2.0  # for an answer of the data plane
SMALL: Final = (
    ("swamp_worker.execution.requests", "INLINE_WRITE_MAX", 48 * KIB),
    ("swamp_worker.execution.requests", "COMPLETION_OUTPUTS_MAX", 64 * KIB),
    ("swamp_worker.shell.dataplane", "UPLOAD_CHUNK", 96 * KIB),
    ("swamp_orch.engine.uploads", "UPLOAD_SYNC", 32 * KIB),
    ("swamp_orch.engine.uploads", "BLOCK", 16 * KIB),
)
"""Bounds that make uploads long are smaller here, so that an upload has all its parts and costs little."""


def wall_ms() -> int:
    return EPOCH_MS + round(trio.current_time() * 1000)


class Quiet:
    """The reporter; a fault of swamp's is the test's."""

    def __init__(self) -> None:
        self.say: Callable[[str], object] = lambda line: None

    def info(self, event: str, **fields: Any) -> None:
        self.say(f"  {event} {fields}")

    warning = info

    def fault(self, event: str, error: BaseException, **fields: Any) -> None:
        raise error


class SlowStore(MemoryStore):
    """Its commits are durable after a while, in the order they came."""

    def __init__(self, clock: Callable[[], int], pause_s: Callable[[], float], disk: Any = None) -> None:
        super().__init__(clock, hold=True, _disk=disk)
        self._pause_s = pause_s
        self._some = trio.Event()
        self.is_full: Callable[[], bool] = lambda: False

    def next(self) -> "SlowStore":
        """What the next process finds. Tasks of the dead one that wait in a shield are let go, to nobody's ears."""
        lost = [answered for _, answered in self._waiting]
        self.crash()
        answer_all(lost, [Broken(CRASHED)] * len(lost))
        found = SlowStore(self._clock, self._pause_s, self._disk)
        found.is_full = self.is_full
        return found

    def submit_to(self, batch: Batch, answered: Answered) -> None:
        super().submit_to(batch, answered)
        self._some.set()

    def _apply(self, batch: Batch) -> Any:
        if self.is_full():
            raise StoreFull("no space left on the device")
        return super()._apply(batch)

    async def run(self) -> None:
        try:
            while True:
                await self._some.wait()
                self._some = trio.Event()
                while self.waiting:
                    await trio.sleep(self._pause_s())
                    self.flush(1)
        finally:
            self.next()


@attrs.define(eq=False)
class Process:
    """A task that can be killed."""

    name: str
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    gone: trio.Event = attrs.field(factory=trio.Event)
    dead: bool = False
    token: str = ""  # of a worker


Execute = Callable[[str, Dispatch, LogSink, Control, Any], Awaitable[Finished]]
"""By whom, what, and through which `Access`."""


class _Executor:
    def __init__(self, who: str, execute: Execute, access: Any) -> None:
        self._who, self._execute, self._access = who, execute, access

    async def execute(self, dispatch: Dispatch, sink: LogSink, control: Control) -> Finished:
        return await self._execute(self._who, dispatch, sink, control, self._access)


class _Keeper:
    """Nothing is started, so nothing is kept."""

    def settle(self, dispatch: str) -> bool:
        return True


class Orchestrator(Process):
    """One process of `swamp serve`."""

    parts: Assembled
    live: LiveApplication
    control: ControlDesk
    data: DataServer
    store: SlowStore
    nursery: trio.Nursery
    pipes: list[WirePipe]
    connections: set[Connection]
    ready: trio.Event


class Site:
    """A repository, the orchestrator of the moment, and workers."""

    def __init__(
        self,
        root: Path,
        nursery: trio.Nursery,
        execute: Execute,
        crossings: Crossings,
        *,
        grace_s: float = 4.0,
        pause_s: Callable[[], float] = lambda: 0.0,
        draw: Callable[[], float] = lambda: 0.5,
    ) -> None:
        self.root, self.nursery, self.crossings = root, nursery, crossings
        self.grace_s, self.pause_s, self.draw = grace_s, pause_s, draw
        self._execute = execute
        self.reporter = Quiet()
        self.repository: Repository = find(root)
        self.repository.data.mkdir(exist_ok=True)
        self.store = SlowStore(wall_ms, pause_s)
        self.orchestrator: Orchestrator | None = None
        self.workers: dict[str, Process] = {}
        self.starts = 0
        self._instances = 0
        self.token = ""
        self._mints = 0
        self.is_full: Callable[[], bool] = lambda: False

    # ── the orchestrator ────────────────────────────────────────────────────────────────────────────────────
    async def start(self) -> None:
        """Until workers are let in."""
        self.starts += 1
        made = Orchestrator(f"orchestrator {self.starts}")
        made.store = self.store
        made.store.is_full = self.is_full
        made.pipes, made.connections, made.ready = [], set(), trio.Event()
        self.orchestrator = made
        self.nursery.start_soon(self._live, made)
        await made.ready.wait()

    async def _live(self, me: Orchestrator) -> None:
        try:
            with me.scope:
                await self._serve(me)
        except BaseException:
            if not me.dead:
                raise
        finally:
            me.gone.set()

    async def _serve(self, me: Orchestrator) -> None:
        tempo = Tempo(self.grace_s)
        application = Application(self.repository, me.store)
        identity = {"host": "here", "pid": self.starts, "bootId": "b", "started": me.name}
        with _as_process(identity, lambda owner: owner["started"] == me.name):
            async with trio.open_nursery() as below:
                below.start_soon(me.store.run)
                async with (
                    assemble(
                        application, reporter=self.reporter, tempo=tempo, workers=True, clock_ms=wall_ms
                    ) as parts,
                    trio.open_nursery() as nursery,
                ):
                    assert parts.dispatches is not None
                    me.parts, me.nursery = parts, nursery
                    access = LoopbackAccess(parts.desk, parts.flights, me.store)
                    parts.engine.executor = _Executor("loopback", self._execute, access)
                    me.control = ControlDesk(
                        me.store,
                        parts.dispatches,
                        self.reporter,
                        repository_id=self.repository.repo_id,
                        tempo=tempo,
                        clock_ms=wall_ms,
                    )
                    parts.flights.token_seen_over = me.control.look_again
                    me.live = LiveApplication(application, parts.live(me.control))
                    me.data = DataServer(parts.desk, parts.flights, me.store, parts.engine.taken_over.is_set)
                    nursery.start_soon(me.control.watch_tokens)
                    await parts.reconcile()
                    me.control.open()
                    me.ready.set()
                    await trio.sleep_forever()

    def strike(self) -> Orchestrator:
        """`kill -9` in this instant, and everything it had open is cut. `bury` it."""
        me = self.orchestrator
        assert me is not None
        self.orchestrator = None
        me.dead = True
        self.store = me.store.next()
        shutil.copytree(self.repository.data, self._aside(me), symlinks=True)
        for pipe in me.pipes:
            pipe.break_it(silent=False)
        for connection in me.connections:
            connection.cut.set()
        me.scope.cancel()
        return me

    async def bury(self, me: Orchestrator) -> None:
        """What it did to files after its death did not happen."""
        with trio.CancelScope(shield=True):
            await me.gone.wait()
        shutil.rmtree(self.repository.data)
        self._aside(me).rename(self.repository.data)

    def _aside(self, me: Orchestrator) -> Path:
        return self.root / me.name

    async def restart_after(self, pause_s: float) -> None:
        """Killed in this instant, and started again."""
        me = self.strike()
        await self.bury(me)
        await trio.sleep(pause_s)
        await self.start()

    async def close(self) -> None:
        """The end of the world."""
        for name in tuple(self.workers):
            await self.kill_worker(name)
        if self.orchestrator is not None:
            await self.bury(self.strike())

    # ── the wire ────────────────────────────────────────────────────────────────────────────────────────────
    @asynccontextmanager
    async def dial(self) -> Any:
        await trio.lowlevel.checkpoint()
        me = self.orchestrator
        if me is None or not hasattr(me, "control"):
            raise NoLink("nobody answers", hint="start it")
        ours, theirs = link(self.crossings)
        me.pipes.append(theirs)
        me.nursery.start_soon(me.control.serve, theirs, "10.0.0.1")
        try:
            yield ours
        finally:
            await ours.aclose()

    def request(self, scope: dict[str, Any], connection: Connection) -> bool:
        me = self.orchestrator
        if me is None or not hasattr(me, "data"):
            return False
        me.connections.add(connection)
        me.nursery.start_soon(self._answer, me, scope, connection)
        return True

    @staticmethod
    async def _answer(me: Orchestrator, scope: dict[str, Any], connection: Connection) -> None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        try:
            await me.data.serve(scope, headers, connection.receive, connection.send)
        finally:
            connection.finished()
            me.connections.discard(connection)

    # ── workers ─────────────────────────────────────────────────────────────────────────────────────────────
    async def mint(self) -> None:
        """Another token of that name: the one before, if any, was revoked."""
        secret = new_secret()
        self._mints += 1
        token = mint(
            read_token(self.store, TOKEN),
            name=TokenName(TOKEN),
            now_ms=wall_ms(),
            duration_ms=36_000_000,
            vault_name="v",
            secret_key="k",
            max_enrollments=1,
            mint_id=MintId(f"mint-{self._mints}"),
            secret_hash=Verifier().hash(secret),
        )
        assert isinstance(token, Token)
        await self._commit(token)
        self.token = f"{TOKEN}.{secret}"

    async def revoke(self) -> bool:
        """Whether it lived. By another process: serve sees it as it sees the store."""
        while True:
            token = read_token(self.store, TOKEN)
            revoked = None if token is None else revoke(token, wall_ms())
            if revoked is None:
                return False
            try:
                await self._commit(revoked)
            except Conflict:
                continue
            return True

    async def repair(self) -> None:
        """People see to it that there is a worker, with a token that lives."""
        token = read_token(self.store, TOKEN)
        if token is None or revoke(token, wall_ms()) is None:
            await self.mint()
        worker = self.workers.get(TOKEN)
        if worker is None or worker.gone.is_set() or worker.token != self.token:
            predecessor = None
            if worker is not None:
                await self.kill_worker()
                predecessor = Predecessor(worker.name, "boot", True)
            self.connect(predecessor)

    async def _commit(self, token: Token) -> None:
        while True:
            try:
                self.store.commit(Batch((token_record(token),)))
            except StoreFull:
                await trio.sleep(0.1)
                continue
            return

    def connect(self, predecessor: Predecessor | None = None, capacity: int = 2) -> Process:
        """Start the worker."""
        self._instances += 1
        me = self.workers[TOKEN] = Process(f"instance-{self._instances}", token=self.token)
        self.nursery.start_soon(self._work, me, predecessor, capacity)
        return me

    def _senders(self) -> ExitStack:
        """Uploads go through `UploadStream`s inside."""
        crossings, request = self.crossings, self.request

        async def opened(sending: Sender) -> UploadStream:
            sending._http = h11.Connection(h11.CLIENT)
            stream = UploadStream(crossings, request)
            sending._stream = stream  # type: ignore[assignment]
            return stream

        patched = ExitStack()
        patched.enter_context(patch.object(Sender, "_open", opened))
        for bound in ("DATA_ANSWER_S", "DATA_TAKE_S"):
            patched.enter_context(patch(f"swamp_worker.shell.sender.{bound}", ANSWER_S))
        return patched

    async def _work(self, me: Process, predecessor: Predecessor | None, capacity: int) -> None:
        calls = StepCalls(self.draw)
        plane = DataPlane("http://swamp", calls)
        plane._client = httpx.AsyncClient(
            transport=Transport(self.crossings, self.request), timeout=httpx.Timeout(ANSWER_S)
        )
        executor = _Executor(me.name, self._execute, RemoteAccess(calls, plane))
        machine = Machine("machine", "boot", me.name, "host", 1, "linux", "x86_64", predecessor)
        worker = Worker(
            Settings("ws://swamp", self.token, capacity=capacity, labels={"pool": "any"}),
            machine,
            Ports(
                dial=self.dial,
                executor=executor,
                spool=SpoolRoom(self.root / "spool" / me.name),
                draw=self.draw,
                boot_s=trio.current_time,
                wall_ms=wall_ms,
                calls=calls,
            ),
            Voice(as_json=True, out=io.StringIO(), err=io.StringIO()),
        )
        try:
            with me.scope, self._senders():
                await worker.run()
        finally:
            me.gone.set()

    async def kill_worker(self, name: str = TOKEN) -> None:
        """`kill -9`; its keeper ends what it ran."""
        me = self.workers.pop(name)
        me.dead = True
        me.scope.cancel()
        with trio.CancelScope(shield=True):
            await me.gone.wait()

    # ── runs ────────────────────────────────────────────────────────────────────────────────────────────────
    async def run(self, name: str) -> str:
        while self.orchestrator is None or not self.orchestrator.ready.is_set():
            await trio.sleep(0.05)
        try:
            run: str = (await self.orchestrator.live.call("workflow.run", {"name": name}))["runId"]
        except SwampError:  # it is killed, or its disk is full: a person tries again
            await trio.sleep(0.5)
            return await self.run(name)
        return run

    async def cancel(self, run: str) -> None:
        """Asked for until it is said that it is."""
        while True:
            me = self.orchestrator
            if me is not None and me.ready.is_set():
                try:
                    await me.live.call("run.cancel", {"runId": run, "wait": False})
                except SwampError:
                    pass
                else:
                    return
            await trio.sleep(0.2)

    async def over(self, run: str) -> dict[str, Any]:
        """The document of a run, once it has ended; whoever serves meanwhile."""
        while True:
            me = self.orchestrator
            if me is None or not me.ready.is_set():
                await trio.sleep(0.05)
                continue
            at_work = me.parts.engine.live(run)
            if at_work is None:
                try:
                    document: dict[str, Any] = await me.live.call("run.get", {"runId": run})
                except Broken:
                    continue  # it was killed meanwhile
                return document
            with trio.move_on_after(1.0):
                await at_work.over.wait()
                await trio.sleep(0.01)


@contextmanager
def _as_process(identity: dict[str, Any], is_alive: Callable[[Any], bool]) -> Iterator[None]:
    """Inside, this process is another one, without a keeper; a registry knows the type of these tests."""

    @asynccontextmanager
    async def keeper(*_: Any, **__: Any) -> Any:
        yield _Keeper()

    with ExitStack() as patched:
        for place in ("engine.engine", "engine.recovery"):
            patched.enter_context(patch(f"swamp_orch.{place}.is_alive", is_alive))
        patched.enter_context(patch("swamp_orch.engine.engine.process_identity", lambda: identity))
        patched.enter_context(patch("swamp_orch.engine.assembly.open_keeper", keeper))
        for place, name, value in SMALL:
            patched.enter_context(patch(f"{place}.{name}", value))
        patched.enter_context(
            patch.object(Application, "types", property(lambda app: with_writer(app.repository)))
        )
        yield


def with_writer(repository: Repository) -> TypeRegistry:
    known = {**BUILT_IN, WRITER.name: WRITER}
    return TypeRegistry([*known.values(), *INTERNAL], Extensions(repository, known))


def make_repository(root: Path) -> None:
    """One model per method, and a workflow for each place it can run in."""
    init(root)
    folder = root / "models" / "test" / "writer"
    folder.mkdir(parents=True, exist_ok=True)
    for name, identity in IDS.items():
        (folder / f"{name}.yaml").write_text(f"type: test/writer\nid: {identity}\nname: {name}\nversion: 1\n")
    for name, placed in (("remote", "        labels: {pool: any}\n"), ("local", "")):
        (root / "workflows" / f"workflow-{name}.yaml").write_text(
            f"name: {name}\njobs:\n  - name: j\n    steps:\n      - name: s\n{placed}"
            "        task: {type: model_method, modelIdOrName: writer, methodName: work}\nversion: 1\n"
        )
