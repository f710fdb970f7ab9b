"""Capabilities: what running code asks of its orchestrator over the control link, and what it is told.

Calls are numbered per dispatch (one count with its data-plane writes and uploads). The holder keeps a call until
it is answered and says it again after an adoption; the answer of one that changed something is stored in the
transaction that acted, so that a call said twice acts once. What each verb takes, gives and needs is
`swamp_proto.capabilities`. Bulk bytes travel over the data plane (`swamp_proto.dataplane`), whose bodies are
here too.
"""

from enum import StrEnum
from typing import Any

import attrs

from swamp_proto.messages.dispatch import Output


class Verb(StrEnum):
    LATEST = "latest"
    VERSION = "version"
    VERSIONS = "versions"
    QUERY = "query"
    DELETE = "delete"
    DEFINITION = "definition"
    SECRET = "secret"  # noqa: S105 - a verb
    PUT_SECRET = "put_secret"  # noqa: S105 - a verb
    RUN_MODEL = "run_model"
    OUTPUT = "output"


class CallCode(StrEnum):
    """Why a call, a write or a read was not done. A closed set."""

    FORBIDDEN = "forbidden"  # this step may not
    NOT_FOUND = "not_found"
    INVALID = (
        "invalid"  # the request makes no sense: an undeclared spec, a violated schema, a broken predicate
    )
    CONFLICT = "conflict"
    IDEMPOTENCY_CONFLICT = "idempotency_conflict"  # the same number with another content
    LEASE_ENDED = "lease_ended"  # final: nothing is admitted under this lease any more
    TOO_LARGE = "too_large"
    FAILED = "failed"  # it was done and did not succeed (a model that was run)
    UNAVAILABLE = "unavailable"  # try again: the disk is full, the orchestrator restarts
    INTERNAL = "internal"


@attrs.frozen
class Call:
    """W -> O request `dispatch.call`. Answered by `CallAnswer`, also when it is refused."""

    dispatch: str
    fence: int
    number: int
    verb: Verb
    arguments: dict[str, Any] = attrs.field(repr=False)


@attrs.frozen
class CallAnswer:
    """O -> W reply. With a `code` it was not done, `message` says why, and `value` is empty."""

    dispatch: str
    number: int
    code: CallCode | None
    message: str
    value: dict[str, Any] = attrs.field(repr=False)


@attrs.frozen
class WriteBatch:
    """Body of a data-plane write: records that commit together, under one number."""

    records: tuple[Output, ...]


@attrs.frozen
class WrittenRecord:
    """One record that is durable now."""

    id: str
    name: str
    version: int
    size: int
    sha256: str


@attrs.frozen
class Written:
    """Answer to a `WriteBatch`: `records[i]` is what became of the batch's `records[i]`."""

    records: tuple[WrittenRecord, ...]
