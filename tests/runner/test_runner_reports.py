"""Reports in real runner processes: what the method came to stands, whatever they do, and those of a run."""

import json
from typing import Any

import pytest
from conftest import Site

from swamp_proto.messages.dispatch import Dispatch, Outcome, Place
from swamp_worker.execution.interface import Control
from swamp_worker.execution.runner import step

ENDINGS = """
@method(returns=thing)
def go(self, context: PlainContext) -> Thing:
    return Thing("made", 3)

@report
def before(self, context: PlainContext, findings: Findings) -> str:
    return "# before"

@report
def exits(self, context: PlainContext, findings: Findings) -> str:
    sys.exit(3)

@report
def is_no_text(self, context: PlainContext, findings: Findings) -> str:
    return 42

@report
def no_data(self, context: PlainContext, findings: Findings) -> str:
    return Report("x", {"a": {1, 2}})

@report
def dies(self, context: PlainContext, findings: Findings) -> str:
    os.kill(os.getpid(), signal.SIGKILL)

@report
def leaves(self, context: PlainContext, findings: Findings) -> str:
    os._exit(0)

@report
def hangs(self, context: PlainContext, findings: Findings) -> str:
    while True:
        try:
            time.sleep(600)
        except BaseException:
            pass

@report
def talks(self, context: PlainContext, findings: Findings) -> str:
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b"\\xff" * 64)
        except OSError:
            pass
    time.sleep(600)

@report
def after(self, context: PlainContext, findings: Findings) -> str:
    return "# after"
"""


@pytest.mark.parametrize(
    ("name", "told", "goes_on"),
    [
        ("exits", "it ended by sys.exit(3)", True),
        ("is_no_text", "the report is_no_text returns Markdown or a Report, not int", True),
        ("no_data", "a: set has no form in JSON", True),
        ("dies", "its process was killed by SIGKILL", False),
        ("leaves", "its process ended with code 0 before the report did", False),
        ("hangs", "it did not end: reports have 60 s", False),
        ("talks", "its process sent what is no message", False),
    ],
)
async def test_whatever_a_report_does_the_method_has_succeeded(
    site: Site, monkeypatch: pytest.MonkeyPatch, name: str, told: str, goes_on: bool
) -> None:
    first: tuple[str, ...] = ()
    if name == "hangs":  # counted from the end of the method, so that nothing else is hurried
        monkeypatch.setattr(step, "REPORT_S", 0.1)
    else:
        first = ("before",)
    dispatch = site.dispatch(site.extension(ENDINGS), reports=(*first, name, "after"))
    finished, _ = await site.execute(dispatch, Control(term_s=0.1), within_s=60)
    assert (finished.outcome, finished.error, finished.left) == (Outcome.SUCCEEDED, None, 0)
    found = {each.name: each for each in finished.outputs}
    assert json.loads(found["thing"].content) == {"name": "made", "size": 3}
    if first:
        assert found["report-before"].content == b"# before"
    failed = json.loads(found[f"report-{name}-json"].content)
    assert failed["message"].startswith(told), failed
    if goes_on:
        assert found["report-after"].content == b"# after"
    else:
        message = json.loads(found["report-after-json"].content)["message"]
        assert message == f"not made: the report {name} came before it"


# ── the report of a run ─────────────────────────────────────────────────────────────────────────────────────

RUN: dict[str, Any] = {
    "id": "run-1", "workflowName": "demo", "status": "failed", "error": "no", "startedAt": "2026-11-21T10:00:00.000Z",
    "duration": 12, "inputs": {"pin": "***"}, "jobs": [{"name": "build", "status": "failed", "steps": [
        {"name": "a", "status": "succeeded", "modelName": "m", "dataArtifacts": [
            {"dataId": "1", "name": "result", "version": 2, "specName": "result", "modelName": "m"}]},
        {"name": "b", "status": "failed", "error": "no"}]}],
}  # fmt: skip

FLEET = """
@report(scope="workflow")
async def fleet(self, context: Context, run: RunFindings) -> Report:
    refs = [(one.model, one.name, one.version) for one in run.records]
    print("looked", context.model.type, context.place.step == "")
    return Report(f"# {run.workflow}: {run.status}", {"failed": run.count("failed"), "refs": refs, "jobs": dict(run.jobs)})

@report(scope="workflow")
async def writes(self, context: Context, run: RunFindings) -> str:
    await context.write_resource(self.thing, Thing("x"))

@report
def one(self, context: PlainContext, findings: Findings) -> str:
    return "# one"
"""


def of_run(site: Site, report: str) -> Dispatch:
    place = Place("run-1", "demo", "wf-1", "", "")
    return site.dispatch(
        site.extension(FLEET), "", reports=(report,), arguments=RUN, place=place, model_type="workflow"
    )


async def test_a_type_with_nothing_but_a_report_of_runs_makes_it(site: Site) -> None:
    finished, lines = await site.execute(of_run(site, "fleet"), within_s=60)
    assert (finished.outcome, finished.error, lines.text) == (Outcome.SUCCEEDED, None, "looked workflow True")
    made = {each.name: each for each in finished.outputs}
    assert made["report-fleet"].content == b"# demo: failed"
    assert made["report-fleet"].tags["reportScope"] == "workflow"
    assert json.loads(made["report-fleet-json"].content) == {
        "failed": 1,
        "refs": [["m", "result", 2]],
        "jobs": {"build": "failed"},
    }


@pytest.mark.parametrize(
    ("report", "error"),
    [
        ("writes", "write_resource can not be used in a report: it only looks (ext.py:"),
        ("one", "@test/ext has no report 'one' of workflow scope"),
    ],
)
async def test_a_report_of_a_run_that_fails_says_why(site: Site, report: str, error: str) -> None:
    finished, _ = await site.execute(of_run(site, report), within_s=60)
    assert finished.outcome is Outcome.FAILED and not finished.outputs
    assert finished.error is not None and finished.error.startswith(error)
