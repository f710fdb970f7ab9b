"""A store that is broken, full, too new, read-only or on the wrong disk: one clear error each, and nothing half-written."""

import hashlib
import os
import resource
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from swamp_orch.store.errors import (
    StoreBusy,
    StoreCorrupt,
    StoreFull,
    StoreOnNetwork,
    StoreReadOnly,
    StoreTooNew,
)
from swamp_orch.store.folder import file_system, refuse_network
from swamp_orch.store.interface import (
    Batch,
    Comparison,
    Content,
    Guard,
    NewRecord,
    Selection,
    Term,
    json_content,
)
from swamp_orch.store.schema import BALLAST_NAME, FILE_NAME, SCHEMA_VERSION
from swamp_orch.store.sqlite import SqliteStore, open_store
from swamp_proto.errors import Conflict, ExitCode, LocalError, NotFound, SwampError
from swamp_proto.limits import BALLAST_BYTES, INLINE_CONTENT_MAX

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def opened(folder: Path) -> Iterator[Callable[..., SqliteStore]]:
    stores: list[SqliteStore] = []

    def open_one(*, thread: bool = False) -> SqliteStore:
        stores.append(open_store(folder, thread=thread))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


def new(name: str, content: Content | None = None) -> NewRecord:
    return NewRecord("t", "m", "n", name, "s", content or json_content({"name": name}))


def large(fill: bytes = b"x", size: int = INLINE_CONTENT_MAX + 1, *, json: bool = False) -> Content:
    data = b'{"a":"' + fill * size + b'"}' if json else fill * size
    return Content(data, hashlib.sha256(data).hexdigest(), len(data))


def some(folder: Path, count: int = 50) -> None:
    store = open_store(folder, thread=False)
    store.commit(Batch(tuple(new(f"r{n}") for n in range(count))))
    store.close()


def says(error: SwampError, folder: Path) -> bool:
    return str(folder) in str(error) and bool(error.hint) and error.exit_code is ExitCode.FAILED


# ── what is in force ────────────────────────────────────────────────────────────────────────────────────────────────


def test_wal_and_full_sync_are_in_force(opened: Callable[..., SqliteStore]) -> None:
    store = opened(thread=True)
    assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)


def test_only_the_owner_reads_it(opened: Callable[..., SqliteStore], folder: Path) -> None:
    folder.mkdir(mode=0o755)
    store = opened(thread=True)
    store.commit(Batch((new("a", large()),)))
    for path in (folder, *folder.rglob("*")):
        allowed = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == allowed, path
    names = {path.name for path in folder.iterdir()}
    assert names == {FILE_NAME, f"{FILE_NAME}-wal", f"{FILE_NAME}-shm", BALLAST_NAME, "blobs"}


def test_the_epoch_stays(opened: Callable[..., SqliteStore], tmp_path: Path) -> None:
    first = opened()
    assert opened().epoch == first.epoch
    other = open_store(tmp_path / "other", thread=False)
    assert other.epoch != first.epoch
    other.close()


def test_two_that_make_the_store_at_once_share_it(folder: Path) -> None:
    stores: list[SqliteStore] = []
    threads = [
        threading.Thread(target=lambda: stores.append(open_store(folder, thread=False))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({store.epoch for store in stores}) == 1
    assert sorted(s.commit(Batch((new("r"),))).records[0].version for s in stores) == [1, 2, 3, 4, 5, 6]
    for store in stores:
        store.close()
    assert sorted(path.name for path in folder.iterdir()) == [FILE_NAME]


# ── damage ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("damage", ["empty", "garbage", "short", "foreign", "no tables"])
def test_a_file_that_is_no_store(folder: Path, damage: str) -> None:
    some(folder)
    file = folder / FILE_NAME
    whole = file.read_bytes()
    if damage == "no tables":
        db = sqlite3.connect(file)
        db.execute("DROP TABLE meta")
        db.commit()
        db.close()
    else:
        foreign = whole[:68] + b"\0\0\0\0" + whole[72:]
        file.write_bytes(
            {"empty": b"", "garbage": b"x" * 5000, "short": whole[:50], "foreign": foreign}[damage]
        )
    before = file.read_bytes()
    with pytest.raises(StoreCorrupt) as caught:
        open_store(folder)
    assert says(caught.value, file)
    assert file.read_bytes() == before, "evidence is not touched"


def test_damaged_pages_are_noticed(folder: Path, opened: Callable[..., SqliteStore]) -> None:
    some(folder, 500)
    file = folder / FILE_NAME
    data = bytearray(file.read_bytes())
    for at in range(4096, len(data), 4096):
        data[at : at + 64] = os.urandom(64)
    file.write_bytes(data)
    with pytest.raises(StoreCorrupt) as caught:
        list(opened().select(Selection()))
    assert says(caught.value, file)
    with pytest.raises(StoreCorrupt):
        opened().commit(Batch((new("a"),)))


def test_damaged_and_missing_blobs(folder: Path, opened: Callable[..., SqliteStore]) -> None:
    store = opened()
    content = large(json=True)
    store.commit(Batch((new("a", content),)))
    record = store.latest("m", "a")
    assert record is not None
    path = folder / "blobs" / content.sha256[:2] / content.sha256[2:]
    path.write_bytes(b"y" * content.size)
    about_content = Selection((Term("attributes.a", Comparison.NE, ("",)),))
    with pytest.raises(StoreCorrupt):
        store.read(record)
    with pytest.raises(StoreCorrupt):
        list(store.select(about_content))
    path.unlink()
    for read in (lambda: store.read(record), lambda: list(store.scan(about_content, ["name"]))):
        with pytest.raises(NotFound) as caught:
            read()
        assert content.sha256 in str(caught.value)
    assert [r.name for r in store.select(Selection())] == ["a"], "everything else still answers"


def test_a_newer_store_is_not_touched(folder: Path) -> None:
    some(folder)
    file = folder / FILE_NAME
    db = sqlite3.connect(file)
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    db.close()
    before = file.read_bytes()
    with pytest.raises(StoreTooNew) as caught:
        open_store(folder)
    assert says(caught.value, file)
    assert file.read_bytes() == before


# ── places ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def somebody_else() -> Iterator[None]:
    """Whom file modes apply to."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@contextmanager
def reachable_folder() -> Iterator[Path]:
    """Unlike pytest's, every user may enter it."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_read_only_folder() -> None:
    with reachable_folder() as parent:
        parent.chmod(0o555)
        with somebody_else(), pytest.raises(StoreReadOnly) as caught:
            open_store(parent / "data")
        assert says(caught.value, parent)
        parent.chmod(0o755)
        some(parent / "data")
        (parent / "data").chmod(0o555)
        (parent / "data" / FILE_NAME).chmod(0o444)
        before = (parent / "data" / FILE_NAME).read_bytes()
        with somebody_else(), pytest.raises(StoreReadOnly) as caught:
            open_store(parent / "data")
        assert says(caught.value, parent)
        assert (parent / "data" / FILE_NAME).read_bytes() == before
        (parent / "data").chmod(0o755)


MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:27 / /mnt/team\\040share rw - nfs4 server:/share rw,vers=4.2
31 22 0:28 / /mnt/team\\040share/local rw shared:3 master:2 - xfs /dev/vdb rw
32 22 0:29 / /mnt rw - tmpfs tmpfs rw
33 32 0:30 / /mnt rw - cifs //server/x rw
garbage
"""


def test_network_file_systems_are_refused() -> None:
    for folder, kind in {
        "/home/me": "ext4",
        "/mnt/team share/repo": "nfs4",
        "/mnt/team share/local/repo": "xfs",
        "/mnt/team shares": "cifs",
    }.items():
        assert file_system(Path(folder), MOUNTS) == kind
    with pytest.raises(StoreOnNetwork) as caught:
        refuse_network(Path("/mnt/team share/repo"), MOUNTS)
    assert says(caught.value, Path("/mnt/team share/repo"))
    refuse_network(Path("/home/me"), MOUNTS)


# ── no room ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("thread", [True, False])
def test_a_full_disk_is_retryable(opened: Callable[..., SqliteStore], folder: Path, thread: bool) -> None:
    store = opened(thread=thread)
    store.commit(Batch((new("a"),)))
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    batch = Batch(tuple(new(f"r{n}") for n in range(100)))
    with pytest.raises(StoreFull) as caught:
        store.commit(batch)
    assert says(caught.value, folder)
    assert caught.value.retryable
    assert store.full
    assert not (folder / BALLAST_NAME).exists(), "the ballast is given back"
    assert [record.name for record in store.select(Selection())] == ["a"]
    store._db.execute("PRAGMA max_page_count = 1000000")
    store.commit(batch)
    assert len(list(store.select(Selection()))) == 101
    assert not store.full, "there is room again"
    assert (folder / BALLAST_NAME).stat().st_size == BALLAST_BYTES


def test_no_room_for_a_blob(opened: Callable[..., SqliteStore], folder: Path) -> None:
    store = opened()
    store.commit(Batch((new("before"),)))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (INLINE_CONTENT_MAX, before[1]))
    try:
        with pytest.raises(StoreFull) as caught:
            store.commit(Batch((new("a", large(size=100_000)),)))
        writer = store.stage()
        with pytest.raises(StoreFull):
            for _ in range(10):
                writer.write(b"x" * 20_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert says(caught.value, folder)
    assert [path for path in (folder / "blobs").rglob("*") if path.is_file()] == []
    assert [record.name for record in store.select(Selection())] == ["before"]


def test_a_real_full_disk(tmp_path: Path) -> None:
    mounted = tmp_path / "small"
    mounted.mkdir()
    if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size=24m tmpfs {mounted} 2>/dev/null") != 0:
        pytest.skip("only root may mount a small disk")
    try:
        store = open_store(mounted / "data")
        assert not store.full
        written = 0
        while not store.full:
            store.commit(Batch((new(f"r{written}", large(size=INLINE_CONTENT_MAX)),)))
            written += 1
            assert written < 2_000, "24 MiB took 64"
        for n in range(200):  # the ballast carries what is under way a good deal further
            store.commit(Batch((new(f"more{n}"),)))
            written += 1
        with pytest.raises(StoreFull):
            for n in range(2_000):
                store.commit(Batch((new(f"last{n}", large(size=INLINE_CONTENT_MAX)),)))
                written += 1
        assert len(list(store.select(Selection()))) == written
        store.close()
        again = open_store(mounted / "data", thread=False)
        assert len(list(again.select(Selection()))) == written
        again.close()
    finally:
        assert os.system(f"umount -l {mounted}") == 0


# ── others ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_somebody_writes_for_too_long(opened: Callable[..., SqliteStore], folder: Path) -> None:
    store, other = opened(), opened()
    store.commit(Batch((new("a"),)))
    other._db.execute("BEGIN IMMEDIATE")
    store._db.execute("PRAGMA busy_timeout = 50")
    with pytest.raises(StoreBusy) as caught:
        store.commit(Batch((new("a"),)))
    assert says(caught.value, folder)
    assert [r.version for r in store.versions("m", "a")] == [1], "reads do not wait for writers"
    other._db.execute("ROLLBACK")
    assert store.commit(Batch((new("a"),))).records[0].version == 2


ANOTHER = """
import sys
from pathlib import Path
from swamp_orch.store.interface import Selection
from swamp_orch.store.sqlite import open_store
store = open_store(Path(sys.argv[1]), thread=False)
print(sorted(record.name for record in store.select(Selection())))
store.close()
"""


def test_a_process_with_two_stores_keeps_its_log_while_others_come_and_go(
    opened: Callable[..., SqliteStore], folder: Path
) -> None:
    """A command that runs steps in its own process has two of one file. Opening the second one dropped the locks of the first;
    whoever came and went took the log for abandoned and removed it, and everything written afterwards was lost."""

    def another() -> str:
        command = [sys.executable, "-c", ANOTHER, str(folder)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.strip()

    first = opened(thread=False)
    first.commit(Batch((new("a"),)))
    second = opened()
    second.commit(Batch((new("b"),)))
    assert another() == "['a', 'b']"
    assert (folder / f"{FILE_NAME}-wal").exists()
    first.commit(Batch((new("c"),)))
    second.commit(Batch((new("d"),)))
    assert another() == "['a', 'b', 'c', 'd']"
    second.close()
    first.commit(Batch((new("e"),)))
    assert another() == "['a', 'b', 'c', 'd', 'e']"


def test_what_another_process_did_is_seen(opened: Callable[..., SqliteStore]) -> None:
    """Each of these would go unnoticed by a store that trusted what it remembers."""
    mine, other = opened(thread=True), opened()

    def write(store: SqliteStore, name: str, expect: int | None = None, guard: Guard | None = None) -> int:
        record = NewRecord("t", "m", "n", name, "s", json_content(1), expect=expect)
        return store.commit(Batch((record,), (guard,) if guard else ())).records[0].version

    for name in ("appended", "removed", "guard", "again"):
        for version in (1, 2, 3):
            assert write(mine, name, version - 1) == version
    write(mine, "newest")

    assert other.remove([("m", "removed", 3)]) == 1
    with pytest.raises(Conflict):
        write(mine, "removed", 3)
    assert other.remove([("m", "again", 3)]) == 1
    assert write(mine, "again") == 4, "a removed number does not come back"
    assert [r.version for r in mine.versions("m", "again")] == [1, 2, 4]

    assert write(other, "appended", 3) == 4
    with pytest.raises(Conflict):
        write(mine, "appended", 3)
    write(other, "appended")
    assert write(mine, "appended", 5) == 6, "what is remembered does not refuse what holds"

    write(other, "guard")
    with pytest.raises(Conflict):
        write(mine, "x", guard=Guard("m", "guard", 3))
    assert write(mine, "x", guard=Guard("m", "guard", 4)) == 1

    write(other, "new")
    with pytest.raises(Conflict):
        write(mine, "new", 0)
    other.remove([("m", "new", 1)])
    assert write(mine, "new", 0) == 2
    assert len({r.seq for r in mine.select(Selection(latest_only=False))}) == 18


def test_one_bad_value_is_refused_alone(opened: Callable[..., SqliteStore]) -> None:
    store = opened(thread=True)
    bad = NewRecord("t", "m", "\ud800", "b", "s", json_content(1))
    huge = NewRecord("t", "m", "n", "c", "s", json_content(1), keep=2**70)
    futures = [store.submit(Batch((record,))) for record in (new("a"), bad, new("d"), huge, new("e"))]
    assert [isinstance(future.exception(), LocalError) for future in futures] == [
        False,
        True,
        False,
        True,
        False,
    ]
    assert [record.name for record in store.select(Selection())] == ["a", "d", "e"]


def test_orphan_blobs_are_collected_when_old(opened: Callable[..., SqliteStore], folder: Path) -> None:
    store = opened()
    used, orphan = large(b"u"), large(b"o")
    store.commit(Batch((new("a", used),)))
    for content in (used, orphan):
        writer = store.stage()
        assert content.inline is not None
        writer.write(content.inline)
        staged = writer.finish()
    half = store.stage()
    half.write(b"h" * 100_000)
    assert store.collect_blobs() == 0, "too young"
    long_ago = time.time() - store.blob_orphan_kept_s - 10
    for path in (folder / "blobs").rglob("*"):
        os.utime(path, (long_ago, long_ago))
    assert store.collect_blobs() == orphan.size + 100_000
    half.discard()
    record = store.latest("m", "a")
    assert record is not None
    assert store.read(record) == used.inline
    with pytest.raises(LocalError):
        store.commit(Batch((new("b", Content(None, staged.sha256, staged.size)),)))


def test_a_closed_store_leaves_one_file(opened: Callable[..., SqliteStore], folder: Path) -> None:
    store = opened(thread=True)
    futures = [store.submit(Batch((new(f"r{n}"),))) for n in range(200)]
    store.close()
    assert all(future.result() for future in futures), "what was submitted commits"
    assert sorted(path.name for path in folder.iterdir()) == [BALLAST_NAME, FILE_NAME]
