"""Embeddings of a pool, wherever they lie: what selection needs of them.

N: rows, D: embedding size.
"""

from typing import Protocol

import numpy as np


class Vectors(Protocol):
    """A matrix of floats that is read by blocks and by few rows; a numpy array is one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D)."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """Of the rows as they are stored."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Return a contiguous block, or the rows of an int64 array, in its order."""
        ...
