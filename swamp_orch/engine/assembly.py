"""How an engine is put together, in `swamp serve` and in a CLI process without one: the same parts, with or without workers."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from swamp_orch.api.application import Application
from swamp_orch.api.services.tokens import TokenService
from swamp_orch.core.lease_values import EndReason, Lease
from swamp_orch.definitions.models import Models
from swamp_orch.definitions.workflows import Workflows
from swamp_orch.engine.access_log import AccessLog
from swamp_orch.engine.desk import StepDesk
from swamp_orch.engine.dispatches import WorkerDispatches
from swamp_orch.engine.engine import Engine, FeedFollower
from swamp_orch.engine.extension_care import ExtensionCare
from swamp_orch.engine.flights import Flights
from swamp_orch.engine.functions import DataFunctions
from swamp_orch.engine.loopback import LoopbackAccess
from swamp_orch.engine.orders import Orders
from swamp_orch.engine.placing import Placing
from swamp_orch.engine.readings import Readings
from swamp_orch.engine.recovery import COMMANDS, Recovery
from swamp_orch.engine.uploads import Uploads
from swamp_orch.expressions.secret import SecretRef
from swamp_orch.store.trio_store import loop_commits
from swamp_proto.environment import host_part, snapshot
from swamp_proto.limits import CONCURRENT_RUNS_MAX_DEFAULT, Tempo
from swamp_worker.execution.bundles import BundleCache
from swamp_worker.execution.environments import Environments
from swamp_worker.execution.executor import StepExecutor
from swamp_worker.execution.keeper import open_keeper, reap_predecessor

if TYPE_CHECKING:
    from swamp_orch.engine.engine import Reporter
    from swamp_orch.gateway.control import ControlDesk


@attrs.frozen
class Assembled:
    """The parts of a running engine."""

    application: Application
    engine: Engine
    orders: Orders
    reporter: "Reporter"
    flights: Flights
    placing: Placing | None
    dispatches: WorkerDispatches | None
    code: ExtensionCare
    desk: StepDesk

    async def reconcile(self) -> None:
        """After a start: what the last process left is brought to where the rules say."""
        await self._recovery().run()
        kept = self.flights.at_work()
        await self.desk.uploads.sweep(kept)
        for dispatch in kept - self.flights.at_work():  # it ended while the folders were listed
            await self.desk.uploads.drop(dispatch)
        self.engine.taken_over.set()

    async def watch_commands(self) -> None:
        """For ever: what commands leave that die while this process runs is taken over."""
        await self._recovery().watch_commands()

    def _recovery(self) -> Recovery:
        return Recovery(self.engine, self.placing, self.reporter)

    def live(
        self, desk: "ControlDesk | None" = None, status: Callable[[], Mapping[str, Any]] | None = None
    ) -> "LiveCalls":
        return LiveCalls(self, desk, status)


class LiveCalls:
    """The calls that need this process: the engine's, the pool's, and those after which the desk must look again."""

    def __init__(
        self, parts: Assembled, desk: "ControlDesk | None", status: Callable[[], Mapping[str, Any]] | None
    ) -> None:
        self._parts = parts
        self._desk = desk
        self._status = status

    def handlers(self) -> dict[str, Callable[[Mapping[str, Any]], Awaitable[Any]]]:
        found = dict(self._parts.engine.handlers())
        found["run.get"] = self._run
        if self._desk is not None:
            found |= {
                "serve.status": self._serve_status,
                "worker.list": self._workers,
                "worker.drain": self._drain,
                "worker.idle": self._idle,
                "worker.verify": self._verify,
                "token.revoke": lambda parameters: self._token("token.revoke", parameters),
                "token.renew": lambda parameters: self._token("token.renew", parameters),
            }
        return found

    def followers(self) -> Mapping[str, Callable[[Mapping[str, Any]], Awaitable[FeedFollower]]]:
        return self._parts.engine.followers()

    async def _stored(self, name: str, parameters: Mapping[str, Any]) -> Any:
        return await trio.to_thread.run_sync(self._parts.application.handler(name), parameters)

    async def _run(self, parameters: Mapping[str, Any]) -> Any:
        for run in self._parts.engine.active_runs():
            if run.id == parameters["runId"]:
                return run.document()
        return await self._stored("run.get", parameters)

    async def _serve_status(self, _: Mapping[str, Any]) -> Any:
        assert self._status is not None
        runs = [
            {"runId": run.id, "workflowName": run.request.workflow.name}
            for run in self._parts.engine.active_runs()
        ]
        return {
            **self._status(),
            "runs": runs,
            "workers": len(self._desk.members) if self._desk is not None else 0,
        }

    async def _workers(self, parameters: Mapping[str, Any]) -> Any:
        """As recorded, with what only this process knows at this instant: who is connected, which slots are taken."""
        assert self._desk is not None
        active = {} if self._parts.placing is None else self._parts.placing.active()
        live = {
            name: attrs.evolve(state, active=tuple(active.get(name, ())))
            for name, state in self._desk.states().items()
        }
        application = self._parts.application
        service = TokenService(
            application.repository, application.store, application.vaults, live=lambda: live
        )
        return await trio.to_thread.run_sync(service.handlers()["worker.list"], parameters)

    async def _drain(self, parameters: Mapping[str, Any]) -> Any:
        assert self._desk is not None
        name, draining = parameters["name"], parameters["draining"]
        answer = await self._desk.drain(name, draining, parameters.get("reason") or "")
        if draining and parameters.get("whenSafe"):
            await self._parts.engine.taken_over.wait()
            flights = self._parts.flights
            held = flights.drain(name)
            moved = [lease for lease in held if lease.reason is EndReason.DRAINED]
            answer["moved"] = [_place(lease) for lease in moved]
            answer["finishing"] = [_place(lease) for lease in held if lease.active]
        return answer

    async def _idle(self, parameters: Mapping[str, Any]) -> Any:
        """Waits, for a moment at most: whoever asks for longer asks again."""
        assert self._desk is not None
        await self._parts.engine.taken_over.wait()
        with trio.move_on_after(IDLE_WAIT_S):
            await self._parts.flights.until_idle(parameters["name"])
        return {
            "name": parameters["name"],
            "idle": not self._parts.flights.held_by(parameters["name"]),
            "draining": await self._desk.is_draining(parameters["name"]),
        }

    async def _verify(self, parameters: Mapping[str, Any]) -> Any:
        """One worker; waits for a slot and then for four short steps: well within what a client waits for an answer."""
        from swamp_orch.engine.verification import WAIT_S, Verification

        parts = self._parts
        await parts.engine.taken_over.wait()
        wait_s = float(parameters.get("waitS") or WAIT_S)
        return await Verification(
            parts.engine, parts.orders, parts.code.bundles, parameters["name"], wait_s
        ).run()

    async def _token(self, name: str, parameters: Mapping[str, Any]) -> Any:
        assert self._desk is not None
        answer = await self._stored(name, parameters)
        self._desk.look_again()
        return answer


IDLE_WAIT_S: Final = 20.0  # of one call; a client waits for an answer for minutes, not for hours


def _place(lease: Lease) -> dict[str, Any]:
    return {"runId": lease.run, "job": lease.job, "step": lease.step, "hasWrites": lease.wrote}


@asynccontextmanager
async def assemble(
    application: Application,
    *,
    reporter: "Reporter",
    tempo: Tempo,
    workers: bool,
    clock_ms: Callable[[], int],
    env_allow: Sequence[str] = (),
    env_deny: Sequence[str] = (),
    concurrent_runs_max: int = CONCURRENT_RUNS_MAX_DEFAULT,
) -> AsyncIterator[Assembled]:
    """The engine and its parts, at work until the block is left; nothing they started outlives it."""
    repository, store = application.repository, application.store
    folder = repository.state / ("loopback" if workers else f"{COMMANDS}{os.getpid()}")

    def read_secret(reference: SecretRef) -> str:
        value: str = application.vaults.choose(reference.vault).get(reference.key)
        return value

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    predecessor = await trio.to_thread.run_sync(reap_predecessor, folder)
    if predecessor is not None and not predecessor.reaped:
        reporter.warning("processes of the previous orchestrator could not all be killed", folder=str(folder))
    async with open_keeper(
        folder, instance=application.repository.repo_id, say=lambda text: reporter.warning(text)
    ) as keeper:
        types = application.types
        models = Models(repository, types)
        orders = Orders(
            types,
            models,
            Workflows(repository),
            functions=DataFunctions(application).functions(),
            read_secret=read_secret,
            environment=snapshot(os.environ, tuple(env_allow), tuple(env_deny)),
        )
        placing = Placing(store, clock_ms) if workers else None
        flights = Flights(
            store, repository.data / "logs", tempo, clock_ms, placing, reporter, settle=keeper.settle
        )
        uploads = Uploads((repository.data if workers else folder) / "uploads", store)
        desk = StepDesk(
            store,
            flights,
            Readings(repository, store, models),
            uploads,
            AccessLog(store, clock_ms, reporter),
            lambda: application.vaults,
            clock_ms,
        )
        if types.extensions is not None:
            desk.bundle_file = types.extensions.bundles.path
        access = LoopbackAccess(desk, flights, store)
        cache = repository.state / "cache"
        bundles = BundleCache(cache, access, Environments(cache, keeper))
        engine = Engine(
            repository,
            store,
            StepExecutor(folder / "work", keeper, host_part(os.environ), access=access, bundles=bundles),
            flights=flights,
            placing=placing,
            orders=orders,
            reporter=reporter,
            clock_ms=clock_ms,
            concurrent_runs_max=concurrent_runs_max,
        )
        desk.children, engine.children.marks = engine.children, desk.mark_written
        flights.before_write = engine.children.mark_ancestors
        flights.expire_due = TokenService(repository, store, application.vaults, clock=clock_ms).expire_due
        dispatches = WorkerDispatches(flights, placing, desk, reporter) if placing is not None else None
        async with loop_commits(store), trio.open_nursery() as nursery:
            await nursery.start(flights.watch)
            nursery.start_soon(desk.watch)
            if placing is not None:
                nursery.start_soon(placing.watch)
            async with engine.open():
                code = ExtensionCare(types, orders, store, reporter)
                yield Assembled(
                    application, engine, orders, reporter, flights, placing, dispatches, code, desk
                )
            nursery.cancel_scope.cancel()
    if not workers:
        from shutil import rmtree

        rmtree(folder, ignore_errors=True)
