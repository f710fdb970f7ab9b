"""The collector: what of the records is past its retention, and removing it.

What goes, in this order of questions for every name:

| a name … | goes |
|---|---|
| whose newest version is a tombstone | with all its versions |
| whose newest version is older than its lifetime (`30m` … `2y`) | with all its versions |
| with lifetime `ephemeral`, `job` or `workflow`, and its run has ended or is gone | with all its versions |
| that is a lease or a waiting step that ended `BOOKKEEPING_ENDED_KEPT_S` ago | with all its versions |
| that keeps its last N versions | its versions before those; swamp's own names keep
`BOOKKEEPING_VERSIONS_KEPT` |

A version number is never used again (the store sees to it). Blobs nobody names any more go at the end.
Everything here may be stopped at any point and started again.

It has no clock and no schedule: `swamp serve` calls it now and then, `swamp data gc` once.
"""

import re
from collections.abc import Iterator
from typing import Final

import attrs

from swamp_orch.store.bookkeeping import INFRASTRUCTURE_TYPES, PENDING_DISPATCH, RUN_RECORD, STEP_LEASE
from swamp_orch.store.interface import Comparison, Record, Selection, Store, Term
from swamp_proto.limits import BOOKKEEPING_ENDED_KEPT_S, BOOKKEEPING_VERSIONS_KEPT

_LIFETIME: Final = re.compile(r"(\d+)(m|h|d|w|mo|y)")
_DAY_MS: Final = 86_400_000
_UNITS_MS: Final = {
    "m": 60_000,
    "h": 3_600_000,
    "d": _DAY_MS,
    "w": 7 * _DAY_MS,
    "mo": 30 * _DAY_MS,
    "y": 365 * _DAY_MS,
}
_OF_A_RUN: Final = frozenset({"ephemeral", "job", "workflow"})
_WHILE_OPEN: Final = {STEP_LEASE: "active", PENDING_DISPATCH: "waiting"}
"""Bookkeeping that ends: its type, and the state it has until then."""
_REMOVED_AT_ONCE: Final = 500


@attrs.frozen
class Expired:
    """A name that goes with all its versions."""

    model_id: str
    model_name: str
    name: str
    reason: str  # deleted, expired, run ended, ended


@attrs.frozen
class Collection:
    """What was removed, or would be. `bytes` is the size of the removed contents."""

    expired: tuple[Expired, ...] = ()
    versions: int = 0
    bytes: int = 0
    blob_bytes: int = 0  # freed on disk beside the rows


def lifetime_ms(text: str) -> int | None:
    """`30d` in milliseconds; None for the lifetimes that are not durations. `mo` is 30 days, `y` 365."""
    match = _LIFETIME.fullmatch(text)
    return int(match[1]) * _UNITS_MS[match[2]] if match else None


def collect(store: Store, now_ms: int, *, dry_run: bool = False) -> Collection:
    """One pass over all names. Raises what the store raises; what was removed until then stays removed."""
    return _Pass(store, now_ms, dry_run).run()


class _Pass:
    def __init__(self, store: Store, now_ms: int, dry_run: bool) -> None:
        self._store = store
        self._now_ms = now_ms
        self._dry_run = dry_run
        self._expired: list[Expired] = []
        self._waiting: list[tuple[str, str, int]] = []
        self._versions = 0
        self._bytes = 0
        self._ended_runs: dict[str, bool] = {}

    def run(self) -> Collection:
        newest = Selection(deleted=True, with_content=False)
        for record in self._store.select(newest):
            reason = self._reason(record)
            if reason is not None:
                self._expired.append(Expired(record.model_id, record.model_name, record.name, reason))
                self._remove(record, keep=0)
                continue
            keep = self._keep(record)
            if keep is not None and record.version > keep:
                self._remove(record, keep)
        for record in self._ended_bookkeeping():
            self._expired.append(Expired(record.model_id, record.model_name, record.name, "ended"))
            self._remove(record, keep=0)
        self._flush()
        freed = 0 if self._dry_run else self._store.collect_blobs()
        return Collection(tuple(self._expired), self._versions, self._bytes, freed)

    def _reason(self, record: Record) -> str | None:
        """Why the whole name goes, or None."""
        if record.deleted:
            return "deleted"
        if record.model_type in INFRASTRUCTURE_TYPES:
            return None
        kept_ms = lifetime_ms(record.lifetime)
        if kept_ms:
            return "expired" if record.created_ms + kept_ms <= self._now_ms else None
        # A lifetime of nothing means: as long as the run.
        if (kept_ms == 0 or record.lifetime in _OF_A_RUN) and self._has_ended(record.owner.run):
            return "run ended"
        return None

    def _keep(self, record: Record) -> int | None:
        if record.model_type in INFRASTRUCTURE_TYPES:
            return min(record.keep or BOOKKEEPING_VERSIONS_KEPT, BOOKKEEPING_VERSIONS_KEPT)
        return None if record.keep is None else max(record.keep, 1)

    def _has_ended(self, run: str) -> bool:
        """Whether a run is over. One that is not recorded cannot go on."""
        if run not in self._ended_runs:
            if len(self._ended_runs) >= 10_000:
                self._ended_runs.clear()
            self._ended_runs[run] = self._look(run)
        return self._ended_runs[run]

    def _look(self, run: str) -> bool:
        import json

        record = self._store.latest(run, RUN_RECORD) if run else None
        if record is None:
            return True
        document = json.loads(self._store.read(record))
        return isinstance(document, dict) and "endedAt" in document

    def _ended_bookkeeping(self) -> Iterator[Record]:
        before_ms = self._now_ms - round(BOOKKEEPING_ENDED_KEPT_S * 1000)
        for model_type, state in _WHILE_OPEN.items():
            terms = (
                Term("modelType", Comparison.EQ, (model_type,)),
                Term("attributes.state", Comparison.NE, (state,)),
            )
            for record in self._store.select(Selection(terms, with_content=False)):
                if record.created_ms <= before_ms:
                    yield record

    def _remove(self, newest: Record, keep: int) -> None:
        """Remove the versions of a name but its last `keep`."""
        for old in self._store.versions(newest.model_id, newest.name):
            if old.version > newest.version - keep:
                continue
            self._versions += 1
            self._bytes += old.size
            self._waiting.append((old.model_id, old.name, old.version))
        if len(self._waiting) >= _REMOVED_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        if self._waiting and not self._dry_run:
            self._store.remove(self._waiting)
        self._waiting = []
