"""What is pushed down to a store is exactly what CEL says, on both stores, for random records and
predicates."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
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

NAMES = ("a", "b", "b\U0010ffff", "ba", "c-1", "ü", "leases", "lease-1")
KEYS = ("state", "n", "s", "deep", "x-y", "list")
SCALARS = (
    "active", "failed", "1", "true", "", "b", "ü", -3, 0, 1, 2, 0.5, 1.0, -1.5, True, False, None,
    2**53, 2**53 + 1, float(2**53), 2**63, -(2**70), 1e300,
)  # fmt: skip


class Maker:
    """Random records and predicates. Plain random choices cover more here than a strategy that prefers simple
    examples."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.pick = self.random.choice

    def some(self, make: Callable[[], Any], most: int) -> list[Any]:
        return [make() for _ in range(self.random.randint(0, most))]

    def chance(self, one_in: int) -> bool:
        return self.random.randrange(one_in) == 0

    def value(self) -> Any:
        return self.pick(SCALARS)

    def document(self) -> Any:
        if self.chance(8):
            return self.pick([self.value(), [self.value()], {}])
        found: dict[str, Any] = {key: self.value() for key in self.some(lambda: self.pick(KEYS), 5)}
        if self.chance(3):
            found["deep"] = {key: self.value() for key in self.some(lambda: self.pick(KEYS), 3)}
        if self.chance(3):
            found["list"] = self.some(self.value, 2)
        return found

    def content(self) -> tuple[str, Content]:
        """A content type and content: canonical JSON, other JSON, a document that becomes a blob, broken
        JSON, text."""
        value = self.document()
        match self.pick(
            ["canonical", "canonical", "canonical", "other", "blob", "broken", "text", "surrogate"]
        ):
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

    def record(self) -> NewRecord:
        content_type, content = self.content()
        lease = self.chance(4)
        model = LEASES_MODEL if lease else self.pick(["m1", "m2", LEASES_MODEL])
        return NewRecord(
            model_type=STEP_LEASE if lease else self.pick(["t/one", "t/two"]),
            model_id=LEASES_ID if lease else f"id-{model}",
            model_name=model,
            name=self.pick(NAMES),
            spec=self.pick(["result", "log", ""]),
            content=content,
            content_type=content_type,
            kind=self.pick(list(Kind)),
            streaming=self.chance(2),
            tags={self.pick(["k", "x-y", "env"]): self.pick(NAMES) for _ in range(self.random.randint(0, 2))},
            owner=Owner(type=self.pick(list(OwnerType)), run=self.pick(["", "r1"])),
            outcome=self.pick(["", "failed"]),
            deleted=self.chance(6),
        )

    def text(self) -> str:
        return literal(
            self.pick([*NAMES, "m1", "result", "log", "t/one", STEP_LEASE, LEASES_MODEL, "failed", "zz", ""])
        )

    def field(self) -> str:
        return self.pick(
            [
                "name",
                "modelName",
                "modelType",
                "specName",
                "dataType",
                "ownerType",
                "workflowRunId",
                "outcome",
            ]
        )

    def path(self) -> str:
        return self.pick(
            [
                "attributes.state", "attributes.n", "attributes.s", 'attributes["x-y"]', "attributes.deep.n",
                "attributes.?n.orValue(0)", "attributes.deep.state",
            ]
        )  # fmt: skip

    def instant(self) -> str:
        return literal(
            self.pick(
                ["", "1970", "1970-01-01T00:00:01.000Z", "1970-01-01T00:00:01.0005Z", "1970-01-01T00:00:03"]
            )
        )

    def operator(self) -> str:
        return self.pick(["==", "!=", "<", "<=", ">", ">="])

    def atom(self) -> str:
        texts = ", ".join([self.text(), *self.some(self.text, 2)])
        values = ", ".join([literal(self.value()), literal(self.value())])
        number = self.pick(["1", "2", "1.5", "2.0", "20", "9007199254740993", "2u", "1e300"])
        return self.pick(
            [
                lambda: f"{self.field()} {self.operator()} {self.text()}",
                lambda: f"{self.text()} {self.operator()} {self.field()}",
                lambda: f"{self.field()} in [{texts}]",
                lambda: f"modelType in [{literal(STEP_LEASE)}, {texts}]",
                lambda: (
                    f"{self.field()}.{self.pick(['startsWith', 'startsWith', 'endsWith'])}({self.text()})"
                ),
                lambda: f"name.startsWith({self.text()})",
                lambda: f"createdAt {self.operator()} {self.instant()}",
                lambda: f"createdAt.startsWith({self.instant()})",
                lambda: f"{self.pick(['version', 'size'])} {self.operator()} {number}",
                lambda: f"version in [{self.pick(['1', '2, 3', '1.0'])}]",
                lambda: self.pick(
                    ["isLatest", "!isLatest", "streaming", "!streaming", "isDeleted", "!isDeleted"]
                ),
                lambda: self.pick(
                    ["streaming == false", "isLatest != true", "true == streaming", "streaming > false"]
                ),
                lambda: f"tags.{self.pick(['k', 'env'])} {self.operator()} {self.text()}",
                lambda: f'tags["x-y"] {self.operator()} {self.text()}',
                lambda: f"tags.k.startsWith({self.text()})",
                lambda: f"{self.path()} == {literal(self.value())}",
                lambda: f"{self.path()} {self.operator()} {literal(self.value())}",
                lambda: f"{self.path()} in [{values}]",
                lambda: f"has(attributes.{self.pick(KEYS[:4])}) {self.operator()} true",
                lambda: f"attributes.?{self.pick(KEYS[:3])} == optional.of({literal(self.value())})",
                lambda: self.pick(
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
            ]
        )()

    def predicate(self, depth: int = 2) -> str:
        if not depth or self.chance(4):
            return self.atom()
        left, right = self.predicate(depth - 1), self.predicate(depth - 1)
        return self.pick(
            [f"{left} && {right}"] * 4 + [f"({left} || {right})", f"({left} && {right})", f"!({left})"]
        )


def plain(data: bytes) -> Content:
    return Content(data, hashlib.sha256(data).hexdigest(), len(data))


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


Shown = tuple[dict[str, Any], dict[str, Any]]


def all_of(store: Store) -> list[Shown]:
    """Every record there is: its document, and all its fields for CEL."""
    found = []
    contents = {record.id: store.read(record) for record in store.select(everything())}
    for row in store.scan(everything(), DOCUMENT_FIELDS):
        shown = document(row)
        attributes = shown["content"] if row[-1] is not None and _is_json(row[-1]) else {}
        fields = {name: shown[name] for name in FIELDS if name in shown} | {
            "attributes": _representable(attributes),
            "content": contents[shown["id"]].decode(errors="replace"),
            "ns": "",
        }
        found.append((shown, fields))
    return found


def whole_scan(records: list[Shown], query: Query) -> tuple[list[dict[str, Any]], int]:
    """The definition: every record, the default rules in plain words, and CEL on all fields."""
    predicate = query.predicate
    state_named = any(
        (path_of(node) or ())[:2] == ("attributes", "state") for node in walk(predicate.tree.root)
    )
    found, failed = [], 0
    for shown, fields in records:
        if not shown["isLatest"] and not {"version", "isLatest"} & set(predicate.names):
            continue
        if shown["isDeleted"] and "isDeleted" not in predicate.names:
            continue
        if shown["modelType"] == STEP_LEASE and "version" not in predicate.names and not state_named:
            attributes = fields["attributes"]
            if not isinstance(attributes, dict) or attributes.get("state") != "active":
                continue
        try:
            if predicate.evaluate(fields) is True:
                found.append(shown)
        except MissingKey:
            pass
        except CelError as error:
            message = error.message.lower()
            failed += not any(kind.partition(": ")[2].lower() in message for kind in _MISSING_KINDS[1:])
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
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.integers(0, 2**40))
@example(0)
def test_pushdown_is_exact(folder: Path, seed: int) -> None:
    maker = Maker(seed)
    made = [maker.record() for _ in range(20)]
    queries = []
    while len(queries) < 30:
        with contextlib.suppress(CelError):  # a comparison the type checker refuses
            queries.append(prepare(maker.predicate()))
    sqlite = open_store(folder / f"{next(counter)}", clock=ticking().__next__, thread=False)
    try:
        for store in (sqlite, MemoryStore(ticking().__next__)):
            for record in made:
                store.commit(Batch((record,)))
            records = all_of(store)
            for query in queries:
                check(store, records, query)
    finally:
        sqlite.close()


def check(store: Store, records: list[Shown], query: Query) -> None:
    text = query.predicate.text
    expected, failed = whole_scan(records, query)
    answer = run(store, query)
    assert answer.results == expected, text
    assert not answer.limited
    assert answer.skipped <= failed, text
    fields = [term.field for selection in query.plan.selections for term in selection.terms]
    if not any(field.startswith(("attributes.", "tags.")) for field in fields):
        assert answer.skipped == failed, (text, answer.reason)
    limited = run(store, query, limit=2)
    assert limited.results == expected[:2], text
    assert limited.limited == (len(expected) > 2), text
    chosen = run(store, prepare(text, "[id, name]"))
    assert chosen.results == [[shown["id"], shown["name"]] for shown in expected], text
