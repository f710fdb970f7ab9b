"""What is done on both sides: a Python type with a method per behaviour, and the steps, shell and Python, in one workflow."""

from collections.abc import Mapping
from typing import Any, Final

from e2e_site import Site, step

SECRET: Final = 'parity "secret" /+%'
REFERENCE: Final = '${{ vault.get("sandbox-vault", "password") }}'

PYTHON: Final = '''
import os
import signal
import subprocess
import sys

import attrs
import trio
from swamp_worker.sdk import (
    CallFailed, CheckFailed, Context, Findings, PlainContext, Report, RunFindings, StepFailed,
    about, check, file, method, model, report, resource,
)


@attrs.frozen
class Item:
    name: str
    size: int = 0


@attrs.frozen
class Given:
    what: str = "plain"
    many: int = 1
    password: str = attrs.field(default="", metadata=about("Masked", sensitive=True))


@attrs.frozen
class Account:
    user: str
    token: str = attrs.field(metadata=about("In a vault", sensitive=True))


@model("@parity/type", version="2026.11.21.1", reads=["neighbour"], secrets=["sandbox-vault/password", "sandbox-vault/made"])
class Parity:
    """Everything a step may do."""

    item = resource(Item, "One")
    answer = resource(Item, "What a method returned")
    account = resource(Account, "Partly in a vault")
    paper = file("text/plain", "A text")
    blob = file("application/octet-stream", "Bytes")

    @method
    async def writes(self, context: Context, arguments: Given) -> None:
        for number in range(arguments.many):
            await context.write_resource(self.item, Item(f"item-{number}", number), f"item-{number}", tags={"what": arguments.what})
        async with context.open_file(self.paper) as paper:
            await paper.write_line(f"a text of {arguments.what}")
        async with context.open_file(self.blob, "large") as blob:
            await blob.write(bytes(range(256)) * 8_000)

    @method
    async def reads(self, context: Context) -> None:
        found = await context.read_resource("item-1")
        print("read", found.into(Item), found.tags["what"])
        print("text", (await context.read_resource("paper")).text().strip())
        large = await context.read_file("large")
        print("large", large.path.stat().st_size, large.record.content_type)
        print("query", sorted(await context.query('name.startsWith("item-")', select="attributes.size")))
        print("versions", [one["outcome"] for one in await context.versions("item-1")][-1:])
        print("none", await context.read_resource("nothing"))
        print("neighbour", (await context.read_resource("result", model="neighbour")).json()["stdout"])
        print("definition", (await context.read_model())["type"])
        print("deleted", await context.delete_resource("item-0"), await context.delete_resource("item-0"))
        print("secret", await context.secret("sandbox-vault", "password"))
        await context.put_secret("sandbox-vault", "made", "a value that was made")
        print("made", await context.secret("sandbox-vault", "made"))

    @method(returns=answer)
    def returns(self, context: PlainContext, arguments: Given) -> Item:
        print("out", arguments.password)
        print("err", file=sys.stderr)
        context.log("a word", fence=context.fence, attempt=context.attempt)
        return Item(arguments.what, arguments.many)

    @method
    async def is_refused(self, context: Context) -> None:
        tries = {
            "an undeclared spec": lambda: context.write_resource("nothing", {"a": 1}),
            "a violated schema": lambda: context.write_resource("item", {"name": 3}),
            "another model": lambda: context.read_resource("x", model="stranger"),
            "another secret": lambda: context.secret("sandbox-vault", "worker-token-w"),
            "a broken query": lambda: context.query("name =="),
        }
        for what, ask in tries.items():
            try:
                await ask()
            except CallFailed as error:
                print(what, type(error).__name__, error)
        await context.write_resource("nothing", {})

    @method
    async def fails(self, context: Context, arguments: Given) -> None:
        await context.write_resource(self.item, Item("partial"), "partial")
        raise ValueError(f"not with {arguments.password} nor {await context.secret('sandbox-vault', 'password')}")

    @method
    def gives_up(self, context: PlainContext) -> None:
        raise StepFailed("the author's own words")

    @method
    def returns_nonsense(self, context: PlainContext) -> None:
        return 42

    @method
    def leaves(self, context: PlainContext) -> None:
        os._exit(3)

    @method
    def is_killed(self, context: PlainContext) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    @method
    async def hangs(self, context: Context) -> None:
        print("begun", flush=True)
        await trio.sleep_forever()

    @method
    def prints_much(self, context: PlainContext, arguments: Given) -> None:
        for number in range(arguments.many):
            print(number, "x" * 60)
        sys.stdout.buffer.write(b"\\xff\\xfe not text\\n" + b"long " * 20_000 + b"\\n")

    @method
    def leaves_a_child(self, context: PlainContext) -> None:
        subprocess.Popen(["sleep", "60"])

    @method
    async def follows(self, context: Context, arguments: Given) -> None:
        await context.write_resource(self.item, Item("turn", arguments.many), "turn")
        if arguments.many < 3:
            context.follow_up(self.follows, Given(many=arguments.many + 1))

    @method
    async def runs_a_model(self, context: Context) -> None:
        ran = await context.run_model("neighbour", "execute")
        print(ran.status, [record["name"] for record in ran.records])

    @method
    async def hides(self, context: Context) -> None:
        token = os.urandom(12).hex()
        await context.write_resource(self.account, Account("ada", token), "ada")
        print("hidden", token, (await context.read_resource("ada")).json()["token"] != token)

    @method
    def is_checked(self, context: PlainContext) -> None:
        print("never")

    @check(applies_to=["is_checked"])
    async def is_well(self, context: Context) -> None:
        raise CheckFailed("it is not well")

    @report
    async def summary(self, context: Context, findings: Findings) -> Report:
        return Report("# what happened\\n", {"succeeded": findings.succeeded})

    @report
    def broken(self, context: PlainContext, findings: Findings) -> str:
        raise RuntimeError("no paper")

    @report(scope="workflow")
    async def everything(self, context: Context, run: RunFindings) -> Report:
        found = {}
        for step in run.steps:
            names = [one.name for one in step.records]
            found[step.name] = [step.status, step.error, step.model, step.method, step.attempts, names]
        items = [one for one in run.records if one.spec == "item"]
        read = [await context.read_resource(one.name, model=one.model, version=one.version) for one in items]
        large = next(one for one in run.records if one.name == "large")
        size = (await context.read_file("large", model=large.model)).path.stat().st_size
        contents = [None if one is None else [one.name, one.json(), one.fields["outcome"]] for one in read]
        return Report(f"# {run.status}", {"steps": found, "items": contents, "large": size})
'''

SHELL: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "succeeds": ("echo one; echo two >&2; echo three", {}),
    "fails": ("echo before; exit 7", {}),
    "is-killed": ("echo before; kill -SEGV $$", {}),
    "is-allowed-to-fail": ("exit 3", {"ignoreExitCode": True}),
    "times-out": ("echo begun; sleep 60", {"timeout": 3_000}),
    "prints-much": ("i=0; while [ $i -lt 3000 ]; do echo \"$i padding padding padding\"; i=$((i+1)); done; printf 'no end'", {}),
    "prints-long": ("head -c 200000 /dev/zero | tr '\\0' y; echo; printf '\\377\\n'", {}),
    "tells": ('echo "it is $P"; echo ' + REFERENCE + "; exit 4", {"env": {"P": REFERENCE}}),
    "leaves-a-child": ("sleep 60 & echo gone", {}),
    "has-a-directory": ("ls -A | wc -l; echo x > y; cat y", {}),
    "knows-its-place": ('echo "$SWAMP_WORKFLOW $SWAMP_JOB $SWAMP_STEP $SWAMP_MODEL $SWAMP_ATTEMPT $SWAMP_FENCE"', {}),
    "can-not-start": ("echo x", {"workingDir": "/no/such/folder"}),
    "takes-an-input": ("printf '%s\\n' ${{ inputs.given }}", {"inputs": {"type": "object", "properties": {"given": {"type": "string"}}}}),
}  # fmt: skip
AWKWARD: Final = 'a\'b "c" $(id) `id` ; #'

METHODS: Final[Mapping[str, Mapping[str, Any]]] = {
    "writes": {"many": 3, "what": "parity"}, "reads": {}, "returns": {"what": "answer", "many": 5, "password": REFERENCE}, "is_refused": {},
    "fails": {"password": "a sensitive argument"}, "gives_up": {}, "returns_nonsense": {}, "leaves": {}, "is_killed": {}, "hangs": {},
    "prints_much": {"many": 2_000}, "leaves_a_child": {}, "follows": {}, "runs_a_model": {}, "hides": {}, "is_checked": {},
}  # fmt: skip


PYTHON_STEP: Final = "py-{}"


def make(site: Site) -> None:
    """Definitions of everything, once."""
    site.ok("vault", "put", "sandbox-vault", "password", stdin=SECRET)
    for name, (run, arguments) in SHELL.items():
        site.model(name, run, **arguments)
    site.model("neighbour", "echo hello")
    site.model("stranger", "echo no")
    site.model("waits", "echo begun; sleep 60 & wait")
    (site.root / "extensions" / "models" / "parity.py").write_text(PYTHON)
    site.ok("model", "create", "@parity/type", "parity")


def workflow(site: Site, placement: Mapping[str, Any]) -> None:
    """The same workflow, placed or not. Steps on the Python model come one after another: they read what others wrote."""
    steps = [
        step(name, name, inputs={"given": AWKWARD} if name == "takes-an-input" else None, allowFailure=True, **placement) for name in SHELL
    ]  # fmt: skip
    before = step("neighbour", "neighbour", **placement)
    steps.append(before)
    last = "neighbour"
    for method, inputs in METHODS.items():
        name = PYTHON_STEP.format(method)
        made = step(name, "parity", inputs=inputs, allowFailure=True, dependsOn=[last], **placement)
        made["task"]["methodName"] = method
        if method == "hangs":
            made["timeout"] = "3s"
        if last != "neighbour":
            made["dependsOn"] = [{"step": last, "condition": {"type": "completed"}}]
        steps.append(made)
        last = name
    site.workflow("parity", *steps)
