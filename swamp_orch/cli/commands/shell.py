"""`swamp completions` and `swamp version`."""

from swamp_orch.cli.groups import argument, command
from swamp_orch.cli.invocation import Invocation
from swamp_proto.version import PROTOCOL_VERSION, SWAMP_VERSION


@command(
    "completions",
    argument("shell"),
    help='Print a completion script for bash, zsh or fish: eval "$(swamp completions bash)".',
    connects=False,
)
def completions(invocation: Invocation, shell: str) -> None:
    from swamp_orch.cli.completion import script

    text = script(shell)
    if invocation.json:
        invocation.document({"shell": shell, "script": text})
    else:
        print(text, end="")


@command("version", help="Print the version of swamp and of its protocol.", connects=False)
def version(invocation: Invocation) -> None:
    if invocation.json:
        invocation.document({"version": SWAMP_VERSION, "protocolVersion": PROTOCOL_VERSION})
    else:
        print(f"swamp {SWAMP_VERSION} (protocol {PROTOCOL_VERSION})")
