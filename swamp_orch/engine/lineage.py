"""Where a child run hangs: below which step of which run, and how deep. Values only.

Rules that hold here (SEMANTICS §9):

1. A child's id is derived from (parent run, job, step, attempt, call number): asked again it is found, never started twice.
2. Depth is bounded, and what is being run above a child can not be run by it again: a circle is refused where it would close.
"""

import uuid
from collections.abc import Mapping
from typing import Any

import attrs

from swamp_proto.errors import OperationFailed
from swamp_proto.limits import CHILD_RUN_DEPTH_MAX

NESTED_CALL = 0  # a step's nested workflow; calls of running code are numbered from 1


@attrs.frozen
class Parent:
    """What a child run was started by. `chain` is what is being run above it, outermost first: a workflow's name, or
    `model.method`."""

    run: str
    job: str
    step: str
    attempt: int
    call: int
    depth: int  # of the child; a run that nobody's step started has 0
    chain: tuple[str, ...]
    dispatch: str = ""  # whose running code asked for it; its lease's end is the child's

    @property
    def child_id(self) -> str:
        """The id of the run that hangs here."""
        return str(uuid.uuid5(uuid.UUID(self.run), f"{self.job}\0{self.step}\0{self.attempt}\0{self.call}"))

    def check(self, runs: str) -> None:
        """Refuse what would close a circle, or be too deep. `runs` is what the child would run.

        :raises OperationFailed: with the whole chain
        """
        shown = " → ".join((*self.chain, runs))
        if runs in self.chain:
            raise OperationFailed(f"{runs} would run itself: {shown}", code="child_run_circle")
        if self.depth > CHILD_RUN_DEPTH_MAX:
            raise OperationFailed(
                f"more than {CHILD_RUN_DEPTH_MAX} runs would be inside each other: {shown}",
                code="child_run_depth",
            )

    def attributes(self) -> dict[str, Any]:
        """As a run's record holds it."""
        found: dict[str, Any] = {
            "runId": self.run,
            "job": self.job,
            "step": self.step,
            "attempt": self.attempt,
            "call": self.call,
            "depth": self.depth,
            "chain": list(self.chain),
        }
        return found | ({"dispatchId": self.dispatch} if self.dispatch else {})

    def document(self) -> dict[str, Any]:
        """As a run document shows it."""
        return {"runId": self.run, "job": self.job, "step": self.step}


def parent_of(attributes: Mapping[str, Any]) -> Parent | None:
    """The parent a run's record names, if it is a child."""
    found = attributes.get("parent")
    if found is None:
        return None
    return Parent(
        run=found["runId"],
        job=found["job"],
        step=found["step"],
        attempt=found["attempt"],
        call=found["call"],
        depth=found["depth"],
        chain=tuple(found["chain"]),
        dispatch=found.get("dispatchId", ""),
    )


@attrs.define(eq=False)
class Child:
    """A child run as its parent step shows it."""

    run: str
    kind: str  # workflow, method
    name: str
    status: str = "running"

    def attributes(self) -> dict[str, Any]:
        return {"runId": self.run, "kind": self.kind, "name": self.name}

    def document(self) -> dict[str, Any]:
        return {**self.attributes(), "status": self.status}
