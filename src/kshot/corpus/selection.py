"""Data selection: the pool rows that are close to the shots and not copies of each other.

N: pool rows, K: shots, D: embedding size.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from kshot.corpus.dedup import Dropped, keep_distinct
from kshot.corpus.diversity import RELEVANCE_WEIGHT, keep_diverse
from kshot.corpus.first_rows import FirstRows
from kshot.corpus.order import Candidates, first_depth, visiting_order
from kshot.corpus.rules import Rule
from kshot.corpus.scan import Strategy, exact_relevance
from kshot.corpus.vectors import Vectors
from kshot.errors import ConfigError

__all__ = ["DataSelection", "Dropped", "select_data"]


@dataclass(frozen=True, slots=True, eq=False)
class DataSelection:
    """The rows picked from a pool, and why.

    Attributes:
        indices: Kept rows in the order kept; int64 (budget,).
        scores: Relevance of each: cosine with its nearest shot (with the centroid for `centroid`); float32.
        nearest_shot: The shot each is closest to; int64.
        dropped: Rows visited on the way and not kept, each with the kept row that it copies, or what a rule
            said.
        num_zero: Rows that could not be visited, since they are zero.
    """

    indices: np.ndarray
    scores: np.ndarray
    nearest_shot: np.ndarray
    dropped: tuple[Dropped, ...]
    num_zero: int


def select_data(
    pool_ND: Vectors,
    shots_KD: np.ndarray,
    *,
    budget: int,
    threshold: float = 0.9,
    strategy: Strategy = "max",
    relevance_weight: float = RELEVANCE_WEIGHT,
    avoid: Collection[int] | np.ndarray = (),
    keys_N: np.ndarray | None = None,
    rules: Sequence[Rule] = (),
    first: FirstRows | None = None,
) -> DataSelection:
    """Pick `budget` pool rows that are close to the shots and not copies of each other.

    Rows are visited in falling relevance, `max_k cos(i, k)`; a row is kept if its cosine to every row kept so
    far is at most `threshold`, until `budget` rows are kept. Ties go to the lower key, then to the lower
    index: with a key for each distinct text, the order of the rows does not matter.

    Args:
        pool_ND: Unit-norm embeddings of the pool, float16 or float32; may be memory-mapped. Rows of zeros are
            never picked.
        shots_KD: Unit-norm embeddings of the K shots.
        budget: Rows to keep, 1 <= budget <= N.
        threshold: In (0, 1]; 1 keeps exact copies out only.
        strategy: `max`; `centroid`: relevance is the cosine with the mean of the shots; `round_robin`: each
            shot in turn has its next nearest row visited, kept or not; `mmr`: relevance against redundancy,
            as `keep_diverse`.
        relevance_weight: Of `mmr`, in (1/2, 1].
        avoid: Rows never to visit, such as those of `rows_to_avoid`.
        keys_N: A number for each row, such as a hash of its text; uint64.
        rules: More reasons not to keep a row, such as `SourceQuota`.
        first: The rows that come first, where they are known: gathered from shards of this pool for these
            shots, this strategy and these rows to avoid. They save a scan, and change nothing.

    Returns:
        Kept rows in the order kept, with relevance and nearest shot; each dropped row names the kept row it
        copies.

    Raises:
        ConfigError: `budget`, `threshold`, `strategy`, `relevance_weight`, `avoid` or `keys_N` out of range,
            embeddings that are neither unit-norm nor zero, or fewer rows to keep than `budget`.

    Reference: arXiv 2408.15915v2, Alg. 2; greedy instead of pairwise, so that a dropped row never drops
    another.
    """
    usable_N = _usable_rows(len(pool_ND), avoid)
    num_usable = int(usable_N.sum())
    _check_range(budget, threshold, relevance_weight, num_usable)
    if keys_N is not None and len(keys_N) != len(pool_ND):
        raise ConfigError(f"expected a key for each of {len(pool_ND)} rows, got {len(keys_N)}")
    if first is not None:
        usable_N[first.zeros] = False
    candidates = Candidates(pool_ND, shots_KD, usable_N, keys_N, known=first.ranked if first else None)
    depth = first_depth(strategy, budget, len(shots_KD))
    if strategy == "mmr":
        kept, dropped = keep_diverse(
            candidates, threshold=threshold, budget=budget, weight=relevance_weight, rules=rules, depth=depth
        )
    else:
        visits = visiting_order(candidates, strategy, depth=depth)
        kept, dropped = keep_distinct(pool_ND, visits, threshold=threshold, budget=budget, rules=rules)
    num_zero = num_usable - candidates.num_usable
    if len(kept) < budget:
        raise ConfigError(_too_few(len(kept), budget, threshold, num_usable, num_zero, dropped))
    indices = np.array(kept, dtype=np.int64)
    chosen = exact_relevance(pool_ND, indices, shots_KD, strategy)
    return DataSelection(indices, chosen.scores, chosen.nearest_shot, tuple(dropped), num_zero)


def _usable_rows(num_rows: int, avoid: Collection[int] | np.ndarray) -> np.ndarray:
    """Mark the rows that may be picked."""
    avoided = np.asarray(avoid if isinstance(avoid, np.ndarray) else list(avoid), dtype=np.int64)
    outside = avoided[(avoided < 0) | (avoided >= num_rows)]
    if outside.size:
        raise ConfigError(
            f"avoid must hold rows in [0, {num_rows}), got {outside[0]}: it belongs to another pool"
        )
    usable_N = np.ones(num_rows, dtype=bool)
    usable_N[avoided] = False
    return usable_N


def _check_range(budget: int, threshold: float, relevance_weight: float, num_usable: int) -> None:
    if num_usable == 0:
        raise ConfigError("expected pool rows that match no shot or test example, got none: enlarge the pool")
    if not 1 <= budget <= num_usable:
        raise ConfigError(
            f"budget must be in [1, {num_usable}], got {budget}: lower data.budget or enlarge the pool"
        )
    if not 0 < threshold <= 1:
        raise ConfigError(f"threshold must be in (0, 1], got {threshold}: set data.threshold")
    if not 0.5 < relevance_weight <= 1:
        raise ConfigError(
            f"relevance_weight must be in (0.5, 1], got {relevance_weight}: below, rows far from every shot "
            "would win; set data.relevance_weight"
        )


def _too_few(
    num_kept: int, budget: int, threshold: float, num_usable: int, num_zero: int, dropped: list[Dropped]
) -> str:
    """Say how many rows there are to keep, and what took away the others."""
    refused = [row.reason for row in dropped if row.reason != "near_copy"]
    also = [f"{refused.count(reason)} are {reason}" for reason in sorted(set(refused))]
    also += [f"{num_zero} are zero"] if num_zero else []
    because = f" ({', '.join(also)})" if also else ""
    return (
        f"budget must be in [1, {num_kept}], got {budget}: threshold {threshold:g} leaves {num_kept} "
        f"distinct rows of {num_usable}{because}; lower data.budget, raise data.threshold or enlarge the pool"
    )
