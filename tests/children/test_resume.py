"""Resuming runs that ended: what is kept, what starts anew."""

from pathlib import Path

import pytest
from children_place import Place, nested, shell

from swamp_proto.errors import Conflict, NotFound, OperationFailed


def gate(place: Place, name: str) -> Path:
    """A model of that name that counts its starts and fails until its gate is opened."""
    opened = place.root / f"{name}.open"
    place.model(name, f"echo x >> {place.root}/{name}.starts; test -e {opened}")
    return opened


def starts(place: Place, name: str) -> int:
    path = place.root / f"{name}.starts"
    return len(path.read_text().split()) if path.exists() else 0


def test_what_succeeded_is_kept_and_the_rest_starts(place: Place) -> None:
    gate(place, "good").touch()
    opened = gate(place, "bad")
    place.workflow(
        "w", shell("a", "good"), shell("b", "bad", dependsOn=["a"]), shell("c", "good", dependsOn=["b"])
    )
    first = place.run("w")
    assert first["status"] == "failed"
    opened.touch()
    place.leave()
    ended = place.resume("w")
    assert (ended["runId"], ended["status"]) == (first["runId"], "succeeded")
    assert place.ends() == {"a": "succeeded", "b": "succeeded", "c": "succeeded"}
    assert (starts(place, "good"), starts(place, "bad")) == (2, 2)
    assert place.step(ended["runId"], "b")["attempts"] == 2, "attempts and fences go on counting"
    with pytest.raises(OperationFailed, match="nothing to go on with"):
        place.call("workflow.resume", name="w")


def test_from_a_step_everything_behind_it_starts_anew(place: Place) -> None:
    for name in ("one", "two", "three", "other"):
        gate(place, name).touch()
    opened = gate(place, "last")
    place.workflow(
        "w",
        jobs=[
            {
                "name": "a",
                "steps": [
                    shell("one", "one"),
                    shell("two", "two", dependsOn=["one"]),
                    shell("other", "other"),
                ],
            },
            {"name": "b", "dependsOn": ["a"], "steps": [shell("three", "three")]},
            {"name": "c", "dependsOn": ["b"], "steps": [shell("last", "last")]},
        ],
    )
    assert place.run("w")["status"] == "failed"
    opened.touch()
    with pytest.raises(NotFound, match="no one step"):
        place.call("workflow.resume", name="w", fromStep="nothing")
    assert place.resume("w", fromStep="a/two")["status"] == "succeeded"
    counted = {name: starts(place, name) for name in ("one", "two", "other", "three", "last")}
    assert counted == {"one": 1, "two": 2, "other": 1, "three": 2, "last": 2}


def test_items_of_a_for_each_that_succeeded_are_kept(place: Place) -> None:
    place.model("gate", "false")
    (place.root / "x.open").touch()
    run = f"cd {place.root}; echo x >> ${{{{ self.who }}}}.starts; test -e ${{{{ self.who }}}}.open"
    fan = shell("fan", "gate", inputs={"run": run}, forEach={"item": "who", "in": "${{ ['x', 'y'] }}"})
    place.workflow("w", fan)
    first = place.run("w")
    assert first["counts"]["failed"] == 1
    (place.root / "y.open").touch()
    assert place.resume("w")["status"] == "succeeded"
    assert (starts(place, "x"), starts(place, "y")) == (1, 2)


def test_a_nested_workflow_goes_on_inside(place: Place) -> None:
    gate(place, "good").touch()
    opened = gate(place, "bad")
    place.workflow("inner", shell("a", "good"), shell("b", "bad", dependsOn=["a"]))
    place.workflow("outer", nested("nest", "inner"))
    first = place.run("outer")
    (child,) = place.step(first["runId"], "nest")["children"]
    with pytest.raises(Conflict, match="belongs to step 'nest'"):
        place.call("workflow.resume", name="inner", runId=child["runId"])
    opened.touch()
    ended = place.resume("outer")
    assert ended["status"] == "succeeded"
    assert [one["runId"] for one in place.step(ended["runId"], "nest")["children"]] == [child["runId"]]
    assert (starts(place, "good"), starts(place, "bad")) == (1, 2)


def test_a_cancelled_run_can_be_resumed(place: Place) -> None:
    opened = place.root / "go"
    place.model("slow", f"echo begun; test -e {opened} || exec sleep 60")
    place.workflow("w", shell("s", "slow"))
    run_id = place.call("workflow.run", name="w")["runId"]
    events = place.session.stream("run.attach", runId=run_id)
    while next(events).get("line") != "begun":
        pass
    place.call("run.cancel", runId=run_id)
    opened.touch()
    assert place.resume("w")["status"] == "succeeded"


def test_inputs_that_were_not_stored_are_asked_for_before_anything_changes(place: Place) -> None:
    opened = gate(place, "bad")
    place.model("say", "echo x")
    place.workflow(
        "w",
        shell("b", "bad"),
        shell("s", "say", dependsOn=["b"], inputs={"run": 'test "${{ inputs.pin }}" = 4711-4711'}),
        inputs={"type": "object", "properties": {"pin": {"type": "string", "sensitive": True}}},
    )
    run_id = place.run("w", pin="4711-4711")["runId"]
    opened.touch()
    with pytest.raises(OperationFailed) as refused:
        place.call("workflow.resume", name="w")
    assert "--input pin=" in (refused.value.hint or "")
    assert place.call("run.get", runId=run_id)["status"] == "failed"
    assert place.resume("w", inputs={"pin": "4711-4711"})["status"] == "succeeded"
    assert place.call("run.get", runId=run_id)["inputs"] == {"pin": "***"}


def test_a_run_of_one_method_is_run_again_instead(place: Place) -> None:
    place.model("bad", "exit 1")
    run_id = place.call("model.method_run", name="bad", method="execute")["runId"]
    place.watch(run_id)
    with pytest.raises(OperationFailed, match="of one method") as refused:
        place.call("workflow.resume", name="bad", runId=run_id)
    assert "swamp model method run bad" in (refused.value.hint or "")
