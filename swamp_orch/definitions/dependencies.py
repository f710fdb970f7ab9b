"""What a unit depends on, for describing it here: the same environment that a step of it gets, made once and kept beside.

`of` asks a process of its own (`python -m swamp_orch.definitions.dependencies CACHE UNIT`): installing needs a keeper, and a
keeper is for a process that has nothing else to look after. A unit that declares nothing costs two looks.

The process prints `{"folder": …}` or `{"error": …, "hint": …}`, and is killed with everything it started when it is late.
"""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from swamp_proto.errors import Broken, SwampError
from swamp_proto.limits import ENVIRONMENT_INSTALL_S

_LATE_S = 30.0  # after the installation's own bound


def of(cache: Path, unit: Path) -> Path | None:
    """A folder for `sys.path` with what the unpacked unit depends on; None when it declares nothing. Raises `Broken`, whose message
    names the cause."""
    if not (unit / "requirements.txt").is_file() and not (unit / "wheels").is_dir():
        return None
    command = [sys.executable, "-m", __name__, str(cache), str(unit)]
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )
    try:
        out, _ = process.communicate(timeout=ENVIRONMENT_INSTALL_S + _LATE_S)
        answer = json.loads(out)
    except subprocess.TimeoutExpired:
        raise Broken("installing the dependencies took too long") from None
    except ValueError:
        raise Broken(f"installing the dependencies ended with code {process.returncode}") from None
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if "error" in answer:
        raise Broken(answer["error"], hint=answer.get("hint"))
    return None if answer["folder"] is None else Path(answer["folder"])


@contextlib.contextmanager
def holding(content: Path | None) -> Iterator[None]:
    """Inside, an environment that `of` gave is in use, as by a step: nobody takes it away for room. Raises `Broken` when somebody
    was quicker."""
    if content is None:
        yield
        return
    gone = Broken("the dependencies were taken away for room before they were used", hint="try again")
    try:
        descriptor = os.open(content.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise gone from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if not content.is_dir():
            raise gone
        yield
    finally:
        os.close(descriptor)


async def _install(cache: Path, unit: Path) -> dict[str, Any]:
    from swamp_worker.execution.environments import Environments
    from swamp_worker.execution.keeper import open_keeper

    with tempfile.TemporaryDirectory(prefix="swamp-install-", ignore_cleanup_errors=True) as folder:
        async with open_keeper(Path(folder), instance="install") as keeper:
            environments = Environments(cache, keeper)
            try:
                found = await environments.of(unit, "describe")
            except SwampError as error:
                return {"error": error.message, "hint": error.hint}
            finally:
                environments.release("describe")
    return {"folder": None if found is None else str(found)}


def main(arguments: list[str]) -> int:
    import trio

    cache, unit = map(Path, arguments)
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    print(json.dumps(trio.run(_install, cache, unit)))  # noqa: T201 - to the process that asked
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
