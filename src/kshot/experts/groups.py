"""Groups of N candidates that could be the experts, weighed and sorted.

C candidates   N experts   G groups
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kshot.errors import ConfigError
from kshot.experts.group_search import MAX_GROUPS, FoundGroups, Search, all_groups, find_groups
from kshot.experts.objectives import PairObjective, mean_of_members, mean_of_pairs
from kshot.experts.ranking import RankedAdapter, average_ranks
from kshot.experts.similarity import Similarity

GROUPS_KEPT = 70  # all groups of the paper's setting, 4 of 8
TOTAL_DECIMALS = 12  # beyond these, totals differ by the order of summation alone
_SIMILARITY_DECIMALS = 6  # to which cosines are exact


@dataclass(frozen=True, slots=True)
class Group:
    """N candidates that could be the experts; in every number, less is better.

    Attributes:
        members: Best first.
        quality: Σ (RP + RA); in the method `robust`, the mean loss of the members over the shots.
        similarity: Mean pairwise, rounded to 6 decimals; 0 for a single expert.
        total: What the search makes least.
        similarity_rank: RD over all groups, ties averaged; of the method `paper`.
        best_of: Mean over the shots of the least loss of a member; of the method `robust`.
        near_tie: Whether the shots cannot tell it from the group with the least total; of the method
            `robust`.
    """

    members: tuple[str, ...]
    quality: float
    similarity: float
    total: float
    similarity_rank: float | None = None
    best_of: float | None = None
    near_tie: bool | None = None


@dataclass(frozen=True, slots=True)
class FormedGroups:
    """The outcome of a search.

    Attributes:
        groups: The best 70, best first.
        num_groups: C choose N.
        num_near_ties: Groups that the shots cannot tell from the one with the least total, itself among them;
            None where that is not asked.
        search: How they were searched.
        gap: By how much an unseen group's total could be less; 0 where it is proven that none is.
    """

    groups: tuple[Group, ...]
    num_groups: int
    num_near_ties: int | None
    search: Search
    gap: float


def form_paper_groups(
    candidates: Sequence[RankedAdapter], similarity: Similarity, num_experts: int
) -> FormedGroups:
    """Weigh every group by `Σ (RP + RA) + RD`, RD its rank over all groups by mean pairwise similarity.

    Raises:
        ConfigError: There are more groups than can be ranked.

    Reference: arXiv 2408.15915v2, section 3.2; ties are not settled there.
    """
    num_groups = math.comb(len(candidates), num_experts)
    if num_groups > MAX_GROUPS:
        raise ConfigError(
            f"experts.method paper ranks every group: expected at most {MAX_GROUPS:,}, got {num_groups:,} of "
            f"{num_experts} experts from {len(candidates)} candidates: lower experts.num_candidates, or use "
            "method balanced, which needs no ranks of groups"
        )
    members_GN = all_groups(len(candidates), num_experts)
    quality_G = _rank_sums(candidates, members_GN)
    similarity_G = mean_similarity(candidates, similarity, members_GN)
    rank_G = average_ranks(similarity_G)
    total_G = quality_G + rank_G
    names = [one.name for one in candidates]
    groups = tuple(
        Group(
            members=_named(names, members_GN[place]),
            quality=float(quality_G[place]),
            similarity=float(similarity_G[place]),
            total=float(total_G[place]),
            similarity_rank=float(rank_G[place]),
        )
        for place in best_first([total_G, quality_G], members_GN, names)
    )
    return FormedGroups(groups, num_groups, None, "exact", 0.0)


def form_balanced_groups(
    candidates: Sequence[RankedAdapter], similarity: Similarity, num_experts: int
) -> FormedGroups:
    """Weigh groups by Σ (RP + RA) plus mean pairwise similarity, each scaled to [0, 1] over the groups.

    The least and greatest similarity of a group are searched for like the best group itself; where the search
    proves nothing, those found stand for them. What is constant counts as 0.
    """
    names = [one.name for one in candidates]
    rank_sum_C = np.array([one.rank_sum for one in candidates])
    cosines_CC = similarity.among(names)
    rising_C = np.sort(rank_sum_C)
    quality_C = _scaled(rank_sum_C, rising_C[:num_experts].mean(), rising_C[-num_experts:].mean())
    alike_CC = _scaled(cosines_CC, _least(cosines_CC, num_experts), -_least(-cosines_CC, num_experts))
    found = find_groups(PairObjective(quality_C, alike_CC), num_experts)
    quality_G = _rank_sums(candidates, found.members)
    similarity_G = mean_similarity(candidates, similarity, found.members)
    total_G = found.totals.round(TOTAL_DECIMALS)
    groups = tuple(
        Group(
            members=_named(names, found.members[place]),
            quality=float(quality_G[place]),
            similarity=float(similarity_G[place]),
            total=float(total_G[place]),
        )
        for place in best_first([total_G, quality_G], found.members, names)
    )
    return formed(groups, found, len(candidates))


def formed(
    groups: tuple[Group, ...], found: FoundGroups, num_candidates: int, num_near_ties: int | None = None
) -> FormedGroups:
    """Say how the groups were found."""
    num_groups = math.comb(num_candidates, found.members.shape[1])
    return FormedGroups(groups, num_groups, num_near_ties, found.search, found.gap)


def mean_similarity(
    candidates: Sequence[RankedAdapter], similarity: Similarity, members_GN: np.ndarray
) -> np.ndarray:
    """Return the mean pairwise similarity of each group, float64 (G,)."""
    cosines_CC = similarity.among([one.name for one in candidates])
    return mean_of_pairs(cosines_CC, members_GN).round(_SIMILARITY_DECIMALS)


def best_first(keys: Sequence[np.ndarray], members_GN: np.ndarray, names: Sequence[str]) -> list[int]:
    """Return the places of the best groups: by each key in turn, then by their members' names.

    Args:
        keys: Of each group, less being better; the first decides first.
        members_GN: Places of the members among `names`.
        names: Of the candidates.
    """
    count = min(GROUPS_KEPT, len(members_GN))
    enough = np.partition(keys[0], count - 1)[count - 1]
    places = np.flatnonzero(keys[0] <= enough)
    letters_C = np.argsort(np.argsort(np.array(names)))
    letters_GN = np.sort(letters_C[members_GN[places]], axis=1)
    order = np.lexsort([*letters_GN.T[::-1], *(key[places] for key in reversed(keys))])
    return [int(place) for place in places[order[:count]]]


def _rank_sums(candidates: Sequence[RankedAdapter], members_GN: np.ndarray) -> np.ndarray:
    means_G = mean_of_members(np.array([one.rank_sum for one in candidates]), members_GN)
    sums_G: np.ndarray = (means_G * members_GN.shape[1]).round(TOTAL_DECIMALS)
    return sums_G


def _named(names: Sequence[str], members: np.ndarray) -> tuple[str, ...]:
    return tuple(names[place] for place in members)


def _least(pair_CC: np.ndarray, num_experts: int) -> float:
    """Return the least mean over the pairs of a group."""
    return float(find_groups(PairObjective(np.zeros(len(pair_CC)), pair_CC), num_experts).totals.min())


def _scaled(values: np.ndarray, least: float, greatest: float) -> np.ndarray:
    spread = greatest - least
    return (values - least) / spread if spread > 10.0**-TOTAL_DECIMALS else np.zeros_like(values)
