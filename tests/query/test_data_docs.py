"""What docs/reference/data.md says is so: every predicate and select in it works, the fields are these, the
error reads like that."""

import re
from pathlib import Path

import pytest

from swamp_orch.query.environment import UnknownName
from swamp_orch.query.records import FIELDS
from swamp_orch.query.run import prepare, run
from swamp_orch.store.interface import Batch, NewRecord, json_content
from swamp_orch.store.memory import MemoryStore

TEXT = (Path(__file__).parents[2] / "docs" / "reference" / "data.md").read_text()


def block(kind: str) -> list[str]:
    found = re.search(rf"^```{kind}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1].splitlines()


@pytest.fixture(scope="module")
def store() -> MemoryStore:
    made = MemoryStore(lambda: 1_800_000_000_000)
    content = {"stdout": "hi", "exitCode": 1, "items": [{"price": 90}]}
    for model in ("remote-echo", "build"):
        record = NewRecord("command/shell", f"id-{model}", model, "result", "result", json_content(content))
        made.commit(Batch((record,)))
    return made


@pytest.mark.parametrize("predicate", block("cel"))
def test_every_predicate_works(store: MemoryStore, predicate: str) -> None:
    assert run(store, prepare(predicate)).skipped == 0


@pytest.mark.parametrize("select", block("cel select"))
def test_every_select_works(store: MemoryStore, select: str) -> None:
    answer = run(store, prepare('modelName == "remote-echo"', select))
    assert (len(answer.results), answer.skipped) == (1, 0)
    assert answer.results[0] is not None


def test_the_fields_are_these() -> None:
    rows = re.findall(r"^\| (`.*?) \| (?:text|integer|bool|any|map) \|", TEXT, re.MULTILINE)
    assert [name for row in rows for name in re.findall(r"`(\w+)`", row)] and {
        name for row in rows for name in re.findall(r"`(\w+)`", row)
    } == set(FIELDS)


def test_the_error_reads_like_that() -> None:
    with pytest.raises(UnknownName) as caught:
        prepare('modelNam == "x"')
    assert f"```\n{caught.value.message}\n```" in TEXT


def test_every_function_it_names_exists() -> None:
    section = TEXT.split("### The language")[1].split("### What is fast")[0]
    for expression in (
        *(
            f"'abc'.{name}('a')"
            for name in ("startsWith", "endsWith", "contains", "matches", "indexOf", "lastIndexOf", "split")
        ),
        *(f"'abc'.{name}()" for name in ("lowerAscii", "upperAscii", "trim", "reverse")),
        "'abc'.charAt(0) + 'abc'.replace('a', 'b') + 'abc'.substring(1) + ['a'].join(',') + '%d'.format([1])",
        "strings.quote('a') + regex.replace('a', 'a', 'b') + regex.extract('a', 'a').orValue('')",
        "[2, 1].sort() == [1] || [2, 1].sortBy(x, -x) == [1] || [1, 1].distinct() == [1]",
        "[[1]].flatten() == [1] || [1, 2].slice(0, 1) == [1] || [1].reverse() == [1] || lists.range(2) == [1]",
        "sets.contains([1], [1]) && sets.intersects([1], [1]) && sets.equivalent([1], [1])",
        "math.abs(-1) == 1 && base64.encode(b'a') == '' && base64.decode('YQ==') == b'a' && cel.bind(x, 1, x == 1)",
        "[1].exists_one(x, x == 1) && [1].all(x, x == 1) && [1].map(x, x) == [1]",
        "optional.of(1).hasValue()",
    ):
        prepare("true", expression)
        for name in re.findall(r"(?:\b\w+\.)?(\w+)\(", expression):
            assert name in section or name in ("abs",), name
