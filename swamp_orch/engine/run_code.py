"""Which code of an extension's type each run keeps: what its sources said when the run first used it, also after a restart.

Every step's record names the bundle it ran, so that a process that takes a run over goes on with the same (`take_recorded`). Deciding
reads files and may run a process, so it belongs into a thread; looking up what is decided does not.
"""

from swamp_orch.definitions.models import Models
from swamp_orch.definitions.types import TypeRegistry
from swamp_orch.definitions.values import ModelDefinition
from swamp_worker.models.interface import ModelType


class RunCode:
    def __init__(self, types: TypeRegistry, models: Models) -> None:
        self._types = types
        self._models = models
        self._kept: dict[tuple[str, str], ModelType] = {}  # (run, type); extensions only
        self._recorded: dict[tuple[str, str], str] = {}  # (run, type) -> bundle, of runs that were taken over

    def found(self, run_id: str, type_name: str) -> ModelType | None:
        """The type as the run knows it; None: it has not used it yet."""
        return self._kept.get((run_id, type_name)) or self._types.built_in(type_name)

    def keep(self, run_id: str, model_type: ModelType) -> None:
        """The run uses this; what it kept before stands."""
        if model_type.bundle:
            self._kept.setdefault((run_id, model_type.name), model_type)  # two steps may have asked

    def fix(self, run_id: str, definition: ModelDefinition) -> None:
        """Decide, and see to it that the code is on the disk. Raises SwampError, with file and line of the definition, when there is
        none that can be used. Blocking."""
        name = definition.type
        bundle = self._recorded.get((run_id, name))
        self.keep(
            run_id,
            self._models.type_of(definition) if bundle is None else self._types.of_bundle(name, bundle),
        )

    def of_type(self, run_id: str, name: str) -> ModelType:
        """The type, decided now if it was not. Raises SwampError. Blocking."""
        found = self.found(run_id, name)
        if found is None:
            bundle = self._recorded.get((run_id, name))
            self.keep(
                run_id, self._types.get(name) if bundle is None else self._types.of_bundle(name, bundle)
            )
            found = self.found(run_id, name)
        assert found is not None
        return found

    def all_types(self) -> list[ModelType]:
        """What the sources say now. Blocking."""
        return self._types.all()

    def take_recorded(self, run_id: str, type_name: str, bundle: str) -> None:
        """What a run of a previous process recorded: it goes on with that."""
        self._recorded[run_id, type_name] = bundle
        self._kept.pop((run_id, type_name), None)

    def move(self, run_id: str, type_name: str, to: str) -> None:
        """What was kept for one run is another's."""
        found = self._kept.pop((run_id, type_name), None)
        if found is not None:
            self._kept[to, type_name] = found

    def bundles(self) -> frozenset[str]:
        """What the runs of this process keep."""
        kept = tuple(self._kept.values())
        return frozenset({*tuple(self._recorded.values()), *(found.bundle for found in kept)})

    def forget(self, run_id: str) -> None:
        """The run is over."""
        for kept in (self._kept, self._recorded):
            for key in [key for key in kept if key[0] == run_id]:
                del kept[key]
