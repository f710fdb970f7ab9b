"""What a result keeps of one stream: all of it up to `CAPTURE_MAX`, else its beginning and its end.

Sizes are those of the JSON string the text becomes (a result is a JSON record), without the quotes. Between
beginning and end stands one line that counts what was cut. Memory is bounded by `CAPTURE_MAX` plus one
piece whatever is added.
"""

import json
from collections import deque
from typing import Final

from swamp_proto.limits import CAPTURE_MAX, CAPTURE_TAIL

_MARKER_MAX: Final = 128
_encode: Final = json.encoder.encode_basestring  # what json.dumps uses without ASCII


def encoded_size(text: str) -> int:
    """Bytes of `text` inside a JSON document in UTF-8."""
    return len(_encode(text).encode("utf-8", "surrogatepass")) - 2


class Capture:
    """`add` text; `text()` at the end, without the final newline."""

    def __init__(self, limit: int = CAPTURE_MAX, tail: int = CAPTURE_TAIL) -> None:
        assert tail + _MARKER_MAX < limit
        self._head: list[str] = []
        self._head_left = limit - tail - _MARKER_MAX
        self._tail: deque[tuple[str, int]] = deque()
        self._tail_size = 0
        self._tail_max = tail
        self._cut_bytes = 0
        self._cut_lines = 0
        self._first = True

    @property
    def truncated(self) -> bool:
        return self._cut_bytes > 0 or self._tail_size > self._tail_max + _MARKER_MAX

    def add(self, lines: str) -> None:
        """More lines, in order: their text without the last line end."""
        piece = lines if self._first else "\n" + lines
        self._first = False
        size = encoded_size(piece)
        if self._head_left:
            if size <= self._head_left:
                self._head.append(piece)
                self._head_left -= size
                return
            beginning = _prefix(piece, self._head_left)
            self._head.append(beginning)
            self._head_left = 0
            piece = piece[len(beginning) :]
            size = encoded_size(piece)
        self._tail.append((piece, size))
        self._tail_size += size
        while self._tail_size - self._tail[0][1] >= self._tail_max + _MARKER_MAX:
            gone, gone_size = self._tail.popleft()
            self._tail_size -= gone_size
            self._cut(gone)

    def text(self) -> str:
        """Everything kept, with the marker where something was cut. Call once, at the end."""
        head = "".join(self._head)
        tail = "".join(piece for piece, _ in self._tail)
        if not self.truncated:
            return head + tail
        kept = _suffix(tail, self._tail_max)
        border = kept.find("\n", 0, 4096)  # a whole line to begin with, when one begins soon
        kept = kept[border + 1 :]
        self._cut(tail[: len(tail) - len(kept)])
        border = head.rfind("\n", max(0, len(head) - 4096))
        if border >= 0:
            self._cut(head[border:])
            head = head[:border]
        return f"{head}\n… {self._cut_bytes} bytes cut ({self._cut_lines} line ends) …\n{kept}"

    def _cut(self, text: str) -> None:
        self._cut_bytes += len(text.encode("utf-8", "surrogatepass"))
        self._cut_lines += text.count("\n")


def _prefix(text: str, size: int) -> str:
    """The longest beginning whose encoded size is not over `size`."""
    low, high = 0, min(len(text), size)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if encoded_size(text[:middle]) <= size else (low, middle - 1)
    return text[:low]


def _suffix(text: str, size: int) -> str:
    """The longest end whose encoded size is not over `size`."""
    low, high = 0, min(len(text), size)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if encoded_size(text[len(text) - middle :]) <= size else (low, middle - 1)
    return text[len(text) - low :]
