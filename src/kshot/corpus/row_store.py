"""The rows of one source, read once and kept as shards.

    KSHOT_HOME/pools/<key>/
        revision.json           the commit of a Hub data set, fixed before its first row
        rows-00000.arrow        8,192 rows, in the order of the source, each distinct one once
        rows-00001.arrow
        source.json             written when the source was read to its end: rows a shard, what was skipped
        vectors/<encoder>/      shard-00000.npy ..., one for each shard of rows (`embedding_store`)

The key is a hash of the content of the source and of how it is read, so that a changed file is another entry,
and an unchanged one is never read again. A shard is whole or not there, and notes how far the source was
read: a killed reading goes on after its last shard.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from kshot.corpus.row_shards import examples_of, read_shard, shard_path
from kshot.examples import Example

EXACT_DUPLICATE = "exact_duplicate"
DONE_FILE = "source.json"
_OPEN_SHARDS = 16  # memory-mapped at once: a system has 65,530 maps for a process, a large pool more shards


@dataclass(frozen=True, slots=True)
class SkippedRows:
    """How many rows of a source were left out, and why.

    Attributes:
        source: Its name.
        reason: In one word, such as `exact_duplicate`, `no_output` or `invalid_utf8`.
        count: Rows; for `unreadable` parts of a file, of which nobody knows the rows.
        first: What was said of the first one.
    """

    source: str
    reason: str
    count: int
    first: str = ""


class StoredRows:
    """The usable rows of one source, on disk.

    Attributes:
        name: Of the source.
        folder: Its entry.
        shard_rows: Rows of each shard.
        skipped: What was left out.
    """

    def __init__(self, name: str, folder: Path) -> None:
        found = json.loads((folder / DONE_FILE).read_text(encoding="utf-8"))
        self.name, self.folder = name, folder
        self.shard_rows: tuple[int, ...] = tuple(found["shard_rows"])
        self.skipped = tuple(
            SkippedRows(name, reason, one["count"], one["first"])
            for reason, one in sorted(found["skipped"].items())
        )
        self._table: Callable[[int], Any] = lru_cache(_OPEN_SHARDS)(
            lambda shard: read_shard(shard_path(folder, shard))
        )

    def __len__(self) -> int:
        return sum(self.shard_rows)

    def example(self, shard: int, row: int) -> Example:
        """Return one row of a shard."""
        return examples_of(self._table(shard).slice(row, 1), self.name)[0]

    def examples(self, shard: int, rows: np.ndarray | None = None) -> list[Example]:
        """Return all rows of a shard, or some."""
        table = self._table(shard)
        return examples_of(table if rows is None else table.take(rows), self.name)

    def hashes(self, shard: int) -> np.ndarray:
        """Return the uint64 hash of each row of a shard."""
        values: np.ndarray = read_shard(shard_path(self.folder, shard))["hash"].to_numpy()
        return values
