"""Blocks of lines: cut and joined as a list of lines would be, whatever is in them."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from swamp_proto import blocks
from swamp_proto.messages.dispatch import LogBlock, Stream

LINES = st.lists(st.text(alphabet="ab ü🐊", max_size=7), min_size=1, max_size=12)
BLOCKS = st.lists(st.builds(LogBlock, st.sampled_from(Stream), LINES.map("\n".join)), max_size=6).map(tuple)


@given(BLOCKS)
def test_the_lines_of_blocks_are_counted_and_joined_in_order(given_: tuple[LogBlock, ...]) -> None:
    lines = list(blocks.lines_of(given_))
    assert [text for block in given_ for text in block.text.split("\n")] == [line.text for line in lines]
    assert blocks.count_of(given_) == len(lines)
    joined = blocks.merged(lines)
    assert joined == blocks.merged(given_)
    assert list(blocks.lines_of(joined)) == lines
    assert all(one.stream is not other.stream for one, other in pairwise(joined))


@given(BLOCKS, st.integers(-3, 90))
def test_without_some_lines(given_: tuple[LogBlock, ...], count: int) -> None:
    left = list(blocks.lines_of(blocks.without(given_, count)))
    assert left == list(blocks.lines_of(given_))[max(0, count) :]


@given(LINES, st.integers(1, 14), st.integers(1, 60))
def test_what_fits_is_as_much_as_fits_and_a_line_at_least(lines: list[str], most: int, size: int) -> None:
    text = "\n".join(lines)
    cut = blocks.fitting(LogBlock(Stream.STDOUT, text), most, size)
    first = text if cut is None else text[:cut]
    if cut is not None:
        assert text[cut] == "\n"
    count = first.count("\n") + 1
    assert first.split("\n") == lines[:count]
    assert count <= most
    assert count == 1 or blocks.size_of(first) <= size
    if count < min(most, len(lines)):
        assert blocks.size_of("\n".join(lines[: count + 1])) > size


@given(LINES, st.integers(0, 9))
def test_whether_a_line_is_longer(lines: list[str], most: int) -> None:
    assert blocks.has_longer("\n".join(lines), "\n", most) == (max(map(len, lines)) > most)
    data = [line.encode() for line in lines]
    assert blocks.has_longer(b"\n".join(data), b"\n", most) == (max(map(len, data)) > most)
