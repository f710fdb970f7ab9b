"""`swamp workflow run`, `swamp run` and `swamp workflow history`: starting, watching and looking back."""

import getpass
import os
import re
from typing import Any

from swamp_orch.cli import console, inputs
from swamp_orch.cli.durations import seconds
from swamp_orch.cli.following import follow, left
from swamp_orch.cli.groups import argument, command, option
from swamp_orch.cli.invocation import Invocation
from swamp_proto.errors import Conflict, NotConnected, NotFound, UsageError
from swamp_proto.ids import UUID_PATTERN

_ICONS = {
    "succeeded": "✓",
    "failed": "✗",
    "skipped": "⊘",
    "cancelled": "✖",
    "running": "◐",
    "cancelling": "◐",
    "suspended": "⏸",
    "waiting_approval": "⏸",
}


def input_options() -> list[Any]:
    """The flags of everything that takes inputs."""
    return [
        option(
            "--input",
            "entries",
            multiple=True,
            metavar="K=V",
            help="An input; repeatable. K:json=…, K=@file.",
        ),
        option("--input-file", metavar="FILE", help="Inputs as a YAML mapping; --input wins over it."),
        option("--stdin", "from_stdin", is_flag=True, help="Inputs from stdin; an array means one run each."),
        option(
            "--tag", "tag", multiple=True, metavar="K=V", help="A tag for the run and its data; repeatable."
        ),
        option("--timeout", metavar="DURATION", help="End the run after this long: seconds, 400ms, 30s, 5m."),
        option("--detach", is_flag=True, help="Print the run id and return; the run goes on."),
    ]


def start(
    invocation: Invocation,
    call: str,
    entries: tuple[str, ...],
    input_file: str | None,
    from_stdin: bool,
    tag: tuple[str, ...],
    timeout: str | None,
    detach: bool,
    **named: str,
) -> int:
    """Start one run per set of inputs and watch each to its end; the first that fails ends it."""
    given = inputs.batches(entries, input_file, from_stdin)
    tags = inputs.tags(tag)
    timeout_s = seconds(timeout, "--timeout") if timeout is not None else None
    if detach:
        _needs_orchestrator(invocation)
    code = 0
    for values in given:
        started = invocation.call(call, inputs=values or None, timeoutS=timeout_s, tags=tags or None, **named)
        run_id = started["runId"]
        if detach:
            _tell_detached(invocation, started, many=len(given) > 1)
            continue
        code = follow(invocation, run_id)
    return code


@command(
    "run",
    argument("workflow", kind="workflow"),
    *input_options(),
    help="Run a workflow and watch it. Ctrl-C asks to cancel and waits; a second one leaves at once.",
)
def workflow_run(invocation: Invocation, workflow: str, **flags: Any) -> int:
    return start(invocation, "workflow.run", name=workflow, **flags)


@command(
    "resume",
    argument("workflow", kind="workflow"),
    option(
        "--run", kind="run", metavar="RUN", help="Which run: its id. Default: the suspended one, or the last."
    ),
    option("--from", "start_at", metavar="STEP", help="Start this step and all that depends on it anew too."),
    *input_options()[:3],
    option("--timeout", metavar="DURATION", help="End the run after this long, from now."),
    option("--detach", is_flag=True, help="Print the run id and return; the run goes on."),
    help="Go on with a run that is suspended, failed or was cancelled: what succeeded is kept.",
)
def workflow_resume(
    invocation: Invocation,
    workflow: str,
    run: str | None,
    start_at: str | None,
    entries: tuple[str, ...],
    input_file: str | None,
    from_stdin: bool,
    timeout: str | None,
    detach: bool,
) -> int:
    given = inputs.batches(entries, input_file, from_stdin)
    if len(given) != 1:
        raise UsageError("a run is resumed with one set of inputs", hint="swamp workflow resume --help")
    if detach:
        _needs_orchestrator(invocation)
    answer = invocation.call(
        "workflow.resume",
        name=workflow,
        runId=run,
        fromStep=start_at,
        inputs=given[0] or None,
        timeoutS=seconds(timeout, "--timeout") if timeout is not None else None,
    )
    if detach:
        _tell_detached(invocation, answer, many=False)
        return 0
    return follow(invocation, answer["runId"], stays=not answer["resumed"])


def _needs_orchestrator(invocation: Invocation) -> None:
    if invocation.session().where == "in process":
        raise NotConnected(
            "--detach needs a running orchestrator: without one the run would end with this command",
            hint="start one with: swamp serve",
        )


def _tell_detached(invocation: Invocation, started: dict[str, Any], *, many: bool) -> None:
    if invocation.json:
        invocation.event(started) if many else invocation.document(started)
    else:
        print(started["runId"], flush=True)
        invocation.note(f"Watch it with: swamp run attach {started['runId']}")


# ── people ────────────────────────────────────────────────────────────────────────────────────────────────


def _decision_options() -> list[Any]:
    return [
        argument("workflow", kind="workflow"),
        argument("step"),
        option("--run", kind="run", metavar="RUN", help="Which run, where several wait: its id."),
        option("--reason", metavar="TEXT", help="Why; kept with the run."),
    ]


@command(
    "approve", *_decision_options(), help="Let a step that waits for approval succeed: STEP, or JOB/STEP."
)
def approve(invocation: Invocation, **named: Any) -> None:
    _decide(invocation, "workflow.approve", "Approved", **named)


@command("reject", *_decision_options(), help="Let a step that waits for approval fail: STEP, or JOB/STEP.")
def reject(invocation: Invocation, **named: Any) -> None:
    _decide(invocation, "workflow.reject", "Rejected", **named)


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's uid without a name
        return f"uid {os.getuid()}"


def _decide(
    invocation: Invocation,
    call: str,
    word: str,
    workflow: str,
    step: str,
    run: str | None,
    reason: str | None,
) -> None:
    done = invocation.call(call, name=workflow, step=step, runId=run, reason=reason, by=_who())
    if invocation.json:
        invocation.document(done)
        return
    print(f"{word}: {done['stepName']} of {done['workflowName']} (run {done['runId']})")
    if not done["live"]:
        name, run_id = done["resume"]["workflowName"], done["resume"]["runId"]
        invocation.note(f"No process runs it; go on with: swamp workflow resume {name} --run {run_id}")


@command("approvals", help="List steps that wait for approval.")
def approvals(invocation: Invocation) -> None:
    found = invocation.call("workflow.approvals")
    if invocation.json:
        invocation.document(found)
        return
    if not found["approvals"]:
        print("Nothing waits for approval.")
        return
    rows = [
        (
            row["workflowName"],
            row["stepName"],
            row["runId"],
            row["suspendedAt"],
            row["deadlineAt"],
            row["prompt"],
        )
        for row in found["approvals"]
    ]
    header = ("WORKFLOW", "STEP", "RUN", "SINCE", "UNTIL", "PROMPT")
    invocation.lines(*console.table(header, rows, color=invocation.color))


# ── runs ──────────────────────────────────────────────────────────────────────────────────────────────────


def _runs(answer: Any) -> list[dict[str, Any]]:
    return list(answer["runs"])


def _id(run: dict[str, Any]) -> str:
    return str(run.get("runId") or run["id"])


def _print_runs(invocation: Invocation, answer: Any, empty: str) -> None:
    if invocation.json:
        invocation.document(answer)
        return
    runs = _runs(answer)
    if not runs:
        print(empty)
        return
    rows = [
        (
            r.get("status", "-"),
            r.get("kind") or r.get("run") or "workflow",
            r.get("workflowName") or r.get("name") or r.get("modelName") or "-",
            _id(r),
            r.get("startedAt") or "-",
            console.duration(r.get("durationMs", r.get("duration"))),
        )
        for r in runs
    ]
    invocation.lines(
        *console.table(
            ("STATUS", "KIND", "NAME", "ID", "STARTED", "DURATION"),
            rows,
            color=invocation.color,
            styled={0: console.STATE_STYLES},
        )
    )


@command(
    "list",
    option("--workflow", kind="workflow", metavar="NAME", help="Only runs of this workflow."),
    option("--active", is_flag=True, help="Only runs that have not ended."),
    option("--limit", type=int, metavar="N", help="At most this many, newest first."),
    help="List runs, newest first.",
)
def list_runs(invocation: Invocation, workflow: str | None, active: bool, limit: int | None) -> None:
    answer = invocation.call("run.list", workflow=workflow, active=active or None, limit=limit)
    _print_runs(invocation, answer, "No runs found.")


@command(
    "attach",
    argument("run", kind="run"),
    option("--after", type=int, default=0, metavar="SEQ", help="Only events after this sequence number."),
    help="Watch a run from its beginning to its end. Ctrl-C leaves; the run goes on.",
)
def attach(invocation: Invocation, run: str, after: int) -> int:
    return follow(invocation, run, after=after, cancels=False, stays=True)


def _cancel(invocation: Invocation, run_id: str, reason: str | None) -> None:
    done = invocation.call("run.cancel", runId=run_id, reason=reason)  # answers when the run has ended
    if invocation.json:
        invocation.document(done)
    elif done["status"] == "cancelled":
        print(f"Cancelled run {run_id}")
        print(left(done))
    else:
        print(f"Run {run_id} had already ended.")


def reason_option() -> Any:
    return option("--reason", metavar="TEXT", help="Why; kept with the run.")


@command("cancel", argument("run", kind="run"), reason_option(), help="Cancel a run and wait for its end.")
def cancel(invocation: Invocation, run: str, reason: str | None) -> None:
    _cancel(invocation, run, reason)


@command(
    "cancel",
    argument("workflow", kind="workflow"),
    reason_option(),
    help="Cancel the active run of a workflow (or a run, by its id) and wait for its end.",
)
def workflow_cancel(invocation: Invocation, workflow: str, reason: str | None) -> None:
    run_id = workflow
    if UUID_PATTERN.fullmatch(workflow) is None:
        active = _runs(invocation.call("run.list", workflow=workflow, active=True))
        if not active:
            raise NotFound(
                f"no run of {workflow} is active", hint=f"swamp workflow history search {workflow}"
            )
        if len(active) > 1:
            ids = ", ".join(_id(run) for run in active)
            raise Conflict(
                f"{workflow} has {len(active)} active runs: {ids}", hint="swamp run cancel <run id>"
            )
        run_id = _id(active[0])
    _cancel(invocation, run_id, reason)


@command(
    "doctor",
    option("--fix", is_flag=True, help="End what is past its deadline."),
    help="Find runs, leases and queue entries past their deadline. Exit 1 when some are left.",
)
def doctor(invocation: Invocation, fix: bool) -> int:
    found = invocation.call("run.doctor", fix=fix or None)
    items = (found.get("findings") or found.get("items") or []) if isinstance(found, dict) else found
    remaining = [item for item in items if not item.get("fixed")]
    if invocation.json:
        invocation.document(found)
    elif not items:
        print("Nothing is past its deadline.")
        _tell_waiting(found)
    else:
        rows = [
            (
                item.get("kind", "-"),
                item.get("id", "-"),
                item.get("state", "-"),
                item.get("problem") or item.get("reason") or "-",
                "fixed" if item.get("fixed") else "open",
            )
            for item in items
        ]
        invocation.lines(
            *console.table(("KIND", "ID", "STATE", "PROBLEM", "FIX"), rows, color=invocation.color)
        )
        _tell_waiting(found)
        if any(item.get("kind") == "run" for item in remaining) and not fix:
            invocation.note("End them with: swamp run doctor --fix")
    return 1 if remaining else 0


def _tell_waiting(found: Any) -> None:
    """Steps that wait for a person are no ghosts."""
    for row in found.get("waiting", ()):
        what = f"{row['workflowName']}: {row['jobName']} › {row['stepName']}"
        print(f"Waits for a person until {row['deadlineAt']}: {what} (run {row['runId']})")


# ── history ───────────────────────────────────────────────────────────────────────────────────────────────


def _resolve(invocation: Invocation, name: str) -> str:
    """A run id, or the beginning of one, as it is; for a workflow, its latest run."""
    if UUID_PATTERN.fullmatch(name):
        return name
    runs = _runs(invocation.call("run.list", workflow=name, limit=1))
    if not runs and re.fullmatch(r"[0-9a-f-]{8,35}", name):
        return name
    if not runs:
        raise NotFound(f"no run of {name} is known", hint=f"run it: swamp workflow run {name}")
    return _id(runs[0])


@command(
    "get",
    argument("run", kind="workflow"),
    help="Show a run: its id, or a workflow's name for the latest one.",
)
def history_get(invocation: Invocation, run: str) -> None:
    found = invocation.call("run.get", runId=_resolve(invocation, run))
    if invocation.json:
        invocation.document(found)
        return
    print(f"Workflow: {found.get('workflowName') or found.get('modelName')} (Run ID: {_id(found)})")
    if found.get("parent"):
        above = found["parent"]
        print(f"Started by: {above['job']} › {above['step']} (Run ID: {above['runId']})")
    for job in found.get("jobs", []):
        print(f"  {_line(job, job.get('name') or job.get('jobName'))}")
        for step in job.get("steps", []):
            where = f" on {step['worker']}" if step.get("worker") else ""
            print(f"    {_line(step, step.get('name') or step.get('stepName'))}{where}")
            for child in step.get("children", ()):
                print(f"      {_line(child, child['name'])} (Run ID: {child['runId']})")
            if step.get("status") == "waiting_approval":
                print(
                    f"      -> waits for a person until {step['approval']['deadlineAt']}: {step['approval']['prompt']}"
                )
            for text in (
                step.get("error"),
                step.get("reason") if step.get("status") != "succeeded" else None,
            ):
                if text:
                    print(f"      -> {text}")
    took = console.duration(found.get("durationMs", found.get("duration")))
    print(f"Result: {str(found.get('status')).upper()} ({took})")


def _line(item: dict[str, Any], name: Any) -> str:
    took = item.get("durationMs", item.get("duration"))
    return f"{_ICONS.get(str(item.get('status')), '○')} {name}" + (
        f" ({console.duration(took)})" if took else ""
    )


@command(
    "logs",
    argument("run", kind="workflow"),
    option("--tail", type=int, metavar="N", help="Only the last N lines."),
    help="Print the log of a run: its id, or a workflow's name for the latest one.",
)
def history_logs(invocation: Invocation, run: str, tail: int | None) -> None:
    print_log(invocation, invocation.call("run.logs", runId=_resolve(invocation, run), tail=tail))


def print_log(invocation: Invocation, found: Any) -> None:
    """An answer of `run.logs` or `output.logs`."""
    if invocation.json:
        invocation.document(found)
        return
    for line in found["lines"]:
        if isinstance(line, dict):
            where = " › ".join(str(line[key]) for key in ("job", "step") if line.get(key))
            print(f"{where} │ {line['line']}" if where else line["line"])
        else:
            print(line)
    if found.get("missing"):
        invocation.warn(f"{found['missing']} line(s) were lost with their worker")


@command(
    "search",
    argument("workflow", required=False, kind="workflow"),
    option("--active", is_flag=True, help="Only runs that have not ended."),
    option("--limit", type=int, metavar="N", help="At most this many, newest first."),
    help="Find runs, of one workflow or of all.",
)
def history_search(invocation: Invocation, workflow: str | None, active: bool, limit: int | None) -> None:
    answer = invocation.call("run.list", workflow=workflow, active=active or None, limit=limit)
    _print_runs(invocation, answer, "No runs found.")
