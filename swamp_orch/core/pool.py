"""The pool: which workers there are, what may be placed on them, and who holds their slots.

Rules that hold here:

1. A slot has one holder, named by an id, from the instant it is placed until it is given back. There is no
   reservation beside it, so nothing can be counted twice.
2. A slot is given back when the old execution is known dead, not when somebody says it ended; that is the
   caller's to know. Losing the link gives nothing back.
3. The verification state, draining and being connected are facts of their own; no one-word status decides
   anything.
4. Every change of what could be placed on a worker gets a new stamp and moves it to the end of the journal,
   so that whoever looks again sees only what changed since.

Deliberately unknown here: what waits to be placed, leases, tokens beyond the instant of their end.
"""

from collections.abc import Iterator, Mapping
from typing import Final

import attrs

from swamp_proto.errors import Bug

BUSY_SINCE: Final = float("inf")  # `idle_since` of a worker that is not idle: sorts last


@attrs.frozen
class PoolWorker:
    """What is known about one worker. The pool itself keeps `active` and `idle_since`; what `put` is given
    there is ignored."""

    name: str
    instance: str
    labels: Mapping[str, str]
    platform: str  # linux, darwin
    arch: str  # x86_64, aarch64
    capacity: int
    connected: bool = True
    draining: bool = False
    drain_reason: str = ""
    unverified: str | None = None  # why it may not be used yet
    stuck: int = 0  # slots whose process group could not be emptied
    token_expires_ms: int | None = None
    offline_since: float | None = None  # monotonic seconds; while not connected
    active: int = 0
    idle_since: float = 0.0  # monotonic seconds; `BUSY_SINCE` while it runs something

    @property
    def free(self) -> int:
        return max(0, self.capacity - self.stuck - self.active)

    @property
    def takes_work(self) -> bool:
        return self.connected and not self.draining and self.unverified is None


@attrs.define
class Member:
    """A worker and its slots, as the pool keeps them. Read by the scheduler, changed by `Pool` only."""

    facts: PoolWorker
    holders: dict[str, None]
    idle_since: float
    stamp: int = 0

    @property
    def free(self) -> int:
        """Slots that can be given to somebody at this instant."""
        facts = self.facts
        if not facts.connected or facts.draining or facts.unverified is not None:
            return 0
        return max(0, facts.capacity - facts.stuck - len(self.holders))


class Pool:
    """All known workers by name, connected or not."""

    def __init__(self) -> None:
        self._members: dict[str, Member] = {}
        self._holders: dict[str, str] = {}  # holder id -> worker name
        self._journal: dict[str, int] = {}  # worker name -> stamp of its latest change, oldest first
        self._clock = 0

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────
    def __contains__(self, name: str) -> bool:
        return name in self._members

    def __len__(self) -> int:
        return len(self._members)

    def member(self, name: str) -> Member:
        return self._members[name]

    def members(self) -> Iterator[tuple[str, Member]]:
        return iter(self._members.items())

    def get(self, name: str) -> PoolWorker | None:
        """The worker with its slots counted, or None."""
        member = self._members.get(name)
        return None if member is None else _counted(member)

    def workers(self) -> tuple[PoolWorker, ...]:
        """All workers with their slots counted, by name."""
        return tuple(_counted(self._members[name]) for name in sorted(self._members))

    def holder_of(self, holder: str) -> str | None:
        """The worker whose slot `holder` has, or None."""
        return self._holders.get(holder)

    def holders(self, name: str) -> tuple[str, ...]:
        """Who holds the slots of a worker, oldest first."""
        return tuple(self._members[name].holders)

    def changed_since(self, stamp: int) -> Iterator[tuple[str, Member]]:
        """Workers changed after `stamp`, each once, newest first."""
        for name in reversed(self._journal):
            if self._journal[name] <= stamp:
                return
            yield name, self._members[name]

    @property
    def stamp(self) -> int:
        """Of the latest change of any worker."""
        return self._clock

    # ── changing ────────────────────────────────────────────────────────────────────────────────────────────
    def put(self, worker: PoolWorker, now_s: float) -> None:
        """Add a worker or replace what is known about it. Its slots stay with their holders."""
        member = self._members.get(worker.name)
        if member is None:
            self._members[worker.name] = Member(worker, {}, now_s)
        else:
            member.facts = worker
        self._changed(worker.name)

    def drop(self, name: str) -> None:
        """Forget a worker. Nobody may hold a slot of it any more."""
        member = self._members[name]
        if member.holders:
            raise Bug(f"worker {name} is forgotten while {len(member.holders)} slots are held")
        del self._members[name]
        self._journal.pop(name, None)

    def take(self, name: str, holder: str) -> None:
        """Give a slot to `holder`. Also beyond the capacity: adoption after a restart states a fact, it does
        not ask.
        """
        if holder in self._holders:
            raise Bug(f"{holder} holds a slot of {self._holders[holder]} already")
        member = self._members[name]
        member.holders[holder] = None
        member.idle_since = BUSY_SINCE
        self._holders[holder] = name
        self._changed(name)

    def give_back(self, holder: str, now_s: float) -> str | None:
        """Free the slot of `holder`; answers the worker's name, or None when there was no such slot."""
        name = self._holders.pop(holder, None)
        if name is None:
            return None
        member = self._members[name]
        del member.holders[holder]
        if not member.holders:
            member.idle_since = now_s
        self._changed(name)
        return name

    def check(self) -> None:
        """Every slot has one holder and every holder one slot."""
        held = {holder: name for name, member in self._members.items() for holder in member.holders}
        assert held == self._holders, "slots and holders disagree"
        assert list(self._journal.values()) == sorted(self._journal.values()), "the journal is out of order"
        assert set(self._journal) == set(self._members), "a worker is missing in the journal"

    def _changed(self, name: str) -> None:
        self._clock += 1
        self._members[name].stamp = self._clock
        self._journal.pop(name, None)
        self._journal[name] = self._clock


def _counted(member: Member) -> PoolWorker:
    return attrs.evolve(member.facts, active=len(member.holders), idle_since=member.idle_since)
