"""An orchestrator's care for the code of its repository: it says what is wrong with it, and removes bundles nobody needs any more.

A bundle is needed while its sources make it, and while a run that is not over keeps it: a run goes on with the code it started
with, also after a restart (`orders`, rule 6). What it used is in the records of its steps.
"""

import json
from typing import TYPE_CHECKING

import trio

from swamp_orch.definitions.bundles import BundleFiles
from swamp_orch.definitions.types import TypeRegistry
from swamp_orch.engine.orders import Orders
from swamp_orch.store.bookkeeping import WORKFLOW_RUN
from swamp_orch.store.interface import Comparison, Selection, Store, Term
from swamp_proto.errors import SwampError

if TYPE_CHECKING:
    from swamp_orch.definitions.extensions import UnitProblem
    from swamp_orch.engine.engine import Reporter


class ExtensionCare:
    def __init__(self, types: TypeRegistry, orders: Orders, store: Store, reporter: "Reporter") -> None:
        assert types.extensions is not None
        self._extensions = types.extensions
        self._orders = orders
        self._store = store
        self._report = reporter

    @property
    def bundles(self) -> BundleFiles:
        return self._extensions.bundles

    async def look(self) -> None:
        """Say what is wrong with extensions now; whenever somebody uses a type, what is wrong since."""
        self._extensions.on_problems = self._tell
        try:
            await trio.to_thread.run_sync(self._extensions.catalogue, abandon_on_cancel=True)
        except SwampError as error:
            self._report.warning("extensions can not be looked at", error=str(error))

    def _tell(self, new: "tuple[UnitProblem, ...]") -> None:
        for problem in new:
            self._report.warning("an extension can not be used", unit=problem.unit, error=problem.text)

    async def collect(self, now_s: float) -> None:
        """Remove what is not needed any more."""
        try:
            removed = await trio.to_thread.run_sync(self._extensions.collect, self._in_use, now_s)
        except SwampError as error:
            self._report.warning("the collector of bundles stopped early", error=str(error))
            return
        if removed:
            self._report.info("collected", bundles=removed)

    def _in_use(self) -> frozenset[str]:
        return self._orders.code.bundles() | recorded_bundles(self._store)


def recorded_bundles(store: Store) -> frozenset[str]:
    """What the runs that are not over have recorded. Blocking."""
    running = (
        Term("modelType", Comparison.EQ, (WORKFLOW_RUN,)),
        Term("specName", Comparison.EQ, ("run",)),
        Term("attributes.status", Comparison.EQ, ("running",)),
    )
    found = set()
    for run in list(store.select(Selection(running, with_content=False))):
        steps = (
            Term("modelId", Comparison.EQ, (run.model_id,)),
            Term("specName", Comparison.EQ, ("step",)),
        )
        for record in store.select(Selection(steps)):
            content = record.content if record.content is not None else store.read(record)
            bundle = json.loads(content).get("bundle")
            if bundle:
                found.add(bundle)
    return frozenset(found)
