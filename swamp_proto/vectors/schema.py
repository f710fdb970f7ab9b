"""The schema of the wire as data, read from the classes: for `schema.json` and `docs/protocol.md`."""

import types
import typing
from enum import Enum
from typing import Any, Final

import attrs

from swamp_proto import codec, limits
from swamp_proto.envelope import FailureBody
from swamp_proto.errors import PERMANENT_REFUSALS, RefusalCode
from swamp_proto.messages import RULES
from swamp_proto.messages.bounds import BOUNDS, Bound
from swamp_proto.version import CONTROL_PATH, PROTOCOL_VERSION

WIRE_LIMITS: Final = (
    "CONTROL_FRAME_MAX",
    "ENROLL_FRAME_MAX",
    "FRAME_DEPTH_MAX",
    "FRAME_ITEMS_MAX",
    "REQUESTS_OUTSTANDING_MAX",
    "OUTBOX_FRAMES_MAX",
    "UNAUTHENTICATED_SOCKETS_MAX",
    "UNAUTHENTICATED_SOCKETS_PER_ADDRESS_MAX",
    "LABELS_MAX",
    "LABEL_LENGTH_MAX",
    "CAPACITY_MAX",
    "HELD_DISPATCHES_MAX",
    "TOKEN_LENGTH_MAX",
    "VERSION_LENGTH_MAX",
    "LOG_BLOCKS_MAX",
    "LOG_BATCH_LINES_MAX",
    "LOG_BATCH_BYTES_MAX",
    "LINE_MAX",
    "COMPLETION_OUTPUTS_MAX",
    "ENROLL_DEADLINE_S",
    "CLOSE_HANDSHAKE_S",
    "GRACE_S_DEFAULT",
    "GRACE_S_MIN",
    "GRACE_S_MAX",
    "SESSION_CREDENTIAL_S",
    "CANCEL_TERM_S",
    "CANCEL_WAIT_S",
    "RECONNECT_S_MIN",
    "RECONNECT_S_MAX",
)
"""Names in `limits` that a peer can observe."""


def type_name(annotation: Any) -> str:
    """A field's type in words of the wire: `integer`, `text?`, `list of LogBlock`, `map of any`."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        (inner,) = (part for part in parts if part is not type(None))
        return type_name(inner) + "?"
    if origin is tuple:
        return f"list of {type_name(parts[0])}"
    if origin is dict:
        return f"map of {'any' if parts[1] is Any else type_name(parts[1])}"
    words: dict[Any, str] = {int: "integer", float: "float", str: "text", bytes: "bytes", bool: "boolean"}
    return words.get(annotation) or str(annotation.__name__)


def bound_text(bound: Bound) -> str:
    """A bound in words: `1..1024`, `at least 0`, `at most 64, each at most 256 characters`."""
    low, high = bound.low, bound.high
    parts = []
    if low is not None and high is not None:
        parts.append(f"{low}..{high}")
    elif low is not None:
        parts.append(f"at least {low}")
    elif high is not None:
        parts.append(f"at most {high}")
    if bound.each is not None:
        parts.append(f"each at most {bound.each} characters")
    return ", ".join(parts)


def reachable() -> tuple[list[type[Any]], list[type[Enum]]]:
    """Every class and every enum of the wire, in the order of `RULES`; what a class contains follows it."""
    classes: list[type[Any]] = []
    enums: list[type[Enum]] = []

    def visit(annotation: Any) -> None:
        for part in typing.get_args(annotation):
            visit(part)
        if isinstance(annotation, type) and attrs.has(annotation):
            if annotation not in classes:
                classes.append(annotation)
                for hint in typing.get_type_hints(annotation).values():
                    visit(hint)
        elif isinstance(annotation, type) and issubclass(annotation, Enum) and annotation not in enums:
            enums.append(annotation)

    for rule in RULES:
        visit(rule.body)
        if rule.reply is not None:
            visit(rule.reply)
    visit(FailureBody)
    return classes, enums


def schema() -> dict[str, Any]:
    """The whole schema, JSON-shaped and in a stable order."""
    classes, enums = reachable()
    return {
        "protocol": PROTOCOL_VERSION,
        "path": CONTROL_PATH,
        "frames": {
            "request": [codec.REQUEST, "id", "name", "body"],
            "response": [codec.RESPONSE, "id", "name", "body"],
            "failure": [codec.FAILURE, "id", "name", "failure"],
            "event": [codec.EVENT, "name", "body"],
            "cancel": [codec.CANCEL, "id"],
        },
        "messages": {
            rule.name: {
                "kind": "request" if rule.is_request else "event",
                "senders": sorted(side.value for side in rule.senders),
                "body": rule.body.__name__,
                **({} if rule.reply is None else {"reply": rule.reply.__name__}),
            }
            for rule in RULES
        },
        "classes": {cls.__name__: _fields(cls) for cls in classes},
        "enums": {enum.__name__: [member.value for member in enum] for enum in enums},
        "permanent": [code.value for code in RefusalCode if code in PERMANENT_REFUSALS],
        "limits": {name: getattr(limits, name) for name in WIRE_LIMITS},
    }


def _fields(cls: type[Any]) -> dict[str, Any]:
    hints, bounds = typing.get_type_hints(cls), BOUNDS.get(cls, {})
    found: dict[str, Any] = {}
    for field in attrs.fields(cls):
        found[field.name] = {"type": type_name(hints[field.name])}
        if field.name in bounds:
            found[field.name]["bound"] = bound_text(bounds[field.name])
    return found
