"""What a field of a message may hold beyond its type: a table beside the message classes.

A `Bound` is read by the kind of value it stands on: a number lies within `low..high`; a string, list or map
has that many characters or entries; `each` bounds the length of every key and value of a map. The codec
enforces the table in both directions, so that no end can send what the other refuses. What depends on state
(a fence that must grow, a number that must follow) is not here: that is the receiver's business.
"""

from typing import Any, Final

import attrs

from swamp_proto import limits
from swamp_proto.envelope import FailureBody
from swamp_proto.messages import capability as _c
from swamp_proto.messages import dispatch as _d
from swamp_proto.messages import enrollment as _e


@attrs.frozen
class Bound:
    """`low` and `high` are inclusive; None is no bound. `each` is the longest key or value of a map."""

    low: int | None = None
    high: int | None = None
    each: int | None = None


_FROM_0: Final = Bound(low=0)
_FROM_1: Final = Bound(low=1)

BOUNDS: Final[dict[type[Any], dict[str, Bound]]] = {
    FailureBody: {"retry_after_s": _FROM_0},
    _e.HeldDispatch: {"fence": _FROM_1, "last_line": _FROM_0},
    _e.Enroll: {
        "protocol_version": _FROM_0,
        "swamp_version": Bound(high=limits.VERSION_LENGTH_MAX),
        "token": Bound(high=limits.TOKEN_LENGTH_MAX),
        "counter": _FROM_1,
        "pid": _FROM_0,
        "labels": Bound(high=limits.LABELS_MAX, each=limits.LABEL_LENGTH_MAX),
        "capacity": Bound(1, limits.CAPACITY_MAX),
        "held": Bound(high=limits.HELD_DISPATCHES_MAX),
    },
    _e.Enrolled: {"link": _FROM_1, "verdicts": Bound(high=limits.HELD_DISPATCHES_MAX)},
    _e.Heartbeat: {"number": _FROM_0},
    _e.HeartbeatAnswer: {"number": _FROM_0},
    _e.Farewell: {"retry_after_s": _FROM_0},
    _d.Dispatch: {"fence": _FROM_1, "attempt": _FROM_1, "model_version": _FROM_0, "timeout_s": _FROM_0},
    _d.Output: {"staged": _FROM_1, "size": _FROM_0},
    _d.LogLines: {"fence": _FROM_1, "first": _FROM_1, "blocks": Bound(1, limits.LOG_BLOCKS_MAX)},
    _d.LogNoted: {"through": _FROM_0},
    _d.Finished: {
        "fence": _FROM_1,
        "last_line": _FROM_0,
        "lines_lost": _FROM_0,
        "left": _FROM_0,
        "started_ms": _FROM_0,
        "duration_ms": _FROM_0,
    },
    _d.CancelDispatch: {"fence": _FROM_1, "term_s": _FROM_0},
    _c.Call: {"fence": _FROM_1, "number": _FROM_1},
    _c.CallAnswer: {"number": _FROM_1},
    _c.WriteBatch: {"records": Bound(1, limits.WRITE_RECORDS_MAX)},
    _c.WrittenRecord: {"version": _FROM_1, "size": _FROM_0},
}
