"""Data selection: against a brute-force greedy, on toys with known answers, and its refusals."""

from pathlib import Path

import numpy as np
import pytest

from kshot.corpus.selection import Dropped, select_data
from kshot.errors import ConfigError


def _unit(matrix: np.ndarray) -> np.ndarray:
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


def _clustered(seed: int, rows: int, size: int = 16) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return _unit(
        rng.standard_normal((40, size))[rng.integers(0, 40, rows)] + 0.25 * rng.standard_normal((rows, size))
    )


def _greedy(pool_ND: np.ndarray, shots_KD: np.ndarray, budget: int, threshold: float) -> list[int]:
    relevance_N = (pool_ND @ shots_KD.T).max(axis=1)
    kept: list[int] = []
    for row in np.argsort(-relevance_N, kind="stable"):
        if len(kept) < budget and all(pool_ND[row] @ pool_ND[other] <= threshold for other in kept):
            kept.append(int(row))
    return kept


@pytest.mark.parametrize("budget", [1, 50, 140])
def test_against_brute_force_greedy(budget: int) -> None:
    pool_ND, shots_KD = _clustered(0, 3_000), _clustered(1, 8)
    picked = select_data(pool_ND, shots_KD, budget=budget, threshold=0.9)
    cosines_NK = pool_ND @ shots_KD.T
    assert picked.indices.tolist() == _greedy(pool_ND, shots_KD, budget, 0.9)
    np.testing.assert_allclose(picked.scores, cosines_NK.max(axis=1)[picked.indices], atol=1e-6)
    np.testing.assert_array_equal(picked.nearest_shot, cosines_NK.argmax(axis=1)[picked.indices])
    assert np.all(np.diff(picked.scores) <= 0)
    assert picked.dropped if budget == 140 else picked.indices.size
    for row in picked.dropped:
        assert row.cosine > 0.9
        assert row.cosine == pytest.approx(pool_ND[row.index] @ pool_ND[row.kept], abs=1e-6)
        assert row.kept in picked.indices


def test_invariant_no_pair_above_the_threshold_and_budget_met_beyond_the_first_depth() -> None:
    pool_ND = _clustered(2, 6_000)
    picked = select_data(pool_ND, pool_ND[:3], budget=36, threshold=0.5)
    cosines_CC = pool_ND[picked.indices] @ pool_ND[picked.indices].T
    assert len(picked.indices) == 36
    assert (cosines_CC - np.eye(36)).max() <= 0.5 + 1e-6
    assert len(picked.dropped) > 1_024


@pytest.mark.parametrize("strategy", ["max", "centroid", "round_robin"])
def test_invariant_memory_mapped_float16_gives_the_same_rows(tmp_path: Path, strategy: str) -> None:
    half_ND = _clustered(3, 2_000).astype(np.float16)
    half_ND.tofile(tmp_path / "pool.f16")
    mapped_ND = np.memmap(tmp_path / "pool.f16", dtype=np.float16, mode="r", shape=half_ND.shape)
    shots_KD = _clustered(4, 5)
    from_map = select_data(mapped_ND, shots_KD, budget=100, strategy=strategy)  # type: ignore[arg-type]
    from_memory = select_data(half_ND.astype(np.float64), shots_KD, budget=100, strategy=strategy)  # type: ignore[arg-type]
    np.testing.assert_array_equal(from_map.indices, from_memory.indices)
    assert from_map.dropped == from_memory.dropped


def test_ties_go_to_the_lower_index() -> None:
    pool_ND = np.eye(8, dtype=np.float32)[[3, 1, 0, 2, 4]]
    picked = select_data(pool_ND, np.eye(8)[:3], budget=5)
    assert picked.indices.tolist() == [1, 2, 3, 0, 4]
    assert picked.nearest_shot.tolist() == [1, 0, 2, 0, 0]


def test_chain_of_near_copies_keeps_the_right_rows() -> None:
    angles = np.deg2rad([0, 20, 40, 60, 80])
    pool_ND = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    picked = select_data(pool_ND, pool_ND[:1], budget=3)
    assert picked.indices.tolist() == [0, 2, 4]
    assert [(row.index, row.reason, row.kept) for row in picked.dropped] == [
        (1, "near_copy", 0),
        (3, "near_copy", 2),
    ]


def test_all_identical_rows_keep_one() -> None:
    pool_ND = np.repeat(np.eye(4, dtype=np.float32)[:1], 2_000, axis=0)
    picked = select_data(pool_ND, np.eye(4), budget=1)
    assert picked.indices.tolist() == [0]
    message = r"budget must be in \[1, 1\], got 2: threshold 0\.9 leaves 1 distinct rows of 2000; lower"
    for strategy in ("max", "centroid", "round_robin"):
        with pytest.raises(ConfigError, match=message):
            select_data(pool_ND, np.eye(4), budget=2, strategy=strategy)  # type: ignore[arg-type]


def test_two_modes_are_both_served_by_max_and_round_robin_but_not_by_centroid() -> None:
    """Rows between the modes are the nearest to the mean of the shots, and serve neither."""
    rng = np.random.default_rng(0)
    axes = np.eye(12)
    modes = [axes[0], axes[1], _unit((axes[0] + axes[1])[None])[0]]
    pool_ND = _unit(np.repeat(modes, 50, axis=0) + 0.2 * rng.standard_normal((150, 12)))
    counts = {
        strategy: np.bincount(
            select_data(pool_ND, axes[:2], budget=20, threshold=1, strategy=strategy).indices // 50,  # type: ignore[arg-type]
            minlength=3,
        )
        for strategy in ("max", "centroid", "round_robin")
    }
    assert counts["max"][:2].min() >= 5
    assert counts["round_robin"][:2].tolist() == [10, 10]
    assert counts["centroid"].tolist() == [0, 0, 20]


def test_round_robin_serves_the_shot_whose_rows_are_farther() -> None:
    rng = np.random.default_rng(0)
    axes = np.eye(12)
    close, far = axes[0] + 0.05 * rng.standard_normal((50, 12)), axes[1] + 0.4 * rng.standard_normal((50, 12))
    pool_ND = _unit(np.vstack([close, far]))
    by_max = select_data(pool_ND, axes[:2], budget=20, threshold=1)
    in_turn = select_data(pool_ND, axes[:2], budget=20, threshold=1, strategy="round_robin")
    assert set(by_max.nearest_shot.tolist()) == {0}
    assert in_turn.nearest_shot.tolist() == [0, 1] * 10


def test_avoided_rows_are_never_picked_and_never_drop_others() -> None:
    pool_ND = np.repeat(np.eye(4, dtype=np.float32), 2, axis=0)
    picked = select_data(pool_ND, np.eye(4), budget=4, avoid=[0, 3])
    assert picked.indices.tolist() == [1, 2, 4, 6]
    assert picked.dropped == (Dropped(5, "near_copy", 4, 1.0),)


@pytest.mark.parametrize("budget", [0, -1, 9, 1_000])
def test_refuses_a_budget_out_of_range(budget: int) -> None:
    message = rf"budget must be in \[1, 8\], got {budget}: lower data\.budget or enlarge the pool"
    with pytest.raises(ConfigError, match=message):
        select_data(np.eye(10), np.eye(10)[:1], budget=budget, avoid=[2, 5, 2])


@pytest.mark.parametrize("threshold", [0.0, -0.5, 1.5, float("nan")])
def test_refuses_a_threshold_out_of_range(threshold: float) -> None:
    with pytest.raises(
        ConfigError, match=rf"threshold must be in \(0, 1\], got {threshold}: set data\.threshold"
    ):
        select_data(np.eye(4), np.eye(4), budget=1, threshold=threshold)


@pytest.mark.parametrize("row", [-1, 4])
def test_refuses_an_avoided_row_outside_of_the_pool(row: int) -> None:
    with pytest.raises(
        ConfigError, match=rf"avoid must hold rows in \[0, 4\), got {row}: it belongs to another pool"
    ):
        select_data(np.eye(4), np.eye(4), budget=1, avoid=[row])


def test_refuses_a_pool_of_avoided_rows() -> None:
    with pytest.raises(ConfigError, match="expected pool rows that match no shot or test example, got none"):
        select_data(np.eye(4), np.eye(4), budget=1, avoid=range(4))


@pytest.mark.parametrize("strategy", ["max", "centroid", "round_robin"])
def test_refuses_zero_and_nan_rows(strategy: str) -> None:
    pool_ND = np.eye(6)
    for value, shown in ((0, "0"), (np.nan, "nan")):
        pool_ND[4] = value
        with pytest.raises(ConfigError, match=f"got pool row 4 with norm {shown}"):
            select_data(pool_ND, np.eye(6)[:2], budget=1, strategy=strategy)  # type: ignore[arg-type]


def test_refuses_an_unknown_strategy() -> None:
    with pytest.raises(ConfigError, match="strategy must be one of max, centroid, round_robin, got 'best'"):
        select_data(np.eye(4), np.eye(4), budget=1, strategy="best")  # type: ignore[arg-type]
