"""The work of a chaos run: models whose every execution leaves a witness outside of everything that can fail.

A witness is a file per step of a run. Each execution appends `begin FENCE DISPATCH`, then `end FENCE`, synced; and holds a lock (flock) as
long as any process of it lives, children that fled its session included. Who begins while the lock is held writes `overlap`: that would be
a step in two places at once. Its output is numbered lines, so that a gap or a double line shows.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from e2e_site import Site, step

LINES: Final[dict[str, int]] = {
    "short": 3, "medium": 20, "long": 70, "burst": 3_000, "stubborn": 30, "flaky": 5, "once": 25, "here": 10,
    "writer": 30,
}  # fmt: skip
"""Lines that an execution prints; but for a burst, one each 50 ms."""

BEGIN: Final = """\
W="{witness}/$SWAMP_RUN_ID.$SWAMP_STEP"
exec 9>>"$W.lock"
flock -n 9 || echo "overlap $SWAMP_FENCE" >> "$W"
echo "begin $SWAMP_FENCE $SWAMP_DISPATCH" >> "$W"; sync "$W"
"""
TICKS: Final = 'i=0; while [ $i -lt {lines} ]; do i=$((i+1)); echo "line $i"; sleep 0.05; done\n'
BURST: Final = 'i=0; while [ $i -lt {lines} ]; do i=$((i+1)); echo "line $i"; done\n'
END: Final = 'echo "end $SWAMP_FENCE" >> "$W"; sync "$W"\n'
STUBBORN: Final = """\
trap '' TERM INT HUP
setsid sh -c 'trap "" TERM; while :; do sleep 0.2; done' > /dev/null 2>&1 &
"""
FLAKY: Final = '[ "$(grep -c "^end" "$W")" -ge 2 ] || exit 7\n'  # fails after its end, the first time


WRITER: Final = """\
\"\"\"Writes records while it runs, and says outside of swamp which of them it was told are durable.\"\"\"

import fcntl
import os
import time

import attrs

from swamp_worker.sdk import PlainContext, method, model, resource


@attrs.frozen
class Note:
    fence: int
    number: int


@attrs.frozen
class Arguments:
    witness: str


@model("@chaos/writer", version="2026.01.01.1")
class Writer:
    note = resource(Note, "One of those written while it runs")

    @method
    def execute(self, context: PlainContext, arguments: Arguments) -> None:
        \"\"\"Write after a third and after two thirds of its life.\"\"\"
        place = context.place
        path = f"{arguments.witness}/{place.run}.{place.step}"

        def witness(line: str) -> None:
            with open(path, "a") as file:
                file.write(line + "\\n")
                file.flush()
                os.fsync(file.fileno())

        lock = open(path + ".lock", "a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            witness(f"overlap {context.fence}")
        witness(f"begin {context.fence} {os.environ['SWAMP_DISPATCH']}")
        for number in range(1, 31):
            print(f"line {number}", flush=True)
            time.sleep(0.05)
            if number in (10, 20):
                name = f"note-{place.run}-{place.step}"
                context.write_resource(self.note, Note(context.fence, number), name)
                witness(f"wrote {context.fence} {number}")
        witness(f"end {context.fence}")
"""
"""A Python model; a shell step writes nothing before its end."""


def lay_out(site: Site, witness: Path) -> tuple[str, ...]:
    """Write models and workflows; answers the workflows' names."""
    for name, lines in LINES.items():
        if name == "writer":
            continue
        body = (BURST if name == "burst" else TICKS).format(lines=lines)
        before = STUBBORN if name == "stubborn" else ""
        after = FLAKY if name == "flaky" else ""
        site.model(name, BEGIN.format(witness=witness) + before + body + END + after)
    (site.root / "extensions" / "models").mkdir(parents=True, exist_ok=True)
    (site.root / "extensions" / "models" / "chaos.py").write_text(WRITER)
    writer = {
        "type": "@chaos/writer", "id": "6f1ed002-ab55-4e1f-9d1f-0c7f6c5a1b11", "name": "writer", "version": 1,
        "methods": {"execute": {"arguments": {"witness": str(witness)}}},
    }  # fmt: skip
    path = site.root / "models" / "@chaos" / "writer" / "writer.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(writer, indent=1))
    pool: Mapping[str, Any] = {"labels": {"pool": "any"}}
    site.workflow(
        "chain",
        step("a", "medium", **pool),
        step("b", "medium", **pool),
        step("c", "here", dependsOn=["a", "b"]),
    )
    site.workflow("bursts", step("a", "burst", **pool), step("b", "burst", **pool))
    site.workflow("long", step("a", "long", **pool), step("b", "short", dependsOn=["a"], **pool))
    site.workflow("once", step("a", "once", onWorkerLost="fail", **pool))
    site.workflow("stubborn", step("a", "stubborn", **pool))
    site.workflow("flaky", step("a", "flaky", retry={"attempts": 3, "backoff": 0.1}, **pool))
    site.workflow("wide", *(step(name, "short", **pool) for name in "abcdef"), step("h", "here"))
    again = {"onWorkerLost": "redispatch", **pool}
    site.workflow("writes", step("a", "writer", **pool), step("b", "short", dependsOn=["a"], **pool))
    site.workflow("rewrites", step("a", "writer", **again))
    return ("chain", "bursts", "long", "once", "stubborn", "flaky", "wide", "writes", "rewrites")


MODEL_OF: Final[dict[tuple[str, str], str]] = {
    ("chain", "a"): "medium", ("chain", "b"): "medium", ("chain", "c"): "here", ("bursts", "a"): "burst",
    ("bursts", "b"): "burst", ("long", "a"): "long", ("long", "b"): "short", ("once", "a"): "once",
    ("writes", "a"): "writer", ("writes", "b"): "short", ("rewrites", "a"): "writer",
    ("stubborn", "a"): "stubborn", ("flaky", "a"): "flaky", ("wide", "h"): "here",
    **{("wide", name): "short" for name in "abcdef"},
}  # fmt: skip
