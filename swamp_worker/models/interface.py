"""How a model type describes itself: methods, argument schemas, declared outputs.

Schemas are JSON Schema (draft 2020-12) objects with `additionalProperties: false`; the orchestrator checks definitions and
step inputs against them before anything is dispatched, and `swamp model type describe` prints them.
"""

from collections.abc import Mapping
from typing import Any

import attrs


@attrs.frozen
class OutputSpec:
    """A declared output slot."""

    name: str
    kind: str  # resource, file
    content_type: str
    description: str
    schema: Mapping[str, Any] | None = None  # resources
    lifetime: str = "infinite"
    keep: int | None = 10


@attrs.frozen
class MethodSpec:
    name: str
    description: str
    arguments: Mapping[str, Any]  # JSON Schema object


@attrs.frozen
class ModelType:
    """One type. `shell_arguments` names arguments that are shell text: expressions inside become quoted variables."""

    name: str  # normalised: `command/shell`
    version: str  # CalVer
    description: str
    global_arguments: Mapping[str, Any]
    methods: Mapping[str, MethodSpec]
    outputs: Mapping[str, OutputSpec]
    shell_arguments: frozenset[str] = frozenset()
