"""After a start: what the last process left is brought to where the rules say (SEMANTICS §2, §9, SPEC §10).

Rules that hold here:

1. Runs go on. A run whose owner is dead is taken over: its plan is rebuilt from its records, its leases are suspended until their
   workers come back or their grace is over, what waited waits again. A run that a living process owns is left alone.
2. A run that can not go on ends failed and says why. None stays `running` with nobody behind it.
3. No worker is connected until it says so.

It runs once, when the listener is open and before anything is granted.
"""

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from swamp_orch.core.lease_values import Lease
from swamp_orch.core.runplan import StepKey
from swamp_orch.engine.engine import Engine
from swamp_orch.engine.orders import Orders
from swamp_orch.engine.owners import is_alive, process_identity
from swamp_orch.engine.placing import Placing
from swamp_orch.store.bookkeeping import LEASES_ID, WORKFLOW_RUN, iso
from swamp_orch.store.bookkeeping import lease_record as lease_name
from swamp_orch.store.errors import NO_ROOM
from swamp_orch.store.interface import Batch, Comparison, Record, Selection, Store, Term
from swamp_orch.store.trio_store import answer, commit
from swamp_orch.tokens.records import read_workers, worker_record
from swamp_proto.errors import Conflict, SwampError
from swamp_proto.limits import STORE_RETRY_S

if TYPE_CHECKING:
    from swamp_orch.engine.engine import Reporter

RESUMED_S: Final = 5.0  # for the steps of all runs to take up their executions again
RUNNING: Final = (
    Term("modelType", Comparison.EQ, (WORKFLOW_RUN,)),
    Term("specName", Comparison.EQ, ("run",)),
    Term("attributes.status", Comparison.EQ, ("running",)),
)


@attrs.frozen
class _Found:
    """A run of a dead owner, as its records say it."""

    record: Record
    attributes: Mapping[str, Any]
    steps: Mapping[StepKey, Mapping[str, Any]]
    expansions: Mapping[tuple[str, str], Mapping[str, Any]]
    leases: Mapping[str, Lease]  # of running steps, by dispatch


class Recovery:
    def __init__(self, engine: Engine, orders: Orders, placing: Placing | None, reporter: "Reporter") -> None:
        self._engine = engine
        self._store: Store = engine.store
        self._orders = orders
        self._placing = placing
        self._report = reporter
        self._owner = {"kind": "serve", **process_identity()}

    async def run(self) -> None:
        """Take over everything a dead process left."""
        await self._forget_links()
        held: list[str] = []
        for found in await trio.to_thread.run_sync(self._read_runs):
            if await self._take_over(found):
                held += found.leases
        with trio.move_on_after(
            RESUMED_S
        ) as waiting:  # a run that can not resume must not keep the others' workers out
            await self._engine.flights.until_resumed(held)
        if waiting.cancelled_caught:
            self._report.warning("not every execution could be resumed", held=len(held))

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

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def _read_runs(self) -> list[_Found]:
        found = []
        for record in list(self._store.select(Selection(RUNNING))):
            attributes = self._attributes(record)
            if not is_alive(attributes["owner"]):
                found.append(self._read_run(record, attributes))
        return found

    def _read_run(self, record: Record, attributes: Mapping[str, Any]) -> _Found:
        steps: dict[StepKey, Mapping[str, Any]] = {}
        expansions: dict[tuple[str, str], Mapping[str, Any]] = {}
        leases: dict[str, Lease] = {}
        for row in self._of_run(record.model_id):
            values = self._attributes(row)
            if row.spec == "expansion":
                expansions[values["job"], values["template"]] = values["items"]
            elif row.spec == "step":
                steps[StepKey(values["job"], values["step"])] = values
                if values["status"] == "running":
                    lease = self._lease(values["dispatchId"])
                    if lease is not None:
                        leases[lease.dispatch] = lease
        return _Found(record, attributes, steps, expansions, leases)

    def _of_run(self, run_id: str) -> Iterator[Record]:
        """In the order they were written: steps in the order they ended."""
        return self._store.select(Selection((Term("modelId", Comparison.EQ, (run_id,)),)))

    def _lease(self, dispatch: str) -> Lease | None:
        record = self._store.latest(LEASES_ID, lease_name(dispatch))
        return None if record is None else Lease.from_attributes(self._attributes(record), record.version)

    def _attributes(self, record: Record) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            record.content if record.content is not None else self._store.read(record)
        )
        return found

    # ── going on ────────────────────────────────────────────────────────────────────────────────────────────────────
    async def _take_over(self, found: _Found) -> bool:
        """Whether the run goes on."""
        run_id = found.record.model_id
        try:
            request = self._orders.recovered_request(run_id, found.attributes, self._owner)
            run = self._engine.new_run(request)
            run.restore(found.record.version, found.attributes, found.steps, found.expansions, found.leases)
        except SwampError as error:
            self._report.warning(
                "a run can not go on", run=run_id, workflow=found.record.model_name, reason=str(error)
            )
            await self._fail(found, str(error))
            return False
        self._report.info(
            "run goes on",
            run=run_id,
            workflow=found.record.model_name,
            steps=len(found.steps),
            held=len(found.leases),
        )
        self._engine.go_on(run)
        return True

    async def _fail(self, found: _Found, error: str) -> None:
        ended = {
            **found.attributes,
            "status": "failed",
            "error": error,
            "endedAt": iso(self._engine.clock_ms()),
        }
        from swamp_orch.engine.records import run_record

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
