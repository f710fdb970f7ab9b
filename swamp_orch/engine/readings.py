"""What a running step reads: records, queries, definitions, outputs; each limited to the models it may see.

Synchronous and thread-safe; every function takes the `AccessScope` of the step that asks and refuses what is outside of it. swamp's
own bookkeeping is never found: direct questions for it are refused, and queries are narrowed so that it does not match. A newest version
is the newest that no unsuccessful execution left behind; a deleted one is not there.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import attrs

from swamp_orch.api.services.runs import RunService
from swamp_orch.definitions.models import Models
from swamp_orch.definitions.repository import Repository
from swamp_orch.engine.access_scope import AccessScope
from swamp_orch.query.environment import CelError
from swamp_orch.query.pushdown import Plan
from swamp_orch.query.run import prepare, run
from swamp_orch.store.bookkeeping import INFRASTRUCTURE_TYPES, iso
from swamp_orch.store.interface import Comparison, OwnerType, Record, Selection, Store, Term
from swamp_proto import codec
from swamp_proto.capabilities import CallRefused
from swamp_proto.errors import NotFound, SwampError, Unsupported
from swamp_proto.limits import CALL_VALUE_MAX, INLINE_WRITE_MAX, MIB, QUERY_ROWS_MAX
from swamp_proto.messages.capability import CallCode

_NOT_OURS: Final = tuple(
    Term("modelType", Comparison.NE, (model_type,)) for model_type in sorted(INFRASTRUCTURE_TYPES)
)
VERSIONS_MAX: Final = 10_000  # told of one record


class Readings:
    """Reads of one repository."""

    def __init__(self, repository: Repository, store: Store, models: Models) -> None:
        self._store = store
        self._models = models
        self._runs = RunService(repository, store)

    def latest(self, scope: AccessScope, model: str | None, name: str) -> dict[str, Any]:
        """`{found, record?, content?}`; content of up to 1 MiB."""
        named = (*self._of(scope, model), Term("name", Comparison.EQ, (name,)))
        for record in self._store.select(
            Selection(named, latest_only=False, deleted=True), newest_first=True
        ):
            if record.deleted:
                break
            if not record.outcome:
                return self._found(record)
        return {"found": False}

    def version(self, scope: AccessScope, model: str | None, name: str, version: int) -> dict[str, Any]:
        """`{found, record?, content?}` of one version, whatever left it."""
        terms = (
            *self._of(scope, model),
            Term("name", Comparison.EQ, (name,)),
            Term("version", Comparison.EQ, (version,)),
        )
        record = next(self._store.select(Selection(terms, latest_only=False)), None)
        return {"found": False} if record is None else self._found(record)

    def versions(self, scope: AccessScope, model: str | None, name: str) -> dict[str, Any]:
        """`{versions[record]}`, oldest first."""
        terms = (*self._of(scope, model), Term("name", Comparison.EQ, (name,)))
        selection = Selection(terms, latest_only=False, with_content=False)
        return {
            "versions": [described(record) for record in self._store.select(selection, limit=VERSIONS_MAX)]
        }

    def query(
        self, scope: AccessScope, predicate: str, select: str | None, limit: int | None
    ) -> dict[str, Any]:
        """`{rows, failed}`: only records of models that may be read are looked at."""
        if limit is not None and limit < 1:
            raise CallRefused(CallCode.INVALID, f"the limit must be positive, not {limit}")
        try:
            query = prepare(predicate, select)
        except CelError as error:
            raise CallRefused(CallCode.INVALID, told(error)) from None
        selections = tuple(
            attrs.evolve(one, terms=(*one.terms, *readable, *_NOT_OURS))
            for readable in _readable(scope)
            for one in query.plan.selections
        )
        narrowed = attrs.evolve(query, plan=Plan(selections, query.plan.exact))
        most = min(limit or QUERY_ROWS_MAX, QUERY_ROWS_MAX)
        found = run(self._store, narrowed, most)
        if limit is None and found.limited:
            raise CallRefused(
                CallCode.TOO_LARGE, f"more than {QUERY_ROWS_MAX} records match; ask for less, or pass a limit"
            )
        value = {"rows": found.results, "failed": found.skipped}
        try:
            size = len(codec.pack_value(value))
        except Unsupported as error:
            raise CallRefused(CallCode.INVALID, f"the rows cannot be told: {error.message}") from None
        if size > CALL_VALUE_MAX:
            raise CallRefused(
                CallCode.TOO_LARGE,
                f"the answer has {size} bytes, at most {CALL_VALUE_MAX // MIB} MiB travel: select less of each record, or "
                "pass a limit",
            )
        return value

    def definition(self, scope: AccessScope, model: str | None) -> dict[str, Any]:
        """`{definition}` as its file says it: expressions are not evaluated, so no secret is in it."""
        self._permit(scope, model)
        try:
            found = self._models.find(scope.model_id if model is None else model)
        except NotFound as error:
            raise CallRefused(CallCode.NOT_FOUND, told(error)) from None
        except SwampError as error:
            raise CallRefused(CallCode.INVALID, told(error)) from None
        document: dict[str, Any] = {
            "id": found.id,
            "name": found.name,
            "type": found.type,
            "version": found.version,
            "tags": dict(found.tags),
            "globalArguments": dict(found.global_arguments),
            "methods": {name: {"arguments": dict(given)} for name, given in found.methods.items()},
        }
        if found.inputs.get("properties"):
            document["inputs"] = dict(found.inputs)
        return {"definition": document}

    def output(
        self, scope: AccessScope, model: str | None, method: str | None, *, without: str
    ) -> dict[str, Any]:
        """`{found, output?}`: the newest execution that has ended, in the shape of `swamp model output get`."""
        self._permit(scope, model)
        found = self._runs.latest_output(scope.model if model is None else model, method, without=without)
        return {"found": False} if found is None else {"found": True, "output": found}

    def record(self, scope: AccessScope, record_id: str) -> Record:
        """One version by its id, with inline content. Raises `CallRefused`, `not_found` also for what may not be seen: whether
        there is such a record is nobody's business then."""
        selection = Selection((Term("id", Comparison.EQ, (record_id,)),), latest_only=False, deleted=True)
        record = next(self._store.select(selection), None)
        if record is None or not may_see(scope, record) or record.deleted:
            raise CallRefused(CallCode.NOT_FOUND, f"there is no record {record_id} that this step may read")
        return record

    def newest(self, scope: AccessScope, name: str) -> Record | None:
        """The newest version of a record of the step's own model, a tombstone too."""
        return self._store.latest(scope.model_id, name, content=False)

    def _of(self, scope: AccessScope, model: str | None) -> tuple[Term, ...]:
        """The records of a model, or `CallRefused`."""
        if model is None or model == scope.model:
            return (Term("modelId", Comparison.EQ, (scope.model_id,)),)
        if not scope.may_read(model) and scope.runs:
            named = Term("modelName", Comparison.EQ, (model,))
            return (named, Term("workflowRunId", Comparison.EQ, tuple(sorted(scope.runs))), *_NOT_OURS)
        self._permit(scope, model)
        return (Term("modelName", Comparison.EQ, (model,)), *_NOT_OURS)

    def _permit(self, scope: AccessScope, model: str | None) -> None:
        """`CallRefused` for a model that may not be read as a whole."""
        if model is None or model == scope.model or scope.may_read(model):
            return
        if scope.runs:
            raise CallRefused(
                CallCode.FORBIDDEN,
                f"this report may read what its run left of model {model!r}, and nothing else: its type does not declare it",
            )
        raise CallRefused(
            CallCode.FORBIDDEN,
            f"this step may not read model {model!r}: neither its definition names it nor its type declares it",
        )

    def _found(self, record: Record) -> dict[str, Any]:
        found: dict[str, Any] = {"found": True, "record": described(record)}
        if record.size <= INLINE_WRITE_MAX:
            found["content"] = record.content if record.content is not None else self._store.read(record)
        return found


def may_see(scope: AccessScope, record: Record) -> bool:
    if record.model_type in INFRASTRUCTURE_TYPES or record.owner.type is OwnerType.SYSTEM:
        return False
    own = record.model_id == scope.model_id or record.owner.run in scope.runs
    return own or scope.may_read(record.model_name)


def _readable(scope: AccessScope) -> Iterator[tuple[Term, ...]]:
    """What a query may look at, in parts that exclude each other; the largest first."""
    models = tuple(sorted(scope.models))
    if not scope.runs:
        yield (Term("modelName", Comparison.EQ, models),)
        return
    foreign = Term("modelId", Comparison.NE, (scope.model_id,))
    undeclared = tuple(Term("modelName", Comparison.NE, (name,)) for name in models)
    yield (Term("workflowRunId", Comparison.EQ, tuple(sorted(scope.runs))), foreign, *undeclared)
    yield (Term("modelId", Comparison.EQ, (scope.model_id,)),)
    if models:
        yield (Term("modelName", Comparison.EQ, models), foreign)


def described(record: Record) -> dict[str, Any]:
    """A record version as a capability tells it: names as queries know them."""
    return {
        "id": record.id,
        "name": record.name,
        "version": record.version,
        "isLatest": record.is_latest,
        "createdAt": iso(record.created_ms),
        "modelName": record.model_name,
        "modelId": record.model_id,
        "modelType": record.model_type,
        "specName": record.spec,
        "dataType": record.kind.value,
        "contentType": record.content_type,
        "size": record.size,
        "sha256": record.sha256,
        "tags": dict(record.tags),
        "outcome": record.outcome,
    }


def told(error: SwampError) -> str:
    return f"{error.message} ({error.hint})" if error.hint else error.message


def arguments_named(arguments: Mapping[str, Any]) -> tuple[str, str]:
    """Which model and record a call concerns, for its access record."""
    return str(arguments.get("model") or ""), str(arguments.get("name") or arguments.get("predicate") or "")
