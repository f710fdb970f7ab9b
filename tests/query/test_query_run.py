"""Queries on both stores: fields, defaults, what is skipped, limits, blobs, and what is read."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from swamp_orch.query.environment import CelError, UnknownName
from swamp_orch.query.pushdown import plan
from swamp_orch.query.records import FIELDS
from swamp_orch.query.run import prepare, run
from swamp_orch.query.suggestions import note
from swamp_orch.store.bookkeeping import LEASES_ID, LEASES_MODEL, STEP_LEASE, lease_record
from swamp_orch.store.interface import (
    Batch,
    Comparison,
    Content,
    Kind,
    NewRecord,
    Owner,
    OwnerType,
    Selection,
    Store,
    Term,
    json_content,
)
from swamp_orch.store.memory import MemoryStore
from swamp_orch.store.sqlite import SqliteStore, open_store
from swamp_proto.limits import ATTRIBUTES_MAX, INLINE_CONTENT_MAX

Put = Callable[..., None]


@pytest.fixture(params=["sqlite", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    ticks = iter(range(1_750_000_000_000, 1_760_000_000_000, 1_000))
    made: SqliteStore | MemoryStore = (
        open_store(tmp_path, clock=lambda: next(ticks), thread=False)
        if request.param == "sqlite"
        else MemoryStore(lambda: next(ticks))
    )
    yield made
    made.close()


@pytest.fixture
def put(store: Store) -> Put:
    def commit(value: Any, **more: Any) -> None:
        model = more.pop("model_name", "echo")
        fields: dict[str, Any] = {
            "model_type": "command/shell",
            "model_id": f"id-{model}",
            "model_name": model,
            "name": "result",
            "spec": "result",
            "content": value if isinstance(value, Content) else json_content(value),
            **more,
        }
        store.commit(Batch((NewRecord(**fields),)))

    return commit


def raw(data: bytes) -> Content:
    import hashlib

    return Content(data, hashlib.sha256(data).hexdigest(), len(data))


def ask(store: Store, predicate: str, select: str | None = None, limit: int | None = None) -> list[Any]:
    answer = run(store, prepare(predicate, select), limit)
    assert not answer.skipped, answer.reason
    return answer.results


def test_a_record_has_these_keys_in_this_order(store: Store, put: Put) -> None:
    put(
        {"stdout": "hi"},
        tags={"type": "resource"},
        owner=Owner(
            OwnerType.WORKFLOW_STEP, ref="d", workflow="w", run="r", job="j", step="s", source="step-output"
        ),
    )
    (found,) = ask(store, 'modelName == "echo"')
    assert list(found) == [
        "id", "name", "version", "isLatest", "createdAt", "namespace", "tags", "modelName", "modelId",
        "modelType", "specName", "dataType", "contentType", "lifetime", "ownerType", "streaming", "size",
        "ownerRef", "workflowRunId", "workflowName", "jobName", "stepName", "source", "content", "outcome",
        "isDeleted",
    ]  # fmt: skip
    assert found | {"id": ""} == {
        "id": "", "name": "result", "version": 1, "isLatest": True, "createdAt": "2025-06-15T15:06:40.000Z",
        "namespace": "", "tags": {"type": "resource"}, "modelName": "echo", "modelId": "id-echo",
        "modelType": "command/shell", "specName": "result", "dataType": "resource",
        "contentType": "application/json", "lifetime": "infinite", "ownerType": "workflow-step",
        "streaming": False, "size": 15, "ownerRef": "d", "workflowRunId": "r", "workflowName": "w",
        "jobName": "j", "stepName": "s", "source": "step-output", "content": {"stdout": "hi"}, "outcome": "",
        "isDeleted": False,
    }  # fmt: skip


def test_every_field_can_be_asked_for_and_selected(store: Store, put: Put) -> None:
    put({"stdout": "hi"}, tags={"k": "v"}, owner=Owner(OwnerType.WORKFLOW_STEP, ref="d", run="r"))
    (values,) = ask(store, "version == 1", "{" + ", ".join(f'"{name}": {name}' for name in FIELDS) + "}")
    shown = ask(store, "version == 1")[0]
    for name in FIELDS:
        expected = {"attributes": {"stdout": "hi"}, "content": '{"stdout":"hi"}', "ns": ""}.get(
            name, shown.get(name)
        )
        assert values[name] == expected, name
        if not isinstance(expected, dict):
            assert ask(store, f"version == 1 && {name} == {json.dumps(expected)}", "name") == ["result"], name


def test_the_seeds_query_gives_the_bare_value(store: Store, put: Put) -> None:
    put({"stdout": "executed on a worker"}, model_name="remote-echo")
    put(
        raw(b"log\n"),
        model_name="remote-echo",
        name="log",
        spec="log",
        kind=Kind.FILE,
        content_type="text/plain",
    )
    predicate = 'modelName == "remote-echo" && specName == "result"'
    assert ask(store, predicate, "attributes.stdout") == ["executed on a worker"]


def test_only_the_newest_version_unless_versions_are_named(store: Store, put: Put) -> None:
    for n in (1, 2, 3):
        put({"n": n})
    assert ask(store, 'name == "result"', "version") == [3]
    assert ask(store, 'name == "result" && version > 0', "version") == [1, 2, 3]
    assert ask(store, 'name == "result" && version == 2', "attributes.n") == [2]
    assert ask(store, "!isLatest", "version") == [1, 2]
    assert ask(store, "isLatest || true", "version") == [1, 2, 3]
    assert ask(store, "[1].exists(version, version == 1)", "attributes.n") == [3]


def test_w64a_tombstones_are_hidden_until_asked_for(store: Store, put: Put) -> None:
    put({"n": 1})
    put({"deletedAt": "x"}, deleted=True)
    assert ask(store, 'name == "result"') == []
    assert ask(store, 'name == "result" && version > 0', "version") == [1]
    assert ask(store, "isDeleted", "version") == [2]
    assert ask(store, "isDeleted || !isDeleted", "[version, isDeleted]") == [[2, True]]


def test_ended_leases_show_when_state_or_version_is_named(store: Store, put: Put) -> None:
    lease = {"model_type": STEP_LEASE, "model_id": LEASES_ID, "model_name": LEASES_MODEL, "spec": "lease"}
    put({"state": "active", "n": 1}, name=lease_record("one"), **lease)
    put({"state": "active", "n": 2}, name=lease_record("two"), **lease)
    put({"n": 3}, model_name="other")
    put({"state": "completed", "n": 4}, name=lease_record("one"), **lease)
    put({"state": "failed", "n": 5}, model_name="other", name="not-a-lease")
    seen: Mapping[str, Sequence[int]] = {
        'modelType == "swamp/step-lease"': [2],
        'modelType == "swamp/step-lease" && attributes.n > 0': [2],
        'modelType == "swamp/step-lease" && attributes.state == "completed"': [4],
        'modelType == "swamp/step-lease" && attributes.state != "x"': [2, 4],
        'modelType == "swamp/step-lease" && attributes.?state.orValue("") != ""': [2, 4],
        'modelType == "swamp/step-lease" && version > 0': [1, 2, 4],
        'modelType in ["swamp/step-lease", "command/shell"]': [2, 3, 5],
        'modelType == "command/shell"': [3, 5],
        'modelName == "leases"': [2],
        'modelName == "other"': [3, 5],
        'name.startsWith("lease-")': [2],
        "attributes.n > 0": [2, 3, 5],
        "isLatest": [2, 3, 5],
    }
    for predicate, numbers in seen.items():
        assert ask(store, predicate, "attributes.n") == numbers, predicate


def test_w54_failing_rows_are_counted_missing_attributes_are_not(store: Store, put: Put) -> None:
    put({"n": 1}, name="a")
    put({"n": "text"}, name="b")
    put({}, name="c")
    put(raw(b"plain"), name="d", content_type="text/plain")
    put({"n": [1]}, name="e")
    answer = run(store, prepare("attributes.n > 0", "name"))
    assert (answer.results, answer.skipped) == (["a"], 2)
    assert "no matching overloads found : _>_(string, int64)" in answer.reason
    for exact in ("attributes.n == 1", "attributes.n == 1 && name.size() == 1"):
        answer = run(store, prepare(exact, "name"))
        assert (answer.results, answer.skipped) == (["a"], 0), exact
    answer = run(store, prepare("attributes.n.deeper == 1 || attributes.n[0] == 1", "name"))
    assert answer.results == ["e"]
    answer = run(store, prepare("dyn(name)"))
    assert (answer.results, answer.skipped) == ([], 5)
    assert "answered string, not bool" in answer.reason


def test_a_failing_select_is_counted_a_missing_attribute_is_null(store: Store, put: Put) -> None:
    put({"n": 1}, name="a")
    put({"n": "text"}, name="b")
    put({}, name="c")
    for predicate in ('modelName == "echo"', 'modelName.endsWith("o")'):
        answer = run(store, prepare(predicate, "attributes.n * 2"))
        assert (answer.results, answer.skipped) == ([2, None], 1)
        assert "select expression `attributes.n * 2` failed" in answer.reason


def test_unknown_fields_are_refused_in_predicate_and_select() -> None:
    for predicate, select, word, place in (
        ('modelNam == "x"', None, "modelNam", "query predicate"),
        ('modelName == "x" || [1].exists(x, y == x)', None, "y", "query predicate"),
        ("version > 1", "data.name", "data", "select expression"),
        ('modelId == "x"', None, "modelId", "query predicate"),
    ):
        with pytest.raises(UnknownName) as caught:
            prepare(predicate, select)
        assert caught.value.message == (
            f'Unknown field "{word}" in {place}.\nAvailable: {", ".join(sorted(FIELDS))}'
        )
    with pytest.raises(UnknownName) as caught:
        prepare('modelNam == "x"')
    assert caught.value.hint == "did you mean modelName?"


def test_a_predicate_is_a_condition() -> None:
    with pytest.raises(CelError, match="is not a condition: its result is string"):
        prepare("modelName")


def test_limit(store: Store, put: Put) -> None:
    for n in range(5):
        put({"n": n}, name=f"r{n}")
    for predicate in ('modelName == "echo"', 'modelName.endsWith("o")'):
        for select in (None, "attributes.n", "name"):
            query = prepare(predicate, select)
            everything = run(store, query).results
            assert len(everything) == 5
            for limit in range(1, 8):
                answer = run(store, query, limit)
                assert answer.results == everything[:limit]
                assert answer.limited == (limit < 5)


def test_blobs_are_queried_like_rows(store: Store, put: Put) -> None:
    padding = "x" * (INLINE_CONTENT_MAX + 1)
    put({"kind": "small", "n": 1}, name="small")
    put({"kind": "big", "n": 2, "padding": padding}, name="big")
    put(raw(padding.encode() + b"needle"), name="text", content_type="text/plain", kind=Kind.FILE)
    assert ask(store, 'attributes.kind == "big"', "attributes.n") == [2]
    assert ask(store, "attributes.n > 1", "attributes.kind") == ["big"]
    assert ask(store, 'attributes.n == 2 && name == "big"')[0]["content"]["padding"] == padding
    assert ask(store, 'content.contains("needle")', "name") == ["text"]
    assert ask(store, 'name == "text"', "content.size()") == [len(padding) + 6]
    assert ask(store, 'name == "text"')[0]["content"] == ""


def test_content_too_large_for_a_query_is_said(store: Store, put: Put) -> None:
    put(raw(b'{"n": 1, "p": "' + b"x" * ATTRIBUTES_MAX + b'"}'), name="huge")
    assert ask(store, "attributes.n == 1") == []
    assert ask(store, 'name == "huge"')[0]["content"] == ""
    answer = run(store, prepare('content.contains("n")'))
    assert answer.skipped == 1
    assert "too large for a query" in answer.reason


def test_odd_content_never_breaks_a_query(store: Store, put: Put) -> None:
    put(raw(b'{"n": 123456789012345678901234567890, "s": "a"}'), name="big-int")
    put(raw(b'{"s": "\\ud800", "n": 1}'), name="surrogate")
    put(raw(b'{"s": NaN}'), name="nan")
    put(raw(b"\xff\xfe"), name="binary")
    put(raw(b"null"), name="null")
    put(raw(b'"text"'), name="scalar")
    put(raw(b'{"s": "first", "s": "a"}'), name="twice")
    assert ask(store, 'attributes.s == "a"', "name") == ["big-int", "twice"]
    assert ask(store, "attributes.n > 1e20 && attributes.?s.orValue('') != ''", "name") == ["big-int"]
    assert ask(store, "attributes.n < 5 && version == 1", "name") == ["surrogate"]
    assert ask(store, 'name == "surrogate"', "attributes.s.size()") == [1]
    assert ask(store, 'name == "binary" && content.size() > 0', "name") == ["binary"]
    assert len(ask(store, 'modelName == "echo"')) == 7


def test_many_matches_are_read_whole_and_none_is_lost(store: Store, put: Put) -> None:
    """The runner changes its way of reading when many rows match."""
    wanted = []
    for n in range(300):
        rare = n % 7 == 0 if n > 100 else n % 50 == 0
        put({"n": n}, name=f"{'yes' if rare else 'no'}-{n}")
        if rare:
            wanted.append(n)
    found = ask(store, 'name.matches("^yes")')
    assert [record["content"]["n"] for record in found] == wanted


class Counting:
    """A store that says what was asked of it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.asked: list[tuple[str, ...]] = []

    def scan(self, selection: Selection, fields: Sequence[str], **more: Any) -> Any:
        self.asked.append(tuple(fields))
        return self._store.scan(selection, fields, **more)

    def open_blob(self, sha256: str) -> Any:
        raise AssertionError("no blob is needed")


def test_w55_only_what_is_used_is_read(store: Store, put: Put) -> None:
    put({"n": 1, "padding": "x" * 50_000}, name="a")
    counting = Counting(store)
    assert run(counting, prepare('name.endsWith("z")')).results == []
    assert counting.asked == [("name", "seq"), ("name", "seq")]
    counting.asked.clear()
    assert run(counting, prepare('name.endsWith("a")', "version")).results == [1]
    assert counting.asked == [("name", "version", "seq")] * 2


def test_pushed_terms() -> None:
    def terms(text: str) -> tuple[Term, ...] | None:
        found = plan(prepare(text).predicate)
        return found.selections[0].terms if found.exact else None

    equal, below = Comparison.EQ, Comparison.LT
    assert terms('modelName == "m" && "s" == specName') == (
        Term("modelName", equal, ("m",)),
        Term("specName", equal, ("s",)),
    )
    assert terms('modelName == "m" && 3 > version && isLatest && !streaming') == (
        Term("modelName", equal, ("m",)),
        Term("version", below, (3,)),
        Term("isLatest", equal, (True,)),
        Term("streaming", equal, (False,)),
    )
    pinned = Term("modelName", equal, ("m",))
    prefix = 'modelName == "m" && '
    assert terms(prefix + 'tags.env in ["a", "b"]') == (pinned, Term("tags.env", equal, ("a", "b")))
    assert terms(prefix + 'attributes["a"].b == 1') == (pinned, Term("attributes.a.b", equal, (1,)))
    assert terms(prefix + 'createdAt.startsWith("2026-06")') == (
        pinned,
        Term("createdAt", Comparison.GE, ("2026-06",)),
        Term("createdAt", below, ("2026-07",)),
    )
    for left_to_cel in (
        "attributes.a > 1",
        'attributes.a != "x"',
        "has(attributes.a)",
        "attributes.?a == optional.of(1)",
        'attributes["a.b"] == 1',
        "attributes.a == null",
        "attributes.n == 9007199254740993",
        'name == "a" || name == "b"',
        'content == "x"',
        "name in []",
        "size == version",
    ):
        assert terms(prefix + left_to_cel) is None, left_to_cel


def test_a_misspelt_attribute_is_noticed(store: Store, put: Put) -> None:
    put({"stdout": "hi", "deep": {"key": 1}})

    def said(predicate: str, select: str | None = None) -> str | None:
        query = prepare(predicate, select)
        return note(store, query, run(store, query))

    assert said('attributes.stdot == "hi"') == (
        "no record looked at has attributes.stdot; did you mean attributes.stdout?"
    )
    assert said('attributes.deep.kez == 1 && name == "result"') == (
        "no record looked at has attributes.deep.kez; did you mean attributes.deep.key?"
    )
    assert said('modelName == "echo"', "attributes.stdot") == (
        "no record looked at has attributes.stdot; did you mean attributes.stdout?"
    )
    assert said('attributes.stdout == "other"') is None
    assert said('attributes.stdout == "hi"') is None
    assert said('attributes.stdot == "hi" && modelName == "nobody"') is None
