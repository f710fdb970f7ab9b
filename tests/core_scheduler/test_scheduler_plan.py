"""Incremental placement equals a naive plan over everything, after any history of changes."""

import random

import attrs
import pytest

from swamp_orch.core.pool import PoolWorker
from swamp_orch.core.scheduler import Demand, Scheduler

UUIDS = ("00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b")
NAMES = ("w0", "w1", "w2", UUIDS[0])  # a worker may be named like the instance of another
EVENTS = ("worker", "add", "add", "add", "remove", "release", "release", "forget", "plan", "plan")
LABELS = ({}, {"gpu": "true"}, {"gpu": "true", "zone": "a"}, {"zone": "b"})


@attrs.define
class World:
    """The naive twin: plain lists, everything looked at every time."""

    workers: dict[str, PoolWorker] = attrs.field(factory=dict)
    holders: dict[str, str] = attrs.field(factory=dict)
    idle: dict[str, float] = attrs.field(factory=dict)
    demands: list[Demand] = attrs.field(factory=list)
    pins: dict[str, str] = attrs.field(factory=dict)
    born_with_pin: dict[str, str | None] = attrs.field(factory=dict)

    def free(self, name: str) -> int:
        worker = self.workers[name]
        if not worker.connected or worker.draining or worker.unverified is not None:
            return 0
        return worker.capacity - worker.stuck - sum(1 for held in self.holders.values() if held == name)

    def satisfies(self, worker: PoolWorker, demand: Demand, now_ms: int) -> bool:
        if demand.target is not None:
            by_instance = [one.name for one in self.workers.values() if one.instance == demand.target]
            wanted = by_instance[0] if by_instance else demand.target
            if worker.name != wanted:
                return False
        if demand.affinity is not None and self.pins.get(demand.affinity, worker.name) != worker.name:
            return False
        if any(worker.labels.get(key) != value for key, value in demand.labels.items()):
            return False
        if demand.platform not in (None, worker.platform, f"{worker.platform}/{worker.arch}"):
            return False
        if demand.timeout_s is not None and worker.token_expires_ms is not None:
            return now_ms + demand.timeout_s * 1000 <= worker.token_expires_ms
        return True

    def plan(self, now_ms: int) -> list[tuple[str, str]]:
        placed = []
        for demand in sorted(self.demands, key=lambda one: (-one.priority, one.queued_at)):
            fitting = [
                name
                for name, worker in self.workers.items()
                if self.free(name) > 0 and self.satisfies(worker, demand, now_ms)
            ]
            if not fitting:
                continue

            def rank(name: str, demand: Demand = demand) -> tuple[object, ...]:
                busy = name in self.holders.values()
                since = float("inf") if busy else self.idle[name]
                return (name in demand.avoid, -self.free(name), since, name)

            name = min(fitting, key=rank)
            self.holders[demand.id] = name
            if demand.affinity is not None:
                self.pins.setdefault(demand.affinity, name)
            placed.append((demand.id, name))
        chosen = {demand for demand, _ in placed}
        self.demands = [demand for demand in self.demands if demand.id not in chosen]
        return placed

    def release(self, holder: str, now_s: float) -> None:
        name = self.holders.pop(holder, None)
        if name is not None and name not in self.holders.values():
            self.idle[name] = now_s


def some_worker(dice: random.Random, now_ms: int) -> PoolWorker:
    return PoolWorker(
        name=dice.choice(NAMES),
        instance=dice.choice((*UUIDS, "i2", "i3")),
        labels=dice.choice(LABELS),
        platform=dice.choice(("linux", "linux", "darwin")),
        arch=dice.choice(("x86_64", "aarch64")),
        capacity=dice.choice((0, 1, 1, 2, 2, 3)),
        connected=dice.random() < 0.9,
        draining=dice.random() < 0.1,
        unverified="probe failed" if dice.random() < 0.1 else None,
        stuck=dice.choice((0, 0, 0, 1)),
        token_expires_ms=dice.choice((None, None, now_ms + 10_000, now_ms + 60_000)),
    )


def some_demand(dice: random.Random, serial: int) -> Demand:
    target = dice.choice((None, None, None, "w0", "w1", "nobody", *UUIDS))
    return Demand(
        id=f"d{serial}",
        queued_at=float(serial),
        priority=dice.choice((0, 0, 0, 1, 2)),
        target=target,
        labels=dice.choice(({}, *LABELS)) if target is None else {},
        platform=dice.choice((None, None, None, "linux", "linux/x86_64")),
        avoid=frozenset(dice.sample(NAMES, dice.choice((0, 0, 1, 2)))),
        affinity=dice.choice((None, None, "a", f"g{serial // 3}", f"g{serial // 3}")),
        timeout_s=dice.choice((None, None, 5.0, 30.0)),
    )


@pytest.mark.parametrize("seed", range(60))
def test_incremental_placement_equals_the_naive_plan(seed: int) -> None:
    dice = random.Random(seed)
    scheduler, world = Scheduler(), World()
    now_s, now_ms, serial = 0.0, 0, 0
    for number in range(250):
        now_s += 1
        what = dice.choice(EVENTS)
        if what == "worker" or number < 4:
            worker = some_worker(dice, now_ms)
            others = [one for one in world.workers.values() if one.name != worker.name]
            if any(one.instance == worker.instance for one in others):
                continue  # instance ids are unique
            scheduler.worker_changed(worker, now_s)
            world.idle.setdefault(worker.name, now_s)
            world.workers[worker.name] = worker
        elif what == "add":
            serial += 1
            demand = some_demand(dice, serial)
            scheduler.add(demand)
            world.demands.append(demand)
        elif what == "remove":
            if dice.random() < 0.5 and world.demands:
                gone = dice.choice(world.demands)
                assert scheduler.remove(gone.id)
                world.demands.remove(gone)
            else:
                assert not scheduler.remove("nobody")
        elif what == "release":
            holder = dice.choice([*world.holders, "nobody"])
            scheduler.release(holder, now_s)
            world.release(holder, now_s)
        elif what == "forget":
            name = dice.choice(NAMES)
            if name in world.workers and name not in world.holders.values():
                scheduler.worker_forgotten(name)
                del world.workers[name], world.idle[name]
        else:
            now_ms += dice.choice((0, 0, 500, 5_000))
            placed = [(one.demand, one.worker) for one in scheduler.take_placements(now_ms)]
            assert placed == world.plan(now_ms)
            scheduler.check()
            assert [one.id for one in scheduler.waiting()] == [
                one.id for one in sorted(world.demands, key=lambda one: (-one.priority, one.queued_at))
            ]
            for worker in scheduler.pool.workers():
                assert max(0, world.free(worker.name)) == (worker.free if worker.takes_work else 0)
    assert serial > 30
