"""What the pages say about the program, compared with the program."""

import ast
import re
from pathlib import Path

import pytest
from docs_pages import DOCS, PROJECT, pages

from swamp_orch.api.interface import CALLS
from swamp_orch.cli.groups import Group
from swamp_orch.cli.tree import root
from swamp_orch.core import tokens
from swamp_orch.engine import events
from swamp_proto.errors import PERMANENT_REFUSALS, RefusalCode
from swamp_worker.cli import connect
from swamp_worker.execution.procfs import MARKER_NAME
from swamp_worker.shell.voice import TROUBLE

PAGES = pages()
PACKAGES = ("swamp_proto", "swamp_worker", "swamp_orch")


def _text(name: str) -> str:
    return PAGES[f"docs/{name}"].text


def _rows(text: str) -> list[list[str]]:
    """The rows of all tables, cells stripped, heads and rulers left out."""
    found = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    return [row for row in found if not set(row[0]) <= set("-: ")]


# ── the architecture ────────────────────────────────────────────────────────────────────────────────────────────────
def _names(text: str) -> set[str]:
    """Dotted names of ours, and paths of ours, in code."""
    code = re.findall(r"`([^`\n]+)`", text)
    return {word for word in code if re.fullmatch(r"swamp_(proto|worker|orch)(\.\w+)*", word)}


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_module_that_is_named_exists(page: str) -> None:
    """A last part that is no module must be a name in the module before it."""
    for name in sorted(_names(PAGES[page].text)):
        if _module(name):
            continue
        module, _, member = name.rpartition(".")
        assert _module(module), f"{page}: there is no {name}"
        assert member in _defined(module), f"{page}: there is no {member} in {module}"


def _module(name: str) -> Path | None:
    path = PROJECT / name.replace(".", "/")
    return next((one for one in (path.with_suffix(".py"), path / "__init__.py") if one.is_file()), None)


def _defined(module: str) -> set[str]:
    found = set()
    path = _module(module)
    assert path is not None
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def test_every_task_that_is_named_exists() -> None:
    """`Class.method` in the task trees of the architecture."""
    trees = "".join(block.text for block in PAGES["docs/architecture.md"].blocks)
    named = set(re.findall(r"\b([A-Z]\w+)\.([a-z_]+)\b", trees))
    methods = {
        (node.name, member.name)
        for package in PACKAGES
        for path in (PROJECT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        for member in node.body
        if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert named
    assert named - methods == set()


def test_every_package_is_in_the_map() -> None:
    """Every package of the project, two levels deep, has its row in the architecture."""
    there = {
        ".".join(folder.relative_to(PROJECT).parts)
        for package in PACKAGES
        for folder in ((PROJECT / package), *(PROJECT / package).iterdir())
        if (folder / "__init__.py").is_file()
    }
    rows = {row[0].strip("`") for row in _rows(_text("architecture.md"))}
    assert there - rows == set()


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_file_that_is_named_exists(page: str) -> None:
    """Paths of the project in code: tests, packages, scripts."""
    paths = re.findall(
        r"`((?:tests|bench|fuzz|examples|docs|swamp_\w+)/[\w./-]*)(?:::\w+)?`", PAGES[page].text
    )
    assert [path for path in paths if not (PROJECT / path).exists()] == []


# ── guarantees ──────────────────────────────────────────────────────────────────────────────────────────────────────
def _tests_of(path: Path) -> set[str]:
    """Functions and machine classes a test file has."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {name for name in found if name.startswith(("test_", "Test"))}


def test_every_guarantee_names_tests_that_exist() -> None:
    items = re.findall(r"^(\d+)\. (.+?)(?=^\d+\. |^#|\Z)", _text("guarantees.md"), re.MULTILINE | re.DOTALL)
    assert [int(number) for number, _ in items] == list(range(1, len(items) + 1))
    for number, text in items:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
        assert named, f"guarantee {number} names no test"
        for path, test in named:
            assert (PROJECT / path).is_file(), f"guarantee {number}: there is no {path}"
            assert test in _tests_of(PROJECT / path), f"guarantee {number}: there is no {test} in {path}"


# ── reference ───────────────────────────────────────────────────────────────────────────────────────────────────────
def test_every_call_is_documented_as_it_is() -> None:
    rows = {row[0].strip("`"): row for row in _rows(_text("reference/client-protocol.md")) if len(row) == 4}
    documented = {name: row for name, row in rows.items() if name in CALLS}
    assert set(documented) == set(CALLS)
    assert [name for name in rows if re.fullmatch(r"[a-z]+\.[a-z_]+", name) and name not in CALLS] == []
    for name, (_, parameters, role, answer) in documented.items():
        call = CALLS[name]
        wanted = [
            f"`{key}{'' if required else '?'}: {kind}`" for key, (kind, required) in call.parameters.items()
        ]
        assert (", ".join(wanted) or "–") == parameters, name
        assert role == call.role, name
        assert answer, name


def test_every_event_is_documented() -> None:
    declared = {row[0].strip("`"): row[1] for row in _rows(events.__doc__ or "")}
    declared.pop("kind", None)
    sections = dict(
        re.findall(
            r"^## `(\w+)`\n(.*?)(?=^## |\Z)", _text("reference/run-events.md"), re.MULTILINE | re.DOTALL
        )
    )
    assert set(sections) == set(declared)
    for kind, fields in declared.items():
        outside = re.sub(r"\(.*?\)|\[.*?\]|\{.*?\}", "", fields)
        wanted = set(re.findall(r"`(\w+)[`:]", outside))
        told = {name for row in _rows(sections[kind]) for name in re.findall(r"`(\w+)`", row[0])}
        assert wanted <= told, f"{kind}: {wanted - told}"


def test_the_states_of_a_token_are_the_programs() -> None:
    rows = [
        tuple(row)
        for row in _rows(_text("reference/enrollment-tokens.md"))
        if len(row) == 3 and row[1] in {change.value for change in tokens.TokenChange}
    ]
    transitions = [
        ("–" if state is None else state.value, change.value, then.value)
        for (state, change), then in tokens.TRANSITIONS.items()
    ]
    assert rows == transitions


def test_flags_variables_and_lines_of_a_worker_are_documented() -> None:
    rows = _rows(_text("reference/worker-connect.md"))
    worker = PROJECT / "swamp_worker"
    told = {found for row in rows for found in re.findall(r"`(SWAMP_\w+)(?:=1)?`", " ".join(row[:2]))}
    known = set(re.findall(r'"(SWAMP_(?:WORKER|ORCHESTRATOR)_\w+)"', (worker / "cli.py").read_text()))
    given = set(re.findall(r'"(SWAMP_\w+)"', (worker / "execution" / "variables.py").read_text()))
    assert told == (known - {"SWAMP_WORKER_"}) | (given - {"SWAMP_"}) | {MARKER_NAME}
    flags = {flag for row in rows for flag in re.findall(r"^`(--[a-z0-9-]+)", row[0])}
    options = {name for parameter in connect.params for name in parameter.opts if name.startswith("--")}
    assert flags == options - {"--token-fd"}
    kinds = {kind for row in rows for kind in re.findall(r'\{"kind": "(\w+)"', row[1])}
    assert kinds == _said_kinds((worker / "shell" / "voice.py").read_text())


def _said_kinds(source: str) -> set[str]:
    """The second argument of every `_say`, and the kind of notices."""
    found = {"notice"}
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "_say"
            and isinstance(node.args[1], ast.Constant)
        ):
            found.add(str(node.args[1].value))
    return found


FOREIGN = frozenset(
    "--init --no-cache-dir --create-home --stop-timeout --unit --property".split()  # noqa: SIM905 - a list of words
)
"""Flags in the guides that are other programs'."""


def test_flags_in_the_guides_exist() -> None:
    known = _all_flags(root) | {name for parameter in connect.params for name in parameter.opts}
    for name, page in PAGES.items():
        if name.startswith("docs/guides/"):
            words = {
                word
                for block in page.blocks
                for word in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", block.text)
            }
            assert words - known - FOREIGN == set(), name


def _all_flags(group: Group) -> set[str]:
    found: set[str] = set()
    for member in group.members.values():
        if isinstance(member, Group):
            found |= _all_flags(member)
        else:
            found |= {name for parameter in member.load().params for name in parameter.opts}
    return found


def test_flags_of_serve_are_documented() -> None:
    command = root.members["serve"].load()  # type: ignore[union-attr]
    shared = getattr(command, "global_params", ())
    flags = {
        name
        for parameter in command.params
        if parameter not in shared
        for name in getattr(parameter, "opts", ())
    }
    rows = {
        flag for row in _rows(_text("reference/serve.md")) for flag in re.findall(r"`(--[a-z-]+)", row[0])
    }
    assert rows == {flag for flag in flags if flag.startswith("--")}


def test_every_refusal_has_its_row_in_troubleshooting() -> None:
    rows = {row[0].strip("`"): row for row in _rows(_text("guides/troubleshooting.md"))}
    for code, exit_code in PERMANENT_REFUSALS.items():
        keyword, cause, fix = TROUBLE[code]
        row = rows[keyword]
        assert row[1] == str(exit_code.value), keyword
        assert row[2] == cause, keyword
        assert fix.split(" (")[0] in row[3], keyword
    for code in RefusalCode:
        if code not in PERMANENT_REFUSALS:
            assert code.value in rows, code


# ── what is not there ───────────────────────────────────────────────────────────────────────────────────────────────
def _commands(group: Group, path: str = "swamp") -> set[str]:
    found = set()
    for name, member in group.members.items():
        found.add(f"{path} {name}")
        if isinstance(member, Group):
            found |= _commands(member, f"{path} {name}")
    return found


def test_what_is_said_to_be_missing_is_missing() -> None:
    """A page of what is not there must not outlive its truth: commands, modules and handlers named in it."""
    rows = _rows(_text("status.md"))
    there = _commands(root)
    for row in rows:
        for command in re.findall(r"`(swamp [a-z][a-z -]*)`", row[0]):
            assert command not in there, f"{command} exists: status.md says it does not"
    assert DOCS.is_dir()
