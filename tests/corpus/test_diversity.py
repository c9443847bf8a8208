"""Maximal marginal relevance: against a greedy that looks at every row each time, and what it is for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kshot.corpus.diversity import keep_diverse
from kshot.corpus.order import Candidates
from kshot.corpus.scan import exact_cosines, exact_relevance, unit_rows
from kshot.corpus.selection import select_data


def _unit(matrix: np.ndarray) -> np.ndarray:
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def _clustered(seed: int, rows: int, size: int = 6) -> np.ndarray:
    """Rows around a few centres, with exact copies among them."""
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((5, size))[rng.integers(0, 5, rows)]
    matrix += 0.4 * rng.standard_normal((rows, size))
    matrix[rng.integers(0, rows, rows // 5)] = matrix[0]
    return _unit(matrix).astype(np.float16)


def _every_row_each_time(
    pool_ND: np.ndarray,
    shots_KD: np.ndarray,
    keys_N: np.ndarray,
    weight: float,
    threshold: float,
    budget: int,
) -> tuple[list[int], list[tuple[int, int]]]:
    rows = np.arange(len(pool_ND))
    relevance = exact_relevance(pool_ND, rows, shots_KD, "max").scores.astype(float)
    cosines = exact_cosines(unit_rows(pool_ND, rows), unit_rows(pool_ND, rows)).astype(float)
    kept: list[int] = []
    dropped: list[tuple[int, int]] = []
    left = set(rows.tolist())
    while len(kept) < budget and left:
        penalty = {row: max([relevance[row], *cosines[row, kept]]) for row in left}
        value = {row: weight * relevance[row] - (1 - weight) * penalty[row] for row in left}
        best = min(left, key=lambda row: (-value[row], keys_N[row], row))
        left.discard(best)
        copies = [other for other in kept if cosines[best, other] > min(threshold, 1 - 1e-6)]
        dropped += [(best, copies[0])] if copies else []
        kept += [] if copies else [best]
    return kept, dropped


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    num_rows=st.integers(1, 80),
    weight=st.sampled_from([0.55, 0.7, 0.9, 1.0]),
    threshold=st.sampled_from([0.8, 0.95, 1.0]),
    budget=st.integers(1, 30),
    depth=st.integers(1, 90),
)
def test_against_looking_at_every_row_each_time(
    seed: int, num_rows: int, weight: float, threshold: float, budget: int, depth: int
) -> None:
    pool_ND = _clustered(seed, num_rows)
    shots_KD = pool_ND[:3].astype(np.float32)
    keys_N = np.random.default_rng(seed).integers(0, 4, num_rows).astype(np.uint64)
    candidates = Candidates(pool_ND, shots_KD, np.ones(num_rows, dtype=bool), keys_N)
    kept, dropped = keep_diverse(candidates, threshold=threshold, budget=budget, weight=weight, depth=depth)
    expected = _every_row_each_time(pool_ND, shots_KD, keys_N, weight, threshold, budget)
    assert (kept, [(row.index, row.kept) for row in dropped]) == expected


def test_weight_of_one_is_falling_relevance() -> None:
    pool_ND = _unit(np.random.default_rng(0).standard_normal((300, 8)))
    by_max = select_data(pool_ND, pool_ND[:4], budget=40)
    by_mmr = select_data(pool_ND, pool_ND[:4], budget=40, strategy="mmr", relevance_weight=1)
    assert by_mmr.indices.tolist() == by_max.indices.tolist()


def test_a_crowd_of_likes_gives_way_to_others_and_far_rows_do_not_win() -> None:
    """60 rows alike, closest to the shot; 60 rows apart from each other, a little farther; 60 far away."""
    rng = np.random.default_rng(0)
    axes = np.eye(70)
    shot_D = axes[0]
    crowd = 0.87 * shot_D + 0.49 * axes[1] + 0.01 * rng.standard_normal((60, 70))
    spread = 0.83 * shot_D + 0.56 * axes[2:62]
    far = rng.standard_normal((60, 70)) - shot_D
    pool_ND = _unit(np.vstack([crowd, spread, far]))
    picks = {
        strategy: select_data(pool_ND, shot_D[None], budget=30, threshold=1, strategy=strategy)  # type: ignore[arg-type]
        for strategy in ("max", "mmr")
    }
    counts = {name: np.bincount(picked.indices // 60, minlength=3) for name, picked in picks.items()}
    assert counts["max"].tolist() == [30, 0, 0]
    assert counts["mmr"].tolist() == [1, 29, 0]


def test_a_dropped_row_names_the_first_kept_row_that_it_copies() -> None:
    angles = np.deg2rad([0, 40, 22])
    pool_ND = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    candidates = Candidates(pool_ND, pool_ND[:1], np.ones(3, dtype=bool))
    kept, dropped = keep_diverse(candidates, threshold=0.9, budget=3, weight=0.9, depth=8)
    assert kept == [0, 1]
    assert [(row.index, row.kept) for row in dropped] == [(2, 0)]
    assert dropped[0].cosine == pytest.approx(np.cos(angles[2]))
