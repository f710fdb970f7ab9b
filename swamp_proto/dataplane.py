"""The data plane's grammar: paths, headers, ranges. Bytes by HTTP on the orchestrator's port.

    GET   /data/v1/records/{record}                     one record version: immutable, ETag, Range
    GET   /data/v1/bundles/{sha256}                     the bundle with this name
    HEAD  /data/v1/dispatches/{dispatch}/uploads/{n}    how many bytes of upload n are safe: Upload-Offset
    PATCH /data/v1/dispatches/{dispatch}/uploads/{n}    more bytes of it, from Upload-Offset on
    PUT   /data/v1/dispatches/{dispatch}/writes/{n}     records that commit together (`WriteBatch` -> `Written`)

Rules
- Every request carries `Authorization: Bearer <credential of the dispatch>`, `Swamp-Dispatch` and `Swamp-Fence`. The credential is
  valid exactly as long as the lease.
- Numbers are the dispatch's own count, from 1, shared with its capability calls: the same number again is the
  same request, and acts once.
- An upload's offset counts bytes that survive a crash. `Upload-Length` comes with every PATCH, `Upload-Digest` (sha256, hex) with those
  whose sender knows it; the upload is whole when the offset reaches the length and the digest, if one was said, is right. The record that
  names it says its sha256, and is refused when that is another.
- Errors are JSON `{"error", "code"}`; codes are `CallCode`s. 401 and `lease_ended` are final; refused connections, 502,
  503 and 507 are tried again inside the lease; 408, 429 and 5xx without a code, which are nobody's of ours, a bounded number of times.

It knows no HTTP library and no socket.
"""

import re
from enum import StrEnum
from typing import Final

import attrs

from swamp_proto.errors import MalformedMessage
from swamp_proto.messages.capability import CallCode

PREFIX: Final = "/data/v1"
BODY_TYPE: Final = "application/msgpack"  # of `WriteBatch` and `Written`

DISPATCH_HEADER: Final = "swamp-dispatch"
FENCE_HEADER: Final = "swamp-fence"
UPLOAD_OFFSET: Final = "upload-offset"
UPLOAD_LENGTH: Final = "upload-length"
UPLOAD_DIGEST: Final = "upload-digest"

STATUS: Final[dict[CallCode, int]] = {
    CallCode.FORBIDDEN: 403,
    CallCode.NOT_FOUND: 404,
    CallCode.INVALID: 422,
    CallCode.CONFLICT: 409,
    CallCode.IDEMPOTENCY_CONFLICT: 409,
    CallCode.LEASE_ENDED: 410,
    CallCode.TOO_LARGE: 413,
    CallCode.FAILED: 422,
    CallCode.UNAVAILABLE: 507,
    CallCode.INTERNAL: 500,
}
RETRIED: Final = frozenset({502, 503, 504, 507})
"""Statuses after which the same request is said again, with its number, inside the lease."""


class Route(StrEnum):
    RECORD = "record"
    BUNDLE = "bundle"
    UPLOAD = "upload"
    WRITE = "write"


@attrs.frozen
class Target:
    """What a path names. `key`: record id, bundle's sha256, or dispatch; `number` of an upload or write."""

    route: Route
    key: str
    number: int = 0


_UUID: Final = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_NUMBER: Final = r"[1-9][0-9]{0,8}"
_PATTERNS: Final = (
    (Route.RECORD, re.compile(rf"{PREFIX}/records/({_UUID})")),
    (Route.BUNDLE, re.compile(rf"{PREFIX}/bundles/([0-9a-f]{{64}})")),
    (Route.UPLOAD, re.compile(rf"{PREFIX}/dispatches/({_UUID})/uploads/({_NUMBER})")),
    (Route.WRITE, re.compile(rf"{PREFIX}/dispatches/({_UUID})/writes/({_NUMBER})")),
)


def parse_path(path: str) -> Target | None:
    """What `path` names on the data plane; None when it names nothing."""
    for route, pattern in _PATTERNS:
        found = pattern.fullmatch(path)
        if found is not None:
            return Target(route, found[1], int(found[2]) if pattern.groups == 2 else 0)
    return None


def record_path(record: str) -> str:
    return f"{PREFIX}/records/{record}"


def bundle_path(sha256: str) -> str:
    return f"{PREFIX}/bundles/{sha256}"


def upload_path(dispatch: str, number: int) -> str:
    return f"{PREFIX}/dispatches/{dispatch}/uploads/{number}"


def write_path(dispatch: str, number: int) -> str:
    return f"{PREFIX}/dispatches/{dispatch}/writes/{number}"


@attrs.frozen
class ByteRange:
    """Bytes `first` up to and including `last` of a content."""

    first: int
    last: int

    @property
    def length(self) -> int:
        return self.last - self.first + 1


_RANGE: Final = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


def parse_range(header: str, size: int) -> ByteRange | None:
    """The one range that `header` asks of a content of `size` bytes; None when it can not be satisfied (416).

    Raises `MalformedMessage` for what is no single byte range.
    """
    found = _RANGE.fullmatch(header.strip())
    if found is None or not (found[1] or found[2]):
        raise MalformedMessage("$.range", "one range is understood: bytes=<first>-<last>")
    if not found[1]:
        length = min(int(found[2]), size)
        return ByteRange(size - length, size - 1) if length else None
    first = int(found[1])
    last = min(int(found[2]), size - 1) if found[2] else size - 1
    if found[2] and int(found[2]) < first:
        raise MalformedMessage("$.range", "a range ends before it begins")
    return ByteRange(first, last) if first < size else None


assert set(STATUS) == set(CallCode)
