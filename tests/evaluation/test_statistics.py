"""Statistics: against values worked out by hand, and the closed forms they approach."""

import math

import numpy as np
import pytest

from kshot.errors import ConfigError
from kshot.evaluation.statistics import Estimate, mcnemar, mean_and_stderr, paired_bootstrap


def test_mean_and_stderr_of_right_and_wrong() -> None:
    estimate = mean_and_stderr([True] * 30 + [False] * 70)
    assert estimate == Estimate(0.3, pytest.approx(math.sqrt(0.3 * 0.7 / 99)), 100)


def test_mean_and_stderr_of_values() -> None:
    assert mean_and_stderr([1.0, 2.0, 6.0]) == Estimate(3.0, pytest.approx(math.sqrt(7 / 3)), 3)


def test_a_single_value_has_no_stderr() -> None:
    estimate = mean_and_stderr([True])
    assert (estimate.mean, estimate.n) == (1.0, 1)
    assert math.isnan(estimate.stderr)


def test_mean_refuses_no_value() -> None:
    with pytest.raises(ConfigError, match="expected at least one value to average, got none"):
        mean_and_stderr([])


@pytest.mark.parametrize(
    ("wins_a", "wins_b", "p_value"),
    [
        (5, 0, 2 / 32),
        (0, 5, 2 / 32),
        (1, 9, 2 * (1 + 10) / 1024),
        (2, 8, 2 * (1 + 10 + 45) / 1024),
        (6, 12, 2 * (1 + 18 + 153 + 816 + 3060 + 8568 + 18564) / 2**18),
        (3, 3, 1.0),
        (1, 0, 1.0),
        (0, 0, 1.0),
    ],
)
def test_mcnemar_against_hand_computed_values(wins_a: int, wins_b: int, p_value: float) -> None:
    a = [True] * 20 + [True] * wins_a + [False] * wins_b + [False] * 7
    b = [True] * 20 + [False] * wins_a + [True] * wins_b + [False] * 7
    assert mcnemar(a, b) == pytest.approx(p_value, rel=1e-12)


def test_mcnemar_of_many_examples_approaches_the_normal_law() -> None:
    wins_a, wins_b = 5_150, 4_850
    p_value = mcnemar([True] * wins_a + [False] * wins_b, [False] * wins_a + [True] * wins_b)
    z = (wins_a - wins_b - 1) / math.sqrt(wins_a + wins_b)
    assert p_value == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-2)


@pytest.mark.parametrize(("a", "b"), [([True], [True, False]), ([], [])])
def test_paired_tests_refuse_results_that_are_not_pairs(a: list[bool], b: list[bool]) -> None:
    message = f"two results for each of the same examples, got {len(a)} and {len(b)}"
    with pytest.raises(ConfigError, match=message):
        mcnemar(a, b)
    with pytest.raises(ConfigError, match=message):
        paired_bootstrap(a, b)


def test_paired_bootstrap_against_the_standard_error_of_differences() -> None:
    rng = np.random.default_rng(0)
    b = rng.random(400) < 0.4
    a = b | (rng.random(400) < 0.2)
    difference_N = a.astype(float) - b
    found = paired_bootstrap(a.tolist(), b.tolist(), seed=1, num_samples=4_000)
    stderr = difference_N.std() / math.sqrt(400)
    assert found.difference == pytest.approx(difference_N.mean())
    assert found.stderr == pytest.approx(stderr, rel=0.05)
    assert found.low == pytest.approx(found.difference - 1.96 * stderr, abs=0.2 * stderr)
    assert found.high == pytest.approx(found.difference + 1.96 * stderr, abs=0.2 * stderr)


def test_invariant_bootstrap_repeats_and_changes_sign_with_the_order() -> None:
    a, b = [1.0, 0.0, 1.0, 1.0, 0.5], [0.0, 0.0, 1.0, 0.0, 1.0]
    one, other = (
        paired_bootstrap(a, b, seed=3, num_samples=200),
        paired_bootstrap(b, a, seed=3, num_samples=200),
    )
    assert one == paired_bootstrap(a, b, seed=3, num_samples=200)
    assert (one.difference, one.low, one.high) == pytest.approx((-other.difference, -other.high, -other.low))


def test_bootstrap_of_equal_results_is_zero() -> None:
    found = paired_bootstrap([True, False], [True, False], num_samples=10)
    assert (found.difference, found.stderr, found.low, found.high) == (0, 0, 0, 0)


def test_bootstrap_refuses_no_sample() -> None:
    with pytest.raises(ConfigError, match="num_samples must be at least 1, got 0"):
        paired_bootstrap([True], [True], num_samples=0)
