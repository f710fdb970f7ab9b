"""The input syntax: every row of its table, and what hypothesis finds."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swamp_orch.cli.durations import lifetime_ms, seconds
from swamp_orch.cli.inputs import assignments, batches, merged, tags
from swamp_proto.errors import UsageError

Run = Any


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        (["k=v"], {"k": "v"}),
        (["k=a=b"], {"k": "a=b"}),
        (["k="], {"k": ""}),
        (["a.b.c=v", "a.d=w"], {"a": {"b": {"c": "v"}, "d": "w"}}),
        (["k:json=[1,2]"], {"k": [1, 2]}),
        (["a.k:json=null"], {"a": {"k": None}}),
        (['{"a": {"b": 1}}', "a.c=2"], {"a": {"b": 1, "c": "2"}}),
        (["k=\\@x"], {"k": "@x"}),
        (["k=@scope/name"], {"k": "@scope/name"}),
        (["k=1", "k=2"], {"k": "2"}),
        (["a=1", "a.b=2"], {"a": {"b": "2"}}),
        (["k=${{ vault.get('v', 'k') }}"], {"k": "${{ vault.get('v', 'k') }}"}),
    ],
)
def test_assignments(typed: list[str], found: dict[str, Any]) -> None:
    assert assignments(typed) == found


@pytest.mark.parametrize(
    "typed", ["k", "=v", ".a=v", "a..b=v", "k:json={", "{not json}", "k=@/nowhere/file", ":json=1"]
)
def test_wrong_assignments_are_usage_errors(typed: str) -> None:
    with pytest.raises(UsageError):
        assignments([typed])


def test_a_list_is_not_a_whole_object(tmp_path: Path) -> None:
    assert assignments(["a:json=[1]"]) == {"a": [1]}
    with pytest.raises(UsageError, match="key=value"):
        assignments(["[1]"])


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x").write_text("text\n")
    assert assignments([f"k=@{tmp_path}/x", "h=@~/x"]) == {"k": "text\n", "h": "text\n"}
    (tmp_path / "j").write_text("[1]")
    assert assignments([f"k:json=@{tmp_path}/j"]) == {"k": [1]}
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        assignments([f"k=@{tmp_path}/binary"])


def test_input_file_and_typed_inputs_merge_deeply(tmp_path: Path) -> None:
    file = tmp_path / "in.yaml"
    file.write_text("server:\n  host: a\n  port: 1\nwhen: 2026-01-02\n")
    assert batches(["server.host=b"], str(file), False) == [
        {"server": {"host": "b", "port": 1}, "when": "2026-01-02"}
    ]
    file.write_text("")
    assert batches([], str(file), False) == [{}]
    file.write_text("a: [\n")
    with pytest.raises(UsageError, match=r"in\.yaml:"):
        batches([], str(file), False)
    file.write_text("- 1\n")
    with pytest.raises(UsageError, match="must be a mapping"):
        batches([], str(file), False)
    file.write_text("1: a\n")
    with pytest.raises(UsageError, match="keys must be text"):
        batches([], str(file), False)
    with pytest.raises(UsageError, match="cannot be combined"):
        batches([], str(file), True)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"a": 1}', [{"a": 1, "k": "v"}]),
        ('[{"a": 1}, {"a": 2}]', [{"a": 1, "k": "v"}, {"a": 2, "k": "v"}]),
        ('{"a": 1}\n{"a": 2}\n', [{"a": 1, "k": "v"}, {"a": 2, "k": "v"}]),
        ("a: 1\nb: x\n", [{"a": 1, "b": "x", "k": "v"}]),
        ("[]", []),
    ],
)
def test_stdin(swamp: Run, text: str, found: list[dict[str, Any]]) -> None:
    started: list[dict[str, Any]] = []

    def start(parameters: dict[str, Any]) -> dict[str, Any]:
        started.append(parameters["inputs"])
        return {"runId": "r"}

    events = {"r": [{"kind": "run_ended", "status": "succeeded"}]}
    ended = swamp(
        "workflow",
        "run",
        "w",
        "--stdin",
        "--input",
        "k=v",
        stdin=text,
        answers={"workflow.run": start},
        events=events,
    )
    assert ended.code == 0 and started == found


@pytest.mark.parametrize("text", ["3", '[{"a": 1}, 2]', '"x"', "- 1\n- 2\n"])
def test_stdin_that_is_not_inputs(swamp: Run, text: str) -> None:
    ended = swamp("workflow", "run", "w", "--stdin", stdin=text, answers={})
    assert ended.code == 2 and ended.session.calls == []


def test_a_batch_stops_at_the_first_failure(swamp: Run) -> None:
    events = {"r": [{"kind": "run_ended", "status": "failed", "error": "no"}]}
    text = '[{"a": 1}, {"a": 2}]'
    ended = swamp(
        "workflow", "run", "w", "--stdin", stdin=text, answers={"workflow.run": {"runId": "r"}}, events=events
    )
    assert ended.code == 1
    assert [name for name, _ in ended.session.calls] == ["workflow.run", "run.attach"]


def test_tags() -> None:
    assert tags(["a=b", "c=d=e"]) == {"a": "b", "c": "d=e"}
    with pytest.raises(UsageError):
        tags(["a"])


_KEY = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,6}", fullmatch=True)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEY, inner, max_size=3),
    max_leaves=8,
)


@given(path=st.lists(_KEY, min_size=1, max_size=4), value=st.text(max_size=20))
def test_any_text_arrives_as_it_was_typed(path: list[str], value: str) -> None:
    typed = f"\\{value}" if value.startswith("@") else value
    if typed.startswith("\\@") and not value.startswith("@"):
        return  # `\@` is the escape itself
    found: Any = assignments([".".join(path) + "=" + typed])
    for part in path:
        found = found[part]
    assert found == value


@given(path=st.lists(_KEY, min_size=1, max_size=4), value=_JSON)
def test_any_json_arrives_as_it_was_typed(path: list[str], value: Any) -> None:
    found: Any = assignments([".".join(path) + ":json=" + json.dumps(value)])
    for part in path:
        found = found[part]
    assert found == value


@given(st.dictionaries(_KEY, _JSON, max_size=4), st.dictionaries(_KEY, _JSON, max_size=4))
def test_merging_keeps_what_is_typed_last(below: dict[str, Any], above: dict[str, Any]) -> None:
    found = merged(below, above)
    assert set(found) == set(below) | set(above)
    assert merged(found, above) == found
    assert merged({}, above) == above and merged(below, {}) == below


@given(st.text(max_size=30))
def test_nothing_typed_is_a_defect(entry: str) -> None:
    try:
        assignments([entry])
    except UsageError:
        return


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("30m", 1_800_000),
        ("1h", 3_600_000),
        ("7d", 604_800_000),
        ("1w", 604_800_000),
        ("1mo", 2_592_000_000),
        ("5s", 5000),
    ],
)
def test_lifetimes(text: str, found: int) -> None:
    assert lifetime_ms(text) == found


@pytest.mark.parametrize("text", ["", "1", "h", "-1h", "1.5h", "1h30m", "1H", "0d", "99999y", "１h"])
def test_wrong_lifetimes(text: str) -> None:
    with pytest.raises(UsageError):
        lifetime_ms(text)


@pytest.mark.parametrize(
    ("text", "found"), [("400ms", 0.4), ("30s", 30.0), ("2.5", 2.5), ("1h30m", 5400.0), ("1w", 604_800.0)]
)
def test_timeouts_are_typed_as_in_definitions(text: str, found: float) -> None:
    assert seconds(text, "--timeout") == pytest.approx(found)


@given(st.text(max_size=12))
def test_timeouts_are_positive_or_refused(text: str) -> None:
    try:
        found = seconds(text, "--timeout")
    except UsageError:
        return
    assert found > 0 and math.isfinite(found)
