"""Workflows as a user sees them: jobs and steps, inputs, placement, waiting, limits, failures. One orchestrator, two workers."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e_site import Site, ended, order, step, until


@pytest.fixture(scope="module")
def pool(site: Site) -> Iterator[Site]:
    """`east` has two slots, `west` one; both have a gpu."""
    site.serve()
    for name in ("east", "west"):
        site.token(name)
    site.worker("east", "--label", "region=east", "--label", "gpu=true", "--concurrency", "2", enrolled=False)
    site.worker("west", "--label", "region=west", "--label", "gpu=true", enrolled=False)
    for name in ("east", "west"):
        site.workers[name].wait_for(f"Enrolled as {name}")
    yield site


def run(site: Site, workflow: str, *flags: str, code: int = 0) -> list[dict[str, Any]]:
    """Run a workflow; its events."""
    done = site.swamp("workflow", "run", workflow, *flags, "--json")
    assert done.code == code, done
    return done.events


def texts(*names: str) -> dict[str, Any]:
    """Required inputs that are texts."""
    return {"type": "object", "properties": {n: {"type": "string"} for n in names}, "required": list(names)}


def lines(events: list[dict[str, Any]], step: str) -> list[str]:
    return [event["line"] for event in events if event["kind"] == "step_output" and event["step"] == step]


def result(site: Site, model: str) -> dict[str, Any]:
    """The latest result's attributes."""
    found: list[dict[str, Any]] = site.query(f'modelName == "{model}" && specName == "result"', "attributes")
    return max(found, key=lambda attributes: str(attributes["executedAt"]))


# ── order, inputs ───────────────────────────────────────────────────────────────────────────────────────────────────
def test_jobs_and_steps_in_the_order_of_their_dependencies(pool: Site) -> None:
    pool.model("note", 'echo "$WHAT"', env={"WHAT": "${{ inputs.what }}"}, inputs=texts("what"))
    pool.workflow(
        "graph",
        inputs=texts("suffix"),
        jobs=[
            {
                "name": "second",
                "dependsOn": ["first"],
                "steps": [step("last", "note", inputs={"what": "last ${{ inputs.suffix }}"}, target="west")],
            },
            {
                "name": "first",
                "steps": [
                    step("c", "note", inputs={"what": "c"}, dependsOn=["a", "b"], labels={"region": "east"}),
                    step("a", "note", inputs={"what": "a"}),
                    step("b", "note", inputs={"what": "b"}, labels={"gpu": "true", "region": "west"}),
                ],
            },
        ],
    )
    events = run(pool, "graph", "--input", "suffix=of all")
    happened = order(events)
    for name, needs in (("c", "a"), ("c", "b"), ("last", "c")):
        assert happened.index(("started", name)) > happened.index(("ended", needs))
    workers = {event["step"]: event["worker"] for event in events if event["kind"] == "step_ended"}
    assert workers == {"a": None, "b": "west", "c": "east", "last": "west"}
    assert lines(events, "last") == ["last of all"]


@pytest.mark.parametrize("placement", [{}, {"target": "west"}], ids=["loopback", "worker"])
def test_an_input_can_not_become_a_command(pool: Site, placement: dict[str, Any]) -> None:
    """Whatever an input holds, the shell of a step sees it as text."""
    witness = pool.folder / f"owned-{bool(placement)}"
    pool.shell(
        "say",
        'echo ${{ inputs.text }} "(${{ inputs.text }})"',
        model={"inputs": texts("text")},
        **placement,
    )
    pool.workflow(
        "say", step("s", "say", inputs={"text": "${{ inputs.text }}"}, **placement), inputs=texts("text")
    )
    for text in (
        f"$(touch {witness})",
        f"`touch {witness}`",
        f'"; touch {witness}; echo "',
        f"'; touch {witness}; echo '",
        f"$HOME * \\ && touch {witness}",
        '${{ vault.get("sandbox-vault", "worker-token-west") }}',
        "-n",
        "two\nlines",
    ):
        events = run(pool, "say", "--input", f"text={text}")
        if text != "-n":
            assert lines(events, "s") == f"{text} ({text})".split("\n"), text
    assert not witness.exists()


def test_inputs_that_are_missing_unknown_or_of_another_type(pool: Site) -> None:
    pool.model("count", 'echo "$N"', env={"N": "${{ string(inputs.n) }}"}, inputs={"n": {"type": "integer"}})
    pool.workflow(
        "counting",
        step("s", "count", inputs={"n": "${{ inputs.n }}"}),
        inputs={"n": {"type": "integer", "required": True}},
    )
    assert lines(run(pool, "counting", "--input", "n=3"), "s") == ["3"]
    for given, told in (
        ((), "n"),
        (("n=x",), "integer"),
        (("n=1", "m=2"), "m is not a valid input property. Valid inputs are: n"),
    ):
        flags = [word for entry in given for word in ("--input", entry)]
        done = pool.swamp("workflow", "run", "counting", *flags)
        assert done.code in (1, 2) and told in done.err and done.out == "", done


def test_for_each_over_a_list_and_a_map(pool: Site) -> None:
    pool.model("note", 'echo "$WHAT"', env={"WHAT": "${{ inputs.what }}"}, inputs=texts("what"))
    each = step(
        "say-${{ self.word }}",
        "note",
        forEach={"item": "word", "in": "${{ inputs.words }}"},
        inputs={"what": "<${{ self.word }}>"},
        labels={"gpu": "true"},
    )
    pairs = step(
        "pair-${{ self.pair.key }}",
        "note",
        forEach={"item": "pair", "in": "${{ {'a': 1, 'b': 2} }}"},
        inputs={"what": "${{ self.pair.key }}=${{ string(self.pair.value) }}"},
        dependsOn=["say-${{ self.word }}"],
    )
    pool.workflow("each", each, pairs, inputs={"words": {"type": "array", "required": True}})
    events = run(pool, "each", "--input", 'words:json=["one","two","three"]')
    assert [line for word in ("one", "two", "three") for line in lines(events, f"say-{word}")] == [
        "<one>",
        "<two>",
        "<three>",
    ]
    assert [lines(events, f"pair-{key}") for key in "ab"] == [["a=1"], ["b=2"]]
    happened = order(events)
    assert max(happened.index(("ended", f"say-{word}")) for word in ("one", "two", "three")) < min(
        happened.index(("started", f"pair-{key}")) for key in "ab"
    )


# ── who does the work ───────────────────────────────────────────────────────────────────────────────────────────────
def test_the_shell_is_a_child_of_who_was_chosen(pool: Site) -> None:
    assert pool.orchestrator is not None
    pool.model("parent", "echo $PPID")
    for placement, parent in (
        ({}, pool.orchestrator.pid),
        ({"target": "west"}, pool.workers["west"].pid),
        ({"labels": {"region": "east", "gpu": "true"}}, pool.workers["east"].pid),
        ({"labels": {}}, pool.orchestrator.pid),
    ):
        pool.workflow("who", step("s", "parent", **placement))
        assert lines(run(pool, "who"), "s") == [str(parent)], placement
    pool.ok("model", "method", "run", "parent", "execute")
    assert result(pool, "parent")["stdout"] == str(pool.orchestrator.pid)
    (worker,) = [w for w in pool.json("worker", "list")["workers"] if w["name"] == "west"]
    pool.workflow("who", step("s", "parent", target=worker["instanceUuid"]))
    assert lines(run(pool, "who"), "s") == [str(pool.workers["west"].pid)]


def test_placement_is_inherited_and_replaced(pool: Site) -> None:
    pool.model("parent", "echo $PPID")
    pool.workflow(
        "inherits",
        target="west",
        jobs=[
            {"name": "as-said-above", "steps": [step("a", "parent")]},
            {
                "name": "otherwise",
                "labels": {"region": "east"},
                "steps": [
                    step("b", "parent"),
                    step("c", "parent", target="west"),
                    step("d", "parent", labels={}),
                ],
            },
        ],
    )
    events = run(pool, "inherits")
    assert [ended(events, name)["worker"] for name in "abcd"] == ["west", "east", "west", None]


MEET = "touch {0}/$ME; until [ -e {0}/$OTHER ]; do sleep 0.02; done; echo met"
ALONE = "mkdir {0}/alone || exit 9; sleep 0.05; rmdir {0}/alone"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"labels": {"gpu": "true"}}, {"labels": {"gpu": "true"}}),
        ({"target": "east"}, {"target": "east"}),
        ({}, {"target": "west"}),
    ],
    ids=["two workers", "two slots", "worker and loopback"],
)
def test_steps_run_at_the_same_time(
    pool: Site, tmp_path: Path, one: dict[str, Any], other: dict[str, Any]
) -> None:
    """Each waits for the other: neither ends unless both run at once."""
    environment = {"ME": "${{ inputs.me }}", "OTHER": "${{ inputs.other }}"}
    pool.model("meet", MEET.format(tmp_path), env=environment, inputs=texts("me", "other"))
    pool.workflow(
        "meeting",
        step("x", "meet", inputs={"me": "x", "other": "y"}, **one),
        step("y", "meet", inputs={"me": "y", "other": "x"}, **other),
    )
    events = run(pool, "meeting", "--timeout", "15s")
    assert lines(events, "x") == lines(events, "y") == ["met"]


@pytest.mark.parametrize("limit", ["slots", "workflow", "job", "step"])
def test_steps_that_must_not_run_at_the_same_time_do_not(pool: Site, tmp_path: Path, limit: str) -> None:
    """One slot, or `concurrency: 1` at each level: a second one at the same time would find the folder and fail."""
    pool.model("alone", ALONE.format(tmp_path))
    placement = {"target": "west"} if limit == "slots" else {"labels": {"gpu": "true"}}
    steps = [step(f"s{n}", "alone", **placement) for n in range(4)]
    job: dict[str, Any] = {"name": "job", "steps": steps}
    keys: dict[str, Any] = {"jobs": [job]}
    if limit == "workflow":
        keys["concurrency"] = 1
    elif limit == "job":
        job["concurrency"] = 1
    elif limit == "step":
        each = {"item": "n", "in": "${{ [1, 2, 3, 4] }}"}
        job["steps"] = [step("s${{ string(self.n) }}", "alone", forEach=each, concurrency=1, **placement)]
    pool.workflow("one-by-one", **keys)
    events = run(pool, "one-by-one")
    assert [event["status"] for event in events if event["kind"] == "step_ended"] == ["succeeded"] * 4


# ── waiting ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_step_waits_for_a_worker_that_does_not_exist_yet(pool: Site) -> None:
    """It is placed in the very pass that handles the enrollment: no second wait, nothing in between."""
    assert pool.orchestrator is not None
    pool.shell("patient", "echo $PPID", target="late")
    running = pool.start("workflow", "run", "patient", "--json", name="waiting run")
    waiting = json.loads(running.wait_for('"step_waiting"').string)
    assert waiting["requirement"] == "target=late" and "late" in waiting["reason"]
    (row,) = pool.json("worker", "queue", "--explain")
    assert (row["stepName"], row["requirement"]) == ("s", "target=late")
    assert set(row["workers"]) == {"east", "west"}
    assert "target=late" in pool.ok("worker", "queue").out
    late = pool.worker("late")
    done = running.end()
    assert done.code == 0
    assert order(done.events) == [("waiting", "s"), ("started", "s"), ("ended", "s")]
    assert lines(done.events, "s") == [str(late.pid)]
    pool.orchestrator.wait_for("dispatching step=s workflow=patient")
    told = [line.split(" ", 1)[1] for line in pool.orchestrator.said.splitlines() if "Z " in line]
    at = next(n for n, line in enumerate(told) if line.startswith("worker connected worker=late"))
    assert told[at + 1].startswith("dispatching step=s workflow=patient worker=late"), told[at:]
    assert pool.json("worker", "queue") == []
    stopped = late.interrupt()
    assert stopped.code == 0 and "Drain complete" in stopped.out
    (gone,) = [w for w in pool.json("worker", "list", "--all")["workers"] if w["name"] == "late"]
    assert gone["status"] not in ("idle", "busy")


def test_nobody_comes_within_the_queue_timeout(pool: Site) -> None:
    pool.shell("hasty", "echo never", labels={"region": "north"}, queueTimeout="300ms")
    done = pool.swamp("workflow", "run", "hasty")
    assert done.code == 1
    assert "no worker matching region=north became available within 0.3 s" in done.out
    assert "swamp worker queue --explain" in done.err + done.out
    assert "# hasty: failed" in done.out and "0 succeeded · 1 failed · 0 skipped" in done.out


def test_a_drained_worker_gets_nothing_until_it_is_undrained(pool: Site) -> None:
    pool.shell("careful", "echo ran", target="west")
    pool.ok("worker", "drain", "west", "--reason", "maintenance")
    try:
        run_id = pool.json("workflow", "run", "careful", "--detach")["runId"]
        (row,) = until(lambda: pool.json("worker", "queue", "--explain"), "the step waits")
        assert (
            row["workers"]["west"] == ["draining (maintenance)"]
            and row["change"] == "swamp worker undrain west"
        )
    finally:
        pool.ok("worker", "undrain", "west")
    assert pool.ok("run", "attach", run_id).code == 0


# ── failures and limits ─────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("placement", [{}, {"target": "west"}], ids=["loopback", "worker"])
def test_a_failing_step(pool: Site, placement: dict[str, Any]) -> None:
    name = "wrong-there" if placement else "wrong-here"
    pool.model(name, "echo seen; echo bad >&2; exit 3")
    pool.model("fine", "echo fine")
    pool.workflow(
        name,
        step("s", name, **placement),
        step("next", "fine", dependsOn=["s"]),
        step("handler", "fine", dependsOn=[{"step": "s", "condition": {"type": "failed"}}]),
    )
    done = pool.swamp("workflow", "run", name)
    assert done.code == 1
    assert f"# {name}: failed" in done.out and "1 succeeded · 1 failed · 1 skipped" in done.out
    shown = done.out.splitlines()
    assert shown[0] == "job" + " " * 61 + "✗ 3 steps"
    assert {"│ seen", "│ bad", "│ Error: Command exited with code 3"} <= set(shown), done.out
    run_id = re.search(r"run ([0-9a-f-]{36}) failed", done.err)
    assert run_id and f"swamp workflow history logs {run_id[1]}" in done.err
    stored = result(pool, name)
    assert (stored["exitCode"], stored["stdout"], stored["stderr"]) == (3, "seen", "bad")
    text = pool.ok("data", "get", name, "log").out
    assert "seen" in text and "bad" in text
    document = pool.json("workflow", "history", "get", run_id[1])
    steps = {entry["name"]: entry for entry in document["jobs"][0]["steps"]}
    assert {key: entry["status"] for key, entry in steps.items()} == {
        "s": "failed",
        "next": "skipped",
        "handler": "succeeded",
    }
    assert "'s'" in steps["next"]["reason"]
    assert "seen" in pool.ok("workflow", "history", "logs", run_id[1]).out
    predicate = f'modelType == "swamp/step-lease" && attributes.state == "failed" && attributes.runId == "{run_id[1]}"'
    assert pool.query(predicate, "attributes.stepName") == ["s"]


def test_a_failure_that_is_allowed(pool: Site) -> None:
    pool.model("wrong", "exit 3")
    pool.workflow("allowed", step("s", "wrong", target="east", allowFailure=True))
    assert ended(run(pool, "allowed"), "s")["status"] == "failed"


def timed(
    pool: Site, script: str, placement: dict[str, Any], level: str, timeout_ms: int
) -> list[dict[str, Any]]:
    """The events of a run that ends at a timeout, given at `level`."""
    span = f"{timeout_ms}ms"
    pool.model("slow", script, **({"timeout": timeout_ms} if level == "argument" else {}))
    one = step("s", "slow", **placement, **({"timeout": span} if level == "step" else {}))
    job = {"name": "job", "steps": [one], **({"timeout": span} if level == "job" else {})}
    pool.workflow("slow", jobs=[job], **({"timeout": span} if level == "workflow" else {}))
    return run(pool, "slow", *(["--timeout", span] if level == "flag" else []), code=1)


@pytest.mark.parametrize("placement", [{}, {"target": "west"}], ids=["loopback", "worker"])
@pytest.mark.parametrize("level", ["argument", "step", "job", "workflow", "flag"])
def test_a_timeout_ends_it(pool: Site, tmp_path: Path, placement: dict[str, Any], level: str) -> None:
    """Nothing of the step is left, and the failure says that the time was over. The shortest of the times in which the step begins."""
    for timeout_ms in (400, 4_000, 40_000):
        events = timed(
            pool, f"echo $$ > {tmp_path}/pid; echo begun; sleep 60; echo never", placement, level, timeout_ms
        )
        last = events[-1]
        assert (last["kind"], last["status"], last["left"]) == ("run_ended", "failed", 0), last
        said = ended(events, "s")["error"]
        assert re.search(rf"tim(e|ed)[ -]?out|{timeout_ms} ?ms|{timeout_ms / 1000:g} s", said), said
        if lines(events, "s"):
            break
    assert lines(events, "s") == ["begun"]
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


# ── clients ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_lines_arrive_while_the_step_runs(pool: Site, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    pool.shell("talks", f"echo first; until [ -e {gate} ]; do sleep 0.02; done; echo last", target="west")
    running = pool.start("workflow", "run", "talks", "--json", name="run")
    running.wait_for('"line": "first"')
    (worker,) = [w for w in pool.json("worker", "list")["workers"] if w["name"] == "west"]
    assert worker["status"] == "busy" and len(worker["activeDispatchIds"]) == 1
    assert pool.query('modelType == "swamp/step-lease"', "attributes.workerName") == ["west"]
    gate.touch()
    assert lines(running.end().events, "s") == ["first", "last"]


def test_a_run_goes_on_without_its_client(pool: Site, tmp_path: Path) -> None:
    """`--detach`, several clients at once, one killed: all see the same events from the first to the last."""
    gate = tmp_path / "gate"
    pool.shell("long", f"echo first; until [ -e {gate} ]; do sleep 0.02; done; echo last", target="west")
    run_id = pool.json("workflow", "run", "long", "--detach")["runId"]
    killed = pool.start("run", "attach", run_id, "--json", name="killed client")
    stays = pool.start("run", "attach", run_id, "--json", name="client")
    for client in (killed, stays):
        client.wait_for('"line": "first"')
    killed.kill()
    (row,) = pool.json("run", "list", "--active")["runs"]
    assert row["runId"] == run_id
    gate.touch()
    done = stays.end()
    assert done.code == 0 and [event["seq"] for event in done.events] == list(range(1, len(done.events) + 1))
    assert pool.ok("run", "attach", run_id, "--json").events == done.events
    assert pool.ok("run", "attach", run_id, "--after", "3", "--json").events == done.events[3:]


def test_a_lot_of_output_arrives_in_order_and_is_kept_whole(pool: Site) -> None:
    """A client that can not follow is told how many events it missed; the log has every line."""
    pool.shell("chatty", "seq 1 20000", target="west")
    events = run(pool, "chatty")
    arrived = [int(line) for line in lines(events, "s")]
    told = [event["message"] for event in events if event["kind"] == "warning"]
    missed = sum(int(message.removesuffix(" events were not kept")) for message in told)
    assert arrived == sorted(arrived) and len(arrived) + missed in range(20_000, 20_010)
    assert result(pool, "chatty")["stdout"] == "\n".join(str(n) for n in range(1, 20_001))
    log = pool.swamp("data", "export", "chatty", "log", "--out", "log.txt")
    assert log.code == 0, log
    assert (pool.root / "log.txt").read_text().splitlines() == [str(n) for n in range(1, 20_001)]


def test_nothing_is_left_of_the_steps(pool: Site) -> None:
    """Fresh folders are removed, and no lease, no queue entry and no run is open when all is done."""
    pool.shell("folder", "pwd; touch here", target="west")
    (folder,) = lines(run(pool, "folder"), "s")
    until(lambda: not Path(folder).exists(), "the step's folder is removed")
    assert pool.query('modelType == "swamp/step-lease"') == []
    assert pool.json("run", "list", "--active")["runs"] == []
    assert pool.ok("run", "doctor").out == "Nothing is past its deadline.\n"
