"""`swamp vault`: vaults and the secrets in them. Values are printed by `read-secret` alone."""

import json
import sys
from collections.abc import Mapping
from typing import Any

from swamp_orch.cli import console
from swamp_orch.cli.groups import argument, command, option, yes_option
from swamp_orch.cli.inputs import read_stdin
from swamp_orch.cli.invocation import Invocation
from swamp_proto.errors import AlreadyExists, UsageError


@command(
    "create",
    argument("type"),
    argument("name"),
    option("--config", metavar="JSON", help="Configuration of the vault, for types that need one."),
    help="Create a vault, for example: swamp vault create local_encryption main.",
)
def create(invocation: Invocation, type: str, name: str, config: str | None) -> None:
    settings = None
    if config is not None:
        try:
            settings = json.loads(config)
        except ValueError as problem:
            raise UsageError(f"--config is not JSON: {problem}") from problem
        if not isinstance(settings, dict):
            raise UsageError("--config takes a JSON object")
    made = invocation.call("vault.create", type=type, name=name, config=settings)
    if invocation.json:
        invocation.document(made)
    else:
        print(f"Created vault: {made['name']} ({made.get('typeName', made['type'])})")


@command(
    "put",
    argument("vault", kind="vault"),
    argument("key"),
    argument("value", required=False),
    yes_option(),
    help="Store a secret: as VALUE, KEY=VALUE, piped in, or typed at a hidden prompt (best).",
)
def put(invocation: Invocation, vault: str, key: str, value: str | None, yes: bool) -> None:
    if value is None and "=" in key:
        key, _, value = key.partition("=")
    if value is None:
        value = _hidden(f"Value of {key}: ") if sys.stdin.isatty() else read_stdin().removesuffix("\n")
    try:
        stored = invocation.call("vault.put", vault=vault, key=key, value=value, overwrite=yes)
    except AlreadyExists as problem:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise AlreadyExists(
                problem.message, hint="pass -y (--yes) to replace it", code=problem.error_code
            ) from None
        if not invocation.confirm(f"{problem.message} Replace it?", False):
            invocation.cancelled()
            return
        stored = invocation.call("vault.put", vault=vault, key=key, value=value, overwrite=True)
    if invocation.json:
        invocation.document(stored)
    else:
        print(f"Stored secret {key} in vault {stored.get('vaultName', vault)}")


def _hidden(prompt: str) -> str:
    import getpass

    return getpass.getpass(prompt, stream=sys.stderr)


@command("get", argument("vault", kind="vault"), help="Show a vault's configuration (never a secret).")
def get(invocation: Invocation, vault: str) -> None:
    invocation.document(invocation.call("vault.get", name=vault))


@command(
    "read-secret",
    argument("vault", kind="vault"),
    argument("key"),
    option("-f", "--force", is_flag=True, help="Do not ask on a terminal."),
    help="Print a secret's value; asks first where people look over shoulders.",
)
def read_secret(invocation: Invocation, vault: str, key: str, force: bool) -> None:
    shown = sys.stdout.isatty()
    if shown and not force and not invocation.confirm(f"Show the value of {key} on this terminal?", False):
        invocation.cancelled()
        return
    found = invocation.call("vault.read_secret", vault=vault, key=key)
    if invocation.json:
        invocation.document(found)
    else:
        print(found["value"], end="\n" if shown else "")


@command("list-keys", argument("vault", required=False, kind="vault"), help="List the keys of a vault.")
def list_keys(invocation: Invocation, vault: str | None) -> None:
    found = invocation.call("vault.list_keys", vault=vault)
    if invocation.json:
        invocation.document(found)
        return
    keys = found["secretKeys"]
    print(f"Vault {found['vaultName']} ({found['vaultType']}): {len(keys)} key(s)")
    invocation.lines(*(f"  - {key}" for key in keys))


@command(
    "audit",
    argument("vault", kind="vault"),
    option("--key", metavar="KEY", help="Of this secret only."),
    option("--limit", type=int, metavar="N", help="At most this many, newest first (default 100)."),
    help="Show which steps read or wrote a vault's secrets, or were refused, and when; newest first.",
)
def audit(invocation: Invocation, vault: str, key: str | None, limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise UsageError(f"--limit must be positive (got {limit})")
    found = invocation.call("vault.audit", vault=vault, key=key, limit=limit)
    if invocation.json:
        invocation.document(found)
        return
    results = found["results"]
    if not results:
        what = f"secret {key} of vault {vault}" if key is not None else f"secrets of vault {vault}"
        invocation.lines(f"No step has asked for {what}.")
        return
    heads = ("AT", "KEY", "ACTION", "STEP", "MODEL", "WORKER", "RUN")
    rows = [_audit_row(one) for one in results]
    invocation.lines(*console.table(heads, rows, color=invocation.color, styled={2: {"refused": "red"}}))
    for one in results:
        if not one["allowed"]:
            invocation.lines(
                f"refused {one['action']} of {one['secretKey']}: {one.get('reason', one['code'])}"
            )
    if found["limited"]:
        invocation.note(f"Showing {len(results)} results (limit reached)")


def _audit_row(one: Mapping[str, Any]) -> tuple[str, ...]:
    action = one["action"] if one["allowed"] else "refused"
    return (
        one["at"],
        one["secretKey"],
        action if one["count"] == 1 else f"{action} ×{one['count']}",
        f"{one['workflowName']} › {one['jobName']} › {one['stepName']}",
        f"{one['modelName']} → {one['methodName']}",
        one["workerName"] or "-",
        one["runId"],
    )


@command(
    "delete",
    argument("vault", kind="vault"),
    argument("key"),
    yes_option(),
    help="Delete a secret, for good.",
)
def delete(invocation: Invocation, vault: str, key: str, yes: bool) -> None:
    if not invocation.confirm(f"Delete secret {key} from vault {vault}?", yes):
        invocation.cancelled()
        return
    done = invocation.call("vault.delete", vault=vault, key=key)
    if invocation.json:
        invocation.document(done)
    elif done.get("noOp"):
        print(f"Secret {key} is not in vault {vault}; nothing to delete.")
    else:
        print(f"Deleted secret {key} from vault {vault}")


def _list(invocation: Invocation, query: str | None) -> None:
    found = invocation.call("vault.list", query=query)
    if invocation.json:
        invocation.document(found)
        return
    vaults = found["results"]
    if not vaults:
        invocation.lines("No vaults found.", "Create one with: swamp vault create local_encryption <name>")
        return
    rows = [(v["name"], v["type"], v.get("createdAt", "-")) for v in vaults]
    invocation.lines(*console.table(("NAME", "TYPE", "CREATED"), rows, color=invocation.color))


@command("search", argument("query", required=False), help="Find vaults whose name contains QUERY.")
def search(invocation: Invocation, query: str | None) -> None:
    _list(invocation, query)


@command("list", help="List vaults.")
def list_vaults(invocation: Invocation) -> None:
    _list(invocation, None)
