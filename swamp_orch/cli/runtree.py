"""What a run looks like: events in, permanent lines out, and the state a live zone is drawn from.

The permanent form, the same on a pipe and on a terminal:

    build                                                           ✓echo-on-worker
    │ executed on a worker
    ── @swamp/workflow-summary ─────────────────────────────────
    # remote-demo: succeeded

    1 succeeded · 0 failed · 0 skipped

Rules
- A job is one line, printed when it has ended, followed by its steps' output; with several steps each has a
  heading `│ [model → method] ✓step`. What a step printed is kept back until then, on disk beyond a bound,
  never cut.
- A step that waits is said at once, on a line of its own, when it still waits after `NOTICE_S`: the wait of
  a step that is placed immediately is nobody's business.
- Pure but for that spool: no clock (instants come in), no terminal, no colours of its own accord.
"""

import shlex
import tempfile
from collections.abc import Iterator, Mapping
from typing import IO, Any, Final

import attrs

from swamp_orch.cli.console import duration, pad, paint, width

NAME_COLUMNS: Final = 64
RULE_COLUMNS: Final = 60
NOTICE_S: Final = 0.5
SPOOL_BYTES: Final = 1024 * 1024  # of one step's output held in memory; beyond, in a temporary file
TAIL_LINES: Final = 5  # of a running step's output, in the live zone
SUMMARY: Final = "@swamp/workflow-summary"

MARKS: Final[Mapping[str, tuple[str, str]]] = {
    "succeeded": ("✓", "green"),
    "failed": ("✗", "red"),
    "skipped": ("⊘", "dim"),
    "cancelled": ("✖", "yellow"),
    "allowed": ("⚠", "yellow"),
    "suspended": ("⏸", "yellow"),
    "waiting": ("⏸", "yellow"),
    "running": ("◐", "yellow"),
    "pending": ("○", "dim"),
}
"""Status -> mark and style. `allowed` is a failure that the workflow allows; the last four are shown of a run that is left suspended."""


class Spool:
    """Lines, in order; the first megabyte in memory."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._size = 0
        self._file: IO[str] | None = None
        self.tail: list[str] = []

    def add(self, line: str) -> None:
        self.tail = [*self.tail[-(TAIL_LINES - 1) :], line]
        if self._file is None:
            self._lines.append(line)
            self._size += len(line) + 1
            if self._size > SPOOL_BYTES:
                self._file = tempfile.TemporaryFile(  # noqa: SIM115 - closed by close()
                    "w+", encoding="utf-8", errors="backslashreplace", newline="\n"
                )
                self._file.writelines(f"{kept}\n" for kept in self._lines)
                self._lines = []
        else:
            self._file.write(line + "\n")

    def __iter__(self) -> Iterator[str]:
        if self._file is None:
            yield from self._lines
            return
        self._file.seek(0)
        for line in self._file:
            yield line.removesuffix("\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._lines = []


@attrs.define
class StepView:
    """One step, as far as its events say."""

    job: str
    name: str
    phase: str = "pending"  # pending, waiting, running, or how it ended
    reason: str = ""
    requirement: str = ""
    waiting_since: float | None = None  # the receiver's clock
    noticed: str | None = None  # the reason already printed
    started: float | None = None
    worker: str | None = None
    model: str = ""
    method: str = ""
    child: str = ""  # the workflow it runs
    error: str | None = None
    allowed: bool = False
    duration_ms: float | None = None
    records: list[dict[str, Any]] = attrs.field(factory=list)
    output: Spool = attrs.field(factory=Spool)
    uploads: dict[int, tuple[int, int]] = attrs.field(factory=dict)  # on their way: bytes here, of how many

    @property
    def status(self) -> str:
        return "allowed" if self.allowed and self.phase == "failed" else self.phase


@attrs.define
class JobView:
    name: str
    status: str | None = None
    steps: dict[str, StepView] = attrs.field(factory=dict)


class RunTree:
    """The state of one watched run. `take` an event, print what it answers; `tick` now and then."""

    def __init__(self, *, color: bool = False, quiet: bool = False, stream_lines: bool = False) -> None:
        self._color = color
        self._quiet = quiet
        self._stream_lines = stream_lines
        self.kind = "workflow"
        self.name = ""
        self.run_id: str | None = None
        self.jobs: dict[str, JobView] = {}
        self.ended: dict[str, Any] | None = None
        self.warnings: list[str] = []  # taken by the caller, for stderr
        self.asides: list[str] = []  # the same: output lines as they come, with `-v`

    # ── events ────────────────────────────────────────────────────────────────────────────────────────────

    def take(self, event: Mapping[str, Any], now: float) -> Iterator[str]:
        """Permanent lines that this event causes."""
        handler = getattr(self, f"_on_{event.get('kind')}", None)
        # A kind this client does not know comes from a newer server; showing the rest is better than failing.
        return handler(event, now) if handler is not None else iter(())

    def tick(self, now: float) -> Iterator[str]:
        """Lines that became due without an event: steps that still wait."""
        for job in self.jobs.values():
            for step in job.steps.values():
                if (
                    step.phase == "waiting"
                    and step.waiting_since is not None
                    and now - step.waiting_since >= NOTICE_S
                    and step.noticed != step.reason
                    and not self._quiet
                ):
                    step.noticed = step.reason
                    why = f" ({step.reason})" if step.reason else ""
                    mark = paint("○", "yellow", self._color)
                    what = f"queued, waiting for worker matching {step.requirement}"
                    yield f"{mark} {job.name} › {step.name} {what}{why}"

    def next_tick(self) -> float | None:
        """When `tick` may have something to say; None = not before another event."""
        due = [
            step.waiting_since + NOTICE_S
            for job in self.jobs.values()
            for step in job.steps.values()
            if step.phase == "waiting" and step.waiting_since is not None and step.noticed != step.reason
        ]
        return min(due, default=None) if not self._quiet else None

    def _step(self, event: Mapping[str, Any]) -> StepView:
        job = self.jobs.setdefault(str(event["job"]), JobView(str(event["job"])))
        name = str(event["step"])
        if name not in job.steps:
            job.steps[name] = StepView(job.name, name)
        return job.steps[name]

    def _on_run_started(self, event: Mapping[str, Any], now: float) -> Iterator[str]:
        self.run_id = event.get("runId")
        self.kind = event.get("run", "workflow")
        self.name = event.get("workflowName") or ""
        for job in event.get("jobs", []):
            view = self.jobs.setdefault(job["name"], JobView(job["name"]))
            for step in job.get("steps", []):
                name = step["name"] if isinstance(step, dict) else step
                view.steps.setdefault(name, StepView(job["name"], name))
        return iter(())

    def _on_warning(self, event: Mapping[str, Any], now: float) -> Iterator[str]:
        where = " › ".join(str(event[key]) for key in ("job", "step") if event.get(key))
        self.warnings.append(f"{where}: {event['message']}" if where else str(event["message"]))
        return iter(())

    def _on_step_waiting(self, event: Mapping[str, Any], now: float) -> Iterator[str]:
        step = self._step(event)
        if step.phase != "waiting":
            step.waiting_since = now
            step.noticed = None
        step.phase = "waiting"
        step.reason = str(event.get("reason") or "")
        step.requirement = str(event.get("requirement") or "any worker")
        return iter(())

    def _on_step_started(self, event: Mapping[str, Any], now: float) -> Iterator[str]:
        step = self._step(event)
        if int(event.get("attempt") or 1) > 1 and step.started is not None:
            where = event.get("worker") or "the orchestrator"
            self.warnings.append(f"{step.job} › {step.name}: attempt {event['attempt']} on {where}")
        step.phase = "running"
        step.uploads.clear()  # of an attempt before
        step.started = now
        step.waiting_since = None
        step.worker = event.get("worker")
        step.model = str(event.get("model") or "")
        step.method = str(event.get("method") or "")
        return iter(())

    def _on_child_started(self, event: Mapping[str, Any], now: float) -> Iterator[str]:
        step = self._step(event)
        if not step.model:
            step.phase, step.started, step.child = "running", now, str(event["child"]["name"])
        return iter(())

    def _on_approval_waiting(self, event: Mapping[str, Any], now: float) -> Iterator[str]:
        step = self._step(event)
        step.phase, step.waiting_since, step.requirement = "waiting", now, ""
        step.reason = step.noticed = f"for a person: {event['prompt']}"
        yield from approval_lines(event, self._mark("waiting"))

    def suspended(self) -> Iterator[str]:
        """Lines for a run that is left because only people can let it go on."""
        for job in self.jobs.values():
            if job.status is None and any(step.phase != "pending" for step in job.steps.values()):
                job.status = "suspended"
                yield from self._job_lines(job)

    def _on_step_output(self, event: Mapping[str, Any], now: float) -> Iterator[str]:
        step = self._step(event)
        line = str(event["line"])
        if self.kind == "method":
            # One step and no job line: nothing to keep back.
            step.output.tail = [*step.output.tail[-(TAIL_LINES - 1) :], line]
            if self._quiet:
                step.output.add(line)
                return iter(())
            return iter((f"│ {line}",))
        step.output.add(line)
        if self._stream_lines:
            self.asides.append(f"{step.job} › {step.name} │ {line}")
        return iter(())

    def _on_step_progress(self, event: Mapping[str, Any], now: float) -> Iterator[str]:
        uploads, number = self._step(event).uploads, int(event["upload"])
        here, of = int(event["bytes"]), int(event["of"])
        if here < of:
            uploads[number] = (here, of)
        else:
            uploads.pop(number, None)
        return iter(())

    def _on_step_ended(self, event: Mapping[str, Any], now: float) -> Iterator[str]:
        step = self._step(event)
        step.phase = str(event["status"])
        step.error = event.get("error") or None
        step.reason = str(event.get("reason") or "")
        step.allowed = bool(event.get("allowedFailure"))
        step.worker = event.get("worker") or step.worker
        step.duration_ms = event.get("durationMs")
        step.records = list(event.get("records") or [])
        return iter(())

    def _on_job_ended(self, event: Mapping[str, Any], now: float) -> Iterator[str]:
        job = self.jobs.setdefault(str(event["job"]), JobView(str(event["job"])))
        job.status = str(event["status"])
        if self.kind == "method":
            return iter(())
        return self._job_lines(job)

    def _on_report(self, event: Mapping[str, Any], now: float) -> Iterator[str]:
        if event.get("scope", "workflow") == "workflow" and self.kind != "method":
            yield from report_lines(str(event["name"]), str(event.get("markdown") or ""))

    def _on_run_ended(self, event: Mapping[str, Any], now: float) -> Iterator[str]:
        self.ended = dict(event)
        # A job of which no end was told (a run that was cut short) is shown all the same.
        for job in self.jobs.values():
            if (
                job.status is None
                and self.kind != "method"
                and any(s.phase != "pending" for s in job.steps.values())
            ):
                job.status = str(event["status"])
                yield from self._job_lines(job)
        if self.kind == "method":
            yield from self._method_lines()

    # ── lines ─────────────────────────────────────────────────────────────────────────────────────────────

    def _mark(self, status: str) -> str:
        mark, style = MARKS.get(status, ("?", "yellow"))
        return paint(mark, style, self._color)

    def _job_lines(self, job: JobView) -> Iterator[str]:
        steps = list(job.steps.values())
        if self._quiet and job.status == "succeeded":
            for step in steps:
                step.output.close()
            return
        if len(steps) == 1:
            label = f"{self._mark(steps[0].status)}{steps[0].name}"
        else:
            label = f"{self._mark(job.status or '')} {len(steps)} step{'' if len(steps) == 1 else 's'}"
        yield pad(job.name + ("" if width(job.name) < NAME_COLUMNS else " "), NAME_COLUMNS) + label
        for step in steps:
            if len(steps) > 1:
                yield f"│ {self._heading(step)}"
            for line in step.output:
                yield f"│ {line}"
            yield from (f"│ {line}" for line in self._ending(step))
            step.output.close()

    def _heading(self, step: StepView) -> str:
        what = f"[{step.model} → {step.method}] " if step.model else ""
        if step.child:
            what = f"[workflow {step.child}] "
        where = f" on {step.worker}" if step.worker else ""
        return f"{what}{self._mark(step.status)}{step.name}{where}"

    def _ending(self, step: StepView) -> Iterator[str]:
        text = step.error or step.reason
        if step.phase == "failed":
            label = "Error (allowed): " if step.allowed else "Error: "
        elif step.phase in ("skipped", "cancelled"):
            label = f"{step.phase.capitalize()}: "
        else:
            return
        for number, line in enumerate((text or "no reason was given").splitlines()):
            yield (label if number == 0 else " " * len(label)) + line

    def _method_lines(self) -> Iterator[str]:
        assert self.ended is not None
        for job in self.jobs.values():
            for step in job.steps.values():
                if self._quiet and step.phase != "succeeded":
                    yield from (f"│ {line}" for line in step.output)
                yield from (f"│ {line}" for line in self._ending(step))
                if self._quiet and step.phase == "succeeded":
                    continue
                name = f"{step.model} → {step.method}" if step.model else step.name
                where = f" on {step.worker}" if step.worker else ""
                took = f" in {duration(step.duration_ms)}" if step.duration_ms is not None else ""
                yield f"{self._mark(step.status)} {name} {step.phase}{where}{took}"
                shown = [record for record in step.records if record.get("name")]
                if shown:
                    yield "Data produced:"
                    for record in shown:
                        yield f"  {record['name']} (v{record.get('version', '?')})"
                step.output.close()


def approval_lines(event: Mapping[str, Any], mark: str) -> Iterator[str]:
    """What a person is asked, and what to type."""
    about = event["approval"]
    words = (about["workflowName"], about["step"], "--run", about["runId"])
    yield f"{mark} {event['job']} › {event['step']} waits for approval: {event['prompt']} (until {event['deadlineAt']})"
    for verb in ("approve", "reject"):
        yield f"  {verb}: {shlex.join(('swamp', 'workflow', verb, *words))}"


def rule(title: str) -> str:
    """`── title ───…` to 60 columns."""
    start = f"── {title} "
    return start + "─" * max(2, RULE_COLUMNS - width(start))


def report_lines(name: str, markdown: str) -> Iterator[str]:
    """A report as it stands after a run. Of the built-in summary, the headline and the counts: its tables
    repeat what the lines above already say (the whole of it is in the stored report)."""
    lines = markdown.rstrip("\n").splitlines()
    if name == SUMMARY:
        cut = next((i for i, line in enumerate(lines) if line.startswith(("|", "## "))), len(lines))
        lines = lines[:cut]
        while lines and not lines[-1].strip():
            lines.pop()
    if lines:
        yield rule(name)
        yield from lines
