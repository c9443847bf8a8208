"""Scores of a bank: on the shots, on some of them, and on test rows for the oracle."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from statistics import fmean, median

import numpy as np

from kshot.bank import Bank
from kshot.examples import Example
from kshot.experts import ExpertScore, Scores, ScoreStore, score_experts
from kshot.language_model import LanguageModel
from suite.recipe import TaskRecipe


def without_leaks(bank: Bank, recipe: TaskRecipe) -> Bank:
    """Return the adapters that were not trained on the task's own set."""
    leaks = [name for name in bank.names if any(fnmatchcase(name, one) for one in recipe.leaks)]
    return bank.subset([name for name in bank.names if name not in leaks])


def score_bank(
    lm: LanguageModel, bank: Bank, examples: Sequence[Example], recipe: TaskRecipe, store: ScoreStore
) -> Scores:
    """Score every adapter on examples; what the store holds is not computed again."""
    return score_experts(
        lm,
        bank,
        examples,
        scorer=recipe.scorer,
        listed=recipe.listed,
        max_new_tokens=recipe.max_new_tokens,
        store=store,
    )


def scores_on(scores: Scores, places: Sequence[int]) -> Scores:
    """Return what scores would be on some of the shots alone, so that the others stay unseen.

    `answer_first_ppl` is not kept by shot and becomes None; no ranking reads it.
    """
    return replace(scores, scores=tuple(_score_on(score, places) for score in scores))


def _score_on(score: ExpertScore, places: Sequence[int]) -> ExpertScore:
    nll = tuple(score.shot_nll[place] for place in places)
    margin = score.shot_margin
    return replace(
        score,
        accuracy=fmean(score.shot_correct[place] for place in places),
        reasoning_ppl=float(np.mean(np.exp(np.minimum(nll, 700.0)))),  # exp(710) is more than a float holds
        answer_first_ppl=None,
        mean_nll=fmean(nll),
        median_nll=median(nll),
        n=len(places),
        num_tokens=round(score.num_tokens * len(places) / score.n),
        num_rationales=min(score.num_rationales, len(places)),
        shot_nll=nll,
        shot_answer_nll=tuple(score.shot_answer_nll[place] for place in places),
        shot_correct=tuple(score.shot_correct[place] for place in places),
        shot_margin=None if margin is None else tuple(margin[place] for place in places),
        shot_answer=tuple(score.shot_answer[place] for place in places),
    )


def summary_of(scores: Scores) -> Mapping[str, dict[str, float]]:
    """Return accuracy and mean NLL of each adapter, for what is kept of a cell."""
    return {
        score.name: {"accuracy": round(score.accuracy, 4), "nll": round(score.mean_nll, 4)}
        for score in scores
    }
