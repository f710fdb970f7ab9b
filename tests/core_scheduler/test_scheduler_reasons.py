"""Why a step waits, and what would help; and how a scheduler is driven."""

from collections.abc import Mapping

import pytest

from swamp_orch.core.pool import Pool, PoolWorker
from swamp_orch.core.scheduler import Demand, Requirement, Scheduler
from swamp_proto.errors import Bug

UUID = "00000000-0000-4000-8000-00000000000a"


def worker(name: str = "w", **about: object) -> PoolWorker:
    given: dict[str, object] = {"labels": {"zone": "a"}, "platform": "linux", "arch": "x86_64", "capacity": 1}
    return PoolWorker(name=name, instance=f"i-{name}", **{**given, **about})  # type: ignore[arg-type]


def pool(*workers: PoolWorker) -> Scheduler:
    scheduler = Scheduler()
    for one in workers:
        scheduler.worker_changed(one, 0.0)
    return scheduler


def reasons(scheduler: Scheduler, demand: Demand) -> Mapping[str, list[str]]:
    found = scheduler.explain(demand, 200.0, 0)
    return {name: [one.reason for one in obstacles] for name, obstacles in found.workers.items()}


@pytest.mark.parametrize(
    ("about", "demand", "reason"),
    [
        ({}, {"target": "x"}, "target is x"),
        ({}, {"labels": {"gpu": "true"}}, "label gpu=true missing"),
        ({"labels": {"gpu": "false"}}, {"labels": {"gpu": "true"}}, "label gpu is false, not true"),
        ({}, {"platform": "darwin"}, "platform linux/x86_64"),
        ({"connected": False, "offline_since": 20.0}, {}, "offline 3 m"),
        ({"draining": True, "drain_reason": "upgrade"}, {}, "draining (upgrade)"),
        ({"unverified": "probe failed"}, {}, "unverified: probe failed"),
        ({"token_expires_ms": 240_000}, {"timeout_s": 600.0}, "token ends in 4 m, the step may take 10 m"),
        ({"capacity": 2, "stuck": 2}, {}, "busy 0/2, 2 stuck"),
    ],
)
def test_one_obstacle(about: dict[str, object], demand: dict[str, object], reason: str) -> None:
    assert reasons(pool(worker(**about)), Demand("d", **demand)) == {"w": [reason]}  # type: ignore[arg-type]


def test_busy_counts_who_holds_slots() -> None:
    scheduler = pool(worker(capacity=4))
    for number in range(4):
        scheduler.add(Demand(f"d{number}"))
    assert len(scheduler.take_placements(0)) == 4
    assert reasons(scheduler, Demand("next")) == {"w": ["busy 4/4"]}


def test_the_smallest_change_is_the_one_that_costs_least() -> None:
    scheduler = pool(worker("a", labels={}), worker("b", labels={"gpu": "true"}, draining=True), worker("c"))
    demand = Demand("d", labels={"gpu": "true"})
    assert scheduler.explain(demand, 0.0, 0).change == "swamp worker undrain b"
    assert "gpu=true" in pool(worker("a")).explain(demand, 0.0, 0).change
    assert "--label gpu=true" in Scheduler().explain(demand, 0.0, 0).change
    assert (
        "swamp worker token create build" in Scheduler().explain(Demand("d", target="build"), 0.0, 0).change
    )


def test_known_says_whether_any_worker_could_ever_do() -> None:
    scheduler = pool(worker(connected=False))
    assert scheduler.known(Demand("d", target="w"))
    assert scheduler.known(Demand("d", target="i-w")) is False, "not a uuid, so a name"
    assert scheduler.known(Demand("d", labels={"zone": "a"}))
    assert not scheduler.known(Demand("d", labels={"zone": "b"}))


def test_a_step_waits_for_a_worker_that_does_not_exist_yet() -> None:
    scheduler = Scheduler()
    scheduler.add(Demand("d", target="late"))
    assert scheduler.take_placements(0) == ()
    scheduler.worker_changed(worker("late"), 1.0)
    (placed,) = scheduler.take_placements(0)
    assert (placed.demand, placed.worker, placed.instance) == ("d", "late", "i-late")


def test_a_uuid_is_an_instance_first_and_a_name_then() -> None:
    scheduler = pool(worker(UUID), worker("other"))
    scheduler.add(Demand("by name", target=UUID))
    assert [one.worker for one in scheduler.take_placements(0)] == [UUID]
    scheduler.worker_changed(PoolWorker("fresh", UUID, {}, "linux", "x86_64", 1), 1.0)
    scheduler.add(Demand("by instance", target=UUID))
    assert [one.worker for one in scheduler.take_placements(0)] == ["fresh"]


def test_capacity_is_whole_under_a_staggered_load() -> None:
    scheduler = pool(worker(capacity=4))
    for number in range(4):
        scheduler.add(Demand(f"d{number}"))
        assert len(scheduler.take_placements(0)) == 1


def test_a_freed_slot_is_filled_in_the_same_pass() -> None:
    scheduler = pool(worker())
    for number in range(3):
        scheduler.add(Demand(f"d{number}", queued_at=number))
    for number in range(3):
        assert [one.demand for one in scheduler.take_placements(0)] == [f"d{number}"]
        scheduler.release(f"d{number}", 1.0)


def test_affinity_is_pinned_when_the_first_is_placed() -> None:
    scheduler = pool(worker("a", capacity=1), worker("b", capacity=2))
    scheduler.add(Demand("one", queued_at=1, affinity="run:job"))
    scheduler.add(Demand("two", queued_at=2, affinity="run:job"))
    scheduler.add(Demand("three", queued_at=3, affinity="run:job"))
    assert [one.worker for one in scheduler.take_placements(0)] == ["b", "b"]
    assert reasons(scheduler, Demand("three", affinity="run:job"))["a"] == ["the group runs on b"]
    scheduler.release("one", 1.0)
    assert [one.worker for one in scheduler.take_placements(0)] == ["b"]


def test_who_waits_behind_a_group_is_considered_when_the_group_moves_to_its_worker() -> None:
    """Placing the first of a group moves the second to a queue of its own: whoever was behind it is the head now."""
    scheduler = Scheduler()
    scheduler.add(Demand("one", queued_at=1, affinity="run:job"))
    scheduler.add(Demand("two", queued_at=2, affinity="run:job"))
    scheduler.add(Demand("three", queued_at=3))
    scheduler.worker_changed(worker("a", capacity=3), 0.0)
    assert [one.demand for one in scheduler.take_placements(0)] == ["one", "two", "three"]


def test_nothing_is_granted_while_stopped() -> None:
    scheduler = pool(worker())
    scheduler.stop_granting("the disk is full")
    scheduler.add(Demand("d"))
    assert scheduler.take_placements(0) == ()
    assert "the disk is full" in scheduler.explain(Demand("d"), 0.0, 0).change
    scheduler.stop_granting(None)
    assert len(scheduler.take_placements(0)) == 1


def test_requirements_read_like_the_queue_shows_them() -> None:
    assert Requirement().text() == "any worker"
    assert Requirement(target="x").text() == "target=x"
    assert Requirement(labels=(("a", "1"), ("b", "2")), platform="linux").text() == "a=1, b=2, platform=linux"


def test_misuse_is_a_bug() -> None:
    scheduler = pool(worker())
    scheduler.add(Demand("d"))
    with pytest.raises(Bug):
        scheduler.add(Demand("d"))
    scheduler.take_placements(0)
    with pytest.raises(Bug):
        scheduler.occupy("w", "d")
    with pytest.raises(Bug):
        scheduler.worker_forgotten("w")
    assert Pool().give_back("nobody", 0.0) is None
