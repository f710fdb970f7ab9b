"""After a start: what the last process left is brought to where the rules say (SEMANTICS §2, §9, SPEC §10).

Rules that hold here:

1. Runs go on. A run whose owner is dead is taken over: its plan is rebuilt from its records, its leases are suspended until their
   workers come back or their grace is over, what waited waits again. A run that a living process owns is left alone.
2. A run that can not go on ends failed and says why. None stays `running` with nobody behind it.
3. No worker is connected until it says so.

It runs once, when the listener is open and before anything is granted; and later for what commands leave that had no orchestrator and
were killed when there was one (`watch_commands`).
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import trio

from swamp_orch.engine.engine import Engine
from swamp_orch.engine.owners import is_alive, started_at
from swamp_orch.engine.placing import Placing
from swamp_orch.engine.records import run_record
from swamp_orch.engine.revival import Found, read_found, read_open_runs
from swamp_orch.engine.runs import Run
from swamp_orch.store.bookkeeping import iso
from swamp_orch.store.errors import NO_ROOM
from swamp_orch.store.interface import Batch, Store
from swamp_orch.store.trio_store import answer, commit
from swamp_orch.tokens.records import read_workers, worker_record
from swamp_proto.errors import Conflict, SwampError
from swamp_proto.limits import STORE_RETRY_S
from swamp_worker.execution.keeper import reap_predecessor

if TYPE_CHECKING:
    from swamp_orch.engine.engine import Reporter

COMMANDS: Final = "loopback-"  # and the process id: the folder of a command's own engine
COMMANDS_LOOK_S: Final = 5.0
RESUMED_S: Final = 5.0  # for the steps of all runs to take up their executions again


class Recovery:
    def __init__(self, engine: Engine, placing: Placing | None, reporter: "Reporter") -> None:
        self._engine = engine
        self._store: Store = engine.store
        self._placing = placing
        self._report = reporter

    async def run(self) -> None:
        """Take over everything a dead process left."""
        await self._forget_links()
        held: list[str] = []
        every = await trio.to_thread.run_sync(self._read_runs)
        ids = {found.id for found in every}
        nested = [found for found in every if self._is_nested(found, ids)]
        for found in every:
            if found not in nested and await self._take_over(found):
                held += found.leases
        for found in nested:  # their parents' steps find them again, with what their inputs hold of secrets
            if self._engine.live(found.attributes["parent"]["runId"]) or await self._take_over(found):
                held += found.leases
        with trio.move_on_after(
            RESUMED_S
        ) as waiting:  # a run that can not resume must not keep the others' workers out
            await self._engine.flights.until_resumed(held)
        if waiting.cancelled_caught:
            self._report.warning("not every execution could be resumed", held=len(held))
        for run in self._engine.active_runs():
            self._engine.children.adopt(run)

    async def watch_commands(self) -> None:
        """For ever: a command that began before this orchestrator runs its run itself. When it is killed, the run is ours."""
        while True:
            await trio.sleep(COMMANDS_LOOK_S)
            try:
                await self.take_over_commands()
            except SwampError as error:
                self._report.warning("runs of dead commands can not be looked for", error=str(error))

    async def take_over_commands(self) -> None:
        """What dead commands left behind: first their processes end, then their runs go on here."""
        folders = await trio.to_thread.run_sync(self._left_by_commands)
        if not folders:
            return
        names = {folder.name for folder in folders}
        for found in await trio.to_thread.run_sync(self._read_runs):
            owner = found.attributes["owner"]
            theirs = owner["kind"] == "cli" and f"{COMMANDS}{owner['pid']}" in names
            if theirs and found.attributes["status"] == "running" and self._engine.live(found.id) is None:
                await self._take_over(found)
        for run in self._engine.active_runs():
            self._engine.children.adopt(run)
        for folder in folders:
            await trio.to_thread.run_sync(shutil.rmtree, folder, True)

    def _left_by_commands(self) -> list[Path]:
        """Folders of commands' own engines whose process is dead, and nothing of it left."""
        found = []
        for folder in self._engine.repository.state.glob(f"{COMMANDS}*"):
            pid = folder.name.removeprefix(COMMANDS)
            if pid.isdigit() and not started_at(int(pid)):
                predecessor = reap_predecessor(folder)
                if predecessor is None or predecessor.reaped:
                    found.append(folder)
        return found

    async def _forget_links(self) -> None:
        """Workers recorded as connected are not: their links died with the last process."""
        workers = await trio.to_thread.run_sync(read_workers, self._store)
        now_ms = self._engine.clock_ms()
        gone = [
            attrs.evolve(worker, connected=False, disconnected_ms=now_ms, active=())
            if worker.connected
            else worker
            for worker in workers
        ]
        # All are on their way before the first is awaited: a large pool costs a few commits, not one each.
        commits = [
            self._store.submit(Batch((worker_record(state),))) if worker.connected else None
            for worker, state in zip(workers, gone, strict=True)
        ]
        for state, future in zip(gone, commits, strict=True):
            try:
                done = None if future is None else await answer(future)
            except (Conflict, *NO_ROOM):
                done = None  # it is read again, and recorded, when it enrolls
            if self._placing is not None:
                version = state.version if done is None else done.records[0].version
                self._placing.worker_known(attrs.evolve(state, version=version))

    @staticmethod
    def _is_nested(found: Found, every: set[str]) -> bool:
        parent = found.attributes.get("parent")
        return parent is not None and "dispatchId" not in parent and parent["runId"] in every

    def _read_runs(self) -> list[Found]:
        return [
            read_found(self._store, record, attributes)
            for record, attributes in read_open_runs(self._store)
            if not is_alive(attributes["owner"])
        ]

    # ── going on ────────────────────────────────────────────────────────────────────────────────────────────────────
    async def _take_over(self, found: Found) -> bool:
        """Whether the run goes on. Without room for that to be recorded, it is waited for: no run ends because a disk is full."""
        try:
            run = await self._revived(found)
        except SwampError as error:
            self._report.warning(
                "a run can not go on", run=found.id, workflow=found.record.model_name, reason=str(error)
            )
            await self._fail(found, str(error))
            return False
        self._report.info(
            "run goes on",
            run=run.id,
            workflow=found.record.model_name,
            steps=len(found.steps),
            held=len(found.leases),
        )
        return True

    async def _revived(self, found: Found) -> Run:
        told = False
        while True:
            try:
                return await self._engine.revive(found)
            except NO_ROOM as error:
                if not told:
                    self._report.warning("a run waits to go on", run=found.id, reason=str(error))
                told = True
                await trio.sleep(STORE_RETRY_S)

    async def _fail(self, found: Found, error: str) -> None:
        for lease in found.leases.values():  # nobody waits for what they would bring
            if lease.active:
                self._engine.flights.disown(lease, error)
        ended = {
            **found.attributes,
            "status": "failed",
            "error": error,
            "endedAt": iso(self._engine.clock_ms()),
        }
        record = run_record(found.record.model_id, found.record.model_name, ended, found.record.version)
        while True:
            try:
                await commit(self._store, Batch((record,)))
            except NO_ROOM:
                await trio.sleep(STORE_RETRY_S)
                continue
            except Conflict:
                pass  # somebody else decided about it
            return
