"""Which adapters become experts: good on the shots, and different from each other.

RP, RA: ranks of an adapter by perplexity and accuracy   RD: rank of a group by mean pairwise similarity
C candidates   N experts   G groups
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import combinations
from typing import Any, Literal, Protocol, get_args

import numpy as np

from kshot.errors import AdapterError, ConfigError
from kshot.experts.similarity import Similarity

Balance = Literal["paper", "normalised"]

MAX_GROUPS = 200_000  # formed and sorted in about three seconds
GROUPS_IN_JSON = 70  # all groups of the paper's setting, 4 of 8
_DECIMALS = 12  # beyond these, similarities differ by the order of summation alone


class Scored(Protocol):
    """What selection needs of an adapter's score on the shots."""

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
    def mean_nll(self) -> float:
        """Mean over the shots of the mean token NLL, in nats; stored, not ranked."""

    @property
    def n(self) -> int:
        """Shots scored."""


@dataclass(frozen=True, slots=True)
class RankedAdapter:
    """An adapter's score and its ranks over the bank, 1 being best; ties share the average rank."""

    name: str
    accuracy: float
    reasoning_ppl: float
    mean_nll: float
    rank_ppl: float
    rank_accuracy: float
    rank_sum: float


@dataclass(frozen=True, slots=True)
class Group:
    """N candidates that could be the experts; in every number, less is better.

    Attributes:
        members: Best first.
        quality: Σ (RP + RA).
        similarity: Mean pairwise, rounded to 12 decimals; 0 for a single expert.
        similarity_rank: RD over all groups, ties averaged.
        total: `quality + similarity_rank`, or both scaled to [0, 1] before they are added.
    """

    members: tuple[str, ...]
    quality: float
    similarity: float
    similarity_rank: float
    total: float


@dataclass(frozen=True, slots=True)
class ExpertSelection:
    """The chosen experts, and all that they were chosen from.

    Attributes:
        experts: Best first by RP + RA.
        candidates: The C best of the ranking.
        ranking: The whole bank but for what was excluded, best first.
        groups: All groups of N candidates, best first.
        balance: How quality and similarity were added.
        excluded: Names left out by request.
    """

    experts: tuple[str, ...]
    candidates: tuple[RankedAdapter, ...]
    ranking: tuple[RankedAdapter, ...]
    groups: tuple[Group, ...]
    balance: Balance
    excluded: tuple[str, ...]

    @property
    def best_single(self) -> str:
        """The best single expert by the shots: first of the ranking."""
        return self.ranking[0].name

    def why(self) -> str:
        """Say in a sentence or two why the group won: its terms, the runner-up and the margin."""
        winner = self.groups[0]
        chosen = (
            f"Chose {', '.join(winner.members)} out of {len(self.ranking)} adapters: {self._terms(winner)}."
        )
        if len(self.groups) == 1:
            return f"{chosen} With {len(self.candidates)} candidates there was no other group."
        second = self.groups[1]
        swapped_in = ", ".join(name for name in second.members if name not in winner.members)
        swapped_out = ", ".join(name for name in winner.members if name not in second.members)
        return (
            f"{chosen} The runner-up takes {swapped_in} instead of {swapped_out}: {self._terms(second)}; "
            f"{_margin(winner, second)}."
        )

    def to_json(self) -> dict[str, Any]:
        """Return everything a report needs, with at most 70 groups; an infinite number becomes None."""
        return {
            "experts": list(self.experts),
            "best_single": self.best_single,
            "why": self.why(),
            "balance": self.balance,
            "excluded": list(self.excluded),
            "candidates": [_plain(one) for one in self.candidates],
            "ranking": [_plain(one) for one in self.ranking],
            "num_groups": len(self.groups),
            "groups": [_plain(one) for one in self.groups[:GROUPS_IN_JSON]],
        }

    def _terms(self, group: Group) -> str:
        scaled = " with both scaled to [0, 1]" if self.balance == "normalised" else ""
        return (
            f"sum of ranks {group.quality:g}, mean similarity {group.similarity:.3f} "
            f"(rank {group.similarity_rank:g} of {len(self.groups)}), total {group.total:.4g}{scaled}"
        )


def select_experts(
    scores: Sequence[Scored],
    similarity: Similarity,
    *,
    num_experts: int = 4,
    num_candidates: int = 8,
    balance: Balance = "paper",
    exclude: Sequence[str] = (),
) -> ExpertSelection:
    """Choose the group of adapters that is good on the shots and least alike.

    Adapters are ranked by perplexity (RP, ascending) and accuracy (RA, descending). The `num_candidates` with
    the least RP + RA, then perplexity, then name, form all groups of `num_experts`; the group with the least
    `Σ (RP + RA) + RD` wins. Ties go to the least sum of ranks, then to the names: groups equal in total and
    sum are equal in similarity too. The result does not depend on the order of `scores`.

    Args:
        scores: One for each adapter, all on the same shots.
        similarity: Of the candidates at least.
        num_experts: N.
        num_candidates: C; a smaller bank is taken whole.
        balance: `paper` adds the raw ranks, of which RD reaches C-choose-N; `normalised` scales both terms to
            [0, 1] over the groups, a constant one to 0.
        exclude: Names or shell patterns of adapters left out before ranking.

    Raises:
        ConfigError: A setting is out of range, a pattern of `exclude` matches nothing, too few adapters are
            left, there are more than 200,000 groups, a name repeats or has no similarity, or the numbers of
            shots differ.
        AdapterError: A score is not a number.

    Reference: arXiv 2408.15915v2, section 3.2; ties are not settled there.
    """
    _check_settings(num_experts, num_candidates, balance)
    _check_names(scores)
    excluded = _excluded([score.name for score in scores], exclude)
    kept = [score for score in scores if score.name not in excluded]
    _check_scores(kept, num_experts, len(excluded))
    ranking = _rank(kept)
    candidates = ranking[:num_candidates]
    groups = _form_groups(candidates, similarity, num_experts, balance)
    return ExpertSelection(groups[0].members, candidates, ranking, groups, balance, excluded)


def _rank(scores: Sequence[Scored]) -> tuple[RankedAdapter, ...]:
    rank_ppl = _average_ranks(np.array([score.reasoning_ppl for score in scores]))
    rank_accuracy = _average_ranks(-np.array([score.accuracy for score in scores]))
    ranked = [
        RankedAdapter(
            score.name,
            score.accuracy,
            score.reasoning_ppl,
            score.mean_nll,
            float(rp),
            float(ra),
            float(rp + ra),
        )
        for score, rp, ra in zip(scores, rank_ppl, rank_accuracy, strict=True)
    ]
    return tuple(sorted(ranked, key=lambda one: (one.rank_sum, one.reasoning_ppl, one.name)))


def _average_ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 1, ascending; equal values share the mean of the ranks they span."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[which]
    return ranks


def _form_groups(
    candidates: Sequence[RankedAdapter], similarity: Similarity, num_experts: int, balance: Balance
) -> tuple[Group, ...]:
    """Return every group of N candidates, best first."""
    num_groups = math.comb(len(candidates), num_experts)
    if num_groups > MAX_GROUPS:
        raise ConfigError(
            f"expected at most {MAX_GROUPS:,} groups, got {num_groups:,} of {num_experts} experts from "
            f"{len(candidates)} candidates: lower experts.num_candidates"
        )
    members_GN = np.array(list(combinations(range(len(candidates)), num_experts)))
    quality_G = np.array([one.rank_sum for one in candidates])[members_GN].sum(axis=1)
    similarity_G = _mean_pairwise(similarity.among([one.name for one in candidates]), members_GN)
    rank_G = _average_ranks(similarity_G)
    terms = (quality_G, rank_G) if balance == "paper" else (_min_max(quality_G), _min_max(rank_G))
    total_G = np.round(terms[0] + terms[1], _DECIMALS)
    groups = [
        Group(tuple(candidates[index].name for index in members), *numbers)
        for members, *numbers in zip(
            members_GN.tolist(),
            quality_G.tolist(),
            similarity_G.tolist(),
            rank_G.tolist(),
            total_G.tolist(),
            strict=True,
        )
    ]
    return tuple(sorted(groups, key=lambda one: (one.total, one.quality, sorted(one.members))))


def _mean_pairwise(similarity_CC: np.ndarray, members_GN: np.ndarray) -> np.ndarray:
    num_experts = members_GN.shape[1]
    if num_experts == 1:
        return np.zeros(len(members_GN))
    pairs = list(combinations(range(num_experts), 2))
    sums_G = np.zeros(len(members_GN))
    for one, other in pairs:
        sums_G += similarity_CC[members_GN[:, one], members_GN[:, other]]
    return np.round(sums_G / len(pairs), _DECIMALS)


def _min_max(values: np.ndarray) -> np.ndarray:
    spread = np.ptp(values)
    return (values - values.min()) / spread if spread else np.zeros_like(values)


def _margin(winner: Group, second: Group) -> str:
    if winner.total < second.total:
        return f"it loses by {second.total - winner.total:.4g}"
    if winner.quality < second.quality:
        return "the totals are equal, and the smaller sum of ranks decided"
    return "the two are equal in every term, and the names decided"


def _plain(row: RankedAdapter | Group) -> dict[str, Any]:
    return {key: None if value == math.inf else value for key, value in asdict(row).items()}


def _excluded(names: Sequence[str], exclude: Sequence[str]) -> tuple[str, ...]:
    """Return the names that `exclude` matches, sorted."""
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


def _check_settings(num_experts: int, num_candidates: int, balance: str) -> None:
    if num_experts < 1:
        raise ConfigError(f"experts.num_experts must be at least 1, got {num_experts}")
    if num_candidates < num_experts:
        raise ConfigError(
            f"experts.num_candidates must be at least num_experts = {num_experts}, got {num_candidates}"
        )
    if balance not in get_args(Balance):
        raise ConfigError(f"experts.balance must be one of {', '.join(get_args(Balance))}, got {balance!r}")


def _check_names(scores: Sequence[Scored]) -> None:
    twice = sorted(name for name, count in Counter(score.name for score in scores).items() if count > 1)
    if twice:
        raise ConfigError(f"expected one score for each adapter, got several for {', '.join(twice)}")


def _check_scores(scores: Sequence[Scored], num_experts: int, num_excluded: int) -> None:
    if len(scores) < num_experts:
        excluded = f" after {num_excluded} excluded" if num_excluded else ""
        raise ConfigError(
            f"expected at least experts.num_experts = {num_experts} adapters, got {len(scores)}{excluded}: "
            "lower num_experts, enlarge the bank or exclude less"
        )
    for score in scores:
        numbers = {key: getattr(score, key) for key in ("accuracy", "reasoning_ppl", "mean_nll")}
        broken = [f"{key} = {value}" for key, value in numbers.items() if math.isnan(value)]
        if broken:
            raise AdapterError(
                f"adapter {score.name!r}: expected scores that are numbers, got {', '.join(broken)}: its "
                "weights may overflow in this dtype; leave it out with experts.exclude"
            )
    shots = sorted({score.n for score in scores})
    if len(shots) > 1:
        raise ConfigError(
            f"expected every adapter scored on the same shots, got {shots[0]} to {shots[-1]} of them: score "
            "the bank again"
        )
