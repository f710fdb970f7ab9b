"""A place for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from children_place import Place


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    found = Place(tmp_path)
    yield found
    found.session.close()
