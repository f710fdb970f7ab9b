"""Runs in one process, without workers: what the engine does with steps, from the call to the records."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio

from swamp_orch.api.application import Application, LiveApplication
from swamp_orch.api.inprocess import InProcessSession
from swamp_orch.definitions.repository import find, init
from swamp_orch.engine import engine as engine_module
from swamp_orch.engine import flights, runs, steps
from swamp_orch.engine.assembly import assemble
from swamp_orch.serve import wall_ms
from swamp_orch.store.errors import StoreFull
from swamp_orch.store.interface import Batch, Committed
from swamp_orch.store.sqlite import open_store
from swamp_proto.errors import NotFound, SwampError
from swamp_proto.limits import Tempo
from swamp_proto.messages.dispatch import Dispatch, Finished, Outcome
from swamp_worker.execution.interface import Control, LogSink

ROOT = Path(__file__).parents[2]


class Place:
    """A repository and a session on it."""

    def __init__(self, root: Path) -> None:
        init(root)
        self.root = root
        self.session = InProcessSession(find(root))

    def model(self, name: str, run: str) -> None:
        self.session.call(
            "model.create", type="command/shell", name=name, arguments={"execute": {"run": run}}
        )

    def workflow(self, name: str, jobs: str) -> None:
        self.session.call("workflow.create", name=name, text=f"name: {name}\n{jobs}\nversion: 1\n")

    def run(self, name: str, **inputs: Any) -> dict[str, Any]:
        """The `run_ended` event; every event of the run is in `events`."""
        run_id = self.session.call("workflow.run", name=name, inputs=inputs)["runId"]
        self.events = list(self.session.stream("run.attach", runId=run_id))
        assert self.events[-1]["kind"] == "run_ended"
        return self.events[-1]

    def ends(self) -> dict[str, str]:
        return {event["step"]: event["status"] for event in self.events if event["kind"] == "step_ended"}

    def query(self, predicate: str, select: str) -> list[Any]:
        found: list[Any] = self.session.call("data.query", predicate=predicate, select=select)["results"]
        return found


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    found = Place(tmp_path)
    yield found
    found.session.close()


def step(name: str, model: str, more: str = "") -> str:
    extra = f", {more}" if more else ""
    return f"      - {{name: {name}, task: {{type: model_method, modelIdOrName: {model}, methodName: execute}}{extra}}}"


def job(*steps: str, more: str = "") -> str:
    return "\n".join(["jobs:", f"  - name: j{more}", "    steps:", *steps])


def test_events_are_numbered_without_gaps_and_say_what_happened(place: Place) -> None:
    place.model("say", "echo one; echo two >&2")
    place.workflow("w", job(step("s", "say")))
    ended = place.run("w")
    assert [event["seq"] for event in place.events] == list(range(1, len(place.events) + 1))
    assert ended["status"] == "succeeded"
    assert ended["left"] == 0
    lines = {(event["stream"], event["line"]) for event in place.events if event["kind"] == "step_output"}
    assert lines == {("stdout", "one"), ("stderr", "two")}
    assert place.query('modelName == "say" && specName == "result"', "attributes.stdout") == ["one"]


def test_what_is_kept_of_runs_that_have_ended_is_bounded_together(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one's events are there; of one before it the story is made anew from its records, without its output."""
    monkeypatch.setattr(engine_module, "EVENT_BUFFER_ENDED_BYTES", 10)
    place.model("say", "echo one")
    place.workflow("w", job(step("s", "say")))
    first, last = place.run("w")["runId"], place.run("w")["runId"]

    def told(run_id: str) -> list[str]:
        return [event["kind"] for event in place.session.stream("run.attach", runId=run_id)]

    assert "step_output" in told(last)
    assert "step_output" not in told(first)
    assert told(first)[-1] == "run_ended"


def test_a_failed_method_is_tried_again_as_often_as_its_step_says(place: Place) -> None:
    witness = place.root / "witness"
    place.model("flaky", f"echo x >> {witness}; test $(wc -l < {witness}) -ge 3")
    place.workflow("w", job(step("s", "flaky", "retry: {attempts: 2, backoff: 0}")))
    assert place.run("w")["status"] == "succeeded"
    assert witness.read_text() == "x\n" * 3
    rows = place.query(
        'modelName == "flaky" && specName == "result" && version > 0', "[outcome, attributes.exitCode]"
    )
    assert rows == [["failed", 1], ["failed", 1], ["", 0]]


def test_tries_are_bounded_and_the_last_error_is_the_steps(place: Place) -> None:
    place.model("bad", "exit 4")
    place.workflow("w", job(step("s", "bad", "retry: {attempts: 1, backoff: 0}")))
    ended = place.run("w")
    assert ended["status"] == "failed"
    assert "code 4" in ended["error"]
    (attempts,) = [event["attempts"] for event in place.events if event["kind"] == "step_ended"]
    assert attempts == 2


def test_a_step_timeout_fails_the_step_and_keeps_the_evidence(place: Place) -> None:
    place.model("slow", "echo begun; exec sleep 60")
    place.workflow("w", job(step("s", "slow", "timeout: 1")))
    ended = place.run("w")
    assert ended["status"] == "failed"
    assert ended["left"] == 0
    assert place.query('modelName == "slow" && specName == "result"', "attributes.stdout") == ["begun"]


def test_a_job_timeout_ends_its_steps_and_not_those_of_others(place: Place) -> None:
    place.model("slow", "exec sleep 60")
    place.model("quick", "true")
    text = job(step("s", "slow"), more="\n    timeout: 1")
    place.workflow("w", f"{text}\n  - name: other\n    steps:\n{step('q', 'quick')}")
    assert place.run("w")["status"] == "failed"
    assert place.ends() == {"s": "failed", "q": "succeeded"}


def test_a_run_timeout_fails_the_run(place: Place) -> None:
    place.model("slow", "exec sleep 60")
    place.workflow("w", f"timeout: 1\n{job(step('s', 'slow'), step('t', 'slow', 'dependsOn: [s]'))}")
    ended = place.run("w")
    assert ended["status"] == "failed"
    assert "timed out" in ended["error"]
    assert set(place.ends().values()) == {"cancelled"}


def test_for_each_makes_a_step_of_every_item(place: Place) -> None:
    place.model("say", "echo x")
    place.workflow(
        "w",
        """inputs:
  type: object
  properties:
    names: {type: array, items: {type: string}}
  required: [names]
jobs:
  - name: j
    steps:
      - name: greet
        forEach: {item: who, in: "${{ inputs.names }}"}
        task:
          type: model_method
          modelIdOrName: say
          methodName: execute
          inputs: {run: "echo hello ${{ self.who }}"}
""",
    )
    assert place.run("w", names=["ann", "bob"])["counts"]["succeeded"] == 2
    assert set(place.ends()) == {"greet-ann", "greet-bob"}
    assert sorted(event["line"] for event in place.events if event["kind"] == "step_output") == [
        "hello ann",
        "hello bob",
    ]


def test_a_placed_step_without_an_orchestrator_says_how_to_start_one(place: Place) -> None:
    place.model("say", "echo x")
    place.workflow("w", job(step("s", "say", "target: far-away")))
    ended = place.run("w")
    assert ended["status"] == "failed"
    assert "swamp serve" in ended["error"]


def test_a_model_that_is_not_there_fails_its_step_by_name(place: Place) -> None:
    place.model("say", "echo x")
    place.workflow(
        "w", job(step("s", "nobody"), step("t", "say", "dependsOn: [{step: s, condition: {type: failed}}]"))
    )
    ended = place.run("w")
    assert "nobody" in ended["error"]
    assert place.ends() == {"s": "failed", "t": "succeeded"}


def test_a_required_argument_may_come_from_the_step(place: Place) -> None:
    """A definition that is not complete by itself is completed by whoever calls it."""
    place.session.call("model.create", type="command/shell", name="bare", arguments={})
    called = "{type: model_method, modelIdOrName: bare, methodName: execute, inputs: {run: echo given}}"
    place.workflow("w", job(f"      - {{name: s, task: {called}}}", step("t", "bare")))
    ended = place.run("w")
    assert place.ends() == {"s": "succeeded", "t": "failed"}
    assert "run is required" in ended["error"]


def test_text_that_comes_from_data_is_never_parsed(place: Place) -> None:
    """An output that looks like an expression stays text in the step that uses it."""
    place.model("tricky", "printf '$%s' '{{ vault.get(\"v\", \"k\") }}'")
    place.model("say", "echo x")
    place.workflow(
        "w",
        job(
            step("s", "tricky"),
            """      - name: t
        dependsOn: [s]
        task:
          type: model_method
          modelIdOrName: say
          methodName: execute
          inputs:
            run: "printf '%s' \\"${{ data.latest('tricky', 'result').attributes.stdout }}\\""
""",
        ),
    )
    assert place.run("w")["status"] == "succeeded"
    assert place.query('modelName == "say" && specName == "result"', "attributes.stdout") == [
        '${{ vault.get("v", "k") }}'
    ]


def test_what_is_recorded_reads_back_as_the_run_ended(place: Place) -> None:
    place.model("say", "echo x")
    place.model("bad", "exit 1")
    place.workflow("w", job(step("s", "say"), step("b", "bad"), step("n", "say", "dependsOn: [b]")))
    ended = place.run("w")
    stored = place.session.call("run.get", runId=ended["runId"])
    shown = {step["name"]: step["status"] for job in stored["jobs"] for step in job["steps"]}
    assert shown == {"s": "succeeded", "b": "failed", "n": "skipped"}
    assert stored["counts"] == ended["counts"]
    assert stored["status"] == "failed"
    assert place.session.call("run.doctor")["findings"] == []


def test_an_unknown_run_is_said_to_be_unknown(place: Place) -> None:
    with pytest.raises(NotFound):
        place.session.call("run.get", runId="00000000-0000-4000-8000-000000000000")


def test_leases_of_ended_steps_are_ended(place: Place) -> None:
    place.model("say", "echo x")
    place.workflow("w", job(*(step(f"s{number}", "say") for number in range(5))))
    place.run("w")
    states = place.query('modelType == "swamp/step-lease" && version > 0 && isLatest', "attributes.state")
    assert states == ["completed"] * 5


def test_a_cancelled_run_leaves_nothing(place: Place) -> None:
    place.model("slow", "exec sleep 60")
    place.workflow("w", job(step("s", "slow"), step("t", "slow", "dependsOn: [s]")))
    run_id = place.session.call("workflow.run", name="w")["runId"]
    events = place.session.stream("run.attach", runId=run_id)
    while next(events)["kind"] != "step_started":
        pass
    answer = place.session.call("run.cancel", runId=run_id, reason="enough")
    assert answer["left"] == 0
    last = list(events)[-1]
    assert last["status"] == "cancelled"
    assert last["error"] == "enough"


def test_a_run_that_cannot_begin_leaves_no_record(place: Place) -> None:
    with pytest.raises(SwampError):
        place.session.call("workflow.run", name="nothing")
    assert place.session.call("run.list")["runs"] == []


def test_a_run_of_another_process_is_neither_ended_nor_followed_here(place: Place) -> None:
    place.model("slow", "exec sleep 60")
    place.workflow("w", job(step("s", "slow")))
    run_id = place.session.call("workflow.run", name="w")["runId"]
    for command in ("cancel", "attach"):
        said = subprocess.run(
            [sys.executable, "-m", "swamp_orch.cli", "run", command, run_id],
            cwd=place.root,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert said.returncode == 1
        assert "is not at work in this process" in said.stderr
    assert place.session.call("run.get", runId=run_id)["status"] == "running"
    assert place.session.call("run.cancel", runId=run_id)["left"] == 0


class Loud:
    """A reporter: a warning or a fault fails the test."""

    def info(self, event: str, **fields: Any) -> None:
        return

    def warning(self, event: str, **fields: Any) -> None:
        raise AssertionError((event, fields))

    def fault(self, event: str, error: BaseException, **fields: Any) -> None:
        raise error


async def test_calls_about_runs_wait_until_an_orchestrator_has_taken_over_what_was_left(place: Place) -> None:
    """A client that followed a run when its orchestrator was killed is back before the next one has read its records (one full
    check failed by it: the client was told that the run had ended, as `running`)."""
    place.model("quick", "true")
    place.workflow("w", job(step("s", "quick")))
    run_id = (await trio.to_thread.run_sync(place.run, "w"))["runId"]
    await trio.to_thread.run_sync(place.session.close)
    repository = find(place.root)
    answers: dict[str, Any] = {}
    with trio.fail_after(60), closing(open_store(repository.data)) as store:
        application = Application(repository, store)
        async with assemble(
            application, reporter=Loud(), tempo=Tempo(), workers=True, clock_ms=wall_ms
        ) as parts:
            live = LiveApplication(application, parts.live())

            async def cancel() -> None:
                answers["cancel"] = await live.call("run.cancel", {"runId": run_id})

            async def attach() -> None:
                follower = await live.follow("run.attach", {"runId": run_id})
                answers["attach"] = await follower.more()

            async def start() -> None:
                answers["start"] = await live.call("workflow.run", {"name": "w"})

            async with trio.open_nursery() as nursery:
                for call in (cancel, attach, start):
                    nursery.start_soon(call)
                await trio.sleep(0.2)
                assert not answers
                await parts.reconcile()
            assert answers["cancel"] == {"runId": run_id, "status": "ended"}
            assert b'"kind":"run_ended"' in answers["attach"].replace(b" ", b"")
            assert await live.call("run.cancel", {"runId": answers["start"]["runId"]})


class Unkillable:
    """An executor whose first execution of each step fails and leaves something behind that can not be killed."""

    def __init__(self) -> None:
        self.executed: list[str] = []

    async def execute(self, dispatch: Dispatch, sink: LogSink, control: Control) -> Finished:
        self.executed.append(dispatch.dispatch)
        return Finished(dispatch.dispatch, dispatch.fence, Outcome.FAILED, "no", (), 0, 0, 2, wall_ms(), 5)


async def test_what_can_not_be_killed_here_keeps_its_slot_until_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path)
    place.model("m", "true")
    place.workflow("w", job(step("s", "m", "retry: {attempts: 2, backoff: 0}")))
    place.session.close()
    monkeypatch.setattr(flights, "STUCK_LOOK_S", 0.01)
    repository, gone = find(tmp_path), trio.Event()
    with trio.fail_after(60), closing(open_store(repository.data)) as store:
        async with assemble(
            Application(repository, store), reporter=Loud(), tempo=Tempo(), workers=True, clock_ms=wall_ms
        ) as parts:
            await parts.reconcile()
            engine, left = parts.engine, Unkillable()
            engine.executor = left
            monkeypatch.setattr(parts.flights, "_settled_here", lambda dispatch: gone.is_set())
            run_id = (await engine.handlers()["workflow.run"]({"name": "w"}))["runId"]
            await engine.active_runs()[0].over.wait()
            assert len(left.executed) == 1, "it was tried again beside what is left of it"
            ended = await engine.handlers()["run.cancel"]({"runId": run_id})
            assert ended["status"] == "ended"
            assert len(parts.flights._leases) == 1, "the lease is kept while something of it lives"
            assert engine._loopback.borrowed_tokens == 1
            gone.set()
            await engine.loopback_idle()
            assert engine._loopback.borrowed_tokens == 0 and len(parts.flights._leases) == 0


def test_a_run_at_work_says_what_is_still_to_come(place: Place) -> None:
    """`run.get` of a running run lists steps that have no record yet, and no job ends before its last step."""
    seen = place.root / "seen"
    place.model("quick", "true")
    place.model("slow", f"touch {seen}; until test -e {place.root}/go; do sleep 0.02; done")
    place.workflow(
        "w",
        job(step("a", "quick"), step("b", "slow", "dependsOn: [a]"), step("c", "quick", "dependsOn: [b]"))
        + "\n  - {name: k, dependsOn: [j], steps: [{name: d, task: {type: model_method, modelIdOrName: quick, methodName: execute}}]}",
    )
    run_id = place.session.call("workflow.run", name="w")["runId"]
    deadline = time.monotonic() + 60
    while not seen.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    found = place.session.call("run.get", runId=run_id)
    assert [(one["name"], one["status"]) for one in found["jobs"]] == [("j", "running"), ("k", "waiting")]
    steps = {one["name"]: one["status"] for one in (*found["jobs"][0]["steps"], *found["jobs"][1]["steps"])}
    assert steps == {"a": "succeeded", "b": "running", "c": "waiting", "d": "waiting"}
    assert 0 < found["jobs"][0]["duration"] <= found["duration"]
    (place.root / "go").touch()
    *_, ended = place.session.stream("run.attach", runId=run_id)
    after = place.session.call("run.get", runId=run_id)
    assert after["duration"] == ended["durationMs"]
    for told, kept in zip(ended["run"]["jobs"], after["jobs"], strict=True):
        assert (kept["name"], kept["status"]) == (told["name"], told["status"])
    for document in (
        ended["run"],
        after,
    ):  # one job after the other: together they take no longer than their run
        durations = [one["duration"] for one in document["jobs"]]
        assert min(durations) > 0 and sum(durations) <= after["duration"]


class Quiet(Loud):
    """Warnings are expected."""

    def warning(self, event: str, **fields: Any) -> None:
        return


async def test_a_full_disk_ends_no_run_and_loses_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grants, completions and ends of runs wait for room; a cancel that could not be recorded was not acknowledged, nor asked."""
    place = Place(tmp_path)
    place.model("m", f"touch {tmp_path}/seen; until test -e {tmp_path}/go; do sleep 0.01; done; echo done")
    place.workflow("w", job(step("a", "m"), step("b", "m", "dependsOn: [a]")))
    place.session.close()
    for module in (runs, steps, flights):
        monkeypatch.setattr(module, "STORE_RETRY_S", 0.02)
    repository = find(tmp_path)
    with trio.fail_after(60), closing(open_store(repository.data)) as store:
        refused: list[Batch] = []
        full = False
        submit, submit_to = store.submit, store.submit_to

        def submit_or_not(batch: Batch) -> Any:
            if not full:
                return submit(batch)
            refused.append(batch)
            answer: Future[Committed] = Future()
            answer.set_exception(StoreFull("no space left"))
            return answer

        def submit_to_or_not(batch: Batch, answer: Any) -> None:
            if not full:
                submit_to(batch, answer)
                return
            refused.append(batch)
            answer.outcome = StoreFull("no space left")

        async def until(look: Callable[[], Any]) -> None:
            while not look():  # noqa: ASYNC110 - files and other modules' facts announce nothing
                await trio.sleep(0.005)

        async def until_refused() -> None:
            refused.clear()
            await until(lambda: refused)

        monkeypatch.setattr(store, "submit", submit_or_not)
        monkeypatch.setattr(store, "submit_to", submit_to_or_not)
        async with assemble(
            Application(repository, store), reporter=Quiet(), tempo=Tempo(), workers=True, clock_ms=wall_ms
        ) as parts:
            await parts.reconcile()
            calls = parts.engine.handlers()
            run_id = (await calls["workflow.run"]({"name": "w"}))["runId"]
            (run,) = parts.engine.active_runs()
            await until((tmp_path / "seen").exists)
            full = True
            with pytest.raises(StoreFull):
                await calls["run.cancel"]({"runId": run_id})
            (tmp_path / "go").touch()
            await until_refused()  # the completion of a
            full = False
            await until(lambda: any(state.key.step == "b" for state in run.states()))
            full = True
            await until_refused()  # whatever comes next of b and of the run
            assert not run.over.is_set()
            full = False
            await run.over.wait()
            assert (run.status, run.counts()["succeeded"]) == ("succeeded", 2)
        assert store.latest(run_id, "run-main") is not None
