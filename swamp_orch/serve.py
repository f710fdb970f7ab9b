"""`swamp serve`: one process that owns a repository's runs, workers and records until it is told to stop.

The task tree, outermost first: the store and its writer thread, the engine's nursery of runs, the control desk with its watch on
tokens, two listeners (TCP and a private unix socket) with one application, and the watch on signals. The first signal stops
granting, lets loopback steps finish for a while, tells workers `restarting`; the second ends loopback steps at once. Neither cancels a
run for good: what is on disk is right at every instant.
"""

import errno
import fcntl
import gc
import json
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from swamp_orch.definitions.repository import Repository
from swamp_proto.errors import (
    Broken,
    Conflict,
    ExitCode,
    RefusalCode,
    Refused,
    SwampError,
    Unsupported,
    UsageError,
)
from swamp_proto.limits import (
    CLIENT_BODY_MAX,
    CONCURRENT_RUNS_MAX_DEFAULT,
    CONTROL_FRAME_MAX,
    ENROLL_DEADLINE_S,
    GRACE_S_DEFAULT,
    LOG_LEVELS,
    Tempo,
)
from swamp_proto.version import SWAMP_VERSION

if TYPE_CHECKING:
    import trio
    from hypercorn.config import Config

    from swamp_orch.engine.assembly import Assembled
    from swamp_orch.engine.engine import Engine
    from swamp_orch.engine.extension_care import ExtensionCare
    from swamp_orch.gateway.control import ControlDesk

GIL_SLICE_S: Final = (
    0.0005  # the writer thread must not wait 5 ms for the interpreter at every call into SQLite
)
GC_THRESHOLDS: Final = (20_000, 20, 100)
"""Values die by their reference counts; cycles are few. The default looks for them every 700 allocations."""
NOTE_SLOTS_EVERY_S: Final = 1.0
COLLECT_EVERY_S: Final = 3_600.0
LOCK_TRIES_S: Final = (
    0.02,
    0.05,
    0.1,
)  # a client may hold the lock for an instant, to see whether somebody serves
BACKLOG: Final = 1_024
UNHEARD_S_MIN: Final = 5.0


@attrs.frozen
class ServeOptions:
    """What `swamp serve` was asked for."""

    repository: Repository
    host: str = "127.0.0.1"
    port: int = 9090
    schedule: bool = True
    webhooks: Sequence[str] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    grace_s: float = GRACE_S_DEFAULT
    env_allow: Sequence[str] = ()
    env_deny: Sequence[str] = ()
    max_concurrent_runs: int = CONCURRENT_RUNS_MAX_DEFAULT
    drain_s: float = 30.0
    json: bool = False
    quiet: bool = False
    log: Path | None = None
    log_level: str = "info"


def wall_ms() -> int:
    """The wall clock, milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


# ── what the operator reads ─────────────────────────────────────────────────────────────────────────────────────────
class Reporter:
    """One line per happening: plain text, or with `--json` one object. `--log` gets every line too, and `--log-level` says which
    there are; what people look for (`listening on …`) is always there."""

    def __init__(self, options: ServeOptions) -> None:
        self._json = options.json
        self._quiet = options.quiet
        self._wanted = LOG_LEVELS.index(options.log_level)
        self._file = None
        if options.log is not None:
            try:
                self._file = options.log.open("a", encoding="utf-8", buffering=1)
            except OSError as error:
                raise UsageError(f"--log {options.log}: {error.strerror}") from None

    def info(self, event: str, **fields: Any) -> None:
        self._say("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._say("warn", event, fields)

    def fault(self, event: str, error: BaseException, **fields: Any) -> None:
        import traceback

        self._say("error", event, {**fields, "error": repr(error)})
        trace = "".join(traceback.format_exception(error))
        print(trace, file=sys.stderr, flush=True)  # noqa: T201 - a bug's evidence belongs on the error stream
        if self._file is not None:
            self._file.write(trace)

    def _say(self, level: str, event: str, fields: dict[str, Any]) -> None:
        from swamp_orch.store.bookkeeping import iso

        shown = not (self._quiet and level == "info")
        if LOG_LEVELS.index(level) < self._wanted or not (shown or self._file):
            return
        at = iso(wall_ms())
        if self._json:
            line = json.dumps({"at": at, "level": level, "event": event, **fields}, ensure_ascii=False)
        else:
            told = "".join(f" {key}={_shown(value)}" for key, value in fields.items())
            line = f"{at} {'' if level == 'info' else level.upper() + ' '}{event}{told}"
        if shown:
            _print(line)
        if self._file is not None:
            self._file.write(line + "\n")

    def plain(self, text: str, **document: Any) -> None:
        """A line people look for (`listening on …`); its JSON form is `document`."""
        _print(json.dumps(document, ensure_ascii=False) if self._json else text)
        if self._file is not None:
            self._file.write(text + "\n")


def _print(line: str) -> None:
    try:
        print(line, flush=True)  # noqa: T201 - this is the command's output
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - the reader left; the daemon goes on


def _shown(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if not text or any(char.isspace() for char in text) else text


# ── one serve per repository ────────────────────────────────────────────────────────────────────────────────────────
@contextmanager
def _only_serve(repository: Repository) -> Iterator[None]:
    """Hold the repository's serve lock; refuse, naming the holder, when another process does."""
    repository.state.mkdir(mode=0o700, exist_ok=True)
    handle = os.open(repository.serve_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        for pause_s in (*LOCK_TRIES_S, None):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if pause_s is not None:
                    time.sleep(pause_s)
        else:
            raise Conflict(
                f"an orchestrator is already running for {repository.root}{_holder(repository)}",
                hint="stop it first (Ctrl-C in its terminal), or use it: every swamp command in this repository finds it",
                code="already_running",
            )
        yield
    finally:
        os.close(handle)


def _holder(repository: Repository) -> str:
    try:
        about = json.loads(repository.serve_file.read_text())
        return f" (pid {about['pid']}, {about['url']}, since {about['startedAt']})"
    except (OSError, ValueError, KeyError):
        return ""


def _listen(options: ServeOptions) -> socket.socket:
    try:
        found = socket.getaddrinfo(
            options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise UsageError(
            f"--host {options.host!r} is not an address of this machine: {error.strerror}"
        ) from None
    listener = socket.socket(found[0], socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # what nobody acknowledges for so long ends the connection
        silence_ms = round(max(Tempo(options.grace_s).silence_s, UNHEARD_S_MIN) * 1000)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, silence_ms)
    try:
        listener.bind(found[4])
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise Conflict(
                f"port {options.port} on {options.host} is in use by another program",
                hint=f"stop it, or choose another port: swamp serve --port {options.port + 1 if options.port < 65535 else 0}",
                code="port_in_use",
            ) from None
        if error.errno == errno.EACCES:
            raise Broken(
                f"port {options.port} needs privileges this process does not have",
                hint="swamp serve --port 9090",
            ) from None
        raise Broken(f"cannot listen on {options.host} port {options.port}: {error.strerror}") from None
    return listener


def _check_tls(cert: Path, key: Path) -> None:
    """Files that can not be served with are said before anything is opened."""
    import ssl

    for flag, path in (("--tls-cert", cert), ("--tls-key", key)):
        try:
            path.open("rb").close()
        except OSError as error:
            raise UsageError(f"cannot read {flag} {path}: {error.strerror}") from None
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key)
    except ssl.SSLError as error:
        said = error.reason or "they are not PEM files"
        raise UsageError(
            f"cannot serve with --tls-cert {cert} and --tls-key {key}: {said.replace('_', ' ').lower()}",
            hint="both are PEM files: the certificate with its chain, and the key that belongs to it",
        ) from None


def _listen_privately(repository: Repository) -> tuple[socket.socket, Path]:
    """The unix socket, created 0600: whoever can open it owns the repository's state anyway."""
    repository.prepare_socket_folder()
    path = repository.socket_path()
    path.unlink(missing_ok=True)  # the lock is ours: whoever left it is gone
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(mask)
    listener.listen(BACKLOG)
    return listener, path


def _credential(repository: Repository) -> str:
    """The local clients' credential for TCP, made once per serve, readable by its owner only."""
    text = secrets.token_hex(32)
    _write_private(repository.credential_file, text + "\n")
    return text


def _write_private(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)
    part.replace(path)


# ── the process ─────────────────────────────────────────────────────────────────────────────────────────────────────
def run_serve(options: ServeOptions) -> int:
    """Run until a signal. Returns the exit code; raises SwampError when it can not start."""
    import trio

    if not __debug__:
        raise UsageError(
            "swamp serve relies on assertions", hint="start it without python -O and PYTHONOPTIMIZE"
        )
    if (options.tls_cert is None) != (options.tls_key is None):
        raise UsageError("--tls-cert and --tls-key go together")
    if options.tls_cert is not None and options.tls_key is not None:
        _check_tls(options.tls_cert, options.tls_key)
    if options.webhooks:
        raise Unsupported(
            "webhooks are not served by this version of swamp", hint="start it without --webhook"
        )
    sys.setswitchinterval(GIL_SLICE_S)
    gc.set_threshold(*GC_THRESHOLDS)
    with _only_serve(options.repository):
        return trio.run(_serve, options)


async def _serve(options: ServeOptions) -> int:
    import trio

    from swamp_orch.store.sqlite import open_store

    reporter = Reporter(options)
    repository = options.repository
    tcp = _listen(options)
    private, socket_path = _listen_privately(repository)
    store = await trio.to_thread.run_sync(open_store, repository.data)
    try:
        # Held to the very end: a signal that comes while we wind down must not interrupt that.
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            return await _Daemon(options, reporter, store, tcp, private).run(signals)
    finally:
        socket_path.unlink(missing_ok=True)
        repository.serve_file.unlink(missing_ok=True)
        repository.credential_file.unlink(missing_ok=True)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(store.close)


class _Daemon:
    """The parts of one serve, and how they start and stop."""

    def __init__(
        self,
        options: ServeOptions,
        reporter: Reporter,
        store: Any,
        tcp: socket.socket,
        private: socket.socket,
    ) -> None:
        self._options = options
        self._report = reporter
        self._store = store
        self._tcp = tcp
        self._private = private
        self._host, self._port = str(tcp.getsockname()[0]), int(tcp.getsockname()[1])
        self._loopback_only = _is_loopback(tcp)
        self._ready = False

    async def run(self, signals: Any) -> int:
        import trio

        from swamp_orch.api.application import Application, LiveApplication
        from swamp_orch.api.services.tokens import TokenService
        from swamp_orch.engine.assembly import assemble
        from swamp_orch.gateway.asgi import Gateway
        from swamp_orch.gateway.control import ControlDesk
        from swamp_orch.gateway.dataplane import DataPlane

        options, repository = self._options, self._options.repository
        tempo = Tempo(options.grace_s)
        application = Application(repository, self._store)
        async with assemble(
            application,
            reporter=self._report,
            tempo=tempo,
            workers=True,
            env_allow=options.env_allow,
            env_deny=options.env_deny,
            concurrent_runs_max=options.max_concurrent_runs,
            clock_ms=wall_ms,
        ) as parts:
            assert parts.dispatches is not None
            desk = ControlDesk(
                self._store,
                parts.dispatches,
                self._report,
                repository_id=repository.repo_id,
                tempo=tempo,
                clock_ms=wall_ms,
                expire_due=TokenService(repository, self._store, application.vaults).expire_due,
            )
            parts.flights.token_seen_over = desk.look_again
            live = LiveApplication(application, parts.live(desk, self._status))
            gateway = Gateway(
                live,
                desk,
                credential=_credential(repository),
                loopback_only=self._loopback_only,
                ready=lambda: self._ready,
                data=DataPlane(parts.desk, parts.flights, self._store, parts.engine.taken_over.is_set),
            )
            stop = trio.Event()
            async with trio.open_nursery() as nursery:
                await self._open_doors(nursery, gateway, stop)
                nursery.start_soon(desk.watch_tokens)
                nursery.start_soon(self._collect, parts.code)
                nursery.start_soon(parts.code.look)
                nursery.start_soon(self._note_slots, desk, parts)
                await parts.reconcile()
                desk.open()
                nursery.start_soon(parts.watch_commands)
                self._announce()
                gc.collect()
                gc.freeze()  # what is here now stays: modules, tables, the store
                self._ready = True
                await self._until_stopped(signals, parts.engine, desk)
                self._ready = False
                stop.set()
                nursery.cancel_scope.cancel()
        self._report.plain("Stopped.", status="stopped")
        return ExitCode.DONE

    async def _open_doors(self, nursery: "trio.Nursery", gateway: Any, stop: "trio.Event") -> None:
        from functools import partial

        from hypercorn.trio import serve

        from swamp_orch.gateway.listener import keep_connections_apart

        keep_connections_apart(self._report.fault)
        for listener, trusted in ((self._tcp, False), (self._private, True)):
            config = self._config(listener, secure=not trusted and self._options.tls_cert is not None)
            app: Any = gateway.app(trusted=trusted)
            await nursery.start(partial(serve, app, config, shutdown_trigger=stop.wait, mode="asgi"))

    def _config(self, listener: socket.socket, *, secure: bool) -> "Config":
        """Every limit said explicitly: the server's own defaults end long-lived links."""
        from hypercorn.config import Config

        config = Config()
        config.bind = [f"fd://{listener.detach()}"]
        if secure:
            config.certfile, config.keyfile = str(self._options.tls_cert), str(self._options.tls_key)
        config.accesslog = None
        config.errorlog = None
        config.backlog = BACKLOG
        # Counts only while a connection has no request and no WebSocket: a stranger who says nothing is sent away with it.
        config.keep_alive_timeout = ENROLL_DEADLINE_S
        config.keep_alive_max_requests = 1_000_000_000
        config.websocket_max_message_size = CONTROL_FRAME_MAX
        config.wsgi_max_body_size = CLIENT_BODY_MAX
        config.graceful_timeout = 1.0
        config.shutdown_timeout = 5.0
        config.ssl_handshake_timeout = 10.0
        config.h2_max_concurrent_streams = 1_024
        config.include_server_header = False
        return config

    @property
    def url(self) -> str:
        scheme = "wss" if self._options.tls_cert else "ws"
        return f"{scheme}://{self._host}:{self._port}"

    def _announce(self) -> None:
        from swamp_orch.store.bookkeeping import iso

        about = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "url": self.url,
            "socket": str(self._options.repository.socket_path()),
            "version": SWAMP_VERSION,
            "startedAt": iso(wall_ms()),
        }
        _write_private(self._options.repository.serve_file, json.dumps(about) + "\n")
        self._report.plain(
            f"swamp {SWAMP_VERSION} listening on {self.url} for {self._options.repository.root}",
            status="listening",
            host=self._host,
            port=self._port,
            url=self.url,
            pid=os.getpid(),
        )
        if not self._loopback_only and self._options.tls_cert is None:
            self._report.warning(
                "LISTENING WITHOUT TLS off the loopback interface: tokens, secrets and results travel in the clear; "
                "use --tls-cert and --tls-key, or a proxy that ends TLS",
                host=self._host,
            )

    async def _note_slots(self, desk: "ControlDesk", parts: "Assembled") -> None:
        """What workers run, into their records: at most once a second each, because a busy worker changes a thousand times."""
        import trio

        while True:
            await trio.sleep(NOTE_SLOTS_EVERY_S)
            active = parts.placing.active() if parts.placing is not None else {}
            for member in tuple(desk.members.values()):
                held = active.get(member.name, ())
                if held != member.state.active:
                    await desk.update(member, active=held)

    async def _collect(self, code: "ExtensionCare") -> None:
        """Retention and lifetimes, enforced now and then (`swamp data gc` does the same at once)."""
        import trio

        from swamp_orch.store.retention import collect

        while True:
            await trio.sleep(COLLECT_EVERY_S)
            try:
                found = await trio.to_thread.run_sync(collect, self._store, wall_ms())
            except SwampError as error:
                self._report.warning("collector stopped early", error=str(error))
                continue
            if found.versions:
                self._report.info("collected", versions=found.versions, bytes=found.bytes)
            await code.collect(time.time())

    def _status(self) -> dict[str, Any]:
        return {"pid": os.getpid(), "url": self.url, "version": SWAMP_VERSION, "ready": self._ready}

    async def _until_stopped(self, signals: Any, engine: "Engine", desk: "ControlDesk") -> None:
        """Wait for the first signal, then wind down; a second one hurries."""
        import trio

        async for _ in signals:
            break
        engine.stopping = "the orchestrator is stopping"
        self._report.plain(
            "Stopping: no new work; finishing what runs here (Ctrl-C again to hurry) …", status="stopping"
        )
        async with trio.open_nursery() as nursery:

            async def hurry() -> None:
                async for _ in signals:
                    break
                nursery.cancel_scope.cancel()

            nursery.start_soon(hurry)
            with trio.move_on_after(self._options.drain_s):
                await engine.loopback_idle()
            nursery.cancel_scope.cancel()
        await desk.close(Refused(RefusalCode.RESTARTING, "the orchestrator is stopping", retry_after_s=1.0))


def _is_loopback(listener: socket.socket) -> bool:
    host = str(listener.getsockname()[0])
    return host.startswith("127.") or host == "::1"
