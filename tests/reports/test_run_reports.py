"""The built-in reports, from run documents."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swamp_orch.expressions.secret import Secret, SecretRef
from swamp_orch.reports.method_summary import method_summary
from swamp_orch.reports.report import report_records, table
from swamp_orch.reports.workflow_summary import COUNTED, workflow_summary
from swamp_orch.store.interface import Kind, Owner


def step(name: str = "echo-on-worker", status: str = "succeeded", **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "status": status,
        "duration": 12,
        "modelName": "remote-echo",
        "modelType": "command/shell",
        "methodName": "execute",
        "dataArtifacts": [],
        **more,
    }


def document(*steps: dict[str, Any], status: str = "succeeded", **more: Any) -> dict[str, Any]:
    return {
        "id": "run-1",
        "workflowId": "wf-1",
        "workflowName": "remote-demo",
        "status": status,
        "jobs": [{"name": "build", "steps": list(steps)}],
        **more,
    }


def test_a_success_is_exactly_the_three_lines_of_the_tutorial() -> None:
    report = workflow_summary(document(step()))
    assert report.markdown == "# remote-demo: succeeded\n\n1 succeeded · 0 failed · 0 skipped"
    assert (report.name, report.scope.value) == ("@swamp/workflow-summary", "workflow")


def test_a_failure_has_a_table_with_the_error_and_the_command_to_see_the_data() -> None:
    failed = step(
        "bad",
        "failed",
        error="Command exited with code 3\nand | more",
        dataArtifacts=[
            {"name": "result", "version": 2, "modelName": "remote-echo"},
            {"name": "my log", "version": 1, "modelName": "remote-echo"},
        ],
    )
    report = workflow_summary(
        document(step(), failed, step("later", "skipped", reason="step 'bad' failed"), status="failed")
    )
    assert report.markdown.splitlines() == [
        "# remote-demo: failed",
        "",
        "1 succeeded · 1 failed · 1 skipped",
        "",
        "| Job | Step | Model | Error | See the data |",
        "| --- | --- | --- | --- | --- |",
        "| build | bad | remote-echo → execute | Command exited with code 3 and \\| more |"
        " `swamp data get remote-echo result --version 2`,"
        " `swamp data get remote-echo 'my log' --version 1` |",
    ]
    assert (
        report.json["failures"][0]["retrievalCommands"][0] == "swamp data get remote-echo result --version 2"
    )
    assert report.json["steps"][2]["reason"] == "step 'bad' failed"


def test_every_kind_of_step_is_counted_also_those_without_a_model_w37() -> None:
    bare = {"name": "approve", "status": "waiting_approval"}
    report = workflow_summary(
        document(
            step(),
            {"name": "assert", "status": "failed", "error": "no"},
            step("x", "cancelled"),
            bare,
            {"name": "never", "status": "skipped"},
            status="failed",
        )
    )
    assert (
        report.markdown.splitlines()[2] == "1 succeeded · 1 failed · 1 skipped · 1 cancelled · 1 unfinished"
    )
    assert report.json["totalSteps"] == 5
    assert "| build | assert | – | no | – |" in report.markdown


def test_allowed_failures_are_shown_though_the_run_succeeded() -> None:
    report = workflow_summary(document(step("lint", "failed", error="e", allowedFailure=True)))
    assert report.markdown.startswith("# remote-demo: succeeded\n\n0 succeeded · 1 failed · 0 skipped\n")
    assert "e (allowed)" in report.markdown


def test_an_error_of_the_run_itself_is_said() -> None:
    report = workflow_summary(document(status="failed", error="the run timed out after 5 s"))
    assert report.markdown.endswith("Error: the run timed out after 5 s") and report.json["error"]
    failed = step("bad", "failed", error="boom")
    assert "Error: boom" not in workflow_summary(document(failed, status="failed", error="boom")).markdown


@given(
    st.lists(
        st.sampled_from(["succeeded", "failed", "skipped", "cancelled", "waiting", "running"]), max_size=30
    )
)
def test_the_counts_add_up(statuses: list[str]) -> None:
    found = workflow_summary(document(*(step(f"s{n}", status) for n, status in enumerate(statuses)))).json
    assert sum(found[name] for name in COUNTED) == found["totalSteps"] == len(statuses)


def test_the_method_summary_masks_secrets() -> None:
    report = method_summary(
        step(
            dataArtifacts=[{"name": "result", "version": 1, "specName": "result", "modelName": "remote-echo"}]
        ),
        model_id="m-1",
        method_arguments={"run": "echo `x`", "env": {"T": Secret((SecretRef("v", "k"),))}},
        global_arguments={"region": "eu"},
    )
    assert report.markdown.splitlines()[0] == "# remote-echo (command/shell) → execute: succeeded"
    assert '| env | `{"T": "***"}` |' in report.markdown and "| run | `` echo `x` `` |" in report.markdown
    assert report.json["methodArgs"]["env"] == {"T": "***"}
    assert report.json["dataProduced"] == [
        {
            "name": "result",
            "kind": "resource",
            "specName": "result",
            "version": 1,
            "retrievalCommand": "swamp data get remote-echo result --version 1",
        }
    ]


def test_a_failed_method_says_its_error() -> None:
    report = method_summary(step(status="failed", error="boom"), model_id="m-1")
    assert report.markdown == "# remote-echo (command/shell) → execute: failed\n\nError: boom"
    assert report.json["error"] == "boom"


def test_reports_are_stored_as_two_records_with_a_lifetime() -> None:
    report = workflow_summary(document(step()))
    made = report_records(
        report, model_type="workflow", model_id="wf-1", model_name="remote-demo", owner=Owner(run="run-1")
    )
    assert [record.name for record in made] == [
        "report-swamp-workflow-summary",
        "report-swamp-workflow-summary-json",
    ]
    assert {(record.kind, record.lifetime, record.keep) for record in made} == {(Kind.REPORT, "30d", 5)}
    assert made[0].tags["reportName"] == "@swamp/workflow-summary" and made[0].model_name == "remote-demo"
    assert made[0].content.inline == report.markdown.encode()


@pytest.mark.parametrize("text", ["a|b", "a\nb", "", "\\|"])
def test_table_cells_stay_on_their_line(text: str) -> None:
    assert len(table(("A", "B"), [(text, "x")]).splitlines()) == 3
