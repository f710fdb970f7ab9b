"""Changing a definition's YAML: in an editor, from a file, or from stdin. What was typed is never lost."""

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from swamp_orch.cli.inputs import read_stdin, read_text
from swamp_orch.cli.invocation import Invocation
from swamp_proto.errors import Broken, OperationFailed, SwampError, UsageError


def text_from(file: str | None, stdin: bool) -> str | None:
    """The text of `--file`/`--stdin`; None when neither was given."""
    if file is not None and stdin:
        raise UsageError("--file and --stdin cannot be combined", hint="pick one")
    if file is not None:
        return read_text(file, "as a definition")
    return read_stdin() if stdin else None


def edit(
    invocation: Invocation,
    name: str,
    file: str | None,
    stdin: bool,
    source: Callable[[], Any],
    store: Callable[[str], Any],
) -> None:
    """`source` answers the present text, `store` checks and writes the new one."""
    text = text_from(file, stdin)
    if text is None:
        text = _in_editor(name, _text(source()), store)
        if text is None:
            if invocation.json:
                invocation.document({"status": "unchanged", "name": name})
            else:
                print(f"Unchanged: {name}")
            return
        done = text
    else:
        done = store(text)
    if invocation.json:
        invocation.document(done)
    else:
        print(f"Updated: {name}")
        if isinstance(done, dict) and done.get("path"):
            print(f"Path: {done['path']}")


def _text(answer: Any) -> str:
    return str(answer["text"]) if isinstance(answer, dict) else str(answer)


def _in_editor(name: str, before: str, store: Callable[[str], Any]) -> Any:
    """What `store` answered, or None when nothing was changed."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("there is no terminal to edit on", hint="pass the new text with --file or --stdin")
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.NamedTemporaryFile(
        "w", prefix=f"swamp-{name.replace('/', '-')}-", suffix=".yaml", delete=False, encoding="utf-8"
    ) as out:
        out.write(before)
    path = Path(out.name)
    try:
        ended = subprocess.run([*shlex.split(editor), str(path)], check=False)
    except OSError as problem:
        path.unlink()
        raise Broken(
            f"cannot start the editor '{editor}': {problem.strerror}", hint="set EDITOR"
        ) from problem
    after = path.read_text(encoding="utf-8")
    if after == before:
        path.unlink()
        return None
    try:
        if ended.returncode != 0:
            raise OperationFailed(f"the editor '{editor}' ended with exit code {ended.returncode}")
        done = store(after)
    except SwampError as problem:
        kept = f"your text is kept in {path}; correct it and pass it with --file"
        raise type(problem)(problem.message, hint=kept, code=problem.error_code) from problem
    path.unlink()
    return done
