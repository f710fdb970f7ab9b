"""What is pushed down to a store is exactly what CEL says, on both stores, for random records and
predicates."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from swamp_orch.query.environment import CelError, MissingKey
from swamp_orch.query.pushdown import everything
from swamp_orch.query.records import DOCUMENT_FIELDS, FIELDS, document
from swamp_orch.query.run import _MISSING_KINDS, Query, prepare, run
from swamp_orch.query.syntax import path_of, walk
from swamp_orch.store.bookkeeping import LEASES_ID, LEASES_MODEL, STEP_LEASE
from swamp_orch.store.interface import Batch, Content, Kind, NewRecord, Owner, OwnerType, Store, json_content
from swamp_orch.store.memory import MemoryStore
from swamp_orch.store.sqlite import open_store

NAMES = ("a", "b", "b\U0010ffff", "ba", "c-1", "ü", "")
MODELS = ("m1", "m2", LEASES_MODEL)
KEYS = ("state", "n", "s", "deep", "x-y", "list")

scalars = st.one_of(
    st.sampled_from(["active", "failed", "1", "true", "", "b", "ü"]),
    st.integers(-3, 3),
    st.sampled_from([0.5, 1.0, -1.5, 2**53, 2**53 + 1, float(2**53), 2**63, -(2**70), 1e300]),
    st.booleans(),
    st.none(),
)
documents = st.one_of(
    st.dictionaries(
        st.sampled_from(KEYS),
        st.one_of(
            scalars,
            st.dictionaries(st.sampled_from(KEYS), scalars, max_size=2),
            st.lists(scalars, max_size=2),
        ),
        max_size=4,
    ),
    scalars,
    st.lists(scalars, max_size=2),
)


@st.composite
def contents(draw: st.DrawFn) -> tuple[str, Content]:
    """A content type and content: canonical JSON, other JSON, a large document that becomes a blob, broken
    JSON, text."""
    kind = draw(st.sampled_from(["canonical", "canonical", "other", "blob", "broken", "text", "surrogate"]))
    value = draw(documents)
    match kind:
        case "canonical":
            return "application/json", json_content(value)
        case "other":
            return "application/json", plain(json.dumps(value, indent=1).encode())
        case "blob":
            return "application/json", plain(json.dumps(value).encode() + b" " * 40_000)
        case "broken":
            return "application/json", plain(b'{"state": "active"')
        case "surrogate":
            return "application/json", plain(b'{"state": "active", "s": "\\ud800", "n": 1}')
    return "text/plain", plain(b'{"state": "active"} \xff')


def plain(data: bytes) -> Content:
    import hashlib

    return Content(data, hashlib.sha256(data).hexdigest(), len(data))


@st.composite
def records(draw: st.DrawFn) -> NewRecord:
    content_type, content = draw(contents())
    lease = draw(st.integers(0, 4)) == 0
    model = LEASES_MODEL if lease else draw(st.sampled_from(MODELS))
    return NewRecord(
        model_type=STEP_LEASE if lease else draw(st.sampled_from(["t/one", "t/two"])),
        model_id=LEASES_ID if lease else f"id-{model}",
        model_name=model,
        name=draw(st.sampled_from([name for name in NAMES if name])),
        spec=draw(st.sampled_from(["result", "log", ""])),
        content=content,
        content_type=content_type,
        kind=draw(st.sampled_from(list(Kind))),
        streaming=draw(st.booleans()),
        tags=draw(st.dictionaries(st.sampled_from(["k", "x-y", "env"]), st.sampled_from(NAMES), max_size=2)),
        owner=Owner(type=draw(st.sampled_from(list(OwnerType))), run=draw(st.sampled_from(["", "r1"]))),
        outcome=draw(st.sampled_from(["", "failed"])),
        deleted=draw(st.integers(0, 5)) == 0,
    )


def literal(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return repr(float(value))
    return repr(value)


operators = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
texts = st.sampled_from([*NAMES, "m1", "result", "t/one", STEP_LEASE, LEASES_MODEL, "failed", "zz"])
text_fields = st.sampled_from(
    [
        "name",
        "modelName",
        "modelType",
        "specName",
        "dataType",
        "contentType",
        "ownerType",
        "workflowRunId",
        "outcome",
    ]
)
paths = st.sampled_from(
    [
        "attributes.state",
        "attributes.n",
        "attributes.s",
        'attributes["x-y"]',
        "attributes.deep.n",
        "attributes.?n.orValue(0)",
    ]
)
instants = st.sampled_from(
    ["2026", "1970-01-01T00:00:01.000Z", "1970-01-01T00:00:01.0005Z", "", "1970-01-01T00:00:03"]
)

atoms = st.one_of(
    st.builds(lambda f, o, v: f"{f} {o} {literal(v)}", text_fields, operators, texts),
    st.builds(lambda f, o, v: f"{literal(v)} {o} {f}", text_fields, operators, texts),
    st.builds(
        lambda f, v: f"{f} in [{', '.join(map(literal, v))}]",
        text_fields,
        st.lists(texts, min_size=1, max_size=3),
    ),
    st.builds(lambda f, v: f"{f}.startsWith({literal(v)})", text_fields, texts),
    st.builds(lambda f, v: f"{f}.contains({literal(v)})", text_fields, texts),
    st.builds(lambda o, v: f"createdAt {o} {literal(v)}", operators, instants),
    st.builds(lambda v: f"createdAt.startsWith({literal(v)})", instants),
    st.builds(
        lambda f, o, v: f"{f} {o} {v}",
        st.sampled_from(["version", "size"]),
        operators,
        st.sampled_from(["1", "2", "1.5", "2.0", "20", "9007199254740993", "2u", "1e300"]),
    ),
    st.builds(lambda v: f"version in {v}", st.lists(st.integers(1, 3), min_size=1, max_size=3)),
    st.sampled_from(
        [
            "isLatest",
            "!isLatest",
            "streaming",
            "!streaming",
            "isDeleted",
            "streaming == false",
            "isLatest != true",
        ]
    ),
    st.builds(lambda k, o, v: f"tags.{k} {o} {literal(v)}", st.sampled_from(["k", "env"]), operators, texts),
    st.builds(lambda o, v: f'tags["x-y"] {o} {literal(v)}', operators, texts),
    st.builds(lambda v: f"tags.k.startsWith({literal(v)})", texts),
    st.builds(lambda p, v: f"{p} == {literal(v)}", paths, scalars),
    st.builds(lambda p, o, v: f"{p} {o} {literal(v)}", paths, operators, scalars),
    st.builds(
        lambda p, v: f"{p} in [{', '.join(map(literal, v))}]",
        paths,
        st.lists(scalars, min_size=1, max_size=2),
    ),
    st.sampled_from(
        [
            "has(attributes.n)",
            "size(attributes) > 0",
            'content.contains("act")',
            "tags.exists(k, k == 'k')",
            "ns == ''",
            "1 == 1.0",
            "attributes.list.exists(x, x == 1)",
            "version * 1.5 > 2",
        ]
    ),
)
predicates = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.builds(lambda a, b: f"({a} && {b})", inner, inner),
        st.builds(lambda a, b: f"{a} && {b}", inner, inner),
        st.builds(lambda a, b: f"({a} || {b})", inner, inner),
        st.builds(lambda a: f"!({a})", inner),
    ),
    max_leaves=4,
)


def whole_scan(store: Store, query: Query) -> tuple[list[dict[str, Any]], int]:
    """The definition: every record there is, the default rules in plain words, and CEL on all fields."""
    predicate = query.predicate
    state_named = any(
        (path_of(node) or ())[:2] == ("attributes", "state") for node in walk(predicate.tree.root)
    )
    found, failed = [], 0
    for row in store.scan(everything(), DOCUMENT_FIELDS):
        shown = document(row)
        if not shown["isLatest"] and not {"version", "isLatest"} & set(predicate.names):
            continue
        if shown["isDeleted"] and "isDeleted" not in predicate.names:
            continue
        attributes = shown["content"] if row[-1] is not None and _is_json(row[-1]) else {}
        if shown["modelType"] == STEP_LEASE and "version" not in predicate.names and not state_named:
            state = attributes.get("state") if isinstance(attributes, dict) else None
            if not isinstance(state, str) or state != "active":
                continue
        data: Mapping[str, Any] = {
            **{name: shown[name] for name in FIELDS if name in shown},
            "attributes": _representable(attributes),
            "content": _text(store, shown["id"]),
            "ns": "",
        }
        try:
            if predicate.evaluate(data) is True:
                found.append(shown)
        except MissingKey:
            pass
        except CelError as error:
            failed += not any(
                kind.partition(": ")[2].lower() in error.message.lower() for kind in _MISSING_KINDS[1:]
            )
    return found, failed


def _is_json(raw: bytes) -> bool:
    try:
        json.loads(raw)
    except ValueError:
        return False
    return True


def _representable(value: Any) -> Any:
    if isinstance(value, dict):
        return {_representable(key): _representable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_representable(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        return float(value)
    if isinstance(value, str):
        return "".join("?" if "\ud800" <= letter <= "\udfff" else letter for letter in value)
    return value


def _text(store: Store, identity: str) -> str:
    selection = everything()
    (record,) = [record for record in store.select(selection) if record.id == identity]
    return store.read(record).decode(errors="replace")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


def ticking() -> Iterator[int]:
    now = 0
    while True:
        now += 500
        yield now


counter = iter(range(1_000_000))


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(records(), min_size=1, max_size=14), st.lists(predicates, min_size=12, max_size=12))
@example([], ["true"])
def test_pushdown_is_exact(folder: Path, made: list[NewRecord], asked: list[str]) -> None:
    clock = ticking()
    sqlite = open_store(folder / f"{next(counter)}", clock=clock.__next__, thread=False)
    try:
        again = ticking()
        for store in (sqlite, MemoryStore(again.__next__)):
            for record in made:
                store.commit(Batch((record,)))
            for text in asked:
                try:
                    query = prepare(text)
                except CelError:
                    continue  # a comparison the type checker refuses
                expected, failed = whole_scan(store, query)
                answer = run(store, query)
                assert answer.results == expected, text
                assert not answer.limited
                assert answer.skipped <= failed, text
                if not any(
                    term.field.startswith(("attributes.", "tags."))
                    for s in query.plan.selections
                    for term in s.terms
                ):
                    assert answer.skipped == failed, (text, answer.reason)
                limited = run(store, query, limit=2)
                assert limited.results == expected[:2], text
                assert limited.limited == (len(expected) > 2)
                chosen = run(store, prepare(text, "[id, name]"))
                assert chosen.results == [[shown["id"], shown["name"]] for shown in expected], text
    finally:
        sqlite.close()
