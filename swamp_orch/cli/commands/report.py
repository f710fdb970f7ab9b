"""`swamp report`: what runs and methods said of themselves. Markdown is printed as it was written."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from swamp_orch.cli import console
from swamp_orch.cli.groups import argument, command, option
from swamp_orch.cli.invocation import Invocation
from swamp_orch.cli.runtree import RULE_COLUMNS

_WHOSE = (
    option("--model", metavar="MODEL", kind="model", help="Only of this model."),
    option("--workflow", metavar="WORKFLOW", kind="workflow", help="Only of this workflow."),
)


@command(
    "get",
    argument("name", kind="report"),
    *_WHOSE,
    option("--version", type=int, metavar="N", help="This version. Default: the latest."),
    option("--markdown", is_flag=True, help="Only the Markdown, nothing around it."),
    help="Show a report: of a model, of a workflow, or the newest of that name.",
)
def get(
    invocation: Invocation,
    name: str,
    model: str | None,
    workflow: str | None,
    version: int | None,
    markdown: bool,
) -> None:
    found = invocation.call("report.get", name=name, model=model, workflow=workflow, version=version)
    if invocation.json:
        invocation.document(found)
        return
    text = found["markdown"]
    if not markdown:
        rule = "─" * RULE_COLUMNS
        invocation.lines(rule, "  |  ".join(_heading(found)), rule)
    if text is not None:
        print(text)
    elif not markdown:
        print(json.dumps(found["json"], indent=2, ensure_ascii=False))
    else:
        invocation.note("The report has no Markdown; --json shows what it has.")


def _heading(found: Mapping[str, Any]) -> Iterator[str]:
    yield found["name"]
    yield f"{'Workflow' if found['scope'] == 'workflow' else 'Model'}: {found['modelName']}"
    yield f"Scope: {found['scope']}"
    yield f"v{found['version']}"
    yield found["createdAt"]


@command(
    "search",
    argument("query", required=False),
    *_WHOSE,
    option("--scope", metavar="SCOPE", help="Only of this scope: method or workflow."),
    option("--limit", type=int, metavar="N", help="At most this many, newest first. Default: 50."),
    help="Find stored reports whose name, model or workflow contains QUERY.",
)
def search(
    invocation: Invocation,
    query: str | None,
    model: str | None,
    workflow: str | None,
    scope: str | None,
    limit: int | None,
) -> None:
    found = invocation.call(
        "report.search", query=query, model=model, workflow=workflow, scope=scope, limit=limit
    )
    if invocation.json:
        invocation.document(found)
        return
    if not found["results"]:
        print("No reports found.")
        return
    rows = [(r["name"], r["modelName"], r["scope"], r["version"], r["createdAt"]) for r in found["results"]]
    headers = ("REPORT", "OF", "SCOPE", "VERSION", "CREATED")
    invocation.lines(*console.table(headers, rows, color=invocation.color))
    if found["limited"]:
        invocation.note(f"Showing {len(rows)} results (limit reached)")


@command("describe", argument("name", kind="report"), help="Say what a report is and who makes it.")
def describe(invocation: Invocation, name: str) -> None:
    found = invocation.call("report.describe", name=name)
    if invocation.json:
        invocation.document(found)
        return
    print(f"Report: {found['name']}")
    print(f"Scope: {found['scope']}")
    if found["description"]:
        print(f"Description: {found['description']}")
    if found["labels"]:
        print(f"Labels: {', '.join(found['labels'])}")
    print(f"Made by: {_maker(found)}")


def _maker(kind: Mapping[str, Any]) -> str:
    return "swamp" if kind["builtIn"] else ", ".join(kind["types"])


@command("search", argument("query", required=False), help="Find reports that can be made.")
def type_search(invocation: Invocation, query: str | None) -> None:
    found = invocation.call("report.type_search", query=query)
    if invocation.json:
        invocation.document(found)
        return
    if not found["results"]:
        print("No reports found.")
        return
    rows = [(r["name"], r["scope"], _maker(r), r["description"] or "-") for r in found["results"]]
    invocation.lines(
        *console.table(("REPORT", "SCOPE", "MADE BY", "DESCRIPTION"), rows, color=invocation.color)
    )
