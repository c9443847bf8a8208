"""The best group of N among C candidates: all groups where they can be counted, else branch and bound.

C candidates   N experts   G groups   J candidates that could join next
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import chain, combinations
from typing import Literal, Protocol

import numpy as np

Search = Literal["exact", "branch_and_bound", "greedy_exchange"]

MAX_GROUPS = 1_000_000  # formed and weighed in about a second
MAX_BRANCHES = 3_000  # opened in about a second among 100 candidates, in half a minute among 1,000
_EQUAL = 1e-12  # totals nearer than this differ by the order of summation alone


class Objective(Protocol):
    """What a group is worth; less is better."""

    @property
    def num_candidates(self) -> int:
        """C."""

    def totals(self, members_GN: np.ndarray) -> np.ndarray:
        """Return the worth of each group, float64 (G,); groups may have any one size."""

    def bounds(self, chosen: Sequence[int], num_experts: int) -> np.ndarray:
        """Return for each candidate after the last of `chosen` what no group below it can undercut.

        Such a group holds `chosen`, that candidate, and `num_experts - len(chosen) - 1` later ones; at least
        one.
        """


@dataclass(frozen=True, slots=True, eq=False)
class FoundGroups:
    """The groups that were weighed to the end.

    Attributes:
        members: (G, N), places of the candidates, rising in each group: all groups of an exact search, else
            the winner and every group that differs from it in one member.
        totals: (G,), what they are worth.
        search: `exact` and `branch_and_bound` prove the least total to be the least of all groups.
        gap: By how much an unseen group could be better; 0 where it is proven that none is.
    """

    members: np.ndarray
    totals: np.ndarray
    search: Search
    gap: float


def find_groups(
    objective: Objective,
    num_experts: int,
    *,
    max_groups: int = MAX_GROUPS,
    max_branches: int = MAX_BRANCHES,
) -> FoundGroups:
    """Find the group with the least total.

    Up to `max_groups` groups are all weighed. Beyond, the best swaps lead from a greedy group to one that no
    swap of a member improves, and branch and bound, the most promising branch first, either proves that it is
    the best, finds a better one, or stops after `max_branches` with the least bound that is left.

    Args:
        objective: Over C candidates.
        num_experts: N, at most C.
        max_groups: Groups weighed one by one.
        max_branches: Branches opened; 0 leaves it at the greedy group, with the gap to the bound at the root.
    """
    size = objective.num_candidates
    if math.comb(size, num_experts) <= max_groups:
        members_GN = all_groups(size, num_experts)
        return FoundGroups(members_GN, objective.totals(members_GN), "exact", 0.0)
    start = _exchange(objective, _greedy(objective, num_experts))
    members, bound = _branch_and_bound(objective, start, max_branches)
    members = _exchange(objective, members)
    known_GN = np.vstack([np.array([members]), _swaps(members, size)])
    totals_G = objective.totals(known_GN)
    gap = max(0.0, float(totals_G[0]) - bound)
    return FoundGroups(known_GN, totals_G, "greedy_exchange" if gap > _EQUAL else "branch_and_bound", gap)


def all_groups(num_candidates: int, num_experts: int) -> np.ndarray:
    """Return every group in the order of its members, int32 (G, N)."""
    size = math.comb(num_candidates, num_experts)
    flat = chain.from_iterable(combinations(range(num_candidates), num_experts))
    return np.fromiter(flat, dtype=np.int32, count=size * num_experts).reshape(size, num_experts)


def _greedy(objective: Objective, num_experts: int) -> tuple[int, ...]:
    members: tuple[int, ...] = ()
    while len(members) < num_experts:
        others = [one for one in range(objective.num_candidates) if one not in members]
        grown = np.sort(np.array([(*members, one) for one in others]), axis=1)
        members = tuple(grown[int(objective.totals(grown).argmin())].tolist())
    return members


def _exchange(objective: Objective, members: tuple[int, ...]) -> tuple[int, ...]:
    """Swap one member for another as long as that lowers the total."""
    total = float(objective.totals(np.array([members]))[0])
    while len(members) < objective.num_candidates:
        swaps_GN = _swaps(members, objective.num_candidates)
        totals_G = objective.totals(swaps_GN)
        best = int(totals_G.argmin())
        if totals_G[best] >= total - _EQUAL:
            break
        members, total = tuple(swaps_GN[best].tolist()), float(totals_G[best])
    return members


def _swaps(members: Sequence[int], num_candidates: int) -> np.ndarray:
    """Return every group with one member changed, (N (C - N), N)."""
    others = [one for one in range(num_candidates) if one not in members]
    changed = [
        (*members[:place], other, *members[place + 1 :]) for place in range(len(members)) for other in others
    ]
    return np.sort(np.array(changed, dtype=int).reshape(-1, len(members)), axis=1)


def _branch_and_bound(
    objective: Objective, members: tuple[int, ...], max_branches: int
) -> tuple[tuple[int, ...], float]:
    """Return the best group found, and what no other group is below."""
    num_experts, size = len(members), objective.num_candidates
    least = float(objective.totals(np.array([members]))[0])
    branches: list[tuple[float, tuple[int, ...]]] = [(-math.inf, ())]
    num_opened = 0
    while branches:
        bound, chosen = heappop(branches)
        if bound >= least - _EQUAL:
            break  # and so are all others
        if num_opened > max_branches:
            return members, bound
        num_opened += 1
        first = chosen[-1] + 1 if chosen else 0
        if len(chosen) == num_experts - 1:
            whole_GN = np.array([(*chosen, last) for last in range(first, size)])
            totals_G = objective.totals(whole_GN)
            best = int(totals_G.argmin())
            if totals_G[best] < least:
                members, least = tuple(whole_GN[best].tolist()), float(totals_G[best])
            continue
        for place, below in enumerate(objective.bounds(chosen, num_experts), start=first):
            if below < least - _EQUAL:
                heappush(branches, (float(below), (*chosen, place)))
    return members, least
