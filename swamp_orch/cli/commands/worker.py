"""`swamp worker`: enrollment tokens, the pool, the queue. `connect` itself is the worker package's."""

from typing import Any, Final

import click

from swamp_orch.cli import console
from swamp_orch.cli.durations import lifetime_ms, seconds
from swamp_orch.cli.groups import Command, argument, command, option
from swamp_orch.cli.invocation import Invocation
from swamp_proto.errors import NotFound, OperationFailed, SwampError, UsageError


@command(
    "create",
    argument("name"),
    option(
        "--duration",
        required=True,
        metavar="DURATION",
        help="Lifetime: 30m, 1h, 24h, 7d, 1mo. A hard deadline.",
    ),
    option(
        "--vault",
        kind="vault",
        metavar="VAULT",
        help="Vault that stores the plaintext. Default: the sole one.",
    ),
    option(
        "--max-enrollments", metavar="N", help='Machines it may bind: a number or "unlimited". Default: 1.'
    ),
    help="Mint a named enrollment token. The plaintext is shown exactly once.",
)
def token_create(
    invocation: Invocation, name: str, duration: str, vault: str | None, max_enrollments: str | None
) -> None:
    allowance: Any = None
    if max_enrollments is not None:
        if max_enrollments != "unlimited" and not (
            max_enrollments.isascii() and max_enrollments.isdigit() and int(max_enrollments) > 0
        ):
            raise UsageError(
                f'Invalid --max-enrollments value "{max_enrollments}": '
                'must be a positive integer or "unlimited"'
            )
        allowance = max_enrollments if max_enrollments == "unlimited" else int(max_enrollments)
    made = invocation.call(
        "token.create", name=name, durationMs=lifetime_ms(duration), vault=vault, maxEnrollments=allowance
    )
    if invocation.json:
        invocation.document(made)
        return
    reference = made["vaultRef"]
    print(f"Token: {made['name']}")
    print(f"Expires: {made['expiresAt']}")
    if made.get("maxEnrollments", 1) != 1:
        print(f"Max enrollments: {made['maxEnrollments']}")
    print(f"Vault: {reference['vaultName']} (key {reference['secretKey']})")
    print(f"\n  {made['token']}\n")
    print("This token is shown once and will not be displayed again — store it now.")


@command("list", help="List enrollment tokens with their effective state, expiry and bound machine.")
def token_list(invocation: Invocation) -> None:
    tokens = invocation.call("token.list")
    if invocation.json:
        invocation.document(tokens)
        return
    if not tokens:
        print("No enrollment tokens found.")
        print("Mint one with: swamp worker token create <name> --duration 24h")
        return
    rows = [(t["name"], t["effectiveState"], t["expiresAt"], t.get("boundMachine") or "-") for t in tokens]
    invocation.lines(
        *console.table(
            ("NAME", "STATE", "EXPIRES", "BOUND MACHINE"),
            rows,
            color=invocation.color,
            styled={1: console.STATE_STYLES},
        )
    )


@command(
    "revoke", argument("name", kind="token"), help="Invalidate a token; its workers are cut off at once."
)
def token_revoke(invocation: Invocation, name: str) -> None:
    done = invocation.call("token.revoke", name=name)
    if invocation.json:
        invocation.document(done)
    elif done.get("alreadyRevoked"):
        print(f"Token {name} was already revoked.")
    else:
        print(f"{console.paint('✓', 'green', invocation.color)} Token {name} revoked.")
        if done.get("revokedAt"):
            print(f"Revoked at: {done['revokedAt']}")


@command(
    "renew",
    argument("name", kind="token"),
    option(
        "--duration", required=True, metavar="DURATION", help="New lifetime, counted from now: 1h, 7d, 1mo."
    ),
    help="Extend a live token without touching the machine it is bound to.",
)
def token_renew(invocation: Invocation, name: str, duration: str) -> None:
    done = invocation.call("token.renew", name=name, durationMs=lifetime_ms(duration))
    if invocation.json:
        invocation.document(done)
    else:
        print(f"{console.paint('✓', 'green', invocation.color)} Token {name} renewed.")
        print(f"Expires: {done['expiresAt']}")


@command(
    "list",
    option("--all", "show_all", is_flag=True, help="Also disconnected workers."),
    help="List the workers of the pool: status, slots, labels, platform, last seen.",
)
def list_workers(invocation: Invocation, show_all: bool) -> None:
    found = invocation.call("worker.list", all=show_all)
    if invocation.json:
        invocation.document(found)
        return
    workers, hidden = found["workers"], found.get("filteredDisconnectedCount", 0)
    footer = f"{hidden} disconnected worker(s) hidden — use 'swamp worker list --all' to show all."
    if not workers:
        if hidden:
            invocation.lines("No connected workers found.", footer)
            return
        print("No workers found.")
        print("Workers appear here after enrolling with: swamp worker token create <name> --duration 24h")
        return
    rows = []
    for w in workers:
        labels = ",".join(f"{k}={v}" for k, v in sorted(w.get("labels", {}).items())) or "-"
        slots = f"{len(w.get('activeDispatchIds', []))}/{w.get('capacity', 1)}"
        place = f"{w.get('platform', '-')}/{w.get('arch', '-')}"
        rows.append((w["name"], w["status"], slots, labels, place, w.get("lastSeenAt") or "-"))
    invocation.lines(
        *console.table(
            ("NAME", "STATUS", "SLOTS", "LABELS", "PLATFORM/ARCH", "LAST SEEN"),
            rows,
            color=invocation.color,
            styled={1: console.STATE_STYLES},
        )
    )
    if hidden:
        print(footer)


@command(
    "queue",
    option("--explain", is_flag=True, help="Say for each waiting step why each worker was refused."),
    help="List the steps that wait for a worker, oldest first.",
)
def queue(invocation: Invocation, explain: bool) -> None:
    found = invocation.call("worker.queue", explain=explain or None)
    if invocation.json:
        invocation.document(found)
        return
    if not found:
        print("No steps are currently queued.")
        return
    rows = [
        (
            step["requirement"],
            step.get("stepName") or f"{step['modelType']}.{step['methodName']}",
            step["modelType"],
            step["queuedAt"],
            console.age(step["ageMs"]),
        )
        for step in found
    ]
    headers = ("REQUIREMENT", "STEP", "MODEL", "QUEUED AT", "AGE")
    head, *lines = console.table(headers, rows, color=invocation.color)
    print(head)
    for line, step in zip(lines, found, strict=True):
        print(line)
        for name, reasons in step.get("workers", {}).items():
            print(f"  {name}: {'; '.join(reasons)}")
        if step.get("change"):
            print(f"  To start it: {step['change']}")


def _draining(
    invocation: Invocation, name: str, draining: bool, reason: str | None, when_safe: bool = False
) -> None:
    def ask(**how: Any) -> Any:
        try:
            return invocation.call("worker.drain", name=name, draining=draining, reason=reason, **how)
        except SwampError as error:
            if error.error_code == "no_orchestrator":
                _must_be_known(invocation, name)
            raise

    if when_safe:
        _drain_when_safe(invocation, name, ask(whenSafe=True))
        return
    done = ask()
    if invocation.json:
        invocation.document(done)
    elif draining:
        print(
            f"{console.paint('✓', 'green', invocation.color)} Worker {name} is draining: it gets nothing new."
        )
    else:
        print(f"{console.paint('✓', 'green', invocation.color)} Worker {name} takes work again.")


def _must_be_known(invocation: Invocation, name: str) -> None:
    """An orchestrator would not help with a name that nobody has."""
    if name not in [one["name"] for one in invocation.call("worker.list", all=True)["workers"]]:
        raise NotFound(f"Worker '{name}' not found.", hint="swamp worker list --all")


@command(
    "drain",
    argument("name", kind="worker"),
    option("--reason", metavar="TEXT", help="Why; shown where the worker is."),
    option(
        "--when-safe",
        is_flag=True,
        help="Move what has not written to other workers, and wait until nothing is left on this one.",
    ),
    help="Give a worker nothing new; what it runs is finished. Holds until `undrain`.",
)
def drain(invocation: Invocation, name: str, reason: str | None, when_safe: bool) -> None:
    _draining(invocation, name, True, reason, when_safe)


def _drain_when_safe(invocation: Invocation, name: str, begun: dict[str, Any]) -> None:
    """First what was decided at once, for who waits; then the wait, which may be as long as a step."""
    if not invocation.json:
        print(
            f"{console.paint('✓', 'green', invocation.color)} Worker {name} is draining: it gets nothing new."
        )
        if begun["moved"]:
            print(f"Moved to another worker, since nothing was written: {_places(begun['moved'])}")
        if begun["finishing"]:
            print(f"Finishing here: {_places(begun['finishing'])}", flush=True)
    while not (found := invocation.call("worker.idle", name=name))["idle"]:
        if not found["draining"]:
            raise OperationFailed(
                f"worker {name} takes work again: somebody ended its drain", hint="swamp worker list"
            )
    if invocation.json:
        invocation.document(begun)
    else:
        print(f"Nothing runs on {name} any more: it can be switched off.")


def _places(steps: list[dict[str, Any]]) -> str:
    return ", ".join(f"{step['job']} › {step['step']}" for step in steps)


@command("undrain", argument("name", kind="worker"), help="Give a drained worker work again.")
def undrain(invocation: Invocation, name: str) -> None:
    _draining(invocation, name, False, None)


@command(
    "verify",
    argument("name", kind="worker", required=False),
    option(
        "--label",
        "labels",
        multiple=True,
        metavar="KEY=VALUE",
        help="Only workers with this label; repeatable.",
    ),
    option(
        "--wait",
        metavar="DURATION",
        help="How long a busy worker may take to have a free slot. Default: 30s, at most 2m.",
    ),
    help="Exercise every seam of connected workers, end to end: pass or fail for each.",
)
def verify(invocation: Invocation, name: str | None, labels: tuple[str, ...], wait: str | None) -> None:
    wait_s = None if wait is None else seconds(wait, "--wait")
    if wait_s is not None and wait_s > VERIFY_WAIT_S_MAX:
        raise UsageError(f'Invalid --wait value "{wait}": at most {VERIFY_WAIT_S_MAX:g} seconds')
    if name is None:
        wanted = dict(_label(text) for text in labels)
        connected = invocation.call("worker.list")["workers"]
        names = [
            one["name"]
            for one in connected
            if one["status"] != "disconnected" and wanted.items() <= one["labels"].items()
        ]
        if not names:
            try:
                invocation.call("serve.status")
            except SwampError as error:
                if error.error_code != "no_orchestrator":
                    raise
                raise OperationFailed(
                    "no orchestrator is running, so no worker is connected: nothing was verified",
                    hint="start one: swamp serve",
                    code="no_orchestrator",
                ) from None
            which = " with these labels" if wanted else ""
            raise OperationFailed(
                f"no worker{which} is connected: nothing was verified", hint="swamp worker list --all"
            )
    elif labels:
        raise UsageError("give a NAME or --label, not both")
    else:
        names = [name]
    found: list[dict[str, Any]] = []
    for each in names:
        found.append(invocation.call("worker.verify", name=each, waitS=wait_s))
        if not invocation.json:
            _tell_verified(invocation, found[-1])
    passed = sum(one["status"] == "pass" for one in found)
    if invocation.json:
        invocation.document(
            {"workers": found, "total": len(found), "passed": passed, "failed": len(found) - passed}
        )
    elif passed == len(found):
        print(f"All {len(found)} worker(s) passed.")
    if passed < len(found):
        raise OperationFailed(
            f"{len(found) - passed} of {len(found)} worker(s) did not pass", code="verification_failed"
        )


VERIFY_WAIT_S_MAX: Final = 120.0


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise UsageError(f"Invalid label '{text}' — expected the form key=value")
    return key, value


def _tell_verified(invocation: Invocation, found: dict[str, Any]) -> None:
    waited = f", waited {found['waitedMs'] / 1000:.1f} s for a free slot" if found["waitedMs"] >= 1000 else ""
    print(f"{found['name']} ({found['platform']}/{found['arch']}{waited})")
    if found["status"] == "busy":
        print(f"  {console.paint('!', 'yellow', invocation.color)} {found['detail']}", flush=True)
        return
    marks = {"pass": ("✓", "green"), "fail": ("✗", "red"), "skipped": ("-", "dim")}
    for seam in found["seams"]:
        mark = console.paint(*marks[seam["status"]], invocation.color)
        detail = f": {seam['detail']}" if "detail" in seam else ""
        print(f"  {mark} {seam['seam']}{detail}", flush=True)


def __getattr__(name: str) -> Any:
    """`connect` is imported when typed: the worker's command with the global flags added."""
    if name != "connect":
        raise AttributeError(name)
    from swamp_worker.cli import connect as theirs

    assert isinstance(theirs, click.Command)
    return Command(
        "connect", params=list(theirs.params), callback=theirs.callback, help=theirs.help, connects=False
    )
