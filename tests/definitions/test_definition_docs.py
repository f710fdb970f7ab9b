"""The reference pages name every key, and their definitions are valid."""

import re
from pathlib import Path

import pytest

from swamp_orch.definitions import conditions, models, placement, tasks, workflows
from swamp_orch.definitions.fields import SELECTION_KEYS
from swamp_orch.definitions.inputs import PROPERTY_KEYS, TYPES
from swamp_orch.definitions.models import parse_model
from swamp_orch.definitions.repository import FOLDERS
from swamp_orch.definitions.workflows import parse_workflow
from swamp_orch.definitions.yaml_source import load_text

PAGES = Path(__file__).parents[2] / "docs" / "reference"
ID = "0f8fad5b-d9cb-469f-a165-70867728950e"


def blocks(page: str) -> list[str]:
    return re.findall(r"^```yaml\n(.*?)^```", (PAGES / page).read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("text", blocks("models.md"))
def test_models_in_the_docs_are_valid(text: str) -> None:
    data, source = load_text(text, Path("docs/reference/models.md"))
    parse_model({"id": ID, **data}, source)


@pytest.mark.parametrize("text", blocks("workflows.md"))
def test_workflows_in_the_docs_are_valid(text: str) -> None:
    data, source = load_text(text, Path("docs/reference/workflows.md"))
    parse_workflow({"id": ID, **data}, source)


def named(page: str) -> set[str]:
    """Every word in `code` outside of blocks."""
    text = re.sub(r"^```.*?^```", "", (PAGES / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    return set(re.findall(r"[A-Za-z_]+", " ".join(re.findall(r"`([^`]+)`", text))))


def test_every_key_is_documented() -> None:
    known = {
        *workflows.WORKFLOW_KEYS, *workflows.JOB_KEYS, *workflows.STEP_KEYS, *workflows.FOR_EACH_KEYS,
        *workflows.RETRY_KEYS, *workflows.TRIGGER_KEYS, *SELECTION_KEYS, *workflows.OVERRIDE_KEYS,
        *placement.GROUP_KEYS, *conditions.TYPES, *tasks.SEVERITIES, *tasks.TASK_KEYS,
        *(key for keys in tasks.TASK_KEYS.values() for key in keys),
    }  # fmt: skip
    assert known - named("workflows.md") == set()
    assert {*models.MODEL_KEYS, *models.METHOD_KEYS, *PROPERTY_KEYS, *TYPES} - named("models.md") == set()
    assert {"swampVersion", "initializedAt", "repoId", "upgradedAt"} - named("repository.md") == set()
    assert all(f"`{folder.split('/')[0]}/" in (PAGES / "repository.md").read_text() for folder in FOLDERS)
