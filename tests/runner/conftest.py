"""What the runner's tests share: an executor with an in-memory `Access`, and extensions written for one test."""

import textwrap
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from swamp_proto.blocks import lines_of
from swamp_proto.messages.dispatch import Dispatch, Finished, LogBlock, Place, Program
from swamp_worker.execution.executor import StepExecutor
from swamp_worker.execution.interface import Control
from swamp_worker.execution.keeper import Keeper, open_keeper
from swamp_worker.sdk.memory import MemoryAccess

HEAD = """
import attrs, os, sys, time, signal, threading
import trio
from swamp_worker.sdk import *
from swamp_worker.sdk import Resources

@attrs.frozen
class Thing:
    name: str
    size: int = 0

@attrs.frozen
class Count:
    count: int = 1
"""


class Lines:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.lines: list[LogBlock] = []
        self.came = trio.Event()

    @property
    def text(self) -> str:
        return "\n".join(line.text for line in self.lines)

    async def write(self, first: int, blocks: tuple[LogBlock, ...]) -> None:
        assert first == len(self.lines) + 1
        await trio.lowlevel.checkpoint()
        self.lines += lines_of(blocks)
        self.came.set()

    async def wait_for(self, text: str) -> None:
        while text not in self.text:
            self.came = trio.Event()
            if text in self.text:
                return
            await self.came.wait()


@attrs.define
class Folders:
    """Bundles that are folders already."""

    found: dict[str, Path] = attrs.field(factory=dict)
    needs: dict[str, Path] = attrs.field(factory=dict)
    released: list[str] = attrs.field(factory=list)

    async def folder(self, dispatch: Dispatch, sha256: str) -> Path:
        return self.found[sha256]

    async def dependencies(
        self, dispatch: Dispatch, folder: Path, say: Callable[[str], object]
    ) -> Path | None:
        if str(folder) in self.needs:
            say("installing what it needs")
        await trio.lowlevel.checkpoint()
        return self.needs.get(str(folder))

    def release(self, dispatch: str) -> None:
        self.released.append(dispatch)


@attrs.define
class Site:
    """One executor, and what a test asks of it."""

    executor: StepExecutor
    keeper: Keeper
    access: MemoryAccess
    folders: Folders
    root: Path

    def extension(self, code: str, head: str = HEAD) -> str:
        """The name of a bundle with one file `ext.py`: `code` is the body of its class `Ext`, indented by nothing."""
        name = uuid.uuid4().hex
        folder = self.root / name
        folder.mkdir()
        body = textwrap.indent(textwrap.dedent(code).strip("\n"), "    ")
        text = f"{head}\n@model('@test/ext', version='2026.1.1')\nclass Ext:\n    thing = resource(Thing)\n"
        text += f"    paper = file('text/plain')\n    blob = file('application/octet-stream')\n{body}\n"
        (folder / "ext.py").write_text(text)
        self.folders.found[name] = folder
        return name

    def dispatch(self, bundle: str, method: str = "go", **changes: Any) -> Dispatch:
        program = Program(bundle, "ext.py:Ext", changes.pop("checks", ()), changes.pop("reports", ()))
        fields: dict[str, Any] = {
            "dispatch": str(uuid.uuid4()),
            "fence": 7,
            "attempt": 2,
            "attempt_key": "run/step/2",
            "place": Place("run-1", "demo", "wf-1", "build", "compile"),
            "model_type": "@test/ext",
            "model_name": "mine",
            "model_id": "m-1",
            "model_version": 3,
            "model_tags": {"env": "test"},
            "global_arguments": {},
            "arguments": {},
            "environment": {},
            "bindings": {},
            "display": None,
            "secrets": (),
            "timeout_s": None,
            "credential": "credential-of-the-step",
        }
        return Dispatch(method=method, program=program, **{**fields, **changes})

    async def execute(
        self, dispatch: Dispatch, control: Control | None = None, within_s: float = 60
    ) -> tuple[Finished, Lines]:
        lines = Lines()
        with trio.fail_after(within_s):
            finished = await self.executor.execute(dispatch, lines, control or Control())
        assert finished.last_line == len(lines.lines)
        assert self.keeper.left(dispatch.dispatch, None) == []
        return finished, lines

    async def run(self, code: str, method: str = "go", **changes: Any) -> tuple[Finished, Lines]:
        return await self.execute(self.dispatch(self.extension(code), method, **changes))


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_keeper(tmp_path, "instance-of-the-test") as keeper:
        access, folders = MemoryAccess(model="mine"), Folders()
        executor = StepExecutor(tmp_path / "work", keeper, access=access, bundles=folders)
        yield Site(executor, keeper, access, folders, tmp_path)


@pytest.fixture
def make_site() -> Callable[..., Site]:
    return Site
