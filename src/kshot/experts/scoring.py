"""Score every adapter on the shots: accuracy, and how well it predicts the reasoning to the answer.

Several adapters share a batch: they lie side by side in one mixture, and each row's gates are one-hot.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kshot.bank import Adapter, Bank
from kshot.evaluation import evaluate
from kshot.examples import Example
from kshot.experts.attach import attached
from kshot.language_model import LanguageModel
from kshot.mixture import set_row_gates
from kshot.prompts import form_of

ADAPTERS_AT_ONCE = (
    16  # of rank 16: their stacked rank, 256, costs less than half of a projection of width 576
)


@dataclass(frozen=True, slots=True)
class ExpertScore:
    """How one adapter does on the shots.

    Attributes:
        name: Of the adapter.
        accuracy: Share of shots answered right.
        reasoning_ppl: Mean over the shots of exp(mean NLL of a target token): rationale, then answer.
        mean_nll: Mean over the shots of the mean NLL of a target token, in nats: one shot cannot rule it.
        n: Number of shots.
        num_rationales: How many of them have a rationale; where it is 0 the perplexity is that of the answer.
        num_tokens: Target tokens scored.
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
    adapters_at_once: int = ADAPTERS_AT_ONCE,
    on_score: Callable[[ExpertScore], None] | None = None,
) -> list[ExpertScore]:
    """Score every adapter of a bank; the base model is loaded once, adapters come and go in groups.

    Args:
        lm: The base model.
        bank: Adapters that fit it.
        shots: The K examples.
        scorer: As in `kshot.evaluate`.
        listed: As in `kshot.evaluate`.
        max_new_tokens: Longest generated answer.
        adapters_at_once: Adapters that share a batch.
        on_score: Called with each score as soon as it is known.

    Returns:
        One score an adapter, in the order of the bank.

    Raises:
        AdapterError: An adapter cannot be read or does not fit the base model.

    Reference: arXiv 2408.15915v2, section 3.2, in the length-normalised form that its printed numbers fit.
    """
    adapters, scores = list(bank), []
    for start in range(0, len(adapters), adapters_at_once):
        for score in _score_together(
            lm, adapters[start : start + adapters_at_once], shots, scorer, listed, max_new_tokens
        ):
            scores.append(score)
            if on_score:
                on_score(score)
    return scores


def _score_together(
    lm: LanguageModel,
    adapters: Sequence[Adapter],
    shots: Sequence[Example],
    scorer: str,
    listed: bool,
    max_new_tokens: int,
) -> list[ExpertScore]:
    """Score a few adapters in shared batches; row i is shot i % K under adapter i // K."""
    num_shots, num_adapters = len(shots), len(adapters)
    one_hot_NN = torch.eye(num_adapters)

    def use_own_adapter(rows: list[int]) -> None:
        set_row_gates(lm.model, one_hot_NN[[row // num_shots for row in rows]])

    form = form_of(scorer, listed=listed)
    targets = [lm.template.encode_example(shot, form, rationale=True) for shot in shots]
    experts = {adapter.name: adapter.load() for adapter in adapters}
    with attached(lm, experts, gates=[1 / num_adapters] * num_adapters):
        nll = lm.token_nll(targets * num_adapters, on_rows=use_own_adapter)
        result = evaluate(
            lm,
            list(shots) * num_adapters,
            scorer=scorer,
            listed=listed,
            max_new_tokens=max_new_tokens,
            on_rows=use_own_adapter,
        )
    return [
        _summarise(name, shots, nll[first : first + num_shots], result.correct[first : first + num_shots])
        for first, name in zip(range(0, len(nll), num_shots), experts, strict=True)
    ]


def _summarise(
    name: str, shots: Sequence[Example], nll: Sequence[np.ndarray], correct: Sequence[bool]
) -> ExpertScore:
    means = [float(values.mean()) for values in nll]
    return ExpertScore(
        name=name,
        accuracy=float(np.mean(correct)),
        reasoning_ppl=float(np.mean([math.exp(min(mean, 700.0)) for mean in means])),  # exp(710) overflows
        mean_nll=float(np.mean(means)),
        n=len(shots),
        num_rationales=sum(bool(shot.rationale) for shot in shots),
        num_tokens=sum(len(values) for values in nll),
        shot_nll=tuple(means),
        shot_correct=tuple(correct),
    )
