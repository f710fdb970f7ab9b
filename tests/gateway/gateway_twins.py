"""The control desk without a network: real desk, real store interface in memory, real frames over memory pipes.

`Engine` is the engine's twin: it notes what the desk tells it, and says what a test wants it to say about leases.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

from swamp_orch.core.tokens import Token, mint, revoke
from swamp_orch.gateway.control import ControlDesk
from swamp_orch.store.interface import Batch
from swamp_orch.store.memory import MemoryStore
from swamp_orch.tokens.records import read_token, token_record
from swamp_orch.tokens.verification import Verifier, new_secret
from swamp_proto import codec
from swamp_proto.envelope import Event, Failure, Frame, Request, Response
from swamp_proto.errors import RefusalCode
from swamp_proto.ids import MintId, TokenName
from swamp_proto.limits import Tempo
from swamp_proto.messages import RULE_BY_BODY
from swamp_proto.messages.enrollment import Enroll, Farewell, Heartbeat, HeartbeatAnswer
from swamp_proto.trio_io import MemoryPipe, memory_pipe_pair
from swamp_proto.version import PROTOCOL_VERSION, SWAMP_VERSION

NOW_MS = 1_800_000_000_000


class Engine:
    """What the desk told it, in order, and what it answers."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.busy: dict[str, float] = {}  # worker -> seconds, for a process that proves nothing
        self.mints: set[tuple[str, str]] = set()

    async def worker_joined(self, member: Any, held: Any, predecessor: Any) -> tuple[()]:
        self.told.append(("joined", member.name, predecessor))
        await trio.lowlevel.checkpoint()
        return ()

    def worker_ready(self, member: Any) -> None:
        self.told.append(("ready", member.name))

    def worker_left(self, member: Any) -> None:
        self.told.append(("left", member.name))

    def worker_changed(self, member: Any) -> None:
        self.told.append(("changed", member.name))

    def enroll_queued(self, worker: str, instance: str) -> None:
        self.told.append(("queued", worker, instance))

    def identity_busy(self, worker: str, instance: str, *, reaped: bool) -> float | None:
        return None if reaped else self.busy.get(worker)

    def mints_at_work(self) -> set[tuple[str, str]]:
        return self.mints

    def token_ended(self, mint_id: str, why: RefusalCode) -> None:
        self.told.append(("token ended", mint_id, why))

    async def finished(self, member: Any, request: Any, finished: Any) -> None:
        raise AssertionError("nothing was dispatched")

    def log_lines(self, member: Any, lines: Any) -> None:
        raise AssertionError("nothing was dispatched")


class Quiet:
    """The reporter's twin: everything said, for the canary."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def info(self, event: str, **fields: Any) -> None:
        self.said.append(f"{event} {fields}")

    warning = info


class Peer:
    """A worker's end, frame by frame. A heartbeat asked of it is answered unless it is `deaf`."""

    def __init__(self, pipe: MemoryPipe) -> None:
        self.pipe = pipe
        self.deaf = False
        self.notices: list[str] = []
        self._next = 1

    async def ask(self, body: Any) -> None:
        await self.pipe.send(codec.encode(Request(self._next, body)))
        self._next += 1

    async def hear(self) -> Frame:
        return codec.decode(await self.pipe.receive())

    async def answer(self) -> Any:
        """The body of the next reply, or the code of a no."""
        while True:
            match await self.hear():
                case Response(body=body):
                    return body
                case Failure(failure=failure):
                    return failure
                case Event(body=Farewell() as farewell):
                    return farewell
                case Event(body=body):
                    self.notices.append(body.message)
                case Request(id=number, body=Heartbeat(number=beat)) if not self.deaf:
                    name = RULE_BY_BODY[Heartbeat].name
                    await self.pipe.send(codec.encode(Response(number, HeartbeatAnswer(beat), name)))

    async def enroll(self, token: str, **changes: Any) -> Any:
        await self.ask(enrollment(token, **changes))
        return await self.answer()


def enrollment(token: str, **changes: Any) -> Enroll:
    body = Enroll(
        PROTOCOL_VERSION, SWAMP_VERSION, token, "machine-1", "boot-1", "instance-1", 1, "host-1", 4711,
        "linux", "x86_64", {}, 1, False, None, (),
    )  # fmt: skip
    return attrs.evolve(body, **changes)


@attrs.define(eq=False)
class Gate:
    """A desk at work, and the clock it goes by."""

    desk: ControlDesk
    store: MemoryStore
    engine: Engine
    reporter: Quiet
    nursery: trio.Nursery
    wall_ms: int = NOW_MS
    expired: list[str] = attrs.field(factory=list)
    _mints: int = 0

    def dial(self, address: str = "10.0.0.1") -> Peer:
        ours, theirs = memory_pipe_pair()
        self.nursery.start_soon(self.desk.serve, theirs, address)
        return Peer(ours)

    def mint(self, name: str, *, life_s: float = 3600, machines: int | None = 1) -> str:
        secret = new_secret()
        self._mints += 1
        token = mint(
            read_token(self.store, name),
            name=TokenName(name),
            now_ms=self.wall_ms,
            duration_ms=round(life_s * 1000),
            vault_name="v",
            secret_key="k",
            max_enrollments=machines,
            mint_id=MintId(f"mint-{self._mints}"),
            secret_hash=Verifier().hash(secret),
        )
        assert isinstance(token, Token)
        self.store.commit(Batch((token_record(token),)))
        return f"{name}.{secret}"

    def revoke(self, name: str) -> None:
        token = read_token(self.store, name)
        assert token is not None
        revoked = revoke(token, self.wall_ms)
        assert revoked is not None
        self.store.commit(Batch((token_record(revoked),)))
        self.desk.look_again()


@asynccontextmanager
async def gate(tempo: Tempo | None = None, *, opened: bool = True) -> AsyncIterator[Gate]:
    async with trio.open_nursery() as nursery:
        clock: Callable[[], int] = lambda: made.wall_ms  # noqa: E731
        store, engine, reporter = MemoryStore(clock), Engine(), Quiet()
        desk = ControlDesk(
            store, engine, reporter, repository_id="repo", tempo=tempo or Tempo(), clock_ms=clock
        )
        made = Gate(desk, store, engine, reporter, nursery)
        if opened:
            desk.open()
        with trio.fail_after(60):
            yield made
        nursery.cancel_scope.cancel()
