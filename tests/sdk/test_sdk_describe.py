"""What a folder of extension code declares, asked of a real process; and what is said of code that is wrong."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from swamp_worker.models.interface import MethodSpec

GOOD = '''
import attrs
from swamp_worker.sdk import Context, Findings, PlainContext, about, check, file, method, model, report, resource


@attrs.frozen
class Host:
    name: str
    up: bool


@attrs.frozen
class Probe:
    hosts: list[str] = attrs.field(metadata=about("What to look at", minItems=1))


@attrs.frozen
class Settings:
    region: str = "here"


@model("@example/inventory", version="2026.02.09.1", arguments=Settings, reads=["network"], secrets=["ops/token"])
class Inventory:
    """Hosts, and whether
    they answer.

    More is not shown.
    """

    host = resource(Host, "One host", lifetime="30d", keep=5)
    raw = resource({"type": "object"}, name="raw-answer")
    listing = file("text/csv", "Every host")

    @check(labels=["network"], applies_to=["probe"])
    def reachable(self, context: PlainContext[Settings]) -> None:
        """The network is there."""

    @method(returns=host)
    async def probe(self, context: Context[Settings], arguments: Probe) -> Host:
        """Look at every host."""
        return Host("a", True)

    @method(mutates=False)
    def look(self, context: PlainContext[Settings]) -> None:
        pass

    @report(labels=["people"])
    def summary(self, context: PlainContext[Settings], findings: Findings) -> str:
        """What was found."""
        return "# Found"
'''


def described(folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "swamp_worker.execution.runner.describe", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"types", "problems"}
    return found  # type: ignore[no-any-return]


def test_a_type_says_everything_about_itself(tmp_path: Path) -> None:
    (tmp_path / "inventory.py").write_text(GOOD)
    found = described(tmp_path)
    assert found["problems"] == []
    (kind,) = found["types"]
    assert kind["name"] == "@example/inventory"
    assert kind["entry"] == "inventory.py:Inventory"
    assert kind["description"] == "Hosts, and whether they answer."
    assert (kind["reads"], kind["secrets"]) == (["network"], ["ops/token"])
    assert kind["global_arguments"]["properties"] == {"region": {"type": "string", "default": "here"}}
    assert MethodSpec(**kind["methods"]["probe"]) == MethodSpec(
        "probe",
        "Look at every host.",
        {
            "type": "object",
            "properties": {
                "hosts": {
                    "type": "array",
                    "items": {"type": "string"},
                    "description": "What to look at",
                    "minItems": 1,
                }
            },
            "required": ["hosts"],
            "additionalProperties": False,
        },
        True,
        "host",
    )
    assert kind["methods"]["look"]["mutates"] is False
    assert {name: each["kind"] for name, each in kind["outputs"].items()} == {
        "host": "resource",
        "raw-answer": "resource",
        "listing": "file",
    }
    assert (kind["outputs"]["host"]["lifetime"], kind["outputs"]["host"]["keep"]) == ("30d", 5)
    assert kind["checks"]["reachable"] == {
        "name": "reachable",
        "description": "The network is there.",
        "labels": ["network"],
        "applies_to": ["probe"],
    }
    assert kind["reports"]["summary"]["labels"] == ["people"]


def test_a_folder_with_an_init_file_is_a_package(tmp_path: Path) -> None:
    (tmp_path / "shapes.py").write_text("import attrs\n\n@attrs.frozen\nclass Mark:\n    n: int\n")
    (tmp_path / "__init__.py").write_text(
        "from swamp_worker.sdk import PlainContext, method, model, resource\n"
        "from .shapes import Mark\n\n"
        '@model("@example/marks", version="2026.02.09.1")\n'
        "class Marks:\n"
        '    """Marks."""\n'
        '    mark = resource(Mark, "one")\n'
        "    @method\n"
        "    def go(self, context: PlainContext[None]) -> None:\n"
        "        pass\n"
    )
    found = described(tmp_path)
    assert found["problems"] == []
    assert [one["entry"] for one in found["types"]] == ["__init__.py:Marks"]


def test_a_package_imports_its_own_modules(tmp_path: Path) -> None:
    package = tmp_path / "park"
    package.mkdir()
    (package / "shapes.py").write_text("import attrs\n@attrs.frozen\nclass A:\n    x: int\n")
    (package / "kinds.py").write_text(
        "from park.shapes import A\nfrom swamp_worker.sdk import method, model\n"
        "@model('a/b', version='2026.1.1')\nclass K:\n    @method\n    def go(self, context, arguments: A): ...\n"
    )
    (package / "test_kinds.py").write_text("import nobody_has_this\n")
    found = described(tmp_path)
    assert found["problems"] == []
    assert [each["entry"] for each in found["types"]] == ["park/kinds.py:K"]


HEAD = "from swamp_worker.sdk import *\nimport attrs\n@attrs.frozen\nclass A:\n    x: int\n"
TYPE = "@model('a/b', version='2026.1.1')\nclass K:\n"


@pytest.mark.parametrize(
    ("code", "line", "said"),
    [
        ("import nobody_has_this", 1, "ModuleNotFoundError: No module named 'nobody_has_this'"),
        ("x = 1\ndef (", 2, "SyntaxError"),
        ("\nraise ValueError('no')", 2, "ValueError: no"),
        ("import sys\nprint('{}')\nsys.exit(3)", 3, "the module ends the program (3)"),
        (HEAD + TYPE + "    pass", 6, "K has no method"),
        (HEAD + TYPE + "    @method\n    def go(self, context, arguments): ...", 8, "say the attrs class"),
        (
            HEAD + TYPE + "    @method\n    def go(self, context, arguments: int): ...",
            8,
            "say the attrs class",
        ),
        (HEAD + TYPE + "    @method\n    def go(self): ...", 8, "takes (self, context, arguments)"),
        (HEAD + TYPE + "    @method\n    def go(self, context): yield", 8, "it does not yield"),
        (HEAD + TYPE + "    one = resource({'type': 'thing'})", 8, "no JSON type is called"),
        (HEAD + TYPE + "    one = resource({'oneOf': []})", 8, "'oneOf' is not understood"),
        (HEAD + TYPE + "    one = resource(int)", 8, "int is no attrs class"),
        (HEAD + TYPE + "    one = resource(A, lifetime='soon')", 8, "'soon'"),
        (HEAD + TYPE + "    one = file('csv')", 8, "no type of content"),
        (
            HEAD + "@model('b', version='2026.1.1')\nclass K:\n    @method\n    def go(self, c): ...",
            6,
            "no name of a type",
        ),
        (
            HEAD + "@model('a/b', version='1.0')\nclass K:\n    @method\n    def go(self, c): ...",
            6,
            "no version",
        ),
        (
            HEAD
            + "@model('a/b', version='2026.1.1', secrets=['x'])\nclass K:\n    @method\n    def go(self, c): ...",
            6,
            "no secret",
        ),
        (
            HEAD
            + TYPE
            + "    @method\n    def go(self, c): ...\n"
            + TYPE
            + "    @method\n    def go(self, c): ...",
            10,
            "",
        ),
        (
            HEAD
            + TYPE
            + "    @method\n    def go(self, c): ...\n"
            + TYPE.replace("K", "L")
            + "    @method\n    def go(self, c): ...",
            10,
            "'a/b' is declared twice, also in wrong.py:6",
        ),
    ],
)
def test_a_mistake_has_a_file_a_line_and_a_sentence(tmp_path: Path, code: str, line: int, said: str) -> None:
    (tmp_path / "wrong.py").write_text(code + "\n")
    found = described(tmp_path)
    if not said:  # the second class of the same name replaced the first: Python's own rule, and one type
        assert [each["entry"] for each in found["types"]] == ["wrong.py:K"]
        return
    (problem,) = found["problems"]
    assert (problem["file"], problem["line"]) == ("wrong.py", line)
    assert said in problem["error"]


def test_one_broken_file_does_not_hide_the_others(tmp_path: Path) -> None:
    (tmp_path / "inventory.py").write_text(GOOD)
    (tmp_path / "broken.py").write_text("import nobody_has_this\n")
    found = described(tmp_path)
    assert [each["name"] for each in found["types"]] == ["@example/inventory"]
    assert [each["file"] for each in found["problems"]] == ["broken.py"]


@pytest.mark.parametrize("name", ["json", "trio", "http"])
def test_a_module_that_would_hide_another_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.py").write_text(GOOD)
    (problem,) = described(tmp_path)["problems"]
    assert f"a module named '{name}' is there already" in problem["error"]


def test_printing_does_not_mix_with_the_document(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text("import os, sys\nprint('loud')\nos.write(1, b'louder')\n")
    assert described(tmp_path) == {"types": [], "problems": []}
