"""Vaults: where the files are, who can open them, what an exchange or a crash does, and which one is
meant."""

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from swamp_orch.api.services.vaults import VaultService
from swamp_orch.definitions.repository import Repository, find, init
from swamp_orch.vaults import VaultSet, is_infrastructure_key, vault_set
from swamp_orch.vaults.interface import VaultSettings
from swamp_orch.vaults.local_encryption import KEY_VARIABLE
from swamp_proto.errors import (
    AlreadyExists,
    Broken,
    InvalidDefinition,
    LocalError,
    NotFound,
    SwampError,
    UsageError,
)
from swamp_proto.limits import VAULT_SECRET_MAX

SECRET = "correct horse battery staple"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    init(tmp_path / "repo")
    return find(tmp_path / "repo")


@pytest.fixture
def vaults(repository: Repository) -> VaultSet:
    made = VaultSet(repository)
    made.create("local_encryption", "main")
    return made


def test_a_secret_comes_back(vaults: VaultSet) -> None:
    vault = vaults.choose(None)
    for key, value in (
        ("api-key", SECRET),
        ("API-KEY", "another"),
        ("empty", ""),
        ("ü.µ x%41", "\n – 日本 \0"),
        (".dot", "d"),
        ("pem", "-----BEGIN\n" * 2000),
    ):
        assert vault.put(key, value, overwrite=False) is False
        assert vault.get(key) == value
        assert vaults.find("main").get(key) == value
    assert vault.keys() == sorted(["api-key", "API-KEY", "empty", "ü.µ x%41", ".dot", "pem"])
    assert vault.put("api-key", "new", overwrite=True) is True
    assert vault.get("api-key") == "new"
    assert vault.delete("api-key") is True
    assert vault.delete("api-key") is False
    with pytest.raises(NotFound, match="Secret 'api-key' not found in vault 'main'"):
        vault.get("api-key")
    assert vault.get("API-KEY") == "another"


def test_overwrite_needs_to_be_asked_for(vaults: VaultSet) -> None:
    vault = vaults.choose("main")
    vault.put("k", "one", overwrite=False)
    with pytest.raises(AlreadyExists, match=r"Secret 'k' already exists in vault 'main'\."):
        vault.put("k", "two", overwrite=False)
    assert vault.get("k") == "one"


@pytest.mark.parametrize("key", ["", "a/b", "a\\b", "..", "a..b", "a\0b", "a\nb", "k" * 201])
def test_keys_no_vault_should_carry(vaults: VaultSet, key: str) -> None:
    vault = vaults.choose("main")
    for call in (vault.get, vault.delete, lambda k: vault.put(k, "x", overwrite=True)):
        with pytest.raises(LocalError, match="the key"):
            call(key)


def test_values_out_of_bounds(vaults: VaultSet) -> None:
    vault = vaults.choose("main")
    with pytest.raises(LocalError, match="bytes long"):
        vault.put("k", "x" * (VAULT_SECRET_MAX + 1), overwrite=True)
    with pytest.raises(LocalError, match="not Unicode"):
        vault.put("k", "\ud800", overwrite=True)
    assert vault.keys() == []


def test_files_are_private_and_hold_no_plaintext(repository: Repository, vaults: VaultSet) -> None:
    vaults.choose(None).put("api-key", SECRET, overwrite=False)
    files = [path for path in repository.secrets.rglob("*") if path.is_file()]
    assert len(files) == 3
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        assert SECRET.encode() not in path.read_bytes()
        assert str(repository.root).encode() not in path.read_bytes()
    for path in repository.secrets.rglob("*"):
        assert not path.is_dir() or stat.S_IMODE(path.stat().st_mode) == 0o700, path
    config = (repository.vaults / "local_encryption" / "main.yaml").read_text()
    assert str(repository.root) not in config


def test_w7_moves_with_the_repository(repository: Repository, vaults: VaultSet, tmp_path: Path) -> None:
    vaults.choose(None).put("api-key", SECRET, overwrite=False)
    shutil.move(repository.root, tmp_path / "elsewhere")
    assert VaultSet(find(tmp_path / "elsewhere")).choose(None).get("api-key") == SECRET


def test_w8_files_cannot_be_exchanged(repository: Repository, vaults: VaultSet) -> None:
    vault = vaults.choose(None)
    vault.put("low", "public", overwrite=False)
    vault.put("high", SECRET, overwrite=False)
    folder = repository.secrets / "local_encryption" / "main"
    shutil.copy(folder / "high.enc", folder / "low.enc")
    with pytest.raises(Broken, match=r"secret 'low' of vault 'main' cannot be read: .*low\.enc") as caught:
        vault.get("low")
    assert caught.value.hint == "swamp vault put main low"
    assert vault.get("high") == SECRET


def test_w8_the_wrapping_key_is_not_beside_the_ciphertext(repository: Repository, vaults: VaultSet) -> None:
    vaults.choose(None).put("k", SECRET, overwrite=False)
    folder = repository.secrets / "local_encryption" / "main"
    key = repository.secrets / ".keys" / "local_encryption" / "main"
    assert sorted(path.name for path in folder.iterdir()) == ["data-key", "k.enc"]
    key.rename(key.with_suffix(".gone"))
    with pytest.raises(Broken, match="the key of vault 'main' is missing"):
        vaults.choose(None).get("k")
    key.write_text("00" * 32 + "\n")
    with pytest.raises(Broken, match="is not the one vault 'main' was made with"):
        vaults.choose(None).get("k")
    key.write_text("rubbish")
    with pytest.raises(Broken, match="64 hex digits"):
        vaults.choose(None).get("k")


def test_key_from_the_environment(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "ab" * 32)
    vaults = VaultSet(repository)
    vaults.create("local_encryption", "ci")
    vaults.choose(None).put("k", SECRET, overwrite=False)
    assert not (repository.secrets / ".keys").exists()
    assert vaults.choose(None).get("k") == SECRET
    monkeypatch.setenv(KEY_VARIABLE, "cd" * 32)
    with pytest.raises(Broken, match=f"the key in {KEY_VARIABLE} is not the one"):
        vaults.choose(None).get("k")
    monkeypatch.delenv(KEY_VARIABLE)
    with pytest.raises(Broken, match=f"{KEY_VARIABLE}, which is not set"):
        vaults.choose(None).get("k")


def test_key_file_elsewhere(repository: Repository, tmp_path: Path) -> None:
    key = tmp_path / "keys" / "vault.key"
    vaults = VaultSet(repository)
    vaults.create("local_encryption", "main", {"keyFile": str(key)})
    vaults.choose(None).put("k", SECRET, overwrite=False)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert not (repository.secrets / ".keys").exists()
    key.unlink()
    with pytest.raises(Broken, match="is missing"):
        vaults.choose(None).get("k")
    with pytest.raises(LocalError, match="has no setting 'keyfile'"):
        vaults.create("local_encryption", "other", {"keyfile": str(key)})


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "not json", "other version", "deep"])
@pytest.mark.parametrize("name", ["k.enc", "data-key"])
def test_a_damaged_file_is_said_plainly(
    repository: Repository, vaults: VaultSet, damage: str, name: str
) -> None:
    vaults.choose(None).put("k", SECRET, overwrite=False)
    path = repository.secrets / "local_encryption" / "main" / name
    raw = path.read_bytes()
    document = json.loads(raw)
    field = "data" if name == "k.enc" else "wrapped"
    path.write_bytes(
        {
            "empty": b"",
            "cut": raw[: len(raw) // 2],
            "flipped": json.dumps(document | {field: "AAAA" + document[field][4:]}).encode(),
            "not json": b"\xff\xfe",
            "other version": json.dumps(document | {"version": 9}).encode(),
            "deep": b"[" * 100_000,
        }[damage]
    )
    with pytest.raises(Broken, match="is damaged") as caught:
        vaults.choose(None).get("k")
    assert SECRET not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_lost_data_key_is_not_replaced_silently(repository: Repository, vaults: VaultSet) -> None:
    vaults.choose(None).put("k", SECRET, overwrite=False)
    (repository.secrets / "local_encryption" / "main" / "data-key").unlink()
    for call in (lambda v: v.get("k"), lambda v: v.put("j", "x", overwrite=True)):
        with pytest.raises(Broken, match="has secrets but no data key"):
            call(vaults.choose(None))


def test_a_clone_without_secrets_starts_empty(repository: Repository, vaults: VaultSet) -> None:
    """The configuration is in git, the secrets are not."""
    vaults.choose(None).put("k", SECRET, overwrite=False)
    shutil.rmtree(repository.secrets)
    vault = vaults.choose(None)
    assert vault.keys() == []
    with pytest.raises(NotFound):
        vault.get("k")
    vault.put("k", "again", overwrite=False)
    assert vaults.choose(None).get("k") == "again"


def test_a_crash_in_the_middle_of_a_write_leaves_the_old_secret(
    repository: Repository, vaults: VaultSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = vaults.choose(None)
    vault.put("k", "old", overwrite=False)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Broken, match="no space left"):
        vault.put("k", "new", overwrite=True)
    monkeypatch.undo()
    assert vault.get("k") == "old"
    assert vault.keys() == ["k"]


WRITER = """
import sys
from pathlib import Path
from swamp_orch.definitions.repository import find
from swamp_orch.vaults import VaultSet
vault = VaultSet(find(Path(sys.argv[1]))).choose(None)
sys.stdin.read(1)
for n in range(20):
    vault.put(f"{sys.argv[2]}-{n}", f"value {sys.argv[2]} {n}", overwrite=False)
    vault.put("shared", sys.argv[2], overwrite=True)
"""


def test_two_processes_lose_nothing(repository: Repository) -> None:
    """Also the first use: both find no data key and make one."""
    vaults = VaultSet(repository)
    vaults.create("local_encryption", "main")
    shutil.rmtree(repository.secrets)
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, repository.root, name], stdin=subprocess.PIPE)
        for name in ("a", "b")
    ]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(b"x")
        writer.stdin.close()
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    vault = vaults.choose(None)
    assert vault.get("shared") in ("a", "b")
    names = [name for name in vault.keys() if name != "shared"]  # noqa: SIM118 - not a dict
    assert {name: vault.get(name) for name in names} == {
        f"{name}-{n}": f"value {name} {n}" for name in "ab" for n in range(20)
    }


# ── which vault is meant ────────────────────────────────────────────────────────────────────────────────────


def test_none_one_several_unknown(repository: Repository) -> None:
    vaults = VaultSet(repository)
    with pytest.raises(NotFound) as none:
        vaults.choose(None, purpose="the token plaintext must be stored in a vault")
    assert str(none.value) == (
        "No vaults are configured — the token plaintext must be stored in a vault. "
        "Create one with: swamp vault create <type> <name>"
    )
    with pytest.raises(NotFound) as unknown:
        vaults.choose("x")
    assert unknown.value.hint == "swamp vault create local_encryption <name>"
    vaults.create("local_encryption", "b")
    assert vaults.choose(None).name == "b"
    vaults.create("local_encryption", "a")
    assert vaults.names() == ["a", "b"]
    with pytest.raises(UsageError) as several:
        vaults.choose(None)
    assert str(several.value) == "Multiple vaults are configured (a, b). Pass --vault <name> to choose one."
    with pytest.raises(NotFound) as unknown:
        vaults.choose("aa")
    assert str(unknown.value) == "Vault 'aa' is not configured. Available vaults: a, b"
    assert unknown.value.hint == "did you mean a?"
    with pytest.raises(NotFound, match=r"Vault 'zz' not found\. Available vaults: a, b"):
        vaults.find("zz")


def test_create_refuses(vaults: VaultSet) -> None:
    with pytest.raises(AlreadyExists, match="Vault 'main' already exists"):
        vaults.create("local_encryption", "main")
    with pytest.raises(LocalError, match="cannot name a vault"):
        vaults.create("local_encryption", "../x")
    with pytest.raises(NotFound, match="Vault type 'local_encrypt' not found") as unknown:
        vaults.create("local_encrypt", "y")
    assert unknown.value.hint == "did you mean local_encryption?"
    assert vaults.names() == ["main"]


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("name: main\ntype: local_encryption\nconfig: {\n", 3, ""),
        ("name: main\nkind: x\n", 2, "unknown key `kind`"),
        ("id: x\nname: other\n", 2, "`name` is 'other'"),
        ("name: main\ntype: aws\n", 2, "`type` is 'aws'"),
        ("name: main\nconfig: [1]\n", 2, "`config` must be a map"),
        ("name: main\nconfig:\n  keyfile: x\n", 2, "no setting 'keyfile'"),
        ("name: main\nid: 5\n", 2, "`id` must be text"),
        ("- main\n", 0, "a vault is a map"),
    ],
)
def test_a_wrong_configuration_names_file_and_line(
    repository: Repository, vaults: VaultSet, text: str, line: int, problem: str
) -> None:
    (repository.vaults / "local_encryption" / "main.yaml").write_text(text)
    with pytest.raises(InvalidDefinition) as caught:
        vaults.choose(None)
    assert str(caught.value).startswith(f"vaults/local_encryption/main.yaml:{line or ''}")
    assert problem in str(caught.value)
    with pytest.raises(InvalidDefinition):
        VaultService(repository).handlers()["vault.list"]({})


def test_two_files_of_one_name(repository: Repository, vaults: VaultSet) -> None:
    (repository.vaults / "aws").mkdir()
    (repository.vaults / "aws" / "main.yaml").write_text("name: main\n")
    with pytest.raises(InvalidDefinition, match="are both named 'main'"):
        vaults.find("main")


class Elsewhere:
    """A plugged-in type, as a package would have it."""

    title = "Elsewhere"

    def check(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        return config

    def create(self, settings: VaultSettings) -> None:
        if "broken" in settings.config:
            raise ConnectionError("nobody there")

    def open(self, settings: VaultSettings) -> Any:
        raise ConnectionError("nobody there")


def test_a_plugged_in_type(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        def load(self) -> type[Elsewhere]:
            return Elsewhere

    monkeypatch.setattr(vault_set, "_entry_points", lambda: {"elsewhere": Point()})
    vaults = VaultSet(repository)
    assert vault_set.type_names() == ["elsewhere", "local_encryption"]
    with pytest.raises(Broken, match="the vault type 'elsewhere' failed: ConnectionError: nobody there"):
        vaults.create("elsewhere", "far", {"broken": True})
    assert vaults.names() == []
    vaults.create("elsewhere", "far", {"region": "ü", "deep": {"a": [1, None]}})
    assert vaults.settings("far").config == {"region": "ü", "deep": {"a": [1, None]}}
    with pytest.raises(Broken, match="nobody there"):
        vaults.choose("far")


def test_infrastructure_keys() -> None:
    assert is_infrastructure_key("worker-token-ci")
    assert not is_infrastructure_key("api-key")


# ── the calls ───────────────────────────────────────────────────────────────────────────────────────────────


def test_the_calls_keep_their_shapes(repository: Repository) -> None:
    call = VaultService(repository).handlers()
    made = call["vault.create"]({"type": "local_encryption", "name": "sandbox-vault"})
    assert list(made) == ["id", "name", "type", "typeName", "config"]
    assert (made["typeName"], made["config"]) == ("Local Encryption", {})
    put = call["vault.put"]({"vault": "sandbox-vault", "key": "k", "value": SECRET})
    assert list(put) == ["vaultName", "secretKey", "vaultType", "overwritten", "timestamp", "labels"]
    assert put["overwritten"] is False
    assert call["vault.put"]({"vault": "sandbox-vault", "key": "k", "value": SECRET, "overwrite": True})[
        "overwritten"
    ]
    assert call["vault.read_secret"]({"vault": "sandbox-vault", "key": "k"}) == {
        "vaultName": "sandbox-vault",
        "secretKey": "k",
        "vaultType": "local_encryption",
        "value": SECRET,
    }
    assert call["vault.list_keys"]({}) == {
        "vaultName": "sandbox-vault",
        "vaultType": "local_encryption",
        "secretKeys": ["k"],
        "count": 1,
    }
    got = call["vault.get"]({"name": "sandbox-vault"})
    assert list(got) == ["id", "name", "type", "config", "createdAt", "storagePath"]
    assert got["id"] == made["id"]
    assert got["storagePath"] == ".swamp/secrets/local_encryption/sandbox-vault"
    listed = call["vault.list"]({"query": "SAND"})
    assert listed["total"] == 1
    assert listed["results"][0]["name"] == "sandbox-vault"
    assert call["vault.list"]({"query": "zzz"})["total"] == 0
    deleted = call["vault.delete"]({"vault": "sandbox-vault", "key": "k"})
    assert deleted["deleted"] is True and "noOp" not in deleted
    assert call["vault.delete"]({"vault": "sandbox-vault", "key": "k"})["noOp"] is True


def test_no_call_but_one_answers_a_value(repository: Repository) -> None:
    call = VaultService(repository).handlers()
    call["vault.create"]({"type": "local_encryption", "name": "v"})
    answers: list[Any] = [call["vault.put"]({"vault": "v", "key": "k", "value": SECRET})]
    answers += [
        call["vault.get"]({"name": "v"}),
        call["vault.list"]({}),
        call["vault.list_keys"]({"vault": "v"}),
    ]
    with pytest.raises(SwampError) as caught:
        call["vault.put"]({"vault": "v", "key": "k", "value": SECRET})
    assert SECRET not in repr(answers) + repr(caught.value) + repr(VaultSet(repository).choose(None))


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = "import sys, swamp_orch.vaults, swamp_orch.api.services.vaults; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert {"cryptography", "ruamel", "cel_expr_python", "trio"}.isdisjoint(loaded.split())


def test_threads_share_one_vault(vaults: VaultSet) -> None:
    from concurrent.futures import ThreadPoolExecutor

    vault = vaults.choose(None)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: vault.put(f"k{n}", str(n), overwrite=False), range(40)))
        assert list(pool.map(lambda n: vault.get(f"k{n}"), range(40))) == [str(n) for n in range(40)]
