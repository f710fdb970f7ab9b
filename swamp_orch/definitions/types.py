"""The registry of model types: what a definition's `type` may be. Those that come with swamp, and those of the repository's own code.

Rules:
1. One type per normalised name: `Command::Shell`, `command.shell` and `command/shell` are the same type.
2. `swamp/*` types are swamp's own bookkeeping. They are listed only when asked for, have no methods, and
   nobody can create a model of one.
3. Asking for a type that comes with swamp looks at no extension. Every other answer is what the sources say at that instant; an
   extension that can not be used is an error only for who asks for its types.

It does not load code: what a method does is the worker's business.
"""

import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from swamp_orch.definitions.fields import suggestion
from swamp_orch.store.bookkeeping import (
    ACCESS,
    ENROLLMENT_TOKEN,
    PENDING_DISPATCH,
    STEP_LEASE,
    WORKER,
    WORKFLOW_RUN,
)
from swamp_proto.errors import InvalidDefinition, LocalError, NotFound
from swamp_worker.models.interface import MethodSpec, ModelType, OutputSpec

if TYPE_CHECKING:
    from swamp_orch.definitions.extensions import Extensions, UnitProblem
    from swamp_orch.definitions.repository import Repository

INTERNAL_PREFIX: Final = "swamp/"

_SEPARATORS: Final = re.compile(r"(?:::|[\s./])+")
_TYPE: Final = re.compile(r"@?[a-z0-9][a-z0-9_-]*(/[a-z0-9][a-z0-9_-]*)*")
_NOTHING: Final[Mapping[str, Any]] = {"type": "object", "properties": {}, "additionalProperties": False}


def normalise_type(text: str) -> str:
    """`Command::Shell` → `command/shell`."""
    return _SEPARATORS.sub("/", text.strip().lower()).strip("/")


def is_type_name(text: str) -> bool:
    """Whether a normalised text can name a type (and so a folder)."""
    return _TYPE.fullmatch(text) is not None and len(text) <= 128


class TypeRegistry:
    """The types of one swamp."""

    def __init__(self, types: Iterable[ModelType], extensions: "Extensions | None" = None) -> None:
        self.extensions = extensions
        self._types: dict[str, ModelType] = {}
        for found in sorted(types, key=lambda item: item.name):
            assert found.name == normalise_type(found.name), found.name
            assert found.name not in self._types, found.name
            self._types[found.name] = found

    def all(self, *, internal: bool = False) -> list[ModelType]:
        """Types by name; swamp's own only with `internal`. Extensions that can not be used are left out: see `problems`."""
        found = {name: item for name, item in self._types.items() if internal or not is_internal(name)}
        if self.extensions is not None:
            found |= self.extensions.catalogue(again=True).types
        return [found[name] for name in sorted(found)]

    def names(self) -> list[str]:
        return [found.name for found in self.all()]

    def problems(self) -> "tuple[UnitProblem, ...]":
        """What is wrong with extensions, now."""
        return () if self.extensions is None else self.extensions.catalogue(again=True).problems

    def get(self, name: str) -> ModelType:
        """The type; `name` in any spelling. Raises `NotFound` with the nearest name, `InvalidDefinition` naming file and line of
        an extension that can not be used."""
        normal = normalise_type(name)
        found = self._types.get(normal)
        if found is not None:
            return found
        suspects: tuple[str, ...] = ()
        if self.extensions is not None:
            for again in (False, True):
                catalogue = self.extensions.catalogue(again=again, wanted=normal)
                if normal in catalogue.types:
                    return catalogue.types[normal]
                if not catalogue.problems:
                    break
            suspects = catalogue.broken.get(normal) or catalogue.suspects(normal)
            if suspects:
                raise InvalidDefinition(
                    f"the model type {normal} can not be used: {_listed(suspects)}",
                    hint="repair the extension; swamp model type search says what is wrong with all of them",
                    code="broken_extension",
                )
            suspects = tuple(problem.text for problem in catalogue.problems)
        also = f" Extensions that can not be used: {_listed(suspects)}" if suspects else ""
        raise NotFound(
            f"Unknown model type: {name}.{suggestion(normal, self.names())}{also}",
            hint="swamp model type search",
            code="unknown_model_type",
        )

    def of_bundle(self, name: str, sha256: str) -> ModelType:
        """A type as a bundle that is kept declares it. Raises `NotFound`."""
        assert self.extensions is not None
        return self.extensions.of_bundle(name, sha256)

    def built_in(self, name: str) -> ModelType | None:
        """A type that comes with swamp, looking at nothing else; `name` is normalised."""
        return self._types.get(name)

    def method(self, model_type: ModelType, name: str) -> MethodSpec:
        """A method of a type. Raises `NotFound` with the methods there are."""
        found = model_type.methods.get(name)
        if found is None:
            listed = ", ".join(model_type.methods) or "none"
            raise NotFound(
                f"Unknown method '{name}' of {model_type.name}.{suggestion(name, model_type.methods)}"
                f" Methods are: {listed}",
                hint=f"swamp model type describe {model_type.name}",
                code="unknown_method",
            )
        return found

    def creatable(self, name: str) -> ModelType:
        """The type, if models of it can be made. Raises `NotFound`, `LocalError`."""
        found = self.get(name)
        if is_internal(found.name):
            raise LocalError(
                f"{found.name} is swamp's own bookkeeping: models of it cannot be created",
                hint=f"swamp data query 'modelType == \"{found.name}\"'",
            )
        return found


def _listed(problems: "tuple[str, ...]") -> str:
    return problems[0] if len(problems) == 1 else "".join(f"\n  {text}" for text in problems)


def is_internal(name: str) -> bool:
    return name.startswith(INTERNAL_PREFIX)


def built_in() -> TypeRegistry:
    """The types that come with swamp."""
    from swamp_worker.models.built_in import BUILT_IN

    return TypeRegistry([*BUILT_IN.values(), *INTERNAL])


def types_of(repository: "Repository") -> TypeRegistry:
    """The types that come with swamp and those of the repository's `extensions/models/`."""
    from swamp_orch.definitions import dependencies
    from swamp_orch.definitions.extensions import Extensions
    from swamp_worker.models.built_in import BUILT_IN

    extensions = Extensions(repository, BUILT_IN, dependencies=partial(dependencies.of, repository.cache))
    return TypeRegistry([*BUILT_IN.values(), *INTERNAL], extensions)


def _internal(name: str, description: str, spec: str, about: str) -> ModelType:
    return ModelType(
        name=name,
        version="2026.11.21.1",
        description=description,
        global_arguments=_NOTHING,
        methods={},
        outputs={spec: OutputSpec(spec, "resource", "application/json", about)},
    )


INTERNAL: Final = (
    _internal(WORKER, "Workers that have enrolled", "state", "a worker's latest state"),
    _internal(ENROLLMENT_TOKEN, "Enrollment tokens", "token", "a token's life cycle; never its secret"),
    _internal(STEP_LEASE, "Leases of placed steps", "lease", "one dispatch of one step"),
    _internal(
        PENDING_DISPATCH, "Steps that wait for a worker", "dispatch", "one waiting step and why it waits"
    ),
    _internal(WORKFLOW_RUN, "Runs of workflows", "run", "one run: jobs, steps, status"),
    _internal(
        ACCESS,
        "What running steps asked for",
        "access",
        "one question of a step, and whether it was answered",
    ),
)
