"""One Ray of two cores for the tests of a module; workers of the tests travel to it by value."""

import os
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Ray, connected; it prints nothing and ends with the module."""
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'kshot[ray]'")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()
