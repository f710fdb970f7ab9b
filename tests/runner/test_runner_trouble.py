"""Methods that go wrong, in real processes: each is a clear error of its step, and nothing else is harmed."""

import os
import signal
from pathlib import Path

import pytest
import trio
from conftest import Lines, Site

from swamp_proto.limits import RUNNER_FRAME_MAX
from swamp_proto.messages.dispatch import Outcome
from swamp_worker.execution import procfs, reaping
from swamp_worker.execution.interface import Control
from swamp_worker.execution.runner import forks as forking
from swamp_worker.execution.runner.forks import SPARES

WRONG = [
    ("raise ValueError('no such host')", "ValueError: no such host (ext.py:23)"),
    ("raise StepFailed('not today')", "not today (ext.py:23)"),
    ("raise ValueError", "ValueError (ext.py:23)"),
    ("sys.exit(3)", "it ended by sys.exit(3) (ext.py:23)"),
    ("raise KeyboardInterrupt", "KeyboardInterrupt (ext.py:23)"),
    ("return 3", "go returned int, which goes nowhere: declare it by @method(returns=…)"),
    ("await context.write_resource('nonsense', {})", "@test/ext declares no resource 'nonsense'; it declares 'thing' (ext.py:23)"),
    ("await context.write_resource('paper', {})", "@test/ext declares no resource 'paper'"),
    ("await context.write_resource(resource(Thing), Thing('x'))", "declares no resource"),
    ("await context.write_resource(self.thing, {'name': 1})", "the resource 'thing' of 'thing': name must be text, not 1"),
    ("await context.write_resource(self.thing, {'name': 'x', 'more': 1})", "more is not a valid input property"),
    ("await context.write_resource(self.thing, {'name': {1, 2}})", "name: set has no form in JSON"),
    ("await context.write_resource(self.thing, Thing('x'), '../x')", "'../x' is no name of a record"),
    ("context.open_file('thing')", "declares no file 'thing'; it declares 'paper', 'blob'"),
    ("context.follow_up('nothing')", "@test/ext has no method 'nothing'"),
    ("await context.query('nobody said')", "this test does not say what the query 'nobody said' answers"),
    ("await context.put_secret('a', 'b', 'x' * 5_000_000)", "a message of 5000"),
    ("os._exit(4)", "The method's process ended with code 4 before the method did"),
    ("os.kill(os.getpid(), 11)", "The method's process was killed by SIGSEGV"),
    ("os.kill(os.getpid(), 9)", "The method's process was killed by SIGKILL (possibly out of memory)"),
    ("os.kill(os.getpid(), 15); await trio.sleep(9)", "The method was ended by a SIGTERM that swamp did not send"),
    ("import nobody_has_this", "ModuleNotFoundError: No module named 'nobody_has_this' (ext.py:23)"),
]  # fmt: skip


async def test_a_method_that_goes_wrong(site: Site) -> None:
    """One executor for all: what one does must not touch the next."""
    for body, said in WRONG:
        code = f"@method\nasync def go(self, context: Context) -> None:\n    {body}\n"
        finished, _ = await site.run(code)
        assert finished.outcome is Outcome.FAILED, body
        assert finished.error is not None
        assert said in finished.error, body
        assert finished.left == 0


async def test_a_method_that_closes_the_channel_fails_alone(site: Site) -> None:
    finished, _ = await site.run("@method\ndef go(self, context: PlainContext) -> None: os.closerange(3, 99)")
    assert finished.outcome is Outcome.FAILED
    assert finished.error == "The method's process ended with code 1 before the method did"


async def test_the_log_has_the_authors_traceback_and_nothing_of_ours(site: Site) -> None:
    code = """
    @method
    async def go(self, context: Context) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.below, context)

    async def below(self, context) -> None:
        try:
            {}["missing"]
        except KeyError as error:
            raise ValueError("because") from error
    """
    finished, lines = await site.run(code)
    assert finished.error == "ValueError: because (ext.py:30)"
    assert "KeyError: 'missing'" in lines.text
    assert 'File "ext.py", line 28, in below' in lines.text
    assert "swamp_worker" not in lines.text
    assert "trio" not in lines.text.replace("trio.open_nursery", "")


async def test_a_secret_in_an_error_is_masked_everywhere(site: Site) -> None:
    site.access.secrets["ops/token"] = "very-secret-value"
    code = """
    @method
    async def go(self, context: Context, arguments: Count) -> None:
        token = await context.secret("ops", "token")
        try:
            await context.write_resource(self.thing, Thing(token), f"of-{token}")
        except Invalid as error:
            print("refused:", error)
        await context.write_resource(self.thing, Thing(token), "named", tags={"of": token})
        async with context.open_file(self.paper) as file:
            for _ in range(200_000):
                await file.write("0123456789 ")
            await file.write(token)
        raise ValueError(f"login with {token} and hidden-argument failed")

    @report
    async def summary(self, context: Context, findings: Findings) -> str:
        return findings.error
    """
    finished, lines = await site.run(code, secrets=("hidden-argument",), reports=("summary",))
    assert finished.error == "ValueError: login with *** and *** failed (ext.py:33)"
    assert "refused: the name of a record holds a secret" in lines.text
    everything = (
        lines.text + finished.error + "".join(str(each.content) + each.name for each in finished.outputs)
    )
    everything += "".join(f"{each.name} {each.text()[-100:]}" for each in site.access.records)
    assert "very-secret" not in everything
    assert "hidden-argument" not in everything
    resource, paper = site.access.records
    assert resource.json() == {"name": "***", "size": 0}
    assert (resource.name, resource.tags) == ("named", {"of": "***"})
    assert paper.text().endswith("6789 ***")


async def test_a_secret_too_short_to_be_masked_is_told_to_the_author(site: Site) -> None:
    site.access.secrets |= {"ops/pin": "42", "ops/token": "long enough"}
    code = """
    @method
    async def go(self, context: Context) -> None:
        print(await context.secret("ops", "token"), await context.secret("ops", "pin"))
    """
    finished, lines = await site.run(code)
    assert finished.error is None
    assert sorted(lines.text.split("\n")) == [
        "*** 42",
        "swamp: 1 secret(s) shorter than 3 characters cannot be masked",
    ]


async def test_binary_and_endless_lines_do_not_disturb(site: Site) -> None:
    code = """
    @method
    async def go(self, context: Context) -> None:
        sys.stdout.buffer.write(bytes(range(256)) * 20)
        sys.stdout.flush()
        os.write(1, b"\\x00\\x01\\x00\\x00" * 100)
        print("\\ud800 half a character")
        print("x" * 300_000)
        await context.write_resource(self.thing, Thing("still speaks"))
    """
    finished, lines = await site.run(code)
    assert finished.error is None
    assert site.access.records[0].json() == {"name": "still speaks", "size": 0}
    assert "\\ud800 half a character" in lines.text
    assert lines.text.count("x") >= 300_000


async def test_what_is_forked_and_forgotten_is_killed_and_counted(site: Site) -> None:
    code = """
    @method
    def go(self, context: PlainContext) -> None:
        for detach in (False, True):
            if os.fork() == 0:
                if detach:
                    os.setsid()
                    if os.fork():
                        os._exit(0)
                time.sleep(60)
                os._exit(0)
        import subprocess
        subprocess.Popen(["sleep", "60"])
        print("leaving")
    """
    finished, lines = await site.run(code)
    assert finished.error is None
    assert finished.left == 0
    assert "leaving" in lines.text
    assert "swamp: 3 processes that the method left behind were killed" in lines.text


async def test_ten_thousand_open_files_are_the_methods_own_trouble(site: Site) -> None:
    code = """
    @method
    async def go(self, context: Context) -> None:
        held = []
        try:
            for _ in range(10_000):
                held.append(open("/dev/null"))
        except OSError as error:
            print("refused", error.errno)
        await context.write_resource(self.thing, Thing("x", len(held)))
    """
    finished, _ = await site.run(code)
    assert finished.error is None or "Too many open files" in finished.error
    after, _ = await site.run("@method\nasync def go(self, context: Context) -> None: ...")
    assert after.error is None


def _never(waits: str, plain: bool = True) -> str:
    head = "def go(self, context: PlainContext)" if plain else "async def go(self, context: Context)"
    return f"@method\n{head} -> None:\n    try:\n        print('begun')\n        {waits}\n    finally:\n        print('cleaned')"


NEVER = {
    "async": _never("await trio.sleep_forever()", plain=False),
    "plain": _never("time.sleep(60)"),
    "asking": _never("context.read_resource('slow')"),
    "polling": _never("while not context.cancelled: time.sleep(0.01)"),
}
STUBBORN = _never("signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf'); time.sleep(600)")


@pytest.mark.parametrize("kind", NEVER)
async def test_cancel_is_cooperative_first(site: Site, kind: str) -> None:
    if kind == "asking":
        site.access.latency_s = 60
    control = Control()
    dispatch = site.dispatch(site.extension(NEVER[kind]))
    lines = Lines()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:

            async def cancel() -> None:
                await lines.wait_for("begun")
                control.ask_cancel("a person asked", 600.0)  # nobody waits for that

            nursery.start_soon(cancel)
            finished = await site.executor.execute(dispatch, lines, control)
    assert (finished.outcome, finished.error) == (Outcome.CANCELLED, "Cancelled: a person asked")
    assert "cleaned" in lines.text
    assert "Traceback" not in lines.text
    assert finished.left == 0


async def test_who_missed_the_word_to_end_hears_it_again(site: Site) -> None:
    """As Python code does that was just entering a long system call when the signal came."""
    code = """@method
def go(self, context: PlainContext) -> None:
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(1))
    print('begun')
    while len(told) < 2:
        time.sleep(0.01)
    print('heard it again')
"""
    control = Control()
    lines = Lines()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:

            async def cancel() -> None:
                await lines.wait_for("begun")
                control.ask_cancel("a person asked", 600.0)

            nursery.start_soon(cancel)
            finished = await site.executor.execute(site.dispatch(site.extension(code)), lines, control)
    assert finished.outcome is Outcome.CANCELLED
    assert "heard it again" in lines.text


async def test_then_forced(site: Site) -> None:
    for timeout_ms in (500, 5_000, 50_000):  # the first in which the method gets so far
        dispatch = site.dispatch(site.extension(STUBBORN), timeout_s=timeout_ms / 1000)
        finished, lines = await site.execute(dispatch, Control(term_s=0.2))
        assert (finished.outcome, finished.error) == (
            Outcome.TIMED_OUT,
            f"Method timed out after {timeout_ms}ms",
        )
        assert finished.left == 0
        if "deaf" in lines.text:
            break
    assert "deaf" in lines.text


async def test_a_cancelled_scope_kills_and_reaps_before_it_raises(site: Site) -> None:
    dispatch = site.dispatch(site.extension(STUBBORN))
    lines = Lines()
    with trio.fail_after(60), trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(site.executor.execute, dispatch, lines, Control())
            await lines.wait_for("deaf")
            assert site.keeper.left(dispatch.dispatch, None)
            scope.cancel()
    assert site.keeper.left(dispatch.dispatch, None) == []


async def test_a_lease_that_has_ended_ends_the_step(site: Site) -> None:
    site.access.lease_ended = True
    code = """
    @method
    async def go(self, context: Context) -> None:
        try:
            await context.write_resource(self.thing, Thing("x"))
        except LeaseEnded as error:
            print("told:", error)
        await trio.sleep_forever()
    """
    finished, _ = await site.run(code)
    assert finished.outcome is Outcome.ABANDONED
    assert finished.error == "Abandoned: the lease of this step has ended"


async def test_an_oversized_or_broken_frame_fails_this_step_only(site: Site) -> None:
    code = """
    @method
    def go(self, context: PlainContext) -> None:
        import socket
        channel = context._port._wire.channel
        channel.sendall(bytes.fromhex(os.environ["BYTES"]))
        time.sleep(30)
    """
    bundle = site.extension(code)
    for data, said in (
        ("ffffff7f", f"the limit is {RUNNER_FRAME_MAX}"),
        ("04000000deadbeef", "malformed message"),
    ):
        finished, _ = await site.execute(site.dispatch(bundle, bindings={"BYTES": data}), Control(term_s=1.0))
        assert finished.outcome is Outcome.FAILED
        assert finished.error is not None
        assert said in finished.error


async def test_an_extension_that_does_not_load(site: Site) -> None:
    for code, said in (
        ("import nobody_has_this", "The extension can not be loaded: ModuleNotFoundError: No module named 'nobody_has_this' (ext.py:1)"),
        ("x = (", "The extension can not be loaded: SyntaxError"),
        ("class Ext: pass", "The extension can not be loaded: ext.py has no type 'Ext'"),
        ("import os\nos._exit(9)", "The method's process ended with code 9 before the method did"),
    ):  # fmt: skip
        bundle = site.extension("")
        (site.folders.found[bundle] / "ext.py").write_text(code)
        finished, _ = await site.execute(site.dispatch(bundle))
        assert finished.outcome is Outcome.FAILED
        assert finished.error is not None
        assert said in finished.error


async def test_arguments_that_are_not_what_is_taken(site: Site) -> None:
    bundle = site.extension("@method\ndef go(self, context: PlainContext, arguments: Count) -> None: ...")
    finished, _ = await site.execute(site.dispatch(bundle, arguments={"count": "x", "more": 1}))
    assert finished.error == (
        'The arguments are not what go takes: count must be an integer, not "x"; more is not a valid input property'
    )
    finished, _ = await site.execute(site.dispatch(bundle, arguments={"text": "x" * RUNNER_FRAME_MAX}))
    assert (
        finished.error
        == f"The arguments and the environment of the step have more than {RUNNER_FRAME_MAX} bytes"
    )
    finished, _ = await site.execute(site.dispatch(bundle, "nothing"))
    assert finished.error == "@test/ext has no method 'nothing'"


# ── the forkserver ──────────────────────────────────────────────────────────────────────────────────────────

QUIET = "@method\ndef go(self, context: PlainContext) -> None: print('fine', os.getppid())"


async def test_a_forkserver_that_died_is_replaced(site: Site) -> None:
    bundle = site.extension(QUIET)
    forks = site.executor._stage.forks
    before, lines = await site.execute(site.dispatch(bundle))
    assert before.error is None
    assert lines.text == f"fine {os.getpid()}"
    first = forks.pid
    assert first is not None
    for how in (signal.SIGKILL, signal.SIGSTOP):
        os.kill(first, how)
        if how == signal.SIGSTOP:  # it hangs: found out only by waiting for it
            os.kill(first, signal.SIGKILL)
        after, lines = await site.execute(site.dispatch(bundle))  # whether its end was noticed already or not
        assert after.error is None
        assert lines.text == f"fine {os.getpid()}"
        with trio.fail_after(60):
            while forks.pid == first:  # noqa: ASYNC110 - nothing tells
                await trio.sleep(0.01)
        after, lines = await site.execute(site.dispatch(bundle))
        assert after.error is None
        assert lines.text == f"fine {os.getpid()}"
        assert forks.pid not in (None, first)
        first = forks.pid
        assert first is not None


async def test_the_runners_that_wait_may_die_unnoticed(site: Site) -> None:
    bundle = site.extension(QUIET)
    await site.execute(site.dispatch(bundle))
    forks = site.executor._stage.forks
    spares = forks.spares
    assert spares
    assert all(pid in (procfs.children() or ()) for pid in spares)
    assert all(os.getpgid(pid) == pid == os.getsid(pid) for pid in spares)
    for pid in spares:
        os.kill(pid, signal.SIGKILL)
    after, lines = await site.execute(site.dispatch(bundle))
    assert after.error is None
    assert "fine" in lines.text
    assert not set(forks.spares) & set(spares)


async def test_runners_that_wait_are_bounded_and_no_step_gets_anothers(site: Site) -> None:
    bundle = site.extension("@method\ndef go(self, context: PlainContext) -> None: print(os.getpid())")
    seen: list[str] = []

    async def one() -> None:
        for _ in range(3):
            finished, lines = await site.execute(site.dispatch(bundle), within_s=60)
            assert finished.error is None
            assert len(site.executor._stage.forks.spares) <= SPARES
            seen.append(lines.text)

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(one)
    assert len(seen) == len(set(seen)) == 12


async def test_but_one_of_those_that_wait_go_when_no_step_comes(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = site.extension(QUIET)
    forks = site.executor._stage.forks
    monkeypatch.setattr(forking, "REST_S", 0.0)
    for _ in range(2):
        await site.execute(site.dispatch(bundle))
    seen = set(forks.spares)
    with trio.fail_after(60):
        while len(forks.spares) != 1 or any(
            (found := procfs.process(pid)) and not found.dead for pid in seen - set(forks.spares)
        ):
            await trio.sleep(0.01)
            seen |= set(forks.spares)


async def test_runners_that_wait_go_with_their_forkserver(site: Site) -> None:
    await site.execute(site.dispatch(site.extension(QUIET)))
    forks = site.executor._stage.forks
    spares = forks.spares
    assert spares
    assert forks.pid is not None
    os.kill(forks.pid, signal.SIGKILL)
    with trio.fail_after(60):
        while any((found := procfs.process(pid)) and not found.dead for pid in spares):  # noqa: ASYNC110 - only /proc tells
            await trio.sleep(0.01)
    assert forks.spares == ()


async def test_a_runner_that_waited_is_found_by_its_group(site: Site) -> None:
    """What it starts and strips of its marker is found too, as with a process that was started for its step."""
    bundle = site.extension(
        "@method\ndef go(self, context: PlainContext) -> None:\n"
        "    import subprocess\n    subprocess.Popen(['sleep', '600'], env={})\n"
        "    print('ready')\n    time.sleep(600)"
    )
    await site.execute(site.dispatch(site.extension(QUIET)))
    assert site.executor._stage.forks.spares
    dispatch, control, lines = site.dispatch(bundle), Control(), Lines()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(site.executor.execute, dispatch, lines, control)
        with trio.fail_after(60):
            await lines.wait_for("ready")
        entries = [each for each in site.keeper._registry.entries() if each.marker == dispatch.dispatch]
        assert len(reaping.alive(entries, strict=True)) == 2
        control.ask_cancel("seen enough", 0.1)


async def test_the_forkserver_holds_nothing_of_the_executors(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWAMP_WORKER_TOKEN", "secret-of-the-worker")
    await site.execute(site.dispatch(site.extension(QUIET)))
    environment, threads = _look_at(site.executor._stage.forks.pid)
    assert b"secret-of-the-worker" not in environment
    assert threads == 1


def _look_at(pid: int | None) -> tuple[bytes, int]:
    return Path(f"/proc/{pid}/environ").read_bytes(), len(list(Path(f"/proc/{pid}/task").iterdir()))


async def test_code_with_dependencies_starts_cold_and_finds_them(site: Site, tmp_path: Path) -> None:
    needed = tmp_path / "needed"
    needed.mkdir()
    (needed / "dependency_of_the_test.py").write_text("VALUE = 'from a dependency'\n")
    bundle = site.extension(
        "@method\nasync def go(self, context: Context) -> None:\n    import dependency_of_the_test as d\n"
        "    print(d.VALUE)\n    await context.write_resource(self.thing, Thing('x'))"
    )
    site.folders.needs[str(site.folders.found[bundle])] = needed
    finished, lines = await site.execute(site.dispatch(bundle))
    assert finished.error is None
    assert lines.text == "installing what it needs\nfrom a dependency"
    assert site.access.records[0].name == "thing"
    assert site.executor._stage.forks.pid is None
