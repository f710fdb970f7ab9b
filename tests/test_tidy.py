"""The style that matters, as a test: what a reader relies on must hold in every file."""

import ast
import re
import subprocess
from pathlib import Path

import attrs
import pytest

from swamp_proto.messages import RULES

ROOT = Path(__file__).parent.parent
PACKAGES = ("swamp_proto", "swamp_worker", "swamp_orch")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
CORES = [path for path in SOURCES if path.parent.name == "core"]
EVERYTHING = sorted(
    {*SOURCES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "bench").glob("*.py"), *(ROOT / "fuzz").glob("*.py")}
)

BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "base", "misc"}
IMPURE = {
    "trio", "trio_websocket", "httpx", "hypercorn", "socket", "sqlite3", "structlog", "logging", "random", "time", "secrets",
    "os", "subprocess", "threading", "pathlib", "datetime",
}  # fmt: skip
MODULE_LINES_MAX = 900


def _identify(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _imported(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("path", SOURCES, ids=_identify)
def test_a_module_says_what_it_is(path: Path) -> None:
    docstring = ast.get_docstring(_tree(path))
    assert docstring, "a module opens with what it is"
    assert len(docstring) > 20


@pytest.mark.parametrize("path", EVERYTHING, ids=_identify)
def test_names_say_something(path: Path) -> None:
    assert path.stem.lstrip("_") not in BANNED_NAMES
    assert not BANNED_NAMES & set(path.relative_to(ROOT).parts[:-1])


@pytest.mark.parametrize("path", CORES, ids=_identify)
def test_a_core_is_deaf_and_blind(path: Path) -> None:
    """No clock, no chance, no input or output, no log: what a core knows was told to it."""
    assert not _imported(_tree(path)) & IMPURE


@pytest.mark.parametrize("path", CORES, ids=_identify)
def test_a_core_is_synchronous(path: Path) -> None:
    assert not [node for node in ast.walk(_tree(path)) if isinstance(node, ast.AsyncFunctionDef | ast.Await)]


def test_messages_are_frozen_values() -> None:
    for rule in RULES:
        for body in (rule.body, rule.reply):
            if body is None:
                continue
            assert attrs.has(body)
            assert body.__setattr__ is not object.__setattr__, f"{body.__name__} can be changed"
            methods = [
                name for name, member in vars(body).items() if callable(member) and not name.startswith("__")
            ]
            assert not methods, f"{body.__name__} has behaviour: {methods}"


@pytest.mark.parametrize("path", EVERYTHING, ids=_identify)
def test_no_loose_ends(path: Path) -> None:
    """A note to self names an issue; a broad except or a silenced check has its reason beside it."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if path.name == "test_tidy.py":
            continue
        assert not re.search(r"\b(TODO|FIXME|XXX)\b(?!.*#\d+)", line), f"line {number}: {line.strip()}"
        if "# type: ignore" in line:
            assert re.search(r"# type: ignore\[[a-z-]+(, ?[a-z-]+)*\]", line), f"line {number}: which error?"
        assert not re.search(r"except( Exception\b.*)?:\s*$", line), (
            f"line {number}: a broad except needs its reason"
        )


@pytest.mark.parametrize("path", SOURCES, ids=_identify)
def test_modules_stay_readable(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MODULE_LINES_MAX


def test_no_guard_of_a_test_is_a_bet_on_the_machine() -> None:
    """What ends a test that hangs leaves a slow and busy machine a minute. What is shorter belongs to what is tested."""
    guard = re.compile(r"\b(?:fail_after|\.wait|communicate|join)\((?:timeout=)?([0-9.]+)\)")
    for path in sorted({*(ROOT / "tests").rglob("*.py")} - {*(ROOT / "tests" / "chaos").iterdir()}):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for found in guard.findall(line):
                assert float(found) >= 60, f"{path.relative_to(ROOT)}:{number} guards with {found} s"


def test_no_registry_host_is_named() -> None:
    """The project installs by package name; which index serves them is the machine's business."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    hosts = re.compile(r"pypi\.org|pythonhosted\.org|registry\.npmjs|deb\.debian|files\.pythonhosted")
    for name in listed:
        path = ROOT / name
        if path.is_file() and path != Path(__file__):
            assert not hosts.search(path.read_text(encoding="utf-8", errors="replace")), name


def test_top_level_is_what_the_card_says() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    top = {name.partition("/")[0] for name in listed}
    assert top <= {
        ".ci", ".gitignore", "CHANGELOG.md", "LICENSE", "README.md", "bench", "constraints.txt", "dev", "docs", "examples", "fuzz",
        "pyproject.toml", "swamp_orch", "swamp_proto", "swamp_worker", "tests",
    }  # fmt: skip
