"""The pool: open rows on disk, with their source; in memory is an entry for each of their shards."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from kshot.corpus.row_store import SkippedRows, StoredRows
from kshot.examples import Example

BLOCK_ROWS = 1_024  # of `blocks`; more are no faster


@dataclass(frozen=True, slots=True, eq=False)
class PoolShard:
    """The rows of one stored shard that belong to a pool.

    Attributes:
        stored: The entry that the shard is of.
        number: Of the shard in its entry.
        kept: Its rows in the pool, in rising order; all where it is None.
    """

    stored: StoredRows
    number: int
    kept: np.ndarray | None = None

    def __len__(self) -> int:
        return self.stored.shard_rows[self.number] if self.kept is None else len(self.kept)

    def rows(self) -> np.ndarray:
        """Return the rows of the shard that count."""
        return np.arange(len(self), dtype=np.int64) if self.kept is None else self.kept


class Pool:
    """Open rows and where each came from, in the order of the sources, without exact duplicates.

    Attributes:
        shards: Where the rows lie.
        skipped: What was left out.
    """

    def __init__(self, shards: Sequence[PoolShard], skipped: Sequence[SkippedRows] = ()) -> None:
        self.shards = tuple(shard for shard in shards if len(shard))
        self.skipped = tuple(skipped)
        self._ends = list(accumulate(len(shard) for shard in self.shards))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Example:
        shard, row = self._place(index)
        return shard.stored.example(shard.number, row)

    def __iter__(self) -> Iterator[Example]:
        for _, rows in self.blocks():
            yield from rows

    def source_of(self, index: int) -> str:
        """Return the name of a row's source: the stem of its file, or the Hub id."""
        return self._place(index)[0].stored.name

    def blocks(self, num_rows: int = BLOCK_ROWS) -> Iterator[tuple[int, list[Example]]]:
        """Yield all rows in blocks of at most so many, each after the index of its first row."""
        start = 0
        for shard in self.shards:
            rows = shard.rows()
            for begin in range(0, len(rows), num_rows):
                block = rows[begin : begin + num_rows]
                yield start, shard.stored.examples(shard.number, block)
                start += len(block)

    def examples_at(self, indices: np.ndarray) -> list[Example]:
        """Return some rows in the order asked for; those of one shard are read together."""
        found: dict[int, Example] = {}
        shard_of = np.searchsorted(np.array(self._ends), indices, side="right")
        for number in np.unique(shard_of).tolist():
            shard, inside = self.shards[number], indices[shard_of == number]
            local = shard.rows()[inside - (self._ends[number] - len(shard))]
            found |= zip(inside.tolist(), shard.stored.examples(shard.number, local), strict=True)
        return [found[index] for index in indices.tolist()]

    def _place(self, index: int) -> tuple[PoolShard, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"expected a row in [0, {len(self)}), got {index}")
        number = bisect_right(self._ends, index)
        shard = self.shards[number]
        return shard, int(shard.rows()[index - (self._ends[number] - len(shard))])
