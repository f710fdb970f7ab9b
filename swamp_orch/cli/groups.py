"""Commands and groups of `swamp`, on click: lazily imported, with the global flags on every one of them.

Rules
- A group knows the names and one-line summaries of its commands; the modules behind them are imported only
  when one is typed. Help of a group imports nothing.
- Every command and group takes the global flags; commands that talk to a `Session` also the connection flags.
- An unknown command or flag is a usage error that names the nearest one that exists.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import click

from swamp_orch.cli.invocation import DEFAULTS, SECRETS, Invocation
from swamp_proto.errors import UsageError

_GLOBAL: Final[tuple[tuple[tuple[str, ...], dict[str, Any]], ...]] = (
    (("--json",), {"is_flag": True, "help": "Print JSON instead of text."}),
    (("--log",), {"metavar": "PATH", "help": "Write log output to this file."}),
    (("--log-level",), {"metavar": "LEVEL", "help": "Log verbosity: debug, info, warn, error."}),
    (("-q", "--quiet"), {"is_flag": True, "help": "Print only what was asked for, and errors."}),
    (("-v", "--verbose"), {"is_flag": True, "help": "Print more, such as the traceback of a defect."}),
    (("--no-telemetry",), {"is_flag": True, "help": "Accepted; there is no telemetry at all."}),
    (
        ("--show-properties",),
        {
            "is_flag": True,
            "help": "Print the resolved configuration and where it comes from; do nothing else.",
        },
    ),
    (("--no-color",), {"is_flag": True, "help": "No colours (also: NO_COLOR)."}),
    (("--repo-dir",), {"metavar": "DIR", "help": "The repository (also: SWAMP_REPO_DIR). Default: walk up."}),
)
_CONNECTION: Final[tuple[tuple[tuple[str, ...], dict[str, Any]], ...]] = (
    (
        ("--server",),
        {"metavar": "URL", "help": "Orchestrator to ask: ws(s) or http(s) URL (also: SWAMP_SERVE_URL)."},
    ),
    (("--server-token",), {"metavar": "TOKEN", "help": "Credential for it (also: SWAMP_SERVER_TOKEN)."}),
    (
        ("--ca-cert",),
        {"metavar": "FILE", "help": "Trust these CA certificates for it (also: SWAMP_CA_CERT)."},
    ),
)


def _remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Only what was typed is kept: a group's default must not undo what its command was told."""
    source = context.get_parameter_source(parameter.name or "")
    if source is click.core.ParameterSource.COMMANDLINE:
        invocation = context.find_object(Invocation)
        assert invocation is not None  # main puts it there
        invocation.set(parameter.name or "", value)


def _options(specs: Sequence[tuple[tuple[str, ...], dict[str, Any]]]) -> list[click.Option]:
    # Eager, so that `--json` is known before another parameter is found wrong.
    return [
        click.Option(names, expose_value=False, is_eager=True, callback=_remember, **extra)
        for names, extra in specs
    ]


class _WithGlobals(click.Command):
    """Adds the flags and prints them in a help section of their own."""

    connects: bool = False

    def _extend(self) -> None:
        taken = {name for parameter in self.params for name in parameter.opts}
        specs = _GLOBAL + (_CONNECTION if self.connects else ())
        self.global_params = [o for o in _options(specs) if not taken.intersection(o.opts)]
        self.params.extend(self.global_params)

    def get_help_option_names(self, ctx: click.Context) -> list[str]:
        return ["-h", "--help"]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own: list[tuple[str, str]] = []
        shared: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                (shared if parameter in self.global_params else own).append(record)
        if isinstance(self, click.Group):
            self.format_commands(ctx, formatter)
        for title, records in (("Options", own), ("Global options", shared)):
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class Command(_WithGlobals):
    """A leaf. `connects=False` is for commands that need no session."""

    def __init__(self, *args: Any, connects: bool = True, **extra: Any) -> None:
        super().__init__(*args, **extra)
        self.connects = connects
        self._extend()

    def invoke(self, ctx: click.Context) -> Any:
        invocation = ctx.find_object(Invocation)
        if invocation is not None and invocation.get("show_properties"):
            return show_properties(ctx, invocation)
        return super().invoke(ctx)


class Lazy:
    """Where a command lives: `module:attribute`, its summary for the group's help, and other names for it."""

    def __init__(self, where: str, summary: str, *, aliases: Sequence[str] = ()) -> None:
        self.where = where
        self.summary = summary
        self.aliases = tuple(aliases)

    def load(self) -> click.Command:
        module, _, attribute = self.where.partition(":")
        found = getattr(importlib.import_module(module), attribute)
        assert isinstance(found, click.Command)
        return found


class Group(_WithGlobals, click.Group):
    """A group of lazy commands and of groups; a bare one shows its help."""

    def __init__(
        self, name: str, summary: str, members: Mapping[str, "Lazy | Group"], *, connects: bool = True
    ) -> None:
        super().__init__(
            name=name, help=summary, invoke_without_command=True, no_args_is_help=False, callback=self._bare
        )
        self.summary = summary
        self.members = dict(members)
        self.connects = connects
        self._extend()

    def _bare(self) -> int:
        context = click.get_current_context()
        if context.invoked_subcommand is not None:
            return 0
        invocation = context.find_object(Invocation)
        assert invocation is not None
        if invocation.get("show_properties"):
            return show_properties(context, invocation)
        if invocation.json:
            raise NoSubcommand(self.members)
        click.echo(context.get_help())
        return 0

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.members)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        member = self.members.get(cmd_name)
        if member is None:
            for known in self.members.values():
                if isinstance(known, Lazy) and cmd_name in known.aliases:
                    member = known
        return member.load() if isinstance(member, Lazy) else member

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        command = self.get_command(ctx, args[0])
        if command is None:
            raise self._unknown(ctx, args[0])
        return args[0], command, args[1:]

    def _unknown(self, ctx: click.Context, name: str) -> UsageError:
        if name.startswith("-"):
            return UsageError(f"no such option: {name}", hint=f"{ctx.command_path} --help")
        import difflib

        near = difflib.get_close_matches(name, self.members, n=1, cutoff=0.5)
        hint = f"did you mean: {ctx.command_path} {near[0]}" if near else f"{ctx.command_path} --help"
        return UsageError(f"unknown command '{ctx.command_path} {name}'", hint=hint)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, member.summary) for name, member in self.members.items()])


class NoSubcommand(UsageError):
    """A bare group with `--json`."""

    def __init__(self, members: Mapping[str, Any]) -> None:
        super().__init__("No subcommand specified", hint="one of availableCommands")
        self.available = list(members)

    def document(self) -> dict[str, Any]:  # one field more than other errors
        return {**super().document(), "availableCommands": self.available}


def show_properties(ctx: click.Context, invocation: Invocation) -> int:
    """Every setting and flag of this command, its value, and where it came from."""
    rows: list[dict[str, Any]] = []

    def add(name: str, value: Any, source: str) -> None:
        rows.append({"name": name, "value": "***" if name in SECRETS and value else value, "source": source})

    for name in DEFAULTS:
        value, source = invocation.setting(name)
        add(name.replace("_", "-") if name not in SECRETS else name, value, source)
    from swamp_proto.errors import SwampError

    try:
        add("repository", str(invocation.repository().root), invocation.setting("repo_dir")[1])
    except SwampError:
        add("repository", None, "not found")
    for parameter in ctx.command.params:
        if parameter.name and parameter.name in ctx.params:
            where = ctx.get_parameter_source(parameter.name)
            named = {"COMMANDLINE": "command line", "ENVIRONMENT": f"environment {parameter.envvar}"}
            value = ctx.params[parameter.name]
            plain = value if isinstance(value, str | int | float | bool | None) else [str(v) for v in value]
            add(parameter.name, plain, named.get(where.name if where else "", "default"))
    if invocation.json:
        invocation.document({"properties": rows})
    else:
        from swamp_orch.cli.console import table

        shown = [(row["name"], "-" if row["value"] is None else row["value"], row["source"]) for row in rows]
        invocation.lines(*table(("PROPERTY", "VALUE", "SOURCE"), shown))
    return 0


def command(
    name: str, *parameters: click.Parameter, help: str, connects: bool = True, **extra: Any
) -> Callable[[Callable[..., Any]], Command]:
    """Declare a leaf: its function gets the `Invocation`, then the parameters by name."""

    def declare(function: Callable[..., Any]) -> Command:
        def run(**values: Any) -> Any:
            return function(click.get_current_context().find_object(Invocation), **values)

        return Command(name, params=list(parameters), callback=run, help=help, connects=connects, **extra)

    return declare


def argument(name: str, *, required: bool = True, kind: str | None = None, **extra: Any) -> click.Argument:
    """A positional. `kind` names what shell completion offers (`model`, `workflow`, …)."""
    return click.Argument([name], required=required, shell_complete=_completer(kind), **extra)


def option(*names: str, kind: str | None = None, **extra: Any) -> click.Option:
    return click.Option(names, shell_complete=_completer(kind), **extra)


def _completer(kind: str | None) -> Any:
    if kind is None:
        return None

    def complete(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        from swamp_orch.cli.completion import names

        return [name for name in names(ctx, kind) if name.startswith(incomplete)]

    return complete


YES: Final = ("-y", "--yes")


def yes_option() -> click.Option:
    return click.Option(YES, is_flag=True, help="Do not ask.")
