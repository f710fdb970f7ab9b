"""Models that running code runs: found again, marked, bounded, ended with who asked."""

from typing import Any

from children_place import Place

CALLER = """\
import attrs

from swamp_worker.sdk import Context, method, model, resource


@attrs.frozen
class What:
    model: str
    inputs: dict[str, str] = {}


@model("@test/caller", version="2026.02.09.1", reads=["say", "bad", "again", "slow"])
class Caller:
    seen = resource({"type": "object"})

    @method
    async def call(self, context: Context, arguments: What) -> None:
        run = await context.run_model(arguments.model, "execute", arguments.inputs, check=False)
        told = {"status": run.status, "error": run.error, "records": [one["name"] for one in run.records]}
        await context.write_resource("seen", told, "seen")

    @method(mutates=True)
    async def circle(self, context: Context) -> None:
        await context.run_model("again", "circle")
"""


def place_with_caller(place: Place) -> None:
    folder = place.root / "extensions" / "models"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "caller.py").write_text(CALLER)
    place.model("say", "echo hello")
    place.model("bad", "exit 3")


def called(place: Place, **arguments: Any) -> dict[str, Any]:
    """The end of a run of `again.call`."""
    place.call("model.create", type="@test/caller", name="again")
    run_id = place.call("model.method_run", name="again", method="call", inputs=arguments)["runId"]
    return place.watch(run_id)


def seen(place: Place) -> dict[str, Any]:
    (found,) = place.query('modelName == "again" && name == "seen"')
    return dict(found)


def test_code_runs_a_model_and_is_told_what_it_left(place: Place) -> None:
    place_with_caller(place)
    ended = called(place, model="say")
    assert ended["status"] == "succeeded", ended["error"]
    assert seen(place) == {"status": "succeeded", "error": "", "records": ["result", "log"]}
    assert "say.execute │ hello" in place.lines()
    (child,) = place.step(ended["runId"], "call")["children"]
    assert (child["name"], child["kind"], child["status"]) == ("say", "method", "succeeded")
    assert place.call("run.get", runId=child["runId"])["parent"]["runId"] == ended["runId"]
    leases = place.query(
        'modelType == "swamp/step-lease" && version > 0 && isLatest',
        "[attributes.runId, attributes.hasWrites]",
    )
    assert [ended["runId"], True] in leases, "a mutating call is a write of who calls"


def test_a_failure_is_told_and_is_not_the_callers(place: Place) -> None:
    place_with_caller(place)
    ended = called(place, model="bad")
    assert ended["status"] == "succeeded", ended["error"]
    told = seen(place)
    assert told["status"] == "failed" and "code 3" in told["error"]


def test_a_circle_is_refused(place: Place) -> None:
    place_with_caller(place)
    place.call("model.create", type="@test/caller", name="again")
    run_id = place.call("model.method_run", name="again", method="circle")["runId"]
    ended = place.watch(run_id)
    assert ended["status"] == "failed"
    assert "again.circle → again.circle" in ended["error"]


def test_a_cancel_of_the_caller_ends_what_it_runs(place: Place) -> None:
    place_with_caller(place)
    place.model("slow", "echo begun; exec sleep 60")
    place.call("model.create", type="@test/caller", name="again")
    run_id = place.call("model.method_run", name="again", method="call", inputs={"model": "slow"})["runId"]
    events = place.session.stream("run.attach", runId=run_id)
    while next(events).get("line") != "slow.execute │ begun":
        pass
    assert place.call("run.cancel", runId=run_id)["status"] == "cancelled"
    for event in events:
        assert event["kind"] != "warning", event
    statuses = {run["workflowName"]: run["status"] for run in place.call("run.list")["runs"]}
    assert statuses == {"again": "cancelled", "slow": "cancelled"}
