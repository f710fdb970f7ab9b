"""docs/reference/cli.md and exit-codes.md say everything there is, and nothing that is not."""

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest

from swamp_orch.cli.groups import Group
from swamp_orch.cli.invocation import Invocation
from swamp_orch.cli.tree import root
from swamp_proto.errors import ExitCode

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
TEXT = (REFERENCE / "cli.md").read_text()


def _leaves(group: Group, path: tuple[str, ...] = ()) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, member in group.members.items():
        if isinstance(member, Group):
            found |= _leaves(member, (*path, name))
        else:
            found[" ".join((*path, name))] = member.load()
    return found


def _groups(group: Group, path: tuple[str, ...] = ()) -> set[str]:
    found = set()
    for name, member in group.members.items():
        if isinstance(member, Group):
            found |= {" ".join((*path, name))} | _groups(member, (*path, name))
    return found


COMMANDS = _leaves(root)
SECTIONS = {
    match[1]: match[2]
    for match in re.finditer(r"^##+ swamp ([a-z -]+)\n(.*?)(?=^##+ |\Z)", TEXT, re.MULTILINE | re.DOTALL)
}


def _flags(command: click.Command, shared: bool) -> set[str]:
    """Flags of a command: its own, or those every command has."""
    return {
        name
        for parameter in command.params
        if isinstance(parameter, click.Option)
        and not parameter.hidden
        and (parameter in command.global_params) is shared  # type: ignore[attr-defined] # all are of our classes
        for name in parameter.opts
    }


def _rows(text: str) -> set[str]:
    """The flags in the first column of the tables of a section."""
    cells = re.findall(r"^\| (`-.*?) \|", text, re.MULTILINE)
    return {word for cell in cells for word in re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", cell)}


def test_every_command_has_a_section_and_every_section_a_command() -> None:
    assert set(SECTIONS) - _groups(root) == set(COMMANDS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_flags_are_documented_and_exist(name: str) -> None:
    assert _rows(SECTIONS[name]) == _flags(COMMANDS[name], shared=False)


def test_global_flags_are_documented_and_exist() -> None:
    beginning = TEXT[TEXT.index("## Global flags") : TEXT.index("## Inputs")]
    assert _rows(beginning) - {"-h", "--help"} == _flags(COMMANDS["worker list"], shared=True)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_section_has_the_usage_and_an_example(name: str) -> None:
    command = COMMANDS[name]
    context = click.Context(command, obj=Invocation())
    usage = " ".join(["swamp", name, *command.collect_usage_pieces(context)])
    assert f"```text\n{usage}\n```" in SECTIONS[name]
    assert "```console\n$ " in SECTIONS[name]
    assert "swamp " + name in SECTIONS[name].split("```console", 1)[1]
    assert (command.help or "").strip() in SECTIONS[name]


def test_every_example_is_a_command_line_that_parses() -> None:
    lines = re.findall(r"^\$ swamp (.*)$", TEXT, re.MULTILINE)
    assert len(lines) > len(COMMANDS)
    for line in lines:
        argv = shlex.split(line.split(" > ")[0].split(" < ")[0])
        command: Any = root
        while isinstance(command, Group):
            command = command.get_command(click.Context(command), argv.pop(0))
            assert command is not None, line
        command.make_context("swamp", argv, obj=Invocation())


def test_exit_codes_are_documented_and_exist() -> None:
    text = (REFERENCE / "exit-codes.md").read_text()
    rows = {
        int(row[0]): row[1].replace(" ", "_").upper()
        for row in re.findall(r"^\| (\d+) \| ([a-z ]+) \|", text, re.M)
    }
    assert rows == {code.value: code.name for code in ExitCode}
