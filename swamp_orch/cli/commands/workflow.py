"""`swamp workflow`: definitions. Running them is `commands/run.py`."""

import json
from typing import Any

from swamp_orch.cli import console
from swamp_orch.cli.editing import edit as edit_definition
from swamp_orch.cli.editing import text_from
from swamp_orch.cli.groups import argument, command, option, yes_option
from swamp_orch.cli.invocation import Invocation


def print_validation(invocation: Invocation, found: Any, kind: str) -> int:
    """An answer of `model.validate` or `workflow.validate`: one definition's checks, or all of them."""
    if invocation.json:
        invocation.document(found)
        return 0 if found.get("passed") else 1
    many = found.get(f"{kind}s")
    for one in [found] if many is None else many:
        name = one.get(f"{kind}Name") or one.get("name") or "?"
        print(f"Validating: {name}" + (f" ({one['type']})" if one.get("type") else ""))
        checks = one.get("validations", [])
        for check in checks:
            mark, style = ("✓", "green") if check["passed"] else ("✗", "red")
            print(f"  {console.paint(mark, style, invocation.color)} {check['name']}")
            if check.get("error"):
                print(f"    → {check['error']}")
        warnings = [*one.get("warnings", []), *(c["warning"] for c in checks if c.get("warning"))]
        for warning in warnings:
            text = warning["message"] if isinstance(warning, dict) else warning
            print(f"  {console.paint('⚠', 'yellow', invocation.color)} {text}")
        passed = sum(bool(check["passed"]) for check in checks)
        noted = f", {len(warnings)} warning{'' if len(warnings) == 1 else 's'}" if warnings else ""
        print(f"Summary: {passed}/{len(checks)} validations passed{noted}")
    if many is not None and not many:
        print(f"No {kind}s found.")
    print(f"Result: {'PASSED' if found.get('passed') else 'FAILED'}")
    return 0 if found.get("passed") else 1


def tell_problems(invocation: Invocation, found: Any) -> None:
    """Definition files that do not parse never disappear silently."""
    for problem in found.get("problems", ()):
        invocation.warn(problem["error"])


@command(
    "create",
    argument("name", required=False),
    option("--file", metavar="FILE", help="The workflow's YAML; - is stdin."),
    option("--stdin", "from_stdin", is_flag=True, help="The workflow's YAML on stdin."),
    help="Create a workflow from YAML, or an empty one of this name to fill in.",
)
def create(invocation: Invocation, name: str | None, file: str | None, from_stdin: bool) -> None:
    from swamp_proto.errors import UsageError

    text = text_from(file, from_stdin)
    if name is None and text is None:
        raise UsageError("neither a name nor a file", hint="swamp workflow create --file workflow.yaml")
    made = invocation.call("workflow.create", name=name, text=text)
    if invocation.json:
        invocation.document(made)
        return
    print(f"Created: {made['name']}")
    print(f"Path: {made['path']}")
    jobs = made.get("jobs") or []
    if jobs:
        print("Jobs:")
        invocation.lines(*(f"  {job['name'] if isinstance(job, dict) else job}" for job in jobs))


@command("get", argument("workflow", kind="workflow"), help="Show a workflow, as JSON.")
def get(invocation: Invocation, workflow: str) -> None:
    invocation.document(invocation.call("workflow.get", name=workflow))


@command("search", argument("query", required=False), help="Find workflows whose name contains QUERY.")
def search(invocation: Invocation, query: str | None) -> None:
    found = invocation.call("workflow.search", query=query)
    if invocation.json:
        invocation.document(found)
        return
    tell_problems(invocation, found)
    results = found["results"]
    if not results:
        invocation.lines("No workflows found.", "Create one with: swamp workflow create --file <file>")
        return
    rows = [(w["name"], w.get("description") or "-", w.get("id", "-")) for w in results]
    invocation.lines(*console.table(("NAME", "DESCRIPTION", "ID"), rows, color=invocation.color))


@command(
    "edit",
    argument("workflow", kind="workflow"),
    option("--file", metavar="FILE", help="The new YAML; - is stdin."),
    option("--stdin", "from_stdin", is_flag=True, help="The new YAML on stdin."),
    help="Change a workflow's YAML in $EDITOR, or replace it. It is checked before it is written.",
)
def edit(invocation: Invocation, workflow: str, file: str | None, from_stdin: bool) -> None:
    edit_definition(
        invocation,
        workflow,
        file,
        from_stdin,
        lambda: invocation.call("workflow.source", name=workflow),
        lambda text: invocation.call("workflow.edit", name=workflow, text=text),
    )


@command(
    "delete", argument("workflow", kind="workflow"), yes_option(), help="Delete a workflow; its runs stay."
)
def delete(invocation: Invocation, workflow: str, yes: bool) -> None:
    if not invocation.confirm(f"Delete workflow {workflow}?", yes):
        invocation.cancelled()
        return
    done = invocation.call("workflow.delete", name=workflow)
    if invocation.json:
        invocation.document(done)
    else:
        print(f"Deleted workflow {workflow}")


@command(
    "validate",
    argument("workflow", required=False, kind="workflow"),
    help="Check a workflow, or all of them. Exit 1 when one does not pass.",
)
def validate(invocation: Invocation, workflow: str | None) -> int:
    return print_validation(invocation, invocation.call("workflow.validate", name=workflow), "workflow")


@command("schema", help="Print the JSON Schema of workflow files, for editors.")
def schema(invocation: Invocation) -> None:
    print(json.dumps(invocation.call("workflow.schema"), indent=2, ensure_ascii=False))
