"""One pass over a pool before anything is embedded: which rows may not be picked, and how ties are settled.

N: pool rows.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from kshot.corpus.decontamination import KeptOut, Match
from kshot.corpus.pool import Pool
from kshot.progress import Advance


@dataclass(frozen=True, slots=True, eq=False)
class PoolSurvey:
    """What is known of a pool's rows from their texts.

    Attributes:
        matches: What each row matched that must stay out, by its index in rising order.
        without_rationale: Other rows that have no rationale where one is asked for; int64.
        keys: A hash of request and output of each row, as they are compared; uint64 (N,).
    """

    matches: dict[int, Match]
    without_rationale: np.ndarray
    keys: np.ndarray

    @property
    def avoided(self) -> np.ndarray:
        """The rows that may not be picked, in rising order; int64."""
        return np.sort(np.append(self.without_rationale, list(self.matches)).astype(np.int64))


def survey_pool(
    pool: Pool, kept_out: KeptOut, *, needs_rationale: bool = False, progress: Advance = lambda rows: None
) -> PoolSurvey:
    """Read every row once, a block at a time.

    Args:
        pool: Rows on disk.
        kept_out: Whose questions must stay out.
        needs_rationale: Leave out rows without a rationale.
        progress: Called with the number of rows just read, `len(pool)` in all.
    """
    matches: dict[int, Match] = {}
    bare: list[int] = []
    for start, rows in pool.blocks():
        found = kept_out.matches(rows)
        matches |= {start + place: match for place, match in found.items()}
        if needs_rationale:
            bare += [
                start + place for place, row in enumerate(rows) if not row.rationale and place not in found
            ]
        progress(len(rows))
    return PoolSurvey(matches, np.array(bare, dtype=np.int64), content_keys(pool))


def content_keys(pool: Pool) -> np.ndarray:
    """Return a number for each row that depends on its text alone; uint64 (N,)."""
    hashes: Iterable[np.ndarray] = (shard.stored.hashes(shard.number)[shard.rows()] for shard in pool.shards)
    return np.concatenate([np.empty(0, dtype=np.uint64), *hashes])
