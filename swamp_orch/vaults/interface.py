"""What a vault is: the port every vault type implements, and how a package adds one.

Rules:
1. A vault's configuration is a file for git and holds no secret. What a type keeps at run time is under
   `.swamp/secrets/<type>/<vault>/`, or wherever the service is that it talks to.
2. A vault type comes from a package's entry point in the group `swamp.vaults`: its name is the type, its
   value an object (or a class without parameters) with the attributes of `VaultType`.
3. Vaults are synchronous and may be used from several threads and processes at once. Their errors are
   `SwampError`s and never contain a secret's value.

It does not know who may read which secret: that is decided where a step asks.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import attrs

from swamp_proto.errors import LocalError
from swamp_proto.limits import VAULT_KEY_LENGTH_MAX

ENTRY_POINTS: Final = "swamp.vaults"
INFRASTRUCTURE_PREFIXES: Final = ("worker-token-", "server-token-", "access-token-")
"""Keys swamp itself stores under. No step may read or write them, whatever vault they are in."""


@attrs.frozen
class VaultSettings:
    """One configured vault: `vaults/{type}/{name}.yaml` and where it may keep things."""

    name: str
    type: str
    id: str
    config: Mapping[str, Any]
    created_at: str  # ISO 8601
    file: Path  # the configuration
    root: Path  # of the repository; relative paths in `config` start here
    storage: Path  # `.swamp/secrets/<type>/<name>`; may not exist yet
    keys: Path  # `.swamp/secrets/.keys`: for what must not lie beside the ciphertext


class Vault(Protocol):
    """Secrets by key. Keys and values are text."""

    @property
    def name(self) -> str: ...

    @property
    def type(self) -> str: ...

    def get(self, key: str) -> str:
        """Raises `NotFound`, or `Broken` when it is there and cannot be read."""
        ...

    def put(self, key: str, value: str, overwrite: bool) -> bool:
        """Store durably; whether there was one before. Raises `AlreadyExists` without `overwrite`."""
        ...

    def delete(self, key: str) -> bool:
        """Whether there was one."""
        ...

    def keys(self) -> list[str]:
        """Sorted."""
        ...


class VaultType(Protocol):
    """A kind of vault."""

    title: str  # for people: `Local Encryption`

    def check(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """The configuration to store for a new vault. Raises `LocalError` for what it does not know."""
        ...

    def create(self, settings: VaultSettings) -> None:
        """Make what a new vault needs, before its configuration file is written. May be called again."""
        ...

    def open(self, settings: VaultSettings) -> Vault:
        """The vault. Cheap: it is called for every command; secrets are touched later."""
        ...


def check_key(key: str) -> None:
    """Refuse what no vault type should have to carry. Raises `LocalError`."""
    problem = ""
    if not key:
        problem = "is empty"
    elif len(key) > VAULT_KEY_LENGTH_MAX:
        problem = f"is longer than {VAULT_KEY_LENGTH_MAX} characters"
    elif "/" in key or "\\" in key or ".." in key:
        problem = "contains `/`, `\\` or `..`"
    elif not key.isprintable():
        problem = "contains a character that cannot be printed"
    if problem:
        raise LocalError(f"the key {key[:80]!r} {problem}", hint="use letters, digits, `-`, `_` and `.`")


def is_infrastructure_key(key: str) -> bool:
    """Whether swamp itself stores under this key (worker and access tokens)."""
    return key.startswith(INFRASTRUCTURE_PREFIXES)
