"""The executor's side of its forkserver: started with the first Python step, kept, watched, replaced when it died.

    pid = await forks.fork(dispatch, out, err, channel)

Rules that hold here:

- The forkserver is registered with the keeper before it can fork anything: it dies with its owner, and what it had just forked and
  nobody had registered yet dies with it, by its group.
- A fork is not cancelled half way: whoever is cancelled meanwhile finds a process that is registered, or none.
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

import trio

from swamp_proto.errors import Broken
from swamp_worker.execution import procfs
from swamp_worker.execution.keeper import Keeper
from swamp_worker.execution.process import kill_and_reap, wait_until

ANSWER: Final = struct.Struct("<q")
MARKER_ROOM: Final = 64
_FORK_S: Final = 20.0
_GONE_S: Final = 5.0
_SCRIPT: Final = Path(__file__).with_name("forkserver.py")


class Forks:
    """One per executor. `fork` starts what it needs."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._marker = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._control: trio.socket.SocketType | None = None
        self._lock = trio.Lock()

    @property
    def available(self) -> bool:
        """Whether runners can be forked on this system."""
        return self._keeper.is_subreaper

    @property
    def pid(self) -> int | None:
        """Of the forkserver, while there is one."""
        return self._process.pid if self._process is not None else None

    async def fork(self, dispatch: str, out: int, err: int, channel: int) -> int:
        """A runner that waits for its start on `channel`; our child, leading its own group. Raises `Broken`."""
        with trio.CancelScope(shield=True), trio.move_on_after(2 * _FORK_S):
            async with self._lock:
                for _ in range(2):  # the second time with a forkserver that is surely new
                    if self._process is None:
                        self._start()
                    pid = await self._ask(dispatch, out, err, channel)
                    if pid:
                        return pid
                    await self._end()
                    await wait_until(lambda: self._none_left(dispatch), _GONE_S)
        raise Broken("no process could be made for the method: the machine may be out of processes or memory")

    def _none_left(self, dispatch: str) -> bool:
        """Kills what a forkserver made without saying so: two runners must not listen to one channel."""
        found = self._keeper.left(dispatch, None)
        for pid in found:
            kill_and_reap(pid)
        return not found

    async def _ask(self, dispatch: str, out: int, err: int, channel: int) -> int:
        control = self._control
        assert control is not None
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [out, err, channel]).tobytes())]
        try:
            with trio.move_on_after(_FORK_S):
                await control.sendmsg([dispatch.encode()[:MARKER_ROOM]], rights)
                answer = await control.recv(ANSWER.size)
                if len(answer) == ANSWER.size:
                    return int(ANSWER.unpack(answer)[0])
        except (OSError, trio.ClosedResourceError):  # it has ended; its watch may have noticed first
            pass
        return 0

    def _start(self) -> None:
        """Start the process. Raises `Broken`."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._marker = f"forkserver-{uuid.uuid4()}".ljust(MARKER_ROOM, ".")
        self._keeper.expect(self._marker)
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-X", "utf8", str(_SCRIPT), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env={"PATH": os.environ.get("PATH", os.defpath), procfs.MARKER_NAME: self._marker},
                cwd="/",
            )
        except OSError as error:
            self._keeper.forget(self._marker)
            ours.close()
            raise Broken(
                f"the process that starts Python methods can not be started: {error.strerror}"
            ) from error
        finally:
            theirs.close()
        self._keeper.register(self._marker, process.pid)
        self._process = process
        self._control = trio.socket.from_stdlib_socket(ours)
        trio.lowlevel.spawn_system_task(self._watch, process, self._control, self._marker)

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
                self._process = self._control = None
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
