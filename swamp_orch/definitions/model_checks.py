"""Everything about a model that can be known without running it: the checks of `swamp model validate`.

Rules: arguments that a caller may still give are not missed here; the use of the orchestrator's environment
is a warning, because the same definition gives another result on another machine.
"""

from typing import Any, Final

from swamp_orch.definitions.expression_checks import (
    Names,
    check_shell,
    check_tree,
    environment_names,
    lookalike_warnings,
)
from swamp_orch.definitions.models import Models, check_arguments_of
from swamp_orch.definitions.repository import Repository
from swamp_orch.definitions.selection import unknown_checks
from swamp_orch.definitions.values import ModelDefinition
from swamp_orch.definitions.yaml_source import load
from swamp_proto.errors import SwampError

SELF_KEYS: Final = ("id", "name", "version", "tags", "globalArguments")

Document = dict[str, Any]


def model_checks(
    repository: Repository, definition: ModelDefinition, models: Models
) -> tuple[list[Document], list[Document]]:
    """`[{name, passed, error?}]` and `[{name, message, envVars?[{path, envVar}]}]`."""
    validations: list[Document] = [{"name": "Schema validation", "passed": True}]
    warnings: list[Document] = []
    try:
        model_type = models.type_of(definition)
    except SwampError as error:
        validations.append({"name": "Type exists", "passed": False, "error": error.message})
        return validations, warnings
    validations.append({"name": "Type exists", "passed": True})
    for name, problems in check_arguments_of(definition, model_type):
        validations.append(_check(name, problems))
    if definition.checks:
        validations.append(_check("Checks", list(unknown_checks(definition, model_type))))
    data, source = load(models.path(definition), root=repository.root)
    parts = {key: data[key] for key in ("globalArguments", "methods") if key in data}

    def vaults() -> list[str]:
        from swamp_orch.vaults import VaultSet

        return list(VaultSet(repository).names())

    names = Names(inputs=definition.inputs, self_keys=SELF_KEYS, models=models.names, vaults=vaults)
    findings = check_tree(parts, (), source, names)
    for method, given in definition.methods.items():
        findings += check_shell(given, model_type.shell_arguments, ("methods", method, "arguments"), source)
    validations.append(_check("Expressions", [found.text for found in findings if not found.warning]))
    warnings += [{"name": "Expressions", "message": found.text} for found in findings if found.warning]
    warnings += [
        {"name": "Malformed expressions", "message": text} for text in lookalike_warnings(parts, (), source)
    ]
    variables = [{"path": path, "envVar": name} for path, name in environment_names(parts)]
    if variables:
        listed = ", ".join(dict.fromkeys(item["envVar"] for item in variables))
        warnings.append(
            {
                "name": "Environment variables",
                "message": f"depends on the orchestrator's environment: {listed}",
                "envVars": variables,
            }
        )
    return validations, warnings


def _check(name: str, problems: list[str]) -> Document:
    if not problems:
        return {"name": name, "passed": True}
    return {"name": name, "passed": False, "error": "\n".join(problems)}
