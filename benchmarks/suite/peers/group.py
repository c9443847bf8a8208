"""Which adapters a peer mixes: the group of the published selection, so that arms differ in mixing alone."""

from collections.abc import Iterable
from random import Random

from kshot.config import ExpertsConfig
from kshot.experts import adapter_similarity, select_experts
from kshot.mixture import LoraExpert
from suite.arm import Setting

SELECTION = ExpertsConfig()  # the paper's: 4 of 8 candidates


def chosen_experts(setting: Setting) -> dict[str, LoraExpert]:
    """Return the N experts of the published selection, best first.

    Raises:
        ConfigError: Fewer than N adapters have scores.
        AdapterError: One of them cannot be read.
    """
    scored = setting.bank.subset([score.name for score in setting.scores])
    selection = select_experts(
        setting.scores,
        adapter_similarity(scored, SELECTION.similarity),
        num_experts=SELECTION.num_experts,
        num_candidates=SELECTION.num_candidates,
        method=SELECTION.method,
    )
    return {name: setting.bank[name].load() for name in selection.experts}


def random_experts(setting: Setting, most: int) -> dict[str, LoraExpert]:
    """Return `most` adapters drawn with the setting's seed, or all that have scores if they are fewer."""
    names = sorted(score.name for score in setting.scores)
    drawn = names if len(names) <= most else sorted(Random(setting.seed).sample(names, most))
    return {name: setting.bank[name].load() for name in drawn}


def num_weights(experts: Iterable[LoraExpert]) -> int:
    """Return how many numbers the experts' factors hold, padding not counted."""
    return sum(
        factors.A_rI.numel() + factors.B_Or.numel()
        for expert in experts
        for factors in expert.factors.values()
    )
