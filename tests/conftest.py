"""The order of the tests: folders that wait much come first, since what begins last is what everything else waits for at the end."""

import pytest

WAITING = ("canary", "docs", "e2e", "e2e_enrollment", "parity")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.relative_to(config.rootpath).parts[1] not in WAITING)
