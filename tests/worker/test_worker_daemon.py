"""The daemon against a twin of the orchestrator over memory pipes, on a clock that jumps.

The executor is a twin too where only the link matters: it prints and ends when the test says so.
"""
# ruff: noqa: ASYNC110 - the clock jumps: a look every 0.1 s costs nothing and hopes for nothing

import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from conftest import shell
from fake_orchestrator import Orchestrator

from swamp_proto.errors import PERMANENT_REFUSALS, ExitCode, RefusalCode
from swamp_proto.limits import LOG_FRAME_BYTES, LOG_WINDOW_BYTES
from swamp_proto.messages.dispatch import Dispatch, Finished, LogBlock, LogNoted, Outcome, Stream
from swamp_proto.messages.enrollment import HeldPhase, Notice, Predecessor, Verdict
from swamp_worker.execution.executor import StepExecutor
from swamp_worker.execution.interface import Control, Executor, LogSink
from swamp_worker.execution.spool import SpoolRoom
from swamp_worker.shell.calls import StepCalls
from swamp_worker.shell.daemon import Ending, Machine, Ports, Settings, Worker
from swamp_worker.shell.voice import TROUBLE, Voice


class Scripted:
    """An executor that does what the test says; it obeys cancels as a process group would."""

    def __init__(self) -> None:
        self.running: dict[str, tuple[LogSink, Control]] = {}
        self.ends: dict[str, trio.Event] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.last: dict[str, int] = {}
        self.left: int | None = 0
        self.kill_takes_s = 0.0
        self.crash: Exception | None = None

    async def execute(self, dispatch: Dispatch, sink: LogSink, control: Control) -> Finished:
        name = dispatch.dispatch
        self.running[name] = (sink, control)
        self.ends[name] = trio.Event()
        self.last[name] = 0
        began_ms = int(trio.current_time() * 1000)
        try:
            if self.crash is not None:
                raise self.crash
            async with trio.open_nursery() as nursery:

                async def obey() -> None:
                    await control.cancel_asked.wait()
                    await trio.sleep(self.kill_takes_s)
                    self.outcomes[name] = Outcome.ABANDONED if control.abandon else Outcome.CANCELLED
                    self.ends[name].set()

                nursery.start_soon(obey)
                await self.ends[name].wait()
                nursery.cancel_scope.cancel()
        finally:
            del self.running[name]
        outcome = self.outcomes.get(name, Outcome.SUCCEEDED)
        error = None if outcome is Outcome.SUCCEEDED else f"it was {outcome.value}"
        return Finished(name, dispatch.fence, outcome, error, (), self.last[name], 0, self.left, began_ms, 5)

    async def print(self, dispatch: Dispatch, *texts: str) -> None:
        sink, _ = self.running[dispatch.dispatch]
        first = self.last[dispatch.dispatch] + 1
        self.last[dispatch.dispatch] += len(texts)
        await sink.write(first, tuple(LogBlock(Stream.STDOUT, text) for text in texts))

    def end(self, dispatch: Dispatch) -> None:
        self.ends[dispatch.dispatch].set()


@attrs.define
class World:
    """A worker and its orchestrator in one nursery."""

    worker: Worker
    orchestrator: Orchestrator
    executor: Any
    out: io.StringIO
    err: io.StringIO
    nursery: trio.Nursery
    renewals: list[tuple[float, float]]
    ending: Ending | None = None

    @property
    def said(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.getvalue().splitlines()]

    def kinds(self) -> list[str]:
        return [each["kind"] for each in self.said]

    async def live(self) -> None:
        self.ending = await self.worker.run()

    async def over(self) -> Ending:
        while self.ending is None:
            await trio.sleep(0.01)
        return self.ending


@asynccontextmanager
async def world(
    tmp_path: Path,
    *,
    executor: Executor | None = None,
    settings: dict[str, Any] | None = None,
    grace_s: float = 60.0,
    before: Callable[[Orchestrator], None] = lambda orchestrator: None,
    boot_s: Callable[[], float] = trio.current_time,
    settle: Callable[[str], bool] = lambda dispatch: True,
    calls: StepCalls | None = None,
) -> AsyncIterator[World]:
    out, err = io.StringIO(), io.StringIO()
    renewals: list[tuple[float, float]] = []
    used: Any = executor or Scripted()
    async with trio.open_nursery() as nursery:
        orchestrator = Orchestrator(nursery, grace_s=grace_s)
        before(orchestrator)
        worker = Worker(
            Settings(url="ws://twin", token="build.s3cret", **(settings or {})),
            Machine(
                "machine", "boot", "instance", "host", 42, "linux", "x86_64", Predecessor("old", "boot", True)
            ),
            Ports(
                dial=orchestrator.dial,
                executor=used,
                spool=SpoolRoom(tmp_path / "spool"),
                draw=lambda: 0.5,
                boot_s=boot_s,
                renew=lambda sent_at, grace: renewals.append((sent_at, grace)),
                settle=settle,
                wall_ms=lambda: int(trio.current_time() * 1000),
                calls=calls or StepCalls(lambda: 0.5),
            ),
            Voice(as_json=True, out=out, err=err),
        )
        found = World(worker, orchestrator, used, out, err, nursery, renewals)
        nursery.start_soon(found.live)
        try:
            with trio.fail_after(100_000):
                yield found
        finally:
            nursery.cancel_scope.cancel()


# ── being let in ────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_enroll_frame_says_everything(tmp_path: Path, autojump_clock: Any) -> None:
    async with world(tmp_path, settings={"capacity": 3, "labels": {"gpu": "true"}}) as w:
        await w.orchestrator.linked()
        (enroll,) = w.orchestrator.enrolls
        assert enroll.token == "build.s3cret"
        assert (enroll.machine_id, enroll.boot_id, enroll.instance) == ("machine", "boot", "instance")
        assert (enroll.host, enroll.pid, enroll.platform, enroll.arch) == ("host", 42, "linux", "x86_64")
        assert (enroll.capacity, enroll.labels, enroll.counter) == (3, {"gpu": "true"}, 1)
        assert enroll.predecessor == Predecessor("old", "boot", True)
        assert enroll.held == ()
        assert not enroll.draining
        await trio.testing.wait_all_tasks_blocked()
        assert w.kinds() == ["connecting", "enrolled", "waiting"]
        assert "s3cret" not in w.out.getvalue() + repr(w.worker._settings)


@pytest.mark.parametrize("code", list(PERMANENT_REFUSALS))
async def test_a_permanent_refusal_stops_with_keyword_cause_and_fix(
    tmp_path: Path, autojump_clock: Any, code: RefusalCode
) -> None:
    def refuse(orchestrator: Orchestrator) -> None:
        orchestrator.refusals.append((code, "the orchestrator says why", None))

    async with world(tmp_path, before=refuse) as w:
        ending = await w.over()
        assert ending.code is PERMANENT_REFUSALS[code]
        error = json.loads(w.err.getvalue())
        keyword, _, fix = TROUBLE[code]
        assert keyword in error["error"]
        assert (error["code"], error["hint"]) == (code.value, fix)
        assert w.orchestrator.dials == 1


async def test_everything_else_is_retried_for_ever(tmp_path: Path, autojump_clock: Any) -> None:
    def away(orchestrator: Orchestrator) -> None:
        orchestrator.offline = True
        orchestrator.refusals.append((RefusalCode.IDENTITY_BUSY, "wait", 3.0))
        orchestrator.refusals.append((RefusalCode.OVERLOADED, "later", 30.0))

    async with world(tmp_path, before=away) as w:
        await w.orchestrator.until(lambda: w.orchestrator.dials >= 50)
        w.orchestrator.offline = False
        await w.orchestrator.linked(3)
        assert [each.counter for each in w.orchestrator.enrolls] == [1, 2, 3]
        assert max(each["delayMs"] for each in w.said if each["kind"] == "retrying") <= 45_000


async def test_w48_a_hung_dial_is_given_up_and_a_drain_does_not_wait_for_it(
    tmp_path: Path, autojump_clock: Any
) -> None:
    class Hanging(Orchestrator):
        @asynccontextmanager
        async def dial(self) -> AsyncIterator[Any]:
            self.dials += 1
            await trio.sleep_forever()
            yield None

    async with trio.open_nursery() as nursery:
        hanging = Hanging(nursery)
        out = io.StringIO()
        machine = Machine("m", "b", "i", "h", 1, "linux", "x", None)
        ports = Ports(hanging.dial, Scripted(), SpoolRoom(tmp_path), lambda: 0.5, trio.current_time)
        worker = Worker(Settings("ws://twin", "a.b"), machine, ports, Voice(as_json=True, out=out))
        endings: list[Ending] = []

        async def live() -> None:
            endings.append(await worker.run())

        nursery.start_soon(live)
        await trio.sleep(60)
        assert hanging.dials > 2
        before = trio.current_time()
        worker.drain("received shutdown signal")
        while not endings:
            await trio.sleep(0.1)
        assert trio.current_time() - before < 1
        assert endings[0].code is ExitCode.DONE
        nursery.cancel_scope.cancel()


async def test_w47_no_reconnect_fails_only_if_it_never_enrolled(tmp_path: Path, autojump_clock: Any) -> None:
    def away(orchestrator: Orchestrator) -> None:
        orchestrator.offline = True

    async with world(tmp_path, settings={"reconnect": False}, before=away) as w:
        assert (await w.over()).code is ExitCode.NOT_CONNECTED
    async with world(tmp_path, settings={"reconnect": False}) as w:
        await w.orchestrator.linked()
        w.orchestrator.cut()
        assert (await w.over()).code is ExitCode.DONE


async def test_an_enrollment_that_makes_no_sense_is_no_enrollment(
    tmp_path: Path, autojump_clock: Any
) -> None:
    def hasty(orchestrator: Orchestrator) -> None:
        orchestrator.grace_s = 0.0

    async with world(tmp_path, before=hasty) as w:
        await w.orchestrator.linked(3)
        assert "enrolled" not in w.kinds()
        assert w.orchestrator.heartbeats == 0
        w.orchestrator.grace_s = 60.0
        await w.orchestrator.until(lambda: w.orchestrator.heartbeats)


# ── running steps ───────────────────────────────────────────────────────────────────────────────────────────


async def test_a_real_step_from_start_to_noted_end(tmp_path: Path, executor: StepExecutor) -> None:
    """Real processes, real clock."""
    async with world(tmp_path, executor=executor) as w:
        with trio.fail_after(60):
            await w.orchestrator.linked()
            kept = await w.orchestrator.start(shell("echo one; echo two >&2; exit 3"))
            finished = await w.orchestrator.finished(kept)
            while w.worker.held:
                await trio.sleep(0.01)
        assert kept.accepted
        assert sorted(line.text for line in kept.lines) == ["one", "two"]
        assert finished.outcome is Outcome.FAILED
        assert finished.last_line == 2
        assert json.loads(finished.outputs[0].content)["exitCode"] == 3
        assert w.kinds()[-2:] == ["dispatch_started", "dispatch_finished"]
        assert w.orchestrator.order.index("dispatch.log") < w.orchestrator.order.index("dispatch.finished")


async def test_capacity_is_kept_and_told(tmp_path: Path, autojump_clock: Any) -> None:
    async with world(tmp_path, settings={"capacity": 2}) as w:
        o = w.orchestrator
        await o.linked()
        first, second, third = [await o.start(shell("x")) for _ in range(3)]
        await o.until(lambda: third.refused)
        assert third.refused is RefusalCode.BUSY
        assert (first.accepted, second.accepted, third.accepted) == (True, True, False)
        w.executor.end(first.dispatch)
        await o.finished(first)
        fourth = await o.start(shell("x"))
        await o.until(lambda: fourth.accepted)


async def test_lines_together_go_in_one_frame(tmp_path: Path, autojump_clock: Any) -> None:
    async with world(tmp_path) as w:
        o = w.orchestrator
        await o.linked()
        kept = await o.start(shell("x"))
        await o.until(lambda: kept.accepted)
        await trio.testing.wait_all_tasks_blocked()
        await w.executor.print(kept.dispatch, *[f"line {number}" for number in range(1200)])
        await o.until(lambda: len(kept.lines) == 1200)
        assert o.order.count("dispatch.log") == 1


async def test_a_loud_step_sends_no_more_than_its_window_and_the_quiet_one_is_heard(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with world(tmp_path, settings={"capacity": 2}) as w:
        o = w.orchestrator
        await o.linked()
        o.notes_lines = False
        loud, quiet = await o.start(shell("x")), await o.start(shell("x"))
        await o.until(lambda: loud.accepted and quiet.accepted)
        await trio.testing.wait_all_tasks_blocked()
        await w.executor.print(loud.dispatch, *["x" * 1000 for number in range(3000)])
        await o.until(lambda: len(loud.lines) * 1001 >= LOG_WINDOW_BYTES)
        await trio.testing.wait_all_tasks_blocked()
        assert len(loud.lines) * 1001 <= LOG_WINDOW_BYTES + LOG_FRAME_BYTES
        w.executor.end(quiet.dispatch)
        await o.finished(quiet)
        o.notes_lines = True
        await o.tell(LogNoted(loud.dispatch.dispatch, len(loud.lines)))
        w.executor.end(loud.dispatch)
        await o.finished(loud)
        assert len(loud.lines) == 3000


async def test_a_stuck_group_keeps_its_slot_until_it_is_gone(tmp_path: Path, autojump_clock: Any) -> None:
    gone = trio.Event()
    async with world(tmp_path, settle=lambda dispatch: gone.is_set()) as w:
        o = w.orchestrator
        await o.linked()
        w.executor.left = 1
        kept = await o.start(shell("x"))
        await o.until(lambda: kept.accepted)
        await trio.testing.wait_all_tasks_blocked()
        w.executor.end(kept.dispatch)
        assert (await o.finished(kept)).left == 1
        other = await o.start(shell("y"))
        await o.until(lambda: other.refused)
        assert other.refused is RefusalCode.BUSY
        assert any("its slot stays taken" in each.get("message", "") for each in w.said)
        gone.set()
        await trio.sleep(2)
        third = await o.start(shell("z"))
        await o.until(lambda: third.accepted)


async def test_a_defect_of_the_executor_fails_its_step_and_nothing_else(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with world(tmp_path) as w:
        o = w.orchestrator
        await o.linked()
        w.executor.crash = RuntimeError("a bug of ours")
        finished = await o.finished(await o.start(shell("x")))
        assert finished.outcome is Outcome.FAILED
        assert finished.error == "internal error of the worker: RuntimeError"
        w.executor.crash = None
        await trio.sleep(2)
        kept = await o.start(shell("y"))
        await o.until(lambda: kept.accepted)


async def test_a_dispatch_id_that_is_a_path_is_refused(tmp_path: Path, autojump_clock: Any) -> None:
    async with world(tmp_path) as w:
        o = w.orchestrator
        await o.linked()
        kept = await o.start(shell("x", dispatch="../../outside"))
        await o.until(lambda: kept.refused)
        assert kept.refused is RefusalCode.MALFORMED
        assert w.executor.running == {}


async def test_cancel_reaches_the_step_and_unknown_ones_are_said_to_be(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with world(tmp_path) as w:
        o = w.orchestrator
        await o.linked()
        kept = await o.start(shell("x"))
        await o.until(lambda: kept.accepted)
        await trio.testing.wait_all_tasks_blocked()
        await o.cancel(kept.dispatch, fence=99)
        await o.until(lambda: kept.cancel_known is not None)
        assert kept.cancel_known is False
        kept.cancel_known = None
        await o.cancel(kept.dispatch)
        finished = await o.finished(kept)
        assert kept.cancel_known is True
        assert finished.outcome is Outcome.CANCELLED


# ── drops ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_drop_does_not_touch_a_running_step(tmp_path: Path, autojump_clock: Any) -> None:
    async with world(tmp_path) as w:
        o = w.orchestrator
        await o.linked()
        kept = await o.start(shell("x"))
        await o.until(lambda: kept.accepted)
        await trio.testing.wait_all_tasks_blocked()
        await w.executor.print(kept.dispatch, "before")
        await o.until(lambda: kept.lines)
        o.offline = True
        o.cut()
        await trio.sleep(1)
        await w.executor.print(kept.dispatch, "while away 1", "while away 2")
        await trio.sleep(20)
        o.offline = False
        await o.linked(2)
        (held,) = o.enrolls[1].held
        assert (held.dispatch, held.fence, held.phase) == (kept.dispatch.dispatch, 7, HeldPhase.RUNNING)
        assert held.last_line == 3
        await w.executor.print(kept.dispatch, "after")
        w.executor.end(kept.dispatch)
        finished = await o.finished(kept)
        assert finished.outcome is Outcome.SUCCEEDED
        assert [line.text for line in kept.lines] == ["before", "while away 1", "while away 2", "after"]
        assert kept.doubles == 0
        delays = [each["delayMs"] for each in w.said if each["kind"] == "retrying"]
        assert max(delays) <= 5_000  # G/12 while a step is held


async def test_an_end_is_held_and_delivered_and_sent_again_until_noted(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with world(tmp_path) as w:
        o = w.orchestrator
        await o.linked()
        kept = await o.start(shell("x"))
        await o.until(lambda: kept.accepted)
        await trio.testing.wait_all_tasks_blocked()
        o.cut()
        w.executor.end(kept.dispatch)
        o.notes_ends = False
        await o.finished(kept)
        o.cut()
        await o.linked(3)
        assert o.enrolls[2].held[0].phase is HeldPhase.FINISHED
        o.notes_ends = True
        o.end_failures.extend([RefusalCode.OVERLOADED, RefusalCode.INTERNAL])
        while w.worker.held:
            await trio.sleep(1)


async def test_lines_not_noted_come_again_on_the_next_link(tmp_path: Path, autojump_clock: Any) -> None:
    async with world(tmp_path) as w:
        o = w.orchestrator
        await o.linked()
        o.notes_lines = False
        kept = await o.start(shell("x"))
        await o.until(lambda: kept.accepted)
        await trio.testing.wait_all_tasks_blocked()
        await w.executor.print(kept.dispatch, "a", "b")
        await o.until(lambda: len(kept.lines) == 2)
        o.cut()
        await o.linked(2)
        await o.until(lambda: kept.doubles == 2)
        assert [line.text for line in kept.lines] == ["a", "b"]


async def test_w1_a_dropped_dispatch_is_reaped_before_its_slot_is_offered(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with world(tmp_path) as w:
        o = w.orchestrator
        w.executor.kill_takes_s = 5.0
        await o.linked()
        kept = await o.start(shell("x"))
        await o.until(lambda: kept.accepted)
        await trio.testing.wait_all_tasks_blocked()
        o.verdict = lambda held: Verdict.DROP
        o.cut()
        await o.linked(2)
        refused = await o.start(shell("y"))
        await o.until(lambda: refused.refused)
        assert refused.refused is RefusalCode.BUSY
        await trio.sleep(6)
        again = await o.start(shell("z"))
        await o.until(lambda: again.accepted)
        assert kept.finished is None
        assert w.worker.held == 1


async def test_the_holder_gives_up_first(tmp_path: Path, autojump_clock: Any) -> None:
    """TERM at ¾G after the newest answered heartbeat was sent; the end is abandoned, and still delivered."""
    async with world(tmp_path) as w:
        o = w.orchestrator
        await o.linked()
        kept = await o.start(shell("x"))
        await o.until(lambda: kept.accepted)
        await trio.testing.wait_all_tasks_blocked()
        last = w.renewals[-1][0]
        o.offline = True
        o.cut()
        _, control = w.executor.running[kept.dispatch.dispatch]
        await control.cancel_asked.wait()
        assert 45.0 <= trio.current_time() - last <= 46.5
        assert control.abandon
        assert 6.0 <= control.term_s <= 7.5
        o.offline = False
        finished = await o.finished(kept)
        assert finished.outcome is Outcome.ABANDONED


async def test_a_suspended_machine_says_abandoned_whatever_its_process_said(
    tmp_path: Path, autojump_clock: Any
) -> None:
    slept = 0.0
    async with world(tmp_path, boot_s=lambda: trio.current_time() + slept) as w:
        o = w.orchestrator
        await o.linked()
        kept = await o.start(shell("x"))
        await o.until(lambda: kept.accepted)
        await trio.testing.wait_all_tasks_blocked()
        slept = 3600.0
        w.executor.end(kept.dispatch)
        finished = await o.finished(kept)
        assert finished.outcome is Outcome.ABANDONED
        assert "give-up instant" in (finished.error or "")


async def test_w27_a_one_way_link_is_not_life(tmp_path: Path, autojump_clock: Any) -> None:
    """Frames keep arriving, heartbeats are not answered: the link ends after the silence, and L was not
    renewed.
    """
    async with world(tmp_path) as w:
        o = w.orchestrator
        await o.linked()
        await trio.sleep(7)
        o.deaf = True
        renewed = len(w.renewals)

        async def chatter() -> None:
            while len(o.enrolls) < 2:
                await o.tell(Notice("info", "still here"))
                await trio.sleep(1)

        w.nursery.start_soon(chatter)
        began = trio.current_time()
        await o.linked(2)
        assert 10 <= trio.current_time() - began <= 25
        assert len(w.renewals) == renewed + 1  # the new enrollment's own
        reasons = [each["reason"] for each in w.said if each["kind"] == "disconnected"]
        assert "no heartbeat was answered" in reasons[-1]


async def test_heartbeats_renew_from_their_send_instant(tmp_path: Path, autojump_clock: Any) -> None:
    async with world(tmp_path, grace_s=12.0) as w:
        await w.orchestrator.linked()
        began = trio.current_time()
        await trio.sleep(10.5)
        assert 9 <= w.orchestrator.heartbeats <= 12
        assert all(sent_at <= trio.current_time() for sent_at, _ in w.renewals)
        assert w.renewals[-1][0] >= began + 9
        assert {grace for _, grace in w.renewals} == {12.0}


async def test_the_session_is_refreshed_at_two_thirds(tmp_path: Path, autojump_clock: Any) -> None:
    async with world(tmp_path) as w:
        await w.orchestrator.linked()
        await trio.sleep(599)
        assert w.orchestrator.refreshes == 0
        await trio.sleep(2)
        assert w.orchestrator.refreshes == 1
        await trio.sleep(600)
        assert w.orchestrator.refreshes == 2
        assert w.kinds().count("session_refreshed") == 2


async def test_a_farewell_is_said_and_its_hint_is_waited_for(tmp_path: Path, autojump_clock: Any) -> None:
    async with world(tmp_path) as w:
        o = w.orchestrator
        await o.linked()
        await o.farewell(RefusalCode.RESTARTING, "back soon", 20.0)
        began = trio.current_time()
        await o.linked(2)
        assert 20.0 <= trio.current_time() - began <= 20.6
        assert {"kind": "disconnected", "reason": "restarting: back soon"} in w.said


async def test_bytes_that_are_no_frame_end_the_link_and_not_the_worker(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with world(tmp_path) as w:
        o = w.orchestrator
        await o.linked()
        kept = await o.start(shell("x"))
        await o.until(lambda: kept.accepted)
        assert o._pipe is not None
        await o._pipe.send(b"\xc1garbage")
        await o.linked(2)
        assert o.enrolls[1].held[0].dispatch == kept.dispatch.dispatch


# ── leaving ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_w15_a_drain_is_announced_first_and_finishes_what_runs(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with world(tmp_path, settings={"capacity": 2}) as w:
        o = w.orchestrator
        await o.linked()
        kept = await o.start(shell("x"))
        await o.until(lambda: kept.accepted)
        await trio.testing.wait_all_tasks_blocked()
        w.worker.drain("received shutdown signal")
        await o.until(lambda: o.drains)
        assert kept.finished is None
        refused = await o.start(shell("y"))
        await o.until(lambda: refused.refused)
        assert refused.refused is RefusalCode.DRAINING
        await trio.sleep(1000)
        assert w.ending is None
        w.executor.end(kept.dispatch)
        ending = await w.over()
        assert ending.code is ExitCode.DONE
        assert kept.finished is not None
        assert w.kinds()[-3:] == ["dispatch_finished", "drain_complete", "stopped"]


async def test_a_drain_travels_in_the_next_enroll_frame(tmp_path: Path, autojump_clock: Any) -> None:
    async with world(tmp_path) as w:
        o = w.orchestrator
        await o.linked()
        kept = await o.start(shell("x"))
        await o.until(lambda: kept.accepted)
        await trio.testing.wait_all_tasks_blocked()
        w.worker.drain("received shutdown signal")
        o.cut()
        await o.linked(2)
        assert o.enrolls[1].draining
        w.executor.end(kept.dispatch)
        assert (await w.over()).code is ExitCode.DONE


async def test_a_drain_with_an_undelivered_end_waits_up_to_g_and_names_it(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with world(tmp_path) as w:
        o = w.orchestrator
        await o.linked()
        kept = await o.start(shell("x"))
        await o.until(lambda: kept.accepted)
        await trio.testing.wait_all_tasks_blocked()
        o.offline = True
        o.cut()
        w.executor.end(kept.dispatch)
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        w.worker.drain("received shutdown signal")
        ending = await w.over()
        assert 59 <= trio.current_time() - began <= 61
        assert ending.code is ExitCode.DONE
        assert any(kept.dispatch.dispatch[:8] in each.get("message", "") for each in w.said)


async def test_the_second_signal_cancels_and_leaves(tmp_path: Path, autojump_clock: Any) -> None:
    async with world(tmp_path) as w:
        o = w.orchestrator
        w.executor.kill_takes_s = 3.0
        await o.linked()
        kept = await o.start(shell("x"))
        await o.until(lambda: kept.accepted)
        await trio.testing.wait_all_tasks_blocked()
        w.worker.drain("received shutdown signal")
        w.worker.leave()
        ending = await w.over()
        assert ending.code is ExitCode.INTERRUPTED
        assert kept.finished is not None
        assert kept.finished.outcome is Outcome.ABANDONED
        assert w.executor.running == {}


async def test_the_third_signal_kills_at_once(tmp_path: Path, executor: StepExecutor) -> None:
    """Real processes that ignore TERM; none is left when `run` returns."""
    async with world(tmp_path, executor=executor) as w:
        with trio.fail_after(60):
            o = w.orchestrator
            await o.linked()
            kept = await o.start(
                shell("trap '' TERM; (trap '' TERM; sleep 300) & echo up; sleep 300; sleep 300")
            )
            await o.until(lambda: kept.lines)
            w.worker.drain("received shutdown signal")
            w.worker.leave()
            w.worker.kill()
            ending = await w.over()
        assert ending.code is ExitCode.INTERRUPTED
        assert executor._host.keeper.left(kept.dispatch.dispatch, None) == []


async def test_a_permanent_refusal_kills_what_is_held(tmp_path: Path, autojump_clock: Any) -> None:
    async with world(tmp_path) as w:
        o = w.orchestrator
        await o.linked()
        kept = await o.start(shell("x"))
        await o.until(lambda: kept.accepted)
        await trio.testing.wait_all_tasks_blocked()
        o.refusals.append((RefusalCode.REVOKED, "Enrollment token 'build' has been revoked", None))
        o.cut()
        ending = await w.over()
        assert ending.code is ExitCode.REVOKED
        assert w.executor.running == {}


async def test_max_dispatches_drains_after_the_last(tmp_path: Path, autojump_clock: Any) -> None:
    async with world(tmp_path, settings={"capacity": 4, "dispatches_max": 2}) as w:
        o = w.orchestrator
        await o.linked()
        first, second = await o.start(shell("x")), await o.start(shell("y"))
        await o.until(lambda: second.accepted and o.drains)
        await trio.testing.wait_all_tasks_blocked()
        w.executor.end(first.dispatch)
        w.executor.end(second.dispatch)
        ending = await w.over()
        assert (ending.code, ending.reason) == (ExitCode.DONE, "reached max dispatches")
        assert first.finished is not None
        assert second.finished is not None


async def test_idle_timeout_counts_only_idleness(tmp_path: Path, autojump_clock: Any) -> None:
    async with world(tmp_path, settings={"idle_timeout_s": 30.0}) as w:
        o = w.orchestrator
        await o.linked()
        await trio.sleep(20)
        kept = await o.start(shell("x"))
        await o.until(lambda: kept.accepted)
        await trio.sleep(100)
        assert w.ending is None
        w.executor.end(kept.dispatch)
        began = trio.current_time()
        ending = await w.over()
        assert 29 <= trio.current_time() - began <= 36
        assert ending.reason == "idle timeout elapsed"


async def test_a_drop_before_and_after_every_frame(tmp_path: Path, autojump_clock: Any) -> None:
    """The link is cut after the n-th message in either direction, for every n: the step ends once, its log
    whole.
    """
    cuts = 0
    for n in range(1, 40):
        async with world(tmp_path / str(n)) as w:
            o = w.orchestrator
            count = 0
            serve = o._answer

            async def answer(request: Any, serve: Any = serve, o: Orchestrator = o, n: int = n) -> None:
                nonlocal count
                count += 1
                if count == n:
                    o.cut()
                    return
                await serve(request)

            o._answer = answer  # type: ignore[method-assign]
            told = o._told

            async def tell(body: Any, told: Any = told, o: Orchestrator = o, n: int = n) -> None:
                nonlocal count
                count += 1
                if count == n:
                    o.cut()
                    return
                await told(body)

            o._told = tell  # type: ignore[method-assign]
            await o.linked()
            while o._session is None or o._session.state.value != "open":
                await trio.sleep(0.1)
            kept = await o.start(shell("x"))
            while kept.dispatch.dispatch not in w.executor.running:
                await trio.sleep(0.1)
                listed = {held.dispatch for held in o.enrolls[-1].held}
                is_open = o._session is not None and o._session.state.value == "open"
                if is_open and not kept.accepted and kept.dispatch.dispatch not in listed:
                    kept = await o.start(kept.dispatch)  # it was lost on its way: granted again
            for number in range(6):
                await w.executor.print(kept.dispatch, f"line {number}")
                await trio.sleep(1.7)
            w.executor.end(kept.dispatch)
            finished = await o.finished(kept)
            assert finished.outcome is Outcome.SUCCEEDED
            assert [line.text for line in kept.lines] == [f"line {number}" for number in range(6)]
            while w.worker.held:
                await trio.sleep(0.1)
            cuts += len(o.enrolls) - 1
    assert cuts >= 10
