"""A run's feed: an event for every line, kept as blocks, bounded in number and size, told in pieces."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swamp_orch.engine import feed as feed_module
from swamp_orch.engine.feed import RunFeed
from swamp_proto.messages.dispatch import LogBlock, Stream

WHERE = {"job": "j", "step": "s"}


def out(text: str) -> LogBlock:
    return LogBlock(Stream.STDOUT, text)


def read(feed: RunFeed, seq: int = 0) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while seq < feed.last:
        data, seq = feed.after(seq)
        found += map(json.loads, data.splitlines())
    return found


EMITTED = st.lists(
    st.one_of(
        st.just(None), st.tuples(st.integers(1, 90), st.lists(st.text(max_size=5), min_size=1, max_size=9))
    ),
    max_size=12,
)


@given(EMITTED, st.integers(0, 20), st.integers(1, 7))
def test_blocks_are_told_line_by_line(
    emitted: list[tuple[int, list[str]] | None], after: int, at_once: int
) -> None:
    feed, expected = RunFeed(lambda: 5), []
    for one in emitted:
        if one is None:
            feed.emit("job_started", job="j")
            expected.append({"kind": "job_started", "job": "j"})
            continue
        first, texts = one[0], "\n".join(one[1]).split("\n")
        feed.emit_output(first, out("\n".join(texts)), "b │ ", "child", **WHERE)
        expected += [
            {
                "kind": "step_output",
                **WHERE,
                "stream": "stdout",
                "line": f"b │ {text}",
                "n": n,
                "run": "child",
            }
            for n, text in enumerate(texts, first)
        ]
    expected = [{"seq": seq, "at": 5, **event} for seq, event in enumerate(expected, 1)]
    kept, feed_module.EVENTS_AT_ONCE = feed_module.EVENTS_AT_ONCE, at_once  # type: ignore[misc]
    try:
        assert read(feed) == expected
        assert read(feed, after) == expected[after:]
        assert all(data.count(b"\n") <= at_once for data, _ in [feed.after(0), feed.after(after)])
    finally:
        feed_module.EVENTS_AT_ONCE = kept  # type: ignore[misc]


def test_an_event_of_a_line_looks_as_it_always_did() -> None:
    feed = RunFeed(lambda: 7)
    feed.emit_output(3, out('says "ü"'), **WHERE)
    assert feed.after(0)[0].decode() == (
        '{"seq":1,"at":7,"kind":"step_output","job":"j","step":"s","stream":"stdout","line":"says \\"ü\\"","n":3}\n'
    )


def test_what_is_kept_is_bounded_and_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "EVENT_BUFFER_MAX", 100)
    feed = RunFeed(lambda: 0)
    for number in range(50):
        feed.emit_output(number * 10 + 1, out("\n".join("x" * 10)), **WHERE)
    missed, *kept = read(feed)
    assert [event["n"] for event in kept] == list(range(401, 501))
    assert (missed["kind"], missed["seq"], missed["message"]) == ("warning", 400, "400 events were not kept")
    assert read(feed, 450) == kept[50:]


def test_what_is_kept_is_bounded_in_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "EVENT_BUFFER_BYTES", 1_000)
    feed = RunFeed(lambda: 0)
    for number in range(1, 51):
        feed.emit_output(number, out("x" * 400), **WHERE)
    assert [event["n"] for event in read(feed)[1:]] == [49, 50]
    feed.emit_output(51, out("x" * 5_000), **WHERE)
    assert [event["n"] for event in read(feed)[1:]] == [51]
