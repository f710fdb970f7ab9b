"""Finding and making repositories."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swamp_orch.definitions import repository as subject
from swamp_orch.definitions.repository import MARKER, find, init
from swamp_proto.errors import AlreadyExists, Broken, Conflict, InvalidDefinition, NotFound, Unsupported
from swamp_proto.version import SWAMP_VERSION


def test_init_makes_everything_and_says_so(tmp_path: Path) -> None:
    answer = init(tmp_path / "a" / "b", now_ms=1_750_000_000_961)
    root = tmp_path / "a" / "b"
    assert answer["path"] == str(root)
    assert answer["gitignoreAction"] == "created"
    assert answer["initializedAt"] == "2025-06-15T15:06:40.961Z"
    assert answer["version"] == SWAMP_VERSION
    for folder in ("models", "workflows", "vaults", "extensions/models", ".swamp"):
        assert (root / folder).is_dir()
    assert (root / ".swamp").stat().st_mode & 0o777 == 0o700
    assert ".swamp/" in (root / ".gitignore").read_text().splitlines()
    lines = (root / MARKER).read_text().splitlines()
    assert [line.partition(":")[0] for line in lines] == ["swampVersion", "initializedAt", "repoId"]
    found = find(root)
    assert found.repo_id == answer["repoId"]
    assert found.root == root


def test_find_walks_up_and_can_be_told_not_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    init(tmp_path)
    deep = tmp_path / "x" / "y"
    deep.mkdir(parents=True)
    assert find(deep).root == tmp_path
    monkeypatch.chdir(deep)
    assert find(None).root == tmp_path
    with pytest.raises(NotFound) as caught:
        find(deep, walk=False)
    assert caught.value.hint == f"swamp repo init {deep}"


def test_not_found_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"is not a swamp repository: there is no \.swamp\.yaml") as caught:
        find(tmp_path)
    assert "swamp repo init" in (caught.value.hint or "")
    with pytest.raises(NotFound, match="is not a folder"):
        find(tmp_path / "nothing")


def test_init_again_needs_force_and_keeps_the_id(tmp_path: Path) -> None:
    first = init(tmp_path)
    before = (tmp_path / MARKER).read_text()
    with pytest.raises(AlreadyExists, match="Repository already initialized at") as caught:
        init(tmp_path)
    assert "--force" in (caught.value.hint or "")
    assert (tmp_path / MARKER).read_text() == before
    (tmp_path / "vaults").rmdir()
    again = init(tmp_path, force=True)
    assert again["repoId"] == first["repoId"]
    assert again["initializedAt"] == first["initializedAt"]
    assert again["gitignoreAction"] == "unchanged"
    assert (tmp_path / "vaults").is_dir()
    assert find(tmp_path).repo_id == first["repoId"]


def test_gitignore_block_is_managed_and_the_rest_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("*.pyc\r\nno-newline")
    assert init(tmp_path)["gitignoreAction"] == "updated"
    text = (tmp_path / ".gitignore").read_bytes().decode()
    assert text.startswith("*.pyc\r\nno-newline\n\n# BEGIN swamp")
    (tmp_path / ".gitignore").write_text(text.replace(".swamp/\n", "") + "after\n")
    assert init(tmp_path, force=True)["gitignoreAction"] == "updated"
    assert (tmp_path / ".gitignore").read_text() == text.replace("\r\n", "\n") + "after\n"


def test_a_marker_in_another_style_is_read_by_the_library(tmp_path: Path) -> None:
    answer = init(tmp_path)
    (tmp_path / MARKER).write_text(
        f'{{"repoId": "{answer["repoId"]}", "swampVersion": "0.1.0", "tools": [a, b]}}\n'
    )
    assert find(tmp_path).repo_id == answer["repoId"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("swampVersion: 0.1.0\n", "`repoId` is missing"),
        ("repoId: nonsense\n", "`repoId` is not a UUID: nonsense"),
        ("repoId: [\n", ".swamp.yaml:1: a bracket is never closed, or a comma is missing: `]`"),
        ("", "`repoId` is missing"),
        ("- a\n", "`repoId` is missing"),
    ],
)
def test_a_broken_marker_is_named(tmp_path: Path, text: str, problem: str) -> None:
    init(tmp_path)
    (tmp_path / MARKER).write_text(text)
    with pytest.raises(InvalidDefinition) as caught:
        find(tmp_path)
    assert problem in caught.value.message
    assert str(tmp_path / MARKER) in caught.value.message
    init(tmp_path, force=True)
    find(tmp_path)


def test_a_repository_of_a_newer_swamp_is_refused_with_both_versions(tmp_path: Path) -> None:
    answer = init(tmp_path)
    (tmp_path / MARKER).write_text(f"swampVersion: 99.0.1\nrepoId: {answer['repoId']}\n")
    for attempt in (lambda: find(tmp_path), lambda: init(tmp_path, force=True)):
        with pytest.raises(Unsupported) as caught:
            attempt()
        assert "99.0.1" in caught.value.message
        assert SWAMP_VERSION in caught.value.message


@pytest.mark.skipif(os.getuid() == 0, reason="root writes anywhere")
def test_a_read_only_folder_is_one_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(Broken, match="permission denied") as caught:
            init(tmp_path)
        assert caught.value.hint
        assert list(tmp_path.iterdir()) == []
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_that_cannot_be_made_leaves_no_marker(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("in the way")
    with pytest.raises(Broken, match="cannot make the folder"):
        init(tmp_path)
    assert not (tmp_path / MARKER).exists()
    with pytest.raises(Conflict, match="is not a folder"):
        init(tmp_path / "models")


def test_socket_path_falls_back_to_a_private_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    init(tmp_path / "short")
    short = find(tmp_path / "short")
    if len(str(tmp_path)) < 70:
        assert short.socket_path() == tmp_path / "short" / ".swamp" / "serve.sock"
    long = tmp_path / ("x" * 90)
    init(long)
    runtime = tmp_path / "run"
    runtime.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    found = find(long).prepare_socket_folder()
    assert found.parent == runtime / "swamp"
    assert found.parent.stat().st_mode & 0o777 == 0o700
    assert found == find(long).socket_path()
    found.parent.chmod(0o755)
    with pytest.raises(Conflict, match="not a private folder"):
        find(long).prepare_socket_folder()


def test_find_imports_no_yaml_library(tmp_path: Path) -> None:
    init(tmp_path)
    code = (
        "import sys; from pathlib import Path; from swamp_orch.definitions.repository import find; "
        f"find(Path({str(tmp_path)!r})); "
        "known = ('ruamel', 'trio', 'cattrs', 'structlog', 'cryptography'); "
        "heavy = [name for name in known if name in sys.modules]; "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@given(st.text(max_size=40))
def test_what_the_writer_of_the_marker_writes_its_reader_reads(text: str) -> None:
    line = f"key: {subject._scalar(text)}"
    if "\n" in line or "\r" in line or not line.isprintable():
        return
    match = subject._LINE.fullmatch(line)
    assert match is not None
    assert next(group for group in match.groups()[1:] if group is not None) == text.replace("'", "’")
