"""How long data is kept: which versions are past their lifetime or surplus, and the collector that removes them.

Rules: a version whose lifetime has passed goes, whoever superseded it; of a name, only the newest `keep` versions stay;
lifetimes bound to a run (`workflow`, `job`, `ephemeral`, and a duration of zero) end when the run's record is gone. Swamp's own
bookkeeping keeps the last `BOOKKEEPING_VERSIONS_KEPT` versions of a name, and leases and queue entries go altogether
`BOOKKEEPING_ENDED_KEPT_S` after they ended; what has not ended is never collected. A lifetime nobody understands keeps.

Removing is the store's; deciding is pure. A version that is decided on stays decided (time only passes, versions are only
added), so nothing needs to be locked in between. Memory stays bounded: names are looked at one by one.
"""

import re
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Final

import attrs

from swamp_orch.store.bookkeeping import (
    INFRASTRUCTURE_TYPES,
    PENDING_DISPATCH,
    RUN_RECORD,
    STEP_LEASE,
    iso,
)
from swamp_orch.store.interface import Comparison, Record, Selection, Store, Term
from swamp_proto.limits import BOOKKEEPING_ENDED_KEPT_S, BOOKKEEPING_VERSIONS_KEPT

INFINITE: Final = "infinite"
_OF_A_RUN: Final = frozenset({"workflow", "job", "ephemeral"})
_DURATION: Final = re.compile(r"(\d{1,9})(m|h|d|w|mo|y)")
_MINUTE_MS: Final = 60_000
_DAY_MS: Final = 24 * 60 * _MINUTE_MS
_UNITS_MS: Final = {
    "m": _MINUTE_MS,
    "h": 60 * _MINUTE_MS,
    "d": _DAY_MS,
    "w": 7 * _DAY_MS,
    "mo": 30 * _DAY_MS,
    "y": 365 * _DAY_MS,
}
_OPEN_STATE: Final = {STEP_LEASE: "active", PENDING_DISPATCH: "waiting"}
_CHUNK: Final = 200  # versions removed in one transaction
_LISTED_MAX: Final = 1_000


class Reason(Enum):
    """Why a version goes."""

    EXPIRED = "expired"  # its lifetime has passed
    SURPLUS = "surplus"  # newer versions take its place
    ENDED = "ended"  # bookkeeping of something over long ago


@attrs.frozen
class Doomed:
    """A version to be removed."""

    model_id: str
    name: str
    version: int
    size: int
    reason: Reason
    is_latest: bool  # with it the name goes, or falls back to an older version


@attrs.frozen
class Report:
    """What a collection did, or with `dry_run` would do. `expired` lists at most 1,000 (model id, name)."""

    dry_run: bool
    versions: int = 0
    size: int = 0  # bytes of content in the removed versions
    entries_expired: int = 0  # names whose newest version is past its lifetime
    expired: tuple[tuple[str, str], ...] = ()
    surplus: int = 0
    ended: int = 0
    keys: int = 0  # idempotency keys dropped
    blob_bytes: int = 0  # bytes of blobs no row named any more


def lifetime_ms(lifetime: str) -> int | None:
    """Milliseconds of a duration such as `30d`; None for what is not a duration or is zero."""
    found = _DURATION.fullmatch(lifetime)
    return (int(found[1]) * _UNITS_MS[found[2]] or None) if found else None


def has_expired(
    lifetime: str, created_ms: int, run: str, now_ms: int, run_is_gone: Callable[[str], bool]
) -> bool:
    """Whether a version's lifetime has passed. `run` is the id of the run that wrote it, or empty."""
    if lifetime == INFINITE:
        return False
    duration = lifetime_ms(lifetime)
    if duration is not None:
        return created_ms + duration <= now_ms
    if lifetime in _OF_A_RUN or _DURATION.fullmatch(lifetime):
        return bool(run) and run_is_gone(run)
    return False


def kept_versions(model_type: str, keep: int | None) -> int | None:
    """How many versions of a name stay; None = all."""
    if model_type in INFRASTRUCTURE_TYPES:
        return BOOKKEEPING_VERSIONS_KEPT
    return None if keep is None else max(1, keep)


def surplus(history: list[Record]) -> list[Record]:
    """Which versions of one name (all of them, oldest first) its newest one leaves no room for."""
    newest = history[-1]
    kept = kept_versions(newest.model_type, newest.keep)
    return [] if kept is None else history[: max(0, len(history) - kept)]


def doomed(store: Store, now_ms: int) -> Iterator[Doomed]:
    """Every version to be removed, each once."""
    gone: dict[str, bool] = {}

    def run_is_gone(run: str) -> bool:
        if run not in gone:
            gone[run] = store.latest(run, RUN_RECORD, content=False) is None
        return gone[run]

    def expired(record: Record) -> bool:
        return has_expired(record.lifetime, record.created_ms, record.owner.run, now_ms, run_is_gone)

    yield from _ended(store, now_ms)
    mortal = Selection(
        (Term("lifetime", Comparison.NE, (INFINITE,)),), latest_only=False, deleted=True, with_content=False
    )
    for record in store.select(mortal):
        if record.model_type not in INFRASTRUCTURE_TYPES and expired(record):
            yield _doom(record, Reason.EXPIRED)
    fields = ("modelId", "name", "modelType", "version", "keep")
    # A name has surplus versions only if its newest number is above what is kept.
    for model_id, name, model_type, version, keep in store.scan(
        Selection((Term("version", Comparison.GT, (1,)),), deleted=True, with_content=False), fields
    ):
        kept = kept_versions(model_type, keep)
        if kept is not None and version > kept:
            for record in surplus(list(store.versions(model_id, name))):
                if record.model_type in INFRASTRUCTURE_TYPES or not expired(record):
                    yield _doom(record, Reason.SURPLUS)


def collect(store: Store, now_ms: int, *, dry_run: bool = False) -> Report:
    """Remove what is past its time, and blobs and keys nothing needs any more. Blocking: seconds in a large store; run it in a
    thread. Raises what the store raises."""
    versions = size = 0
    counts = dict.fromkeys(Reason, 0)
    entries = 0
    listed: list[tuple[str, str]] = []
    chunk: list[tuple[str, str, int]] = []
    for each in doomed(store, now_ms):
        versions += 1
        size += each.size
        counts[each.reason] += 1
        if each.reason is Reason.EXPIRED and each.is_latest:
            entries += 1
            if len(listed) < _LISTED_MAX:
                listed.append((each.model_id, each.name))
        if not dry_run:
            chunk.append((each.model_id, each.name, each.version))
            if len(chunk) >= _CHUNK:
                store.remove(chunk)
                chunk.clear()
    if chunk:
        store.remove(chunk)
    return Report(
        dry_run=dry_run,
        versions=versions,
        size=size,
        entries_expired=entries,
        expired=tuple(listed),
        surplus=counts[Reason.SURPLUS],
        ended=counts[Reason.ENDED],
        keys=0 if dry_run else store.forget_keys(now_ms - round(BOOKKEEPING_ENDED_KEPT_S * 1000)),
        blob_bytes=0 if dry_run else store.collect_blobs(),
    )


def _ended(store: Store, now_ms: int) -> Iterator[Doomed]:
    """Leases and queue entries whose newest version is old enough and says that they are over."""
    before = iso(max(0, now_ms - round(BOOKKEEPING_ENDED_KEPT_S * 1000)))
    for model_type, open_state in _OPEN_STATE.items():
        over = (
            Term("modelType", Comparison.EQ, (model_type,)),
            Term("createdAt", Comparison.LE, (before,)),
            Term("attributes.state", Comparison.NE, (open_state,)),
        )
        for model_id, name in store.scan(Selection(over, deleted=True), ("modelId", "name")):
            # Its newest version is the last to go: an interrupted collection finds the name again.
            for record in store.versions(model_id, name):
                yield _doom(record, Reason.ENDED)


def _doom(record: Record, reason: Reason) -> Doomed:
    return Doomed(record.model_id, record.name, record.version, record.size, reason, record.is_latest)
