"""Losses of shots that a model was not trained on, against likelihoods of one row at a time."""

import pytest
import torch

from kshot.examples import Example
from kshot.experts.held_out import UNITS, HeldOutLoss, held_out_losses, loss_measure
from kshot.experts.shot_losses import LARGEST_LOSS
from kshot.language_model import LanguageModel

SHOTS = [
    Example("sum of two and three?", "five", rationale="two and three is five", id="a"),
    Example("say yes", "yes", id="b"),
]
CHOICES = [
    Example("Is it yes?", "(A)", question="yes?", choices=("yes", "no maybe"), label=0, id="a"),
    Example("Is it 2?", "(B)", question="2?", choices=("0", "two", "the sum"), label=1, id="b"),
]


def _nll(lm: LanguageModel, prompt: str, target: str) -> list[float]:
    row = lm.template.encode(prompt, target)
    ids = torch.tensor([row.input_ids])
    with torch.no_grad():
        log_p = lm.model(input_ids=ids).logits[0].log_softmax(-1)
    return [-float(log_p[place - 1, ids[0, place]]) for place in range(row.prompt_length, len(row))]


@pytest.mark.parametrize("rationales", [True, False])
def test_against_the_mean_nll_of_one_row_at_a_time(tiny_lm: LanguageModel, rationales: bool) -> None:
    found = held_out_losses(tiny_lm, SHOTS, scorer="exact_match", listed=False, rationales=rationales)
    targets = ["two and three is five\nfive" if rationales else "five", "yes"]
    for one, shot, target in zip(found, SHOTS, targets, strict=True):
        nll = _nll(tiny_lm, shot.instruction, target)
        assert one.loss == pytest.approx(sum(nll) / len(nll), rel=1e-4)
        assert one.correct is None
    assert UNITS[loss_measure("exact_match", listed=False)] == "nats a token"


def test_against_margins_of_one_choice_at_a_time(tiny_lm: LanguageModel) -> None:
    found = held_out_losses(tiny_lm, CHOICES, scorer="multiple_choice", listed=False, rationales=False)
    for one, shot in zip(found, CHOICES, strict=True):
        assert shot.choices is not None
        per_character = [sum(_nll(tiny_lm, shot.question or "", text)) / len(text) for text in shot.choices]
        right = per_character.pop(shot.label or 0)
        assert one.loss == pytest.approx(right - min(per_character), rel=1e-3, abs=1e-4)
        assert one.correct == (one.loss < 0)
    assert UNITS[loss_measure("multiple_choice", listed=False)] == "nats a character"
    assert loss_measure("multiple_choice", listed=True) == "nll"


@pytest.mark.parametrize(("shots", "scorer"), [(SHOTS, "number"), (CHOICES, "multiple_choice")])
def test_a_model_that_gives_no_numbers_has_the_largest_loss(
    tiny_lm: LanguageModel, shots: list[Example], scorer: str
) -> None:
    with torch.no_grad():
        tiny_lm.model.lm_head.weight.fill_(torch.nan)
    found = held_out_losses(tiny_lm, shots, scorer=scorer, listed=False, rationales=True)
    correct = False if scorer == "multiple_choice" else None
    assert found == [HeldOutLoss(LARGEST_LOSS, correct)] * 2
