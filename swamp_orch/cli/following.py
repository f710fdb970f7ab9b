"""Watching a run until it ends: events, Ctrl-C, a link that breaks, and the exit code.

Rules
- The run belongs to the orchestrator. The first Ctrl-C asks it to cancel and waits for the end; the second
  leaves at once with 130 and says how to come back. Going away never stops a run that an orchestrator
  holds.
- A broken link is not the end of the run: it is attached again after the last event seen, for `REATTACH_S`.
- The main thread owns the terminal and the signals; one thread reads the stream, another asks to cancel.
  What waits between them is bounded, so a chatty run can not fill this process.
"""

import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from types import FrameType
from typing import Any, Final

from swamp_orch.cli.invocation import Invocation
from swamp_orch.cli.livezone import FRAME_S, LiveZone, tame
from swamp_orch.cli.runtree import RunTree
from swamp_proto.errors import Broken, ExitCode, Interrupted, NotConnected, OperationFailed

REATTACH_S: Final = 60.0
REDIAL_S: Final = 0.5
BUFFER_MAX: Final = 1_000  # events read but not yet shown

_ENDED: Final = object()  # the stream is over
_CTRL_C: Final = object()


class _Reader(threading.Thread):
    """Reads a run's events into `inbox`, attaching again after a broken link."""

    def __init__(self, invocation: Invocation, run_id: str, after: int) -> None:
        super().__init__(name=f"run {run_id}", daemon=True)
        self._invocation = invocation
        self._run_id = run_id
        self._after = after
        self._room = threading.BoundedSemaphore(BUFFER_MAX)
        # SimpleQueue, because a signal handler puts into it too.
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def run(self) -> None:
        lost_at: float | None = None
        while True:
            try:
                for event in self._invocation.stream("run.attach", runId=self._run_id, after=self._after):
                    lost_at = None
                    self._after = max(self._after, int(event.get("seq") or 0))
                    self._room.acquire()
                    self.inbox.put(event)
                    if event.get("kind") == "run_ended":
                        self.inbox.put(_ENDED)
                        return
                raise Broken(f"the orchestrator stopped telling about run {self._run_id} before its end")
            except (Broken, NotConnected) as problem:
                now = time.monotonic()
                lost_at = now if lost_at is None else lost_at
                if now - lost_at > REATTACH_S:
                    self.inbox.put(problem)
                    return
                self._invocation.log("warn", f"run {self._run_id}: {problem.message}; attaching again")
                time.sleep(REDIAL_S)
            except BaseException as problem:  # handed to the main thread, which raises it
                self.inbox.put(problem)
                return

    def shown(self) -> None:
        self._room.release()


ACKNOWLEDGED_WITHIN_S: Final = 3.0
"""Who leaves by a second Ctrl-C waits this long at most for the first one to be durable."""


class _Canceller(threading.Thread):
    """Asks to cancel, so that the main thread stays able to leave."""

    def __init__(self, invocation: Invocation, run_id: str, inbox: "queue.SimpleQueue[Any]") -> None:
        super().__init__(name="cancel", daemon=True)
        self._invocation = invocation
        self._run_id = run_id
        self._inbox = inbox
        self.acknowledged = False  # the request is durable: it is carried out whoever stays

    def run(self) -> None:
        try:
            self._invocation.call("run.cancel", runId=self._run_id, reason="Ctrl-C", wait=False)
            self.acknowledged = True
        except BaseException as problem:
            self._inbox.put(problem)


@contextmanager
def _ctrl_c(inbox: "queue.SimpleQueue[Any]") -> Iterator[None]:
    """Ctrl-C becomes an item of the inbox instead of an exception anywhere."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        inbox.put(_CTRL_C)

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def follow(
    invocation: Invocation, run_id: str, *, after: int = 0, cancels: bool = True, stays: bool = False
) -> int:
    """Show a run until it ends; answers the exit code. With `cancels=False` (attach) the first Ctrl-C just
    leaves. When only people can let it go on it is left, unless it `stays`.

    Raises `OperationFailed` for a run that failed or was cancelled, `Interrupted` when Ctrl-C left or
    cancelled it."""
    reader = _Reader(invocation, run_id, after)
    show: _JsonShow | _TextShow = _JsonShow(invocation) if invocation.json else _TextShow(invocation)
    try:
        return _watch(invocation, reader, show, run_id, cancels, stays)
    except BrokenPipeError as problem:
        raise Interrupted(f"nobody reads the output any more; run {run_id} goes on") from problem


def _watch(
    invocation: Invocation,
    reader: _Reader,
    show: "_JsonShow | _TextShow",
    run_id: str,
    cancels: bool,
    stays: bool,
) -> int:
    canceller: _Canceller | None = None
    with _ctrl_c(reader.inbox), show:
        reader.start()
        while True:
            try:
                item = reader.inbox.get(timeout=show.patience())
            except queue.Empty:
                show.tick()
                continue
            if item is _ENDED:
                break
            if item is _CTRL_C:
                if canceller is not None or not cancels:
                    show.leave()
                    if canceller is not None:
                        canceller.join(ACKNOWLEDGED_WITHIN_S)
                    raise _left(invocation, run_id, canceller)
                show.say(f"Cancelling run {run_id} and waiting for its end (Ctrl-C again leaves at once) …")
                canceller = _Canceller(invocation, run_id, reader.inbox)
                canceller.start()
                continue
            if isinstance(item, BaseException):
                raise item
            show.event(item)
            reader.shown()
            if item.get("kind") == "run_suspended" and not stays and canceller is None:
                show.suspended()
                show.leave()
                return _suspended(invocation, item)
    return _outcome(invocation, show.ended, run_id, canceller is not None)


def _left(invocation: Invocation, run_id: str, canceller: _Canceller | None) -> Interrupted:
    if invocation.session().where == "in process":
        return Interrupted(
            f"left run {run_id}; it ran in this process and ends with it",
            hint="runs that outlive their command need an orchestrator: swamp serve",
        )
    told = "; it goes on"
    if canceller is not None:
        told = ", which was asked to cancel" if canceller.acknowledged else "; nobody acknowledged the cancel"
    return Interrupted(
        f"left run {run_id}{told}",
        hint=f"watch it: swamp run attach {run_id}; cancel it: swamp run cancel {run_id}",
    )


def _suspended(invocation: Invocation, event: dict[str, Any]) -> int:
    """It waits for people: that is no failure, and nothing of it is lost by leaving."""
    if invocation.json:
        return ExitCode.DONE
    run_id, name = event["runId"], event["run"]["workflowName"]
    if invocation.session().where == "in process":
        invocation.note(f"Suspended. Once decided, go on with: swamp workflow resume {name} --run {run_id}")
    else:
        invocation.note(f"Suspended; it goes on by itself once decided. Watch it: swamp run attach {run_id}")
    return ExitCode.DONE


def left(ended: dict[str, Any]) -> str:
    """`left: 0`, or `left: unknown, ends by HH:MM:SS`, by the clock of who reads it."""
    count = ended.get("left")
    if count is not None:
        return f"left: {count}"
    if not ended.get("endsBy"):
        return "left: unknown"
    return f"left: unknown, ends by {datetime.fromisoformat(ended['endsBy']).astimezone():%H:%M:%S}"


def _outcome(invocation: Invocation, ended: dict[str, Any] | None, run_id: str, asked: bool) -> int:
    assert ended is not None
    status = ended.get("status")
    if status == "succeeded":
        return ExitCode.DONE
    if status == "cancelled":
        if not invocation.json:
            print(left(ended), flush=True)
        message = f"run {run_id} was cancelled"
        if asked:
            raise Interrupted(message)
        raise OperationFailed(message, code="cancelled")
    where = ended.get("failedStep")
    step = f" at {where}" if isinstance(where, str) and where else ""
    detail = f": {ended['error']}" if ended.get("error") else ""
    raise OperationFailed(
        f"run {run_id} {status}{step}{detail}",
        hint=f"its log: swamp workflow history logs {run_id}",
        code="run_failed",
    )


class _JsonShow:
    """One object a line."""

    def __init__(self, invocation: Invocation) -> None:
        self._invocation = invocation
        self.ended: dict[str, Any] | None = None

    def __enter__(self) -> "_JsonShow":
        return self

    def __exit__(self, *_: object) -> None:
        return

    def patience(self) -> float | None:
        return None

    def tick(self) -> None:
        return

    def event(self, event: dict[str, Any]) -> None:
        if event.get("kind") == "run_ended":
            self.ended = event
        self._invocation.event(event)

    def say(self, text: str) -> None:
        self._invocation.log("info", text)  # stderr is for the one object of an error

    def suspended(self) -> None:
        return

    def leave(self) -> None:
        return


class _TextShow:
    """Permanent lines, and on a terminal the live zone below them."""

    def __init__(self, invocation: Invocation) -> None:
        self._invocation = invocation
        live = sys.stdout.isatty() and not invocation.quiet and invocation.environ.get("TERM") != "dumb"
        self._tree = RunTree(
            color=invocation.color, quiet=invocation.quiet, stream_lines=invocation.verbose and not live
        )
        self._zone: LiveZone | None = None
        self._live = live
        self._terminal = sys.stdout.isatty()
        self._drawn_at = float("-inf")

    def __enter__(self) -> "_TextShow":
        if self._live:
            self._zone = LiveZone(sys.stdout, color=self._invocation.color).__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    @property
    def ended(self) -> dict[str, Any] | None:
        return self._tree.ended

    def patience(self) -> float | None:
        if self._zone is not None:
            return FRAME_S
        due = self._tree.next_tick()
        return None if due is None else max(0.0, due - time.monotonic())

    def tick(self) -> None:
        now = time.monotonic()
        self._print(self._tree.tick(now), now)

    def event(self, event: dict[str, Any]) -> None:
        now = time.monotonic()
        self._print(self._tree.take(event, now), now)

    def _print(self, lines: Iterator[str], now: float) -> None:
        if self._zone is None:
            printed = False
            for line in lines:
                print(tame(line) if self._terminal else line)
                printed = True
            if printed:
                sys.stdout.flush()
        else:
            found = list(lines)
            # A burst of events is drawn once a frame, not one by one.
            if found or self._tree.ended is not None or now - self._drawn_at >= FRAME_S:
                self._drawn_at = now
                self._zone.draw(self._tree, now, found)
        self._aside()

    def _aside(self) -> None:
        warnings, self._tree.warnings = self._tree.warnings, []
        asides, self._tree.asides = self._tree.asides, []
        if not (warnings or asides):
            return
        for text in warnings:
            self.say(f"Warning: {text}")
        for text in asides:
            print(text, file=sys.stderr)

    def say(self, text: str) -> None:
        if self._zone is not None:
            self._zone.draw(self._tree, time.monotonic(), [text])
        else:
            self._invocation.note(text)

    def suspended(self) -> None:
        self._print(self._tree.suspended(), time.monotonic())

    def leave(self) -> None:
        if self._zone is not None:
            self._zone.__exit__()
            self._zone = None
