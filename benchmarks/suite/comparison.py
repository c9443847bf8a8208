"""Means, standard errors and paired differences over stored cells.

Rows of a task are the same for every arm and seed. An arm's value of a row is the share of seeds that it
answers rightly; the variance of an accuracy is that of rows plus, with several seeds, that of seeds of shots.

N: test rows of a task, S: seeds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from kshot.evaluation.statistics import mcnemar
from suite.measure import right_of

NUM_SAMPLES = 10_000  # of the bootstrap, as kshot's own

Cells = Mapping[str, Mapping[str, Mapping[int, Mapping[str, Any]]]]
"""Stored cells by task, arm and seed."""


@dataclass(frozen=True)
class Mean:
    """A mean with its standard error.

    Attributes:
        value: The mean.
        stderr: NaN of a single row.
        num_seeds: Seeds of shots behind it.
    """

    value: float
    stderr: float
    num_seeds: int


@dataclass(frozen=True)
class Versus:
    """One arm against another on the same rows and seeds, over tasks.

    Attributes:
        difference: Mean over tasks of the difference of accuracies.
        stderr: Of it.
        low: 2.5th percentile of it over resampled rows.
        high: 97.5th percentile.
        by_task: Difference and its standard error by task.
        p_by_task: McNemar's test of the first common seed, by task.
    """

    difference: float
    stderr: float
    low: float
    high: float
    by_task: dict[str, Mean]
    p_by_task: dict[str, float]


def arrange(cells: Sequence[Mapping[str, Any]]) -> Cells:
    """Return cells by task, arm and seed."""
    found: dict[str, dict[str, dict[int, Mapping[str, Any]]]] = {}
    for cell in cells:
        found.setdefault(cell["task"], {}).setdefault(cell["arm"], {})[cell["seed"]] = cell
    return found


def accuracy_of(seeds: Mapping[int, Mapping[str, Any]]) -> Mean:
    """Return the accuracy of one arm on one task, over the seeds there are."""
    return _mean(_right_SN(seeds, sorted(seeds)))


def mean_over_tasks(of_tasks: Sequence[Mean]) -> Mean:
    """Return the mean of accuracies of several tasks, whose rows are different ones."""
    stderr = math.sqrt(sum(one.stderr**2 for one in of_tasks)) / len(of_tasks)
    return Mean(fmean(one.value for one in of_tasks), stderr, min(one.num_seeds for one in of_tasks))


def compare(cells: Cells, arm: str, other: str, *, sample_seed: int = 0) -> Versus | None:
    """Compare two arms on the tasks and seeds that both have; None where there are none."""
    generator = np.random.default_rng(sample_seed)
    by_task: dict[str, Mean] = {}
    p_by_task: dict[str, float] = {}
    sampled = []
    for task, arms in cells.items():
        common = sorted(set(arms.get(arm, {})) & set(arms.get(other, {})))
        if not common:
            continue
        a_SN, b_SN = _right_SN(arms[arm], common), _right_SN(arms[other], common)
        by_task[task] = _mean(a_SN - b_SN)
        p_by_task[task] = mcnemar(a_SN[0].astype(bool).tolist(), b_SN[0].astype(bool).tolist())
        sampled.append(_resampled((a_SN - b_SN).mean(axis=0), generator))
    if not by_task:
        return None
    mean = mean_over_tasks(list(by_task.values()))
    low, high = np.percentile(np.mean(sampled, axis=0), [2.5, 97.5])
    return Versus(mean.value, mean.stderr, float(low), float(high), by_task, p_by_task)


def best_other(cells: Cells, arm: str, among: Sequence[str]) -> str | None:
    """Return which of the others has the highest mean over the tasks of `arm`; it must have them all."""
    tasks = [task for task, arms in cells.items() if arm in arms]
    whole = [one for one in among if one != arm and all(one in cells[task] for task in tasks)]
    if not tasks or not whole:
        return None
    return max(whole, key=lambda one: fmean(accuracy_of(cells[task][one]).value for task in tasks))


def tasks_won(cells: Cells, arm: str, among: Sequence[str]) -> list[str]:
    """Return the tasks on which `arm` is better than every other that was run there."""
    won = []
    for task, arms in cells.items():
        others = [accuracy_of(arms[one]).value for one in among if one in arms and one != arm]
        if arm in arms and others and accuracy_of(arms[arm]).value > max(others):
            won.append(task)
    return won


def tasks_harmed(cells: Cells, arm: str, base: str) -> list[str]:
    """Return the tasks on which `arm` is below `base` by more than a standard error of their difference."""
    versus = compare(cells, arm, base)
    return [] if versus is None else [t for t, one in versus.by_task.items() if one.value < -one.stderr]


def _right_SN(  # noqa: N802 - the suffix is its shape
    seeds: Mapping[int, Mapping[str, Any]], wanted: Sequence[int]
) -> np.ndarray:
    """Return right or wrong by seed and row, rows in the order of their ids."""
    found = [right_of(dict(seeds[seed])) for seed in wanted]
    names = sorted(found[0])
    return np.array([[one[name] for name in names] for one in found], dtype=np.float64)


def _mean(values_SN: np.ndarray) -> Mean:
    num_seeds, num_rows = values_SN.shape
    variance = values_SN.mean(axis=0).var(ddof=1) / num_rows if num_rows > 1 else math.nan
    if num_seeds > 1:
        variance += values_SN.mean(axis=1).var(ddof=1) / num_seeds
    return Mean(float(values_SN.mean()), math.sqrt(variance), num_seeds)


def _resampled(values_N: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    size = values_N.size
    return np.array([values_N[generator.integers(size, size=size)].mean() for _ in range(NUM_SAMPLES)])
