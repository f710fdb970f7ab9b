"""Changing YAML text in place, and writing new YAML.

Rules: an edit touches the one key it is about; comments, order, quoting and blank lines elsewhere stay byte
for byte. Each edit is proved before it is returned: the new text is parsed again and must differ from the old
data in exactly that key. Where the text cannot be patched (a flow map, an odd layout) the library's round
trip does it, under the same proof.

It does not write files; see `files.py`.
"""

import copy
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from swamp_orch.definitions.yaml_source import DocumentPath, Parsed, parse, resolve
from swamp_proto.errors import Bug, InvalidDefinition, LocalError

_PLAIN: Final = re.compile(r"[A-Za-z0-9_/.$(][^\n\t\x00-\x1f\x7f-\x9f\ud800-\udfff\ufeff]*")
_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


def set_key(
    text: str, path: DocumentPath, value: Any, *, first: bool = False, shown: Path | None = None
) -> str:
    """`text` with the value at `path` replaced or, where the last key is missing, added: as the first key of
    its map with `first`, else as the last. Raises `InvalidDefinition` when the text does not parse or the
    parent is not a map."""
    shown = shown or Path("text")
    parsed = parse(text, shown, spans=True)
    wanted = _with(parsed.data, path, value, first, shown)
    for attempt in (_patch, _round_trip):
        edited = attempt(text, parsed, path, value, first)
        if edited is not None and _reads_as(edited, wanted, shown):
            return edited
    written = ".".join(map(str, path))
    raise LocalError(
        f"{shown}: '{written}' cannot be written into this text without touching the rest of it",
        hint=f"write it yourself: {path[-1]}: {value}",
    )


def dump(document: Mapping[str, Any]) -> str:
    """A new document in the style of the tutorial: block style, two blanks, lists indented under their
    key."""
    lines: list[str] = []
    _emit(lines, document, 0)
    text = "\n".join(lines) + "\n"
    if not _reads_as(text, document, Path("text")):
        raise Bug("the YAML writer wrote something else than it was given")
    return text


def scalar(value: Any) -> str:
    """One scalar on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return json.dumps(value)
    text = str(value)
    if (
        _PLAIN.fullmatch(text)
        and text == text.strip()
        and ": " not in text
        and " #" not in text
        and not text.endswith(":")
        and _is_text(text)
    ):
        return text
    return _quoted(text)


def _quoted(value: Any) -> str:
    """A text in double quotes, or a list or map in brackets. JSON leaves some characters alone that YAML does
    not allow or folds."""
    quoted = json.dumps(value, ensure_ascii=False)
    return re.sub(r"[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]", lambda m: f"\\u{ord(m[0]):04x}", quoted)


def _is_text(text: str) -> bool:
    try:
        return isinstance(resolve(text), str)
    except ValueError:
        return False


def _emit(lines: list[str], value: Mapping[str, Any], indent: int) -> None:
    pad = " " * indent
    for key, item in value.items():
        name = key if _KEY.fullmatch(key) and _is_text(key) else _quoted(key)
        _emit_item(lines, f"{pad}{name}:", item, indent)


def _emit_item(lines: list[str], head: str, item: Any, indent: int) -> None:
    if isinstance(item, Mapping) and item:
        lines.append(head)
        _emit(lines, item, indent + 2)
    elif isinstance(item, Sequence) and not isinstance(item, str) and item:
        lines.append(head)
        for element in item:
            block: list[str] = []
            if isinstance(element, Mapping) and element:
                _emit(block, element, indent + 4)
                block[0] = " " * (indent + 2) + "- " + block[0].lstrip(" ")
            elif isinstance(element, Sequence) and not isinstance(element, str):
                block.append(" " * (indent + 2) + "- " + _quoted(element))
            else:
                _emit_item(block, " " * (indent + 2) + "-", element, indent + 2)
            lines.extend(block)
    elif isinstance(item, Mapping):
        lines.append(f"{head} {{}}")
    elif isinstance(item, Sequence) and not isinstance(item, str):
        lines.append(f"{head} []")
    elif isinstance(item, str) and _is_block(item):
        body = item.rstrip("\n")
        chomp = "" if item.endswith("\n") else "-"
        lines.append(f"{head} |{chomp}")
        lines.extend(" " * (indent + 2) + row if row else "" for row in body.split("\n"))
    else:
        lines.append(f"{head} {scalar(item)}")


def _is_block(text: str) -> bool:
    """Whether `text` reads well as a `|` block and survives it."""
    return (
        "\n" in text.rstrip("\n")
        and not text.endswith("\n\n")
        and not text[0].isspace()
        and re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff\ufffe\uffff]", text)
        is None
        and all(row.strip() or not row for row in text.split("\n"))
    )


def _with(data: Any, path: DocumentPath, value: Any, first: bool, shown: Path) -> Any:
    result = copy.deepcopy(data)
    parent = result
    for key in path[:-1]:
        parent = parent[key]
    if not isinstance(parent, dict):
        raise InvalidDefinition(
            f"{shown}:1: this is not a map of keys", hint="a definition is a map: `name: …`"
        )
    last = path[-1]
    if last in parent or not first:
        parent[last] = value
    else:
        before = dict(parent)
        parent.clear()
        parent[last] = value
        parent.update(before)
    return result


def _reads_as(text: str, wanted: Any, shown: Path) -> bool:
    try:
        found = parse(text, shown).data
    except InvalidDefinition:
        return False
    # Text compares order and types too: 1, 1.0 and True are equal in Python.
    return json.dumps(found, default=list) == json.dumps(_plain(wanted))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _patch(text: str, parsed: Parsed, path: DocumentPath, value: Any, first: bool) -> str | None:
    """The edit as a change of a few characters, or None."""
    if isinstance(value, Mapping | list | tuple):
        return None
    span = parsed.spans.get(path)
    written = scalar(value)
    if span is not None:
        if span.style in ("map", "list", "block") and not span.flow:
            if not isinstance(path[-1], str):
                return None
            end = len(text[: _end_of_leaves(parsed, path)].rstrip())
            return f"{text[: span.key_start]}{scalar(path[-1])}: {written}{text[end:]}"
        if span.start == span.end:
            written = " " + written  # `key:` with nothing behind it
        return text[: span.start] + written + text[span.end :]
    parent = parsed.spans.get(path[:-1])
    siblings = [
        found for key, found in parsed.spans.items() if len(key) == len(path) and key[:-1] == path[:-1]
    ]
    if parent is None or parent.flow or parent.style != "map" or not siblings:
        return None
    siblings.sort(key=lambda found: found.key_start)
    line = f"{scalar(path[-1])}: {written}"
    pad = " " * siblings[0].column
    if first:
        at = siblings[0].key_start
        return text[:at] + line + "\n" + pad + text[at:]
    body = text[: _end_of_leaves(parsed, path[:-1])].rstrip()
    stop = text.find("\n", len(body))
    if stop < 0:
        return text + "\n" + pad + line + "\n"
    return text[:stop] + "\n" + pad + line + text[stop:]


def _end_of_leaves(parsed: Parsed, path: DocumentPath) -> int:
    """Where the value at `path` ends. Block maps and lists end where the next token starts, behind comments
    that are not theirs, so the leaves are asked."""
    return max(
        found.end
        for key, found in parsed.spans.items()
        if key[: len(path)] == path and (found.flow or found.style not in ("map", "list"))
    )


def _round_trip(text: str, parsed: Parsed, path: DocumentPath, value: Any, first: bool) -> str | None:
    """The edit by the library, which keeps comments and order but may lay the text out anew."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    yaml = YAML(typ="rt", pure=True)
    yaml.preserve_quotes = True
    yaml.width = 1 << 20
    yaml.indent(mapping=2, sequence=4, offset=2)
    try:
        document = yaml.load(text)
        parent = document
        for key in path[:-1]:
            parent = parent[key]
        if first and path[-1] not in parent:
            parent.insert(0, path[-1], value)
        else:
            parent[path[-1]] = value
        out = io.StringIO()
        yaml.dump(document, out)
    except (YAMLError, RecursionError):
        return None
    return out.getvalue()
