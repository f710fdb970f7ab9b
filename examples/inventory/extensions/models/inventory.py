"""An inventory of services: which answer, what changed since the last look, and a list of all of them as a file."""

import csv
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import attrs
import trio

from swamp_worker.sdk import (
    CheckFailed,
    Context,
    Findings,
    PlainContext,
    Report,
    Resources,
    about,
    check,
    file,
    method,
    model,
    report,
    resource,
)


@attrs.frozen
class Settings:
    """Shared by all methods."""

    patience: float = attrs.field(
        default=2.0, metadata=about("Seconds to wait for one service", exclusiveMinimum=0)
    )


@attrs.frozen
class Service:
    """One service as it was last seen."""

    name: str
    up: bool
    said: str = attrs.field(default="", metadata=about("What it answered, or why it did not"))


@attrs.frozen
class Summary:
    """One look at all of them."""

    up: list[str]
    down: list[str]


@attrs.frozen
class Change:
    """What is different since the look before."""

    came: list[str]
    went: list[str]


@attrs.frozen
class Probe:
    """What to look at."""

    services: dict[str, str] = attrs.field(factory=dict, metadata=about("Name to `host:port`"))
    practice: int = attrs.field(
        default=0,
        metadata=about("How many services to start on this machine and look at", minimum=0, maximum=100),
    )


@model(
    "@example/inventory",
    version="2026.02.09.1",
    arguments=Settings,
    secrets=["main/inventory-token"],
)
class Inventory:
    """Services, and whether they answer"""

    service = resource(Service, "One service as it was last seen", keep=5)
    summary = resource(Summary, "Who was up and who was down")
    change = resource(Change, "What is different since the look before")
    listing = file("text/csv", "Every service on a line", lifetime="30d")

    @check(applies_to=["probe"])
    def addresses(self, context: PlainContext[Settings], arguments: Probe) -> None:
        """Every address is host:port"""
        wrong = [
            name for name, address in arguments.services.items() if not address.rpartition(":")[2].isdigit()
        ]
        if wrong:
            raise CheckFailed(f"no host:port: {', '.join(wrong)}")

    @method
    async def probe(self, context: Context[Settings], arguments: Probe) -> None:
        """Greet every service with the token, and keep who answered"""
        token = await context.secret("main", "inventory-token")
        found: list[Service] = []
        async with practice(arguments.practice, token) as started, trio.open_nursery() as nursery:
            for name, address in {**arguments.services, **started}.items():
                patience = context.global_arguments.patience
                nursery.start_soon(greet, name, address, token, patience, found)
        found.sort(key=lambda each: each.name)
        for each in found:
            context.log(f"{each.name} {'up' if each.up else 'down'}: {each.said}")
        await context.write_resources(Resources(self.service, each.name, each) for each in found)
        async with context.open_file(self.listing) as listing:
            await listing.write(table(found))
        up = [each.name for each in found if each.up]
        down = [each.name for each in found if not each.up]
        await context.write_resource(self.summary, Summary(up, down))

    @method(mutates=False, returns=change)
    def compare(self, context: PlainContext[Settings]) -> Change:
        """Compare the last look with the one before"""
        newest = context.read_resource("summary")
        if newest is None:
            return Change([], [])
        now = newest.into(Summary)
        before = context.read_resource("summary", version=newest.version - 1) if newest.version > 1 else None
        was_up = before.into(Summary).up if before is not None else []
        change = Change(sorted({*now.up} - {*was_up}), sorted({*was_up} - {*now.up}))
        context.log(f"{len(change.came)} came, {len(change.went)} went")
        return change

    @report
    def looked(self, context: PlainContext[Settings], findings: Findings) -> Report:
        """What a look found"""
        names = [each.name for each in findings.records if each.spec == "service"]
        lines = [f"# {context.model.name}: {len(names)} services", "", *(f"- {name}" for name in names)]
        return Report("\n".join(lines), {"services": names})


async def greet(name: str, address: str, token: str, patience: float, found: list[Service]) -> None:
    """Ask one service; its answer, or why there is none, goes to `found`."""
    host, _, port = address.rpartition(":")
    try:
        with trio.fail_after(patience):
            async with await trio.open_tcp_stream(host, int(port)) as stream:
                await stream.send_all(f"HELLO {token}\n".encode())
                said = (await stream.receive_some(1024)).decode(errors="replace").strip()
        found.append(Service(name, said == "WELCOME", said))
    except (OSError, trio.TooSlowError) as error:
        found.append(
            Service(
                name, False, "no answer in time" if isinstance(error, trio.TooSlowError) else "nobody there"
            )
        )


@asynccontextmanager
async def practice(count: int, token: str) -> AsyncIterator[dict[str, str]]:
    """Services on this machine that welcome who knows the token: name to address."""

    async def answer(stream: trio.SocketStream) -> None:
        said = await stream.receive_some(1024)
        await stream.send_all(b"WELCOME\n" if said == f"HELLO {token}\n".encode() else b"GO AWAY\n")

    async with trio.open_nursery() as nursery:
        started = {}
        for number in range(1, count + 1):
            serve = partial(trio.serve_tcp, answer, 0, host="127.0.0.1")
            (listener, *_) = await nursery.start(serve)
            started[f"practice-{number}"] = f"127.0.0.1:{listener.socket.getsockname()[1]}"
        yield started
        nursery.cancel_scope.cancel()


def table(found: list[Service]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "up", "said"])
    writer.writerows([each.name, "yes" if each.up else "no", each.said] for each in found)
    return text.getvalue()
