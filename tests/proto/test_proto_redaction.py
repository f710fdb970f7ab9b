"""Masking: every spelling, however it is cut, and a mask that grows while it is used."""

import base64
import html
import json
import shlex
import subprocess
import textwrap
from itertools import pairwise
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from swamp_proto.redaction import MASKED, Mask

AWKWARD = 'p@ss "w/o" rd+ü\'<&>=x'
KEY = (
    "-----BEGIN KEY-----\n" + "MIIBVgIBADANBgkqhkiG9w0BAQEFAASCAUAwggE8AgEAAkEA\n" * 4 + "-----END KEY-----\n"
)


def pieces(text: Any, cuts: list[int]) -> list[Any]:
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    return [text[a:b] for a, b in pairwise(places)]


# ── spellings ───────────────────────────────────────────────────────────────────────────────────────────────
def go_json(text: str) -> str:
    """As Go's encoder and others write it: nothing that HTML would misread."""
    escaped = json.dumps(text)[1:-1]
    return "".join(f"\\u{ord(char):04x}" if char in "<>&" else char for char in escaped)


SPELLINGS = {
    "plain": lambda text: text,
    "json": lambda text: json.dumps(text)[1:-1],
    "json, not ASCII": lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    "json, as PHP": lambda text: json.dumps(text)[1:-1].replace("/", "\\/"),
    "json, as Go": go_json,
    "json, upper case": lambda text: json.dumps(text)[1:-1].replace("u00fc", "u00FC"),
    "json in json": lambda text: json.dumps(json.dumps(text, ensure_ascii=False)[1:-1], ensure_ascii=False)[1:-1],
    "url": quote,
    "url, nothing reserved": lambda text: quote(text, safe=""),
    "url, form": quote_plus,
    "url, lower case": lambda text: quote(text, safe="").replace("%C3%BC", "%c3%bc").replace("%2F", "%2f").replace(
        "%2B", "%2b"
    ).replace("%3C", "%3c").replace("%3E", "%3e").replace("%3D", "%3d"),
    "url, as encodeURIComponent": lambda text: quote(text, safe="!'()*~"),
    "url, as encodeURI": lambda text: quote(text, safe=";,/?:@&=+$#!'()*~"),
    "base64": lambda text: base64.b64encode(text.encode()).decode().rstrip("="),
    "base64, url-safe": lambda text: base64.urlsafe_b64encode(text.encode()).decode().rstrip("="),
    "xml": html.escape,
    "xml text": lambda text: html.escape(text, quote=False),
    "python": lambda text: repr(text)[1:-1],
    "python, in ASCII": lambda text: ascii(text)[1:-1],
    "python, bytes": lambda text: repr(text.encode())[2:-1],
    "shell": lambda text: shlex.quote(text)[1:-1],
    "shell, as bash": lambda text: text.replace("'", "'\\''"),
}  # fmt: skip


@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_every_listed_spelling_is_masked(spell: Any) -> None:
    assert Mask((AWKWARD,))(f"<{spell(AWKWARD)}>") == f"<{MASKED}>"


TEXTS = st.text(alphabet="ab1/+=%\"'\\<&> ü\U0001f40a-_~", min_size=6, max_size=24).filter(
    lambda text: len(text.strip()) >= 6
)


@given(TEXTS, st.sampled_from(sorted(SPELLINGS)), st.lists(st.integers(0, 200), max_size=6))
@settings(deadline=None, max_examples=200)
def test_every_spelling_of_any_secret_in_pieces(secret: str, name: str, cuts: list[int]) -> None:
    if name in ("url, lower case", "json, upper case"):
        return  # of one secret only: the tests' own spelling knows just its characters
    mask, text = Mask((secret,)), f"before {SPELLINGS[name](secret)} after"
    stream = mask.for_line()
    found = "".join(stream.feed(piece) for piece in pieces(text, cuts)) + stream.flush()
    assert found == mask(text)
    assert MASKED in found
    assert not mask.finds(found.replace(MASKED, "\0"))


@pytest.mark.parametrize("before", ["", "a", "ab", "user:"])
@pytest.mark.parametrize("after", ["", "z", "zz"])
def test_base64_inside_a_longer_text(before: str, after: str) -> None:
    encoded = base64.b64encode(f"{before}{AWKWARD}{after}".encode()).decode()
    masked = Mask((AWKWARD,))(encoded)
    assert MASKED in masked
    assert len(masked) < len(encoded) - len(AWKWARD)


@pytest.mark.parametrize("columns", [64, 76])
def test_wrapped_base64_as_the_command_prints_it(columns: int) -> None:
    printed = subprocess.run(
        ["base64", "-w", str(columns)], input=KEY.encode(), capture_output=True, check=True, timeout=60
    ).stdout.decode()
    masked = Mask((KEY,))(printed)
    assert len(masked.replace(MASKED, "").replace("\n", "")) < 8, masked
    assert textwrap.wrap(base64.b64encode(KEY.encode()).decode(), columns) == printed.split()


def test_lines_of_a_multi_line_secret_are_masked_each() -> None:
    key = "-----BEGIN KEY-----\nMIIBVgIBADANBg\nkqhkiG9w0BAQE\n-----END KEY-----\n"
    mask = Mask((key,))
    assert mask("x MIIBVgIBADANBg y\nkqhkiG9w0BAQE") == "x *** y\n***"
    assert "MIIBV" not in mask(json.dumps({"key": key}))


def test_longest_first_and_short_ones_are_told() -> None:
    mask = Mask(("abc", "abcdef", "x", "", "  "))
    assert mask("abcdef abc x") == "*** *** x"
    assert mask.too_short == 1
    mask.add(("x", "yz"))
    assert mask.too_short == 2


def test_without_secrets_nothing_is_looked_at() -> None:
    mask, text, data = Mask(), "x" * 100, b"x" * 100
    assert not mask
    assert mask(text) is text
    assert mask.for_line().feed(text) is text
    assert mask.for_stream().feed(data) is data
    assert mask.json(data) is data
    assert mask.value(value := {"a": [text]}) is value


def test_a_mask_does_not_show_what_it_hides() -> None:
    assert "hunter2" not in repr(Mask(("hunter2",)))


# ── in pieces ───────────────────────────────────────────────────────────────────────────────────────────────
FRAGMENTS = st.lists(
    st.sampled_from(["hunter2", "hun", "ter2", "er2 hun", "ab", "abab", "a", " ", "h", "r2", "é", "\n"]),
    max_size=12,
).map("".join)
CUTS = st.lists(st.integers(0, 60), max_size=8)


@given(FRAGMENTS, CUTS)
@example("xhunter2x", [3, 5])
@settings(max_examples=200)
def test_a_text_in_pieces_is_masked_as_a_whole(text: str, cuts: list[int]) -> None:
    mask = Mask(("hunter2", "er2 hun", "abab", "é\U0001f40aé"))
    line, stream = mask.for_line(), mask.for_stream()
    assert "".join(line.feed(piece) for piece in pieces(text, cuts)) + line.flush() == mask(text)
    data = text.encode()
    found = b"".join(stream.feed(piece) for piece in pieces(data, cuts)) + stream.flush()
    assert found == mask(text).encode()


@given(st.binary(max_size=40), CUTS)
def test_bytes_that_are_no_text_pass_a_stream_unchanged(data: bytes, cuts: list[int]) -> None:
    stream = Mask(("never in it",)).for_stream()
    assert b"".join(stream.feed(piece) for piece in pieces(data, cuts)) + stream.flush() == data


def test_a_mask_grows_while_it_is_used() -> None:
    mask = Mask()
    line, stream = mask.for_line(), mask.for_stream()
    assert line.feed("one hunter2 ") == "one hunter2 "
    assert stream.feed(b"one hunter2 \xc3") == b"one hunter2 \xc3"
    mask.add(("hunter2",))
    assert line.feed("two hunt") + line.feed("er2 ") + line.flush() == "two *** "
    assert stream.feed(b"\xa9 two hunt") + stream.feed(b"er2 ") + stream.flush() == b"\xa9 two *** "
    held = mask.for_line()
    kept = held.feed("hunter")
    mask.add(("hunter2 and a much longer one",))
    assert kept + held.feed("2 and a much longer one.") + held.flush() == "***."


# ── JSON ────────────────────────────────────────────────────────────────────────────────────────────────────
def test_json_stays_json_and_everything_else_as_it_was() -> None:
    mask = Mask(("n123", "4711081", 'a"b', "42"))
    document = b'{ "line":"\\n123 n123", "pin" : 4711081, "near": 47110810, "n123": [1.50, 1e400, 42, "\\u0061\\"b"]}'
    masked = mask.json(document)
    assert masked == (
        b'{ "line":"\\n123 ***", "pin" : "***", "near": 47110810, "***": [1.50, 1e400, 42, "***"]}'
    )
    assert json.loads(masked)["pin"] == MASKED
    untouched = b'{"a": "\\u00e9"}'
    assert mask.json(untouched) is untouched


DOCUMENTS = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=6), st.sampled_from(["hunter2", 'p"w\n', 123456])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["a", "hunter2", "é"]), inner, max_size=3)
    ),
    max_leaves=8,
)  # fmt: skip


@given(DOCUMENTS, st.booleans())
@settings(max_examples=200)
def test_a_json_document_and_the_value_in_it_are_masked_alike(value: Any, ascii_only: bool) -> None:
    mask = Mask(("hunter2", 'p"w\n', "123456"))
    masked = mask.json(json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass"))
    assert json.loads(masked.decode("utf-8", "surrogatepass")) == mask.value(value)
    assert b"hunter2" not in masked


def test_a_broken_document_and_a_secret_that_is_one_are_masked_as_text() -> None:
    secret = '{"key": "abcdef"}'
    mask = Mask((secret,))
    assert mask.json(b'{"a": {"key": "abcdef"}}') == b'{"a": ***}'
    assert Mask(("hunter2",)).json(b'{"a": "hunter2') == b'{"a": "***'
