"""How a model type describes itself: methods, argument schemas, declared outputs.

Schemas are JSON Schema (draft 2020-12) objects with `additionalProperties: false`; the orchestrator checks definitions and
step inputs against them before anything is dispatched, and `swamp model type describe` prints them.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import attrs

from swamp_proto.sensitive import holds_sensitive


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

    @cached_property
    def hides(self) -> bool:
        """Whether something in it is sensitive, and goes into a vault."""
        return holds_sensitive(self.schema)


@attrs.frozen
class MethodSpec:
    name: str
    description: str
    arguments: Mapping[str, Any]  # JSON Schema object
    mutates: bool = True  # pre-flight checks run before it
    returns: str = ""  # the resource spec that its return value becomes at its end; empty: it returns nothing


@attrs.frozen
class CheckSpec:
    """A pre-flight check: runs where the step runs, before a mutating method."""

    name: str
    description: str
    labels: tuple[str, ...] = ()
    applies_to: tuple[str, ...] = ()  # methods; empty: all that mutate


@attrs.frozen
class ReportSpec:
    name: str
    description: str
    scope: str = "method"  # method, workflow
    labels: tuple[str, ...] = ()


@attrs.frozen
class ModelType:
    """One type. `shell_arguments` names arguments that are shell text: expressions inside become quoted variables.

    A type written in Python has an `entry` (`inventory.py:Inventory`, below the root of its bundle) and, unless it comes
    with swamp, the sha256 of its `bundle`.
    """

    name: str  # normalised: `command/shell`
    version: str  # CalVer
    description: str
    global_arguments: Mapping[str, Any]
    methods: Mapping[str, MethodSpec]
    outputs: Mapping[str, OutputSpec]
    shell_arguments: frozenset[str] = frozenset()
    bundle: str = ""
    entry: str = ""
    reads: frozenset[str] = frozenset()  # names of models it may read beyond its own
    secrets: frozenset[str] = (
        frozenset()
    )  # `vault/key` it may read and write beyond what definitions refer to
    checks: Mapping[str, CheckSpec] = attrs.field(factory=dict)
    reports: Mapping[str, ReportSpec] = attrs.field(factory=dict)
