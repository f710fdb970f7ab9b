"""Records as queries see them: the fields there are, rows for CEL with only the fields an expression uses,
and JSON documents.

Rules:
1. `FIELDS` is the whole list; every one of them is known to CEL with its type.
2. `attributes` is the document in a record's JSON content, wherever it is stored; empty where there is none
   (not JSON, not valid, larger than `ATTRIBUTES_MAX`). `content` is the text of the content.
3. A row is built from the tuple of a store's `scan`; nothing is decoded that the expression does not use.

It does not know which records are wanted.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, BinaryIO, Final, Protocol

from swamp_orch.query import syntax
from swamp_orch.query.environment import CelType, Compiled
from swamp_orch.store.interface import Selection
from swamp_proto.errors import Broken, OperationFailed
from swamp_proto.limits import ATTRIBUTES_MAX

FIELDS: Final[Mapping[str, CelType]] = {
    "id": CelType.STRING,
    "name": CelType.STRING,
    "version": CelType.INT,
    "isLatest": CelType.BOOL,
    "createdAt": CelType.STRING,
    "attributes": CelType.DYN,
    "tags": CelType.STRINGS,
    "modelName": CelType.STRING,
    "modelType": CelType.STRING,
    "specName": CelType.STRING,
    "dataType": CelType.STRING,
    "contentType": CelType.STRING,
    "lifetime": CelType.STRING,
    "ownerType": CelType.STRING,
    "streaming": CelType.BOOL,
    "size": CelType.INT,
    "content": CelType.STRING,
    "ownerRef": CelType.STRING,
    "workflowRunId": CelType.STRING,
    "workflowName": CelType.STRING,
    "jobName": CelType.STRING,
    "stepName": CelType.STRING,
    "source": CelType.STRING,
    "ns": CelType.STRING,
    "outcome": CelType.STRING,
    "isDeleted": CelType.BOOL,
}
"""What a predicate and `--select` may name."""

DOCUMENT_FIELDS: Final = (
    "id", "name", "version", "isLatest", "createdAt", "tags", "modelName", "modelId", "modelType", "specName",
    "dataType", "contentType", "lifetime", "ownerType", "streaming", "size", "ownerRef", "workflowRunId",
    "workflowName", "jobName", "stepName", "source", "outcome", "isDeleted", "attributes",
)  # fmt: skip
"""What `document` needs of a scan, in its order."""

Row = tuple[Any, ...]


class Reader(Protocol):
    """What is needed of a store."""

    def scan(
        self, selection: Selection, fields: Sequence[str], *, after: int = 0, limit: int | None = None
    ) -> Iterable[Row]: ...

    def open_blob(self, sha256: str) -> BinaryIO: ...


def document(row: Row) -> dict[str, Any]:
    """The JSON form of a record: `{id, name, version, isLatest, createdAt, namespace, tags, modelName, …,
    source, content}` and `outcome`, `isDeleted`. `content` is the parsed JSON, `""` where `attributes` are
    empty."""
    (identity, name, version, latest, created, tags, model, model_id, model_type, spec, kind, content_type,
     lifetime, owner_type, streaming, size, owner_ref, run, workflow, job, step, source, outcome, deleted,
     attributes, *_) = row  # fmt: skip
    content = decode_attributes(attributes)
    return {
        "id": identity,
        "name": name,
        "version": version,
        "isLatest": latest,
        "createdAt": created,
        "namespace": "",
        "tags": json.loads(tags),
        "modelName": model,
        "modelId": model_id,
        "modelType": model_type,
        "specName": spec,
        "dataType": kind,
        "contentType": content_type,
        "lifetime": lifetime,
        "ownerType": owner_type,
        "streaming": streaming,
        "size": size,
        "ownerRef": owner_ref,
        "workflowRunId": run,
        "workflowName": workflow,
        "jobName": job,
        "stepName": step,
        "source": source,
        "content": "" if content is MISSING else content,
        "outcome": outcome,
        "isDeleted": deleted,
    }


MISSING: Final = object()
"""No attributes: not JSON, not valid, or too large. Not the same as JSON's null."""


def decode_attributes(raw: bytes | None) -> Any:
    """The document in JSON content, or `MISSING`."""
    if raw is None:
        return MISSING
    try:
        return _decode(raw.decode())
    except (ValueError, RecursionError):
        return MISSING


class RowMaker:
    """Makes CEL rows for the names a compiled expression uses. `fields` is what to ask `scan` for; the row
    comes from the tuple's first `len(fields)` values."""

    def __init__(self, compiled: Compiled, reader: Reader) -> None:
        self._reader = reader
        self._names = compiled.names
        self._keys = attribute_keys(compiled.tree.root)
        fields: list[str] = []
        self._parts: list[tuple[str, Callable[[Row], Any]]] = []
        for name in compiled.names:
            at = len(fields)
            match name:
                case "ns":
                    self._parts.append((name, lambda row: ""))
                    continue
                case "attributes":
                    self._parts.append((name, self._attributes(at)))
                case "tags":
                    self._parts.append((name, lambda row, at=at: json.loads(row[at])))  # type: ignore[misc]
                case "content":
                    fields += ["sha256", "size"]
                    self._parts.append((name, self._content(at)))
                case _:
                    self._parts.append((name, lambda row, at=at: row[at]))  # type: ignore[misc]
            fields.append(name)
        self.fields = tuple(fields)
        self.plain = not {"ns", "attributes", "tags", "content"}.intersection(compiled.names)

    def __call__(self, row: Row) -> dict[str, Any]:
        """The row; raises what reading content raises."""
        if self.plain:
            return dict(zip(self._names, row, strict=False))
        return {name: make(row) for name, make in self._parts}

    def sane(self, row: Row) -> dict[str, Any]:
        """The row once more, with what the engine cannot represent replaced: integers beyond 64 bits become
        doubles (as in every comparison of a store), half surrogate pairs the replacement character."""
        return {name: _sane(make(row)) for name, make in self._parts}

    def _attributes(self, at: int) -> Callable[[Row], Any]:
        keys = self._keys

        def whole(row: Row) -> Any:
            found = decode_attributes(row[at])
            return {} if found is MISSING else found

        def chosen(row: Row) -> Any:
            # The engine copies what it is given, so it is given what the expression can reach.
            found = decode_attributes(row[at])
            if type(found) is not dict:
                return {} if found is MISSING else found
            return {key: found[key] for key in keys or () if key in found}

        return whole if keys is None else chosen

    def _content(self, at: int) -> Callable[[Row], str]:
        def text(row: Row) -> str:
            sha256, size, inline = row[at : at + 3]
            if size > ATTRIBUTES_MAX:
                raise OperationFailed(
                    f"content of {size} bytes is too large for a query; {ATTRIBUTES_MAX} is the most"
                )
            return (read_blob(self._reader, sha256) if inline is None else bytes(inline)).decode(
                errors="replace"
            )

        return text


def read_blob(reader: Reader, sha256: str) -> bytes:
    """A blob's bytes, verified. Raises `Broken`."""
    import hashlib

    with reader.open_blob(sha256) as file:
        data = file.read()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise Broken(f"the blob {sha256} is damaged", hint="restore .swamp/data from a backup")
    return data


def attribute_keys(root: syntax.Node) -> tuple[str, ...] | None:
    """The top-level keys of `attributes` an expression can reach, sorted; None when it may use all of
    them."""
    keys: set[str] = set()
    reached = whole = 0
    for node in syntax.walk(root):
        if isinstance(node, syntax.Name) and node.name == "attributes":
            whole += 1
        path = syntax.path_of(node) if isinstance(node, syntax.Select | syntax.Call) else None
        if path is not None and len(path) == 2 and path[0] == "attributes":
            reached += 1
            keys.add(path[1])
    return tuple(sorted(keys)) if reached == whole else None


def _sane(value: Any) -> Any:
    match value:
        case bool():
            return value
        case int() if not -(2**63) <= value < 2**63:
            try:
                return float(value)
            except OverflowError:
                return math.inf if value > 0 else -math.inf
        case str():
            return value.encode(errors="replace").decode() if not value.isascii() else value
        case list():
            return [_sane(item) for item in value]
        case dict():
            return {_sane(key): _sane(item) for key, item in value.items()}
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_decode: Final = json.JSONDecoder(parse_constant=_no_constant).decode
