"""The exact scan: against a matrix product, for any block, type of float and memory map."""

from pathlib import Path

import numpy as np
import pytest

from kshot.corpus.scan import cosine_blocks, exact_relevance, queries_of, relevance, rounding_margin
from kshot.errors import ConfigError


def _unit(seed: int, rows: int, size: int = 24) -> np.ndarray:
    matrix = np.random.default_rng(seed).standard_normal((rows, size))
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


POOL_ND, SHOTS_KD = _unit(0, 1_000), _unit(1, 7)


@pytest.mark.parametrize("block_rows", [1, 7, 1_000, 4_096])
def test_against_matrix_product(block_rows: int) -> None:
    cosines_NK = POOL_ND @ SHOTS_KD.T
    found = relevance(POOL_ND, SHOTS_KD, block_rows=block_rows)
    np.testing.assert_allclose(found, cosines_NK.max(axis=1), atol=1e-6)
    assert found.dtype == np.float32


def test_against_cosine_with_the_mean() -> None:
    found = relevance(POOL_ND, SHOTS_KD, "centroid")
    mean_D = SHOTS_KD.mean(axis=0)
    expected_N = POOL_ND @ mean_D / np.linalg.norm(mean_D)
    np.testing.assert_allclose(found, expected_N, atol=1e-6)
    exact = exact_relevance(POOL_ND, np.arange(1_000), SHOTS_KD, "centroid")
    np.testing.assert_allclose(exact.scores, expected_N, atol=1e-6)
    np.testing.assert_array_equal(exact.nearest_shot, (POOL_ND @ SHOTS_KD.T).argmax(axis=1))


def test_against_matrix_product_on_a_float16_memory_map(tmp_path: Path) -> None:
    path = tmp_path / "pool.f16"
    POOL_ND.astype(np.float16).tofile(path)
    mapped_ND = np.memmap(path, dtype=np.float16, mode="r", shape=POOL_ND.shape)
    rows_ND = POOL_ND.astype(np.float16).astype(np.float64)
    expected_N = (rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True) @ SHOTS_KD.T).max(axis=1)
    for block_rows in (64, 4_096):
        found = relevance(mapped_ND, SHOTS_KD, block_rows=block_rows)
        np.testing.assert_allclose(found, expected_N, atol=1e-6)


def test_invariant_exact_score_depends_on_the_row_alone() -> None:
    rows = np.arange(1_000)
    everything = exact_relevance(POOL_ND, rows, SHOTS_KD, "max")
    for row in (0, 17, 999):
        alone = exact_relevance(POOL_ND, np.array([row]), SHOTS_KD, "max")
        assert alone.scores[0] == everything.scores[row]
        assert alone.nearest_shot[0] == everything.nearest_shot[row]
    shuffled = np.random.default_rng(2).permutation(rows)
    again = exact_relevance(POOL_ND, shuffled, SHOTS_KD, "max")
    np.testing.assert_array_equal(again.scores, everything.scores[shuffled])


@pytest.mark.parametrize("size", [2, 24, 384, 2_048])
def test_invariant_scan_is_within_the_margin(size: int) -> None:
    pool_ND, shots_KD = _unit(3, 200, size), _unit(4, 5, size)
    scanned = relevance(pool_ND, shots_KD, block_rows=33)
    exact = exact_relevance(pool_ND, np.arange(200), shots_KD, "max").scores
    assert np.abs(scanned - exact).max() <= rounding_margin(size)


def test_equal_shots_give_the_lower_index() -> None:
    found = exact_relevance(POOL_ND, np.arange(50), SHOTS_KD[[2, 2, 2]], "max")
    assert set(found.nearest_shot.tolist()) == {0}


def test_refuses_an_unknown_strategy() -> None:
    with pytest.raises(
        ConfigError,
        match=r"must be one of max, centroid, round_robin, mmr, got 'nearest': set data\.strategy",
    ):
        relevance(POOL_ND, SHOTS_KD, "nearest")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pool_ND", "shots_KD", "message"),
    [
        (POOL_ND[0], SHOTS_KD, r"pool must be a matrix of floats with at least one row, got shape \(24,\)"),
        (np.ones((2, 24), dtype=np.int64), SHOTS_KD, r"got shape \(2, 24\) of int64"),
        (POOL_ND, SHOTS_KD[:0], r"shots must be a matrix .* got shape \(0, 24\)"),
        (
            POOL_ND[:, :8] * 2,
            SHOTS_KD,
            "embeddings of one size, got 8 and 24: embed both with the same encoder",
        ),
    ],
)
def test_refuses_shapes(pool_ND: np.ndarray, shots_KD: np.ndarray, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        relevance(pool_ND, shots_KD)


@pytest.mark.parametrize(("value", "shown"), [(0.5, "2.45"), (np.nan, "nan"), (np.inf, "inf"), (3.0, "14.7")])
@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_refuses_a_row_without_unit_norm(value: float, shown: str, kind: type) -> None:
    spoilt_ND = POOL_ND.astype(kind)
    spoilt_ND[700] = value
    with pytest.raises(
        ConfigError, match=f"expected unit-norm embeddings, got pool row 700 with norm {shown}: divide"
    ):
        relevance(spoilt_ND, SHOTS_KD, block_rows=64)


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_a_row_of_zeros_is_similar_to_nothing(kind: type) -> None:
    spoilt_ND = POOL_ND.astype(kind)
    spoilt_ND[[3, 700]] = 0
    for strategy in ("max", "centroid"):
        scores_N = relevance(spoilt_ND, SHOTS_KD, strategy, block_rows=64)  # type: ignore[arg-type]
        assert np.flatnonzero(np.isneginf(scores_N)).tolist() == [3, 700]
    blocks = list(cosine_blocks(spoilt_ND, SHOTS_KD, 1_000))
    assert np.isneginf(blocks[0][1]).all(axis=1).nonzero()[0].tolist() == [3, 700]
    assert np.isneginf(blocks[0][1]).sum() == 2 * len(SHOTS_KD)


def test_refuses_a_shot_without_unit_norm() -> None:
    shots_KD = np.vstack([SHOTS_KD, np.zeros((1, 24), dtype=np.float32)])
    with pytest.raises(ConfigError, match="got shot 7 with norm 0"):
        relevance(POOL_ND, shots_KD)


def test_refuses_a_centroid_of_zero() -> None:
    with pytest.raises(
        ConfigError, match="expects shots that do not cancel out, got a mean of zero: use strategy max"
    ):
        queries_of(np.array([[1.0, 0.0], [-1.0, 0.0]]), "centroid")


def test_blocks_cover_each_row_once() -> None:
    starts = [(start, len(cosines)) for start, cosines in cosine_blocks(POOL_ND, SHOTS_KD, 300)]
    assert starts == [(0, 300), (300, 300), (600, 300), (900, 100)]
