"""Bytes <-> frames. The only module that names msgpack or cattrs.

Rules that hold here
- Strict both ways: a field holds exactly its type (a bool is no int, an int is no float, nothing is
  converted), integers fit 64 signed bits, floats are finite, text is UTF-8, `dict[str, Any]` holds
  JSON-shaped values and bytes. What `encode` lets out, `decode` lets in and gives back equal.
- Closed: unknown kinds, names and *fields* are refused. Both ends are the same version (`version.py`), so a
  field that one of them does not know is a fault, never a newer peer. The one thing that must be readable
  across versions is an enroll frame that says it is of another one: `VersionMismatch`.
- Bounded before work: size before unpacking, items while unpacking, nesting before unpacking where a frame
  has enough large containers to make it matter, lengths and ranges (`messages.bounds`) while checking.
- Every refusal of bytes is a `MalformedMessage` with a path, or `LimitExceeded` for size. Neither holds any
  of the payload: map entries are named by position, unknown fields not at all.
- Canonical: fields in the order of their class, shortest msgpack form. `decode` does not insist on either.

How it is fast: cattrs generates one function per class from the hooks below, without error detail. Only when
that function refuses does a second converter, made of the same hooks with detail, look for the place.

It does not know which message is lawful when (`session.py`), who sends what, or any socket.
"""

import types
import typing
from collections.abc import Sequence
from enum import Enum
from typing import Any, Final

import attrs
import msgpack
from cattrs import AttributeValidationNote, ClassValidationError, Converter, ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from swamp_proto import limits, nesting
from swamp_proto.checks import (
    INT_MAX,
    REPEATED,
    Check,
    Wrong,
    boolean,
    float_out,
    floating,
    integer,
    items_of,
    json_map,
    kind_of,
    member_in,
    member_out,
    optional,
    sized,
    texts,
)
from swamp_proto.envelope import Cancel, Event, Failure, FailureBody, Frame, Request, Response
from swamp_proto.errors import Bug, LimitExceeded, MalformedMessage, Unsupported, VersionMismatch
from swamp_proto.messages import RULE_BY_BODY, RULE_BY_NAME, RULES
from swamp_proto.messages.bounds import BOUNDS, Bound
from swamp_proto.version import PROTOCOL_VERSION, SWAMP_VERSION, is_version

REQUEST: Final = 0
RESPONSE: Final = 1
FAILURE: Final = 2
EVENT: Final = 3
CANCEL: Final = 4
BUNDLE: Final = 5  # of frames; no frame itself

_Body = typing.TypeVar("_Body")

UNEXPLAINED: Final = "refused at first sight, and not at second"  # never; the fuzz target looks for it
_FRAME_MAX: Final = limits.CONTROL_FRAME_MAX
_ITEMS_MAX: Final = limits.FRAME_ITEMS_MAX


# ── classes ─────────────────────────────────────────────────────────────────────────────────────────────────


class _Direction:
    """Hooks for one direction, with or without detail; a cattrs function per class, made when first asked."""

    def __init__(self, *, inward: bool, detail: bool) -> None:
        self._inward = inward
        self._detail = detail
        self._converter = Converter(detailed_validation=detail, forbid_extra_keys=detail)
        self._classes: dict[type[Any], Check] = {}

    def of_class(self, cls: type[Any]) -> Check:
        found = self._classes.get(cls)
        if found is None:
            made = self._make_in(cls) if self._inward else self._make_out(cls)
            found = self._classes[cls] = made
        return found

    def _hook(self, annotation: Any, bound: Bound) -> Check:
        origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
        if origin in (types.UnionType, typing.Union):
            (inner,) = (part for part in parts if part is not type(None))
            return optional(self._hook(inner, bound))
        if origin is tuple:
            assert parts[1:] == (...,), annotation
            source, target = (list, tuple) if self._inward else (tuple, list)
            return items_of(self._hook(parts[0], Bound()), bound, source, target)
        if annotation == dict[str, str]:
            return texts(bound)
        if annotation == dict[str, Any]:
            return json_map
        if annotation is int:
            return integer(bound)
        if annotation is float:
            return floating(bound) if self._inward else float_out(floating(bound))
        if annotation is str:
            return sized(str, "text is", bound)
        if annotation is bytes:
            return sized(bytes, "bytes are", bound)
        if annotation is bool:
            return boolean
        if isinstance(annotation, type) and issubclass(annotation, Enum):
            return member_in(annotation) if self._inward else member_out(annotation)
        assert attrs.has(annotation), f"no rule for fields of type {annotation}"
        return self.of_class(annotation)

    def _hooks(self, cls: type[Any]) -> dict[str, Check]:
        hints, bounds = typing.get_type_hints(cls), BOUNDS.get(cls, {})
        assert set(bounds) <= {field.name for field in attrs.fields(cls)}, cls
        return {f.name: self._hook(hints[f.name], bounds.get(f.name, Bound())) for f in attrs.fields(cls)}

    def _make_in(self, cls: type[Any]) -> Check:
        hooks = {name: override(struct_hook=hook) for name, hook in self._hooks(cls).items()}
        # cattrs types its overrides as if they were its own flags
        made: Any = make_dict_structure_fn(cls, self._converter, **hooks)  # type: ignore[arg-type]
        count = len(hooks)
        if not self._detail:

            def quick(value: Any, _: Any = None) -> Any:
                if type(value) is not dict or len(value) != count:
                    raise Wrong("not this class")
                return made(value, cls)

            return quick

        def exact(value: Any, _: Any = None) -> Any:
            if type(value) is not dict:
                raise Wrong(f"a map is needed, not {kind_of(value)}")
            try:
                return made(value, cls)
            except ClassValidationError as group:
                found = _first(group)
            raise found

        return exact

    def _make_out(self, cls: type[Any]) -> Check:
        hooks = self._hooks(cls)
        if self._detail:

            def exact(value: Any, _: Any = None) -> Any:
                if type(value) is not cls:
                    raise Wrong(f"a {cls.__name__} is needed, not {kind_of(value)}")
                for name, hook in hooks.items():
                    try:
                        hook(getattr(value, name), None)
                    except Wrong as wrong:
                        raise wrong.inside(f".{name}") from None
                return None

            return exact
        overrides = {name: override(unstruct_hook=hook) for name, hook in hooks.items()}
        made: Any = make_dict_unstructure_fn(cls, self._converter, **overrides)  # type: ignore[arg-type] # as above

        def quick(value: Any, _: Any = None) -> Any:
            if type(value) is not cls:
                raise Wrong("not this class")
            return made(value)

        return quick


def _first(group: ClassValidationError) -> Wrong:
    """The first refusal of a class, with the field it belongs to."""
    error = group.exceptions[0]
    if isinstance(error, ForbiddenExtraKeysError):
        return Wrong("unknown field")
    field = next(
        (n.name for n in getattr(error, "__notes__", ()) if isinstance(n, AttributeValidationNote)), None
    )
    step = "" if field is None else f".{field}"
    if isinstance(error, Wrong):
        return error.inside(step)
    if isinstance(error, KeyError):
        return Wrong("missing", step)
    raise error  # a hook raised what no hook raises: ours


_QUICK_IN: Final = _Direction(inward=True, detail=False)
_EXACT_IN: Final = _Direction(inward=True, detail=True)
_QUICK_OUT: Final = _Direction(inward=False, detail=False)
_EXACT_OUT: Final = _Direction(inward=False, detail=True)

_REQUEST_IN: Final = {r.name: _QUICK_IN.of_class(r.body) for r in RULES if r.reply is not None}
_RESPONSE_IN: Final = {r.name: _QUICK_IN.of_class(r.reply) for r in RULES if r.reply is not None}
_EVENT_IN: Final = {r.name: _QUICK_IN.of_class(r.body) for r in RULES if r.reply is None}
_FAILURE_IN: Final = _QUICK_IN.of_class(FailureBody)
_REQUEST_OUT: Final = {r.body: (r.name, _QUICK_OUT.of_class(r.body)) for r in RULES if r.reply is not None}
_RESPONSE_OUT: Final = {r.name: _QUICK_OUT.of_class(r.reply) for r in RULES if r.reply is not None}
_EVENT_OUT: Final = {r.body: (r.name, _QUICK_OUT.of_class(r.body)) for r in RULES if r.reply is None}
_FAILURE_OUT: Final = _QUICK_OUT.of_class(FailureBody)

_NUMBER: Final = integer(Bound(low=1))  # of a request


# ── frames in ───────────────────────────────────────────────────────────────────────────────────────────────


def _pairs(pairs: list[tuple[Any, Any]]) -> Any:
    found = dict(pairs)
    return found if len(found) == len(pairs) else REPEATED


def _no_extension(code: int, _: Any) -> Any:
    raise ValueError(f"extension type {code}")


def _unpack(data: bytes, most: int) -> Any:
    """The msgpack value that `data` is, all of it."""
    size = len(data)
    if size > most:
        raise LimitExceeded(f"a control frame has {size} bytes; the limit is {most}")
    if not nesting.fits(data):
        raise MalformedMessage("$", "containers that are too many, too deep, or not whole")
    room = size if size < _ITEMS_MAX else _ITEMS_MAX
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_pairs,
            ext_hook=_no_extension,
            max_array_len=room,
            max_map_len=room,
            max_ext_len=0,
        )
    except Exception:  # noqa: S110 - msgpack names no closed set, and what it raises may hold the payload
        pass
    raise MalformedMessage("$", f"{size} bytes that are not one msgpack value of {_ITEMS_MAX} items at most")


def decode(data: bytes, most: int = limits.CONTROL_FRAME_MAX) -> Frame:
    """The frame that `data` (one whole WebSocket message) is. `most` is the size in bytes that it may have:
    `ENROLL_FRAME_MAX` for the first frame of a stranger.

    Raises `MalformedMessage` (with a path, without the payload; `VersionMismatch` for an enroll frame of
    another version) and `LimitExceeded`.
    """
    return _frame(_unpack(data, most))


def decode_message(data: bytes, most: int = limits.CONTROL_FRAME_MAX) -> tuple[Frame, ...]:
    """The frames of one WebSocket message, in order: one, or those of a bundle. Raises as `decode`; the path of a frame in a
    bundle begins with `$.frames[i]`."""
    value = _unpack(data, most)
    if type(value) is not list or len(value) != 2 or value[0] != BUNDLE or type(value[0]) is not int:
        return (_frame(value),)
    inner = value[1]
    if type(inner) is not list or not 2 <= len(inner) <= limits.BUNDLE_FRAMES_MAX:
        raise MalformedMessage("$.frames", f"a bundle holds 2 to {limits.BUNDLE_FRAMES_MAX} frames")
    found = []
    for index, one in enumerate(inner):
        try:
            found.append(_frame(one))
        except VersionMismatch:
            raise MalformedMessage(f"$.frames[{index}]", "worker.enroll is not sent in a bundle") from None
        except MalformedMessage as error:
            raise MalformedMessage(f"$.frames[{index}]{error.path[1:]}", error.problem) from None
    return tuple(found)


def _frame(frame: Any) -> Frame:
    try:
        if type(frame) is list:
            count = len(frame)
            kind = frame[0] if count else None
            if type(kind) is int:
                if count == 4:
                    _, number, name, body = frame
                    if type(number) is int and 0 < number <= INT_MAX and type(name) is str:
                        if kind == REQUEST:
                            return Request(number, _REQUEST_IN[name](body, None))
                        if kind == RESPONSE:
                            return Response(number, _RESPONSE_IN[name](body, None), name)
                        if kind == FAILURE and name in _REQUEST_IN:
                            return Failure(number, name, _FAILURE_IN(body, None))
                elif count == 3:
                    _, name, body = frame
                    if kind == EVENT and type(name) is str:
                        return Event(_EVENT_IN[name](body, None))
                elif count == 2 and kind == CANCEL:
                    number = frame[1]
                    if type(number) is int and 0 < number <= INT_MAX:
                        return Cancel(number)
    except (Wrong, KeyError):
        pass
    raise _explain(frame)


_SHAPES: Final = {
    REQUEST: ("id", "name", "body"),
    RESPONSE: ("id", "name", "body"),
    FAILURE: ("id", "name", "failure"),
    EVENT: ("name", "body"),
    CANCEL: ("id",),
}


def _explain(frame: Any) -> MalformedMessage:
    """Why `frame` was refused, found by looking again, slowly."""
    if type(frame) is not list or not frame:
        return MalformedMessage("$", f"a frame is an array that is not empty, not {kind_of(frame)}")
    kind = frame[0]
    shape = _SHAPES.get(kind) if type(kind) is int else None
    if shape is None:
        return MalformedMessage("$.kind", "not a kind of frame")
    if len(frame) != 1 + len(shape):
        return MalformedMessage("$", f"a frame of kind {kind} has {1 + len(shape)} items, not {len(frame)}")
    parts = dict(zip(shape, frame[1:], strict=True))
    if "id" in parts:
        try:
            _NUMBER(parts["id"], None)
        except Wrong as wrong:
            return MalformedMessage("$.id", wrong.problem)
    name = parts.get("name", "")
    if type(name) is not str:
        return MalformedMessage("$.name", f"text is needed, not {kind_of(name)}")
    rule = RULE_BY_NAME.get(name)
    if rule is None:
        return MalformedMessage("$.name", "not the name of a message")
    if rule.is_request is (kind == EVENT):
        return MalformedMessage("$.name", f"{name} is {'a request' if rule.is_request else 'an event'}")
    place, cls = (
        ("failure", FailureBody)
        if kind == FAILURE
        else ("body", rule.reply if kind == RESPONSE else rule.body)
    )
    assert cls is not None
    if kind == REQUEST and name == "worker.enroll":
        other = _other_version(parts["id"], parts["body"])
        if other is not None:
            return other
    try:
        _EXACT_IN.of_class(cls)(parts[place], None)
    except Wrong as wrong:
        return MalformedMessage(f"$.{place}{wrong.path}", wrong.problem)
    return MalformedMessage(f"$.{place}", UNEXPLAINED)


def _other_version(request: int, body: Any) -> VersionMismatch | None:
    """Whether an enroll frame that is not ours says that it is of another version."""
    if type(body) is not dict:
        return None
    protocol, swamp = body.get("protocol_version"), body.get("swamp_version")
    if type(protocol) is not int or type(swamp) is not str or not is_version(swamp):
        return None
    if (protocol, swamp) == (PROTOCOL_VERSION, SWAMP_VERSION):
        return None
    return VersionMismatch(request, protocol, swamp)


def bundle(parts: Sequence[bytes]) -> bytes:
    """One message of one or several encoded frames, at most `BUNDLE_FRAMES_MAX`. The caller keeps the sum within
    `BUNDLE_BYTES_MAX`."""
    count = len(parts)
    if count == 1:
        return parts[0]
    assert 2 <= count <= limits.BUNDLE_FRAMES_MAX
    size = bytes((0x90 | count,)) if count < 16 else b"\xdc" + count.to_bytes(2, "big")
    return b"\x92" + bytes((BUNDLE,)) + size + b"".join(parts)


# ── bodies of the data plane, and plain values ───────────────────────────────────────────────────────────────


def encode_body(value: Any) -> bytes:
    """The bytes of one attrs value (`WriteBatch`, `Written`), as strict as a frame. Raises `Unsupported`."""
    try:
        parts = _QUICK_OUT.of_class(type(value))(value, None)
        data: bytes = msgpack.Packer(use_bin_type=True, strict_types=True).pack(parts)
    except Wrong:
        try:
            _EXACT_OUT.of_class(type(value))(value, None)
        except Wrong as wrong:
            raise Unsupported(f"cannot be sent: ${wrong.path}: {wrong.problem}") from None
        raise Bug("the quick and the exact encoder disagree") from None
    except UnicodeEncodeError:
        raise Unsupported(f"cannot be sent: ${_not_unicode(value)}: text that is not Unicode") from None
    return data


def decode_body(data: bytes, cls: type[_Body], most: int) -> _Body:
    """The value of `cls` that `data` is. Raises `MalformedMessage` and `LimitExceeded` as `decode` does."""
    value = _unpack(data, most)
    try:
        found: _Body = _QUICK_IN.of_class(cls)(value, None)
    except (Wrong, KeyError):
        try:
            _EXACT_IN.of_class(cls)(value, None)
        except Wrong as wrong:
            raise MalformedMessage(f"${wrong.path}", wrong.problem) from None
        raise MalformedMessage("$", UNEXPLAINED) from None
    return found


def pack_value(value: dict[str, Any]) -> bytes:
    """The bytes of one JSON-shaped map (bytes allowed): what executor and runner say to each other. Raises `Unsupported`."""
    try:
        data: bytes = msgpack.Packer(use_bin_type=True, strict_types=True).pack(json_map(value, None))
    except Wrong as wrong:
        raise Unsupported(f"cannot be sent: ${wrong.path}: {wrong.problem}") from None
    except UnicodeEncodeError:
        raise Unsupported(f"cannot be sent: ${_not_unicode(value)}: text that is not Unicode") from None
    return data


def unpack_value(data: bytes, most: int) -> dict[str, Any]:
    """The map that `data` is. Raises `MalformedMessage` and `LimitExceeded`."""
    value = _unpack(data, most)
    try:
        found: dict[str, Any] = json_map(value, None)
    except Wrong as wrong:
        raise MalformedMessage(f"${wrong.path}", wrong.problem) from None
    return found


# ── frames out ──────────────────────────────────────────────────────────────────────────────────────────────


def encode(frame: Frame) -> bytes:
    """The bytes of `frame`, canonical.

    Raises `LimitExceeded` over `CONTROL_FRAME_MAX`, and `Unsupported` (with the path) for what no frame can
    hold: a number out of range, a nested value that is not JSON-shaped, text that is not Unicode, a body that
    is no message.
    """
    try:
        parts = plain(frame)
        data: bytes = msgpack.Packer(use_bin_type=True, strict_types=True).pack(parts)
    except (Wrong, KeyError):
        raise _explain_out(frame) from None
    except UnicodeEncodeError:
        raise Unsupported(f"cannot be sent: ${_not_unicode(frame)}: text that is not Unicode") from None
    if len(data) > _FRAME_MAX:
        raise LimitExceeded(f"a control frame would have {len(data)} bytes; the limit is {_FRAME_MAX}")
    return data


def plain(frame: Frame) -> list[Any]:
    """The msgpack value of `frame`: lists, maps, text, numbers, bytes. For whoever writes frames down."""
    if isinstance(frame, Request):
        name, hook = _REQUEST_OUT[type(frame.body)]
        return [REQUEST, _NUMBER(frame.id, None), name, hook(frame.body, None)]
    if isinstance(frame, Response):
        return [RESPONSE, _NUMBER(frame.id, None), frame.name, _RESPONSE_OUT[frame.name](frame.body, None)]
    if isinstance(frame, Event):
        name, hook = _EVENT_OUT[type(frame.body)]
        return [EVENT, name, hook(frame.body, None)]
    if isinstance(frame, Failure):
        if frame.name not in _RESPONSE_OUT:
            raise Wrong("not a request")
        return [FAILURE, _NUMBER(frame.id, None), frame.name, _FAILURE_OUT(frame.failure, None)]
    return [CANCEL, _NUMBER(frame.id, None)]


def _explain_out(frame: Frame) -> Unsupported:
    """Why `frame` cannot be sent."""
    try:
        if not isinstance(frame, Event):
            try:
                _NUMBER(frame.id, None)
            except Wrong as wrong:
                raise wrong.inside(".id") from None
        if isinstance(frame, Failure | Response) and frame.name not in _RESPONSE_OUT:
            raise Wrong("not the name of a request", ".name")
        value: Any
        cls: type[Any]
        if isinstance(frame, Failure):
            place, value, cls = ".failure", frame.failure, FailureBody
        elif isinstance(frame, Response):
            place, value, cls = ".body", frame.body, RULE_BY_NAME[frame.name].reply or type(None)
        else:
            assert not isinstance(frame, Cancel)
            place, value, cls = ".body", frame.body, type(frame.body)
            rule = RULE_BY_BODY.get(cls)
            if rule is None or rule.is_request is not isinstance(frame, Request):
                word = "a request" if isinstance(frame, Request) else "an event"
                raise Wrong(f"{cls.__name__} is not {word}", place)
        try:
            _EXACT_OUT.of_class(cls)(value, None)
        except Wrong as wrong:
            raise wrong.inside(place) from None
    except Wrong as wrong:
        return Unsupported(f"cannot be sent: ${wrong.path}: {wrong.problem}")
    raise Bug("the quick and the exact encoder disagree")


def _not_unicode(value: Any) -> str | None:
    """The path below `value` of the first text that UTF-8 cannot express (a lone surrogate)."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return ""
        return None
    children: list[tuple[str, Any]] = []
    if attrs.has(type(value)):
        children = [(f".{field.name}", getattr(value, field.name)) for field in attrs.fields(type(value))]
    elif isinstance(value, list | tuple):
        children = [(f"[{position}]", item) for position, item in enumerate(value)]
    elif isinstance(value, dict):
        children = [(f"[{position}]", part) for position, item in enumerate(value.items()) for part in item]
    for step, child in children:
        below = _not_unicode(child)
        if below is not None:
            return step + below
    return None
