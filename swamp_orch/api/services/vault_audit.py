"""The call `vault.audit`: which steps asked for which secret of a vault when, and what they were told.

It reads the access records that the engine leaves (`swamp/access`, `swamp_orch.engine.access_log`), no vault and no value. Shape:
docs/reference/vaults.md.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from swamp_orch.definitions.repository import Repository
from swamp_orch.store.bookkeeping import ACCESS
from swamp_orch.store.interface import Comparison, Selection, Store, Term
from swamp_orch.vaults import VaultSet
from swamp_proto.errors import UsageError
from swamp_proto.messages.capability import Verb

LIMIT_DEFAULT: Final = 100
LIMIT_MAX: Final = 10_000
ACTIONS: Final = {Verb.SECRET.value: "read", Verb.PUT_SECRET.value: "write"}
_COPIED: Final = (
    "runId",
    "workflowName",
    "jobName",
    "stepName",
    "modelName",
    "methodName",
    "workerName",
    "dispatchId",
)


class VaultAudit:
    """Thread-safe."""

    def __init__(self, repository: Repository, store: Store) -> None:
        self._vaults = VaultSet(repository)
        self._store = store

    def handlers(self) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
        return {"vault.audit": self._audit}

    def _audit(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """`{vaultName, secretKey, results[{at, secretKey, action, allowed, code?, reason?, count, …}], limited}`, newest first. A vault
        that is gone is answered as long as records name it."""
        vault, key = parameters["vault"], parameters.get("key")
        limit = LIMIT_DEFAULT if parameters.get("limit") is None else parameters["limit"]
        if not 0 < limit <= LIMIT_MAX:
            raise UsageError(f"limit must be 1 to {LIMIT_MAX} (got {limit})")
        terms = [("modelType", ACCESS), ("attributes.vault", vault)]
        if key is not None:
            terms.append(("attributes.key", key))
        selection = Selection(tuple(Term(field, Comparison.EQ, (value,)) for field, value in terms))
        found = [
            _entry(json.loads(self._store.read(record)))
            for record in self._store.select(selection, limit=limit + 1, newest_first=True)
        ]
        if not found:
            self._vaults.settings(vault)
        return {"vaultName": vault, "secretKey": key, "results": found[:limit], "limited": len(found) > limit}


def _entry(asked: Mapping[str, Any]) -> dict[str, Any]:
    entry = {
        "at": asked["at"],
        "secretKey": asked["key"],
        "action": ACTIONS[asked["verb"]],
        "allowed": asked["allowed"],
    }
    entry |= {name: asked[name] for name in ("code", "reason") if name in asked}
    return entry | {"count": asked["count"]} | {name: asked[name] for name in _COPIED}
