"""The score of an adapter, and the scores of a bank with those that have none."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import overload

LARGEST_EXPONENT = 700.0  # exp(710) is more than a float holds


@dataclass(frozen=True, slots=True)
class ShotResult:
    """What one adapter does on one shot.

    Attributes:
        nll: Mean NLL of a target token in nats, rationale first.
        answer_first_nll: Likewise, answer first.
        answer_nll: Likewise, of the answer alone.
        num_tokens: Target tokens.
        correct: Right by the task's scorer.
        answer: The generated text, or the choice taken.
        margin: See `ExpertScore.shot_margin`.
        seconds: Its share of the batches it was in.
    """

    nll: float
    answer_first_nll: float
    answer_nll: float
    num_tokens: int
    correct: bool
    answer: str
    margin: float | None
    seconds: float


@dataclass(frozen=True, slots=True)
class ExpertScore:
    """How one adapter does on the shots.

    Attributes:
        name: Of the adapter.
        accuracy: Share of shots answered right.
        reasoning_ppl: Mean over the shots of exp(mean NLL of a target token): rationale, then answer.
        answer_first_ppl: The same with the answer before the rationale; None where no shot has one.
        mean_nll: Mean over the shots of the mean NLL of a target token, in nats: one shot cannot rule it.
        median_nll: Median over the shots of the same.
        n: Number of shots.
        num_rationales: How many of them have a rationale; where it is 0 the perplexity is that of the answer.
        num_tokens: Target tokens scored, one order.
        shot_nll: Mean NLL of each shot.
        shot_answer_nll: Likewise, of the answer alone.
        shot_correct: Right or wrong, each shot.
        shot_margin: Of choices compared by likelihood: by how many nats per character the right one is
            likelier than the best other, above 0 exactly where the shot is right; None for other tasks.
        shot_answer: What was generated or chosen, each shot.
        seconds: Wall time; batches that adapters share are divided by rows.
    """

    name: str
    accuracy: float
    reasoning_ppl: float
    answer_first_ppl: float | None
    mean_nll: float
    median_nll: float
    n: int
    num_rationales: int
    num_tokens: int
    shot_nll: tuple[float, ...]
    shot_answer_nll: tuple[float, ...]
    shot_correct: tuple[bool, ...]
    shot_margin: tuple[float, ...] | None
    shot_answer: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Scores(Sequence[ExpertScore]):
    """Scores of a bank, in its order.

    Attributes:
        scores: One for each adapter that could be scored.
        failures: For each other adapter why not.
    """

    scores: tuple[ExpertScore, ...]
    failures: Mapping[str, str]

    @overload
    def __getitem__(self, index: int) -> ExpertScore: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[ExpertScore, ...]: ...
    def __getitem__(self, index: int | slice) -> ExpertScore | tuple[ExpertScore, ...]:
        return self.scores[index]

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[ExpertScore]:
        return iter(self.scores)


def summarise(name: str, results: Sequence[ShotResult], num_rationales: int) -> ExpertScore:
    """Put an adapter's results on the shots together."""
    margins = [result.margin for result in results if result.margin is not None]
    nll = tuple(result.nll for result in results)
    return ExpertScore(
        name=name,
        accuracy=fmean(result.correct for result in results),
        reasoning_ppl=_mean_perplexity(nll),
        answer_first_ppl=_mean_perplexity([one.answer_first_nll for one in results])
        if num_rationales
        else None,
        mean_nll=fmean(nll),
        median_nll=median(nll),
        n=len(results),
        num_rationales=num_rationales,
        num_tokens=sum(result.num_tokens for result in results),
        shot_nll=nll,
        shot_answer_nll=tuple(result.answer_nll for result in results),
        shot_correct=tuple(result.correct for result in results),
        shot_margin=tuple(margins) if len(margins) == len(results) else None,
        shot_answer=tuple(result.answer for result in results),
        seconds=sum(result.seconds for result in results),
    )


def _mean_perplexity(nll: Sequence[float]) -> float:
    return fmean(math.exp(min(one, LARGEST_EXPONENT)) for one in nll)
