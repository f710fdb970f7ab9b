"""`names`: what shell completion offers, by kind. Never fails: a completion that errors is a completion that annoys."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from swamp_orch.definitions.repository import Repository
from swamp_proto.errors import SwampError, UsageError

KINDS: Final = ("model", "workflow", "vault", "token", "worker", "type", "run", "report")


class NameService:
    def __init__(self, repository: Repository, call: Callable[[str, Mapping[str, Any]], Any]) -> None:
        self._repository = repository
        self._call = call

    def handlers(self) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
        return {"names": self._names}

    def _names(self, parameters: Mapping[str, Any]) -> list[str]:
        """Sorted names of one kind. Definition files are listed by file name, without reading them."""
        kind = parameters["kind"]
        if kind not in KINDS:
            raise UsageError(f"unknown kind {kind!r}; known: {', '.join(KINDS)}")
        try:
            return sorted(set(self._find(kind)))
        except (SwampError, OSError):
            return []

    def _find(self, kind: str) -> list[str]:
        match kind:
            case "model":
                return [file.stem for file in self._repository.models.rglob("*.yaml")]
            case "workflow":
                return [
                    file.stem.removeprefix("workflow-")
                    for file in self._repository.workflows.glob("workflow-*.yaml")
                ]
            case "vault":
                return [file.stem for file in self._repository.vaults.rglob("*.yaml")]
            case "token":
                return [row["name"] for row in self._call("token.list", {})]
            case "worker":
                return [row["name"] for row in self._call("worker.list", {})["workers"]]
            case "type":
                return [
                    row["type"] if isinstance(row, dict) else row
                    for row in self._call("model.type_search", {})["results"]
                ]
            case "report":
                return [row["name"] for row in self._call("report.type_search", {})["results"]]
        return [row["runId"] for row in self._call("run.list", {"limit": 50})["runs"]]
