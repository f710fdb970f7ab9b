"""The entry point: parse, run one command, turn whatever happens into one message and an exit code.

Rules
- Never a traceback for a user's mistake. A defect shows one short message and where the details are; `-v`
  shows all.
- Errors have one form: `Error: …` and a hint on stderr; with `--json` the document `{"error", "code",
  "hint"?}` there.
- Ctrl-C ends with 130. A reader of our output that went away ends us quietly.
- Importing this module must stay cheap: `swamp worker list` has 150 ms from end to end.
"""

import errno
import json
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from swamp_orch.cli import console
from swamp_orch.cli.invocation import Invocation
from swamp_proto.errors import Broken, ExitCode, Interrupted, SwampError, UsageError


def main() -> NoReturn:
    """What the `swamp` script runs."""
    console.prepare_streams()
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_stdout()
    if code == ExitCode.INTERRUPTED:
        # The person wants out now: no waiting for threads that still talk to an orchestrator.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run(argv: Sequence[str]) -> int:
    """Run one command line; answers its exit code. Output goes to `sys.stdout` and `sys.stderr`."""
    invocation = Invocation(argv)
    try:
        try:
            return _dispatch(invocation)
        finally:
            invocation.close()
    except SwampError as problem:
        return _report(invocation, problem)
    except (KeyboardInterrupt, click.Abort):
        return _report(invocation, Interrupted("interrupted"))
    except BrokenPipeError:
        _drop_stdout()
        return ExitCode.DONE
    except OSError as problem:
        if problem.errno == errno.EPIPE:
            _drop_stdout()
            return ExitCode.DONE
        return _report(invocation, _from_os(problem))
    except Exception as problem:  # the top of the program: what arrives here is a defect, and is told as one
        return _defect(invocation, problem)


def _dispatch(invocation: Invocation) -> int:
    from swamp_orch.cli.tree import root

    if "_SWAMP_COMPLETE" in os.environ:
        from swamp_orch.cli.completion import answer

        return answer(root, os.environ["_SWAMP_COMPLETE"])
    try:
        with root.make_context("swamp", list(invocation.argv), obj=invocation) as context:
            result = root.invoke(context)
    except click.exceptions.Exit as ended:  # `--help`
        return int(ended.exit_code)
    except click.ClickException as problem:
        raise _usage(problem) from problem
    return result if isinstance(result, int) else ExitCode.DONE


def _usage(problem: click.ClickException) -> SwampError:
    """click's own complaints in our form."""
    context = getattr(problem, "ctx", None)
    path = context.command_path if context is not None else "swamp"
    if isinstance(problem, click.NoSuchOption):
        near = problem.possibilities
        hint = f"did you mean: {sorted(near)[0]}" if near else f"{path} --help"
        return UsageError(f"no such option: {problem.option_name} (in `{path}`)", hint=hint)
    message = problem.format_message()
    return UsageError(message[:1].lower() + message[1:].rstrip("."), hint=f"{path} --help")


def wants_json(invocation: Invocation) -> bool:
    """Whether errors are to be JSON, also when the command line could not be parsed as far as `--json`."""
    if invocation.json:
        return True
    argv = list(invocation.argv)
    return "--json" in (argv[: argv.index("--")] if "--" in argv else argv)


def _report(invocation: Invocation, problem: SwampError) -> int:
    code = problem.exit_code
    permanent = getattr(problem, "refusal", None)
    if permanent is not None:
        from swamp_proto.errors import PERMANENT_REFUSALS

        code = PERMANENT_REFUSALS.get(permanent, code)
    _say(invocation, problem.document())
    if invocation.get("verbose") and not isinstance(problem, UsageError | Interrupted):
        import traceback

        traceback.print_exception(problem, file=sys.stderr)
    return int(code)


def _say(invocation: Invocation, document: dict[str, str]) -> None:
    try:
        invocation.log("error", f"{document['error']} ({document['code']})")
    except SwampError as unwritable:
        document = {**document, "log": unwritable.message}
    try:
        if wants_json(invocation):
            print(json.dumps(document, indent=2, ensure_ascii=False), file=sys.stderr, flush=True)
            return
        color = console.wants_color(sys.stderr, not invocation.get("no_color"))
        print(f"{console.paint('Error:', 'red', color)} {document['error']}", file=sys.stderr)
        if document.get("hint"):
            print(f"Hint: {document['hint']}", file=sys.stderr)
        sys.stderr.flush()
    except OSError:
        return  # nobody reads: the exit code still says it


def _from_os(problem: OSError) -> SwampError:
    where = f"{problem.filename}: " if problem.filename else ""
    text = problem.strerror or str(problem)
    hints = {
        errno.EACCES: "check the permissions",
        errno.EPERM: "check the permissions",
        errno.EROFS: "the file system is read-only",
        errno.ENOSPC: "make room on the disk; nothing was half-written",
        errno.EMFILE: "raise the limit of open files: ulimit -n",
    }
    return Broken(f"{where}{text[:1].lower()}{text[1:]}", hint=hints.get(problem.errno or 0))


def _defect(invocation: Invocation, problem: Exception) -> int:
    import tempfile
    import traceback

    story = "".join(traceback.format_exception(problem))
    first = str(problem).splitlines()[0] if str(problem) else ""
    document = {
        "error": f"this is a defect in swamp: {type(problem).__name__}{': ' + first if first else ''}",
        "code": "bug",
    }
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="swamp-defect-", suffix=".txt", delete=False, encoding="utf-8"
        ) as out:
            out.write(story)
        document["hint"] = f"the details are in {out.name} (-v shows them); please report them"
    except OSError:
        document["hint"] = "run it again with -v to see the details, and please report them"
    _say(invocation, document)
    if invocation.get("verbose"):
        sys.stderr.write(story)
    return ExitCode.FAILED


def _drop_stdout() -> None:
    """Let the interpreter's last flush have somewhere to go."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError):
        return
