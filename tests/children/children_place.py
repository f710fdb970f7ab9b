"""A repository, definitions in short form, and an engine in this loop or in a thread."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from swamp_orch.api.application import Application, LiveApplication
from swamp_orch.api.inprocess import InProcessSession
from swamp_orch.definitions.repository import find, init
from swamp_orch.engine.assembly import Assembled, assemble
from swamp_orch.engine.records import run_record
from swamp_orch.engine.revival import read_open_runs
from swamp_orch.serve import wall_ms
from swamp_orch.store.interface import Batch
from swamp_orch.store.sqlite import open_store
from swamp_proto.limits import Tempo


class Place:
    """A repository and a session on it."""

    def __init__(self, root: Path) -> None:
        init(root)
        self.root = root
        self.events: list[dict[str, Any]] = []
        self.session = InProcessSession(find(root))

    def leave(self) -> None:
        """The process ends: what its open runs say of it is then a process that is gone."""
        self.session.close()
        store = open_store(find(self.root).data, thread=False)
        for record, about in list(read_open_runs(store)):
            gone = {**about, "owner": {**about["owner"], "started": "long ago"}}
            store.commit(Batch((run_record(record.model_id, record.model_name, gone, record.version),)))
        store.close()
        self.session = InProcessSession(find(self.root))

    def call(self, call: str, /, **parameters: Any) -> Any:
        return self.session.call(call, **parameters)

    def model(self, name: str, run: str, **more: Any) -> None:
        self.call(
            "model.create", type="command/shell", name=name, arguments={"execute": {"run": run, **more}}
        )

    def workflow(self, name: str, *steps: Mapping[str, Any], **keys: Any) -> None:
        """One job `j` of these steps, or `jobs`."""
        document = {"name": name, "version": 1, "jobs": [{"name": "j", "steps": list(steps)}], **keys}
        self.call("workflow.create", name=name, text=json.dumps(document))

    def watch(self, run_id: str) -> dict[str, Any]:
        """Every event until the run ends or is suspended; the last one."""
        self.events = []
        for event in self.session.stream("run.attach", runId=run_id):
            self.events.append(event)
            if event["kind"] in ("run_ended", "run_suspended"):
                return event
        raise AssertionError(self.events)

    def run(self, name: str, /, **inputs: Any) -> dict[str, Any]:
        return self.watch(self.call("workflow.run", name=name, inputs=inputs)["runId"])

    def resume(self, name: str, /, **how: Any) -> dict[str, Any]:
        return self.watch(self.call("workflow.resume", name=name, **how)["runId"])

    def query(self, predicate: str, select: str = "attributes") -> list[Any]:
        return list(self.call("data.query", predicate=predicate, select=select)["results"])

    def ends(self) -> dict[str, str]:
        return {event["step"]: event["status"] for event in self.events if event["kind"] == "step_ended"}

    def lines(self) -> list[str]:
        return [event["line"] for event in self.events if event["kind"] == "step_output"]

    def step(self, run_id: str, name: str) -> dict[str, Any]:
        document = self.call("run.get", runId=run_id)
        (found,) = (one for job in document["jobs"] for one in job["steps"] if one["name"] == name)
        return dict(found)


def shell(name: str, model: str, **more: Any) -> dict[str, Any]:
    inputs = more.pop("inputs", None)
    task = {"type": "model_method", "modelIdOrName": model, "methodName": "execute"}
    return {"name": name, "task": task | ({"inputs": inputs} if inputs else {}), **more}


def nested(name: str, workflow: str, inputs: Any = None, **more: Any) -> dict[str, Any]:
    task = {"type": "workflow", "workflowIdOrName": workflow}
    return {"name": name, "task": task | ({"inputs": inputs} if inputs else {}), **more}


def approval(name: str, prompt: str = "Go on?", timeout: str | None = None, **more: Any) -> dict[str, Any]:
    task = {"type": "manual_approval", "prompt": prompt}
    return {"name": name, "task": task | ({"timeout": timeout} if timeout else {}), **more}


class Loud:
    """A reporter that lets no fault of the engine pass."""

    def info(self, event: str, **fields: Any) -> None:
        return

    def warning(self, event: str, **fields: Any) -> None:
        return

    def fault(self, event: str, error: BaseException, **fields: Any) -> None:
        raise error


@asynccontextmanager
async def engine_of(root: Path) -> AsyncIterator[tuple[Assembled, LiveApplication]]:
    """An orchestrator's engine in this loop, without a socket."""
    repository = find(root)
    store = await trio.to_thread.run_sync(open_store, repository.data)
    try:
        application = Application(repository, store)
        async with assemble(
            application, reporter=Loud(), tempo=Tempo(), workers=True, clock_ms=wall_ms
        ) as parts:
            await parts.reconcile()
            yield parts, LiveApplication(application, parts.live())
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(store.close)
