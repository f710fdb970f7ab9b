"""The very same here and there: every behaviour is done by a step of the orchestrator and by one of a worker, and records, events,
output and errors are compared after the fields that differ by nature are left out. Those are listed here, all of them.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import attrs
import pytest
from e2e_site import Site, step
from parity_models import AWKWARD, METHODS, PYTHON_STEP, SECRET, SHELL, make, workflow

VOLATILE_EVENTS: Final = frozenset(
    {
        "seq", "at", "runId", "worker", "durationMs", "dispatchId",  # which run, where, when
        "duration", "startedAt", "endedAt", "queuedAt", "dataId", "version",
    }
)  # fmt: skip
VOLATILE_RECORDS: Final = frozenset(
    {
        "id", "version", "createdAt", "workflowRunId", "content", "size",  # which version; its content is compared by itself
        "sha256", "checksum",
    }
)  # fmt: skip
VOLATILE_CONTENT: Final = frozenset(
    {"durationMs", "executedAt", "duration", "runId", "dataId", "version", "workerName"}
)
PLACEMENTS: Final = {"here": {}, "there": {"target": "w"}}


@attrs.frozen
class Side:
    """What one of the two runs told and left."""

    events: list[dict[str, Any]]
    records: dict[str, list[dict[str, Any]]]  # by step, newest version of each name

    def of(self, name: str) -> dict[str, Any]:
        """Everything of one step, without what differs by nature."""
        mine = [event for event in self.events if event.get("step") == name]
        return {
            "output": {stream: [event["line"] for event in mine if event["kind"] == "step_output" and event["stream"] == stream]
                       for stream in ("stdout", "stderr")},
            "events": [_stripped(event, VOLATILE_EVENTS) for event in mine if event["kind"] not in ("step_output", "step_waiting")],
            "records": self.records.get(name, []),
        }  # fmt: skip


def _stripped(value: Any, fields: frozenset[str]) -> Any:
    if isinstance(value, Mapping):
        return {name: _stripped(item, fields) for name, item in value.items() if name not in fields}
    if isinstance(value, list):
        return [_stripped(item, fields) for item in value]
    if isinstance(value, str) and "--version" in value:  # what a summary says of other records
        return re.sub(r"\| \d+ \||--version \d+", "(which version)", value)
    return value


def _records(site: Site, run: str) -> dict[str, list[dict[str, Any]]]:
    """What the steps of a run left, with its content, sorted by name."""
    found: dict[str, list[dict[str, Any]]] = {}
    predicate = f'workflowRunId == "{run}" && ownerType != "system" && version > 0'
    for record in site.query(predicate):
        plain = _stripped(record, VOLATILE_RECORDS)
        plain["content"] = _stripped(record.get("content"), VOLATILE_CONTENT)
        if record["dataType"] == "file" and not record["streaming"]:
            plain["size"] = record["size"]
        if record["contentType"].startswith("text/"):
            text = site.ok(
                "data", "export", record["modelName"], record["name"], "--version", str(record["version"])
            ).out
            plain["content"] = _stripped(text, frozenset())
            if (
                record["specName"] == "log"
            ):  # between two pipes there is no order; within each, `output` compares it
                plain["content"] = sorted(text.splitlines())
        found.setdefault(record["stepName"], []).append(plain)
    return {
        name: sorted(rows, key=lambda row: json.dumps(row, sort_keys=True)) for name, rows in found.items()
    }


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("parity")) as made:
        make(made)
        made.serve()
        made.worker("w", "--concurrency", "4")
        yield made


@pytest.fixture(scope="module")
def sides(site: Site) -> dict[str, Side]:
    found = {}
    for name, placement in PLACEMENTS.items():
        workflow(site, placement)
        done = site.swamp("workflow", "run", "parity", "--json")
        assert done.code == 0, (name, done.err, done.out[-2000:])
        found[name] = Side(done.events, _records(site, done.events[0]["runId"]))
    return found


def differences(here: Any, there: Any, path: str = "$") -> Iterator[str]:
    """Where two values differ, one line each."""
    if isinstance(here, dict) and isinstance(there, dict):
        for name in sorted({*here, *there}):
            yield from differences(here.get(name, "(absent)"), there.get(name, "(absent)"), f"{path}.{name}")
    elif isinstance(here, list) and isinstance(there, list) and len(here) == len(there):
        for number, (one, other) in enumerate(zip(here, there, strict=True)):
            yield from differences(one, other, f"{path}[{number}]")
    elif here != there:
        yield f"{path}: here {here!r:.300} there {there!r:.300}"


@pytest.mark.parametrize("name", [*SHELL, "neighbour", *map(PYTHON_STEP.format, METHODS)])
def test_a_step_is_the_same_here_and_there(sides: dict[str, Side], name: str) -> None:
    here, there = (sides[side].of(name) for side in PLACEMENTS)
    assert list(differences(here, there)) == []
    assert here["events"][-1]["kind"] == "step_ended"


def test_the_behaviours_are_what_they_are_called(sides: dict[str, Side]) -> None:
    """Two sides that do nothing would be the same, too."""
    for side in sides.values():
        ends = {event["step"]: event for event in side.events if event["kind"] == "step_ended"}
        failed = {name for name, event in ends.items() if event["status"] == "failed"}
        assert failed == {
            "fails", "py-fails", "is-killed", "times-out", "tells", "can-not-start",
            "py-is_refused", "py-gives_up", "py-returns_nonsense", "py-leaves", "py-is_killed", "py-hangs", "py-is_checked",
        }, {name: ends[name].get("error") for name in failed}  # fmt: skip
        assert ends["py-gives_up"]["error"] == "the author's own words (parity.py:100)"
        assert "***" in ends["py-fails"]["error"] and "timed out" in ends["py-hangs"]["error"]
        output = {name: "\n".join(side.of(name)["output"]["stdout"]) for name in ends}
        assert output["takes-an-input"] == AWKWARD
        assert output["py-reads"].splitlines()[0] == "read Item(name='item-1', size=1) parity"
        assert "secret ***" in output["py-reads"] and "made ***" in output["py-reads"]
        assert output["py-returns"].startswith("out ***\n")
        assert len(output["prints-much"].splitlines()) == 3_001
        named = {name: [row["name"] for row in rows] for name, rows in side.records.items()}
        assert {"large", "paper", "item-0", "item-1", "item-2"} <= set(named["py-writes"])
        assert (
            "partial" in named["py-fails"]
            and "answer" in named["py-returns"]
            and "turn" in named["py-follows"]
        )
        assert output["py-hides"] == "hidden *** True"
        (account,) = [row["content"] for row in side.records["py-hides"] if row["name"] == "ada"]
        assert account["user"] == "ada" and account["token"].startswith(
            '${{ vault.get("sandbox-vault", "parity-type-'
        )
        assert SECRET not in json.dumps(side.events) + json.dumps(side.records)
        assert any(row["dataType"] == "report" for row in side.records["py-writes"])


def test_a_report_of_the_run_is_the_same_wherever_its_steps_were(sides: dict[str, Side]) -> None:
    made = {}
    for name, side in sides.items():
        (event,) = [one for one in side.events if one["kind"] == "report" and one["name"] == "everything"]
        rows = [row for row in side.records[""] if row["tags"].get("reportName") == "everything"]
        made[name] = {"event": _stripped(event, VOLATILE_EVENTS), "records": rows}
        assert len(event["json"]["steps"]) == len(SHELL) + len(METHODS) + 1
        assert event["json"]["large"] == 256 * 8_000
        assert ["partial", {"name": "partial", "size": 0}, "failed"] in event["json"]["items"]
        assert len(rows) == 2
    assert list(differences(made["here"], made["there"])) == []


def test_a_report_that_fails_is_said_the_same_way(sides: dict[str, Side]) -> None:
    for side in sides.values():
        said = [one["message"] for one in side.of("py-writes")["events"] if one["kind"] == "warning"]
        assert len(said) == 1 and said[0].startswith(
            "the report broken failed: RuntimeError: no paper (parity.py:"
        )
        (failed,) = [row for row in side.records["py-writes"] if row["name"] == "report-broken-json"]
        assert failed["tags"]["reportStatus"] == "failed" and failed["content"]["error"] is True


def test_a_cancel_is_the_same_here_and_there(site: Site) -> None:
    ends = {}
    for name, placement in PLACEMENTS.items():
        hangs = step("python", "parity", **placement)
        hangs["task"]["methodName"] = "hangs"
        site.workflow("waits", step("shell", "waits", **placement), hangs)
        running = site.start("workflow", "run", "waits", "--json")
        for where in ("python", "shell"):
            running.wait_for(f'"step": "{where}".*"begun"|"begun".*"step": "{where}"')
        run = json.loads(running.lines[0][1])["runId"]
        assert site.json("run", "cancel", run)["left"] == 0
        side = Side(running.end().events, _records(site, run))
        ends[name] = {where: side.of(where) for where in ("shell", "python")}
        assert all(ends[name][where]["events"][-1]["status"] == "cancelled" for where in ends[name])
    assert list(differences(ends["here"], ends["there"])) == []


def test_nothing_is_left_out_that_is_not_listed() -> None:
    """The list is short, and nothing that a user decides by is on it."""
    decisive = {
        "status",
        "error",
        "errorCode",
        "name",
        "specName",
        "tags",
        "outcome",
        "line",
        "stream",
        "kind",
        "stdout",
        "stderr",
        "exitCode",
    }
    assert not decisive & (VOLATILE_EVENTS | VOLATILE_RECORDS | VOLATILE_CONTENT)
