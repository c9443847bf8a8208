"""How much there is to compute, in real tokens without padding, counted before anything is computed.

A range is what is known of an amount: shots and test rows are there, but nobody knows how long answers will
be, nor, before the data stage, which rows will be selected.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kshot.experts.asked_shots import AskedShot
from kshot.experts.shared_prompts import share_prompt

Kind = Literal[
    "score",  # tokens through the base, each row under its own adapter
    "score_answer",  # tokens decoded so
    "embed",  # characters, by data.encoder
    "scan",  # characters, by data.shortlist_encoder
    "train_single",  # tokens, forward and back
    "train_mixture",
    "read_single",  # tokens through one adapter, or through the base
    "read_mixture",
    "answer_single",  # tokens decoded so
    "answer_mixture",
]


@dataclass(frozen=True, slots=True)
class Amount:
    """Something to compute, from `low` to `high` units of its kind."""

    kind: Kind
    low: int
    high: int


def exactly(kind: Kind, amount: int) -> Amount:
    """Return an amount that is known."""
    return Amount(kind, amount, amount)


@dataclass(frozen=True, slots=True)
class AnswerLength:
    """Forward passes of an answer, of which the last gives its end: at least, at most."""

    low: int
    high: int


def scoring_tokens(shot: AskedShot, *, shares_prompts: bool, caches_prompts: bool, generates: bool) -> int:
    """Return the tokens that go through the model for one adapter on one shot, but for those it decodes.

    Args:
        shot: With its prompt and targets.
        shares_prompts: Whether targets of a prompt share a row.
        caches_prompts: Whether a prompt is computed once for targets and answer.
        generates: Whether the task lets the adapter answer.
    """
    if not shares_prompts:
        tokens = sum(len(target) for target in shot.targets)
    else:
        tokens = len(share_prompt(shot.targets))
    again = generates and not (shares_prompts and caches_prompts)
    return tokens + (shot.prompt_length - 1 if again else 0)


def training_range(
    kind: Kind, known: Sequence[int], sampled: Sequence[int], num_more: int, epochs: float
) -> Amount:
    """Return the tokens of a training.

    Args:
        kind: Of the model.
        known: Lengths of the rows that are known.
        sampled: Lengths of rows that stand for those that are not.
        num_more: Rows that are not known.
        epochs: How often each is seen.

    Returns:
        The unknown rows are between the lower and the upper quartile of the sample.
    """
    certain = sum(known)
    if not num_more or not sampled:
        return exactly(kind, round(certain * epochs))
    ordered = sorted(sampled)
    quartiles = (ordered[len(ordered) // 4], ordered[(3 * len(ordered)) // 4])
    low, high = (round((certain + num_more * length) * epochs) for length in quartiles)
    return Amount(kind, low, high)


def answering(read: Kind, answer: Kind, prompts: Sequence[int], length: AnswerLength) -> list[Amount]:
    """Return what answering prompts of these lengths takes; the last token of each begins the answer."""
    rows = len(prompts)
    return [
        exactly(read, sum(prompts) - rows),
        Amount(answer, rows * length.low, rows * length.high),
    ]
