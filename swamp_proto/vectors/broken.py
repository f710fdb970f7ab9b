"""Bytes that are no frame, each with the place and the code of its refusal. Small surgery on valid vectors.

A decoder in another language must refuse all of them; `path` is where this one says the fault is. Paths name
fields by name and everything else by position, so that a refusal never repeats what the peer sent.
"""

from typing import Final

import attrs

from swamp_proto import codec
from swamp_proto.limits import CONTROL_FRAME_MAX
from swamp_proto.vectors.samples import VALID


@attrs.frozen
class Broken:
    """`data` is `head`, then `fill` as often as `times` says (four mebibytes need no file of that size)."""

    note: str
    path: str | None  # None: refused for its size, before anything was looked at
    head: bytes
    fill: bytes = b""
    times: int = 0
    code: str = "malformed"

    @property
    def data(self) -> bytes:
        return self.head + self.fill * self.times


def _text(value: str) -> bytes:
    """A short msgpack text."""
    assert len(value.encode()) < 32
    return bytes((0xA0 | len(value.encode()),)) + value.encode()


def _changed(vector: str, old: bytes, new: bytes) -> bytes:
    data = codec.encode(VALID[vector])
    assert data.count(old) == 1, (vector, old, data.count(old))
    return data.replace(old, new)


_BEAT: Final = b"\x94\x00\x04" + _text("link.heartbeat")
_NUMBER: Final = _text("number")
_COUNTER: Final = _text("counter")
_ENROLL: Final = "worker.enroll.request"
_AGAIN: Final = "worker.enroll.request.again"
_START: Final = "dispatch.start.request"
_LOG: Final = "dispatch.log.event"
_DONE: Final = "dispatch.finished.request"
_RATIO: Final = _text("ratio") + b"\xcb?\xe0" + bytes(6)
_FIELD: Final = "$.body.arguments"

BROKEN: Final[dict[str, Broken]] = {
    # not one msgpack value
    "empty": Broken("no bytes at all", "$", b""),
    "truncated": Broken("the last byte is missing", "$", codec.encode(VALID[_ENROLL])[:-1]),
    "trailing": Broken("a byte after the frame", "$", codec.encode(VALID["cancel"]) + b"\xc0"),
    "never-used-byte": Broken("the one byte msgpack does not use", "$", b"\xc1"),
    "extension": Broken("an extension type", "$", b"\x92\x04\xd4\x01\x00"),
    "timestamp": Broken("the timestamp extension", "$", b"\x92\x04\xd6\xff\x00\x00\x00\x00"),
    "not-utf8": Broken("text that is not UTF-8", "$", _changed(_LOG, b"executed", b"execute\xff")),
    "array-bomb": Broken("an array of four billion items", "$", b"\xdd\xff\xff\xff\xff"),
    "map-bomb": Broken("a map of a million entries", "$", _BEAT + b"\xdf\x00\x0f\x42\x40"),
    "nested-arrays": Broken("arrays inside arrays", "$", b"", b"\x91", 5000),
    "nested-bomb": Broken("large arrays inside large arrays", "$", b"", b"\xdd\x00\x01\x86\xa0", 1000),
    "integer-key": Broken("a map key that is no text", "$", _BEAT + b"\x81\x01\x01"),
    # not a frame
    "not-an-array": Broken("a map", "$", b"\x81" + _NUMBER + b"\x01"),
    "empty-array": Broken("an array without a kind", "$", b"\x90"),
    "kind-unknown": Broken("kind 5", "$.kind", b"\x92\x05\x01"),
    "kind-boolean": Broken(
        "a boolean is no kind", "$.kind", b"\x94\xc2\x04" + _text("link.heartbeat") + b"\x80"
    ),
    "kind-float": Broken("a float is no kind", "$.kind", b"\x92\xcb@\x10" + bytes(6) + b"\x04"),
    "kind-text": Broken("text is no kind", "$.kind", b"\x92\xa14\x04"),
    "request-short": Broken("a request of three items", "$", b"\x93\x00\x04" + _text("link.heartbeat")),
    "cancel-long": Broken("a cancel of three items", "$", b"\x93\x04\x04\xc0"),
    "event-long": Broken("an event with an id", "$", b"\x94\x03\x04" + _text("link.farewell") + b"\x80"),
    "id-zero": Broken("ids are positive", "$.id", b"\x92\x04\x00"),
    "id-negative": Broken("ids are positive", "$.id", b"\x92\x04\xff"),
    "id-boolean": Broken("a boolean is no id", "$.id", b"\x92\x04\xc3"),
    "id-beyond": Broken("ids fit 64 signed bits", "$.id", b"\x92\x04\xcf\x80" + bytes(7)),
    "name-unknown": Broken("no such message", "$.name", b"\x94\x00\x04" + _text("link.heartbeet") + b"\x80"),
    "name-bytes": Broken("a name is text", "$.name", b"\x94\x00\x04\xc4\x0elink.heartbeat\x80"),
    "name-event-asked": Broken(
        "an event as a request", "$.name", b"\x94\x00\x04" + _text("link.farewell") + b"\x80"
    ),
    "name-request-told": Broken(
        "a request as an event", "$.name", b"\x93\x03" + _text("link.heartbeat") + b"\x80"
    ),
    "name-event-failed": Broken(
        "a failure of an event", "$.name", b"\x94\x02\x04" + _text("dispatch.log") + b"\x80"
    ),
    # not its body
    "body-array": Broken("a body is a map", "$.body", _BEAT + b"\x91\x01"),
    "body-nothing": Broken("a body is a map", "$.body", _BEAT + b"\xc0"),
    "field-missing": Broken("a field is missing", "$.body.number", _BEAT + b"\x80"),
    "field-unknown": Broken(
        "a field too many", "$.body", _BEAT + b"\x82" + _NUMBER + b"\x01" + _COUNTER + b"\x01"
    ),
    "field-renamed": Broken("another field", "$.body.number", _BEAT + b"\x81" + _COUNTER + b"\x01"),
    "field-twice": Broken("a field twice", "$.body", _BEAT + b"\x82" + _NUMBER + b"\x01" + _NUMBER + b"\x01"),
    "field-bytes-name": Broken("a field's name is text", "$.body.number", _BEAT + b"\x81\xc4\x06number\x01"),
    "integer-boolean": Broken("true is not 1", "$.body.number", _BEAT + b"\x81" + _NUMBER + b"\xc3"),
    "integer-float": Broken(
        "1.0 is not 1", "$.body.number", _BEAT + b"\x81" + _NUMBER + b"\xcb?\xf0" + bytes(6)
    ),
    "integer-text": Broken("'1' is not 1", "$.body.number", _BEAT + b"\x81" + _NUMBER + b"\xa11"),
    "integer-beyond": Broken("2**63", "$.body.number", _BEAT + b"\x81" + _NUMBER + b"\xcf\x80" + bytes(7)),
    "integer-below": Broken("heartbeats count from 0", "$.body.number", _BEAT + b"\x81" + _NUMBER + b"\xff"),
    "text-bytes": Broken(
        "bytes are no text", "$.body.host", _changed(_ENROLL, b"\xa9builder-7", b"\xc4\x09builder-7")
    ),
    "text-nothing": Broken("null is no text", "$.body.host", _changed(_ENROLL, b"\xa9builder-7", b"\xc0")),
    "bytes-text": Broken(
        "text is no bytes",
        "$.body.outputs[1].content",
        _changed(_DONE, b"\xc4\x15executed on a worker\n", b"\xb5executed on a worker\n"),
    ),
    "boolean-integer": Broken(
        "0 is not false",
        "$.body.draining",
        _changed(_ENROLL, _text("draining") + b"\xc2", _text("draining") + b"\x00"),
    ),
    "boolean-text": Broken(
        "'false' is not false",
        "$.body.draining",
        _changed(_ENROLL, _text("draining") + b"\xc2", _text("draining") + _text("false")),
    ),
    "float-integer": Broken(
        "90 is not 90.0",
        "$.body.timeout_s",
        _changed(_START, _text("timeout_s") + b"\xcb@V\x80" + bytes(5), _text("timeout_s") + b"\x5a"),
    ),
    "float-nan": Broken(
        "not a number",
        "$.body.timeout_s",
        _changed(
            _START,
            _text("timeout_s") + b"\xcb@V\x80" + bytes(5),
            _text("timeout_s") + b"\xcb\x7f\xf8" + bytes(6),
        ),
    ),
    "enum-unknown": Broken(
        "no such phase", "$.body.held[1].phase", _changed(_AGAIN, _text("finished"), _text("exploded"))
    ),
    "enum-integer-boolean": Broken(
        "true is not stream 1",
        "$.body.blocks[0].stream",
        _changed(_LOG, _text("stream") + b"\x01", _text("stream") + b"\xc3"),
    ),
    "enum-code-unknown": Broken(
        "no such refusal",
        "$.failure.code",
        _changed("failure.busy", _text("code") + _text("busy"), _text("code") + _text("lazy")),
    ),
    "map-value-number": Broken(
        "labels are text",
        "$.body.labels[0]",
        _changed(_ENROLL, _text("gpu") + _text("true"), _text("gpu") + b"\x01"),
    ),
    "map-key-bytes": Broken(
        "a label's name is text", "$.body.labels[0]", _changed(_ENROLL, _text("gpu"), b"\xc4\x03gpu")
    ),
    "map-key-twice": Broken("a label twice", "$.body.labels", _changed(_ENROLL, _text("site"), _text("gpu"))),
    "nested-missing": Broken(
        "a field of a field is missing",
        "$.body.predecessor.reaped",
        _changed(_AGAIN, _text("reaped"), _text("eaten?")),
    ),
    # bounds
    "capacity-zero": Broken(
        "at least one slot",
        "$.body.capacity",
        _changed(_ENROLL, _text("capacity") + b"\x02", _text("capacity") + b"\x00"),
    ),
    "label-long": Broken(
        "257 characters",
        "$.body.labels[0]",
        _changed(_ENROLL, _text("gpu") + _text("true"), _text("gpu") + b"\xda\x01\x01" + b"x" * 257),
    ),
    "log-empty": Broken(
        "a batch has a line",
        "$.body.blocks",
        codec.encode(VALID[_LOG]).split(_text("blocks"))[0] + _text("blocks") + b"\x90",
    ),
    "fence-zero": Broken(
        "fences start at 1",
        "$.body.fence",
        _changed(_LOG, _text("fence") + b"\x03", _text("fence") + b"\x00"),
    ),
    # JSON-shaped values
    "json-infinity": Broken(
        "infinity is not JSON",
        _FIELD + "[2]",
        _changed(_START, _RATIO, _text("ratio") + b"\xcb\x7f\xf0" + bytes(6)),
    ),
    "json-key-twice": Broken("a key twice", _FIELD, _changed(_START, _text("list"), _text("blob"))),
    "json-integer-beyond": Broken(
        "2**64 - 1", _FIELD + "[2]", _changed(_START, _RATIO, _text("ratio") + b"\xcf" + b"\xff" * 8)
    ),
    "json-deep": Broken(
        "63 levels inside the arguments",
        _FIELD + "[2]" + "[0]" * 61,
        _changed(_START, _RATIO, _text("ratio") + b"\x91" * 62 + b"\xc0"),
    ),
    # size
    "too-large": Broken("a byte over the limit", None, b"", b"\xc0", CONTROL_FRAME_MAX + 1, "too_large"),
    # versions
    "other-version": Broken(
        "an enroll frame of another version, with a field that this one does not have",
        "$.body",
        b"\x94\x00\x01"
        + _text("worker.enroll")
        + b"\x83"
        + _text("protocol_version")
        + b"\x02"
        + _text("swamp_version")
        + _text("9.9.9")
        + _text("mood")
        + _text("fine"),
        code="protocol_mismatch",
    ),
}
