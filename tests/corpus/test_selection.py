"""Data selection: against a brute-force greedy, on toys with known answers, and its refusals."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kshot.corpus.rules import LengthLimits, SourceQuota
from kshot.corpus.scan import Strategy
from kshot.corpus.selection import Dropped, select_data
from kshot.errors import ConfigError

STRATEGIES: tuple[Strategy, ...] = ("max", "centroid", "round_robin", "mmr")


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


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_invariant_memory_mapped_float16_gives_the_same_rows(tmp_path: Path, strategy: Strategy) -> None:
    half_ND = _clustered(3, 2_000).astype(np.float16)
    half_ND.tofile(tmp_path / "pool.f16")
    mapped_ND = np.memmap(tmp_path / "pool.f16", dtype=np.float16, mode="r", shape=half_ND.shape)
    shots_KD = _clustered(4, 5)
    from_map = select_data(mapped_ND, shots_KD, budget=100, strategy=strategy)
    from_memory = select_data(half_ND.astype(np.float64), shots_KD, budget=100, strategy=strategy)
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
    for strategy in STRATEGIES:
        assert select_data(pool_ND, np.eye(4), budget=1, strategy=strategy).indices.tolist() == [0]
        with pytest.raises(ConfigError, match=message):
            select_data(pool_ND, np.eye(4), budget=2, strategy=strategy)


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


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_refuses_a_nan_row(strategy: Strategy) -> None:
    pool_ND = np.eye(6)
    pool_ND[4] = np.nan
    with pytest.raises(ConfigError, match="got pool row 4 with norm nan"):
        select_data(pool_ND, np.eye(6)[:2], budget=1, strategy=strategy)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rows_of_zeros_are_never_selected_and_counted(strategy: Strategy) -> None:
    pool_ND = np.vstack([np.zeros((2, 4)), np.eye(4), np.zeros((1, 4))])
    picked = select_data(pool_ND, np.eye(4)[:2], budget=4, strategy=strategy, avoid=[0])
    assert sorted(picked.indices.tolist()) == [2, 3, 4, 5]
    assert picked.num_zero == 2
    with pytest.raises(ConfigError, match=r"leaves 4 distinct rows of 6 \(2 are zero\); lower data\.budget"):
        select_data(pool_ND, np.eye(4)[:2], budget=5, strategy=strategy, avoid=[0])


def test_refuses_an_unknown_strategy() -> None:
    with pytest.raises(
        ConfigError, match="strategy must be one of max, centroid, round_robin, mmr, got 'best'"
    ):
        select_data(np.eye(4), np.eye(4), budget=1, strategy="best")  # type: ignore[arg-type]


@pytest.mark.parametrize("weight", [0.5, 0.0, 1.1, float("nan")])
def test_refuses_a_relevance_weight_out_of_range(weight: float) -> None:
    with pytest.raises(ConfigError, match=rf"relevance_weight must be in \(0\.5, 1\], got {weight}"):
        select_data(np.eye(4), np.eye(4), budget=1, strategy="mmr", relevance_weight=weight)


def test_refuses_keys_of_another_pool() -> None:
    with pytest.raises(ConfigError, match="expected a key for each of 4 rows, got 3"):
        select_data(np.eye(4), np.eye(4), budget=1, keys_N=np.arange(3, dtype=np.uint64))


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), budget=st.integers(1, 12), strategy=st.sampled_from(STRATEGIES))
def test_invariant_the_order_of_the_rows_does_not_change_what_is_selected(
    seed: int, budget: int, strategy: Strategy
) -> None:
    """Rows of few values, so that equal scores and equal vectors of different texts are common."""
    rng = np.random.default_rng(seed)
    pool_ND = rng.integers(-1, 2, size=(60, 4)).astype(np.float32)
    pool_ND[~pool_ND.any(axis=1)] = 1
    pool_ND = _unit(pool_ND)
    shots_KD = _unit(np.abs(rng.standard_normal((3, 4))))
    keys_N = rng.permutation(60).astype(np.uint64)
    moved = rng.permutation(60)
    budget = min(budget, _num_distinct(pool_ND))
    first = select_data(pool_ND, shots_KD, budget=budget, strategy=strategy, keys_N=keys_N)
    second = select_data(pool_ND[moved], shots_KD, budget=budget, strategy=strategy, keys_N=keys_N[moved])
    assert keys_N[first.indices].tolist() == keys_N[moved[second.indices]].tolist()
    assert [(keys_N[row.index], keys_N[row.kept or 0]) for row in first.dropped] == [
        (keys_N[moved[row.index]], keys_N[moved[row.kept or 0]]) for row in second.dropped
    ]


def _num_distinct(pool_ND: np.ndarray) -> int:
    """How many rows any greedy dedup at 0.9 keeps at least: these vectors are equal or far apart."""
    cosines_NN = pool_ND @ pool_ND.T
    return len({tuple(row) for row in (cosines_NN > 0.9).tolist()})


def test_rules_refill_the_budget_and_say_why_rows_are_left_out() -> None:
    pool_ND = _clustered(5, 400)
    shots_KD = pool_ND[:3]
    quota = SourceQuota(lambda row: "even" if row % 2 == 0 else "odd", 10)
    lengths = LengthLimits(lambda row: row % 7, 1, 5)
    picked = select_data(pool_ND, shots_KD, budget=18, threshold=0.95, rules=[quota, lengths])
    kept = picked.indices.tolist()
    assert len(kept) == 18
    assert max(sum(row % 2 == side for row in kept) for side in (0, 1)) == 10
    assert all(1 <= row % 7 <= 5 for row in kept)
    reasons = {row.reason for row in picked.dropped}
    assert reasons == {"near_copy", "source_full", "too_short", "too_long"}
    for row in picked.dropped:
        assert (row.kept is None) == (row.reason != "near_copy")
    without = [row for row in np.argsort(-(pool_ND @ shots_KD.T).max(axis=1)) if 1 <= row % 7 <= 5]
    assert kept[0] == without[0]
    quota = SourceQuota(lambda row: "even" if row % 2 == 0 else "odd", 10)
    with pytest.raises(ConfigError, match=r"leaves 20 distinct rows of 400 \(.*\d+ are source_full.*\)"):
        select_data(pool_ND, shots_KD, budget=21, threshold=0.95, rules=[quota])
