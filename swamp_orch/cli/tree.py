"""The tree of commands: names, order and summaries. Nothing here imports a command."""

from typing import Final

from swamp_orch.cli.groups import Group, Lazy

_IN: Final = "swamp_orch.cli.commands."


def _lazy(where: str, summary: str, *aliases: str) -> Lazy:
    return Lazy(_IN + where, summary, aliases=aliases)


root: Final = Group(
    "swamp",
    "Run workflow steps here and on machines that dial home, and keep what they produce.",
    {
        "repo": Group(
            "repo",
            "The repository.",
            {"init": _lazy("repo:init", "Make a folder a swamp repository.")},
            connects=False,
        ),
        "demo": _lazy("demo:demo", "Run the tutorial in a temporary repository, for real."),
        "vault": Group(
            "vault",
            "Vaults and the secrets in them.",
            {
                "create": _lazy("vault:create", "Create a vault."),
                "put": _lazy("vault:put", "Store a secret."),
                "get": _lazy("vault:get", "Show a vault's configuration."),
                "read-secret": _lazy("vault:read_secret", "Print a secret's value."),
                "list-keys": _lazy("vault:list_keys", "List the keys of a vault."),
                "audit": _lazy("vault:audit", "Show which steps asked for which secret, and when."),
                "delete": _lazy("vault:delete", "Delete a secret."),
                "search": _lazy("vault:search", "Find vaults."),
                "list": _lazy("vault:list_vaults", "List vaults."),
            },
        ),
        "worker": Group(
            "worker",
            "Workers and their enrollment tokens.",
            {
                "token": Group(
                    "token",
                    "Enrollment tokens.",
                    {
                        "create": _lazy("worker:token_create", "Mint an enrollment token."),
                        "list": _lazy("worker:token_list", "List enrollment tokens."),
                        "revoke": _lazy("worker:token_revoke", "Revoke a token."),
                        "renew": _lazy("worker:token_renew", "Extend a live token."),
                    },
                ),
                "list": _lazy("worker:list_workers", "List workers."),
                "queue": _lazy("worker:queue", "List steps that wait for a worker."),
                "drain": _lazy("worker:drain", "Give a worker nothing new."),
                "undrain": _lazy("worker:undrain", "Give a drained worker work again."),
                "verify": _lazy("worker:verify", "Exercise every seam of workers, end to end."),
                "connect": _lazy("worker:connect", "Connect this machine as a worker."),
            },
        ),
        "serve": _lazy("serve:serve", "Run the orchestrator."),
        "model": Group(
            "model",
            "Models: definitions, methods, types and outputs.",
            {
                "create": _lazy("model:create", "Create a model."),
                "get": _lazy("model:get", "Show a model."),
                "search": _lazy("model:search", "Find models.", "list"),
                "edit": _lazy("model:edit", "Change a model's YAML."),
                "delete": _lazy("model:delete", "Delete a model and its data."),
                "validate": _lazy("model:validate", "Check models."),
                "method": Group(
                    "method",
                    "Methods of models.",
                    {
                        "run": _lazy("model:method_run", "Run a method."),
                        "describe": _lazy("model:method_describe", "Show a method's arguments."),
                    },
                ),
                "type": Group(
                    "type",
                    "Model types.",
                    {
                        "search": _lazy("model:type_search", "Find model types.", "list"),
                        "describe": _lazy("model:type_describe", "Show a model type."),
                    },
                ),
                "output": Group(
                    "output",
                    "Method executions.",
                    {
                        "get": _lazy("model:output_get", "Show a method execution."),
                        "search": _lazy("model:output_search", "Find method executions.", "list"),
                        "logs": _lazy("model:output_logs", "Print the log of a method execution."),
                    },
                ),
            },
        ),
        "workflow": Group(
            "workflow",
            "Workflows and their runs.",
            {
                "create": _lazy("workflow:create", "Create a workflow."),
                "get": _lazy("workflow:get", "Show a workflow."),
                "search": _lazy("workflow:search", "Find workflows.", "list"),
                "edit": _lazy("workflow:edit", "Change a workflow's YAML."),
                "delete": _lazy("workflow:delete", "Delete a workflow."),
                "validate": _lazy("workflow:validate", "Check workflows."),
                "schema": _lazy("workflow:schema", "Print the JSON Schema of workflow files."),
                "run": _lazy("run:workflow_run", "Run a workflow."),
                "cancel": _lazy("run:workflow_cancel", "Cancel a workflow's run."),
                "resume": _lazy("run:workflow_resume", "Go on with a run that stopped."),
                "approve": _lazy("run:approve", "Let a step that waits for approval succeed."),
                "reject": _lazy("run:reject", "Let a step that waits for approval fail."),
                "approvals": _lazy("run:approvals", "List steps that wait for approval."),
                "history": Group(
                    "history",
                    "Past and present runs.",
                    {
                        "get": _lazy("run:history_get", "Show a run."),
                        "logs": _lazy("run:history_logs", "Print the log of a run."),
                        "search": _lazy("run:history_search", "Find runs.", "list"),
                    },
                ),
            },
        ),
        "run": Group(
            "run",
            "Runs: watch, cancel, check.",
            {
                "list": _lazy("run:list_runs", "List runs."),
                "attach": _lazy("run:attach", "Watch a run."),
                "cancel": _lazy("run:cancel", "Cancel a run."),
                "doctor": _lazy("run:doctor", "Find what is past its deadline."),
            },
        ),
        "data": Group(
            "data",
            "Records: query, read, delete, collect.",
            {
                "query": _lazy("data:query", "Query records."),
                "get": _lazy("data:get", "Show a record."),
                "list": _lazy("data:list_data", "List the records of a model."),
                "versions": _lazy("data:versions", "List the versions of a record."),
                "search": _lazy("data:search", "Find records by text."),
                "delete": _lazy("data:delete", "Delete records."),
                "gc": _lazy("data:gc", "Collect what is past its retention."),
                "export": _lazy("data:export", "Write a record's bytes."),
            },
        ),
        "report": Group(
            "report",
            "Reports: what runs and methods said of themselves.",
            {
                "get": _lazy("report:get", "Show a report."),
                "search": _lazy("report:search", "Find reports.", "list"),
                "describe": _lazy("report:describe", "Say what a report is."),
                "type": Group(
                    "type",
                    "Reports that can be made.",
                    {"search": _lazy("report:type_search", "Find reports that can be made.", "list")},
                ),
            },
        ),
        "completions": _lazy("shell:completions", "Print a shell completion script."),
        "version": _lazy("shell:version", "Print the version."),
    },
)
