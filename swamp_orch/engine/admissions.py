"""Writes under a lease, on their way to the store: the shell of the lease core's `WriteArrived`.

Rules that hold here (SEMANTICS §1, §4):

1. The core admits a write or refuses it; the store has the last word. The first write of a lease commits in one transaction with the
   lease's record that says so; every later one is guarded by the version of that record. Whoever ended the lease meanwhile,
   in whatever process, has changed that version, and the write is refused.
2. A first write, once admitted, is carried to its answer by a task of its own: the core waits for it, whatever becomes of who asked.
3. A key that is known is answered from the store and writes nothing.

It knows no records and no protocol.
"""

import itertools
import json
from collections.abc import Awaitable, Callable

import attrs
import trio

from swamp_orch.core import leases as core
from swamp_orch.core.lease_values import AdmitWrite, Lease, RefuseWrite
from swamp_orch.store.bookkeeping import LEASES_ID, lease_record
from swamp_orch.store.interface import Batch, Committed, Guard, NewRecord, Store
from swamp_orch.store.trio_store import commit
from swamp_proto.capabilities import CallRefused
from swamp_proto.errors import Conflict, SwampError
from swamp_proto.messages.capability import CallCode


@attrs.define(eq=False)
class _Asked:
    """One write the core was asked about."""

    effect: AdmitWrite | RefuseWrite | None = None
    settled: trio.Event = attrs.field(factory=trio.Event)


@attrs.define(eq=False)
class _Carried:
    """A write that a task of its own brings to the store. `outcome` None: ask again."""

    outcome: Committed | Exception | None = None
    done: trio.Event = attrs.field(factory=trio.Event)


class Admissions:
    """Asks the core for each write, and performs what it answers."""

    def __init__(
        self,
        store: Store,
        *,
        tell: Callable[[core.Event], None],
        commit_failed: Callable[[str, SwampError], Awaitable[None]],
        record_of: Callable[[Lease], NewRecord],
    ) -> None:
        self._store = store
        self._tell = tell
        self._commit_failed = commit_failed
        self._record_of = record_of
        self._asked: dict[str, _Asked] = {}
        self._numbers = itertools.count(1)
        self.nursery: trio.Nursery | None = None

    def settle(self, effect: AdmitWrite | RefuseWrite) -> None:
        """The core's answer."""
        asked = self._asked.pop(effect.request)
        asked.effect = effect
        asked.settled.set()

    async def commit(self, dispatch: str, fence: int, record: str, batch: Batch) -> Committed:
        """Commit `batch` under the lease; `record` names the write for people.

        :raises CallRefused: the lease has ended (`lease_ended`), or the key was used with another body (`idempotency_conflict`)
        :raises Conflict: a record of the batch is not at the version it expects
        """
        while True:
            asked = self._ask(dispatch, fence, record)
            if isinstance(asked.effect, AdmitWrite) and not asked.effect.first:
                outcome = await self._guarded(asked.effect.lease, batch)
            else:
                outcome = await self._carry(dispatch, asked, batch)
            if isinstance(outcome, Committed):
                return outcome
            if outcome is not None:
                raise outcome

    async def commit_read(self, lease: Lease, batch: Batch) -> Committed | None:
        """Commit what is no write under a lease that must be active still; None: look at the lease again, and ask again.

        :raises Conflict: a record of the batch is not at the version it expects
        """
        outcome = await self._guarded(lease, batch)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _ask(self, dispatch: str, fence: int, record: str) -> _Asked:
        request = f"w{next(self._numbers)}"
        asked = self._asked[request] = _Asked()
        self._tell(core.WriteArrived(dispatch, fence, request, record))
        return asked

    async def _carry(self, dispatch: str, asked: _Asked, batch: Batch) -> Committed | Exception | None:
        assert self.nursery is not None
        carried = _Carried()
        self.nursery.start_soon(self._bring, dispatch, asked, batch, carried)
        await carried.done.wait()
        return carried.outcome

    async def _bring(self, dispatch: str, asked: _Asked, batch: Batch, carried: _Carried) -> None:
        await asked.settled.wait()
        effect = asked.effect
        assert effect is not None
        if isinstance(effect, RefuseWrite):
            carried.outcome = lease_ended(dispatch)
        elif effect.first:
            carried.outcome = await self._first(effect.lease, batch)
        else:
            carried.outcome = await self._guarded(effect.lease, batch)
        carried.done.set()

    async def _first(self, lease: Lease, batch: Batch) -> Committed | Exception:
        marked = attrs.evolve(batch, records=(*batch.records, self._record_of(lease)))
        try:
            done = await commit(self._store, marked)
        except SwampError as error:
            await self._commit_failed(lease.dispatch, error)
            return _refused(error) or error
        if done.replayed:  # so the mark was not written by this one
            await self._commit_failed(lease.dispatch, Conflict("the write is known already"))
        else:
            self._tell(core.Committed(lease.dispatch))
        return done

    async def _guarded(self, lease: Lease, batch: Batch) -> Committed | Exception | None:
        guard = Guard(LEASES_ID, lease_record(lease.dispatch), lease.version)
        try:
            return await commit(self._store, attrs.evolve(batch, guards=(*batch.guards, guard)))
        except Conflict as error:
            refused = _refused(error)
            if refused is not None:
                return refused
            return None if await self._changed(lease) else error
        except SwampError as error:
            return error

    async def _changed(self, lease: Lease) -> bool:
        """Whether the store has another version of the lease than this write was guarded with. The core hears of it."""
        record = await trio.to_thread.run_sync(self._store.latest, LEASES_ID, lease_record(lease.dispatch))
        if record is None or record.content is None:
            return False
        stored = Lease.from_attributes(json.loads(record.content), record.version)
        if stored.version == lease.version:
            return False
        self._tell(core.StoredOtherwise(lease.dispatch, stored))
        return True


def lease_ended(dispatch: str) -> CallRefused:
    """Nothing is admitted any more: final."""
    text = f"the lease of dispatch {dispatch} has ended; nothing is admitted under it any more"
    return CallRefused(CallCode.LEASE_ENDED, text)


def _refused(error: SwampError) -> CallRefused | None:
    if error.error_code == CallCode.IDEMPOTENCY_CONFLICT.value:
        return CallRefused(CallCode.IDEMPOTENCY_CONFLICT, "this number was used before with another content")
    return None
