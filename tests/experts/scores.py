"""Scores and similarities made by hand for the tests of selection."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kshot.experts.similarity import Similarity


@dataclass(frozen=True)
class Score:
    """An adapter's score on the shots."""

    name: str
    accuracy: float
    reasoning_ppl: float
    mean_nll: float = 1.0
    n: int = 16
    shot_nll: tuple[float, ...] = ()
    shot_answer_nll: tuple[float, ...] = ()
    shot_correct: tuple[bool, ...] = ()
    shot_margin: tuple[float, ...] | None = None
    answer_first_ppl: float | None = None


def by_shot(
    name: str,
    nll: Sequence[float],
    correct: Sequence[bool] | None = None,
    margin: Sequence[float] | None = None,
    answer: Sequence[float] | None = None,
) -> Score:
    """A score from its results on each shot."""
    right = (False,) * len(nll) if correct is None else tuple(map(bool, correct))
    shots = tuple(map(float, nll))
    ppl, accuracy = float(np.exp(np.minimum(nll, 700.0)).mean()), float(np.mean(right))
    margins = None if margin is None else tuple(map(float, margin))
    answers = shots if answer is None else tuple(map(float, answer))
    return Score(name, accuracy, ppl, float(np.mean(nll)), len(shots), shots, answers, right, margins)


def similarity_of(
    names: Sequence[str], pairs: dict[str, float] | None = None, default: float = 0.5
) -> Similarity:
    """All pairs alike by `default`, but for those named by two letters."""
    matrix = np.full((len(names), len(names)), default)
    np.fill_diagonal(matrix, 1.0)
    for (one, other), value in (pairs or {}).items():
        i, j = names.index(one), names.index(other)
        matrix[i, j] = matrix[j, i] = value
    return Similarity(tuple(names), matrix)
