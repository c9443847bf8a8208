"""Which 64-bit hashes were met before, in eight bytes each."""

import numpy as np


class SeenHashes:
    """A growing set of hashes: sorted arrays, each at least twice as long as the next.

    So few arrays are searched, and few times a hash is sorted again, however many there are.
    """

    def __init__(self) -> None:
        self._sorted: list[np.ndarray] = []
        self._recent: set[int] = set()

    def __len__(self) -> int:
        return sum(map(len, self._sorted)) + len(self._recent)

    def add(self, value: int) -> bool:
        """Add a hash; return whether it is new."""
        if value in self._recent or any(_holds(array, value) for array in self._sorted):
            return False
        self._recent.add(value)
        if len(self._recent) >= 2**16:  # a few MB as Python objects
            self.extend(np.fromiter(self._recent, dtype=np.uint64, count=len(self._recent)))
            self._recent.clear()
        return True

    def extend(self, values: np.ndarray) -> None:
        """Add uint64 hashes that are all new."""
        self._sorted.append(np.sort(values))
        while len(self._sorted) > 1 and len(self._sorted[-2]) < 2 * len(self._sorted[-1]):
            merged = np.concatenate([self._sorted.pop(), self._sorted.pop()])
            merged.sort()
            self._sorted.append(merged)


def _holds(array: np.ndarray, value: int) -> bool:
    at = int(np.searchsorted(array, np.uint64(value)))
    return at < len(array) and int(array[at]) == value
