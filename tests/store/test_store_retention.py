"""What the collector removes and, more important, what it keeps."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swamp_orch.store.bookkeeping import (
    LEASES_ID,
    LEASES_MODEL,
    PENDING_DISPATCH,
    PENDING_ID,
    PENDING_MODEL,
    RUN_RECORD,
    STEP_LEASE,
    WORKER,
    WORKFLOW_RUN,
    lease_record,
    pending_record,
)
from swamp_orch.store.interface import Batch, IdempotencyKey, NewRecord, Owner, Selection, Store, json_content
from swamp_orch.store.memory import MemoryStore
from swamp_orch.store.retention import Expired, Head, Reason, collect, lifetime_ms, verdict
from swamp_orch.store.sqlite import open_store
from swamp_proto.limits import BOOKKEEPING_ENDED_KEPT_S, BOOKKEEPING_VERSIONS_KEPT

DAY_MS = 24 * 3600 * 1000
WEEK_MS = round(BOOKKEEPING_ENDED_KEPT_S * 1000)


class World:
    """A store and its clock."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.now_ms = 1_000 * DAY_MS
        self.store: Store = (
            MemoryStore(self.clock)
            if kind == "memory"
            else open_store(folder, clock=self.clock, thread=False)
        )

    def clock(self) -> int:
        return self.now_ms

    def write(self, name: str, value: object = None, **changes: object) -> None:
        fields: dict[str, object] = {
            "model_type": "t", "model_id": "m", "model_name": "n", "name": name, "spec": "s", "content": json_content(value),
        }  # fmt: skip
        self.store.commit(Batch((NewRecord(**{**fields, **changes}),)))  # type: ignore[arg-type]

    def lease(self, dispatch: str, state: str) -> None:
        self.write(
            lease_record(dispatch),
            {"state": state},
            model_type=STEP_LEASE,
            model_id=LEASES_ID,
            model_name=LEASES_MODEL,
        )

    def left(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for record in self.store.select(Selection(latest_only=False, deleted=True)):
            found.setdefault(record.name, []).append(record.version)
        return found


@pytest.fixture(params=["sqlite", "memory"])
def world(request: pytest.FixtureRequest, tmp_path: Path):  # type: ignore[no-untyped-def]
    made = World(request.param, tmp_path)
    yield made
    made.store.close()


def test_durations() -> None:
    assert [lifetime_ms(text) for text in ("1m", "2h", "30d", "1w", "1mo", "1y", "0d")] == [
        60_000, 7_200_000, 30 * DAY_MS, 7 * DAY_MS, 30 * DAY_MS, 365 * DAY_MS, 0,
    ]  # fmt: skip
    for text in ("", "d", "1", "-1d", "1.5h", "infinite", "workflow", "1d ", "٣d", "9999999999d"):
        assert lifetime_ms(text) is None, text


@given(
    st.sampled_from(["1h", "30d", "infinite", "workflow", "0d", "nonsense"]),
    st.integers(0, 10**13),
    st.integers(0, 10**12),
    st.booleans(),
    st.booleans(),
)
def test_what_is_decided_stays_decided(
    lifetime: str, created_ms: int, later_ms: int, over: bool, deleted: bool
) -> None:
    def decided(now_ms: int, run_over: bool) -> bool:
        head = Head("t", 1, lifetime, created_ms, None, deleted, "run")
        return verdict(head, now_ms, lambda _: run_over) is not None

    if decided(created_ms + later_ms, over):
        assert decided(created_ms + 2 * later_ms, over)
        assert decided(created_ms + later_ms, True)
    if not deleted:
        assert not decided(created_ms, False)


def test_lifetimes(world: World) -> None:
    for lifetime in ("1d", "1mo", "infinite", "nonsense"):
        world.write(lifetime, lifetime=lifetime)
    world.now_ms += 10 * DAY_MS
    world.write("1mo", lifetime="1mo")
    found = collect(world.store, world.now_ms)
    assert found.expired == (Expired("m", "n", "1d", Reason.EXPIRED),)
    assert (found.versions, found.bytes) == (1, len(b"null"))
    world.now_ms += 25 * DAY_MS
    assert collect(world.store, world.now_ms).versions == 0, "it was renewed ten days later"
    assert world.left() == {"1mo": [1, 2], "infinite": [1], "nonsense": [1]}
    world.write("1d", lifetime="1d", expect=0)
    assert world.left()["1d"] == [2], "its numbers do not come back"


def test_data_of_a_run_goes_with_the_run(world: World) -> None:
    run: dict[str, str] = {"model_type": WORKFLOW_RUN, "model_id": "run-1"}
    world.write(RUN_RECORD, {"status": "running"}, **run)
    for lifetime in ("workflow", "job", "ephemeral", "0d"):
        world.write(lifetime, lifetime=lifetime, owner=Owner(run="run-1"))
        world.write(f"lost {lifetime}", lifetime=lifetime, owner=Owner(run="run-2"))
    world.now_ms += 5_000 * DAY_MS
    found = collect(world.store, world.now_ms)
    assert {each.name for each in found.expired} == {"lost workflow", "lost job", "lost ephemeral", "lost 0d"}
    world.write(RUN_RECORD, {"status": "succeeded", "endedAt": "x"}, **run)
    assert {each.reason for each in collect(world.store, world.now_ms).expired} == {Reason.RUN_ENDED}
    assert set(world.left()) == {RUN_RECORD}


def test_deleted_names_go(world: World) -> None:
    world.write("a")
    world.write("a", deleted=True)
    world.write("b", deleted=True)
    world.write("b")
    assert collect(world.store, world.now_ms).expired == (Expired("m", "n", "a", Reason.DELETED),)
    assert world.left() == {"b": [1, 2]}


def test_only_the_newest_versions_are_kept(world: World) -> None:
    for n in range(5):
        world.write("three", n, keep=3)
        world.write("all", n)
        world.write("none", n, keep=0)
    found = collect(world.store, world.now_ms)
    assert world.left() == {"three": [3, 4, 5], "all": [1, 2, 3, 4, 5], "none": [5]}
    assert (found.versions, found.expired) == (6, ())


def test_a_version_is_counted_once(world: World) -> None:
    for n in range(4):
        world.write("x", n, keep=1, lifetime="1d")
    world.now_ms += 2 * DAY_MS
    assert collect(world.store, world.now_ms, dry_run=True).versions == 4
    assert collect(world.store, world.now_ms).versions == 4


def test_bookkeeping_keeps_its_last_versions(world: World) -> None:
    for n in range(BOOKKEEPING_VERSIONS_KEPT + 5):
        world.write("state-main", n, model_type=WORKER, lifetime="1m")
    world.now_ms += 5_000 * DAY_MS
    assert collect(world.store, world.now_ms).versions == 5
    assert world.left() == {"state-main": list(range(6, BOOKKEEPING_VERSIONS_KEPT + 6))}


def test_ended_leases_and_queue_entries_go_after_a_week(world: World) -> None:
    for state in ("completed", "write_then_drop", "active"):
        world.lease(state, "active")
        world.lease(state, state)
    for state in ("dispatched", "waiting"):
        world.write(
            pending_record(state), {"state": state}, model_type=PENDING_DISPATCH, model_id=PENDING_ID,
            model_name=PENDING_MODEL,
        )  # fmt: skip
    world.now_ms += WEEK_MS - 1
    assert collect(world.store, world.now_ms).versions == 0
    world.lease("young", "failed")
    world.now_ms += 1
    found = collect(world.store, world.now_ms)
    assert {(each.name, each.reason) for each in found.expired} == {
        ("lease-completed", Reason.ENDED), ("lease-write_then_drop", Reason.ENDED), ("pending-dispatched", Reason.ENDED),
    }  # fmt: skip
    assert found.versions == 5
    assert set(world.left()) == {"lease-active", "lease-young", "pending-waiting"}
    world.now_ms += 5_000 * DAY_MS
    collect(world.store, world.now_ms)
    assert set(world.left()) == {"lease-active", "pending-waiting"}, "what has not ended is never collected"


def test_keys_live_as_long_as_their_lease(world: World) -> None:
    for name, scope in (("with lease", "d1"), ("without", "")):
        world.store.commit(Batch(idempotency=IdempotencyKey(name, "x", scope)))
    world.lease("d1", "active")
    world.now_ms += 2 * WEEK_MS
    assert collect(world.store, world.now_ms).keys == 1
    replayed = Batch(idempotency=IdempotencyKey("with lease", "x", "d1"))
    assert world.store.commit(replayed).replayed
    world.lease("d1", "completed")
    world.now_ms += 2 * WEEK_MS
    collect(world.store, world.now_ms)
    assert not world.store.commit(replayed).replayed


def test_a_dry_run_touches_nothing(world: World) -> None:
    for n in range(300):
        world.write(f"r{n}", lifetime="1d")
    world.now_ms += 2 * DAY_MS
    before = world.left()
    dry = collect(world.store, world.now_ms, dry_run=True)
    assert world.left() == before
    done = collect(world.store, world.now_ms)
    assert (dry.versions, dry.bytes, dry.expired) == (done.versions, done.bytes, done.expired)
    assert done.versions == 300
    assert world.left() == {}
