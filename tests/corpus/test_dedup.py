"""Greedy dedup: against the plain double loop, for any block."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kshot.corpus.dedup import Dropped, keep_distinct
from kshot.corpus.scan import exact_cosines, unit_rows


def _clustered(seed: int, rows: int, size: int = 6) -> np.ndarray:
    """Unit rows around a few centres, with exact copies among them."""
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((4, size))[rng.integers(0, 4, rows)] + 0.4 * rng.standard_normal(
        (rows, size)
    )
    matrix[rng.integers(0, rows, rows // 4)] = matrix[0]
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


def _double_loop(
    pool_ND: np.ndarray, order: list[int], threshold: float, budget: int
) -> tuple[list[int], list[tuple[int, int]]]:
    rows_ND = unit_rows(pool_ND, np.arange(len(pool_ND)))
    cosines_NN = exact_cosines(rows_ND, rows_ND)
    kept: list[int] = []
    dropped: list[tuple[int, int]] = []
    for row in order:
        if len(kept) == budget:
            break
        copies = [other for other in kept if cosines_NN[row, other] > min(threshold, 1 - 1e-6)]
        dropped += [(row, copies[0])] if copies else []
        kept += [] if copies else [row]
    return kept, dropped


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 10_000),
    num_rows=st.integers(1, 80),
    budget=st.integers(1, 80),
    threshold=st.sampled_from([0.5, 0.8, 0.9, 0.95, 1.0]),
    block_rows=st.integers(1, 90),
    pieces=st.integers(1, 5),
)
def test_against_double_loop(
    seed: int, num_rows: int, budget: int, threshold: float, block_rows: int, pieces: int
) -> None:
    pool_ND = _clustered(seed, num_rows)
    order = np.random.default_rng(seed).permutation(num_rows)
    kept, dropped = keep_distinct(
        pool_ND, np.array_split(order, pieces), threshold=threshold, budget=budget, block_rows=block_rows
    )
    expected = _double_loop(pool_ND, order.tolist(), threshold, budget)
    assert (kept, [(row.index, row.kept) for row in dropped]) == expected


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_against_double_loop_over_many_blocks(kind: type) -> None:
    pool_ND = _clustered(1, 1_500, 24).astype(kind)
    order = np.arange(1_500)
    expected = _double_loop(pool_ND, order.tolist(), 0.9, 1_000)
    kept, dropped = keep_distinct(pool_ND, [order], threshold=0.9, budget=1_000)
    assert (kept, [(row.index, row.kept) for row in dropped]) == expected
    assert 100 < len(kept) < 1_400  # both sides of the threshold are met


def test_chain_of_near_copies_keeps_every_second_row() -> None:
    """Each row copies its neighbour alone, so a dropped row must not drop the next one."""
    angles = np.deg2rad([0, 20, 40, 60, 80])
    pool_ND = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    kept, dropped = keep_distinct(pool_ND, [np.arange(5)], threshold=0.9, budget=5)
    assert kept == [0, 2, 4]
    assert [(row.index, row.kept) for row in dropped] == [(1, 0), (3, 2)]
    assert dropped[0].cosine == pytest.approx(np.cos(np.deg2rad(20)), abs=1e-6)


def test_dropped_row_names_the_first_kept_row_that_it_copies() -> None:
    angles = np.deg2rad([0, 40, 22])
    pool_ND = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    _, dropped = keep_distinct(pool_ND, [np.arange(3)], threshold=0.9, budget=3)
    assert dropped == [Dropped(2, "near_copy", 0, pytest.approx(np.cos(angles[2])))]


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_threshold_of_one_keeps_exact_copies_out_only(kind: type) -> None:
    rng = np.random.default_rng(0)
    pool_ND = rng.standard_normal((20, 32))
    pool_ND[1] = pool_ND[0] + 0.01 * rng.standard_normal(32)
    pool_ND[2] = pool_ND[0]
    pool_ND = (pool_ND / np.linalg.norm(pool_ND, axis=1, keepdims=True)).astype(kind)
    kept, dropped = keep_distinct(pool_ND, [np.arange(20)], threshold=1, budget=20)
    assert [(row.index, row.kept) for row in dropped] == [(2, 0)]
    assert len(kept) == 19


def test_a_cosine_equal_to_the_threshold_is_kept() -> None:
    pool_ND = np.array([[1, 0], [0.6, 0.8]], dtype=np.float64)
    threshold = float(np.float32(0.6))
    assert keep_distinct(pool_ND, [np.arange(2)], threshold=threshold, budget=2)[0] == [0, 1]
    assert keep_distinct(pool_ND, [np.arange(2)], threshold=threshold - 1e-6, budget=2)[0] == [0]


def test_stops_at_the_budget() -> None:
    assert keep_distinct(np.eye(6), [np.arange(6)], threshold=0.9, budget=2) == ([0, 1], [])
