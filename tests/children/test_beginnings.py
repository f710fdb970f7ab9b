"""Runs in the instant in which they begin, or are taken over: no room on the disk, and a cancel that crosses it."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from children_place import Loud, Place, engine_of, shell

from swamp_orch.api.application import Application
from swamp_orch.definitions.repository import find
from swamp_orch.engine import flights, recovery, runs, steps
from swamp_orch.engine.assembly import assemble
from swamp_orch.serve import wall_ms
from swamp_orch.store.errors import StoreFull
from swamp_orch.store.interface import Batch, answer_all
from swamp_orch.store.sqlite import SqliteStore, open_store
from swamp_proto.errors import SwampError
from swamp_proto.limits import Tempo


class Gate:
    """In front of a store: batches are let through, held, or refused because there is no room."""

    def __init__(self, store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self._through = store.submit_to
        self.full = self.closed = False
        self.refused = 0
        self.held: list[tuple[Batch, Any]] = []
        monkeypatch.setattr(store, "submit_to", self._submit_to)

    def _submit_to(self, batch: Batch, answer: Any) -> None:
        if self.full:
            self.refused += 1
            answer_all([answer], [StoreFull("no space left")])
        elif self.closed:
            self.held.append((batch, answer))
        else:
            self._through(batch, answer)

    def open(self) -> None:
        self.closed = False
        while self.held:
            self._submit_to(*self.held.pop(0))


async def until(look: Callable[[], Any]) -> None:
    while not look():  # noqa: ASYNC110 - files and what others count announce nothing
        await trio.sleep(0.005)


async def test_a_disk_that_is_full_at_a_start_puts_runs_off_and_ends_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (recovery, runs, steps, flights):
        monkeypatch.setattr(module, "STORE_RETRY_S", 0.02)
    place = Place(tmp_path)
    place.model("m", f"touch {tmp_path}/seen; until test -e {tmp_path}/go; do sleep 0.01; done")
    place.workflow("w", shell("s", "m"))
    with trio.fail_after(60):
        async with engine_of(tmp_path) as (parts, _):
            run_id = (await parts.engine.handlers()["workflow.run"]({"name": "w"}))["runId"]
            await until((tmp_path / "seen").exists)
        await trio.to_thread.run_sync(place.leave)
        await trio.to_thread.run_sync(place.session.close)
        repository = find(tmp_path)
        with closing(open_store(repository.data)) as store:
            gate = Gate(store, monkeypatch)
            async with assemble(
                Application(repository, store), reporter=Loud(), tempo=Tempo(), workers=True, clock_ms=wall_ms
            ) as again:
                async with trio.open_nursery() as nursery:
                    gate.full = True
                    nursery.start_soon(again.reconcile)
                    await until(lambda: gate.refused > 2)
                    found = store.latest(run_id, "run-main")
                    assert found is not None
                    gate.full = False
                run = again.engine.live(run_id)
                assert run is not None, "it was ended because the disk was full"
                (tmp_path / "go").touch()
                await run.over.wait()
                assert run.status == "succeeded"


@pytest.mark.parametrize("room", [True, False])
async def test_a_cancel_that_crosses_the_beginning_of_a_run_harms_nothing_else(
    room: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the parent of a child run ends while the child is being made durable."""
    place = Place(tmp_path)
    place.model("m", "true")
    place.workflow("w", shell("s", "m"))
    await trio.to_thread.run_sync(place.session.close)
    with trio.fail_after(60):
        async with engine_of(tmp_path) as (parts, _):
            store = parts.engine.store
            assert isinstance(store, SqliteStore)
            gate = Gate(store, monkeypatch)
            calls = parts.engine.handlers()
            ended: list[str] = []

            async def begin() -> None:
                try:
                    ended.append((await calls["workflow.run"]({"name": "w"}))["runId"])
                except SwampError as error:
                    ended.append(error.error_code)

            gate.closed = True
            async with trio.open_nursery() as nursery:
                nursery.start_soon(begin)
                await until(lambda: gate.held)
                (run,) = parts.engine.active_runs()
                parts.engine.cancel_soon(run.id, "what it was started by has ended")
                await trio.testing.wait_all_tasks_blocked(0.01)
                gate.full = not room
                gate.open()
            gate.full = False
            if room:
                await run.over.wait()
                assert (ended, run.status) == ([run.id], "cancelled")
            else:
                assert ended == [StoreFull("").error_code]
            second = (await calls["workflow.run"]({"name": "w"}))["runId"]
            other = parts.engine.live(second)
            assert other is not None
            await other.over.wait()
            assert other.status == "succeeded", "the engine goes on"
