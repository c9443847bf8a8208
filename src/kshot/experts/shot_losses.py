"""How each adapter does on each shot, on one scale and so that no single shot decides.

M adapters   K shots
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kshot.errors import AdapterError, ConfigError
from kshot.experts.eligible import Scored

MeasureName = Literal["margin", "reasoning", "answer", "accuracy"]

MIN_SHOTS = 2  # a standard error over shots needs two
LARGEST_LOSS = 104.0  # nats: -log of the smallest float32; an infinite NLL says no more
HUBER = 1.345  # standard deviations: 95 % as efficient as the mean where errors are normal (Huber 1981)
_MAD_TO_SD = 1.4826  # of a normal distribution
_ROUNDS = 100  # of reweighting at most; about 20 are enough
_NO_BOUND = 2.0  # right and wrong, less their median and mean, differ by no more
_SETTLED = 1e-10  # of the bound: a smaller step ends the reweighting
_ALIKE = 1e-8  # of the bound: a smaller spread between adapters is rounding error


@dataclass(frozen=True, slots=True)
class Measure:
    """One of the numbers that a shot's loss is made of, and its share in it."""

    name: MeasureName
    weight: float


@dataclass(frozen=True, slots=True, eq=False)
class ShotLosses:
    """Losses in standard deviations between adapters; less is better.

    Attributes:
        by_shot: (M, K), of each adapter on each shot; 0 is the median adapter.
        mean: (M,), of each adapter over the shots.
        replicates: (K, M), mean loss of each adapter without shot k.
        measures: What the losses are made of; the weights add up to 1.
    """

    by_shot: np.ndarray
    mean: np.ndarray
    replicates: np.ndarray
    measures: tuple[Measure, ...]

    def stderr(self, place: int) -> float:
        """Return the standard error of an adapter's mean loss over the shots."""
        return float(_jackknife(self.replicates[:, place]))

    def stderr_between(self, one: int, other: int) -> float:
        """Return the standard error of the difference of two adapters' mean losses, paired by shot."""
        return float(_jackknife(self.replicates[:, one] - self.replicates[:, other]))


def shot_losses(scores: Sequence[Scored], shots: Sequence[int] | None = None) -> ShotLosses:
    """Turn scores into losses that neither one bad shot nor, where there are choices, the format can fool.

    Measures: the margin of the right choice over the best other; where the task has no choices, the NLL of
    rationale with answer and the NLL of the answer alone; and being wrong, 0 or 1. A margin is free of the
    format of answers, which all choices share; an NLL is not, so it counts only where there is nothing
    better. Both NLL count, since rationales alone rank adapters by how they word them
    (`benchmarks/ranking.py`). Of each measure y:

    1. `x_mk = y_mk - median_m y_mk`: paired, so that a hard shot is hard for none in particular.
    2. θ_m, the location of x_m over the shots: Huber's estimate with the bound `1.345 s`, s the adapters'
       pooled deviation from their own medians; for right and wrong the mean. Its standard error is the
       jackknife's.
    3. `σ`, the standard deviation of θ over the adapters (not a robust one: where few adapters stand out, a
       measure must not count more), and its reliability, `ρ = max(0, 1 - mean_m se(θ_m)² / σ²)`:
       the share of the spread that is no accident of the shots. A lucky answer among many wrong ones has
       none.

    The loss is `l_mk = Σ_y w_y (θ_m + clip(x_mk - θ_m)) / σ`, with w in proportion to ρ. Its mean over the
    shots is `Σ_y w_y θ_m / σ` exactly.

    Args:
        scores: All on the same K shots.
        shots: Places of the shots that count; all by default.

    Raises:
        ConfigError: Fewer than two shots, or not one result a shot.
        AdapterError: A result is not a number.
    """
    _check_shots(scores)
    places = list(range(len(scores[0].shot_nll)) if shots is None else shots)
    if len(places) < MIN_SHOTS:
        raise ConfigError(
            f"experts.method robust expected at least {MIN_SHOTS} shots, got {len(places)}: add shots, or "
            "use method paper"
        )
    parts = {name: _standardise(raw_MK[:, places], name) for name, raw_MK in _measured(scores).items()}
    total = sum(part.reliability for part in parts.values())
    measures = tuple(
        Measure(name, part.reliability / total if total else 1 / len(parts)) for name, part in parts.items()
    )
    loss_MK = np.zeros((len(scores), len(places)))
    replicates_KM = np.zeros((len(places), len(scores)))
    for one in measures:
        loss_MK += one.weight * parts[one.name].by_shot
        replicates_KM += one.weight * parts[one.name].replicates
    return ShotLosses(loss_MK, loss_MK.mean(axis=1), replicates_KM, measures)


def _check_shots(scores: Sequence[Scored]) -> None:
    want = len(scores[0].shot_nll)
    for score in scores:
        found = [len(score.shot_nll), len(score.shot_answer_nll), len(score.shot_correct)]
        if score.shot_margin is not None:
            found.append(len(score.shot_margin))
        if set(found) != {want}:
            raise ConfigError(
                f"adapter {score.name!r}: expected one result for each of {want} shots, got "
                f"{' and '.join(map(str, found))}: score the bank again"
            )
        if np.isnan([*score.shot_nll, *score.shot_answer_nll, *(score.shot_margin or ())]).any():
            raise AdapterError(
                f"adapter {score.name!r}: expected results that are numbers, got NaN on a shot: its weights "
                "may overflow in this dtype; leave it out with experts.exclude"
            )


def _measured(scores: Sequence[Scored]) -> dict[MeasureName, np.ndarray]:
    """Return raw losses, (M, K) each."""
    wrong_MK = 1.0 - np.array([score.shot_correct for score in scores], dtype=np.float64)
    margins = [score.shot_margin for score in scores]
    if all(margin is not None for margin in margins):
        return {"margin": _finite(-np.array(margins, dtype=np.float64)), "accuracy": wrong_MK}
    reasoning_MK = _finite(np.array([score.shot_nll for score in scores]))
    answer_MK = _finite(np.array([score.shot_answer_nll for score in scores]))
    if np.array_equal(reasoning_MK, answer_MK):  # no rationales
        return {"answer": answer_MK, "accuracy": wrong_MK}
    return {"reasoning": reasoning_MK, "answer": answer_MK, "accuracy": wrong_MK}


def _finite(loss_MK: np.ndarray) -> np.ndarray:
    clipped_MK: np.ndarray = np.clip(loss_MK, -LARGEST_LOSS, LARGEST_LOSS)
    return clipped_MK


@dataclass(frozen=True, slots=True, eq=False)
class _Standardised:
    by_shot: np.ndarray
    replicates: np.ndarray
    reliability: float


def _standardise(raw_MK: np.ndarray, name: MeasureName) -> _Standardised:
    paired_MK = raw_MK - np.median(raw_MK, axis=0)
    bound = _NO_BOUND if name == "accuracy" else _huber_bound(paired_MK)
    num_shots = paired_MK.shape[1]
    location_M = _location(paired_MK, np.ones(num_shots), bound, np.median(paired_MK, axis=1))
    without_KK = 1.0 - np.eye(num_shots)
    replicates_MK = _location(paired_MK[:, None], without_KK, bound, np.tile(location_M[:, None], num_shots))
    spread, noise = _spread(location_M, _jackknife(replicates_MK.T))
    if spread <= _ALIKE * bound:
        return _Standardised(np.zeros_like(paired_MK), np.zeros_like(replicates_MK.T), 0.0)
    clipped_MK = location_M[:, None] + np.clip(paired_MK - location_M[:, None], -bound, bound)
    reliability = max(0.0, 1.0 - (noise / spread) ** 2)
    return _Standardised(clipped_MK / spread, replicates_MK.T / spread, reliability)


def _huber_bound(paired_MK: np.ndarray) -> float:
    from_own = np.abs(paired_MK - np.median(paired_MK, axis=1, keepdims=True))
    deviation = _MAD_TO_SD * float(np.median(from_own))
    return HUBER * (deviation or float(from_own.mean()) or 1.0)


def _location(x: np.ndarray, counts: np.ndarray, bound: float, start: np.ndarray) -> np.ndarray:
    """Return Huber's location over the last axis, of the numbers that count, by reweighting."""
    location = start
    for _ in range(_ROUNDS):
        away = x - location[..., None]
        weights = counts * bound / np.maximum(np.abs(away), bound)
        step = (weights * away).sum(axis=-1) / weights.sum(axis=-1)
        location = location + step
        if np.abs(step).max() < _SETTLED * bound:
            break
    return location


def _spread(location_M: np.ndarray, stderr_M: np.ndarray) -> tuple[float, float]:
    """Return the standard deviation between adapters and the noise in it, to the same bits in any order."""
    if len(location_M) == 1:
        return 0.0, 0.0
    return float(np.sort(location_M).std(ddof=1)), float(np.sqrt(np.sort(stderr_M**2).mean()))


def _jackknife(replicates_KM: np.ndarray) -> np.ndarray:
    error: np.ndarray = replicates_KM.std(axis=0) * np.sqrt(len(replicates_KM) - 1)
    return error
