"""The application in the CLI's own process, for a repository without a running orchestrator.

Most calls are answered right here, synchronously, with no event loop and no thread. A run gets an engine of its own in a
background thread, so that the main thread stays free for Ctrl-C; placed steps fail there with the way to start serve.
"""

import json
import queue
import threading
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from swamp_orch.api.application import Application, check_parameters
from swamp_orch.api.interface import CALLS
from swamp_orch.definitions.repository import Repository
from swamp_proto.errors import Broken
from swamp_proto.limits import CANCEL_TERM_S, STUCK_S

if TYPE_CHECKING:
    import trio

    from swamp_orch.api.application import LiveApplication

RUN_CALLS: Final = frozenset(
    {"workflow.run", "model.method_run", "workflow.resume", "run.attach", "run.cancel"}
)
_STOP_S: Final = CANCEL_TERM_S + STUCK_S + 20.0  # longer than the end of any step takes


class InProcessSession:
    """A `Session` (api/interface.py) over the repository's own files."""

    where = "in process"

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._engine: _EngineThread | None = None

    @cached_property
    def _application(self) -> Application:
        from swamp_orch.store.sqlite import open_store

        return Application(self._repository, open_store(self._repository.data, thread=False))

    def call(self, name: str, /, **parameters: Any) -> Any:
        check_parameters(name, parameters)
        if name == "worker.queue":
            return []  # nothing waits where nothing runs
        if name in RUN_CALLS:
            return self._running().call(name, parameters)
        return self._application.call(name, parameters)

    def stream(self, name: str, /, **parameters: Any) -> Iterator[dict[str, Any]]:
        check_parameters(name, parameters)
        assert CALLS[name].streams, name
        return self._running().stream(name, parameters)

    def _running(self) -> "_EngineThread":
        if self._engine is None:
            self._engine = _EngineThread(self._repository)
        return self._engine

    def close(self) -> None:
        """Runs of this process end with it: what still executes is cancelled and its processes are dead on return."""
        if self._engine is not None:
            self._engine.stop()
        if "_application" in self.__dict__:
            self._application.store.close()


class _EngineThread:
    """One engine in a thread of its own, with a trio loop."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._ready: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._token: trio.lowlevel.TrioToken
        self._live: LiveApplication
        self._stop: trio.Event
        self._thread = threading.Thread(target=self._main, name="swamp-engine", daemon=True)
        self._thread.start()
        problem = self._ready.get()  # an answer or an error, however slow the machine; Ctrl-C ends it
        if problem is not None:
            raise problem

    def _main(self) -> None:
        import trio

        try:
            trio.run(self._serve)
        except BaseException as error:
            self._ready.put(error)

    async def _serve(self) -> None:
        import trio

        from swamp_orch.api.application import LiveApplication
        from swamp_orch.engine.assembly import assemble
        from swamp_orch.serve import wall_ms
        from swamp_orch.store.sqlite import open_store
        from swamp_proto.limits import Tempo

        store = await trio.to_thread.run_sync(open_store, self._repository.data)
        try:
            application = Application(self._repository, store)
            async with assemble(
                application, reporter=_Silent(), tempo=Tempo(), workers=False, clock_ms=wall_ms
            ) as parts:
                self._live = LiveApplication(application, parts.live())
                self._token = trio.lowlevel.current_trio_token()
                self._stop = trio.Event()
                self._ready.put(None)
                await self._stop.wait()
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(store.close)

    def call(self, name: str, parameters: Mapping[str, Any]) -> Any:
        import trio

        return trio.from_thread.run(self._live.call, name, parameters, trio_token=self._token)

    def stream(self, name: str, parameters: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        import trio

        follower = trio.from_thread.run(self._live.follow, name, parameters, trio_token=self._token)
        while lines := trio.from_thread.run(follower.more, trio_token=self._token):
            for line in lines.splitlines():
                yield json.loads(line)

    def stop(self) -> None:
        import trio

        if self._thread.is_alive():
            trio.from_thread.run_sync(self._stop.set, trio_token=self._token)
            self._thread.join(_STOP_S)
            if self._thread.is_alive():
                raise Broken("what this process started did not end in time")


class _Silent:
    """A reporter for a process whose command says everything itself."""

    def info(self, event: str, **fields: Any) -> None:
        """Nothing: the command's own output tells it."""

    def warning(self, event: str, **fields: Any) -> None:
        """Nothing: the run's events tell it."""

    def fault(self, event: str, error: BaseException, **fields: Any) -> None:
        """A bug: its evidence belongs on the error stream, whatever the command prints."""
        import sys
        import traceback

        sys.stderr.write("".join(traceback.format_exception(error)))
