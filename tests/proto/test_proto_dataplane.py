"""The data plane's grammar: paths and ranges."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swamp_proto import codec, dataplane
from swamp_proto.capabilities import CallRefused, check_arguments
from swamp_proto.dataplane import ByteRange, Route, Target, parse_path, parse_range
from swamp_proto.errors import LimitExceeded, MalformedMessage, Unsupported
from swamp_proto.messages.capability import CallCode, Verb, WriteBatch
from swamp_proto.messages.dispatch import Output

UUID = "0b9c1f6e-6f0e-4f0a-9a55-2f1f6c3f7a10"


def test_a_path_names_what_it_was_made_for() -> None:
    assert parse_path(dataplane.record_path(UUID)) == Target(Route.RECORD, UUID)
    assert parse_path(dataplane.bundle_path("ab" * 32)) == Target(Route.BUNDLE, "ab" * 32)
    assert parse_path(dataplane.upload_path(UUID, 3)) == Target(Route.UPLOAD, UUID, 3)
    assert parse_path(dataplane.write_path(UUID, 12)) == Target(Route.WRITE, UUID, 12)


@pytest.mark.parametrize(
    "path",
    [
        "/data/v1",
        "/data/v1/records/../x",
        f"/data/v1/records/{UUID}/",
        f"/data/v1/records/{UUID.upper()}",
        "/data/v1/bundles/ab",
        f"/data/v1/dispatches/{UUID}/writes/0",
        f"/data/v1/dispatches/{UUID}/writes/1234567890",
        f"/data/v1/dispatches/{UUID}/writes/1\n",
    ],
)
def test_any_other_path_names_nothing(path: str) -> None:
    assert parse_path(path) is None


@pytest.mark.parametrize(
    ("header", "size", "found"),
    [
        ("bytes=0-", 10, ByteRange(0, 9)),
        ("bytes=0-99", 10, ByteRange(0, 9)),
        ("bytes=3-3", 10, ByteRange(3, 3)),
        ("bytes=-4", 10, ByteRange(6, 9)),
        ("bytes=-40", 10, ByteRange(0, 9)),
        ("bytes=10-", 10, None),
        ("bytes=-0", 10, None),
        ("bytes=0-", 0, None),
    ],
)
def test_a_range_is_cut_to_what_there_is(header: str, size: int, found: ByteRange | None) -> None:
    assert parse_range(header, size) == found


@pytest.mark.parametrize(
    "header", ["", "bytes=", "bytes=-", "bytes=a-b", "bytes=5-3", "bytes=0-1,3-4", "lines=0-1"]
)
def test_what_is_no_range_is_malformed(header: str) -> None:
    with pytest.raises(MalformedMessage):
        parse_range(header, 10)


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 1000))
def test_a_range_stays_inside(first: int, length: int, size: int) -> None:
    found = parse_range(f"bytes={first}-{first + length}", size)
    if found is None:
        assert first >= size
    else:
        assert 0 <= found.first <= found.last < size
        assert found.length <= length + 1


def test_a_body_comes_back_equal_and_is_as_strict_as_a_frame() -> None:
    batch = WriteBatch((Output.of("host", "a", "resource", "application/json", b"{}"),))
    data = codec.encode_body(batch)
    assert codec.decode_body(data, WriteBatch, 1_000) == batch
    with pytest.raises(LimitExceeded):
        codec.decode_body(data, WriteBatch, len(data) - 1)
    with pytest.raises(MalformedMessage, match=r"records"):
        codec.decode_body(codec.encode_body(batch).replace(b"records", b"recordz"), WriteBatch, 1_000)
    with pytest.raises(Unsupported):
        codec.encode_body(WriteBatch(()))


def test_a_plain_value_comes_back_equal() -> None:
    value = {"a": [1, 2.5, None, True, "ü", b"\x00"], "b": {}}
    assert codec.unpack_value(codec.pack_value(value), 1_000) == value
    with pytest.raises(Unsupported):
        codec.pack_value({"a": object()})
    with pytest.raises(MalformedMessage):
        codec.unpack_value(b"\xc1", 10)


def test_arguments_are_checked_by_the_table() -> None:
    check_arguments(Verb.LATEST, {"name": "x"})
    for wrong in ({}, {"name": 1}, {"name": "x", "other": 1}, {"name": "x", "model": None}):
        with pytest.raises(CallRefused) as caught:
            check_arguments(Verb.LATEST, wrong)
        assert caught.value.call_code is CallCode.INVALID
