"""The grammar of workflow files: what is accepted, and what is said about everything else."""

# ruff: noqa: E501 - messages stand in the tables as they are printed

from itertools import pairwise
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swamp_orch.definitions.conditions import find_cycle
from swamp_orch.definitions.documents import workflow_document
from swamp_orch.definitions.fields import DefinitionProblems
from swamp_orch.definitions.placement import Declared
from swamp_orch.definitions.values import (
    AssertTask,
    Condition,
    ConditionType,
    Dependency,
    ForEach,
    ManualApprovalTask,
    ModelMethodTask,
    OnWorkerLost,
    Placement,
    Retry,
    Workflow,
    WorkflowTask,
)
from swamp_orch.definitions.workflow_schema import workflow_schema
from swamp_orch.definitions.workflows import parse_workflow
from swamp_orch.definitions.yaml_edit import dump
from swamp_orch.definitions.yaml_source import load_text

FILE = Path("workflows/workflow-w.yaml")
ID = "0f8fad5b-d9cb-469f-a165-70867728950e"
EXAMPLES = Path(__file__).parents[2] / "examples"

TUTORIAL = f"""\
id: {ID}
name: remote-demo
description: Run a step on a remote worker
jobs:
  - name: build
    steps:
      - name: echo-on-worker
        target: build-node
        task:
          type: model_method
          modelIdOrName: remote-echo
          methodName: execute
version: 1
"""

TASK = "{type: model_method, modelIdOrName: m, methodName: execute}"


def read(text: str, name: str = "") -> Workflow:
    return parse_workflow(*load_text(text, FILE), name)


def workflow(*, top: str = "", job: str = "", step: str = "", task: str = TASK) -> str:
    """A workflow of one step; job keys start in line 6, step keys in line 9 (after the extra lines above)."""
    lines = [f"id: {ID}", "name: w"]
    lines += top.splitlines()
    lines += ["jobs:", "  - name: j"]
    lines += [f"    {line}" for line in job.splitlines()]
    lines += ["    steps:", "      - name: s"]
    lines += [f"        {line}" for line in step.splitlines()]
    lines += [f"        task: {task}"] if task else []
    return "\n".join(lines) + "\n"


def problems(text: str) -> list[str]:
    with pytest.raises(DefinitionProblems) as caught:
        read(text)
    return [str(problem).removeprefix(f"{FILE}:") for problem in caught.value.problems]


def test_the_tutorial_is_read_and_written_as_it_stands() -> None:
    found = read(TUTORIAL, "remote-demo")
    (job,) = found.jobs
    (step,) = job.steps
    assert step.placement == Placement(target="build-node")
    assert step.task == ModelMethodTask("remote-echo", "execute", {})
    assert dump(workflow_document(found)) == TUTORIAL


EVERYTHING = f"""\
id: {ID}
name: w
description: all keys
tags: {{team: a}}
inputs:
  type: object
  properties:
    x: {{type: string}}
trigger:
  schedule: "0 3 * * *"
  timezone: Europe/Berlin
  inputs: {{x: "${{{{ webhook.body.x }}}}"}}
concurrency: 4
timeout: 1h30m
affinity: false
labels: {{os: linux}}
platform: linux/x86_64
queueTimeout: 90
reports: {{require: [a], skip: [b]}}
jobs:
  - name: a
    steps:
      - name: one
        description: first
        forEach: {{item: size, in: '${{{{ ["s", "l"] }}}}'}}
        guard: ${{{{ inputs.x == "" }}}}
        weight: -1
        concurrency: 2
        timeout: 30s
        retry: {{attempts: 2, backoff: 250ms}}
        allowFailure: true
        onWorkerLost: redispatch
        dataOutputOverrides:
          - {{specName: result, lifetime: 30d, garbageCollection: 5, tags: {{a: b}}, vary: [size]}}
        task: {{type: model_method, modelIdOrName: m, methodName: execute, inputs: {{run: "echo ${{{{ self.size }}}}"}}}}
      - name: two
        dependsOn: [one]
        target: special
        task: {{type: workflow, workflowIdOrName: other, inputs: "${{{{ inputs }}}}"}}
  - name: b
    description: second
    weight: 3
    concurrency: 1
    timeout: 600
    queueTimeout: 0
    dependsOn:
      - job: a
        condition: {{type: and, conditions: [{{type: completed}}, {{type: not, condition: {{type: skipped}}}}]}}
    steps:
      - name: ask
        labels: {{}}
        task: {{type: manual_approval, prompt: go?, timeout: 1d}}
      - name: check
        dependsOn:
          - ask
        task: {{type: assert, expr: 1 == 1, message: sums, severity: low}}
version: 7
"""


def test_every_key_becomes_its_value() -> None:
    found = read(EVERYTHING)
    a, b = found.jobs
    one, two = a.steps
    ask, check = b.steps
    inherited = Placement(labels={"os": "linux"}, platform="linux/x86_64", queue_timeout_s=90.0)
    assert (found.version, found.concurrency, found.timeout_s) == (7, 4, 5400.0)
    assert found.tags == {"team": "a"}
    assert found.trigger["schedule"] == "0 3 * * *"
    assert found.reports == {"require": ["a"], "skip": ["b"]}
    assert one.placement == inherited
    assert one.for_each == ForEach("size", '${{ ["s", "l"] }}')
    assert one.guard == '${{ inputs.x == "" }}'
    assert (one.weight, one.concurrency, one.timeout_s, one.allow_failure) == (-1, 2, 30.0, True)
    assert one.retry == Retry(2, 0.25)
    assert one.on_worker_lost is OnWorkerLost.REDISPATCH
    assert one.overrides[0]["vary"] == ("size",)
    assert two.placement == attrs.evolve(inherited, target="special", labels={})
    assert two.depends_on == (Dependency("one"),)
    assert two.task == WorkflowTask("other", "${{ inputs }}")
    not_skipped = Condition(ConditionType.NOT, (Condition(ConditionType.SKIPPED),))
    assert b.depends_on == (
        Dependency("a", Condition(ConditionType.AND, (Condition(ConditionType.COMPLETED), not_skipped))),
    )
    assert ask.placement == Placement(platform="linux/x86_64")
    assert ask.task == ManualApprovalTask("go?", 86_400.0)
    assert check.task == AssertTask("1 == 1", "sums", "low")
    assert check.placement == Placement(labels={"os": "linux"}, platform="linux/x86_64")


def test_a_written_document_means_the_same() -> None:
    found = read(EVERYTHING)
    again = read(dump(workflow_document(found)))
    assert workflow_document(again) == workflow_document(found)
    assert [step for job in again.jobs for step in job.steps] == [
        step for job in found.jobs for step in job.steps
    ]


STEP_KEYS = (
    "name, description, dependsOn, forEach, guard, target, labels, platform, queueTimeout, weight, concurrency,"
    " timeout, retry, allowFailure, onWorkerLost, dataOutputOverrides, task"
)

BAD: list[tuple[str, str]] = [
    # unknown keys, everywhere
    (workflow(step="lables: {a: b}"), f"7: Unknown key 'lables' on step 's'. Did you mean 'labels'? Valid step keys: {STEP_KEYS}"),
    (workflow(step="needs: [x]"), f"7: Unknown key 'needs' on step 's'. Did you mean 'dependsOn'? Valid step keys: {STEP_KEYS}"),
    (workflow(step="affinity: true"), f"7: Unknown key 'affinity' on step 's'. Valid step keys: {STEP_KEYS}"),
    (workflow(step="if: ${{ true }}"), f"7: Unknown key 'if' on step 's'. Did you mean 'guard'? Valid step keys: {STEP_KEYS}"),
    (
        workflow(top="jbos: 1"),
        "3: Unknown key 'jbos' on workflow 'w'. Did you mean 'jobs'? Valid workflow keys: id, name, description, tags, inputs,"
        " trigger, concurrency, timeout, target, labels, platform, queueTimeout, affinity, reports, jobs, version",
    ),
    (
        workflow(job="step: []"),
        "5: Unknown key 'step' on job 'j'. Did you mean 'steps'? Valid job keys: name, description, dependsOn, weight,"
        " concurrency, timeout, target, labels, platform, queueTimeout, affinity, steps",
    ),
    (
        workflow(task="{type: model_method, modelIdOrName: m, methodName: e, arguments: {}}"),
        "7: Unknown key 'arguments' on the task of step 's'. Did you mean 'inputs'? Valid task keys: type, modelIdOrName,"
        " methodName, inputs",
    ),
    (
        workflow(step="forEach: {item: x, in: '${{ [1] }}', of: 1}"),
        "7: Unknown key 'of' on forEach of step 's'. Valid forEach keys: item, in",
    ),
    (
        workflow(step="retry: {attempts: 1, backof: 1s}"),
        "7: Unknown key 'backof' on retry of step 's'. Did you mean 'backoff'? Valid retry keys: attempts, backoff",
    ),
    (
        workflow(top="trigger: {schedul: x}"),
        "3: Unknown key 'schedul' on the trigger. Did you mean 'schedule'? Valid trigger keys: schedule, timezone, inputs",
    ),
    (workflow(top="reports: {requires: []}"), "3: Unknown key 'requires' on the reports. Did you mean 'require'? Valid reports keys: require, skip"),
    (
        workflow(step="dataOutputOverrides:\n  - {specName: result, lifetime: soon}"),
        "8: 'lifetime' of a data output override of step 's' is none: 'soon'",
    ),
    (
        workflow(step="dataOutputOverrides:\n  - {specName: result, ttl: 1d}"),
        "8: Unknown key 'ttl' on a data output override of step 's'. Valid override keys: specName, lifetime,"
        " garbageCollection, tags, vary, vaultName",
    ),
    (
        workflow(job="dependsOn:\n  - {job: x, conditon: {type: failed}}"),
        "6: Unknown key 'conditon' on dependsOn of job 'j'. Did you mean 'condition'? Valid dependency keys: job, condition\n"
        "6: job 'j' depends on 'x', but there is no such job.",
    ),
    (
        workflow(step="dependsOn:\n  - {step: s, condition: {type: not, conditions: []}}"),
        "8: Unknown key 'conditions' on the condition in dependsOn of step 's'. Did you mean 'condition'? Valid condition keys:"
        " type, condition\n8: the condition in dependsOn of step 's' has no 'condition'\n"
        "7: the steps in job 'j' depend on each other in a circle: s -> s",
    ),
    (workflow(step="driver: docker"), "7: 'driver' on step 's' is not supported: target, labels and platform say where a step runs"),
    # placement
    (workflow(step="target: a\nlabels: {b: c}"), "8: step 's' has both 'target' and 'labels'; a placement is one or the other"),
    (workflow(step="labels: {}\ntarget: a"), "8: step 's' has both 'target' and 'labels'; a placement is one or the other"),
    (workflow(top="target: a\nlabels: {b: c}"), "4: workflow 'w' has both 'target' and 'labels'; a placement is one or the other"),
    (workflow(job="labels: {a: b}\ntarget: a"), "6: job 'j' has both 'target' and 'labels'; a placement is one or the other"),
    (workflow(step="labels:\n  gpu: true"), "8: 'gpu' in labels on step 's' must be text, not the boolean true"),
    (workflow(step="labels:\n  n: 1.10"), "8: 'n' in labels on step 's' must be text, not the number 1.10"),
    (workflow(step="labels:\n  n:"), "8: 'n' in labels on step 's' must be text, not empty"),
    (workflow(step="labels:\n  n: [a]"), "8: 'n' in labels on step 's' must be text, not a list"),
    (workflow(step="labels: gpu"), "7: 'labels' on step 's' must be a map, not text"),
    (workflow(step="labels:"), "7: 'labels' on step 's' is empty"),
    (workflow(step="target:"), "7: 'target' on step 's' is empty"),
    (workflow(step="target: ''"), "7: 'target' on step 's' is empty"),
    (workflow(step="target: 12"), "7: 'target' on step 's' must be text, not the number 12"),
    (workflow(step="target: [a]"), "7: 'target' on step 's' must be text, not a list"),
    (
        workflow(step="platform: Linux / amd64"),
        "7: 'platform' on step 's' must be an operating system, or one with an architecture, not 'Linux / amd64'",
    ),
    (workflow(step="queueTimeout: -1"), "7: 'queueTimeout' on step 's' must be between 0 and 10 years"),
    # durations and numbers
    (
        workflow(step="timeout: 5 minutes"),
        "7: 'timeout' on step 's' must be a duration (seconds, or a text like 30s, 5m, 1h30m), not '5 minutes'",
    ),
    (workflow(step="timeout: 0"), "7: 'timeout' on step 's' must be more than 0"),
    (workflow(step="timeout: true"), "7: 'timeout' on step 's' must be a duration (seconds, or a text like 30s, 5m, 1h30m)"),
    (workflow(step="timeout: 1s1s"), "7: 'timeout' on step 's' names a unit twice: '1s1s'"),
    (workflow(step="timeout: ${{ inputs.t }}"), "7: 'timeout' on step 's' must be a fixed duration, not an expression"),
    (workflow(top="timeout:"), "3: 'timeout' on workflow 'w' is empty"),
    (workflow(top="version: 0"), "3: 'version' on workflow 'w' must be at least 1, not 0"),
    (workflow(top='version: "1"'), "3: 'version' on workflow 'w' must be a whole number, not text"),
    (workflow(job="concurrency: 1.5"), "5: 'concurrency' on job 'j' must be a whole number, not the number 1.5"),
    (workflow(job="concurrency: true"), "5: 'concurrency' on job 'j' must be a whole number, not the boolean true"),
    (workflow(step="allowFailure: yes"), "7: 'allowFailure' on step 's' must be true or false, not text"),
    (workflow(step="retry: {}"), "7: retry of step 's' has no 'attempts'"),
    (workflow(step="retry: {attempts: 0}"), "7: 'attempts' on retry of step 's' must be at least 1, not 0"),
    (
        workflow(step="onWorkerLost: redispach"),
        "7: 'onWorkerLost' on step 's' must be one of redispatch, fail, not 'redispach'. Did you mean 'redispatch'?",
    ),
    # tasks
    (workflow(task=""), "6: step 's' has no 'task'"),
    (workflow(task="[]"), "7: the task of step 's' must be a map of keys, not a list"),
    (workflow(task="{}"), "7: the task of step 's' has no 'type'"),
    (workflow(task="{type: shell, command: ls}"), "7: the task of step 's' has the type 'shell', which is no task type"),
    (
        workflow(task="{type: model-method, modelIdOrName: m, methodName: e}"),
        "7: 'type' on the task of step 's' must be one of model_method, workflow, manual_approval, assert, not 'model-method'."
        " Did you mean 'model_method'?",
    ),
    (workflow(task="{type: model_method, methodName: e}"), "7: the task of step 's' has no 'modelIdOrName'"),
    (
        workflow(task="{type: model_method, model: m, methodName: e}"),
        "7: Unknown key 'model' on the task of step 's'. Did you mean 'modelIdOrName'? Valid task keys: type, modelIdOrName,"
        " methodName, inputs",
    ),
    (
        workflow(task="{type: model_method, modelType: a/b, modelName: m, methodName: e}"),
        "7: the task of step 's' describes its model in place, which is not supported",
    ),
    (
        workflow(task="{type: model_method, modelIdOrName: m, methodName: e, inputs: x}"),
        "7: 'inputs' of the task of step 's' must be a map, or one expression that yields a map",
    ),
    (workflow(task="{type: manual_approval}"), "7: the task of step 's' has no 'prompt'"),
    (
        workflow(task="{type: assert, expr: '${{ true }}'}"),
        "7: 'expr' of the task of step 's' is an expression already: it must not hold ${{ }}",
    ),
    (
        workflow(task="{type: assert, expr: 'true', severity: hi}"),
        "7: 'severity' on the task of step 's' must be one of low, medium, high, not 'hi'. Did you mean 'high'?",
    ),
    # names, references, cycles
    (workflow(step="dependsOn: [t]"), "7: step 's' depends on 't', but there is no such step in job 'j'."),
    (workflow(step="dependsOn: [s]"), "7: the steps in job 'j' depend on each other in a circle: s -> s"),
    (workflow(step="dependsOn: s2"), "7: 'dependsOn' on step 's' must be a list, not text"),
    (workflow(step="dependsOn: [1]"), "7: an entry of dependsOn of step 's' must be a step name or a map, not the number 1"),
    (
        workflow(step="dependsOn: [{step: s, condition: failed}]"),
        "7: the condition in dependsOn of step 's' must be a map, not text\n"
        "7: the steps in job 'j' depend on each other in a circle: s -> s",
    ),
    (
        workflow(job="dependsOn: [{job: j, condition: {type: or, conditions: [{type: failed}]}}]"),
        "5: 'or' needs at least two conditions\n5: the jobs depend on each other in a circle: j -> j",
    ),
    (
        workflow(job="dependsOn: [{job: j, condition: {type: succeded}}]"),
        "5: 'type' on the condition in dependsOn of job 'j' must be one of always, succeeded, failed, completed, skipped, and, or,"
        " not, not 'succeded'. Did you mean 'succeeded'?\n5: the jobs depend on each other in a circle: j -> j",
    ),
    # expressions, forEach, guard
    (workflow(step="guard: 'true'"), "7: 'guard' on step 's' must be one expression (when it is true, the step is skipped)"),
    (workflow(step="guard: true"), "7: 'guard' on step 's' must be text, not the boolean true"),
    (
        workflow(step="forEach: {item: a b, in: '${{ [1] }}'}"),
        "7: 'a b' cannot be a variable: expressions say self.a b",
    ),
    (workflow(step="forEach: {item: a, in: [1]}"), "7: 'in' of forEach of step 's' must be one expression, not a list"),
    (
        workflow(step="forEach: {item: a, in: x}"),
        "7: 'in' of forEach of step 's' must be one expression that yields a list or a map",
    ),
    (workflow(step="forEach: [a]"), "7: forEach of step 's' must be a map of keys, not a list"),
    # trigger
    (
        workflow(top="trigger: {schedule: every day}"),
        "3: 'schedule' of the trigger is not a cron expression (wrong number of fields): 'every day'",
    ),
    (workflow(top="trigger: {timezone: Mars/North}"), "3: 'timezone' of the trigger is unknown: 'Mars/North'"),
    # inputs
    (workflow(top="inputs: [a]"), "3: 'inputs' must be a map of input names"),
    (workflow(top="inputs:\n  a: string"), "4: input 'a' must be a map that says its type"),
    (
        workflow(top="inputs:\n  a: {type: text}"),
        "4: 'type' on input 'a' must be one of string, number, integer, boolean, array, object, not 'text'.",
    ),
    (
        workflow(top="inputs:\n  a: {type: string, pattern: x}"),
        "4: Unknown key 'pattern' on input 'a'. Valid schema keys: type, description, enum, default, required, properties, items,"
        " minItems, maxItems, additionalProperties, sensitive",
    ),
    (workflow(top="inputs:\n  a: {type: integer, default: 1.5}"), "4: the default of input 'a' must be an integer, not 1.5"),
    (
        workflow(top="inputs: {type: object, properties: {a: {type: string}}, required: [b]}"),
        "3: 'required' of the inputs names 'b', which is not a property.",
    ),
    # identity
    ("name: w\njobs: []\n", "1: workflow 'w' has no 'id'\n2: 'jobs' on workflow 'w' is an empty list"),
    (f"id: {ID}\nname: W w\njobs: 1\n", "2: 'W w' is not a workflow name\n3: 'jobs' on workflow 'W w' must be a list, not the number 1"),
    (f"id: {ID.upper()}\nname: w\njobs:\n  - name: j\n    steps:\n      - {{name: s, task: {TASK}}}\n", f"1: 'id' on workflow 'w' is not a UUID (lower case): '{ID.upper()}'"),
    (f"id: {ID}\nname: w\n", "1: workflow 'w' has no 'jobs'"),
    (f"id: {ID}\nname: w\njobs:\n  - 1\n", "4: job 1 must be a map of keys, not the number 1"),
    (f"id: {ID}\nname: w\njobs:\n  - steps: []\n", "4: job 1 has no 'name'\n4: 'steps' on job 1 is an empty list"),
    ("[]\n", "1: the workflow must be a map of keys, not a list"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "messages"), BAD, ids=[message.split("\n")[0][:70] for _, message in BAD])
def test_what_is_wrong_is_said_with_file_and_line(text: str, messages: str) -> None:
    assert sorted(problems(text)) == sorted(messages.split("\n"))


def two_steps(first: str, second: str) -> str:
    return (
        f"id: {ID}\nname: w\njobs:\n  - name: j\n    steps:\n"
        f"      - {{name: a, {first} task: {TASK}}}\n      - {{name: b, {second} task: {TASK}}}\n"
    )


def test_cycles_are_named() -> None:
    assert problems(two_steps("dependsOn: [b],", "dependsOn: [a],")) == [
        "6: the steps in job 'j' depend on each other in a circle: a -> b -> a"
    ]


def test_twins_are_named_with_the_first_ones_line() -> None:
    text = two_steps("", "").replace("name: b", "name: a")
    assert problems(text) == ["7: two steps in job 'j' are called 'a' (the first in line 6)"]


def test_a_misspelt_reference_gets_a_suggestion() -> None:
    text = two_steps("", "dependsOn: [aa],").replace("name: a,", "name: compile,").replace("[aa]", "[compil]")
    assert problems(text) == [
        "7: step 'b' depends on 'compil', but there is no such step in job 'j'. Did you mean 'compile'?"
    ]


def test_expression_syntax_is_checked_where_it_stands() -> None:
    (found,) = problems(workflow(step="description: x\ntarget: ${{ inputs.x"))
    assert found.startswith("8: ")
    (found,) = problems(
        workflow(task="{type: model_method, modelIdOrName: m, methodName: e, inputs: {run: 'a ${{ b'}}")
    )
    assert found.startswith("7: ")


def test_hints_say_what_to_write() -> None:
    def hint(text: str) -> str | None:
        with pytest.raises(DefinitionProblems) as caught:
            read(text)
        return caught.value.hint

    assert hint(workflow(step="labels:\n  gpu: true")) == 'quote it: gpu: "true"'
    assert hint(workflow(step="labels:\n  n: 1.10")) == 'quote it: n: "1.10"'
    assert hint(workflow(step="target: 12")) == 'quote it: target: "12"'
    assert hint(workflow(step="allowFailure: yes")) == "write allowFailure: true"
    assert hint(workflow(step="dependsOn: s2")) == "write dependsOn: [s2]"
    assert (
        hint(workflow(step="dependsOn: [{step: s, condition: failed}]")) == "write condition: {type: failed}"
    )
    shell = hint(workflow(task="{type: shell, command: ls}")) or ""
    assert "methodName: execute" in shell
    assert "execute.run=" in shell


def test_all_problems_of_a_file_are_told_at_once() -> None:
    text = workflow(step="labels: {a: 1}\nfoo: 1\ntimeout: x")
    found = problems(text)
    assert [item.partition(":")[0] for item in found] == ["7", "8", "9"]
    with pytest.raises(DefinitionProblems) as caught:
        read(text)
    assert caught.value.message.count("\n") == 2
    assert all(line.startswith(f"{FILE}:") for line in caught.value.message.splitlines())


@pytest.mark.parametrize(
    ("parent", "own", "expected"),
    [
        (Placement(target="a"), Declared(), Placement(target="a")),
        (Placement(target="a"), Declared(labels={"x": "y"}), Placement(labels={"x": "y"})),
        (Placement(target="a"), Declared(labels={}), Placement()),
        (Placement(labels={"x": "y"}), Declared(target="a"), Placement(target="a")),
        (Placement(labels={"x": "y"}), Declared(labels={}), Placement()),
        (Placement(labels={"x": "y"}), Declared(labels={"z": "1"}), Placement(labels={"z": "1"})),
        (Placement(platform="linux"), Declared(target="a"), Placement(target="a", platform="linux")),
        (Placement(platform="linux"), Declared(platform="darwin"), Placement(platform="darwin")),
        (Placement(queue_timeout_s=5), Declared(), Placement(queue_timeout_s=5)),
        (Placement(queue_timeout_s=5), Declared(queue_timeout_s=0), Placement()),
        (Placement(affinity=True), Declared(affinity=False), Placement()),
        (Placement(affinity=True), Declared(), Placement(affinity=True)),
    ],
)
def test_placement_is_inherited_by_key(parent: Placement, own: Declared, expected: Placement) -> None:
    assert own.under(parent) == expected


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdefg"), max_size=3), max_size=6)
)
def test_a_cycle_is_found_exactly_when_there_is_one(edges: dict[str, list[str]]) -> None:
    cycle = find_cycle(edges)
    left = {name: {other for other in following if other in edges} for name, following in edges.items()}
    while True:  # remove what depends on nothing, until nothing changes
        free = [name for name, following in left.items() if not following]
        if not free:
            break
        left = {name: following - set(free) for name, following in left.items() if name not in free}
    assert bool(cycle) == bool(left)
    if cycle:
        assert cycle[0] == cycle[-1]
        assert all(after in edges[before] for before, after in pairwise(cycle))


def test_ten_thousand_steps_in_a_row_are_no_problem() -> None:
    edges = {str(number): [str(number + 1)] for number in range(10_000)}
    assert find_cycle(edges) == []
    edges["9999"] = ["0"]
    assert len(find_cycle(edges)) == 10_001


# ── the schema for editors ──────────────────────────────────────────────────────────────────────


def valid(data: Any) -> bool:
    import jsonschema

    return bool(jsonschema.Draft202012Validator(workflow_schema()).is_valid(data))


def test_the_schema_is_a_schema() -> None:
    import jsonschema

    jsonschema.Draft202012Validator.check_schema(workflow_schema())


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("workflow-*.yaml")), ids=lambda path: path.name)
def test_the_schema_accepts_the_examples(path: Path) -> None:
    assert valid(load_text(path.read_text(), path)[0])


def test_the_schema_accepts_every_key() -> None:
    assert valid(load_text(EVERYTHING, FILE)[0])
    assert valid(load_text(TUTORIAL, FILE)[0])


UNKNOWN = [text for text, message in BAD if "Unknown key" in message]


@pytest.mark.parametrize("text", UNKNOWN, ids=range(len(UNKNOWN)))
def test_the_schema_refuses_unknown_keys_where_the_parser_does(text: str) -> None:
    assert not valid(load_text(text, FILE)[0])


def test_the_schema_is_never_stricter_than_the_parser() -> None:
    """Whatever the schema refuses in this table, the parser refuses too; and it refuses most of it."""
    refused = [text for text, _ in BAD if not valid(load_text(text, FILE)[0])]
    for text in refused:
        with pytest.raises(DefinitionProblems):
            read(text)
    assert len(refused) > len(BAD) * 0.7
