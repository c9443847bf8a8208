"""LoRAHub (arXiv 2307.13269): weights of adapters, found on the shots without gradients.

As published: 20 adapters drawn at random, weights in [-1.5, 1.5] that start at 0, 40 steps of nevergrad's
NGOpt, loss on the shots plus 0.05 times the mean absolute weight. Unlike the published code, which is for T5:

- weights combine weight changes, `Σ w_i s_i B_i A_i`; it combines A and B apart, which adds products of one
  adapter's B with another's A, and needs adapters of one shape;
- the loss is that of a causal model on response tokens, their mean; it divides that by the number of shots
  once more, so that the penalty would count 16 times as much with 16 shots;
- the best weights seen are kept, the start among them; NGOpt's recommendation may be none of those it tried.

Adapters are stacked once and a step changes their gates alone.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from kshot.errors import MissingExtraError
from kshot.language_model import LanguageModel
from kshot.mixture import build_mixture
from kshot.mixture.model import mixture_config, mixture_layers
from kshot.prompts import TokenisedExample
from suite.arm import Built, Setting, encode
from suite.peers.group import random_experts

try:
    import nevergrad
except ImportError:
    nevergrad = None

NUM_ADAPTERS = 20
STEPS = 40
BOUND = 1.5
PENALTY = 0.05


@dataclass(frozen=True)
class Found:
    """The best weights of a search.

    Attributes:
        weights: One an adapter.
        loss: Mean NLL of a response token on the shots, in nats.
        start_loss: The same with weights of 0, that is of the base.
    """

    weights: tuple[float, ...]
    loss: float
    start_loss: float


def build(setting: Setting) -> Built:
    """Search for weights of 20 random adapters.

    Raises:
        MissingExtraError: nevergrad is not installed.
    """
    _check_installed()
    experts = random_experts(setting, NUM_ADAPTERS)
    lm = setting.lm
    lm.model = build_mixture(lm.model, experts, fixed_gates=[0.0] * len(experts)).eval()
    found = search(lm, encode(setting, setting.shots), seed=setting.seed)
    weights = {name: round(weight, 4) for name, weight in zip(experts, found.weights, strict=True)}
    notes = {"weights": weights, "loss": found.loss, "start_loss": found.start_loss, "steps": STEPS}
    return Built(lm.model, len(weights), notes)


def search(
    lm: LanguageModel, rows: Sequence[TokenisedExample], *, steps: int = STEPS, seed: int = 0
) -> Found:
    """Search for weights, and leave the best in the model.

    Args:
        lm: Its model is a mixture with fixed gates.
        rows: The shots.
        steps: Weights to try.
        seed: Of the search.

    Raises:
        MissingExtraError: nevergrad is not installed.
    """
    _check_installed()
    num_adapters = mixture_config(lm.model, "default").num_experts
    space = nevergrad.p.Array(init=np.zeros(num_adapters), lower=-BOUND, upper=BOUND)
    space.random_state.seed(seed)
    optimizer = nevergrad.optimizers.NGOpt(parametrization=space, budget=steps)
    start_loss = best_loss = best = _loss(lm, rows, np.zeros(num_adapters))
    best_weights = np.zeros(num_adapters)
    with warnings.catch_warnings():  # NGOpt gives the solver it picks a tolerance of 0
        warnings.filterwarnings("ignore", "COBYLA: Invalid RHOEND", UserWarning)
        for _ in range(steps):
            candidate = optimizer.ask()
            loss = _loss(lm, rows, candidate.value)
            objective = loss + PENALTY * float(np.abs(candidate.value).mean())
            optimizer.tell(candidate, objective)
            if objective < best:
                best, best_loss, best_weights = objective, loss, candidate.value
    set_weights(lm.model, best_weights)
    return Found(tuple(map(float, best_weights)), best_loss, start_loss)


@torch.no_grad()
def set_weights(model: nn.Module, weights: Sequence[float] | np.ndarray) -> None:
    """Set the gates of a mixture that has fixed ones."""
    mixture_config(model, "default").fixed_gates = [float(weight) for weight in weights]
    for layer in mixture_layers(model, "default").values():
        gates_N = layer.mixture_gates["default"]
        gates_N.copy_(torch.as_tensor(weights, dtype=gates_N.dtype))


def _loss(lm: LanguageModel, rows: Sequence[TokenisedExample], weights: np.ndarray) -> float:
    set_weights(lm.model, weights)
    return float(np.concatenate(lm.token_nll(rows)).mean())


def _check_installed() -> None:
    if nevergrad is None:
        raise MissingExtraError("LoRAHub searches with nevergrad: pip install 'kshot[bench]'")
