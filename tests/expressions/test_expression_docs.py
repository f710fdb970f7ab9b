"""docs/reference/expressions.md says what happens."""

import json
import re
from pathlib import Path

import pytest

from swamp_orch.expressions.evaluate import evaluate
from swamp_orch.expressions.scope import FUNCTIONS, VARIABLES, Scope
from swamp_orch.expressions.shell import evaluate_shell
from swamp_orch.expressions.template import NAMESPACES, ExpressionError, parse

PAGE = (Path(__file__).parents[2] / "docs/reference/expressions.md").read_text()
SCOPE = Scope(
    values={"inputs": {"name": "Ada", "n": 3, "tags": {"team": "red"}, "list": [1, 2], "x": "VALUE"}}
)
CELL = re.compile(r"``(.+?) ?``|`(.+?)`(?= \|)|(error)(?= \|)")


def rows(header: str) -> list[tuple[str, ...]]:
    table = PAGE[PAGE.index(header) :].split("\n\n")[0].splitlines()[2:]
    assert table
    return [tuple(next(filter(None, cell)) for cell in CELL.findall(line)) for line in table]


@pytest.mark.parametrize("row", rows("| text | value |"), ids=lambda row: row[0])
def test_examples(row: tuple[str, str]) -> None:
    text, value = row
    assert evaluate(parse(text), SCOPE) == json.loads(value)


@pytest.mark.parametrize("row", rows("| the expression stands |"), ids=lambda row: row[-2])
def test_the_table_of_quoting(row: tuple[str, ...]) -> None:
    text, script = row[-2].replace("⏎", "\n"), row[-1]
    if script == "error":
        with pytest.raises(ExpressionError):
            evaluate_shell(parse(text), SCOPE)
    else:
        assert evaluate_shell(parse(text), SCOPE).script == script


def test_every_name_is_documented() -> None:
    names = PAGE[PAGE.index("| name | what it is |") :].split("\n\n")[0]
    for function in FUNCTIONS:
        assert f"`{function.name}(" in names
    for name in (*VARIABLES, *NAMESPACES):
        assert re.search(rf"`{name}\b", names)
