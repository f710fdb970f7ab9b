"""The error tree of the whole system. Every error says whose fault it is and what to do next.

    SwampError
    ├── UsageError           the command line was wrong (exit 2)
    ├── LocalError           the caller asked for something improper
    │   ├── InvalidDefinition    a file: names file, line, field and fix
    │   ├── NotFound / AlreadyExists / Conflict
    │   └── Unsupported
    ├── OperationFailed      it was tried and did not work (a run failed, a check failed)
    ├── RemoteError          the peer broke the contract
    │   ├── MalformedMessage     not a frame; carries a path, never the payload
    │   │   └── VersionMismatch      an enroll frame of another version of swamp
    │   ├── UnlawfulMessage      right shape, wrong moment or direction
    │   └── LimitExceeded
    ├── Refused              a lawful "no" with a code from a closed enum
    ├── NotConnected         nobody there
    ├── Interrupted          a person stopped it
    └── Broken               the world failed us: link, process, disk
    Bug                      ours: an illegal event or a broken invariant; carries the story

No code ever matches on message text. Third-party exceptions are translated at the port that raised them.
"""

from enum import Enum, StrEnum
from typing import ClassVar, Final

from swamp_proto.version import PROTOCOL_VERSION, SWAMP_VERSION


class ExitCode(int, Enum):
    """Exit codes of every command; documented in docs/reference/exit-codes.md."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_CONNECTED = 3
    PROTOCOL_MISMATCH = 10
    ALREADY_CONNECTED = 11
    ALREADY_BOUND = 12
    EXPIRED = 13
    REVOKED = 14
    DOES_NOT_MATCH = 15
    INVALID_TOKEN = 16
    PIN_MISMATCH = 17
    INTERRUPTED = 130


class RefusalCode(StrEnum):
    """Why an orchestrator says no on the control link. A closed set; the wire carries the value."""

    PROTOCOL_MISMATCH = "protocol_mismatch"
    ALREADY_CONNECTED = "already_connected"
    ALREADY_BOUND = "already_bound"
    EXPIRED = "expired"
    REVOKED = "revoked"
    DOES_NOT_MATCH = "does_not_match"
    INVALID_TOKEN = "invalid_token"  # noqa: S105 - a code, not a secret
    IDENTITY_BUSY = "identity_busy"
    OVERLOADED = "overloaded"
    RESTARTING = "restarting"
    STALE_INSTANCE = "stale_instance"  # a lower counter than one already seen
    BUSY = "busy"  # worker: no free slot
    DRAINING = "draining"  # worker: takes nothing new
    LEASE_ENDED = "lease_ended"
    UNKNOWN_DISPATCH = "unknown_dispatch"
    MALFORMED = "malformed"
    UNLAWFUL = "unlawful"
    TOO_LARGE = "too_large"
    ENROLL_TIMEOUT = "enroll_timeout"
    INTERNAL = "internal"


PERMANENT_REFUSALS: Final[dict[RefusalCode, ExitCode]] = {
    RefusalCode.PROTOCOL_MISMATCH: ExitCode.PROTOCOL_MISMATCH,
    RefusalCode.ALREADY_CONNECTED: ExitCode.ALREADY_CONNECTED,
    RefusalCode.ALREADY_BOUND: ExitCode.ALREADY_BOUND,
    RefusalCode.EXPIRED: ExitCode.EXPIRED,
    RefusalCode.REVOKED: ExitCode.REVOKED,
    RefusalCode.DOES_NOT_MATCH: ExitCode.DOES_NOT_MATCH,
    RefusalCode.INVALID_TOKEN: ExitCode.INVALID_TOKEN,
}
"""Refusals that stop a worker for good, with its exit code. Everything else is retried."""


class SwampError(Exception):
    """Base of everything a user may see. `str(error)` is the message; `hint` the next thing to type."""

    code: ClassVar[str] = "error"
    exit_code: ExitCode = ExitCode.FAILED

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        code: str | None = None,
        exit_code: ExitCode | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.error_code = code or type(self).code
        if exit_code is not None:
            self.exit_code = exit_code

    def document(self) -> dict[str, str]:
        """The `--json` form: `{"error", "code", "hint"?}`."""
        found = {"error": self.message, "code": self.error_code}
        if self.hint:
            found["hint"] = self.hint
        return found


class UsageError(SwampError):
    code = "usage"
    exit_code = ExitCode.USAGE


class LocalError(SwampError):
    code = "invalid"


class InvalidDefinition(LocalError):
    """A definition file is wrong. The message starts with `file:line: ` where the line is known."""

    code = "invalid_definition"


class NotFound(LocalError):
    code = "not_found"


class AlreadyExists(LocalError):
    code = "already_exists"


class Conflict(LocalError):
    """Somebody else changed it in between (compare-and-swap lost), or a precondition does not hold."""

    code = "conflict"


class Unsupported(LocalError):
    code = "unsupported"


class OperationFailed(SwampError):
    code = "failed"


class RemoteError(SwampError):
    code = "remote"


class MalformedMessage(RemoteError):
    """`path` says where (`$.body.labels[3]`); the payload itself is never part of the error."""

    code = "malformed"

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"malformed message at {path}: {problem}")
        self.path = path
        self.problem = problem


class VersionMismatch(MalformedMessage):
    """An enroll frame that this version can not read, and that says it is of another one.

    `request` is the id of the frame; the versions are the peer's, the message names those of both ends.
    """

    code = "protocol_mismatch"

    def __init__(self, request: int, protocol_version: int, swamp_version: str) -> None:
        super().__init__("$.body", "it is of another version")
        self.message = (
            f"protocol_mismatch: the worker is swamp {swamp_version} (protocol {protocol_version}), "
            f"the orchestrator is swamp {SWAMP_VERSION} (protocol {PROTOCOL_VERSION})"
        )
        self.args = (self.message,)
        self.request = request
        self.protocol_version = protocol_version
        self.swamp_version = swamp_version


class UnlawfulMessage(RemoteError):
    code = "unlawful"


class LimitExceeded(RemoteError):
    code = "too_large"


class Refused(SwampError):
    """A lawful no. `retry_after_s` is the server's hint, seconds."""

    code = "refused"

    def __init__(
        self,
        refusal: RefusalCode,
        message: str,
        *,
        retry_after_s: float | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint, code=refusal.value)
        self.refusal = refusal
        self.retry_after_s = retry_after_s

    @property
    def permanent(self) -> bool:
        return self.refusal in PERMANENT_REFUSALS


class NotConnected(SwampError):
    code = "not_connected"
    exit_code = ExitCode.NOT_CONNECTED


class Interrupted(SwampError):
    code = "interrupted"
    exit_code = ExitCode.INTERRUPTED


class Broken(SwampError):
    code = "broken"


class Bug(Exception):
    """Ours. Not a SwampError: only the top of a task tree may catch it. `story` is what led here."""

    def __init__(self, message: str, story: tuple[str, ...] = ()) -> None:
        super().__init__("\n  ".join((message, *story)))
        self.story = story
