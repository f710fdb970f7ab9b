"""The forkserver: `python -I forkserver.py CONTROL`. A process that has imported what runners need, and forks them.

It reads requests from `CONTROL`: for each runner three descriptors (its channel, its standard output, its standard error). For each
it makes a process that is *not* its child but its parent's, which is what the executor's reaping is built on: a middle process forks
the runners of one request and ends, so that they are handed to the nearest child subreaper, the executor. The answer is the runners'
pids, sent only when all of them belong to the executor.

A runner leads its own session and group from the beginning, and rehearses: then the pages that a step touches are its own already. It
waits for its start on its channel, runs nothing of an author's before, and goes when the executor closes that channel or has gone itself.
Its environment, as others see it (`/proc/PID/environ`), names the forkserver while it waits, and its dispatch from then on.

It ends when `CONTROL` does. It has one thread, always: forking a process with more of them is how locks are copied that nobody
will ever open.
"""

import array
import contextlib
import ctypes
import gc
import os
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

if __name__ == "__main__":  # started by its path, in an interpreter that looks nowhere else
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import swamp_worker.models.built_in  # noqa: F401 - what comes with swamp need not be imported again by each runner
from swamp_worker.execution.procfs import MARKER_NAME
from swamp_worker.execution.runner import main
from swamp_worker.execution.runner.forks import ANSWER, EACH, MARKER_ROOM, NONE, SPARES

_FORK: Final = ctypes.PyDLL(None).fork
"""The C library's, which tells the interpreter nothing: for the middle process, which only forks, properly, and ends. Renewing the
interpreter's locks, threads and random numbers touches 200 pages, and half of its time was that (measured: 1.3 ms against 0.75)."""


def serve(control: socket.socket) -> None:
    """Until the executor is gone."""
    place = _marker_place()
    main.rehearse()
    gc.collect()
    gc.freeze()  # what is shared with all runners is not touched by their collectors
    while descriptors := _receive(control):
        said = _fork(control, place, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        control.send(said or NONE)


def _receive(control: socket.socket) -> list[int]:
    """The descriptors of one request; nothing at the end."""
    found = array.array("i")
    data, ancillary, _, _ = control.recvmsg(1, socket.CMSG_SPACE(SPARES * EACH * found.itemsize))
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(content[: len(content) - len(content) % found.itemsize])
    return list(found) if data else []


def _fork(control: socket.socket, place: int, descriptors: list[int]) -> bytes:
    """What new runners that wait say of themselves, an `ANSWER` each; fewer than asked for when the system does not give them."""
    read, write = os.pipe()
    middle = _FORK()
    if middle < 0:
        os.close(read)
        os.close(write)
        return b""
    if middle == 0:
        with contextlib.suppress(BaseException):  # a middle process must never come back into the loop
            for at in range(0, len(descriptors) - EACH + 1, EACH):
                if os.fork() == 0:
                    mine = descriptors[at : at + EACH]
                    for descriptor in (control.detach(), read, *descriptors):
                        if descriptor not in mine:
                            os.close(descriptor)
                    _wait(place, write, at // EACH, *mine)
        os._exit(0)
    os.close(write)
    os.waitpid(middle, 0)
    said = b""
    while piece := os.read(read, SPARES * ANSWER.size):  # until each has said who it is, or is gone
        said += piece
    os.close(read)
    return said


def _wait(place: int, born: int, number: int, channel: int, out: int, err: int) -> NoReturn:
    """In the runner: until its step comes, and through it. `born` hears that it is there, and can be ended by its group."""
    try:
        os.setsid()
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.SIG_DFL)
        os.write(born, ANSWER.pack(number, os.getpid()))
        os.close(born)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.close(out)
        os.close(err)
        os.set_inheritable(channel, False)
        main.rehearse()
        main.run(socket.socket(fileno=channel), partial(_mark, place))
    finally:
        os._exit(1)


def _mark(place: int, marker: bytes) -> None:
    """From now on `/proc` says so, and no killer mistakes it for one that waits."""
    if place:
        ctypes.memmove(place, marker.ljust(MARKER_ROOM, b"\0")[:MARKER_ROOM], MARKER_ROOM)


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
