"""Where a method's code runs inside the runner process, and how its questions get out of it.

Plain code runs in the main thread and blocks on the socket; async code runs in trio on the same socket. Rules that hold here:

- One message at a time is written, whole: neither a cancelled task nor a signal leaves half of one behind.
- TERM is the executor's word that the step is to end. Async code is cancelled; plain code that polls `context.cancelled` is left
  to see it, any other gets `Cancelled` raised where it is, once. KILL follows, whatever is made of it.
"""

import contextlib
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import outcome
import trio

from swamp_proto.errors import LimitExceeded, Unsupported
from swamp_proto.limits import CALLS_PER_DISPATCH_MAX
from swamp_worker.execution.runner.framing import READ_SIZE, Inbox, pack
from swamp_worker.sdk.context import AsyncPort, Port
from swamp_worker.sdk.conversations import Ask, Situation
from swamp_worker.sdk.errors import Cancelled, Invalid, TooLarge, Unavailable, call_failed


class Wire:
    """The socket to the executor, its bytes that were read already, and the numbers of questions."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.inbox = Inbox()
        self.number = 0

    def wait(self) -> None:
        """Until there is something to read. A signal's handler may raise out of it."""
        poll = select.poll()
        poll.register(self.channel, select.POLLIN)
        poll.poll()

    def question(self, ask: Ask) -> tuple[int, bytes]:
        """Its number and its bytes. Raises `TooLarge` and `Invalid`."""
        self.number += 1
        try:
            return self.number, pack({**ask, "id": self.number})
        except LimitExceeded as error:
            raise TooLarge(f"{ask.get('verb', ask['ask'])}: {error}") from None
        except Unsupported as error:
            raise Invalid(f"{ask.get('verb', ask['ask'])}: {error}") from None


def _value(message: dict[str, Any]) -> dict[str, Any]:
    if "code" in message:
        raise call_failed(message["code"], message["message"])
    value: dict[str, Any] = message["value"]
    return value


class RunnerHouse:
    """Implements `swamp_worker.sdk.performance.House`."""

    def __init__(self, wire: Wire, situation: Situation) -> None:
        self._wire = wire
        self._situation = situation
        self._token: trio.lowlevel.TrioToken | None = None
        self._scope: trio.CancelScope | None = None
        self._plain = False  # plain code runs, and may be interrupted
        self._held = 0  # in parts that must not be interrupted
        self._raised = False
        signal.signal(signal.SIGTERM, self._on_term)

    # ── TERM ────────────────────────────────────────────────────────────────────────────────────────────────
    def _on_term(self, *_: object) -> None:
        self._situation.cancelled = True
        if self._token is not None and self._scope is not None:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._scope.cancel)
        elif self._plain and not self._held:
            self.interrupt()

    def interrupt(self) -> None:
        """Raises `Cancelled` in plain code, once, unless it looks itself."""
        if self._situation.cancelled and not self._situation.polls and not self._raised:
            self._raised = True
            raise Cancelled

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """What runs inside is not interrupted. In other threads nothing ever is."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1

    # ── running ─────────────────────────────────────────────────────────────────────────────────────────────
    def run_plain(self, make: Callable[[Port], Any]) -> Any:
        if self._situation.cancelled:
            raise Cancelled
        self._plain = True
        try:
            return make(_BlockingPort(self._wire, self))
        finally:
            self._plain = False

    def run_async(self, make: Callable[[AsyncPort], Any]) -> Any:
        if self._situation.cancelled:
            raise Cancelled
        return trio.run(self._run_async, make)

    async def _run_async(self, make: Callable[[AsyncPort], Any]) -> Any:
        ended: outcome.Outcome[Any] | None = None
        async with _open_port(self._wire) as port:
            with trio.CancelScope() as scope:
                self._scope, self._token = scope, trio.lowlevel.current_trio_token()
                if self._situation.cancelled:
                    scope.cancel()
                try:
                    ended = outcome.Value(await make(port))
                except trio.Cancelled:
                    raise
                except (
                    BaseException
                ) as error:  # it leaves as it is, not in the group that a nursery would make of it
                    ended = outcome.Error(error)
                finally:
                    self._scope = self._token = None
        if ended is None:
            raise Cancelled
        return ended.unwrap()

    def pause(self, seconds: float) -> None:
        self._plain = True
        try:
            self.interrupt()
            time.sleep(seconds)
        finally:
            self._plain = False
        if self._situation.cancelled:
            raise Cancelled


class _BlockingPort:
    """Implements `swamp_worker.sdk.context.Port`. Several threads may use it; one question at a time is out."""

    def __init__(self, wire: Wire, house: RunnerHouse) -> None:
        self._wire = wire
        self._house = house
        self._lock = threading.Lock()

    def ask(self, question: Ask) -> dict[str, Any]:
        with self._lock:
            with self._house.held():
                number, data = self._wire.question(question)
                try:
                    self._wire.channel.sendall(data)
                except OSError as error:
                    raise Unavailable(f"the executor does not listen any more: {error.strerror}") from None
            while True:
                with self._house.held():
                    message = self._wire.inbox.take()
                    if message is None:
                        message = self._read()
                if (
                    message is not None and message["id"] == number
                ):  # another's belongs to a question given up
                    return _value(message)
                if message is None and threading.current_thread() is threading.main_thread():
                    self._house.interrupt()
                    self._wire.wait()

    def _read(self) -> dict[str, Any] | None:
        try:
            data = self._wire.channel.recv(READ_SIZE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            if threading.current_thread() is not threading.main_thread():
                self._wire.wait()
            return None
        except OSError as error:
            raise Unavailable(f"the executor does not listen any more: {error.strerror}") from None
        if not data:
            raise Unavailable("the executor does not listen any more")
        self._wire.inbox.feed(data)
        return self._wire.inbox.take()


class _TrioPort:
    """Implements `swamp_worker.sdk.context.AsyncPort`. Many questions may be out at a time."""

    def __init__(self, wire: Wire, channel: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        self._wire = wire
        self._channel = channel
        self._nursery = nursery
        self._sending = trio.Lock()
        self._room = trio.CapacityLimiter(CALLS_PER_DISPATCH_MAX)
        self._answers: dict[int, dict[str, Any] | None] = {}
        self._came = trio.lowlevel.ParkingLot()
        self._reading = False
        self._over = ""

    async def ask(self, question: Ask) -> dict[str, Any]:
        async with self._room:
            number, data = self._wire.question(question)
            self._answers[number] = None
            try:
                if not self._reading:
                    self._reading = True
                    self._nursery.start_soon(self._read)
                async with self._sending:
                    with trio.CancelScope(shield=True):  # half a message would be the end of all others
                        await self._send(data)
                while self._answers[number] is None:
                    if self._over:
                        raise Unavailable(self._over)
                    await self._came.park()
                message = self._answers[number]
                assert message is not None
                return _value(message)
            finally:
                self._answers.pop(number, None)

    async def _send(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:
                left = left[await self._channel.send(left) :]
        except OSError as error:
            raise Unavailable(f"the executor does not listen any more: {error.strerror}") from None

    async def _read(self) -> None:
        while True:
            while (message := self._wire.inbox.take()) is not None:
                if message["id"] in self._answers:
                    self._answers[message["id"]] = message
            self._came.unpark_all()
            try:
                data = await self._channel.recv(READ_SIZE)
            except OSError:
                data = b""
            if not data:
                self._over = "the executor does not listen any more"
                self._came.unpark_all()
                return
            self._wire.inbox.feed(data)


@contextlib.asynccontextmanager
async def _open_port(wire: Wire) -> Any:
    """A port for one stay in trio; the socket goes back as it came."""
    channel = trio.socket.from_stdlib_socket(wire.channel.dup())
    try:
        async with trio.open_nursery() as nursery:
            yield _TrioPort(wire, channel, nursery)
            nursery.cancel_scope.cancel()
    finally:
        channel.close()
        wire.channel.setblocking(True)
