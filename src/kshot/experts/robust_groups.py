"""Groups weighed by what their members do on each shot; where the shots cannot tell, by how alike they are.

C candidates   N experts   K shots   G groups
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kshot.experts.eligible import Scored
from kshot.experts.group_search import MAX_BRANCHES, MAX_GROUPS, find_groups
from kshot.experts.groups import (
    TOTAL_DECIMALS,
    FormedGroups,
    Group,
    best_first,
    formed,
    mean_similarity,
)
from kshot.experts.objectives import ShotObjective, mean_of_members
from kshot.experts.ranking import RankedAdapter, rank_adapters
from kshot.experts.shot_losses import MIN_SHOTS, ShotLosses, shot_losses
from kshot.experts.similarity import Similarity

NUM_FOLDS = 10  # or one a shot: enough to tell a choice that stands from one that does not
GROUPS_IN_A_FOLD = 20_000  # beyond, the greedy search: ten folds should not outlast the choice itself
_NUMBERS_AT_ONCE = 1 << 22  # of float64 while groups are compared: 32 MB


@dataclass(frozen=True, slots=True)
class FoldCheck:
    """The whole choice made again without some of the shots, and judged by these.

    Attributes:
        num_folds: Parts that the shots were dealt into.
        num_same: Parts without which the same group was chosen.
        total: Mean over the shots of the worth of the group chosen without them, which flatters no one.
    """

    num_folds: int
    num_same: int
    total: float


def form_robust_groups(
    candidates: Sequence[RankedAdapter],
    loss_CK: np.ndarray,
    similarity: Similarity,
    num_experts: int,
    *,
    max_groups: int = MAX_GROUPS,
    max_branches: int = MAX_BRANCHES,
) -> FormedGroups:
    """Weigh groups by `½ mean_i mean_k l_ik + ½ mean_k min_i l_ik`, near-ties by mean pairwise similarity.

    The first term is the loss of a router that is blind, the second that of one which sees the best member
    for each shot; training ends between the two. The second makes a group good *and different*: a member
    counts for the shots on which the others are worse, and a copy for none. What is different in the weights
    but not on these shots matters where they cannot decide: of the groups that are worse than the best by no
    more than the standard error of the difference, paired by shot, the least alike wins. Few shots leave more
    to it, many less, and there is no weight to choose between two units.

    Args:
        candidates: The C best, best first.
        loss_CK: Of each on each shot.
        similarity: Of the candidates at least.
        num_experts: N.
        max_groups: As in `find_groups`; where not every group is weighed, near-ties are sought among those
            that differ from the best in one member.
        max_branches: As in `find_groups`.
    """
    objective = ShotObjective(loss_CK)
    found = find_groups(objective, num_experts, max_groups=max_groups, max_branches=max_branches)
    near_G = _near_ties(objective, found.members, found.totals)
    similarity_G = mean_similarity(candidates, similarity, found.members)
    total_G = found.totals.round(TOTAL_DECIMALS)
    quality_G = mean_of_members(loss_CK.mean(axis=1), found.members)
    names = [one.name for one in candidates]
    # Near-ties first, by similarity, which is below 2; then the others by their totals.
    order_G = np.where(near_G, similarity_G - 2.0, total_G - total_G.min())
    groups = tuple(
        Group(
            members=tuple(names[member] for member in found.members[place]),
            quality=float(quality_G[place]),
            similarity=float(similarity_G[place]),
            total=float(total_G[place]),
            best_of=objective.best_of(found.members[place]),
            near_tie=bool(near_G[place]),
        )
        for place in best_first([order_G, total_G], found.members, names)
    )
    return formed(groups, found, len(candidates), int(near_G.sum()))


def check_by_folds(
    scores: Sequence[Scored],
    losses: ShotLosses,
    similarity: Similarity,
    chosen: Sequence[str],
    num_candidates: int,
) -> FoldCheck | None:
    """Choose again without each part of the shots, ranking and candidates included.

    Args:
        scores: Of all adapters that may be chosen.
        losses: Theirs on all shots.
        similarity: Of all these adapters.
        chosen: The group chosen by all shots.
        num_candidates: C.

    Returns:
        None where too few shots would be left to choose by.
    """
    num_shots = losses.by_shot.shape[1]
    if num_shots <= MIN_SHOTS:
        return None
    num_folds = min(NUM_FOLDS, num_shots)
    place_of = {score.name: place for place, score in enumerate(scores)}
    worth, num_same = 0.0, 0
    for fold in range(num_folds):
        held_out = list(range(fold, num_shots, num_folds))
        fewer = shot_losses(scores, [shot for shot in range(num_shots) if shot not in held_out])
        candidates = rank_adapters(scores, fewer)[:num_candidates]
        loss_CK = fewer.by_shot[[place_of[one.name] for one in candidates]]
        formed_again = form_robust_groups(
            candidates, loss_CK, similarity, len(chosen), max_groups=GROUPS_IN_A_FOLD, max_branches=0
        )
        members = formed_again.groups[0].members
        num_same += set(members) == set(chosen)
        loss_NK = losses.by_shot[np.ix_([place_of[name] for name in members], held_out)]
        worth += float(ShotObjective(loss_NK).by_shot(np.arange(len(members))[None]).sum())
    return FoldCheck(num_folds, num_same, worth / num_shots)


def _near_ties(objective: ShotObjective, members_GN: np.ndarray, totals_G: np.ndarray) -> np.ndarray:
    """Say which groups are worse than the best by no more than the standard error of the difference."""
    best_K = objective.by_shot(members_GN[[int(totals_G.argmin())]])[0]
    step = max(1, _NUMBERS_AT_ONCE // len(best_K))
    near = []
    for start in range(0, len(members_GN), step):
        behind_GK = objective.by_shot(members_GN[start : start + step]) - best_K
        stderr_G = behind_GK.std(axis=1, ddof=1) / np.sqrt(len(best_K))
        near.append(behind_GK.mean(axis=1) <= stderr_G + 10.0**-TOTAL_DECIMALS)
    return np.concatenate(near)
