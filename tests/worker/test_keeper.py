"""The keeper with real processes: what a holder leaves behind dies, whoever dies first. Counted from /proc."""
# ruff: noqa: ASYNC110, ASYNC240 - waits for what only /proc tells, and reading it does not block

import contextlib
import os
import signal
import struct
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from conftest import Lines, shell

from swamp_proto.messages.dispatch import Outcome
from swamp_worker.execution import keeper as keeper_module
from swamp_worker.execution import procfs, reaping
from swamp_worker.execution import registry as registry_module
from swamp_worker.execution.executor import StepExecutor
from swamp_worker.execution.interface import Control
from swamp_worker.execution.keeper import REGISTRY_NAME, Keeper, open_keeper, reap_predecessor
from swamp_worker.execution.registry import ENTRIES_MAX, Registry, State, boot_ns

ROOT = Path(__file__).parents[2]

# What a step may try to survive: the group, a session of its own, a double fork, a stopped process, one that ignores TERM.
SURVIVORS = """
sleep 311 &
setsid sleep 312 &
(setsid sh -c 'trap "" TERM; sleep 313; sleep 313' &)
(sh -c 'kill -STOP $$; sleep 314' &)
trap '' TERM HUP
echo up
sleep 315; sleep 316
"""

HOLDER = """
import sys, trio
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
from conftest import shell
from swamp_worker.execution.executor import StepExecutor
from swamp_worker.execution.interface import Control
from swamp_worker.execution.keeper import open_keeper
from swamp_worker.execution.registry import boot_ns

class Sink:
    async def write(self, first, lines):
        print(*[line.text for line in lines], keeper.pid, flush=True)

async def main():
    global keeper
    directory = Path({directory!r})
    async with open_keeper(directory, "the-holder") as keeper:
        keeper.renew(boot_ns(), 3600.0)
        executor = StepExecutor(directory / "work", keeper)
        dispatch = shell(Path({script!r}).read_text(), dispatch={dispatch!r})
        done = await executor.execute(dispatch, Sink(), Control())
        print("ended", done.outcome.value, done.error or "", flush=True)

trio.run(main)
"""


def marked(dispatch: str) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if (
                    f"SWAMP_DISPATCH={dispatch}\0".encode()
                    in Path(f"/proc/{name}/environ").read_bytes() + b"\0"
                ):
                    found.append(int(name))
            except OSError:
                pass
    return found


class Holder:
    """A real process that runs one step under a keeper. Its dispatch has a name that no other test has, of this run or another."""

    def __init__(self, directory: Path) -> None:
        self.dispatch = dispatch = str(uuid.uuid4())
        script = directory / "script"
        script.write_text(SURVIVORS)
        text = HOLDER.format(
            root=str(ROOT),
            tests=str(Path(__file__).parent),
            directory=str(directory),
            script=str(script),
            dispatch=dispatch,
        )
        self.process = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)

    async def up(self) -> int:
        """Until the step runs with everything it starts; the keeper's pid."""
        assert self.process.stdout is not None
        line = await trio.to_thread.run_sync(self.process.stdout.readline, abandon_on_cancel=True)
        word, pid = line.split()
        assert word == "up"
        while len(marked(self.dispatch)) < 6:
            await trio.sleep(0.01)
        return int(pid)

    async def wait(self) -> int:
        return await trio.to_thread.run_sync(self.process.wait, abandon_on_cancel=True)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        for pid in marked(self.dispatch):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


async def gone(dispatch: str) -> None:
    while marked(dispatch):
        await trio.sleep(0.01)


async def test_kill_9_of_the_holder_leaves_nothing(tmp_path: Path) -> None:
    holder = Holder(tmp_path)
    try:
        with trio.fail_after(60):
            keeper = await holder.up()
            holder.process.send_signal(signal.SIGKILL)
            await gone(holder.dispatch)
            while Path(f"/proc/{keeper}/cmdline").exists() and b"keeper_main" in cmdline(keeper):
                await trio.sleep(0.01)
        book = Registry.open(tmp_path / REGISTRY_NAME)
        assert book is not None
        assert book.header().cleaned
        book.close()
        found = reap_predecessor(tmp_path)
        assert found is not None
        assert (found.instance, found.reaped) == ("the-holder", True)
        assert not (tmp_path / REGISTRY_NAME).exists()
    finally:
        holder.close()


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


async def test_a_successor_reaps_when_holder_and_keeper_are_both_dead(tmp_path: Path) -> None:
    holder = Holder(tmp_path)
    try:
        with trio.fail_after(60):
            keeper = await holder.up()
            os.kill(keeper, signal.SIGSTOP)  # it cannot act on the end of its parent before it is dead itself
            holder.process.send_signal(signal.SIGKILL)
            await holder.wait()
            os.kill(keeper, signal.SIGKILL)
            assert len(marked(holder.dispatch)) >= 6
            found = await trio.to_thread.run_sync(reap_predecessor, tmp_path)
        assert found is not None
        assert found.reaped
        assert found.instance == "the-holder"
        assert marked(holder.dispatch) == []
        assert reap_predecessor(tmp_path) is None
    finally:
        holder.close()


async def test_a_stopped_holder_loses_its_step_at_the_give_up_instant(tmp_path: Path) -> None:
    """SIGSTOP past ⅞G, an instant that the test makes come at once: the keeper kills; the holder, going on, says abandoned and
    nothing else.
    """
    holder = Holder(tmp_path)
    try:
        with trio.fail_after(60):
            await holder.up()
            holder.process.send_signal(signal.SIGSTOP)
            book = Registry.open(tmp_path / REGISTRY_NAME)
            assert book is not None
            assert book.header().give_up_ns > boot_ns()
            book.set_give_up(boot_ns())
            book.close()
            await gone(holder.dispatch)
            holder.process.send_signal(signal.SIGCONT)
            assert holder.process.stdout is not None
            line = await trio.to_thread.run_sync(holder.process.stdout.readline, abandon_on_cancel=True)
            assert line.startswith("ended abandoned "), line
            assert await holder.wait() == 0
    finally:
        holder.close()


async def test_the_keeper_enforces_a_dispatchs_own_instant(tmp_path: Path) -> None:
    async with open_keeper(tmp_path, "me") as keeper:
        executor = StepExecutor(tmp_path / "work", keeper)
        lines, found = Lines(), []
        dispatch = shell("echo up; sleep 300", timeout_s=3600.0)

        async def execute() -> None:
            found.append(await executor.execute(dispatch, lines, Control()))

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(execute)
                await lines.came.wait()
                keeper.limit(dispatch.dispatch, boot_ns() + 50_000_000)
        assert found[0].outcome is Outcome.ABANDONED
        assert "keeper" in (found[0].error or "")


async def test_a_start_that_is_given_up_leaves_no_keeper(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        async with open_keeper(tmp_path, "me"):
            raise AssertionError("it was cancelled before")
    assert scope.cancelled_caught
    of_ours = [pid for pid in procfs.children() or [] if str(tmp_path).encode() in cmdline(pid)]
    assert of_ours == []


async def test_a_keeper_that_dies_is_replaced_and_said(tmp_path: Path) -> None:
    said: list[str] = []
    async with open_keeper(tmp_path, "me", say=said.append) as keeper:
        first = keeper.pid
        assert first is not None
        with trio.fail_after(60):
            os.kill(first, signal.SIGKILL)
            while keeper.pid in (first, None):
                await trio.sleep(0.01)
            while b"keeper_main" not in cmdline(keeper.pid or 0):
                await trio.sleep(0.01)
        assert len(said) == 1
        assert "keeper" in said[0]


async def is_reaped(pid: int) -> None:
    """Until nothing has the number; a zombie has it still."""
    while procfs.process(pid) is not None:
        await trio.sleep(0.02)


async def number_in(path: Path) -> int:
    """What somebody writes there, a line of its own."""
    while not (path.exists() and path.read_text().endswith("\n")):
        await trio.sleep(0.02)
    return int(path.read_text())


async def test_orphans_that_died_are_reaped_and_children_of_others_are_not(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(keeper_module, "_ORPHANS_LOOK_S", 0.1)
    with subprocess.Popen(["sleep", "300"]) as other:  # noqa: ASYNC220 - it is killed in here
        async with open_keeper(tmp_path, "me") as keeper:
            executor = StepExecutor(tmp_path / "work", keeper)
            with trio.fail_after(60):
                for number in range(3):
                    pids = tmp_path / f"pids-{number}"
                    orphan = f"(setsid sh -c 'echo $$ >> {pids}; exec %s' >/dev/null 2>&1 &); "
                    waits = f"until [ $(wc -l < {pids} || echo 0) = 2 ]; do sleep 0.01; done"
                    await executor.execute(
                        shell(orphan % "sleep 300" + orphan % "true" + waits), Lines(), Control()
                    )
                    for pid in pids.read_text().split():
                        await is_reaped(int(pid))
                assert other.poll() is None
                other.kill()
                assert other.wait() == -signal.SIGKILL


async def test_an_orphan_that_comes_long_after_its_step_is_reaped(tmp_path: Path, monkeypatch: Any) -> None:
    """It had a parent without the marker and outside the group, which lived on: nobody looks for that one."""
    monkeypatch.setattr(keeper_module, "_ORPHANS_LOOK_S", 0.05)
    (tmp_path / "daemon").write_text(
        'sh -c "echo \\$\\$ > late; exec sleep 300" >/dev/null 2>&1 & echo $$ > daemon-pid; wait'
    )
    script = f"cd {tmp_path}; (env -i PATH=$PATH setsid sh daemon >/dev/null 2>&1 &); until [ -s late ]; do sleep 0.01; done"
    async with open_keeper(tmp_path, "me") as keeper:
        executor = StepExecutor(tmp_path / "work", keeper)
        with trio.fail_after(60):
            done = await executor.execute(shell(script), Lines(), Control())
            assert (done.outcome, done.left) == (Outcome.SUCCEEDED, 0)
            daemon, late = await number_in(tmp_path / "daemon-pid"), await number_in(tmp_path / "late")
            os.kill(daemon, signal.SIGKILL)
            while (found := procfs.process(late)) is not None and found.parent != os.getpid():
                await trio.sleep(0.02)
            os.kill(late, signal.SIGKILL)
            await is_reaped(daemon)
            await is_reaped(late)


async def test_a_keeper_that_knows_of_nothing_does_not_look(tmp_path: Path, monkeypatch: Any) -> None:
    """It looks because something ran; an idle worker does not wake up for it."""
    monkeypatch.setattr(keeper_module, "_ORPHANS_LOOK_S", 0.0)
    looks = 0
    listed: list[int] = []

    def children() -> list[int]:
        nonlocal looks
        looks += 1
        return listed

    async def settled() -> None:
        for _ in range(10):
            await trio.testing.wait_all_tasks_blocked()
            await trio.lowlevel.checkpoint()

    monkeypatch.setattr(procfs, "children", children)
    async with open_keeper(tmp_path, "me") as keeper:
        await settled()
        assert looks == 0
        keeper.expect("marker")
        keeper.forget("marker")
        await settled()
        assert looks == 1


async def test_leaving_in_order_leaves_proof(tmp_path: Path) -> None:
    async with open_keeper(tmp_path, "first") as keeper:
        pid = keeper.pid
        executor = StepExecutor(tmp_path / "work", keeper)
        await executor.execute(shell("true"), Lines(), Control())
    assert pid is not None
    assert b"keeper_main" not in cmdline(pid)
    found = reap_predecessor(tmp_path)
    assert found is not None
    assert (found.instance, found.reaped) == ("first", True)


async def test_the_keeper_is_small_and_alone(keeper: Keeper) -> None:
    """Its own session, no signal of a terminal or service manager ends it, few megabytes."""
    assert keeper.pid is not None
    assert os.getsid(keeper.pid) == keeper.pid
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(keeper.pid, number)
    rollup = Path(f"/proc/{keeper.pid}/smaps_rollup").read_text()
    (pss,) = [int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")]
    assert pss < 15 * 1024
    environment = Path(f"/proc/{keeper.pid}/environ").read_bytes()
    assert b"TOKEN" not in environment
    assert keeper.level == 2
    assert b"keeper_main" in cmdline(keeper.pid)


# ── the registry ──────────────────────────────────────────────────────────────────────────────────────────────


def test_entries_are_whole_or_absent(tmp_path: Path) -> None:
    book = Registry.create(tmp_path / "r", "instance")
    place = book.expect("marker-1", kill_by_ns=5)
    other = Registry.open(tmp_path / "r")
    assert other is not None
    (entry,) = other.entries()
    assert (entry.state, entry.marker, entry.kill_by_ns, entry.group) == (State.EXPECTED, "marker-1", 5, 0)
    book.register(place, 4242)
    (entry,) = other.entries()
    assert (entry.state, entry.group) == (State.RUNNING, 4242)
    assert entry.from_ns <= entry.until_ns
    other.mark_killed(place)
    assert book.killed(place)
    book.forget(place)
    assert other.entries() == []
    again = book.expect("marker-2", 0)
    assert not book.killed(again)
    assert other.header().instance == "instance"
    book.close()
    other.close()


def test_a_full_registry_refuses_and_recovers(tmp_path: Path) -> None:
    book = Registry.create(tmp_path / "r", "instance")
    places = [book.expect(f"m{number}", 0) for number in range(ENTRIES_MAX)]
    with pytest.raises(IndexError):
        book.expect("one more", 0)
    assert len(book.entries()) == ENTRIES_MAX
    for place in places:
        book.forget(place)
    assert book.entries() == []
    book.close()


@pytest.mark.parametrize("content", [b"", b"garbage", b"\0" * registry_module._SIZE])
def test_a_file_that_is_no_registry_is_put_away(tmp_path: Path, content: bytes) -> None:
    (tmp_path / REGISTRY_NAME).write_bytes(content)
    assert reap_predecessor(tmp_path) is None
    assert not (tmp_path / REGISTRY_NAME).exists()


def test_another_boot_needs_no_reaping(tmp_path: Path, monkeypatch: Any) -> None:
    """The pid may be anybody's now: nothing is killed."""
    with subprocess.Popen(["sleep", "300"], start_new_session=True) as innocent:
        try:
            monkeypatch.setattr(registry_module, "boot_id", lambda: "00000000-0000-0000-0000-000000000000")
            book = Registry.create(tmp_path / REGISTRY_NAME, "before-the-reboot")
            book.register(book.expect("m", 0), innocent.pid)
            book.close()
            found = reap_predecessor(tmp_path)
            assert found is not None
            assert found.reaped
            assert innocent.poll() is None
        finally:
            innocent.kill()


def test_a_reused_group_number_is_not_killed(tmp_path: Path) -> None:
    """Same boot, same number, but started at another time and without the marker: somebody else's."""
    book = Registry.create(tmp_path / REGISTRY_NAME, "me")
    place = book.expect("long-gone", 0)
    book.register(place, 1)

    time.sleep(0.05)
    with subprocess.Popen(["sleep", "300"], start_new_session=True) as innocent:
        try:
            struct.pack_into("<I", book._map, 128 + place * 128 + 4, innocent.pid)
            book.close()
            found = reap_predecessor(tmp_path)
            assert found is not None
            assert found.reaped
            assert innocent.poll() is None
        finally:
            innocent.kill()


def test_a_group_whose_leader_is_gone_needs_the_marker_later_on(tmp_path: Path) -> None:
    """Long after, the number may have led another group: without its leader only the marker tells."""
    shell_text = "sleep 300 >/dev/null & echo $!"
    leader = subprocess.run(
        ["setsid", "sh", "-c", shell_text],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"]},
    )
    member = int(leader.stdout)
    found = procfs.process(member)
    assert found is not None
    try:
        assert procfs.process(found.group) is None
        entry = registry_module.Entry(0, State.RUNNING, False, found.group, 0, boot_ns(), 0, "long-gone")
        assert reaping.alive([entry], strict=True) == []
        assert [each.pid for each in reaping.alive([entry], strict=False)] == [member]
    finally:
        os.kill(member, signal.SIGKILL)
