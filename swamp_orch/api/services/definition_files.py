"""What the calls about models and workflows share: finding files that may not parse, and shapes of
answers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swamp_orch.definitions.fields import DefinitionProblems
from swamp_orch.definitions.files import disk_error
from swamp_orch.definitions.lookup import Folder, Listing
from swamp_orch.definitions.values import ModelDefinition, Workflow
from swamp_orch.definitions.yaml_source import decode
from swamp_proto.errors import InvalidDefinition
from swamp_proto.limits import IDENTIFIER_PREFIX_MIN

Parameters = Mapping[str, Any]
Document = dict[str, Any]


def matches(query: str, *texts: str) -> bool:
    """Whether a search finds one of the texts."""
    return any(query.lower() in text.lower() for text in texts)


def refers_to(reference: str, name: str, identity: str) -> bool:
    """Whether `reference` in a workflow means that definition: by name, id, or the beginning of its id."""
    return reference in (name, identity) or (
        len(reference) >= IDENTIFIER_PREFIX_MIN and identity.startswith(reference)
    )


def problems(folder: Folder, listing: Listing) -> Document:
    """`{problems: [{path, error}]}` when there are files that do not parse, else nothing."""
    found = [
        {"path": str(folder.shown(item.path)), "error": item.error.message} for item in listing.unreadable
    ]
    return {"problems": found} if found else {}


def schema_problems(error: InvalidDefinition) -> list[Document]:
    """What is wrong with a file, as failed checks."""
    if isinstance(error, DefinitionProblems):
        texts = [f"{found} ({found.hint})" if found.hint else str(found) for found in error.problems]
    else:
        texts = [f"{error.message} ({error.hint})" if error.hint else error.message]
    return [{"name": "Schema validation", "passed": False, "error": text} for text in texts]


def path_of(folder: Folder, name: str) -> Path:
    """The file of a definition, whether it parses or not. Raises `NotFound`, `Conflict`."""
    path = folder.path_of(name)
    if path is not None:
        return path
    definition: ModelDefinition | Workflow = folder.find(name)
    return folder.repository.root / definition.source.file


def source_document(folder: Folder, name: str) -> Document:
    """`{name, path, text}`"""
    path = path_of(folder, name)
    return {"name": folder.name_of(path), "path": str(folder.shown(path)), "text": read_text(folder, path)}


def read_text(folder: Folder, path: Path, *, lenient: bool = False) -> str:
    """The text of a file. Raises `InvalidDefinition` when it is not UTF-8 (unless `lenient`), `Broken`."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise disk_error("read", path, error) from error
    return raw.decode(errors="replace") if lenient else decode(raw, folder.shown(path))
