"""`swamp serve`: the flags of the orchestrator. What it does is `swamp_orch.serve`."""

from pathlib import Path

from swamp_orch.cli.durations import seconds
from swamp_orch.cli.groups import command, option
from swamp_orch.cli.invocation import Invocation
from swamp_proto.errors import UsageError
from swamp_proto.limits import CONCURRENT_RUNS_MAX_DEFAULT, GRACE_S_DEFAULT, GRACE_S_MAX, GRACE_S_MIN


def _number(text: str, flag: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
        raise UsageError(f'Invalid {flag} value "{text}": must be a number from {least} to {most}')
    return int(text)


@command(
    "serve",
    option(
        "--port",
        default="9090",
        metavar="PORT",
        help="Port to listen on; 0 picks one and says it. Default: 9090.",
    ),
    option("--host", default="127.0.0.1", metavar="HOST", help="Address to bind to. Default: 127.0.0.1."),
    option("--no-schedule", is_flag=True, help="Do not run scheduled workflows."),
    option(
        "--webhook", multiple=True, metavar="SPEC", help="Webhook <route>:<workflow>:<secret>; repeatable."
    ),
    option("--tls-cert", metavar="FILE", help="TLS certificate (PEM); needs --tls-key."),
    option("--tls-key", metavar="FILE", help="TLS key (PEM); needs --tls-cert."),
    option(
        "--grace", default=f"{GRACE_S_DEFAULT:.0f}s", metavar="DURATION", help="Grace window. Default: 60s."
    ),
    option(
        "--drain",
        default="30s",
        metavar="DURATION",
        help="Time loopback steps get at shutdown. Default: 30s.",
    ),
    option(
        "--env-allow",
        multiple=True,
        metavar="PATTERN",
        help="Only these variables go to workers; repeatable.",
    ),
    option("--env-deny", multiple=True, metavar="PATTERN", help="These variables do not; repeatable."),
    option(
        "--max-concurrent-runs", metavar="N", help="Runs at once; a further one is refused. Default: 100."
    ),
    help="Run the orchestrator of this repository: workers and clients connect to it.",
    connects=False,
)
def serve(
    invocation: Invocation,
    port: str,
    host: str,
    no_schedule: bool,
    webhook: tuple[str, ...],
    tls_cert: str | None,
    tls_key: str | None,
    grace: str,
    drain: str,
    env_allow: tuple[str, ...],
    env_deny: tuple[str, ...],
    max_concurrent_runs: str | None,
) -> int | None:
    if (tls_cert is None) != (tls_key is None):
        raise UsageError("Both --tls-cert and --tls-key must be provided together for TLS")
    grace_s = seconds(grace, "--grace")
    if not GRACE_S_MIN <= grace_s <= GRACE_S_MAX:
        raise UsageError(
            f'Invalid --grace value "{grace}": from {GRACE_S_MIN:.0f}s to {GRACE_S_MAX / 3600:.0f}h'
        )
    runs = CONCURRENT_RUNS_MAX_DEFAULT
    if max_concurrent_runs is not None:
        runs = _number(max_concurrent_runs, "--max-concurrent-runs", 1, 100_000)
    for spec in webhook:
        if len(spec.split(":", 2)) != 3 or not all(spec.split(":", 2)):
            # The spec holds a secret: it is not repeated in the message.
            raise UsageError("Invalid --webhook value: expected <route>:<workflow>:<secret>")
    chosen_port = _number(port, "--port", 0, 65535)
    repository = invocation.repository()

    from swamp_orch.serve import ServeOptions, run_serve

    return run_serve(
        ServeOptions(
            repository=repository,
            host=host,
            port=chosen_port,
            schedule=not no_schedule,
            webhooks=webhook,
            tls_cert=Path(tls_cert) if tls_cert else None,
            tls_key=Path(tls_key) if tls_key else None,
            grace_s=grace_s,
            env_allow=env_allow,
            env_deny=env_deny,
            max_concurrent_runs=runs,
            drain_s=seconds(drain, "--drain"),
            json=invocation.json,
            quiet=invocation.quiet,
            log=Path(invocation.get("log")) if invocation.get("log") else None,
            log_level=invocation.get("log_level"),
        )
    )
