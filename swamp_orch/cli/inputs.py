"""The input syntax that `workflow run`, `model method run` and `model create` share.

| typed | means |
|---|---|
| `k=v` | the first `=` splits; `v` is text, and the receiver's schema decides what it becomes |
| `a.b=v` | nests: `{"a": {"b": "v"}}` |
| `k=@file` | the file's text (`~/` expanded); `\\@x` is a literal `@x`; `@scope/name` stays as it is |
| `k:json=[1,2]` | parsed as JSON; the suffix belongs to the last part of the key |
| `{"a": 1}` | a whole JSON object |
| `--input-file f.yaml` | a YAML or JSON mapping; `--input` wins over it, merged deeply |
| `--stdin` | a JSON object, an array or NDJSON of objects (one run each), or a YAML mapping |

Pure but for reading the files that are named. Does not know which inputs a workflow has.
"""

import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from swamp_proto.errors import UsageError
from swamp_proto.limits import CLIENT_BODY_MAX

_SCOPED: Final = re.compile(r"@[a-z0-9][a-z0-9_-]*/[A-Za-z0-9._/-]+")


def assignments(entries: Iterable[str], flag: str = "--input") -> dict[str, Any]:
    """`["a.b=1", "c:json=2"]` -> `{"a": {"b": "1"}, "c": 2}`; later entries win. Raises `UsageError`."""
    found: dict[str, Any] = {}
    for entry in entries:
        found = merged(found, _whole(entry, flag) if entry.lstrip().startswith("{") else _one(entry, flag))
    return found


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` over `below`; mappings merge key by key, everything else is replaced."""
    result = dict(below)
    for key, value in above.items():
        under = result.get(key)
        result[key] = merged(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return result


def _whole(entry: str, flag: str) -> dict[str, Any]:
    try:
        value = json.loads(entry)
    except ValueError as problem:
        raise UsageError(f"{flag} {_short(entry)} is not JSON: {problem}") from problem
    if not isinstance(value, dict):
        raise UsageError(f"{flag} {_short(entry)} is not a JSON object")
    return value


def _one(entry: str, flag: str) -> dict[str, Any]:
    key, equals, text = entry.partition("=")
    if not equals or not key:
        raise UsageError(f"{flag} takes key=value (got '{_short(entry)}')", hint=f"{flag} name=value")
    as_json = key.endswith(":json")
    path = (key.removesuffix(":json") if as_json else key).split(".")
    if not all(path):
        raise UsageError(f"'{key}' has an empty part between its dots", hint=f"{flag} a.b=value nests b in a")
    value: Any = _text(text, key)
    if as_json:
        try:
            value = json.loads(value)
        except ValueError as problem:
            raise UsageError(f"the value of {key} is not JSON: {problem}") from problem
    for part in reversed(path):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def _text(text: str, key: str) -> str:
    if text.startswith("\\@"):
        return text[1:]
    if not text.startswith("@") or (_SCOPED.fullmatch(text) and not Path(text[1:]).exists()):
        return text
    return read_text(text[1:], f"for {key}")


def read_text(name: str, what: str) -> str:
    """A file's text; `-` is stdin. Raises `UsageError`."""
    if name == "-":
        return read_stdin()
    try:
        raw = Path(name).expanduser().read_bytes()
    except OSError as problem:
        raise UsageError(f"cannot read {name} {what}: {problem.strerror}") from problem
    if len(raw) > CLIENT_BODY_MAX:
        raise UsageError(f"{name} is {len(raw)} bytes; at most {CLIENT_BODY_MAX} can be sent")
    try:
        return raw.decode()
    except UnicodeDecodeError as problem:
        raise UsageError(f"{name} is not UTF-8 text") from problem


def read_stdin() -> str:
    """All of stdin. Raises `UsageError` on a terminal, where nobody would know what it waits for."""
    if sys.stdin.isatty():
        raise UsageError("stdin is a terminal", hint="pipe the text in, or name a file")
    return sys.stdin.read()


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "…"


def mapping_from_yaml(text: str, where: str) -> dict[str, Any]:
    """A YAML (or JSON) mapping. Raises `UsageError` with the line."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        value = YAML(typ="safe", pure=True).load(text)
    except YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        detail = getattr(problem, "problem", None) or "not YAML"
        raise UsageError(f"{where}{line}: {detail}") from problem
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UsageError(f"{where}: inputs must be a mapping of names to values")
    found = _jsonable(value, where)
    assert isinstance(found, dict)
    return found


def _jsonable(value: Any, where: str) -> Any:
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise UsageError(f"{where}: keys must be text; quote them")
        return {key: _jsonable(item, where) for key, item in value.items()}
    if isinstance(value, list):
        return [_jsonable(item, where) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _batch_from_stdin(text: str) -> list[dict[str, Any]]:
    try:
        value = json.loads(text)
    except ValueError:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) > 1 and all(line.lstrip().startswith("{") for line in lines):
            return [_whole(line, "--stdin") for line in lines]
        return [mapping_from_yaml(text, "stdin")]
    items = value if isinstance(value, list) else [value]
    for item in items:
        if not isinstance(item, dict):
            raise UsageError("--stdin takes a JSON object, an array or lines of objects, or a YAML mapping")
    return items


def batches(entries: Iterable[str], input_file: str | None, stdin: bool) -> list[dict[str, Any]]:
    """The inputs of each run to start, one after the other; usually a single one."""
    typed = assignments(entries)
    if stdin and input_file is not None:
        raise UsageError("--stdin and --input-file cannot be combined", hint="pick one")
    if stdin:
        return [merged(item, typed) for item in _batch_from_stdin(read_stdin())]
    if input_file is not None:
        return [merged(mapping_from_yaml(read_text(input_file, "as inputs"), input_file), typed)]
    return [typed]


def tags(entries: Iterable[str]) -> dict[str, str]:
    """`["k=v"]` -> `{"k": "v"}`."""
    found = {}
    for entry in entries:
        key, equals, value = entry.partition("=")
        if not equals or not key:
            raise UsageError(f"--tag takes key=value (got '{_short(entry)}')")
        found[key] = value
    return found
