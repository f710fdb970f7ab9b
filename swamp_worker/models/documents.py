"""A model type as a JSON document and back: what describing an extension prints, and what is kept of it.

Rules: the document is the fields of `ModelType`, sets as sorted lists, maps by name; nothing is added and nothing left out.
Reading is strict: every field is there, of its type, and no other; what is wrong is named by its path (`methods.probe.arguments`).
Whether a name can be used, and whether a schema is one, is for whoever keeps the types.
"""

import types
import typing
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final, TypeVar

import attrs

from swamp_proto.errors import InvalidDefinition
from swamp_worker.models.interface import ModelType

_T = TypeVar("_T")
_Reader = Callable[[Any, str], Any]

_WORDS: Final[Mapping[type, str]] = {str: "text", int: "a whole number", bool: "true or false"}


def to_document(model_type: ModelType) -> dict[str, Any]:
    """JSON-shaped, with equal types giving equal documents."""
    found: dict[str, Any] = _plain(model_type)
    return found


def from_document(document: Any) -> ModelType:
    """The type that `document` is. Raises `InvalidDefinition` with the path of what is wrong."""
    found: ModelType = _class(ModelType)(document, "")
    return found


def _plain(value: Any) -> Any:
    if attrs.has(type(value)):
        return {field.name: _plain(getattr(value, field.name)) for field in attrs.fields(type(value))}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _refuse(path: str, wanted: str, value: Any) -> typing.NoReturn:
    raise InvalidDefinition(f"{path or 'the type'} must be {wanted}, not {_shown(value)}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


# ── a reader for each shape ─────────────────────────────────────────────────────────────────────────────────────────


@cache
def _class(cls: type) -> _Reader:
    readers = {field.name: _reader(hint) for field, hint in _fields(cls)}

    def read(value: Any, path: str) -> Any:
        if not isinstance(value, dict):
            _refuse(path, "a map", value)
        for key in value:
            if key not in readers:
                raise InvalidDefinition(f"{_under(path, key)} is not known; there are: {', '.join(readers)}")
        found = {}
        for key, reader in readers.items():
            if key not in value:
                raise InvalidDefinition(f"{_under(path, key)} is missing")
            found[key] = reader(value[key], _under(path, key))
        return cls(**found)

    return read


def _fields(cls: type) -> "list[tuple[attrs.Attribute[Any], Any]]":
    hints = typing.get_type_hints(cls)
    return [(field, hints[field.name]) for field in attrs.fields(cls)]


def _reader(hint: Any) -> _Reader:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        (inner,) = (part for part in parts if part is not type(None))
        reader = _reader(inner)
        return lambda value, path: None if value is None else reader(value, path)
    if origin is frozenset:
        return lambda value, path: frozenset(_texts(value, path))
    if origin is tuple:
        return lambda value, path: tuple(_texts(value, path))
    if hint in _WORDS:
        return lambda value, path: value if type(value) is hint else _refuse(path, _WORDS[hint], value)
    assert origin is not None, hint  # a map, of values or of anything
    item = parts[1]
    return _map_of(_class(item)) if attrs.has(item) else _map


def _texts(value: Any, path: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        _refuse(path, "a list of texts", value)
    return value


def _map(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        _refuse(path, "a map", value)
    return value


def _map_of(reader: _Reader) -> _Reader:
    def read(value: Any, path: str) -> Any:
        found = {key: reader(item, _under(path, key)) for key, item in _map(value, path).items()}
        for key, item in found.items():
            if item.name != key:
                raise InvalidDefinition(f"{_under(path, key)}.name must be {key!r}, not {_shown(item.name)}")
        return found

    return read


def _under(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)
