"""What an execution makes, on its way in: checked against what its type declares, and content ready to commit.

Rules that hold here:

1. Everything enters through `enter`, records written while a step runs and outputs at its end alike.
2. A spec must be declared, with its kind; a resource is JSON that its spec's schema accepts; bytes are what their digest says. What is
   wrong is `invalid`, naming the record, the place in it and the reason.
3. Content up to the inline bound is held in memory; larger content becomes a durable blob here, before any transaction names it. So
   what is large is entered in a thread.

It does not know leases, nor who may write.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from typing import Any, Final

import attrs

from swamp_orch.core.lease_values import Lease
from swamp_orch.engine.ingress import Ingress
from swamp_orch.store.interface import (
    Comparison,
    Content,
    OwnerType,
    Selection,
    Store,
    Term,
    json_content,
)
from swamp_proto.capabilities import CallRefused
from swamp_proto.limits import (
    INLINE_CONTENT_MAX,
    RECORD_NAME_MAX,
    RECORD_TAGS_MAX,
    RESOURCE_MAX,
    TAG_LENGTH_MAX,
)
from swamp_proto.messages.capability import CallCode
from swamp_proto.messages.dispatch import Output
from swamp_proto.schema_check import check_value
from swamp_proto.sensitive import opened, replaced
from swamp_worker.models.interface import ModelType, OutputSpec

PROBLEMS_SHOWN: Final = 3
LOG: Final = "log"  # sealed by the orchestrator from the lines it was sent


Instead = Callable[[Output], Callable[[str, str], str]]
"""What stands in a record for its sensitive fields."""


def enter(
    store: Store,
    model_type: ModelType,
    ingress: Ingress,
    output: Output,
    staged: Content | None,
    instead: Instead,
) -> Content:
    """The content of `output` as it may be stored, masked; `staged` is the upload it names. Blocking for large content, and for what
    holds something sensitive.

    :raises CallRefused: `invalid` or `too_large`, naming the record and the reason
    """
    spec = declared(model_type, output)
    size = len(output.content) if staged is None else staged.size
    if spec.kind == "resource" and size > RESOURCE_MAX:
        raise _too_large(
            output, f"is {size} bytes; a resource has at most {RESOURCE_MAX}, larger things are files"
        )
    if staged is None:
        content = _given(output)
        masked = ingress.content(ingress.record(output))
        if masked.content is not output.content:
            content = _given(masked)
    else:
        content = staged
    if spec.kind == "resource":
        raw = content.inline if content.inline is not None else _read(store, content)
        if spec.hides and spec.schema is not None:
            raw = _hidden(spec.schema, output, raw, instead)
            spec = attrs.evolve(spec, schema=opened(spec.schema))
            content = Content(raw, sha256(raw).hexdigest(), len(raw))
        content = attrs.evolve(content, canonical=check_resource(spec, output, raw))
    return (
        content if content.inline is None or content.size <= INLINE_CONTENT_MAX else as_blob(store, content)
    )


def _hidden(schema: Mapping[str, Any], output: Output, raw: bytes, instead: Instead) -> bytes:
    """The JSON without what is sensitive in it."""
    try:
        value = json.loads(raw, parse_constant=_no_constant)
        return json_content(replaced(schema, value, instead(output))).inline or b""
    except (ValueError, RecursionError) as error:
        raise _invalid(output, f"it is not JSON: {error}") from None


def declared(model_type: ModelType, output: Output) -> OutputSpec:
    """The declared output that `output` is one of, everything but its content checked. Raises `CallRefused`."""
    spec = model_type.outputs.get(output.spec)
    if output.kind == "report" and output.spec in model_type.reports:
        spec = OutputSpec(output.spec, "report", output.content_type, "")
    if spec is None:
        known = ", ".join(sorted(model_type.outputs)) or "none"
        raise _invalid(
            output, f"type {model_type.name} declares no output {output.spec!r}; it declares: {known}"
        )
    if output.kind != spec.kind:
        raise _invalid(output, f"output {output.spec!r} is a {spec.kind}, not a {output.kind or 'nothing'}")
    name = output.name
    if LOG in (output.spec, name):
        raise _invalid(output, "the record 'log' is made from what the step prints")
    if not name or len(name) > RECORD_NAME_MAX or not name.isprintable() or name != name.strip():
        raise _invalid(
            output,
            f"a record's name is 1 to {RECORD_NAME_MAX} printable characters without blanks at its ends",
        )
    if len(output.tags) > RECORD_TAGS_MAX:
        raise _invalid(output, f"it has {len(output.tags)} tags; at most {RECORD_TAGS_MAX} are kept")
    for key, value in output.tags.items():
        if not key or len(key) > TAG_LENGTH_MAX or len(value) > TAG_LENGTH_MAX or "\0" in key + value:
            raise _invalid(
                output, f"a tag's key and value have up to {TAG_LENGTH_MAX} characters, no NUL among them"
            )
    if spec.kind == "resource" and output.content_type != "application/json":
        raise _invalid(output, f"a resource is application/json, not {output.content_type!r}")
    if not output.content_type.isprintable() or not 3 <= len(output.content_type) <= 127:
        raise _invalid(output, "its content type is not one, such as text/plain")
    return spec


def check_resource(spec: OutputSpec, output: Output, raw: bytes) -> bool:
    """Whether the JSON is in canonical form. Raises `CallRefused` where it is not JSON or not what the schema says."""
    try:
        value = json.loads(raw, parse_constant=_no_constant)
        canonical = json_content(value)
    except (ValueError, RecursionError) as error:
        raise _invalid(output, f"it is not JSON: {error}") from None
    problems = check_value(spec.schema, value) if spec.schema is not None else []
    if problems:
        more = f", and {len(problems) - PROBLEMS_SHOWN} more" if len(problems) > PROBLEMS_SHOWN else ""
        told = "; ".join(problems[:PROBLEMS_SHOWN])
        raise _invalid(output, f"it violates the schema of {output.spec!r}: {told}{more}")
    return canonical.canonical and canonical.inline == raw


def digest_of(outputs: Iterable[Output]) -> str:
    """What makes a write the same write when it is repeated. Contents are in it by their digests, which `enter` checks."""
    parts: list[Any] = [
        [o.spec, o.name, o.kind, o.content_type, sorted(o.tags.items()), o.staged, o.sha256, o.size]
        for o in outputs
    ]
    return sha256(json.dumps(parts, ensure_ascii=True).encode()).hexdigest()


def is_small(outputs: Iterable[Output], model_type: ModelType) -> bool:
    """Whether `enter` does not block for any of them."""
    known = model_type.outputs
    return all(
        output.staged is None
        and len(output.content) <= INLINE_CONTENT_MAX
        and not (output.spec in known and known[output.spec].hides)
        for output in outputs
    )


def written_under(store: Store, lease: Lease) -> list[dict[str, Any]]:
    """What a dispatch has written so far, as `records.artifact`s: for a process that takes it over."""
    terms = (
        Term("workflowRunId", Comparison.EQ, (lease.run,)),
        Term("dispatch", Comparison.EQ, (lease.dispatch,)),
        Term("ownerType", Comparison.NE, (OwnerType.SYSTEM.value,)),
    )
    rows = store.scan(
        Selection(terms, latest_only=False, with_content=False),
        ("id", "name", "version", "specName", "modelName"),
    )
    keys = ("dataId", "name", "version", "specName", "modelName")
    return [dict(zip(keys, row, strict=True)) for row in rows]


def _given(output: Output) -> Content:
    content = output.content
    found = sha256(content).hexdigest()
    if (found, len(content)) != (output.sha256, output.size):
        raise _invalid(output, "its bytes are not those its sha256 and size say")
    return Content(content, found, len(content))


def _read(store: Store, content: Content) -> bytes:
    with store.open_blob(content.sha256) as file:
        return file.read()


def as_blob(store: Store, content: Content) -> Content:
    """The same content as a blob that a row can name. Blocking."""
    assert content.inline is not None
    writer = store.stage()
    try:
        writer.write(content.inline)
    except BaseException:
        writer.discard()
        raise
    return attrs.evolve(writer.finish(), canonical=content.canonical)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _invalid(output: Output, problem: str) -> CallRefused:
    return CallRefused(CallCode.INVALID, f"{_called(output)}: {problem}")


def _too_large(output: Output, problem: str) -> CallRefused:
    return CallRefused(CallCode.TOO_LARGE, f"{_called(output)} {problem}")


def _called(output: Output) -> str:
    name = output.name if len(output.name) <= 80 else output.name[:79] + "…"
    return f"{output.kind or 'output'} {name!r}"
