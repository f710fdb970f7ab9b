"""`@swamp/method-summary`: what one execution of a method was given and what it stored.

From a step of a run document. Arguments are shown as they may be stored: secrets are `***`, and the caller
masks what its schema calls sensitive.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from swamp_orch.expressions.secret import mask_tree
from swamp_orch.reports.report import Report, ReportScope, code, retrieval_commands, table

NAME: Final = "@swamp/method-summary"


def method_summary(
    step: Mapping[str, Any],
    *,
    model_id: str,
    method_arguments: Mapping[str, Any] | None = None,
    global_arguments: Mapping[str, Any] | None = None,
) -> Report:
    """`step` as in a run document (`{name, status, error?, duration, modelName, modelType, methodName,
    dataArtifacts}`); arguments may hold `Secret`s, which become `***`."""
    arguments = mask_tree(method_arguments or {})
    shared = mask_tree(global_arguments or {})
    produced = [
        {
            "name": artifact["name"],
            "kind": artifact.get("kind", "resource"),
            "specName": artifact.get("specName", ""),
            "version": artifact["version"],
            "retrievalCommand": command,
        }
        for artifact, command in zip(step.get("dataArtifacts") or (), retrieval_commands(step), strict=True)
    ]
    title = f"# {step['modelName']} ({step['modelType']}) → {step['methodName']}: {step['status']}"
    parts = [title]
    if step.get("error"):
        parts.append(f"Error: {step['error']}")
    given = [(name, code(_shown(value))) for name, value in {**shared, **arguments}.items()]
    if given:
        parts.append(table(("Argument", "Value"), given))
    if produced:
        rows = [
            (item["name"], item["specName"], str(item["version"]), code(item["retrievalCommand"]))
            for item in produced
        ]
        parts.append(table(("Data", "Spec", "Version", "See it"), rows))
    found: dict[str, Any] = {
        "status": step["status"],
        "modelId": model_id,
        "modelName": step["modelName"],
        "modelType": step["modelType"],
        "methodName": step["methodName"],
        "durationMs": step.get("duration", 0),
        "globalArgs": shared,
        "methodArgs": arguments,
        "dataProduced": produced,
    }
    if step.get("error"):
        found["error"] = step["error"]
    return Report(NAME, ReportScope.METHOD, "\n\n".join(parts), found)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
