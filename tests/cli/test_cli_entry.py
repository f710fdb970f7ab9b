"""Errors, exit codes, global flags and the rules of main(): what holds for every command."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from swamp_orch.cli.tree import root
from swamp_proto.errors import NotConnected, NotFound, RefusalCode, Refused

Run = Any


def test_an_unknown_command_names_the_nearest(swamp: Run) -> None:
    ended = swamp("worker", "lst")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "Error: unknown command 'swamp worker lst'\nHint: did you mean: swamp worker list\n"


def test_an_unknown_flag_names_the_nearest(swamp: Run) -> None:
    ended = swamp("data", "query", "true", "--limt", "3")
    assert ended.code == 2
    assert "no such option: --limt" in ended.err and "did you mean: --limit" in ended.err


@pytest.mark.parametrize("argv", [("worker", "lst", "--json"), ("--json", "worker", "lst")])
def test_usage_errors_are_json_wherever_the_flag_stands(swamp: Run, argv: tuple[str, ...]) -> None:
    ended = swamp(*argv)
    assert (ended.code, ended.out) == (2, "")
    assert ended.error == {
        "error": "unknown command 'swamp worker lst'",
        "code": "usage",
        "hint": "did you mean: swamp worker list",
    }


def test_a_missing_option_and_a_surplus_argument(swamp: Run) -> None:
    assert swamp("worker", "token", "create", "x").err.startswith("Error: missing option '--duration'\n")
    assert swamp("version", "now").code == 2


def test_a_bare_group_shows_help(swamp: Run) -> None:
    for argv in ((), ("worker",), ("worker", "token"), ("model", "method")):
        ended = swamp(*argv)
        assert ended.code == 0 and "Commands:" in ended.out and ended.err == "", argv


def test_a_bare_group_with_json_is_an_error_that_lists_the_commands(swamp: Run) -> None:
    ended = swamp("worker", "token", "--json")
    assert (ended.code, ended.out) == (2, "")
    assert ended.error["error"] == "No subcommand specified"
    assert ended.error["availableCommands"] == ["create", "list", "revoke", "renew"]


@pytest.mark.parametrize("argv", [("--json", "version"), ("version", "--json")])
def test_global_flags_stand_before_or_after(swamp: Run, argv: tuple[str, ...]) -> None:
    assert swamp(*argv).document["protocolVersion"] == 1


def test_every_command_takes_every_global_flag_and_has_help(swamp: Run) -> None:
    flags = [
        "--json",
        "--log",
        "--log-level",
        "-q",
        "-v",
        "--no-telemetry",
        "--show-properties",
        "--no-color",
        "--repo-dir",
    ]
    for path, command in leaves():
        if path == ["worker", "connect"]:
            continue  # the worker package's own; its flags are checked with it
        known = {name for parameter in command.params for name in parameter.opts}
        assert known.issuperset(flags), path
        ended = swamp(*path, "--help")
        assert ended.code == 0 and ended.out.startswith("Usage: swamp " + " ".join(path)), path


def leaves() -> list[tuple[list[str], Any]]:
    found = []

    def walk(group: Any, path: list[str]) -> None:
        for name, member in group.members.items():
            if hasattr(member, "members"):
                walk(member, [*path, name])
            elif [*path, name] != ["worker", "connect"]:
                found.append(([*path, name], member.load()))

    walk(root, [])
    return found


def test_errors_of_calls_keep_message_hint_and_code(swamp: Run) -> None:
    problem = NotFound("Enrollment token 'x' not found.", hint="swamp worker token list")
    text = swamp("worker", "token", "revoke", "x", answers={"token.revoke": problem})
    assert (text.code, text.out) == (1, "")
    assert text.err == "Error: Enrollment token 'x' not found.\nHint: swamp worker token list\n"
    as_json = swamp("worker", "token", "revoke", "x", "--json", answers={"token.revoke": problem})
    assert as_json.error == {"error": problem.message, "code": "not_found", "hint": problem.hint}


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        (NotConnected("nobody"), 3),
        (Refused(RefusalCode.REVOKED, "revoked"), 14),
        (Refused(RefusalCode.BUSY, "busy"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(swamp: Run, problem: BaseException, code: int) -> None:
    assert swamp("worker", "list", answers={"worker.list": problem}).code == code


def test_no_repository_is_an_error_with_the_next_command(swamp: Run) -> None:
    ended = swamp("worker", "list")
    assert ended.code == 1
    assert "is not a swamp repository" in ended.err and "Hint: swamp repo init" in ended.err


def test_an_explicit_folder_must_be_a_repository_itself(swamp: Run, tmp_path: Path) -> None:
    assert swamp("repo", "init").code == 0
    (tmp_path / "inside").mkdir()
    assert swamp("--repo-dir", str(tmp_path / "inside"), "vault", "list").code == 1


def test_a_defect_is_one_message_and_a_file_with_the_details(swamp: Run) -> None:
    broken = KeyError("worker_id")
    ended = swamp("worker", "list", answers={"worker.list": broken})
    assert ended.code == 1
    assert ended.err.startswith("Error: this is a defect in swamp: KeyError: 'worker_id'\n")
    assert "Traceback" not in ended.err
    path = Path(ended.err.split("details are in ")[1].split(" ")[0])
    assert "Traceback" in path.read_text()
    path.unlink()
    shown = swamp("worker", "list", "-v", answers={"worker.list": broken})
    assert "Traceback" in shown.err
    Path(shown.err.split("details are in ")[1].split(" ")[0]).unlink()


def test_a_read_only_place_is_not_a_defect(swamp: Run) -> None:
    ended = swamp("worker", "list", answers={"worker.list": PermissionError(13, "Permission denied", "/x/y")})
    assert ended.code == 1
    assert ended.err == "Error: /x/y: permission denied\nHint: check the permissions\n"


def test_log_goes_to_the_file(swamp: Run, tmp_path: Path) -> None:
    log = tmp_path / "swamp.log"
    answers = {"token.list": []}
    assert (
        swamp("worker", "token", "list", "--log", str(log), "--log-level", "debug", answers=answers).code == 0
    )
    assert "[DBG] cli: call token.list" in log.read_text()
    swamp("worker", "nope", "--log", str(log))
    swamp("--log", str(log), "worker", "nope")
    assert "[ERR] cli: unknown command" in log.read_text()


def test_a_log_file_that_cannot_be_written_is_said(swamp: Run) -> None:
    ended = swamp(
        "worker", "token", "list", "--log", "/nowhere/x", "--log-level", "debug", answers={"token.list": []}
    )
    assert ended.code == 1 and "cannot write the log file /nowhere/x" in ended.err


@pytest.mark.parametrize("level", ["debug", "info", "warn", "error", "warning", "trace", "fatal"])
def test_log_levels(swamp: Run, level: str) -> None:
    assert swamp("version", "--log-level", level).code == 0


def test_an_unknown_log_level(swamp: Run) -> None:
    ended = swamp("version", "--log-level", "loud")
    assert ended.code == 2 and "debug, info, warn, error" in ended.err


def test_show_properties_says_where_values_come_from(swamp: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWAMP_SERVE_URL", "ws://h:1")
    monkeypatch.setenv("SWAMP_SERVER_TOKEN", "deep.secret")
    ended = swamp("worker", "list", "--all", "--show-properties", "--json", answers={})
    rows = {row["name"]: row for row in ended.document["properties"]}
    assert rows["server"] == {"name": "server", "value": "ws://h:1", "source": "environment SWAMP_SERVE_URL"}
    assert rows["show_all"] == {"name": "show_all", "value": True, "source": "command line"}
    assert rows["log-level"] == {"name": "log-level", "value": "info", "source": "default"}
    assert "deep.secret" not in ended.out
    assert ended.session.calls == []  # nothing was done


def test_destructive_commands_refuse_without_a_terminal_and_without_yes(swamp: Run) -> None:
    for argv in (
        ("model", "delete", "m"),
        ("workflow", "delete", "w"),
        ("vault", "delete", "v", "k"),
        ("data", "delete", "m", "n"),
        ("data", "gc"),
    ):
        for flags in ((), ("--json",)):
            ended = swamp(*argv, *flags, answers={})
            assert ended.code == 2 and ended.session.calls == [], (argv, flags)
            assert "-y" in ended.err


def test_destructive_commands_ask_on_a_terminal(swamp: Run) -> None:
    answers = {"workflow.delete": {"deleted": {}}}
    declined = swamp("workflow", "delete", "w", answers=answers, tty=True, stdin="n\n")
    assert declined.code == 0 and declined.session.calls == []
    assert "Delete workflow w? [y/N]" in declined.err
    said_yes = swamp("workflow", "delete", "w", answers=answers, tty=True, stdin="y\n")
    assert said_yes.session.calls == [("workflow.delete", {"name": "w"})]
    flagged = swamp("workflow", "delete", "w", "-y", answers=answers)
    assert flagged.session.calls == [("workflow.delete", {"name": "w"})]


def test_the_session_is_closed_whatever_happens(swamp: Run) -> None:
    closed: list[bool] = []

    class Session:
        where = "x"

        def call(self, name: str, /, **parameters: Any) -> Any:
            raise NotFound("x")

        def close(self) -> None:
            closed.append(True)

    import swamp_orch.api.choice as choice

    before = choice.open_session
    choice.open_session = lambda *_, **__: Session()  # type: ignore[assignment]
    try:
        assert swamp("repo", "init").code == 0
        assert swamp("worker", "list").code == 1
    finally:
        choice.open_session = before
    assert closed == [True]


# ── as a process ────────────────────────────────────────────────────────────────────────────────────────────
PROJECT = Path(__file__).parents[2]


def _process(*argv: str, cwd: Path, **extra: Any) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    return subprocess.Popen(
        [sys.executable, "-m", "swamp_orch.cli", *argv],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **extra,
    )


def test_a_reader_that_goes_away_ends_it_quietly(tmp_path: Path) -> None:
    process = _process("completions", "bash", cwd=tmp_path)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(60) == 0
    assert err == b""
    process.stderr.close()


def test_a_locale_without_unicode_is_no_obstacle(tmp_path: Path) -> None:
    program = "import sys; from swamp_orch.cli.console import prepare_streams as p; p(); print('✓│')"
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONIOENCODING": "latin-1", "LC_ALL": "C"}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, timeout=60)
    assert ended.stdout == "✓│\n".encode()


def test_ctrl_c_is_130_without_a_traceback(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's `&` may have had it ignored
        "from swamp_orch.cli import invocation, main\n"
        "class S:\n"
        "    where = 'x'\n"
        "    def call(self, name, /, **p):\n"
        "        print('calling', flush=True); time.sleep(600)\n"
        "    def close(self): pass\n"
        "invocation.Invocation.session = lambda self: S()\n"
        "sys.argv = ['swamp', 'worker', 'list', '--json']\n"
        "main.main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == b"calling\n"
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert json.loads(err) == {"error": "interrupted", "code": "interrupted"}


def test_the_start_up_path_imports_nothing_heavy(tmp_path: Path) -> None:
    heavy = (
        "trio",
        "cattrs",
        "ruamel",
        "cryptography",
        "structlog",
        "rich",
        "httpx",
        "argon2",
        "cel_expr_python",
    )
    program = (
        "import sys\n"
        "from swamp_orch.cli.main import run\n"
        "run(['repo', 'init', '-q'])\n"
        "codes = [run(['worker', 'list']), run(['data', 'get', 'm', 'n']), run(['worker', 'token', 'list'])]\n"
        "assert codes == [0, 1, 0], codes\n"
        f"print([name for name in {heavy!r} if name in sys.modules])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
    )
    assert ended.stdout.splitlines()[-1] == b"[]"


def test_without_an_orchestrator_a_workers_name_is_looked_at_first(swamp: Run) -> None:
    """Starting one would not help with a name that nobody has; and without one nobody is connected."""
    assert swamp("repo", "init").code == 0
    for word in ("drain", "undrain"):
        ended = swamp("worker", word, "nobody")
        assert (ended.code, ended.out) == (1, "")
        assert ended.err == "Error: Worker 'nobody' not found.\nHint: swamp worker list --all\n"
    ended = swamp("worker", "verify")
    assert ended.code == 1
    assert ended.err == (
        "Error: no orchestrator is running, so no worker is connected: nothing was verified\n"
        "Hint: start one: swamp serve\n"
    )
