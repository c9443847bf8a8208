"""Which experts an arm takes, by the shots."""

import numpy as np

from kshot.experts import ExpertScore, Scores, Similarity, adapter_similarity, select_experts
from kshot.experts.selection import SelectionMethod
from suite.arm import Setting
from suite.own_settings import MixtureArm


def best_single(scores: Scores) -> str:
    """Return the first of kshot's robust ranking, which is also the single expert that kshot must beat."""
    names = tuple(score.name for score in scores)
    unlike = Similarity(names, np.eye(len(names)))
    return select_experts(scores, unlike, num_experts=1, num_candidates=1, method="robust").best_single


def choose_experts(setting: Setting, wanted: MixtureArm) -> list[str]:
    """Return the names of a group, best first; of a single shot `robust` knows too little: `paper` chooses.

    Raises:
        ConfigError: There are fewer adapters than `num_experts`.
    """
    scores, count = setting.scores, wanted.num_experts
    if wanted.method == "random":
        names = [score.name for score in scores]
        return [names[place] for place in np.random.default_rng(setting.seed).permutation(len(names))[:count]]
    if wanted.method in ("rp", "ra"):
        order = _by_perplexity if wanted.method == "rp" else _by_accuracy
        return [score.name for score in sorted(scores, key=order)[:count]]
    ranks_alone = wanted.method == "rp+ra"  # as many candidates as experts: no group to choose
    method: SelectionMethod = "paper"
    if wanted.method == "balanced" or (wanted.method == "robust" and len(setting.shots) > 1):
        method = wanted.method
    similarity = adapter_similarity(setting.bank.subset([score.name for score in scores]), "delta")
    chosen = select_experts(
        scores,
        similarity,
        num_experts=count,
        num_candidates=count if ranks_alone else max(count, wanted.num_candidates),
        method=method,
    )
    return list(chosen.experts)


def _by_perplexity(score: ExpertScore) -> tuple[float, str]:
    return score.reasoning_ppl, score.name


def _by_accuracy(score: ExpertScore) -> tuple[float, str]:
    return -score.accuracy, score.name
