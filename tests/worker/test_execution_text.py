"""Lines, captures and masking: the same answer however the bytes arrive."""

import json
from itertools import pairwise

import lines_before
from hypothesis import example, given, settings
from hypothesis import strategies as st

from swamp_proto.limits import LINE_MAX
from swamp_proto.redaction import Mask
from swamp_worker.execution import capture as capture_module
from swamp_worker.execution.capture import Capture, encoded_size
from swamp_worker.execution.lines import LineSplitter

SECRETS = ("hunter2", "p@ss/w+rd=", 'multi\nline-two\n"three"', "héllo wörld", "hunter2-and-more")


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(places)]


def listed(text: str | None) -> list[str]:
    return [] if text is None else text.split("\n")


def split(data: bytes, cuts: list[int], mask: Mask) -> list[str]:
    splitter = LineSplitter(mask)
    found = []
    for piece in pieces(data, cuts):
        found += listed(splitter.feed(piece))
    return found + listed(splitter.flush())


# ── lines ───────────────────────────────────────────────────────────────────────────────────────────────────

CHUNKS = st.lists(
    st.one_of(
        st.binary(max_size=12),
        st.sampled_from(
            [b"\n", b"\r\n", "ünïcödé 🐊".encode(), b"\xff\xfe", b"x" * LINE_MAX, b"y" * (2 * LINE_MAX + 3)]
        ),
    ),
    max_size=8,
).map(b"".join)
CUTS = st.lists(st.integers(0, 3 * LINE_MAX), max_size=8)


@given(CHUNKS, CUTS)
@example("🐊".encode() * LINE_MAX, [LINE_MAX - 1, LINE_MAX, LINE_MAX + 1])
@settings(deadline=None, max_examples=150)
def test_lines_do_not_depend_on_how_the_bytes_arrive(data: bytes, cuts: list[int]) -> None:
    found = split(data, cuts, Mask(()))
    whole = split(data, [], Mask(()))
    assert "".join(found) == "".join(whole)
    assert all(len(line.encode()) <= LINE_MAX for line in found)
    short = max(map(len, data.split(b"\n"))) <= LINE_MAX // 3
    if short:
        expected = data.decode("utf-8", "replace").split("\n")
        assert found == (expected[:-1] if expected[-1] == "" else expected)
    else:
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return  # how many U+FFFD a torn sequence becomes may depend on where a long line is split
        assert "".join(found) == text.replace("\n", "")


BYTES = st.lists(
    st.one_of(
        st.binary(max_size=12),
        st.sampled_from([b"\n", b"\n\n", b"hunter2", b"hun", b"ter2\n", "ü🐊".encode(), b"\xff"]),
        st.tuples(
            st.sampled_from([b"x", b"\xff", "ü".encode()]), st.integers(LINE_MAX // 3 - 2, LINE_MAX + 5)
        ).map(lambda part: part[0] * part[1]),
    ),
    max_size=9,
).map(b"".join)


@given(BYTES, CUTS, st.booleans())
@example(b"a\n" + b"\xff" * (LINE_MAX - 1) + b"\nb\n", [], True)
@example(b"x" * (LINE_MAX + 1) + b"\nhunter2\n\nend", [3], True)
@example(b"hunter2\n" + b"x" * (LINE_MAX - 3) + b"hunter2" + b"x" * 9 + b"\n" * 3, [LINE_MAX + 4], True)
@settings(deadline=None, max_examples=100)
def test_lines_are_those_of_a_splitter_that_looks_at_each(data: bytes, cuts: list[int], secret: bool) -> None:
    mask = Mask(SECRETS if secret else ())
    fast, plain = LineSplitter(mask), lines_before.LineSplitter(mask)
    for piece in pieces(data, cuts):
        assert listed(fast.feed(piece)) == plain.feed(piece)
    assert listed(fast.flush()) == plain.flush()


# ── masking ─────────────────────────────────────────────────────────────────────────────────────────────────

WORDS = st.lists(
    st.one_of(
        st.sampled_from(SECRETS),
        st.sampled_from([s[:4] for s in SECRETS]),
        st.text(alphabet="abhu2 \n%/+=nte", max_size=6),
        st.just("z" * (LINE_MAX // 2)),
    ),
    max_size=7,
).map("".join)


@given(WORDS, CUTS)
@settings(deadline=None, max_examples=200)
def test_no_secret_survives_any_split(text: str, cuts: list[int]) -> None:
    mask = Mask(SECRETS)
    lines = split(text.encode(), cuts, mask)
    assert not any(part in line for line in lines for secret in SECRETS for part in secret.splitlines())
    # Pieces of one long line stand next to each other, so only the joined text can be compared.
    assert "".join(mask(line) for line in text.split("\n")) == "".join(lines)


# ── captures ────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.text(max_size=50))
def test_encoded_size_is_what_json_takes(text: str) -> None:
    assert (
        encoded_size(text) == len(json.dumps(text, ensure_ascii=False).encode("utf-8", "surrogatepass")) - 2
    )


@given(
    st.lists(st.lists(st.text(alphabet='ab"\\🐊é\x01', max_size=30), min_size=1, max_size=5), max_size=60),
    st.integers(200, 900),
)
@settings(deadline=None)
def test_a_capture_keeps_head_and_tail_within_its_limit(batches: list[list[str]], limit: int) -> None:
    capture = Capture(limit=limit, tail=limit // 4)
    for batch in batches:
        capture.add("\n".join(batch))
    whole = "\n".join(line for batch in batches for line in batch)
    truncated = capture.truncated
    text = capture.text()
    assert encoded_size(text) <= limit
    if encoded_size(whole) <= limit - limit // 4 - capture_module._MARKER_MAX:
        assert not truncated
    if not truncated:
        assert text == whole
        return
    (marker,) = [line for line in text.split("\n") if line.startswith("… ") and line.endswith(" …")]
    head, tail = text.split(f"\n{marker}\n")
    assert whole.startswith(head)
    assert whole.endswith(tail)
    cut = whole[len(head) : len(whole) - len(tail)]
    assert marker == f"… {len(cut.encode())} bytes cut ({cut.count(chr(10))} line ends) …"
