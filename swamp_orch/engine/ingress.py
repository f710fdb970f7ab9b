"""What comes in from the holder of a dispatch, masked again before anything of it is kept, shown or decided on.

The executor masks what leaves a step. This is the second time, for holders that did not: another program that speaks the protocol,
an older defect, an encoding that only one side knows. Rules that hold here:

- One `Mask` per flight: the secrets of its dispatch, its sensitive inputs, and every secret that its calls have read (`learn`, before
  the value is handed on). All that comes in under the flight passes it.
- A line is masked by itself, the lines of a block all at once. A line that its holder had to split (all its pieces but the last are as
  long as a line may be) is masked as if it had come whole: a full piece waits for the next line of its stream, which is bounded in
  lines.
- A record whose name holds a secret is refused: a name cannot be masked without becoming another record. Its tags and its
  content are masked, content of binary types excepted.
- Without secrets nothing is looked at.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from hashlib import sha256
from itertools import islice
from typing import Final

import attrs

from swamp_proto.blocks import has_longer, lines_of, merged
from swamp_proto.capabilities import CallRefused
from swamp_proto.limits import LINE_MAX, LOG_WAITING_BYTES_MAX, LOG_WAITING_LINES_MAX
from swamp_proto.messages.capability import CallCode
from swamp_proto.messages.dispatch import Finished, LogBlock, Outcome, Output, Stream
from swamp_proto.redaction import NAME_REFUSED, LineMask, Mask, is_text

_CHARACTER_MAX: Final = 4  # bytes; none is cut in two, so that a full piece may lack three


class MaskedLines:
    """Lines in, in the order of their numbers; the same number of lines out, in the same order, masked.

    They are masked block by block. Each is looked at by itself only while a piece of a long line is among them.
    """

    def __init__(self, mask: Mask, line_max: int = LINE_MAX) -> None:
        self._mask = mask
        self.caught = 0  # lines in which there was something to mask
        self._full = line_max - _CHARACTER_MAX + 1  # bytes of a piece after which its line may go on
        self._waiting: deque[LogBlock] = deque()  # of one line each; the first is a full piece
        self._size = 0  # of what waits, in bytes at most
        self._parts: dict[Stream, LineMask] = {}  # of streams whose last line was a piece

    def __len__(self) -> int:
        """How many lines wait."""
        return len(self._waiting)

    def take(self, block: LogBlock) -> Iterable[LogBlock]:
        """What can be let go now."""
        if not self._waiting and not self._parts:
            if not self._mask:
                return (block,)
            if not self._may_hold_a_piece(block.text):
                return (self._whole(block),)
        return merged(self._one_by_one(block))

    def rest(self) -> list[LogBlock]:
        """All that wait: nothing comes any more."""
        found: list[LogBlock] = []
        while self._waiting:
            found += self._let_go(must=True)
        return found

    def _whole(self, block: LogBlock) -> LogBlock:
        """A block of whole lines. No spelling of a secret has a line feed in it, so that they are masked as one."""
        text = self._mask(block.text)
        if text is block.text or text == block.text:
            return block
        changed = zip(block.text.split("\n"), text.split("\n"), strict=True)
        self.caught += sum(before != after for before, after in changed)
        return LogBlock(block.stream, text)

    def _one_by_one(self, block: LogBlock) -> Iterator[LogBlock]:
        for line in lines_of((block,)):
            if not self._mask and not self._waiting:
                yield line
                continue
            self._waiting.append(line)
            self._size += _size(line.text)
            many = len(self._waiting) > LOG_WAITING_LINES_MAX or self._size > LOG_WAITING_BYTES_MAX
            yield from self._let_go(many)

    def _let_go(self, must: bool) -> list[LogBlock]:
        """With `must`, a piece at the head goes even when nothing has followed it."""
        found: list[LogBlock] = []
        while self._waiting:
            line = self._waiting[0]
            full = self._is_full(line.text)
            goes_on = full and any(later.stream is line.stream for later in islice(self._waiting, 1, None))
            if full and not goes_on:
                if not must:
                    break
                must = False
            self._waiting.popleft()
            self._size -= _size(line.text)
            found.append(LogBlock(line.stream, self._text(line, goes_on)))
        return found

    def _may_hold_a_piece(self, text: str) -> bool:
        return has_longer(text, "\n", (self._full - 1) // _CHARACTER_MAX)

    def _is_full(self, text: str) -> bool:
        long_enough = len(text) * _CHARACTER_MAX >= self._full
        return long_enough and len(text.encode("utf-8", "replace")) >= self._full

    def _text(self, line: LogBlock, goes_on: bool) -> str:
        part = self._parts.get(line.stream)
        if part is None and not goes_on:
            text = self._mask(line.text)
            self.caught += text is not line.text and text != line.text
            return text
        part = self._parts.setdefault(line.stream, self._mask.for_line())
        if goes_on:
            return part.feed(line.text)
        del self._parts[line.stream]
        return part.feed(line.text) + part.flush()


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text) * _CHARACTER_MAX


def _type_of(output: Output) -> str:
    """What its content is taken for: what is no file is text, whatever it calls itself."""
    if output.kind == "file":
        return output.content_type
    return (
        "text/plain"
        if output.kind == "report" and "json" not in output.content_type.lower()
        else "application/json"
    )


@attrs.define(eq=False)
class Ingress:
    """Of one flight."""

    mask: Mask = attrs.field(factory=Mask)
    _lines: MaskedLines | None = None
    _caught: int = 0  # errors and contents in which there was something to mask

    @property
    def caught(self) -> int:
        """How often the holder said a secret that it should have masked."""
        return self._caught + (0 if self._lines is None else self._lines.caught)

    def learn(self, secrets: Iterable[str]) -> None:
        """The step is about to be told these."""
        self.mask.add(secrets)

    def lines(self) -> MaskedLines:
        """For the lines of the flight."""
        self._lines = MaskedLines(self.mask)
        return self._lines

    def finished(self, finished: Finished) -> Finished:
        """An end with its error masked. Outputs with a secret in their name are not among its outputs, and it failed because of them. What
        the others contain is masked by `content` when it is stored."""
        if not self.mask:
            return finished
        kept, refused = [], 0
        for output in finished.outputs:
            try:
                kept.append(self.record(output))
            except CallRefused:
                refused += 1
        error, outcome = finished.error, finished.outcome
        if refused and outcome is Outcome.SUCCEEDED:
            error, outcome = f"{refused} output(s) with a secret in their name were refused", Outcome.FAILED
        masked = None if error is None else self.mask(error)
        self._caught += masked != error
        error = masked
        return attrs.evolve(finished, outcome=outcome, error=error, outputs=tuple(kept))

    def record(self, output: Output) -> Output:
        """What a record is called and tagged with, checked and masked. Raises `CallRefused`."""
        if not self.mask:
            return output
        if (
            self.mask.finds(output.name)
            or self.mask.finds(output.spec)
            or self.mask.finds(output.content_type)
        ):
            raise CallRefused(CallCode.INVALID, NAME_REFUSED)
        tags = {self.mask(name): self.mask(value) for name, value in output.tags.items()}
        return output if tags == output.tags else attrs.evolve(output, tags=tags)

    def mask_of(self, output: Output) -> Mask | None:
        """What to mask an upload with that `output` names; None: as it is."""
        return self.mask if self.mask and is_text(_type_of(output)) else None

    def content(self, output: Output) -> Output:
        """A record with its inline content masked. Takes long for long content: outside the event loop, then."""
        if output.staged is not None:
            return output
        content = self.mask.content(_type_of(output), output.content)
        if content is output.content:
            return output
        self._caught += 1
        return attrs.evolve(output, content=content, sha256=sha256(content).hexdigest(), size=len(content))
