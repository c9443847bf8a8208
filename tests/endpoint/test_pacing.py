"""The rate limit, with a clock of the test's own."""

import pytest

from kshot.endpoint.pacing import Pacer
from kshot.errors import ConfigError


def _starts(limit: float | None, work_s: list[float]) -> list[float]:
    now = [100.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    pacer, starts = Pacer(limit, clock=lambda: now[0], sleep=sleep), []
    for seconds in work_s:
        pacer.wait()
        starts.append(now[0] - 100)
        now[0] += seconds
    return starts


def test_starts_are_evenly_spread() -> None:
    assert _starts(30, [0, 0, 0, 0]) == [0, 2, 4, 6]
    assert _starts(30, [0.5, 5, 0, 0]) == [0, 2, 7, 9]  # no burst after a slow one
    assert _starts(None, [0, 1, 0]) == [0, 0, 1]


@pytest.mark.parametrize("limit", [0, -1, float("nan")])
def test_a_limit_that_is_none(limit: float) -> None:
    with pytest.raises(ConfigError, match="requests_per_minute must be above 0, got"):
        Pacer(limit)
