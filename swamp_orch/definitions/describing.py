"""Asking a unit what types it declares: its code is imported in a process of its own, never in ours.

Rules:
1. That process has its own session, a time, a memory and an output bound, an empty home, and of the environment only what
   Python needs. It is killed with everything it started.
2. What the author's code does wrong is an answer (`Described.problems`, with file and line), not an error of ours. What says
   nothing about the code (killed, too late) is marked `passing`: it may be different next time.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import attrs

import swamp_worker
from swamp_proto.errors import SwampError
from swamp_proto.limits import DESCRIBE_MEMORY_MAX, DESCRIBE_OUTPUT_MAX, DESCRIBE_S, MIB
from swamp_worker.models.documents import from_document
from swamp_worker.models.interface import ModelType

MODULE: Final = "swamp_worker.execution.runner.describe"
_BOUNDED: Final = (
    "import resource, runpy, sys\n"
    "memory, output, cpu_s, module, *arguments = sys.argv[1:]\n"
    "for what, most in (('RLIMIT_DATA', memory), ('RLIMIT_FSIZE', output), ('RLIMIT_CPU', cpu_s), ('RLIMIT_CORE', 0)):\n"
    "    resource.setrlimit(getattr(resource, what), (int(most), int(most)))\n"
    "sys.argv = [module, *arguments]\n"
    "runpy.run_module(module, run_name='__main__', alter_sys=True)\n"
)
_ERROR_SHOWN: Final = 500  # characters


@attrs.frozen
class Problem:
    """`file` is below the root of the bundle; empty: the unit as a whole. `line` 0: not known."""

    file: str
    line: int
    text: str


@attrs.frozen
class Described:
    types: tuple[ModelType, ...] = ()
    problems: tuple[Problem, ...] = ()
    passing: bool = False

    @classmethod
    def failed(cls, text: str, *, passing: bool) -> "Described":
        return cls((), (Problem("", 0, text),), passing)


Describe = Callable[[Path, Path | None], Described]
"""Of an unpacked bundle and the folder of its dependencies, if it declares any."""


def describe(folder: Path, dependencies: Path | None = None, *, module: str = MODULE) -> Described:
    """What the code in `folder` declares. Never raises for what the code did."""
    with tempfile.TemporaryDirectory(prefix="swamp-describe-", ignore_cleanup_errors=True) as home:
        out, err = Path(home, "out"), Path(home, "err")
        code, late = _run(folder, dependencies, Path(home), out, err, module)
        if late:
            return Described.failed(
                f"importing it took more than {DESCRIBE_S:g} s: keep slow work out of the module's body",
                passing=True,
            )
        text = err.read_text(encoding="utf-8", errors="replace")[-_ERROR_SHOWN:].strip()
        if code:
            return Described.failed(
                f"importing it ended the process {_end(code)}: {text or 'it said nothing'}", passing=True
            )
        return read_description(out.read_bytes())


def _run(
    folder: Path, dependencies: Path | None, home: Path, out: Path, err: Path, module: str
) -> tuple[int, bool]:
    """Exit status, and whether the time was over."""
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home),
        "TMPDIR": str(home),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(Path(swamp_worker.__file__).parents[1]),
        "PYTHONHASHSEED": "0",
        "PYTHONUTF8": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONSAFEPATH": "1",
    }
    arguments = [str(folder)] + ([] if dependencies is None else ["--path", str(dependencies)])
    bounds = [str(DESCRIBE_MEMORY_MAX), str(DESCRIBE_OUTPUT_MAX), str(int(DESCRIBE_S))]
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", _BOUNDED, *bounds, module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            cwd=home,
            env=environment,
            start_new_session=True,
        )
        try:
            return process.wait(DESCRIBE_S), False
        except subprocess.TimeoutExpired:
            return 0, True
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _end(code: int) -> str:
    if code >= 0:
        return f"with exit code {code}"
    name = signal.Signals(-code).name
    if name in ("SIGKILL", "SIGSEGV", "SIGABRT"):
        return f"by {name} (it may use {DESCRIBE_MEMORY_MAX // MIB} MiB of memory)"
    return f"by {name}"


def read_description(data: bytes) -> Described:
    """What a describing process printed."""
    try:
        document = json.loads(data)
        problems = tuple(
            Problem(str(row["file"]), int(row["line"] or 0), str(row["error"]))
            for row in document["problems"]
        )
        rows: list[Any] = list(document["types"])
    except (ValueError, TypeError, KeyError):
        shown = data[:_ERROR_SHOWN].decode(errors="replace")
        return Described.failed(f"describing it gave no description but: {shown!r}", passing=True)
    types = []
    for row in rows:
        try:
            types.append(from_document(row))
        except SwampError as error:
            name = row.get("name") if isinstance(row, dict) else None
            problems += (
                Problem("", 0, f"the type {name!r} does not describe itself properly: {error.message}"),
            )
    return Described(tuple(types), problems)
