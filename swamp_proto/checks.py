"""What may stand in a field: one check per type of field, strict both ways.

Rules
- A check takes a value and gives back what stands on the other side of the wire, or raises `Wrong`. Types are
  exact: a bool is no int, an int is no float (an int that stands where a float is meant leaves as one),
  nothing is converted.
- Integers fit 64 signed bits, floats are finite, `dict[str, Any]` holds JSON-shaped values and bytes.
- A refusal says where and what is needed, never the value: map entries are named by position.

Checks take a second argument that they do not use, so that they can be cattrs hooks as they are; that is all
they know of the codec.
"""

from collections.abc import Callable
from enum import Enum
from typing import Any, Final

from swamp_proto import limits
from swamp_proto.messages.bounds import Bound

INT_MIN: Final = -(2**63)
INT_MAX: Final = 2**63 - 1
JSON_DEPTH_MAX: Final = (
    limits.FRAME_DEPTH_MAX - 2
)  # a `dict[str, Any]` stands in a body, which stands in a frame

_FRAME_MAX: Final = limits.CONTROL_FRAME_MAX
_ITEMS_MAX: Final = limits.FRAME_ITEMS_MAX
_ONLY_TEXT: Final = frozenset({str})
_PLAIN: Final = frozenset({str, bool, bytes, type(None)})  # JSON-shaped values that need no second look

Check = Callable[..., Any]


class Wrong(Exception):
    """A value is not what its place asks for. `path` is relative to that place; it grows on the way out."""

    def __init__(self, problem: str, path: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.path = path

    def inside(self, step: str) -> "Wrong":
        return Wrong(self.problem, step + self.path)


class Repeated:
    """Stands where a map with a repeated key stood, so that the refusal can say where that was."""


REPEATED: Final = Repeated()


def kind_of(value: object) -> str:
    """What a value is, in words of the wire; never the value."""
    if isinstance(value, Repeated):
        return "a map with a repeated key"
    words = {bool: "a boolean", int: "an integer", float: "a float", str: "text", bytes: "bytes"}
    words |= {list: "a list", dict: "a map", type(None): "nothing"}
    return words.get(type(value), f"a {type(value).__name__}")


def integer(bound: Bound) -> Check:
    low = INT_MIN if bound.low is None else bound.low
    high = INT_MAX if bound.high is None else bound.high

    def check(value: Any, _: Any = None) -> Any:
        if type(value) is not int:
            raise Wrong(f"an integer is needed, not {kind_of(value)}")
        if not low <= value <= high:
            raise Wrong(f"not within {low}..{high}")
        return value

    return check


def floating(bound: Bound) -> Check:
    low, high = bound.low, bound.high

    def check(value: Any, _: Any = None) -> Any:
        if type(value) is not float:
            raise Wrong(f"a float is needed, not {kind_of(value)}")
        if value - value != 0.0:
            raise Wrong("not finite")
        if (low is not None and value < low) or (high is not None and value > high):
            raise Wrong(f"not within {low}..{high}")
        return value

    return check


def sized(wanted: type[str] | type[bytes], word: str, bound: Bound) -> Check:
    """Text or bytes. Without a bound the frame's own limit is enough, and nothing is measured."""
    low = bound.low or 0
    high = _FRAME_MAX if bound.high is None else bound.high

    def check(value: Any, _: Any = None) -> Any:
        if type(value) is not wanted:
            raise Wrong(f"{word} needed, not {kind_of(value)}")
        return value

    def measured(value: Any, _: Any = None) -> Any:
        if not low <= len(check(value)) <= high:
            raise Wrong(f"length is not within {low}..{high}")
        return value

    return check if bound == Bound() else measured


def boolean(value: Any, _: Any = None) -> Any:
    if type(value) is not bool:
        raise Wrong(f"a boolean is needed, not {kind_of(value)}")
    return value


def _keys(value: Any, longest: int | None) -> None:
    """That `value` is a map whose keys are text."""
    if type(value) is not dict:
        raise Wrong(f"a map is needed, not {kind_of(value)}")
    for position, key in enumerate(value):
        if type(key) is not str:
            raise Wrong(f"a key is text, not {kind_of(key)}", f"[{position}]")
        if longest is not None and len(key) > longest:
            raise Wrong(f"a key has at most {longest} characters", f"[{position}]")


def texts(bound: Bound) -> Check:
    """A map from text to text."""
    low = bound.low or 0
    high = _ITEMS_MAX if bound.high is None else bound.high
    each = bound.each

    def check(value: Any, _: Any = None) -> Any:
        if (
            type(value) is not dict
            or not _ONLY_TEXT.issuperset(map(type, value))
            or not _ONLY_TEXT.issuperset(map(type, value.values()))
            or each is not None
        ):
            _keys(value, each)
            for position, item in enumerate(value.values()):
                if type(item) is not str:
                    raise Wrong(f"text is needed, not {kind_of(item)}", f"[{position}]")
                if each is not None and len(item) > each:
                    raise Wrong(f"at most {each} characters", f"[{position}]")
        if not low <= len(value) <= high:
            raise Wrong(f"the number of entries is not within {low}..{high}")
        return value

    return check


def _shaped(value: Any, room: int) -> None:
    """That `value` is JSON-shaped, or bytes, and nests at most `room` levels."""
    kind = type(value)
    if kind in _PLAIN:
        return
    if kind is int:
        if not INT_MIN <= value <= INT_MAX:
            raise Wrong(f"not within {INT_MIN}..{INT_MAX}")
        return
    if kind is float:
        if value - value != 0.0:
            raise Wrong("not finite")
        return
    if kind is dict:
        if not _ONLY_TEXT.issuperset(map(type, value)):
            _keys(value, None)
        items = value.values()
    elif kind is list:
        items = value
    else:
        raise Wrong(f"a JSON-shaped value is needed, not {kind_of(value)}")
    if room == 0:
        raise Wrong(f"nested deeper than {limits.FRAME_DEPTH_MAX}")
    if len(items) > _ITEMS_MAX:
        raise Wrong(f"more than {_ITEMS_MAX} items")
    if _PLAIN.issuperset(map(type, items)):
        return
    for position, item in enumerate(items):
        try:
            _shaped(item, room - 1)
        except Wrong as wrong:
            raise wrong.inside(f"[{position}]") from None


def json_map(value: Any, _: Any = None) -> Any:
    if type(value) is not dict:
        raise Wrong(f"a map is needed, not {kind_of(value)}")
    _shaped(value, JSON_DEPTH_MAX)
    return value


def optional(hook: Callable[..., Any]) -> Check:
    def check(value: Any, _: Any = None) -> Any:
        return None if value is None else hook(value, None)

    return check


def member_in(kind: type[Enum]) -> Check:
    carrier = type(next(iter(kind)).value)
    members = {member.value: member for member in kind}

    def check(value: Any, _: Any = None) -> Any:
        found = members.get(value) if type(value) is carrier else None
        if found is None:
            raise Wrong(f"not a value of {kind.__name__}")
        return found

    return check


def member_out(kind: type[Enum]) -> Check:
    def give(value: Any, _: Any = None) -> Any:
        if type(value) is not kind:
            raise Wrong(f"a {kind.__name__} is needed, not {kind_of(value)}")
        return value.value

    return give


def float_out(check: Check) -> Check:
    """An int where a float is meant is lawful Python; it leaves as the float it stands for."""

    def give(value: Any, _: Any = None) -> Any:
        return check(float(value) if type(value) is int and INT_MIN <= value <= INT_MAX else value, None)

    return give


def items_of(hook: Callable[..., Any], bound: Bound, source: type[Any], target: type[Any]) -> Check:
    """A list of things: a list on the wire, a tuple in Python."""
    low = bound.low or 0
    high = _ITEMS_MAX if bound.high is None else bound.high

    def check(value: Any, _: Any = None) -> Any:
        if type(value) is not source:
            raise Wrong(f"a {source.__name__} is needed, not {kind_of(value)}")
        if not low <= len(value) <= high:
            raise Wrong(f"the number of items is not within {low}..{high}")
        position = -1
        try:
            found = []
            for position, item in enumerate(value):  # noqa: B007 - the handler reads it
                found.append(hook(item, None))
            return found if target is list else tuple(found)
        except Wrong as wrong:
            raise wrong.inside(f"[{position}]") from None

    return check
