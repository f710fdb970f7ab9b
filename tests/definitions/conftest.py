"""A repository in a temporary folder, and the definition calls over it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swamp_orch.api.services.definitions import DefinitionService
from swamp_orch.definitions.repository import Repository, find, init
from swamp_orch.store.memory import MemoryStore


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    init(tmp_path / "repo")
    return find(tmp_path / "repo")


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(lambda: 1_700_000_000_000)


@pytest.fixture
def call(repository: Repository, store: MemoryStore) -> Callable[..., Any]:
    handlers = DefinitionService(repository, store).handlers()

    def ask(name: str, /, **parameters: Any) -> Any:
        from swamp_orch.api.application import check_parameters

        check_parameters(name, parameters)
        return handlers[name](parameters)

    return ask
