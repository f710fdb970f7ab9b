"""The forkserver: `python -I forkserver.py CONTROL`. A process that has imported what runners need, and forks them.

It reads requests from `CONTROL`: the marker of a dispatch, and three descriptors (standard output, standard error, channel). For
each it gives a process that is *not* its child but its parent's, which is what the executor's reaping is built on: it forks a
middle process that forks the runner and ends, so that the runner is handed to the nearest child subreaper, the executor. The
answer is the runner's pid, sent only when all of this is so:

- the runner leads its own session and group,
- its environment, as others see it (`/proc/PID/environ`), names its dispatch,
- it belongs to the executor.

One runner is kept ready: forked before anybody asked, and rehearsed, so that the pages which a step touches are its own already. Until
it is asked for it waits in the forkserver's group, runs nothing of an author's, and goes when the forkserver goes.

It ends when `CONTROL` does. It has one thread, always: forking a process with more of them is how locks are copied that nobody
will ever open.
"""

import array
import contextlib
import ctypes
import gc
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import NoReturn

if __name__ == "__main__":  # started by its path, in an interpreter that looks nowhere else
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import swamp_worker.models.built_in  # noqa: F401 - what comes with swamp need not be imported again by each runner
from swamp_worker.execution.procfs import MARKER_NAME
from swamp_worker.execution.runner import main
from swamp_worker.execution.runner.forks import ANSWER, MARKER_ROOM

_BORN_MS = 5_000  # for a runner to say that it is there


class _Spare:
    """A runner that waits. `ask` and `born` are our ends of what it listens to and answers with."""

    def __init__(self, ask: socket.socket, born: int) -> None:
        self._ask = ask
        self._born = born

    def take(self, marker: bytes, descriptors: list[int]) -> int:
        """Make it the runner of a dispatch. Its pid; 0 when it is not there any more."""
        try:
            socket.send_fds(self._ask, [marker], descriptors)
        except OSError:
            return 0
        poll = select.poll()
        poll.register(self._born, select.POLLIN)
        said = os.read(self._born, ANSWER.size) if poll.poll(_BORN_MS) else b""
        return int(ANSWER.unpack(said)[0]) if len(said) == ANSWER.size else 0

    def close(self) -> None:
        self._ask.close()
        os.close(self._born)


def serve(control: socket.socket) -> None:
    """Until the executor is gone."""
    place = _marker_place()
    main.rehearse()
    gc.collect()
    gc.freeze()  # what is shared with all runners is not touched by their collectors
    spare = _fork(control, place)
    while True:
        marker, descriptors = _receive(control)
        if not marker:
            return
        pid = 0
        for _ in range(2):  # one that waited may have been killed; the second is new
            if spare is not None and len(descriptors) == 3:
                pid = spare.take(marker, descriptors)
                spare.close()
            if pid:
                break
            spare = _fork(control, place)
        for descriptor in descriptors:
            os.close(descriptor)
        control.send(ANSWER.pack(pid))
        if pid:
            spare = _fork(control, place)


def _receive(control: socket.socket) -> tuple[bytes, list[int]]:
    """One request and its descriptors; nothing at the end."""
    found = array.array("i")
    data, ancillary, _, _ = control.recvmsg(MARKER_ROOM, socket.CMSG_SPACE(3 * found.itemsize))
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(content[: len(content) - len(content) % found.itemsize])
    return data, list(found)


def _fork(control: socket.socket, place: int) -> _Spare | None:
    """A new runner that waits; None when the system does not give one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    born_read, born_write = os.pipe()
    try:
        try:
            middle = os.fork()
        except OSError:
            ours.close()
            os.close(born_read)
            return None
        if middle == 0:
            with contextlib.suppress(BaseException):  # a middle process must never come back into the loop
                if os.fork() == 0:
                    control.close()
                    ours.close()
                    os.close(born_read)
                    _wait(theirs, place, born_write)
            os._exit(0)
        os.waitpid(middle, 0)
        return _Spare(ours, born_read)
    finally:
        theirs.close()
        os.close(born_write)


def _wait(asked: socket.socket, place: int, born: int) -> NoReturn:
    """In the runner: until it is asked for."""
    try:
        main.rehearse()
        marker, descriptors = _receive(asked)
        if len(descriptors) != 3:
            os._exit(0)  # the forkserver has gone
        if place:  # before it leaves the forkserver's group: at no instant is it out of a killer's sight
            ctypes.memmove(place, marker.ljust(MARKER_ROOM, b"\0")[:MARKER_ROOM], MARKER_ROOM)
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        out, err, channel = descriptors
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.close(out)
        os.close(err)
        os.set_inheritable(channel, False)
        asked.close()
        os.write(born, ANSWER.pack(os.getpid()))
        os.close(born)
        main.run(socket.socket(fileno=channel))
    finally:
        os._exit(1)


def _marker_place() -> int:
    """Where the value of the marker stands in the environment that this process was started with; 0 when it can not be found.

    A forked process shows its ancestor's environment to the rest of the system. The place is as long as the longest marker, and
    each runner writes its own over it.
    """
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_void_p
    getenv.argtypes = [ctypes.c_char_p]
    found = getenv(MARKER_NAME.encode())
    if not found or len(os.environb.get(MARKER_NAME.encode(), b"")) < MARKER_ROOM:
        return 0
    return int(found)


if __name__ == "__main__":
    for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(_number, signal.SIG_IGN)
    serve(socket.socket(fileno=int(sys.argv[1])))
