"""`examples/inventory` is what its guide shows, describes itself without a problem, and passes its own test."""

import subprocess
import sys
from pathlib import Path

import pytest

from swamp_worker.execution.runner.describe import describe

PROJECT = Path(__file__).parents[2]
EXAMPLE = PROJECT / "examples" / "inventory"


@pytest.mark.parametrize(
    "path",
    sorted(path for path in EXAMPLE.rglob("*.*") if path.is_file() and path.suffix in (".py", ".yaml")),
    ids=lambda path: path.name,
)
def test_the_guide_shows_the_file(path: Path) -> None:
    page = (PROJECT / "docs" / "guides" / "python-model.md").read_text()
    assert path.read_text().rstrip() in page


def test_its_own_test_passes() -> None:
    code = (
        "import test_inventory as t\nfor name in dir(t):\n    if name.startswith('test_'): getattr(t, name)()"
    )
    folder = EXAMPLE / "extensions" / "models"
    found = subprocess.run(
        [sys.executable, "-B", "-c", f"import sys; sys.path.insert(0, {str(folder)!r})\n{code}"],
        capture_output=True, text=True, timeout=60, check=False, cwd=PROJECT,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr


def test_it_describes_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    found = describe(EXAMPLE / "extensions" / "models")
    sys.modules.pop("inventory")
    assert found["problems"] == []
    assert [each["name"] for each in found["types"]] == ["@example/inventory"]
