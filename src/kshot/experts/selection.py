"""Which adapters become experts: good on the shots, and different from each other."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from kshot.errors import ConfigError
from kshot.experts.eligible import Scored, eligible
from kshot.experts.explanation import NUM_RUNNERS_UP, Explained, explain
from kshot.experts.group_search import Search
from kshot.experts.groups import FormedGroups, Group, form_balanced_groups, form_paper_groups
from kshot.experts.ranking import RankedAdapter, rank_adapters
from kshot.experts.robust_groups import FoldCheck, check_by_folds, form_robust_groups
from kshot.experts.shot_losses import Measure, ShotLosses, shot_losses
from kshot.experts.similarity import Similarity

SelectionMethod = Literal["paper", "balanced", "robust"]


@dataclass(frozen=True, slots=True)
class ExpertSelection:
    """The chosen experts, and all that they were chosen from.

    Attributes:
        experts: Best first by the ranking.
        candidates: The C best of the ranking.
        ranking: The whole bank but for what was excluded, best first.
        groups: The best groups of N candidates, best first; at most 70.
        num_groups: Of all.
        method: How adapters were ranked and groups weighed.
        search: How the groups were searched.
        gap: By how much an unseen group's total could be less than that of the best; 0 where none can be.
        excluded: Names left out by request.
        num_near_ties: Groups that the shots cannot tell from the best one; of the method `robust`.
        measures: What a loss is made of; of the method `robust`.
        folds: The choice made again without some shots; of the method `robust`, with three shots or more.
    """

    experts: tuple[str, ...]
    candidates: tuple[RankedAdapter, ...]
    ranking: tuple[RankedAdapter, ...]
    groups: tuple[Group, ...]
    num_groups: int
    method: SelectionMethod
    search: Search
    gap: float
    excluded: tuple[str, ...]
    num_near_ties: int | None = None
    measures: tuple[Measure, ...] = ()
    folds: FoldCheck | None = None

    @property
    def best_single(self) -> str:
        """The best single expert by the shots: first of the ranking."""
        return self.ranking[0].name

    @property
    def runners_up(self) -> tuple[Group, ...]:
        """The three groups behind the chosen one, or as many as there are."""
        return self.groups[1 : 1 + NUM_RUNNERS_UP]

    def why(self) -> str:
        """Say in a few sentences why the group won: its terms, the runners-up, the margin and near-ties."""
        formed = FormedGroups(self.groups, self.num_groups, self.num_near_ties, self.search, self.gap)
        return explain(Explained(self.method, self.ranking, formed, self.measures, self.folds))

    def to_json(self) -> dict[str, Any]:
        """Return everything a report needs; an infinite number becomes None."""
        return {
            "experts": list(self.experts),
            "best_single": self.best_single,
            "why": self.why(),
            "method": self.method,
            "search": self.search,
            "gap": self.gap,
            "excluded": list(self.excluded),
            "candidates": [_plain(one) for one in self.candidates],
            "ranking": [_plain(one) for one in self.ranking],
            "num_groups": self.num_groups,
            "num_near_ties": self.num_near_ties,
            "measures": {one.name: one.weight for one in self.measures},
            "folds": None if self.folds is None else asdict(self.folds),
            "groups": [_plain(one) for one in self.groups],
        }


def select_experts(
    scores: Sequence[Scored],
    similarity: Similarity,
    *,
    num_experts: int = 4,
    num_candidates: int = 8,
    method: SelectionMethod = "paper",
    exclude: Sequence[str] = (),
) -> ExpertSelection:
    """Choose the group of adapters that is good on the shots and least alike.

    - `paper`: adapters are ranked by perplexity (RP, ascending) and accuracy (RA, descending); the C with the
      least RP + RA form all groups of N, and the least `Σ (RP + RA) + RD` wins, RD being the group's rank by
      mean pairwise similarity. RD reaches C-choose-N, so that it can outweigh the rest.
    - `balanced`: the same candidates; `Σ (RP + RA)` plus mean pairwise similarity, each scaled to [0, 1] over
      the groups.
    - `robust`: adapters are ranked by their mean loss over the shots, paired by shot, Huberised, and from the
      margin of the right choice where there are choices (`kshot.experts.shot_losses`). Groups are weighed by
      `½ mean_i mean_k l_ik + ½ mean_k min_i l_ik`; of those within one standard error of the best, the least
      alike wins (`kshot.experts.robust_groups`).

    Ties go to the least sum of ranks or loss, then to the names; the result does not depend on the order of
    `scores`. All groups are weighed up to a million; beyond, `balanced` and `robust` search by branch and
    bound and say what is proven.

    Args:
        scores: One for each adapter, all on the same shots.
        similarity: Of the candidates at least; of all adapters in the method `robust`.
        num_experts: N.
        num_candidates: C; a smaller bank is taken whole.
        method: `paper`, `balanced` or `robust`.
        exclude: Names or shell patterns of adapters left out before ranking.

    Raises:
        ConfigError: A setting is out of range, a pattern of `exclude` matches nothing, too few adapters are
            left, `paper` has more than a million groups to rank, `robust` has a single shot, a name repeats
            or has no similarity, or the numbers of shots differ.
        AdapterError: A score is not a number.

    Reference: arXiv 2408.15915v2, section 3.2, for `paper`; ties are not settled there.
    """
    _check_settings(num_experts, num_candidates, method)
    kept, excluded = eligible(scores, exclude, num_experts)
    losses = shot_losses(kept) if method == "robust" else None
    ranking = rank_adapters(kept, losses)
    candidates = ranking[:num_candidates]
    folds = None
    if losses is None:
        form = form_paper_groups if method == "paper" else form_balanced_groups
        formed = form(candidates, similarity, num_experts)
    else:
        formed = form_robust_groups(candidates, _rows(losses, kept, candidates), similarity, num_experts)
        folds = check_by_folds(kept, losses, similarity, formed.groups[0].members, num_candidates)
    return ExpertSelection(
        experts=formed.groups[0].members,
        candidates=candidates,
        ranking=ranking,
        groups=formed.groups,
        num_groups=formed.num_groups,
        method=method,
        search=formed.search,
        gap=formed.gap,
        excluded=excluded,
        num_near_ties=formed.num_near_ties,
        measures=() if losses is None else losses.measures,
        folds=folds,
    )


def _rows(losses: ShotLosses, scores: Sequence[Scored], candidates: Sequence[RankedAdapter]) -> Any:
    place_of = {score.name: place for place, score in enumerate(scores)}
    return losses.by_shot[[place_of[one.name] for one in candidates]]


def _plain(row: RankedAdapter | Group) -> dict[str, Any]:
    return {key: None if value == math.inf else value for key, value in asdict(row).items()}


def _check_settings(num_experts: int, num_candidates: int, method: str) -> None:
    if num_experts < 1:
        raise ConfigError(f"experts.num_experts must be at least 1, got {num_experts}")
    if num_candidates < num_experts:
        raise ConfigError(
            f"experts.num_candidates must be at least num_experts = {num_experts}, got {num_candidates}"
        )
    if method not in get_args(SelectionMethod):
        raise ConfigError(
            f"experts.method must be one of {', '.join(get_args(SelectionMethod))}, got {method!r}"
        )
