"""The order of visits: against a full sort and against turns taken over the whole matrix."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kshot.corpus.order import Candidates, visiting_order
from kshot.corpus.scan import Strategy, exact_cosines, queries_of, unit_rows


def _grid(seed: int, rows: int) -> np.ndarray:
    """Unit rows of few values, so that equal scores and equal rows are common."""
    matrix = np.random.default_rng(seed).integers(-1, 2, size=(rows, 4)).astype(np.float64)
    matrix[~matrix.any(axis=1)] = 1
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


def _reference(
    pool_ND: np.ndarray,
    shots_KD: np.ndarray,
    usable_N: np.ndarray,
    keys_N: np.ndarray,
    strategy: Strategy,
) -> list[int]:
    queries_QD = queries_of(shots_KD, strategy)
    cosines_NQ = exact_cosines(unit_rows(pool_ND, np.arange(len(pool_ND))), queries_QD)
    rows = np.flatnonzero(usable_N).tolist()
    if strategy != "round_robin":
        scores = cosines_NQ[:, -1] if strategy == "centroid" else cosines_NQ.max(axis=1)
        return sorted(rows, key=lambda row: (-scores[row], keys_N[row], row))
    taken: list[int] = []
    while len(taken) < len(rows):
        shot = len(taken) % len(queries_QD)
        taken.append(min(set(rows) - set(taken), key=lambda row: (-cosines_NQ[row, shot], keys_N[row], row)))
    return taken


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    num_rows=st.integers(1, 60),
    depth=st.integers(1, 70),
    block_rows=st.integers(1, 70),
    strategy=st.sampled_from(["max", "centroid", "round_robin", "mmr"]),
)
def test_against_full_sort(seed: int, num_rows: int, depth: int, block_rows: int, strategy: Strategy) -> None:
    pool_ND = _grid(seed, num_rows)
    shots_KD = np.abs(_grid(seed + 1, 3))  # of one sign, so that they do not cancel out
    usable_N = np.random.default_rng(seed).random(num_rows) < 0.8
    keys_N = np.random.default_rng(seed).integers(0, 3, num_rows).astype(np.uint64)
    candidates = Candidates(pool_ND, shots_KD, usable_N, keys_N, block_rows)
    pieces = list(visiting_order(candidates, strategy, depth=depth))
    visits = np.concatenate([np.empty(0, dtype=np.int64), *pieces]).tolist()
    assert visits == _reference(pool_ND, shots_KD, usable_N, keys_N, strategy)


@pytest.mark.parametrize("strategy", ["max", "centroid", "round_robin"])
def test_invariant_first_piece_holds_the_depth_asked_for(strategy: Strategy) -> None:
    rng = np.random.default_rng(0)
    pool_ND = rng.standard_normal((5_000, 16))
    pool_ND /= np.linalg.norm(pool_ND, axis=1, keepdims=True)
    candidates = Candidates(pool_ND, pool_ND[:5], np.ones(5_000, dtype=bool))
    first = next(visiting_order(candidates, strategy, depth=100))
    assert 100 <= len(first) <= 600


@pytest.mark.parametrize("strategy", ["max", "centroid", "round_robin"])
def test_rows_of_zeros_are_never_visited(strategy: Strategy) -> None:
    pool_ND = _grid(0, 30)
    pool_ND[[0, 11, 29]] = 0
    candidates = Candidates(pool_ND, np.abs(_grid(1, 3)), np.ones(30, dtype=bool), block_rows=7)
    visits = np.concatenate(list(visiting_order(candidates, strategy, depth=4)))
    assert sorted(visits.tolist()) == sorted(set(range(30)) - {0, 11, 29})
    assert candidates.num_usable == 27
