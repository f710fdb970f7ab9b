"""The blip test with everything real above the wire: a step writes, deletes, puts secrets, uploads, reads back and runs a model, and the
connection breaks before and after everything that arrives at either end; or the orchestrator is killed there.

A blip is not noticed: the step is executed once, the run succeeds, every promise of `checkers` is kept. After a kill the step goes on as
well; only what the orchestrator itself ran may end by the rule of writes, and the caller is told.
"""
# ruff: noqa: ASYNC110 - the clock jumps: a look now and then costs nothing and hopes for nothing

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import attrs
import pytest
import trio

from swamp_orch.api.application import Application

from .checkers import check
from .lives import API_SECRET, Deed, Life, Witness
from .loop import live, scratch
from .site import Site, SlowStore, make_repository
from .wires import FAIR, KIB, Break, Crossings, Fate

CHILD: Final = Life((Deed("lines", 2), Deed("write")))
STORIES: Final = {
    "calls in a burst of lines": Life(
        (
            Deed("lines", 40),
            Deed("together", parts=(Deed("delete"), Deed("put"), Deed("secret"), Deed("lines", 5))),
            Deed("read"),
            Deed("lines", 2),
        )
    ),
    "uploads": Life((Deed("upload", 140 * KIB), Deed("lines", 2)), staged_at_end=70 * KIB),
    "a model that code runs": Life((Deed("lines", 2), Deed("run"), Deed("write"))),
}


class Breaking:
    """Fair, but for the `at`-th crossing since `begin`."""

    def __init__(self) -> None:
        self.crossings = Crossings(self._judge)
        self.broke, self.what = True, ""
        self._at = self._first = 0
        self._how: Fate = FAIR
        self._also: Callable[[], object] = lambda: None

    def begin(self, at: int, how: Fate, also: Callable[[], object]) -> None:
        self._at, self._how, self._first, self.broke = at, how, self.crossings.count, at == 0
        self._also = also

    @property
    def count(self) -> int:
        return self.crossings.count - self._first

    def _judge(self, what: str) -> Fate:
        if self.broke or self.count != self._at:
            return FAIR
        self.broke, self.what = True, what
        self._also()
        return self._how


async def whole_life(root: Path, life: Life, how: Fate, *, kills: bool) -> int:
    """One run for every crossing of a fair one; how many crossings that has."""
    breaking = Breaking()
    witness = Witness(root, lambda dispatch: life if dispatch.model_name == "writer" else CHILD)
    async with trio.open_nursery() as nursery:
        site = Site(root, nursery, witness.execute, breaking.crossings)
        application = Application(site.repository, site.store)
        application.call("vault.create", {"type": "local_encryption", "name": "main"})
        application.call("vault.put", {"vault": "main", "key": "api", "value": API_SECRET})
        await site.mint()
        await site.start()
        site.connect()
        kill = partial(nursery.start_soon, site.restart_after, 0.3)
        crossings, at = 1, 0
        while at <= crossings:
            executed = len(witness.executions)
            breaking.begin(at, how, kill if kills else lambda: None)
            document = await site.over(await site.run("remote"))
            placed = [one for one in witness.executions[executed:] if one.dispatch.model_name == "writer"]
            while not breaking.broke:
                await trio.sleep(0.1)  # heartbeats cross, too
            told = f"{how} at crossing {at} of {crossings}: {breaking.what}"
            assert document["status"] == "succeeded", (told, document["error"])
            assert len(placed) == 1, (told, "not once")
            if at == 0:
                crossings = breaking.count
            at += 1
        await trio.sleep(10)
        check(site, witness)
        await site.close()
        nursery.cancel_scope.cancel()
    return crossings


HOW: Final = {
    "lost": Fate(Break.BEFORE),
    "arrived": Fate(Break.AFTER),
    "lost, by silence": Fate(Break.BEFORE, silent=True),
}


@pytest.fixture
def root() -> Iterator[Path]:
    with TemporaryDirectory(dir=scratch()) as folder:
        make_repository(Path(folder))
        yield Path(folder)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("story", STORIES)
def test_a_connection_that_breaks_before_or_after_anything_is_not_noticed(
    story: str, how: str, root: Path
) -> None:
    assert live(lambda: whole_life(root, STORIES[story], HOW[how], kills=False), seed=1) > 10


@pytest.mark.parametrize("story", STORIES)
def test_an_orchestrator_that_is_killed_at_anything_is_survived(story: str, root: Path) -> None:
    assert live(lambda: whole_life(root, STORIES[story], HOW["lost"], kills=True), seed=1) > 10


def test_a_write_without_its_key_is_caught(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted bug: what is said again acts again."""
    real = SlowStore.submit_to
    monkeypatch.setattr(
        SlowStore,
        "submit_to",
        lambda store, batch, told: real(store, attrs.evolve(batch, idempotency=None), told),
    )
    with pytest.raises(ExceptionGroup) as caught:
        live(lambda: whole_life(root, STORIES["a model that code runs"], HOW["lost"], kills=False), seed=1)
    assert caught.group_contains(AssertionError)
