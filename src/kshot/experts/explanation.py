"""Why a group won, in words: its terms, the margin, the runners-up and how sure the shots are."""

from collections.abc import Sequence
from dataclasses import dataclass

from kshot.experts.groups import FormedGroups, Group
from kshot.experts.ranking import RankedAdapter
from kshot.experts.robust_groups import FoldCheck
from kshot.experts.shot_losses import Measure

NUM_RUNNERS_UP = 3
_MEASURED = {
    "margin": "margin of the right choice",
    "reasoning": "NLL of rationale and answer",
    "answer": "NLL of the answer alone",
    "accuracy": "accuracy",
}


@dataclass(frozen=True, slots=True)
class Explained:
    """What an explanation speaks of."""

    method: str
    ranking: Sequence[RankedAdapter]
    formed: FormedGroups
    measures: Sequence[Measure]
    folds: FoldCheck | None


def explain(one: Explained) -> str:
    """Return a few sentences: the winner with its terms, up to three runners-up, and what is a near-tie."""
    winner, *others = one.formed.groups
    parts = [
        f"Chose {', '.join(winner.members)} out of {len(one.ranking)} adapters: {_terms(winner, one)}.",
        _runners_up(winner, others[:NUM_RUNNERS_UP], one),
        _near_ties(one),
        _singles(one),
        _searched(one.formed),
    ]
    return " ".join(part for part in parts if part)


def _terms(group: Group, one: Explained) -> str:
    if group.best_of is not None:
        return (
            f"mean loss {group.quality:.3f}, of the best member for each shot {group.best_of:.3f}, midway "
            f"{group.total:.3f}, mean similarity {group.similarity:.3f}"
        )
    rank = f" (rank {group.similarity_rank:g} of {one.formed.num_groups:,})" if group.similarity_rank else ""
    scaled = " with both scaled to [0, 1]" if one.method == "balanced" else ""
    return (
        f"sum of ranks {group.quality:g}, mean similarity {group.similarity:.3f}{rank}, "
        f"total {group.total:.4g}{scaled}"
    )


def _runners_up(winner: Group, others: Sequence[Group], one: Explained) -> str:
    if not others:
        return "There was no other group."
    second, *more = others
    text = f"The runner-up takes {_swap(winner, second)}: {_terms(second, one)}; {_margin(winner, second)}."
    if more:
        text += " Behind it: " + "; ".join(
            f"{_swap(winner, group)}, {_behind(winner, group)}" for group in more
        )
        text += "."
    return text


def _swap(winner: Group, other: Group) -> str:
    taken = ", ".join(name for name in other.members if name not in winner.members)
    left = ", ".join(name for name in winner.members if name not in other.members)
    return f"{taken} instead of {left}"


def _margin(winner: Group, second: Group) -> str:
    if second.near_tie and winner.similarity < second.similarity:
        return "the shots cannot tell the two apart, and the smaller similarity decided"
    if winner.total < second.total:
        return f"it loses by {second.total - winner.total:.4g}"
    if winner.quality < second.quality and second.near_tie is None:
        return "the totals are equal, and the smaller sum of ranks decided"
    return "the two are equal in every term, and the names decided"


def _behind(winner: Group, other: Group) -> str:
    difference = other.total - winner.total
    side = f"{difference:.4g} behind" if difference >= 0 else f"{-difference:.4g} ahead but more alike"
    return f"{side} (a near-tie)" if other.near_tie else side


def _near_ties(one: Explained) -> str:
    if one.formed.num_near_ties is None:
        return ""
    num_ties, winner = one.formed.num_near_ties, one.formed.groups[0]
    units = "Losses are in standard deviations between adapters, made of " + " and ".join(
        f"{_MEASURED[measure.name]} ({measure.weight:.2f})" for measure in one.measures
    )
    ties = (
        "No other group is within one standard error of the best."
        if num_ties == 1
        else f"{num_ties:,} groups are within one standard error of the best, and of these the winner is the "
        "least alike."
    )
    if one.folds is None:
        return f"{units}. {ties}"
    return (
        f"{units}. {ties} With a part of the shots left out in turn the same group won in "
        f"{one.folds.num_same} of {one.folds.num_folds} rounds; on the shots left out the groups chosen come "
        f"to {one.folds.total:.3f} (with all shots: {winner.total:.3f})."
    )


def _singles(one: Explained) -> str:
    best, *others = one.ranking
    return f"As single experts {best.name} and {others[0].name} are near-ties." if best.near_tie else ""


def _searched(formed: FormedGroups) -> str:
    if formed.search == "exact":
        return ""
    known = "Other groups are known where they differ from that in one member."
    if formed.search == "branch_and_bound":
        return f"Branch and bound proved the least total the least of {formed.num_groups:,} groups. {known}"
    return (
        f"Not all of {formed.num_groups:,} groups were searched: none can be below the least total found by "
        f"more than {formed.gap:.3g}. {known}"
    )
