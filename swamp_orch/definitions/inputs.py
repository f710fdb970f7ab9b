"""Inputs and arguments: what a definition declares, what a caller gives, and what a method finally gets.

Rules:
1. Order, later wins: defaults of the type, the definition's `globalArguments` (those the method knows), its
   stored `methods.<m>.arguments`, what the caller gives.
2. A key that nobody declared is refused, never dropped. A default counts whatever it is: `false`, `0` and
   `""` are values.
3. Text from a command line is turned into the declared type only where that is exact: `1.9` and `0x10` are no
   integers.
4. A text with `${{ … }}` passes type checks here; `check_arguments(…, evaluated=True)` checks again what it
   became.

It does not evaluate expressions and does not read files.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import attrs

from swamp_orch.definitions.fields import Fields, Findings, has_expression, suggestion
from swamp_orch.definitions.values import ModelDefinition
from swamp_orch.definitions.yaml_source import DocumentPath
from swamp_proto.errors import LocalError
from swamp_proto.schema_check import check_value, is_type
from swamp_proto.sensitive import holds_sensitive
from swamp_worker.models.interface import MethodSpec, ModelType

TYPES: Final = ("string", "number", "integer", "boolean", "array", "object")
PROPERTY_KEYS: Final = (
    "type", "description", "enum", "default", "required", "properties", "items", "minItems", "maxItems",
    "additionalProperties", "sensitive",
)  # fmt: skip
NO_INPUTS: Final[Mapping[str, Any]] = {"type": "object", "properties": {}, "additionalProperties": False}
MASK: Final = "***"

_INTEGER: Final = re.compile(r"-?(0|[1-9][0-9]*)")
_FIRST_NAME: Final = re.compile(r"[^.\[ ]*")
_NUMBER: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")


class InvalidInput(LocalError):
    """What a caller gave does not fit what is declared."""

    code = "input_validation_failed"


@attrs.frozen
class Arguments:
    """What one call of a method starts from. Texts may still hold expressions."""

    inputs: Mapping[str, Any]  # for the definition's own `inputs` schema, defaults included
    arguments: Mapping[str, Any]  # of the method, merged
    global_arguments: Mapping[str, Any]


# ── input schemas in definitions ──────────────────────────────────────────────────────────────────


def read_schema(raw: Any, findings: Findings, path: DocumentPath) -> dict[str, Any]:
    """The `inputs` of a definition in its one inner form: `{type: object, properties, required,
    additionalProperties}`.

    Both written forms are understood: that one, and a flat map of properties. In either, a property may say
    `required: true`. Problems go to `findings`."""
    if raw is None:
        return dict(NO_INPUTS)
    if not isinstance(raw, dict):
        findings.add(
            path, "'inputs' must be a map of input names", "write inputs:, and below it name: {type: string}"
        )
        return dict(NO_INPUTS)
    if isinstance(raw.get("type"), str) or _is_object_form(raw):
        raw = {"type": "object", **raw}
        if raw["type"] != "object":
            findings.add((*path, "type"), f"'type' of the inputs must be object, not '{raw['type']}'")
        schema = _read_object(raw, findings, path, "the inputs")
    else:
        schema = _read_object({"type": "object", "properties": raw}, findings, path, "the inputs", flat=True)
    schema.setdefault("additionalProperties", False)
    return schema


def _is_object_form(raw: dict[str, Any]) -> bool:
    properties = raw.get("properties")
    return isinstance(properties, dict) and not isinstance(properties.get("type"), str)


def _read_object(
    raw: dict[str, Any], findings: Findings, path: DocumentPath, what: str, *, flat: bool = False
) -> dict[str, Any]:
    fields = Fields(raw, findings, path, what, "schema", PROPERTY_KEYS)
    schema: dict[str, Any] = {"type": "object", "properties": {}}
    required: list[str] = []
    under: DocumentPath = path if flat else (*path, "properties")
    if not flat and not isinstance(raw.get("required", []), bool):
        required.extend(fields.words("required"))
    for name, item in fields.mapping("properties").items():
        found, needed = _read_property(item, findings, (*under, name), name)
        schema["properties"][name] = found
        if needed and name not in required:
            required.append(name)
    for name in required:
        if name not in schema["properties"]:
            fields.problem(
                f"'required' of {what} names '{name}', which is not a property."
                f"{suggestion(name, schema['properties'])}",
                None,
                "required",
            )
    if required:
        schema["required"] = required
    if "additionalProperties" in fields:
        rest = raw["additionalProperties"]
        if isinstance(rest, bool):
            schema["additionalProperties"] = rest
        else:
            schema["additionalProperties"], _ = _read_property(
                rest, findings, (*path, "additionalProperties"), "additionalProperties"
            )
    if isinstance(raw.get("description"), str):
        schema["description"] = raw["description"]
    if fields.flag("sensitive"):
        schema["sensitive"] = True
    return schema


def _read_property(
    raw: Any, findings: Findings, path: DocumentPath, name: str
) -> tuple[dict[str, Any], bool]:
    what = f"input '{name}'"
    if not isinstance(raw, dict):
        findings.add(path, f"{what} must be a map that says its type", f"write {name}: {{type: string}}")
        return {}, False
    kind = raw.get("type")
    if kind == "object" or (kind is None and isinstance(raw.get("properties"), dict)):
        schema = _read_object(raw, findings, path, what)
        fields = None
    else:
        fields = Fields(raw, findings, path, what, "schema", PROPERTY_KEYS)
        schema = {}
        if kind is not None:
            chosen = fields.choice("type", TYPES, "")
            if chosen:
                schema["type"] = chosen
        if "description" in fields:
            schema["description"] = fields.text("description", empty=True)
        for key in ("minItems", "maxItems"):
            if key in fields:
                schema[key] = fields.whole(key, 0)
        if "items" in fields:
            schema["items"], _ = _read_property(raw["items"], findings, (*path, "items"), f"{name}[]")
        if fields.flag("sensitive"):
            schema["sensitive"] = True
    needed = raw.get("required") is True
    if "enum" in raw:
        choices = raw["enum"]
        if not isinstance(choices, list) or not choices:
            findings.add((*path, "enum"), f"'enum' of {what} must be a list of values", None)
        else:
            for index, choice in enumerate(choices):
                for problem in check_value(
                    {"type": schema["type"]} if "type" in schema else {}, choice, "the value"
                ):
                    findings.add((*path, "enum", index), f"'enum' of {what}: {problem}")
            schema["enum"] = choices
    if "default" in raw:
        value = raw["default"]
        for problem in check_value(schema, value, f"the default of {what}", expressions=True):
            findings.add((*path, "default"), problem)
        if has_expression(value):
            findings.add(
                (*path, "default"), f"the default of {what} cannot be an expression", "write a fixed value"
            )
        schema["default"] = value
    return schema, needed


# ── values for a schema ───────────────────────────────────────────────────────────────────────────


def resolve_inputs(
    schema: Mapping[str, Any],
    given: Mapping[str, Any],
    *,
    coerce: bool = False,
    expressions: bool = False,
    what: str = "input",
) -> dict[str, Any]:
    """`given` checked against `schema`, with its defaults. `coerce`: texts came from a command line. Raises
    `InvalidInput` with one line for each problem."""
    properties: Mapping[str, Any] = schema.get("properties", {})
    values: dict[str, Any] = {}
    problems: list[str] = []
    open_schema = schema.get("additionalProperties", False) is not False
    for key, value in given.items():
        if key not in properties and not open_schema:
            listed = ", ".join(properties) or "none"
            problems.append(
                f"{key} is not a valid input property.{suggestion(key, properties)}"
                f" Valid inputs are: {listed}"
            )
            continue
        values[key] = coerce_text(properties.get(key, {}), value) if coerce else value
    complete = with_defaults(schema, values)
    problems += check_value(schema, complete, expressions=expressions)
    if problems:
        raise InvalidInput(
            f"{what.capitalize()} validation failed:\n"
            + "\n".join(f"  {found}" for found in dict.fromkeys(problems)),
            hint=_how_to_give(schema, complete),
        )
    return complete


def with_defaults(schema: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` and, where a key is absent, the schema's default: also `false`, `0`, `""` and null."""
    complete: dict[str, Any] = {}
    for key, item in schema.get("properties", {}).items():
        if key in values:
            value = values[key]
            nested = isinstance(value, Mapping) and isinstance(item.get("properties"), Mapping)
            complete[key] = with_defaults(item, value) if nested else value
        elif "default" in item:
            complete[key] = item["default"]
    return complete | {key: value for key, value in values.items() if key not in complete}


def coerce_text(schema: Mapping[str, Any], value: Any) -> Any:
    """A text from a command line as the declared type, where that is exact; else unchanged, for the check to
    refuse."""
    if isinstance(value, Mapping):
        return {
            key: coerce_text(schema.get("properties", {}).get(key, {}), item) for key, item in value.items()
        }
    if not isinstance(value, str) or has_expression(value):
        return value
    for choice in schema.get("anyOf", ()):
        found = coerce_text(choice, value)
        if not check_value(choice, found):
            return found
    types = schema.get("type")
    wanted = [types] if isinstance(types, str) else list(types or ())
    if "string" in wanted:
        return value
    text = value.strip()
    for kind in wanted:
        if kind == "boolean" and text in ("true", "false"):
            return text == "true"
        if kind == "integer" and _INTEGER.fullmatch(text) and len(text) < 20:
            return int(text)
        if kind == "number" and _NUMBER.fullmatch(text) and len(text) < 40:
            return int(text) if _INTEGER.fullmatch(text) else float(text)
        if kind in ("array", "object"):
            try:
                found = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if is_type(found, kind):
                return found
    if not wanted and "enum" in schema:
        return next((choice for choice in schema["enum"] if _text_of(choice) == text), value)
    return value


def _text_of(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def sensitive_inputs(schema: Mapping[str, Any]) -> frozenset[str]:
    """Names of top-level properties that are sensitive, or hold something that is."""
    return frozenset(key for key, item in schema.get("properties", {}).items() if holds_sensitive(item))


def mask_inputs(schema: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` as they may be stored and shown: what is declared `sensitive` is `***`."""
    properties: Mapping[str, Any] = schema.get("properties", {})
    return {key: _mask(properties.get(key, {}), value) for key, value in values.items()}


def sensitive_texts(schema: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[str]:
    """Every text (and number, as text) in `values` that is declared `sensitive`: what has to be masked in what a step prints."""
    properties: Mapping[str, Any] = schema.get("properties", {})
    for key, value in values.items():
        yield from _sensitive(properties.get(key, {}), value, False)


def _sensitive(schema: Mapping[str, Any], value: Any, inside: bool) -> Iterator[str]:
    inside = inside or schema.get("sensitive") is True
    for choice in schema.get("anyOf", ()):
        yield from _sensitive(choice, value, inside)
    if isinstance(value, Mapping):
        rest = schema.get("additionalProperties")
        other = rest if isinstance(rest, Mapping) else {}
        for key, item in value.items():
            yield from _sensitive(schema.get("properties", {}).get(key, other), item, inside)
    elif isinstance(value, list):
        items = schema.get("items")
        for item in value:
            yield from _sensitive(items if isinstance(items, Mapping) else {}, item, inside)
    elif inside and isinstance(value, str | int | float) and not isinstance(value, bool):
        yield str(value)


def _mask(schema: Mapping[str, Any], value: Any) -> Any:
    if schema.get("sensitive") is True:
        return MASK
    for choice in schema.get("anyOf", ()):
        value = _mask(choice, value)
    if isinstance(value, Mapping):
        rest = schema.get("additionalProperties")
        other = rest if isinstance(rest, Mapping) else {}
        return {key: _mask(schema.get("properties", {}).get(key, other), item) for key, item in value.items()}
    if isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        return [_mask(schema["items"], item) for item in value]
    return value


def _how_to_give(schema: Mapping[str, Any], values: Mapping[str, Any]) -> str | None:
    missing = [key for key in schema.get("required", ()) if key not in values]
    return " ".join(f"--input {key}=…" for key in missing) if missing else None


# ── arguments of a method ─────────────────────────────────────────────────────────────────────────


def method_arguments(
    model_type: ModelType,
    method: MethodSpec,
    definition: ModelDefinition,
    given: Mapping[str, Any],
    *,
    coerce: bool = False,
) -> Arguments:
    """Merge and check what a call of `method` starts from. `given` are the caller's inputs (`--input`, or a
    step's `inputs`, which may hold expressions). Raises `InvalidInput`."""
    schema = method.arguments
    known: Mapping[str, Any] = schema.get("properties", {})
    declared: Mapping[str, Any] = definition.inputs.get("properties", {})
    closed = schema.get("additionalProperties", True) is False
    unknown = [key for key in given if key not in declared and key not in known and closed]
    if unknown:
        valid = list(dict.fromkeys([*declared, *known]))
        guess = next((text for text in (suggestion(key, valid) for key in unknown) if text), "")
        raise InvalidInput(
            f"Unknown method input(s): {', '.join(unknown)}."
            f" Valid inputs are: {', '.join(valid) or 'none'}.{guess}",
            hint=f"swamp model method describe {definition.name} {method.name}",
        )
    inputs = resolve_inputs(
        definition.inputs,
        {key: value for key, value in given.items() if key in declared},
        coerce=coerce,
        expressions=True,
    )
    own = {key: value for key, value in given.items() if key not in declared}
    if coerce:
        own = {key: coerce_text(known.get(key, {}), value) for key, value in own.items()}
    global_arguments = with_defaults(model_type.global_arguments, definition.global_arguments)
    shared = {key: value for key, value in global_arguments.items() if closed and key in known}
    stored = definition.methods.get(method.name, {})
    arguments = with_defaults(schema, {**shared, **stored, **own})
    check_arguments(method, arguments)
    return Arguments(inputs, arguments, global_arguments)


def check_arguments(
    method: MethodSpec,
    arguments: Mapping[str, Any],
    *,
    evaluated: bool = False,
    place: Callable[[str], str] = lambda argument: "",
) -> None:
    """Check merged arguments; once more, with `evaluated`, when expressions have become values. `place` says file and line of an
    argument, where it has one. Raises `InvalidInput`."""
    problems = check_value(method.arguments, arguments, expressions=not evaluated)
    if problems:
        told = []
        for found in problems:
            where = place(_FIRST_NAME.match(found)[0])  # type: ignore[index] # it matches every text
            told.append(f"  {where}: {found}" if where else f"  {found}")
        raise InvalidInput(
            "Input validation failed:\n" + "\n".join(told),
            hint=_how_to_give(method.arguments, arguments) or f"see the arguments of `{method.name}`",
        )
