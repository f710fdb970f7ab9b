"""Shell completion: the scripts, the answers to a shell, and the names of what exists.

A shell must never see an error or wait: whatever goes wrong while names are looked up completes nothing.
"""

from typing import Final

import click

from swamp_orch.cli.invocation import Invocation
from swamp_proto.errors import UsageError

SHELLS: Final = ("bash", "zsh", "fish")
_VARIABLE: Final = "_SWAMP_COMPLETE"


def script(shell: str) -> str:
    """The text a shell evaluates. Raises `UsageError`."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell) if shell in SHELLS else None
    if kind is None:
        raise UsageError(f"no completions for '{shell}'", hint=f"one of: {', '.join(SHELLS)}")
    from swamp_orch.cli.tree import root

    maker = kind(root, {}, "swamp", _VARIABLE)
    # Not `maker.source()`: for bash that runs bash to look at its version.
    return (maker.source_template % maker.source_vars()).strip() + "\n"


def answer(root: click.Group, instruction: str) -> int:
    """What the script asks for: `bash_complete`, `zsh_complete`, `fish_complete`."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(instruction.partition("_")[0])
    if kind is None:
        return 1
    print(kind(root, {"obj": Invocation()}, "swamp", _VARIABLE).complete())
    return 0


def names(context: click.Context, kind: str) -> list[str]:
    """Names of the given kind (`model`, `workflow`, `vault`, `token`, `worker`, `run`, `report`), or nothing."""
    invocation = context.find_object(Invocation)
    if invocation is None:
        return []
    try:
        found = invocation.call("names", kind=kind)
    except Exception:  # completion is a courtesy: a broken repository completes nothing
        return []
    finally:
        invocation.close()
    listed = found.get("names", []) if isinstance(found, dict) else found
    return [str(name) for name in listed]
