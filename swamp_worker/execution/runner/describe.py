"""What a folder of extension code declares: `python -m swamp_worker.execution.runner.describe FOLDER [--path FOLDER]...`.

Prints one JSON document and ends with 0, whatever an author wrote:

    {"types": [<ModelType>...], "problems": [{"file": "inventory.py", "line": 12, "error": "..."}]}

Every Python file below the folder is imported, in this process and no other (`--path` adds what it depends on); files of tests,
hidden files and wheels are not. What the code prints goes to standard error. How long it may take and how much memory is its
caller's to bound; a folder whose code ends the process leaves no document.
"""

import json
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from swamp_worker.execution.runner.loading import load
from swamp_worker.models.documents import to_document
from swamp_worker.sdk.declarations import declared
from swamp_worker.sdk.errors import DeclarationError

_LEFT_OUT: Final = frozenset({"__pycache__", "tests", "wheels"})


def describe(folder: Path, more: tuple[str, ...] = ()) -> dict[str, Any]:
    """The document for `folder`. Imports its code."""
    types: list[dict[str, Any]] = []
    problems: list[dict[str, Any]] = []
    seen: dict[str, str] = {}
    folder = folder.resolve()
    for file in _files(folder):
        try:
            module = load(folder, file, more)
        except BaseException as error:  # whatever an import raises, also SystemExit, is the file's problem
            if isinstance(error, KeyboardInterrupt):
                raise
            problems.append(_problem(folder, file, error))
            continue
        for name, value in list(vars(module).items()):
            found = (
                declared(value) if isinstance(value, type) and value.__module__ == module.__name__ else None
            )
            if found is None:
                continue
            if value.__name__ != name:  # a second name for the same class
                continue
            if found.name in seen:
                text = f"the type {found.name!r} is declared twice, also in {seen[found.name]}"
                problems.append({"file": file, "line": found.line, "error": text})
                continue
            seen[found.name] = f"{file}:{found.line}"
            types.append(to_document(found.model_type(f"{file}:{value.__qualname__}")))
    return {"types": types, "problems": problems}


def _files(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*.py")):
        below = path.relative_to(folder)
        hidden = any(part.startswith(".") or part in _LEFT_OUT for part in below.parts)
        test = below.stem == "conftest" or below.stem.startswith("test_") or below.stem.endswith("_test")
        if path.is_file() and not hidden and not test:
            yield below.as_posix()


def _problem(folder: Path, file: str, error: BaseException) -> dict[str, Any]:
    """The error with the last place in the extension that it went through."""
    if isinstance(error, SyntaxError) and error.filename:
        place = _below(folder, error.filename)
        return {
            "file": place or file,
            "line": error.lineno or 0,
            "error": f"{type(error).__name__}: {error.msg}",
        }
    line = error.line if isinstance(error, DeclarationError) else 0
    for frame in traceback.extract_tb(error.__traceback__):
        below = _below(folder, frame.filename)
        if below is not None:
            file, last = below, frame.lineno or 0
            line = line if isinstance(error, DeclarationError) and error.line else last
    if isinstance(error, DeclarationError):
        return {"file": file, "line": line, "error": str(error)}
    if isinstance(error, SystemExit):
        return {"file": file, "line": line, "error": f"the module ends the program ({error.code!r})"}
    try:
        text = str(error)
    except Exception:  # an exception whose text can not be made
        text = ""
    return {
        "file": file,
        "line": line,
        "error": f"{type(error).__name__}: {text}" if text else type(error).__name__,
    }


def _below(folder: Path, filename: str) -> str | None:
    try:
        return Path(filename).resolve().relative_to(folder).as_posix()
    except (ValueError, OSError):
        return None


def main(arguments: list[str]) -> int:
    more = tuple(
        value for flag, value in zip(arguments[1::2], arguments[2::2], strict=False) if flag == "--path"
    )
    out = os.dup(1)
    os.dup2(2, 1)  # what the code prints must not mix with the document
    sys.stdout = sys.stderr
    found = describe(Path(arguments[0]), more)
    with os.fdopen(out, "w", encoding="utf-8") as file:
        json.dump(found, file, ensure_ascii=True, default=str)
    sys.stderr.flush()
    os._exit(0)  # threads that an import started have no say


if __name__ == "__main__":
    main(sys.argv[1:])
