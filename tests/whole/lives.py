"""What steps do, and what their authors were told: the witness outside of everything that can fail.

A life is a list of deeds. Each asks as the code of an author asks, through the executor's `Requests`, and notes what it asks before
and what it was answered after. Every value is used once, so that a thing that happened twice, or never, shows.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from swamp_proto.capabilities import CallRefused
from swamp_proto.messages.capability import CallCode
from swamp_proto.messages.dispatch import Dispatch, Finished, LogBlock, Outcome, Stream
from swamp_proto.redaction import Mask
from swamp_worker.execution.interface import Control, LogSink
from swamp_worker.execution.requests import Requests

KIB: Final = 1024


@attrs.frozen
class Deed:
    """`kind`: lines, sleep, write, delete, put, secret, read, upload, run, together."""

    kind: str
    size: int = 1  # lines, records, bytes
    seconds: float = 0.0
    parts: tuple["Deed", ...] = ()


@attrs.frozen
class Life:
    deeds: tuple[Deed, ...]
    outcome: Outcome = Outcome.SUCCEEDED
    staged_at_end: int = 0  # bytes of an output that is not in the completion


@attrs.define
class Asked:
    """One thing that an author asked for."""

    kind: str
    dispatch: str
    name: str
    n: int
    sha256: str = ""
    answer: Any = None  # None: not answered yet
    refused: CallCode | None = None
    why: str = ""

    @property
    def acknowledged(self) -> bool:
        return self.answer is not None


@attrs.define
class Execution:
    who: str
    dispatch: Dispatch
    began_s: float
    ended_s: float | None = None
    lines: list[str] = attrs.field(factory=list)
    outcome: Outcome | None = None

    @property
    def place(self) -> tuple[str, str, str]:
        place = self.dispatch.place
        return place.run, place.job, place.step


class Witness:
    """Everything that was asked and executed, in the order of its beginning."""

    def __init__(self, root: Path, life_of: Callable[[Dispatch], Life]) -> None:
        self.asked: list[Asked] = []
        self.executions: list[Execution] = []
        self._root = root
        self._life_of = life_of
        self._count = 0
        self.put: set[str] = set()  # what a secret may be: others put it, too
        self.surprises: list[str] = []  # an author was told what can not be

    def next(self) -> int:
        self._count += 1
        return self._count

    async def execute(
        self, who: str, dispatch: Dispatch, sink: LogSink, control: Control, access: Any
    ) -> Finished:
        """One dispatch, as an executor does it."""
        for other in self.executions:
            if other.ended_s is None and other.place == (
                dispatch.place.run,
                dispatch.place.job,
                dispatch.place.step,
            ):
                self.surprises.append(f"{dispatch.place.step} is executed twice at the same time")
        me = Execution(who, dispatch, trio.current_time())
        self.executions.append(me)
        life = self._life_of(dispatch)
        folder = self._root / "work" / f"{who}-{len(self.executions)}"
        folder.mkdir(parents=True)
        outputs: tuple[Any, ...] = ()
        outcome, error = life.outcome, None if life.outcome is Outcome.SUCCEEDED else "it failed by itself"

        def lease_ended() -> None:
            if not control.cancel_asked.is_set():
                control.abandon = True
                control.ask_cancel("the lease of this step has ended", 1.0)

        requests = Requests(dispatch, access, Mask(dispatch.secrets), folder, lease_ended)
        step = _Step(self, me, requests, sink, folder)
        try:
            async with trio.open_nursery() as nursery:

                async def obey() -> None:
                    await control.cancel_asked.wait()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(obey)
                try:
                    for deed in life.deeds:
                        await step.do(deed)
                    if life.staged_at_end:
                        outputs = await step.leave(life.staged_at_end)
                except CallRefused as refused:
                    outcome, error = Outcome.FAILED, f"{refused.call_code.value}: {refused.message}"
                nursery.cancel_scope.cancel()
            if control.cancel_asked.is_set():
                outcome = Outcome.ABANDONED if control.abandon else Outcome.CANCELLED
                error = control.reason
        finally:
            me.ended_s, me.outcome = trio.current_time(), outcome
        return Finished(
            dispatch.dispatch, dispatch.fence, outcome, error, outputs, len(me.lines), 0, 0, 1, 1
        )  # fmt: skip


class _Step:
    def __init__(
        self, witness: Witness, execution: Execution, requests: Requests, sink: LogSink, folder: Path
    ) -> None:
        self._witness, self._execution, self._requests = witness, execution, requests
        self._sink, self._folder = sink, folder

    async def do(self, deed: Deed) -> None:
        try:
            await getattr(self, f"_{deed.kind}")(deed)
        except BaseExceptionGroup as group:
            refused, rest = group.split(CallRefused)
            if refused is None:
                raise
            if rest is not None:
                raise rest from None
            raise _first(refused) from None

    async def _together(self, deed: Deed) -> None:
        async with trio.open_nursery() as nursery:
            for part in deed.parts:
                nursery.start_soon(self.do, part)

    async def _sleep(self, deed: Deed) -> None:
        await trio.sleep(deed.seconds)

    async def _lines(self, deed: Deed) -> None:
        lines = self._execution.lines
        first = len(lines) + 1
        texts = [f"line {first + number}" for number in range(deed.size)]
        lines += texts
        await self._sink.write(first, tuple(LogBlock(Stream.STDOUT, text) for text in texts))

    async def _ask(self, asked: Asked, question: dict[str, Any]) -> dict[str, Any]:
        self._witness.asked.append(asked)
        try:
            asked.answer = await self._requests.answer(question)
        except CallRefused as refused:
            asked.refused, asked.why = refused.call_code, refused.message
            raise
        found: dict[str, Any] = asked.answer
        return found

    def _asked(self, kind: str, name: str = "") -> Asked:
        n = self._witness.next()
        return Asked(kind, self._execution.dispatch.dispatch, name or f"{kind}-{n}", n)

    async def _write(self, deed: Deed) -> None:
        await self._one_write(self._asked("item"))

    async def _one_write(self, asked: Asked) -> None:
        record = {
            "spec": "item", "name": asked.name, "kind": "resource", "content_type": "application/json",
            "tags": {}, "content": b'{"n":%d}' % asked.n,
        }  # fmt: skip
        answer = await self._ask(asked, {"ask": "write", "records": [record]})
        (written,) = answer["records"]
        if (written["name"], written["version"]) != (asked.name, 1):
            self._witness.surprises.append(f"{asked} became {written}")

    async def _read(self, deed: Deed) -> None:
        """What was acknowledged is read."""
        written = self._asked("item")
        await self._one_write(written)
        found = await self._call("latest", {"name": written.name})
        if not found["found"] or found["content"] != b'{"n":%d}' % written.n:
            self._witness.surprises.append(f"{written.name} reads as {found}")

    async def _delete(self, deed: Deed) -> None:
        written = self._asked("item")
        await self._one_write(written)
        gone = self._asked("deleted", written.name)
        answer = await self._ask(gone, {"ask": "call", "verb": "delete", "arguments": {"name": written.name}})
        if answer != {"deleted": True, "version": 2}:
            self._witness.surprises.append(f"the delete of {written.name} was answered {answer}")

    async def _put(self, deed: Deed) -> None:
        asked = self._asked("secret", "made")
        value = f"hunter-{asked.n:06}"
        self._witness.put.add(value)
        arguments = {"vault": "main", "key": "made", "value": value}
        await self._ask(asked, {"ask": "call", "verb": "put_secret", "arguments": arguments})
        found = await self._call("secret", {"vault": "main", "key": "made"})
        if found["value"] not in self._witness.put:
            self._witness.surprises.append(f"the secret that was put as {value} is {found['value']}")

    async def _secret(self, deed: Deed) -> None:
        found = await self._call("secret", {"vault": "main", "key": "api"})
        if found["value"] != API_SECRET:
            self._witness.surprises.append(f"the secret is {found['value']}")

    async def _upload(self, deed: Deed) -> None:
        asked = self._asked("artifact")
        content = _bytes(asked.n, deed.size)
        asked.sha256 = hashlib.sha256(content).hexdigest()
        path = self._folder / asked.name
        path.write_bytes(content)
        record = {
            "spec": "artifact", "name": asked.name, "kind": "file", "tags": {},
            "content_type": "application/octet-stream", "file": str(path),
        }  # fmt: skip
        answer = await self._ask(asked, {"ask": "write", "records": [record]})
        (written,) = answer["records"]
        back = self._folder / f"{asked.name}-back"
        await self._requests.answer({"ask": "download", "record": written["id"], "path": str(back)})
        if back.read_bytes() != content:
            self._witness.surprises.append(f"{asked.name} came back with other bytes")

    async def _run(self, deed: Deed) -> None:
        asked = self._asked("run", "child")
        arguments = {"model": "child", "method": ("work", "look")[asked.n % 2]}
        answer = await self._ask(asked, {"ask": "call", "verb": "run_model", "arguments": arguments})
        if answer["status"] == "succeeded" and answer.get("error"):
            self._witness.surprises.append(f"a child run was answered {answer}")

    async def leave(self, size: int) -> tuple[Any, ...]:
        """An output of the end, staged before."""
        n = self._witness.next()
        path = self._folder / "left"
        path.write_bytes(_bytes(n, size))
        record = {
            "spec": "artifact", "name": f"left-{n}", "kind": "file", "tags": {},
            "content_type": "application/octet-stream", "file": str(path),
        }  # fmt: skip
        return await self._requests.outputs([record])

    async def _call(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        return await self._requests.answer({"ask": "call", "verb": verb, "arguments": arguments})


API_SECRET: Final = "correct-horse-battery"


def _bytes(n: int, size: int) -> bytes:
    """Different for every `n`."""
    block = hashlib.sha256(str(n).encode()).digest() * (KIB // 32)
    return (block * (size // KIB + 1))[:size]


def _first(group: BaseExceptionGroup[CallRefused]) -> CallRefused:
    found: CallRefused | BaseExceptionGroup[CallRefused] = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
