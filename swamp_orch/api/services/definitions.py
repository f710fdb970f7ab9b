"""`DefinitionService`: the calls `model.*` and `workflow.*` that run nothing; see `models.py` and
`workflows.py`."""

from collections.abc import Callable
from typing import Any

from swamp_orch.api.services.definition_files import Parameters
from swamp_orch.api.services.models import ModelCalls
from swamp_orch.api.services.workflows import WorkflowCalls
from swamp_orch.definitions.models import Models
from swamp_orch.definitions.repository import Repository
from swamp_orch.definitions.types import TypeRegistry, types_of
from swamp_orch.definitions.workflows import Workflows
from swamp_orch.store.interface import Store


class DefinitionService:
    """Thread-safe: it holds no state beyond what it was made from."""

    def __init__(self, repository: Repository, store: Store, types: TypeRegistry | None = None) -> None:
        models = Models(repository, types or types_of(repository))
        workflows = Workflows(repository)
        self._models = ModelCalls(repository, store, models, workflows)
        self._workflows = WorkflowCalls(repository, models, workflows)

    def handlers(self) -> dict[str, Callable[[Parameters], Any]]:
        return {**self._models.handlers(), **self._workflows.handlers()}
