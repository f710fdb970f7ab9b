"""A site for each module, and its processes' words in the report of a test that failed."""

from collections.abc import Iterator
from typing import Any

import pytest
from e2e_site import Site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The module's repository; a module that needs an orchestrator starts it in a fixture of its own."""
    with Site(tmp_path_factory.mktemp("e2e")) as made:
        yield made


@pytest.fixture
def own_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A repository of one test, for what would disturb others."""
    with Site(tmp_path_factory.mktemp("e2e")) as made:
        yield made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, Site):
                report.sections.extend((f"site: {name}", text) for name, text in value.story())
    return report
