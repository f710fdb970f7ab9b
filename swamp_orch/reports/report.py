"""A report as a value, how Markdown tables are written, and the records a report is stored as.

Storing is the engine's: this module only says which records. It reads no clock and no store.
"""

import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

import attrs

from swamp_orch.store.interface import Content, Kind, NewRecord, Owner
from swamp_worker.sdk.report_forms import JSON, MARKDOWN, json_name, record_name, tags_of

LIFETIME: Final = "30d"
VERSIONS_KEPT: Final = 5
ABSENT: Final = "–"
WORKFLOW_TYPE: Final = "workflow"
"""The model type that a workflow's reports are stored under."""


class ReportScope(StrEnum):
    METHOD = "method"
    WORKFLOW = "workflow"


@attrs.frozen
class Report:
    """`json` is JSON-shaped; both forms say the same."""

    name: str  # `@swamp/workflow-summary`
    scope: ReportScope
    markdown: str
    json: Mapping[str, Any]

    @property
    def record_name(self) -> str:
        return record_name(self.name)


def report_records(
    report: Report,
    *,
    model_type: str,
    model_id: str,
    model_name: str,
    owner: Owner,
    tags: Mapping[str, str] | None = None,
) -> tuple[NewRecord, ...]:
    """The two records of a report, Markdown first; empty Markdown is not stored. A workflow's reports belong
    to the model type `workflow` with the workflow's id and name, a method's to its model."""
    marks = {**(tags or {}), **tags_of(report.name, report.scope.value)}
    forms = [
        (report.record_name, MARKDOWN, report.markdown.encode()),
        (json_name(report.name), JSON, _compact(report.json)),
    ]
    return tuple(
        NewRecord(
            model_type=model_type,
            model_id=model_id,
            model_name=model_name,
            name=name,
            spec="report",
            content=Content(data, hashlib.sha256(data).hexdigest(), len(data)),
            kind=Kind.REPORT,
            content_type=content_type,
            lifetime=LIFETIME,
            keep=VERSIONS_KEPT,
            tags=marks,
            owner=owner,
        )
        for name, content_type, data in forms
        if data
    )


def _compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; cells are made to fit on their line."""
    lines = [header, ["---"] * len(header), *([_cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").split()) or ABSENT


def code(text: str) -> str:
    """Inline code, also where the text has backticks."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def retrieval_commands(step: Mapping[str, Any]) -> list[str]:
    """The commands that show what a step of a run document stored."""
    return [
        shlex.join(
            [
                "swamp", "data", "get",
                str(artifact.get("modelName") or step.get("modelName") or ""),
                str(artifact["name"]),
                "--version", str(artifact["version"]),
            ]
        )
        for artifact in step.get("dataArtifacts") or ()
    ]  # fmt: skip
