"""From what a task file names to a pool; eight bytes a row are in memory, to find rows that say the same."""

from collections.abc import Sequence

import numpy as np

from kshot.config import PoolSource
from kshot.corpus.pool import Pool, PoolShard
from kshot.corpus.pool_folder import listed_sources
from kshot.corpus.pool_source import SourceFile, source_files
from kshot.corpus.row_reading import store_rows
from kshot.corpus.row_shards import SHARD_ROWS
from kshot.corpus.row_store import EXACT_DUPLICATE, SkippedRows, StoredRows
from kshot.errors import ConfigError, ExampleError, SourceError
from kshot.progress import Progress, Silent


def read_pool(
    sources: Sequence[str | PoolSource], *, progress: Progress | None = None, shard_rows: int = SHARD_ROWS
) -> Pool:
    """Open a pool; what was not read before is read into shards, and an unchanged file never again.

    Two rows are duplicates if request and output have the same fingerprint; the first one stays. A row that
    is no example is skipped, and so is a file of many that cannot be read; `Pool.skipped` counts both. A
    storage that cannot be reached ends the reading: in a minute it may be there again.

    Args:
        sources: Files, patterns, Arrow folders, URLs, `hf://` data sets and pool folders, or mappings of
            these.
        progress: Where to show how many files were read.
        shard_rows: Most rows of a new shard.

    Raises:
        ConfigError: No source is given.
        SourceError: A source is not there or cannot be read.
        ExampleError: A source has no usable row.
        MissingExtraError: fsspec needs another package for a kind of storage.
        RunFolderError: `KSHOT_HOME` cannot be written.
    """
    listed = listed_sources(sources)
    if not listed:
        raise ConfigError(
            "expected at least one source in pool, got none: name a file, a pattern or hf://owner/name"
        )
    files = [source_files(source) for source in listed]
    parts: list[StoredRows] = []
    skipped: list[SkippedRows] = []
    with (progress or Silent()).bar("reading the pool", sum(map(len, files))) as advance:
        for source, of_source in zip(listed, files, strict=True):
            stored: list[StoredRows] = []
            for file in of_source:
                try:
                    stored.append(store_rows(file, shard_rows=shard_rows))
                except SourceError as error:
                    if len(of_source) == 1 or file.is_url:
                        raise
                    skipped.append(SkippedRows(file.name, "unreadable", 1, str(error)))
                advance(1)
            _check_usable(source, stored, skipped)
            parts += stored
    return _without_duplicates(parts, skipped)


def pool_contents(sources: Sequence[str | PoolSource]) -> list[list[str]]:
    """Return name and key of every file of a pool: what its rows depend on. No rows are read."""
    return [
        [file.name, _key(file, alone=len(files) == 1)]
        for files in map(source_files, listed_sources(sources))
        for file in files
    ]


def _key(file: SourceFile, *, alone: bool) -> str:
    try:
        return file.key()
    except SourceError:
        if alone or file.is_url:
            raise
        return "unreadable"


def _check_usable(source: PoolSource, stored: list[StoredRows], skipped: list[SkippedRows]) -> None:
    if any(len(rows) for rows in stored):
        return
    reasons = [*skipped, *(one for rows in stored for one in rows.skipped)]
    why = f"; {reasons[0].reason}: {reasons[0].first}" if reasons else "; it is empty"
    raise ExampleError(f"expected at least one usable row in {source.path}, found none{why}")


def _without_duplicates(parts: Sequence[StoredRows], skipped: Sequence[SkippedRows]) -> Pool:
    """Join entries; of rows that say the same the first one stays."""
    stored = [(rows, number) for rows in parts for number in range(len(rows.shard_rows))]
    hashes = [rows.hashes(number) for rows, number in stored]
    is_first = np.zeros(sum(map(len, hashes)), dtype=bool)
    if hashes:
        is_first[np.unique(np.concatenate(hashes), return_index=True)[1]] = True
    shards, start = [], 0
    copies = dict.fromkeys(range(len(parts)), 0)
    part_of = {id(rows): place for place, rows in enumerate(parts)}
    for (rows, number), of_shard in zip(stored, hashes, strict=True):
        kept = np.flatnonzero(is_first[start : start + len(of_shard)])
        start += len(of_shard)
        copies[part_of[id(rows)]] += len(of_shard) - len(kept)
        shards.append(PoolShard(rows, number, None if len(kept) == len(of_shard) else kept))
    within = [_with_copies(rows, copies[place]) for place, rows in enumerate(parts)]
    return Pool(shards, [*skipped, *(one for of_part in within for one in of_part)])


def _with_copies(rows: StoredRows, copies: int) -> list[SkippedRows]:
    """Return what was skipped of an entry, copies of rows of other entries added to those of its own."""
    if not copies:
        return list(rows.skipped)
    own = next((one for one in rows.skipped if one.reason == EXACT_DUPLICATE), None)
    first = own.first if own else "a row of another source says the same"
    total = SkippedRows(rows.name, EXACT_DUPLICATE, copies + (own.count if own else 0), first)
    return [total, *(one for one in rows.skipped if one is not own)]
