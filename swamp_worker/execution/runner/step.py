"""Runs a method written in Python: one runner process, its questions answered while it runs, its end made of what it said.

Rules that hold here:

- The process is known to the keeper before it exists and registered before any code of an author's runs in it.
- A runner that dies, sends what is no message, or more than a message may hold, fails its dispatch and nothing else; the error names
  the signal, the exit code, or the limit.
- What the method returned becomes outputs at the end; what it wrote while it ran is written, whatever becomes of it.
- A dispatch without a method is a report of a run: its `arguments` are the run document.
- Everything that leaves is masked, also with the secrets it was given while it ran.
"""

import contextlib
import errno
import json
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from swamp_proto.blocks import count_of
from swamp_proto.capabilities import CallRefused
from swamp_proto.errors import Broken, LimitExceeded, MalformedMessage, SwampError, Unsupported
from swamp_proto.limits import CALLS_PER_DISPATCH_MAX, LOG_BLOCKS_MAX, REPORT_S, RUNNER_FRAME_MAX
from swamp_proto.messages.dispatch import Dispatch, Finished, LogBlock, Outcome, Program, Stream
from swamp_proto.redaction import Mask
from swamp_worker.execution import process
from swamp_worker.execution.access import Access
from swamp_worker.execution.course import Course, Host, cancelled_before_start
from swamp_worker.execution.interface import BundleFolders, Control, LogSink
from swamp_worker.execution.requests import Requests
from swamp_worker.execution.runner.ending import Said, outcome_of
from swamp_worker.execution.runner.forks import Forks
from swamp_worker.execution.runner.framing import READ_SIZE, Inbox, pack
from swamp_worker.execution.runner.loading import OWN_ROOT

_MAIN: Final = str(Path(__file__).with_name("main.py"))
_STARTS: Final = 2  # the second one with a process that was made for it
_QUIET_S: Final = 0.01  # most methods that print nothing have ended by then
_CLOSE_S: Final = 5.0  # for the channel to end after the last process that could hold it


@attrs.frozen
class Backstage:
    """What Python steps on this machine share, beside the `Host`."""

    forks: Forks
    access: Access | None
    bundles: BundleFolders | None


@attrs.frozen
class _Code:
    """Where a step's code is."""

    root: Path
    dependencies: Path | None


async def run_program(
    dispatch: Dispatch, program: Program, sink: LogSink, control: Control, host: Host, stage: Backstage
) -> Finished:
    """Execute one dispatch that has a program. Raises only Cancelled, once nothing of it is left."""
    mask = Mask(dispatch.secrets)
    started_ms = time.time_ns() // 1_000_000
    started = time.perf_counter()

    def failed(error: str, outcome: Outcome = Outcome.FAILED) -> Finished:
        duration_ms = int((time.perf_counter() - started) * 1000)
        name, fence = dispatch.dispatch, dispatch.fence
        return Finished(name, fence, outcome, mask(error), (), prologue.sent, 0, 0, started_ms, duration_ms)

    prologue = _Prologue(sink, mask)
    directory = ""
    try:
        code = await _code(dispatch, program, control, stage, prologue)
        if isinstance(code, tuple):
            return failed(code[1], code[0])
        environment = host.variables.of(dispatch, {})
        directory = host.workspace.make()
        over = cancelled_before_start(control)
        if over is not None:
            return failed(over[1], over[0])
        run = "" if dispatch.method else await trio.to_thread.run_sync(_run_file, dispatch, directory)
        start = pack({**_start(dispatch, program, code, directory, environment), "run": run})
        for _ in range(_STARTS):
            host.expect(dispatch.dispatch, dispatch.timeout_s, control.term_s)
            child, channel = await _begin(dispatch, code, environment, directory, host, stage)
            control.started.set()
            course = Course(
                child,
                dispatch,
                sink,
                control,
                host,
                mask,
                sent=prologue.sent,
                what="the method",
                reminded=True,
            )
            course.quiet_s = _QUIET_S
            requests = Requests(
                dispatch,
                stage.access,
                mask,
                Path(directory),
                lambda: _abandon(control, "the lease of this step has ended"),
                course.add_line,
            )
            conversation = _Conversation(channel, requests, course)
            await conversation.accompany(start, dispatch.timeout_s)
            if (
                not conversation.unheard
                or course.left != 0
                or course.interruption("Method", dispatch.timeout_s)
            ):
                break
            stage.forks.mistrust()
        outcome, error, outputs = await outcome_of(
            conversation.said, course, requests, dispatch, program, control, host
        )
        return Finished(
            dispatch=dispatch.dispatch,
            fence=dispatch.fence,
            outcome=outcome,
            error=mask(error) if error else None,
            outputs=outputs,
            last_line=course.last_line,
            lines_lost=course.lines_lost,
            left=course.left,
            started_ms=started_ms,
            duration_ms=int((time.perf_counter() - started) * 1000),
        )
    except LimitExceeded:
        return failed(
            f"The arguments and the environment of the step have more than {RUNNER_FRAME_MAX} bytes"
        )
    except (SwampError, ValueError) as error:
        return failed(str(error))
    finally:
        if directory:
            host.workspace.remove(directory)
        stage.forks.refill()


class _Prologue:
    """What is said in a step's log before it has a process: what installing its dependencies prints."""

    def __init__(self, sink: LogSink, mask: Mask) -> None:
        self._sink = sink
        self._mask = mask
        self._lines: list[LogBlock] = []
        self._came = trio.Event()
        self.sent = 0
        self.on_first: Callable[[], object] | None = None  # called once, when there is something to follow

    def say(self, text: str) -> None:
        self._lines.append(LogBlock(Stream.STDERR, self._mask(text)))
        self._came.set()
        if self.on_first is not None:
            on_first, self.on_first = self.on_first, None
            on_first()

    async def deliver(self) -> None:
        """What was said and not given to the sink yet. A cancelled write kept nothing."""
        while self._lines:
            batch = tuple(self._lines[:LOG_BLOCKS_MAX])
            await self._sink.write(self.sent + 1, batch)
            self.sent += count_of(batch)
            del self._lines[: len(batch)]

    async def follow(self) -> None:
        """For ever: what is said, as it comes."""
        while True:
            await self._came.wait()
            self._came = trio.Event()
            await self.deliver()


async def _code(
    dispatch: Dispatch, program: Program, control: Control, stage: Backstage, prologue: _Prologue
) -> _Code | tuple[Outcome, str]:
    """Where the code is, fetched when it must be; or how the step ends without it."""
    if not program.bundle:
        return _Code(OWN_ROOT, None)
    if stage.bundles is None:
        return Outcome.FAILED, "this executor has no place for the code of extensions"
    with trio.CancelScope() as scope:
        control.on_ask = scope.cancel
        try:
            over = cancelled_before_start(control)
            if over is not None:
                return over
            root = await stage.bundles.folder(dispatch, program.bundle)
            return _Code(root, await _dependencies(dispatch, root, stage.bundles, prologue))
        except CallRefused as refused:
            return (
                Outcome.FAILED,
                f"The code of {dispatch.model_type} could not be fetched: {refused.message}",
            )
        except SwampError as error:
            return Outcome.FAILED, error.message
        finally:
            control.on_ask = None
    return cancelled_before_start(control) or (Outcome.CANCELLED, "Cancelled before it started")


async def _dependencies(
    dispatch: Dispatch, root: Path, bundles: BundleFolders, prologue: _Prologue
) -> Path | None:
    try:
        async with trio.open_nursery() as nursery:
            prologue.on_first = partial(nursery.start_soon, prologue.follow)
            try:
                return await bundles.dependencies(dispatch, root, prologue.say)
            finally:
                prologue.on_first = None
                nursery.cancel_scope.cancel()
    except* SwampError as group:
        raise group.exceptions[0] from None
    finally:
        await prologue.deliver()


def _run_file(dispatch: Dispatch, directory: str) -> str:
    """Where a report reads what run it is of, which may be more than a message holds."""
    path = Path(directory) / ".swamp" / "run.json"
    path.parent.mkdir()
    path.write_text(json.dumps(dispatch.arguments))
    return str(path)


def _start(
    dispatch: Dispatch, program: Program, code: _Code, directory: str, environment: dict[bytes, bytes]
) -> dict[str, Any]:
    place = dispatch.place
    return {
        "start": True,
        "dispatch": dispatch.dispatch,
        "environment": b"\0".join(name + b"=" + value for name, value in environment.items()),
        "directory": directory,
        "root": str(code.root),
        "paths": [str(code.dependencies)] if code.dependencies is not None else [],
        "entry": program.entry,
        "method": dispatch.method,
        "arguments": dispatch.arguments if dispatch.method else {},
        "global_arguments": dispatch.global_arguments,
        "checks": list(program.checks),
        "reports": list(program.reports),
        "fence": dispatch.fence,
        "attempt": dispatch.attempt,
        "attempt_key": dispatch.attempt_key,
        "model": {
            "name": dispatch.model_name,
            "id": dispatch.model_id,
            "type": dispatch.model_type,
            "version": dispatch.model_version,
            "tags": dispatch.model_tags,
        },
        "place": {"run": place.run, "workflow": place.workflow, "job": place.job, "step": place.step},
    }


async def _begin(
    dispatch: Dispatch,
    code: _Code,
    environment: dict[bytes, bytes],
    directory: str,
    host: Host,
    stage: Backstage,
) -> tuple[process.Child, socket.socket]:
    """A process that waits for its start on a channel, registered. Raises `Broken`; then nothing of it is left."""
    name = dispatch.dispatch
    try:
        if code.dependencies is None and stage.forks.available:
            waiting = await stage.forks.take()
            host.keeper.register(name, waiting.pid, waiting.from_ns)
            return waiting.child, waiting.channel
        ours, theirs = socket.socketpair()
        with theirs:
            descriptor = theirs.fileno()
            command = (sys.executable, "-I", "-X", "utf8", _MAIN, str(descriptor))
            try:
                child = process.spawn(command, sys.executable, environment, directory, (descriptor,))
            except BaseException:
                ours.close()
                raise
    except (SwampError, OSError, ValueError) as error:
        for pid in host.keeper.left(name, None):
            process.kill_and_reap(pid)
        host.keeper.forget(name)
        raise Broken(f"The method's process could not be started: {error}") from None
    host.keeper.register(name, child.pid)
    return child, ours


def _abandon(control: Control, reason: str) -> None:
    if not control.cancel_asked.is_set():
        control.abandon = True
        control.ask_cancel(reason, control.term_s)


class _Conversation:
    """With one runner, over its channel, which is closed at the end."""

    def __init__(self, channel: socket.socket, requests: Requests, course: Course) -> None:
        self._channel = trio.socket.from_stdlib_socket(channel)
        self._requests = requests
        self._course = course
        self._sending = trio.Lock()
        self._room = trio.CapacityLimiter(CALLS_PER_DISPATCH_MAX)
        self.said = Said()
        self.unheard = False  # it ended before it had read its start: no code of an author's has run

    async def accompany(self, start: bytes, timeout_s: float | None) -> None:
        """From the start to the end of the process, and of what it had said."""
        async with self._open(start) as ended:
            await self._course.run(timeout_s)
            if self._course.left == 0:
                with trio.move_on_after(_CLOSE_S):
                    await ended.wait()

    @contextlib.asynccontextmanager
    async def _open(self, start: bytes) -> AsyncIterator[trio.Event]:
        ended = trio.Event()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._converse, nursery, start, ended)
                yield ended
                nursery.cancel_scope.cancel()
        finally:
            self._channel.close()

    async def _converse(self, nursery: trio.Nursery, start: bytes, ended: trio.Event) -> None:
        inbox = Inbox()
        heard = False
        try:
            await self._send(start)
            while True:
                data = await self._channel.recv(READ_SIZE)
                if not data:
                    return
                heard = True
                inbox.feed(data)
                while (message := inbox.take()) is not None:
                    if self.said.take(message):
                        if message is self.said.ended:  # its reports come now
                            self._course.allow(REPORT_S)
                        continue
                    token = object()
                    await self._room.acquire_on_behalf_of(token)
                    nursery.start_soon(self._answer, message, token)
        except (LimitExceeded, MalformedMessage) as error:
            self.said.broken = f"its process sent what is no message: {error}"
            self._course.allow(0)
        except OSError as error:  # it is gone; how it went is the course's to say
            self.unheard = not heard and error.errno in (errno.EPIPE, errno.ECONNRESET)
        finally:
            ended.set()

    async def _answer(self, ask: dict[str, Any], token: object) -> None:
        number = ask.get("id", 0)
        try:
            try:
                answer: dict[str, Any] = {"id": number, "value": await self._requests.answer(ask)}
            except CallRefused as refused:
                answer = {"id": number, "code": refused.call_code.value, "message": refused.message}
            try:
                data = pack(answer)
            except (LimitExceeded, Unsupported) as error:
                data = pack(
                    {"id": number, "code": "too_large", "message": f"the answer is too large: {error}"}
                )
            await self._send(data)
        except OSError:
            pass  # nobody reads it any more
        finally:
            self._room.release_on_behalf_of(token)

    async def _send(self, data: bytes) -> None:
        async with self._sending:
            left = memoryview(data)
            while left:
                left = left[await self._channel.send(left) :]
