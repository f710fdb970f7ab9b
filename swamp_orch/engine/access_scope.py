"""What one step may see beyond its own model, found from its unresolved definition and its type before it is dispatched.

A secret can be read only by a dispatch whose unresolved definition refers to it or whose type declares it; data only of its own
model, of models its definition names, and of models its type declares (SPEC §9). Nothing here opens swamp's own bookkeeping or
its own secrets: those are refused wherever they are asked for.

What counts is what the author wrote: templates of the definition and of the step, never values. A model or a secret whose name is
computed is not opened by that; only a computed *key* of a vault that is written out opens that vault, since nothing narrower is known.

A report of a run is no step of a model: it sees what the run has left, whatever model that is of, its own earlier versions, and what its
type declares. It only looks.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import attrs

from swamp_orch.engine.hidden import own_keys
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
    runs: frozenset[str] = frozenset()  # ids; what they left may be read, whatever model it is of
    only_looks: bool = False  # it may change nothing
    fields: str = ""  # how the keys begin under which sensitive fields of its own records are

    def may_read(self, model: str) -> bool:
        return model in self.models

    def may_use_secret(self, vault: str, key: str) -> bool:
        if is_infrastructure_key(key):
            return False
        own = bool(self.fields) and key.startswith(self.fields)
        return own or vault in self.vaults or (vault, key) in self.secrets


def scope_of_report(model_type: "ModelType", workflow_id: str, runs: Iterable[str]) -> AccessScope:
    """What a report of a run may see; `runs` are the run and those below it. It has no model: `model_id` is where its earlier versions
    are."""
    return AccessScope(
        model="",
        model_id=workflow_id,
        models=model_type.reads,
        secrets=_declared_secrets(model_type),
        runs=frozenset(runs),
        only_looks=True,
    )


def scope_of(
    definition: "ModelDefinition",
    model_type: "ModelType",
    templates: Iterable[Template],
    name_of: Callable[[str], str],
) -> AccessScope:
    """What a step of that model may see. `templates` are all that were written for it, unevaluated; `name_of` gives the name of a
    model that is written as its id."""
    found = references(templates)
    secrets = set(_declared_secrets(model_type))
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
        fields=own_keys(definition.type, definition.id),
    )


def _declared_secrets(model_type: "ModelType") -> frozenset[tuple[str, str]]:
    named = (declared.partition("/") for declared in model_type.secrets)
    return frozenset((vault, key) for vault, _, key in named if not is_infrastructure_key(key))
