"""The calls `vault.*`: JSON answers about vaults and the secrets in them.

A secret's value is in the answer of `vault.read_secret` and nowhere else. Shapes: docs/reference/vaults.md.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

from swamp_orch.definitions.repository import Repository
from swamp_orch.store.bookkeeping import iso
from swamp_orch.vaults import VaultSet


class VaultService:
    """Thread-safe."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._vaults = VaultSet(repository)

    def handlers(self) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
        return {
            "vault.create": self._create,
            "vault.list": self._list,
            "vault.get": self._get,
            "vault.put": self._put,
            "vault.read_secret": self._read_secret,
            "vault.list_keys": self._list_keys,
            "vault.delete": self._delete,
        }

    def _create(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """`{id, name, type, typeName, config}`"""
        made = self._vaults.create(parameters["type"], parameters["name"], parameters.get("config"))
        return {
            "id": made.id,
            "name": made.name,
            "type": made.type,
            "typeName": self._vaults.title(made.type),
            "config": dict(made.config),
        }

    def _list(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """`{query, results[{id, name, type, typeName, createdAt}], total}`; `query` is part of name or
        type."""
        query = parameters.get("query") or ""
        results = [
            {
                "id": vault.id,
                "name": vault.name,
                "type": vault.type,
                "typeName": self._vaults.title(vault.type),
                "createdAt": vault.created_at,
            }
            for vault in self._vaults.all()
            if query.lower() in f"{vault.name} {vault.type}".lower()
        ]
        return {"query": query, "results": results, "total": len(results)}

    def _get(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """`{id, name, type, config, createdAt, storagePath}`; the path is relative to the repository."""
        vault = self._vaults.settings(parameters["name"])
        return {
            "id": vault.id,
            "name": vault.name,
            "type": vault.type,
            "config": dict(vault.config),
            "createdAt": vault.created_at,
            "storagePath": str(vault.storage.relative_to(vault.root)),
        }

    def _put(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """`{vaultName, secretKey, vaultType, overwritten, timestamp, labels}`"""
        vault = self._vaults.find(parameters["vault"])
        key = parameters["key"]
        existed = vault.put(key, parameters["value"], bool(parameters.get("overwrite")))
        return {
            "vaultName": vault.name,
            "secretKey": key,
            "vaultType": vault.type,
            "overwritten": existed,
            "timestamp": iso(time.time_ns() // 1_000_000),
            "labels": {},
        }

    def _read_secret(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """`{vaultName, secretKey, vaultType, value}`"""
        vault = self._vaults.find(parameters["vault"])
        value = vault.get(parameters["key"])
        return {
            "vaultName": vault.name,
            "secretKey": parameters["key"],
            "vaultType": vault.type,
            "value": value,
        }

    def _list_keys(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """`{vaultName, vaultType, secretKeys[], count}`; without `vault`, of the only one there is."""
        name = parameters.get("vault")
        vault = self._vaults.choose(None) if name is None else self._vaults.find(name)
        keys = vault.keys()
        return {"vaultName": vault.name, "vaultType": vault.type, "secretKeys": keys, "count": len(keys)}

    def _delete(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """`{vaultName, vaultType, secretKey, deleted, noOp?}`; `noOp` when there was none."""
        vault = self._vaults.find(parameters["vault"])
        deleted = vault.delete(parameters["key"])
        answer = {
            "vaultName": vault.name,
            "vaultType": vault.type,
            "secretKey": parameters["key"],
            "deleted": deleted,
        }
        return answer if deleted else answer | {"noOp": True}
