"""The line splitter that looks at each line by itself: slow, plain, and the measure for the one that does not."""

from swamp_proto.limits import LINE_MAX
from swamp_proto.redaction import LineMask, Mask


class LineSplitter:
    """`feed` bytes, get complete lines; `flush` at the end."""

    def __init__(self, mask: Mask) -> None:
        self._rest = b""  # of a line whose end has not come
        self._mask = mask
        self._long: LineMask | None = None  # set while a line longer than LINE_MAX is being split

    def feed(self, data: bytes) -> list[str]:
        """Lines that are complete now."""
        end = data.rfind(b"\n")
        if end < 0:
            self._rest += data
            return self._overflow()
        whole = self._rest + data[:end]
        self._rest = data[end + 1 :]
        lines: list[str] = []
        if self._long is not None:
            head, newline, whole = whole.partition(b"\n")
            lines = self._end_long(head)
            if not newline:
                return lines + self._overflow()
        if len(whole) <= LINE_MAX or max(map(len, whole.split(b"\n"))) <= LINE_MAX:
            text = self._mask(whole.decode("utf-8", "replace"))
            lines += text.split("\n")
            if len(text) > LINE_MAX // 4:
                lines = _bounded(lines)
        else:
            for line in whole.split(b"\n"):
                if len(line) <= LINE_MAX:
                    lines += _bounded([self._mask(line.decode("utf-8", "replace"))])
                else:
                    self._rest, kept = line, self._rest
                    lines += self._overflow()
                    lines += self._end_long(self._rest)
                    self._rest = kept
        return lines + self._overflow()

    def flush(self) -> list[str]:
        """What is left at the end of the stream."""
        rest, self._rest = self._rest, b""
        if self._long is not None:
            return self._end_long(rest)
        return _bounded([self._mask(rest.decode("utf-8", "replace"))]) if rest else []

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


def _character_border(data: bytes, at: int) -> int:
    """The last place not after `at` where a character starts."""
    for back in range(min(4, at)):
        if data[at - back] & 0xC0 != 0x80:
            return at - back
    return at


def _bounded(lines: list[str]) -> list[str]:
    """The same lines, none longer than LINE_MAX as UTF-8 (replacement and masking can lengthen them)."""
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
