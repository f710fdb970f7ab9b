"""The closed set of messages, each with its wire name, its kind and who may send it.

A rule with a reply is a request; one without is an event, which needs no answer. The codec, the session
rules, the vectors, the schema snapshot and `docs/protocol.md` are all driven by this table; a message that is
not here does not exist.
"""

from enum import StrEnum
from typing import Any, Final

import attrs

from swamp_proto.messages import capability as _c
from swamp_proto.messages import dispatch as _d
from swamp_proto.messages import enrollment as _e


class Side(StrEnum):
    WORKER = "worker"
    ORCHESTRATOR = "orchestrator"


@attrs.frozen
class Rule:
    """One message: `name` on the wire, who may send it, and for a request the class that answers it."""

    name: str
    body: type[Any]
    senders: frozenset[Side]
    reply: type[Any] | None = None  # None: an event

    @property
    def is_request(self) -> bool:
        return self.reply is not None


_W: Final = frozenset({Side.WORKER})
_O: Final = frozenset({Side.ORCHESTRATOR})

RULES: Final[tuple[Rule, ...]] = (
    Rule("worker.enroll", _e.Enroll, _W, _e.Enrolled),
    Rule("worker.session.refresh", _e.RefreshSession, _W, _e.SessionRefreshed),
    Rule("worker.drain", _e.AnnounceDrain, _W, _e.DrainNoted),
    Rule("link.heartbeat", _e.Heartbeat, _W | _O, _e.HeartbeatAnswer),
    Rule("link.farewell", _e.Farewell, _O),
    Rule("worker.notice", _e.Notice, _O),
    Rule("dispatch.start", _d.Dispatch, _O, _d.Accepted),
    Rule("dispatch.cancel", _d.CancelDispatch, _O, _d.CancelNoted),
    Rule("dispatch.finished", _d.Finished, _W, _d.FinishNoted),
    Rule("dispatch.log", _d.LogLines, _W),
    Rule("dispatch.log.noted", _d.LogNoted, _O),
    Rule("dispatch.call", _c.Call, _W, _c.CallAnswer),
)

RULE_BY_NAME: Final[dict[str, Rule]] = {rule.name: rule for rule in RULES}
RULE_BY_BODY: Final[dict[type[Any], Rule]] = {rule.body: rule for rule in RULES}
