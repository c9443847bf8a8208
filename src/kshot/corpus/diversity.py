"""Relevance against redundancy: maximal marginal relevance, conditioned on the shots.

N: pool rows, P: rows kept, R: rows reached, D: embedding size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from kshot.corpus.dedup import EXACT_COPY, Dropped
from kshot.corpus.order import Candidates, falling_relevance
from kshot.corpus.rules import Rule, refusal
from kshot.corpus.scan import exact_cosines, unit_rows
from kshot.corpus.vectors import Vectors

# The value that Carbonell and Goldstein end on when what is asked for is known. It takes off three quarters
# of what a row is closer to a kept row than to the nearest shot.
RELEVANCE_WEIGHT = 0.7


@dataclass(slots=True)
class _Reached:
    """A row that relevance alone could have picked.

    Attributes:
        row: Its index in the pool.
        relevance: Cosine with the nearest shot.
        compared: With how many of the kept rows it was compared.
        nearest: Largest cosine with those.
    """

    row: int
    relevance: float
    compared: int = 0
    nearest: float = -1.0

    def value(self, weight: float) -> float:
        """Return its marginal relevance, from which more kept rows can only take off."""
        return weight * self.relevance - (1 - weight) * max(self.relevance, self.nearest)


def keep_diverse(
    candidates: Candidates,
    *,
    threshold: float,
    budget: int,
    weight: float = RELEVANCE_WEIGHT,
    rules: Sequence[Rule] = (),
    depth: int,
) -> tuple[list[int], list[Dropped]]:
    """Keep again and again the row of the largest marginal relevance.

    The marginal relevance of row i is `w·rel(i) − (1 − w)·max(rel(i), max over kept j of cos(i, j))`: the
    shots count as kept from the start. It equals `(2w − 1)·rel(i)` as long as i is closer to a shot than to
    every kept row, and less by `1 − w` times the difference where a kept row is closer.

    Exact over the whole pool, without looking at most of it: the value of a row never rises as rows are kept,
    so a row is compared anew only when it is the best by what is known of it (lazy greedy, Minoux 1978), and
    `(2w − 1)·rel` bounds the value of all rows further down by relevance, which for w > 1/2 ends the search.
    Costs the scan and at most R·P·D.

    Args:
        candidates: The rows to choose from.
        threshold: In (0, 1]; a row whose turn comes is dropped if its cosine to a kept row is larger.
        budget: Rows to keep.
        weight: w, in (1/2, 1]; 1 is falling relevance.
        rules: Asked about each row whose turn comes and that copies none.
        depth: Rows reached first, about.

    Returns:
        Kept rows in the order kept, and dropped rows in the order of their turn. Ties as in `visiting_order`.

    Reference: Carbonell and Goldstein 1998, The use of MMR, diversity-based reranking for reordering
    documents and producing summaries.
    """
    threshold = min(threshold, EXACT_COPY)
    kept: list[int] = []
    dropped: list[Dropped] = []
    kept_PD = np.empty((budget, candidates.vectors.shape[1]))
    queue = _Queue(candidates, weight, depth)
    while len(kept) < budget and (best := queue.pop()) is not None:
        if best.compared < len(kept):
            row_D = unit_rows(candidates.vectors, np.array([best.row]))
            cosines_P = exact_cosines(row_D, kept_PD[best.compared : len(kept)])[0]
            best.nearest = max(best.nearest, float(cosines_P.max()))
            best.compared = len(kept)
            queue.push(best)
            continue
        drop = _copy_of(candidates.vectors, best, kept, kept_PD, threshold)
        if drop is None and (reason := refusal(rules, best.row)):
            drop = Dropped(best.row, reason)
        if drop is not None:
            dropped.append(drop)
            continue
        kept_PD[len(kept)] = unit_rows(candidates.vectors, np.array([best.row]))[0]
        kept.append(best.row)
        for rule in rules:
            rule.keep(best.row)
    return kept, dropped


class _Queue:
    """Rows by falling bound of their value; the pool is reached as deep as the best row asks for."""

    def __init__(self, candidates: Candidates, weight: float, depth: int) -> None:
        self._pieces = falling_relevance(candidates, "mmr", depth=depth)
        self._keys, self._weight = candidates.keys, weight
        self._heap: list[tuple[float, int, int, _Reached]] = []
        self._ceiling = np.inf  # no row that is not reached yet has a larger value

    def push(self, reached: _Reached) -> None:
        key = 0 if self._keys is None else int(self._keys[reached.row])
        heappush(self._heap, (-reached.value(self._weight), key, reached.row, reached))

    def pop(self) -> _Reached | None:
        """Return the row of the largest bound, None if there is no row left."""
        while self._ceiling > -np.inf and (not self._heap or -self._heap[0][0] <= self._ceiling):
            self._reach()
        return heappop(self._heap)[3] if self._heap else None

    def _reach(self) -> None:
        piece = next(self._pieces, None)
        if piece is None:
            self._ceiling = -np.inf
            return
        for row, score in zip(*(part.tolist() for part in piece), strict=True):
            reached = _Reached(row, score)
            self._ceiling = reached.value(self._weight)
            self.push(reached)


def _copy_of(
    pool_ND: Vectors, reached: _Reached, kept: Sequence[int], kept_PD: np.ndarray, threshold: float
) -> Dropped | None:
    """Name the first kept row that a row copies, if it copies any."""
    if reached.nearest <= threshold:
        return None
    row_D = unit_rows(pool_ND, np.array([reached.row]))
    cosines_P = exact_cosines(row_D, kept_PD[: len(kept)])[0]
    first = int(np.flatnonzero(cosines_P > threshold)[0])
    return Dropped(reached.row, "near_copy", kept[first], float(cosines_P[first]))
