"""The exact scan: the cosine of every pool row with every shot, block by block.

N: pool rows, K: shots, Q: queries (the shots, and their centroid where it is asked for), B: rows of a block,
M: rows picked from the pool, D: embedding size.

Float32 matrix products round differently with the shape of a block. The scan is therefore good to
`rounding_margin`, and whatever decides about a row is computed again by `exact_relevance`, one row at a time
in float64, which depends on nothing but that row and the shots. A row of zeros is similar to nothing: its
score is minus infinity.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from kshot.corpus.vectors import Vectors
from kshot.errors import ConfigError

Strategy = Literal["max", "centroid", "round_robin", "mmr"]
# A block stays in the cache: 1.5 times faster than 65,536 rows (200,000 x 384 float16, 50 shots, one core).
BLOCK_ROWS = 4_096
_NORM_TOLERANCE = 1e-2  # float16 moves a norm by less than 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class Relevance:
    """How close rows are to the shots.

    Attributes:
        scores: Cosine with the nearest shot, with the centroid for `centroid`; float32 (M,).
        nearest_shot: Index of the nearest shot, the lower one of equals; int64 (M,).
    """

    scores: np.ndarray
    nearest_shot: np.ndarray


def relevance(
    pool_ND: Vectors, shots_KD: np.ndarray, strategy: Strategy = "max", *, block_rows: int = BLOCK_ROWS
) -> np.ndarray:
    """Score every pool row against the shots.

    Costs one float32 matrix product, N·K·D (N·D for `centroid`), and one pass over the vectors.

    Args:
        pool_ND: Unit-norm embeddings, float16 or float32, or rows of zeros; may be memory-mapped.
        shots_KD: Unit-norm embeddings of the shots.
        strategy: `centroid`: cosine with the shots' mean; all others: with the nearest shot.
        block_rows: Rows read at a time.

    Returns:
        A score per row, exact to `rounding_margin(D)`; minus infinity for rows of zeros; float32 (N,).

    Raises:
        ConfigError: Shapes do not fit, or a row has neither unit norm nor norm zero.
    """
    queries_QD = queries_of(shots_KD, strategy)
    if strategy == "centroid":
        queries_QD = queries_QD[-1:]
    scores_N = np.empty(len(pool_ND), dtype=np.float32)
    for start, products_BQ, norms_B in _product_blocks(pool_ND, queries_QD, block_rows):
        # The largest product is also the largest cosine, since all are divided by the row's one norm.
        scores_N[start : start + len(norms_B)] = _divide(products_BQ.amax(dim=1).numpy(), norms_B)
    return scores_N


def exact_relevance(
    pool_ND: Vectors, rows_M: np.ndarray, shots_KD: np.ndarray, strategy: Strategy
) -> Relevance:
    """Score some rows so that a row's score depends on nothing but the row and the shots."""
    queries_QD = queries_of(shots_KD, strategy)
    scores_M = np.empty(len(rows_M), dtype=np.float32)
    nearest_M = np.empty(len(rows_M), dtype=np.int64)
    for start in range(0, len(rows_M), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        cosines_BQ = exact_cosines(unit_rows(pool_ND, rows_M[block]), queries_QD)
        scores_M[block], nearest_M[block] = _summary(cosines_BQ, len(shots_KD))
    return Relevance(scores_M, nearest_M)


def exact_cosines(rows_BD: np.ndarray, queries_QD: np.ndarray) -> np.ndarray:
    """Return float32 cosines (B, Q) of float64 unit rows, each from a dot product of its own."""
    cosines_BQ: np.ndarray = np.vecdot(rows_BD[:, None, :], queries_QD[None, :, :])
    return cosines_BQ.astype(np.float32)


def rounding_margin(num_dimensions: int) -> float:
    """Bound the error of a float32 cosine of unit vectors: D roundings in the product, D in the norms."""
    return 2 * (num_dimensions + 8) * 2.0**-24


def queries_of(shots_KD: np.ndarray, strategy: Strategy) -> np.ndarray:
    """Return the shots as float64 unit rows, followed by their centroid for `centroid`.

    Raises:
        ConfigError: The strategy is unknown, a shot has no unit norm, or the shots cancel out.
    """
    if strategy not in get_args(Strategy):
        expected = ", ".join(get_args(Strategy))
        raise ConfigError(f"strategy must be one of {expected}, got {strategy!r}: set data.strategy")
    _check_matrix(shots_KD, "shots")
    shots_KD = np.asarray(shots_KD, dtype=np.float64)
    norms_K = _norms(shots_KD)
    _check_norms(norms_K, 0, "shot", zero_allowed=False)
    shots_KD = shots_KD / norms_K[:, None]
    if strategy != "centroid":
        return shots_KD
    centroid_D = shots_KD.mean(axis=0)
    length = float(np.linalg.norm(centroid_D))
    if length < 1e-6:
        raise ConfigError(
            "strategy centroid expects shots that do not cancel out, got a mean of zero: use strategy max"
        )
    return np.vstack([shots_KD, centroid_D / length])


def unit_rows(pool_ND: Vectors, rows_M: np.ndarray) -> np.ndarray:
    """Return rows of the pool as float64 rows of norm 1, which undoes the rounding of float16."""
    rows_MD = np.asarray(pool_ND[rows_M], dtype=np.float64)
    unit_MD: np.ndarray = rows_MD / _norms(rows_MD)[:, None]
    return unit_MD


def cosine_blocks(
    pool_ND: Vectors, queries_QD: np.ndarray, block_rows: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the first row of each block and its float32 cosines (B, Q) with the queries.

    A block is overwritten by the next one; the cosines of a row of zeros are minus infinity.

    Raises:
        ConfigError: The embeddings differ in size, or a row has neither unit norm nor norm zero.
    """
    for start, products_BQ, norms_B in _product_blocks(pool_ND, queries_QD, block_rows):
        yield start, _divide(products_BQ.numpy(), norms_B[:, None])


def _product_blocks(
    pool_ND: Vectors, queries_QD: np.ndarray, block_rows: int
) -> Iterator[tuple[int, Tensor, np.ndarray]]:
    """Yield the first row of each block, its products (B, Q) with the queries and its norms (B,).

    All of it is torch's: numpy converts float16 twenty times slower, and takes norms and maxima on one core.
    """
    _check_matrix(pool_ND, "pool")
    if pool_ND.shape[1] != queries_QD.shape[1]:
        raise ConfigError(
            f"pool and shots must have embeddings of one size, got {pool_ND.shape[1]} and "
            f"{queries_QD.shape[1]}: embed both with the same encoder"
        )
    queries_DQ = torch.from_numpy(np.ascontiguousarray(queries_QD.T, dtype=np.float32))
    size = min(block_rows, len(pool_ND))
    rows_BD = torch.empty((size, pool_ND.shape[1]))
    products_BQ = torch.empty((size, len(queries_QD)))
    for start in range(0, len(pool_ND), block_rows):
        stored_BD = _tensor(pool_ND[start : start + block_rows])
        block_BD = rows_BD[: len(stored_BD)].copy_(stored_BD)
        norms_B = torch.linalg.vector_norm(block_BD, dim=1).numpy()
        _check_norms(norms_B, start, "pool row", zero_allowed=True)
        yield start, torch.mm(block_BD, queries_DQ, out=products_BQ[: len(block_BD)]), norms_B


def _tensor(rows_BD: np.ndarray) -> Tensor:
    """Return a view, which must only be read: the rows of a file that is mapped for reading."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.asarray(rows_BD))


def _divide(products: np.ndarray, norms: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # zero by zero, of which the next line takes care
        cosines: np.ndarray = products / norms
    cosines[np.broadcast_to(norms == 0, cosines.shape)] = -np.inf
    return cosines


def _summary(cosines_BQ: np.ndarray, num_shots: int) -> tuple[np.ndarray, np.ndarray]:
    """Return score and nearest shot per row; a column after the shots is the centroid, and then the score."""
    nearest_B = cosines_BQ[:, :num_shots].argmax(axis=1)
    score_column_B = nearest_B if cosines_BQ.shape[1] == num_shots else np.full_like(nearest_B, num_shots)
    return np.take_along_axis(cosines_BQ, score_column_B[:, None], axis=1)[:, 0], nearest_B


def _norms(rows_BD: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):  # `_check_norms` names the row
        norms_B: np.ndarray = np.sqrt(np.vecdot(rows_BD, rows_BD))
    return norms_B


def _check_matrix(matrix: Vectors, name: str) -> None:
    if len(matrix.shape) != 2 or 0 in matrix.shape or not np.issubdtype(matrix.dtype, np.floating):
        raise ConfigError(
            f"{name} must be a matrix of floats with at least one row, got shape {matrix.shape} "
            f"of {matrix.dtype}"
        )


def _check_norms(norms_B: np.ndarray, start: int, what: str, *, zero_allowed: bool) -> None:
    broken_B = ~(np.abs(norms_B - 1) <= _NORM_TOLERANCE)  # written so that NaN is broken
    bad = np.flatnonzero(broken_B & (norms_B != 0) if zero_allowed else broken_B)
    if bad.size:
        raise ConfigError(
            f"expected unit-norm embeddings, got {what} {start + bad[0]} with norm {norms_B[bad[0]]:.3g}: "
            "divide each row by its norm"
        )
