"""A fake session that refuses what is not in the catalogue, and the events of small runs."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from swamp_orch.api.application import check_parameters


class FakeSession:
    """Answers by call name: a value, an exception, or a function of the parameters.

    Every call is checked with the catalogue: who asks for what no orchestrator knows fails its test.
    """

    where = "fake"

    def __init__(
        self, answers: Mapping[str, Any], events: Mapping[str, list[dict[str, Any]]] | None = None
    ) -> None:
        self.answers = dict(answers)
        self.events = dict(events or {})
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.closed = False

    def call(self, name: str, /, **parameters: Any) -> Any:
        check_parameters(name, parameters)
        self.calls.append((name, parameters))
        answer = self.answers[name]
        if callable(answer):
            answer = answer(parameters)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def stream(self, name: str, /, **parameters: Any) -> Iterator[dict[str, Any]]:
        check_parameters(name, parameters)
        self.calls.append((name, parameters))
        after = parameters.get("after", 0)
        for number, event in enumerate(self.events[parameters["runId"]], 1):
            if number > after:
                yield {"seq": number, "at": 1_750_000_000_000 + number, **event}

    def close(self) -> None:
        self.closed = True


@attrs.frozen
class Ended:
    """What one command line did."""

    code: int
    out: str
    err: str
    session: FakeSession

    @property
    def document(self) -> Any:
        """stdout as the one JSON document it must be."""
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        """stderr as the one JSON error document it must be."""
        found = json.loads(self.err)
        assert isinstance(found, dict)
        return found


def job_events(
    job: str = "build",
    step: str = "echo-on-worker",
    worker: str | None = "build-node",
    lines: tuple[str, ...] = (),
) -> list[dict[str, Any]]:
    """The events of one step that succeeds, without the run's own."""
    where = {"job": job, "step": step}
    started = {"worker": worker, "attempt": 1, "model": "remote-echo", "modelType": "command/shell"}
    return [
        {"kind": "step_started", **where, **started, "method": "execute", "dispatchId": "d"},
        *(
            {"kind": "step_output", **where, "stream": "stdout", "line": line, "n": i}
            for i, line in enumerate(lines, 1)
        ),
        {
            "kind": "step_ended",
            **where,
            "status": "succeeded",
            "worker": worker,
            "attempts": 1,
            "durationMs": 12,
            "records": [{"id": "x", "name": "result", "version": 1, "specName": "result"}],
        },
    ]


def run_events(
    middle: list[dict[str, Any]],
    status: str = "succeeded",
    jobs: Mapping[str, list[str]] | None = None,
    markdown: str | None = None,
    **ending: Any,
) -> list[dict[str, Any]]:
    """`middle` between a run's beginning and end."""
    shape = jobs or {"build": ["echo-on-worker"]}
    return [
        {
            "kind": "run_started",
            "runId": "r1",
            "run": "workflow",
            "workflowId": "w",
            "workflowName": "remote-demo",
            "jobs": [
                {"name": name, "steps": [{"name": step} for step in steps]} for name, steps in shape.items()
            ],
        },
        *middle,
        *(
            [
                {
                    "kind": "report",
                    "name": "@swamp/workflow-summary",
                    "scope": "workflow",
                    "markdown": markdown,
                    "json": {},
                }
            ]
            if markdown
            else []
        ),
        {
            "kind": "run_ended",
            "runId": "r1",
            "status": status,
            "counts": {},
            "durationMs": 20,
            "run": {},
            **ending,
        },
    ]


SUMMARY = "# remote-demo: succeeded\n\n1 succeeded · 0 failed · 0 skipped\n"
