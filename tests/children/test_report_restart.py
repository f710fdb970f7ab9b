"""A process that ends between the last step of a run and its reports: the next one makes them, each once."""

from pathlib import Path
from typing import Any

import pytest
import trio
from children_place import Place, engine_of, shell

from swamp_orch.api.application import LiveApplication

CODE = """
import pathlib
import trio
from swamp_worker.sdk import Context, RunFindings, method, model, report


@model("@acme/once", version="2026.11.21.1")
class Once:
    @method
    async def act(self, context: Context) -> None:
        with open({folder!r} + "/acts", "a") as file:
            file.write("x")

    @report(scope="workflow")
    async def quick(self, context: Context, run: RunFindings) -> str:
        with open({folder!r} + "/quick", "a") as file:
            file.write("x")
        return f"# {{run.count('succeeded')}}"

    @report(scope="workflow")
    async def slow(self, context: Context, run: RunFindings) -> str:
        with open({folder!r} + "/slow", "a") as file:
            file.write("x")
        while not pathlib.Path({folder!r}, "go").exists():
            await trio.sleep(0.01)
        return f"# attempt {{context.attempt}}"
"""


async def until(path: Path) -> None:
    while not await trio.Path(path).exists():  # noqa: ASYNC110 - another process makes it
        await trio.sleep(0.01)


async def stored(application: LiveApplication, name: str) -> dict[str, Any]:
    found: dict[str, Any] = await application.call("report.get", {"name": name, "workflow": "w"})
    return found


@pytest.mark.parametrize("cancelled", [False, True])
async def test_reports_survive_a_restart_each_made_once(
    place: Place, tmp_path: Path, cancelled: bool
) -> None:
    (place.root / "extensions/models").mkdir(parents=True, exist_ok=True)
    (place.root / "extensions/models/once.py").write_text(CODE.format(folder=str(tmp_path)))
    place.call("model.create", type="@acme/once", name="m")
    task = {"type": "model_method", "modelIdOrName": "m", "methodName": "act"}
    place.workflow("w", {"name": "s", "task": task})
    place.session.close()
    with trio.fail_after(60):
        async with engine_of(place.root) as (parts, live):
            run_id = (await live.call("workflow.run", {"name": "w"}))["runId"]
            await until(tmp_path / "slow")
            while True:
                rows = await live.call("data.query", {"predicate": 'name == "report-quick"'})
                if rows["results"]:
                    break
                await trio.sleep(0.01)
            if cancelled:  # durably, and then this process ends before it is done
                run = parts.engine.live(run_id)
                assert run is not None
                await run.ask_cancel("enough")
    place.leave()
    place.session.close()
    (tmp_path / "go").touch()
    with trio.fail_after(60):
        async with engine_of(place.root) as (parts, live):
            run = parts.engine.live(run_id)
            if run is not None:
                await run.over.wait()
            document = await live.call("run.get", {"runId": run_id})
            assert document["status"] == "succeeded"
            quick, slow = await stored(live, "quick"), await stored(live, "slow")
    assert ((tmp_path / "acts").read_text(), (tmp_path / "quick").read_text()) == ("x", "x")
    assert (quick["version"], quick["markdown"]) == (1, "# 1")
    assert slow["version"] == 1
    if cancelled:
        assert slow["json"]["message"] == "not made: enough"
    else:
        assert ((tmp_path / "slow").read_text(), slow["markdown"]) == ("xx", "# attempt 2")


@pytest.mark.parametrize("resumed", [False, True])
async def test_what_ended_before_a_restart_is_summarised(place: Place, tmp_path: Path, resumed: bool) -> None:
    """What it was given is read from the store, masked as it was stored. What an end before told of is not told again."""
    go = tmp_path / "go"
    text = 'echo "${{ inputs.pin }} ${{ inputs.word }}"'
    place.model("first", text)
    source = place.call("model.source", name="first")["text"]
    more = "inputs: {pin: {type: string, sensitive: true}, word: {type: string}}\ntags: {team: red}\n"
    place.call("model.edit", name="first", text=source + more)
    place.model("second", f"until [ -e {go} ]; do sleep 0.02; done" if not resumed else f"[ -e {go} ]")
    inputs = {"pin": "geheim-1234", "word": "hello"}
    long = "x" * 9_000
    place.workflow(
        "w",
        shell("a", "first", inputs={**inputs, "env": {"LONG": long}}),
        shell("b", "second", dependsOn=["a"]),
    )
    place.session.close()
    with trio.fail_after(60):
        async with engine_of(place.root) as (parts, live):
            run_id = (await live.call("workflow.run", {"name": "w"}))["runId"]
            run = parts.engine.live(run_id)
            assert run is not None
            if resumed:
                await run.over.wait()
            while not resumed and not any(state.key.step == "b" for state in run.states()):  # noqa: ASYNC110
                await trio.sleep(0.01)  # what is asked to start was told of the end before it
    go.touch()
    place.leave()
    place.session.close()
    with trio.fail_after(60):
        async with engine_of(place.root) as (parts, live):
            if resumed:
                await live.call("workflow.resume", {"name": "w"})
            run = parts.engine.live(run_id)
            if run is not None:
                await run.over.wait()
            asked = {"name": "@swamp/method-summary", "model": "first"}
            found = await live.call("report.get", asked)
    assert found["version"] == 1
    told = found["json"]
    assert (told["status"], told["modelType"], told["methodName"]) == (
        "succeeded",
        "command/shell",
        "execute",
    )
    assert told["methodArgs"]["run"] == 'echo "*** hello"'
    assert told["methodArgs"]["env"] == ({"LONG": long} if resumed else "(9012 bytes)")
    assert [(made["name"], made["kind"]) for made in told["dataProduced"]] == [
        ("result", "resource"),
        ("log", "file"),
    ]
