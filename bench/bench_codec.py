"""Nanoseconds to encode and to decode each message, and to pass one frame through a session.

    python bench/bench_codec.py

The frames are the golden vectors, so the sizes are those of ordinary traffic; `dispatch.start` is also
measured with an environment of forty variables, which is what an orchestrator really ships. Best of several
rounds: the machine's noise is not the codec's.
"""

import timeit
from collections.abc import Callable

import attrs

from swamp_proto import codec
from swamp_proto.envelope import Frame, Request, Response
from swamp_proto.messages import Side
from swamp_proto.messages.enrollment import Heartbeat, HeartbeatAnswer
from swamp_proto.session import Session
from swamp_proto.vectors.samples import START, VALID

ROUNDS = 7
CALLS = 2_000


def nanoseconds(call: Callable[[], object]) -> float:
    return min(timeit.repeat(call, number=CALLS, repeat=ROUNDS)) / CALLS * 1e9


def session_frame() -> float:
    """One frame at one end, in an open session, heartbeats going to and fro."""
    worker, orchestrator = Session(Side.WORKER), Session(Side.ORCHESTRATOR)
    for frame, sender, receiver in (
        (VALID["worker.enroll.request"], worker, orchestrator),
        (VALID["worker.enroll.response"], orchestrator, worker),
    ):
        sender.send(frame)
        receiver.receive(frame)

    def beat() -> None:
        number = worker.next_id()
        ask = Request(number, Heartbeat(number))
        answer = Response(number, HeartbeatAnswer(number), "link.heartbeat")
        worker.send(ask)
        orchestrator.receive(ask)
        orchestrator.send(answer)
        worker.receive(answer)

    return nanoseconds(beat) / 4


def main() -> None:
    environment = {f"VARIABLE_{number}": "a value of some length" for number in range(40)}
    frames: dict[str, Frame] = {
        name: frame
        for name, frame in VALID.items()
        if not name.startswith("failure.") or name == "failure.busy"
    }
    frames["dispatch.start.request, 40 variables"] = Request(1, attrs.evolve(START, environment=environment))
    print(f"{'frame':<40}{'bytes':>8}{'encode ns':>12}{'decode ns':>12}")
    for name, frame in frames.items():
        data = codec.encode(frame)
        encode = nanoseconds(lambda frame=frame: codec.encode(frame))  # type: ignore[misc]
        decode = nanoseconds(lambda data=data: codec.decode(data))  # type: ignore[misc]
        print(f"{name:<40}{len(data):>8}{encode:>12.0f}{decode:>12.0f}")
    print(f"{'a frame through a session':<40}{'':>8}{session_frame():>12.0f}")


if __name__ == "__main__":
    main()
