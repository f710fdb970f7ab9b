"""One invocation of `swamp`: the global flags, where each came from, and what a command needs of the outside.

Rules
- Flags may stand before or after the subcommand; the last one said wins, a flag beats its environment
  variable.
- The session is opened when the first call is made and closed at the end. Commands never ask where it leads.
- `--json` prints exactly one document (or a stream of them) on stdout; questions and notes go to stderr.
- A question without a terminal and without `-y` is refused; `--json` is never consent.
- Secrets are never shown by `--show-properties` or in the log file.
"""

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from swamp_orch.cli import console
from swamp_proto.errors import Broken, UsageError
from swamp_proto.limits import LOG_LEVELS

if TYPE_CHECKING:
    from swamp_orch.api.interface import Session
    from swamp_orch.definitions.repository import Repository

LEVEL_ALIASES: Final[Mapping[str, str]] = {"trace": "debug", "warning": "warn", "fatal": "error"}

ENVIRONMENT: Final[Mapping[str, str]] = {
    "repo_dir": "SWAMP_REPO_DIR",
    "server": "SWAMP_SERVE_URL",
    "server_token": "SWAMP_SERVER_TOKEN",
    "ca_cert": "SWAMP_CA_CERT",
    "log_level": "SWAMP_LOG_LEVEL",
}
DEFAULTS: Final[Mapping[str, Any]] = {
    "json": False,
    "log": None,
    "log_level": "info",
    "quiet": False,
    "verbose": False,
    "no_telemetry": False,
    "show_properties": False,
    "no_color": False,
    "repo_dir": None,
    "server": None,
    "server_token": None,
    "ca_cert": None,
}
SECRETS: Final = frozenset({"server_token", "token", "webhook"})


class Invocation:
    """The object every command gets."""

    def __init__(self, argv: Iterable[str] = (), environ: Mapping[str, str] | None = None) -> None:
        self.argv = tuple(argv)
        self.environ = os.environ if environ is None else environ
        self._flags: dict[str, Any] = {}
        self._session: Session | None = None
        self._repository: Repository | None = None
        self._log_problem = False

    # ── settings ──────────────────────────────────────────────────────────────────────────────────────────

    def set(self, name: str, value: Any) -> None:
        """A global flag that was typed."""
        if name == "log_level":
            value = LEVEL_ALIASES.get(value, value)
            if value not in LOG_LEVELS:
                raise UsageError(
                    f"'{value}' is not a log level", hint=f"--log-level takes one of: {', '.join(LOG_LEVELS)}"
                )
        self._flags[name] = value

    def setting(self, name: str) -> tuple[Any, str]:
        """Value and where it came from: `command line`, `environment NAME`, `default`."""
        if name in self._flags:
            return self._flags[name], "command line"
        variable = ENVIRONMENT.get(name)
        if variable and self.environ.get(variable):
            value = self.environ[variable]
            if name == "log_level":
                value = LEVEL_ALIASES.get(value.lower(), value.lower())
                if value not in LOG_LEVELS:
                    raise UsageError(
                        f"SWAMP_LOG_LEVEL={value} is not a log level", hint=f"one of: {', '.join(LOG_LEVELS)}"
                    )
            return value, f"environment {variable}"
        if name == "no_color" and self.environ.get("NO_COLOR"):
            return True, "environment NO_COLOR"
        return DEFAULTS[name], "default"

    def get(self, name: str) -> Any:
        return self.setting(name)[0]

    @property
    def json(self) -> bool:
        return bool(self.get("json"))

    @property
    def quiet(self) -> bool:
        return bool(self.get("quiet"))

    @property
    def verbose(self) -> bool:
        return bool(self.get("verbose"))

    @property
    def color(self) -> bool:
        return console.wants_color(sys.stdout, not self.get("no_color"))

    # ── the outside ───────────────────────────────────────────────────────────────────────────────────────

    def repository(self) -> "Repository":
        """The repository this command works in. Raises `NotFound`."""
        if self._repository is None:
            from swamp_orch.definitions.repository import find

            where = self.get("repo_dir")
            # An explicit folder must be a repository itself; without one, walk up.
            self._repository = find(Path(where), walk=False) if where else find()
        return self._repository

    def session(self) -> "Session":
        if self._session is None:
            from swamp_orch.api.choice import open_session
            from swamp_proto.errors import NotFound

            url = self.get("server")
            try:
                repository = self.repository()
            except NotFound:
                if url is None:
                    raise
                repository = None
            self._session = open_session(
                repository, url, credential=self.get("server_token"), ca_cert=self.get("ca_cert")
            )
            self.log("debug", f"session: {self._session.where}")
        return self._session

    def call(self, name: str, /, **parameters: Any) -> Any:
        """One call; parameters that are None are left out."""
        given = {key: value for key, value in parameters.items() if value is not None}
        begin = time.monotonic()
        try:
            return self.session().call(name, **given)
        finally:
            self.log("debug", f"call {name}: {(time.monotonic() - begin) * 1000:.1f}ms")

    def stream(self, name: str, /, **parameters: Any) -> Iterator[dict[str, Any]]:
        given = {key: value for key, value in parameters.items() if value is not None}
        return self.session().stream(name, **given)

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    # ── output ────────────────────────────────────────────────────────────────────────────────────────────

    def document(self, value: Any) -> None:
        """The one JSON document of a command."""
        print(json.dumps(value, indent=2, ensure_ascii=False))

    def event(self, value: Any) -> None:
        """One object of a JSON stream, at once."""
        print(json.dumps(value, ensure_ascii=False), flush=True)

    def lines(self, *lines: str) -> None:
        for line in lines:
            print(line)

    def note(self, text: str) -> None:
        """For the person: stderr, not with `-q`."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        self.log("warn", text)
        print(f"Warning: {text}", file=sys.stderr, flush=True)

    def confirm(self, question: str, yes: bool) -> bool:
        """Ask before something that cannot be undone. `UsageError` when nobody can be asked."""
        if yes:
            return True
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise UsageError(
                f"{question} There is no terminal to ask on.", hint="pass -y (--yes) to go ahead"
            )
        print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def cancelled(self) -> None:
        """What a declined question leaves."""
        if self.json:
            self.document({"cancelled": True})
        else:
            self.note("Nothing was done.")

    # ── the log ───────────────────────────────────────────────────────────────────────────────────────────

    def log(self, level: str, text: str) -> None:
        """A line in the `--log` file; with `--log-level debug` and no file, on stderr."""
        wanted = self.get("log_level")
        if LOG_LEVELS.index(level) < LOG_LEVELS.index(wanted):
            return
        path = self.get("log")
        if not path and wanted != "debug":
            return
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
        tag = {"debug": "DBG", "info": "INF", "warn": "WRN", "error": "ERR"}[level]
        line = f"{stamp}.{int(now * 1000) % 1000:03d}Z [{tag}] cli: {text}"
        if not path:
            print(line, file=sys.stderr)
            return
        if self._log_problem:
            return
        try:
            with Path(path).open("a", encoding="utf-8") as out:
                out.write(line + "\n")
        except OSError as problem:
            self._log_problem = True
            raise Broken(
                f"cannot write the log file {path}: {problem.strerror}", hint="--log takes a file"
            ) from None
