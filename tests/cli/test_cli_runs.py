"""What a run looks like, and what Ctrl-C, broken links and endings do to the command that watches it."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from cli_twins import SUMMARY, FakeSession, job_events, run_events

from swamp_orch.cli import following
from swamp_orch.cli.runtree import NOTICE_S, RunTree, Spool, report_lines, rule
from swamp_proto.errors import Broken

Run = Any
STARTED = {"workflow.run": {"runId": "r1"}}

TREE = (
    "build                                                           ✓echo-on-worker\n"
    "│ executed on a worker\n"
    "── @swamp/workflow-summary ─────────────────────────────────\n"
    "# remote-demo: succeeded\n"
    "\n"
    "1 succeeded · 0 failed · 0 skipped\n"
)


def test_a_succeeded_run_is_the_tutorial(swamp: Run) -> None:
    middle = [
        *job_events(lines=("executed on a worker",)),
        {"kind": "job_ended", "job": "build", "status": "succeeded"},
    ]
    ended = swamp(
        "workflow", "run", "remote-demo", answers=STARTED, events={"r1": run_events(middle, markdown=SUMMARY)}
    )
    assert (ended.code, ended.out, ended.err) == (0, TREE, "")
    assert ended.session.calls == [
        ("workflow.run", {"name": "remote-demo"}),
        ("run.attach", {"runId": "r1", "after": 0}),
    ]


def test_a_wait_that_is_over_at_once_is_not_shown(swamp: Run) -> None:
    waiting = {
        "kind": "step_waiting",
        "job": "build",
        "step": "echo-on-worker",
        "reason": "no worker",
        "requirement": "target=x",
    }
    middle = [
        waiting,
        *job_events(lines=("executed on a worker",)),
        {"kind": "job_ended", "job": "build", "status": "succeeded"},
    ]
    ended = swamp(
        "workflow", "run", "remote-demo", answers=STARTED, events={"r1": run_events(middle, markdown=SUMMARY)}
    )
    assert ended.out == TREE


def _lines(events: list[dict[str, Any]], **flags: Any) -> list[str]:
    tree = RunTree(**flags)
    return [line for event in events for line in tree.take(event, 0.0)]


def test_several_steps_are_grouped_under_what_they_ran() -> None:
    jobs = {"build": ["fetch", "compile", "test"], "deploy": ["ship"]}
    failed = {
        "kind": "step_ended",
        "job": "build",
        "step": "compile",
        "status": "failed",
        "error": "exit code 3\nsee the log",
        "worker": None,
        "records": [],
    }
    skipped = {"kind": "step_ended", "status": "skipped", "worker": None, "records": []}
    middle = [
        *job_events("build", "fetch", "node-1", ("fetched",)),
        {"kind": "step_started", "job": "build", "step": "compile", "worker": None, "model": "cc",
         "method": "run"},
        failed,
        {**skipped, "job": "build", "step": "test", "reason": "compile failed"},
        {"kind": "job_ended", "job": "build", "status": "failed"},
        {**skipped, "job": "deploy", "step": "ship", "reason": "build failed"},
        {"kind": "job_ended", "job": "deploy", "status": "skipped"},
    ]  # fmt: skip
    markdown = "# x: failed\n\n1 succeeded · 1 failed · 2 skipped\n\n| Job | Step |\n|---|---|\n| a | b |\n"
    assert _lines(run_events(middle, "failed", jobs, markdown)) == [
        "build" + " " * 59 + "✗ 3 steps",
        "│ [remote-echo → execute] ✓fetch on node-1",
        "│ fetched",
        "│ [cc → run] ✗compile",
        "│ Error: exit code 3",
        "│        see the log",
        "│ ⊘test",
        "│ Skipped: compile failed",
        "deploy" + " " * 58 + "⊘ship",
        "│ Skipped: build failed",
        "── @swamp/workflow-summary ─────────────────────────────────",
        "# x: failed",
        "",
        "1 succeeded · 1 failed · 2 skipped",
    ]


def test_an_allowed_failure_is_marked_as_one() -> None:
    ending = {"kind": "step_ended", "job": "build", "step": "echo-on-worker", "status": "failed",
              "error": "no", "allowedFailure": True, "worker": "n", "records": []}  # fmt: skip
    lines = _lines(run_events([ending, {"kind": "job_ended", "job": "build", "status": "succeeded"}]))
    assert lines == ["build" + " " * 59 + "⚠echo-on-worker", "│ Error (allowed): no"]


def test_a_waiting_step_is_said_once_per_reason() -> None:
    tree = RunTree()
    waiting = {
        "kind": "step_waiting",
        "job": "b",
        "step": "s",
        "requirement": "target=x",
        "reason": "no such worker",
    }
    assert list(tree.take(waiting, 10.0)) == []
    assert tree.next_tick() == 10.0 + NOTICE_S
    assert list(tree.tick(10.0)) == []
    assert list(tree.tick(10.0 + NOTICE_S)) == [
        "○ b › s queued, waiting for worker matching target=x (no such worker)"
    ]
    assert list(tree.tick(99.0)) == [] and tree.next_tick() is None
    assert list(tree.take({**waiting, "reason": "busy 1/1"}, 100.0)) == []
    assert len(list(tree.tick(101.0))) == 1


def test_a_long_job_name_keeps_a_blank_before_the_mark() -> None:
    name = "j" * 70
    middle = [*job_events(name, "s"), {"kind": "job_ended", "job": name, "status": "succeeded"}]
    assert _lines(run_events(middle, jobs={name: ["s"]}))[0] == f"{name} ✓s"


def test_a_job_of_which_no_end_was_told_is_shown() -> None:
    lines = _lines(run_events(job_events(lines=("half",))[:-1], "cancelled"))
    assert lines[1] == "│ half"


def test_unknown_events_are_passed_over() -> None:
    assert _lines([{"kind": "from_the_future", "x": 1}]) == []


def test_what_a_step_prints_is_kept_whole_and_memory_bounded() -> None:
    spool = Spool()
    lines = [f"{number} " + "x" * 1000 for number in range(3000)]
    for line in lines:
        spool.add(line)
    assert spool._lines == [] and spool._file is not None
    assert list(spool) == lines == list(spool)
    spool.close()


def test_rules_are_60_columns() -> None:
    assert len(rule("@swamp/workflow-summary")) == 60
    assert rule("r" * 70).endswith(" ──")
    assert list(report_lines("@mine/report", "# a\n\n| b |\n")) == [rule("@mine/report"), "# a", "", "| b |"]
    assert list(report_lines("@mine/report", "")) == []


def test_a_failed_run_is_exit_1_and_says_where(swamp: Run) -> None:
    events = run_events([], "failed", error="exit code 3", failedStep="build/compile")
    ended = swamp("workflow", "run", "w", answers=STARTED, events={"r1": events})
    assert ended.code == 1
    assert ended.err == (
        "Error: run r1 failed at build/compile: exit code 3\nHint: its log: swamp workflow history logs r1\n"
    )


def test_warnings_go_to_stderr(swamp: Run) -> None:
    events = run_events([{"kind": "warning", "message": "no such worker", "job": "build", "step": "s"}])
    ended = swamp("workflow", "run", "w", answers=STARTED, events={"r1": events})
    assert ended.err == "Warning: build › s: no such worker\n"


def test_json_streams_one_object_a_line(swamp: Run) -> None:
    events = run_events(job_events(lines=("é",)), "failed")
    ended = swamp("workflow", "run", "w", "--json", answers=STARTED, events={"r1": events})
    assert ended.code == 1 and ended.error["code"] == "run_failed"
    objects = [json.loads(line) for line in ended.out.splitlines()]
    assert [event["kind"] for event in objects] == [event["kind"] for event in events]
    assert [event["seq"] for event in objects] == list(range(1, len(events) + 1))


def test_verbose_streams_lines_on_stderr_as_they_come(swamp: Run) -> None:
    ended = swamp(
        "workflow", "run", "w", "-v", answers=STARTED, events={"r1": run_events(job_events(lines=("now",)))}
    )
    assert "build › echo-on-worker │ now\n" in ended.err


def test_quiet_shows_only_what_failed(swamp: Run) -> None:
    good = [*job_events(lines=("noise",)), {"kind": "job_ended", "job": "build", "status": "succeeded"}]
    assert swamp("workflow", "run", "w", "-q", answers=STARTED, events={"r1": run_events(good)}).out == ""


def test_a_method_run_shows_lines_result_and_data(swamp: Run) -> None:
    events = run_events(job_events("remote-echo", "execute", None, ("executed on a worker",)))
    events[0] |= {"run": "method", "jobs": [{"name": "remote-echo", "steps": [{"name": "execute"}]}]}
    events.insert(
        -1, {"kind": "report", "name": "@swamp/method-summary", "scope": "method", "markdown": "# x"}
    )
    answers = {"model.method_run": {"runId": "r1"}}
    argv = ("model", "method", "run", "remote-echo", "execute", "--input", "a=b", "--timeout", "5m")
    ended = swamp(*argv, answers=answers, events={"r1": events})
    assert ended.out == (
        "│ executed on a worker\n✓ remote-echo → execute succeeded in 12ms\nData produced:\n  result (v1)\n"
    )
    assert ended.session.calls[0][1] == {
        "name": "remote-echo",
        "method": "execute",
        "inputs": {"a": "b"},
        "timeoutS": 300.0,
    }


def test_detach_prints_the_run_id_and_needs_an_orchestrator(swamp: Run) -> None:
    ended = swamp("workflow", "run", "w", "--detach", answers=STARTED)
    assert (ended.code, ended.out) == (0, "r1\n") and "swamp run attach r1" in ended.err
    assert swamp("workflow", "run", "w", "--detach", "--json", answers=STARTED).document == {"runId": "r1"}
    alone = FakeSession(STARTED)
    alone.where = "in process"
    refused = swamp("workflow", "run", "w", "--detach", session=alone)
    assert refused.code == 3 and "swamp serve" in refused.err and alone.calls == []


class _Live(FakeSession):
    """A run that ends when it is asked to."""

    def __init__(self, stubborn: bool = False) -> None:
        super().__init__({**STARTED, "run.cancel": self._cancel})
        self._asked = threading.Event()
        self._stubborn = stubborn

    def _cancel(self, parameters: dict[str, Any]) -> dict[str, Any]:
        if not self._stubborn:
            self._asked.set()
        else:
            os.kill(os.getpid(), signal.SIGINT)  # the second Ctrl-C, while the first is being dealt with
        return {"runId": "r1", "status": "cancelling"}

    def stream(self, name: str, /, **parameters: Any) -> Iterator[dict[str, Any]]:
        events = run_events([], "cancelled", left=0)
        yield {"seq": 1, **events[0]}
        os.kill(os.getpid(), signal.SIGINT)
        if self._asked.wait(60):
            yield {"seq": 2, **events[-1]}


def test_the_first_ctrl_c_cancels_and_waits_for_the_end(swamp: Run) -> None:
    ended = swamp("workflow", "run", "w", session=_Live())
    assert ended.code == 130
    assert ended.out == "left: 0\n"
    assert ended.err.startswith("Cancelling run r1 and waiting for its end (Ctrl-C again leaves at once) …\n")
    assert ("run.cancel", {"runId": "r1", "reason": "Ctrl-C", "wait": False}) in ended.session.calls


def test_ctrl_c_with_json_leaves_stderr_to_the_one_object_of_the_error(swamp: Run) -> None:
    ended = swamp("workflow", "run", "w", "--json", session=_Live())
    assert ended.code == 130
    assert json.loads(ended.err)["code"] == "interrupted", "one document, and nothing before it"


def test_the_second_ctrl_c_leaves_at_once_and_says_how_to_come_back(swamp: Run) -> None:
    session = _Live(stubborn=True)
    ended = swamp("workflow", "run", "w", session=session)
    session._asked.set()  # let the reading thread go
    assert ended.code == 130
    assert "left run r1, which was asked to cancel" in ended.err
    assert "swamp run attach r1" in ended.err and "swamp run cancel r1" in ended.err


def test_ctrl_c_in_attach_leaves_and_cancels_nothing(swamp: Run) -> None:
    session = _Live()
    ended = swamp("run", "attach", "r1", session=session)
    session._asked.set()
    assert ended.code == 130 and "it goes on" in ended.err
    assert session.calls == []


def test_a_broken_link_is_attached_again_after_the_last_event(
    swamp: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "REDIAL_S", 0.01)
    middle = [*job_events(lines=("one", "two")), {"kind": "job_ended", "job": "build", "status": "succeeded"}]
    events = run_events(middle, markdown=SUMMARY)

    class Flaky(FakeSession):
        def stream(self, name: str, /, **parameters: Any) -> Iterator[dict[str, Any]]:
            for count, event in enumerate(super().stream(name, **parameters)):
                if count == 2:
                    raise Broken("lost the connection")
                yield event

    session = Flaky(STARTED, {"r1": events})
    ended = swamp("workflow", "run", "w", session=session)
    assert ended.code == 0
    assert ended.out.count("│ one") == ended.out.count("│ two") == 1
    assert [p["after"] for n, p in session.calls if n == "run.attach"] == [0, 2, 4, 6, 8][
        : (len(events) + 1) // 2
    ]


def test_a_link_that_stays_broken_ends_the_command_not_the_run(
    swamp: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "REDIAL_S", 0.01)
    monkeypatch.setattr(following, "REATTACH_S", 0.05)

    class Gone(FakeSession):
        def stream(self, name: str, /, **parameters: Any) -> Iterator[dict[str, Any]]:
            raise Broken("lost the connection")

    ended = swamp("workflow", "run", "w", session=Gone(STARTED))
    assert ended.code == 1 and "lost the connection" in ended.err


def test_run_cancel_says_what_is_left(swamp: Run) -> None:
    answer = {"runId": "r1", "status": "cancelled", "left": 0}
    ended = swamp("run", "cancel", "r1", "--reason", "mine", answers={"run.cancel": answer})
    assert (ended.code, ended.out) == (0, "Cancelled run r1\nleft: 0\n")
    assert ended.session.calls == [("run.cancel", {"runId": "r1", "reason": "mine"})]
    lost = {"run.cancel": {**answer, "left": None, "endsBy": "2026-06-15T10:11:12.345Z"}}
    here = datetime(2026, 6, 15, 10, 11, 12, tzinfo=UTC).astimezone().strftime("%H:%M:%S")
    assert swamp("run", "cancel", "r1", answers=lost).out == (
        f"Cancelled run r1\nleft: unknown, ends by {here}\n"
    )
    assert swamp("run", "cancel", "r1", "--json", answers={"run.cancel": answer}).document == answer
    late = {"run.cancel": {"runId": "r1", "status": "ended"}}
    assert swamp("run", "cancel", "r1", answers=late).out == "Run r1 had already ended.\n"


def test_workflow_cancel_finds_the_one_active_run(swamp: Run) -> None:
    cancelled = {"runId": "r1", "status": "cancelled", "left": 0}
    answers = {"run.cancel": cancelled, "run.list": {"runs": [{"runId": "r1"}]}}
    ended = swamp("workflow", "cancel", "w", answers=answers)
    assert ended.out == "Cancelled run r1\nleft: 0\n"
    assert ended.session.calls[0] == ("run.list", {"workflow": "w", "active": True})
    two = {"run.list": {"runs": [{"runId": "r1"}, {"runId": "r2"}]}}
    assert "r1, r2" in swamp("workflow", "cancel", "w", answers=two).err
    assert swamp("workflow", "cancel", "w", answers={"run.list": {"runs": []}}).code == 1


def test_a_thousand_steps_are_shown_quickly(swamp: Run) -> None:
    names = [f"s{number}" for number in range(1000)]
    middle = [event for name in names for event in job_events("build", name, lines=("x",))]
    events = run_events(
        [*middle, {"kind": "job_ended", "job": "build", "status": "succeeded"}], jobs={"build": names}
    )
    begin = time.process_time()
    ended = swamp("workflow", "run", "w", answers=STARTED, events={"r1": events})
    assert ended.code == 0 and ended.out.count("\n") == 1 + 2 * 1000
    assert time.process_time() - begin < 5
