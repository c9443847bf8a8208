"""How well a model does on shots that it was not trained on: one loss a shot, without generating.

C: choices of one shot.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kshot.evaluation.choices import choice_margin, predict_choice
from kshot.evaluation.judging import choices_of
from kshot.examples import Example
from kshot.experts.asked_shots import by_likelihood
from kshot.experts.shot_losses import LARGEST_LOSS
from kshot.language_model import LanguageModel
from kshot.prompts import form_of, prompt_of

LossMeasure = Literal["margin", "nll"]
UNITS: dict[LossMeasure, str] = {"margin": "nats a character", "nll": "nats a token"}


@dataclass(frozen=True, slots=True)
class HeldOutLoss:
    """A model on one shot.

    Attributes:
        loss: Less is better; never more than `LARGEST_LOSS`, which is what no number counts as.
        correct: Whether the likeliest choice is right; None for tasks that are answered in words.
    """

    loss: float
    correct: bool | None


def loss_measure(scorer: str, *, listed: bool) -> LossMeasure:
    """Return what a task's losses are: the margin, turned round, where choices are compared by likelihood."""
    return "margin" if by_likelihood(scorer, listed=listed) else "nll"


def held_out_losses(
    lm: LanguageModel, shots: Sequence[Example], *, scorer: str, listed: bool, rationales: bool
) -> list[HeldOutLoss]:
    """Return one loss for each shot.

    Where choices are compared by likelihood it is the margin of the right one over the best other in nats per
    character, turned round: a format that all choices share is no part of it. Else it is the mean NLL of a
    token of what the model is trained to answer.

    Args:
        lm: The model as it is now, adapters included.
        shots: None of which it was trained on.
        scorer: Of the task.
        listed: Whether multiple choice is asked with its options listed.
        rationales: Whether the answer that is trained begins with its rationale.
    """
    form = form_of(scorer, listed=listed)
    if loss_measure(scorer, listed=listed) == "nll":
        rows = [lm.template.encode_example(shot, form, rationale=rationales) for shot in shots]
        return [HeldOutLoss(_bounded(float(nll.mean())), None) for nll in lm.token_nll(rows)]
    choices = [choices_of(shot)[0] for shot in shots]
    nll = lm.token_nll(
        [
            lm.template.encode(prompt_of(shot, form), choice)
            for shot, own in zip(shots, choices, strict=True)
            for choice in own
        ]
    )
    ends = np.cumsum([len(own) for own in choices])
    groups = [nll[end - len(own) : end] for own, end in zip(choices, ends, strict=True)]
    return [_of_choices(shot, group) for shot, group in zip(shots, groups, strict=True)]


def _of_choices(shot: Example, nll: Sequence[np.ndarray]) -> HeldOutLoss:
    choices, label = choices_of(shot)
    sums_C = [float(values.sum()) for values in nll]
    if any(math.isnan(value) for value in sums_C):
        return HeldOutLoss(LARGEST_LOSS, False)
    taken = predict_choice(sums_C, choices, [len(values) for values in nll]).by_characters
    return HeldOutLoss(_bounded(-choice_margin(sums_C, choices, label)), taken == label)


def _bounded(loss: float) -> float:
    return LARGEST_LOSS if math.isnan(loss) else min(max(loss, -LARGEST_LOSS), LARGEST_LOSS)
