"""The orchestrator's end of a link, with a stranger's first frame: another version, too large, or no frame at all."""

import attrs
import pytest
import trio

from swamp_orch.gateway.link import Link, refusal_of
from swamp_proto import codec
from swamp_proto.envelope import Event, Request
from swamp_proto.errors import RefusalCode, RemoteError
from swamp_proto.limits import ENROLL_FRAME_MAX
from swamp_proto.messages.enrollment import Heartbeat, Notice
from swamp_proto.trio_io import memory_pipe_pair
from swamp_proto.vectors import BROKEN
from swamp_proto.vectors.samples import ENROLL

LARGE = codec.encode(Request(1, attrs.evolve(ENROLL, host="h" * ENROLL_FRAME_MAX)))


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (BROKEN["other-version"].data, RefusalCode.PROTOCOL_MISMATCH),
        (LARGE, RefusalCode.TOO_LARGE),
        (b"GET / HTTP/1.1", RefusalCode.MALFORMED),
        (codec.encode(Request(1, Heartbeat(1))), RefusalCode.UNLAWFUL),
        (codec.encode(Event(Notice("info", "hello"))), RefusalCode.UNLAWFUL),
    ],
    ids=["another version", "too large", "no frame", "no enrollment", "an event"],
)
async def test_a_first_frame_that_is_no_enrollment_is_refused_with_its_code(
    first: bytes, code: RefusalCode
) -> None:
    stranger, pipe = memory_pipe_pair()
    await stranger.send(first)
    with trio.fail_after(60), pytest.raises(RemoteError) as caught:
        await Link(pipe).first()
    assert refusal_of(caught.value) is code
