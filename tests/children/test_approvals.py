"""Steps that wait for people: durable, decided once, by a deadline on the wall clock."""

import json
import time

import pytest
import trio
from children_place import Place, approval, engine_of, shell

from swamp_proto.errors import Conflict, NotFound, OperationFailed


def suspended(place: Place, **task: str) -> str:
    """A run of `w` that waits at `ok` after `first`, left by its process."""
    place.model("say", "echo x")
    place.workflow(
        "w",
        shell("first", "say"),
        approval("ok", dependsOn=["first"], **task),
        shell("last", "say", dependsOn=["ok"]),
    )
    event = place.run("w")
    assert event["kind"] == "run_suspended"
    place.leave()
    return str(event["runId"])


def test_it_survives_its_process_and_goes_on_when_approved(place: Place) -> None:
    run_id = suspended(place)
    (row,) = place.call("workflow.approvals")["approvals"]
    assert (row["workflowName"], row["runId"], row["stepName"], row["prompt"]) == (
        "w",
        run_id,
        "ok",
        "Go on?",
    )
    assert place.step(run_id, "ok")["status"] == "waiting_approval"
    done = place.call("workflow.approve", name="w", step="ok", reason="fine", by="ann")
    assert (done["approved"], done["decidedBy"], done["reason"], done["live"]) == (True, "ann", "fine", False)
    assert place.call("workflow.approvals")["approvals"] == []
    ended = place.resume("w")
    assert (ended["runId"], ended["status"]) == (run_id, "succeeded")
    assert place.ends() == {"first": "succeeded", "ok": "succeeded", "last": "succeeded"}
    decision = place.step(run_id, "ok")["approval"]["decision"]
    assert (decision["approved"], decision["decidedBy"]) == (True, "ann")
    says = place.call("data.query", predicate='modelName == "say" && specName == "result" && version > 0')
    assert len(says["results"]) == 2, "what had succeeded is not repeated"


def test_a_rejection_fails_the_run_by_its_rules(place: Place) -> None:
    suspended(place)
    place.call("workflow.reject", name="w", step="j/ok", reason="not today", by="bob")
    ended = place.resume("w")
    assert ended["status"] == "failed"
    assert ended["error"] == "rejected by bob: not today"
    assert place.ends()["last"] == "skipped"


def test_waiting_for_a_person_is_no_ghost(place: Place) -> None:
    run_id = suspended(place)
    found = place.call("run.doctor", fix=True)
    assert found["findings"] == []
    assert [(row["runId"], row["stepName"]) for row in found["waiting"]] == [(run_id, "ok")]
    assert place.call("run.get", runId=run_id)["status"] == "suspended"


def test_the_deadline_passes_while_nobody_runs_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = suspended(place, timeout="1h")
    wall = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: wall() + 3_600_000_000_000)
    with pytest.raises(OperationFailed, match="too late"):
        place.call("workflow.approve", name="w", step="ok")
    (finding,) = place.call("run.doctor")["findings"]
    assert (finding["kind"], finding["id"]) == ("approval", run_id)
    ended = place.resume("w")
    assert ended["status"] == "failed" and "nobody decided until" in ended["error"]


def test_it_is_decided_once(place: Place) -> None:
    suspended(place)
    place.call("workflow.approve", name="w", step="ok")
    with pytest.raises(NotFound):
        place.call("workflow.reject", name="w", step="ok")


def test_several_waiting_runs_must_be_told_apart(place: Place) -> None:
    place.workflow("w", approval("ok"))
    ids = sorted(place.run("w")["runId"] for _ in range(2))
    place.leave()
    with pytest.raises(Conflict) as refused:
        place.call("workflow.approve", name="w", step="ok")
    assert all(run_id in refused.value.message for run_id in ids)
    with pytest.raises(Conflict) as unclear:
        place.call("workflow.resume", name="w")
    assert all(run_id in unclear.value.message for run_id in ids)
    place.call("workflow.approve", name="w", step="ok", runId=ids[0])
    assert place.resume("w", runId=ids[0])["status"] == "succeeded"


def test_a_suspended_run_that_nobody_runs_can_be_cancelled(place: Place) -> None:
    run_id = suspended(place)
    assert place.call("run.cancel", runId=run_id)["status"] == "cancelled"
    assert place.step(run_id, "ok")["status"] == "cancelled"


def test_other_steps_go_on_meanwhile(place: Place) -> None:
    place.model("say", "echo x")
    place.workflow("w", approval("ok"), shell("other", "say"))
    assert place.run("w")["kind"] == "run_suspended"
    assert place.ends() == {"other": "succeeded"}


async def test_an_orchestrator_goes_on_at_once_and_takes_up_what_waits(place: Place) -> None:
    run_id = await trio.to_thread.run_sync(suspended, place)
    place.session.close()
    with trio.fail_after(60):
        async with engine_of(place.root) as (parts, live):
            run = parts.engine.live(run_id)
            assert run is not None
            follower = await live.follow("run.attach", {"runId": run_id})
            told = b""
            while b'"run_suspended"' not in told:
                told += await follower.more()
            done = await live.call("workflow.approve", {"name": "w", "step": "ok", "by": "ann"})
            assert done["live"] is True
            await run.over.wait()
            assert run.status == "succeeded"
            while more := await follower.more():
                told += more
            events = [json.loads(line) for line in told.splitlines()]
            assert "approval_waiting" in {event["kind"] for event in events}
            assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
