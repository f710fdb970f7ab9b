"""What one step may see beyond its own model, found from its unresolved definition and its type before it is dispatched.

A secret can be read only by a dispatch whose unresolved definition refers to it or whose type declares it; data only of its own
model, of models its definition names, and of models its type declares (SPEC §9). Nothing here opens swamp's own bookkeeping or
its own secrets: those are refused wherever they are asked for.

What counts is what the author wrote: templates of the definition and of the step, never values. A model or a secret whose name is
computed is not opened by that; only a computed *key* of a vault that is written out opens that vault, since nothing narrower is known.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import attrs

from swamp_orch.expressions.references import references
from swamp_orch.expressions.template import Template
from swamp_orch.vaults.interface import is_infrastructure_key

if TYPE_CHECKING:
    from swamp_orch.definitions.values import ModelDefinition
    from swamp_worker.models.interface import ModelType


@attrs.frozen
class AccessScope:
    """`models` are names, its own among them. `vaults` are those from which it may read any key, because its definition computes
    the key."""

    model: str
    model_id: str
    models: frozenset[str]
    secrets: frozenset[tuple[str, str]] = frozenset()  # (vault, key)
    vaults: frozenset[str] = frozenset()

    def may_read(self, model: str) -> bool:
        return model in self.models

    def may_use_secret(self, vault: str, key: str) -> bool:
        if is_infrastructure_key(key):
            return False
        return vault in self.vaults or (vault, key) in self.secrets


def scope_of(
    definition: "ModelDefinition",
    model_type: "ModelType",
    templates: Iterable[Template],
    name_of: Callable[[str], str],
) -> AccessScope:
    """What a step of that model may see. `templates` are all that were written for it, unevaluated; `name_of` gives the name of a
    model that is written as its id."""
    found = references(templates)
    secrets = {(vault, key) for vault, _, key in (declared.partition("/") for declared in model_type.secrets)}
    vaults = set()
    for secret in found.secrets:
        if secret.vault is not None and secret.key is not None:
            secrets.add((secret.vault, secret.key))
        elif secret.vault is not None:
            vaults.add(secret.vault)
    named = (name_of(model) for model in found.models)
    return AccessScope(
        model=definition.name,
        model_id=definition.id,
        models=frozenset({definition.name, *model_type.reads, *named}),
        secrets=frozenset(item for item in secrets if not is_infrastructure_key(item[1])),
        vaults=frozenset(vaults),
    )
