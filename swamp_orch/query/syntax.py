"""The syntax tree of a CEL expression, as the engine itself parsed it.

The engine serialises what it parsed in the public `cel.expr.ParsedExpr` message; this module decodes the few
fields of it that matter here. So there is one parser of CEL in the system, the engine's, and everything that
looks *into* an expression (which names it uses, which conjuncts a store can evaluate) looks at the same tree
that is evaluated.

It knows nothing about what names mean, and it never evaluates.
"""

import struct
from collections.abc import Iterator, Mapping
from typing import Any, Final

import attrs


@attrs.frozen
class Constant:
    """A literal. `value` is None, bool, int, float, str or bytes; `unsigned` marks `1u`."""

    id: int
    value: bool | int | float | str | bytes | None
    unsigned: bool = False


@attrs.frozen
class Name:
    """An identifier."""

    id: int
    name: str


@attrs.frozen
class Select:
    """`operand.field`; with `test_only` it is `has(operand.field)`."""

    id: int
    operand: "Node"
    field: str
    test_only: bool = False


@attrs.frozen
class Call:
    """`function(arguments)` or `target.function(arguments)`; operators are functions named `_&&_`, `_==_`,
    `@in`, …"""

    id: int
    function: str
    target: "Node | None"
    arguments: tuple["Node", ...]


@attrs.frozen
class ListLiteral:
    """`optional` are those of the elements that are written `?element`."""

    id: int
    elements: tuple["Node", ...]
    optional: tuple["Node", ...] = ()


@attrs.frozen
class MapLiteral:
    """A map or message literal; message keys are constants."""

    id: int
    entries: tuple[tuple["Node | None", "Node"], ...]
    optional: tuple["Node", ...] = ()  # values of entries that are written `?key: value`


@attrs.frozen
class Comprehension:
    """What macros with a loop variable (`exists`, `map`, `cel.bind`, …) become. `variables` are bound inside
    it."""

    id: int
    range: "Node"
    start: "Node"
    variables: tuple[str, ...]
    body: tuple["Node", ...]  # loop condition, step and result


Node = Constant | Name | Select | Call | ListLiteral | MapLiteral | Comprehension

INDEX: Final = "_[_]"
OPTIONAL_SELECT: Final = "_?._"
OPTIONAL_INDEX: Final = "_[?_]"


@attrs.frozen
class Tree:
    """A parsed expression. `positions` maps a node's id to its offset in the text, in code points."""

    root: Node
    positions: Mapping[int, int]


@attrs.frozen
class Checked:
    """A type-checked expression. `optional` are the ids of the nodes whose type is an optional."""

    root: Node
    optional: frozenset[int]


def decode_checked(serialized: bytes) -> Checked | None:
    """What of a checked expression's serialised form is needed; None when it has no optional in it. Raises
    ValueError when the form is not the known one."""
    if b"optional" not in serialized:
        return None
    message = _fields(serialized)
    if not _text(message, 1).endswith("/cel.expr.CheckedExpr"):
        raise ValueError("not a CheckedExpr")
    checked = _fields(_one(message, 2))
    optional: set[int] = set()
    for raw in checked.get(3, ()):
        entry = _fields(raw)
        kind = _fields(_one(entry, 2))
        if 14 in kind and _text(_fields(_one(kind, 14)), 1) == "optional_type":
            optional.add(_number(entry, 1))
    return Checked(_node(_one(checked, 4)), frozenset(optional))


def decode(serialized: bytes) -> Tree:
    """The tree of an unchecked expression's serialised form. Raises ValueError when the form is not the known
    one."""
    message = _fields(serialized)
    if not _text(message, 1).endswith("/cel.expr.ParsedExpr"):
        raise ValueError("not a ParsedExpr")
    parsed = _fields(_one(message, 2))
    positions: dict[int, int] = {}
    source = _fields(_one(parsed, 3)) if 3 in parsed else {}
    for raw in source.get(4, ()):
        entry = _fields(raw)
        positions[_number(entry, 1)] = _number(entry, 2)
    return Tree(_node(_one(parsed, 2)), positions)


def children(node: Node) -> tuple[Node, ...]:
    """The nodes directly under `node`, in the order of the text."""
    match node:
        case Select(operand=operand):
            return (operand,)
        case Call(target=target, arguments=arguments):
            return arguments if target is None else (target, *arguments)
        case ListLiteral(elements=elements):
            return elements
        case MapLiteral(entries=entries):
            return tuple(part for entry in entries for part in entry if part is not None)
        case Comprehension(range=range_, start=start, body=body):
            return (range_, start, *body)
        case _:
            return ()


def walk(node: Node) -> Iterator[Node]:
    """Every node under `node` and itself."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(reversed(children(node)))


def free_names(root: Node, namespaces: frozenset[str]) -> Iterator[Name]:
    """Identifiers that are not loop variables, in the order of the text. `namespaces` are words that may
    stand before a function (`math.greatest`) without being a variable."""
    waiting: list[tuple[Node, frozenset[str]]] = [(root, frozenset())]
    while waiting:
        node, bound = waiting.pop()
        inner: list[tuple[Node, frozenset[str]]] = []
        match node:
            case Name(name=name):
                if name not in bound:
                    yield node
                continue
            case Comprehension(range=range_, start=start, variables=variables, body=body):
                inside = bound.union(variables)
                inner = [(range_, bound), (start, bound), *((part, inside) for part in body)]
            case Call(target=Name(name=name)) if name in namespaces and name not in bound:
                inner = [(part, bound) for part in node.arguments]
            case _:
                inner = [(part, bound) for part in children(node)]
        waiting.extend(reversed(inner))


def path_of(node: Node) -> tuple[str, ...] | None:
    """`a.b["c"].?d` as ("a", "b", "c", "d"): a chain of constant string keys on an identifier; else None."""
    keys: list[str] = []
    while True:
        match node:
            case Name(name=name):
                return (name, *reversed(keys))
            case Select(operand=operand, field=field):
                keys.append(field)
                node = operand
            case Call(function=function, target=None, arguments=(operand, Constant(value=str() as key))) if (
                function in (INDEX, OPTIONAL_SELECT, OPTIONAL_INDEX)
            ):
                keys.append(key)
                node = operand
            case _:
                return None


# ── the wire form: https://protobuf.dev/programming-guides/encoding, only what ParsedExpr uses ──────────────


def _fields(data: bytes) -> dict[int, list[Any]]:
    """Field number -> its values in order: int for varints, bytes for the others."""
    found: dict[int, list[Any]] = {}
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at)
        value: int | bytes
        match tag & 7:
            case 0:
                value, at = _varint(data, at)
            case 1:
                value, at = data[at : at + 8], at + 8
            case 2:
                length, at = _varint(data, at)
                value, at = data[at : at + length], at + length
            case 5:
                value, at = data[at : at + 4], at + 4
            case _:
                raise ValueError("unknown wire type")
        if at > end:
            raise ValueError("cut off")
        found.setdefault(tag >> 3, []).append(value)
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("bad varint")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _one(message: Mapping[int, list[Any]], field: int) -> bytes:
    value = message.get(field, [b""])[-1]
    if not isinstance(value, bytes):
        raise ValueError("expected a message")
    return value


def _text(message: Mapping[int, list[Any]], field: int) -> str:
    return _one(message, field).decode()


def _number(message: Mapping[int, list[Any]], field: int) -> int:
    value = message.get(field, [0])[-1]
    if not isinstance(value, int):
        raise ValueError("expected a number")
    return value


def _packed(message: Mapping[int, list[Any]], field: int) -> Iterator[int]:
    """Repeated numbers, one by one or packed into bytes."""
    for value in message.get(field, ()):
        if isinstance(value, int):
            yield value
            continue
        at = 0
        while at < len(value):
            number, at = _varint(value, at)
            yield number


def _nodes(message: Mapping[int, list[Any]], field: int) -> tuple[Node, ...]:
    return tuple(_node(raw) for raw in message.get(field, ()))


def _node(data: bytes) -> Node:
    message = _fields(data)
    number = _number(message, 2)
    if 3 in message:
        return _constant(number, _fields(_one(message, 3)))
    if 4 in message:
        return Name(number, _text(_fields(_one(message, 4)), 1))
    if 5 in message:
        select = _fields(_one(message, 5))
        return Select(number, _node(_one(select, 1)), _text(select, 2), bool(_number(select, 3)))
    if 6 in message:
        call = _fields(_one(message, 6))
        target = _node(_one(call, 1)) if 1 in call else None
        return Call(number, _text(call, 2), target, _nodes(call, 3))
    if 7 in message:
        listed = _fields(_one(message, 7))
        elements = _nodes(listed, 1)
        return ListLiteral(number, elements, tuple(elements[at] for at in _packed(listed, 2)))
    if 8 in message:
        entries, optional = [], []
        for raw in _fields(_one(message, 8)).get(2, ()):
            entry = _fields(raw)
            value = _node(_one(entry, 4))
            entries.append((_node(_one(entry, 3)) if 3 in entry else None, value))
            if _number(entry, 5):
                optional.append(value)
        return MapLiteral(number, tuple(entries), tuple(optional))
    if 9 in message:
        loop = _fields(_one(message, 9))
        variables = tuple(_text(loop, field) for field in (1, 3, 8) if field in loop)
        body = tuple(_node(_one(loop, field)) for field in (5, 6, 7))
        return Comprehension(number, _node(_one(loop, 2)), _node(_one(loop, 4)), variables, body)
    raise ValueError("unknown expression kind")


def _constant(number: int, message: Mapping[int, list[Any]]) -> Constant:
    if 2 in message:
        return Constant(number, bool(_number(message, 2)))
    if 3 in message:
        value = _number(message, 3)
        return Constant(number, value - (1 << 64) if value >> 63 else value)
    if 4 in message:
        return Constant(number, _number(message, 4), unsigned=True)
    if 5 in message:
        return Constant(number, float(struct.unpack("<d", _one(message, 5))[0]))
    if 6 in message:
        return Constant(number, _text(message, 6))
    if 7 in message:
        return Constant(number, _one(message, 7))
    return Constant(number, None)
