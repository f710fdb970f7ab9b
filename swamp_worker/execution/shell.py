"""Runs `command/shell`: one shell, its output line by line, its end, and the record of it.

Rules that hold here:

- The end is always a `Finished` with a `result` record, also for failures, timeouts and cancels: partial output is evidence. Only a
  shell that could not be started has none.
- Everything that leaves is masked: lines, both captures, the command, errors.

How a process is followed and ended is `course`. It does not know: sockets, leases, where lines and results are kept.
"""

import errno
import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import attrs

from swamp_proto.errors import Broken
from swamp_proto.messages.dispatch import Dispatch, Finished, Outcome, Output, Stream
from swamp_proto.redaction import Mask
from swamp_worker.execution import process
from swamp_worker.execution.capture import Capture
from swamp_worker.execution.course import Course, Host, cancelled_before_start, shorter, signal_name
from swamp_worker.execution.interface import Control, LogSink

_SHELL: Final = "/bin/sh"
_JSON: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


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
    timeout_s = shorter(arguments.timeout_s, dispatch.timeout_s)
    try:
        own_directory = "" if arguments.directory else host.workspace.make()
    except Broken as error:
        return failed(error.message)
    try:
        over = cancelled_before_start(control)
        if over is not None:
            return attrs.evolve(failed(over[1]), outcome=over[0])
        host.expect(dispatch.dispatch, timeout_s, control.term_s)
        try:
            child = process.spawn(
                ("sh", "-c", arguments.run), _SHELL, environment, own_directory or arguments.directory
            )
        except (OSError, ValueError) as error:
            host.keeper.forget(dispatch.dispatch)
            return failed(_spawn_error(error, arguments))
        host.keeper.register(dispatch.dispatch, child.pid)
        control.started.set()
        captures = {Stream.STDOUT: Capture(), Stream.STDERR: Capture()}
        course = Course(
            child, dispatch, sink, control, host, mask, lambda stream, lines: captures[stream].add(lines)
        )
        await course.run(timeout_s)
        duration_ms = int((time.perf_counter() - started) * 1000)
        return _finished(
            course, captures, dispatch, arguments, timeout_s, mask, host, started_ms, duration_ms
        )
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


def _finished(
    course: Course,
    captures: Mapping[Stream, Capture],
    dispatch: Dispatch,
    arguments: _Arguments,
    timeout_s: float | None,
    mask: Mask,
    host: Host,
    started_ms: int,
    duration_ms: int,
) -> Finished:
    interrupted = course.interruption("Command", timeout_s)
    result: dict[str, Any] = {
        "command": mask(dispatch.display or arguments.run),
        "exitCode": course.exit_code,
        "stdout": captures[Stream.STDOUT].text(),
        "stderr": captures[Stream.STDERR].text(),
        "durationMs": duration_ms,
        "executedAt": _iso(started_ms),
    }
    if course.signal:
        result["signal"] = signal_name(course.signal)
    if course.ended_early is Outcome.TIMED_OUT:
        result["timedOut"] = True
    if any(capture.truncated for capture in captures.values()):
        result["truncated"] = True

    outcome: Outcome
    error: str | None
    if interrupted is not None:
        outcome, error = interrupted
    elif course.signal and not arguments.ignore_exit_code:
        cause = host.kill_cause(course.signal)
        outcome, error = Outcome.FAILED, f"Command was killed by {signal_name(course.signal)}{cause}"
    elif course.exit_code and not arguments.ignore_exit_code:
        outcome, error = Outcome.FAILED, f"Command exited with code {course.exit_code}"
    else:
        outcome, error = Outcome.SUCCEEDED, None
    content = _JSON.encode(result).encode("utf-8", "replace")
    return Finished(
        dispatch=dispatch.dispatch,
        fence=dispatch.fence,
        outcome=outcome,
        error=mask(error) if error else None,
        outputs=(Output.of("result", "result", "resource", "application/json", content),),
        last_line=course.last_line,
        lines_lost=course.lines_lost,
        left=course.left,
        started_ms=started_ms,
        duration_ms=duration_ms,
    )


def _iso(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
