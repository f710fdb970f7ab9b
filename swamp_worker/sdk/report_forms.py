"""What a report of an author's is stored as: the names of its two records, their tags, and what stands for one that was not made.

The same for every maker: the runner that made it, the executor of a runner that died over it, the orchestrator that could not have it
made. It knows no process and no store.
"""

import json
import re
from typing import Final

MARKDOWN: Final = "text/markdown"
JSON: Final = "application/json"
MESSAGE_MAX: Final = 2_000  # characters of what is said of one that was not made

STATUS_TAG: Final = "reportStatus"
FAILED: Final = "failed"  # the tag's value; a report that was made has none


def record_name(report: str) -> str:
    """`report-swamp-workflow-summary`; the JSON form has `-json` after it."""
    return "report-" + re.sub(r"[^A-Za-z0-9_.]+", "-", report).strip("-")


def json_name(report: str) -> str:
    return f"{record_name(report)}-json"


def tags_of(report: str, scope: str, *, failed: bool = False) -> dict[str, str]:
    found = {"type": "report", "reportName": report, "reportScope": scope}
    return found | ({STATUS_TAG: FAILED} if failed else {})


def failed_form(report: str, scope: str, message: str) -> bytes:
    """The JSON of a report that was not made."""
    told = {"error": True, "reportName": report, "scope": scope, "message": message[:MESSAGE_MAX]}
    return json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode()
