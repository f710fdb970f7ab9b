"""Checking values against the JSON Schema subset that model types and input schemas use, in our words.

Rules:
1. Strict: a boolean is no number, a number is no text, 1.0 is no integer. Nothing is coerced; `inputs.py`
   coerces what came as text from a command line before it gets here.
2. A keyword this module does not know is a bug of the schema's author and is raised as one: silently ignoring
   a `pattern` would let wrong values through.
3. With `expressions=True` a text that holds `${{ … }}` passes every check; it is checked again when it has a
   value.

It does not know what the values are for, or where they came from.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from swamp_proto.errors import Bug

CHECKED: Final = frozenset(
    {
        "type", "enum", "const", "required", "properties", "additionalProperties", "items",
        "minItems", "maxItems", "minLength", "maxLength", "pattern", "minimum", "exclusiveMinimum", "maximum",
        "exclusiveMaximum",
    }
)  # fmt: skip
ANNOTATIONS: Final = frozenset(
    {"$schema", "title", "description", "default", "sensitive", "examples", "format"}
)

_NAMES: Final = {
    "string": "text", "number": "a number", "integer": "an integer", "boolean": "true or false",
    "array": "a list", "object": "a map", "null": "null",
}  # fmt: skip


def problems_of(schema: Any, place: str = "$") -> list[str]:
    """What of a schema somebody else wrote this module would not understand, one sentence each."""
    if not isinstance(schema, Mapping):
        return [f"{place} must be a map"]
    found = []
    for key, part in schema.items():
        if key not in CHECKED and key not in ANNOTATIONS:
            found.append(
                f"{place}: the keyword {key!r} is not understood; understood are {', '.join(sorted(CHECKED))}"
            )
        elif key == "type":
            kinds = part if isinstance(part, list) else [part]
            found += [
                f"{place}: no JSON type is called {shown(kind)}" for kind in kinds if kind not in _NAMES
            ]
        elif key == "properties":
            if not isinstance(part, Mapping):
                found.append(f"{place}.properties must be a map")
                continue
            for name, below in part.items():
                found += problems_of(below, f"{place}.{name}")
        elif key == "items" or (key == "additionalProperties" and not isinstance(part, bool)):
            found += problems_of(part, f"{place}.{key}")
        elif key in ("required", "enum") and not isinstance(part, list | tuple):
            found.append(f"{place}.{key} must be a list")
        elif key == "pattern":
            try:
                re.compile(part)
            except (re.error, TypeError):
                found.append(f"{place}: {shown(part)} is no pattern")
    return found


def check_value(
    schema: Mapping[str, Any], value: Any, name: str = "", *, expressions: bool = False
) -> list[str]:
    """Everything wrong with `value`, one sentence each; `name` is how the value is called (`server.port`)."""
    problems: list[str] = []
    _check(schema, value, name, expressions, problems)
    return problems


def is_type(value: Any, name: str) -> bool:
    """Whether `value` is of the JSON type `name`."""
    if isinstance(value, bool):
        return name == "boolean"
    match name:
        case "string":
            return isinstance(value, str)
        case "integer":
            return isinstance(value, int)
        case "number":
            return isinstance(value, int | float)
        case "array":
            return isinstance(value, list | tuple)
        case "object":
            return isinstance(value, Mapping)
        case "null":
            return value is None
    return False


def shown(value: Any) -> str:
    """A value in a message."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "…"


def _check(schema: Mapping[str, Any], value: Any, name: str, expressions: bool, problems: list[str]) -> None:
    unknown = set(schema) - CHECKED - ANNOTATIONS
    if unknown:
        raise Bug(f"the schema of {name or 'a value'} uses unchecked keywords: {', '.join(sorted(unknown))}")
    if expressions and isinstance(value, str) and "${{" in value:
        return
    label = name or "the value"
    types = schema.get("type")
    wanted = [types] if isinstance(types, str) else list(types or ())
    if wanted and not any(is_type(value, kind) for kind in wanted):
        if value is None:
            problems.append(f"{label} cannot be null")
        else:
            problems.append(
                f"{label} must be {' or '.join(_NAMES[kind] for kind in wanted)}, not {shown(value)}"
            )
        return
    if "enum" in schema and not any(_same(value, choice) for choice in schema["enum"]):
        problems.append(f"{label} must be one of: {', '.join(map(shown, schema['enum']))}")
    if "const" in schema and not _same(value, schema["const"]):
        problems.append(f"{label} must be {shown(schema['const'])}")
    if isinstance(value, str):
        _check_text(schema, value, label, problems)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        _check_number(schema, value, label, problems)
    elif isinstance(value, Mapping):
        _check_map(schema, value, name, expressions, problems)
    elif isinstance(value, list | tuple):
        _check_list(schema, value, name, expressions, problems)


def _check_text(schema: Mapping[str, Any], value: str, label: str, problems: list[str]) -> None:
    if len(value) < schema.get("minLength", 0):
        problems.append(
            f"{label} must not be empty"
            if not value
            else f"{label} must have at least {schema['minLength']} characters"
        )
    if len(value) > schema.get("maxLength", len(value)):
        problems.append(f"{label} must have at most {schema['maxLength']} characters")
    if "pattern" in schema and re.search(schema["pattern"], value) is None:
        problems.append(f"{label} must match {schema['pattern']}")


def _check_number(schema: Mapping[str, Any], value: float, label: str, problems: list[str]) -> None:
    if "minimum" in schema and value < schema["minimum"]:
        problems.append(f"{label} must be at least {schema['minimum']}")
    if "exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"]:
        problems.append(f"{label} must be more than {schema['exclusiveMinimum']}")
    if "maximum" in schema and value > schema["maximum"]:
        problems.append(f"{label} must be at most {schema['maximum']}")
    if "exclusiveMaximum" in schema and value >= schema["exclusiveMaximum"]:
        problems.append(f"{label} must be less than {schema['exclusiveMaximum']}")


def _check_map(
    schema: Mapping[str, Any], value: Mapping[str, Any], name: str, expressions: bool, problems: list[str]
) -> None:
    properties: Mapping[str, Any] = schema.get("properties", {})
    rest = schema.get("additionalProperties", True)
    for key in schema.get("required", ()):
        if key not in value:
            problems.append(f"{_join(name, key)} is required")
    for key, item in value.items():
        if key in properties:
            _check(properties[key], item, _join(name, key), expressions, problems)
        elif isinstance(rest, Mapping):
            _check(rest, item, _join(name, key), expressions, problems)
        elif rest is False:
            problems.append(f"{_join(name, key)} is not a valid input property")


def _check_list(
    schema: Mapping[str, Any],
    value: list[Any] | tuple[Any, ...],
    name: str,
    expressions: bool,
    problems: list[str],
) -> None:
    label = name or "the value"
    if len(value) < schema.get("minItems", 0):
        problems.append(f"{label} must have at least {schema['minItems']} entries")
    if len(value) > schema.get("maxItems", len(value)):
        problems.append(f"{label} must have at most {schema['maxItems']} entries")
    if "items" in schema:
        for index, item in enumerate(value):
            _check(schema["items"], item, f"{name}[{index}]", expressions, problems)


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _same(one: Any, other: Any) -> bool:
    """JSON equality: 1 and 1.0 are equal, 1 and true are not."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(one == other)
