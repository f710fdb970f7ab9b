"""What executes a dispatch, and what it reports to. The loopback executor and the worker use the same
executor.

`Executor.execute` never raises for anything the step did: every end is a `Finished`. It raises only
`trio.Cancelled`, after the process group is dead and reaped (the cancel scope *is* the dispatch's
lifetime).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import attrs
import trio

from swamp_proto.messages.dispatch import Dispatch, Finished, LogBlock


class LogSink(Protocol):
    """Where lines go while the step runs. Awaiting is back-pressure: while it blocks, the pipe is not read."""

    async def write(self, first: int, blocks: tuple[LogBlock, ...]) -> None:
        """The first line of `blocks[0]` has number `first`; numbers are consecutive per dispatch, from 1."""
        ...


@attrs.define
class Control:
    """What the holder may ask of a running execution."""

    cancel_asked: trio.Event = attrs.field(factory=trio.Event)
    term_s: float = 10.0  # TERM -> KILL
    reason: str = ""
    started: trio.Event = attrs.field(factory=trio.Event)  # set when the process runs
    abandon: bool = False  # the end is reported as ABANDONED, whatever the process said
    on_ask: Callable[[], object] | None = None  # set by the executor: called at once when a cancel is asked

    def ask_cancel(self, reason: str, term_s: float) -> None:
        self.reason, self.term_s = reason, term_s
        self.cancel_asked.set()
        if self.on_ask is not None:
            self.on_ask()


class Executor(Protocol):
    async def execute(self, dispatch: Dispatch, sink: LogSink, control: Control) -> Finished: ...


class BundleFolders(Protocol):
    """Where the code of extensions is on this machine."""

    async def folder(self, dispatch: Dispatch, sha256: str) -> Path:
        """The unpacked bundle, fetched and verified when it is not there. Raises `CallRefused` and `Broken`, each with its cause."""
        ...

    async def dependencies(
        self, dispatch: Dispatch, folder: Path, say: Callable[[str], object]
    ) -> Path | None:
        """A folder to import what the code in `folder` depends on from; None when it declares nothing. `say` hears what an
        installation prints. Raises `SwampError`, each with its cause.
        """
        ...

    def release(self, dispatch: str) -> None:
        """The dispatch is over: what it used may go when room is needed."""
        ...
