"""`dataOutputOverrides`: what a step changes about the records it leaves.

Rules that hold here:

1. They hold for everything the step stores under that output: while it runs, at its end, and what is kept of it when it was lost.
2. A `vary` value comes from the step's inputs and arguments, then from the variable of its `forEach`, then from the run's inputs.
   One that is missing, or secret, is an error before anything is sent: names of records are shown everywhere.
3. A tag of an override wins over all others.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs

from swamp_orch.expressions.secret import secrets_in
from swamp_orch.store.interface import NewRecord
from swamp_proto.errors import LocalError
from swamp_proto.limits import RECORD_NAME_MAX
from swamp_proto.redaction import MASKED
from swamp_worker.models.interface import ModelType

_JSON_MAX: Final = 64
_SUFFIX_MAX: Final = RECORD_NAME_MAX // 2


@attrs.frozen
class OutputOverride:
    """Of one output. What is empty or None is as the type declares it."""

    spec: str
    lifetime: str = ""
    keep: int | None = None
    tags: Mapping[str, str] = attrs.field(factory=dict)
    suffix: str = ""  # after the names of its records
    vault: str = ""  # for what is sensitive in it

    def apply(self, record: NewRecord) -> NewRecord:
        return attrs.evolve(
            record,
            name=record.name + self.suffix,
            lifetime=self.lifetime or record.lifetime,
            keep=record.keep if self.keep is None else self.keep,
            tags={**record.tags, **self.tags},
        )


def overrides_of(
    declared: Sequence[Mapping[str, Any]],
    model_type: ModelType,
    values: Mapping[str, Any],
    hidden: Sequence[str],
    where: str,
) -> tuple[OutputOverride, ...]:
    """`declared` as the workflow says it, with the values of its `vary`. Raises `LocalError` naming file and line."""
    return tuple(_override(one, model_type, values, hidden, where) for one in declared)


def problem_of(override: Mapping[str, Any], model_type: ModelType) -> str:
    """What is wrong with an override; empty: nothing."""
    spec = override["specName"]
    if spec in model_type.outputs or spec in model_type.reports:
        output = model_type.outputs.get(spec)
        if override.get("vaultName") and (output is None or not output.hides):
            return f"dataOutputOverrides names a vault for '{spec}', in which {model_type.name} declares nothing sensitive"
        return ""
    known = ", ".join([*model_type.outputs, *model_type.reports]) or "none"
    return f"dataOutputOverrides names '{spec}', which is no output of {model_type.name}; it has: {known}"


def suffix_of(value: Any) -> str:
    """How a `vary` value stands in a record's name: a map by its `key`, `name` or `id`."""
    if isinstance(value, Mapping):
        for key in ("key", "name", "id"):
            if key in value:
                return suffix_of(value[key])
    text = (
        value
        if isinstance(value, str)
        else json.dumps(value, ensure_ascii=False, separators=(",", ":"))[:_JSON_MAX]
    )
    return text.replace("/", "--").replace("\\", "--")


def _override(
    one: Mapping[str, Any],
    model_type: ModelType,
    values: Mapping[str, Any],
    hidden: Sequence[str],
    where: str,
) -> OutputOverride:
    problem = problem_of(one, model_type)
    if problem:
        raise LocalError(f"{where}: {problem}")
    suffix = "".join(f"-{_varied(name, values, hidden, where)}" for name in one.get("vary", ()))
    if len(suffix) > _SUFFIX_MAX or not suffix.isprintable():
        raise LocalError(
            f"{where}: the values of vary make no name: they are to be printable, and {_SUFFIX_MAX} characters together"
        )
    return OutputOverride(
        one["specName"],
        one.get("lifetime", ""),
        one.get("garbageCollection"),
        dict(one.get("tags", {})),
        suffix,
        one.get("vaultName", ""),
    )


def _varied(name: str, values: Mapping[str, Any], hidden: Sequence[str], where: str) -> str:
    if name not in values:
        known = ", ".join(sorted(values)) or "none"
        raise LocalError(f"{where}: Vary dimension '{name}' is no input of the step; there are: {known}")
    value = values[name]
    if next(secrets_in(value), None) is not None:
        raise LocalError(f"{where}: Vary dimension '{name}' holds a secret, and names of records are shown")
    text = suffix_of(value)
    if MASKED in text or any(secret and secret in text for secret in hidden):
        raise LocalError(f"{where}: Vary dimension '{name}' is sensitive, and names of records are shown")
    return text
