"""Which arm is handed over: the tuned mixture, unless shots that it was not trained on speak against it.

A arms   K shots
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kshot.errors import ConfigError
from kshot.experts.shot_losses import LARGEST_LOSS, MIN_SHOTS


@dataclass(frozen=True, slots=True)
class JudgedArm:
    """One arm on shots that it was not trained on.

    Attributes:
        arm: Its name.
        loss: Mean over the shots.
        stderr: Standard error of the mean.
        difference_to_best: Its loss less that of the arm with the least.
        difference_stderr: Standard error of that difference, paired by shot.
    """

    arm: str
    loss: float
    stderr: float
    difference_to_best: float
    difference_stderr: float


@dataclass(frozen=True, slots=True)
class ArmChoice:
    """What was decided.

    Attributes:
        chosen: Name of an arm.
        reason: Why, in words.
        arms: All of them, in the order given.
    """

    chosen: str
    reason: str
    arms: tuple[JudgedArm, ...]


def choose_arm(
    losses: Mapping[str, Sequence[float]],
    titles: Mapping[str, str],
    *,
    preferred: str,
    safe: str,
    unit: str = "nats",
) -> ArmChoice:
    """Choose the arm that is handed over.

    1. The preferred arm, the tuned mixture, is the default if its mean loss is at most that of the safe one,
       the base model; otherwise the safe one is. Here the mean decides and no standard error: what does no
       better than the base is not worth its cost and its risk, and if the two are equally good, little is
       lost by taking the base.
    2. The default gives way to the arm with the least mean loss among those that are better than it by more
       than one standard error of the difference, paired by shot. Less is no reason: the other arms have an
       advantage, since they were picked by their results on these very shots, and the mixture has a
       handicap, since a fold of it saw fewer shots than the one that is handed over.

    So no arm with a greater mean loss than the base is ever chosen. Standard errors are over shots; they do
    not hold how much one training differs from another.

    Args:
        losses: (K,) of each of the A arms, on the same shots; less is better. What is no number, or larger
            than 104, counts as 104, the largest loss that float32 can tell.
        titles: What a person calls each arm.
        preferred: Name of the arm that the run was made for.
        safe: Name of the arm that does no harm.
        unit: Of the losses, for the reason.

    Raises:
        ConfigError: An arm is missing, there are fewer than two shots, or their number differs.

    Reference: the one-standard-error rule, Breiman et al., Classification and Regression Trees, 1984, 3.4.3.
    """
    loss_AK = _checked(losses, preferred, safe)
    names = list(losses)
    mean = dict(zip(names, loss_AK.mean(axis=1), strict=True))

    def paired(one: str, other: str) -> tuple[float, float]:
        difference_K = loss_AK[names.index(one)] - loss_AK[names.index(other)]
        return float(mean[one] - mean[other]), _stderr(difference_K)

    default = preferred if mean[preferred] <= mean[safe] else safe
    better = [name for name in names if _exceeds(*paired(default, name))]
    chosen = min(better, key=lambda name: mean[name], default=default)
    best = min(names, key=lambda name: (mean[name], name != chosen))
    arms = tuple(
        JudgedArm(name, float(mean[name]), _stderr(row_K), *paired(name, best))
        for name, row_K in zip(names, loss_AK, strict=True)
    )
    if chosen != preferred:
        reason = f"{_against(titles[preferred], titles[chosen], *paired(preferred, chosen), unit)}"
    elif best == preferred:
        reason = f"no other arm has a lower loss than the {titles[preferred]} on shots it was not trained on"
    else:
        by, error = paired(preferred, best)
        reason = (
            f"the {titles[best]} has a lower loss than the {titles[preferred]}, but by no more than one "
            f"standard error: {by:.3g} ± {error:.2g} {unit}"
        )
    return ArmChoice(chosen, reason, arms)


def _against(worse: str, better: str, by: float, error: float, unit: str) -> str:
    return (
        f"on shots it was not trained on, the {worse} has a greater loss than the {better}: "
        f"by {by:.3g} ± {error:.2g} {unit}"
    )


def _exceeds(difference: float, stderr: float) -> bool:
    return difference > 0 and difference > stderr


def _stderr(values_K: np.ndarray) -> float:
    return float(values_K.std(ddof=1)) / math.sqrt(len(values_K))


def _checked(losses: Mapping[str, Sequence[float]], preferred: str, safe: str) -> np.ndarray:
    for name in (preferred, safe):
        if name not in losses:
            raise ConfigError(f"expected losses of the arm {name}, got those of {', '.join(losses)}")
    counts = {len(values) for values in losses.values()}
    if len(counts) > 1 or min(counts) < MIN_SHOTS:
        raise ConfigError(
            f"expected losses of all arms on the same {MIN_SHOTS} shots or more, got "
            f"{' and '.join(map(str, sorted(counts)))}: add shots, or set evaluation.folds to 0"
        )
    loss_AK = np.nan_to_num(
        np.array([list(values) for values in losses.values()], dtype=np.float64),
        nan=LARGEST_LOSS,
        posinf=LARGEST_LOSS,
        neginf=-LARGEST_LOSS,
    )
    clipped_AK: np.ndarray = np.clip(loss_AK, -LARGEST_LOSS, LARGEST_LOSS)
    return clipped_AK
