"""What an author's code may see go wrong, and what it may raise.

    SdkError
    ├── DeclarationError     the class is declared wrongly (raised while it is imported)
    ├── InvalidArguments     arguments that are not what the method's class asks for
    ├── StepFailed           raised by the author: the step fails with this sentence, without a traceback
    ├── CheckFailed          raised by a pre-flight check: the method does not run
    ├── NotPossible          a member of the context that can not work here, by its name
    └── CallFailed           the orchestrator did not do what was asked
        NotFound · Forbidden · Invalid · Conflict · TooLarge · RunFailed · Unavailable · LeaseEnded
    Cancelled                raised inside a plain method when the step is cancelled; no Exception: let it pass

Each `CallFailed` has the `code` of the answer (`swamp_proto.messages.capability.CallCode`).
"""

from collections.abc import Mapping
from typing import Any, Final

from swamp_proto.messages.capability import CallCode


class SdkError(Exception):
    """Base of everything here but `Cancelled`."""


class DeclarationError(SdkError):
    """A class, method or spec that can not be what it says. `line` is that of the declaration, 0 when not known."""

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.line = line


class InvalidArguments(SdkError):
    """The message names every field that is wrong."""


class StepFailed(SdkError):
    """For the author to raise: what a person should read, and nothing else. `result` is stored as the method's return value would
    have been: evidence of a failure.
    """

    def __init__(self, message: str, result: Any = None) -> None:
        super().__init__(message)
        self.result = result


class CheckFailed(SdkError):
    """For a pre-flight check to raise: why the method must not run."""


class NotPossible(SdkError):
    """A member of the context that can not work where it was used."""


class Cancelled(BaseException):
    """The step was cancelled, or its time is over. Clean up and let it pass."""


class CallFailed(SdkError):
    """Not done. `code` says why, from a closed set."""

    code: CallCode = CallCode.INTERNAL

    def __init__(self, message: str, code: CallCode | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class NotFound(CallFailed):
    code = CallCode.NOT_FOUND


class Forbidden(CallFailed):
    """The step may not: see `reads` and `secrets` of the type."""

    code = CallCode.FORBIDDEN


class Invalid(CallFailed):
    """An undeclared spec, content that violates its schema, a broken predicate."""

    code = CallCode.INVALID


class Conflict(CallFailed):
    code = CallCode.CONFLICT


class TooLarge(CallFailed):
    code = CallCode.TOO_LARGE


class RunFailed(CallFailed):
    """A model was run and did not succeed."""

    code = CallCode.FAILED


class Unavailable(CallFailed):
    """Nothing is wrong with the request; it can not be served now."""

    code = CallCode.UNAVAILABLE


class LeaseEnded(CallFailed):
    """Final: nothing of this step is admitted any more, and it is about to be ended."""

    code = CallCode.LEASE_ENDED


_BY_CODE: Final[Mapping[CallCode, type[CallFailed]]] = {
    each.code: each
    for each in (NotFound, Forbidden, Invalid, Conflict, TooLarge, RunFailed, Unavailable, LeaseEnded)
}


def call_failed(code: str, message: str) -> CallFailed:
    """The error for an answer with this code."""
    known = CallCode(code) if code in {each.value for each in CallCode} else CallCode.INTERNAL
    return _BY_CODE.get(known, CallFailed)(message, known)
