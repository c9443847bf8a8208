"""A sandbox for tests, and the reason why there is none."""

from collections.abc import Iterator

import pytest

from kshot.errors import SandboxError
from kshot.evaluation import sandbox
from kshot.evaluation.sandbox import Limits, Sandbox


@pytest.fixture(autouse=True)
def _tried_anew() -> Iterator[None]:
    """A test may take bubblewrap away: no other sees what it found."""
    yield
    sandbox._open.cache_clear()


@pytest.fixture
def real_sandbox() -> Sandbox:
    """The sandbox that scorers use."""
    try:
        return sandbox.open_sandbox()
    except SandboxError as error:
        pytest.skip(str(error))


@pytest.fixture
def quick(real_sandbox: Sandbox) -> Sandbox:
    """The same with little time."""
    return Sandbox(Limits(cpu_s=1, wall_s=60), real_sandbox._bwrap, real_sandbox._filter)
