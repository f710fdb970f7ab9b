"""What is sensitive in a value, by its schema: found, and replaced.

Whatever stands below a part of a schema that says `sensitive: true` is: texts, and numbers as text. What is true, false or null is not: it
tells next to nothing, and nothing could stand for it.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]


def holds_sensitive(schema: Any) -> bool:
    """Whether anything in values of this schema is."""
    if not isinstance(schema, Mapping):
        return False
    if schema.get("sensitive") is True:
        return True
    parts = [*schema.get("properties", {}).values(), *schema.get("anyOf", ())]
    parts += [schema.get("items"), schema.get("additionalProperties")]
    return any(holds_sensitive(part) for part in parts)


def sensitive_parts(schema: Schema, value: Any) -> list[tuple[str, str]]:
    """What is, by its path in the value (`tokens[0].text`)."""
    found: list[tuple[str, str]] = []

    def note(path: str, text: str) -> str:
        found.append((path, text))
        return text

    replaced(schema, value, note)
    return found


def replaced(schema: Schema, value: Any, instead: Callable[[str, str], str]) -> Any:
    """A copy with `instead(path, text)` in the place of each."""
    return _replaced([schema], value, instead, "", False)


def opened(schema: Schema) -> Schema:
    """The schema without what it asks of parts that are sensitive: what stands there instead need not fit."""
    if schema.get("sensitive") is True:
        return {}
    found = dict(schema)
    for key in ("items", "additionalProperties"):
        if isinstance(found.get(key), Mapping):
            found[key] = opened(found[key])
    if "properties" in found:
        found["properties"] = {name: opened(part) for name, part in found["properties"].items()}
    if "anyOf" in found:
        found["anyOf"] = [opened(part) for part in found["anyOf"]]
    return found


def _replaced(
    schemas: Sequence[Any], value: Any, instead: Callable[[str, str], str], path: str, inside: bool
) -> Any:
    known = list(_alternatives(schemas))
    inside = inside or any(schema.get("sensitive") is True for schema in known)
    if isinstance(value, Mapping):
        return {
            key: _replaced(
                [
                    schema.get("properties", {}).get(key, schema.get("additionalProperties"))
                    for schema in known
                ],
                item,
                instead,
                f"{path}.{key}" if path else str(key),
                inside,
            )
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        items = [schema.get("items") for schema in known]
        return [
            _replaced(items, item, instead, f"{path}[{index}]", inside) for index, item in enumerate(value)
        ]
    if not inside or value is None or isinstance(value, bool):
        return value
    return instead(path, value if isinstance(value, str) else json.dumps(value))


def _alternatives(schemas: Sequence[Any]) -> Iterator[Schema]:
    for schema in schemas:
        if isinstance(schema, Mapping):
            yield schema
            yield from _alternatives(schema.get("anyOf", ()))
