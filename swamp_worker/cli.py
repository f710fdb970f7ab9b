"""`swamp worker connect`: flags and variables, the token off the command line, and the worker put together.

Rules that hold here:

- A secret on the command line or in the environment does not stay there: the process executes itself again
  at once and hands the token over through an inherited anonymous file. What `ps` shows afterwards has no
  token.
- A flag beats its variable. What is wrong is a usage error before anything is dialled or written.
- This is the only module of the package that knows click; the daemon is imported when it runs.

Signals: the first SIGTERM, SIGINT or SIGHUP drains, the second cancels and leaves, the third kills.
"""

import gc
import os
import random
import re
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

import attrs
import click

from swamp_proto.errors import ExitCode, RefusalCode, UsageError
from swamp_proto.limits import CAPACITY_MAX, LABEL_LENGTH_MAX, LABELS_MAX, TOKEN_LENGTH_MAX

if TYPE_CHECKING:
    from swamp_worker.shell.daemon import Worker
    from swamp_worker.shell.voice import Voice

_FD_FLAG: Final = "--token-fd"
GC_THRESHOLDS: Final = (20_000, 20, 100)
"""Values die by their reference counts; cycles are few. The default looks for them every 700 allocations."""
_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION: Final = re.compile(r"([0-9]{1,9})([smhdw])?")


@attrs.frozen
class WorkerOptions:
    """Everything `swamp worker connect` was told, checked."""

    url: str
    token: str = attrs.field(repr=False)
    labels: Mapping[str, str] = attrs.field(factory=dict)
    data_plane_url: str | None = None
    cache_dir: Path | None = None
    reconnect: bool = True
    concurrency: int = 1
    max_dispatches: int | None = None
    idle_timeout_s: float | None = None
    ca_file: Path | None = None
    pin: str | None = None
    json: bool = False
    quiet: bool = False
    log: Path | None = None
    log_level: str = "info"


def run_worker(options: WorkerOptions) -> int:
    """Connect and work until drained, refused for good or stopped; the exit code. Raises SwampError before
    that.
    """
    import trio

    from swamp_worker.shell.dial import Address

    address = Address.parse(
        options.url, ca_file=options.ca_file, pin=options.pin, data_plane=options.data_plane_url
    )
    if address.uses_tls:
        address.context()  # an unreadable --ca-file is said now
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    return trio.run(_run, options, address)


def _log(path: Path | None) -> TextIO | None:
    try:
        return None if path is None else path.open("a", encoding="utf-8", buffering=1)
    except OSError as error:
        raise UsageError(f"--log {path}: {error.strerror}") from None


async def _run(options: WorkerOptions, address: Any) -> int:
    import trio

    from swamp_worker.execution.bundles import BundleCache
    from swamp_worker.execution.environments import Environments
    from swamp_worker.execution.executor import StepExecutor
    from swamp_worker.execution.keeper import Keeper, open_keeper, reap_predecessor
    from swamp_worker.execution.registry import boot_ns
    from swamp_worker.execution.spool import SpoolRoom
    from swamp_worker.shell.access import RemoteAccess
    from swamp_worker.shell.calls import StepCalls
    from swamp_worker.shell.daemon import Machine, Ports, Settings, Worker
    from swamp_worker.shell.dataplane import DataPlane
    from swamp_worker.shell.dial import open_pipe
    from swamp_worker.shell.identity import open_identity, this_arch, this_host, this_platform
    from swamp_worker.shell.voice import Voice

    voice = Voice(as_json=options.json, quiet=options.quiet, log=_log(options.log), level=options.log_level)
    identity = open_identity(options.cache_dir)
    try:
        if identity.is_temporary:
            voice.warn(
                "no --cache-dir: this worker has a fresh identity that ends with the process. After a "
                "restart the orchestrator treats it as a different machine, and its token will not be "
                "accepted again. Set --cache-dir (or SWAMP_WORKER_CACHE_DIR) to a stable directory."
            )
        reaped = await trio.to_thread.run_sync(reap_predecessor, identity.directory)
        if reaped is not None and not reaped.reaped:
            voice.warn("a previous worker of this cache directory left processes that could not be killed")
        predecessor = identity.last_enrolled() or reaped
        if predecessor is not None:
            predecessor = attrs.evolve(predecessor, reaped=reaped is None or reaped.reaped)
        spool = SpoolRoom(identity.directory / "spool", say=voice.warn)

        if address.secure and address.data_plane.startswith("http:"):
            voice.warn(
                f"the data plane at {address.data_plane} is not encrypted: whatever steps read and write, and the "
                "credentials they do it with, can be read on the way"
            )
        calls = StepCalls()
        async with (
            open_keeper(identity.directory, identity.instance, say=voice.warn) as keeper,
            DataPlane(address.data_plane, calls, address.pinned_context, voice.warn) as plane,
        ):
            access = RemoteAccess(calls, plane)
            bundles = BundleCache(identity.directory, access, Environments(identity.directory, keeper))
            executor = StepExecutor(identity.directory / "work", keeper, access=access, bundles=bundles)
            for sweep in (executor.workspace.sweep, spool.sweep, bundles.sweep):
                await trio.to_thread.run_sync(sweep)
            worker = Worker(
                Settings(
                    url=options.url,
                    token=options.token,
                    capacity=options.concurrency,
                    labels=dict(options.labels),
                    reconnect=options.reconnect,
                    dispatches_max=options.max_dispatches,
                    idle_timeout_s=options.idle_timeout_s,
                ),
                Machine(
                    machine_id=identity.machine_id,
                    boot_id=identity.boot_id,
                    instance=identity.instance,
                    host=this_host(),
                    pid=os.getpid(),
                    platform=this_platform(),
                    arch=this_arch(),
                    predecessor=predecessor,
                ),
                Ports(
                    dial=lambda: open_pipe(address),
                    executor=executor,
                    spool=spool,
                    draw=random.SystemRandom().random,
                    boot_s=lambda: boot_ns() / 1e9,
                    renew=_renew(keeper),
                    settle=keeper.settle,
                    on_enrolled=identity.note_enrolled,
                    calls=calls,
                ),
                voice,
            )
            assert isinstance(keeper, Keeper)
            async with trio.open_nursery() as nursery:
                await nursery.start(_obey_signals, worker, voice)
                ending = await worker.run()
                nursery.cancel_scope.cancel()
        return int(ending.code)
    finally:
        identity.close()


def _renew(keeper: Any) -> Callable[[float, float], object]:
    def renew(sent_at_s: float, grace_s: float) -> None:
        keeper.renew(int(sent_at_s * 1e9), grace_s)

    return renew


async def _obey_signals(worker: "Worker", voice: "Voice", *, task_status: Any) -> None:
    import trio

    # A shell starts a script's background job with SIGINT ignored; someone who sends it anyway means it. An ignored
    # SIGHUP is nohup's, and is left so.
    heeded = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        heeded.append(signal.SIGHUP)
    with trio.open_signal_receiver(*heeded) as arriving:
        task_status.started()
        times = 0
        async for _ in arriving:
            times += 1
            if times == 1 and not worker.is_draining:
                worker.drain("received shutdown signal")
            elif times <= 2:
                voice.warn("stopping: what runs is cancelled (once more to kill it)")
                worker.leave()
                times = 2
            else:
                worker.kill()


# ── the command line ────────────────────────────────────────────────────────────────────────────────────────


@click.command("connect", help="Connect this machine to an orchestrator as a remote execution worker.")
@click.argument("url", required=False, metavar="[URL]")
@click.option("--token", metavar="TOKEN", help="Enrollment token, <name>.<secret>; - reads it from stdin.")
@click.option("--token-file", metavar="FILE", help="Read the enrollment token from this file.")
@click.option(_FD_FLAG, type=int, hidden=True)
@click.option("--label", "labels", multiple=True, metavar="K=V", help="Scheduling label (repeatable).")
@click.option("--data-plane-url", metavar="URL", help="Data-plane base URL. Default: the URL over HTTP.")
@click.option(
    "--cache-dir",
    metavar="DIR",
    help="Cache directory; holds the machine-id the token binds to. Default: a fresh temporary one.",
)
@click.option("--no-reconnect", is_flag=True, help="Exit when the control socket closes.")
@click.option("--concurrency", metavar="N|auto", help="Steps at once. Default: 1; auto: one per CPU.")
@click.option("--max-dispatches", metavar="N", help="Leave after this many dispatches.")
@click.option("--idle-timeout", metavar="DURATION", help="Leave after so long without work (60, 90s, 10m).")
@click.option("--ca-file", metavar="FILE", help="Trust these CA certificates (PEM) for wss://.")
@click.option("--pin-sha256", metavar="HEX", help="Accept only the certificate with this fingerprint.")
@click.pass_context
def connect(context: click.Context, /, **given: Any) -> int:
    """The command. Global flags arrive as the root context's object (`json`, `get("quiet")`)."""
    hide_token(given)
    invocation = context.find_root().obj
    options = read_options(given, os.environ)
    if invocation is not None:
        log = invocation.get("log")
        options = attrs.evolve(
            options,
            json=bool(invocation.json),
            quiet=bool(invocation.get("quiet")),
            log=Path(log) if log else None,
            log_level=invocation.get("log_level") or "info",
        )
    for name in [name for name in os.environ if name.startswith("SWAMP_WORKER_")]:
        del os.environ[name]
    return run_worker(options)


def read_options(given: Mapping[str, Any], environ: Mapping[str, str]) -> WorkerOptions:
    """Flags over variables, all checked. Raises UsageError."""

    def chosen(flag: str, variable: str) -> str | None:
        return given.get(flag) or environ.get(variable) or None

    url = chosen("url", "SWAMP_ORCHESTRATOR_URL")
    if not url:
        raise UsageError(
            "Missing orchestrator URL — pass it as a positional argument or set SWAMP_ORCHESTRATOR_URL",
            hint="swamp worker connect ws://localhost:9090 --token <token>",
        )
    from swamp_worker.shell.dial import Address

    cache_dir = chosen("cache_dir", "SWAMP_WORKER_CACHE_DIR")
    ca_file = chosen("ca_file", "SWAMP_WORKER_CA_FILE")
    pin = chosen("pin_sha256", "SWAMP_WORKER_PIN_SHA256")
    data_plane_url = chosen("data_plane_url", "SWAMP_WORKER_DATA_PLANE_URL")
    Address.parse(url, ca_file=Path(ca_file) if ca_file else None, pin=pin, data_plane=data_plane_url)
    idle = chosen("idle_timeout", "SWAMP_WORKER_IDLE_TIMEOUT")
    return WorkerOptions(
        url=url,
        token=_token(given, environ),
        labels=_labels(given.get("labels") or (), environ.get("SWAMP_WORKER_LABELS", "")),
        data_plane_url=data_plane_url,
        cache_dir=Path(cache_dir) if cache_dir else None,
        reconnect=not (
            given.get("no_reconnect") or environ.get("SWAMP_WORKER_NO_RECONNECT", "") in ("1", "true")
        ),
        concurrency=_concurrency(chosen("concurrency", "SWAMP_WORKER_CONCURRENCY")),
        max_dispatches=_count(chosen("max_dispatches", "SWAMP_WORKER_MAX_DISPATCHES")),
        idle_timeout_s=_duration_s(idle) if idle else None,
        ca_file=Path(ca_file) if ca_file else None,
        pin=pin,
    )


def _token(given: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    said = [name for name in ("token", "token_file") if given.get(name)]
    if len(said) > 1:
        raise UsageError("--token and --token-file exclude each other")
    if given.get("token_fd") is not None:
        with os.fdopen(given["token_fd"], "rb") as file:
            file.seek(0)
            token = file.read(TOKEN_LENGTH_MAX + 2).decode("utf-8", "replace")
    elif given.get("token") == "-":
        token = sys.stdin.readline(TOKEN_LENGTH_MAX + 2)
    elif given.get("token"):
        token = given["token"]
    elif given.get("token_file") or environ.get("SWAMP_WORKER_TOKEN_FILE"):
        path = Path(given.get("token_file") or environ["SWAMP_WORKER_TOKEN_FILE"])
        try:
            with path.open() as file_:
                token = file_.readline(TOKEN_LENGTH_MAX + 2)
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read the token from {path}: {error}") from None
    else:
        token = environ.get("SWAMP_WORKER_TOKEN", "")
    token = token.strip()
    if not token:
        raise UsageError(
            "Missing enrollment token — pass --token or set SWAMP_WORKER_TOKEN",
            hint="swamp worker token create <name> --duration 24h",
        )
    name, dot, secret = token.partition(".")
    if not (name and dot and secret) or len(token) > TOKEN_LENGTH_MAX:
        raise UsageError(
            "the enrollment token must have the form <name>.<secret>",
            hint="pass the whole line that swamp worker token create printed",
            code=RefusalCode.INVALID_TOKEN.value,
            exit_code=ExitCode.INVALID_TOKEN,  # the orchestrator would say the same
        )
    return token


def _labels(flags: tuple[str, ...], variable: str) -> dict[str, str]:
    found: dict[str, str] = {}
    sources = [(item.strip(), " in SWAMP_WORKER_LABELS") for item in variable.split(",") if item.strip()]
    for item, where in sources + [(item, "") for item in flags]:
        name, equals, value = item.partition("=")
        if not (name.strip() and equals):
            raise UsageError(f"Invalid label '{item}'{where} — expected the form key=value")
        if len(name) > LABEL_LENGTH_MAX or len(value) > LABEL_LENGTH_MAX:
            raise UsageError(f"Invalid label '{item[:40]}…'{where} — at most {LABEL_LENGTH_MAX} characters")
        found[name.strip()] = value.strip()
    if len(found) > LABELS_MAX:
        raise UsageError(f"at most {LABELS_MAX} labels")
    return found


def _concurrency(text: str | None) -> int:
    if text is None:
        return 1
    if text == "auto":
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return max(1, min(usable or 1, CAPACITY_MAX))
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= CAPACITY_MAX):
        raise UsageError(f'--concurrency must be a positive integer or "auto" (at most {CAPACITY_MAX})')
    return int(text)


def _count(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise UsageError("--max-dispatches must be a positive integer")
    return int(text)


def _duration_s(text: str) -> float:
    match = _DURATION.fullmatch(text)
    if match is None or int(match[1]) == 0:
        raise UsageError(
            f'Invalid --idle-timeout value "{text}". Expected seconds, or a format like 90s, 10m, 1h'
        )
    return float(int(match[1]) * _UNITS_S[match[2] or "s"])


# ── the token off the command line ──────────────────────────────────────────────────────────────────────────


def hide_token(given: Mapping[str, Any]) -> None:
    """Execute this very command again without its token, if it was on the command line or in the environment.

    Does not return when it was. Where the own command line is not known, nothing happens.
    """
    command: list[str] | None = list(sys.orig_argv)
    secret = given.get("token")
    if secret and secret != "-":  # noqa: S105 - the name of standard input
        command = without_token(sys.orig_argv)
    elif secret is None and not given.get("token_file") and given.get("token_fd") is None:
        secret = os.environ.get("SWAMP_WORKER_TOKEN")
    else:
        return
    if not secret or not command or "connect" not in command:
        return
    descriptor = _anonymous_file(secret.encode())
    os.set_inheritable(descriptor, True)
    environment = {name: value for name, value in os.environ.items() if name != "SWAMP_WORKER_TOKEN"}
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [*command, _FD_FLAG, str(descriptor)], environment)  # noqa: S606


def without_token(command: list[str]) -> list[str] | None:
    """`command` less `--token X` and `--token=X`; None when neither is in it."""
    found: list[str] = []
    skip = seen = False
    for word in command:
        if skip:
            skip = False
        elif word == "--token":
            skip = seen = True
        elif word.startswith("--token="):
            seen = True
        else:
            found.append(word)
    return found if seen else None


def _anonymous_file(content: bytes) -> int:
    """A file without a name that holds `content`; in memory where the system can."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("swamp-token")
    else:
        import tempfile

        descriptor, path = tempfile.mkstemp()
        Path(path).unlink()
    os.write(descriptor, content)
    return descriptor
