"""In which order a strategy visits the pool: rows by falling relevance, or each shot in turn.

N: pool rows, K: shots, B: rows of a block, D: embedding size.

The order comes in pieces that grow, so that nobody sorts a billion rows to keep a thousand. Scores are
compared as float32 and ties go to the lower key, then to the lower index; neither blocks nor pieces change
the order, and where keys tell rows apart the order of the rows does not change it either.
"""

from collections.abc import Iterator, Sequence
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

Ranked = tuple[np.ndarray, np.ndarray]  # rows, int64, and their scores, float32, in the order of their visit

_GROWTH = 4  # each piece reaches so many times deeper than the last
_FIRST_DEPTH = 1_024  # rows ordered at once at least; fewer are not worth a piece of their own
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
        known: What comes first, where that is known already: `first_rows`, as deep as one likes.
    """

    vectors: Vectors
    shots: np.ndarray
    usable: np.ndarray
    keys: np.ndarray | None = None
    block_rows: int = BLOCK_ROWS
    known: Sequence[Ranked] | None = None

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
        depth: Rows of the first piece, about; for `round_robin` those known of each shot. See `first_depth`.

    Raises:
        ConfigError: As `relevance`.
    """
    if strategy == "round_robin":
        return _shots_in_turn(candidates, depth)
    return (rows for rows, _ in falling_relevance(candidates, strategy, depth=depth))


def first_rows(candidates: Candidates, strategy: Strategy, depth: int) -> list[Ranked]:
    """Return the first `depth` rows, for `round_robin` those of each shot; fewer where there are no more.

    Raises:
        ConfigError: As `relevance`.
    """
    if strategy == "round_robin":
        found = _nearest_rows(candidates, depth)
    else:
        found = [next(_scanned(candidates, strategy, depth))]
    return [(rows[:depth], scores[:depth]) for rows, scores in found]


def first_depth(strategy: Strategy, budget: int, num_shots: int) -> int:
    """Return how deep a selection looks at first: twice its budget, of each shot twice its share."""
    depth = max(2 * budget, _FIRST_DEPTH)
    return max(2 * depth // max(num_shots, 1), _TURNS) if strategy == "round_robin" else depth


def falling_relevance(candidates: Candidates, strategy: Strategy, *, depth: int) -> Iterator[Ranked]:
    """Yield rows and their scores by falling relevance; what a piece holds is above all that follows.

    Raises:
        ConfigError: As `relevance`.
    """
    if candidates.known is None:
        yield from _scanned(candidates, strategy, depth)
        return
    (known,) = candidates.known
    yield known
    num_known = len(known[0])
    for rows, scores in _scanned(candidates, strategy, max(depth, num_known) * _GROWTH):
        yield rows[num_known:], scores[num_known:]
        num_known = 0


def _scanned(candidates: Candidates, strategy: Strategy, depth: int) -> Iterator[Ranked]:
    """Scan once, then score again, exactly, the rows between one cut and the next."""
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
    """Take turns as far as the nearest rows of each shot are known; then scan again, deeper."""
    num_yielded, known = 0, candidates.known
    while num_yielded < candidates.num_usable:
        nearest = _nearest_rows(candidates, depth) if known is None else known
        visits = _take_turns([rows for rows, _ in nearest])
        yield visits[num_yielded:]
        num_yielded, depth, known = len(visits), depth * _GROWTH, None


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


def _nearest_rows(candidates: Candidates, depth: int) -> list[Ranked]:
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
        places = candidates.by_falling_score(rows, scores)
        nearest.append((rows[places], scores[places]))
    return nearest


def _cut(scores: np.ndarray, depth: int, num_usable: int) -> np.float32:
    """Return the score of rank `depth`, minus infinity if there are no more usable rows than that."""
    if depth >= num_usable:
        return np.float32(-np.inf)
    return np.float32(np.partition(scores, len(scores) - depth)[len(scores) - depth])
