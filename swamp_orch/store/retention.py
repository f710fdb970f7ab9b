"""How long data is kept: what of a name goes, and the collector that removes it.

| a name … | goes |
|---|---|
| whose newest version is a tombstone | with all its versions |
| whose newest version is older than its lifetime (`30m` … `2y`) | with all its versions |
| with lifetime `ephemeral`, `job` or `workflow` (or a duration of zero), and its run has ended or is gone | with all its versions |
| that is a lease or a waiting step that ended `BOOKKEEPING_ENDED_KEPT_S` ago, or an access that old | with all its versions |
| that keeps its last N versions | its versions before those; swamp's own names keep at most `BOOKKEEPING_VERSIONS_KEPT` |

Rules: deciding is pure (`verdict`, `surplus_up_to`) and never changes its mind as time passes, so nothing is locked between
deciding and removing; swamp's own names go only when what they record has ended; a lifetime nobody understands keeps. A
version number is never used again (the store sees to it). A collection may be stopped at any point and started again. Names
are looked at one by one, so memory is bounded by what goes.

It has no clock and no schedule: `swamp serve` calls `collect` now and then, `swamp data gc` once.
"""

import json
import re
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Any, Final

import attrs

from swamp_orch.store.bookkeeping import (
    ACCESS,
    INFRASTRUCTURE_TYPES,
    PENDING_DISPATCH,
    RUN_RECORD,
    STEP_LEASE,
    iso,
)
from swamp_orch.store.interface import Comparison, Selection, Store, Term
from swamp_proto.limits import BOOKKEEPING_ENDED_KEPT_S, BOOKKEEPING_VERSIONS_KEPT

_DURATION: Final = re.compile(r"([0-9]{1,9})(m|h|d|w|mo|y)")
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
_REMOVED_AT_ONCE: Final = 200  # versions in one transaction: commits wait that long
_RUNS_REMEMBERED: Final = 10_000


class Reason(StrEnum):
    """Why a name goes with all its versions."""

    DELETED = "deleted"
    EXPIRED = "expired"
    RUN_ENDED = "run ended"
    ENDED = "ended"


@attrs.frozen
class Head:
    """The newest version of a name, as far as retention looks at it."""

    model_type: str
    version: int
    lifetime: str
    created_ms: int
    keep: int | None
    deleted: bool
    run: str  # id of the run that wrote it, or empty


_HEAD_FIELDS: Final = ("modelType", "version", "lifetime", "createdMs", "keep", "isDeleted", "workflowRunId")


@attrs.frozen
class Expired:
    """A name that goes with all its versions."""

    model_id: str
    model_name: str
    name: str
    reason: Reason


@attrs.frozen
class Collection:
    """What was removed, or would be. `bytes` is the size of the removed contents."""

    expired: tuple[Expired, ...] = ()
    versions: int = 0
    bytes: int = 0
    blob_bytes: int = 0  # freed on disk beside the rows
    keys: int = 0  # idempotency keys dropped


def lifetime_ms(text: str) -> int | None:
    """`30d` in milliseconds; None for the lifetimes that are not durations. `mo` is 30 days, `y` 365."""
    found = _DURATION.fullmatch(text)
    return int(found[1]) * _UNITS_MS[found[2]] if found else None


def verdict(head: Head, now_ms: int, run_is_over: Callable[[str], bool]) -> Reason | None:
    """Why the whole name goes, or None. Of swamp's own names none goes by this rule unless it was deleted."""
    if head.deleted:
        return Reason.DELETED
    if head.model_type in INFRASTRUCTURE_TYPES:
        return None
    kept_ms = lifetime_ms(head.lifetime)
    if kept_ms:
        return Reason.EXPIRED if head.created_ms + kept_ms <= now_ms else None
    # A lifetime of nothing means: as long as the run.
    if (kept_ms == 0 or head.lifetime in _OF_A_RUN) and run_is_over(head.run):
        return Reason.RUN_ENDED
    return None


def surplus_up_to(head: Head) -> int:
    """Versions up to this one go because newer ones take their place; 0 for none."""
    keep = None if head.keep is None else max(head.keep, 1)
    if head.model_type in INFRASTRUCTURE_TYPES:
        keep = min(keep or BOOKKEEPING_VERSIONS_KEPT, BOOKKEEPING_VERSIONS_KEPT)
    return 0 if keep is None else max(0, head.version - keep)


def collect(store: Store, now_ms: int, *, dry_run: bool = False) -> Collection:
    """One pass over all names, then over blobs and keys nothing needs any more.

    Blocking: seconds in a large store, so call it in a thread. Raises what the store raises; what was removed until then
    stays removed.
    """
    return _Pass(store, now_ms, dry_run).run()


class _Pass:
    def __init__(self, store: Store, now_ms: int, dry_run: bool) -> None:
        self._store = store
        self._now_ms = now_ms
        self._dry_run = dry_run
        self._expired: list[Expired] = []
        self._doomed: list[tuple[str, str, int]] = []
        self._versions = 0
        self._bytes = 0
        self._runs_over: dict[str, bool] = {}

    def run(self) -> Collection:
        names = ("modelId", "modelName", "name")
        for model_id, model_name, name, *rest in self._store.scan(
            Selection(deleted=True, with_content=False), (*names, *_HEAD_FIELDS)
        ):
            head = Head(*rest)
            reason = verdict(head, self._now_ms, self._run_is_over)
            if reason is not None:
                self._remove_name(Expired(model_id, model_name, name, reason))
            elif last := surplus_up_to(head):
                self._remove(model_id, name, last)
        for model_id, model_name, name in self._ended_bookkeeping(names):
            self._remove_name(Expired(model_id, model_name, name, Reason.ENDED))
        self._flush()
        keys = blobs = 0
        if not self._dry_run:
            keys = self._store.forget_keys(self._now_ms - round(BOOKKEEPING_ENDED_KEPT_S * 1000))
            blobs = self._store.collect_blobs()
        return Collection(tuple(self._expired), self._versions, self._bytes, blobs, keys)

    def _run_is_over(self, run: str) -> bool:
        """One that is not recorded cannot go on."""
        if run not in self._runs_over:
            if len(self._runs_over) >= _RUNS_REMEMBERED:
                self._runs_over.clear()
            record = self._store.latest(run, RUN_RECORD) if run else None
            document = json.loads(self._store.read(record)) if record else {"endedAt": ""}
            self._runs_over[run] = isinstance(document, dict) and "endedAt" in document
        return self._runs_over[run]

    def _ended_bookkeeping(self, fields: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
        before = iso(max(0, self._now_ms - round(BOOKKEEPING_ENDED_KEPT_S * 1000)))
        for model_type, open_state in _WHILE_OPEN.items():
            over = (
                Term("modelType", Comparison.EQ, (model_type,)),
                Term("createdAt", Comparison.LE, (before,)),
                Term("attributes.state", Comparison.NE, (open_state,)),
            )
            yield from self._store.scan(Selection(over), fields)
        accesses = (Term("modelType", Comparison.EQ, (ACCESS,)), Term("createdAt", Comparison.LE, (before,)))
        yield from self._store.scan(Selection(accesses), fields)

    def _remove_name(self, expired: Expired) -> None:
        self._expired.append(expired)
        self._remove(expired.model_id, expired.name, None)

    def _remove(self, model_id: str, name: str, last: int | None) -> None:
        """Remove the versions of a name up to `last`, oldest first, so that an interrupted pass finds the name again."""
        for version in self._store.versions(model_id, name):
            if last is not None and version.version > last:
                break
            self._versions += 1
            self._bytes += version.size
            self._doomed.append((model_id, name, version.version))
        if len(self._doomed) >= _REMOVED_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        if not self._dry_run:
            for at in range(0, len(self._doomed), _REMOVED_AT_ONCE):
                self._store.remove(self._doomed[at : at + _REMOVED_AT_ONCE])
        self._doomed = []
