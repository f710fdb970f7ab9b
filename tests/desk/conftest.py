"""The type of these tests is known to the engine and to the services."""

import pytest
from desk_site import with_writer

from swamp_orch.api.application import Application


@pytest.fixture(autouse=True)
def writer_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Application, "types", property(lambda self: with_writer(self.repository)))
