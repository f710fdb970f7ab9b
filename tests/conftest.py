"""What holds for every test: the order, and that no property depends on how quick the machine is.

Folders that wait much come first, since what begins last is what everything else waits for at the end.
"""

import pytest
from hypothesis import HealthCheck, settings

WAITING = ("canary", "docs", "e2e", "e2e_enrollment", "parity")

settings.register_profile("swamp", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("swamp")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.relative_to(config.rootpath).parts[1] not in WAITING)
