"""`swamp model`: definitions, methods, types, and the outputs of method executions."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from swamp_orch.cli import console, inputs
from swamp_orch.cli.commands.run import input_options, print_log, start
from swamp_orch.cli.commands.workflow import print_validation, tell_problems
from swamp_orch.cli.editing import edit as edit_definition
from swamp_orch.cli.groups import argument, command, option, yes_option
from swamp_orch.cli.invocation import Invocation
from swamp_proto.errors import UsageError


def _schema_lines(schema: Any, indent: str) -> Iterator[str]:
    """`name (type) [enum] *required`, one line per property of a JSON schema."""
    if not isinstance(schema, Mapping):
        return
    required = schema.get("required") or ()
    for name, spec in (schema.get("properties") or {}).items():
        spec = spec if isinstance(spec, Mapping) else {}
        kind = spec.get("type") or "any"
        enum = f" [{', '.join(map(str, spec['enum']))}]" if spec.get("enum") else ""
        default = f" = {json.dumps(spec['default'], ensure_ascii=False)}" if "default" in spec else ""
        about = f"  {spec['description']}" if spec.get("description") else ""
        kinds = "|".join(kind) if isinstance(kind, list) else kind
        yield f"{indent}{name} ({kinds}){enum}{default}{' *required' if name in required else ''}{about}"


def _method_lines(methods: Any) -> Iterator[str]:
    if not methods:
        return
    yield "Methods:"
    for method in methods:
        about = f"  {method['description']}" if method.get("description") else ""
        yield f"  {method['name']}{about}"
        yield from _schema_lines(method.get("arguments"), "    ")


@command(
    "create",
    argument("type", kind="type"),
    argument("name"),
    option(
        "--arg",
        "arguments",
        multiple=True,
        metavar="METHOD.ARG=V",
        help="A stored method argument; repeatable.",
    ),
    option(
        "--global-arg",
        "global_arguments",
        multiple=True,
        metavar="K=V",
        help="A global argument; repeatable.",
    ),
    help="Create a model: swamp model create command/shell hello --arg execute.run='echo hello'.",
)
def create(
    invocation: Invocation,
    type: str,
    name: str,
    arguments: tuple[str, ...],
    global_arguments: tuple[str, ...],
) -> None:
    stored = inputs.assignments(arguments, "--arg")
    for method, values in stored.items():
        if not isinstance(values, dict):
            raise UsageError(
                f"--arg {method}=… names no method",
                hint=f"an argument of a method: --arg METHOD.{method}=…; a global argument of the type: "
                f"--global-arg {method}=…",
            )
    made = invocation.call(
        "model.create",
        type=type,
        name=name,
        arguments=stored or None,
        globalArguments=inputs.assignments(global_arguments, "--global-arg") or None,
    )
    if invocation.json:
        invocation.document(made)
        return
    print(f"Created: {made['name']} ({made['type']})")
    print(f"Path: {made['path']}")
    if invocation.quiet:
        return
    if made.get("version") is not None:
        print(f"Version: {made['version']}")
    shared = list(_schema_lines(made.get("globalArguments"), "  "))
    if shared:
        invocation.lines("Global Arguments:", *shared)
    invocation.lines(*_method_lines(made.get("methods")))


@command("get", argument("model", kind="model"), help="Show a model.")
def get(invocation: Invocation, model: str) -> None:
    found = invocation.call("model.get", name=model)
    if invocation.json:
        invocation.document(found)
        return
    print(f"Name: {found['name']} ({found['type']})")
    print(f"ID: {found['id']}")
    print(f"Version: {found.get('version', '-')}")
    if found.get("path"):
        print(f"Path: {found['path']}")
    if found.get("tags"):
        print("Tags: " + ", ".join(f"{k}={v}" for k, v in found["tags"].items()))
    if found.get("globalArguments"):
        print("Global Arguments:")
        invocation.lines(*(f"  {k}: {console.cell(v)}" for k, v in found["globalArguments"].items()))
    if found.get("typeVersion"):
        print(f"Type Version: {found['typeVersion']}")
    shared = list(_schema_lines(found.get("globalArgumentsSchema"), "  "))
    if shared:
        invocation.lines("Global Arguments Schema:", *shared)
    invocation.lines(*_method_lines(found.get("methods")))


@command("search", argument("query", required=False), help="Find models whose name or type contains QUERY.")
def search(invocation: Invocation, query: str | None) -> None:
    found = invocation.call("model.search", query=query)
    if invocation.json:
        invocation.document(found)
        return
    tell_problems(invocation, found)
    results = found["results"]
    if not results:
        invocation.lines("No models found.", "Create one with: swamp model create <type> <name>")
        return
    rows = [(m["name"], m["type"], m.get("id", "-")) for m in results]
    invocation.lines(*console.table(("NAME", "TYPE", "ID"), rows, color=invocation.color))


@command(
    "edit",
    argument("model", kind="model"),
    option("--file", metavar="FILE", help="The new YAML; - is stdin."),
    option("--stdin", "from_stdin", is_flag=True, help="The new YAML on stdin."),
    help="Change a model's YAML in $EDITOR, or replace it. It is checked before it is written.",
)
def edit(invocation: Invocation, model: str, file: str | None, from_stdin: bool) -> None:
    edit_definition(
        invocation,
        model,
        file,
        from_stdin,
        lambda: invocation.call("model.source", name=model),
        lambda text: invocation.call("model.edit", name=model, text=text),
    )


@command("delete", argument("model", kind="model"), yes_option(), help="Delete a model and its data.")
def delete(invocation: Invocation, model: str, yes: bool) -> None:
    if not invocation.confirm(f"Delete model {model} and all its data?", yes):
        invocation.cancelled()
        return
    done = invocation.call("model.delete", name=model)
    if invocation.json:
        invocation.document(done)
        return
    gone = done.get("dataDeleted")
    print(f"Deleted model {model}" + (f" and {gone} record(s)" if isinstance(gone, int) and gone else ""))


@command(
    "validate",
    argument("model", required=False, kind="model"),
    help="Check a model, or all of them. Exit 1 when one does not pass.",
)
def validate(invocation: Invocation, model: str | None) -> int:
    return print_validation(invocation, invocation.call("model.validate", name=model), "model")


# ── methods ───────────────────────────────────────────────────────────────────────────────────────────────


@command(
    "run",
    argument("model", kind="model"),
    argument("method"),
    *input_options(),
    help="Run a method and watch it. Ctrl-C asks to cancel and waits; a second one leaves at once.",
)
def method_run(invocation: Invocation, model: str, method: str, **flags: Any) -> int:
    return start(invocation, "model.method_run", name=model, method=method, **flags)


def _specs(found: Mapping[str, Any]) -> Iterator[str]:
    specs = found.get("dataOutputSpecs") or []
    if specs:
        yield "Outputs:"
        for spec in specs:
            about = f"  {spec['description']}" if spec.get("description") else ""
            yield f"  {spec['name']} ({spec.get('kind', 'resource')}){about}"


@command("describe", argument("model", kind="model"), argument("method"), help="Show a method's arguments.")
def method_describe(invocation: Invocation, model: str, method: str) -> None:
    found = invocation.call("model.method_describe", name=model, method=method)
    if invocation.json:
        invocation.document(found)
        return
    print(f"Model: {found['modelName']} ({found['modelType']})")
    about = found["method"]
    print(f"Method: {about['name']}" + (f"  {about['description']}" if about.get("description") else ""))
    lines = list(_schema_lines(about.get("arguments"), "  "))
    if lines:
        invocation.lines("Arguments:", *lines)
    invocation.lines(*_specs(found))


# ── types ─────────────────────────────────────────────────────────────────────────────────────────────────


@command(
    "search",
    argument("query", required=False),
    option(
        "--all",
        "show_all",
        is_flag=True,
        help="Also types that cannot be instantiated, such as swamp/worker.",
    ),
    help="Find model types.",
)
def type_search(invocation: Invocation, query: str | None, show_all: bool) -> None:
    found = invocation.call("model.type_search", query=query, all=show_all or None)
    if invocation.json:
        invocation.document(found)
        return
    results = found["results"]
    if results:
        rows = [(t["type"], t["version"], t.get("description") or "-") for t in results]
        invocation.lines(*console.table(("TYPE", "VERSION", "DESCRIPTION"), rows, color=invocation.color))
    else:
        print("No model types found.")
    tell_problems(invocation, found)


@command("describe", argument("type", kind="type"), help="Show a model type: arguments, methods, outputs.")
def type_describe(invocation: Invocation, type: str) -> None:
    found = invocation.call("model.type_describe", type=type)
    if invocation.json:
        invocation.document(found)
        return
    print(f"Type: {found['type']['normalized']}")
    print(f"Version: {found.get('version', '-')}")
    shared = list(_schema_lines(found.get("globalArguments"), "  "))
    if shared:
        invocation.lines("Global Arguments:", *shared)
    invocation.lines(*_method_lines(found.get("methods")), *_specs(found), *_extras(found))


def _extras(found: Mapping[str, Any]) -> Iterator[str]:
    """What a type has beside methods and outputs; nothing for what it has not."""
    for title, key in (("Checks:", "checks"), ("Reports:", "reports")):
        if found.get(key):
            yield title
        for part in found.get(key) or ():
            yield f"  {part['name']}" + (f"  {part['description']}" if part["description"] else "")
    for title, key in (("Secrets:", "secrets"), ("Reads:", "reads")):
        if found.get(key):
            yield f"{title} {', '.join(found[key])}"
    if found.get("bundle"):
        yield f"Bundle: {found['bundle']}"


# ── outputs ───────────────────────────────────────────────────────────────────────────────────────────────


@command("get", argument("output"), help="Show a method execution.")
def output_get(invocation: Invocation, output: str) -> None:
    found = invocation.call("output.get", id=output)
    if invocation.json:
        invocation.document(found)
        return
    print(f"Output: {found['id']}")
    print(f"Model: {found.get('modelName')} ({found.get('type')})")
    print(f"Method: {found.get('methodName')}")
    print(f"Status: {found.get('status')}")
    print(f"Started: {found.get('startedAt') or '-'}")
    print(f"Duration: {console.duration(found.get('durationMs'))}")
    if found.get("error"):
        error = found["error"]
        print(f"Error: {error.get('message') if isinstance(error, dict) else error}")
    artifacts = (found.get("artifacts") or {}).get("dataArtifacts") or []
    if artifacts:
        print("Data produced:")
        invocation.lines(*(f"  {made['name']} (v{made['version']})" for made in artifacts))


@command(
    "search",
    argument("model", required=False, kind="model"),
    option("--limit", type=int, metavar="N", help="At most this many, newest first."),
    help="Find method executions, of one model or of all.",
)
def output_search(invocation: Invocation, model: str | None, limit: int | None) -> None:
    found = invocation.call("output.search", model=model, limit=limit)
    if invocation.json:
        invocation.document(found)
        return
    results = found["results"]
    if not results:
        print("No method executions found.")
        return
    rows = [
        (
            r.get("status", "-"),
            r.get("modelName") or "-",
            r.get("methodName") or "-",
            r["id"],
            r.get("startedAt") or "-",
            console.duration(r.get("durationMs")),
        )
        for r in results
    ]
    headers = ("STATUS", "MODEL", "METHOD", "ID", "STARTED", "DURATION")
    invocation.lines(*console.table(headers, rows, color=invocation.color, styled={0: console.STATE_STYLES}))


@command(
    "logs",
    argument("output"),
    option("--tail", type=int, metavar="N", help="Only the last N lines."),
    help="Print the log of a method execution.",
)
def output_logs(invocation: Invocation, output: str, tail: int | None) -> None:
    print_log(invocation, invocation.call("output.logs", id=output, tail=tail))
