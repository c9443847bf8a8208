"""Data selection: the pool rows that are close to the shots and not copies of each other.

N: pool rows, K: shots, D: embedding size.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from kshot.corpus.dedup import Dropped, keep_distinct
from kshot.corpus.order import visiting_order
from kshot.corpus.scan import Strategy, exact_relevance
from kshot.errors import ConfigError

__all__ = ["DataSelection", "Dropped", "select_data"]

_FIRST_DEPTH = 1_024  # rows ordered at once at least; fewer are not worth a piece of their own


@dataclass(frozen=True, slots=True, eq=False)
class DataSelection:
    """The rows picked from a pool, and why.

    Attributes:
        indices: Kept rows in the order kept; int64 (budget,).
        scores: Relevance of each: cosine with its nearest shot (with the centroid for `centroid`); float32.
        nearest_shot: The shot each is closest to; int64.
        dropped: Rows visited on the way and not kept, each with the kept row that it copies.
    """

    indices: np.ndarray
    scores: np.ndarray
    nearest_shot: np.ndarray
    dropped: tuple[Dropped, ...]


def select_data(
    pool_ND: np.ndarray,
    shots_KD: np.ndarray,
    *,
    budget: int,
    threshold: float = 0.9,
    strategy: Strategy = "max",
    avoid: Collection[int] = (),
) -> DataSelection:
    """Pick `budget` pool rows that are close to the shots and not copies of each other.

    Rows are visited in falling relevance, `max_k cos(i, k)`; a row is kept if its cosine to every row kept so
    far is at most `threshold`. Ties go to the lower index, so the result does not depend on sharding.

    Args:
        pool_ND: Unit-norm embeddings of the pool, float16 or float32; may be memory-mapped.
        shots_KD: Unit-norm embeddings of the K shots.
        budget: Rows to keep, 1 <= budget <= N.
        threshold: In (0, 1]; 1 keeps exact copies out only.
        strategy: `max`; `centroid`: relevance is the cosine with the mean of the shots; `round_robin`: each
            shot in turn has its next nearest row visited, kept or not.
        avoid: Rows never to visit, such as those of `rows_to_avoid`.

    Returns:
        Kept rows in the order kept, with relevance and nearest shot; each dropped row names the kept row it
        copies.

    Raises:
        ConfigError: `budget`, `threshold`, `strategy` or `avoid` out of range, embeddings without unit norm,
            or fewer distinct rows than `budget`.

    Reference: arXiv 2408.15915v2, Alg. 2; greedy instead of pairwise, so that a dropped row never drops
    another.
    """
    usable_N = _usable_rows(len(pool_ND), avoid)
    _check_range(budget, threshold, int(usable_N.sum()))
    depth = max(2 * budget, _FIRST_DEPTH)
    visits = visiting_order(pool_ND, shots_KD, usable_N, strategy, depth=depth)
    kept, dropped = keep_distinct(pool_ND, visits, threshold=threshold, budget=budget)
    if len(kept) < budget:
        raise ConfigError(
            f"budget must be in [1, {len(kept)}], got {budget}: threshold {threshold:g} leaves {len(kept)} "
            f"distinct rows of {int(usable_N.sum())}; lower data.budget, raise data.threshold or enlarge "
            "the pool"
        )
    indices = np.array(kept, dtype=np.int64)
    chosen = exact_relevance(pool_ND, indices, shots_KD, strategy)
    return DataSelection(indices, chosen.scores, chosen.nearest_shot, tuple(dropped))


def _usable_rows(num_rows: int, avoid: Collection[int]) -> np.ndarray:
    """Mark the rows that may be picked."""
    avoided = np.fromiter(avoid, dtype=np.int64, count=len(avoid))
    outside = avoided[(avoided < 0) | (avoided >= num_rows)]
    if outside.size:
        raise ConfigError(
            f"avoid must hold rows in [0, {num_rows}), got {outside[0]}: it belongs to another pool"
        )
    usable_N = np.ones(num_rows, dtype=bool)
    usable_N[avoided] = False
    return usable_N


def _check_range(budget: int, threshold: float, num_usable: int) -> None:
    if num_usable == 0:
        raise ConfigError("expected pool rows that match no shot or test example, got none: enlarge the pool")
    if not 1 <= budget <= num_usable:
        raise ConfigError(
            f"budget must be in [1, {num_usable}], got {budget}: lower data.budget or enlarge the pool"
        )
    if not 0 < threshold <= 1:
        raise ConfigError(f"threshold must be in (0, 1], got {threshold}: set data.threshold")
