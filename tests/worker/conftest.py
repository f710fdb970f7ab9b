"""What the worker's tests share: a keeper and an executor for real processes, and dispatches to give them."""

import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from swamp_proto.blocks import lines_of
from swamp_proto.messages.dispatch import Dispatch, LogBlock, Place
from swamp_worker.execution.executor import StepExecutor
from swamp_worker.execution.keeper import Keeper, open_keeper


class Lines:
    """A sink that keeps what it is given, and checks that numbers have neither gap nor double."""

    def __init__(self) -> None:
        self.lines: list[LogBlock] = []
        self.writes = 0
        self.came = trio.Event()

    @property
    def text(self) -> list[str]:
        return [line.text for line in self.lines]

    async def write(self, first: int, blocks: tuple[LogBlock, ...]) -> None:
        assert first == len(self.lines) + 1
        assert blocks
        await trio.lowlevel.checkpoint()
        self.lines += lines_of(blocks)
        self.writes += 1
        self.came.set()


def shell(run: str, **changes: Any) -> Dispatch:
    """A dispatch of `command/shell`. Fields of Dispatch by name; anything else is an argument of the method."""
    names = {"secrets", "timeout_s", "environment", "bindings", "dispatch", "display", "fence", "model_type"}
    names |= {"method"}
    fields: dict[str, Any] = {
        "dispatch": str(uuid.uuid4()),
        "fence": 7,
        "model_type": "command/shell",
        "method": "execute",
        "environment": {},
        "bindings": {},
        "secrets": (),
        "timeout_s": None,
        "display": None,
    }
    arguments = {name: value for name, value in changes.items() if name not in names}
    fields |= {name: value for name, value in changes.items() if name in names}
    return Dispatch(
        attempt=2,
        attempt_key="run/step/2",
        place=Place("run-1", "demo", "wf-1", "build", "compile"),
        model_name="echo",
        model_id="m-1",
        model_version=1,
        model_tags={},
        program=None,
        global_arguments={},
        arguments={"run": run, **arguments},
        credential="credential-of-the-step",
        **fields,
    )


@pytest.fixture
async def keeper(tmp_path: Path) -> AsyncIterator[Keeper]:
    async with open_keeper(tmp_path, "instance-of-the-test") as keeper:
        yield keeper


@pytest.fixture
def executor(tmp_path: Path, keeper: Keeper) -> StepExecutor:
    return StepExecutor(tmp_path / "work", keeper)
