"""What a group of experts is worth, and what no group of a branch can be below.

C candidates   N experts   G groups   K shots   J candidates that could join next   L those after it
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import combinations

import numpy as np

_NUMBERS_AT_ONCE = 1 << 22  # of float64 while groups are weighed: 32 MB


class PairObjective:
    """A mean over the members plus a mean over their pairs: `mean_i a_i + mean_ij b_ij`."""

    def __init__(self, member_C: np.ndarray, pair_CC: np.ndarray) -> None:
        """Take the terms, less being better.

        Args:
            member_C: Of each candidate.
            pair_CC: Of each pair, symmetric; the diagonal is not read.
        """
        self._member_C = member_C
        self._pair_CC = pair_CC

    @property
    def num_candidates(self) -> int:
        """C."""
        return len(self._member_C)

    def totals(self, members_GN: np.ndarray) -> np.ndarray:
        """Return the worth of each group, float64 (G,)."""
        total_G = mean_of_members(self._member_C, members_GN)
        total_G += mean_of_pairs(self._pair_CC, members_GN)
        return total_G

    def bounds(self, chosen: Sequence[int], num_experts: int) -> np.ndarray:
        """Return a bound for each candidate after the last of `chosen`.

        A later member costs at least its own term, its pairs with those chosen, and half of as many of its
        cheapest pairs as there are other later members.
        """
        num_pairs = num_experts * (num_experts - 1) / 2
        member_C, pair_CC = self._member_C / num_experts, self._pair_CC / num_pairs
        first = chosen[-1] + 1 if chosen else 0
        num_later = num_experts - len(chosen) - 1
        held = list(chosen)
        cost = member_C[held].sum() + sum(pair_CC[one, other] for one, other in combinations(held, 2))
        joins_J = member_C[first:] + pair_CC[held, first:].sum(axis=0)
        cheapest_J = self._rising_pairs[first:, : num_later - 1].sum(axis=1) / num_pairs
        later_JL = joins_J + pair_CC[first:, first:] + cheapest_J / 2
        bound_J = _least_after(later_JL, num_later)
        bound_J += cost + joins_J
        return bound_J

    @cached_property
    def _rising_pairs(self) -> np.ndarray:
        pair_CC = self._pair_CC.astype(np.float64)
        np.fill_diagonal(pair_CC, np.inf)
        return np.sort(pair_CC, axis=1)


class ShotObjective:
    """A router's expected loss: midway between one that is blind and one that sees the best member for each
    shot.

    `½ mean_i mean_k l_ik + ½ mean_k min_i l_ik`.
    """

    def __init__(self, loss_CK: np.ndarray) -> None:
        """Take the loss of each candidate on each shot."""
        self._loss_CK = loss_CK

    @property
    def num_candidates(self) -> int:
        """C."""
        return len(self._loss_CK)

    def totals(self, members_GN: np.ndarray) -> np.ndarray:
        """Return the worth of each group, float64 (G,)."""
        step = max(1, _NUMBERS_AT_ONCE // self._loss_CK.shape[1])
        parts = range(0, len(members_GN), step)
        return np.concatenate(
            [self.by_shot(members_GN[start : start + step]).mean(axis=1) for start in parts]
        )

    def by_shot(self, members_GN: np.ndarray) -> np.ndarray:
        """Return the loss of each group on each shot, float64 (G, K)."""
        first_GK = self._loss_CK[members_GN[:, 0]]
        sum_GK, best_GK = first_GK.copy(), first_GK
        for column in members_GN.T[1:]:
            loss_GK = self._loss_CK[column]
            sum_GK += loss_GK
            np.minimum(best_GK, loss_GK, out=best_GK)
        router_GK: np.ndarray = (sum_GK / members_GN.shape[1] + best_GK) / 2
        return router_GK

    def best_of(self, members: Sequence[int]) -> float:
        """Return the mean over the shots of the least loss of a member."""
        return float(self._loss_CK[list(members)].min(axis=0).mean())

    def bounds(self, chosen: Sequence[int], num_experts: int) -> np.ndarray:
        """Return a bound for each candidate after the last of `chosen`; the greater of two.

        The best loss on each shot is no less than with all later candidates in the group; nor does a later
        member lower it by more than it would lower that of `chosen` alone, since the returns of a set
        diminish.
        """
        first = chosen[-1] + 1 if chosen else 0
        num_later = num_experts - len(chosen) - 1
        later_JK = self._loss_CK[first:]
        mean_J = later_JK.mean(axis=1) / num_experts
        held = list(chosen)
        so_far_J = self._loss_CK[held].mean(axis=1).sum() / num_experts + mean_J
        held_K = self._loss_CK[held].min(axis=0, initial=np.inf)
        best_JK = np.minimum(later_JK, held_K)
        after_JK = np.minimum.accumulate(later_JK[::-1], axis=0)[::-1]
        covered_J = np.minimum(best_JK, np.vstack([after_JK[1:], np.full_like(held_K, np.inf)])).mean(axis=1)
        pairs_JL = np.broadcast_to(mean_J, (len(mean_J), len(mean_J)))
        bound_J: np.ndarray = so_far_J + _least_after(pairs_JL, num_later) + covered_J
        if held:
            gain_L = np.maximum(held_K - later_JK, 0).mean(axis=1)
            net_JL = np.broadcast_to(mean_J - gain_L, pairs_JL.shape)
            bound_J = np.maximum(bound_J, so_far_J + best_JK.mean(axis=1) + _least_after(net_JL, num_later))
        bound_J /= 2
        return bound_J


def mean_of_members(member_C: np.ndarray, members_GN: np.ndarray) -> np.ndarray:
    """Return the mean of a number over the members of each group, float64 (G,)."""
    mean_G = np.zeros(len(members_GN))
    for column in members_GN.T:
        mean_G += member_C[column]
    mean_G /= members_GN.shape[1]
    return mean_G


def mean_of_pairs(pair_CC: np.ndarray, members_GN: np.ndarray) -> np.ndarray:
    """Return the mean of a number over the pairs of each group, float64 (G,); 0 for groups of one."""
    pairs = list(combinations(range(members_GN.shape[1]), 2))
    mean_G = np.zeros(len(members_GN))
    for one, other in pairs:
        mean_G += pair_CC[members_GN[:, one], members_GN[:, other]]
    mean_G /= max(1, len(pairs))
    return mean_G


def _least_after(costs_JL: np.ndarray, count: int) -> np.ndarray:
    """Return for each row the sum of its `count` least costs right of the diagonal; infinite if too few."""
    after_JL = np.where(np.tri(len(costs_JL), dtype=bool), np.inf, costs_JL)
    if count >= len(costs_JL):
        return np.full(len(costs_JL), np.inf)
    least_J: np.ndarray = np.partition(after_JL, count - 1, axis=1)[:, :count].sum(axis=1)
    return least_J
