"""`command/shell`: what it accepts and what it produces. `swamp_worker.execution.shell` runs it."""

from typing import Any, Final

from swamp_worker.models.interface import MethodSpec, ModelType, OutputSpec

_ARGUMENTS: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "run": {"type": "string", "minLength": 1, "description": "Text given to `sh -c`"},
        "workingDir": {
            "type": "string",
            "minLength": 1,
            "description": "Existing directory to run in (default: a fresh one, removed afterwards)",
        },
        "timeout": {
            "type": "integer",
            "exclusiveMinimum": 0,
            "description": "Milliseconds until it is ended",
        },
        "env": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "Environment variables, over the inherited ones",
        },
        "ignoreExitCode": {"type": "boolean", "description": "Whether a non-zero exit code is a success"},
    },
    "required": ["run"],
    "additionalProperties": False,
    "examples": [
        {"run": "echo hello"},
        {"run": "make -j4", "workingDir": "/srv/build", "timeout": 600000, "env": {"CC": "clang"}},
        {"run": "grep -q ready state", "ignoreExitCode": True},
    ],
}

_RESULT: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "command": {"type": "string", "description": "What was run; secrets are ***"},
        "exitCode": {"type": "integer", "description": "128 + the signal's number when a signal ended it"},
        "stdout": {"type": "string", "description": "Without the trailing newline"},
        "stderr": {"type": "string", "description": "Without the trailing newline"},
        "durationMs": {"type": "integer", "minimum": 0},
        "executedAt": {"type": "string", "format": "date-time"},
        "signal": {"type": "string", "description": "The signal that ended it, e.g. SIGKILL"},
        "timedOut": {"type": "boolean"},
        "truncated": {"type": "boolean", "description": "stdout or stderr is not whole; the log is"},
    },
    "required": ["command", "exitCode", "stdout", "stderr", "durationMs", "executedAt"],
    "additionalProperties": False,
}

SHELL: Final = ModelType(
    name="command/shell",
    version="2026.02.09.1",
    description="Run a shell command",
    global_arguments={"type": "object", "properties": {}, "additionalProperties": False},
    methods={
        "execute": MethodSpec(
            name="execute",
            description="Run the command with sh -c and keep its output and exit code",
            arguments=_ARGUMENTS,
        )
    },
    outputs={
        "result": OutputSpec(
            name="result",
            kind="resource",
            content_type="application/json",
            description="Exit code, output and timing of the command",
            schema=_RESULT,
        ),
        "log": OutputSpec(
            name="log",
            kind="file",
            content_type="text/plain",
            description="Everything the command printed, in the order it was read",
        ),
    },
    shell_arguments=frozenset({"run"}),
)
