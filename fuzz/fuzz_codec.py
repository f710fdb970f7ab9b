"""Invariant: any bytes are one frame that survives a round trip, or one refusal with a path, and nothing else.

python fuzz/fuzz_codec.py --seconds 10 --seed 1
"""

import random
import sys

from wire_frames import damaged, frame, run

from swamp_proto import codec
from swamp_proto.errors import LimitExceeded, MalformedMessage, VersionMismatch


def one(dice: random.Random) -> None:
    whole = frame(dice)
    data = codec.encode(whole)
    assert codec.decode(data) == whole
    other = codec.encode(frame(dice))
    for _ in range(8):
        broken = damaged(dice, data, other)
        try:
            found = codec.decode(broken)
        except MalformedMessage as wrong:
            assert wrong.path.startswith("$"), wrong
            assert wrong.problem != codec.UNEXPLAINED
            assert wrong.code == ("protocol_mismatch" if isinstance(wrong, VersionMismatch) else "malformed")
            assert wrong.__context__ is None
        except LimitExceeded:
            assert len(broken) > codec.limits.CONTROL_FRAME_MAX
        else:
            again = codec.encode(found)
            assert codec.decode(again) == found
            assert codec.encode(codec.decode(again)) == again


if __name__ == "__main__":
    sys.exit(run(one, "fuzz_codec"))
