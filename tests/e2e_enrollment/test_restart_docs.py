"""The documented rows of enrollment name tests that exist."""

import re
from pathlib import Path

import pytest
import test_restart_table

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", ["reference/enrollment-tokens.md", "guides/troubleshooting.md"])
def test_every_row_is_proved_by_a_test_that_exists(page: str) -> None:
    text = (DOCS / page).read_text()
    table = re.search(r"^\|[^\n]* proved by \|\n\|[-|]+\|\n((?:\|[^\n]*\n)+)", text, re.MULTILINE)
    assert table is not None
    for row in table[1].splitlines():
        named = re.findall(r"\[(test_\w+)\]", row)
        assert named, row
        for name in named:
            assert callable(getattr(test_restart_table, name)), name
