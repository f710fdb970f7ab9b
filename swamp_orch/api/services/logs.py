"""The stored log of a step, as an answer carries it: its last lines and how many there are, without reading it whole into memory.

A line ends at a line feed and nowhere else, so that lines are counted as they are numbered while the step runs.
"""

from typing import BinaryIO, Final

import attrs

from swamp_orch.store.interface import Record, Store
from swamp_proto.errors import LocalError
from swamp_proto.limits import EXPORT_MAX, LOG_ANSWER_LINES, MIB

_READ: Final = 1 * MIB


@attrs.frozen
class Log:
    """`lines` are the last of all `count` lines."""

    lines: list[str]
    count: int


def read_log(store: Store, record: Record, tail: int | None) -> Log:
    """The last `tail` lines of a log, all with None. Raises `LocalError` when they are too many for an answer."""
    if record.content is not None:
        return _last(record.content, record.content.count(b"\n"), tail)
    with store.open_blob(record.sha256) as blob:
        count = 0
        while chunk := blob.read(_READ):
            count += chunk.count(b"\n")
        wanted = count if tail is None else min(tail, count)
        data = None if wanted > LOG_ANSWER_LINES else _end(blob, record.size, wanted)
    if data is None:
        raise LocalError(
            f"the log has {count} lines of {record.size} bytes; an answer carries up to {LOG_ANSWER_LINES} lines of {EXPORT_MAX} bytes",
            hint=f"--tail N shows its last lines; its bytes are in {getattr(blob, 'name', 'the store')}",
        )
    return _last(data, count, wanted)


def _end(blob: BinaryIO, size: int, wanted: int) -> bytes | None:
    """The end of a blob that holds `wanted` whole lines at least; None when it is too long."""
    pieces: list[bytes] = []
    begin, ends = size, 0
    while begin > 0 and ends <= wanted:  # one more line end stands before the first of them
        if size - begin >= EXPORT_MAX:
            return None
        at = max(0, begin - _READ)
        blob.seek(at)
        pieces.append(blob.read(begin - at))
        ends += pieces[-1].count(b"\n")
        begin = at
    return b"".join(reversed(pieces))


def _last(data: bytes, count: int, tail: int | None) -> Log:
    lines = data.split(b"\n")[:-1]
    kept = lines if tail is None else lines[len(lines) - min(tail, len(lines)) :]
    return Log([line.decode("utf-8", "replace") for line in kept], count)
