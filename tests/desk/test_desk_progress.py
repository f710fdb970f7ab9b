"""An upload that takes long is told to whoever watches the run, now and then; a short one is not, and nothing of it is kept."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from desk_site import Site, Step, open_site

from swamp_orch.engine import pace
from swamp_orch.engine.pace import Pace
from swamp_proto.limits import MIB

SIZE = 8 * MIB


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path) as opened:
        yield opened


@pytest.fixture(params=["loopback", "worker"])
async def step(request: pytest.FixtureRequest, site: Site) -> Step:
    return await site.step(None if request.param == "loopback" else await site.worker(await site.mint("w1")))


def told(site: Site) -> list[dict[str, object]]:
    (run,) = site.parts.engine.active_runs()
    lines, _ = run.feed.after(0)
    events = [json.loads(line) for line in lines.splitlines()]
    return [event for event in events if event["kind"] == "step_progress"]


async def send(site: Site, step: Step, folder: Path) -> int:
    file = folder / "large"
    await trio.Path(file).write_bytes(bytes(SIZE))
    return await step.upload(file)


async def test_one_that_takes_long_is_told_on_its_way_and_when_it_is_whole(
    site: Site, step: Step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "PROGRESS_S", 0.0)
    before = len(site.records())
    number = await send(site, step, tmp_path)
    events = told(site)
    assert {(one["job"], one["step"], one["upload"], one["of"]) for one in events} == {
        ("j", "s", number, SIZE)
    }
    here = [int(str(one["bytes"])) for one in events]
    assert here == sorted(set(here))
    assert len(here) > 1
    assert here[-1] == SIZE
    assert len(site.records()) == before


async def test_a_short_one_is_not_told(site: Site, step: Step, tmp_path: Path) -> None:
    await send(site, step, tmp_path)
    assert told(site) == []


def test_it_is_told_once_a_second_and_a_hundred_times_at_most() -> None:
    found = Pace()
    assert not any(found.due(7, here, 1_000_000, 0.0) for here in range(1_000))  # all at one instant
    told = [
        (second, half)
        for second in range(1, 1_000)
        for half in (0.0, 0.5)
        if found.due(7, second * 1_000, 1_000_000, second + half)
    ]
    assert 90 < len(told) <= 100
    assert all(half == 0.0 for _, half in told)
    assert found.due(7, 1_000_000, 1_000_000, 1_000.0)
    assert not found.due(7, 1_000_000, 1_000_000, 2_000.0)  # said again, it is at the end at once


def test_uploads_side_by_side_are_told_each_for_itself() -> None:
    found = Pace()
    assert [found.due(number, 0, 10, 0.0) for number in (1, 2)] == [False, False]
    assert [found.due(number, 5, 10, 1.0) for number in (1, 2)] == [True, True]
    assert [found.due(number, 10, 10, 1.1) for number in (1, 2)] == [True, True]


def test_an_empty_one_is_whole_at_once() -> None:
    assert not Pace().due(1, 0, 0, 0.0)
