"""What the author of a model type imports. The guide is docs/guides/python-model.md, the reference docs/reference/sdk.md.

import attrs
from swamp_worker.sdk import Context, about, method, model, resource

@attrs.frozen
class Greeting:
    text: str

@attrs.frozen
class Greet:
    whom: str = attrs.field(default="world", metadata=about("Who is greeted"))

@model("@example/greeter", version="2026.02.09.1")
class Greeter:
    \"\"\"Greets.\"\"\"

    greeting = resource(Greeting, "The last greeting")

    @method
    async def greet(self, context: Context[None], arguments: Greet) -> None:
        \"\"\"Greet somebody.\"\"\"
        await context.write_resource(self.greeting, Greeting(f"Hello, {arguments.whom}"))
"""

from swamp_worker.sdk.context import Context, OpenFile, PlainContext, PlainFile
from swamp_worker.sdk.conversations import Resources
from swamp_worker.sdk.declarations import File, Resource, check, file, method, model, report, resource
from swamp_worker.sdk.errors import (
    CallFailed,
    Cancelled,
    CheckFailed,
    Conflict,
    DeclarationError,
    Forbidden,
    Invalid,
    InvalidArguments,
    LeaseEnded,
    NotFound,
    NotPossible,
    RunFailed,
    SdkError,
    StepFailed,
    TooLarge,
    Unavailable,
)
from swamp_worker.sdk.shapes import about, from_json, schema_of, to_json
from swamp_worker.sdk.values import (
    ChildFindings,
    Findings,
    ModelInfo,
    ModelRun,
    Place,
    Record,
    RecordRef,
    Report,
    RunFindings,
    StepFindings,
    StoredFile,
    Written,
)

__all__ = [
    "CallFailed",
    "Cancelled",
    "CheckFailed",
    "ChildFindings",
    "Conflict",
    "Context",
    "DeclarationError",
    "File",
    "Findings",
    "Forbidden",
    "Invalid",
    "InvalidArguments",
    "LeaseEnded",
    "ModelInfo",
    "ModelRun",
    "NotFound",
    "NotPossible",
    "OpenFile",
    "Place",
    "PlainContext",
    "PlainFile",
    "Record",
    "RecordRef",
    "Report",
    "Resource",
    "Resources",
    "RunFailed",
    "RunFindings",
    "SdkError",
    "StepFailed",
    "StepFindings",
    "StoredFile",
    "TooLarge",
    "Unavailable",
    "Written",
    "about",
    "check",
    "file",
    "from_json",
    "method",
    "model",
    "report",
    "resource",
    "schema_of",
    "to_json",
]
