"""What a step does: reading `task`, for each of its types.

It does not know whether the model, method or workflow it names exists; `workflow_checks.py` does.
"""

from typing import Any, Final

from swamp_orch.definitions.fields import Fields, Findings, expression_problem, is_whole_expression, nearest
from swamp_orch.definitions.values import AssertTask, ManualApprovalTask, ModelMethodTask, Task, WorkflowTask
from swamp_orch.definitions.yaml_source import DocumentPath

TASK_KEYS: Final = {
    "model_method": ("type", "modelIdOrName", "methodName", "inputs"),
    "workflow": ("type", "workflowIdOrName", "inputs"),
    "manual_approval": ("type", "prompt", "timeout"),
    "assert": ("type", "expr", "message", "severity"),
}
SEVERITIES: Final = ("low", "medium", "high")
NO_TASK: Final = ManualApprovalTask("", None)  # stands in for a task that could not be read

SHELL_SAMPLE: Final = (
    "make a model: swamp model create command/shell NAME --arg execute.run='…', and write"
    " task: {type: model_method, modelIdOrName: NAME, methodName: execute};"
    " to give the command in the step, add inputs: {run: '…'}"
)


def read_task(raw: Any, findings: Findings, path: DocumentPath, step: str) -> Task:
    """The task of step `step`; problems go to `findings`."""
    what = f"the task of step '{step}'"
    name = raw.get("type") if isinstance(raw, dict) else None
    if name == "shell":
        findings.add((*path, "type"), f"{what} has the type 'shell', which is no task type", SHELL_SAMPLE)
        return NO_TASK
    if isinstance(name, str) and name in TASK_KEYS:
        known = TASK_KEYS[name]
    else:
        known = tuple(dict.fromkeys(key for keys in TASK_KEYS.values() for key in keys))
    if name == "model_method" and isinstance(raw, dict) and ("modelType" in raw or "globalArgs" in raw):
        findings.add(
            (*path, "modelType" if "modelType" in raw else "globalArgs"),
            f"{what} describes its model in place, which is not supported",
            "make the model with swamp model create, and name it: modelIdOrName: NAME",
        )
        raw = {
            key: value for key, value in raw.items() if key not in ("modelType", "modelName", "globalArgs")
        }
        raw.setdefault("modelIdOrName", "…")
    fields = Fields(raw, findings, path, what, "task", known)
    if not isinstance(raw, dict):
        return NO_TASK
    if "type" not in fields:
        fields.missing("type")
        return NO_TASK
    match fields.choice("type", tuple(TASK_KEYS), ""):
        case "model_method":
            return ModelMethodTask(
                model=_named(fields, "modelIdOrName"),
                method=_named(fields, "methodName"),
                inputs=_inputs(fields),
            )
        case "workflow":
            return WorkflowTask(workflow=_named(fields, "workflowIdOrName"), inputs=_inputs(fields))
        case "manual_approval":
            return ManualApprovalTask(
                prompt=fields.text("prompt", required=True), timeout_s=fields.duration("timeout")
            )
        case "assert":
            return _assert(fields)
    return NO_TASK


def _named(fields: Fields, key: str) -> str:
    """A required text, unless its place is taken by a misspelt key that has been reported already."""
    if key not in fields and any(
        nearest(other, fields.known) == key for other in fields.data if other not in fields.known
    ):
        return ""
    return fields.text(key, required=True)


def _inputs(fields: Fields) -> dict[str, Any] | str:
    value = fields.data.get("inputs")
    if isinstance(value, str):
        if not is_whole_expression(value):
            fields.problem(
                f"'inputs' of {fields.what} must be a map, or one expression that yields a map",
                "write inputs:, and below it one line for each input",
                "inputs",
            )
            return {}
        return value
    return fields.mapping("inputs")


def _assert(fields: Fields) -> AssertTask:
    expr = fields.text("expr", required=True)
    if "${{" in expr:
        fields.problem(
            f"'expr' of {fields.what} is an expression already: it must not hold ${{{{ }}}}",
            "write the expression alone",
            "expr",
        )
    elif expr:
        problem = expression_problem(f"${{{{ {expr} }}}}")
        if problem is not None:
            fields.problem(f"'expr' of {fields.what}: {problem[0]}", problem[1], "expr")
    return AssertTask(
        expr=expr, message=fields.text("message"), severity=fields.choice("severity", SEVERITIES, "high")
    )
