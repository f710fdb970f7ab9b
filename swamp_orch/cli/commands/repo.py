"""`swamp repo`: making a repository. The one group that works without one."""

from pathlib import Path

from swamp_orch.cli.groups import argument, command, option
from swamp_orch.cli.invocation import Invocation


@command(
    "init",
    argument("path", required=False),
    option("--vault", metavar="NAME", help="Also create a local_encryption vault of this name."),
    option("--force", "-f", is_flag=True, help="Make what is missing in a repository that exists."),
    help="Make PATH (default: the current folder) a swamp repository.",
    connects=False,
)
def init(invocation: Invocation, path: str | None, vault: str | None, force: bool) -> None:
    from swamp_orch.definitions.repository import find, init

    where = Path(path or invocation.get("repo_dir") or ".")
    document = init(where, force=force)
    if vault is not None:
        from swamp_orch.api.services.vaults import VaultService

        handlers = VaultService(find(Path(document["path"]), walk=False)).handlers()
        document["vault"] = handlers["vault.create"]({"type": "local_encryption", "name": vault})
        document["nextSteps"] = [s for s in document["nextSteps"] if not s.startswith("swamp vault create")]
    if invocation.json:
        invocation.document(document)
        return
    print(f"Initialized swamp repository at {document['path']}")
    if vault is not None:
        print(f"Created vault: {vault} (Local Encryption)")
    if not invocation.quiet:
        print("\nWhat's next:")
        invocation.lines(*(f"  {step}" for step in document["nextSteps"]))
