"""Hypothesis strategies for every message, built from the attrs fields and `BOUNDS`.

A new message is covered the moment it stands in `RULES`.
"""

import types
import typing
from enum import Enum
from typing import Any

import attrs
from hypothesis import strategies as st

from swamp_proto.checks import INT_MAX, INT_MIN
from swamp_proto.envelope import Cancel, Event, Failure, FailureBody, Request, Response
from swamp_proto.messages import RULES
from swamp_proto.messages.bounds import BOUNDS, Bound

TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
IDS = st.one_of(st.integers(1, 300), st.integers(1, INT_MAX))
JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(INT_MIN, INT_MAX),
        st.floats(allow_nan=False, allow_infinity=False),
        TEXT,
        st.binary(max_size=20),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=12,
)


def _size(bound: Bound, most: int) -> dict[str, int]:
    high = most if bound.high is None else min(most, bound.high)
    return {"min_size": bound.low or 0, "max_size": high}


def values(annotation: Any, bound: Bound) -> st.SearchStrategy[Any]:
    """Values that a field of this type and bound may hold."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        (inner,) = (part for part in parts if part is not type(None))
        return st.none() | values(inner, bound)
    if origin is tuple:
        return st.lists(values(parts[0], Bound()), **_size(bound, 4)).map(tuple)
    if annotation == dict[str, str]:
        return st.dictionaries(TEXT, TEXT, **_size(bound, 6))
    if annotation == dict[str, Any]:
        return st.dictionaries(TEXT, JSON, max_size=4)
    if annotation is int:
        low = INT_MIN if bound.low is None else bound.low
        high = INT_MAX if bound.high is None else bound.high
        return st.integers(low, high)
    if annotation is float:
        return st.floats(bound.low, bound.high, allow_nan=False, allow_infinity=False)
    if annotation is str:
        return st.text(st.characters(codec="utf-8"), **_size(bound, 40))
    if annotation is bytes:
        return st.binary(**_size(bound, 60))
    if annotation is bool:
        return st.booleans()
    if issubclass(annotation, Enum):
        return st.sampled_from(annotation)
    return instances(annotation)


def instances(cls: type[Any]) -> st.SearchStrategy[Any]:
    hints, bounds = typing.get_type_hints(cls), BOUNDS.get(cls, {})
    fields = {f.name: values(hints[f.name], bounds.get(f.name, Bound())) for f in attrs.fields(cls)}
    return st.builds(cls, **fields)


BODIES = {cls: instances(cls) for rule in RULES for cls in (rule.body, rule.reply) if cls is not None}
REQUESTS = [rule for rule in RULES if rule.reply is not None]

FRAMES = st.one_of(
    *(st.builds(Request, IDS, BODIES[rule.body]) for rule in REQUESTS),
    *(st.builds(Response, IDS, BODIES[rule.reply], st.just(rule.name)) for rule in REQUESTS if rule.reply),
    *(st.builds(Event, BODIES[rule.body]) for rule in RULES if rule.reply is None),
    st.builds(Failure, IDS, st.sampled_from([rule.name for rule in REQUESTS]), instances(FailureBody)),
    st.builds(Cancel, IDS),
)
