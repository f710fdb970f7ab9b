"""Incremental placement equals the obvious one: a naive plan over everything, after any history of changes."""

import attrs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swamp_orch.core.pool import PoolWorker
from swamp_orch.core.scheduler import Demand, Scheduler

NAMES = ("w0", "w1", "w2", "w3")
UUIDS = ("00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b")
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


workers = st.builds(
    PoolWorker,
    name=st.sampled_from(NAMES),
    instance=st.sampled_from((*UUIDS, "i2", "i3")),
    labels=st.sampled_from(LABELS),
    platform=st.sampled_from(("linux", "darwin")),
    arch=st.sampled_from(("x86_64", "aarch64")),
    capacity=st.integers(0, 3),
    connected=st.sampled_from((True, True, True, False)),
    draining=st.sampled_from((False, False, False, True)),
    unverified=st.sampled_from((None, None, None, "probe failed")),
    stuck=st.integers(0, 1),
    token_expires_ms=st.sampled_from((None, 10_000, 60_000)),
)
demands = st.fixed_dictionaries(
    {
        "priority": st.integers(0, 2),
        "target": st.sampled_from((None, None, "w0", "w1", "nobody", *UUIDS)),
        "labels": st.sampled_from(LABELS),
        "platform": st.sampled_from((None, None, "linux", "linux/x86_64")),
        "avoid": st.frozensets(st.sampled_from(NAMES), max_size=2),
        "affinity": st.sampled_from((None, None, "a", "b")),
        "timeout_s": st.sampled_from((None, None, 5.0, 30.0)),
    }
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("worker"), workers),
        st.tuples(st.just("add"), demands),
        st.tuples(st.just("add"), demands),
        st.tuples(st.just("remove"), st.integers(0, 30)),
        st.tuples(st.just("release"), st.integers(0, 30)),
        st.tuples(st.just("forget"), st.sampled_from(NAMES)),
        st.tuples(st.just("plan"), st.integers(0, 20_000)),
    ),
    max_size=40,
)


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(steps)
def test_incremental_placement_equals_the_naive_plan(history: list[tuple[str, object]]) -> None:
    scheduler, world = Scheduler(), World()
    now_s, now_ms, serial = 0.0, 0, 0
    for what, value in [*history, ("plan", 0)]:
        now_s += 1
        if what == "worker":
            if any(one.instance == value.instance and one.name != value.name for one in world.workers.values()):
                continue  # instance ids are unique
            scheduler.worker_changed(value, now_s)
            if value.name not in world.workers:
                world.idle[value.name] = now_s
            world.workers[value.name] = value
        elif what == "add":
            if value["target"] is not None and value["labels"]:
                continue
            serial += 1
            demand = Demand(id=f"d{serial}", queued_at=float(serial), **value)
            scheduler.add(demand)
            world.demands.append(demand)
        elif what == "remove":
            known = any(one.id == f"d{value}" for one in world.demands)
            assert scheduler.remove(f"d{value}") is known
            world.demands = [one for one in world.demands if one.id != f"d{value}"]
        elif what == "release":
            scheduler.release(f"d{value}", now_s)
            world.release(f"d{value}", now_s)
        elif what == "forget":
            if value in world.workers and value not in world.holders.values():
                scheduler.worker_forgotten(value)
                del world.workers[value], world.idle[value]
        else:
            now_ms += value
            placed = [(one.demand, one.worker) for one in scheduler.take_placements(now_ms)]
            assert placed == world.plan(now_ms)
            scheduler.check()
            assert [one.id for one in scheduler.waiting()] == [
                one.id for one in sorted(world.demands, key=lambda one: (-one.priority, one.queued_at))
            ]
            for worker in scheduler.pool.workers():
                placeable = world.free(worker.name)
                assert placeable == (worker.free if worker.takes_work else 0) or placeable < 0
