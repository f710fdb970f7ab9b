"""What every store keeps: one suite for SQLite (with its writer thread and without) and the in-memory twin."""

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from swamp_orch.store.bookkeeping import LEASES_ID, LEASES_MODEL, STEP_LEASE, iso, lease_record
from swamp_orch.store.interface import (
    COLUMNS,
    Batch,
    Comparison,
    Content,
    Guard,
    IdempotencyKey,
    Kind,
    NewRecord,
    OutcomeMark,
    Owner,
    OwnerType,
    Selection,
    Store,
    Term,
    json_content,
)
from swamp_orch.store.memory import MemoryStore
from swamp_orch.store.sqlite import open_store
from swamp_orch.store.trio_store import answer, commit
from swamp_proto.errors import Broken, Conflict, LocalError, NotFound, Unsupported
from swamp_proto.limits import BATCH_RECORDS_MAX, INLINE_CONTENT_MAX

NOW_MS = 1_781_523_298_961


@pytest.fixture(params=["sqlite", "sqlite-inline", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    opened: Store
    if request.param == "memory":
        opened = MemoryStore(lambda: NOW_MS)
    else:
        opened = open_store(tmp_path / "data", clock=lambda: NOW_MS, thread=request.param == "sqlite")
    yield opened
    opened.close()


def new(name: str = "result", value: object = None, **changes: object) -> NewRecord:
    fields: dict[str, object] = {
        "model_type": "command/shell",
        "model_id": "m1",
        "model_name": "remote-echo",
        "name": name,
        "spec": "result",
        "content": json_content({"value": value}),
    }
    return NewRecord(**{**fields, **changes})  # type: ignore[arg-type]


def raw(data: bytes) -> Content:
    return Content(inline=data, sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def names(store: Store, *terms: Term, **options: object) -> list[str]:
    return [record.name for record in store.select(Selection(terms, **options))]  # type: ignore[arg-type]


def eq(field: str, *values: str | int | float | bool) -> Term:
    return Term(field, Comparison.EQ, values)


# ── appending ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_record_comes_back_as_it_was_written(store: Store) -> None:
    owner = Owner(
        OwnerType.WORKFLOW_STEP, "ref", "wid", "wf", "run", "job", "step", "dispatch", 7, "step-output"
    )
    given = new(
        "result", "ü\n\x00", kind=Kind.REPORT, lifetime="30d", keep=3, streaming=True, tags={"a": "1", 'q"': "ü"}, owner=owner,
        outcome="failed",
    )  # fmt: skip
    (appended,) = store.commit(Batch((given,))).records
    record = store.latest("m1", "result")
    assert record is not None
    assert (record.id, record.version, record.seq) == (appended.id, 1, appended.seq)
    assert record.created_ms == appended.created_ms == NOW_MS
    for field in (
        "model_type",
        "model_id",
        "model_name",
        "name",
        "spec",
        "kind",
        "content_type",
        "lifetime",
        "keep",
    ):
        assert getattr(record, field) == getattr(given, field), field
    assert (record.streaming, record.deleted, record.is_latest, record.outcome) == (
        True,
        False,
        True,
        "failed",
    )
    assert (record.tags, record.owner) == ({"a": "1", 'q"': "ü"}, owner)
    assert (record.sha256, record.size, record.content) == (
        given.content.sha256,
        given.content.size,
        given.content.inline,
    )
    assert store.read(record) == given.content.inline


def test_versions_count_from_one_and_the_newest_is_latest(store: Store) -> None:
    for value in range(3):
        store.commit(Batch((new(value=value),)))
    found = store.versions("m1", "result")
    assert [(r.version, r.is_latest, r.content) for r in found] == [
        (1, False, None),
        (2, False, None),
        (3, True, None),
    ]
    assert [r.seq for r in found] == sorted({r.seq for r in found})
    second = store.version("m1", "result", 2)
    assert second is not None
    assert second.content == b'{"value":1}'
    assert store.version("m1", "result", 4) is None
    assert store.version("m1", "result", 2**70) is None
    assert store.latest("m1", "\ud800") is None
    assert store.latest("m1", "other") is None
    assert store.latest("m2", "result") is None


def test_one_name_twice_in_a_batch_makes_two_versions(store: Store) -> None:
    done = store.commit(Batch((new(expect=0), new(expect=1), new("b"), new())))
    assert [appended.version for appended in done.records] == [1, 2, 1, 3]
    assert [r.is_latest for r in store.versions("m1", "result")] == [False, False, True]
    with pytest.raises(Conflict):
        store.commit(Batch((new(expect=3), new(expect=3))))
    assert len(store.versions("m1", "result")) == 3


def test_without_content(store: Store) -> None:
    store.commit(Batch((new(),)))
    record = store.latest("m1", "result", content=False)
    assert record is not None
    assert record.content is None
    assert store.read(record) == b'{"value":null}'
    assert [r.content for r in store.select(Selection(with_content=False))] == [None]


def test_an_empty_batch_commits(store: Store) -> None:
    assert store.commit(Batch()).records == ()


def test_what_cannot_be_kept_is_refused_and_disturbs_nobody(store: Store) -> None:
    bad = [
        new(""),
        new("a\0b"),
        new(model_id=""),
        new(tags={"a": "x\0"}),
        new(content=Content(None, "0" * 64, 5)),
    ]
    for record in bad:
        with pytest.raises(LocalError):
            store.commit(Batch((new("before"), record)))
    with pytest.raises(LocalError):
        store.commit(Batch(tuple(new(str(n)) for n in range(BATCH_RECORDS_MAX + 1))))
    assert names(store) == []
    store.commit(Batch((new(),)))
    assert names(store) == ["result"]


def test_large_batches_commit_whole(store: Store) -> None:
    count = 200
    done = store.commit(Batch(tuple(new(f"r{n % 150}", n) for n in range(count))))
    assert [a.version for a in done.records] == [1 + (n >= 150) for n in range(count)]
    assert len(names(store)) == 150
    assert len(names(store, latest_only=False)) == count


# ── compare-and-swap, guards, keys ──────────────────────────────────────────────────────────────────────────────────


def test_compare_and_swap(store: Store) -> None:
    store.commit(Batch((new(expect=0),)))
    for wrong in (0, 2):
        with pytest.raises(Conflict):
            store.commit(Batch((new("other"), new(expect=wrong))))
    assert names(store) == ["result"], "nothing of a refused batch stays"
    assert store.commit(Batch((new(expect=1),))).records[0].version == 2


def test_guards_hold_before_the_batch(store: Store) -> None:
    store.commit(Batch((new("lease"),)))
    store.commit(Batch((new("x"), new("lease")), guards=(Guard("m1", "lease", 1), Guard("m1", "nobody", 0))))
    with pytest.raises(Conflict):
        store.commit(Batch((new("x"),), guards=(Guard("m1", "lease", 1),)))
    with pytest.raises(Conflict):
        store.commit(Batch((new("y"), new("lease")), guards=(Guard("m1", "lease", 3),)))
    assert len(store.versions("m1", "x")) == 1


def test_the_same_key_answers_the_same(store: Store) -> None:
    batch = Batch((new(), new("b")), idempotency=IdempotencyKey("k", "d1"), answer=b"answer")
    first = store.commit(batch)
    again = store.commit(Batch((new(expect=99),), idempotency=IdempotencyKey("k", "d1"), answer=b"ignored"))
    assert (again.records, again.replayed, again.answer) == (first.records, True, b"answer")
    assert first.replayed is False
    assert len(store.versions("m1", "result")) == 1
    with pytest.raises(Conflict) as caught:
        store.commit(Batch((new(),), idempotency=IdempotencyKey("k", "d2")))
    assert caught.value.error_code == "idempotency_conflict"


def test_a_refused_batch_leaves_its_key_free(store: Store) -> None:
    key = IdempotencyKey("k", "d")
    with pytest.raises(Conflict):
        store.commit(Batch((new(expect=1),), idempotency=key))
    assert store.commit(Batch((new(expect=0),), idempotency=key)).replayed is False


def test_a_key_without_records_is_kept(store: Store) -> None:
    batch = Batch(idempotency=IdempotencyKey("k", "d"), answer=b"x")
    assert [store.commit(batch).replayed for _ in range(2)] == [False, True]


def test_keys_go_with_their_lease_and_by_age(store: Store) -> None:
    lease = new(lease_record("d1"), model_type=STEP_LEASE, model_id=LEASES_ID, model_name=LEASES_MODEL)
    for key in (IdempotencyKey("a", "x", "d1"), IdempotencyKey("b", "x", "d2"), IdempotencyKey("c", "x")):
        store.commit(Batch((lease,), idempotency=key))
    assert store.remove([(LEASES_ID, lease.name, 1), (LEASES_ID, lease.name, 2)]) == 2

    def known(key: str, scope: str = "") -> bool:
        done = store.submit(Batch((lease,), idempotency=IdempotencyKey(key, "x", scope)))
        return done.result().replayed

    assert known("a", "d1"), "one version of the lease is left"
    store.remove([(LEASES_ID, lease.name, 3)])
    assert store.forget_keys(NOW_MS) == 0
    assert store.forget_keys(NOW_MS + 1) == 1
    assert [known("a", "d1"), known("b", "d2"), known("c")] == [False, True, False]


# ── submitting ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_submitted_batches_commit_in_order_and_refusals_are_alone(store: Store) -> None:
    futures = [store.submit(Batch((new(value=n, expect=n if n % 3 else None),))) for n in range(60)]
    answers = [f.exception() or f.result().records[0].version for f in futures]
    version = 0
    for n, given in enumerate(answers):
        if n % 3 == 0 or n == version:
            version += 1
            assert given == version
        else:
            assert isinstance(given, Conflict)
    assert [r.version for r in store.versions("m1", "result")] == list(range(1, version + 1))


def test_threads_make_versions_without_gaps(store: Store) -> None:
    if isinstance(store, MemoryStore):
        pytest.skip("the twin is for one thread")
    seen: list[int] = []

    def write() -> None:
        for _ in range(25):
            mine = store.commit(Batch((new(),))).records[0].version
            record = store.latest("m1", "result")
            assert record is not None
            assert record.version >= mine
            seen.append(mine)

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(seen) == list(range(1, 201))


def test_one_of_many_wins_a_swap(store: Store) -> None:
    futures = [store.submit(Batch((new(value=n, expect=0),))) for n in range(10)]
    assert [f.exception() is None for f in futures].count(True) == 1


async def test_awaiting_from_trio(store: Store) -> None:
    with trio.fail_after(60):
        done = await commit(store, Batch((new(),)))
        assert done.records[0].version == 1
        with pytest.raises(Conflict):
            await commit(store, Batch((new(expect=0),)))
        versions: list[int] = []

        async def one() -> None:
            versions.append((await commit(store, Batch((new(),)))).records[0].version)

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(one)
        assert sorted(versions) == list(range(2, 52))


async def test_a_cancelled_wait_commits_all_the_same(store: Store) -> None:
    with trio.fail_after(60):
        futures = []
        with trio.CancelScope() as scope:
            scope.cancel()
            futures.append(store.submit(Batch((new(),))))
            await answer(futures[0])
        # The wake-up of the wait that was given up must not disturb the next one.
        assert (await commit(store, Batch((new(),)))).records[0].version == 2
        assert futures[0].result().records[0].version == 1


def test_a_closed_store_says_so(store: Store) -> None:
    store.commit(Batch((new(),)))
    store.close()
    store.close()
    with pytest.raises(Broken):
        store.commit(Batch((new(),)))
    with pytest.raises(Broken):
        store.latest("m1", "result")


# ── selecting ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_column_is_a_term_and_a_field(store: Store) -> None:
    owner = Owner(OwnerType.MANUAL, "ref", "wid", "wf", "run", "job", "step", "dispatch", 7, "src")
    store.commit(Batch((new("a", owner=owner, outcome="failed", tags={"t": "1"}), new("b", spec="log"))))
    (row,) = store.scan(Selection((eq("name", "a"),)), COLUMNS)
    seen = dict(zip(COLUMNS, row, strict=True))
    assert seen["createdAt"] == iso(NOW_MS)
    assert seen["isLatest"] is True
    assert seen["streaming"] is False
    assert (seen["workflowRunId"], seen["jobName"], seen["dataType"]) == ("run", "job", "resource")
    for field, value in seen.items():
        assert "a" in names(store, eq(field, value)), field
        assert "a" not in names(store, Term(field, Comparison.NE, (value,))), field
        assert "a" in names(store, eq(field, "no such", 12345, value)), field
    fields = ("seq", "tags", "attributes", "content", "isDeleted", "workflowId", "dispatch", "sha256")
    (row,) = store.scan(Selection((eq("name", "a"),)), fields)
    content = b'{"value":null}'
    sha256 = hashlib.sha256(content).hexdigest()
    assert row == (1, '{"t":"1"}', content, content, False, "wid", "dispatch", sha256)


def test_types_are_never_mixed(store: Store) -> None:
    values = {
        "int": 1,
        "zero": 0,
        "float": 1.5,
        "text": "1",
        "true": True,
        "false": False,
        "null": None,
        "list": [1],
        "map": {"a": 1},
    }
    for name, value in values.items():
        store.commit(Batch((new(name, value),)))
    store.commit(Batch((new("missing", content=json_content({})), new("scalar", content=json_content(1)))))

    def found(comparison: str, *wanted: str | int | float | bool) -> set[str]:
        return set(names(store, Term("attributes.value", Comparison(comparison), wanted)))

    assert found("=", 1) == found("=", 1.0) == {"int"}
    assert found("=", "1") == {"text"}
    assert found("=", True) == {"true"}
    assert found("=", False) == {"false"}
    assert found("!=", 1) == {"zero", "float"}
    assert found("!=", True) == {"false"}
    assert found("!=", "x") == {"text"}
    assert found(">", 0) == {"int", "float"}
    assert found("<=", 1.0) == {"int", "zero"}
    assert found("<", True) == {"false"}
    assert found(">=", "") == {"text"}
    assert found("=", 1, "1", False, 1.5) == {"int", "text", "false", "float"}
    assert names(store, eq("attributes.value.a", 1)) == ["map"]
    assert names(store, eq("version", "1")) == []
    assert names(store, eq("isLatest", 1)) == []
    assert names(store, eq("name", 1)) == []
    assert names(store, Term("version", Comparison.NE, ("1",))) == []
    assert len(names(store, eq("version", 1.0))) == len(values) + 2


def test_instants_compare_as_text(store: Store) -> None:
    store.commit(Batch((new(),)))
    now = iso(NOW_MS)
    for comparison, text, holds in [
        (">=", now, True), (">", now, False), ("<=", now, True), ("<", now, False), ("=", now, True), ("!=", now, False),
        (">", "2026", True), ("<", "2026-06-16", True), (">", "2026-06-16", False), ("=", "2026", False), ("!=", "2026", True),
        ("<", "never", True), (">", "never", False), (">=", "", True), ("<", "", False), ("<=", now[:-1], False),
        ("<=", now + "x", True), (">", now[:-1], True),
    ]:  # fmt: skip
        assert bool(names(store, Term("createdAt", Comparison(comparison), (text,)))) is holds, (
            comparison,
            text,
        )


def test_tags(store: Store) -> None:
    odd = {"plain": "v", "a.b": "dot", 'q"': "quote", "b\\": "back", "ü": "ö\n", "": "empty", ":": ","}
    store.commit(Batch((new("a", tags=odd), new("b", tags={"plain": "w"}), new("c"))))
    for key, value in odd.items():
        if key:
            assert names(store, eq(f"tags.{key}", value)) == ["a"], key
    assert names(store, Term("tags.plain", Comparison.NE, ("v",))) == ["b"]
    assert names(store, Term("tags.plain", Comparison.GE, ("v",))) == ["a", "b"]
    assert names(store, eq("tags.plain", "v", "w", 1)) == ["a", "b"]
    assert names(store, eq("tags.plain", True)) == []


def test_json_that_databases_read_differently(store: Store) -> None:
    """Each of these is a trap: the answers are Python's, whoever evaluates."""
    contents = {
        "duplicate": b'{"a":1,"a":2}',
        "escaped-key": b'{"\\u0061":2}',
        "nul": b'{"a":"x\\u0000y"}',
        "surrogate": b'{"a":"\\ud800"}',
        "nan": b'{"a":NaN}',
        "broken": b'{"a":2',
        "comment": b'{"a":2}//x',
        "json5": b"{a:2}",
        "bom": b'\xef\xbb\xbf{"a":2}',
        "latin": b'{"a":"\xff"}',
        "exponent": b'{"a":2e0}',
        "minus-zero": b'{"a":-0.0}',
        "huge": b'{"a":123456789012345678901234567890}',
        "beyond": b'{"a":9223372036854775809}',
        "edge": b'{"a":9223372036854775807}',
        "inexact": b'{"a":0.1000000000000000055511151231257827}',
        "tiny": b'{"a":4.9406564584124654e-324}',
        "infinite": b'{"a":1e999}',
        "array": b"[2]",
        "deep": b"[" * 3000 + b"]" * 3000,
        "empty": b"",
    }
    for name, data in contents.items():
        store.commit(Batch((new(name, content=raw(data)),)))
    store.commit(Batch((new("text", content=raw(b'{"a":2}'), content_type="text/plain"),)))
    store.commit(
        Batch((new("suffix", content=raw(b'{"a":2}'), content_type="application/geo+json; charset=utf-8"),))
    )

    def found(comparison: str, value: str | float) -> set[str]:
        return set(names(store, Term("attributes.a", Comparison(comparison), (value,))))

    assert found("=", 2) == {"duplicate", "escaped-key", "exponent", "suffix"}
    assert found("=", "x") == set()
    assert found("!=", "x") == {"nul", "surrogate"}
    assert found("=", "x\0y") == {"nul"}
    assert found("=", 0) == {"minus-zero"}
    assert found("=", 0.1) == {"inexact"}
    assert found("=", 9223372036854775807) == {"edge"}
    assert found("=", 9223372036854775808.0) == {"beyond"}
    assert found("=", 123456789012345678901234567890) == {"huge"}
    assert found("=", 5e-324) == {"tiny"}
    assert found("=", float("inf")) == {"infinite"}
    assert found("<", 0.5) == {"minus-zero", "inexact", "tiny"}


def test_canonical_content_is_judged_the_same(store: Store) -> None:
    values = [
        0.1, 1e22, 1e23, 5e-324, 1.7976931348623157e308, 2**53 + 1, -(2**63), 2**63 - 1, 2**63, 2**64, 10**400, -(10**400),
        "x\0y", 'q"\\', "\u2028", "😀", "", " 1", "1",
    ]  # fmt: skip
    for n, value in enumerate(values):
        store.commit(Batch((new(f"r{n}", value),)))
    for n, value in enumerate(values):
        assert f"r{n}" in names(store, eq("attributes.value", value)), value  # type: ignore[arg-type]
    near = [2**53, float(2**53), 0.1 + 1e-17, 0.30000000000000004, float(2**63), float("inf"), "x", "😀\0"]
    for value in near:
        expected = [
            f"r{n}"
            for n, other in enumerate(values)
            if isinstance(value, str) == isinstance(other, str) and _as_number(other) == _as_number(value)
        ]
        assert names(store, eq("attributes.value", value)) == expected, value  # type: ignore[arg-type]


def _as_number(value: object) -> object:
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return float(value) if abs(value) < 10**300 else float("inf") * (1 if value > 0 else -1)
    return value


def test_odd_paths(store: Store) -> None:
    document = {"a b": 1, 'q"': 2, "$": 3, "#": {"-1": 4}, "": {"": 5}, "x": {"": 6}, "[0]": 7, "ü": [8]}
    store.commit(Batch((new(content=json_content(document)),)))
    for path, value in [("a b", 1), ('q"', 2), ("$", 3), ("#.-1", 4), ("x.", 6), ("[0]", 7)]:
        assert names(store, eq(f"attributes.{path}", value)) == ["result"], path
        assert names(store, eq(f"attributes.{path}", value + 1)) == [], path
    assert names(store, eq("attributes.ü.0", 8)) == []


def test_attributes_of_blobs_are_found(store: Store) -> None:
    big = {"value": 1, "padding": "x" * (2 * INLINE_CONTENT_MAX)}
    store.commit(Batch((new("big", content=json_content(big)), new("small", 1), new("other", 2))))
    assert names(store, eq("attributes.value", 1)) == ["big", "small"]
    assert names(store, eq("attributes.value", 1), eq("name", "big")) == ["big"]
    rows = dict(store.scan(Selection(), ("name", "attributes")))
    assert rows["big"] == json_content(big).inline
    assert dict(store.scan(Selection(), ("name", "content")))["big"] is None


def test_superseded_and_deleted(store: Store) -> None:
    store.commit(Batch((new("a"), new("a"), new("b"))))
    store.commit(Batch((new("b", deleted=True),)))
    assert names(store) == ["a"]
    assert names(store, deleted=True) == ["a", "b"]
    assert names(store, latest_only=False) == ["a", "a", "b"]
    assert names(store, latest_only=False, deleted=True) == ["a", "a", "b", "b"]
    assert names(store, eq("isDeleted", True), deleted=True) == ["b"]
    assert names(store, eq("isLatest", False), latest_only=False) == ["a", "b"]


def test_pages(store: Store) -> None:
    for start in range(0, 2_500, 500):
        store.commit(Batch(tuple(new(f"r{n}", n) for n in range(start, start + 500))))
    everything = [record.seq for record in store.select(Selection(with_content=False))]
    assert everything == sorted(everything)
    assert len(everything) == 2_500
    for newest_first in (False, True):
        pages: list[int] = []
        after = 0
        while True:
            found = [
                r.seq for r in store.select(Selection(), after=after, limit=700, newest_first=newest_first)
            ]
            if not found:
                break
            pages += found
            after = found[-1]
        assert pages == (everything[::-1] if newest_first else everything)
    assert [row[0] for row in store.scan(Selection(), ["seq"], limit=0)] == []


def test_a_stream_shows_one_instant_while_others_write(store: Store) -> None:
    for start in range(0, 2_000, 500):
        store.commit(Batch(tuple(new(f"r{n}") for n in range(start, start + 500))))
    stream = store.select(Selection(with_content=False))
    seen = [next(stream).name]
    store.commit(Batch((new("r0"), new("r1999"))))
    latest = store.latest("m1", "r1999")
    assert latest is not None
    assert latest.version == 2, "reads see what was answered before them, whatever streams are open"
    seen += [record.name for record in stream]
    assert seen == [f"r{n}" for n in range(2_000)]


def test_meaningless_terms_are_refused(store: Store) -> None:
    for term in [
        eq("nothing", 1), eq("content", "x"), eq("attributes", 1), eq("tags", "x"), eq("tags.", "x"), eq("name.x", "y"),
        Term("name", Comparison.EQ, ()), Term("version", Comparison.LT, (1, 2)), eq("version", float("nan")), eq("name", "\ud800"),
    ]:  # fmt: skip
        with pytest.raises(Unsupported):
            list(store.select(Selection((term,))))
    for fields in ([], ["nothing"]):
        with pytest.raises(Unsupported):
            list(store.scan(Selection(), fields))


# ── blobs ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_large_content_becomes_a_blob(store: Store) -> None:
    data = b"x" * (INLINE_CONTENT_MAX + 1)
    store.commit(
        Batch((new("in", content=raw(data[:-1])), new("out", content=raw(data), content_type="text/plain")))
    )
    inside, outside = store.select(Selection())
    assert inside.content == data[:-1]
    assert outside.content is None
    assert store.read(outside) == data
    with store.open_blob(outside.sha256) as file:
        assert file.read() == data


def test_staging(store: Store) -> None:
    writer = store.stage()
    for _ in range(10):
        writer.write(b"y" * 10_000)
    content = writer.finish()
    assert (content.inline, content.size) == (None, 100_000)
    assert content.sha256 == hashlib.sha256(b"y" * 100_000).hexdigest()
    assert store.collect_blobs() == 0, "somebody is about to name it"
    store.commit(Batch((new(content=content, content_type="text/plain"),)))
    record = store.latest("m1", "result")
    assert record is not None
    assert store.read(record) == b"y" * 100_000
    small = store.stage()
    small.write(b"small")
    assert small.finish().inline == b"small"
    given_up = store.stage()
    given_up.write(b"z" * 100_000)
    given_up.discard()
    with pytest.raises(NotFound):
        store.open_blob(hashlib.sha256(b"z" * 100_000).hexdigest())


def test_a_file_becomes_a_blob_and_its_owner_may_keep_it(store: Store, tmp_path: Path) -> None:
    """In the store's own file system; there already or not."""
    for number, keep in enumerate((True, False, True), 1):
        file = tmp_path / f"file-{number}"
        file.write_bytes(b"k" * 100_000)
        sha256 = hashlib.sha256(b"k" * 100_000).hexdigest()
        content = store.adopt(file, sha256, 100_000, keep=keep)
        assert (content.inline, content.sha256, content.size) == (None, sha256, 100_000)
        assert file.exists() == keep
        store.commit(Batch((new(content=content, content_type="text/plain"),)))
        file.unlink(missing_ok=True)
        record = store.latest("m1", "result")
        assert record is not None
        assert store.read(record) == b"k" * 100_000


def test_reading_what_was_removed(store: Store) -> None:
    store.commit(Batch((new(),)))
    record = store.latest("m1", "result", content=False)
    assert record is not None
    store.remove([("m1", "result", 1)])
    with pytest.raises(NotFound):
        store.read(record)


# ── removing ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_removed_numbers_never_come_back(store: Store) -> None:
    for _ in range(3):
        store.commit(Batch((new(),)))
    last = store.commit(Batch((new("z"),))).records[0].seq
    assert store.remove([("m1", "result", 2), ("m1", "result", 9), ("m9", "x", 1)]) == 1
    assert [r.version for r in store.versions("m1", "result")] == [1, 3]
    assert store.remove([("m1", "result", 3), ("m1", "z", 1)]) == 2
    assert [(r.version, r.is_latest) for r in store.versions("m1", "result")] == [(1, True)]
    assert store.commit(Batch((new(expect=1),))).records[0].version == 4
    store.remove([("m1", "result", version) for version in (4, 1)])
    assert store.latest("m1", "result") is None
    (done,) = store.commit(Batch((new(expect=0),))).records
    assert done.version == 5
    assert done.seq > last, "positions never come back either"
    assert store.commit(Batch((new("z", expect=0),))).records[0].version == 2


def test_removed_leases_are_forgotten(store: Store) -> None:
    lease = new(
        lease_record("d1"), model_type=STEP_LEASE, model_id=LEASES_ID, model_name=LEASES_MODEL, expect=0
    )
    store.commit(Batch((lease,)))
    store.remove([(LEASES_ID, lease.name, 1)])
    assert store.commit(Batch((lease,))).records[0].version == 1


# ── outcomes that are known later ───────────────────────────────────────────────────────────────────────────────────


def test_a_mark_gives_an_outcome_to_what_a_dispatch_wrote_and_to_nothing_else(store: Store) -> None:
    def by(dispatch: str, run: str = "r1", type: OwnerType = OwnerType.WORKFLOW_STEP) -> Owner:
        return Owner(type, run=run, dispatch=dispatch)

    store.commit(
        Batch((
            new("a", owner=by("d1"), tags={"k": "ü"}), new("b", owner=by("d1"), outcome="failed"),
            new("c", owner=by("d1"), deleted=True), new("d", owner=by("d2")), new("e", owner=by("d1", run="r2")),
            new("lease", owner=by("d1", type=OwnerType.SYSTEM)),
        ))
    )  # fmt: skip
    store.commit(Batch((new("end", owner=by("d1")),), marks=(OutcomeMark("r1", "d1", "abandoned"),)))
    found = {record.name: record for record in store.select(Selection(deleted=True))}
    outcomes = {name: record.outcome for name, record in found.items()}
    assert outcomes == {
        "a": "abandoned", "b": "failed", "c": "", "d": "", "e": "", "lease": "", "end": "abandoned",
    }  # fmt: skip
    assert found["a"].tags == {"k": "ü", "outcome": "abandoned"}
    assert names(store, eq("outcome", "abandoned")) == ["a", "end"]


def test_a_refused_batch_marks_nothing(store: Store) -> None:
    store.commit(Batch((new("a", owner=Owner(OwnerType.WORKFLOW_STEP, run="r1", dispatch="d1")),)))
    with pytest.raises(Conflict):
        store.commit(Batch(guards=(Guard("m1", "a", 7),), marks=(OutcomeMark("r1", "d1", "failed"),)))
    assert names(store, eq("outcome", "")) == ["a"]
