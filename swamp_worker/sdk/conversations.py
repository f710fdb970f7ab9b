"""What every member of the context does, written once: as questions and answers, without saying how they travel.

A conversation is a generator that yields questions (maps) and is sent their answers. The context of an async method awaits
between them, that of a plain method blocks, the test harness answers in process. Rules that hold here:

- A member that can not work where it is used raises `NotPossible` with its name, before anything is asked.
- Content is checked against what the class declares before it leaves; what is too large for a message goes through a
  file in the step's directory.
- Everything is one of three questions: `write` (records that commit together), `call` (a capability), `download`.
"""

import hashlib
import json
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

import attrs

from swamp_proto.limits import (
    FOLLOW_UPS_MAX,
    INLINE_WRITE_MAX,
    RUNNER_FRAME_MAX,
    WRITE_BODY_MAX,
    WRITE_RECORDS_MAX,
)
from swamp_proto.messages.capability import Verb
from swamp_proto.redaction import MASKED
from swamp_proto.sensitive import replaced, sensitive_parts
from swamp_worker.sdk.declarations import Declared, File, Resource, Spec
from swamp_worker.sdk.errors import Invalid, InvalidArguments, NotPossible, RunFailed
from swamp_worker.sdk.shapes import encoded, to_json
from swamp_worker.sdk.values import (
    FollowUp,
    ModelInfo,
    ModelRun,
    Place,
    Record,
    Stage,
    StoredFile,
    Written,
)

T = TypeVar("T")
Ask = dict[str, Any]
Conversation = Generator[Ask, dict[str, Any], T]

_RECORD_NAME: Final = re.compile(r"[^\x00-\x1f/\\]{1,256}")
_BATCH_BYTES: Final = (
    min(WRITE_BODY_MAX, RUNNER_FRAME_MAX) * 3 // 4
)  # room for names and tags beside the content


@attrs.define
class Situation:
    """Everything a step's code is in: what never changes, and what it has done so far."""

    declared: Declared
    model: ModelInfo
    place: Place
    fence: int
    attempt: int
    attempt_key: str
    global_arguments: Any
    folder: Path  # the extension's own files
    directory: Path  # the step's own directory
    say: Callable[[str, bool], object]  # a line of the step's log; whether it is an error
    stage: Stage = Stage.METHOD
    cancelled: bool = False
    polls: bool = False  # it has looked at `cancelled`
    follow_ups: list[FollowUp] = attrs.field(factory=list)
    follow_ups_made: int = 0
    written: list[Written] = attrs.field(factory=list)
    staged: int = 0

    def staging_path(self) -> Path:
        """A name for a new file in the step's directory."""
        folder = self.directory / ".swamp"
        folder.mkdir(parents=True, exist_ok=True)
        self.staged += 1
        return folder / str(self.staged)

    def only_in_methods(self, member: str) -> None:
        if self.stage is not Stage.METHOD:
            raise NotPossible(f"{member} can not be used in {self.stage.value}: it only looks")


# ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────


@attrs.frozen
class Resources:
    """One resource of a `write_resources`."""

    spec: Resource[Any] | str
    name: str
    content: Any = attrs.field(repr=False)
    tags: Mapping[str, str] = attrs.field(factory=dict)


def write(situation: Situation, resources: Iterable[Resources], member: str) -> Conversation[list[Written]]:
    situation.only_in_methods(member)
    records = []
    for each in resources:
        spec, content = _resource(situation, each)
        name = each.name or spec.name
        content = yield from put_away(spec, name, content)
        records.append(
            record_of(situation, spec.name, name, "resource", spec.content_type, content, each.tags)
        )
    found: list[Written] = []
    for batch in _batches(records):
        answer = yield {"ask": "write", "records": batch}
        found += _written(batch, answer)
    situation.written += found
    return found


def put_away(spec: Resource[Any], name: str, content: bytes) -> Conversation[bytes]:
    """The content without what is sensitive in it, which is in a vault then."""
    if not spec.hides:
        return content
    value = json.loads(content)
    for path, text in sensitive_parts(spec.schema, value):
        yield _call(Verb.PUT_SECRET, vault=f"@{spec.name}", key=json.dumps([name, path]), value=text)
    return encoded(replaced(spec.schema, value, lambda path, text: MASKED), None, "")


def _resource(situation: Situation, item: Resources) -> tuple[Resource[Any], bytes]:
    """Its spec, and its content checked."""
    spec = spec_of(situation, item.spec, Resource)
    assert isinstance(spec, Resource)
    name = item.name or spec.name
    if _RECORD_NAME.fullmatch(name) is None:
        raise _no_name(name)
    try:
        return spec, encoded(item.content, spec.schema, f"the resource {name!r} of {spec.name!r}")
    except InvalidArguments as error:
        raise Invalid(str(error)) from None


def record_of(
    situation: Situation,
    spec: str,
    name: str,
    kind: str,
    content_type: str,
    content: bytes,
    tags: Mapping[str, str] | None = None,
) -> Ask:
    """A record as it is sent: its content in it, or the file that holds it."""
    if _RECORD_NAME.fullmatch(name) is None:
        raise _no_name(name)
    record: Ask = {
        "spec": spec,
        "name": name,
        "kind": kind,
        "content_type": content_type,
        "tags": _tags(tags),
    }
    if len(content) <= INLINE_WRITE_MAX:
        return {**record, "content": content}
    path = situation.staging_path()
    path.write_bytes(content)
    return {**record, "file": str(path)}


def _no_name(name: str) -> Invalid:
    return Invalid(f"{name!r} is no name of a record: 1 to 256 characters, without / and \\")


def _tags(tags: Mapping[str, str] | None) -> dict[str, str]:
    found = dict(tags or {})
    if not all(isinstance(key, str) and isinstance(value, str) for key, value in found.items()):
        raise Invalid("tags map text to text")
    return found


def _batches(records: list[Ask]) -> Iterator[list[Ask]]:
    """Records that fit in one message and commit together."""
    batch: list[Ask] = []
    size = 0
    for record in records:
        weight = (
            len(record.get("content", b"")) + 512 + sum(len(k) + len(v) for k, v in record["tags"].items())
        )
        if batch and (size + weight > _BATCH_BYTES or len(batch) == WRITE_RECORDS_MAX):
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += weight
    if batch:
        yield batch


def _written(batch: list[Ask], answer: Mapping[str, Any]) -> list[Written]:
    return [
        Written(one["id"], asked["spec"], one["name"], one["version"], one["size"], one["sha256"])
        for asked, one in zip(batch, answer["records"], strict=True)
    ]


def spec_of(situation: Situation, spec: Spec | str, kind: type[Spec]) -> Spec:
    """The declared spec. Raises `Invalid` for one that the class does not declare."""
    name = spec if isinstance(spec, str) else spec.name
    found = situation.declared.outputs.get(name)
    if not isinstance(found, kind) or (isinstance(spec, Spec) and found is not spec):
        known = [each.name for each in situation.declared.outputs.values() if isinstance(each, kind)]
        word = kind.__name__.lower()
        raise Invalid(
            f"{situation.declared.name} declares no {word} {name!r}; "
            + (f"it declares {', '.join(map(repr, known))}" if known else f"it declares no {word} at all")
        )
    return found


def delete(situation: Situation, name: str) -> Conversation[bool]:
    situation.only_in_methods("delete_resource")
    answer = yield _call(Verb.DELETE, name=name)
    return bool(answer["deleted"])


class Staging:
    """A file being written: the bytes, and where they are."""

    def __init__(
        self,
        situation: Situation,
        spec: File | str,
        name: str,
        tags: Mapping[str, str] | None,
        content_type: str = "",
    ) -> None:
        situation.only_in_methods("open_file")
        self.spec = spec_of(situation, spec, File)
        self.name = name or self.spec.name
        if _RECORD_NAME.fullmatch(self.name) is None:
            raise _no_name(self.name)
        self.content_type = content_type or self.spec.content_type
        self.tags = _tags(tags)
        self.path = situation.staging_path()
        self.record: Written | None = None
        self._file: BinaryIO | None = self.path.open("wb", buffering=256 * 1024)
        self._situation = situation

    def write(self, data: bytes | str) -> None:
        if self._file is None:
            raise ValueError(f"the file {self.name!r} is closed")
        self._file.write(data.encode() if isinstance(data, str) else data)

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()

    def discard(self) -> None:
        """Nothing is stored."""
        self._close()
        self.path.unlink(missing_ok=True)

    def finish(self) -> Conversation[Written]:
        """Stores it, with what was put at `path` meanwhile."""
        if self.record is not None:
            return self.record
        self._close()
        record: Ask = {
            "spec": self.spec.name,
            "name": self.name,
            "kind": "file",
            "content_type": self.content_type,
            "tags": self.tags,
            "file": str(self.path),
        }
        answer = yield {"ask": "write", "records": [record]}
        (self.record,) = _written([record], answer)
        self._situation.written.append(self.record)
        self.path.unlink(missing_ok=True)
        return self.record

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────


def read(
    situation: Situation, name: str, model: str | None, version: int | None
) -> Conversation[Record | None]:
    found = yield from _find(name, model, version)
    if found is None:
        return None
    fields, content = found
    if content is None:
        path = situation.staging_path()
        yield {"ask": "download", "record": fields["id"], "path": str(path)}
        content = path.read_bytes()
        path.unlink()
    return _record(fields, content)


def read_file(
    situation: Situation, name: str, model: str | None, version: int | None
) -> Conversation[StoredFile | None]:
    found = yield from _find(name, model, version)
    if found is None:
        return None
    fields, content = found
    path = situation.staging_path()
    if content is not None:
        path.write_bytes(content)
    else:
        yield {"ask": "download", "record": fields["id"], "path": str(path)}
    return StoredFile(_record(fields, b""), path)


def _find(
    name: str, model: str | None, version: int | None
) -> Conversation[tuple[Mapping[str, Any], bytes | None] | None]:
    where = {"model": model} if model is not None else {}
    if version is None:
        answer = yield _call(Verb.LATEST, name=name, **where)
    else:
        answer = yield _call(Verb.VERSION, name=name, version=version, **where)
    if not answer["found"]:
        return None
    return answer["record"], answer.get("content")


def _record(fields: Mapping[str, Any], content: bytes) -> Record:
    return Record(
        id=fields["id"],
        model=fields.get("modelName", ""),
        name=fields["name"],
        version=fields["version"],
        spec=fields.get("specName", ""),
        content_type=fields.get("contentType", ""),
        size=fields.get("size", len(content)),
        tags=fields.get("tags", {}),
        fields=fields,
        content=content,
    )


def versions(name: str, model: str | None) -> Conversation[list[Mapping[str, Any]]]:
    where = {"model": model} if model is not None else {}
    answer = yield _call(Verb.VERSIONS, name=name, **where)
    return list(answer["versions"])


def query(
    situation: Situation, predicate: str, select: str | None, limit: int | None
) -> Conversation[list[Any]]:
    more: dict[str, Any] = {} if select is None else {"select": select}
    if limit is not None:
        more["limit"] = limit
    answer = yield _call(Verb.QUERY, predicate=predicate, **more)
    if answer["failed"]:
        situation.say(f"swamp: the query could not be evaluated for {answer['failed']} record(s)", True)
    return list(answer["rows"])


def read_model(model: str | None) -> Conversation[Mapping[str, Any]]:
    answer = yield _call(Verb.DEFINITION, **({"model": model} if model is not None else {}))
    found: Mapping[str, Any] = answer["definition"]
    return found


def read_output(model: str | None, method: str | None) -> Conversation[Mapping[str, Any] | None]:
    more = {key: value for key, value in (("model", model), ("method", method)) if value is not None}
    answer = yield _call(Verb.OUTPUT, **more)
    return answer.get("output") if answer["found"] else None


def secret(vault: str, key: str) -> Conversation[str]:
    answer = yield _call(Verb.SECRET, vault=vault, key=key)
    return str(answer["value"])


def put_secret(situation: Situation, vault: str, key: str, value: str) -> Conversation[None]:
    situation.only_in_methods("put_secret")
    yield _call(Verb.PUT_SECRET, vault=vault, key=key, value=value)


def run_model(
    situation: Situation, model: str, method: str, inputs: Mapping[str, Any] | None, check: bool
) -> Conversation[ModelRun]:
    situation.only_in_methods("run_model")
    answer = yield _call(
        Verb.RUN_MODEL, model=model, method=method, inputs=to_json(dict(inputs or {}), "inputs")
    )
    run = ModelRun(answer["run"], answer["status"], tuple(answer["records"]), answer.get("error", ""))
    if check and run.status != "succeeded":
        raise RunFailed(f"{model} → {method}: {run.error or run.status} (run {run.run})")
    return run


def _call(verb: Verb, **arguments: Any) -> Ask:
    return {"ask": "call", "verb": verb.value, "arguments": arguments}


# ── without a question ──────────────────────────────────────────────────────────────────────────────────────


def extension_file(situation: Situation, name: str) -> Path:
    """A file that came with the extension. Raises `FileNotFoundError`, and `ValueError` for a way out of it."""
    root = situation.folder.resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise ValueError(f"extension_file: {name!r} leads out of the extension")
    if not path.exists():
        raise FileNotFoundError(f"extension_file: the extension has no file {name!r}")
    return path


def follow_up(situation: Situation, method: Any, arguments: Any, after_s: float) -> None:
    situation.only_in_methods("follow_up")
    attribute = method if isinstance(method, str) else getattr(method, "__name__", "")
    found = situation.declared.methods.get(attribute) or next(
        (each for each in situation.declared.methods.values() if each.attribute == attribute), None
    )
    if found is None:
        raise Invalid(f"follow_up: {situation.declared.name} has no method {attribute!r}")
    if situation.follow_ups_made >= FOLLOW_UPS_MAX:
        raise Invalid(f"follow_up: a step makes at most {FOLLOW_UPS_MAX}")
    if after_s < 0:
        raise Invalid("follow_up: after_s is not below 0")
    situation.follow_ups_made += 1
    plain = to_json(arguments if arguments is not None else {}, "arguments")
    situation.follow_ups.append(FollowUp(found.name, plain, after_s))


def log(situation: Situation, message: object, fields: Mapping[str, Any]) -> None:
    more = "".join(f" {key}={_shown(value)}" for key, value in fields.items())
    situation.say(f"{message}{more}", False)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if text and not re.search(r"[\s\"=]", text) else json.dumps(text, ensure_ascii=False)


def digest_of(path: Path) -> tuple[str, int]:
    """SHA-256 and size of a file. Blocks."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while chunk := file.read(1024 * 1024):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size
