"""Adapters ranked by what the shots say of each, one at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kshot.experts.eligible import Scored
from kshot.experts.shot_losses import ShotLosses


@dataclass(frozen=True, slots=True)
class RankedAdapter:
    """An adapter's score on the shots, and its place in the bank.

    Attributes:
        name: Of the adapter.
        accuracy: Share of shots answered rightly.
        reasoning_ppl: Mean over the shots of exp(mean token NLL); may be infinite.
        answer_first_ppl: The same with the answer before the rationale, for comparison; None where no shot
            has a rationale.
        mean_nll: Mean over the shots of the mean token NLL, in nats.
        rank_ppl: RP over the bank, 1 being best; ties share the average rank.
        rank_accuracy: RA, likewise.
        rank_sum: RP + RA.
        loss: Of the method `robust`: mean loss over the shots, in standard deviations between adapters.
        stderr: Its standard error over the shots.
        near_tie: Whether the next of the ranking is worse by no more than the standard error of the paired
            difference, so that another draw of shots may turn the two round.
    """

    name: str
    accuracy: float
    reasoning_ppl: float
    answer_first_ppl: float | None
    mean_nll: float
    rank_ppl: float
    rank_accuracy: float
    rank_sum: float
    loss: float | None = None
    stderr: float | None = None
    near_tie: bool | None = None


def rank_adapters(scores: Sequence[Scored], losses: ShotLosses | None = None) -> tuple[RankedAdapter, ...]:
    """Rank by RP + RA, or by mean loss where there are losses; then by perplexity, then by name; best first.

    Args:
        scores: Of the adapters that may be chosen.
        losses: Of the same adapters in the same order.
    """
    rank_ppl = average_ranks(np.array([score.reasoning_ppl for score in scores]))
    rank_accuracy = average_ranks(-np.array([score.accuracy for score in scores]))
    value_M = rank_ppl + rank_accuracy if losses is None else losses.mean.round(12)
    order = sorted(
        range(len(scores)),
        key=lambda place: (value_M[place], scores[place].reasoning_ppl, scores[place].name),
    )
    return tuple(
        RankedAdapter(
            name=scores[place].name,
            accuracy=scores[place].accuracy,
            reasoning_ppl=scores[place].reasoning_ppl,
            answer_first_ppl=scores[place].answer_first_ppl,
            mean_nll=scores[place].mean_nll,
            rank_ppl=float(rank_ppl[place]),
            rank_accuracy=float(rank_accuracy[place]),
            rank_sum=float(rank_ppl[place] + rank_accuracy[place]),
            loss=None if losses is None else float(value_M[place]),
            stderr=None if losses is None else losses.stderr(place),
            near_tie=None if losses is None else _near_tie(losses, place, after),
        )
        for place, after in zip(order, [*order[1:], None], strict=True)
    )


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 1, ascending; equal values share the mean of the ranks they span."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[which]
    return ranks


def _near_tie(losses: ShotLosses, place: int, after: int | None) -> bool:
    if after is None:
        return False
    behind = losses.mean[after] - losses.mean[place]
    return bool(behind <= losses.stderr_between(place, after) + 1e-12)
