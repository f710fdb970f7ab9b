"""One plain event loop: a heap of (time, serial, what), and tasks as generators.

Rules that hold here:

1. Time moves only here, and only from one entry of the heap to the next.
2. Everything that happens belongs to a *process* (orchestrator, worker, machine). What a dead process had
   planned does not happen; what a stopped one had planned happens when it goes on.
3. A task is a generator: it yields a number (sleep that long), a `Signal`, or (`Signal`, seconds), which
   answers whether the signal came in time. Futures of the store are signals to it (`Loop.future`).
"""

from collections.abc import Callable, Generator
from concurrent.futures import Future
from heapq import heappop, heappush
from typing import Any

Task = Generator[Any, Any, Any]


class ProcessDied(Exception):
    """The weather kills a process at this very effect."""

    def __init__(self, process: "Process") -> None:
        super().__init__(process.name)
        self.process = process


class Process:
    """Something that lives, may stand still, and dies."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.stopped_until = 0.0
        self.effects = 0
        self.dies_at_effect: int | None = None

    def stop_until(self, when: float) -> None:
        """SIGSTOP, and SIGCONT then. What it would have done it does then, in the same order."""
        self.stopped_until = max(self.stopped_until, when)

    def effect(self) -> None:
        """Called before each effect is carried out: the weather may kill the process right here."""
        self.effects += 1
        if self.dies_at_effect is not None and self.effects >= self.dies_at_effect:
            self.dies_at_effect = None
            raise ProcessDied(self)


class Signal:
    """Something that happens once; who waits for it goes on then."""

    __slots__ = ("is_set", "value", "waiters")

    def __init__(self) -> None:
        self.is_set = False
        self.value: Any = None
        self.waiters: list[Callable[[], None]] = []

    def set(self, value: Any = None) -> None:
        if self.is_set:
            return
        self.is_set, self.value = True, value
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            waiter()


class Running:
    """A task at work; `done` is set when it has returned."""

    __slots__ = ("done", "task", "turn")

    def __init__(self, task: Task) -> None:
        self.task = task
        self.turn = 0
        self.done = Signal()

    def cancel(self) -> None:
        self.turn += 1
        self.task.close()


class Loop:
    def __init__(self, died: Callable[[Process], None]) -> None:
        self.now = 0.0
        self.steps = 0
        self._died = died
        self._heap: list[tuple[float, int, Process | None, Callable[..., None], tuple[Any, ...]]] = []
        self._serial = 0

    def at(self, when: float, owner: Process | None, what: Callable[..., None], *arguments: Any) -> None:
        self._serial += 1
        heappush(self._heap, (when, self._serial, owner, what, arguments))

    def after(self, delay: float, owner: Process | None, what: Callable[..., None], *arguments: Any) -> None:
        self.at(self.now + delay, owner, what, *arguments)

    def step(self) -> bool:
        """The next thing that happens. False when nothing will ever happen again."""
        while self._heap:
            when, serial, owner, what, arguments = heappop(self._heap)
            if owner is not None:
                if not owner.alive:
                    continue
                if owner.stopped_until > when:
                    heappush(self._heap, (owner.stopped_until, serial, owner, what, arguments))
                    continue
            self.now = max(self.now, when)
            self.steps += 1
            self.guarded(owner, what, *arguments)
            return True
        return False

    def guarded(self, owner: Process | None, what: Callable[..., None], *arguments: Any) -> None:
        """Do it; a process that dies under it is buried."""
        try:
            what(*arguments)
        except ProcessDied as died:
            self._died(died.process)

    @property
    def next_at(self) -> float | None:
        return self._heap[0][0] if self._heap else None

    # ── tasks ───────────────────────────────────────────────────────────────────────────────────────────────
    def spawn(self, owner: Process, task: Task) -> Running:
        """Start a task: its first step comes as an event of its own."""
        running = Running(task)
        self.after(0.0, owner, self._resume, owner, running, 0, None)
        return running

    def _resume(self, owner: Process, running: Running, turn: int, value: Any) -> None:
        if turn != running.turn:
            return  # another thing it waited for came first, or it was cancelled
        running.turn += 1
        try:
            wanted = running.task.send(value)
        except StopIteration as stop:
            running.done.set(stop.value)
            return
        turn = running.turn
        if isinstance(wanted, (int, float)):
            # A sleep so short that the clock would not move would never be over.
            self.after(max(wanted, 1e-6), owner, self._resume, owner, running, turn, None)
            return
        signal, timeout_s = wanted if isinstance(wanted, tuple) else (wanted, None)
        timed = timeout_s is not None

        def came() -> None:
            self.after(0.0, owner, self._resume, owner, running, turn, True if timed else signal.value)

        if signal.is_set:
            came()
            return
        signal.waiters.append(came)
        if timed:
            self.after(max(timeout_s, 1e-6), owner, self._resume, owner, running, turn, False)

    def future(self, future: "Future[Any]") -> Signal:
        """A signal that comes with the future's result or error, as a value."""
        signal = Signal()
        future.add_done_callback(lambda done: signal.set(done.exception() or done.result()))
        return signal
