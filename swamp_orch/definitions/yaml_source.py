"""Reading YAML: plain Python data, and where in the file each piece of it stands.

Rules:
1. YAML 1.2 core schema. Text, numbers, booleans and null stay what they were written as (`gpu: true` is not
   `gpu: "true"`); `yes`, `no`, dates and times are text.
2. What a definition has no use for and what surprises people is refused: duplicate keys, anchors and aliases,
   tags, several documents, keys that are not text, numbers that JSON cannot carry.
3. Every refusal is an `InvalidDefinition` that starts with `file:line: ` and has a hint. Nothing of the YAML
   library gets out of here, and no document can make it recurse or run out of memory.
4. A parsed file is remembered by path, inode, size and times. What is returned may be shared: do not change
   it.

It does not know what any key means.
"""

import io
import os
import re
import threading
import time
from pathlib import Path
from typing import Any, Final, NoReturn

import attrs

from swamp_orch.definitions.files import disk_error
from swamp_orch.definitions.values import Source
from swamp_proto.errors import InvalidDefinition, NotFound
from swamp_proto.limits import DEFINITION_BYTES_MAX, DEFINITION_DEPTH_MAX, DEFINITIONS_CACHED_MAX

DocumentPath = tuple[str | int, ...]

_INT: Final = re.compile(r"[-+]?[0-9]+")
_OCTAL: Final = re.compile(r"0o[0-7]+")
_HEX: Final = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE: Final = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEANS: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT_MAX: Final = 2**63 - 1
_RACY_NS: Final = 50_000_000  # a file changed this recently may change again within one tick of its times


@attrs.frozen
class Span:
    """Where one value stands in the text, in characters; what an edit in place needs."""

    start: int
    end: int
    column: int  # of the key, for an entry of a map; else of the value
    key_start: int
    style: str  # plain, quoted, block (| and >), map, list
    flow: bool  # inside or itself `{…}` or `[…]`


@attrs.define
class Parsed:
    data: Any
    lines: dict[DocumentPath, int] = attrs.field(factory=dict)
    texts: dict[DocumentPath, str] = attrs.field(factory=dict)
    spans: dict[DocumentPath, Span] = attrs.field(factory=dict)


_Key = tuple[str, str]
_Stamp = tuple[int, int, int, int, int]
_cache: dict[_Key, tuple[_Stamp, Any, Source]] = {}
_cache_lock = threading.Lock()


def load(path: Path, *, root: Path | None = None) -> tuple[Any, Source]:
    """The data of the file and its `Source`; messages name the file relative to `root`. Raises `NotFound` for
    a file that is not there, `InvalidDefinition` for everything wrong with its content, `Broken` for the
    disk."""
    shown = shown_path(path, root)
    key = (str(path), str(shown))
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            stamp = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            with _cache_lock:
                known = _cache.get(key)
            if known is not None and known[0] == stamp:
                return known[1], known[2]
            raw = file.read(DEFINITION_BYTES_MAX + 1)
    except FileNotFoundError:
        raise NotFound(f"there is no file {shown}") from None
    except IsADirectoryError:
        raise InvalidDefinition(f"{shown}: this is a folder, not a file", hint=f"remove {shown}") from None
    except OSError as error:
        raise disk_error("read", path, error) from error
    parsed = parse(decode(raw, shown), shown)
    source = Source(shown, parsed.lines, parsed.texts)
    if time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) > _RACY_NS:
        with _cache_lock:
            if len(_cache) >= DEFINITIONS_CACHED_MAX:
                _cache.clear()
            _cache[key] = (stamp, parsed.data, source)
    return parsed.data, source


def load_text(text: str, shown: Path) -> tuple[Any, Source]:
    """The same for text that is not in a file yet; `shown` is the name for messages."""
    if len(text.encode(errors="surrogatepass")) > DEFINITION_BYTES_MAX:
        _too_large(shown)
    parsed = parse(text, shown)
    return parsed.data, Source(shown, parsed.lines, parsed.texts)


def shown_path(path: Path, root: Path | None) -> Path:
    """`path` as messages name it."""
    return path.relative_to(root) if root is not None and path.is_relative_to(root) else path


def decode(raw: bytes, shown: Path) -> str:
    """The file's text. Raises `InvalidDefinition`."""
    if len(raw) > DEFINITION_BYTES_MAX:
        _too_large(shown)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InvalidDefinition(
            f"{shown}:{line}: not UTF-8 text", hint=f"save {shown} with the encoding UTF-8"
        ) from None


def parse(text: str, shown: Path, *, spans: bool = False) -> Parsed:
    """Parse one document. Raises `InvalidDefinition`."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError
    from ruamel.yaml.reader import ReaderError

    yaml = YAML(typ="safe", pure=True)
    try:
        return _Builder(shown, text, spans).build(yaml.parse(io.StringIO(text)))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        if "end of stream" in str(error.problem) or str(error.problem).startswith("expected ',' or"):
            mark = error.context_mark or mark  # where it was opened, not where the file ends
        line = mark.line + 1 if mark is not None else 1
        _refuse_syntax(
            shown, line, text, str(error.problem or error.context or error), str(error.context or "")
        )
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise InvalidDefinition(
            f"{shown}:{line}: the character #x{error.character:04x} is not allowed in YAML",
            hint="remove it, or write it as an escape in double quotes",
        ) from None
    except (YAMLError, RecursionError, ValueError) as error:
        raise InvalidDefinition(
            f"{shown}:1: not YAML: {error}", hint="see docs/reference/workflows.md"
        ) from None


def resolve(text: str) -> Any:
    """What a plain (unquoted) scalar means: None, bool, int, float or text. Raises ValueError for numbers
    JSON cannot carry."""
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    number: int | None = None
    if _INT.fullmatch(text):
        number = int(text) if len(text) <= 40 else _INT_MAX + 1
    elif _OCTAL.fullmatch(text):
        number = int(text[2:], 8) if len(text) <= 40 else _INT_MAX + 1
    elif _HEX.fullmatch(text):
        number = int(text[2:], 16) if len(text) <= 40 else _INT_MAX + 1
    if number is not None:
        if abs(number) > _INT_MAX:
            raise ValueError("the number is too large")
        return number
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"{text} is not a finite number")
    if _FLOAT.fullmatch(text):
        value = float(text)
        if value in (float("inf"), float("-inf")):
            raise ValueError("the number is too large")
        return value
    return text


@attrs.define
class _Frame:
    """A map or list that is being read."""

    path: DocumentPath
    value: Any
    flow: bool
    start: int
    column: int
    key_start: int
    key: str | None = None  # of the entry whose value comes next
    key_mark: Any = None


class _Builder:
    """Parser events to data; iterative, so that depth is bounded by us and not by the interpreter."""

    def __init__(self, shown: Path, text: str, spans: bool) -> None:
        self.shown = shown
        self.text = text
        self.want_spans = spans
        self.parsed = Parsed(None)
        self.frames: list[_Frame] = []
        self.documents = 0

    def build(self, events: Any) -> Parsed:
        for event in events:
            name = type(event).__name__
            if name == "ScalarEvent":
                self._scalar(event)
            elif name in ("MappingStartEvent", "SequenceStartEvent"):
                self._open(event, {} if name == "MappingStartEvent" else [])
            elif name in ("MappingEndEvent", "SequenceEndEvent"):
                self._close(event)
            elif name == "AliasEvent":
                self._refuse(
                    event, f"an alias (`*{event.anchor}`) is not supported", "write the value out again"
                )
            elif name == "DocumentStartEvent":
                self.documents += 1
                if self.documents > 1:
                    self._refuse(
                        event, "a second document starts here", "one file holds one definition: split it"
                    )
        if self.documents == 0:
            raise InvalidDefinition(
                f"{self.shown}:1: the file is empty", hint=f"fill it in, or remove {self.shown}"
            )
        return self.parsed

    def _refuse(self, event: Any, problem: str, hint: str) -> NoReturn:
        raise InvalidDefinition(f"{self.shown}:{event.start_mark.line + 1}: {problem}", hint=hint)

    def _check(self, event: Any) -> None:
        if event.anchor is not None:
            self._refuse(
                event,
                f"an anchor (`&{event.anchor}`) is not supported",
                "write the value out where it is used",
            )
        tag = event.tag
        if tag is not None and str(tag) != "!":
            shown = str(tag).replace("tag:yaml.org,2002:", "!!")
            self._refuse(
                event, f"a tag (`{shown}`) is not supported", "remove it; quote the value if it is text"
            )

    def _scalar(self, event: Any) -> None:
        self._check(event)
        value: Any = event.value
        plain = not event.style and event.tag is None
        if plain:
            try:
                value = resolve(event.value)
            except ValueError as error:
                self._refuse(event, str(error), "put it in quotes if it is text")
        frame = self.frames[-1] if self.frames else None
        if frame is not None and isinstance(frame.value, dict) and frame.key is None:
            if not isinstance(value, str):
                written = event.value or "null"
                self._refuse(event, f"the key {written} is not text", f'quote it: "{written}"')
            if value == "<<" and plain:
                self._refuse(event, "a merge key (`<<`) is not supported", "write the keys out")
            if value in frame.value:
                first = self.parsed.lines[(*frame.path, value)]
                self._refuse(
                    event, f"duplicate key `{value}` (first in line {first})", "remove one of the two"
                )
            frame.key, frame.key_mark = value, event.start_mark
            return
        path = self._place(event, value)
        if not isinstance(value, str):
            self.parsed.texts[path] = event.value
        if self.want_spans:
            style = "plain" if not event.style else "block" if event.style in "|>" else "quoted"
            self._span(path, event, event.start_mark.index, event.end_mark.index, style, frame)

    def _open(self, event: Any, value: Any) -> None:
        self._check(event)
        if len(self.frames) >= DEFINITION_DEPTH_MAX:
            self._refuse(event, f"nested deeper than {DEFINITION_DEPTH_MAX} levels", "flatten the structure")
        parent = self.frames[-1] if self.frames else None
        if parent is not None and isinstance(parent.value, dict) and parent.key is None:
            self._refuse(event, "a key must be text, not a list or a map", "quote the key")
        mark = event.start_mark
        key_mark = mark if parent is None or parent.key_mark is None else parent.key_mark
        flow = bool(event.flow_style) or (parent is not None and parent.flow)
        path = self._place(event, value)
        self.frames.append(_Frame(path, value, flow, mark.index, key_mark.column, key_mark.index))

    def _close(self, event: Any) -> None:
        frame = self.frames.pop()
        if self.want_spans:
            style = "map" if isinstance(frame.value, dict) else "list"
            self.parsed.spans[frame.path] = Span(
                frame.start, event.end_mark.index, frame.column, frame.key_start, style, frame.flow
            )

    def _place(self, event: Any, value: Any) -> DocumentPath:
        """Put a value where it belongs; answers its path."""
        line = event.start_mark.line + 1
        if not self.frames:
            self.parsed.data = value
            self.parsed.lines[()] = line
            return ()
        frame = self.frames[-1]
        if isinstance(frame.value, list):
            path = (*frame.path, len(frame.value))
            frame.value.append(value)
        else:
            assert frame.key is not None
            path = (*frame.path, frame.key)
            frame.value[frame.key] = value
            line = frame.key_mark.line + 1
            frame.key = None
            if not self.want_spans:
                frame.key_mark = None
        self.parsed.lines[path] = line
        return path

    def _span(
        self, path: DocumentPath, event: Any, start: int, end: int, style: str, frame: _Frame | None
    ) -> None:
        mark = frame.key_mark if frame is not None and isinstance(frame.value, dict) else event.start_mark
        self.parsed.spans[path] = Span(
            start, end, mark.column, mark.index, style, frame is not None and frame.flow
        )


def _refuse_syntax(shown: Path, line: int, text: str, problem: str, context: str) -> NoReturn:
    """The library's finding in our words."""
    rows = text.split("\n")
    # At the end of the text the library points behind the last line.
    line = min(line, max(1, len(rows) - (1 if rows[-1] == "" else 0)))
    row = rows[line - 1]
    if "'\\t'" in problem or ("\t" in row[: len(row) - len(row.lstrip())]):
        found, hint = "a tab character is used for indentation", "indent with blanks"
    elif problem.startswith("mapping values are not allowed"):
        found, hint = (
            "a `:` stands where no key can be",
            "quote a value that contains `: `, and check the indentation",
        )
    elif problem.startswith("could not find expected ':'"):
        found, hint = "a line without `key: value`", "check the indentation, or quote the text above it"
    elif "unexpected end of stream" in problem:
        found, hint = "a quote is never closed", "close it"
    elif problem.startswith("expected ',' or") or "<stream end>" in problem:
        bracket = "}" if "mapping" in context else "]"
        found, hint = f"a bracket is never closed, or a comma is missing: `{bracket}`", "close it"
    elif "cannot start any token" in problem:
        match = re.search(r"character '(.+?)'", problem)
        found = f"a value cannot start with `{match[1] if match else '?'}`"
        hint = "quote the value"
    elif "expected <block end>" in problem:
        found, hint = (
            "the indentation does not fit the lines above",
            "keys of one map start in the same column",
        )
    elif "undefined alias" in problem:
        found, hint = "an alias (`*…`) is not supported", "quote the value if it is text, else write it out"
    elif "another document" in problem:
        found, hint = "a second document starts here", "one file holds one definition: split it"
    else:
        found, hint = (
            f"not YAML: {problem}",
            "check the quotes and the indentation of this line and the one above",
        )
    raise InvalidDefinition(f"{shown}:{line}: {found}", hint=hint) from None


def _too_large(shown: Path) -> NoReturn:
    raise InvalidDefinition(
        f"{shown}: larger than {DEFINITION_BYTES_MAX} bytes",
        hint="keep data out of definitions: store it as records, or pass it as inputs",
    )
