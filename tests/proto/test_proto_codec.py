"""Bytes <-> frames: what goes out comes back equal, what is not exactly right is refused with a place."""

import math

import attrs
import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wire_strategies import BODIES, FRAMES

from swamp_proto import codec, limits
from swamp_proto.checks import INT_MAX, INT_MIN, JSON_DEPTH_MAX
from swamp_proto.envelope import Cancel, Event, Failure, FailureBody, Frame, Request, Response
from swamp_proto.errors import LimitExceeded, MalformedMessage, RefusalCode, Unsupported, VersionMismatch
from swamp_proto.messages import RULES
from swamp_proto.messages import dispatch as d
from swamp_proto.messages import enrollment as e
from swamp_proto.vectors.samples import ENROLL, FINISHED, START, VALID
from swamp_proto.version import PROTOCOL_VERSION, SWAMP_VERSION

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def refused(data: bytes) -> MalformedMessage:
    with pytest.raises(MalformedMessage) as caught:
        codec.decode(data)
    return caught.value


def packed(value: object) -> bytes:
    return msgpack.packb(value)


# ── there and back ──────────────────────────────────────────────────────────────────────────────────────────


@given(FRAMES)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_frame_comes_back_equal_and_encodes_the_same_again(frame: Frame) -> None:
    data = codec.encode(frame)
    again = codec.decode(data)
    assert again == frame
    assert type(again) is type(frame)
    assert codec.encode(again) == data


@pytest.mark.parametrize("cls", BODIES, ids=lambda cls: cls.__name__)
def test_every_class_of_the_rules_comes_back_equal(cls: type) -> None:
    rule = next(rule for rule in RULES if cls in (rule.body, rule.reply))

    @QUICK
    @given(BODIES[cls])
    def check(body: object) -> None:
        if cls is rule.reply:
            frame: Frame = Response(3, body, rule.name)
        else:
            frame = Request(3, body) if rule.is_request else Event(body)
        again = codec.decode(codec.encode(frame))
        assert again == frame
        for field in attrs.fields(cls):
            assert type(getattr(again.body, field.name)) is type(getattr(body, field.name))  # type: ignore[union-attr]

    check()


@given(FRAMES)
@QUICK
def test_the_order_and_the_width_of_the_form_do_not_matter_on_the_way_in(frame: Frame) -> None:
    """A peer in another language may pack maps in any order and integers in any width."""

    def turned(value: object) -> object:
        if isinstance(value, dict):
            return {key: turned(item) for key, item in reversed(value.items())}
        return [turned(item) for item in value] if isinstance(value, list) else value

    assert codec.decode(packed(turned(codec.plain(frame)))) == frame
    assert codec.decode(b"\x92\x04\xd3" + (7).to_bytes(8)) == Cancel(7)


def test_fields_leave_in_the_order_of_their_class() -> None:
    _, _, _, body = msgpack.unpackb(codec.encode(Request(1, START)))
    assert list(body) == [field.name for field in attrs.fields(d.Dispatch)]


def test_an_int_where_a_float_is_meant_leaves_as_a_float() -> None:
    frame = codec.decode(codec.encode(Request(1, attrs.evolve(START, timeout_s=5))))
    assert isinstance(frame, Request)
    assert type(frame.body.timeout_s) is float
    assert frame.body.timeout_s == 5.0


# ── what encode refuses ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("frame", "path"),
    [
        (Request(0, e.Heartbeat(1)), "$.id"),
        (Request(True, e.Heartbeat(1)), "$.id"),
        (Cancel(2**63), "$.id"),
        (Request(1, e.Heartbeat(2**63)), "$.body.number"),
        (Request(1, e.Heartbeat(True)), "$.body.number"),
        (Request(1, e.Heartbeat(-1)), "$.body.number"),
        (Request(1, e.HeartbeatAnswer(1)), "$.body"),
        (Request(1, None), "$.body"),
        (Request(1, e.Notice("info", "x")), "$.body"),
        (Event(e.Heartbeat(1)), "$.body"),
        (Response(1, e.Heartbeat(1), "link.heartbeat"), "$.body"),
        (Response(1, e.Heartbeat(1), "link.farewell"), "$.name"),
        (Failure(1, "nonsense", FailureBody(RefusalCode.BUSY, "x", None)), "$.name"),
        (Failure(1, "link.heartbeat", FailureBody("busy", "x", None)), "$.failure.code"),  # type: ignore[arg-type]
        (Failure(1, "link.heartbeat", FailureBody(RefusalCode.BUSY, "x", -1.0)), "$.failure.retry_after_s"),
        (Failure(1, "worker.drain", FailureBody(RefusalCode.BUSY, "", math.nan)), "$.failure.retry_after_s"),
        (Request(1, attrs.evolve(START, arguments={"a": 1, "b": {1: 2}})), "$.body.arguments[1][0]"),
        (Request(1, attrs.evolve(START, arguments={"a": (1,)})), "$.body.arguments[0]"),
        (Request(1, attrs.evolve(START, arguments={"a": [float("inf")]})), "$.body.arguments[0][0]"),
        (Request(1, attrs.evolve(START, arguments={"a": 2**63})), "$.body.arguments[0]"),
        (Request(1, attrs.evolve(START, arguments={"a": object()})), "$.body.arguments[0]"),
        (Request(1, attrs.evolve(START, environment={"A": "x", "B": 1})), "$.body.environment[1]"),
        (Request(1, attrs.evolve(START, secrets=["list"])), "$.body.secrets"),
        (Request(1, attrs.evolve(START, place=None)), "$.body.place"),
        (Request(1, attrs.evolve(ENROLL, labels={"k": "v" * 257})), "$.body.labels[0]"),
        (Request(1, attrs.evolve(ENROLL, labels={"k" * 257: "v"})), "$.body.labels[0]"),
        (Request(1, attrs.evolve(ENROLL, labels={str(n): "" for n in range(65)})), "$.body.labels"),
        (Request(1, attrs.evolve(ENROLL, host="\udcff")), "$.body.host"),
    ],
)  # fmt: skip
def test_encode_says_where_a_value_cannot_be_sent(frame: Frame, path: str) -> None:
    with pytest.raises(Unsupported) as caught:
        codec.encode(frame)
    assert str(caught.value).startswith(f"cannot be sent: {path}: ")


def test_encode_refuses_a_frame_over_the_limit_and_lets_one_of_exactly_the_limit_out() -> None:
    def frame(size: int) -> Request:
        return Request(
            1, attrs.evolve(FINISHED, outputs=(attrs.evolve(FINISHED.outputs[0], content=bytes(size)),))
        )

    rest = len(codec.encode(frame(1 << 20))) - (1 << 20)
    fitting = frame(limits.CONTROL_FRAME_MAX - rest)
    assert len(codec.encode(fitting)) == limits.CONTROL_FRAME_MAX
    assert codec.decode(codec.encode(fitting)) == fitting
    with pytest.raises(LimitExceeded):
        codec.encode(frame(limits.CONTROL_FRAME_MAX - rest + 1))


def test_a_stranger_s_frame_may_be_held_to_less() -> None:
    data = codec.encode(Request(1, ENROLL))
    assert codec.decode(data, len(data)) == Request(1, ENROLL)
    with pytest.raises(LimitExceeded):
        codec.decode(data, len(data) - 1)


def test_a_frame_nests_as_deep_as_the_limit_and_no_deeper() -> None:
    def nested(levels: int) -> Request:
        value: object = None
        for _ in range(levels - 1):  # the arguments themselves are a level
            value = [value]
        return Request(1, attrs.evolve(START, arguments={"a": value}))

    deepest = nested(JSON_DEPTH_MAX)
    assert codec.decode(codec.encode(deepest)) == deepest
    with pytest.raises(Unsupported):
        codec.encode(nested(JSON_DEPTH_MAX + 1))
    over = codec.plain(deepest)
    over[3]["arguments"] = {"b": over[3]["arguments"]}
    assert "nested deeper" in refused(packed(over)).problem


def test_the_number_of_items_is_bounded_both_ways() -> None:
    most = Request(1, attrs.evolve(START, arguments={"a": [None] * limits.FRAME_ITEMS_MAX}))
    assert codec.decode(codec.encode(most)) == most
    with pytest.raises(Unsupported):
        codec.encode(Request(1, attrs.evolve(START, arguments={"a": [None] * (limits.FRAME_ITEMS_MAX + 1)})))
    over = codec.plain(most)
    over[3]["arguments"]["a"].append(None)
    assert refused(packed(over)).path == "$"


# ── what decode refuses ─────────────────────────────────────────────────────────────────────────────────────


@given(FRAMES, st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_changed_bytes_are_a_frame_or_a_refusal_and_nothing_else(frame: Frame, data: st.DataObject) -> None:
    found = bytearray(codec.encode(frame))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(found) - 1)))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "drop", "double"])):
            case "flip" if found:
                found[at] ^= data.draw(st.integers(1, 255))
            case "cut":
                del found[at:]
            case "insert":
                found[at:at] = data.draw(st.binary(min_size=1, max_size=6))
            case "drop":
                del found[at : at + data.draw(st.integers(1, 6))]
            case "double":
                found[at:at] = found[at : at + data.draw(st.integers(1, 20))]
    try:
        again = codec.decode(bytes(found))
    except (MalformedMessage, LimitExceeded):
        return
    assert codec.decode(codec.encode(again)) == again


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_frame_or_a_refusal(data: bytes) -> None:
    try:
        codec.decode(data)
    except MalformedMessage as wrong:
        assert wrong.path.startswith("$")


@given(FRAMES, st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_value_of_another_type_is_refused_where_it_stands(frame: Frame, data: st.DataObject) -> None:
    """Replace one value of a body by one of another type: refused, at that path or above it."""
    value = codec.plain(frame)
    if isinstance(frame, Cancel) or not value[-1]:
        return
    hints = attrs.fields_dict(type(frame.failure if isinstance(frame, Failure) else frame.body))
    name = data.draw(st.sampled_from(list(value[-1])))
    kinds: list[object] = [True, 1, 1.5, "text", b"bytes", [[]], {"k": []}]
    allowed = str(hints[name].type)
    strangers = [
        kind for kind in kinds if type(kind) is not type(value[-1][name]) and not _may_be(allowed, kind)
    ]
    value[-1][name] = data.draw(st.sampled_from(strangers))
    wrong = refused(packed(value))
    place = "failure" if isinstance(frame, Failure) else "body"
    assert wrong.path.startswith(f"$.{place}.{name}") or isinstance(wrong, VersionMismatch)


def _may_be(annotation: str, value: object) -> bool:
    """Whether the optional half of a field could hold `value`."""
    words = {int: "int", float: "float", str: "str"}
    return "None" in annotation and words.get(type(value), "?") in annotation


def test_a_refusal_holds_nothing_of_the_payload() -> None:
    secret = "hunter2-hunter2-hunter2"
    bodies = [
        {"number": secret},
        {secret: 1},
        {"number": 1, secret: 1},
        {"number": [secret]},
        {"number": secret.encode()},
    ]
    frames = [packed([0, 1, "link.heartbeat", body]) for body in bodies]
    frames += [packed([0, 1, secret, {}]), packed([secret]), packed([0, secret, "link.heartbeat", {}])]
    frames += [
        packed([0, 1, "link.heartbeat", {}]) + secret.encode(),
        secret.encode(),
        b"\xb7" + secret.encode()[:-1],
    ]
    start = codec.plain(Request(1, START))
    for field in ("arguments", "environment", "bindings"):
        changed = {**start[3], field: {secret: {1: secret}}}
        frames.append(packed([0, 1, "dispatch.start", changed]))
    frames.append(packed([0, 1, "dispatch.start", start[3]]).replace(b"hunter2", b"hunte\xff\xff"))
    for data in frames:
        wrong = refused(data)
        shown = f"{wrong!r} {wrong.args} {wrong.__dict__}"
        assert "hunte" not in shown, shown
        assert wrong.__cause__ is None
        assert wrong.__context__ is None


def test_a_large_frame_of_nested_headers_is_refused_before_anything_is_built() -> None:
    """A thousand nested headers of five bytes would make the unpacker allocate 800 MB."""
    import tracemalloc

    head = b"\x94\x00\x01\xaedispatch.start"
    bomb = head + b"\xdd\x00\x01\x86\xa0" * 1000 + b"\xc0" * 400_000
    tracemalloc.start()
    try:
        refused(bomb)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * limits.MIB


@given(FRAMES)
@QUICK
def test_the_bound_on_nesting_lets_every_frame_through(frame: Frame) -> None:
    """Content that looks like headers must not matter: pad with such bytes until it is looked at."""
    padding = d.Output.of("log", "log", "file", "application/octet-stream", bytes(range(0xC0, 0x100)) * 200)
    value = codec.plain(frame)
    assert codec.decode(codec.encode(Request(1, attrs.evolve(FINISHED, outputs=(padding,) * 3))))
    if isinstance(frame, Request) and isinstance(frame.body, d.Dispatch):
        value[3]["arguments"]["pad"] = padding.content
        assert codec.decode(packed(value)).body.arguments["pad"] == padding.content  # type: ignore[union-attr]


# ── versions ────────────────────────────────────────────────────────────────────────────────────────────────


def enroll_of(**changes: object) -> bytes:
    return packed([0, 9, "worker.enroll", {**codec.plain(Request(9, ENROLL))[3], **changes}])


@pytest.mark.parametrize(
    ("protocol", "swamp"),
    [(PROTOCOL_VERSION + 1, SWAMP_VERSION), (PROTOCOL_VERSION, "9.9.9"), (0, "0.0.1rc1")],
)
def test_an_enroll_frame_of_another_version_says_so_whatever_else_it_holds(protocol: int, swamp: str) -> None:
    wrong = refused(enroll_of(protocol_version=protocol, swamp_version=swamp, unheard_of=[1, 2]))
    assert isinstance(wrong, VersionMismatch)
    assert (wrong.request, wrong.protocol_version, wrong.swamp_version) == (9, protocol, swamp)
    assert wrong.code == "protocol_mismatch"
    assert f"swamp {swamp} (protocol {protocol})" in str(wrong) == wrong.message
    assert f"swamp {SWAMP_VERSION} (protocol {PROTOCOL_VERSION})" in str(wrong)


@pytest.mark.parametrize(
    "changes",
    [
        {"unheard_of": 1},
        {"protocol_version": "2", "unheard_of": 1},
        {"protocol_version": 2, "swamp_version": "evil\x1b[31m", "unheard_of": 1},
        {"protocol_version": 2, "swamp_version": None},
    ],
)
def test_an_enroll_frame_that_is_only_wrong_is_malformed(changes: dict[str, object]) -> None:
    assert type(refused(enroll_of(**changes))) is MalformedMessage


def test_a_readable_enroll_frame_of_another_version_is_left_to_the_orchestrator() -> None:
    frame = codec.decode(enroll_of(protocol_version=99))
    assert isinstance(frame, Request)
    assert frame.body.protocol_version == 99


# ── fields ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_integers_reach_both_ends_of_64_bits() -> None:
    for number in (INT_MIN, -1, 0, INT_MAX):
        frame = Request(1, attrs.evolve(START, arguments={"n": number}))
        assert codec.decode(codec.encode(frame)) == frame


def test_secrets_are_not_in_the_repr_of_a_message() -> None:
    shown = repr([frame for frame in VALID.values() if not isinstance(frame, Failure)])
    for hidden in (
        "5e5e5e",
        "5c5c5c",
        "5d5d5d",
        "c1c1c1",
        "hunter2",
        "it's data",
        "eu-central-1",
        "exitCode",
    ):
        assert hidden not in shown
