"""How sure a mean or a difference is: standard errors, McNemar's test, the paired bootstrap."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kshot.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its standard error.

    Attributes:
        mean: Mean of the values; the accuracy, if they are right or wrong.
        stderr: Standard error of the mean; NaN for a single value.
        n: Number of values.
    """

    mean: float
    stderr: float
    n: int


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """The difference of two means over the same examples.

    Attributes:
        difference: Mean of a minus mean of b.
        stderr: Standard deviation of the resampled differences.
        low: 2.5th percentile of them.
        high: 97.5th percentile of them.
    """

    difference: float
    stderr: float
    low: float
    high: float


def mean_and_stderr(values: Sequence[float]) -> Estimate:
    """Estimate a mean; for right-or-wrong values stderr is sqrt(p (1 - p) / (n - 1)).

    Args:
        values: One value an example; True counts as 1.

    Raises:
        ConfigError: There is no value.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0:
        raise ConfigError("expected at least one value to average, got none")
    stderr = float(sample.std(ddof=1)) / math.sqrt(sample.size) if sample.size > 1 else math.nan
    return Estimate(float(sample.mean()), stderr, sample.size)


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Return the exact two-sided p-value that two systems are right equally often.

    Only the m examples on which they differ count: under the hypothesis, the wins of one are
    Binomial(m, 1/2), and p = min(1, 2 P(X <= fewer wins)); 1 if they never differ.

    Args:
        a: Whether the first system is right, an example each.
        b: The same for the second system, on the same examples.

    Raises:
        ConfigError: Lengths differ, or there is no example.

    Reference: McNemar 1947; exact form as in Agresti, Categorical Data Analysis, section 11.1.
    """
    a_N, b_N = _pairs(a, b)
    wins_a, wins_b = int(np.sum(a_N > b_N)), int(np.sum(a_N < b_N))
    differing, fewer = wins_a + wins_b, min(wins_a, wins_b)
    term = tail = 1  # whole numbers: exact for any number of examples
    for wins in range(1, fewer + 1):
        term = term * (differing - wins + 1) // wins
        tail += term
    return float(min(1.0, 2 * tail / 2**differing))


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], seed: int = 0, num_samples: int = 10_000
) -> PairedDifference:
    """Resample the examples, the same for both systems, and look at how the difference of means varies.

    Args:
        a: One value an example for the first system; True counts as 1.
        b: The same for the second system, on the same examples.
        seed: Seed of the resampling.
        num_samples: How often to resample.

    Raises:
        ConfigError: Lengths differ, there is no example, or `num_samples` is below 1.

    Reference: Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13 (percentile interval).
    """
    if num_samples < 1:
        raise ConfigError(f"num_samples must be at least 1, got {num_samples}")
    a_N, b_N = _pairs(a, b)
    difference_N = a_N - b_N
    rng = np.random.default_rng(seed)
    size = difference_N.size  # one resample at a time: all at once would be num_samples x N numbers
    means = np.array([difference_N[rng.integers(size, size=size)].mean() for _ in range(num_samples)])
    low, high = np.percentile(means, [2.5, 97.5])
    return PairedDifference(float(difference_N.mean()), float(means.std()), float(low), float(high))


def _pairs(a: Sequence[float], b: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    a_N, b_N = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a_N.shape != b_N.shape or a_N.size == 0:
        raise ConfigError(
            f"expected two results for each of the same examples, got {a_N.size} and {b_N.size}"
        )
    return a_N, b_N
