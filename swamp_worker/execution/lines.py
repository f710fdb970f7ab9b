"""Bytes of one pipe to lines of text.

A line ends at a newline byte, at `LINE_MAX` bytes (it is then split, never dropped), or at the end of the
stream: the last partial line is kept. Bytes that are not UTF-8 become U+FFFD; a character is never cut in
two by a split or by the border of two reads. Nothing else is changed: a carriage return stays. Memory is
bounded by `LINE_MAX` and one read.

Lines are not made into objects here: an answer is the text of all lines that are complete now, a line feed between
two of them (`swamp_proto.blocks`). What is done, is done to that text at once; only where a line is too long is
each looked at by itself.

Masking happens here because only here it is known whether a secret may go on in the next piece of the same
line.
"""

from swamp_proto.blocks import has_longer
from swamp_proto.limits import LINE_MAX
from swamp_proto.redaction import LineMask, Mask


class LineSplitter:
    """`feed` bytes, get complete lines; `flush` at the end. None: no line is complete."""

    def __init__(self, mask: Mask) -> None:
        self._rest = b""  # of a line whose end has not come
        self._mask = mask
        self._long: LineMask | None = None  # set while a line longer than LINE_MAX is being split

    def feed(self, data: bytes) -> str | None:
        """Lines that are complete now."""
        end = data.rfind(b"\n")
        if end < 0:
            self._rest += data
            return _joined(self._overflow())
        whole = self._rest + data[:end]
        self._rest = data[end + 1 :]
        if self._long is None and not has_longer(whole, b"\n", LINE_MAX):
            text = self._short(whole)
            if len(self._rest) <= LINE_MAX:
                return text
            return _joined([text, *self._overflow()])
        lines: list[str] = []
        if self._long is not None:
            head, newline, whole = whole.partition(b"\n")
            lines = self._end_long(head)
            if not newline:
                return _joined(lines + self._overflow())
        for line in whole.split(b"\n"):
            if len(line) <= LINE_MAX:
                lines.append(self._short(line))
            else:
                self._rest, kept = line, self._rest
                lines += self._overflow()
                lines += self._end_long(self._rest)
                self._rest = kept
        return _joined(lines + self._overflow())

    def flush(self) -> str | None:
        """What is left at the end of the stream."""
        rest, self._rest = self._rest, b""
        if self._long is not None:
            return _joined(self._end_long(rest))
        return self._short(rest) if rest else None

    def _short(self, lines: bytes) -> str:
        """Whole lines none of which is too long."""
        text = self._mask(lines.decode("utf-8", "replace"))
        # What stands for bytes that are not UTF-8 is longer than they were. Masking lengthens nothing.
        return "\n".join(_bounded(text.split("\n"))) if _may_be_longer(text) else text

    def _overflow(self) -> list[str]:
        """Pieces of a line that is already too long, leaving less than LINE_MAX bytes of it."""
        lines: list[str] = []
        while len(self._rest) > LINE_MAX:
            cut = _character_border(self._rest, LINE_MAX)
            piece, self._rest = self._rest[:cut], self._rest[cut:]
            if self._long is None:
                self._long = self._mask.for_line()
            text = self._long.feed(piece.decode("utf-8", "replace"))
            if text:
                lines.append(text)
        return _bounded(lines)

    def _end_long(self, rest: bytes) -> list[str]:
        assert self._long is not None
        text = self._long.feed(rest.decode("utf-8", "replace")) + self._long.flush()
        self._long = None
        return _bounded([text]) if text else []


def _joined(lines: list[str]) -> str | None:
    return "\n".join(lines) if lines else None


def _may_be_longer(text: str) -> bool:
    return not text.isascii() and has_longer(text, "\n", LINE_MAX // 4) and "\ufffd" in text


def _character_border(data: bytes, at: int) -> int:
    """The last place not after `at` where a character starts."""
    for back in range(min(4, at)):
        if data[at - back] & 0xC0 != 0x80:
            return at - back
    return at


def _bounded(lines: list[str]) -> list[str]:
    """The same lines, none longer than LINE_MAX as UTF-8 (replacement can lengthen them)."""
    if all(len(line) * 4 <= LINE_MAX or len(line.encode()) <= LINE_MAX for line in lines):
        return lines
    found: list[str] = []
    for line in lines:
        while len(line) * 4 > LINE_MAX and len(line.encode()) > LINE_MAX:
            cut = len(line.encode()[: LINE_MAX + 1][: _character_border(line.encode(), LINE_MAX)].decode())
            found.append(line[:cut])
            line = line[cut:]
        found.append(line)
    return found
