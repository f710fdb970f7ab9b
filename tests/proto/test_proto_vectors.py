"""The conformance kit holds: every file is current, every valid vector is read and written to the byte, every
invalid one is refused where it says. Read from the files alone, as another implementation would.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from swamp_proto import codec
from swamp_proto.checks import INT_MAX
from swamp_proto.envelope import Cancel, Event, Failure, Request, Response
from swamp_proto.errors import LimitExceeded, MalformedMessage, RefusalCode
from swamp_proto.messages import RULES
from swamp_proto.vectors import BROKEN, FOLDER, VALID, readable, stale

ROOT = Path(__file__).parents[2]


def documents(kind: str) -> list[Any]:
    return [
        pytest.param(json.loads(path.read_text()), id=path.stem)
        for path in sorted((FOLDER / kind).glob("*.json"))
    ]


def test_every_file_is_current() -> None:
    assert stale() == [], "run: python -m swamp_proto.vectors --write"


@pytest.mark.parametrize("document", documents("valid"))
def test_a_valid_vector_is_read_and_written_to_the_byte(document: dict[str, Any]) -> None:
    data = bytes.fromhex(document["hex"])
    frame = codec.decode(data)
    assert codec.encode(frame) == data
    assert json.dumps(readable(codec.plain(frame))) == json.dumps(document["frame"])


@pytest.mark.parametrize("document", documents("invalid"))
def test_an_invalid_vector_is_refused_with_its_code_at_its_place(document: dict[str, Any]) -> None:
    data = bytes.fromhex(document["hex"]) + bytes.fromhex(document.get("fill", "")) * document.get("times", 0)
    with pytest.raises((MalformedMessage, LimitExceeded)) as caught:
        codec.decode(data)
    assert caught.value.code == document["code"]
    assert getattr(caught.value, "path", None) == document["path"]


def test_every_message_reply_refusal_and_frame_has_a_vector() -> None:
    frames = VALID.values()
    assert {type(f.body) for f in frames if isinstance(f, Request | Event)} == {rule.body for rule in RULES}
    assert {type(f.body) for f in frames if isinstance(f, Response)} == {r.reply for r in RULES if r.reply}
    assert {f.failure.code for f in frames if isinstance(f, Failure)} == set(RefusalCode)
    assert {f.id for f in frames if isinstance(f, Cancel)} >= {INT_MAX}
    assert {broken.code for broken in BROKEN.values()} == {"malformed", "too_large", "protocol_mismatch"}


def test_the_command_says_what_is_stale_and_how_it_is_used() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "swamp_proto.vectors", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    fine = run()
    assert (fine.returncode, fine.stdout, fine.stderr) == (0, "", "")
    assert run("--nonsense").returncode == 2


def test_a_change_of_the_wire_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VALID, "cancel", Cancel(5))
    monkeypatch.setitem(VALID, "cancel.new", Cancel(6))
    monkeypatch.delitem(VALID, "failure.busy")
    assert stale() == ["valid/cancel.json", "valid/cancel.new.json", "valid/failure.busy.json"]
