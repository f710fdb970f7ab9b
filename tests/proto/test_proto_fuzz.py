"""The fuzz targets run, replay from a seed, and their generators reach every message."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from swamp_proto.envelope import Event, Failure, Request, Response
from swamp_proto.messages import RULES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("target", ["fuzz_codec", "fuzz_session"])
def test_a_target_runs_for_its_time_and_finds_nothing(target: str) -> None:
    done = subprocess.run(
        [sys.executable, f"fuzz/{target}.py", "--seconds", "1", "--seed", "7"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{target}: ")
    assert int(done.stdout.split()[1]) > 5


def test_the_generator_reaches_every_message_and_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "fuzz"))
    import wire_frames

    def drawn() -> list[object]:
        dice = random.Random("seed")
        return [wire_frames.frame(dice) for _ in range(600)]

    frames = drawn()
    assert frames == drawn()
    assert {type(f.body) for f in frames if isinstance(f, Request | Event)} == {rule.body for rule in RULES}
    assert {type(f.body) for f in frames if isinstance(f, Response)} == {r.reply for r in RULES if r.reply}
    assert any(isinstance(f, Failure) for f in frames)
