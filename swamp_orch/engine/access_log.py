"""Who asked for what: one record for every access of a running step, allowed or refused (`modelType == "swamp/access"`).

Rules that hold here:

1. A secret's access is durable before its value leaves (`record`, committed by whoever hands the value out). Everything else is kept in
   memory for a moment and committed together (`note`): a read costs no sync of its own.
2. The same question of the same dispatch within that moment is one record with a `count`.
3. No record holds a value: of a secret its vault and key, of a query its predicate, masked.
4. What a step wrote says so itself (its owner): only writes that were refused are noted.
"""

import json
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from swamp_orch.core.lease_values import Lease
from swamp_orch.expressions.secret import SecretRef
from swamp_orch.store.bookkeeping import ACCESS, ACCESS_ID, ACCESS_MODEL, iso
from swamp_orch.store.interface import (
    Batch,
    Comparison,
    NewRecord,
    Owner,
    OwnerType,
    Selection,
    Store,
    Term,
    json_content,
)
from swamp_orch.store.trio_store import commit
from swamp_proto.errors import SwampError
from swamp_proto.limits import BATCH_RECORDS_MAX
from swamp_proto.messages.capability import Verb

if TYPE_CHECKING:
    from swamp_orch.engine.engine import Reporter
    from swamp_orch.engine.flights import Flight

PAUSE_S: Final = 0.5  # between two commits of what was noted
WAITING_MAX: Final = 10_000  # noted and not yet committed; beyond it a commit is waited for
TEXT_MAX: Final = 1_000  # characters of a predicate or a reason that are kept


@attrs.frozen
class Access:
    """One question. `code` is empty when it was answered."""

    verb: str
    model: str = ""
    name: str = ""
    vault: str = ""
    key: str = ""
    code: str = ""
    reason: str = ""

    @property
    def allowed(self) -> bool:
        return not self.code


def access_record(flight: "Flight", access: Access, at_ms: int, count: int = 1) -> NewRecord:
    place = flight.message.place
    attributes: dict[str, Any] = {"verb": access.verb, "allowed": access.allowed}
    texts = (
        ("model", access.model),
        ("name", access.name),
        ("vault", access.vault),
        ("key", access.key),
        ("code", access.code),
        ("reason", access.reason),
    )
    mask = flight.ingress.mask
    attributes.update((name, mask(text)[:TEXT_MAX]) for name, text in texts if text)
    attributes |= {
        "at": iso(at_ms),
        "count": count,
        "dispatchId": flight.dispatch,
        "runId": place.run,
        "workflowName": place.workflow,
        "jobName": place.job,
        "stepName": place.step,
        "modelName": flight.message.model_name,
        "methodName": flight.message.method,
        "workerName": flight.slot.worker,
    }
    return NewRecord(
        model_type=ACCESS,
        model_id=ACCESS_ID,
        model_name=ACCESS_MODEL,
        name=f"access-{uuid.uuid4()}",
        spec="access",
        content=json_content(attributes),
        tags={"type": "resource"},
        owner=Owner(
            OwnerType.SYSTEM,
            ref=place.run,
            workflow=place.workflow,
            run=place.run,
            job=place.job,
            step=place.step,
            dispatch=flight.dispatch,
            fence=flight.message.fence,
        ),
        expect=0,
    )


def secrets_told(store: Store, lease: Lease) -> tuple[SecretRef, ...]:
    """Where the secrets are that a dispatch was told or told us so far: for a process that takes it over."""
    terms = (
        Term("workflowRunId", Comparison.EQ, (lease.run,)),
        Term("dispatch", Comparison.EQ, (lease.dispatch,)),
        Term("modelType", Comparison.EQ, (ACCESS,)),
    )
    found = (json.loads(record.content or b"{}") for record in store.select(Selection(terms)))
    secret = (one for one in found if one["allowed"] and one["verb"] in (Verb.SECRET, Verb.PUT_SECRET))
    return tuple(dict.fromkeys(SecretRef(one["vault"], one["key"]) for one in secret))


@attrs.define(eq=False)
class _Noted:
    flight: "Flight"
    access: Access
    at_ms: int
    count: int = 1


class AccessLog:
    """`watch` runs as long as the engine."""

    def __init__(self, store: Store, clock_ms: Callable[[], int], reporter: "Reporter") -> None:
        self._store = store
        self._clock_ms = clock_ms
        self._report = reporter
        self._noted: dict[tuple[str, Access], _Noted] = {}
        self._some = trio.Event()
        self._flushing = trio.Lock()

    def record(self, flight: "Flight", access: Access) -> NewRecord:
        """The record of an access that is committed with what it belongs to."""
        return access_record(flight, access, self._clock_ms())

    def note(self, flight: "Flight", access: Access) -> None:
        """Commit it in a moment."""
        found = self._noted.get((flight.dispatch, access))
        if found is not None:
            found.count += 1
            return
        self._noted[flight.dispatch, access] = _Noted(flight, access, self._clock_ms())
        self._some.set()

    async def room(self) -> None:
        """Wait where more is asked than can be noted."""
        if len(self._noted) >= WAITING_MAX:
            await self.flush()

    async def watch(self) -> None:
        try:
            while True:
                await self._some.wait()
                await trio.sleep(PAUSE_S)
                await self.flush()
        finally:
            with trio.CancelScope(shield=True):
                await self.flush(last=True)

    async def flush(self, *, last: bool = False) -> None:
        """Commit everything that was noted until now. `last`: the loop that commits may be gone already."""
        async with self._flushing:  # what another flush has taken is durable, too, when this returns
            noted, self._noted, self._some = list(self._noted.values()), {}, trio.Event()
            for at in range(0, len(noted), BATCH_RECORDS_MAX):
                await self._commit(noted[at : at + BATCH_RECORDS_MAX], last)

    async def _commit(self, page: "list[_Noted]", last: bool) -> None:
        batch = Batch(tuple(access_record(one.flight, one.access, one.at_ms, one.count) for one in page))
        try:
            if last:
                await trio.to_thread.run_sync(self._store.commit, batch)
            else:
                await commit(self._store, batch)
        except SwampError as error:
            self._report.warning("accesses could not be recorded", count=len(page), error=str(error))
