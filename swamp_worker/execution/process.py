"""One process group: start it, watch its pipes and its end, empty it, and count what is left.

Rules that hold here:

- A process is started in its own session and group, standard input from `/dev/null`, with every signal at
  its default and no descriptor of ours but its three. The group's number is the child's pid.
- Nothing but `reap` waits for the child. Until then its pid, and so the group's number, cannot be reused.
- "Empty" is what the operating system says (`kill(-group, 0)`), never what was sent. Orphans of the group
  that became our children (we are a child subreaper on Linux) are reaped here, or they would count for
  ever.

The way to start one was measured (2 cores, Python 3.11, from the spawn to the reaped end of `sh -c true`,
mean of 300):

    trio.run_process(capture_stdout=True)          1.10 – 1.60 ms os.posix_spawn(setsid=True) + pidfd
    0.73 ms   (0.15 ms of it in the spawn); has no working directory … of `/usr/bin/env -C DIR sh -c …`
    1.35 ms   (a second exec) … of `sh -c 'cd DIR && exec sh -c …'`          1.23 ms   (the same)
    subprocess.Popen(cwd=, start_new_session=)     0.74 ms   (0.16 ms in the spawn): what is used

`Popen` without a `preexec_fn` is a vfork with a chdir, a setsid and an errno that comes back when any of
them fails. The other 0.4 ms of `trio.run_process` are its tasks, its waiting thread's start and its stream
objects: done without here.

It does not know: dispatches, lines, timeouts, leases, the keeper.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import attrs
import trio

READ_SIZE: Final = 64 * 1024  # the capacity of a pipe
_LOOK_S_MIN: Final = 0.002  # between two looks whether a group is empty
_LOOK_S_MAX: Final = 0.1


@attrs.define(eq=False)
class Child:
    """A started process. `out` and `err` are non-blocking read ends; None once closed."""

    pid: int
    out: int | None
    err: int | None
    _exit_fd: int | None
    _popen: "subprocess.Popen[bytes] | None" = attrs.field(repr=False)  # None: forked by somebody else
    status: int | None = None  # exit code, or minus the signal; None until reaped

    def close_pipe(self, descriptor: int) -> None:
        """One of the two, at its end of file."""
        os.close(descriptor)
        if descriptor == self.out:
            self.out = None
        else:
            self.err = None

    def close_exit(self) -> None:
        """After the end was taken: it would stay readable for ever."""
        if self._exit_fd is not None:
            os.close(self._exit_fd)
            self._exit_fd = None

    def close(self) -> None:
        """Close every descriptor. Idempotent; does not end the process."""
        for name in ("out", "err", "_exit_fd"):
            descriptor = getattr(self, name)
            if descriptor is not None:
                setattr(self, name, None)
                os.close(descriptor)


def spawn(
    command: Sequence[str],
    program: str,
    environment: Mapping[bytes, bytes],
    directory: str,
    pass_fds: Sequence[int] = (),
) -> Child:
    """Start `program` with the arguments `command`, in `directory`; it has the descriptors `pass_fds` too. Raises OSError or
    ValueError; then nothing runs.
    """
    out_read, out_write = os.pipe()
    err_read, err_write = os.pipe()
    try:
        os.set_blocking(out_read, False)
        os.set_blocking(err_read, False)
        started = subprocess.Popen(
            command,
            executable=program,
            env=environment,
            cwd=directory,
            stdin=_null(),
            stdout=out_write,
            stderr=err_write,
            start_new_session=True,
            pass_fds=pass_fds,
        )
    except BaseException:
        os.close(out_read)
        os.close(err_read)
        raise
    finally:
        os.close(out_write)
        os.close(err_write)
    return Child(started.pid, out_read, err_read, _open_exit(started.pid), started)


def adopt(pid: int, out: int, err: int) -> Child:
    """A process that somebody else made a child of ours, leading its own session and group; `out` and `err` are read ends."""
    os.set_blocking(out, False)
    os.set_blocking(err, False)
    return Child(pid, out, err, _open_exit(pid), None)


_null_descriptor: int | None = None


def _null() -> int:
    global _null_descriptor
    if _null_descriptor is None:
        _null_descriptor = os.open(os.devnull, os.O_RDWR)
    return _null_descriptor


def _open_exit(pid: int) -> int:
    """A descriptor that becomes readable when `pid` has ended and can be reaped without waiting."""
    if sys.platform == "linux":
        try:
            return os.pidfd_open(pid)
        except OSError:  # a kernel before 5.3, or a sandbox that forbids the call
            pass
    return _watch_in_thread(pid)


def _watch_in_thread(pid: int) -> int:
    """The same from a thread that waits without reaping, for systems that have no process descriptors."""
    readable, writable = os.pipe()

    def watch() -> None:
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        os.close(writable)  # end of file is the news

    threading.Thread(target=watch, name=f"exit of {pid}", daemon=True).start()
    return readable


class Watch:
    """Waits for a child's output and its end in one task.

    - `wait_end` waits for the end alone. A process that ends closes its two pipes and dies within microseconds; whoever waits
      for all three is woken up to three times for it, and each wake-up is paid by the dying process too (measured: 1.8 turns
      of the loop per `true` instead of 1).
    - `wait` waits for all three by one descriptor that stands for them; three tasks in a nursery cost about three times as much.
    """

    def __init__(self, child: Child) -> None:
        self._child = child
        self._selector: Any = None  # select.epoll, or select.kqueue where there is none

    async def wait_end(self, at_most_s: float) -> bool:
        """Until the child has ended and can be reaped; False when `at_most_s` have passed."""
        assert self._child._exit_fd is not None
        with trio.move_on_after(at_most_s):
            await trio.lowlevel.wait_readable(self._child._exit_fd)
            return True
        return False

    async def wait(self) -> None:
        """Until there is something to read, an end of file, or the end of the child."""
        if self._selector is None:
            self._open()
        await trio.lowlevel.wait_readable(self._selector.fileno())

    def ready(self) -> list[int]:
        """Descriptors that have something now."""
        if sys.platform == "linux":
            return [descriptor for descriptor, _ in self._selector.poll(0)]
        else:  # noqa: RET505 - the type checker reads one of the two, by platform
            return [event.ident for event in self._selector.control(None, 3, 0)]

    def close(self) -> None:
        if self._selector is not None:
            self._selector.close()

    def _open(self) -> None:
        child = self._child
        open_now = [each for each in (child.out, child.err, child._exit_fd) if each is not None]
        if sys.platform == "linux":
            self._selector = select.epoll()
            for descriptor in open_now:
                self._selector.register(descriptor, select.EPOLLIN)
        else:
            self._selector = select.kqueue()
            add = [select.kevent(each, select.KQ_FILTER_READ, select.KQ_EV_ADD) for each in open_now]
            self._selector.control(add, 0)


def read_some(descriptor: int) -> bytes | None:
    """What is there: bytes, b"" at the end of file, None when nothing is ready."""
    try:
        return os.read(descriptor, READ_SIZE)
    except BlockingIOError:
        return None


def reap(child: Child) -> bool:
    """Take the end of the child, if it has ended. Afterwards `child.status` is set."""
    if child.status is not None:
        return True
    try:
        pid, status = os.waitpid(child.pid, os.WNOHANG)
    except ChildProcessError:  # somebody else took it: nothing better is known than that it is gone
        _note_end(child, -signal.SIGKILL)
        return True
    if pid == 0:
        return False
    _note_end(child, os.waitstatus_to_exitcode(status))
    return True


def _note_end(child: Child, status: int) -> None:
    child.status = status
    if child._popen is not None:
        child._popen.returncode = status


def kill_and_reap(pid: int) -> None:
    """KILL one process that is our child, an orphan that came to us, and reap it if it has ended."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def signal_group(group: int, number: int) -> bool:
    """Send to every member. False when there is none."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # members of another user: they are there, and out of reach
        return True
    return True


def terminate_group(group: int) -> None:
    """TERM, and CONT so that stopped members take it."""
    if signal_group(group, signal.SIGTERM):
        signal_group(group, signal.SIGCONT)


def group_is_empty(group: int) -> bool:
    """Whether no member is left, reaping those that became our children. One system call when it is empty."""
    if not signal_group(group, 0):
        return True
    if not _reap_members(group):
        return False
    return not signal_group(group, 0)


def _reap_members(group: int) -> bool:
    """Reap dead members of the group that are our children. Whether there was one."""
    found = False
    while True:
        try:
            pid, _ = os.waitpid(-group, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        found = True


async def wait_until(done: Callable[[], bool], within_s: float) -> bool:
    """Look again and again, ever more rarely, until `done()`; False when `within_s` passed first.

    For conditions the kernel has no event for, such as the emptiness of a process group.
    """
    until = trio.current_time() + within_s
    pause_s = _LOOK_S_MIN
    while not done():
        left_s = until - trio.current_time()
        if left_s <= 0:
            return False
        await trio.sleep(min(pause_s, left_s))
        pause_s = min(pause_s * 1.5, _LOOK_S_MAX)
    return True
