"""`command/shell` with real processes: ends, output, environment, and that nothing is left afterwards."""
# ruff: noqa: ASYNC110 - waits for what only the file system tells

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from conftest import Lines, shell

from swamp_proto.blocks import count_of
from swamp_proto.limits import CAPTURE_MAX, LINE_MAX
from swamp_proto.messages.dispatch import Dispatch, Finished, LogBlock, Outcome, Stream
from swamp_worker.execution import course, procfs
from swamp_worker.execution.executor import StepExecutor
from swamp_worker.execution.interface import Control
from swamp_worker.execution.keeper import Keeper
from swamp_worker.models.built_in import BUILT_IN


def result_of(finished: Finished) -> dict[str, Any]:
    (output,) = finished.outputs
    assert (output.spec, output.name, output.kind) == ("result", "result", "resource")
    found = json.loads(output.content)
    assert isinstance(found, dict)
    return found


def marked(dispatch: Dispatch) -> list[int]:
    """Living processes that carry the dispatch's marker, counted by us and not by the code under test."""
    found = []
    needle = f"SWAMP_DISPATCH={dispatch.dispatch}".encode()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if needle in Path(f"/proc/{name}/environ").read_bytes():
                    found.append(int(name))
            except OSError:
                pass
    return found


async def run(
    executor: StepExecutor, dispatch: Dispatch, control: Control | None = None
) -> tuple[Finished, Lines]:
    lines = Lines()
    with trio.fail_after(60):
        finished = await executor.execute(dispatch, lines, control or Control())
    assert finished.dispatch == dispatch.dispatch
    assert finished.fence == dispatch.fence
    assert finished.last_line == len(lines.lines)
    assert marked(dispatch) == []
    return finished, lines


# ── ends ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_success_has_its_result_and_lines(executor: StepExecutor) -> None:
    finished, lines = await run(executor, shell('echo "executed on a worker"; echo careful >&2'))
    assert finished.outcome is Outcome.SUCCEEDED
    assert finished.error is None
    assert (finished.left, finished.lines_lost) == (0, 0)
    assert sorted((line.stream, line.text) for line in lines.lines) == [
        (Stream.STDOUT, "executed on a worker"),
        (Stream.STDERR, "careful"),
    ]
    result = result_of(finished)
    assert result["stdout"] == "executed on a worker"
    assert result["stderr"] == "careful"
    assert result["exitCode"] == 0
    assert result["command"] == 'echo "executed on a worker"; echo careful >&2'
    assert result["executedAt"].endswith("Z")
    assert set(result) == {"command", "exitCode", "stdout", "stderr", "durationMs", "executedAt"}


async def test_results_satisfy_the_declared_schema(executor: StepExecutor) -> None:
    import jsonschema

    schema = BUILT_IN["command/shell"].outputs["result"].schema
    for dispatch in (shell("true"), shell("kill -9 $$"), shell("sleep 5", timeout=30), shell("exit 4")):
        finished, _ = await run(executor, dispatch)
        jsonschema.validate(result_of(finished), schema)


@pytest.mark.parametrize("code", [1, 3, 255])
async def test_an_exit_code_fails_the_step_and_keeps_the_result(executor: StepExecutor, code: int) -> None:
    finished, _ = await run(executor, shell(f"echo before; exit {code}"))
    assert finished.outcome is Outcome.FAILED
    assert finished.error == f"Command exited with code {code}"
    assert result_of(finished)["exitCode"] == code
    assert result_of(finished)["stdout"] == "before"


async def test_ignore_exit_code_makes_it_a_success(executor: StepExecutor) -> None:
    finished, _ = await run(executor, shell("exit 3", ignoreExitCode=True))
    assert finished.outcome is Outcome.SUCCEEDED
    assert result_of(finished)["exitCode"] == 3


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGSEGV"])
async def test_a_signal_is_named(executor: StepExecutor, name: str) -> None:
    number = getattr(signal, name)
    finished, _ = await run(executor, shell(f"ulimit -c 0; kill -{int(number)} $$"))
    assert finished.outcome is Outcome.FAILED
    assert finished.error is not None
    assert finished.error.startswith(f"Command was killed by {name}")
    assert ("possibly out of memory" in finished.error) == (name == "SIGKILL")
    assert result_of(finished)["signal"] == name
    assert result_of(finished)["exitCode"] == 128 + number


async def test_a_missing_working_directory_says_so(executor: StepExecutor, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    finished, lines = await run(executor, shell("echo never", workingDir=missing))
    assert finished.outcome is Outcome.FAILED
    assert finished.error == (
        f"Command could not be started: the working directory {missing}: No such file or directory"
    )
    assert finished.outputs == ()
    assert lines.text == []


async def test_a_command_that_no_system_can_take_fails_only_its_step(executor: StepExecutor) -> None:
    finished, _ = await run(executor, shell("echo " + "x" * 3_000_000))
    assert finished.outcome is Outcome.FAILED
    assert "too long" in (finished.error or "")
    finished, _ = await run(executor, shell("true", env={"A=B": "x"}))
    assert "no environment can hold" in (finished.error or "")
    finished, _ = await run(executor, shell("true"))
    assert finished.outcome is Outcome.SUCCEEDED


@pytest.mark.parametrize(
    "arguments",
    [
        {"run": ""},
        {"run": 5},
        {"run": "a\0b"},
        {"timeout": 0},
        {"timeout": True},
        {"timeout": "5"},
        {"env": {"A": 1}},
        {"workingDir": 3},
        {"ignoreExitCode": "no"},
    ],
)
async def test_improper_arguments_fail_with_a_reason(
    executor: StepExecutor, arguments: dict[str, Any]
) -> None:
    import attrs

    dispatch = shell("true")
    finished, _ = await run(executor, attrs.evolve(dispatch, arguments={**dispatch.arguments, **arguments}))
    assert finished.outcome is Outcome.FAILED
    assert "`" in (finished.error or "")


async def test_an_unknown_type_or_method_is_a_failed_step(executor: StepExecutor) -> None:
    finished, _ = await run(executor, shell("true", model_type="acme/thing"))
    assert finished.outcome is Outcome.FAILED
    assert finished.error == "this executor does not know the model type 'acme/thing'"
    finished, _ = await run(executor, shell("true", method="fly"))
    assert finished.error == "this executor does not know the method 'fly' of type 'command/shell'"


# ── where and with what it runs ─────────────────────────────────────────────────────────────────────────────


async def test_a_fresh_directory_each_time_gone_afterwards(executor: StepExecutor) -> None:
    places = []
    for _ in range(2):
        finished, _ = await run(executor, shell("pwd; ls -A; mkdir -p a/b && echo x >a/b/c && chmod 0 a"))
        (place,) = result_of(finished)["stdout"].splitlines()
        places.append(Path(place))
    assert places[0] != places[1]
    with trio.fail_after(60):
        while any(place.exists() for place in places):
            await trio.sleep(0.01)


async def test_working_dir_overrides_and_stays(executor: StepExecutor, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    finished, _ = await run(executor, shell("pwd; echo kept >file", workingDir=str(own)))
    assert result_of(finished)["stdout"] == str(own)
    assert (own / "file").read_text() == "kept\n"


async def test_the_environment_in_order_of_strength(tmp_path: Path, keeper: Keeper) -> None:
    own = {"PATH": os.environ["PATH"], "OWN": "own", "BOTH": "own", "SWAMP_WORKER_TOKEN": "name.secret"}
    executor = StepExecutor(tmp_path / "work", keeper, own=own)
    dispatch = shell(
        "env",
        environment={"BOTH": "snapshot", "SNAP": "snapshot", "ENV": "snapshot"},
        env={"MY": "env", "BIND": "env", "SWAMP_FENCE": "forged", "SWAMP_DISPATCH": "forged"},
        bindings={"BIND": "binding"},
    )
    finished, _ = await run(executor, dispatch)
    found = dict(line.split("=", 1) for line in result_of(finished)["stdout"].splitlines())
    assert found["OWN"] == "own"
    assert found["BOTH"] == found["SNAP"] == "snapshot"
    assert found["MY"] == "env"
    assert found["BIND"] == "binding"
    assert found["SWAMP_FENCE"] == "7"
    assert found["SWAMP_ATTEMPT"] == "2"
    assert found["SWAMP_ATTEMPT_KEY"] == "run/step/2"
    assert found["SWAMP_RUN_ID"] == "run-1"
    assert found["SWAMP_DISPATCH"] == dispatch.dispatch
    assert "name.secret" not in str(found)
    assert "credential-of-the-step" not in str(found)


async def test_stdin_is_empty_and_no_descriptor_leaks(executor: StepExecutor) -> None:
    finished, _ = await run(executor, shell("cat; ls /proc/self/fd | wc -l"))
    assert result_of(finished)["stdout"].strip() == "4"  # the three, and the one ls reads with


async def test_it_leads_its_own_session_and_group(executor: StepExecutor) -> None:
    finished, _ = await run(executor, shell("ps -o pid=,pgid=,sid=,ppid= -p $$"))
    pid, group, session, parent = map(int, result_of(finished)["stdout"].split())
    assert pid == group == session
    assert parent == os.getpid()


# ── output ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_lines_arrive_while_it_runs(executor: StepExecutor) -> None:
    lines, control = Lines(), Control()
    async with trio.open_nursery() as nursery:
        with trio.fail_after(60):
            nursery.start_soon(executor.execute, shell("echo first; sleep 30"), lines, control)
            await lines.came.wait()
            assert lines.text == ["first"]
            control.ask_cancel("seen enough", 1.0)


async def test_a_last_partial_line_is_kept(executor: StepExecutor) -> None:
    finished, lines = await run(executor, shell("printf 'one\\n\\ntwo'"))
    assert lines.text == ["one", "", "two"]
    assert result_of(finished)["stdout"] == "one\n\ntwo"


async def test_bytes_that_are_not_text_are_replaced(executor: StepExecutor) -> None:
    finished, lines = await run(executor, shell("head -c 300000 /dev/urandom"))
    assert finished.outcome is Outcome.SUCCEEDED
    assert any("\ufffd" in line for line in lines.text)
    assert all(len(line.encode()) <= LINE_MAX for line in lines.text)


async def test_a_huge_line_is_split_and_nothing_of_it_is_lost(executor: StepExecutor) -> None:
    finished, lines = await run(executor, shell("head -c 1000000 /dev/zero | tr '\\0' x; echo; echo end"))
    assert finished.outcome is Outcome.SUCCEEDED
    assert lines.text[-1] == "end"
    assert "".join(lines.text[:-1]) == "x" * 1_000_000
    assert max(map(len, lines.text)) <= LINE_MAX


async def test_memory_stays_bounded_whatever_is_printed(executor: StepExecutor) -> None:
    """100 MB of output; the result keeps head and tail, and says what was cut."""

    class Counting(Lines):
        count = peak = 0

        async def write(self, first: int, blocks: tuple[LogBlock, ...]) -> None:
            assert first == self.count + 1
            self.count += count_of(blocks)
            if self.writes % 100 == 0:
                self.peak = max(self.peak, resident())
            self.writes += 1
            await trio.lowlevel.checkpoint()

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    sink = Counting()
    line = "0123456789" * 7 + "012345678"  # and its end: 80 bytes
    before = resident()
    with trio.fail_after(60):
        finished = await executor.execute(
            shell(f"echo FIRST; yes {line} | head -c 100000000; echo; echo LAST"), sink, Control()
        )
    assert sink.peak - before < 24 * 1024 * 1024
    assert finished.last_line == sink.count == 1 + 1_250_000 + 2
    result = result_of(finished)
    assert result["truncated"] is True
    assert len(json.dumps(result["stdout"], ensure_ascii=False).encode()) <= CAPTURE_MAX + 2
    assert result["stdout"].startswith("FIRST\n")
    assert result["stdout"].endswith("\nLAST")
    (marker,) = [line for line in result["stdout"].splitlines() if line.startswith("…")]
    kept = len(result["stdout"].replace(f"\n{marker}\n", "").encode())
    cut = int(marker.split()[1])
    assert kept + cut == 6 + 100_000_000 + 5


async def test_back_pressure_blocks_the_step_and_loses_nothing(executor: StepExecutor) -> None:
    class Slow(Lines):
        gate = trio.Event()

        async def write(self, first: int, blocks: tuple[LogBlock, ...]) -> None:
            self.came.set()
            await self.gate.wait()
            await super().write(first, blocks)

    lines = Slow()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(executor.execute, shell("seq 200000; echo done"), lines, Control())
            await lines.came.wait()
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert lines.text == []
            lines.gate.set()
    assert lines.text == [str(number) for number in range(1, 200_001)] + ["done"]


# ── what it starts besides ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "run_text",
    [
        "sleep 300 & echo started",
        "sleep 300 >/dev/null 2>&1 & echo started",
        "(setsid sleep 300 &) ; sleep 0.1; echo started",
        "(setsid sleep 300 >/dev/null 2>&1 </dev/null &) ; sleep 0.1; echo started",
        "setsid sh -c 'trap \"\" TERM; (setsid sleep 300 &); sleep 300' & sleep 0.1; echo started",
        "sh -c 'kill -STOP $$' & sleep 0.1; echo started",
    ],
)
async def test_background_children_do_not_outlive_the_shell(executor: StepExecutor, run_text: str) -> None:
    finished, lines = await run(executor, shell(run_text))
    assert finished.outcome is Outcome.SUCCEEDED
    assert finished.left == 0
    assert lines.text == ["started"]


async def test_a_background_child_has_a_grace_to_print(
    executor: StepExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as this test may take; that it is short is what the background children show that never end."""
    monkeypatch.setattr(course, "BACKGROUND_GRACE_S", 60.0)
    _, lines = await run(executor, shell("(sleep 0.1; echo late) & echo now"))
    assert lines.text == ["now", "late"]


async def test_another_steps_stray_is_left_alone(executor: StepExecutor) -> None:
    """Two at once: the end of one must not touch what the other started, not even outside its group."""
    outside, lines, control = shell("(setsid sleep 300 &); echo up; sleep 300"), Lines(), Control()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(executor.execute, outside, lines, control)
            await lines.came.wait()
            while len(marked(outside)) != 3:
                await trio.sleep(0.01)
            await run(executor, shell("sleep 0.05"))
            assert len(marked(outside)) == 3
            control.ask_cancel("enough", 0.5)
    assert marked(outside) == []


TIMEOUTS_MS = (200, 2_000, 20_000)
"""The first in which the step gets so far that there is something to see."""
STUBBORN = "trap '' TERM; (trap '' TERM; setsid sleep 301 & sleep 302) & echo up; sleep 303; sleep 304"


async def test_a_timeout_ends_it_with_everything_it_started(executor: StepExecutor) -> None:
    for timeout_ms in TIMEOUTS_MS:
        dispatch = shell("echo partial; (trap '' TERM; sleep 301) & sleep 302", timeout=timeout_ms)
        finished, lines = await run(executor, dispatch, Control(term_s=0.2))
        assert finished.outcome is Outcome.TIMED_OUT
        assert finished.error == f"Command timed out after {timeout_ms}ms"
        assert finished.left == 0
        if lines.text:
            break
    assert result_of(finished)["timedOut"] is True
    assert result_of(finished)["stdout"] == "partial"
    assert lines.text == ["partial"]


async def test_the_shorter_timeout_counts_and_a_trapped_one_is_no_success(executor: StepExecutor) -> None:
    for timeout_ms in TIMEOUTS_MS:
        text = "trap 'exit 0' TERM; echo trapped; while :; do sleep 0.02; done"
        finished, lines = await run(executor, shell(text, timeout=60_000, timeout_s=timeout_ms / 1000))
        assert finished.outcome is Outcome.TIMED_OUT
        if lines.text:
            break
    assert result_of(finished)["exitCode"] == 0
    ignoring, _ = await run(executor, shell("sleep 300", timeout=100, ignoreExitCode=True))
    assert ignoring.outcome is Outcome.TIMED_OUT


async def test_cancel_is_term_then_kill(executor: StepExecutor) -> None:
    lines, control = Lines(), Control()
    polite = shell("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.02; done")
    found: list[Finished] = []

    async def execute() -> None:
        found.append(await executor.execute(polite, lines, control))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(execute)
            await lines.came.wait()
            control.ask_cancel("the run was cancelled", 600.0)
    (finished,) = found
    assert finished.outcome is Outcome.CANCELLED
    assert finished.error == "Cancelled: the run was cancelled"
    assert [line.text for line in lines.lines if line.stream is Stream.STDOUT] == ["up", "bye"]
    assert marked(polite) == []


async def test_cancel_kills_what_ignores_term(executor: StepExecutor) -> None:
    lines, control, found = Lines(), Control(), []
    dispatch = shell(STUBBORN)

    async def execute() -> None:
        found.append(await executor.execute(dispatch, lines, control))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(execute)
            await lines.came.wait()
            control.ask_cancel("stop", 0.3)
    assert found[0].outcome is Outcome.CANCELLED
    assert found[0].left == 0
    assert marked(dispatch) == []


async def test_a_second_cancel_can_only_hurry(executor: StepExecutor) -> None:
    lines, control = Lines(), Control()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(executor.execute, shell(STUBBORN), lines, control)
            await lines.came.wait()
            control.ask_cancel("gently", 600.0)
            await trio.testing.wait_all_tasks_blocked(0.05)
            control.ask_cancel("now", 0.0)


async def test_a_cancel_before_the_start_starts_nothing(executor: StepExecutor, tmp_path: Path) -> None:
    control = Control()
    control.ask_cancel("too late", 1.0)
    finished, _ = await run(executor, shell(f"touch {tmp_path}/ran"), control)
    assert finished.outcome is Outcome.CANCELLED
    assert not (tmp_path / "ran").exists()


async def test_an_abandoned_one_is_never_called_failed(executor: StepExecutor) -> None:
    lines, control, found = Lines(), Control(abandon=True), []

    async def execute() -> None:
        found.append(await executor.execute(shell("echo up; sleep 300"), lines, control))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(execute)
            await lines.came.wait()
            control.ask_cancel("the holder gave up", 0.0)
    assert found[0].outcome is Outcome.ABANDONED
    assert found[0].error == "Abandoned: the holder gave up"


async def test_a_cancelled_scope_kills_and_reaps_before_it_raises(executor: StepExecutor) -> None:
    dispatch, lines = shell(STUBBORN), Lines()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(executor.execute, dispatch, lines, Control())
            await lines.came.wait()
            assert marked(dispatch)
            nursery.cancel_scope.cancel()
    assert marked(dispatch) == []


async def test_a_full_sink_does_not_keep_a_cancelled_step_alive(executor: StepExecutor) -> None:
    class Stuck(Lines):
        async def write(self, first: int, blocks: tuple[LogBlock, ...]) -> None:
            self.came.set()
            await trio.sleep_forever()

    lines, control, found = Stuck(), Control(), []
    dispatch = shell("yes")

    async def execute() -> None:
        found.append(await executor.execute(dispatch, lines, control))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(execute)
            await lines.came.wait()
            control.ask_cancel("stop", 0.2)
    assert found[0].outcome is Outcome.CANCELLED
    assert found[0].lines_lost > 0
    assert found[0].last_line == 0
    assert marked(dispatch) == []


# ── secrets ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_secrets_reach_the_shell_and_nothing_else(executor: StepExecutor) -> None:
    secret = 'hunter2"/&x'
    dispatch = shell(
        'echo "got $S"; printf %s "$S" | base64; echo "$S" >&2; ls "/none-$S"; exit 3',
        bindings={"S": secret},
        secrets=(secret, "ab"),
        display="echo ***",
    )
    finished, lines = await run(executor, dispatch)
    everything = json.dumps([lines.text, finished.error, [o.content.decode() for o in finished.outputs]])
    assert "hunter2" not in everything
    assert "got ***" in lines.text
    assert any("1 secret(s) shorter than 3 characters" in line for line in lines.text)
    assert result_of(finished)["command"] == "echo ***"


async def test_a_zombie_we_do_not_know_is_not_counted(executor: StepExecutor) -> None:
    """Somebody else's child of this process is neither killed nor waited for."""
    async with await OtherChild() as pid:
        await run(executor, shell("(setsid sleep 300 &); sleep 0.1"))
        found = procfs.process(pid)
        assert found is not None
        assert not found.dead


class OtherChild:
    def __await__(self) -> Any:
        return self._start().__await__()

    async def _start(self) -> "OtherChild":
        self._process = await trio.lowlevel.open_process(["sleep", "300"])
        return self

    async def __aenter__(self) -> int:
        return self._process.pid

    async def __aexit__(self, *_: object) -> None:
        self._process.kill()
        await self._process.wait()
