"""The rows that are visited first: of a shard, and of a pool from those of its shards.

Which rows come first does not depend on how a pool is cut into shards, on their order, or on who looks at
each: a score follows from row and shots alone, and ties go to the key and the index in the pool.

N: rows of the pool, B: rows of a shard, K: shots, D: embedding size.
"""

from dataclasses import dataclass

import numpy as np

from kshot.corpus.order import Candidates, Ranked, first_rows
from kshot.corpus.scan import Strategy
from kshot.corpus.vectors import Vectors


@dataclass(frozen=True, slots=True, eq=False)
class ShardRows:
    """What a shard must know of its rows.

    Attributes:
        kept: Those that belong to the pool, in rising order; int64 (B,).
        usable: Which of these may be picked; bool (B,).
        keys: By what ties are settled; uint64 (B,).
    """

    kept: np.ndarray
    usable: np.ndarray
    keys: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class FirstRows:
    """The first rows of a shard or a pool.

    Attributes:
        ranked: Rows and their scores in the order of their visit; for `round_robin` those of each shot.
        zeros: Rows that may be picked and are zero; int64.
    """

    ranked: tuple[Ranked, ...]
    zeros: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """What is asked of every shard.

    Attributes:
        shots: Unit-norm embeddings of the shots; (K, D).
        strategy: In whose order.
        depth: How many rows, of each shot for `round_robin`.
    """

    shots: np.ndarray
    strategy: Strategy
    depth: int

    def first_rows(self, vectors: Vectors, rows: ShardRows) -> FirstRows:
        """Return the first rows of a shard by their places among those that belong to the pool.

        Args:
            vectors: Of all rows of the shard.
            rows: Which of them count.
        """
        usable_B = rows.usable.copy()
        candidates = Candidates(vectors[rows.kept], self.shots, usable_B, rows.keys)
        ranked = first_rows(candidates, self.strategy, self.depth)
        return FirstRows(tuple(ranked), np.flatnonzero(rows.usable & ~usable_B))


class GatheredRows:
    """The first rows of a pool, gathered shard by shard in any order.

    Args:
        asked: Of every shard.
        usable_N: Rows that may be picked.
        keys_N: By what ties are settled.
    """

    def __init__(self, asked: Asked, usable_N: np.ndarray, keys_N: np.ndarray) -> None:
        self.asked = asked
        self._usable_N, self._keys_N = usable_N, keys_N
        self._num_seen = 0
        self._ranked: list[Ranked] | None = None
        self._zeros: list[np.ndarray] = []

    def rows_of(self, start: int, kept: np.ndarray) -> ShardRows:
        """Return what a shard must know.

        Args:
            start: Row of the pool that is its first one.
            kept: Its rows that belong to the pool.
        """
        stop = start + len(kept)
        return ShardRows(kept, self._usable_N[start:stop], self._keys_N[start:stop])

    def add(self, start: int, num_rows: int, found: FirstRows) -> None:
        """Take in what a shard of so many rows found."""
        moved = [(rows + start, scores) for rows, scores in found.ranked]
        before = self._ranked or [_none() for _ in moved]
        self._ranked = [self._merged(*pair) for pair in zip(before, moved, strict=True)]
        self._zeros.append(found.zeros + start)
        self._num_seen += num_rows

    def whole(self) -> FirstRows | None:
        """Return the first rows of the pool; None if a shard is missing."""
        if self._ranked is None or self._num_seen != len(self._usable_N):
            return None
        return FirstRows(tuple(self._ranked), np.concatenate(self._zeros))

    def _merged(self, one: Ranked, other: Ranked) -> Ranked:
        rows, scores = (np.concatenate(pair) for pair in zip(one, other, strict=True))
        places = np.lexsort((rows, self._keys_N[rows], -scores))[: self.asked.depth]
        return rows[places], scores[places]


def _none() -> Ranked:
    return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
