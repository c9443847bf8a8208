"""What a pool holds: rows by source, what was skipped and why, and with which encoders it was embedded."""

from collections import Counter
from dataclasses import dataclass

from kshot.corpus.embedding_store import stored_vector_files
from kshot.corpus.pool import Pool
from kshot.corpus.row_store import SkippedRows


@dataclass(frozen=True, slots=True)
class PoolInfo:
    """A pool in numbers.

    Attributes:
        rows: Distinct usable rows.
        sources: Rows of each source.
        skipped: What was left out.
        encoders: Stored shards that each encoder has embedded; `shards` of them where it has embedded all.
        shards: Stored shards.
    """

    rows: int
    sources: dict[str, int]
    skipped: tuple[SkippedRows, ...]
    encoders: dict[str, int]
    shards: int


def describe_pool(pool: Pool) -> PoolInfo:
    """Count rows, skipped rows and vectors of a pool."""
    sources: Counter[str] = Counter()
    encoders: Counter[str] = Counter()
    for shard in pool.shards:
        sources[shard.stored.name] += len(shard)
    stored = {shard.stored.folder: shard.stored for shard in pool.shards}
    for folder in stored:
        encoders.update(dict(stored_vector_files(folder)))
    shards = sum(len(rows.shard_rows) for rows in stored.values())
    return PoolInfo(len(pool), dict(sources), pool.skipped, dict(encoders), shards)
