"""The holder's side of its keeper: what is expected, what runs, when all of it must be over.

    async with open_keeper(directory, instance) as keeper:
        place = keeper.expect(dispatch)      # before the spawn
        keeper.register(dispatch, pid)       # right after it
        keeper.renew(sent_ns, grace_s)       # an answered heartbeat; never called by the loopback
        keeper.forget(dispatch)              # its group is empty and reaped

Rules that hold here:

- No step's process starts before `expect`. All four calls are writes to shared memory: a microsecond, no
  system call, nothing to wait for. The keeper process reads that memory when we die or are late; so does
  our successor (`reap_predecessor`).
- One directory, one holder: the caller holds the directory's lock.
- A keeper that ends is replaced at once, and it is said.
- On Linux we are a child subreaper: orphans of a step become our children, are counted (`strays`) and reaped. One that comes
  after its step was forgotten is reaped too: our children are looked at while anything runs, once after the last that ran, and
  for as long as there is one that nobody knows. Nothing wakes up otherwise.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import attrs
import trio

from swamp_proto.errors import Broken
from swamp_proto.limits import Tempo
from swamp_proto.messages.enrollment import Predecessor
from swamp_worker.execution import keeper_main, procfs, reaping
from swamp_worker.execution.registry import ENTRIES_MAX, Entry, Registry, boot_id, boot_ns

REGISTRY_NAME: Final = "running.registry"
_READY_S: Final = 30.0  # an interpreter starts in 20 ms where nothing else runs
_REAP_S: Final = 10.0
_ORPHANS_LOOK_S: Final = 2.0  # from a start or an end to a look at our children, and between two looks
_PR_SET_CHILD_SUBREAPER: Final = 36

Say = Callable[[str], None]


class Keeper:
    """Made by `open_keeper`."""

    def __init__(self, registry: Registry, is_subreaper: bool) -> None:
        self._registry = registry
        self._places: dict[str, int] = {}
        self._leaders: dict[int, str] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._look_due = trio.Event()  # something started or ended since the last look at our children
        self.is_subreaper = is_subreaper

    @property
    def level(self) -> int:
        """Which level of killing is in force: 1 groups and keeper, 2 also orphans and markers."""
        return 2 if self.is_subreaper else 1

    @property
    def pid(self) -> int | None:
        """Of the keeper process."""
        return self._process.pid if self._process else None

    def expect(self, dispatch: str, kill_by_ns: int = 0) -> None:
        """A process with `SWAMP_DISPATCH=dispatch` is about to start. `kill_by_ns`: its own latest instant,
        boot clock.
        """
        try:
            self._places[dispatch] = self._registry.expect(dispatch, kill_by_ns)
        except IndexError:
            raise Broken(f"more than {ENTRIES_MAX} processes at once on one machine") from None

    def register(self, dispatch: str, pid: int, from_ns: int = 0) -> None:
        """It runs; its group is `pid`. `from_ns`: an instant of the boot clock before its start, where that was before `expect`."""
        self._registry.register(self._places[dispatch], pid, from_ns)
        self._leaders[pid] = dispatch
        self._look_due.set()

    def stand_by(self, pid: int) -> None:
        """A child of ours that waits for a dispatch to be registered for; its marker is another's. `dismiss` when none comes."""
        self._leaders[pid] = ""

    def dismiss(self, pid: int) -> None:
        """It waits no more."""
        self._leaders.pop(pid, None)

    def knows(self, pid: int) -> bool:
        """Whether it is registered, or waits."""
        return pid in self._leaders

    def limit(self, dispatch: str, kill_by_ns: int) -> None:
        """Set the dispatch's own latest instant, boot clock; 0 takes it back."""
        self._registry.set_kill_by(self._places[dispatch], kill_by_ns)

    def forget(self, dispatch: str, pid: int | None = None) -> None:
        """Nothing of it is left."""
        self._registry.forget(self._places.pop(dispatch))
        if pid is not None:
            self._leaders.pop(pid, None)
        self._look_due.set()

    def killed(self, dispatch: str) -> bool:
        """Whether the keeper ended it."""
        return self._registry.killed(self._places[dispatch])

    def renew(self, sent_ns: int, grace_s: float) -> int:
        """A heartbeat sent at `sent_ns` (boot clock) was answered. Returns the instant at which the keeper
        kills.
        """
        at = sent_ns + int(Tempo(grace_s).kill_s * 1e9)
        self._registry.set_give_up(at)
        return at

    def strays(self, dispatch: str) -> list[int]:
        """Living orphans of a dispatch whose group is empty: children of ours that left its session. Cheap
        when none.
        """
        if not self.is_subreaper:
            return []
        listed = procfs.children()
        if listed is None:
            return self.left(dispatch, None)
        return [pid for pid in self._unknown(listed) if procfs.carries(pid, (dispatch,)) is not None]

    def is_clear(self) -> bool:
        """Whether we have no children but those we know of: then nothing is astray, and nothing unclear. One small read."""
        listed = procfs.children() if self.is_subreaper else None
        return listed is not None and not self._unknown(listed)

    def is_unclear(self) -> bool:
        """Whether one of our children may be anybody's: it is just becoming another program. Cheap when there are none."""
        listed = procfs.children() if self.is_subreaper else None
        return any(procfs.is_unclear(pid) for pid in self._unknown(listed or []))

    def _unknown(self, listed: list[int]) -> list[int]:
        """Of our children, those that nobody registered."""
        own = self._process.pid if self._process else 0
        return [pid for pid in listed if pid not in self._leaders and pid != own]

    def left(self, dispatch: str, group: int | None) -> list[int]:
        """Every living process of a dispatch: of its group, and with its marker wherever it went. Reads all
        of /proc.
        """
        found = []
        for process in procfs.processes():
            if process.dead:
                continue
            if process.group == group or procfs.carries(process.pid, (dispatch,)) is not None:
                found.append(process.pid)
        return found

    def settle(self, dispatch: str) -> bool:
        """Whether nothing is left, by now, of one that could not be emptied; if so it is forgotten."""
        if dispatch not in self._places:
            return True
        groups = [pid for pid, name in self._leaders.items() if name == dispatch]
        if self.left(dispatch, groups[0] if groups else None):
            return False
        self.forget(dispatch, groups[0] if groups else None)
        return True

    # ── the process ─────────────────────────────────────────────────────────────────────────────────────────
    def _start(self) -> tuple[int, int]:
        """Start the process. Returns our end of the lifeline, and the descriptor that says it is ready."""
        lifeline, held = os.pipe()
        ready, tell = os.pipe()
        try:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-S",
                    keeper_main.__file__,
                    str(self._registry.path),
                    str(lifeline),
                    str(tell),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(lifeline, tell),
                start_new_session=True,
                env={"PATH": os.defpath},
                cwd="/",
            )
        except OSError as error:
            os.close(held)
            os.close(ready)
            raise Broken(f"the keeper process cannot be started: {error.strerror}") from error
        finally:
            os.close(lifeline)
            os.close(tell)
        return held, ready

    async def _open(self) -> int:
        held, ready = self._start()
        is_ready = False
        try:
            with trio.move_on_after(_READY_S):
                await trio.lowlevel.wait_readable(ready)
                is_ready = bool(os.read(ready, 1))
            if is_ready:
                return held
            raise Broken(
                "the keeper process did not start: it would kill what a dead worker leaves running",
                hint=f"{sys.executable} -I -S {keeper_main.__file__}",
            )
        finally:
            os.close(ready)
            if not is_ready:  # or we were cancelled: it keeps nothing yet
                os.close(held)
                assert self._process is not None
                self._process.kill()
                with trio.CancelScope(shield=True):
                    await _ended(self._process)

    async def _stay(self, held: int, say: Say) -> None:
        """Replace the keeper whenever it ends. Closing our end of the lifeline is what ends it."""
        try:
            while True:
                process = self._process
                assert process is not None
                await _ended(process)
                say(f"the keeper process ended ({process.returncode}); starting another one")
                os.close(held)
                held = -1
                held = await self._open()
        finally:
            if held >= 0:
                os.close(held)
            with trio.CancelScope(shield=True):
                if self._process is not None:
                    await _ended(self._process)

    async def _reap_orphans(self) -> None:
        """Orphans that came to us and died are ours to reap; a child that other code started is that code's.

        They look the same. But whoever started a child waits for it, so one that is dead at two looks in a row has nobody. Orphans
        come from a living child of ours, known or not, and from nowhere else: without any there is nothing to look for.
        """
        dead: set[int] = set()
        while self.is_subreaper:
            await self._look_due.wait()
            await trio.sleep(_ORPHANS_LOOK_S)
            self._look_due = trio.Event()
            listed = procfs.children()
            if listed is None:
                listed = [each.pid for each in procfs.processes() if each.parent == os.getpid()]
            unknown = self._unknown(listed)
            now_dead = {pid for pid in unknown if (found := procfs.process(pid)) is not None and found.dead}
            for pid in sorted(now_dead & dead):
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)  # noqa: ASYNC222 - it is dead and does not block
            dead = now_dead
            if unknown or self._leaders:
                self._look_due.set()


@contextlib.asynccontextmanager
async def open_keeper(
    directory: Path, instance: str, *, say: Say = lambda message: None
) -> AsyncIterator[Keeper]:
    """A keeper for this process, with its registry in `directory`. Raises Broken.

    Call `reap_predecessor` first: it takes away the registry of a dead predecessor. On leaving, the keeper
    kills everything that still runs; the registry stays and is what tells a successor that nothing of ours
    is left.
    """
    path = directory / REGISTRY_NAME
    try:
        registry = Registry.create(path, instance)
    except OSError as error:
        raise Broken(f"cannot write {path}: {error.strerror}") from error
    keeper = Keeper(registry, _become_subreaper())
    held = await keeper._open()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper._stay, held, say)
            nursery.start_soon(keeper._reap_orphans)
            try:
                yield keeper
            finally:
                nursery.cancel_scope.cancel()
    finally:
        registry.close()


async def _ended(process: "subprocess.Popen[bytes]") -> None:
    """Until the keeper process has ended; reaps it."""
    while process.poll() is None:
        if sys.platform == "linux" and hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                descriptor = os.pidfd_open(process.pid)
                try:
                    await trio.lowlevel.wait_readable(descriptor)
                    continue
                finally:
                    os.close(descriptor)
        await trio.sleep(0.2)


def _become_subreaper() -> bool:
    """Orphans of our descendants become our children. Linux only; False where it cannot be had."""
    if sys.platform != "linux":
        return False
    import ctypes

    try:
        return bool(ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False


def reap_predecessor(directory: Path) -> Predecessor | None:
    """Kill what dead predecessors in `directory` left running, and take their registries away. Blocks, at
    most
    some seconds.

    The caller holds the directory's lock: whoever wrote the registries is dead. None: nobody was there
    before. `reaped` is false when something could not be killed; that registry then stays for the next one
    to try again.
    """
    found: list[Predecessor] = []
    for path in sorted(directory.glob("*.registry"), key=lambda path: path.name == REGISTRY_NAME):
        try:
            registry = Registry.open(path)
        except OSError as error:
            raise Broken(f"cannot read {path}: {error.strerror}") from error
        if registry is None:
            path.unlink(missing_ok=True)
            continue
        try:
            header = registry.header()
            reaped = header.boot_id != boot_id() or header.cleaned or _reap(registry.entries())
        finally:
            registry.close()
        if reaped:
            path.unlink(missing_ok=True)
        elif path.name == REGISTRY_NAME:
            path.rename(path.with_name(f"unreaped-{boot_ns()}.registry"))
        found.append(Predecessor(header.instance, header.boot_id, reaped))
    if not found:
        return None
    return attrs.evolve(found[-1], reaped=all(each.reaped for each in found))


def _reap(entries: list[Entry]) -> bool:
    """Whether nothing of the entries is left. Where processes cannot be looked at, only an empty list is
    proof.
    """
    return not entries or (
        reaping.kill_all(entries, strict=True, within_s=_REAP_S) == 0 and sys.platform == "linux"
    )
