"""Whether a type that an extension declares can be used: its name, its schemas, and what its parts say of each other.

Rules: everything is found before the first definition of the type is read, and named by its path in the type. What a schema may
say is what `swamp_proto.schema_check` checks: a keyword that nobody would check is refused.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Final

from swamp_proto.ids import is_name
from swamp_proto.schema_check import problems_of
from swamp_worker.models.interface import ModelType

KINDS: Final = ("resource", "file")
SCOPES: Final = ("method", "workflow")


def type_problems(found: ModelType, files: Collection[str]) -> list[str]:
    """What is wrong, a sentence each; `files` are those of its bundle."""
    return list(_problems(found, files))


def _problems(found: ModelType, files: Collection[str]) -> Iterator[str]:
    from swamp_orch.definitions.types import is_internal, is_type_name, normalise_type

    if found.name != normalise_type(found.name) or not is_type_name(found.name):
        yield f"'{found.name}' is not a type name: write lower-case words with / between them, as in @acme/inventory"
    if is_internal(found.name):
        yield f"'{found.name}': names that start with swamp/ are swamp's own"
    path, _, class_name = found.entry.partition(":")
    if not class_name or path not in files:
        yield f"{found.name}: its entry '{found.entry}' names no class in a file of its unit"
    yield from _schema(found.name, "global arguments", found.global_arguments)
    if not found.methods and not any(report.scope == "workflow" for report in found.reports.values()):
        yield f"{found.name} has no methods"
    for method in found.methods.values():
        yield from _schema(found.name, f"the arguments of '{method.name}'", method.arguments)
        returned = found.outputs.get(method.returns)
        if method.returns and (returned is None or returned.kind != "resource"):
            yield f"{found.name}: '{method.name}' returns '{method.returns}', which is no resource of the type"
    for output in found.outputs.values():
        if output.kind not in KINDS:
            yield f"{found.name}: the output '{output.name}' is a '{output.kind}'; it can be {' or '.join(KINDS)}"
        if output.schema is not None:
            for problem in problems_of(output.schema):
                yield f"{found.name}: the schema of the output '{output.name}': {problem}"
        if output.keep is not None and output.keep < 1:
            yield f"{found.name}: the output '{output.name}' keeps {output.keep} versions; the least is 1"
    for check in found.checks.values():
        for method_name in check.applies_to:
            if method_name not in found.methods:
                yield f"{found.name}: the check '{check.name}' applies to '{method_name}', which is no method"
    for report in found.reports.values():
        if report.scope not in SCOPES:
            yield f"{found.name}: the report '{report.name}' has the scope '{report.scope}'; it can be {' or '.join(SCOPES)}"
    for model in sorted(found.reads):
        if not is_name(model):
            yield f"{found.name} reads '{model}', which is not a model name"
    for secret in sorted(found.secrets):
        vault, _, key = secret.partition("/")
        if not is_name(vault) or not key:
            yield f"{found.name} declares the secret '{secret}'; write VAULT/KEY"


def _schema(name: str, what: str, schema: object) -> Iterator[str]:
    for problem in problems_of(schema):
        yield f"{name}: the schema of {what}: {problem}"
    if isinstance(schema, Mapping) and schema.get("type") != "object":
        yield f"{name}: the schema of {what} must be of type object"
