"""Score every adapter on the shots: accuracy, and how well it predicts the reasoning to the answer."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kshot.bank import Adapter, Bank
from kshot.evaluation import evaluate
from kshot.examples import Example
from kshot.experts.attach import attached
from kshot.language_model import LanguageModel
from kshot.prompts import form_of


@dataclass(frozen=True, slots=True)
class ExpertScore:
    """How one adapter does on the shots.

    Attributes:
        name: Of the adapter.
        accuracy: Share of shots answered right.
        reasoning_ppl: Mean over the shots of exp(mean NLL of a target token); target: rationale, answer.
        mean_nll: Mean over the shots of the mean NLL of a target token, in nats: not at the mercy of one shot.
        n: Number of shots.
        num_rationales: How many of them have a rationale; where it is 0 the perplexity is that of the answer.
        num_tokens: Target tokens scored.
        seconds: Wall time.
        shot_nll: Mean NLL of each shot.
        shot_correct: Right or wrong, each shot.
    """

    name: str
    accuracy: float
    reasoning_ppl: float
    mean_nll: float
    n: int
    num_rationales: int
    num_tokens: int
    seconds: float
    shot_nll: tuple[float, ...]
    shot_correct: tuple[bool, ...]


def score_experts(
    lm: LanguageModel,
    bank: Bank,
    shots: Sequence[Example],
    *,
    scorer: str = "exact_match",
    listed: bool = False,
    max_new_tokens: int = 128,
    on_score: Callable[[ExpertScore], None] | None = None,
) -> list[ExpertScore]:
    """Score every adapter of a bank; the base model stays in memory, adapters come and go.

    Args:
        lm: The base model.
        bank: Adapters that fit it.
        shots: The K examples.
        scorer: As in `kshot.evaluate`.
        listed: As in `kshot.evaluate`.
        max_new_tokens: Longest generated answer.
        on_score: Called with each score as soon as it is known.

    Returns:
        One score an adapter, in the order of the bank.

    Raises:
        AdapterError: An adapter cannot be read or does not fit the base model.

    Reference: arXiv 2408.15915v2, section 3.2, in the length-normalised form that its printed numbers fit.
    """
    scores = []
    for adapter in bank:
        score = _score(lm, adapter, shots, scorer, listed, max_new_tokens)
        scores.append(score)
        if on_score:
            on_score(score)
    return scores


def _score(
    lm: LanguageModel,
    adapter: Adapter,
    shots: Sequence[Example],
    scorer: str,
    listed: bool,
    max_new_tokens: int,
) -> ExpertScore:
    started = time.monotonic()
    with attached(lm, {adapter.name: adapter.load()}, gates=[1.0]):
        nll = target_nll(lm, shots, scorer, listed=listed)
        result = evaluate(lm, shots, scorer=scorer, listed=listed, max_new_tokens=max_new_tokens)
    means = [float(values.mean()) for values in nll]
    return ExpertScore(
        name=adapter.name,
        accuracy=result.accuracy,
        reasoning_ppl=float(np.mean([math.exp(min(mean, 700.0)) for mean in means])),  # exp(710) overflows
        mean_nll=float(np.mean(means)),
        n=len(shots),
        num_rationales=sum(bool(shot.rationale) for shot in shots),
        num_tokens=sum(len(values) for values in nll),
        seconds=round(time.monotonic() - started, 2),
        shot_nll=tuple(means),
        shot_correct=tuple(result.correct),
    )


def target_nll(
    lm: LanguageModel, shots: Sequence[Example], scorer: str, *, listed: bool = False
) -> list[np.ndarray]:
    """Return the NLL of each token of rationale and answer, for each shot."""
    form = form_of(scorer, listed=listed)
    rows = [lm.template.encode_example(shot, form, rationale=True) for shot in shots]
    return lm.token_nll(rows)
