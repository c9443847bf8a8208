"""The answer in a few numbers: how good, against what, at what cost."""

from collections.abc import Iterator
from dataclasses import dataclass

from kshot.report.contents import Contents
from kshot.report.parts.evaluation import TUNED_MIXTURE
from kshot.report.parts.reading import Missing
from kshot.report.verdict import Verdict
from kshot.report.wording import duration, memory, percent, plural, signed

_RIVALS = {
    "base": "points over the base model",
    "best_single": "points over the best single, not tuned",
    "best_single_tuned": "points over the best single, tuned alike",
}


@dataclass(frozen=True, slots=True)
class Tile:
    """A number and what it says."""

    value: str
    label: str


def headline_tiles(contents: Contents, verdict: Verdict | None) -> list[Tile]:
    """Return the numbers that a run has, the result first."""
    return [*_result_tiles(contents, verdict), *_cost_tiles(contents)]


def _result_tiles(contents: Contents, verdict: Verdict | None) -> Iterator[Tile]:
    if verdict is None or isinstance(contents.evaluation, Missing):
        return
    tuned = next(arm for arm in contents.evaluation.arms if arm.key == TUNED_MIXTURE)
    accuracy = percent(tuned.accuracy, tuned.stderr)
    yield Tile(accuracy, f"right of {plural(tuned.n, 'test row')}, tuned mixture")
    for key, words in _RIVALS.items():
        if key in verdict.comparisons:
            comparison = verdict.comparisons[key]
            yield Tile(signed(comparison.difference, comparison.stderr), words)


def _cost_tiles(contents: Contents) -> Iterator[Tile]:
    cost = contents.cost
    if cost.stages:
        yield Tile(duration(cost.seconds), "of computing, all stages")
    if not isinstance(contents.training, Missing):
        yield Tile(f"{sum(one.num_tokens for one in contents.training):,}", "tokens trained on")
    if not isinstance(contents.selection, Missing) and contents.selection.num_tokens:
        yield Tile(f"{contents.selection.num_tokens:,}", "tokens scored to choose the experts")
    if cost.peak_memory_mb:
        yield Tile(memory(cost.peak_memory_mb), "peak memory")
    if cost.peak_accelerator_mb:
        yield Tile(memory(cost.peak_accelerator_mb), "peak memory of the accelerator")
