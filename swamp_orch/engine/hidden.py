"""Sensitive fields of outputs: each is in a vault, and in the record stands where.

    {"user": "ada", "password": "${{ vault.get(\"main\", \"acme-db-…-make-account-ada-password\") }}"}

Rules that hold here:

1. Running code puts the value into the vault first (`put_secret` for the vault `@SPEC`), and then writes the record without it. What comes
   in such a field all the same is never stored: `Hidden.of` puts the reference there, or `***` where the vault has nothing.
2. The key is made of type, model, method, output, record and field, so that a newer version of a record has a newer secret, and no other
   record's.
3. The vault is the one that the step's `dataOutputOverrides` names for the output, else the only one of the repository.

A reference in a record is text like any other: no expression in it is ever evaluated. Who wants the value names vault and key.
"""

import json
import re
from collections.abc import Callable
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from swamp_proto.capabilities import CallRefused
from swamp_proto.limits import VAULT_KEY_LENGTH_MAX
from swamp_proto.messages.capability import CallCode
from swamp_proto.messages.dispatch import Output
from swamp_proto.redaction import MASKED

if TYPE_CHECKING:
    from swamp_orch.engine.orders import Order
    from swamp_orch.vaults import VaultSet
    from swamp_orch.vaults.interface import Vault

OF_OUTPUT: Final = "@"  # before the name of an output, where a vault is asked for
_PURPOSE: Final = "the sensitive fields of an output must be stored in a vault"
_DIGEST: Final = 12


class Hidden:
    """Of one repository. Blocking."""

    def __init__(self, vaults: "Callable[[], VaultSet]") -> None:
        self._vaults = vaults

    def place(self, order: "Order", spec: str, where: str) -> "tuple[Vault, str]":
        """Vault and key for a field, which `where` names as a JSON list of record and path. Raises `CallRefused`, and what choosing a
        vault raises."""
        output = order.model_type.outputs.get(spec)
        if output is None or not output.hides:
            raise CallRefused(
                CallCode.INVALID, f"output {spec!r} of {order.model.type} has no sensitive field"
            )
        try:
            name, path = json.loads(where)
            return self._vault(order, spec), key_of(order, spec, str(name), str(path))
        except (ValueError, TypeError):
            raise CallRefused(CallCode.INVALID, "a sensitive field is named by record and path") from None

    def instead(self, order: "Order", output: Output) -> Callable[[str, str], str]:
        """What stands in the record for a field of it."""
        from swamp_proto.errors import SwampError

        try:
            vault = self._vault(order, output.spec)
            known = frozenset(vault.keys())
        except SwampError:  # then nothing was put there, either
            return lambda path, text: MASKED

        def of(path: str, text: str) -> str:
            key = key_of(order, output.spec, output.name, path)
            return f'${{{{ vault.get("{vault.name}", "{key}") }}}}' if key in known else MASKED

        return of

    def _vault(self, order: "Order", spec: str) -> "Vault":
        named = [override.vault for override in order.overrides if override.spec == spec and override.vault]
        return self._vaults().choose(named[-1] if named else None, purpose=_PURPOSE)


def own_keys(model_type: str, model_id: str) -> str:
    """How the keys of a model's fields begin."""
    return f"{_plain(model_type)}-{model_id}-"


def key_of(order: "Order", spec: str, name: str, path: str) -> str:
    suffix = "".join(override.suffix for override in order.overrides if override.spec == spec)
    exact = f"{order.method}-{spec}-{name}{suffix}-{path}"
    plain = _plain(exact)
    begin = own_keys(order.model.type, order.model.id)
    if plain != exact or len(begin) + len(plain) > VAULT_KEY_LENGTH_MAX:  # two of them could be the same then
        room = VAULT_KEY_LENGTH_MAX - len(begin) - _DIGEST - 1
        plain = f"{plain[: max(0, room)]}-{sha256(exact.encode()).hexdigest()[:_DIGEST]}"
    return begin + plain


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+|\.{2,}", "-", text).strip("-.")
