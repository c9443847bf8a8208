"""The answer in words: did it work, by how much, how sure is that; said as plainly when it did not work."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from kshot.report.parts.evaluation import TUNED_MIXTURE, Arm, Evaluation
from kshot.report.wording import p_value, percent, plural, points

CLEAR_BELOW = 0.05

Relation = Literal["better", "worse", "unclear"]
Tone = Literal["good", "partial", "bad"]

_NAMES = {
    "base": "the base model",
    "best_single": "the best single expert, picked by the shots and not tuned",
    "best_single_tuned": "the best single expert after the same tuning",
    "uniform_mixture": "the untuned mixture with equal weights",
}
_SHORT = {
    "best_single": "the best single expert",
    "best_single_tuned": "a single expert after the same tuning",
}
_RELATIONS: Mapping[Relation, str] = {
    "better": "clearly better",
    "worse": "clearly worse",
    "unclear": "no clear difference",
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """The tuned mixture against another arm, on the same test rows.

    Attributes:
        arm: The other one.
        difference: Accuracy of the tuned mixture minus that of the arm.
        stderr: Of the difference, paired; None for a single row.
        wins: Rows that the tuned mixture alone has right.
        losses: Rows that the arm alone has right.
    """

    arm: Arm
    difference: float
    stderr: float | None
    wins: int
    losses: int

    @property
    def relation(self) -> Relation:
        """How the tuned mixture stands to the arm."""
        if self.arm.p_value is None or self.arm.p_value >= CLEAR_BELOW or not self.difference:
            return "unclear"
        return "better" if self.difference > 0 else "worse"

    @property
    def sentence(self) -> str:
        """The comparison in words."""
        rows = f"it alone is right on {plural(self.wins, 'row')}, the other alone on {self.losses}"
        return (
            f"Against {_NAMES.get(self.arm.key, self.arm.title)} ({_accuracy(self.arm)}): "
            f"{_RELATIONS[self.relation]}, {_difference(self)} ({p_value(self.arm.p_value)}; {rows})."
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """The headline and what it rests on.

    Attributes:
        tone: `good` only where the tuned mixture clearly beats base, best single expert and its tuned self.
        lead: A few words.
        headline: The numbers against the base model, as the end of the sentence that the lead begins.
        comparisons: One an arm.
    """

    tone: Tone
    lead: str
    headline: str
    comparisons: Mapping[str, Comparison]


def judge(evaluation: Evaluation) -> Verdict:
    """Say whether the tuned mixture is better, arm by arm."""
    arms = {arm.key: arm for arm in evaluation.arms}
    tuned = arms[TUNED_MIXTURE]
    comparisons = {key: _compare(evaluation, arm) for key, arm in arms.items() if key != TUNED_MIXTURE}
    tone, lead = _lead({key: comparison.relation for key, comparison in comparisons.items()})
    headline = f"the tuned mixture answers {_accuracy(tuned)} of {plural(tuned.n, 'test row')} right"
    if "base" in comparisons:
        base = comparisons["base"]
        headline += (
            f", the base model {_accuracy(base.arm)}: {_difference(base)}, {p_value(base.arm.p_value)}"
        )
    return Verdict(tone, lead, f"{headline}.", comparisons)


def _compare(evaluation: Evaluation, arm: Arm) -> Comparison:
    own, other = evaluation.correct(TUNED_MIXTURE), evaluation.correct(arm.key)
    wins, losses = _wins(own, other)
    return Comparison(arm, *paired_difference(own, other), wins, losses)


def paired_difference(own: Sequence[bool], other: Sequence[bool]) -> tuple[float, float | None]:
    """Return the difference of two accuracies on the same rows, and its standard error; None for one row."""
    n = len(own)
    wins, losses = _wins(own, other)
    difference = (wins - losses) / n
    # variance of n values out of -1, 0, 1 with `wins` ones and `losses` minus ones
    spread = (wins + losses) / n - difference**2
    return difference, math.sqrt(max(spread, 0.0) / (n - 1)) if n > 1 else None


def _wins(own: Sequence[bool], other: Sequence[bool]) -> tuple[int, int]:
    pairs = list(zip(own, other, strict=True))
    return pairs.count((True, False)), pairs.count((False, True))


def _lead(relations: Mapping[str, Relation]) -> tuple[Tone, str]:
    base = relations.get("base", "unclear")
    if base == "worse":
        return "bad", "It did not work"
    if base == "unclear":
        return "bad", "No gain is shown"
    rivals = [key for key in ("best_single", "best_single_tuned") if key in relations]
    for relation, words in (("worse", "but clearly worse than"), ("unclear", "but not clearly better than")):
        names = [_SHORT[key] for key in rivals if relations[key] == relation]
        if names:
            return "partial", f"It worked in part, better than the base model {words} {' and '.join(names)}"
    return "good", "It worked"


def _accuracy(arm: Arm) -> str:
    return percent(arm.accuracy, arm.stderr)


def _difference(comparison: Comparison) -> str:
    if not comparison.difference:
        return f"{points(0.0, comparison.stderr)} apart"
    more = "more" if comparison.difference > 0 else "fewer"
    return f"{points(abs(comparison.difference), comparison.stderr)} {more}"
