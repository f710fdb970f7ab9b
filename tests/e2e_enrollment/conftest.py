"""One orchestrator with a short grace for all rows that leave it alone, reached through the weather."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from e2e_site import Site
from enrollment_site import EnrollmentSite


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnrollmentSite]:
    with Site(tmp_path_factory.mktemp("shared")) as site:
        made = EnrollmentSite(site)
        try:
            yield made
        finally:
            made.close()


@pytest.fixture
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnrollmentSite]:
    """For rows that stop the orchestrator."""
    with Site(tmp_path_factory.mktemp("own")) as site:
        made = EnrollmentSite(site)
        try:
            yield made
        finally:
            made.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, EnrollmentSite):
                report.sections.extend((f"site: {name}", text) for name, text in value.site.story())
    return report
