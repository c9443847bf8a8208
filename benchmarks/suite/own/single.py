"""Arms with one expert of the bank: a random one, the best by the shots, the best by test rows."""

from collections.abc import Mapping

import numpy as np
from torch import nn

from kshot.mixture import build_mixture
from suite.arm import Built, Setting
from suite.bank_scores import summary_of
from suite.own.choice import best_single
from suite.own.tuning import as_it_is, tuned


def build_random_tuned(setting: Setting) -> Built:
    """Tune an expert drawn by the seed."""
    names = [score.name for score in setting.scores]
    name = names[int(np.random.default_rng(setting.seed).integers(len(names)))]
    return tuned(setting, one_expert(setting, name), {"experts": [name]})


def build_best(setting: Setting) -> Built:
    """Return the best expert by the shots as it is."""
    name = best_single(setting.scores)
    return as_it_is(setting, one_expert(setting, name), {"experts": [name]})


def build_best_tuned(setting: Setting) -> Built:
    """Tune the best expert by the shots."""
    name = best_single(setting.scores)
    return tuned(setting, one_expert(setting, name), {"experts": [name]})


def build_oracle(setting: Setting) -> Built:
    """Return the expert that answers most rows of `Setting.scores` rightly; of equals the likeliest answers.

    A bound and no method, where the scores are those of test rows.
    """
    name = min(setting.scores, key=lambda score: (-score.accuracy, score.mean_nll, score.name)).name
    return as_it_is(
        setting, one_expert(setting, name), {"experts": [name], "bank": summary_of(setting.scores)}
    )


def build_named(setting: Setting, settings: Mapping[str, str]) -> Built:
    """Return the expert that `settings` call `name`, as it is."""
    return as_it_is(setting, one_expert(setting, settings["name"]), {"experts": [settings["name"]]})


def one_expert(setting: Setting, name: str) -> nn.Module:
    """Put one adapter on the base model; it can be trained."""
    return build_mixture(setting.lm.model, {name: setting.bank[name].load()}, fixed_gates=[1.0])
