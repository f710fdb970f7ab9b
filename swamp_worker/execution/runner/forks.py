"""The executor's side of its forkserver: started with the first Python step, kept, watched, replaced when it died; and the runners
that it has made and that wait for a step.

    runner = await forks.take()     # one that waits; whoever takes it registers it, then sends it its start
    forks.refill()                  # a step has ended: make those that the next ones will want

Rules that hold here:

- The forkserver is registered with the keeper before it can fork anything. What it forked carries its marker until a step's start
  has come: it dies with the forkserver's entry, and by itself when the executor is gone or closes its channel.
- A runner leads its own group before anybody is told of it, so that registering it is all that a dispatch needs.
- At most `SPARES` wait, and `FEW` when no step has ended for `REST_S`. Two steps never get the same one; a runner whose forkserver
  has died is not handed out.
- A fork is not cancelled half way.
- Where a grandchild can not become a child of ours (no child subreaper), there is no forkserver; runners start cold.
"""

import array
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Final

import attrs
import trio

from swamp_proto.errors import Broken, SwampError
from swamp_worker.execution import procfs
from swamp_worker.execution.keeper import Keeper
from swamp_worker.execution.process import Child, adopt, kill_and_reap
from swamp_worker.execution.registry import boot_ns

SPARES: Final = 3
"""Runners that wait, at most: each is about 4 MiB that it does not share. Made by two, a fork that is only a go-between is made
for two steps together, and short bursts find theirs ready."""

FEW: Final = 1  # so few of them are filled up again
REST_S: Final = 30.0
ANSWER: Final = struct.Struct("<qq")  # which one of the request, and its pid
NONE: Final = b"\0"
EACH: Final = 3  # descriptors that a runner is given: channel, standard output, standard error
MARKER_ROOM: Final = 64
_FORK_S: Final = 20.0
_SCRIPT: Final = Path(__file__).with_name("forkserver.py")


@attrs.frozen(eq=False)
class Waiting:
    """A runner that waits for its start on `channel`, our end. It was forked after `from_ns`, by the boot clock."""

    child: Child
    channel: socket.socket
    from_ns: int

    @property
    def pid(self) -> int:
        return self.child.pid

    def let_go(self) -> None:
        """Nobody wants it."""
        self.channel.close()
        self.child.close()
        kill_and_reap(self.pid)


class Forks:
    """One per executor. `take` starts what it needs."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._process: subprocess.Popen[bytes] | None = None
        self._control: trio.socket.SocketType | None = None
        self._waiting: list[Waiting] = []
        self._lock = trio.Lock()
        self._is_refilling = False
        self._is_resting = False
        self._used_at = 0.0

    @property
    def available(self) -> bool:
        """Whether runners can be forked on this system."""
        return self._keeper.is_subreaper

    @property
    def pid(self) -> int | None:
        """Of the forkserver, while there is one."""
        return self._process.pid if self._process is not None else None

    @property
    def spares(self) -> tuple[int, ...]:
        """The pids of those that wait."""
        return tuple(each.pid for each in self._waiting)

    async def take(self) -> Waiting:
        """A runner that waits; our child, leading its own group. Raises `Broken`."""
        if self._process is not None and self._process.poll() is not None:
            self._dismiss()
        with trio.CancelScope(shield=True):
            while not self._waiting:
                await self._more(1)
        return self._waiting.pop(0)

    def refill(self) -> None:
        """Soon make those that are missing, when few are left."""
        self._used_at = trio.current_time()
        if self._process is None:
            return
        if len(self._waiting) > FEW:
            self._rest_soon()
        elif not self._is_refilling:
            self._is_refilling = True
            trio.lowlevel.spawn_system_task(self._refill)

    def mistrust(self) -> None:
        """One of them was dead when its step came: none that was made before is handed out."""
        self._dismiss()

    async def _refill(self) -> None:
        """A system task: what it makes is for steps that have not come yet. When it can not, the next step says why."""
        try:
            with contextlib.suppress(SwampError):
                await self._more(FEW + 1)
        finally:
            self._is_refilling = False
        self._rest_soon()

    def _rest_soon(self) -> None:
        if not self._is_resting:
            self._is_resting = True
            trio.lowlevel.spawn_system_task(self._rest)

    async def _rest(self) -> None:
        """A system task: while more wait than a machine without steps should keep."""
        while len(self._waiting) > FEW:
            left_s = self._used_at + REST_S - trio.current_time()
            if left_s <= 0:
                self._dismiss(FEW)
            else:
                await trio.sleep(left_s)
        self._is_resting = False

    async def _more(self, least: int) -> None:
        """See to it that at least so many wait. Raises `Broken`."""
        async with self._lock:
            for _ in range(2):  # the second time with a forkserver that is surely new
                if len(self._waiting) >= least:
                    return
                if self._process is None:
                    self._start()
                if await self._ask(SPARES - len(self._waiting)):
                    return
                await self._end()
        raise Broken("no process could be made for the method: the machine may be out of processes or memory")

    async def _ask(self, count: int) -> bool:
        """Whether the forkserver made any."""
        control, process = self._control, self._process
        assert control is not None
        from_ns = boot_ns()
        ours: list[int] = []
        theirs: list[int] = []
        made: list[Waiting] = []
        try:
            for _ in range(count):
                here, there = socket.socketpair()
                ours.append(here.detach())
                theirs.append(there.detach())
                for _ in ("out", "err"):
                    read, write = os.pipe()
                    ours.append(read)
                    theirs.append(write)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", theirs).tobytes())]
            answer = b""
            with trio.move_on_after(_FORK_S):
                await control.sendmsg([b"."], rights)
                answer = await control.recv(count * ANSWER.size)
            for number, pid in ANSWER.iter_unpack(answer[: len(answer) // ANSWER.size * ANSWER.size]):
                if self._process is process:
                    mine = slice(number * EACH, number * EACH + EACH)
                    channel, out, err = ours[mine]
                    child = adopt(pid, out, err)
                    ours[mine] = [-1] * EACH
                    made.append(
                        Waiting(child, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, channel), from_ns)
                    )
        except (OSError, trio.ClosedResourceError):  # it has ended; its watch may have noticed first
            pass
        finally:
            for descriptor in (
                *theirs,
                *ours[len(made) * EACH :],
            ):  # one that was made, and not said, ends by this
                os.close(descriptor)
        for each in made:
            self._keeper.stand_by(each.pid)
        self._waiting += made
        return bool(made)

    def _dismiss(self, but: int = 0) -> None:
        """Nobody gets those that wait, but so many."""
        dismissed, self._waiting = self._waiting[but:], self._waiting[:but]
        for each in dismissed:
            self._keeper.dismiss(each.pid)
            each.let_go()

    def _start(self) -> None:
        """Start the process. Raises `Broken`."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        marker = f"forkserver-{uuid.uuid4()}".ljust(MARKER_ROOM, ".")
        self._keeper.expect(marker)
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-X", "utf8", str(_SCRIPT), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env={"PATH": os.environ.get("PATH", os.defpath), procfs.MARKER_NAME: marker},
                cwd="/",
            )
        except OSError as error:
            self._keeper.forget(marker)
            ours.close()
            raise Broken(
                f"the process that starts Python methods can not be started: {error.strerror}"
            ) from error
        finally:
            theirs.close()
        self._keeper.register(marker, process.pid)
        self._process = process
        self._control = trio.socket.from_stdlib_socket(ours)
        trio.lowlevel.spawn_system_task(self._watch, process, self._control, marker)

    async def _watch(
        self, process: "subprocess.Popen[bytes]", control: trio.socket.SocketType, marker: str
    ) -> None:
        """A system task: the forkserver belongs to no step, and ends with the program at the latest."""
        try:
            await wait_gone(process)
        finally:
            control.close()  # what ends it, when it has not ended
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            with trio.CancelScope(shield=True):
                await wait_gone(process)
            if self._process is process:
                self._dismiss()
                self._process = self._control = None
            for pid in self._keeper.left(marker, None):  # made, and never said
                if not self._keeper.knows(pid):
                    kill_and_reap(pid)
            with contextlib.suppress(KeyError, ValueError):  # a keeper that has ended needs no word
                self._keeper.forget(marker, process.pid)

    async def _end(self) -> None:
        """Kill what does not answer, and wait for its watch to have noticed."""
        process = self._process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await wait_gone(process)
        self._dismiss()
        self._process = self._control = None


async def wait_gone(process: "subprocess.Popen[bytes]") -> None:
    """Until a process of ours has ended; reaps it."""
    while process.poll() is None:
        with contextlib.suppress(OSError):
            descriptor = os.pidfd_open(process.pid)
            try:
                await trio.lowlevel.wait_readable(descriptor)
                continue
            finally:
                os.close(descriptor)
        await trio.sleep(0.05)
