"""The scheduler: which waiting step goes to which worker, and why the others still wait.

Rules that hold here:

1. Order among the waiting: priority (higher first), then age, then arrival. A step that can not be placed
   does not hold up those behind it.
2. Choice among workers: workers not in `avoid` first, then most free slots, then the longest idle, then name.
3. A slot is taken in the very call that places. Between two calls no slot is free that a waiting step could
   use.
4. What waits is kept by *requirement*: steps that ask for the same share one queue, and a queue remembers
   which workers can satisfy it. An event costs what it touches: a freed slot looks at the queues that worker
   satisfies, a new step at its own queue, never at waiting x workers.
5. Affinity pins at assignment: the first step of a group decides, the others then ask for that worker.

Deliberately unknown here: runs, leases, queue timeouts (stored deadlines of the engine), the clock.
"""

from collections.abc import Iterable, Iterator, Mapping
from heapq import heappop, heappush
from typing import Final

import attrs

from swamp_orch.core.pool import Member, Pool, PoolWorker
from swamp_proto.errors import Bug
from swamp_proto.ids import is_uuid

IDLE_QUEUES_MAX: Final = 256  # queues nobody waits in that are kept: the next step often asks for the same
SLACK: Final = 64  # entries a heap may hold beyond twice what is alive in it


@attrs.frozen
class Requirement:
    """What a step asks of a worker. Equal requirements share a queue."""

    target: str | None = None
    labels: tuple[tuple[str, str], ...] = ()  # sorted
    platform: str | None = None  # `os` or `os/arch`
    timeout_s: float | None = None  # of the step: the worker's token must live that long
    pinned: str | None = None  # the worker of its affinity group

    def text(self) -> str:
        """`target=x, k=v, platform=p`, or `any worker`."""
        parts = [] if self.target is None else [f"target={self.target}"]
        parts += [f"{key}={value}" for key, value in self.labels]
        if self.platform is not None:
            parts.append(f"platform={self.platform}")
        return ", ".join(parts) or "any worker"


@attrs.frozen
class Demand:
    """A step that waits for a worker. `id` is also the holder of the slot it gets: one id per attempt."""

    id: str
    priority: int = 0  # higher first
    queued_at: float = 0.0  # any clock, the same for all
    target: str | None = None
    labels: Mapping[str, str] = attrs.field(factory=dict)
    platform: str | None = None
    avoid: frozenset[str] = frozenset()  # workers to use last
    affinity: str | None = None  # steps with the same key go to the same worker
    timeout_s: float | None = None


@attrs.frozen
class Placement:
    """`demand` has a slot of `worker` now."""

    demand: str
    worker: str
    instance: str


@attrs.frozen
class Obstacle:
    """One thing that keeps a step from one worker: what it is, and what would remove it. `weight` orders
    changes.
    """

    reason: str
    change: str
    weight: int


@attrs.frozen
class Explanation:
    """Why a step waits: every worker with what is in the way (empty: nothing), and the smallest change."""

    workers: Mapping[str, tuple[Obstacle, ...]]  # by worker name, sorted
    change: str


_Key = tuple[int, float, int]


@attrs.define(eq=False)
class _Queue:
    """Steps with one requirement, and the workers that satisfy it."""

    requirement: Requirement
    serial: int
    matching: dict[str, None]  # names of workers whose facts satisfy the requirement
    waiting: list[tuple[_Key, str]] = attrs.field(factory=list)  # heap; removed steps stay until they surface
    best: list[tuple[int, float, str, int]] = attrs.field(
        factory=list
    )  # heap: -free, idle since, name, stamp
    seen: int = 0  # stamp of the pool up to which `best` is up to date


class Scheduler:
    """Incremental placement over a pool. `take_placements` after any change answers what can start now."""

    def __init__(self, pool: Pool | None = None) -> None:
        self.pool = Pool() if pool is None else pool
        self.stopped: str | None = None  # why nothing is granted
        self._demands: dict[str, tuple[Demand, _Key, _Queue]] = {}
        self._queues: dict[Requirement, _Queue] = {}
        self._by_target: dict[str, dict[Requirement, _Queue]] = {}
        self._of_worker: dict[str, dict[Requirement, _Queue]] = {}
        self._lengths: dict[Requirement, int] = {}  # steps waiting, for queues that have any
        self._idle: dict[Requirement, None] = {}  # queues nobody waits in, least recently used first
        self._instances: dict[str, str] = {}  # instance -> worker name
        self._labelled: dict[tuple[str, str], dict[str, None]] = {}  # label -> names of workers that have it
        self._pins: dict[str, str] = {}  # affinity key -> worker name
        self._groups: dict[str, dict[str, None]] = {}  # affinity key -> waiting steps, while not pinned
        self._candidates: dict[Requirement, None] = {}  # queues whose head may have become placeable
        self._serial = 0

    # ── what waits ──────────────────────────────────────────────────────────────────────────────────────────
    def __len__(self) -> int:
        return len(self._demands)

    def __contains__(self, demand: str) -> bool:
        return demand in self._demands

    def waiting(self) -> tuple[Demand, ...]:
        """All waiting steps in the order they are considered."""
        ordered = sorted(self._demands.values(), key=lambda entry: entry[1])
        return tuple(entry[0] for entry in ordered)

    def add(self, demand: Demand) -> None:
        """Let a step wait. Whether it starts at once is what the next `take_placements` says."""
        if demand.id in self._demands:
            raise Bug(f"{demand.id} waits already")
        self._serial += 1
        self._enqueue(demand, (-demand.priority, demand.queued_at, self._serial))
        if demand.affinity is not None and demand.affinity not in self._pins:
            self._groups.setdefault(demand.affinity, {})[demand.id] = None

    def remove(self, demand: str) -> bool:
        """A step stops waiting (cancelled, timed out). False when it did not wait."""
        entry = self._demands.get(demand)
        if entry is None:
            return False
        self._dequeue(demand)
        self._leave_group(entry[0])
        return True

    def release_affinity(self, key: str) -> None:
        """The group is over: later steps with this key choose afresh. Nobody of it may wait any more."""
        self._pins.pop(key, None)

    def pin(self, key: str, worker: str) -> None:
        """A group's worker as it was before a restart."""
        self._pin(key, worker)

    # ── workers ─────────────────────────────────────────────────────────────────────────────────────────────
    def worker_changed(self, worker: PoolWorker, now_s: float) -> None:
        """A worker came, left, drains, changed its labels, lost a slot for good, …: everything known about it
        now.
        """
        before = self.pool.get(worker.name)
        self.pool.put(worker, now_s)
        if before is None or before.instance != worker.instance:
            self._renamed(worker.name, None if before is None else before.instance, worker.instance)
        if before is None or _facts(before) != _facts(worker):
            self._relabel(worker.name, {} if before is None else before.labels, worker.labels)
            self._rematch(worker)
        self._gained(worker.name)

    def worker_forgotten(self, name: str) -> None:
        """A worker will not come back. Nobody may hold a slot of it any more."""
        worker = self.pool.get(name)
        if worker is None:
            return
        self.pool.drop(name)
        for requirement in self._of_worker.pop(name, {}):
            self._queues[requirement].matching.pop(name, None)
        self._relabel(name, worker.labels, {})
        self._renamed(name, worker.instance, None)

    def release(self, holder: str, now_s: float) -> None:
        """The slot of `holder` is free: its execution is known dead. Nothing happens when it has none."""
        name = self.pool.give_back(holder, now_s)
        if name is not None:
            self._gained(name)

    def occupy(self, worker: str, holder: str) -> None:
        """A slot that is taken without having been placed here: a lease found at start."""
        self.pool.take(worker, holder)

    def stop_granting(self, why: str | None) -> None:
        """Place nothing (shutdown, full disk) until called with None."""
        self.stopped = why

    # ── placing ─────────────────────────────────────────────────────────────────────────────────────────────
    def take_placements(self, now_ms: int) -> tuple[Placement, ...]:
        """Everything that can start now, each with its slot taken. `now_ms` is the wall clock, for tokens'
        ends.
        """
        if self.stopped is not None or not self._candidates:
            return ()
        order: list[tuple[_Key, int]] = []
        by_serial: dict[int, _Queue] = {}

        def offer(queue: _Queue) -> None:
            key = self._head(queue)
            if key is not None:
                by_serial[queue.serial] = queue
                heappush(order, (key, queue.serial))

        for requirement in self._candidates:
            offer(self._queues[requirement])
        self._candidates.clear()
        placed: list[Placement] = []
        while order:
            key, serial = heappop(order)
            queue = by_serial[serial]
            if self._head(queue) != key:
                offer(queue)  # its head was placed, or moved to its group's worker: another one waits now
                continue
            demand = self._demands[queue.waiting[0][1]][0]
            name = self._choose(queue, demand.avoid, now_ms)
            if name is None:
                continue  # blocked: nothing placed from here on frees a slot
            self._dequeue(demand.id)
            self._leave_group(demand)
            self.pool.take(name, demand.id)
            placed.append(Placement(demand.id, name, self.pool.member(name).facts.instance))
            offer(queue)
            if demand.affinity is not None and demand.affinity not in self._pins:
                self._pin(demand.affinity, name)
                for requirement in self._candidates:
                    offer(self._queues[requirement])
                self._candidates.clear()
        self._forget_idle_queues()
        return tuple(placed)

    def _choose(self, queue: _Queue, avoid: frozenset[str], now_ms: int) -> str | None:
        """The best worker with a free slot for a step of this queue, or None."""
        self._catch_up(queue)
        best = queue.best
        needed_ms = (
            None if queue.requirement.timeout_s is None else now_ms + queue.requirement.timeout_s * 1000
        )
        avoided: list[tuple[int, float, str, int]] = []
        found: str | None = None
        while best:
            entry = best[0]
            name = entry[2]
            member = self.pool.member(name) if name in self.pool else None
            if member is None or member.stamp != entry[3] or name not in queue.matching:
                heappop(best)  # superseded by a later entry, or gone
                continue
            expires_ms = member.facts.token_expires_ms
            if needed_ms is not None and expires_ms is not None and expires_ms < needed_ms:
                heappop(best)  # a life only gets shorter; a renewal makes a new entry
                continue
            if name in avoid:
                avoided.append(heappop(best))
                continue
            found = name
            break
        if found is None and avoided:
            found = avoided[0][2]
        for entry in avoided:
            heappush(best, entry)
        return found

    def _catch_up(self, queue: _Queue) -> None:
        """Add what changed in the pool since this queue looked last."""
        changed: Iterable[tuple[str, Member]] = self.pool.changed_since(queue.seen)
        if not queue.seen:  # it never looked: what satisfies it is less than all that ever changed
            changed = ((name, self.pool.member(name)) for name in queue.matching)
        for name, member in changed:
            free = member.free
            if free and name in queue.matching:
                heappush(queue.best, (-free, member.idle_since, name, member.stamp))
        queue.seen = self.pool.stamp
        if len(queue.best) > 2 * len(queue.matching) + SLACK:  # superseded entries that never surfaced
            members = {name: self.pool.member(name) for name in queue.matching}
            queue.best = sorted(
                entry for entry in queue.best if entry[2] in members and members[entry[2]].stamp == entry[3]
            )

    # ── queues ──────────────────────────────────────────────────────────────────────────────────────────────
    def _enqueue(self, demand: Demand, key: _Key) -> None:
        requirement = Requirement(
            target=demand.target,
            labels=tuple(sorted(demand.labels.items())),
            platform=demand.platform,
            timeout_s=demand.timeout_s,
            pinned=None if demand.affinity is None else self._pins.get(demand.affinity),
        )
        queue = self._queues.get(requirement)
        if queue is None:
            queue = self._new_queue(requirement)
        self._idle.pop(requirement, None)
        self._lengths[requirement] = self._lengths.get(requirement, 0) + 1
        heappush(queue.waiting, (key, demand.id))
        self._demands[demand.id] = (demand, key, queue)
        self._candidates[requirement] = None

    def _dequeue(self, demand: str) -> None:
        queue = self._demands.pop(demand)[2]
        requirement = queue.requirement
        left = self._lengths[requirement] - 1
        if left:
            self._lengths[requirement] = left
        else:
            del self._lengths[requirement]
            queue.waiting.clear()
            self._idle[requirement] = None
        if len(queue.waiting) > 2 * left + SLACK:  # those that left and never surfaced
            queue.waiting = sorted(entry for entry in queue.waiting if self._waits(queue, *entry))

    def _waits(self, queue: _Queue, key: _Key, demand: str) -> bool:
        entry = self._demands.get(demand)
        return entry is not None and entry[1] == key and entry[2] is queue

    def _head(self, queue: _Queue) -> _Key | None:
        """The key of the first step that still waits in this queue."""
        while queue.waiting:
            key, demand = queue.waiting[0]
            if self._waits(queue, key, demand):
                return key
            heappop(queue.waiting)
        return None

    def _new_queue(self, requirement: Requirement) -> _Queue:
        self._serial += 1
        queue = _Queue(requirement, self._serial, {})
        self._queues[requirement] = queue
        if requirement.target is not None:
            self._by_target.setdefault(requirement.target, {})[requirement] = queue
        for name, member in self._possible(requirement):
            self._match(queue, name, member)
        return queue

    def _possible(self, requirement: Requirement) -> Iterator[tuple[str, Member]]:
        """Few workers that include all that satisfy the requirement."""
        names: Iterable[str]
        if requirement.target is not None:
            name = self._resolve(requirement.target)
            names = () if name is None else (name,)
        elif requirement.pinned is not None:
            names = (requirement.pinned,) if requirement.pinned in self.pool else ()
        elif requirement.labels:
            sets: list[dict[str, None]] = [self._labelled.get(label, {}) for label in requirement.labels]
            rarest = min(sets, key=len)
            names = rarest
        else:
            yield from self.pool.members()
            return
        for name in names:
            yield name, self.pool.member(name)

    def _match(self, queue: _Queue, name: str, member: Member) -> None:
        """Note whether this worker satisfies this queue."""
        if self._satisfies(member.facts, queue.requirement):
            if name not in queue.matching:
                queue.matching[name] = None
                queue.seen = min(queue.seen, member.stamp - 1)
            self._of_worker.setdefault(name, {})[queue.requirement] = queue
        else:
            queue.matching.pop(name, None)
            self._of_worker.get(name, {}).pop(queue.requirement, None)

    def _rematch(self, worker: PoolWorker) -> None:
        member = self.pool.member(worker.name)
        for queue in self._queues.values():
            self._match(queue, worker.name, member)

    def _relabel(self, name: str, before: Mapping[str, str], after: Mapping[str, str]) -> None:
        for label in before.items():
            having = self._labelled[label]
            having.pop(name, None)
            if not having:
                del self._labelled[label]
        for label in after.items():
            self._labelled.setdefault(label, {})[name] = None

    def _renamed(self, name: str, before: str | None, after: str | None) -> None:
        """Instance ids come first when a target is one, so their coming and going changes what a target
        means.
        """
        if before is not None and self._instances.get(before) == name:
            del self._instances[before]
        if after is not None:
            self._instances[after] = name
        for target in (before, after):
            for queue in self._by_target.get(target or "", {}).values():
                for other, member in self.pool.members():
                    self._match(queue, other, member)
                if queue.requirement in self._lengths:
                    self._candidates[queue.requirement] = None

    def _gained(self, name: str) -> None:
        """Something may be placeable on this worker that was not before."""
        if not self.pool.member(name).free:
            return
        satisfied = self._of_worker.get(name, {})
        if len(satisfied) <= len(self._lengths):
            found: Iterable[Requirement] = (one for one in satisfied if one in self._lengths)
        else:
            found = (one for one in self._lengths if one in satisfied)
        for requirement in found:
            self._candidates[requirement] = None

    def _forget_idle_queues(self) -> None:
        while len(self._idle) > IDLE_QUEUES_MAX:
            requirement = next(iter(self._idle))
            del self._idle[requirement]
            self._candidates.pop(requirement, None)
            queue = self._queues.pop(requirement)
            for name in queue.matching:
                self._of_worker[name].pop(requirement, None)
            if requirement.target is not None:
                same = self._by_target[requirement.target]
                del same[requirement]
                if not same:
                    del self._by_target[requirement.target]

    # ── affinity ────────────────────────────────────────────────────────────────────────────────────────────
    def _pin(self, key: str, worker: str) -> None:
        self._pins[key] = worker
        for waiting in self._groups.pop(key, {}):
            demand, order, _ = self._demands[waiting]
            self._dequeue(waiting)
            self._enqueue(demand, order)

    def _leave_group(self, demand: Demand) -> None:
        group = self._groups.get(demand.affinity or "")
        if group is not None:
            group.pop(demand.id, None)
            if not group:
                del self._groups[demand.affinity or ""]

    # ── matching and explaining ─────────────────────────────────────────────────────────────────────────────
    def _resolve(self, target: str) -> str | None:
        """The name of the worker a target means: an instance uuid first, then a name."""
        if is_uuid(target) and target in self._instances:
            return self._instances[target]
        return target if target in self.pool else None

    def _satisfies(self, worker: PoolWorker, requirement: Requirement) -> bool:
        if requirement.target is not None and self._resolve(requirement.target) != worker.name:
            return False
        if requirement.pinned is not None and requirement.pinned != worker.name:
            return False
        return all(worker.labels.get(key) == value for key, value in requirement.labels) and _fits_platform(
            worker, requirement.platform
        )

    def known(self, demand: Demand) -> bool:
        """Whether any known worker, connected or not, could ever satisfy this step."""
        requirement = Requirement(demand.target, tuple(sorted(demand.labels.items())), demand.platform)
        return any(self._satisfies(member.facts, requirement) for _, member in self._possible(requirement))

    def explain(self, demand: Demand, now_s: float, now_ms: int) -> Explanation:
        """What keeps this step from every worker, and the smallest change that would start it."""
        pinned = None if demand.affinity is None else self._pins.get(demand.affinity)
        workers = {
            worker.name: tuple(self._obstacles(worker, demand, pinned, now_s, now_ms))
            for worker in self.pool.workers()
        }
        if self.stopped is not None:
            return Explanation(workers, f"nothing is started at the moment: {self.stopped}")
        if not workers:
            return Explanation(workers, _connect(demand))
        name = min(workers, key=lambda one: (sum(obstacle.weight for obstacle in workers[one]), one))
        if sum(obstacle.weight for obstacle in workers[name]) >= _OTHER_WORKER:
            return Explanation(workers, _connect(demand))
        changes = " and ".join(obstacle.change for obstacle in workers[name])
        return Explanation(workers, changes or f"{name} is about to start it")

    def _obstacles(
        self, worker: PoolWorker, demand: Demand, pinned: str | None, now_s: float, now_ms: int
    ) -> Iterator[Obstacle]:
        name = worker.name
        if demand.target is not None and self._resolve(demand.target) != name:
            yield Obstacle(f"target is {demand.target}", f"target {name} instead", _OTHER_WORKER)
        if pinned is not None and pinned != name:
            yield Obstacle(f"the group runs on {pinned}", f"run the group on {name}", _OTHER_WORKER)
        for key, value in sorted(demand.labels.items()):
            if worker.labels.get(key) != value:
                has = worker.labels.get(key)
                reason = (
                    f"label {key}={value} missing" if has is None else f"label {key} is {has}, not {value}"
                )
                yield Obstacle(reason, f"reconnect {name} with --label {key}={value}", _RECONFIGURE)
        if not _fits_platform(worker, demand.platform):
            yield Obstacle(f"platform {worker.platform}/{worker.arch}", "another machine", _OTHER_WORKER)
        if not worker.connected:
            since = worker.offline_since
            reason = "offline" if since is None else f"offline {_ago(now_s - since)}"
            yield Obstacle(reason, f"bring {name} back", _BRING_BACK)
        if worker.draining:
            why = f" ({worker.drain_reason})" if worker.drain_reason else ""
            yield Obstacle(f"draining{why}", f"swamp worker undrain {name}", _COMMAND)
        if worker.unverified is not None:
            yield Obstacle(f"unverified: {worker.unverified}", f"swamp worker verify {name}", _COMMAND)
        if demand.timeout_s is not None and worker.token_expires_ms is not None:
            left_s = (worker.token_expires_ms - now_ms) / 1000
            if left_s < demand.timeout_s:
                yield Obstacle(
                    f"token ends in {_ago(left_s)}, the step may take {_ago(demand.timeout_s)}",
                    f"swamp worker token renew for {name}",
                    _COMMAND,
                )
        if not worker.free:
            stuck = f", {worker.stuck} stuck" if worker.stuck else ""
            yield Obstacle(f"busy {worker.active}/{worker.capacity}{stuck}", f"a free slot on {name}", _WAIT)

    def check(self) -> None:
        """Nobody waits whom a free slot would serve, and all indexes agree. For tests: walks everything."""
        self.pool.check()
        for requirement, queue in self._queues.items():
            expected = {
                name for name, member in self.pool.members() if self._satisfies(member.facts, requirement)
            }
            assert set(queue.matching) == expected, f"{requirement}: wrong workers"
            for name in queue.matching:
                assert requirement in self._of_worker[name], f"{name} does not know {requirement}"
            count = sum(1 for _, _, its in self._demands.values() if its is queue)
            assert self._lengths.get(requirement, 0) == count, f"{requirement}: wrong length"
            assert (requirement in self._idle) == (count == 0), f"{requirement}: idle is wrong"
        for name, satisfied in self._of_worker.items():
            assert name in self.pool or not satisfied, f"{name} is gone"


_WAIT: Final = 1  # passes by itself
_COMMAND: Final = 10  # one command of an operator
_BRING_BACK: Final = 20
_RECONFIGURE: Final = 50  # each
_OTHER_WORKER: Final = 1_000  # this worker will never do


def _facts(worker: PoolWorker) -> tuple[object, ...]:
    return (worker.labels, worker.platform, worker.arch, worker.instance)


def _fits_platform(worker: PoolWorker, platform: str | None) -> bool:
    return platform is None or platform in (worker.platform, f"{worker.platform}/{worker.arch}")


def _connect(demand: Demand) -> str:
    if demand.target is not None and not is_uuid(demand.target):
        mint = f"swamp worker token create {demand.target} --duration 24h"
        return f"connect a worker with the token {demand.target}: {mint}"
    parts = [f"--label {key}={value}" for key, value in sorted(demand.labels.items())]
    where = f" on {demand.platform}" if demand.platform is not None else ""
    if demand.target is not None:
        return f"the worker process {demand.target} would have to come back; target a worker by name instead"
    return f"connect a worker{where}" + (f" with {' '.join(parts)}" if parts else "")


def _ago(seconds: float) -> str:
    """`40 s`, `3 m`, `2 h`, `5 d`; never negative."""
    seconds = max(0.0, seconds)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"
