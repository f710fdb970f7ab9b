"""The orchestrator of tests/desk, asked over real HTTP."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "desk"))

from desk_site import with_writer

from swamp_orch.api.application import Application


@pytest.fixture(autouse=True)
def writer_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Application, "types", property(lambda self: with_writer(self.repository)))
