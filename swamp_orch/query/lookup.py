"""Which model is meant by a name or an id: asked of the records first, of the definition files when they do
not say.

Rules:
1. A name means the definition that has it, when there is one; else the model that wrote last under that name
   (a workflow's name means its newest run; a model that was deleted keeps its records).
2. Records answer first and definitions are read only when they must be: looking up one record costs one
   indexed read.
3. What is not found is an error that names the nearest thing there is.
"""

import difflib
from collections.abc import Sequence
from typing import Final

import attrs

from swamp_orch.definitions.repository import Repository
from swamp_orch.store.interface import Comparison, Record, Selection, Store, Term
from swamp_proto.errors import InvalidDefinition, NotFound
from swamp_proto.ids import is_uuid

_SUGGESTED_FROM: Final = 5_000
"""How many of the newest records are looked through for a name to suggest."""


@attrs.frozen
class Model:
    """A model as records know it."""

    id: str
    name: str
    type: str


class Lookup:
    """Thread-safe."""

    def __init__(self, repository: Repository, store: Store) -> None:
        self._repository = repository
        self._store = store

    def model(self, wanted: str, record: str | None = None) -> Model:
        """The model called `wanted`, or with that id; among several of one name, one that has `record`.
        Raises `NotFound`, `InvalidDefinition`."""
        candidates = self._candidates(wanted, record) or (self._candidates(wanted, None) if record else [])
        if len(candidates) == 1:
            return candidates[0]
        defined = self._defined(wanted)
        if defined is not None:
            return next((model for model in candidates if model.id == defined.id), defined)
        if candidates:
            return candidates[0]
        raise self._unknown(wanted)

    def latest(self, model: Model, name: str) -> Record:
        """The newest version of a record, tombstones included, without content. Raises `NotFound`."""
        found = self._store.latest(model.id, name, content=False)
        if found is None:
            raise self.unknown_record(model, name)
        return found

    def records(self, model: Model) -> Sequence[Record]:
        """The newest version of each of the model's records, tombstones left out, without content."""
        return list(self._store.select(Selection((_is("modelId", model.id),), with_content=False)))

    def unknown_record(self, model: Model, name: str) -> NotFound:
        """The error for a record that is not there."""
        names = [record.name for record in self.records(model)]
        near = difflib.get_close_matches(name, names, n=1)
        return NotFound(
            f"No data named '{name}' for model '{model.name}'",
            hint=f"did you mean {near[0]}?" if near else f"swamp data list {model.name}",
        )

    def _candidates(self, wanted: str, record: str | None) -> list[Model]:
        """Models with records under that name or id, the one that wrote last first."""
        field = "modelId" if is_uuid(wanted) else "modelName"
        terms = [_is(field, wanted)]
        if record is not None:
            terms.append(_is("name", record))
        selection = Selection(tuple(terms), deleted=True, with_content=False)
        rows = self._store.scan(selection, ("modelId", "modelName", "modelType"), newest_first=True)
        return [Model(*row) for row in dict.fromkeys(rows)]

    def _defined(self, wanted: str) -> Model | None:
        """The definition file called `wanted`; its id is in it."""
        paths = [path for path in self._repository.models.rglob("*.yaml") if path.stem == wanted]
        if not paths:
            return None
        from swamp_orch.definitions.yaml_source import load

        path = paths[0]
        data, source = load(path, root=self._repository.root)
        identity = data.get("id") if isinstance(data, dict) else None
        if not isinstance(identity, str):
            raise InvalidDefinition(
                f"{source.at()}: the model has no `id` yet", hint=f"swamp model validate {wanted}"
            )
        return Model(identity, wanted, str(path.parent.relative_to(self._repository.models)))

    def _unknown(self, wanted: str) -> NotFound:
        names = {path.stem for path in self._repository.models.rglob("*.yaml")}
        recent = self._store.scan(
            Selection(with_content=False), ("modelName",), newest_first=True, limit=_SUGGESTED_FROM
        )
        names.update(name for (name,) in recent)
        near = difflib.get_close_matches(wanted, sorted(names), n=1)
        return NotFound(
            f"Model '{wanted}' not found", hint=f"did you mean {near[0]}?" if near else "swamp model search"
        )


def _is(field: str, value: str) -> Term:
    return Term(field, Comparison.EQ, (value,))
