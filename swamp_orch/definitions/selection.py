"""Which of a type's pre-flight checks and reports belong to one execution of a method.

Rules:
1. A check that the definition skips does not run. Else it runs before the methods it applies to; one that names none, before those
   that mutate. A check without methods of its own that the definition requires runs before every method.
2. Reports are chosen by the definition and then by the workflow: each adds what it requires and then removes what it skips. To begin
   with, all of the type are chosen.
3. Names are in the order in which the type declares them.
"""

from collections.abc import Iterator, Mapping, Sequence

from swamp_orch.definitions.fields import suggestion
from swamp_orch.definitions.values import ModelDefinition
from swamp_worker.models.interface import MethodSpec, ModelType

Selection = Mapping[str, Sequence[str]]
"""`require` and `skip`: names."""


def checks_of(model_type: ModelType, method: MethodSpec, chosen: Selection) -> tuple[str, ...]:
    """The checks that run before `method`."""
    skipped, required = chosen.get("skip", ()), chosen.get("require", ())
    found = []
    for check in model_type.checks.values():
        applies = (
            method.name in check.applies_to if check.applies_to else method.mutates or check.name in required
        )
        if applies and check.name not in skipped:
            found.append(check.name)
    return tuple(found)


def reports_of(model_type: ModelType, *levels: Selection) -> tuple[str, ...]:
    """The reports of method scope that are made after an execution."""
    return tuple(
        report.name
        for report in model_type.reports.values()
        if report.scope == "method" and is_chosen(report.name, *levels)
    )


def is_chosen(report: str, *levels: Selection) -> bool:
    """Whether a report that is made by default is made; `levels` from the outermost."""
    chosen = True
    for level in levels:
        chosen = (chosen or report in level.get("require", ())) and report not in level.get("skip", ())
    return chosen


def unknown_checks(definition: ModelDefinition, model_type: ModelType) -> Iterator[str]:
    """Names in the definition's `checks` that the type does not have, each with file and line."""
    for key, names in definition.checks.items():
        for index, name in enumerate(names):
            if name not in model_type.checks:
                listed = ", ".join(model_type.checks) or "none"
                yield (
                    f"{definition.source.at('checks', key, index)}: {model_type.name} has no check '{name}'."
                    f"{suggestion(name, model_type.checks)} Checks are: {listed}"
                )
