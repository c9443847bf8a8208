"""First rows of shards, gathered: those of the whole pool, however it is cut and whoever looks at it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kshot.corpus.first_rows import Asked, FirstRows, GatheredRows
from kshot.corpus.order import Candidates, first_rows
from kshot.corpus.scan import Strategy
from kshot.corpus.selection import select_data

STRATEGIES: tuple[Strategy, ...] = ("max", "centroid", "round_robin", "mmr")


def _grid(seed: int, rows: int, *, zeros: float = 0.0) -> np.ndarray:
    """Unit rows of few values, so that equal scores and equal rows are common; some are zero."""
    rng = np.random.default_rng(seed)
    matrix = rng.integers(-1, 2, size=(rows, 4)).astype(np.float64)
    matrix[~matrix.any(axis=1)] = 1
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    matrix[rng.random(rows) < zeros] = 0
    return matrix.astype(np.float16)


def _shots(seed: int) -> np.ndarray:
    matrix = np.abs(
        np.random.default_rng(seed).standard_normal((3, 4))
    )  # of one sign: they do not cancel out
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def _gather(gathered: GatheredRows, pool_ND: np.ndarray, num_shards: int, seed: int) -> FirstRows | None:
    """Cut a pool anywhere, and take in its shards in any order; each has rows that the pool leaves out."""
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.integers(0, len(pool_ND) + 1, size=num_shards - 1)).tolist()
    shards = [pair for pair in zip([0, *cuts], [*cuts, len(pool_ND)], strict=True) if pair[0] < pair[1]]
    for place in rng.permutation(len(shards)).tolist():
        start, stop = shards[place]
        is_kept = rng.permutation(np.arange(stop - start + 3) < stop - start)
        stored_ND = np.ones((len(is_kept), pool_ND.shape[1]), dtype=np.float16)
        stored_ND[is_kept] = pool_ND[start:stop]
        rows = gathered.rows_of(start, np.flatnonzero(is_kept))
        gathered.add(start, stop - start, gathered.asked.first_rows(stored_ND, rows))
    return gathered.whole()


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 10_000),
    num_rows=st.integers(1, 80),
    num_shards=st.integers(1, 9),
    depth=st.integers(1, 90),
    strategy=st.sampled_from(STRATEGIES),
)
def test_against_the_whole_pool(
    seed: int, num_rows: int, num_shards: int, depth: int, strategy: Strategy
) -> None:
    pool_ND, shots_KD = _grid(seed, num_rows, zeros=0.1), _shots(seed)
    usable_N = np.random.default_rng(seed).random(num_rows) < 0.8
    keys_N = np.random.default_rng(seed).integers(0, 3, num_rows).astype(np.uint64)
    whole = Candidates(pool_ND, shots_KD, usable_N.copy(), keys_N)
    expected = first_rows(whole, strategy, depth)
    found = _gather(
        GatheredRows(Asked(shots_KD, strategy, depth), usable_N, keys_N), pool_ND, num_shards, seed
    )
    assert found is not None
    for (rows, scores), (wanted_rows, wanted_scores) in zip(found.ranked, expected, strict=True):
        assert rows.tolist() == wanted_rows.tolist()
        np.testing.assert_array_equal(scores, wanted_scores)
    assert sorted(found.zeros.tolist()) == np.flatnonzero(usable_N & ~pool_ND.any(axis=1)).tolist()


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    depth=st.integers(1, 70),
    budget=st.integers(1, 20),
    strategy=st.sampled_from(STRATEGIES),
)
def test_invariant_a_selection_from_shards_is_that_of_a_scan(
    seed: int, depth: int, budget: int, strategy: Strategy
) -> None:
    """Also where the first rows are too few, so that the pool is scanned on."""
    pool_ND, shots_KD = _grid(seed, 60, zeros=0.1), _shots(seed)
    avoid = np.flatnonzero(np.random.default_rng(seed).random(60) < 0.2)
    keys_N = np.random.default_rng(seed).permutation(60).astype(np.uint64)
    usable_N = np.ones(60, dtype=bool)
    usable_N[avoid] = False
    settings_ = {
        "budget": min(budget, 8),  # these rows are equal or far apart, and of 40 kinds
        "threshold": 0.95,
        "strategy": strategy,
        "avoid": avoid,
        "keys_N": keys_N,
    }
    first = _gather(GatheredRows(Asked(shots_KD, strategy, depth), usable_N, keys_N), pool_ND, 5, seed)
    expected = select_data(pool_ND, shots_KD, **settings_)
    found = select_data(pool_ND, shots_KD, first=first, **settings_)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.nearest_shot, expected.nearest_shot)
    assert found.dropped == expected.dropped
    assert found.num_zero == expected.num_zero


def test_ties_go_to_key_and_index_across_shards() -> None:
    pool_ND = np.repeat(np.eye(2, dtype=np.float16)[:1], 6, axis=0)
    keys_N = np.array([2, 1, 1, 0, 2, 1], dtype=np.uint64)
    for seed in range(10):
        gathered = GatheredRows(Asked(np.eye(2)[:1], "max", 4), np.ones(6, dtype=bool), keys_N)
        found = _gather(gathered, pool_ND, 4, seed)
        assert found is not None
        assert found.ranked[0][0].tolist() == [3, 1, 2, 5]


@pytest.mark.parametrize("num_seen", [0, 1])
def test_a_pool_with_a_shard_missing_is_not_whole(num_seen: int) -> None:
    pool_ND = np.eye(4, dtype=np.float16)
    gathered = GatheredRows(Asked(np.eye(4), "max", 2), np.ones(8, dtype=bool), np.arange(8, dtype=np.uint64))
    for start in range(0, 4 * num_seen, 4):
        rows = gathered.rows_of(start, np.arange(4))
        gathered.add(start, 4, gathered.asked.first_rows(pool_ND, rows))
    assert gathered.whole() is None
