"""Greedy dedup: keep a row if it is no near-copy of a row kept before it.

B: rows of a block, P: rows kept before the block, D: embedding size.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kshot.corpus.rules import Rule, refusal
from kshot.corpus.scan import exact_cosines, rounding_margin, unit_rows
from kshot.corpus.vectors import Vectors

BLOCK_ROWS = 512
EXACT_COPY = 1 - 1e-6  # two encodings of one text differ by the rounding of their batches


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that was visited and not kept.

    Attributes:
        index: Its row in the pool.
        reason: `near_copy`, or what a rule says: `source_full`, `too_short`, `too_long`.
        kept: The kept row that a near-copy copies: the first one kept of those it is too close to.
        cosine: Their similarity.
    """

    index: int
    reason: str
    kept: int | None = None
    cosine: float | None = None


def keep_distinct(
    pool_ND: Vectors,
    visits: Iterable[np.ndarray],
    *,
    threshold: float,
    budget: int,
    rules: Sequence[Rule] = (),
    block_rows: int = BLOCK_ROWS,
) -> tuple[list[int], list[Dropped]]:
    """Visit rows in order and keep those whose cosine to every row kept so far is at most `threshold`.

    A dropped row never drops another. The result is that of the plain double loop, whatever the block size:
    a matrix product finds the suspects, and each suspect is decided by an exact cosine.

    Args:
        pool_ND: Unit-norm embeddings of the pool; may be memory-mapped.
        visits: Rows in the order of their visit, in pieces of any size.
        threshold: In (0, 1]; at 1 exact copies alone are dropped.
        budget: Stop when so many rows are kept.
        rules: Asked about each row that copies none; a refused row drops none either.
        block_rows: Rows compared at a time.

    Returns:
        Kept rows in the order kept, and dropped rows in the order visited.

    Reference: arXiv 2408.15915v2, Alg. 2; greedy instead of pairwise.
    """
    threshold = min(threshold, EXACT_COPY)
    suspicious = threshold - rounding_margin(pool_ND.shape[1])
    kept: list[int] = []
    dropped: list[Dropped] = []
    kept_PD = np.empty((0, pool_ND.shape[1]), dtype=np.float32)
    for block in _blocks(visits, block_rows):
        rows_BD = unit_rows(pool_ND, block).astype(np.float32)
        near_BP = rows_BD @ kept_PD.T > suspicious
        near_BB = rows_BD @ rows_BD.T > suspicious
        fresh_B = np.zeros(len(block), dtype=bool)
        prior = np.array(kept, dtype=np.int64)
        for position, row in enumerate(block.tolist()):
            suspects = [prior[near_BP[position]], block[near_BB[position] & fresh_B]]
            drop = _first_copy(pool_ND, row, np.concatenate(suspects), threshold) or _refused(rules, row)
            if drop is not None:
                dropped.append(drop)
                continue
            fresh_B[position] = True
            kept.append(row)
            for rule in rules:
                rule.keep(row)
            if len(kept) == budget:
                return kept, dropped
        kept_PD = np.concatenate([kept_PD, rows_BD[fresh_B]])
    return kept, dropped


def _first_copy(pool_ND: Vectors, row: int, suspects: np.ndarray, threshold: float) -> Dropped | None:
    """Return the first suspect whose exact cosine is above the threshold."""
    for suspect in suspects.tolist():
        pair_2D = unit_rows(pool_ND, np.array([row, suspect]))
        cosine = float(exact_cosines(pair_2D[:1], pair_2D[1:])[0, 0])
        if cosine > threshold:
            return Dropped(row, "near_copy", suspect, cosine)
    return None


def _refused(rules: Sequence[Rule], row: int) -> Dropped | None:
    reason = refusal(rules, row)
    return Dropped(row, reason) if reason else None


def _blocks(visits: Iterable[np.ndarray], block_rows: int) -> Iterator[np.ndarray]:
    for piece in visits:
        yield from (piece[start : start + block_rows] for start in range(0, len(piece), block_rows))
