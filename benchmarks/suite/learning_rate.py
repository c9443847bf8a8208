"""The learning rate of an arm, from folds of the shots: no test row is read.

For each rate and fold the arm is built from half of the shots and the open rows, and the NLL of the other
half is measured. It sees scores of the bank on its own half alone. Open rows were picked for all shots, which
is the same for every arm. Cost: rates x folds trainings, each about as long as the arm's own.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np

from kshot.examples import Example
from kshot.experts import ScoreStore
from kshot.language_model import LanguageModel
from kshot.run_folder import digest
from suite.arm import Arm, Setting, encode
from suite.bank_scores import scores_on
from suite.budget import NUM_FOLDS


@dataclass(frozen=True)
class Trial:
    """One rate.

    Attributes:
        rate: Learning rate.
        nll: Mean NLL of a target token of the held-out shots, in nats, by fold; infinite where it diverged.
    """

    rate: float
    nll: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object; an infinite number becomes None."""
        return {"rate": self.rate, "nll": [value if math.isfinite(value) else None for value in self.nll]}


def choose_rate(
    arm: Arm,
    setting: Setting,
    fresh: Callable[[], LanguageModel],
    rates: Sequence[float],
    *,
    store: ScoreStore,
    key: str,
    max_rows: int,
    epochs: float | None = None,
    is_judged: bool = False,
) -> tuple[float, list[Trial]]:
    """Try every rate.

    Args:
        arm: Builds a model.
        setting: The arm's; its base model is not touched.
        fresh: Gives a base model that nothing has changed.
        rates: The grid; a single one is tried only to judge the arm.
        store: Keeps what was measured.
        key: Of all that the measurements depend on, beside rate and fold.
        max_rows: Open rows of a trial, at most.
        epochs: Of a trial; the arm's own where absent.
        is_judged: Whether the arm's NLL is wanted too.

    Returns:
        The rate with the least NLL, the lower of equals, and all trials; the middle of the grid and none
        where there is a single shot, of which nothing can be held out.
    """
    nothing_to_choose = len(rates) == 1 and not is_judged
    if nothing_to_choose or len(setting.shots) < NUM_FOLDS:
        return sorted(rates)[(len(rates) - 1) // 2], []
    folds = folds_of(len(setting.shots), setting.seed)
    trials = []
    for rate in sorted(rates):
        values = []
        for number, held_out in enumerate(folds):
            named = digest([key, rate, number, max_rows, epochs])
            if named not in store:
                trial = _without(replace(setting, lm=fresh()), held_out, rate, max_rows, epochs)
                shots = [setting.shots[place] for place in held_out]
                store.put({named: _held_out_nll(arm, trial, shots)})
            values.append(math.inf if store[named] is None else float(store[named]))
        trials.append(Trial(rate, tuple(values)))
    return min(trials, key=lambda trial: (fmean(trial.nll), trial.rate)).rate, trials


def folds_of(num_shots: int, seed: int) -> list[list[int]]:
    """Return the shots that each fold holds out; each is held out once."""
    order = np.random.default_rng(seed).permutation(num_shots)
    return [sorted(order[number::NUM_FOLDS].tolist()) for number in range(NUM_FOLDS)]


def _without(
    setting: Setting, held_out: Sequence[int], rate: float, max_rows: int, epochs: float | None
) -> Setting:
    kept = [place for place in range(len(setting.shots)) if place not in held_out]
    update: dict[str, Any] = {"learning_rate": rate} | ({"num_train_epochs": epochs} if epochs else {})
    return replace(
        setting,
        shots=[setting.shots[place] for place in kept],
        rows=setting.rows[:max_rows],
        scores=scores_on(setting.scores, kept),
        training=setting.training.model_copy(update=update),
        work=setting.work / "trial",
    )


def _held_out_nll(arm: Arm, setting: Setting, shots: list[Example]) -> float | None:
    """Return the mean over the shots of the mean NLL of a target token; None where it is no number."""
    setting.lm.model = arm(setting).model
    nll = fmean(float(values.mean()) for values in setting.lm.token_nll(encode(setting, shots)))
    return nll if math.isfinite(nll) else None
