"""Counting and cutting blocks of log lines, without making an object of every line.

A block's text is one or more whole lines with a line feed between two of them: `"a"` is one line, `""` is one empty line, `"a\\n"` is
two, the second of them empty. Rules that hold here:

- What is cut is joined again to the very same lines, in the same order, with the same streams.
- The cost of a call is that of looking through its text once, whatever the number of lines.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from swamp_proto.messages.dispatch import LogBlock

_Text = TypeVar("_Text", str, bytes)


def count_of(blocks: Iterable[LogBlock]) -> int:
    """How many lines."""
    return sum(block.count for block in blocks)


def lines_of(blocks: Iterable[LogBlock]) -> Iterator[LogBlock]:
    """The same lines, each a block of its own: for where one must be looked at by itself."""
    for block in blocks:
        for text in block.text.split("\n"):
            yield LogBlock(block.stream, text)


def size_of(text: str) -> int:
    """Bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def without(blocks: Sequence[LogBlock], count: int) -> tuple[LogBlock, ...]:
    """The same without their first `count` lines."""
    if count <= 0:
        return tuple(blocks)
    for index, block in enumerate(blocks):
        if count < block.count:
            rest = block.text[end_of(block.text, count) + 1 :]
            return (LogBlock(block.stream, rest), *blocks[index + 1 :])
        count -= block.count
    return ()


def end_of(text: str, count: int) -> int:
    """Where line `count` (from 1) of a text ends, which has more lines than that."""
    at = -1
    for _ in range(count):
        at = text.index("\n", at + 1)
    return at


def fitting(block: LogBlock, lines_max: int, size_max: int) -> int | None:
    """Where to cut the text of a block so that its first part has at most `lines_max` lines of at most `size_max` bytes together, but
    one line in any case: the index of a line feed. None when it fits as it is."""
    text = block.text
    cut: int | None = None
    if not text.isascii():
        if len(text) * 4 > size_max and len(data := text.encode("utf-8", "replace")) > size_max:
            cut = len(data[:size_max].decode("utf-8", "ignore"))
    elif len(text) > size_max:
        cut = size_max
    if cut is not None:
        end = text.rfind("\n", 0, cut + 1)
        if end < 0:
            end = text.find("\n")
        cut = end if end >= 0 else None
    if block.count > lines_max and text.count("\n", 0, cut) >= lines_max:
        return end_of(text, lines_max)
    return cut


def has_longer(text: _Text, newline: _Text, most: int) -> bool:
    """Whether one of its lines has more than `most` characters (or bytes)."""
    at, size = 0, len(text)
    while size - at > most:
        end = text.rfind(newline, at, at + most + 1)
        if end < 0:
            return True
        at = end + 1
    return False


def merged(blocks: Iterable[LogBlock]) -> tuple[LogBlock, ...]:
    """The same lines in as few blocks as there can be."""
    found: list[LogBlock] = []
    texts: list[str] = []
    for block in blocks:
        if found and found[-1].stream is block.stream:
            texts.append(block.text)
            continue
        if len(texts) > 1:
            found[-1] = LogBlock(found[-1].stream, "\n".join(texts))
        found.append(block)
        texts = [block.text]
    if len(texts) > 1:
        found[-1] = LogBlock(found[-1].stream, "\n".join(texts))
    return tuple(found)
