"""Masking secret values in what a step prints, stores or fails with. Both sides use it: the executor on what leaves a step, and
the orchestrator again on what comes in.

Rules that hold here:

- Looked for are every line of a value and its spellings: JSON-escaped (also as encoders for HTML do it, and twice), URL-encoded
  (each common set of unreserved characters, both cases), quoted for a shell or as Python does it, escaped for XML, and base64
  (standard and URL-safe, at each of the three alignments inside a longer encoded text without the characters that depend on the
  neighbours, and wrapped at 64 or 76 columns). The whole of a value of several lines needs no form of its own in plain text,
  since each line is masked; in its encodings it has one. Longest first, so that a secret which contains another one is masked whole.
- Values shorter than `SECRET_LENGTH_MIN` are not looked for: masking every `a` hides nothing and destroys the output. Who made
  the dispatch is told (`Mask.too_short`).
- Text that comes in pieces is masked as if it had come whole: a piece is only let go when no secret can start in it and end in
  the next.
- A mask grows while it is used (`add`): what is masked later, also by a `LineMask` or `StreamMask` at work, knows the new values.
- JSON stays JSON: inside a document strings are masked, and numbers that are a secret.
- No secrets, no cost.

It cannot know encodings nobody thought of, nor parts of a value; the documentation says what is out of reach.
"""

import base64
import codecs
import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote, quote_plus

SECRET_LENGTH_MIN: Final = 3
NUMBER_LENGTH_MIN: Final = 6  # of a secret that is looked for among the numbers of a JSON document
WRAPPED_LENGTH_MIN: Final = 8  # of a row of wrapped base64 that is looked for by itself
MASKED: Final = "***"

NAME_REFUSED: Final = "the name of a record holds a secret, and names are shown everywhere: name it otherwise"

# Content types whose bytes are text in UTF-8. Everything else is binary, and left alone.
_TEXT_TYPE: Final = re.compile(
    r"text/.+|.+\+(json|xml|yaml)|application/(x-)?(csv|ecmascript|graphql|javascript|json|jsonl|jsonlines|json-lines|json-seq"
    r"|ndjson|pem-file|pem-certificate-chain|sh|shellscript|sql|toml|www-form-urlencoded|xml|xml-dtd|yaml)"
)

_JSON_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*', re.DOTALL)
_STRUCTURE: Final = re.compile(r'[{}\[\]":,]')
_UNICODE_ESCAPE: Final = re.compile(r"\\u([0-9a-f]{4})")
_JS_COMPONENT: Final = "!'()*~"  # what encodeURIComponent leaves as it is
_JS_WHOLE: Final = ";,/?:@&=+$#!'()*~"  # and encodeURI


def is_text(content_type: str) -> bool:
    """Whether content of this type is masked."""
    return _TEXT_TYPE.fullmatch(content_type.partition(";")[0].strip().lower()) is not None


def short_warning(count: int) -> str:
    """For the author of the step, in its log."""
    return f"swamp: {count} secret(s) shorter than {SECRET_LENGTH_MIN} characters cannot be masked"


class Mask:
    """Callable on complete text (which may hold many lines)."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self.too_short = 0  # values that cannot be masked
        self._secrets: set[str] = set()
        self._forms: tuple[str, ...] = ()  # longest first
        self._longest = 0
        self.add(secrets)

    def __bool__(self) -> bool:
        return bool(self._forms)

    def __repr__(self) -> str:
        return f"<Mask of {len(self._secrets)} values>"

    @property
    def secrets(self) -> tuple[str, ...]:
        """What it hides, for a mask of something that this started."""
        return tuple(self._secrets)

    def add(self, secrets: Iterable[str]) -> None:
        """Look for these too from now on."""
        forms: set[str] = set()
        for secret in secrets:
            if secret in self._secrets:
                continue
            self._secrets.add(secret)
            if len(secret.strip()) < SECRET_LENGTH_MIN:
                self.too_short += bool(secret.strip())
            else:
                forms |= _forms(secret)
        if forms:
            self._forms = tuple(sorted(forms.union(self._forms), key=lambda form: (-len(form), form)))
            self._longest = len(self._forms[0])

    def __call__(self, text: str) -> str:
        """`text` with every secret replaced by `***`."""
        if not self._forms:
            return text
        pattern = self._pattern_in(text)
        return text if pattern is None else pattern.sub(MASKED, text)

    def finds(self, text: str) -> bool:
        """Whether a secret is in it."""
        return any(form in text for form in self._forms)

    def value(self, value: Any) -> Any:
        """A JSON-shaped value with its strings, names and secret numbers masked."""
        if not self._forms:
            return value
        match value:
            case str():
                return self(value)
            case Mapping():
                return {self(name): self.value(item) for name, item in value.items()}
            case list() | tuple():
                return [self.value(item) for item in value]
            case bool():
                return value
            case int() | float():
                return MASKED if self._is_number(str(value)) else value
            case _:
                return value

    def json(self, content: bytes) -> bytes:
        """A JSON document, masked and still JSON; everything else in it to the byte as it was.

        Should a secret go across strings and punctuation of the document, it is masked all the same.
        """
        if not self._forms:
            return content
        text = content.decode("utf-8", "surrogateescape")
        if "\\u" not in text and not self.finds(text):
            return content
        masked = self._outside_tokens(_JSON_TOKEN.sub(self._token, text))
        return content if masked == text else masked.encode("utf-8", "surrogateescape")

    def content(self, content_type: str, data: bytes) -> bytes:
        """The content of one record, masked as its type needs it; the very same when there is nothing in it."""
        if not self._forms or not is_text(content_type):
            return data
        if "json" in content_type.lower():
            return self.json(data)
        text = data.decode("utf-8", "surrogateescape")
        return self(text).encode("utf-8", "surrogateescape") if self.finds(text) else data

    def for_line(self) -> "LineMask":
        """For one text that comes in pieces."""
        return LineMask(self)

    def for_stream(self) -> "StreamMask":
        """For the bytes of a text in UTF-8 that come in pieces."""
        return StreamMask(self)

    def _pattern_in(self, text: str) -> re.Pattern[str] | None:
        """Of the forms that are in `text`. A search for fixed text is thirty times faster than a pattern of all."""
        found = "|".join([re.escape(form) for form in self._forms if form in text])
        return re.compile(found) if found else None

    def _token(self, found: re.Match[str]) -> str:
        token = found[0]
        if token[0] != '"':
            return f'"{MASKED}"' if self._is_number(token) else token
        try:
            text = json.loads(token, strict=False)
        except ValueError:
            return token  # no JSON after all: masked as text
        masked = self(text)
        return token if masked == text else json.dumps(masked, ensure_ascii=False)

    def _outside_tokens(self, text: str) -> str:
        """What strings and numbers do not hold: a secret that is a piece of JSON itself, and text that is no JSON."""
        found = [form for form in self._forms if form in text]
        if not found:
            return text
        across = "|".join(re.escape(form) for form in found if _STRUCTURE.search(form)) or "(?!)"
        pattern = f"{across}|(?P<token>{_JSON_TOKEN.pattern})|{'|'.join(map(re.escape, found))}"
        return re.sub(pattern, lambda match: match["token"] or MASKED, text, flags=re.DOTALL)

    def _is_number(self, text: str) -> bool:
        return len(text) >= NUMBER_LENGTH_MIN and text in self._secrets


class LineMask:
    """Masks one text that comes in pieces; the concatenation of all answers is the mask of the concatenation."""

    def __init__(self, mask: Mask) -> None:
        self._mask = mask
        self._held = ""

    def feed(self, piece: str) -> str:
        """What can be let go now."""
        mask = self._mask
        if not mask:
            return piece
        text = self._held + piece
        # A match that starts before `safe` cannot depend on what is still to come.
        safe = len(text) - mask._longest + 1
        found: list[str] = []
        at = 0
        pattern = mask._pattern_in(text)
        for match in pattern.finditer(text) if pattern is not None else ():
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
        """The rest, at the end of the text."""
        text, self._held = self._held, ""
        return self._mask(text)


class StreamMask:
    """Masks the bytes of one text that come in pieces. Bytes that are not UTF-8 pass as they are."""

    def __init__(self, mask: Mask) -> None:
        self._mask = mask
        self._text = LineMask(mask)
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._begun = False

    def feed(self, piece: bytes) -> bytes:
        """What can be let go now."""
        if not self._mask and not self._begun:
            return piece
        self._begun = True
        return self._text.feed(self._decoder.decode(piece)).encode("utf-8", "surrogateescape")

    def flush(self) -> bytes:
        """The rest, at the end of the stream."""
        rest = self._text.feed(self._decoder.decode(b"", final=True)) + self._text.flush()
        return rest.encode("utf-8", "surrogateescape")


# ── spellings ───────────────────────────────────────────────────────────────────────────────────────────────
def _forms(secret: str) -> set[str]:
    """Every spelling of one secret that is looked for."""
    whole = {secret, secret.strip()}
    spellings = {*whole, *(line.strip() for line in secret.splitlines())}  # a line is masked by itself
    forms: set[str] = set()
    for spelling in spellings:
        if len(spelling) < SECRET_LENGTH_MIN:
            continue
        raw = spelling.encode("utf-8", "surrogatepass")
        forms.add(spelling)
        forms.update(_json_forms(spelling))
        forms |= {repr(spelling)[1:-1], ascii(spelling)[1:-1], repr(raw)[2:-1]}
        forms.update(_url_forms(raw))
        forms.update(_base64_forms(raw))
        if spelling in whole:
            forms.update(_wrapped_forms(raw))
        forms.update(spelling.replace("'", quoted) for quoted in ("'\\''", "'\"'\"'", "\\'"))
        for escaped in (html.escape(spelling, quote=False), html.escape(spelling)):
            forms |= {escaped, escaped.replace("&#x27;", "&#39;"), escaped.replace("&#x27;", "&apos;")}
    return {form for form in forms if len(form) >= SECRET_LENGTH_MIN and "\n" not in form}


def _json_forms(spelling: str) -> Iterator[str]:
    """Inside a JSON string: as encoders write it that escape what is not ASCII, slashes, or what HTML would misread."""
    plain = json.dumps(spelling, ensure_ascii=False)[1:-1]
    yield json.dumps(plain, ensure_ascii=False)[1:-1]  # a document inside a document
    for text in {plain, json.dumps(spelling)[1:-1]}:
        for misread in ("", "<>&", "<>&'", "<>&'="):
            escaped = "".join(f"\\u{ord(char):04x}" if char in misread else char for char in text)
            yield from (escaped, _UNICODE_ESCAPE.sub(lambda found: "\\u" + found[1].upper(), escaped))
        yield text.replace("/", "\\/")


def _url_forms(raw: bytes) -> Iterator[str]:
    for form in (*(quote(raw, safe=safe) for safe in ("", "/", _JS_COMPONENT, _JS_WHOLE)), quote_plus(raw)):
        yield form
        yield re.sub("%[0-9A-F]{2}", lambda match: match[0].lower(), form)


def _base64_forms(raw: bytes) -> Iterator[str]:
    """The characters of a base64 text that depend on `raw` alone, wherever in the encoded bytes it stands."""
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + raw).decode().rstrip("=")
        first = (0, 2, 3)[before]  # characters that mix in what stands before
        mixed_at_end = (before + len(raw)) % 3 != 0
        whole = encoded[first : len(encoded) - mixed_at_end]
        if (
            len(whole) > SECRET_LENGTH_MIN + 1
        ):  # of a very short secret only the whole encoding: the rest is everywhere
            yield whole
            yield whole.translate(_URL_SAFE)
        if before == 0:
            yield encoded  # standing alone: its last character too
            yield encoded.translate(_URL_SAFE)


def _wrapped_forms(raw: bytes) -> Iterator[str]:
    """The rows of a long base64 text as `base64` and PEM files break it."""
    encoded = base64.b64encode(raw).decode()
    for columns in (64, 76):
        if len(encoded) > columns:
            rows = (encoded[at : at + columns].rstrip("=") for at in range(0, len(encoded), columns))
            yield from (row for row in rows if len(row) >= WRAPPED_LENGTH_MIN)


_URL_SAFE: Final = str.maketrans("+/", "-_")
