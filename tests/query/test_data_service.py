"""The calls `data.*` and the collector: shapes, which model is meant, deleting, retention."""

import base64
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from swamp_orch.api.services import data as data_service
from swamp_orch.api.services.data import DataService
from swamp_orch.definitions.repository import Repository, find, init
from swamp_orch.store import retention
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
    model_id,
)
from swamp_orch.store.interface import Batch, Content, Kind, NewRecord, Owner, OwnerType, Store, json_content
from swamp_orch.store.retention import collect
from swamp_orch.store.sqlite import SqliteStore, open_store
from swamp_proto.errors import Conflict, LocalError, NotFound, UsageError
from swamp_proto.limits import (
    ATTRIBUTES_MAX,
    BOOKKEEPING_ENDED_KEPT_S,
    BOOKKEEPING_VERSIONS_KEPT,
    INLINE_CONTENT_MAX,
)

Calls = Mapping[str, Callable[[Mapping[str, Any]], Any]]
DAY_MS = 86_400_000
START_MS = 1_750_000_000_000


class Clock:
    def __init__(self) -> None:
        self.now_ms = START_MS

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    init(tmp_path / "repo")
    return find(tmp_path / "repo")


@pytest.fixture
def store(repository: Repository, clock: Clock) -> Iterator[SqliteStore]:
    made = open_store(repository.data, clock=clock, thread=False)
    made.blob_orphan_kept_s = -1
    yield made
    made.close()


@pytest.fixture
def call(repository: Repository, store: Store) -> Calls:
    return DataService(repository, store).handlers()


def record(name: str = "result", value: Any = None, model: str = "echo", **more: Any) -> NewRecord:
    fields: dict[str, Any] = {
        "model_type": "command/shell",
        "model_id": f"id-{model}",
        "model_name": model,
        "name": name,
        "spec": "result",
        "content": value if isinstance(value, Content) else json_content({} if value is None else value),
        **more,
    }
    return NewRecord(**fields)


def put(store: Store, *records: NewRecord) -> None:
    store.commit(Batch(records))


def raw(data: bytes) -> Content:
    import hashlib

    return Content(data, hashlib.sha256(data).hexdigest(), len(data))


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_query_shapes(store: Store, call: Calls) -> None:
    put(store, record(value={"stdout": "hi"}), record("b", {"stdout": 1}))
    answer = call["data.query"]({"predicate": 'modelName == "echo"', "limit": 1})
    assert list(answer) == ["predicate", "results", "total", "limited", "skippedRows"]
    assert (answer["total"], answer["limited"], answer["skippedRows"]) == (1, True, 0)
    answer = call["data.query"]({"predicate": "version == 1", "select": 'attributes.stdout + "!"'})
    assert answer["results"] == ["hi!"]
    assert list(answer) == ["results", "total", "limited", "skippedRows", "skippedReason"]
    answer = call["data.query"]({"predicate": 'attributes.stdot == "hi"'})
    assert answer["note"].endswith("did you mean attributes.stdout?")
    with pytest.raises(UsageError, match="must be positive"):
        call["data.query"]({"predicate": "true", "limit": 0})


def test_get_shape(store: Store, call: Calls) -> None:
    owner = Owner(OwnerType.WORKFLOW_STEP, ref="d", run="r", workflow="w", job="j", step="s", fence=3)
    put(store, record(value={"stdout": "hi"}, tags={"k": "v"}, keep=5, owner=owner))
    found = call["data.get"]({"model": "echo", "name": "result"})
    assert list(found)[:17] == [
        "id", "name", "modelId", "modelName", "modelType", "version", "contentType", "lifetime",
        "garbageCollection", "streaming", "tags", "ownerDefinition", "createdAt", "size", "checksum",
        "contentPath", "content",
    ]  # fmt: skip
    assert found["content"] == {"stdout": "hi"}
    assert found["garbageCollection"] == 5
    assert found["ownerDefinition"] == {
        "ownerType": "workflow-step",
        "ownerRef": "d",
        "workflowRunId": "r",
        "workflowName": "w",
        "jobName": "j",
        "stepName": "s",
        "fence": 3,
    }
    assert "content" not in call["data.get"]({"model": "echo", "name": "result", "content": False})


def test_get_content_of_every_sort(store: Store, repository: Repository, call: Calls) -> None:
    def content(name: str) -> Any:
        return call["data.get"]({"model": "echo", "name": name})

    put(
        store,
        record("text", raw("ü\n".encode()), content_type="text/plain", kind=Kind.FILE),
        record("binary", raw(b"\xff\x00"), content_type="application/octet-stream", kind=Kind.FILE),
        record("blob", {"padding": "x" * INLINE_CONTENT_MAX}),
        record("huge", raw(b"x" * (ATTRIBUTES_MAX + 1)), content_type="text/plain"),
        record("broken", raw(b"{")),
    )
    assert content("text")["content"] == "ü\n"
    assert content("binary")["content"] is None
    assert "not text" in content("binary")["contentOmitted"]
    assert content("blob")["content"] == {"padding": "x" * INLINE_CONTENT_MAX}
    assert (repository.root / content("blob")["contentPath"]).read_bytes().startswith(b'{"padding"')
    assert not content("blob")["contentPath"].startswith("/")
    assert content("text")["contentPath"] is None
    assert content("huge")["content"] is None
    assert "too many to show" in content("huge")["contentOmitted"]
    assert content("broken")["content"] == "{"
    exported = call["data.export"]({"model": "echo", "name": "binary"})
    assert base64.b64decode(exported["base64"]) == b"\xff\x00"
    assert list(exported) == ["name", "modelName", "version", "contentType", "size", "checksum", "base64"]


def test_export_has_a_bound(store: Store, call: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, record("big", raw(b"x" * (INLINE_CONTENT_MAX + 1))))
    monkeypatch.setattr(data_service, "EXPORT_MAX", 10)
    with pytest.raises(LocalError, match="an answer carries up to 10") as caught:
        call["data.export"]({"model": "echo", "name": "big"})
    assert ".swamp/data/blobs" in (caught.value.hint or "")


def test_list_and_versions_shapes(store: Store, call: Calls) -> None:
    put(store, record(), record(), record("log", kind=Kind.FILE), record("x", model="other"))
    put(store, record("state-main", model_type=WORKER, model_id="w", model="worker-a"))
    found = call["data.list"]({"model": "echo"})
    assert (found["modelId"], found["modelName"], found["modelType"], found["total"]) == (
        "id-echo",
        "echo",
        "command/shell",
        2,
    )
    assert [(group["type"], len(group["items"])) for group in found["groups"]] == [
        ("resource", 1),
        ("file", 1),
    ]
    assert list(found["groups"][0]["items"][0]) == [
        "id", "name", "version", "contentType", "type", "streaming", "size", "createdAt",
    ]  # fmt: skip
    assert call["data.list"]({"model": "echo", "type": "file"})["total"] == 1
    everything = call["data.list"]({})
    assert everything["total"] == 3
    assert {item["modelName"] for group in everything["groups"] for item in group["items"]} == {
        "echo",
        "other",
    }
    with pytest.raises(UsageError, match="'files' is not a type of data"):
        call["data.list"]({"type": "files"})
    assert call["data.list"]({"model": "worker-a"})["total"] == 1
    versions = call["data.versions"]({"model": "echo", "name": "result"})
    assert list(versions) == ["dataName", "modelId", "modelName", "modelType", "versions", "total"]
    assert [(v["version"], v["isLatest"]) for v in versions["versions"]] == [(2, True), (1, False)]


def test_search(store: Store, call: Calls) -> None:
    put(store, record("alpha"), record("beta", tags={"env": "prod"}), record("gamma", model="Other"))
    put(store, record("state-main", model_type=WORKER, model_id="w", model="worker-alpha"))

    def names(**parameters: Any) -> list[str]:
        return [found["name"] for found in call["data.search"](parameters)["results"]]

    assert names() == ["gamma", "beta", "alpha"]
    assert names(query="ALPHA") == ["alpha"]
    assert names(query="env=prod") == ["beta"]
    assert names(query="other") == ["gamma"]
    assert names(model="worker-alpha") == ["state-main"]
    assert names(type="file") == []
    assert names(limit=2) == ["gamma", "beta"]
    assert call["data.search"]({"limit": 2})["limited"] is True
    assert call["data.search"]({"limit": 3})["limited"] is False


# ── which model ─────────────────────────────────────────────────────────────────────────────────────────────

UUID = "01234567-89ab-cdef-0123-456789abcdef"


def define(repository: Repository, name: str, identity: str) -> None:
    folder = repository.models / "command" / "shell"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.yaml").write_text(f"type: command/shell\nid: {identity}\nname: {name}\n")


def test_a_model_by_name_id_or_definition(repository: Repository, store: Store, call: Calls) -> None:
    define(repository, "fresh", UUID)
    assert call["data.list"]({"model": "fresh"}) == {
        "modelId": UUID,
        "modelName": "fresh",
        "modelType": "command/shell",
        "groups": [],
        "total": 0,
    }
    with pytest.raises(NotFound, match="No data named 'result' for model 'fresh'"):
        call["data.get"]({"model": "fresh", "name": "result"})
    put(store, record(model="fresh", model_id=UUID))
    assert call["data.get"]({"model": UUID, "name": "result"})["modelName"] == "fresh"


def test_w53_a_name_used_again_means_the_definition(
    repository: Repository, store: Store, call: Calls
) -> None:
    """Two models had the name one after the other; never the other one's value."""
    put(store, record(value={"who": "old"}, model="echo", model_id="old"))
    put(store, record("only-old", model="echo", model_id="old"))
    put(store, record(value={"who": "new"}, model="echo", model_id=UUID))
    put(store, record(value={"who": "old again"}, model="echo", model_id="old"))
    assert call["data.get"]({"model": "echo", "name": "result"})["content"] == {"who": "old again"}
    define(repository, "echo", UUID)
    assert call["data.get"]({"model": "echo", "name": "result"})["content"] == {"who": "new"}
    assert call["data.list"]({"model": "echo"})["modelId"] == UUID


def test_a_workflows_name_means_its_newest_run(store: Store, call: Calls) -> None:
    for run in ("r1", "r2"):
        put(store, record(RUN_RECORD, {"run": run}, "demo", model_type=WORKFLOW_RUN, model_id=run))
    assert call["data.get"]({"model": "demo", "name": RUN_RECORD})["content"] == {"run": "r2"}


def test_what_is_not_there_suggests_what_is(repository: Repository, store: Store, call: Calls) -> None:
    define(repository, "defined", UUID)
    put(store, record(), record())
    for parameters, message, hint in (
        ({"model": "ecko", "name": "x"}, "Model 'ecko' not found", "did you mean echo?"),
        ({"model": "defind", "name": "x"}, "Model 'defind' not found", "did you mean defined?"),
        ({"model": "zzz", "name": "x"}, "Model 'zzz' not found", "swamp model search"),
        (
            {"model": "echo", "name": "resutl"},
            "No data named 'resutl' for model 'echo'",
            "did you mean result?",
        ),
        ({"model": "echo", "name": "q"}, "No data named 'q' for model 'echo'", "swamp data list echo"),
        (
            {"model": "echo", "name": "result", "version": 3},
            "'result' of model 'echo' has no version 3; the newest is 2",
            "swamp data versions echo result",
        ),
    ):
        with pytest.raises(NotFound) as caught:
            call["data.get"](parameters)
        assert (caught.value.message, caught.value.hint) == (message, hint)


# ── deleting and collecting ─────────────────────────────────────────────────────────────────────────────────


def test_delete_hides_and_the_collector_removes(store: Store, call: Calls, clock: Clock) -> None:
    put(store, record(value={"n": 1}), record(value={"n": 2}), record("keep"))
    told = call["data.delete"]({"model": "echo", "name": "result", "dryRun": True})
    assert told == {
        "modelId": "id-echo",
        "modelName": "echo",
        "dataNames": ["result"],
        "totalDeleted": 1,
        "totalVersionsDeleted": 2,
        "failed": [],
        "dryRun": True,
    }
    assert call["data.get"]({"model": "echo", "name": "result"})["version"] == 2
    assert call["data.delete"]({"model": "echo", "name": "result"}) == told | {"dryRun": False}
    with pytest.raises(NotFound, match="'result' of model 'echo' was deleted at 20"):
        call["data.get"]({"model": "echo", "name": "result"})
    assert call["data.get"]({"model": "echo", "name": "result", "version": 1})["content"] == {"n": 1}
    assert call["data.query"]({"predicate": 'name == "result"'})["total"] == 0
    assert call["data.query"]({"predicate": 'name == "result" && isDeleted'})["total"] == 1
    assert [
        item["name"] for group in call["data.list"]({"model": "echo"})["groups"] for item in group["items"]
    ] == ["keep"]
    assert call["data.delete"]({"model": "echo", "name": "result"})["totalDeleted"] == 0
    dry = call["data.gc"]({"dryRun": True})
    assert dry["versionsDeleted"] == 3
    assert dry["expiredEntries"] == [{"modelName": "echo", "dataName": "result", "reason": "deleted"}]
    assert call["data.gc"]({}) == dry | {"dryRun": False}
    assert store.versions("id-echo", "result") == []
    assert call["data.gc"]({})["versionsDeleted"] == 0
    put(store, record(value={"n": 4}))
    assert call["data.get"]({"model": "echo", "name": "result"})["version"] == 4


def test_delete_one_version(store: Store, call: Calls) -> None:
    put(store, record(value={"n": 1}), record(value={"n": 2}), record(value={"n": 3}))
    assert call["data.delete"]({"model": "echo", "name": "result", "version": 2})["totalVersionsDeleted"] == 1
    assert [v["version"] for v in call["data.versions"]({"model": "echo", "name": "result"})["versions"]] == [
        3,
        1,
    ]
    call["data.delete"]({"model": "echo", "name": "result", "version": 3})
    assert call["data.get"]({"model": "echo", "name": "result"})["content"] == {"n": 1}
    with pytest.raises(NotFound, match="has no version 3"):
        call["data.delete"]({"model": "echo", "name": "result", "version": 3})


def test_delete_by_prefix_and_all(store: Store, call: Calls) -> None:
    put(store, record("a-1"), record("a-2"), record("b"), record("a-1", model="other"))
    assert call["data.delete"]({"model": "echo", "prefix": "a-"})["dataNames"] == ["a-1", "a-2"]
    assert call["data.list"]({})["total"] == 2
    assert call["data.delete"]({"model": "echo", "all": True})["dataNames"] == ["b"]
    assert call["data.list"]({})["total"] == 1


def test_delete_refuses(store: Store, call: Calls) -> None:
    put(store, record(), record("lease-x", model=LEASES_MODEL, model_id=LEASES_ID, model_type=STEP_LEASE))
    with pytest.raises(LocalError, match=r"swamp/step-lease is swamp's own bookkeeping"):
        call["data.delete"]({"model": LEASES_MODEL, "all": True})
    for wrong in ({}, {"name": "result", "all": True}, {"prefix": "a", "version": 1}):
        with pytest.raises(UsageError):
            call["data.delete"]({"model": "echo", **wrong})
    assert store.latest(LEASES_ID, "lease-x") is not None


def test_a_delete_wins_against_a_writer(
    store: SqliteStore, call: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody writes between reading the newest version and the tombstone."""
    put(store, record())
    commit, writes = store.commit, iter([True, True])

    def raced(batch: Batch) -> Any:
        if next(writes, False):
            commit(Batch((record(),)))
        return commit(batch)

    monkeypatch.setattr(store, "commit", raced)
    assert call["data.delete"]({"model": "echo", "name": "result"})["totalDeleted"] == 1
    newest = store.latest("id-echo", "result")
    assert newest is not None
    assert (newest.version, newest.deleted) == (4, True)

    def always(batch: Batch) -> Any:
        raise Conflict("again")

    put(store, record("other"))
    monkeypatch.setattr(store, "commit", always)
    assert call["data.delete"]({"model": "echo", "name": "other"})["failed"][0]["dataName"] == "other"


@pytest.mark.parametrize(
    ("text", "days"),
    [("30m", 30 / 1440), ("2h", 1 / 12), ("1d", 1), ("2w", 14), ("1mo", 30), ("1y", 365), ("0d", 0)],
)
def test_lifetimes(text: str, days: float) -> None:
    assert retention.lifetime_ms(text) == round(days * DAY_MS)


def test_what_is_no_duration_has_none() -> None:
    assert [
        retention.lifetime_ms(text) for text in ("infinite", "ephemeral", "workflow", "1", "d", "-1d")
    ] == [None] * 6


def names(store: Store) -> list[tuple[str, int]]:
    return sorted((r.name, r.version) for r in store.select(_everything()))


def _everything() -> Any:
    from swamp_orch.query.pushdown import everything

    return everything()


def test_retention(store: SqliteStore, clock: Clock) -> None:
    for n in range(5):
        put(store, record("kept-2", {"n": n}, keep=2), record("kept-all", {"n": n}))
    put(store, record("day", lifetime="1d"), record("week", lifetime="1w"), record("for-ever"))
    clock.now_ms += DAY_MS
    put(store, record("week", lifetime="1w"))
    assert [(e.name, e.reason) for e in collect(store, clock.now_ms - 1, dry_run=True).expired] == []
    found = collect(store, clock.now_ms)
    assert [(e.name, e.reason) for e in found.expired] == [("day", "expired")]
    assert found.versions == 4
    assert names(store) == sorted(
        [
            ("kept-2", 4),
            ("kept-2", 5),
            *(("kept-all", n) for n in range(1, 6)),
            ("week", 1),
            ("week", 2),
            ("for-ever", 1),
        ]
    )
    clock.now_ms += 7 * DAY_MS
    assert [e.name for e in collect(store, clock.now_ms).expired] == ["week"]


def test_w56_what_lives_as_long_as_its_run(store: SqliteStore, clock: Clock) -> None:
    def run(identity: str, **attributes: Any) -> NewRecord:
        return record(RUN_RECORD, attributes, "demo", model_type=WORKFLOW_RUN, model_id=identity)

    put(store, run("going", status="running"), run("over", status="succeeded", endedAt="x"))
    for lifetime in ("ephemeral", "job", "workflow", "0h"):
        for owner in ("going", "over", "gone", ""):
            put(store, record(f"{lifetime}-{owner}", lifetime=lifetime, owner=Owner(run=owner)))
    collect(store, clock.now_ms)
    left = [name for name, _ in names(store) if name != RUN_RECORD]
    assert left == sorted(f"{lifetime}-going" for lifetime in ("ephemeral", "job", "workflow", "0h"))


def test_bookkeeping_is_bounded(store: SqliteStore, clock: Clock) -> None:
    worker = {"model_type": WORKER, "model_id": model_id(WORKER, "worker-a"), "model": "worker-a"}
    lease = {"model_type": STEP_LEASE, "model_id": LEASES_ID, "model": LEASES_MODEL}
    pending = {"model_type": PENDING_DISPATCH, "model_id": PENDING_ID, "model": PENDING_MODEL}
    for n in range(BOOKKEEPING_VERSIONS_KEPT + 5):
        put(store, record("state-main", {"n": n}, **worker))
    put(
        store,
        record("lease-ended", {"state": "active"}, **lease),
        record("lease-held", {"state": "active"}, **lease),
    )
    put(store, record("pending-held", {"state": "waiting"}, **pending))
    put(store, record("pending-ended", {"state": "dispatched"}, **pending))
    put(store, record("lease-ended", {"state": "completed"}, **lease))
    clock.now_ms += round(BOOKKEEPING_ENDED_KEPT_S * 1000)
    put(store, record("lease-late", {"state": "failed"}, **lease))
    assert collect(store, clock.now_ms - 1, dry_run=True).expired == ()
    found = collect(store, clock.now_ms)
    assert [(e.name, e.reason) for e in found.expired] == [
        ("lease-ended", "ended"),
        ("pending-ended", "ended"),
    ]
    assert [version for name, version in names(store) if name == "state-main"] == list(range(6, 26))
    assert {name for name, _ in names(store)} == {"state-main", "lease-held", "lease-late", "pending-held"}


def test_blobs_go_with_their_last_record(store: SqliteStore, repository: Repository, call: Calls) -> None:
    put(
        store,
        record("big", {"p": "x" * INLINE_CONTENT_MAX}),
        record("big-2", {"p": "y" * INLINE_CONTENT_MAX}),
    )
    blobs = repository.data / "blobs"
    assert len([path for path in blobs.rglob("*") if path.is_file()]) == 2
    call["data.delete"]({"model": "echo", "name": "big"})
    call["data.gc"]({})
    assert len([path for path in blobs.rglob("*") if path.is_file()]) == 1
    assert call["data.get"]({"model": "echo", "name": "big-2"})["content"]["p"].startswith("y")


def test_data_get_loads_no_heavy_library(repository: Repository, store: Store) -> None:
    put(store, record(value={"stdout": "hi"}))
    code = (
        "import sys, json\n"
        "from pathlib import Path\n"
        "from swamp_orch.definitions.repository import find\n"
        "from swamp_orch.store.sqlite import open_store\n"
        "from swamp_orch.api.services.data import DataService\n"
        "repository = find(Path(sys.argv[1]))\n"
        "call = DataService(repository, open_store(repository.data, thread=False)).handlers()\n"
        "assert call['data.get']({'model': 'echo', 'name': 'result'})['content'] == {'stdout': 'hi'}\n"
        "assert call['data.list']({'model': 'echo'})['total'] == 1\n"
        "print(json.dumps(sorted(sys.modules)))\n"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code, str(repository.root)], capture_output=True, text=True, check=True
    ).stdout
    assert {"cel_expr_python", "ruamel", "cryptography", "trio", "cattrs"}.isdisjoint(json.loads(loaded))
