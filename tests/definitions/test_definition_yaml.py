"""Reading YAML with lines, and editing it in place."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swamp_orch.definitions.files import write_atomically
from swamp_orch.definitions.yaml_edit import dump, scalar, set_key
from swamp_orch.definitions.yaml_source import load, load_text, parse
from swamp_proto.errors import AlreadyExists, InvalidDefinition, NotFound

FILE = Path("m.yaml")

REFUSED = [
    ("", "m.yaml:1: the file is empty"),
    ("# only a comment\n", "m.yaml:1: the file is empty"),
    ("a: 1\nb: 2\na: 3\n", "m.yaml:3: duplicate key `a` (first in line 1)"),
    ("x: {a: 1, a: 2}\n", "m.yaml:1: duplicate key `a` (first in line 1)"),
    ("a: 1\nb: &x 2\n", "m.yaml:2: an anchor (`&x`) is not supported"),
    ("a: &x [1]\n", "m.yaml:1: an anchor (`&x`) is not supported"),
    ("a: 1\nb: *x\n", "m.yaml:2: an alias (`*x`) is not supported"),
    ("<<: {a: 1}\n", "m.yaml:1: a merge key (`<<`) is not supported"),
    ("a: !foo 1\n", "m.yaml:1: a tag (`!foo`) is not supported"),
    ("a: !!str 1\n", "m.yaml:1: a tag (`!!str`) is not supported"),
    ("a:\n\t- 1\n", "m.yaml:2: a tab character is used for indentation"),
    ("a:\n  b: 1\n\tc: 2\n", "m.yaml:3: a tab character is used for indentation"),
    ("a: 1\nb: c: d\n", "m.yaml:2: a `:` stands where no key can be"),
    ("a: 1\nb: [1, 2\nc: 3\n", "m.yaml:2: a bracket is never closed, or a comma is missing: `]`"),
    ("a: 1\nb: {x: 1\n", "m.yaml:2: a bracket is never closed, or a comma is missing: `}`"),
    ("a: 1\nb: 'x\nc: 2\n", "m.yaml:2: a quote is never closed"),
    ("a: 1\n---\nb: 2\n", "m.yaml:2: a second document starts here"),
    ("a: 1\nb: @x\n", "m.yaml:2: a value cannot start with `@`"),
    ("a:\n  - 1\n b: 2\n", "m.yaml:3: the indentation does not fit the lines above"),
    ("a: 1\nb\n", "m.yaml:2: a line without `key: value`"),
    ("a: 1\nb: \x01\n", "m.yaml:2: the character #x0001 is not allowed in YAML"),
    ("1: a\n", "m.yaml:1: the key 1 is not text"),
    ("a: 1\ntrue: b\n", "m.yaml:2: the key true is not text"),
    ("? [a]\n: 1\n", "m.yaml:1: a key must be text, not a list or a map"),
    ("a: .inf\n", "m.yaml:1: .inf is not a finite number"),
    ("a: 99999999999999999999\n", "m.yaml:1: the number is too large"),
    ("a: 1e999\n", "m.yaml:1: the number is too large"),
    ("a: " + "9" * 5000 + "\n", "m.yaml:1: the number is too large"),
    ("a: " + "[" * 100 + "]" * 100 + "\n", "m.yaml:1: nested deeper than 64 levels"),
    ("[" * 5000, "m.yaml:1: nested deeper than 64 levels"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_is_wrong_is_said_with_file_line_and_hint(text: str, message: str) -> None:
    with pytest.raises(InvalidDefinition) as caught:
        load_text(text, FILE)
    assert caught.value.message == message
    assert caught.value.hint


def test_values_keep_the_types_they_were_written_in() -> None:
    data, source = load_text(
        "a: true\nb: 'true'\nc: 1.10\nd: yes\ne: 2024-01-01\nf: ~\n"
        "g:\nh: 0x1F\ni: 0o17\nj: 1_000\nk: 12:30\nl: -1e3\n",
        FILE,
    )
    assert data == {
        "a": True, "b": "true", "c": 1.1, "d": "yes", "e": "2024-01-01", "f": None, "g": None, "h": 31,
        "i": 15,        "j": "1_000", "k": "12:30", "l": -1000.0,
    }  # fmt: skip
    assert source.texts[("c",)] == "1.10"
    assert ("b",) not in source.texts


def test_every_node_has_its_line() -> None:
    text = "# top\na: 1\njobs:\n  - name: x\n    steps:\n      - {name: s,\n         target: t}\n"
    _, source = load_text(text, FILE)
    assert source.lines[("jobs", 0, "name")] == 4
    assert source.at("jobs", 0, "steps", 0, "target") == "m.yaml:7"
    assert source.at("jobs", 0, "steps", 0, "nothing") == "m.yaml:6"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("a: 1\nb: grün\n".encode("latin-1"))
    with pytest.raises(InvalidDefinition) as caught:
        load(latin, root=tmp_path)
    assert caught.value.message == "latin.yaml:2: not UTF-8 text"
    folder = tmp_path / "folder.yaml"
    folder.mkdir()
    with pytest.raises(InvalidDefinition, match=r"^folder\.yaml: this is a folder"):
        load(folder, root=tmp_path)
    with pytest.raises(NotFound):
        load(tmp_path / "none.yaml", root=tmp_path)
    huge = tmp_path / "huge.yaml"
    huge.write_bytes(b"a: " + b"x" * (4 * 1024 * 1024))
    with pytest.raises(InvalidDefinition, match="larger than"):
        load(huge, root=tmp_path)
    marked = tmp_path / "bom.yaml"
    marked.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert load(marked)[0] == {"a": 1}


def test_a_changed_file_is_read_again_and_an_unchanged_one_is_not_parsed_again(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: 1\n")
    os.utime(path, ns=(1, 1))  # old content times; the inode's own time is now, so nothing is cached yet
    first, _ = load(path)
    path.write_text("a: 2\n")
    assert load(path)[0] == {"a": 2}
    write_atomically(path, "a: 3\n")
    assert load(path)[0] == {"a": 3}
    assert first == {"a": 1}


def test_of_two_creators_exactly_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "new.yaml"
    results: list[str] = []
    start = threading.Barrier(8)

    def create(number: int) -> None:
        start.wait(60)
        try:
            write_atomically(path, f"n: {number}\n", new=True)
            results.append(str(number))
        except AlreadyExists:
            results.append("refused")

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    winners = [item for item in results if item != "refused"]
    assert len(results) == 8
    assert len(winners) == 1
    assert path.read_text() == f"n: {winners[0]}\n"
    assert [item.name for item in tmp_path.iterdir()] == ["new.yaml"]


COMMENTED = """\
# a workflow of mine

name: x   # the name
tags: {a: '1'}  # flow

jobs:
    - name: build     # four blanks
      steps:
      -   name: one
          run: |
             line 1
             line 2
# the end
"""


@pytest.mark.parametrize(
    ("path", "value", "first", "gone", "came"),
    [
        (("id",), "abc", True, [], ["id: abc"]),
        (("version",), 2, False, [], ["version: 2"]),
        (("name",), "y", False, ["name: x   # the name"], ["name: y   # the name"]),
        (("name",), "a: b", False, ["name: x   # the name"], ['name: "a: b"   # the name']),
        (("jobs", 0, "weight"), 5, False, [], ["      weight: 5"]),
        (("jobs", 0, "steps", 0, "name"), "two", False, ["      -   name: one"], ["      -   name: two"]),
        (
            ("jobs", 0, "steps", 0, "id"),
            "s",
            True,
            ["      -   name: one"],
            ["      -   id: s", "          name: one"],
        ),
    ],
)
def test_an_edit_changes_its_own_line_only(
    path: tuple[str | int, ...], value: Any, first: bool, gone: list[str], came: list[str]
) -> None:
    edited = set_key(COMMENTED, path, value, first=first)
    before, after = COMMENTED.splitlines(), edited.splitlines()
    assert [line for line in before if line not in after] == gone
    assert [line for line in after if line not in before] == came


def test_an_edit_inside_a_flow_map_keeps_comments() -> None:
    edited = set_key(COMMENTED, ("tags", "b"), "2")
    for comment in ("# a workflow of mine", "# the name", "# flow", "# four blanks", "# the end"):
        assert comment in edited
    assert load_text(edited, FILE)[0]["tags"] == {"a": "1", "b": "2"}
    assert set_key('{"name": "x"}', ("id",), "1", first=True).strip() == '{id: \'1\', "name": "x"}'


def test_a_missing_line_end_and_windows_line_ends_survive() -> None:
    assert set_key("a: 1", ("b",), 2) == "a: 1\nb: 2\n"
    edited = set_key("a: 1\r\nc: 3\r\n", ("b",), 2)
    assert load_text(edited, FILE)[0] == {"a": 1, "c": 3, "b": 2}


_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
)
_texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20) | st.sampled_from(
    [
        "true",
        "1.10",
        "~",
        "",
        "- a",
        "a: b",
        "a #b",
        "'",
        '"',
        "x\ny\n",
        " lead",
        "&a",
        "${{ x }}",
        "2024-01-01",
        "a\n\nb",
        "\t",
        "…",
    ]
)
_values = st.recursive(
    _scalars | _texts,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(_texts.filter(lambda t: t != "<<"), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=120, deadline=None)
@given(st.dictionaries(st.sampled_from(["a", "name", "x-y", "true", "k 1"]), _values, min_size=1, max_size=4))
def test_what_is_written_is_read_back(document: dict[str, Any]) -> None:
    assert json.dumps(parse(dump(document), FILE).data) == json.dumps(document)


@settings(max_examples=150, deadline=None)
@given(_scalars | _texts)
def test_a_scalar_is_read_back(value: Any) -> None:
    assert json.dumps(parse(f"a: {scalar(value)}\n", FILE).data) == json.dumps({"a": value})


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["a", "b", "c"]), _values, min_size=1, max_size=3),
    st.sampled_from(["a", "b", "c", "d"]),
    _scalars | _texts,
    st.booleans(),
)
def test_an_edit_does_what_it_says(document: dict[str, Any], key: str, value: Any, first: bool) -> None:
    edited = parse(set_key(dump(document), (key,), value, first=first), FILE).data
    assert json.dumps(edited[key]) == json.dumps(value)
    assert json.dumps({k: v for k, v in edited.items() if k != key}) == json.dumps(
        {k: v for k, v in document.items() if k != key}
    )
    assert not (first and key not in document) or next(iter(edited)) == key


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("ab:-[]{}#&*!|>'\"%@` \n\t,?0.~<"), max_size=30))
def test_no_text_makes_the_reader_fail_in_another_way(text: str) -> None:
    try:
        load_text(text, FILE)
    except InvalidDefinition as error:
        assert error.message.startswith("m.yaml:")
        assert error.hint
