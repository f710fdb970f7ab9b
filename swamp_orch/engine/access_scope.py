"""What one step may see beyond its own model, found from its unresolved definition and its type before it is dispatched.

A secret can be read only by a dispatch whose unresolved definition refers to it or whose type declares it; data only of its own
model, of models its definition names, and of models its type declares (SPEC §9). Nothing here opens swamp's own bookkeeping or
its own secrets: those are refused wherever they are asked for.
"""

import attrs


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
        return vault in self.vaults or (vault, key) in self.secrets
