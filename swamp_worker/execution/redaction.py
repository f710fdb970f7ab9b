"""Masking secret values in what a step prints, returns or fails with.

Rules that hold here:

- Looked for are every line of the value, and their JSON-escaped, URL-encoded and base64 forms (base64 at
  each of the three alignments inside a longer encoded text, without the characters that depend on the
  neighbours). The whole of a value of several lines needs no form of its own in plain text, since each line
  is masked; in its encodings it has one. Longest first, so that a secret which contains another one is
  masked whole.
- Values shorter than `SECRET_LENGTH_MIN` are not looked for: masking every `a` hides nothing and destroys
  the output. Who made the dispatch is told (`Mask.too_short`).
- A line that comes in pieces is masked as if it had come whole: a piece is only let go when no secret can
  start in it and end in the next.
- No secrets, no cost.

It cannot know encodings nobody thought of; the orchestrator masks again, and the documentation says what is
out of reach.
"""

import base64
import json
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote, quote_plus

SECRET_LENGTH_MIN: Final = 3
MASKED: Final = "***"


class Mask:
    """Callable on complete text (which may hold many lines)."""

    def __init__(self, secrets: Iterable[str]) -> None:
        forms: set[str] = set()
        self.too_short = 0  # values that cannot be masked
        for secret in secrets:
            if len(secret.strip()) < SECRET_LENGTH_MIN:
                self.too_short += bool(secret.strip())
                continue
            forms.update(_forms(secret))
        longest_first = sorted(forms, key=lambda form: (-len(form), form))
        self._forms = tuple(longest_first)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self._longest = len(longest_first[0]) if longest_first else 0

    def __bool__(self) -> bool:
        return self._pattern is not None

    def __call__(self, text: str) -> str:
        """`text` with every secret replaced by `***`."""
        if self._pattern is None or not any(form in text for form in self._forms):
            return text  # a search for fixed text is thirty times faster than the pattern
        return self._pattern.sub(MASKED, text)

    def for_line(self) -> "LineMask":
        """For one line that comes in pieces."""
        return LineMask(self)


class LineMask:
    """Masks one line that comes in pieces; the concatenation of all answers is the mask of the concatenation."""

    def __init__(self, mask: Mask) -> None:
        self._pattern = mask._pattern
        self._longest = mask._longest
        self._held = ""

    def feed(self, piece: str) -> str:
        """What can be let go now."""
        if self._pattern is None:
            return piece
        text = self._held + piece
        # A match that starts before `safe` cannot depend on what is still to come.
        safe = len(text) - self._longest + 1
        found: list[str] = []
        at = 0
        for match in self._pattern.finditer(text):
            if match.start() >= safe:
                break
            found += (text[at : match.start()], MASKED)
            at = match.end()
        if safe > at:
            found.append(text[at:safe])
            at = safe
        self._held = text[at:]
        return "".join(found)

    def flush(self) -> str:
        """The rest, at the end of the line."""
        text, self._held = self._held, ""
        return self._pattern.sub(MASKED, text) if self._pattern is not None else text


def _forms(secret: str) -> set[str]:
    """Every spelling of one secret that is looked for."""
    spellings = {
        secret,
        secret.strip(),
        *(line.strip() for line in secret.splitlines()),
    }  # a line is masked by itself
    forms: set[str] = set()
    for spelling in spellings:
        if len(spelling) < SECRET_LENGTH_MIN:
            continue
        forms.add(spelling)
        forms.add(json.dumps(spelling)[1:-1])
        forms.add(json.dumps(spelling, ensure_ascii=False)[1:-1])
        forms.add(json.dumps(spelling)[1:-1].replace("/", "\\/"))
        raw = spelling.encode("utf-8", "surrogatepass")
        forms.add(quote(raw, safe=""))
        forms.add(quote(raw))
        forms.add(quote_plus(raw))
        forms.add(re.sub("%[0-9A-F]{2}", lambda match: match[0].lower(), quote(raw, safe="")))
        forms.update(_base64_forms(raw))
    return {form for form in forms if len(form) >= SECRET_LENGTH_MIN and "\n" not in form}


def _base64_forms(raw: bytes) -> set[str]:
    """The characters of a base64 text that depend on `raw` alone, wherever in the encoded bytes it stands."""
    forms: set[str] = set()
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + raw).decode().rstrip("=")
        first = (0, 2, 3)[before]  # characters that mix in what stands before
        mixed_at_end = (before + len(raw)) % 3 != 0
        whole = encoded[first : len(encoded) - mixed_at_end]
        if (
            len(whole) > SECRET_LENGTH_MIN + 1
        ):  # of a very short secret only the whole encoding: the rest is everywhere
            forms.add(whole)
            forms.add(whole.replace("+", "-").replace("/", "_"))
        if before == 0:
            forms.add(encoded)  # standing alone: its last character too
            forms.add(encoded.replace("+", "-").replace("/", "_"))
    return forms
