"""Random frames from the classes themselves, and random damage to bytes: what the two fuzz targets share.

Everything is drawn from one `random.Random`, so a seed replays a run.
"""

import argparse
import random
import sys
import time
import types
import typing
from collections.abc import Callable
from enum import Enum
from typing import Any

import attrs

from swamp_proto.checks import INT_MAX, INT_MIN
from swamp_proto.envelope import Cancel, Event, Failure, FailureBody, Frame, Request, Response
from swamp_proto.messages import RULES
from swamp_proto.messages.bounds import BOUNDS, Bound

LETTERS = "aZ09_-./ \n\0é€😀\u2028$[]{}"
EDGES = (0, 1, 2, 23, 24, 127, 128, 255, 256, 32767, 65535, 65536, 2**31, 2**32 - 1, 2**32, INT_MAX)


def text(dice: random.Random, low: int = 0, high: int = 40) -> str:
    return "".join(dice.choice(LETTERS) for _ in range(dice.randint(low, min(high, 300))))


def number(dice: random.Random, low: int | None, high: int | None) -> int:
    low, high = INT_MIN if low is None else low, INT_MAX if high is None else high
    drawn = dice.choice((*EDGES, *(-edge for edge in EDGES), dice.randint(low, high)))
    return min(max(drawn, low), high)


def json_value(dice: random.Random, depth: int) -> Any:
    kind = dice.randrange(8 if depth else 6)
    if kind < 6:
        plain = (None, dice.random() < 0.5, number(dice, None, None), dice.uniform(-1e300, 1e300), text(dice))
        return (*plain, dice.randbytes(dice.randrange(20)))[kind]
    if kind == 6:
        return [json_value(dice, depth - 1) for _ in range(dice.randrange(4))]
    return {text(dice, 0, 8): json_value(dice, depth - 1) for _ in range(dice.randrange(4))}


def value(dice: random.Random, annotation: Any, bound: Bound) -> Any:
    """A value that a field of this type may hold."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    high = 40 if bound.high is None else bound.high
    if origin in (types.UnionType, typing.Union):
        (inner,) = (part for part in parts if part is not type(None))
        return None if dice.random() < 0.3 else value(dice, inner, bound)
    if origin is tuple:
        return tuple(
            value(dice, parts[0], Bound()) for _ in range(dice.randint(bound.low or 0, min(high, 4)))
        )
    if annotation == dict[str, Any]:
        return {text(dice, 0, 8): json_value(dice, dice.randrange(6)) for _ in range(dice.randrange(5))}
    if annotation == dict[str, str]:
        return {text(dice, 0, 8): text(dice) for _ in range(dice.randrange(min(high, 6)))}
    if annotation is int:
        return number(dice, bound.low, bound.high)
    if annotation is float:
        return abs(dice.choice((0.0, 1.5, 1e-300, 1e300, dice.random())))
    if annotation is bool:
        return dice.random() < 0.5
    if annotation is bytes:
        return dice.randbytes(dice.choice((0, 1, 31, 255, 256, 70_000 if dice.random() < 0.05 else 300)))
    if annotation is str:
        return text(dice, bound.low or 0, high)
    if issubclass(annotation, Enum):
        return dice.choice(list(annotation))
    return instance(dice, annotation)


def instance(dice: random.Random, cls: type[Any]) -> Any:
    hints, bounds = typing.get_type_hints(cls), BOUNDS.get(cls, {})
    return cls(*(value(dice, hints[f.name], bounds.get(f.name, Bound())) for f in attrs.fields(cls)))


def frame(dice: random.Random) -> Frame:
    """A lawful frame of any kind."""
    rule = dice.choice(RULES)
    ident = number(dice, 1, None)
    if rule.reply is None:
        return Event(instance(dice, rule.body))
    match dice.randrange(4):
        case 0 | 1:
            return Request(ident, instance(dice, rule.body))
        case 2:
            return Response(ident, instance(dice, rule.reply), rule.name)
    return dice.choice((Failure(ident, rule.name, instance(dice, FailureBody)), Cancel(ident)))


def damaged(dice: random.Random, data: bytes, other: bytes) -> bytes:
    """`data` after a few small accidents; some splice in a piece of `other`."""
    found = bytearray(data)
    for _ in range(dice.randint(1, 5)):
        at = dice.randrange(len(found) + 1)
        to = min(len(found), at + dice.choice((1, 1, 2, 5, 30)))
        match dice.randrange(7):
            case 0 if at < len(found):
                found[at] = dice.randrange(256)
            case 1 if at < len(found):
                found[at] ^= 1 << dice.randrange(8)
            case 2:
                del found[at:to]
            case 3:
                found[at:at] = found[at:to]
            case 4:
                cut = dice.randrange(len(other) + 1)
                found[at:to] = other[cut : cut + dice.randrange(40)]
            case 5:
                found[at:at] = dice.choice(
                    (b"\xdd\xff\xff\xff\xff", b"\x91" * 200, b"\xc1", b"\xd4\x01\x00", b"\xcb\x7f\xf8")
                )
            case _:
                del found[at:]
    return bytes(found)


def run(one: Callable[[random.Random], None], name: str) -> int:
    """Call `one` with dice until the time is up. A failure prints the seed that replays it."""
    parser = argparse.ArgumentParser(prog=name)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    ends, rounds = time.monotonic() + options.seconds, 0
    while time.monotonic() < ends or not rounds:
        seed = f"{options.seed}/{rounds}"
        try:
            one(random.Random(seed))
        except BaseException:
            print(
                f"{name}: FAILED in round {rounds} of --seed {options.seed}; dice: random.Random({seed!r})",
                file=sys.stderr,
            )
            raise
        rounds += 1
    print(f"{name}: {rounds} rounds, seed {options.seed}: ok")
    return 0
