"""What method code is given and gives back, as values."""

import enum
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs

from swamp_worker.sdk.shapes import from_json

T = TypeVar("T")


@attrs.frozen
class ModelInfo:
    """The model that the step is about."""

    name: str
    id: str
    type: str
    version: int
    tags: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen
class Place:
    """Where in a run the step belongs."""

    run: str
    workflow: str
    job: str
    step: str


@attrs.frozen
class Written:
    """A record that is durable now."""

    id: str
    spec: str
    name: str
    version: int
    size: int
    sha256: str


@attrs.frozen
class Record:
    """A record version as it was read. `fields` is everything known about it, by the names of the query language."""

    id: str
    model: str
    name: str
    version: int
    spec: str
    content_type: str
    size: int
    tags: Mapping[str, str]
    fields: Mapping[str, Any] = attrs.field(repr=False)
    content: bytes = attrs.field(repr=False)

    def text(self) -> str:
        return self.content.decode()

    def json(self) -> Any:
        """The content of a resource."""
        return json.loads(self.content)

    def into(self, cls: type[T]) -> T:
        """The content as an attrs class. Raises `InvalidArguments` when it is not one."""
        return from_json(cls, self.json(), self.name)


@attrs.frozen
class StoredFile:
    """A file artefact that was read: its record (without content), and where its bytes are, until the step ends."""

    record: Record
    path: Path


@attrs.frozen
class ModelRun:
    """What became of `run_model`."""

    run: str
    status: str
    records: tuple[Mapping[str, Any], ...]
    error: str = ""


@attrs.frozen
class FollowUp:
    """A method to be called after this one, in the same step."""

    method: str
    arguments: Mapping[str, Any]
    after_s: float = 0.0


@attrs.frozen
class Findings:
    """What a report of method scope is made of."""

    method: str
    succeeded: bool
    error: str
    records: tuple[Written, ...]
    outputs: tuple[str, ...]  # names of what the end will store
    follow_ups: int = 0


@attrs.frozen
class Report:
    """Markdown for people, and the same as data for programs."""

    markdown: str
    data: Mapping[str, Any] = attrs.field(factory=dict)


class Stage(enum.Enum):
    """What runs: it decides which members of the context work."""

    CHECK = "a pre-flight check"
    METHOD = "a method"
    REPORT = "a report"
