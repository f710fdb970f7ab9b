"""Checking values against the JSON Schema subset that model types and input schemas use, in our words.

Rules:
1. Strict: a boolean is no number, a number is no text, 1.0 is no integer. Nothing is coerced; `inputs.py`
   coerces what came as text from a command line before it gets here.
2. A keyword this module does not know is a bug of the schema's author and is raised as one: silently ignoring
   a `pattern` would let wrong values through.
3. With `expressions=True` a text that holds `${{ … }}` passes every check; it is checked again when it has a
   value.
4. `problems_of` says what is wrong with a schema itself: everything that rule 2 would trip over. There are no
   references (`$ref`): a schema is a tree, written out.

It does not know what the values are for, or where they came from.
"""

import datetime
import ipaddress
import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from swamp_proto.errors import Bug

CHECKED: Final = frozenset(
    {
        "type", "enum", "const", "required", "properties", "additionalProperties", "items",
        "minItems", "maxItems", "uniqueItems", "minLength", "maxLength", "pattern", "format",
        "minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "multipleOf",
        "minProperties", "maxProperties", "anyOf",
    }
)  # fmt: skip
ANNOTATIONS: Final = frozenset(
    {
        "$schema",
        "$comment",
        "title",
        "description",
        "default",
        "sensitive",
        "examples",
        "deprecated",
        "namesModel",
    }
)
DEPTH_MAX: Final = 32  # schemas inside schemas

_NAMES: Final = {
    "string": "text", "number": "a number", "integer": "an integer", "boolean": "true or false",
    "array": "a list", "object": "a map", "null": "null",
}  # fmt: skip


def check_value(
    schema: Mapping[str, Any], value: Any, name: str = "", *, expressions: bool = False
) -> list[str]:
    """Everything wrong with `value`, one sentence each; `name` is how the value is called (`server.port`)."""
    problems: list[str] = []
    _Check(expressions, problems).check(schema, value, name)
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


class _Check:
    """One value against one schema."""

    def __init__(self, expressions: bool, problems: list[str]) -> None:
        self._expressions = expressions
        self._problems = problems

    def check(self, schema: Mapping[str, Any], value: Any, name: str) -> None:
        problems = self._problems
        unknown = set(schema) - CHECKED - ANNOTATIONS
        if unknown:
            raise Bug(
                f"the schema of {name or 'a value'} uses unchecked keywords: {', '.join(sorted(unknown))}"
            )
        if self._expressions and isinstance(value, str) and "${{" in value:
            return
        if "anyOf" in schema and not self._any(schema["anyOf"], value, name):
            return
        label = name or "the value"
        wanted = _types(schema)
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
            self._map(schema, value, name)
        elif isinstance(value, list | tuple):
            self._list(schema, value, name)

    def _any(self, choices: list[Mapping[str, Any]], value: Any, name: str) -> bool:
        """Whether one of `choices` fits. Of those that do not, the one for this type of value says why."""
        found: list[list[str]] = []
        for choice in choices:
            problems: list[str] = []
            _Check(self._expressions, problems).check(choice, value, name)
            if not problems:
                return True
            found.append(problems)
        meant = [
            problems
            for choice, problems in zip(choices, found, strict=True)
            if any(is_type(value, kind) for kind in _types(choice))
        ]
        if len(meant) == 1:
            self._problems += meant[0]
        else:
            why = "; ".join(dict.fromkeys(problems[0] for problems in found))
            self._problems.append(f"{name or 'the value'} is none of what it can be: {why}")
        return False

    def _map(self, schema: Mapping[str, Any], value: Mapping[str, Any], name: str) -> None:
        properties: Mapping[str, Any] = schema.get("properties", {})
        rest = schema.get("additionalProperties", True)
        label = name or "the value"
        for key in schema.get("required", ()):
            if key not in value:
                self._problems.append(f"{_join(name, key)} is required")
        if len(value) < schema.get("minProperties", 0):
            self._problems.append(f"{label} must have at least {schema['minProperties']} entries")
        if len(value) > schema.get("maxProperties", len(value)):
            self._problems.append(f"{label} must have at most {schema['maxProperties']} entries")
        for key, item in value.items():
            if key in properties:
                self.check(properties[key], item, _join(name, key))
            elif isinstance(rest, Mapping):
                self.check(rest, item, _join(name, key))
            elif rest is False:
                self._problems.append(f"{_join(name, key)} is not a valid input property")

    def _list(self, schema: Mapping[str, Any], value: list[Any] | tuple[Any, ...], name: str) -> None:
        label = name or "the value"
        if len(value) < schema.get("minItems", 0):
            self._problems.append(f"{label} must have at least {schema['minItems']} entries")
        if len(value) > schema.get("maxItems", len(value)):
            self._problems.append(f"{label} must have at most {schema['maxItems']} entries")
        if schema.get("uniqueItems"):
            for index, item in enumerate(value):
                if any(_same(item, other) for other in value[:index]):
                    self._problems.append(f"{label} must not have {shown(item)} twice")
                    break
        if "items" in schema:
            for index, item in enumerate(value):
                self.check(schema["items"], item, f"{name}[{index}]")


def _types(schema: Mapping[str, Any]) -> list[str]:
    types = schema.get("type")
    return [types] if isinstance(types, str) else list(types or ())


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
        problems.append(f"{label} must match {schema['pattern']}, not be {shown(value)}")
    if "format" in schema and not _has_format(schema["format"], value):
        problems.append(f"{label} must be {FORMATS[schema['format']][0]}, not {shown(value)}")


def _check_number(schema: Mapping[str, Any], value: float, label: str, problems: list[str]) -> None:
    if "minimum" in schema and value < schema["minimum"]:
        problems.append(f"{label} must be at least {schema['minimum']}")
    if "exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"]:
        problems.append(f"{label} must be more than {schema['exclusiveMinimum']}")
    if "maximum" in schema and value > schema["maximum"]:
        problems.append(f"{label} must be at most {schema['maximum']}")
    if "exclusiveMaximum" in schema and value >= schema["exclusiveMaximum"]:
        problems.append(f"{label} must be less than {schema['exclusiveMaximum']}")
    if "multipleOf" in schema and value % schema["multipleOf"]:
        problems.append(f"{label} must be a multiple of {schema['multipleOf']}")


# ── formats ───────────────────────────────────────────────────────────────────────────────────────

_HOSTNAME: Final = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)
_EMAIL: Final = re.compile(r"[^@\s]+@[^@\s]+")
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d")
_DATE_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")


def _date_time(text: str) -> bool:
    if _DATE_TIME.fullmatch(text) is None:
        return False
    datetime.datetime.fromisoformat(re.sub(r"\.(\d{1,6})\d*", r".\1", text.upper().replace(" ", "T")))
    return True


def _uri(text: str) -> bool:
    found = urlsplit(text)
    return bool(found.scheme and (found.netloc or found.path)) and not re.search(r"[\s<>\"]", text)


FORMATS: Final[Mapping[str, tuple[str, Callable[[str], object]]]] = {
    "date-time": ("an instant as in 2026-11-21T12:00:00Z", _date_time),
    "date": (
        "a date as in 2026-11-21",
        lambda text: _DATE.fullmatch(text) and datetime.date.fromisoformat(text),
    ),
    "email": ("an e-mail address", _EMAIL.fullmatch),
    "hostname": ("a host name", _HOSTNAME.fullmatch),
    "ipv4": ("an IPv4 address", ipaddress.IPv4Address),
    "ipv6": ("an IPv6 address", ipaddress.IPv6Address),
    "uri": ("an address with its scheme, as in https://example.com/", _uri),
    "uuid": ("a UUID", lambda text: str(uuid.UUID(text)) == text.lower()),
}
"""What a text with a `format` must be, in words, and the check: false or a ValueError is a no."""


def _has_format(name: str, text: str) -> bool:
    try:
        return bool(FORMATS[name][1](text))
    except ValueError:
        return False


# ── schemas themselves ────────────────────────────────────────────────────────────────────────────

_COUNTS: Final = frozenset(
    {"minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"}
)
_NUMBERS: Final = frozenset({"minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "multipleOf"})
_FLAGS: Final = frozenset({"uniqueItems", "sensitive", "deprecated", "namesModel"})


def problems_of(schema: Any, place: str = "$") -> list[str]:
    """What of a schema somebody else wrote this module would not understand, one sentence each, with the path of the part."""
    return list(_schema(schema, place, 0))


def _schema(schema: Any, place: str, depth: int) -> Iterator[str]:
    if not isinstance(schema, Mapping):
        yield f"{place} must be a map"
        return
    if depth > DEPTH_MAX:
        yield f"{place}: more than {DEPTH_MAX} schemas inside each other"
        return
    for key in schema:
        if key not in CHECKED and key not in ANNOTATIONS:
            yield f"{place}: the keyword {key!r} is not understood; understood are {', '.join(sorted(CHECKED))}"
    yield from (f"{place}: {text}" for text in _keywords(schema))
    properties = schema.get("properties", {})
    parts = list(properties.items()) if isinstance(properties, Mapping) else []
    if "items" in schema:
        parts.append(("items", schema["items"]))
    if not isinstance(schema.get("additionalProperties", True), bool):
        parts.append(("additionalProperties", schema["additionalProperties"]))
    choices = schema.get("anyOf", ())
    parts += [
        (f"anyOf[{index}]", part)
        for index, part in enumerate(choices if isinstance(choices, list | tuple) else ())
    ]
    for name, part in parts:
        yield from _schema(part, f"{place}.{name}", depth + 1)


def _keywords(schema: Mapping[str, Any]) -> Iterator[str]:
    types = schema.get("type", [])
    for kind in types if isinstance(types, list | tuple) else [types]:
        if not isinstance(kind, str) or kind not in _NAMES:
            yield f"no JSON type is called {shown(kind)}; there are: {', '.join(_NAMES)}"
    for key, value in schema.items():
        if key in _COUNTS and (not is_type(value, "integer") or value < 0):
            yield f"'{key}' must be a whole number"
        elif key in _NUMBERS and not is_type(value, "number"):
            yield f"'{key}' must be a number"
        elif key in _FLAGS and not isinstance(value, bool):
            yield f"'{key}' must be true or false"
    if "multipleOf" in schema and is_type(schema["multipleOf"], "number") and schema["multipleOf"] <= 0:
        yield "'multipleOf' must be more than 0"
    if not isinstance(schema.get("properties", {}), Mapping):
        yield "'properties' must be a map of schemas"
    for key in ("enum", "anyOf"):
        if key in schema and (not isinstance(schema[key], list | tuple) or not schema[key]):
            yield f"'{key}' must be a list that is not empty"
    required = schema.get("required", [])
    if not isinstance(required, list | tuple) or not all(isinstance(name, str) for name in required):
        yield "'required' must be a list of names"
    if "format" in schema and schema["format"] not in FORMATS:
        yield f"there is no format {shown(schema['format'])}; there are: {', '.join(FORMATS)}"
    if "pattern" in schema:
        try:
            re.compile(schema["pattern"])
        except (re.error, TypeError) as error:
            yield f"{shown(schema['pattern'])} is no pattern: {error}"


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _same(one: Any, other: Any) -> bool:
    """JSON equality: 1 and 1.0 are equal, 1 and true are not."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(one == other)
