"""Run events: what a client that watches a run is told, as JSON objects, in order.

Every event has `seq` (from 1, per run; a client that can not keep up is told how many events it missed), `at` (wall milliseconds) and `kind`. They are what `workflow run --json`
prints, what the tree output is drawn from, and what `run.attach` replays.

| kind | further fields |
|---|---|
| `run_started` | `runId`, `run` (`workflow` or `method`), `workflowId`, `workflowName`, `jobs: [{name, steps: [name]}]` |
| `warning` | `message`, `job`?, `step`? |
| `job_started` | `job` |
| `step_waiting` | `job`, `step`, `reason` (text), `requirement` (`target=x`, `k=v, …`) |
| `step_started` | `job`, `step`, `worker` (name, null = loopback), `attempt`, `model`, `modelType`, `method`, `dispatchId` |
| `step_output` | `job`, `step`, `stream` (`stdout`/`stderr`), `line`, `n` (line number in the step's log), `run`? (the child run whose log it is) |
| `step_progress` | `job`, `step`, `upload` (its number in the step), `bytes` (here so far), `of` |
| `child_started` | `job`, `step`, `child: {runId, kind, name}` |
| `child_ended` | `job`, `step`, `child: {runId, kind, name, status}` |
| `approval_waiting` | `job`, `step`, `prompt`, `deadlineAt`, `approval: {runId, workflowName, step}` (what `workflow approve` names: of a nested workflow, the child's) |
| `step_ended` | `job`, `step`, `status` (`succeeded`, `failed`, `skipped`, `cancelled`), `error`?, `reason`?, `allowedFailure`?, `worker`, `attempts`, `durationMs`, `records: [{dataId, name, version, specName, modelName}]` |
| `job_ended` | `job`, `status`, `durationMs` |
| `report` | `name`, `scope`, `markdown`, `json` |
| `run_suspended` | `runId`, `approvals: [{runId, workflowName, job, step, prompt, deadlineAt}]`, `run` (the run document); it may go on |
| `run_ended` | `runId`, `status` (`succeeded`, `failed`, `cancelled`), `counts: {succeeded, failed, skipped, cancelled}`, `durationMs`, `error`?, `failedStep`?, `left`? (processes left: 0, or null = unknown), `endsBy`? (where that is unknown: the instant by which none is), `run` (the run document) |
"""

# ruff: noqa: E501 - the table of events is one event a line

from typing import Any

Event = dict[str, Any]
