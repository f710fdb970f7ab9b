"""Which process does the work of a command: a named orchestrator, the repository's own, or this one.

Rules
- `--server`/`SWAMP_SERVE_URL` decides when it is said; else the orchestrator that holds the repository's serve
  lock; else this process.
- A held lock whose socket does not answer is an error, never a silent fallback: two writers of one run would
  be worse than a failed command.
- A credential that an orchestrator left in the repository goes to that orchestrator only.

Imports what it chose, and nothing of what it did not choose.
"""

import errno
import json
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from swamp_proto.errors import Broken, NotConnected, UsageError

if TYPE_CHECKING:
    from swamp_orch.api.interface import Session
    from swamp_orch.definitions.repository import Repository

STARTING_S: Final = 5.0  # a serve that holds the lock may take this long until its socket answers
LOOK_AGAIN_S: Final = 0.05


def serve_holds(repository: "Repository") -> bool:
    """Whether a live `swamp serve` holds this repository. The lock counts: a pid file may be stale."""
    import fcntl

    try:
        handle = os.open(repository.serve_lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as problem:
        raise Broken(f"cannot read {repository.serve_lock}: {problem.strerror}") from problem
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as problem:
        if problem.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return True
        raise Broken(f"cannot test {repository.serve_lock}: {problem.strerror}") from problem
    finally:
        os.close(handle)
    return False


def holder(repository: "Repository") -> Mapping[str, Any]:
    """What the running serve wrote about itself (`pid`, `url`, …); empty when there is nothing readable."""
    try:
        found = json.loads(repository.serve_file.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def local_session(repository: "Repository") -> "Session":
    """The orchestrator that runs for this repository, else this process."""
    deadline = time.monotonic() + STARTING_S
    while serve_holds(repository):
        from swamp_orch.api.client import HttpSession

        path = repository.socket_path()
        session = HttpSession.unix(path)
        try:
            session.probe()
        except NotConnected as problem:
            if time.monotonic() < deadline:
                time.sleep(
                    0.05
                )  # it holds the lock and is starting or stopping: look again until the deadline
                continue
            pid = holder(repository).get("pid", "unknown")
            raise NotConnected(
                f"swamp serve (pid {pid}) holds this repository but does not answer: {problem.message}",
                hint="wait for it to finish, or stop that process; nothing was done",
            ) from problem
        return session
    from swamp_orch.api.inprocess import InProcessSession

    return InProcessSession(repository)


def open_session(
    repository: "Repository | None",
    server_url: str | None = None,
    *,
    credential: str | None = None,
    ca_cert: str | None = None,
) -> "Session":
    """The session of one command: `server_url`, else the orchestrator of the repository, else in process.

    `credential` is the bearer token for TCP (`--server-token`, `SWAMP_SERVER_TOKEN`); without one, the
    credential file that the repository's own orchestrator left is used, if there is one. Raises
    `NotConnected`, `UsageError`.
    """
    if server_url is None:
        if repository is None:
            raise UsageError(
                "neither a repository nor a server", hint="run: swamp repo init, or pass --server <url>"
            )
        return local_session(repository)
    from swamp_orch.api.client import HttpSession

    if credential is None and repository is not None and is_own(repository, server_url):
        try:
            credential = repository.credential_file.read_text().strip() or None
        except OSError:
            credential = None
    return HttpSession.tcp(server_url, credential=credential, ca_cert=ca_cert)


def is_own(repository: "Repository", url: str) -> bool:
    """Whether `url` is this machine's orchestrator of `repository`: its credential goes nowhere else."""
    mine = holder(repository).get("url")
    if not isinstance(mine, str):
        return False
    from swamp_orch.api.client import server_address

    (_, my_host, my_port), (_, host, port) = server_address(mine), server_address(url)
    return port == my_port and host in ("localhost", "127.0.0.1", "::1", my_host)
