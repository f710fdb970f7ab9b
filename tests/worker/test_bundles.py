"""Bundles on a worker: named by their digest, shipped once, whole or not there, and nothing a zip can do gets out."""
# ruff: noqa: ASYNC220, ASYNC240 - a temporary folder does not block

import io
import os
import re
import signal
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
import trio
import trio.testing
from conftest import shell
from packing import named, packed

from swamp_proto.capabilities import CallRefused
from swamp_proto.errors import Broken
from swamp_proto.limits import BUNDLE_CACHE_MAX, BUNDLE_ENTRIES_MAX, KIB, MIB
from swamp_proto.messages.capability import CallCode, Verb, Written
from swamp_proto.messages.dispatch import Dispatch, Output
from swamp_worker.execution import shelf
from swamp_worker.execution.access import Sent
from swamp_worker.execution.bundles import BundleCache
from swamp_worker.execution.environments import Environments
from swamp_worker.execution.keeper import Keeper
from swamp_worker.execution.unpack import BadBundle, unpack

CODE = {"inventory.py": "answer = 42\n", "data/hosts.txt": "a\nb\n"}


@attrs.define
class Store:
    """The orchestrator's bundles, as `Access` gives them."""

    bundles: dict[str, bytes] = attrs.field(factory=dict)
    fetched: list[str] = attrs.field(factory=list)
    gate: trio.Event | None = None
    refused: CallRefused | None = None

    def put(self, files: Mapping[str, bytes | str]) -> str:
        bundle = packed(files)
        self.bundles[named(bundle)] = bundle
        return named(bundle)

    async def fetch_bundle(self, dispatch: Dispatch, sha256: str, into: Path) -> None:
        self.fetched.append(sha256)
        if self.gate is not None:
            await self.gate.wait()
        await trio.lowlevel.checkpoint()
        if self.refused is not None:
            raise self.refused
        into.write_bytes(self.bundles[sha256])

    async def call(self, dispatch: Dispatch, number: int, verb: Verb, arguments: Mapping[str, Any]) -> Any:
        raise AssertionError

    async def write(self, dispatch: Dispatch, number: int, records: tuple[Output, ...]) -> Written:
        raise AssertionError

    async def upload(
        self, dispatch: Dispatch, number: int, file: Path, sha256: str = "", sent: Sent | None = None
    ) -> tuple[str, int]:
        raise AssertionError

    async def download(self, dispatch: Dispatch, record: str, into: Path) -> None:
        raise AssertionError


def cached(directory: Path, store: Store, size_max: int = BUNDLE_CACHE_MAX) -> BundleCache:
    """Without anything to install, no keeper is asked."""
    return BundleCache(directory, store, Environments(directory, cast(Keeper, None)), size_max)


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# ── the cache ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_bundle_is_fetched_once_and_its_files_are_read_only(tmp_path: Path) -> None:
    store = Store()
    name = store.put(CODE)
    cache = cached(tmp_path, store)
    root = await cache.folder(shell("x"), name)
    assert names(root) == set(CODE)
    assert (root / "inventory.py").read_text() == CODE["inventory.py"]
    assert stat.S_IMODE((root / "inventory.py").stat().st_mode) == 0o444
    assert await cache.folder(shell("x"), name) == root
    assert await cached(tmp_path, store).folder(shell("x"), name) == root
    assert store.fetched == [name]


async def test_first_uses_at_the_same_time_share_one_download(tmp_path: Path, nursery: trio.Nursery) -> None:
    store = Store(gate=trio.Event())
    name = store.put(CODE)
    cache = cached(tmp_path, store)
    roots: list[Path] = []

    async def use() -> None:
        roots.append(await cache.folder(shell("x"), name))

    with trio.fail_after(60):
        async with trio.open_nursery() as users:
            for _ in range(20):
                users.start_soon(use)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert store.gate is not None
            store.gate.set()
    assert len(roots) == 20
    assert store.fetched == [name]


async def test_the_next_one_goes_on_when_the_first_is_cancelled(tmp_path: Path) -> None:
    store = Store(gate=trio.Event())
    name = store.put(CODE)
    cache = cached(tmp_path, store)
    first, roots = trio.CancelScope(), list[Path]()

    async def use(scope: trio.CancelScope) -> None:
        with scope:
            roots.append(await cache.folder(shell("x"), name))

    with trio.fail_after(60):
        async with trio.open_nursery() as users:
            users.start_soon(use, first)
            await trio.testing.wait_all_tasks_blocked(0.01)
            users.start_soon(use, trio.CancelScope())
            first.cancel()
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert store.gate is not None
            store.gate.set()
    assert len(roots) == 1
    assert [path.name for path in (tmp_path / "bundles").iterdir()] == [name]


async def test_bytes_of_another_name_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    store = Store()
    name = store.put(CODE)
    store.bundles[name] = packed({"inventory.py": "evil()"})
    cache = cached(tmp_path, store)
    with pytest.raises(BadBundle, match="not those of its name"):
        await cache.folder(shell("x"), name)
    store.refused = CallRefused(CallCode.NOT_FOUND, "no such bundle")
    with pytest.raises(CallRefused, match="no such bundle"):
        await cache.folder(shell("x"), name)
    assert list((tmp_path / "bundles").iterdir()) == []
    with pytest.raises(Broken, match="no bundle's name"):
        await cache.folder(shell("x"), "../../etc")


@pytest.mark.parametrize("damage", ["bytes", "gone", "entry", "all"])
async def test_a_damaged_entry_is_fetched_anew(tmp_path: Path, damage: str) -> None:
    store = Store()
    name = store.put(CODE)
    root = await cached(tmp_path, store).folder(shell("x"), name)
    file = root / "inventory.py"
    file.chmod(0o600)
    match damage:
        case "bytes":
            file.write_text("answer = 43\n")
        case "gone":
            file.unlink()
        case "entry":
            (root.parent / shelf.ENTRY).write_text("{")
        case "all":
            (root.parent / shelf.ENTRY).unlink()
            file.unlink()
    root = await cached(tmp_path, store).folder(shell("x"), name)
    assert (root / "inventory.py").read_text() == CODE["inventory.py"]
    assert store.fetched == [name, name]


async def test_an_entry_that_is_damaged_while_it_is_used_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf, "LOOK_AGAIN_S", -1.0)
    store = Store()
    name = store.put(CODE)
    cache = cached(tmp_path, store)
    root = await cache.folder(shell("x"), name)
    await cache.folder(shell("x"), name)
    (root / "data" / "hosts.txt").unlink()
    await cache.folder(shell("x"), name)
    assert names(root) == set(CODE)
    assert store.fetched == [name, name]


async def test_step_after_step_uses_what_was_compared_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store()
    name = store.put(CODE)
    cache = cached(tmp_path, store)
    compared: list[Path] = []
    monkeypatch.setattr(shelf, "_compare", lambda path: compared.append(path))
    monkeypatch.setattr(shelf, "IDLE_MAX", 2)
    for _ in range(3):
        step = shell("x")
        root = await cache.folder(step, name)
        assert names(root) == set(CODE)
        cache.release(step.dispatch)
    assert store.fetched == [name]
    other = cached(tmp_path, store, size_max=1)  # another process takes it away: nobody uses it
    more = [store.put({"code.py": str(number)}) for number in range(4)]
    await other.folder(shell("x"), more[0])
    assert not root.exists()
    assert names(await cache.folder(shell("x"), name)) == set(CODE)
    assert store.fetched == [name, more[0], name]
    assert compared == []
    before = len(os.listdir("/proc/self/fd"))
    for bundle in more[1:]:
        step = shell("x")
        await cache.folder(step, bundle)
        cache.release(step.dispatch)
    assert len(os.listdir("/proc/self/fd")) <= before + 2


async def test_what_is_used_stays_and_the_longest_unused_goes(tmp_path: Path) -> None:
    store = Store()
    bundles = [store.put({"code.py": os.urandom(100 * KIB)}) for _ in range(5)]
    cache = cached(tmp_path, store, size_max=250 * KIB)
    running = shell("x")
    roots = [await cache.folder(running, bundles[0])]
    for bundle in bundles[1:]:
        step = shell("x")
        roots.append(await cache.folder(step, bundle))
        cache.release(step.dispatch)
    assert [root.exists() for root in roots] == [True, False, False, False, True]
    other = cached(tmp_path, store, size_max=1)  # another process, as far as the locks know
    await other.folder(shell("x"), bundles[1])
    assert roots[0].exists()
    assert not roots[4].exists()
    cache.release(running.dispatch)
    await other.folder(shell("x"), bundles[2])
    assert not roots[0].exists()


async def test_a_kill_while_a_bundle_is_made_leaves_nothing_that_counts(tmp_path: Path) -> None:
    script = f"""
import sys, trio
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from conftest import shell
from test_bundles import CODE, Store, cached
from swamp_worker.execution import unpack
def stop(*_):
    print("in the middle", flush=True)
    import time; time.sleep(60)
unpack.unpack = stop
store = Store()
name = store.put(CODE)
trio.run(cached(Path({str(tmp_path)!r}), store).folder, shell("x"), name)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == b"in the middle\n"
        process.send_signal(signal.SIGKILL)
    (left,) = (tmp_path / "bundles").iterdir()
    assert left.name.endswith(".part")
    store = Store()
    name = store.put(CODE)
    cache = cached(tmp_path, store)
    cache.sweep()
    assert list((tmp_path / "bundles").iterdir()) == []
    assert names(await cache.folder(shell("x"), name)) == set(CODE)


# ── what a zip can do ───────────────────────────────────────────────────────────────────────────────────────


def entry(name: str, *, mode: int = 0, flags: int = 0) -> Callable[[zipfile.ZipFile], None]:
    def add(archive: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        info.flag_bits |= flags
        archive.writestr(info, b"x")

    return add


BAD: dict[str, tuple[tuple[Callable[[zipfile.ZipFile], None], ...], str]] = {
    "upwards": ((entry("../evil.py"),), "leads out"),
    "upwards inside": ((entry("a/../../evil.py"),), "leads out"),
    "absolute": ((entry("/etc/evil.py"),), "leads out"),
    "here": ((entry("./a.py"),), "leads out"),
    "empty part": ((entry("a//b.py"),), "leads out"),
    "backslash": ((entry("a\\..\\b.py"),), "character"),
    "drive": ((entry("c:evil.py"),), "character"),
    "line feed": ((entry("a\nb.py"),), "character"),
    "long": ((entry("a" * 256),), "longer than 255"),
    "very long": ((entry("a/" * 600 + "b"),), "longer than 1024"),
    "link": ((entry("link", mode=stat.S_IFLNK | 0o777),), "neither a plain file"),
    "device": ((entry("pipe", mode=stat.S_IFIFO | 0o600),), "neither a plain file"),
    "case": ((entry("Inventory.py"), entry("inventory.py")), "two entries"),
    "composition": ((entry("caf\u00e9.py"), entry("cafe\u0301.py")), "two entries"),
    "folder case": ((entry("Data/a"), entry("data/b")), "spelled differently"),
    "file and folder": ((entry("a"), entry("a/b")), "a file and a folder"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_zip_with_a_bad_entry_writes_nothing(tmp_path: Path, kind: str) -> None:
    entries, words = BAD[kind]
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        entry("good.py")(archive)
        for add in entries:
            add(archive)
    bundle, into = tmp_path / "bundle.zip", tmp_path / "into"
    bundle.write_bytes(made.getvalue())
    into.mkdir()
    with pytest.raises(BadBundle, match=words):
        unpack(bundle, into)
    assert list(into.iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"bundle.zip", "into"}


def refused(tmp_path: Path, content: bytes, words: str) -> None:
    bundle, into = tmp_path / "bundle.zip", tmp_path / "into"
    bundle.write_bytes(content)
    into.mkdir()
    with pytest.raises(BadBundle, match=words):
        unpack(bundle, into)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("a.py", b"1")
        archive.writestr("a.py", b"2")
    refused(tmp_path, made.getvalue(), "two entries")


def test_more_bytes_than_a_bundle_may_hold_are_refused_before_one_is_written(tmp_path: Path) -> None:
    content = bytearray(packed({"a": b"x", "b": b"y"}))
    for found in re.finditer(b"PK\x01\x02", bytes(content)):
        content[found.start() + 24 : found.start() + 28] = (129 * MIB).to_bytes(4, "little")
    refused(tmp_path, bytes(content), "larger than 256 MiB unpacked")
    assert list((tmp_path / "into").iterdir()) == []


def test_a_file_that_is_larger_than_announced_is_refused(tmp_path: Path) -> None:
    content = bytearray(packed({"a": b"x" * 1000}))
    at = content.index(b"PK\x01\x02") + 24  # the announced size, in the directory
    content[at : at + 4] = (10).to_bytes(4, "little")
    refused(tmp_path, bytes(content), "cannot be unpacked|larger than announced")


def test_too_many_entries_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, packed({f"{n}": b"" for n in range(BUNDLE_ENTRIES_MAX + 1)}), "more than 10000 entries")


@pytest.mark.parametrize("content", [b"", b"PK", b"no zip at all, but long enough to look for its end"])
def test_what_is_no_zip_is_refused(tmp_path: Path, content: bytes) -> None:
    refused(tmp_path, content, "no zip|no plain zip")


def test_a_comment_hides_no_second_directory(tmp_path: Path) -> None:
    made = io.BytesIO(packed(CODE))
    with zipfile.ZipFile(made, "a") as archive:
        archive.comment = b"hello"
    refused(tmp_path, made.getvalue(), "no plain zip")


def test_flipped_bits_are_noticed(tmp_path: Path) -> None:
    content = bytearray(packed({"a": os.urandom(10_000)}))
    content[5_000] ^= 1
    refused(tmp_path, bytes(content), "cannot be unpacked")
