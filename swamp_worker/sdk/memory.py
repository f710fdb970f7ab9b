"""An orchestrator's data in memory: a twin of what stands behind `Access`, with its rules and without its disk.

    access = MemoryAccess(Declared of the type, secrets={"ops/token": "…"}, queries={"specName == 'host'": [...]})

Held here as by an orchestrator: numbers act once, the same number with another content is a conflict, nothing is admitted after the
lease ended, only declared specs are written and their schemas hold, a step sees its own model and those it may read, secrets that
its type declares or its definition names, sizes and counts are bounded, an upload is whole and has the digest it was said to have.

What it does not have is an engine for queries and one for runs: a test says what those answer, and what it did not say is refused.
"""

import copy
import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
import trio

from swamp_proto.capabilities import CallRefused, check_arguments, check_value
from swamp_proto.limits import (
    CALL_VALUE_MAX,
    INLINE_WRITE_MAX,
    RUN_MODEL_CALLS_MAX,
    WRITE_BODY_MAX,
    WRITE_RECORDS_MAX,
)
from swamp_proto.messages.capability import CallCode, Verb, Written, WrittenRecord
from swamp_proto.messages.dispatch import Dispatch, Output
from swamp_proto.schema_check import check_value as check_schema
from swamp_worker.execution.access import Sent
from swamp_worker.models.interface import OutputSpec

Runs = Callable[[str, str, Mapping[str, Any]], Mapping[str, Any]]
"""Model, method, inputs -> `{"status", "records", "error"?}`."""


@attrs.frozen
class StoredRecord:
    """One version of a record."""

    id: str
    model: str
    name: str
    version: int
    spec: str
    kind: str
    content_type: str
    tags: Mapping[str, str]
    deleted: bool
    content: bytes = attrs.field(repr=False)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def json(self) -> Any:
        return json.loads(self.content)

    def text(self) -> str:
        return self.content.decode()

    @property
    def document(self) -> dict[str, Any]:
        """By the names of the query language."""
        return {
            "id": self.id,
            "modelName": self.model,
            "name": self.name,
            "version": self.version,
            "specName": self.spec,
            "dataType": self.kind,
            "contentType": self.content_type,
            "tags": dict(self.tags),
            "size": len(self.content),
            "sha256": self.sha256,
            "isDeleted": self.deleted,
        }


@attrs.define
class MemoryAccess:
    """Implements `swamp_worker.execution.access.Access`."""

    outputs: Mapping[str, OutputSpec] | None = None  # None: everything is admitted
    model: str = "model"
    reads: frozenset[str] = frozenset()
    secrets: dict[str, str] = attrs.field(factory=dict)  # `vault/key` -> value
    may_use: frozenset[str] | None = None  # `vault/key`; None: all of `secrets`
    queries: Mapping[str, list[Any]] = attrs.field(factory=dict)
    definitions: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    runs: Runs | None = None
    bundles: Mapping[str, Path] = attrs.field(factory=dict)
    records: list[StoredRecord] = attrs.field(factory=list)
    calls: list[tuple[Verb, dict[str, Any]]] = attrs.field(factory=list)
    commits: int = 0
    lease_ended: bool = False
    latency_s: float = 0.0
    _answers: dict[tuple[str, int], tuple[str, Any]] = attrs.field(factory=dict)
    _uploads: dict[tuple[str, int], bytes] = attrs.field(factory=dict)
    _runs_made: int = 0

    # ── for tests ───────────────────────────────────────────────────────────────────────────────────────────
    def put(
        self,
        name: str,
        content: Any,
        *,
        model: str = "",
        spec: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """A record that is there already."""
        is_file = isinstance(content, bytes)
        data = content if is_file else json.dumps(content).encode()
        kind = "application/octet-stream" if is_file else "application/json"
        output = Output.of(spec or name, name, "file" if is_file else "resource", kind, data, tags)
        self._store(model or self.model, output, data)

    def latest(self, name: str, model: str = "") -> StoredRecord | None:
        """The newest version, unless it was deleted."""
        found = self.versions(name, model)
        return found[-1] if found and not found[-1].deleted else None

    def versions(self, name: str, model: str = "") -> list[StoredRecord]:
        return [each for each in self.records if each.name == name and each.model == (model or self.model)]

    # ── Access ──────────────────────────────────────────────────────────────────────────────────────────────
    async def call(
        self, dispatch: Dispatch, number: int, verb: Verb, arguments: Mapping[str, Any]
    ) -> dict[str, Any]:
        await self._arrive()
        check_arguments(verb, arguments)
        self.calls.append((verb, dict(arguments)))
        found = self._once(
            dispatch, number, (verb.value, dict(arguments)), lambda: self._act(verb, arguments)
        )
        check_value(verb, found)
        answer: dict[str, Any] = copy.deepcopy(found)
        return answer

    async def write(self, dispatch: Dispatch, number: int, records: tuple[Output, ...]) -> Written:
        await self._arrive()
        if not 1 <= len(records) <= WRITE_RECORDS_MAX:
            raise CallRefused(CallCode.TOO_LARGE, f"a write has 1 to {WRITE_RECORDS_MAX} records")
        if sum(len(record.content) for record in records) > WRITE_BODY_MAX:
            raise CallRefused(CallCode.TOO_LARGE, f"a write has at most {WRITE_BODY_MAX} bytes")
        request = [(record.spec, record.name, record.sha256, record.staged) for record in records]
        return self._once(dispatch, number, request, lambda: self._write(dispatch, records))  # type: ignore[no-any-return]

    async def upload(
        self, dispatch: Dispatch, number: int, file: Path, sha256: str = "", sent: Sent | None = None
    ) -> tuple[str, int]:
        await self._arrive()
        data = await trio.to_thread.run_sync(file.read_bytes)
        found = hashlib.sha256(data).hexdigest()
        if sha256 not in ("", found):
            raise CallRefused(CallCode.INVALID, "the upload does not have the digest it was said to have")
        self._uploads[dispatch.dispatch, number] = data
        if sent is not None:
            sent(len(data), len(data))
        return found, len(data)

    async def download(self, dispatch: Dispatch, record: str, into: Path) -> None:
        await self._arrive()
        for each in self.records:
            if each.id == record and self._may_read(each.model):
                await trio.to_thread.run_sync(into.write_bytes, each.content)
                return
        raise CallRefused(CallCode.NOT_FOUND, f"there is no record {record}")

    async def fetch_bundle(self, dispatch: Dispatch, sha256: str, into: Path) -> None:
        await self._arrive()
        if sha256 not in self.bundles:
            raise CallRefused(CallCode.NOT_FOUND, f"there is no bundle {sha256}")
        shutil.copyfile(self.bundles[sha256], into)

    # ── rules ───────────────────────────────────────────────────────────────────────────────────────────────
    async def _arrive(self) -> None:
        await trio.sleep(self.latency_s)
        if self.lease_ended:
            raise CallRefused(CallCode.LEASE_ENDED, "the lease of this step has ended")

    def _once(self, dispatch: Dispatch, number: int, request: object, act: Callable[[], Any]) -> Any:
        key, digest = (dispatch.dispatch, number), hashlib.sha256(repr(request).encode()).hexdigest()
        if key in self._answers:
            before, answer = self._answers[key]
            if before != digest:
                raise CallRefused(CallCode.IDEMPOTENCY_CONFLICT, f"number {number} was another request")
            return answer
        answer = act()
        self._answers[key] = (digest, answer)
        return answer

    def _may_read(self, model: str) -> bool:
        return model == self.model or model in self.reads

    def _write(self, dispatch: Dispatch, records: Iterable[Output]) -> Written:
        contents = []
        for record in records:
            content = record.content
            if record.staged is not None:
                staged = self._uploads.get((dispatch.dispatch, record.staged))
                if staged is None:
                    raise CallRefused(CallCode.NOT_FOUND, f"upload {record.staged} is not whole")
                content = staged
            elif len(content) > INLINE_WRITE_MAX:
                raise CallRefused(
                    CallCode.TOO_LARGE, f"content over {INLINE_WRITE_MAX} bytes is uploaded before"
                )
            if (hashlib.sha256(content).hexdigest(), len(content)) != (record.sha256, record.size):
                raise CallRefused(CallCode.INVALID, f"{record.name}: the content is not what was said of it")
            self._admit(record, content)
            contents.append((record, content))
        self.commits += 1
        stored = [self._store(self.model, record, content) for record, content in contents]
        return Written(
            tuple(
                WrittenRecord(each.id, each.name, each.version, len(each.content), each.sha256)
                for each in stored
            )
        )

    def _admit(self, record: Output, content: bytes) -> None:
        if self.outputs is None:
            return
        spec = self.outputs.get(record.spec)
        if spec is None or spec.kind != record.kind:
            raise CallRefused(CallCode.INVALID, f"{record.kind} {record.spec!r} is not declared")
        if spec.schema is not None:
            problems = check_schema(spec.schema, json.loads(content))
            if problems:
                raise CallRefused(CallCode.INVALID, f"{record.name}: {'; '.join(problems)}")

    def _store(self, model: str, record: Output, content: bytes, deleted: bool = False) -> StoredRecord:
        version = 1 + len(self.versions(record.name, model))
        found = StoredRecord(
            str(uuid.uuid4()), model, record.name, version, record.spec, record.kind, record.content_type,
            dict(record.tags), deleted, content,
        )  # fmt: skip
        self.records.append(found)
        return found

    # ── verbs ───────────────────────────────────────────────────────────────────────────────────────────────
    def _act(self, verb: Verb, arguments: Mapping[str, Any]) -> dict[str, Any]:
        model = arguments.get("model", self.model)
        if verb is not Verb.RUN_MODEL and not self._may_read(model):
            raise CallRefused(CallCode.FORBIDDEN, f"this step may not read the model {model!r}")
        match verb:
            case Verb.LATEST | Verb.VERSION:
                return self._found(self.versions(arguments["name"], model), arguments.get("version"))
            case Verb.VERSIONS:
                return {"versions": [each.document for each in self.versions(arguments["name"], model)]}
            case Verb.DELETE:
                return self._delete(arguments["name"])
            case Verb.QUERY:
                return {"rows": self._rows(arguments), "failed": 0}
            case Verb.DEFINITION:
                if model not in self.definitions:
                    raise CallRefused(CallCode.NOT_FOUND, f"there is no model {model!r}")
                return {"definition": dict(self.definitions[model])}
            case Verb.SECRET | Verb.PUT_SECRET:
                return self._secret(verb, arguments)
            case Verb.RUN_MODEL:
                return self._run(arguments)
            case Verb.OUTPUT:
                return {"found": False}

    def _found(self, versions: list[StoredRecord], version: int | None) -> dict[str, Any]:
        chosen = [each for each in versions if version in (None, each.version)]
        if not chosen or chosen[-1].deleted:
            return {"found": False}
        found = {"found": True, "record": chosen[-1].document}
        return (
            found
            if len(chosen[-1].content) > CALL_VALUE_MAX - 65_536
            else {**found, "content": chosen[-1].content}
        )

    def _delete(self, name: str) -> dict[str, Any]:
        before = self.latest(name)
        if before is None:
            return {"deleted": False}
        output = Output.of(before.spec, name, before.kind, before.content_type, b"", before.tags)
        return {"deleted": True, "version": self._store(self.model, output, b"", deleted=True).version}

    def _rows(self, arguments: Mapping[str, Any]) -> list[Any]:
        predicate = arguments["predicate"]
        if predicate not in self.queries:
            raise CallRefused(
                CallCode.INVALID, f"this test does not say what the query {predicate!r} answers"
            )
        return list(self.queries[predicate])[: arguments.get("limit")]

    def _secret(self, verb: Verb, arguments: Mapping[str, Any]) -> dict[str, Any]:
        name = f"{arguments['vault']}/{arguments['key']}"
        field = verb is Verb.PUT_SECRET and arguments["vault"].startswith("@")  # of an output
        if not field and self.may_use is not None and name not in self.may_use:
            raise CallRefused(CallCode.FORBIDDEN, f"this step may not use the secret {name}")
        if verb is Verb.PUT_SECRET:
            self.secrets[name] = arguments["value"]
            return {}
        if name not in self.secrets:
            raise CallRefused(CallCode.NOT_FOUND, f"there is no secret {name}")
        return {"value": self.secrets[name]}

    def _run(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        self._runs_made += 1
        if self._runs_made > RUN_MODEL_CALLS_MAX:
            raise CallRefused(CallCode.INVALID, f"a step runs at most {RUN_MODEL_CALLS_MAX} models")
        if self.runs is None:
            raise CallRefused(
                CallCode.INVALID, f"this test does not say what running {arguments['model']!r} does"
            )
        found = self.runs(arguments["model"], arguments["method"], arguments.get("inputs", {}))
        return {"run": str(uuid.uuid4()), "status": "succeeded", "records": [], **found}
