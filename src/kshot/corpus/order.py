"""In which order a strategy visits the pool: rows by falling relevance, or each shot in turn.

N: pool rows, K: shots, B: rows of a block, D: embedding size.

The order comes in pieces that grow, so that nobody sorts a billion rows to keep a thousand. Scores are
compared as float32 and ties go to the lower index; neither blocks nor pieces change the order.
"""

from collections.abc import Iterator

import numpy as np

from kshot.corpus.scan import (
    BLOCK_ROWS,
    Strategy,
    cosine_blocks,
    exact_cosines,
    exact_relevance,
    queries_of,
    relevance,
    rounding_margin,
    unit_rows,
)

_GROWTH = 4  # each piece reaches so many times deeper than the last


def visiting_order(
    pool_ND: np.ndarray,
    shots_KD: np.ndarray,
    usable_N: np.ndarray,
    strategy: Strategy,
    *,
    depth: int,
    block_rows: int = BLOCK_ROWS,
) -> Iterator[np.ndarray]:
    """Yield every usable row once, in pieces, in the order of the strategy.

    Args:
        pool_ND: Unit-norm embeddings of the pool.
        shots_KD: Unit-norm embeddings of the shots.
        usable_N: Rows that may be visited; bool.
        strategy: `max` and `centroid`: falling relevance. `round_robin`: shot 0 takes its nearest row,
            shot 1 its nearest row not taken yet, and so on, again from shot 0 until all rows are taken.
        depth: Rows of the first piece, about.
        block_rows: Rows read at a time.

    Raises:
        ConfigError: As `relevance`.
    """
    if strategy == "round_robin":
        return _shots_in_turn(pool_ND, shots_KD, usable_N, depth, block_rows)
    return _falling_relevance(pool_ND, shots_KD, usable_N, strategy, depth, block_rows)


def _falling_relevance(
    pool_ND: np.ndarray,
    shots_KD: np.ndarray,
    usable_N: np.ndarray,
    strategy: Strategy,
    depth: int,
    block_rows: int,
) -> Iterator[np.ndarray]:
    """Scan once, then score again, exactly, the rows between one cut and the next."""
    margin = rounding_margin(pool_ND.shape[1])
    scanned_N = relevance(pool_ND, shots_KD, strategy, block_rows=block_rows).scores
    scanned_N[~usable_N] = -np.inf
    upper = np.float32(np.inf)
    while upper > -np.inf:
        lower = _cut(scanned_N, depth, int(usable_N.sum())) - np.float32(margin)
        # A row whose exact score lies in [lower, upper) was scanned at most a margin outside of it.
        rows = np.flatnonzero(usable_N & (scanned_N >= lower - margin) & (scanned_N <= upper + margin))
        scores = exact_relevance(pool_ND, rows, shots_KD, strategy).scores
        inside = (scores >= lower) & (scores < upper)
        yield _by_falling_score(rows[inside], scores[inside])
        upper, depth = lower, depth * _GROWTH


def _shots_in_turn(
    pool_ND: np.ndarray, shots_KD: np.ndarray, usable_N: np.ndarray, depth: int, block_rows: int
) -> Iterator[np.ndarray]:
    """Take turns as far as the nearest rows of each shot are known; then scan again, deeper."""
    num_usable, num_yielded = int(usable_N.sum()), 0
    while num_yielded < num_usable:
        nearest = _nearest_rows(pool_ND, shots_KD, usable_N, depth, block_rows)
        visits = _take_turns(nearest)
        yield visits[num_yielded:]
        num_yielded, depth = len(visits), depth * _GROWTH


def _take_turns(nearest: list[np.ndarray]) -> np.ndarray:
    """Let each shot in turn take its next row not taken yet, until a shot has none left."""
    queues = [iter(rows.tolist()) for rows in nearest]
    visits: dict[int, None] = {}  # a set that keeps its order
    while True:
        for queue in queues:
            row = next((row for row in queue if row not in visits), None)
            if row is None:
                return np.fromiter(visits, dtype=np.int64, count=len(visits))
            visits[row] = None


def _nearest_rows(
    pool_ND: np.ndarray, shots_KD: np.ndarray, usable_N: np.ndarray, depth: int, block_rows: int
) -> list[np.ndarray]:
    """Return for each shot its nearest rows in order: `depth` of them or more, none missing in between."""
    margin = rounding_margin(pool_ND.shape[1])
    queries_KD = queries_of(shots_KD, "round_robin")
    num_usable = int(usable_N.sum())
    found = [(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)) for _ in queries_KD]
    for start, cosines_BK in cosine_blocks(pool_ND, queries_KD, block_rows):
        rows = start + np.flatnonzero(usable_N[start : start + len(cosines_BK)])
        cosines_KB = np.ascontiguousarray(cosines_BK[rows - start].T)
        found = [
            _deepest(np.append(old_rows, rows), np.append(old, new), depth, margin)
            for (old_rows, old), new in zip(found, cosines_KB, strict=True)
        ]
    nearest = []
    for (rows, scanned), query_D in zip(found, queries_KD, strict=True):
        scores = exact_cosines(unit_rows(pool_ND, rows), query_D[None])[:, 0]
        known = scores >= _cut(scanned, depth, num_usable) - np.float32(margin)
        nearest.append(_by_falling_score(rows[known], scores[known]))
    return nearest


def _deepest(
    rows: np.ndarray, scanned: np.ndarray, depth: int, margin: float
) -> tuple[np.ndarray, np.ndarray]:
    """Keep the `depth` highest scores and all that may be equal to them."""
    near = scanned >= _cut(scanned, depth, len(scanned)) - 2 * np.float32(margin)
    return rows[near], scanned[near]


def _cut(scores: np.ndarray, depth: int, num_usable: int) -> np.float32:
    """Return the score of rank `depth`, minus infinity if there are no more usable rows than that."""
    if depth >= num_usable:
        return np.float32(-np.inf)
    return np.float32(np.partition(scores, len(scores) - depth)[len(scores) - depth])


def _by_falling_score(rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
    return rows[np.lexsort((rows, -scores))]
