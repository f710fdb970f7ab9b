"""What comes in from a holder, masked: lines in order and in number, however a long one was cut; records by their content and names."""

import json
from hashlib import sha256

import attrs
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from swamp_orch.engine.ingress import Ingress, MaskedLines
from swamp_proto.blocks import lines_of
from swamp_proto.capabilities import CallRefused
from swamp_proto.limits import LINE_MAX, LOG_WAITING_LINES_MAX
from swamp_proto.messages.capability import CallCode
from swamp_proto.messages.dispatch import Finished, LogBlock, Outcome, Output, Stream
from swamp_proto.redaction import MASKED, Mask

SECRETS = ("hunter2", 'p@ss "w/o" rd+ü', "first-line\nsecond-line")
MASK = Mask(SECRETS)  # it takes long to make one
SHORT_MAX = 40  # of a line, for lines that have to be split often
OUT, ERR = Stream.STDOUT, Stream.STDERR


def through(lines: list[LogBlock], mask: Mask) -> list[LogBlock]:
    masked = MaskedLines(mask, SHORT_MAX)
    found = [done for line in lines for done in lines_of(masked.take(line))]
    return found + masked.rest()


def cut(text: str) -> list[str]:
    """As a holder splits a long line: full pieces, a character never cut in two."""
    data, pieces = text.encode(), []
    while len(data) > SHORT_MAX:
        piece = data[:SHORT_MAX].decode(errors="ignore").encode()
        pieces.append(piece.decode())
        data = data[len(piece) :]
    return [*pieces, data.decode()]


FILLERS = st.sampled_from(["x" * 31, "ü" * 17, "y" * 75, "z", " ", "🐊" * 4])
PARTS = st.sampled_from([*SECRETS[:2], json.dumps(SECRETS[1])[1:-1], "hun", "ter2"])
LONG = st.lists(st.one_of(FILLERS, PARTS), max_size=6).map("".join)


@given(st.lists(st.tuples(st.sampled_from([OUT, ERR]), LONG), max_size=4))
@example([(OUT, "x" * 37 + "hunter2"), (ERR, "x" * 37 + "hunter2")])
@settings(deadline=None, max_examples=300)
def test_a_line_that_was_split_is_masked_as_a_whole(texts: list[tuple[Stream, str]]) -> None:
    # A last piece that is full by chance is taken for the beginning of more.
    assume(all(len(cut(text)[-1].encode()) < SHORT_MAX - 3 for _, text in texts))
    mask = MASK
    lines = [LogBlock(stream, piece) for stream, text in texts for piece in cut(text)]
    found = through(lines, mask)
    assert [line.stream for line in found] == [line.stream for line in lines]
    pieces = iter(found)
    for _, text in texts:
        count = len(cut(text))
        assert ("".join(next(pieces).text for _ in range(count))) == mask(text)
    assert not any(mask.finds(line.text) for line in found)


TEXTS = st.sampled_from(["xhunter2x", "hun", "ter2", "", "second-line", "a" * SHORT_MAX])


@given(st.lists(st.builds(LogBlock, st.sampled_from([OUT, ERR]), TEXTS), max_size=8))
@settings(deadline=None, max_examples=100)
def test_lines_keep_their_number_and_order(lines: list[LogBlock]) -> None:
    mask = MASK
    masked = MaskedLines(mask, SHORT_MAX)
    found: list[LogBlock] = []
    for number, line in enumerate(lines, 1):
        found += lines_of(masked.take(line))
        assert len(found) + len(masked) == number
    found += masked.rest()
    assert len(masked) == 0
    assert [line.stream for line in found] == [line.stream for line in lines]
    for stream in Stream:  # what a piece holds back comes with the next
        texts = [mask(line.text) for line in lines if line.stream is stream]
        assert "".join(line.text for line in found if line.stream is stream) == "".join(texts)


BLOCKS = st.lists(st.tuples(st.sampled_from([OUT, ERR]), st.lists(TEXTS, min_size=1, max_size=6)), max_size=6)


@given(BLOCKS)
@example([(OUT, ["hun", "a" * SHORT_MAX]), (OUT, ["hunter2", "", "xhunter2x"]), (ERR, ["hunter2"])])
@settings(deadline=None, max_examples=200)
def test_blocks_are_masked_as_their_lines_are(groups: list[tuple[Stream, list[str]]]) -> None:
    blocks = [LogBlock(stream, "\n".join(texts)) for stream, texts in groups]
    together, single = MaskedLines(MASK, SHORT_MAX), MaskedLines(MASK, SHORT_MAX)
    for block in blocks:
        found = list(lines_of(together.take(block)))
        assert found == [one for line in lines_of((block,)) for one in lines_of(single.take(line))]
        assert (len(together), together.caught) == (len(single), single.caught)
    assert together.rest() == single.rest()


def test_only_a_full_piece_waits_and_only_for_so_long() -> None:
    masked = MaskedLines(Mask(SECRETS))
    assert [line.text for line in masked.take(LogBlock(OUT, "hunter2"))] == [MASKED]
    assert not list(masked.take(LogBlock(OUT, "x" * LINE_MAX)))
    found: list[LogBlock] = []
    for number in range(LOG_WAITING_LINES_MAX):
        assert not found
        found += lines_of(masked.take(LogBlock(ERR, f"line {number} hunter2")))
    assert len(found) == LOG_WAITING_LINES_MAX + 1
    assert found[0].text == "x" * LINE_MAX
    assert found[-1].text == f"line {LOG_WAITING_LINES_MAX - 1} {MASKED}"
    assert not list(masked.take(LogBlock(OUT, "x" * LINE_MAX)))
    assert len(masked.rest()) == 1


def test_without_secrets_a_line_is_the_very_same_and_one_that_is_learnt_later_is_masked() -> None:
    ingress = Ingress()
    lines = ingress.lines()
    line, long = LogBlock(OUT, "says hunter2"), LogBlock(OUT, "x" * LINE_MAX)
    assert list(lines.take(line)) == [line] and next(iter(lines.take(line))) is line
    assert next(iter(lines.take(long))) is long
    ingress.learn(["hunter2"])
    assert [one.text for one in lines.take(line)] == ["says ***"]


# ── records and ends ────────────────────────────────────────────────────────────────────────────────────────
def end(*outputs: Output, outcome: Outcome = Outcome.SUCCEEDED, error: str | None = None) -> Finished:
    return Finished("d", 1, outcome, error, outputs, 0, 0, 0, 0, 0)


def text_of(content_type: str, content: bytes, kind: str = "file") -> bytes:
    made = Ingress(Mask(SECRETS)).content(Output.of("s", "n", kind, content_type, content))
    assert (made.sha256, made.size) == (sha256(made.content).hexdigest(), len(made.content))
    return made.content


def test_content_is_masked_by_its_type() -> None:
    assert text_of("text/plain; charset=utf-8", b"a hunter2 \xff") == b"a *** \xff"
    assert text_of("application/json", b'{"a\\n": "\\u0068unter2"}') == b'{"a\\n": "***"}'
    assert text_of("application/vnd.api+json", b'["hunter2"]') == b'["***"]'
    assert text_of("application/x-ndjson", b'{"a": "hunter2"}\n{"b": 1}\n') == b'{"a": "***"}\n{"b": 1}\n'
    assert text_of("application/x-yaml", b"a: hunter2") == b"a: ***"
    assert text_of("application/octet-stream", b"hunter2") == b"hunter2"
    assert text_of("image/png", b"hunter2") == b"hunter2"
    # What is no file is text, whatever it calls itself.
    assert text_of("application/octet-stream", b'"hunter2"', "resource") == b'"***"'
    assert text_of("text/markdown", b"# hunter2", "report") == b"# ***"
    assert text_of("application/octet-stream", b"# hunter2", "report") == b"# ***"


def test_content_without_a_secret_and_content_elsewhere_are_left_alone() -> None:
    ingress = Ingress(Mask(SECRETS))
    plain = Output.of("s", "n", "resource", "application/json", b'{"a": "\\u00e9"}')
    staged = attrs.evolve(plain, staged=2, content=b"")
    assert ingress.content(plain) is plain
    assert ingress.content(staged) is staged


@pytest.mark.parametrize("field", ["name", "spec", "content_type"])
def test_a_name_that_holds_a_secret_is_refused_without_saying_it(field: str) -> None:
    ingress = Ingress(Mask(SECRETS))
    output = attrs.evolve(Output.of("s", "n", "file", "text/plain", b""), **{field: "of-hunter2"})
    with pytest.raises(CallRefused) as refused:
        ingress.record(output)
    assert refused.value.call_code is CallCode.INVALID
    assert "hunter2" not in str(refused.value)
    assert Ingress().record(output) is output


def test_tags_are_masked() -> None:
    output = Output.of("s", "n", "file", "text/plain", b"", {"hunter2": "a hunter2", "b": "c"})
    assert Ingress(Mask(SECRETS)).record(output).tags == {"***": "a ***", "b": "c"}


def test_an_end_is_masked_and_a_success_with_a_refused_output_is_none() -> None:
    ingress = Ingress(Mask(SECRETS))
    bad, good = (Output.of("s", name, "file", "text/plain", b"") for name in ("hunter2", "n"))
    assert ingress.finished(end(good, error="no hunter2", outcome=Outcome.FAILED)).error == "no ***"
    refused = ingress.finished(end(bad, good))
    assert (refused.outcome, refused.outputs) == (Outcome.FAILED, (good,))
    assert refused.error is not None and "1 output(s)" in refused.error
    failed = ingress.finished(end(bad, outcome=Outcome.FAILED, error="why"))
    assert (failed.outcome, failed.error, failed.outputs) == (Outcome.FAILED, "why", ())
    untouched = end(bad)
    assert Ingress().finished(untouched) is untouched
