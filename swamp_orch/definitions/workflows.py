"""Workflow definitions: `workflows/workflow-{name}.yaml`, read, checked, found and written.

Rules:
1. The grammar is closed: an unknown key anywhere is an error with a suggestion, and every problem has file
   and line.
2. What a file says by itself is checked when it is read: names, references, cycles, placement, expression
   syntax. What depends on other files is `workflow_checks.py`.
3. Values are the effective ones: a step's placement has its job's and workflow's in it.
4. Text is kept as typed. Only a missing `id` is added.

It does not run anything.
"""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from swamp_orch.definitions.conditions import check_graph, read_dependencies
from swamp_orch.definitions.fields import (
    NAME_RULE,
    Fields,
    Findings,
    check_expressions,
    expression_problem,
    has_expression,
    is_identifier,
    is_whole_expression,
    kind,
    read_selection,
)
from swamp_orch.definitions.files import remove_file, write_atomically
from swamp_orch.definitions.inputs import read_schema
from swamp_orch.definitions.lookup import Folder, Listing, read_identity
from swamp_orch.definitions.placement import GROUP_KEYS, PLACEMENT_KEYS, read_placement
from swamp_orch.definitions.repository import Repository
from swamp_orch.definitions.tasks import NO_TASK, read_task
from swamp_orch.definitions.values import (
    Dependency,
    ForEach,
    Job,
    OnWorkerLost,
    Placement,
    Retry,
    Source,
    Step,
    Workflow,
)
from swamp_orch.definitions.yaml_edit import set_key
from swamp_orch.definitions.yaml_source import DocumentPath, load_text
from swamp_orch.store.retention import lifetime_ms
from swamp_proto.errors import AlreadyExists, LocalError
from swamp_proto.ids import is_name

PREFIX: Final = "workflow-"
WORKFLOW_KEYS: Final = (
    "id", "name", "description", "tags", "inputs", "trigger", "concurrency", "timeout", *GROUP_KEYS,
    "reports", "jobs", "version",
)  # fmt: skip
JOB_KEYS: Final = (
    "name", "description", "dependsOn", "weight", "concurrency", "timeout", *GROUP_KEYS, "steps",
)  # fmt: skip
STEP_KEYS: Final = (
    "name", "description", "dependsOn", "forEach", "guard", *PLACEMENT_KEYS, "weight", "concurrency",
    "timeout", "retry", "allowFailure", "onWorkerLost", "dataOutputOverrides", "task",
)  # fmt: skip
FOR_EACH_KEYS: Final = ("item", "in")
RETRY_KEYS: Final = ("attempts", "backoff")
TRIGGER_KEYS: Final = ("schedule", "timezone", "inputs")
LIFETIMES: Final = frozenset({"infinite", "ephemeral", "job", "workflow"})  # beside durations
OVERRIDE_KEYS: Final = ("specName", "lifetime", "garbageCollection", "tags", "vary", "vaultName")

BACKOFF_S_DEFAULT: Final = 1.0
LABEL_TEXT_MAX: Final = 128  # characters of a job's or step's name
_WEIGHT_MIN: Final = -1_000_000


class Workflows:
    """The workflows of one repository. Thread-safe: it holds no state."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self.folder = Folder(repository, repository.workflows, "workflow", PREFIX, self._read)

    def find(self, name: str) -> Workflow:
        """By name, id, or unique beginning of an id. Raises `NotFound`, `Conflict`, `InvalidDefinition`."""
        found = self.folder.find(name)
        assert isinstance(found, Workflow)
        return found

    def all(self, *, write_id: bool = True) -> Listing:
        """Every workflow, and the files that do not parse."""
        return self.folder.all(write_id=write_id)

    def names(self) -> list[str]:
        return self.folder.names()

    def path(self, workflow: Workflow) -> Path:
        return self.repository.root / workflow.source.file

    def create(self, name: str | None, text: str) -> Workflow:
        """Write a new workflow, as typed except for a generated `id` (and `name`, when only the caller says
        it). Raises `AlreadyExists` naming the file, `InvalidDefinition`, `LocalError`."""
        given = name or ""
        if name is not None and not is_name(name):
            raise LocalError(f"'{name}' is not a workflow name", hint=NAME_RULE)
        typed = Path(f"{PREFIX}{given}.yaml" if given else "the given text")
        data, source = load_text(text, typed)
        if isinstance(data, dict):
            # Problems are told with the lines of the text as it was typed: keys are added to the data first.
            added = {"id": str(uuid.uuid4())} if "id" not in data else {}
            if given and "name" not in data:
                added["name"] = given
            data = {**added, **data}
            for key in reversed(added):
                text = set_key(text, (key,), added[key], first=True, shown=typed)
        workflow = parse_workflow(data, source, given)
        path = self.repository.workflows / f"{PREFIX}{workflow.name}.yaml"
        with self.folder.lock():
            existing = self.folder.path_of(workflow.name)
            if existing is not None:
                raise AlreadyExists(
                    f"the workflow '{workflow.name}' exists already: {self.folder.shown(existing)}",
                    hint=f"swamp workflow edit {workflow.name}, or choose another name",
                )
            self.folder.refuse_taken_id(workflow.id, source.at("id"))
            write_atomically(path, text, new=True)
        return attrs.evolve(workflow, source=Source(self.folder.shown(path)))

    def parse_recorded(self, text: str, name: str) -> Workflow:
        """A workflow as a run recorded it when it started, whatever its file says now."""
        data, source = load_text(text, Path(f"{PREFIX}{name}.yaml"))
        return parse_workflow(data, source, name)

    def rewrite(self, path: Path, text: str) -> Workflow:
        """Replace the text of a workflow file, as typed; a missing `id` keeps the old one. The old text need
        not parse. Raises `InvalidDefinition`, and `LocalError` when the id would change."""
        with self.folder.lock():
            text, data, source = self.folder.keep_id(path, text)
            self._read(data, source, path)
            write_atomically(path, text)
        found = self.folder.open(path)
        assert isinstance(found, Workflow)
        return found

    def remove(self, workflow: Workflow) -> None:
        with self.folder.lock():
            remove_file(self.path(workflow))

    def _read(self, data: Any, source: Source, path: Path) -> Workflow:
        return parse_workflow(data, source, self.folder.name_of(path))


def parse_workflow(data: Any, source: Source, expected_name: str = "") -> Workflow:
    """A workflow of parsed YAML. Raises `InvalidDefinition` with every problem, one a line."""
    findings = Findings(source)
    name = data.get("name") if isinstance(data, dict) else None
    what = f"workflow '{name}'" if isinstance(name, str) else "the workflow"
    fields = Fields(data, findings, (), what, "workflow", WORKFLOW_KEYS)
    if not isinstance(data, dict):
        findings.raise_if_any()
    identity, name = read_identity(fields, data, expected_name, f"{PREFIX}{data.get('name')}.yaml")
    placement = read_placement(fields).under(Placement())
    jobs = [
        _read_job(item, findings, ("jobs", index), placement)
        for index, item in enumerate(fields.items("jobs", required=True))
    ]
    _check_names(
        [(job.name, job.depends_on) for job in jobs],
        findings,
        ("jobs",),
        "job",
        "",
        expressions_allowed=False,
    )
    workflow = Workflow(
        id=identity,
        name=name,
        description=fields.text("description", empty=True),
        jobs=tuple(jobs),
        version=fields.whole("version", 1, minimum=1),
        tags=fields.texts("tags"),
        inputs=read_schema(data.get("inputs"), findings, ("inputs",)),
        concurrency=fields.whole("concurrency", 0),
        timeout_s=fields.duration("timeout"),
        trigger=_read_trigger(fields),
        reports=read_selection(fields, "reports"),
        source=source,
    )
    check_expressions(data.get("tags"), findings, ("tags",))
    findings.raise_if_any()
    return workflow


def _read_job(raw: Any, findings: Findings, path: DocumentPath, parent: Placement) -> Job:
    what = _what("job", raw, path)
    fields = Fields(raw, findings, path, what, "job", JOB_KEYS)
    if not isinstance(raw, dict):
        return Job(name="", steps=())
    name = _label(fields)
    placement = read_placement(fields).under(parent)
    steps = [
        _read_step(item, findings, (*path, "steps", index), placement)
        for index, item in enumerate(fields.items("steps", required=True))
    ]
    _check_names(
        [(step.name, step.depends_on) for step in steps],
        findings,
        (*path, "steps"),
        "step",
        f" in job '{name}'",
        expressions_allowed=True,
    )
    return Job(
        name=name,
        steps=tuple(steps),
        description=fields.text("description", empty=True),
        depends_on=read_dependencies(fields, "job"),
        weight=fields.whole("weight", 0, minimum=_WEIGHT_MIN),
        concurrency=fields.whole("concurrency", 0),
        timeout_s=fields.duration("timeout"),
    )


def _read_step(raw: Any, findings: Findings, path: DocumentPath, parent: Placement) -> Step:
    what = _what("step", raw, path)
    fields = Fields(raw, findings, path, what, "step", STEP_KEYS)
    if not isinstance(raw, dict):
        return Step(name="", task=NO_TASK)
    name = _label(fields)
    for_each = _read_for_each(fields)
    if has_expression(name) and for_each is None:
        fields.problem(
            f"the name of {what} holds an expression, but only a step with forEach may be named by one",
            "write a fixed name",
            "name",
        )
    if "task" in fields:
        task = read_task(raw["task"], findings, fields.under("task"), name)
    else:
        fields.missing("task")
        task = NO_TASK
    guard = fields.text("guard") or None
    if guard is not None and not is_whole_expression(guard):
        fields.problem(
            f"'guard' on {what} must be one expression (when it is true, the step is skipped)",
            "write guard: ${{ … }}",
            "guard",
        )
    for key in ("name", "guard", "task"):
        if key in fields:
            check_expressions(raw[key], findings, fields.under(key))
    lost = "rule"
    if "onWorkerLost" in fields:
        lost = fields.choice("onWorkerLost", ("redispatch", "fail"), "rule")
    return Step(
        name=name,
        task=task,
        description=fields.text("description", empty=True),
        depends_on=read_dependencies(fields, "step"),
        placement=read_placement(fields).under(parent),
        for_each=for_each,
        weight=fields.whole("weight", 0, minimum=_WEIGHT_MIN),
        concurrency=fields.whole("concurrency", 0),
        allow_failure=fields.flag("allowFailure"),
        guard=guard,
        timeout_s=fields.duration("timeout"),
        retry=_read_retry(fields),
        on_worker_lost=OnWorkerLost(lost),
        overrides=_read_overrides(fields),
    )


def _what(noun: str, raw: Any, path: DocumentPath) -> str:
    """`step 'x'`, or `step 2` where there is no name."""
    name = raw.get("name") if isinstance(raw, dict) else None
    number = path[-1]
    assert isinstance(number, int)
    return f"{noun} '{name}'" if isinstance(name, str) and name else f"{noun} {number + 1}"


def _label(fields: Fields) -> str:
    """A job's or step's name: any text that fits on a line."""
    name = fields.text("name", required=True)
    if len(name) > LABEL_TEXT_MAX or not name.isprintable() or name != name.strip():
        fields.problem(
            f"the name of {fields.what} must be one line of at most {LABEL_TEXT_MAX} printable characters,"
            " without blanks around it",
            None,
            "name",
        )
    return name


def _check_names(
    nodes: list[tuple[str, tuple[Dependency, ...]]],
    findings: Findings,
    path: DocumentPath,
    noun: str,
    scope: str,
    *,
    expressions_allowed: bool,
) -> None:
    """Unique names, then references and cycles."""
    places: dict[str, DocumentPath] = {}
    graph: dict[str, tuple[Dependency, ...]] = {}
    for index, (name, dependencies) in enumerate(nodes):
        place = (*path, index)
        if not name:
            continue
        if name in places:
            first = findings.source.lines.get((*places[name], "name"), 0)
            findings.add(
                (*place, "name"),
                f"two {noun}s{scope} are called '{name}' (the first in line {first})",
                f"{noun} names are unique{' in a job' if noun == 'step' else ''}: rename one",
            )
            continue
        if has_expression(name) and not expressions_allowed:
            findings.add(
                (*place, "name"), f"the name of {noun} '{name}' must be fixed text", "write a fixed name"
            )
        places[name] = place
        graph[name] = dependencies
    check_graph(graph, places, findings, noun, scope)


def _read_for_each(fields: Fields) -> ForEach | None:
    if "forEach" not in fields:
        return None
    inner = Fields(
        fields.data["forEach"],
        fields.findings,
        fields.under("forEach"),
        f"forEach of {fields.what}",
        "forEach",
        FOR_EACH_KEYS,
    )
    if not isinstance(fields.data["forEach"], dict):
        return None
    item = inner.text("item", required=True)
    if item and not is_identifier(item):
        inner.problem(
            f"'{item}' cannot be a variable: expressions say self.{item}", "use letters, digits and _", "item"
        )
    expression = ""
    if isinstance(inner.data.get("in"), list | dict):
        inner.problem(
            f"'in' of {inner.what} must be one expression, not {kind(inner.data['in'])}",
            'write in: ${{ ["a", "b"] }}',
            "in",
        )
    else:
        expression = inner.text("in", required=True)
        if expression and not is_whole_expression(expression):
            inner.problem(
                f"'in' of {inner.what} must be one expression that yields a list or a map",
                "write in: ${{ … }}",
                "in",
            )
        elif (problem := expression_problem(expression)) is not None:
            inner.problem(problem[0], problem[1], "in")
    return ForEach(item, expression)


def _read_retry(fields: Fields) -> Retry | None:
    if "retry" not in fields:
        return None
    inner = Fields(
        fields.data["retry"],
        fields.findings,
        fields.under("retry"),
        f"retry of {fields.what}",
        "retry",
        RETRY_KEYS,
    )
    if isinstance(fields.data["retry"], dict) and "attempts" not in inner:
        inner.missing("attempts")
    backoff_s = inner.duration("backoff", zero=True)
    return Retry(
        attempts=inner.whole("attempts", 1, minimum=1),
        backoff_s=BACKOFF_S_DEFAULT if backoff_s is None else backoff_s,
    )


def _read_trigger(fields: Fields) -> Mapping[str, Any]:
    if "trigger" not in fields:
        return {}
    inner = Fields(
        fields.data["trigger"],
        fields.findings,
        fields.under("trigger"),
        "the trigger",
        "trigger",
        TRIGGER_KEYS,
    )
    found: dict[str, Any] = {}
    schedule = inner.text("schedule")
    if schedule:
        _check_schedule(inner, schedule)
        found["schedule"] = schedule
    zone = inner.text("timezone")
    if zone:
        _check_zone(inner, zone)
        found["timezone"] = zone
    if "inputs" in inner:
        found["inputs"] = inner.mapping("inputs")
        check_expressions(found["inputs"], fields.findings, inner.under("inputs"))
    return found


def _check_schedule(fields: Fields, schedule: str) -> None:
    from datetime import UTC, datetime

    from cronsim import CronSim, CronSimError

    try:
        CronSim(schedule, datetime(2026, 1, 1, tzinfo=UTC))
    except CronSimError as error:
        fields.problem(
            f"'schedule' of {fields.what} is not a cron expression ({str(error).lower()}): '{schedule}'",
            'five fields, or six with seconds first: schedule: "0 3 * * *"',
            "schedule",
        )


def _check_zone(fields: Fields, zone: str) -> None:
    from zoneinfo import ZoneInfo

    try:
        ZoneInfo(zone)
    except (KeyError, ValueError, OSError):
        fields.problem(
            f"'timezone' of {fields.what} is unknown: '{zone}'", "write timezone: Europe/Berlin", "timezone"
        )


def _read_overrides(fields: Fields) -> tuple[Mapping[str, Any], ...]:
    found: list[Mapping[str, Any]] = []
    for index, raw in enumerate(fields.items("dataOutputOverrides")):
        inner = Fields(
            raw,
            fields.findings,
            fields.under("dataOutputOverrides", index),
            f"a data output override of {fields.what}",
            "override",
            OVERRIDE_KEYS,
        )
        if not inner.data:
            continue
        override: dict[str, Any] = {"specName": inner.text("specName", required=True)}
        for key in ("lifetime", "vaultName"):
            if key in inner:
                override[key] = inner.text(key)
        lifetime = override.get("lifetime", "infinite")
        if lifetime not in LIFETIMES and lifetime_ms(lifetime) is None:
            inner.problem(
                f"'lifetime' of {inner.what} is none: '{lifetime}'", "write 30d, 12h or infinite", "lifetime"
            )
        if "garbageCollection" in inner:
            override["garbageCollection"] = inner.whole("garbageCollection", 1, minimum=1)
        if "tags" in inner:
            override["tags"] = inner.texts("tags")
        if "vary" in inner:
            override["vary"] = inner.words("vary")
        found.append(override)
    return tuple(found)
