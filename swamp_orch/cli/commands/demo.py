"""`swamp demo`: the flags of it. The story itself is `swamp_orch.cli.demo`."""

from swamp_orch.cli.durations import seconds
from swamp_orch.cli.groups import command, option
from swamp_orch.cli.invocation import Invocation


@command(
    "demo",
    option("--keep", is_flag=True, help="Keep the temporary folder."),
    option("--timeout", default="2m", metavar="DURATION", help="Give up after this long. Default: 2m."),
    help="Run the tutorial in a temporary repository: vault, token, orchestrator, worker, step, query. "
    "Exit 0 only if the step really ran on the worker.",
    connects=False,
)
def demo(invocation: Invocation, keep: bool, timeout: str) -> None:
    from swamp_orch.cli.demo import run_demo

    def say(text: str) -> None:
        if not (invocation.json or invocation.quiet):
            print(text, flush=True)

    proved = run_demo(say, seconds(timeout, "--timeout"), keep)
    if invocation.json:
        invocation.document(proved)
    else:
        print("\nThe demo passed: the step ran on the worker.")
