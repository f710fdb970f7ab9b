"""Links and anchors lead somewhere, every page can be reached, and every example parses."""

import json
import os
from pathlib import Path

import pytest
from docs_pages import PROJECT, Block, anchor, pages, read

from swamp_orch.definitions.models import parse_model
from swamp_orch.definitions.workflows import parse_workflow
from swamp_orch.definitions.yaml_source import load_text
from swamp_proto.errors import SwampError

PAGES = pages()
NAMES = sorted(PAGES)
ID = "0f8fad5b-d9cb-469f-a165-70867728950e"


def _target(page: str, link: str) -> tuple[Path, str]:
    path, _, fragment = link.partition("#")
    where = (PROJECT / page).parent / path if path else PROJECT / page
    return Path(os.path.normpath(where)), fragment


@pytest.mark.parametrize("name", NAMES)
def test_links_and_anchors_lead_somewhere(name: str) -> None:
    wrong = []
    for link in PAGES[name].links:
        if "://" in link or link.startswith("mailto:"):
            continue
        target, fragment = _target(name, link)
        if not target.exists():
            wrong.append(f"{link}: there is no {target.relative_to(PROJECT)}")
        elif fragment and fragment not in read(target).anchors:
            wrong.append(f"{link}: no such heading")
    assert wrong == []


def test_every_page_can_be_reached_from_the_index() -> None:
    reached, waiting = set(), ["docs/README.md"]
    while waiting:
        name = waiting.pop()
        if name in reached or name not in PAGES:
            continue
        reached.add(name)
        for link in PAGES[name].links:
            if "://" not in link:
                waiting.append(str(_target(name, link)[0].relative_to(PROJECT)))
    assert set(PAGES) - reached - {"README.md"} == set()


def test_the_readme_leads_to_the_index() -> None:
    assert "docs/README.md" in PAGES["README.md"].links


# ── examples ────────────────────────────────────────────────────────────────────────────────────────────────────────
def _blocks(*languages: str) -> list[Block]:
    return [block for page in PAGES.values() for block in page.blocks if block.language in languages]


@pytest.mark.parametrize("block", _blocks("json"), ids=lambda block: block.place)
def test_json_is_json(block: Block) -> None:
    json.loads(block.text)


def _kind(block: Block) -> str:
    """What a YAML example is: a whole definition has the keys that make it one."""
    keys = {line.partition(":")[0] for line in block.text.splitlines() if line[:1].isalpha()}
    if {"jobs", "name"} <= keys:
        return "workflow"
    return "model" if {"methods", "type", "name"} <= keys else "other"


def _read_example(block: Block) -> None:
    """As swamp reads it. Raises SwampError. What is no definition of ours (a manifest of somebody else's) is YAML."""
    data, source = load_text(block.text, Path(block.page))
    if _kind(block) == "workflow":
        parse_workflow({"id": ID, **data}, source)
    elif _kind(block) == "model":
        parse_model({"id": ID, **data}, source)


@pytest.mark.parametrize("block", _blocks("yaml"), ids=lambda block: block.place)
def test_yaml_is_what_swamp_reads(block: Block) -> None:
    _read_example(block)


def test_a_wrong_example_is_found() -> None:
    workflow = next(block for block in _blocks("yaml") if _kind(block) == "workflow")
    model = next(block for block in _blocks("yaml") if _kind(block) == "model")
    for block, right, wrong in ((workflow, "steps:", "stepps:"), (model, "methods:", "methods: 3 #")):
        assert right in block.text
        with pytest.raises(SwampError):
            _read_example(Block(block.page, 1, "yaml", block.text.replace(right, wrong)))


def test_anchors_are_the_usual_ones() -> None:
    assert anchor("Commands and their JSON") == "commands-and-their-json"
    assert anchor("`--cache-dir`, and [why](x.md)") == "--cache-dir-and-why"
