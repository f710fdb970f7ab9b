"""The harness that authors test their types with: everything a step goes through, in process."""

from collections.abc import Mapping
from typing import Any

import attrs
import pytest

from swamp_worker.sdk import (
    CheckFailed,
    Context,
    DeclarationError,
    Findings,
    Forbidden,
    PlainContext,
    RecordRef,
    Resources,
    RunFindings,
    StepFailed,
    StepFindings,
    about,
    check,
    file,
    method,
    model,
    report,
    resource,
)
from swamp_worker.sdk.testing import MemoryAccess, run_method, run_method_async, run_report


@attrs.frozen
class Host:
    name: str
    up: bool = True


@attrs.frozen
class Probe:
    hosts: list[str] = attrs.field(metadata=about(minItems=1))


@attrs.frozen
class Settings:
    region: str = "here"


@model(
    "@example/inventory", version="2026.02.09.1", arguments=Settings, reads=["network"], secrets=["ops/token"]
)
class Inventory:
    host = resource(Host)
    last = resource(Host)
    listing = file("text/csv")

    @check
    def short(self, context: PlainContext[Settings], arguments: Any) -> None:
        if len(arguments.hosts) > 3:
            raise CheckFailed("too many hosts")

    @method(returns=last)
    async def probe(self, context: Context[Settings], arguments: Probe) -> Host:
        token = await context.secret("ops", "token")
        context.log("probing", region=context.global_arguments.region, token=token)
        found = [Resources(self.host, name, Host(name, name != "down")) for name in arguments.hosts]
        await context.write_resources(found)
        async with context.open_file(self.listing) as into:
            for name in arguments.hosts:
                await into.write_line(name)
        if "again" in arguments.hosts:
            context.follow_up(self.probe, Probe(["later"]), after_s=3600)
        if "broken" in arguments.hosts:
            raise StepFailed("it is broken", Host("broken", False))
        return Host(arguments.hosts[-1])

    @method(mutates=False)
    def look(self, context: PlainContext[Settings]) -> None:
        found = context.read_resource("a")
        context.log("up" if found is not None and found.into(Host).up else "not up")
        try:
            context.secret("ops", "other")
        except Forbidden as error:
            context.log(error)

    @report
    def summary(self, context: PlainContext[Settings], findings: Findings) -> str:
        return f"# {len(findings.records)} records"

    @report(scope="workflow")
    async def fleet(self, context: Context[Settings], run: RunFindings) -> str:
        assert run.steps[0].records == run.records
        found = [await context.read_resource(one.name, version=one.version) for one in run.records]
        up = [each.name for each in found if each is not None and each.into(Host).up]
        return f"# {run.workflow}: {', '.join(up)} up, {run.count('failed')} failed"


TOKEN: Mapping[str, str] = {"ops/token": "top-secret"}


def test_a_run_shows_everything_that_came_of_it() -> None:
    run = run_method(
        Inventory, "probe", {"hosts": ["a", "down"]}, secrets=TOKEN, global_arguments={"region": "north"}
    )
    assert run.error is None
    assert run.succeeded
    assert [(each.name, each.spec, each.version) for each in run.records] == [
        ("a", "host", 1),
        ("down", "host", 1),
        ("listing", "listing", 1),
    ]
    assert run.latest("down").json() == {"name": "down", "up": False}
    assert run.latest("listing").text() == "a\ndown\n"
    assert run.outputs["last"].content == b'{"name":"down","up":true}'
    assert run.log == ("probing region=north token=***",)
    assert run.report("summary") == "# 3 records"
    assert run.follow_ups == 0
    with pytest.raises(KeyError):
        run.latest("nobody")


def test_a_report_of_a_run_is_tried_with_what_its_steps_left() -> None:
    left = run_method(Inventory, "probe", {"hosts": ["a", "down"]}, secrets=TOKEN)
    assert "fleet" not in "".join(left.outputs)
    refs = tuple(RecordRef(one.id, "model", one.name, one.version, one.spec) for one in left.records[:2])
    steps = (StepFindings("j", "a", "succeeded", records=refs), StepFindings("j", "b", "failed"))
    run = run_report(
        Inventory, "fleet", RunFindings("run", "nightly", "failed", steps=steps), access=left.access
    )
    assert (run.error, run.report("fleet")) == (None, "# nightly: a up, 1 failed")
    none = run_report(Inventory, "summary", RunFindings("run", "nightly", "failed"))
    assert none.error == "@example/inventory has no report 'summary' of workflow scope"


def test_follow_ups_run_without_waiting() -> None:
    run = run_method(Inventory, "probe", {"hosts": ["again"]}, secrets=TOKEN)
    assert run.follow_ups == 1
    assert run.latest("later").version == 1
    assert run.latest("listing").version == 2


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"hosts": []}, "The arguments are not what probe takes: hosts must have at least 1 entries"),
        ({"hosts": ["a", "b", "c", "d"]}, "Pre-flight checks failed: short: too many hosts"),
        ({"hosts": ["broken"]}, "it is broken (test_sdk_testing.py:"),
    ],
)
def test_errors_are_those_of_a_step(arguments: dict[str, Any], error: str) -> None:
    run = run_method(Inventory, "probe", arguments, secrets=TOKEN)
    assert run.error is not None
    assert run.error.startswith(error)
    assert ("last" in run.outputs) == ("broken" in arguments["hosts"])


def test_a_plain_method_reads_what_is_there_and_no_more() -> None:
    first = run_method(Inventory, "probe", {"hosts": ["a"]}, secrets=TOKEN)
    run = run_method(Inventory, "look", access=first.access)
    assert run.log == ("up", "this step may not use the secret ops/other")
    assert run.records == ()


async def test_inside_trio_too() -> None:
    run = await run_method_async(Inventory, "look", access=MemoryAccess(may_use=frozenset()))
    assert run.log[0] == "not up"


def test_only_types_can_be_run() -> None:
    with pytest.raises(DeclarationError, match="Host is no type"):
        run_method(Host, "probe")
