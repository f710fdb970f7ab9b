"""The executor of this machine: a dispatch in, a `Finished` out. Worker and loopback use the very same.

It decides which code runs a method, and holds what all executions on the machine share. It never raises for
anything a step did, and it never lets an unknown type or method look like anything but a failed step with
its reason.
"""

import os
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from swamp_proto.messages.dispatch import Dispatch, Finished, Outcome
from swamp_worker.execution.access import Access
from swamp_worker.execution.course import Host
from swamp_worker.execution.interface import BundleFolders, Control, LogSink
from swamp_worker.execution.keeper import Keeper
from swamp_worker.execution.oom import OutOfMemory
from swamp_worker.execution.runner.forks import Forks
from swamp_worker.execution.runner.step import Backstage, run_program
from swamp_worker.execution.shell import run_shell
from swamp_worker.execution.variables import StepVariables
from swamp_worker.execution.workspace import Workspace

_Run = Callable[[Dispatch, LogSink, Control, Host], Awaitable[Finished]]

_METHODS: Final[Mapping[tuple[str, str], _Run]] = {("command/shell", "execute"): run_shell}


class StepExecutor:
    """Implements `interface.Executor`.

    `directory` holds the steps' working directories and is made when needed; `own` is the environment steps
    inherit from this machine (default: this process's). `access` is how running code reaches its orchestrator, `bundles` where
    the code of extensions is; without them only types that come with swamp run, and nothing can be read or written.
    """

    def __init__(
        self,
        directory: Path,
        keeper: Keeper,
        own: Mapping[str, str] | None = None,
        *,
        access: Access | None = None,
        bundles: BundleFolders | None = None,
    ) -> None:
        variables = StepVariables(os.environ if own is None else own)
        self._host = Host(Workspace(directory), keeper, OutOfMemory(), variables)
        self._stage = Backstage(Forks(keeper), access, bundles)

    @property
    def workspace(self) -> Workspace:
        """Where steps run; its `sweep` removes what a dead predecessor left."""
        return self._host.workspace

    async def execute(self, dispatch: Dispatch, sink: LogSink, control: Control) -> Finished:
        """Run it. Raises only Cancelled, once nothing of it is left."""
        if dispatch.program is not None:
            try:
                return await run_program(dispatch, dispatch.program, sink, control, self._host, self._stage)
            finally:
                if self._stage.bundles is not None:
                    self._stage.bundles.release(dispatch.dispatch)
        run = _METHODS.get((dispatch.model_type, dispatch.method))
        if run is None:
            known = any(model_type == dispatch.model_type for model_type, _ in _METHODS)
            problem = f"method {dispatch.method!r} of type" if known else "model type"
            error = f"this executor does not know the {problem} {dispatch.model_type!r}"
            now_ms = time.time_ns() // 1_000_000
            return Finished(dispatch.dispatch, dispatch.fence, Outcome.FAILED, error, (), 0, 0, 0, now_ms, 0)
        return await run(dispatch, sink, control, self._host)
