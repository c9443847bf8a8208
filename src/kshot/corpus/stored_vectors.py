"""Vectors in files: float16 shards that are memory-mapped, read as one matrix.

N: rows, D: embedding size.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from kshot.atomic import write_bytes

_OPEN_FILES = 64  # memory-mapped at once


@dataclass(frozen=True, slots=True, eq=False)
class VectorShard:
    """A file of vectors.

    Attributes:
        path: Of the .npy file, float16.
        num_rows: That count.
        kept: Which rows of the file count, in rising order; all where it is None.
    """

    path: Path
    num_rows: int
    kept: np.ndarray | None = None


class StoredVectors:
    """The rows of many shards as one matrix; satisfies `Vectors`.

    Args:
        shards: In the order of their rows.
        num_dimensions: D.
    """

    def __init__(self, shards: Sequence[VectorShard], num_dimensions: int) -> None:
        self._shards = tuple(shards)
        self._ends = np.cumsum([shard.num_rows for shard in shards], dtype=np.int64)
        self._num_dimensions = num_dimensions
        self._open = lru_cache(_OPEN_FILES)(lambda index: open_vectors(self._shards[index].path))

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D)."""
        return (len(self), self._num_dimensions)

    @property
    def dtype(self) -> np.dtype:
        """float16."""
        return np.dtype(np.float16)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Return a contiguous block, or the rows of an int64 array, in its order."""
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            rows = np.arange(start, stop, step, dtype=np.int64)
        if rows.size and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"expected rows in [0, {len(self)}), got {rows.min()} to {rows.max()}")
        found = np.empty((len(rows), self._num_dimensions), dtype=np.float16)
        shard_of = np.searchsorted(self._ends, rows, side="right")
        for index in np.unique(shard_of).tolist():
            inside = np.flatnonzero(shard_of == index)
            found[inside] = self._rows(index, rows[inside])
        return found

    def _rows(self, index: int, rows: np.ndarray) -> np.ndarray:
        shard = self._shards[index]
        local = rows - (self._ends[index] - shard.num_rows)
        local = local if shard.kept is None else shard.kept[local]
        values: np.ndarray = self._open(index)[local]
        return values


def write_vectors(target: Path, vectors_ND: np.ndarray) -> None:
    """Write vectors as float16 in one rename.

    Raises:
        RunFolderError: The disk is full, or the folder cannot be written.
    """
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, vectors_ND.astype(np.float16), allow_pickle=False)
    write_bytes(target, buffer.getvalue())


def open_vectors(path: Path) -> np.ndarray:
    """Return memory-mapped vectors; nothing is unpickled."""
    vectors_ND: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return vectors_ND


def are_whole(path: Path, shape: tuple[int, int]) -> bool:
    """Whether a file of vectors is there, of this shape and undamaged."""
    try:
        found = open_vectors(path)
    except (OSError, ValueError, EOFError):
        return False
    return found.shape == shape and found.dtype == np.float16
