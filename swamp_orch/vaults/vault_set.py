"""The vaults of a repository: their configuration files, and which of them is meant.

Rules: a vault is `vaults/{type}/{name}.yaml`, a file for git without secrets; the file's name and folder say
name and type, and a file that says otherwise inside is an error with its line. Nothing is chosen silently:
one vault is the default, several need a name. Types other than the built-in one come from entry points,
looked up only when a vault of theirs is used.

It does not know what is stored in a vault.
"""

import difflib
import functools
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from swamp_orch.definitions.files import write_atomically
from swamp_orch.definitions.repository import Repository
from swamp_orch.store.bookkeeping import iso
from swamp_orch.vaults.interface import ENTRY_POINTS, Vault, VaultSettings, VaultType
from swamp_proto.errors import (
    AlreadyExists,
    Broken,
    InvalidDefinition,
    LocalError,
    NotFound,
    SwampError,
    UsageError,
)
from swamp_proto.ids import is_name

_BUILT_IN: Final = "local_encryption"
_FIELDS: Final = ("id", "name", "type", "config", "createdAt")
CREATE_HINT: Final = "swamp vault create local_encryption <name>"


class VaultSet:
    """Thread-safe; reads the files anew for every question."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def names(self) -> list[str]:
        """Names of the configured vaults, sorted. Reads no file's content."""
        return sorted(path.stem for path in self._files())

    def choose(self, name: str | None, *, purpose: str = "") -> Vault:
        """The vault called `name`, or the only one there is. `purpose` (`the token plaintext must be stored
        in a vault`) explains in the error why one is needed. Raises `NotFound`, `UsageError`,
        `InvalidDefinition`."""
        names = self.names()
        if name is None:
            if not names:
                reason = f" — {purpose}" if purpose else ""
                raise NotFound(
                    f"No vaults are configured{reason}. Create one with: swamp vault create <type> <name>",
                    hint=CREATE_HINT,
                )
            if len(names) > 1:
                raise UsageError(
                    f"Multiple vaults are configured ({', '.join(names)}). "
                    "Pass --vault <name> to choose one.",
                    hint=f"--vault {names[0]}",
                )
            name = names[0]
        return self._open(self._settings(name, f"Vault '{name}' is not configured."))

    def find(self, name: str) -> Vault:
        """The vault called `name`. Raises `NotFound`, `InvalidDefinition`."""
        return self._open(self.settings(name))

    def settings(self, name: str) -> VaultSettings:
        """The configuration of the vault called `name`. Raises `NotFound`, `InvalidDefinition`."""
        return self._settings(name, f"Vault '{name}' not found.")

    def all(self) -> Sequence[VaultSettings]:
        """Configurations of all vaults, by name. Raises `InvalidDefinition` for the first file that is
        wrong."""
        return [self.settings(name) for name in self.names()]

    def create(self, type_name: str, name: str, config: Mapping[str, Any] | None = None) -> VaultSettings:
        """Make a vault: first what it needs, then its file, so that a file never names a vault that is not
        there. Raises `LocalError`, `AlreadyExists`, `NotFound` for an unknown type."""
        if not is_name(name):
            raise LocalError(
                f"{name!r} cannot name a vault",
                hint="up to 64 lower case letters, digits, `-` and `_`, the first one a letter or digit",
            )
        kind = vault_type(type_name)
        if name in self.names():
            raise AlreadyExists(f"Vault '{name}' already exists.", hint=f"swamp vault get {name}")
        settings = self._place(type_name, name, kind.check(config or {}))
        with _Translated(type_name):
            kind.create(settings)
        write_atomically(settings.file, _document(settings), new=True)
        return settings

    def title(self, type_name: str) -> str:
        """A type's name for people."""
        return vault_type(type_name).title

    def _open(self, settings: VaultSettings) -> Vault:
        with _Translated(settings.type):
            return vault_type(settings.type).open(settings)

    def _files(self) -> list[Path]:
        return [path for path in self._repository.vaults.glob("*/*.yaml") if not path.name.startswith(".")]

    def _settings(self, name: str, unknown: str) -> VaultSettings:
        found = [path for path in self._files() if path.stem == name]
        if not found:
            names = self.names()
            if not names:
                raise NotFound(f"{unknown} No vaults are configured.", hint=CREATE_HINT)
            near = difflib.get_close_matches(name, names, n=1)
            raise NotFound(
                f"{unknown} Available vaults: {', '.join(names)}",
                hint=f"did you mean {near[0]}?" if near else "swamp vault list",
            )
        if len(found) > 1:
            files = " and ".join(str(path.relative_to(self._repository.root)) for path in sorted(found))
            raise InvalidDefinition(f"{files} are both named {name!r}", hint="rename one of the two files")
        return self._read(found[0])

    def _read(self, path: Path) -> VaultSettings:
        from swamp_orch.definitions.yaml_source import load

        data, source = load(path, root=self._repository.root)
        if not isinstance(data, dict):
            raise InvalidDefinition(f"{source.at()}: a vault is a map with the keys {', '.join(_FIELDS)}")
        for key in data:
            if key not in _FIELDS:
                near = difflib.get_close_matches(key, _FIELDS, n=1)
                hint = f"did you mean `{near[0]}`?" if near else f"a vault has the keys {', '.join(_FIELDS)}"
                raise InvalidDefinition(f"{source.at(key)}: unknown key `{key}`", hint=hint)
        for key, expected in (("name", path.stem), ("type", path.parent.name)):
            if data.get(key, expected) != expected:
                raise InvalidDefinition(
                    f"{source.at(key)}: `{key}` is {data[key]!r}, but the file's place says {expected!r}",
                    hint="a vault's file is vaults/{type}/{name}.yaml",
                )
        config = data.get("config") or {}
        if not isinstance(config, dict):
            raise InvalidDefinition(f"{source.at('config')}: `config` must be a map")
        for key in ("id", "createdAt"):
            if not isinstance(data.get(key, ""), str):
                raise InvalidDefinition(f"{source.at(key)}: `{key}` must be text")
        try:
            config = vault_type(path.parent.name).check(config)
        except LocalError as error:
            raise InvalidDefinition(f"{source.at('config')}: {error.message}", hint=error.hint) from None
        return self._place(
            path.parent.name,
            path.stem,
            config,
            identity=data.get("id", ""),
            created=data.get("createdAt", ""),
        )

    def _place(
        self, type_name: str, name: str, config: Mapping[str, Any], *, identity: str = "", created: str = ""
    ) -> VaultSettings:
        repository = self._repository
        return VaultSettings(
            name=name,
            type=type_name,
            id=identity or str(uuid.uuid4()),
            config=config,
            created_at=created or iso(time.time_ns() // 1_000_000),
            file=repository.vaults / type_name / f"{name}.yaml",
            root=repository.root,
            storage=repository.secrets / type_name / name,
            keys=repository.secrets / ".keys",
        )


def type_names() -> list[str]:
    """Vault types there are: the built-in one and those of installed packages."""
    return sorted({_BUILT_IN, *_entry_points()})


def vault_type(name: str) -> VaultType:
    """The type called `name`. Raises `NotFound`, and `Broken` when its package does not load."""
    if name == _BUILT_IN:
        from swamp_orch.vaults.local_encryption import LocalEncryption

        return LocalEncryption()
    found = _entry_points().get(name)
    if found is None:
        near = difflib.get_close_matches(name, type_names(), n=1, cutoff=0.4)
        raise NotFound(
            f"Vault type '{name}' not found. Available types: {', '.join(type_names())}",
            hint=f"did you mean {near[0]}?" if near else "install the package that provides it",
        )
    with _Translated(name):
        loaded = found.load()
        kind: VaultType = loaded() if isinstance(loaded, type) else loaded
        return kind


@functools.cache
def _entry_points() -> dict[str, Any]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


class _Translated:
    """Whatever a plugged-in type raises that is not ours becomes `Broken`, naming the type."""

    def __init__(self, type_name: str) -> None:
        self._type = type_name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, SwampError):
            raise Broken(f"the vault type {self._type!r} failed: {type(error).__name__}: {error}") from error


def _document(settings: VaultSettings) -> str:
    """The configuration file. JSON's flow style is YAML."""
    fields = {
        "id": settings.id,
        "name": settings.name,
        "type": settings.type,
        "config": dict(settings.config),
        "createdAt": settings.created_at,
    }
    return "".join(
        f"{key}: {json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value}\n"
        for key, value in fields.items()
    )
