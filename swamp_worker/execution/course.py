"""The course of a step's process, a shell's or a runner's, from its start until nothing of it is left. Each part is bounded:

    follow       until the process itself has ended: lines go to the sink as they are printed; the sink's back-pressure is the
                 step's. Ended early by the step's timeout, by a cancel, or by the caller's scope.
    settle       the process has ended: up to BACKGROUND_GRACE_S for its background children to close the pipes and go.
    terminate    instead of both, after a timeout or a cancel: TERM (and CONT) to the group, and up to `term_s`.
    extinguish   always: KILL to what is left of the group and to its strays, until the operating system counts none, at most
                 STUCK_S.

Rules that hold here:

- The keeper knows of a process before it starts, and forgets it when nothing of it is left.
- An execution that was ended from outside is never a success: it is `abandoned` when its holder or the keeper ended it, else
  `cancelled` or `timed_out`.
- Lines are masked before they leave.

It does not know: what runs in the process, what its end means, sockets, leases, where lines are kept.
"""

import os
import signal
from collections.abc import Callable
from typing import Final

import attrs
import trio

from swamp_proto.blocks import count_of
from swamp_proto.limits import BACKGROUND_GRACE_S, KIB, LOG_BLOCKS_MAX, STUCK_S
from swamp_proto.messages.dispatch import Dispatch, LogBlock, Outcome, Stream
from swamp_proto.redaction import Mask, short_warning
from swamp_worker.execution import process
from swamp_worker.execution.interface import Control, LogSink
from swamp_worker.execution.keeper import Keeper
from swamp_worker.execution.lines import LineSplitter
from swamp_worker.execution.oom import OutOfMemory
from swamp_worker.execution.registry import boot_ns
from swamp_worker.execution.variables import StepVariables
from swamp_worker.execution.workspace import Workspace

QUIET_START_S: Final = (
    0.003  # output of a step this young is not looked at: most of them end first, in one wake-up
)
LOUD_BYTES: Final = (
    8 * KIB
)  # read at once: such a step leaves turns to all others, which costs it nothing while they are idle
LOUD_YIELDS: Final = 4
GATHER_S: Final = 0.001  # between two reads of little: what is printed line by line is read and sent as one
_LAST_LINES_S: Final = 2.0  # for the sink to take what a killed step had printed
_LOOKS: Final = 3  # that find nothing, in a row, after something had to be killed
_REMIND_S: Final = 1.0  # from a TERM to the second
_LATE_S: Final = 5.0  # the keeper's margin after a timeout and its TERM grace

Capturing = Callable[[Stream, str], object]


@attrs.frozen
class Host:
    """What every execution on this machine shares."""

    workspace: Workspace
    keeper: Keeper
    out_of_memory: OutOfMemory
    variables: StepVariables

    def expect(self, dispatch: str, timeout_s: float | None, term_s: float) -> None:
        """Tell the keeper, before a process of the dispatch starts. Raises Broken."""
        kill_by_ns = 0
        if timeout_s is not None:
            kill_by_ns = boot_ns() + int((timeout_s + term_s + _LATE_S) * 1e9)
        self.keeper.expect(dispatch, kill_by_ns)

    def kill_cause(self, number: int) -> str:
        """What may be said of a process that died of a signal which nobody here sent."""
        if number != signal.SIGKILL:
            return ""
        if self.out_of_memory.happened():
            return ": the kernel was out of memory"
        return " (possibly out of memory)"


def shorter(*timeouts: float | None) -> float | None:
    """The shortest of those that there are."""
    return min((each for each in timeouts if each is not None), default=None)


def cancelled_before_start(control: Control) -> tuple[Outcome, str] | None:
    """How a dispatch ends that was cancelled before it had a process."""
    if not control.cancel_asked.is_set():
        return None
    outcome = Outcome.ABANDONED if control.abandon else Outcome.CANCELLED
    return outcome, f"Cancelled before it started: {control.reason}"


class Course:
    """Of one process."""

    def __init__(
        self,
        child: process.Child,
        dispatch: Dispatch,
        sink: LogSink,
        control: Control,
        host: Host,
        mask: Mask,
        capture: Capturing | None = None,
        sent: int = 0,
        what: str = "",
        reminded: bool = False,
    ) -> None:
        """`what` it is that runs, when the log is to say how many processes it left behind. `reminded`: it gets TERM a second time; Python
        code that is just entering a system call does not hear the first.
        """
        self._child = child
        self._dispatch = dispatch
        self._sink = sink
        self._control = control
        self._host = host
        self._mask = mask
        self._watch = process.Watch(child)
        self._splitters = {Stream.STDOUT: LineSplitter(mask), Stream.STDERR: LineSplitter(mask)}
        self._capture = capture
        self._what = what
        self._reminded = reminded
        self._unsent: list[LogBlock] = []
        self._taken = 0  # bytes read from the pipes
        self._taken_at = float("-inf")  # when there was little to read
        self._sent = sent  # lines the sink had before the process began
        self._lost = 0
        self._ended_early: Outcome | None = None  # by timeout or cancel
        self._killed_by_keeper = False
        self._left: int | None = 0
        self._killed_children = 0
        self._clean_looks = 0
        self.quiet_s = QUIET_START_S  # its output is not looked at while it is so young
        self._time: trio.CancelScope | None = None  # that it has

    def allow(self, seconds: float) -> None:
        """At most so much more of its time."""
        if self._time is not None:
            self._time.deadline = min(self._time.deadline, trio.current_time() + seconds)

    async def run(self, timeout_s: float | None) -> None:
        """From the started process to nothing left of it. Raises Cancelled only after that."""
        reached_end = False
        try:
            if self._mask_warning():  # or a line of ours
                await self._deliver()
            with trio.move_on_after(timeout_s if timeout_s is not None else float("inf")) as scope:
                self._time = scope
                self._control.on_ask = scope.cancel
                if self._control.cancel_asked.is_set():
                    scope.cancel()
                await self._follow()
            self._control.on_ask = None
            if self._child.status is None:
                asked = self._control.cancel_asked.is_set()
                self._ended_early = Outcome.CANCELLED if asked else Outcome.TIMED_OUT
                await self._terminate()
            elif self._is_open() or not process.group_is_empty(self._child.pid):
                await self._settle()
            reached_end = True
        finally:
            self._control.on_ask = None
            await self._extinguish()
            if reached_end:
                if self._killed_children and self._what:
                    many = "processes" if self._killed_children > 1 else "process"
                    were = "were" if self._killed_children > 1 else "was"
                    self.add_line(
                        f"swamp: {self._killed_children} {many} that {self._what} left behind {were} killed"
                    )
                await self._finish_lines()
            self._watch.close()
            self._child.close()

    # ── follow ──────────────────────────────────────────────────────────────────────────────────────────────
    async def _follow(self) -> None:
        if await self._watch.wait_end(self.quiet_s) and process.reap(self._child):
            self._child.close_exit()
        while self._child.status is None:
            await self._turn()
        self._read_what_is_there()
        if self._unsent:
            await self._deliver()

    async def _turn(self) -> None:
        """Wait for something to happen to the child, and take it."""
        await self._watch.wait()
        before = self._taken
        self._take(self._watch.ready())
        taken = self._taken - before
        if self._unsent:
            await self._deliver()
        if taken > LOUD_BYTES:
            for _ in range(LOUD_YIELDS):
                await trio.lowlevel.checkpoint()
        elif taken:
            if trio.current_time() - self._taken_at < GATHER_S and self._child.status is None:
                await trio.sleep(GATHER_S)
            self._taken_at = trio.current_time()

    def _take(self, ready: list[int]) -> None:
        child = self._child
        for descriptor in ready:
            if descriptor == child.out:
                self._read(Stream.STDOUT)
            elif descriptor == child.err:
                self._read(Stream.STDERR)
            elif process.reap(child):
                child.close_exit()
        # A process closes its pipes an instant before it has ended: looking again saves a turn of the loop.
        if child.status is None and child.out is None and child.err is None and process.reap(child):
            child.close_exit()

    def _read(self, stream: Stream) -> bool:
        """One read of one pipe; False when there was nothing."""
        child = self._child
        descriptor = child.out if stream is Stream.STDOUT else child.err
        if descriptor is None:
            return False
        data = process.read_some(descriptor)
        if data is None:
            return False
        if data:
            self._taken += len(data)
            self._keep(stream, self._splitters[stream].feed(data))
            return True
        self._keep(stream, self._splitters[stream].flush())
        child.close_pipe(descriptor)
        return False

    def _read_what_is_there(self) -> None:
        """After the end: what the pipes hold now, and no more than they can hold."""
        for stream in Stream:
            for _ in range(4):
                if not self._read(stream):
                    break

    def _keep(self, stream: Stream, lines: str | None) -> None:
        if lines is not None:
            if self._capture is not None:
                self._capture(stream, lines)
            self._unsent.append(LogBlock(stream, lines))

    async def _deliver(self) -> None:
        """Give the sink what it has not had. A cancelled write kept nothing and is repeated with the same
        numbers.
        """
        while self._unsent:
            batch = tuple(self._unsent[:LOG_BLOCKS_MAX])
            await self._sink.write(self._sent + 1, batch)
            self._sent += count_of(batch)
            del self._unsent[: len(batch)]

    # ── settle, terminate, extinguish ───────────────────────────────────────────────────────────────────────
    def _is_open(self) -> bool:
        return self._child.out is not None or self._child.err is not None

    async def _settle(self) -> None:
        """The shell has ended, something it started has not."""
        with trio.move_on_after(BACKGROUND_GRACE_S):
            while self._is_open() or not process.group_is_empty(self._child.pid):
                with trio.move_on_after(0.01):
                    if self._is_open():
                        await self._turn()
                    else:
                        await trio.sleep_forever()

    async def _terminate(self) -> None:
        """TERM, and time for the group to go. A second request may shorten that time, never lengthen it."""
        process.terminate_group(self._child.pid)
        control = self._control
        remind_at = trio.current_time() + _REMIND_S if self._reminded else float("inf")
        with trio.move_on_after(control.term_s) as scope:

            def hurry() -> None:
                scope.deadline = min(scope.deadline, trio.current_time() + control.term_s)

            control.on_ask = hurry
            while self._child.status is None or not process.group_is_empty(self._child.pid):
                if self._child.status is None and trio.current_time() >= remind_at:
                    os.kill(self._child.pid, signal.SIGTERM)  # it has not been reaped
                    remind_at = float("inf")
                with trio.move_on_after(0.01 if self._child.status is not None else _REMIND_S):
                    if self._is_open() or self._child.status is None:
                        await self._turn()
                    else:
                        await trio.sleep_forever()
        control.on_ask = None

    async def _extinguish(self) -> None:
        """KILL until nothing is left. A few system calls and no waiting when nothing is; else it is believed after several
        looks in a row, since one look can miss what is just forked or becoming another program.
        """
        child, keeper, name = self._child, self._host.keeper, self._dispatch.dispatch
        clear = process.reap(child) and process.group_is_empty(child.pid) and keeper.is_clear()
        if not clear and (not self._is_gone() or keeper.is_unclear()):
            if self._ended_early is None:
                self._killed_children = sum(pid != child.pid for pid in keeper.left(name, child.pid))
            with trio.CancelScope(shield=True):
                if not await process.wait_until(self._kill_and_look, STUCK_S):
                    self._left = len(keeper.left(name, child.pid)) or None
        self._killed_by_keeper = keeper.killed(name)
        if self._left == 0:
            keeper.forget(name, child.pid)

    def _is_gone(self) -> bool:
        child = self._child
        return (
            process.reap(child)
            and process.group_is_empty(child.pid)
            and not self._host.keeper.strays(self._dispatch.dispatch)
        )

    def _kill_and_look(self) -> bool:
        child = self._child
        if not process.reap(child) or not process.group_is_empty(child.pid):
            process.signal_group(child.pid, signal.SIGKILL)
        for pid in self._host.keeper.strays(self._dispatch.dispatch):
            process.kill_and_reap(pid)
        self._clean_looks = self._clean_looks + 1 if self._is_gone() else 0
        return self._clean_looks >= _LOOKS

    async def _finish_lines(self) -> None:
        """What the pipes still hold and every last partial line; bounded when it did not end by itself."""
        self._read_what_is_there()
        for stream in Stream:
            self._keep(stream, self._splitters[stream].flush())
        if not self._unsent:
            return
        limit_s = _LAST_LINES_S if self._ended_early is not None else float("inf")
        with trio.move_on_after(limit_s):
            await self._deliver()
        self._lost = count_of(self._unsent)

    # ── what is known afterwards ────────────────────────────────────────────────────────────────────────────
    def _mask_warning(self) -> bool:
        if self._mask.too_short:
            self._unsent.append(LogBlock(Stream.STDERR, short_warning(self._mask.too_short)))
        return bool(self._unsent)

    def add_line(self, text: str) -> None:
        """A line of ours among the process's; delivered with the next of them."""
        self._unsent.append(LogBlock(Stream.STDERR, self._mask(text)))

    @property
    def last_line(self) -> int:
        """Number of the last line that the sink has."""
        return self._sent

    @property
    def lines_lost(self) -> int:
        return self._lost

    @property
    def left(self) -> int | None:
        """Processes counted after the end; None: unknown."""
        return self._left

    @property
    def ended_early(self) -> Outcome | None:
        """By its timeout or a cancel."""
        return self._ended_early

    @property
    def killed_children(self) -> int:
        """Processes that outlived the step's own and had to be killed."""
        return self._killed_children

    @property
    def exit_code(self) -> int:
        """Of the process; 128 + the signal's number when one ended it."""
        return 128 + self.signal if self.signal else (self._child.status or 0)

    @property
    def signal(self) -> int:
        """That ended the process; 0 when none did."""
        status = self._child.status
        return -status if status is not None and status < 0 else 0

    def interruption(self, what: str, timeout_s: float | None) -> tuple[Outcome, str] | None:
        """How it was ended from outside; None when it ended by itself."""
        if self._control.abandon or self._killed_by_keeper:
            reason = self._control.reason or "its keeper ended it: the holder was late"
            return Outcome.ABANDONED, f"Abandoned: {reason}"
        if self._ended_early is Outcome.CANCELLED:
            return Outcome.CANCELLED, f"Cancelled: {self._control.reason or 'asked to'}"
        if self._ended_early is Outcome.TIMED_OUT:
            assert timeout_s is not None
            return Outcome.TIMED_OUT, f"{what} timed out after {round(timeout_s * 1000)}ms"
        return None


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
