"""`docs/protocol.md` says what the program does: every message, field, bound, enum, code, limit, state and byte of it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from swamp_orch.gateway.dataplane import METHODS
from swamp_proto import capabilities, codec, dataplane, limits
from swamp_proto.errors import PERMANENT_REFUSALS, RefusalCode
from swamp_proto.limits import Tempo
from swamp_proto.messages import RULES, Side
from swamp_proto.messages.capability import WriteBatch, Written
from swamp_proto.session import PERMITTED, TRANSITIONS, State
from swamp_proto.vectors import VALID, readable
from swamp_proto.vectors.schema import schema
from swamp_proto.version import CONTROL_PATH, PROTOCOL_VERSION

TEXT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
SCHEMA = schema()
FLAT = " ".join(TEXT.split())


def section(title: str) -> str:
    """The text from this heading to the next of its level or above."""
    level = title.split(" ")[0]
    begin = TEXT.index(f"\n{title}\n")
    rest = TEXT[begin + len(title) + 2 :]
    end = re.search(rf"^#{{1,{len(level)}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def tables(text: str) -> list[list[list[str]]]:
    """All tables of a text: rows of cells, without the two header lines."""
    found: list[list[list[str]]] = []
    before = ""
    for line in text.splitlines():
        if line.startswith("|"):
            if not before.startswith("|"):
                found.append([])
            found[-1].append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
        before = line
    return [table[2:] for table in found]


def classes_of(text: str) -> Iterator[tuple[str, list[list[str]]]]:
    """Each class that a section describes, with the rows of its table."""
    parts = re.split(r"^(?:\*\*(?:Body|Reply): )?`(\w+)`(?:\*\*|:)$", text, flags=re.MULTILINE)
    for name, rest in zip(parts[1::2], parts[2::2], strict=True):
        found = tables(rest)
        yield name, found[0] if found else []


# ── messages ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_messages_are_these_in_this_order() -> None:
    assert re.findall(r"^### `([\w.]+)`$", TEXT, re.MULTILINE) == [rule.name for rule in RULES]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_message_is_of_its_kind_from_its_senders_with_its_body_and_reply(rule) -> None:  # type: ignore[no-untyped-def]
    text = section(f"### `{rule.name}`")
    arrow = "both ways" if len(rule.senders) == 2 else "W → O" if Side.WORKER in rule.senders else "O → W"
    assert text.lstrip().startswith(f"{'Request' if rule.is_request else 'Event'}, {arrow}.")
    assert f"**Body: `{rule.body.__name__}`**" in text
    assert (f"**Reply: `{rule.reply.__name__}`**" in text) if rule.reply else ("**Reply" not in text)


def test_every_field_of_every_class_stands_there_with_its_type_and_bound() -> None:
    described = dict(classes_of(section("## Messages")))
    described["FailureBody"] = tables(section("## Frames"))[1]
    assert set(described) == set(SCHEMA["classes"])
    for name, fields in SCHEMA["classes"].items():
        wanted = [[field, entry["type"], entry.get("bound", "")] for field, entry in fields.items()]
        assert [row[:3] for row in described[name]] == wanted, name
        assert all(row[3] for row in described[name]), f"{name}: a field without a meaning"


def test_every_enum_stands_there_with_its_values() -> None:
    text = section("## Enums")
    for name, values in SCHEMA["enums"].items():
        if name == "RefusalCode":
            continue
        rows = tables(text.split(f"**`{name}`**")[1])[0]
        assert [row[0] for row in rows] == [str(value) for value in values], name
        assert all(row[1] for row in rows)
    assert text.count("**`") == len(SCHEMA["enums"]) - 1


# ── codes, limits, time ─────────────────────────────────────────────────────────────────────────────────────


def test_every_refusal_stands_there_with_its_permanence_and_exit_code() -> None:
    (rows,) = tables(section("## Refusals"))
    assert [row[0] for row in rows] == [code.value for code in RefusalCode]
    for code, permanent, exit_code, when, remedy in rows:
        found = PERMANENT_REFUSALS.get(RefusalCode(code))
        assert permanent == ("no" if found is None else "yes"), code
        assert exit_code == ("" if found is None else str(found.value)), code
        assert when, code
        assert remedy, code


def test_every_limit_stands_there_with_its_value() -> None:
    (rows,) = tables(section("## Limits"))
    assert {name: float(value) for name, value, _ in rows} == SCHEMA["limits"]
    assert all(meaning for _, _, meaning in rows)


@pytest.mark.parametrize(
    "sentence",
    [
        f"at path `{CONTROL_PATH}` on the orchestrator's port",
        f"Protocol version: **{PROTOCOL_VERSION}**",
        f"at most {limits.CONTROL_FRAME_MAX} bytes, and a peer may close with 1009",
        f"nests at most {limits.FRAME_DEPTH_MAX} containers",
        f"more than {limits.FRAME_ITEMS_MAX} items",
        f"At most {limits.REQUESTS_OUTSTANDING_MAX} requests of one sender",
        f"at most {limits.ENROLL_FRAME_MAX} bytes, within {limits.ENROLL_DEADLINE_S:g} s",
        f"At most {limits.UNAUTHENTICATED_SOCKETS_MAX} sockets wait to enroll",
        f"the ceiling {limits.RECONNECT_S_MIN:g} s at first and doubled up to {limits.RECONNECT_S_MAX:g} s",
        f"O waits {limits.CANCEL_WAIT_S:g} s for the answer",
        f"TERM, {limits.CANCEL_TERM_S:g} s, KILL",
        f"credential's life, {limits.SESSION_CREDENTIAL_S / 60:g} min",
        f"together at most {limits.COMPLETION_OUTPUTS_MAX} bytes",
        f"together at most {limits.LOG_BATCH_BYTES_MAX} bytes of text",
        f"at most {limits.LINE_MAX} bytes before masking",
        f"no more than {limits.LOG_WINDOW_LINES} lines and {limits.LOG_WINDOW_BYTES} bytes of text",
        f"when it has {limits.LOG_NOTED_LINES} lines or {limits.LOG_NOTED_BYTES} bytes of text",
    ],
)
def test_numbers_in_sentences_are_the_limits(sentence: str) -> None:
    assert sentence in FLAT


def test_the_table_of_time_is_that_of_the_program() -> None:
    tempo = Tempo(60.0)
    (rows,) = tables(section("## Time"))
    wanted = (tempo.heartbeat_s, tempo.silence_s, tempo.term_s, tempo.kill_s, tempo.redial_s_max)
    assert [float(row[2]) for row in rows] == list(wanted)
    assert limits.SESSION_REFRESH_FRACTION == 2 / 3
    assert "at two thirds" in section("## Time")


# ── the session ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_transitions_are_those_of_the_program() -> None:
    rows = tables(section("## The session"))[0]
    wanted = [[a.value, happening.value, b.value] for (a, happening), b in TRANSITIONS.items()]
    assert rows == wanted


def test_what_is_lawful_is_what_the_program_permits() -> None:
    rows = tables(section("## The session"))[1]
    assert [row[0] for row in rows] == [state.value for state in State]
    for row in rows:
        for cell, side in ((row[1], Side.WORKER), (row[2], Side.ORCHESTRATOR)):
            allowed = PERMITTED[State(row[0])][side]
            names = re.findall(r"[\w.]+\.[\w.]+", cell)
            assert names == [rule.name for rule in RULES if rule.body in allowed], (row[0], side)
            assert names or cell == "nothing"


def test_the_order_of_a_dispatch_names_messages_that_go_that_way() -> None:
    lines = re.findall(
        r"^([WO]) → ([WO])   (request|event|response) +([\w.]+)", section("## A dispatch"), re.MULTILINE
    )
    assert len(lines) == 6
    sides = {"W": Side.WORKER, "O": Side.ORCHESTRATOR}
    for sender, receiver, kind, name in lines:
        if kind == "response":
            (rule,) = (rule for rule in RULES if rule.reply and rule.reply.__name__ == name)
            assert sides[receiver] in rule.senders
        else:
            (rule,) = (rule for rule in RULES if rule.name == name)
            assert sides[sender] in rule.senders
            assert rule.is_request is (kind == "request")


# ── bytes ───────────────────────────────────────────────────────────────────────────────────────────────────

BLOCKS = re.findall(r"^```frame ([\w.]+)\n(.*)\n([0-9a-f\n]+)```$", TEXT, re.MULTILINE)


def test_every_message_and_every_kind_of_frame_has_an_example() -> None:
    names = {name for name, _, _ in BLOCKS}
    for rule in RULES:
        kinds = ("request", "response") if rule.is_request else ("event",)
        assert {f"{rule.name}.{kind}" for kind in kinds} <= names
    assert {"cancel", "failure.expired"} <= names
    assert TEXT.count("```frame ") == len(BLOCKS)


@pytest.mark.parametrize(("name", "frame", "data"), BLOCKS, ids=[name for name, _, _ in BLOCKS])
def test_an_example_is_its_vector_to_the_byte(name: str, frame: str, data: str) -> None:
    found = codec.decode(bytes.fromhex(data))
    assert found == VALID[name]
    assert json.dumps(json.loads(frame)) == json.dumps(readable(codec.plain(found)))
    assert codec.encode(found).hex() == data.replace("\n", "")


def test_the_frame_taken_apart_is_the_heartbeat() -> None:
    rows = tables(section("## Frames"))[2]
    assert bytes.fromhex("".join(row[0] for row in rows)) == codec.encode(VALID["link.heartbeat.request"])


def test_every_link_inside_the_document_leads_somewhere() -> None:
    headings = {
        re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in TEXT.splitlines()
        if line.startswith("#")
    }
    assert set(re.findall(r"\]\(#([\w-]+)\)", TEXT)) <= headings


# ── capabilities and the data plane ─────────────────────────────────────────────────────────────────────────


def test_the_capabilities_are_those_of_the_table() -> None:
    def cell(fields) -> str:  # type: ignore[no-untyped-def]
        return ", ".join(f"`{name}` {kind}" for name, kind in fields.items()).strip("`") or "nothing"

    (rows,) = tables(section("## Capabilities"))
    assert rows == [
        [
            rule.verb.value,
            rule.reach.value,
            "yes" if rule.mutates else "no",
            cell(rule.takes),
            cell(rule.gives),
        ]
        for rule in capabilities.RULES
    ]


DATA_PLANE = section("## The data plane")
BODIES = re.findall(r"^```body (\w+)\n(.*)\n([0-9a-f\n]+)```$", TEXT, re.MULTILINE)


def test_the_paths_of_the_data_plane_are_those_of_the_grammar() -> None:
    uuid, digest = "0b9c1f6e-6f0e-4f0a-9a55-2f1f6c3f7a10", "ab" * 32
    filled = {"<record>": uuid, "<dispatch>": uuid, "<sha256>": digest, "<n>": "7"}
    (rows,) = tables(section("### Requests"))[:1]
    named = []
    for methods, path, *_ in rows:
        for hole, value in filled.items():
            path = path.replace(hole, value)
        found = dataplane.parse_path(path)
        assert found is not None, path
        assert found.key in (uuid, digest)
        named.append((found.route, methods))
    assert {route for route, _ in named} == set(dataplane.Route)
    served = {
        route: ", ".join(methods for one, methods in named if one is route) for route in dataplane.Route
    }
    assert served == {route: ", ".join(methods) for route, methods in METHODS.items()}


def test_the_headers_of_the_data_plane_are_those_of_the_program() -> None:
    named = [row[0] for row in tables(section("### Requests"))[1]]
    assert named == ["authorization", dataplane.DISPATCH_HEADER, dataplane.FENCE_HEADER]
    named = [row[0] for row in tables(section("### Uploads"))[0]]
    assert set(named) == {dataplane.UPLOAD_OFFSET, dataplane.UPLOAD_LENGTH, dataplane.UPLOAD_DIGEST}


def test_every_code_of_the_data_plane_stands_there_with_its_status() -> None:
    (rows,) = tables(section("### Refusals of the data plane"))
    assert {code: int(status) for code, status in rows} == {
        code.value: status for code, status in dataplane.STATUS.items()
    }


@pytest.mark.parametrize(
    "sentence",
    [
        f"below `{dataplane.PREFIX}/`",
        f"the statuses {', '.join(map(str, sorted(dataplane.RETRIED)))}.",
        f"no answer within {limits.DATA_ANSWER_S:g} s",
        f"the ceiling {limits.DATA_RETRY_S_MIN:g} s at first and doubled up to {limits.DATA_RETRY_S_MAX:g} s",
        f"`content-type: {dataplane.BODY_TYPE}`; at most {limits.WRITE_BODY_MAX} bytes",
        f"1 to {limits.WRITE_RECORDS_MAX} values of `Output`",
        f"Content in it is at most {limits.INLINE_WRITE_MAX} bytes a record",
        f"bytes of the whole upload, at most {limits.DATA_BODY_MAX}",
        f"sends at most {limits.UPLOAD_CHUNK} bytes in one",
        f"every {limits.UPLOAD_SYNC} bytes are made safe",
        f"At most {limits.UPLOADS_PER_DISPATCH_MAX} uploads of a dispatch are open at once",
    ],
)
def test_numbers_of_the_data_plane_are_the_limits(sentence: str) -> None:
    assert sentence in " ".join(DATA_PLANE.split())


def test_both_bodies_have_an_example() -> None:
    assert [name for name, _, _ in BODIES] == ["WriteBatch", "Written"]
    assert TEXT.count("```body ") == len(BODIES)


@pytest.mark.parametrize(("name", "value", "data"), BODIES, ids=[name for name, _, _ in BODIES])
def test_a_body_is_what_the_program_sends_to_the_byte(name: str, value: str, data: str) -> None:
    kind = {"WriteBatch": WriteBatch, "Written": Written}[name]
    found = codec.decode_body(bytes.fromhex(data), kind, limits.WRITE_BODY_MAX)
    assert codec.encode_body(found).hex() == data.replace("\n", "")
    shown = json.loads(json.dumps(attrs.asdict(found), default=lambda held: readable(bytes(held))))
    assert json.loads(value) == shown
