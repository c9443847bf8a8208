"""Which scored adapters may be chosen: those not excluded, all with numbers on the same shots."""

import math
from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Protocol

from kshot.errors import AdapterError, ConfigError


class Scored(Protocol):
    """What selection needs of an adapter's score on the shots; `kshot.experts.ExpertScore` is one."""

    @property
    def name(self) -> str:
        """The adapter's."""

    @property
    def accuracy(self) -> float:
        """Share of the shots answered rightly."""

    @property
    def reasoning_ppl(self) -> float:
        """Mean over the shots of exp(mean token NLL); may be infinite."""

    @property
    def answer_first_ppl(self) -> float | None:
        """The same with the answer before the rationale; None where no shot has a rationale."""

    @property
    def mean_nll(self) -> float:
        """Mean over the shots of the mean token NLL, in nats."""

    @property
    def n(self) -> int:
        """Shots scored."""

    @property
    def shot_nll(self) -> Sequence[float]:
        """Mean token NLL of each shot, in nats."""

    @property
    def shot_answer_nll(self) -> Sequence[float]:
        """Likewise, of the answer alone; the same where a shot has no rationale."""

    @property
    def shot_correct(self) -> Sequence[bool]:
        """Right or wrong, each shot."""

    @property
    def shot_margin(self) -> Sequence[float] | None:
        """By how many nats a character the right choice of each shot is likelier than the best other.

        None where the task has no choices, or they are not compared by likelihood.
        """


def eligible(
    scores: Sequence[Scored], exclude: Sequence[str], num_experts: int
) -> tuple[list[Scored], tuple[str, ...]]:
    """Return the scores that count, and the names left out by request, sorted.

    Args:
        scores: One for each adapter.
        exclude: Names or shell patterns.
        num_experts: That must be left at least.

    Raises:
        ConfigError: A name repeats, a pattern matches nothing, too few adapters are left, or the numbers of
            shots differ.
        AdapterError: A score is not a number.
    """
    twice = sorted(name for name, count in Counter(score.name for score in scores).items() if count > 1)
    if twice:
        raise ConfigError(f"expected one score for each adapter, got several for {', '.join(twice)}")
    excluded = _excluded([score.name for score in scores], exclude)
    kept = [score for score in scores if score.name not in excluded]
    if len(kept) < num_experts:
        after = f" after {len(excluded)} excluded" if excluded else ""
        raise ConfigError(
            f"expected at least experts.num_experts = {num_experts} adapters, got {len(kept)}{after}: "
            "lower num_experts, enlarge the bank or exclude less"
        )
    for score in kept:
        _check_numbers(score)
    shots = sorted({score.n for score in kept})
    if len(shots) > 1:
        raise ConfigError(
            f"expected every adapter scored on the same shots, got {shots[0]} to {shots[-1]} of them: score "
            "the bank again"
        )
    return kept, excluded


def _excluded(names: Sequence[str], exclude: Sequence[str]) -> tuple[str, ...]:
    matched: set[str] = set()
    for pattern in exclude:
        found = [pattern] if pattern in names else [name for name in names if fnmatchcase(name, pattern)]
        if not found:
            near = ", ".join(get_close_matches(pattern, names, n=3, cutoff=0.0)) or "none in the bank"
            raise ConfigError(
                f"experts.exclude: expected names or patterns of adapters in the bank, got {pattern!r}, "
                f"which matches none; nearest: {near}"
            )
        matched.update(found)
    return tuple(sorted(matched))


def _check_numbers(score: Scored) -> None:
    numbers = {key: getattr(score, key) for key in ("accuracy", "reasoning_ppl", "mean_nll")}
    broken = [f"{key} = {value}" for key, value in numbers.items() if math.isnan(value)]
    if broken:
        raise AdapterError(
            f"adapter {score.name!r}: expected scores that are numbers, got {', '.join(broken)}: its "
            "weights may overflow in this dtype; leave it out with experts.exclude"
        )
