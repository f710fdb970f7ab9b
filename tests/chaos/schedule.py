"""What goes wrong and when, drawn from a seed: the same seed is the same schedule, whatever the machine does with it.

Pure. A fault has an instant, a victim and mostly a span; two of one kind do not overlap at one victim.
"""

import random
from typing import Final

import attrs

GRACE_S: Final = 4.0
SPANS_S: Final = (0.2, 0.6, 1.2, 2.4, 3.6, 5.0, 7.5)
"""From a blip to well past the grace window."""

ORCHESTRATOR: Final = "orchestrator"


@attrs.frozen
class Fault:
    at_s: float
    kind: str
    who: str  # the orchestrator, or a worker
    span_s: float

    def __str__(self) -> str:
        return f"{self.at_s:7.2f} s  {self.kind} {self.who} for {self.span_s:g} s"


# kind -> (weight, whose: "o" the orchestrator's, "w" a worker's)
KINDS: Final[dict[str, tuple[int, str]]] = {
    "kill": (6, "ow"),  # SIGKILL, and a start after the span
    "stop": (6, "ow"),  # SIGSTOP, SIGCONT after the span
    "leave": (2, "ow"),  # SIGINT: an orderly end, and a start after the span
    "cut": (8, "w"),  # every connection of it ends
    "half open": (6, "w"),  # every connection of it falls silent, for ever; new ones work
    "partition": (6, "w"),  # the same, new ones too, for the span
    "full disk": (4, "ow"),  # no byte is free where it keeps its things, for the span
    "drain": (3, "w"),  # when safe; undrained after the span
    "cancel": (5, "o"),  # of a run at work
}


def schedule(seed: int, seconds: float, workers: tuple[str, ...]) -> list[Fault]:
    """The faults of so many seconds, in order."""
    dice = random.Random(seed)
    names, weights = list(KINDS), [weight for weight, _ in KINDS.values()]
    busy: dict[tuple[str, str], float] = {}
    found: list[Fault] = []
    at_s = 2.0
    while at_s < seconds:
        kind = dice.choices(names, weights)[0]
        whose = KINDS[kind][1]
        who = ORCHESTRATOR if dice.choice(whose) == "o" else dice.choice(workers)
        span_s = dice.choice(SPANS_S)
        # One process is not killed, stopped or told to leave twice at once; other kinds may come together.
        lane = "process" if kind in ("kill", "stop", "leave") else kind
        if busy.get((lane, who), 0.0) <= at_s:
            busy[lane, who] = at_s + span_s + 0.5
            found.append(Fault(round(at_s, 3), kind, who, span_s))
        at_s += dice.expovariate(1.0)  # one a second
    return found
