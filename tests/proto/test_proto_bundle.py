"""Several frames in one message: what goes in comes out, in order, and nothing else is let in."""

import re
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swamp_proto import codec
from swamp_proto.envelope import Cancel, Event, Frame, Request
from swamp_proto.errors import MalformedMessage
from swamp_proto.limits import BUNDLE_FRAMES_MAX
from swamp_proto.messages.dispatch import LogNoted
from swamp_proto.messages.enrollment import Heartbeat

PROTOCOL = Path(__file__).parents[2] / "docs" / "protocol.md"

frames = st.one_of(
    st.integers(1, 2**40).map(Cancel),
    st.builds(lambda number: Request(number, Heartbeat(number)), st.integers(1, 2**40)),
    st.builds(lambda through: Event(LogNoted("d" * 8, through)), st.integers(1, 2**40)),
)


@given(st.lists(frames, min_size=1, max_size=BUNDLE_FRAMES_MAX))
def test_a_message_gives_back_its_frames(sent: list[Frame]) -> None:
    assert codec.decode_message(codec.bundle([codec.encode(frame) for frame in sent])) == tuple(sent)


def test_one_frame_is_no_bundle() -> None:
    data = codec.encode(Cancel(1))
    assert codec.bundle([data]) == data


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ([5, []], "$.frames"),
        ([5, [[4, 1]]], "$.frames"),
        ([5, [[4, 1]] * (BUNDLE_FRAMES_MAX + 1)], "$.frames"),
        ([5, 7], "$.frames"),
        ([5, [[4, 1], [9]]], "$.frames[1].kind"),
        ([5, [[4, 1], [5, [[4, 2], [4, 3]]]]], "$.frames[1].kind"),
        ([5, [[4, 0], [4, 2]]], "$.frames[0].id"),
        ([True, [[4, 1], [4, 2]]], "$.kind"),
    ],
)
def test_what_is_no_bundle_is_refused_at_its_place(value: object, path: str) -> None:
    with pytest.raises(MalformedMessage) as caught:
        codec.decode_message(msgpack.packb(value))
    assert caught.value.path == path


def test_the_example_in_the_document_is_a_bundle() -> None:
    section = PROTOCOL.read_text().partition("a *bundle*")[2]
    block = re.search(r"```\n([0-9a-f\s]+)```", section)
    assert block is not None
    found = codec.decode_message(bytes.fromhex("".join(block[1].split())))
    assert found == (Request(1, Heartbeat(1)), Request(2, Heartbeat(2)))
