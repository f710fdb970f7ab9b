"""The one application interface: what the CLI, CI jobs and other clients can ask of swamp.

Three ways in, one meaning: in process (`Application`), over the repository's unix socket, over TCP. A *call* is a name and a
JSON object of parameters; it answers with one JSON value, or, for the streams, with JSON objects one after another. Over
HTTP: `POST /client/v1/<name>` with a JSON body; an answer is `application/json`, a stream `application/x-ndjson`, an error
has a 4xx/5xx status and the body `{"error", "code", "hint"?}`.

Names, parameters and answers of every call are listed in `CALLS` and documented in docs/reference/client-protocol.md.
"""

# ruff: noqa: E501 - the table of calls is one call a line

from collections.abc import Iterator, Mapping
from typing import Any, Final, Protocol

import attrs


@attrs.frozen
class Call:
    """One call. `parameters` maps name -> (JSON type, required); types: string, integer, number, boolean, object, array, any."""

    name: str
    summary: str
    parameters: Mapping[str, tuple[str, bool]] = attrs.field(factory=dict)
    streams: bool = False
    role: str = "read"  # read, run, admin: what a remote client's credential needs
    live: bool = False  # meaningful only inside `swamp serve`


def _call(
    name: str,
    summary: str,
    /,
    *,
    streams: bool = False,
    role: str = "read",
    live: bool = False,
    **parameters: str,
) -> Call:
    """`string` is required, `string?` optional."""
    return Call(
        name,
        summary,
        {key: (kind.removesuffix("?"), not kind.endswith("?")) for key, kind in parameters.items()},
        streams,
        role,
        live,
    )


_CALLS = (
    # ── vaults ──────────────────────────────────────────────────────────────────────────────────────────────────────
    _call("vault.create", "create a vault", role="admin", type="string", name="string", config="object?"),
    _call("vault.list", "configured vaults", query="string?"),
    _call("vault.get", "a vault's configuration", name="string"),
    _call("vault.put", "store a secret", role="admin", vault="string", key="string", value="string", overwrite="boolean?"),
    _call("vault.read_secret", "a secret's value", role="admin", vault="string", key="string"),
    _call("vault.list_keys", "keys of a vault", vault="string?"),
    _call("vault.audit", "which steps asked for which secret", role="admin", vault="string", key="string?", limit="integer?"),
    _call("vault.delete", "delete a secret", role="admin", vault="string", key="string"),
    # ── enrollment tokens and workers ───────────────────────────────────────────────────────────────────────────────
    _call("token.create", "mint an enrollment token", role="admin", name="string", durationMs="integer", vault="string?", maxEnrollments="any?"),
    _call("token.list", "enrollment tokens"),
    _call("token.revoke", "revoke a token", role="admin", name="string"),
    _call("token.renew", "extend a live token", role="admin", name="string", durationMs="integer"),
    _call("worker.list", "workers", all="boolean?"),
    _call("worker.queue", "waiting steps and why", explain="boolean?"),
    _call("worker.drain", "drain or undrain a worker", role="admin", name="string", draining="boolean", reason="string?", whenSafe="boolean?"),
    _call("worker.verify", "exercise every seam of a connected worker", role="admin", name="string", waitS="number?"),
    _call("worker.idle", "wait a moment until nothing of a worker is left", role="read", name="string"),
    # ── models ──────────────────────────────────────────────────────────────────────────────────────────────────────
    _call("model.create", "create a definition", role="admin", type="string", name="string", globalArguments="object?", arguments="object?"),
    _call("model.get", "a definition", name="string"),
    _call("model.search", "definitions", query="string?"),
    _call("model.source", "the YAML text of a definition", name="string"),
    _call("model.edit", "replace a definition's YAML", role="admin", name="string", text="string"),
    _call("model.delete", "delete a definition and its data", role="admin", name="string"),
    _call("model.validate", "check definitions", name="string?"),
    _call("model.method_describe", "a method of a model", name="string", method="string"),
    _call("model.type_search", "model types", query="string?", all="boolean?"),
    _call("model.type_describe", "a model type", type="string"),
    _call("model.method_run", "start a run of one method; answers {runId}", role="run", name="string", method="string", inputs="object?", timeoutS="number?", tags="object?"),
    _call("output.get", "one method execution", id="string"),
    _call("output.search", "method executions", model="string?", limit="integer?"),
    _call("output.logs", "the log of a method execution", id="string", tail="integer?"),
    # ── workflows and runs ──────────────────────────────────────────────────────────────────────────────────────────
    _call("workflow.create", "create a workflow from YAML text", role="admin", name="string?", text="string?"),
    _call("workflow.get", "a workflow", name="string"),
    _call("workflow.search", "workflows", query="string?"),
    _call("workflow.source", "the YAML text of a workflow", name="string"),
    _call("workflow.edit", "replace a workflow's YAML", role="admin", name="string", text="string"),
    _call("workflow.delete", "delete a workflow", role="admin", name="string"),
    _call("workflow.validate", "check workflows", name="string?"),
    _call("workflow.schema", "JSON Schema of workflow files"),
    _call("workflow.run", "start a run; answers {runId}", role="run", name="string", inputs="object?", timeoutS="number?", tags="object?"),
    _call("workflow.resume", "go on with a run that is suspended, failed or was cancelled; answers {runId}", role="run", name="string", runId="string?", fromStep="string?", inputs="object?", timeoutS="number?"),
    _call("workflow.approvals", "steps that wait for a person"),
    _call("workflow.approve", "let a waiting step succeed", role="run", name="string", step="string", runId="string?", reason="string?", by="string?"),
    _call("workflow.reject", "let a waiting step fail", role="run", name="string", step="string", runId="string?", reason="string?", by="string?"),
    _call("run.attach", "events of a run from sequence number `after`, until it ends", streams=True, runId="string", after="integer?"),
    _call("run.cancel", "cancel a run; `wait` false: answer when that is durable", role="run", runId="string", reason="string?", wait="boolean?"),
    _call("run.get", "one run", runId="string"),
    _call("run.list", "runs", workflow="string?", active="boolean?", limit="integer?"),
    _call("run.logs", "log lines of a run", runId="string", tail="integer?"),
    _call("run.doctor", "states past their deadline", fix="boolean?"),
    # ── data ────────────────────────────────────────────────────────────────────────────────────────────────────────
    _call("data.query", "query records", predicate="string", select="string?", limit="integer?"),
    _call("data.get", "one record", model="string", name="string", version="integer?", content="boolean?"),
    _call("data.list", "records of a model", model="string?", type="string?"),
    _call("data.versions", "versions of a record", model="string", name="string"),
    _call("data.search", "records by text", query="string?", limit="integer?", model="string?", type="string?"),
    _call("data.delete", "delete records", role="admin", model="string", name="string?", version="integer?", prefix="string?", all="boolean?", dryRun="boolean?"),
    _call("data.gc", "collect what is past its retention", role="admin", dryRun="boolean?"),
    _call("data.export", "a record's bytes as base64", model="string", name="string", version="integer?"),
    # ── reports ─────────────────────────────────────────────────────────────────────────────────────────────────────────
    _call("report.get", "a stored report", name="string", model="string?", workflow="string?", version="integer?"),
    _call("report.search", "stored reports", query="string?", model="string?", workflow="string?", scope="string?", limit="integer?"),
    _call("report.describe", "a report that can be made", name="string"),
    _call("report.type_search", "reports that can be made", query="string?"),
    # ── the orchestrator ────────────────────────────────────────────────────────────────────────────────────────────
    _call("serve.status", "about the running orchestrator", live=True),
    _call("names", "names for shell completion", kind="string"),
)  # fmt: skip

CALLS: Final[Mapping[str, Call]] = {call.name: call for call in _CALLS}


class Session(Protocol):
    """A client's side of the interface, synchronous: what the CLI holds. Errors are `SwampError`s."""

    where: str  # `in process`, the socket's path, or the URL: for people

    def call(self, name: str, /, **parameters: Any) -> Any: ...

    def stream(self, name: str, /, **parameters: Any) -> Iterator[dict[str, Any]]: ...

    def close(self) -> None: ...
