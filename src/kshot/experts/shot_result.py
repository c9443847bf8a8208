"""What an adapter does on a shot, from stored likelihoods and answers. C: choices of a shot."""

from collections.abc import Mapping, Sequence
from typing import Any

from kshot.evaluation.choices import choice_margin, predict_choice
from kshot.experts.asked_shots import AskedShot
from kshot.experts.expert_score import ShotResult


def shot_result(
    shot: AskedShot, likelihoods: Mapping[str, Any], answered: Mapping[str, Any] | None
) -> ShotResult:
    """Put together what is stored of an adapter and a shot.

    Args:
        shot: As it was asked.
        likelihoods: `nll`, summed over the tokens of each of the shot's targets, in nats, and `seconds`.
        answered: `answer`, `correct` and `seconds`; None where the likeliest choice is the answer.
    """
    nll = dict(zip(shot.targets, likelihoods["nll"], strict=True))
    seconds = likelihoods["seconds"]
    margin: float | None = None
    if answered is None:
        answer, correct, margin = _choose(shot, [nll[choice] for choice in shot.choices])
    else:
        answer, correct, seconds = answered["answer"], answered["correct"], seconds + answered["seconds"]
    return ShotResult(
        nll=nll[shot.reasoning] / shot.reasoning.target_length,
        answer_first_nll=nll[shot.answer_first] / shot.answer_first.target_length,
        answer_nll=nll[shot.answer] / shot.answer.target_length,
        num_tokens=shot.reasoning.target_length,
        correct=correct,
        answer=answer,
        margin=margin,
        seconds=seconds,
    )


def _choose(shot: AskedShot, nll_C: Sequence[float]) -> tuple[str, bool, float]:
    """Return the choice taken, whether it is right, and the margin."""
    choices, label = shot.shot.choices, shot.shot.label
    assert choices is not None  # or the shot could not be asked
    assert label is not None
    taken = predict_choice(nll_C, choices, [choice.target_length for choice in shot.choices]).by_characters
    return choices[taken], taken == label, choice_margin(nll_C, choices, label)
