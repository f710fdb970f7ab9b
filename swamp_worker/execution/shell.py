"""Runs `command/shell`: one shell, its output line by line, its end, and the record of it.

The course of an execution, each part bounded:

    follow       until the shell itself has ended: lines go to the sink as they are printed; the sink's
    back-pressure is the
                 step's. Ended early by the step's timeout, by a cancel, or by the caller's scope.
    settle       the shell has ended: up to BACKGROUND_GRACE_S for its background children to close the
    pipes and go. terminate    instead of both, after a timeout or a cancel: TERM (and CONT) to the group,
    and up to `term_s`. extinguish   always: KILL to what is left of the group and to its strays, until the
    operating system counts none, at
                 most STUCK_S.

Rules that hold here:

- The end is always a `Finished` with a `result` record, also for failures, timeouts and cancels: partial
  output is evidence. Only a shell that could not be started has none.
- An execution that was ended from outside is never a success: it is `abandoned` when its holder or the
  keeper ended it, else `cancelled` or `timed_out`.
- Everything that leaves is masked: lines, both captures, the command, errors.

It does not know: sockets, leases, where lines and results are kept.
"""

import errno
import json
import signal
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import attrs
import trio

from swamp_proto.errors import Broken
from swamp_proto.limits import (
    BACKGROUND_GRACE_S,
    LOG_BATCH_LINES_MAX,
    STUCK_S,
)
from swamp_proto.messages.dispatch import Dispatch, Finished, LogLine, Outcome, Output, Stream
from swamp_proto.redaction import SECRET_LENGTH_MIN, Mask
from swamp_worker.execution import process
from swamp_worker.execution.capture import Capture
from swamp_worker.execution.interface import Control, LogSink
from swamp_worker.execution.keeper import Keeper
from swamp_worker.execution.lines import LineSplitter
from swamp_worker.execution.oom import OutOfMemory
from swamp_worker.execution.registry import boot_ns
from swamp_worker.execution.variables import StepVariables
from swamp_worker.execution.workspace import Workspace

_SHELL: Final = "/bin/sh"
_JSON: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
QUIET_START_S: Final = (
    0.003  # output of a step this young is not looked at: most of them end first, in one wake-up
)
_LAST_LINES_S: Final = 2.0  # for the sink to take what a killed step had printed
_LATE_S: Final = 5.0  # the keeper's margin after a timeout and its TERM grace


@attrs.frozen
class Host:
    """What every execution on this machine shares."""

    workspace: Workspace
    keeper: Keeper
    out_of_memory: OutOfMemory
    variables: StepVariables


async def run_shell(dispatch: Dispatch, sink: LogSink, control: Control, host: Host) -> Finished:
    """Execute one dispatch of `command/shell`. Raises only Cancelled, once nothing of it is left."""
    mask = Mask(dispatch.secrets)
    started_ms = time.time_ns() // 1_000_000
    started = time.perf_counter()

    def failed(error: str) -> Finished:
        duration_ms = int((time.perf_counter() - started) * 1000)
        return Finished(
            dispatch.dispatch,
            dispatch.fence,
            Outcome.FAILED,
            mask(error),
            (),
            0,
            0,
            0,
            started_ms,
            duration_ms,
        )

    arguments = _Arguments.read(dispatch)
    if isinstance(arguments, str):
        return failed(arguments)
    try:
        environment = host.variables.of(dispatch, arguments.env)
    except ValueError as error:
        return failed(f"Command could not be started: {error}")
    timeouts = [each for each in (arguments.timeout_s, dispatch.timeout_s) if each is not None]
    timeout_s = min(timeouts) if timeouts else None
    try:
        own_directory = "" if arguments.directory else host.workspace.make()
    except Broken as error:
        return failed(error.message)
    try:
        if control.cancel_asked.is_set():
            outcome = Outcome.ABANDONED if control.abandon else Outcome.CANCELLED
            return attrs.evolve(failed(f"Cancelled before it started: {control.reason}"), outcome=outcome)
        kill_by_ns = 0
        if timeout_s is not None:
            kill_by_ns = boot_ns() + int((timeout_s + control.term_s + _LATE_S) * 1e9)
        host.keeper.expect(dispatch.dispatch, kill_by_ns)
        try:
            child = process.spawn(
                ("sh", "-c", arguments.run), _SHELL, environment, own_directory or arguments.directory
            )
        except (OSError, ValueError) as error:
            host.keeper.forget(dispatch.dispatch)
            return failed(_spawn_error(error, arguments))
        host.keeper.register(dispatch.dispatch, child.pid)
        control.started.set()
        execution = _Execution(child, dispatch, sink, control, host, mask)
        await execution.run(timeout_s)
        duration_ms = int((time.perf_counter() - started) * 1000)
        return execution.finished(arguments, timeout_s, started_ms, duration_ms)
    finally:
        if own_directory:
            host.workspace.remove(own_directory)


@attrs.frozen
class _Arguments:
    run: str
    directory: str
    timeout_s: float | None
    env: Mapping[str, str]
    ignore_exit_code: bool

    @classmethod
    def read(cls, dispatch: Dispatch) -> "_Arguments | str":
        """The arguments, or what is wrong with them. The orchestrator has checked them; a holder checks
        again.
        """
        given = dispatch.arguments
        run, directory = given.get("run"), given.get("workingDir", "")
        timeout, env, ignore = given.get("timeout"), given.get("env", {}), given.get("ignoreExitCode", False)
        if not isinstance(run, str) or not run:
            return "command/shell needs `run`: the text for the shell"
        if "\0" in run:
            return "`run` holds a zero byte, which no command line can"
        if not isinstance(directory, str):
            return "`workingDir` must be a path"
        if timeout is not None and (
            isinstance(timeout, bool) or not isinstance(timeout, int) or timeout <= 0
        ):
            return "`timeout` must be a whole number of milliseconds above 0"
        if not isinstance(env, dict) or not all(isinstance(value, str) for value in env.values()):
            return "`env` must map names to strings"
        if not isinstance(ignore, bool):
            return "`ignoreExitCode` must be true or false"
        return cls(run, directory, timeout / 1000 if timeout is not None else None, env, ignore)


def _spawn_error(error: OSError | ValueError, arguments: _Arguments) -> str:
    if isinstance(error, OSError):
        if arguments.directory and error.filename == arguments.directory:
            return (
                f"Command could not be started: the working directory {arguments.directory}: {error.strerror}"
            )
        if error.errno == errno.E2BIG:
            return (
                "Command could not be started: the command and its environment are too long for this system"
            )
        return f"Command could not be started: {error.strerror}"
    return f"Command could not be started: {error}"


class _Execution:
    """One running shell."""

    def __init__(
        self,
        child: process.Child,
        dispatch: Dispatch,
        sink: LogSink,
        control: Control,
        host: Host,
        mask: Mask,
    ) -> None:
        self._child = child
        self._dispatch = dispatch
        self._sink = sink
        self._control = control
        self._host = host
        self._mask = mask
        self._watch = process.Watch(child)
        self._splitters = {Stream.STDOUT: LineSplitter(mask), Stream.STDERR: LineSplitter(mask)}
        self._captures = {Stream.STDOUT: Capture(), Stream.STDERR: Capture()}
        self._unsent: list[LogLine] = []
        self._sent = 0
        self._lost = 0
        self._ended_early: Outcome | None = None  # by timeout or cancel
        self._killed_by_keeper = False
        self._left: int | None = 0

    async def run(self, timeout_s: float | None) -> None:
        """From the started process to nothing left of it. Raises Cancelled only after that."""
        reached_end = False
        try:
            if self._mask_warning():
                await self._deliver()
            with trio.move_on_after(timeout_s if timeout_s is not None else float("inf")) as scope:
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
                await self._finish_lines()
            self._watch.close()
            self._child.close()

    # ── follow ──────────────────────────────────────────────────────────────────────────────────────────────
    async def _follow(self) -> None:
        if await self._watch.wait_end(QUIET_START_S) and process.reap(self._child):
            self._child.close_exit()
        while self._child.status is None:
            await self._turn()
        self._read_what_is_there()
        if self._unsent:
            await self._deliver()

    async def _turn(self) -> None:
        """Wait for something to happen to the child, and take it."""
        await self._watch.wait()
        self._take(self._watch.ready())
        if self._unsent:
            await self._deliver()

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

    def _keep(self, stream: Stream, lines: list[str]) -> None:
        if lines:
            self._captures[stream].add(lines)
            self._unsent += [LogLine(stream, line) for line in lines]

    async def _deliver(self) -> None:
        """Give the sink what it has not had. A cancelled write kept nothing and is repeated with the same
        numbers.
        """
        while self._unsent:
            batch = tuple(self._unsent[:LOG_BATCH_LINES_MAX])
            await self._sink.write(self._sent + 1, batch)
            self._sent += len(batch)
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
        with trio.move_on_after(control.term_s) as scope:

            def hurry() -> None:
                scope.deadline = min(scope.deadline, trio.current_time() + control.term_s)

            control.on_ask = hurry
            while self._child.status is None or not process.group_is_empty(self._child.pid):
                with trio.move_on_after(0.01 if self._child.status is not None else 1.0):
                    if self._is_open() or self._child.status is None:
                        await self._turn()
                    else:
                        await trio.sleep_forever()
        control.on_ask = None

    async def _extinguish(self) -> None:
        """KILL until nothing is left. Two system calls and no waiting when nothing is."""
        child, keeper, name = self._child, self._host.keeper, self._dispatch.dispatch
        if not self._is_gone():
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
        return self._is_gone()

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
        self._lost = len(self._unsent)

    # ── what is reported ────────────────────────────────────────────────────────────────────────────────────
    def _mask_warning(self) -> bool:
        if self._mask.too_short:
            short = self._mask.too_short
            text = f"swamp: {short} secret(s) shorter than {SECRET_LENGTH_MIN} characters cannot be masked"
            self._unsent.append(LogLine(Stream.STDERR, text))
        return bool(self._unsent)

    def finished(
        self, arguments: _Arguments, timeout_s: float | None, started_ms: int, duration_ms: int
    ) -> Finished:
        status = self._child.status
        number = -status if status is not None and status < 0 else 0
        exit_code = 128 + number if number else (status or 0)
        timed_out = self._ended_early is Outcome.TIMED_OUT
        abandoned = self._control.abandon or self._killed_by_keeper
        result: dict[str, Any] = {
            "command": self._mask(self._dispatch.display or arguments.run),
            "exitCode": exit_code,
            "stdout": self._captures[Stream.STDOUT].text(),
            "stderr": self._captures[Stream.STDERR].text(),
            "durationMs": duration_ms,
            "executedAt": _iso(started_ms),
        }
        if number:
            result["signal"] = _signal_name(number)
        if timed_out:
            result["timedOut"] = True
        if any(capture.truncated for capture in self._captures.values()):
            result["truncated"] = True

        outcome: Outcome
        error: str | None
        if abandoned:
            reason = self._control.reason or "its keeper ended it: the holder was late"
            outcome, error = Outcome.ABANDONED, f"Abandoned: {reason}"
        elif self._ended_early is Outcome.CANCELLED:
            outcome, error = Outcome.CANCELLED, f"Cancelled: {self._control.reason or 'asked to'}"
        elif timed_out:
            assert timeout_s is not None
            outcome, error = Outcome.TIMED_OUT, f"Command timed out after {round(timeout_s * 1000)}ms"
        elif number and not arguments.ignore_exit_code:
            outcome, error = (
                Outcome.FAILED,
                f"Command was killed by {_signal_name(number)}{self._kill_cause(number)}",
            )
        elif exit_code and not arguments.ignore_exit_code:
            outcome, error = Outcome.FAILED, f"Command exited with code {exit_code}"
        else:
            outcome, error = Outcome.SUCCEEDED, None
        content = _JSON.encode(result).encode("utf-8", "replace")
        return Finished(
            dispatch=self._dispatch.dispatch,
            fence=self._dispatch.fence,
            outcome=outcome,
            error=self._mask(error) if error else None,
            outputs=(Output.of("result", "result", "resource", "application/json", content),),
            last_line=self._sent,
            lines_lost=self._lost,
            left=self._left,
            started_ms=started_ms,
            duration_ms=duration_ms,
        )

    def _kill_cause(self, number: int) -> str:
        if number != signal.SIGKILL:
            return ""
        if self._host.out_of_memory.happened():
            return ": the kernel was out of memory"
        return " (possibly out of memory)"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _iso(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
