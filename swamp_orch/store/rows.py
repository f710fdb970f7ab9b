"""Rows of the `record` table: from a `NewRecord` to the values written, and from the values read to a `Record`.

Knows the order of `RECORD_COLUMNS` and nothing of SQL or transactions. A row to be written is a list with gaps that the
writer fills inside its transaction (`SEQ`, `ID`, `VERSION`, `IS_LATEST`, `CREATED`).
"""

import json
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from swamp_orch.store.interface import Content, Kind, NewRecord, Owner, OwnerType, Record
from swamp_orch.store.schema import EXACT, LOOK, NONE, RECORD_COLUMNS
from swamp_orch.store.terms import is_json
from swamp_proto.errors import LocalError
from swamp_proto.limits import ATTRIBUTES_MAX

SEQ: Final = RECORD_COLUMNS.index("seq")
ID: Final = RECORD_COLUMNS.index("id")
VERSION: Final = RECORD_COLUMNS.index("version")
IS_LATEST: Final = RECORD_COLUMNS.index("is_latest")
CREATED: Final = RECORD_COLUMNS.index("created_ms")

_encode: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
_JSON: Final = "application/json"
_KINDS: Final = {kind.value: kind for kind in Kind}
_OWNERS: Final = {owner.value: owner for owner in OwnerType}


@lru_cache(maxsize=512)
def _tags(items: tuple[tuple[str, str], ...]) -> str:
    """Tags as stored. The records of a run share most of them, so this is often known."""
    return _encode(dict(items))


def to_row(record: NewRecord, content: Content) -> list[Any]:
    """The values of a new row; `content` is what is really stored (a blob's has no inline bytes). Raises LocalError."""
    owner = record.owner
    name = record.name
    if not name or "\0" in name or not record.model_id:
        raise LocalError(f"{name!r} cannot name a record of model {record.model_id!r}")
    tags = _tags(tuple(record.tags.items())) if record.tags else "{}"
    if "\\u0000" in tags:
        raise LocalError(f"a tag of {name} holds a NUL character")
    inline = content.inline
    if content.size > ATTRIBUTES_MAX or not (record.content_type == _JSON or is_json(record.content_type)):
        attributes = NONE
    else:
        attributes = EXACT if content.canonical and inline is not None else LOOK
    return [
        0, "", record.model_type, record.model_id, record.model_name, name, 0, record.spec, record.kind.value,
        record.content_type, record.lifetime, record.keep, record.streaming, record.deleted, True, content.size,
        content.sha256, 0, owner.type.value, owner.ref, owner.workflow_id, owner.workflow, owner.run, owner.job, owner.step,
        owner.dispatch, owner.fence, owner.source, record.outcome, attributes, tags, inline,
    ]  # fmt: skip


def to_record(row: Sequence[Any]) -> Record:
    """A `Record` from the values of `RECORD_COLUMNS`."""
    (
        seq, id_, model_type, model_id, model_name, name, version, spec, kind, content_type, lifetime, keep, streaming,
        deleted, is_latest, size, sha256, created_ms, owner_type, owner_ref, workflow_id, workflow, run, job, step, dispatch,
        fence, source, outcome, _attributes, tags, content,
    ) = row  # fmt: skip
    return Record(
        seq, id_, model_type, model_id, model_name, name, version, spec, _KINDS[kind], content_type, lifetime, keep,
        bool(streaming), {} if tags == "{}" else json.loads(tags),
        Owner(_OWNERS[owner_type], owner_ref, workflow_id, workflow, run, job, step, dispatch, fence, source),
        outcome, bool(deleted), bool(is_latest), size, sha256, created_ms, content,
    )  # fmt: skip


class Ids:
    """UUIDs of version 7 (RFC 9562): ordered by the millisecond, random otherwise.

    Randomness is drawn for many at once: each call for it gives up the interpreter lock, which a writer beside a busy event
    loop gets back only a switch interval later.
    """

    _DRAWN: Final = 1_024

    def __init__(self) -> None:
        self._noise = ""
        self._at = 0

    def make(self, count: int, wall_ms: int) -> list[str]:
        stamp = f"{wall_ms & 0xFFFFFFFFFFFF:012x}"
        head = f"{stamp[:8]}-{stamp[8:]}-7"
        found = []
        at = self._at
        noise = self._noise
        for _ in range(count):
            if at >= len(noise):
                noise = self._noise = os.urandom(10 * self._DRAWN).hex()
                at = 0
            variant = "89ab"[int(noise[at + 3], 16) & 3]
            found.append(
                f"{head}{noise[at : at + 3]}-{variant}{noise[at + 4 : at + 7]}-{noise[at + 7 : at + 19]}"
            )
            at += 20
        self._at = at
        return found
