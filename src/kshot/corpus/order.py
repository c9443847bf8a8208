"""In which order a strategy visits the pool: rows by falling relevance, or each shot in turn.

N: pool rows, K: shots, B: rows of a block, D: embedding size.

The order comes in pieces that grow, so that nobody sorts a billion rows to keep a thousand. Scores are
compared as float32 and ties go to the lower key, then to the lower index; neither blocks nor pieces change
the order, and where keys tell rows apart the order of the rows does not change it either.
"""

from collections.abc import Iterator
from dataclasses import dataclass

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
from kshot.corpus.vectors import Vectors

_GROWTH = 4  # each piece reaches so many times deeper than the last
_TURNS = 64  # rows known of each shot at least: fewer cost a scan more as soon as shots want the same rows


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """The rows that may be picked, and the shots that they are compared with.

    Attributes:
        vectors: Unit-norm embeddings of the pool; (N, D).
        shots: Unit-norm embeddings of the shots; (K, D).
        usable: Rows that may be visited; bool (N,). Rows of zeros are taken out when a scan comes upon them.
        keys: By what ties are settled: a hash of each row's text; None: the index alone.
        block_rows: Rows read at a time.
    """

    vectors: Vectors
    shots: np.ndarray
    usable: np.ndarray
    keys: np.ndarray | None = None
    block_rows: int = BLOCK_ROWS

    @property
    def num_usable(self) -> int:
        """How many rows may be visited."""
        return int(self.usable.sum())

    def by_falling_score(self, rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Return the places of rows in the order of their visit."""
        ties = (rows,) if self.keys is None else (rows, self.keys[rows])
        return np.lexsort((*ties, -scores))


def visiting_order(candidates: Candidates, strategy: Strategy, *, depth: int) -> Iterator[np.ndarray]:
    """Yield every usable row once, in pieces, in the order of the strategy.

    Args:
        candidates: The rows to order.
        strategy: `round_robin`: shot 0 takes its nearest row, shot 1 its nearest row not taken yet, and so
            on, again from shot 0 until all rows are taken; all others: falling relevance.
        depth: Rows of the first piece, about.

    Raises:
        ConfigError: As `relevance`.
    """
    if strategy == "round_robin":
        return _shots_in_turn(candidates, depth)
    return (rows for rows, _ in falling_relevance(candidates, strategy, depth=depth))


def falling_relevance(
    candidates: Candidates, strategy: Strategy, *, depth: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield rows and their scores by falling relevance; what a piece holds is above all that follows.

    Scans once, then scores again, exactly, the rows between one cut and the next.

    Raises:
        ConfigError: As `relevance`.
    """
    pool_ND, shots_KD, usable_N = candidates.vectors, candidates.shots, candidates.usable
    margin = np.float32(rounding_margin(pool_ND.shape[1]))
    scanned_N = relevance(pool_ND, shots_KD, strategy, block_rows=candidates.block_rows)
    usable_N &= scanned_N > -np.inf
    scanned_N[~usable_N] = -np.inf
    upper = np.float32(np.inf)
    while upper > -np.inf:
        lower = _cut(scanned_N, depth, candidates.num_usable) - margin
        # A row whose exact score lies in [lower, upper) was scanned at most a margin outside of it.
        rows = np.flatnonzero(usable_N & (scanned_N >= lower - margin) & (scanned_N <= upper + margin))
        scores = exact_relevance(pool_ND, rows, shots_KD, strategy).scores
        inside = (scores >= lower) & (scores < upper)
        rows, scores = rows[inside], scores[inside]
        places = candidates.by_falling_score(rows, scores)
        yield rows[places], scores[places]
        upper, depth = lower, depth * _GROWTH


def _shots_in_turn(candidates: Candidates, depth: int) -> Iterator[np.ndarray]:
    """Take turns as far as the nearest rows of each shot are known; then scan again, deeper.

    A shot's turns are its share of the rows; twice as many are known of it, since others take some of them.
    """
    num_yielded, depth = 0, max(2 * depth // len(candidates.shots), _TURNS)
    while num_yielded < candidates.num_usable:
        nearest = _nearest_rows(candidates, depth)
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


def _nearest_rows(candidates: Candidates, depth: int) -> list[np.ndarray]:
    """Return for each shot its nearest rows in order: `depth` of them or more, none missing in between."""
    pool_ND, usable_N = candidates.vectors, candidates.usable
    margin = np.float32(rounding_margin(pool_ND.shape[1]))
    queries_KD = queries_of(candidates.shots, "round_robin")
    found = [(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)) for _ in queries_KD]
    lowest_K = np.full(len(queries_KD), -np.inf, dtype=np.float32)  # scores below are of no use to a shot
    for start, cosines_BK in cosine_blocks(pool_ND, queries_KD, candidates.block_rows):
        block = slice(start, start + len(cosines_BK))
        usable_N[block] &= cosines_BK[:, 0] > -np.inf
        near_KB = (cosines_BK >= lowest_K).T & usable_N[block]
        for shot in np.flatnonzero(near_KB.any(axis=1)).tolist():
            places = np.flatnonzero(near_KB[shot])
            rows = np.append(found[shot][0], start + places)
            scanned = np.append(found[shot][1], cosines_BK[places, shot])
            if len(rows) > depth:
                lowest_K[shot] = _cut(scanned, depth, len(scanned)) - 2 * margin
            deepest = scanned >= lowest_K[shot]
            found[shot] = rows[deepest], scanned[deepest]
    nearest = []
    for (rows, scanned), query_D in zip(found, queries_KD, strict=True):
        scores = exact_cosines(unit_rows(pool_ND, rows), query_D[None])[:, 0]
        known = scores >= _cut(scanned, depth, candidates.num_usable) - margin
        rows, scores = rows[known], scores[known]
        nearest.append(rows[candidates.by_falling_score(rows, scores)])
    return nearest


def _cut(scores: np.ndarray, depth: int, num_usable: int) -> np.float32:
    """Return the score of rank `depth`, minus infinity if there are no more usable rows than that."""
    if depth >= num_usable:
        return np.float32(-np.inf)
    return np.float32(np.partition(scores, len(scores) - depth)[len(scores) - depth])
