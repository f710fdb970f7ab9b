"""Attrs classes and JSON: the schema of a class, a value from JSON, JSON from a value.

    @attrs.frozen
    class Probe:
        hosts: list[str] = attrs.field(metadata=about("What to look at, `host:port`", minItems=1))
        patience: float = attrs.field(default=1.0, metadata=about("Seconds for one host"))

Rules that hold here:

- Types are `str int float bool list dict tuple[T, ...] Optional Literal Enum Any` and attrs classes of them. Anything else
  is a `DeclarationError` when the class is declared, never a surprise when it runs.
- Strict: a value is checked against the schema of its class before it becomes one, and nothing is coerced but an integer
  where a float is asked for. All that is wrong is said at once, by field.
- A field is called what its class calls it, or by `about(name=…)`.

It knows no file, no clock and no orchestrator.
"""

import enum
import functools
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar, Union, cast

import attrs

from swamp_proto.schema_check import CHECKED, check_value
from swamp_worker.sdk.errors import DeclarationError, InvalidArguments

T = TypeVar("T")

_KEY: Final = "swamp"
_PLAIN: Final[Mapping[Any, str]] = {str: "string", int: "integer", float: "number", bool: "boolean"}


def about(
    description: str = "",
    *,
    sensitive: bool = False,
    names_model: bool = False,
    name: str = "",
    **keywords: Any,
) -> dict[str, Any]:
    """Metadata of an attrs field: what it is, whether its value is masked wherever it would be shown, whether it names a model whose
    data the method may read then, what it is called in JSON, and JSON Schema keywords (`minItems=1`, `pattern="^[a-z]+$"`).
    """
    unknown = sorted(set(keywords) - CHECKED)
    if unknown:
        raise DeclarationError(
            f"the schema keyword {unknown[0]!r} is not understood; {', '.join(sorted(CHECKED))} are"
        )
    found: dict[str, Any] = {"description": description} if description else {}
    if sensitive:
        found["sensitive"] = True
    if names_model:
        found["namesModel"] = True
    return {_KEY: {"schema": {**found, **keywords}, "name": name}}


# ── schemas ─────────────────────────────────────────────────────────────────────────────────────────────────


def schema_of(cls: type) -> Mapping[str, Any]:
    """The JSON Schema of an attrs class. Raises `DeclarationError` naming the field."""
    return _schema_of_class(cls)


@functools.cache
def _schema_of_class(cls: Any) -> Mapping[str, Any]:
    if not attrs.has(cls):
        raise DeclarationError(f"{_name(cls)} is no attrs class: put @attrs.frozen above it")
    properties: dict[str, Any] = {}
    required: list[str] = []
    for field in _fields(cls):
        if not field.init:
            continue
        said = field.metadata.get(_KEY, {}).get("schema", {})
        schema = {**_schema_of_type(field.type, f"{cls.__name__}.{field.name}"), **said}
        if field.default is attrs.NOTHING:
            required.append(_called(field))
        elif not isinstance(field.default, attrs.Factory):  # type: ignore[arg-type] # a class at run time
            default = to_json(field.default, field.name)
            if default is not None:
                schema["default"] = default
        properties[_called(field)] = schema
    found: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        found["required"] = required
    return {**found, "additionalProperties": False}


def _fields(cls: type) -> tuple["attrs.Attribute[Any]", ...]:
    try:
        attrs.resolve_types(cls)
    except NameError as error:
        raise DeclarationError(
            f"{cls.__name__}: the type {error.name!r} is not known where the class is"
        ) from None
    found: tuple[attrs.Attribute[Any], ...] = attrs.fields(cls)
    return found


def _called(field: "attrs.Attribute[Any]") -> str:
    return field.metadata.get(_KEY, {}).get("name") or field.name


def _schema_of_type(kind: Any, where: str) -> dict[str, Any]:
    if kind is Any or kind is object:
        return {}
    if kind is None:
        raise DeclarationError(f"{where} has no type: write one after a colon")
    if kind in _PLAIN:
        return {"type": _PLAIN[kind]}
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _schema_of_type(inner[0], where)
    if origin is typing.Literal:
        return _schema_of_choices(list(inner), where)
    if origin in (Union, types.UnionType):
        return _schema_of_union(inner, where)
    if origin in (list, Sequence) or kind is list:
        return {"type": "array", **({"items": _schema_of_type(inner[0], f"{where}[]")} if inner else {})}
    if origin is tuple and len(inner) == 2 and inner[1] is Ellipsis:
        return {"type": "array", "items": _schema_of_type(inner[0], f"{where}[]")}
    if origin in (dict, Mapping) or kind is dict:
        if inner and inner[0] is not str:
            raise DeclarationError(f"{where}: the keys of a map are text (dict[str, …])")
        rest = {"additionalProperties": _schema_of_type(inner[1], f"{where}{{}}")} if inner else {}
        return {"type": "object", **rest}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _schema_of_choices([each.value for each in kind], where)
    if isinstance(kind, type) and attrs.has(kind):
        return dict(schema_of(kind))
    raise DeclarationError(
        f"{where}: {_name(kind)} has no form in JSON; use str, int, float, bool, list[…], dict[str, …], Optional, Literal, "
        "an Enum, Any, or an attrs class"
    )


def _schema_of_choices(choices: list[Any], where: str) -> dict[str, Any]:
    kinds = [_PLAIN.get(type(choice)) for choice in choices]
    if None in kinds:
        raise DeclarationError(f"{where}: choices are text, numbers or booleans")
    distinct = list(dict.fromkeys(kinds))
    return {"type": distinct[0] if len(distinct) == 1 else distinct, "enum": choices}


def _schema_of_union(inner: tuple[Any, ...], where: str) -> dict[str, Any]:
    others = [each for each in inner if each is not type(None)]
    if len(others) != 1 or len(others) == len(inner):
        raise DeclarationError(f"{where}: of unions only `X | None` is understood")
    schema = _schema_of_type(others[0], where)
    if "type" in schema:
        kinds = schema["type"]
        schema["type"] = [*([kinds] if isinstance(kinds, str) else kinds), "null"]
    if "enum" in schema:
        schema["enum"] = [*schema["enum"], None]
    return schema


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)


# ── from JSON ───────────────────────────────────────────────────────────────────────────────────────────────


def from_json(cls: type[T], value: Any, what: str = "") -> T:
    """The `cls` that a JSON value is. Raises `InvalidArguments` with all that is wrong; `what` is how the value is called."""
    problems = check_value(schema_of(cls), value, what)
    if problems:
        raise InvalidArguments("; ".join(problems))
    return cast(T, _build(cls, value, what))


def _build(kind: Any, value: Any, where: str) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _build(inner[0], value, where)
    if value is None or kind is Any or kind is object or kind in (str, int, bool) or origin is typing.Literal:
        return value
    if kind is float:
        return float(value)
    if origin in (Union, types.UnionType):
        return _build(next(each for each in inner if each is not type(None)), value, where)
    if origin in (list, Sequence):
        return [_build(inner[0], item, f"{where}[{index}]") for index, item in enumerate(value)]
    if origin is tuple:
        return tuple(_build(inner[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin in (dict, Mapping):
        return {key: _build(inner[1], item, _join(where, key)) for key, item in value.items()}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(value)
    if isinstance(kind, type) and attrs.has(kind):
        given: dict[str, Any] = {
            str(field.alias): _build(field.type, value[_called(field)], _join(where, _called(field)))
            for field in _fields(kind)
            if field.init and _called(field) in value
        }
        try:
            return kind(**given)
        except (ValueError, TypeError) as error:  # an attrs validator or converter of the author's
            raise InvalidArguments(f"{where or 'the arguments'}: {_first_line(error)}") from error
    return value


def _first_line(error: BaseException) -> str:
    return str(error.args[0] if error.args else type(error).__name__).partition("\n")[0]


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


# ── to JSON ─────────────────────────────────────────────────────────────────────────────────────────────────


def to_json(value: Any, where: str = "") -> Any:
    """JSON-shaped `value`: attrs classes are maps, enums their values, tuples lists. Raises `InvalidArguments` by field."""
    if value is None or isinstance(value, bool | int):
        return value.value if isinstance(value, enum.Enum) else value
    if isinstance(value, str):
        return value.value if isinstance(value, enum.Enum) else value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidArguments(f"{where or 'the value'}: JSON has no {value}")
        return value
    if isinstance(value, enum.Enum):
        return to_json(value.value, where)
    if attrs.has(type(value)):
        return {
            _called(field): to_json(getattr(value, field.name), _join(where, _called(field)))
            for field in _fields(type(value))
            if field.init
        }
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InvalidArguments(f"{where or 'the value'}: a key is text, not {type(key).__name__}")
        return {str(key): to_json(item, _join(where, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise InvalidArguments(f"{where or 'the value'}: {type(value).__name__} has no form in JSON")


_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def encoded(value: Any, schema: Mapping[str, Any] | None, what: str) -> bytes:
    """The JSON of `value`, checked against `schema`. Raises `InvalidArguments`."""
    plain = to_json(value)
    problems = check_value(schema, plain) if schema is not None else []
    if problems:
        raise InvalidArguments(f"{what}: {'; '.join(problems)}")
    try:
        return _ENCODER.encode(plain).encode()
    except UnicodeEncodeError:
        raise InvalidArguments(f"{what}: it holds text that is not Unicode") from None
