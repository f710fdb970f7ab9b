"""One orchestrator for all rows that leave it alone, reached through the weather; one with a short grace for rows that wait for it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from e2e_site import GRACE, Site
from enrollment_site import EnrollmentSite


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnrollmentSite]:
    with Site(tmp_path_factory.mktemp("shared")) as site:
        made = EnrollmentSite(site)
        try:
            yield made
        finally:
            made.close()


@pytest.fixture(scope="session")
def brief(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnrollmentSite]:
    """For rows that wait until a link is silent, or a grace window over."""
    with Site(tmp_path_factory.mktemp("brief")) as site:
        made = EnrollmentSite(site, "--grace", "6s")
        try:
            yield made
        finally:
            made.close()


@pytest.fixture
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnrollmentSite]:
    """For rows that stop the orchestrator."""
    with Site(tmp_path_factory.mktemp("own")) as site:
        made = EnrollmentSite(site, *GRACE)
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
