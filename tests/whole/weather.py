"""One seed, one story: runs whose steps ask for everything, while links and requests break, disks are slow or full, and processes die.

Weather first; then it clears, and everything has to come to its end, as `checkers` says.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from swamp_orch.api.application import Application
from swamp_orch.store.errors import StoreFull
from swamp_proto.messages.dispatch import Dispatch, Outcome
from swamp_proto.messages.enrollment import Predecessor

from .checkers import Broke, check, every_refusal_is_lawful, every_run_ends_as_it_should
from .lives import API_SECRET, KIB, Deed, Life, Witness
from .loop import live
from .site import TOKEN, Site, make_repository
from .wires import Break, Crossings, Fate

KINDS: Final = ("lines", "sleep", "write", "read", "delete", "put", "secret", "upload", "run", "together")
END_S: Final = 900.0
"""From when the weather is clear to the end of everything, at most."""


@attrs.define
class Odds:
    """Of this world; all 0 when the weather is clear."""

    breaks: float  # of one crossing
    silent: float  # of a break
    slow: float  # of a crossing
    pause_s: float  # of a thread or a commit, at most
    delay_s: float  # of a crossing that is slow, at most

    @classmethod
    def drawn(cls, dice: random.Random) -> "Odds":
        return cls(
            dice.choice((0, 0.01, 0.03, 0.1)),
            dice.choice((0, 0.3, 1.0)),
            dice.choice((0, 0.1)),
            dice.choice((0, 0.002, 0.05)),
            dice.choice((0.05, 1.0, 6.0)),
        )


class World:
    """`run` is the whole story; `told` says what happened, for people."""

    def __init__(self, seed: int, root: Path, say: Callable[[str], object] = lambda line: None) -> None:
        self.seed, self.root, self._say = seed, root, say
        self.people, self.wind, self.lives = (
            random.Random(f"{seed}/{name}") for name in ("people", "wind", "lives")
        )
        self.odds = Odds.drawn(self.wind)
        self.clear = False
        self.full = False
        self.faults = 0
        self._drawn: dict[tuple[str, int], Life] = {}
        self.witness = Witness(root, self._life_of)
        self.runs: list[str] = []
        self.cancelled: set[str] = set()
        self.documents: dict[str, dict[str, Any]] = {}
        self.site: Site

    def run(self) -> None:
        make_repository(self.root)
        live(self._story, self.seed, self._pause_s)

    def say(self, text: str) -> None:
        self._say(f"{trio.current_time():9.3f} {text}")

    # ── what is drawn ───────────────────────────────────────────────────────────────────────────────────────
    def _pause_s(self) -> float:
        return 0.0 if self.clear or not self.odds.pause_s else self.wind.random() * self.odds.pause_s

    def _judge(self, what: str) -> Fate:
        dice, odds = self.wind, self.odds
        breaks, silent, slow = (
            dice.random() < odds.breaks,
            dice.random() < odds.silent,
            dice.random() < odds.slow,
        )
        delay_s = dice.random() * odds.delay_s
        if self.clear:
            return Fate()
        if breaks:
            self.faults += 1
            side = dice.choice(tuple(Break))
            self.say(f"{'silence' if silent else 'cut'} {side.value} {what}")
            return Fate(side, silent)
        return Fate(delay_s=delay_s if slow else 0.0)

    def _life_of(self, dispatch: Dispatch) -> Life:
        """The same for every dispatch of a step: authors do not know how often they are run."""
        key = (dispatch.place.run, dispatch.model_name == "writer")
        found = self._drawn.get(key)  # type: ignore[arg-type]
        if found is None:
            found = self._drawn[key] = self._life(nested=dispatch.model_name != "writer")  # type: ignore[index]
        return found

    def _life(self, *, nested: bool) -> Life:
        dice = self.lives
        deeds = tuple(self._deed(nested) for _ in range(dice.randint(*((0, 4) if nested else (2, 10)))))
        fails = dice.random() < 0.1
        return Life(
            deeds,
            Outcome.FAILED if fails else Outcome.SUCCEEDED,
            0 if fails else dice.choice((0, 0, 40 * KIB, 90 * KIB)),
        )

    def _deed(self, nested: bool, *, inside: bool = False) -> Deed:
        dice = self.lives
        kind = dice.choice(KINDS[: -2 if nested else -1 if inside else None])
        match kind:
            case "lines":
                return Deed(kind, dice.randint(1, 60))
            case "sleep":
                return Deed(kind, seconds=dice.choice((0.05, 0.5, 2.0)))
            case "upload":
                return Deed(kind, dice.choice((50, 130, 260)) * KIB)
            case "together":
                return Deed(
                    kind, parts=tuple(self._deed(nested, inside=True) for _ in range(dice.randint(2, 4)))
                )
        return Deed(kind)

    # ── the story ───────────────────────────────────────────────────────────────────────────────────────────
    async def _story(self) -> None:
        async with trio.open_nursery() as nursery:
            self.site = Site(
                self.root,
                nursery,
                self.witness.execute,
                Crossings(self._judge),
                pause_s=self._pause_s,
                draw=random.Random(f"{self.seed}/draw").random,
            )
            self.site.reporter.say = self.say
            self.site.is_full = lambda: self.full
            application = Application(self.site.repository, self.site.store)
            application.call("vault.create", {"type": "local_encryption", "name": "main"})
            application.call("vault.put", {"vault": "main", "key": "api", "value": API_SECRET})
            await self.site.mint()
            await self.site.start()
            self.site.connect()
            async with trio.open_nursery() as weather:
                for _ in range(self.people.randint(1, 4)):
                    weather.start_soon(self._person, self.people.random() * 2)
                for _ in range(self.wind.randint(0, 4)):
                    what = self.wind.choice(
                        (self._crash, self._crash, self._worker_dies, self._disk_fills, self._revoked)
                    )
                    weather.start_soon(what, self.wind.random() * 6)
                weather.start_soon(trio.sleep, 6.0)
            self.clear, self.full = True, False
            await self.site.repair()
            self.say("the weather is clear")
            with trio.move_on_after(END_S) as waiting:
                for run in self.runs:
                    self.documents[run] = await self.site.over(run)
                    self.say(
                        f"run {run[:8]} has {self.documents[run]['status']}: {self.documents[run].get('error')}"
                    )
                await trio.sleep(10)
            if waiting.cancelled_caught:
                raise Broke(f"everything ends: {self._standing()}")
            check(self.site, self.witness)
            every_refusal_is_lawful(self.witness)
            every_run_ends_as_it_should(self.site, self.witness, self.documents, self.cancelled, self._drawn)
            await self.site.close()
            nursery.cancel_scope.cancel()

    def _standing(self) -> str:
        engine = self.site.orchestrator
        runs = (
            [] if engine is None else [(run.id[:8], run.status) for run in engine.parts.engine.active_runs()]
        )
        return f"runs at work {runs}, worker {self.site.workers}"

    async def _person(self, at_s: float) -> None:
        await trio.sleep(at_s)
        run = await self.site.run(self.people.choice(("remote", "remote", "local")))
        self.runs.append(run)
        self.say(f"run {run[:8]} begins")
        if self.people.random() < 0.2:
            await trio.sleep(self.people.random() * 4)
            self.cancelled.add(run)
            self.say(f"run {run[:8]} is cancelled")
            await self.site.cancel(run)

    async def _crash(self, at_s: float) -> None:
        await trio.sleep(at_s)
        if self.site.orchestrator is None or not self.site.orchestrator.ready.is_set():
            return
        self.faults += 1
        pause_s = self.wind.choice((0.0, 0.3, 3.0, 12.0))
        self.say(f"the orchestrator is killed, for {pause_s} s")
        await self.site.restart_after(pause_s)
        self.say("the orchestrator is back")

    async def _worker_dies(self, at_s: float) -> None:
        await trio.sleep(at_s)
        if TOKEN not in self.site.workers:
            return
        self.faults += 1
        dead = self.site.workers[TOKEN].name
        self.say(f"worker {dead} is killed")
        await self.site.kill_worker()
        await trio.sleep(self.wind.choice((0.2, 2.0, 9.0)))
        reaped = self.wind.random() < 0.7
        self.site.connect(Predecessor(dead, "boot", reaped))

    async def _disk_fills(self, at_s: float) -> None:
        await trio.sleep(at_s)
        self.faults += 1
        self.full = True
        self.say("the disk is full")
        await trio.sleep(self.wind.choice((0.3, 2.5)))
        self.full = False

    async def _revoked(self, at_s: float) -> None:
        await trio.sleep(at_s)
        self.faults += 1
        self.say("the token is revoked")
        if not await self.site.revoke():
            return
        await trio.sleep(self.wind.choice((0.5, 6.0)))
        if TOKEN in self.site.workers:
            dead = self.site.workers[TOKEN].name
            await self.site.kill_worker()
            await self.site.mint()
            self.site.connect(Predecessor(dead, "boot", True))


__all__ = ["StoreFull", "World"]
