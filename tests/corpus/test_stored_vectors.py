"""Vectors in files: read like the one matrix that they are."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kshot.corpus.stored_vectors import StoredVectors, VectorShard, are_whole, open_vectors, write_vectors

SIZES = (5, 1, 7)
KEPT = (None, np.array([0]), np.array([1, 2, 6]))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[StoredVectors, np.ndarray]:
    """Three shards, and the matrix of their kept rows."""
    folder = tmp_path_factory.mktemp("vectors")
    draw = np.random.default_rng(0)
    shards, parts = [], []
    for number, (size, kept) in enumerate(zip(SIZES, KEPT, strict=True)):
        values = draw.normal(size=(size, 4)).astype(np.float16)
        write_vectors(folder / f"{number}.npy", values)
        parts.append(values if kept is None else values[kept])
        shards.append(VectorShard(folder / f"{number}.npy", len(parts[-1]), kept))
    return StoredVectors(shards, 4), np.concatenate(parts)


def test_shape(both: tuple[StoredVectors, np.ndarray]) -> None:
    stored, matrix_ND = both
    assert (stored.shape, stored.dtype, len(stored)) == ((9, 4), np.float16, 9)
    np.testing.assert_array_equal(stored[0:9], matrix_ND)
    assert StoredVectors([], 4)[0:0].shape == (0, 4)


@settings(max_examples=50)
@given(st.integers(0, 9), st.integers(0, 12))
def test_against_slices(both: tuple[StoredVectors, np.ndarray], start: int, stop: int) -> None:
    stored, matrix_ND = both
    np.testing.assert_array_equal(stored[start:stop], matrix_ND[start:stop])


@settings(max_examples=50)
@given(st.lists(st.integers(0, 8), max_size=20))
def test_against_rows(both: tuple[StoredVectors, np.ndarray], rows: list[int]) -> None:
    stored, matrix_ND = both
    index = np.array(rows, dtype=np.int64)
    np.testing.assert_array_equal(stored[index], matrix_ND[index])


@pytest.mark.parametrize("rows", [[-1], [3, 9]])
def test_no_such_row(both: tuple[StoredVectors, np.ndarray], rows: list[int]) -> None:
    with pytest.raises(IndexError, match=r"expected rows in \[0, 9\), got"):
        both[0][np.array(rows)]


def test_many_files_are_open_at_few_at_a_time(tmp_path: Path) -> None:
    shards = []
    for number in range(100):
        write_vectors(tmp_path / f"{number}.npy", np.full((1, 2), number))
        shards.append(VectorShard(tmp_path / f"{number}.npy", 1))
    stored = StoredVectors(shards, 2)
    assert stored[0:100][:, 0].tolist() == list(range(100))
    maps = Path("/proc/self/maps").read_text().count(str(tmp_path))
    assert maps <= 64


def test_invariant_same_bytes_and_nothing_pickled(tmp_path: Path) -> None:
    write_vectors(tmp_path / "a.npy", np.ones((2, 3)))
    write_vectors(tmp_path / "b.npy", np.ones((2, 3)))
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    np.save(tmp_path / "c.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="object"):
        open_vectors(tmp_path / "c.npy")
    assert not are_whole(tmp_path / "c.npy", (1, 1))


def test_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    assert not are_whole(path, (2, 3))
    write_vectors(path, np.ones((2, 3)))
    assert are_whole(path, (2, 3))
    assert not are_whole(path, (3, 2))
    path.write_bytes(path.read_bytes()[:-1])
    assert not are_whole(path, (2, 3))
    path.write_bytes(b"")
    assert not are_whole(path, (2, 3))
    np.save(path, np.ones((2, 3), dtype=np.float32))
    assert not are_whole(path, (2, 3))
