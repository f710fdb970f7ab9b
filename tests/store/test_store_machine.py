"""Random batches, removals and questions: two SQLite stores on one folder, taking turns, answer like the in-memory twin."""

import hashlib
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from swamp_orch.store.bookkeeping import STEP_LEASE
from swamp_orch.store.interface import (
    Batch,
    Comparison,
    Content,
    Guard,
    IdempotencyKey,
    NewRecord,
    Owner,
    Record,
    Selection,
    Store,
    Term,
    json_content,
)
from swamp_orch.store.memory import MemoryStore
from swamp_orch.store.sqlite import SqliteStore, open_store
from swamp_proto.errors import SwampError

MODELS = ("m1", "m2")
NAMES = ("a", "b", "lease-d1", "lease-d2")
SCALARS = st.sampled_from([0, 1, -1, 1.0, 0.5, 2**63, True, False, "", "1", "true", "x", "y\0"])
DOCUMENTS = st.one_of(
    SCALARS,
    st.none(),
    st.dictionaries(st.sampled_from(["v", "w", "v w"]), SCALARS | st.none() | st.just({"v": 1}), max_size=3),
)
COLUMN_VALUES = {
    "name": st.sampled_from(NAMES),
    "modelId": st.sampled_from(MODELS),
    "modelName": st.sampled_from(["n", "o"]),
    "modelType": st.sampled_from(["t", STEP_LEASE]),
    "specName": st.sampled_from(["s", "r"]),
    "version": st.integers(1, 5) | st.just(1.5),
    "isLatest": st.booleans(),
    "createdAt": st.sampled_from(["1970-01-01T00:00:00.003Z", "1970", "2000", "1970-01-01T00:00:00.01"]),
    "workflowRunId": st.sampled_from(["", "r1"]),
    "size": st.integers(0, 30),
    "tags.k": st.sampled_from(["", "1", "x"]),
    "tags.k.l": st.sampled_from(["", "1", "x"]),
    "attributes.v": SCALARS,
    "attributes.w": SCALARS,
    "attributes.v.v": SCALARS,
    "attributes.v w": SCALARS,
}


@st.composite
def contents(draw: st.DrawFn) -> Content:
    content = json_content(draw(DOCUMENTS))
    kind = draw(st.sampled_from(["canonical", "canonical", "as sent", "large"]))
    assert content.inline is not None
    data = content.inline + b" " * (40_000 if kind == "large" else 0)
    return Content(
        data, hashlib.sha256(data).hexdigest(), len(data), canonical=kind == "canonical" and content.canonical
    )


@st.composite
def terms(draw: st.DrawFn) -> Term:
    field = draw(st.sampled_from(sorted(COLUMN_VALUES)))
    values = COLUMN_VALUES[field] | (SCALARS if draw(st.booleans()) else COLUMN_VALUES[field])
    comparison = draw(st.sampled_from(list(Comparison)))
    count = draw(st.integers(1, 3)) if comparison is Comparison.EQ else 1
    return Term(field, comparison, tuple(draw(values) for _ in range(count)))


def shown(record: Record | None) -> Any:
    """A record without its id, which is random in one store."""
    if record is None:
        return None
    return (
        record.seq, record.model_type, record.model_id, record.model_name, record.name, record.version, record.spec,
        record.is_latest, record.deleted, dict(record.tags), record.owner, record.keep, record.sha256, record.content,
        record.created_ms,
    )  # fmt: skip


class StoreMachine(RuleBasedStateMachine):
    """`twin` is right; `stores` are two processes' views of one folder, as far as SQLite can tell."""

    keys = Bundle("keys")

    @initialize(threads=st.tuples(st.booleans(), st.booleans()))
    def start(self, threads: tuple[bool, bool]) -> None:
        self.now_ms = 0
        self.folder = tempfile.TemporaryDirectory()
        self.twin = MemoryStore(self.clock)
        self.stores: list[SqliteStore] = []
        for thread in threads:
            self.stores.append(open_store(Path(self.folder.name), clock=self.clock, thread=thread))

    def clock(self) -> int:
        return self.now_ms

    @rule(target=keys, key=st.sampled_from(["k1", "k2", "k3"]), digest=st.sampled_from(["d", "e"]))
    def key(self, key: str, digest: str) -> IdempotencyKey:
        return IdempotencyKey(key, digest, {"k1": "", "k2": "d1", "k3": "d2"}[key])

    @rule(data=st.data(), which=st.integers(0, 1), key=st.none() | keys)
    def commit(self, data: st.DataObject, which: int, key: IdempotencyKey | None) -> None:
        self.now_ms += 1
        batches = [self._batch(data, key) for _ in range(data.draw(st.integers(1, 3)))]
        self._agree(which, lambda store: [self._answered(store.submit(batch)) for batch in batches])

    def _batch(self, data: st.DataObject, key: IdempotencyKey | None) -> Batch:
        records = []
        for _ in range(data.draw(st.integers(0, 4))):
            model, name = data.draw(st.sampled_from(MODELS)), data.draw(st.sampled_from(NAMES))
            records.append(
                NewRecord(
                    model_type=STEP_LEASE if name.startswith("lease") else "t",
                    model_id=model,
                    model_name=data.draw(st.sampled_from(["n", "o"])),
                    name=name,
                    spec=data.draw(st.sampled_from(["s", "r"])),
                    content=data.draw(contents()),
                    tags=data.draw(
                        st.dictionaries(st.sampled_from(["k", "k.l", 'q"']), st.sampled_from(["", "1", "x"]))
                    ),
                    owner=Owner(run=data.draw(st.sampled_from(["", "r1"]))),
                    deleted=data.draw(st.integers(0, 7)) == 0,
                    expect=self._near(data, model, name) if data.draw(st.booleans()) else None,
                )
            )
        guards = []
        if data.draw(st.integers(0, 3)) == 0:
            model, name = data.draw(st.sampled_from(MODELS)), data.draw(st.sampled_from(NAMES))
            guards.append(Guard(model, name, self._near(data, model, name)))
        return Batch(tuple(records), tuple(guards), key, answer=b"a" if key else b"")

    def _near(self, data: st.DataObject, model: str, name: str) -> int:
        newest = self.twin.latest(model, name)
        return max(0, (newest.version if newest else 0) + data.draw(st.sampled_from([0, 0, 0, 0, 1, -1])))

    @rule(data=st.data(), which=st.integers(0, 1))
    def remove(self, data: st.DataObject, which: int) -> None:
        versions = st.tuples(st.sampled_from(MODELS), st.sampled_from(NAMES), st.integers(1, 6))
        doomed = data.draw(st.lists(versions, max_size=8))
        self._agree(which, lambda store: store.remove(doomed))

    @rule(which=st.integers(0, 1), age=st.integers(0, 3))
    def forget_keys(self, which: int, age: int) -> None:
        self._agree(which, lambda store: store.forget_keys(self.now_ms - age))

    @rule(which=st.integers(0, 1), thread=st.booleans())
    def reopen(self, which: int, thread: bool) -> None:
        self.stores[which].close()
        self.stores[which] = open_store(Path(self.folder.name), clock=self.clock, thread=thread)

    @rule(
        which=st.integers(0, 1),
        wanted=st.lists(terms(), max_size=3),
        latest_only=st.booleans(),
        deleted=st.booleans(),
        after=st.integers(0, 6),
        limit=st.none() | st.integers(0, 4),
        newest_first=st.booleans(),
    )
    def select(
        self,
        which: int,
        wanted: list[Term],
        latest_only: bool,
        deleted: bool,
        after: int,
        limit: int | None,
        newest_first: bool,
    ) -> None:
        selection = Selection(tuple(wanted), latest_only, deleted)
        options: dict[str, Any] = {"after": after, "limit": limit, "newest_first": newest_first}
        self._agree(which, lambda store: [shown(record) for record in store.select(selection, **options)])
        fields = (
            "seq",
            "createdAt",
            "isLatest",
            "streaming",
            "attributes",
            "tags",
            "keep",
            "createdMs",
            "content",
        )
        self._agree(which, lambda store: list(store.scan(selection, fields, **options)))

    @invariant()
    def the_same_versions(self) -> None:
        for store in (*self.stores, self.twin):
            everything = list(store.select(Selection(latest_only=False, deleted=True)))
            if store is self.stores[0]:
                first = everything
            assert [shown(record) for record in everything] == [shown(record) for record in first]
            for record in everything:
                newest = store.latest(record.model_id, record.name)
                assert newest is not None
                assert record.is_latest == (newest.version == record.version)

    def _agree(self, which: int, question: Any) -> None:
        assert self._answer(self.stores[which], question) == self._answer(self.twin, question)

    @staticmethod
    def _answer(store: Store, question: Any) -> Any:
        try:
            return question(store)
        except SwampError as error:
            return type(error), error.error_code, str(error)

    @staticmethod
    def _answered(future: Any) -> Any:
        error = future.exception()
        if error is not None:
            assert isinstance(error, SwampError), error
            return type(error), error.error_code, str(error)
        done = future.result()
        return [(a.version, a.seq, a.created_ms) for a in done.records], done.replayed, done.answer

    def teardown(self) -> None:
        for store in self.stores:
            store.close()
        self.folder.cleanup()


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
