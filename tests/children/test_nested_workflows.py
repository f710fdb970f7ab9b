"""Nested workflows: their inputs, what is shown of them, failures, limits, cancel and time."""

from typing import Any

import pytest
from children_place import Place, approval, nested, shell

from swamp_orch.engine.lineage import Parent
from swamp_proto.errors import OperationFailed
from swamp_proto.limits import CHILD_RUN_DEPTH_MAX

WHO: dict[str, Any] = {
    "type": "object",
    "properties": {"who": {"type": "string"}, "times": {"type": "integer", "default": 2}},
    "required": ["who"],
}


def greeting(place: Place) -> None:
    place.model("say", "echo x")
    run = 'echo "${{ inputs.who }} ${{ inputs.times }}"'
    place.workflow("greet", shell("hello", "say", inputs={"run": run}), inputs=WHO)


def test_inputs_come_from_above_and_outputs_are_there_for_later_steps(place: Place) -> None:
    greeting(place)
    place.model("after", "echo x")
    said = "${{ data.latest('say', 'result').attributes.stdout }}"
    place.workflow(
        "outer",
        nested("nest", "greet", {"who": "${{ inputs.name }}"}),
        shell("use", "after", dependsOn=["nest"], inputs={"run": f'echo "got {said}"'}),
        inputs={"type": "object", "properties": {"name": {"type": "string"}}},
    )
    ended = place.run("outer", name="ann")
    assert ended["status"] == "succeeded"
    assert place.lines() == ["hello │ ann 2", "got ann 2"]
    assert ended["counts"] == {"succeeded": 2, "failed": 0, "skipped": 0, "cancelled": 0}


def test_parent_and_child_name_each_other(place: Place) -> None:
    greeting(place)
    place.workflow("outer", nested("nest", "greet", {"who": "bob"}))
    ended = place.run("outer")
    (child,) = place.step(ended["runId"], "nest")["children"]
    assert (child["name"], child["kind"], child["status"]) == ("greet", "workflow", "succeeded")
    assert ended["run"]["jobs"][0]["steps"][0]["children"] == [child]
    below = place.call("run.get", runId=child["runId"])
    assert below["parent"] == {"runId": ended["runId"], "job": "j", "step": "nest"}
    assert below["inputs"] == {"who": "bob", "times": 2}
    logs = place.call("run.logs", runId=ended["runId"])
    assert logs["lines"] == [{"job": "j", "step": "nest", "line": "hello │ bob 2"}]


def test_inputs_that_do_not_fit_fail_the_step_and_start_nothing(place: Place) -> None:
    greeting(place)
    place.workflow("outer", nested("nest", "greet", "${{ {'who': 3, 'what': 1} }}"))
    ended = place.run("outer")
    assert ended["status"] == "failed"
    assert "who" in ended["error"] and "what" in ended["error"]
    assert "children" not in place.step(ended["runId"], "nest")
    assert len(place.call("run.list")["runs"]) == 1


def test_a_failure_below_is_told_with_the_way_to_look_at_it(place: Place) -> None:
    place.model("bad", "exit 4")
    place.workflow("inner", shell("breaks", "bad"))
    place.workflow(
        "outer", nested("nest", "inner", allowFailure=True), shell("other", "bad", allowFailure=True)
    )
    ended = place.run("outer")
    assert ended["status"] == "succeeded"
    told = place.step(ended["runId"], "nest")
    (child,) = told["children"]
    assert "step 'breaks'" in told["error"] and "code 4" in told["error"]
    assert f"swamp workflow history get {child['runId']}" in told["error"]
    assert told["allowedFailure"] is True


def test_a_nested_workflow_is_tried_again_as_a_new_run(place: Place) -> None:
    witness = place.root / "witness"
    place.model("flaky", f"echo x >> {witness}; test $(wc -l < {witness}) -ge 2")
    place.workflow("inner", shell("s", "flaky"))
    place.workflow("outer", nested("nest", "inner", retry={"attempts": 1, "backoff": 0}))
    ended = place.run("outer")
    assert ended["status"] == "succeeded"
    children = place.step(ended["runId"], "nest")["children"]
    assert [child["status"] for child in children] == ["failed", "succeeded"]
    assert len({child["runId"] for child in children}) == 2


def test_a_secret_that_is_passed_down_is_stored_nowhere(place: Place) -> None:
    place.call("vault.create", type="local_encryption", name="main")
    place.call("vault.put", vault="main", key="k", value="hunter2-hunter2")
    place.model("say", "echo x")
    secret = {"type": "object", "properties": {"word": {"type": "string"}, "plain": {"type": "string"}}}
    place.workflow("inner", shell("s", "say", inputs={"run": 'echo "${{ inputs.word }}"'}), inputs=secret)
    place.workflow(
        "outer",
        nested("vaulted", "inner", {"word": "${{ vault.get('main', 'k') }}"}),
        nested("given", "inner", {"word": "<${{ inputs.pin }}>", "plain": "p"}),
        inputs={"type": "object", "properties": {"pin": {"type": "string", "sensitive": True}}},
    )
    ended = place.run("outer", pin="topsecret-4711")
    assert ended["status"] == "succeeded"
    assert sorted(place.lines()) == ["s │ ***", "s │ <***>"]
    stored = {
        step["name"]: place.call("run.get", runId=step["children"][0]["runId"])["inputs"]
        for step in ended["run"]["jobs"][0]["steps"]
    }
    assert stored == {"vaulted": {"word": "***"}, "given": {"word": "***", "plain": "p"}}
    everything = b"".join(path.read_bytes() for path in (place.root / ".swamp").rglob("*") if path.is_file())
    assert b"topsecret-4711" not in everything and b"hunter2-hunter2" not in everything


def test_a_circle_that_only_running_shows_is_refused(place: Place) -> None:
    name = "${{ inputs.next }}"
    schema = {"type": "object", "properties": {"next": {"type": "string"}}}
    place.workflow("a", nested("down", name, {"next": "a"}), inputs=schema)
    place.workflow("b", nested("down", name, {"next": "b"}), inputs=schema)
    ended = place.run("a", next="b")
    assert ended["status"] == "failed"
    assert "a → b → a" in ended["error"]


def test_depth_is_bounded() -> None:
    chain = tuple(f"w{number}" for number in range(CHILD_RUN_DEPTH_MAX))
    hangs = Parent("00000000-0000-4000-8000-000000000000", "j", "s", 1, 0, CHILD_RUN_DEPTH_MAX, chain)
    hangs.check("one-more")
    too_deep = Parent(hangs.run, "j", "s", 1, 0, CHILD_RUN_DEPTH_MAX + 1, (*chain, "one-more"))
    with pytest.raises(OperationFailed, match="w0 → w1"):
        too_deep.check("too-deep")


def test_a_child_has_one_id_and_every_other_place_another() -> None:
    run = "00000000-0000-4000-8000-000000000000"
    ids = {
        Parent(run, job, step, attempt, call, 1, ()).child_id
        for job, step, attempt, call in [
            ("a", "bc", 1, 0),
            ("ab", "c", 1, 0),
            ("a", "bc", 2, 0),
            ("a", "bc", 1, 1),
        ]
    }
    assert len(ids) == 4
    assert Parent(run, "a", "bc", 1, 0, 1, ("other",)).child_id in ids


def test_a_timeout_and_a_cancel_go_all_the_way_down(place: Place) -> None:
    place.model("slow", "echo begun; exec sleep 60")
    place.workflow("inner", shell("s", "slow"))
    place.workflow("middle", nested("m", "inner"))
    for timeout in ("1s", "10s", "50s"):  # the first in which it gets all the way down
        place.workflow("timed", nested("nest", "middle", timeout=timeout))
        ended = place.run("timed")
        assert ended["status"] == "failed" and "timed out" in ended["error"] and ended["left"] == 0
        statuses = {run["workflowName"]: run["status"] for run in place.call("run.list")["runs"]}
        if "inner" in statuses:
            break
    assert statuses == {"timed": "failed", "middle": "cancelled", "inner": "cancelled"}
    place.workflow("whole", nested("nest", "middle"))
    run_id = place.call("workflow.run", name="whole")["runId"]
    events = place.session.stream("run.attach", runId=run_id)
    while next(events).get("line") != "m │ s │ begun":
        pass
    answer = place.call("run.cancel", runId=run_id, reason="enough")
    assert (answer["status"], answer["left"]) == ("cancelled", 0)
    assert place.call("run.list", active=True)["runs"] == []


def test_an_approval_below_suspends_every_run_above(place: Place) -> None:
    place.workflow("inner", approval("ok", "Really?"))
    place.workflow("outer", nested("nest", "inner"))
    suspended = place.run("outer")
    assert suspended["kind"] == "run_suspended"
    (asked,) = suspended["approvals"]
    assert (asked["workflowName"], asked["step"], asked["prompt"]) == ("inner", "ok", "Really?")
    place.leave()
    statuses = {run["workflowName"]: run["status"] for run in place.call("run.list", active=True)["runs"]}
    assert statuses == {"outer": "suspended", "inner": "suspended"}
    done = place.call("workflow.approve", name="inner", step="ok", by="ann")
    assert done["resume"] == {"runId": suspended["runId"], "workflowName": "outer"}
    assert place.resume("outer")["status"] == "succeeded"
