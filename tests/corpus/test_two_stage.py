"""Two stages: against a scan of the whole pool by hand."""

import numpy as np
import pytest

from kshot.corpus.embedded_text import text_of
from kshot.corpus.pool import Pool
from kshot.corpus.pool_reading import read_pool
from kshot.corpus.two_stage import nearest_rows, shortlist
from kshot.errors import ConfigError
from kshot.examples import Example

from .letters import LetterEncoder


class LengthEncoder(LetterEncoder):
    """Another encoder, of another size."""

    def __init__(self) -> None:
        super().__init__("fine", "abc")


@pytest.fixture
def pool(write_rows) -> Pool:
    draw = np.random.default_rng(0)
    words = {"".join(draw.choice(list("abcdefgh"), size=6)) for _ in range(300)}
    return read_pool([str(write_rows("a.jsonl", sorted(words)))], shard_rows=64)


def _reference(cosines_NK: np.ndarray, usable_N: np.ndarray, num_rows: int) -> list[int]:
    """Each shot's share first, then falling relevance; a stable sort keeps the lower index."""
    share = num_rows // (2 * cosines_NK.shape[1])
    taken: set[int] = set()
    for cosines_N in cosines_NK.T:
        order = [row for row in np.argsort(-cosines_N, kind="stable").tolist() if usable_N[row]]
        taken |= set(order[:share])
    for row in np.argsort(-cosines_NK.max(axis=1), kind="stable").tolist():
        if len(taken) < num_rows and usable_N[row]:
            taken.add(row)
    return sorted(taken)


@pytest.mark.parametrize(("num_rows", "num_shots"), [(1, 3), (12, 2), (40, 4), (120, 1), (5_000, 3)])
def test_against_a_stable_sort(num_rows: int, num_shots: int) -> None:
    """Cosines of few values, so that there are many ties; blocks of 4,096 rows."""
    draw = np.random.default_rng(num_rows)
    matrix_ND = np.eye(8, dtype=np.float32)[draw.integers(0, 8, size=9_000)]
    shots_KD = np.eye(8, dtype=np.float32)[:num_shots]
    usable_N = draw.random(9_000) < 0.5
    found = nearest_rows(matrix_ND, shots_KD, usable_N, num_rows)
    assert found.tolist() == _reference(matrix_ND @ shots_KD.T, usable_N, num_rows)


def test_shortlist_is_embedded_by_the_better_encoder(pool: Pool) -> None:
    shots = [Example("aab", "AAB"), Example("hhg", "HHG")]
    cheap, fine, steps = LetterEncoder(), LengthEncoder(), []
    rows_M, vectors_MD = shortlist(pool, shots, cheap, fine, 40, steps.append)
    assert rows_M.shape == (40,)
    assert (np.diff(rows_M) > 0).all()
    texts = [text_of(pool[int(row)]) for row in rows_M]
    np.testing.assert_array_equal(vectors_MD, LengthEncoder().encode(texts).astype(np.float16))
    assert sorted(fine.texts) == sorted(texts)
    assert sum(steps) == len(pool) + 40


def test_no_shot_is_left_out(pool: Pool) -> None:
    """Whole rows are near the first shot; the other, with letters of all kinds, is near to none."""
    shots = [Example("a", "A"), Example("abcdefgh", "H")]
    rows_M, _ = shortlist(pool, shots, LetterEncoder(), LengthEncoder(), 20)
    cosines_N = (
        LetterEncoder().encode([text_of(row) for row in pool])
        @ LetterEncoder().encode([text_of(shots[1])])[0]
    )
    nearest = np.argsort(-cosines_N, kind="stable")[:5]
    assert set(nearest.tolist()) <= set(rows_M.tolist())


def test_a_second_time_nothing_is_embedded(pool: Pool) -> None:
    shots = [Example("aab", "AAB")]
    first = shortlist(pool, shots, LetterEncoder(), LengthEncoder(), 40)
    cheap, fine = LetterEncoder(), LengthEncoder()
    again = shortlist(pool, shots, cheap, fine, 40)
    assert (cheap.texts, fine.texts) == (["aab\nAAB"], [])
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])


def test_rows_to_avoid_and_rows_of_zeros_are_left_out(write_rows) -> None:
    pool = read_pool([str(write_rows("a.jsonl", ["abc", "xyz", "abd", "had"]))])
    rows_M, _ = shortlist(pool, [Example("abc", "ABC")], LetterEncoder(), LengthEncoder(), 9, avoid={0})
    assert rows_M.tolist() == [2, 3]
    with pytest.raises(ConfigError, match="expected pool rows that may be selected, got none"):
        shortlist(pool, [Example("a", "A")], LetterEncoder(), LengthEncoder(), 9, avoid=range(4))
    with pytest.raises(ConfigError, match="expected a shortlist of at least 1 row, got 0"):
        shortlist(pool, [Example("a", "A")], LetterEncoder(), LengthEncoder(), 0)
