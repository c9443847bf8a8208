"""Vectors of a pool, computed once for each shard of rows and encoder.

    KSHOT_HOME/pools/<key of the source>/vectors/<key of the encoder>/
        encoder.json        its name, D, and the form of the texts
        shard-00000.npy     float16 unit rows of rows-00000.arrow, (rows, D)

A shard is whole or not there: a killed run goes on at its shard, another file is embedded alone, and another
encoder, prefix or form of the texts has another key. Every row of a shard is embedded, also those that a pool
leaves out as copies of rows of other files, so that the vectors of a file do not depend on its neighbours.

N: rows of the pool, D: embedding size.
"""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from kshot.atomic import write_json
from kshot.corpus.embedded_text import MAX_CHARACTERS, TEXT_FORM, text_of
from kshot.corpus.encoders import TextEncoder
from kshot.corpus.first_rows import GatheredRows
from kshot.corpus.pool import Pool, PoolShard
from kshot.corpus.stored_vectors import StoredVectors, VectorShard, are_whole, open_vectors, write_vectors
from kshot.corpus.text_shards import TextShard, embed_shards
from kshot.corpus.vectors import Vectors
from kshot.progress import Advance

VECTORS = "vectors"
ENCODER_FILE = "encoder.json"


def embed_pool(
    pool: Pool,
    encoder: TextEncoder,
    progress: Advance = lambda rows: None,
    *,
    gathered: GatheredRows | None = None,
) -> Vectors:
    """Return the vectors of a pool, after embedding what was not embedded before.

    Args:
        pool: Rows on disk.
        encoder: Its name tells its vectors from others; a `SpreadEncoder` has workers embed the shards.
        progress: Called with the number of the pool's rows just done, `len(pool)` in all.
        gathered: Takes the first rows of each shard from whoever embeds it. Those of shards that were
            embedded before are found here; it stays empty where all were, since one scan of a whole pool is
            cheaper.

    Returns:
        (N, D) float16 unit rows in the order of the pool, memory-mapped; zeros where the encoder
        knows nothing of a text.

    Raises:
        SourceError: The encoder gives values that are not finite.
        EngineError: As `embed_shards`.
        RunFolderError: `KSHOT_HOME` cannot be written.
    """
    described = describe_encoder(encoder)
    num_dimensions = int(described["dimensions"])
    targets = [_target(shard, described) for shard in pool.shards]
    starts = np.cumsum([0, *map(len, pool.shards)]).tolist()
    left = []
    for place, (shard, target) in enumerate(zip(pool.shards, targets, strict=True)):
        if are_whole(target, (shard.stored.shard_rows[shard.number], num_dimensions)):
            progress(len(shard))
            continue
        left.append(place)
        if not (target.parent / ENCODER_FILE).is_file():
            write_json(target.parent / ENCODER_FILE, described)
    gathered = gathered if left else None
    counts = [_count_kept(pool.shards[place]) for place in left]
    for index, embedded in embed_shards(
        _TextShards(pool, starts, left, gathered),
        encoder,
        num_dimensions,
        asked=gathered.asked if gathered else None,
        done=lambda index, places: progress(int(counts[index][places].sum())),
    ):
        place = left[index]
        write_vectors(targets[place], embedded.vectors)
        if gathered and embedded.first:
            gathered.add(starts[place], len(pool.shards[place]), embedded.first)
    if gathered:
        for place in sorted(set(range(len(targets))) - set(left)):
            rows = gathered.rows_of(starts[place], pool.shards[place].rows())
            found = gathered.asked.first_rows(open_vectors(targets[place]), rows)
            gathered.add(starts[place], len(rows.kept), found)
    vectors = zip(targets, pool.shards, strict=True)
    return StoredVectors(
        [VectorShard(target, len(shard), shard.kept) for target, shard in vectors], num_dimensions
    )


class _TextShards(Sequence[TextShard]):
    """Reads the texts of a shard when it is asked for, and forgets them."""

    def __init__(
        self, pool: Pool, starts: Sequence[int], left: Sequence[int], gathered: GatheredRows | None
    ) -> None:
        self._pool, self._starts, self._left, self._gathered = pool, starts, left, gathered

    def __len__(self) -> int:
        return len(self._left)

    def __getitem__(self, index: Any) -> Any:
        place = self._left[index]
        shard = self._pool.shards[place]
        texts = [text_of(example) for example in shard.stored.examples(shard.number)]
        rows = self._gathered.rows_of(self._starts[place], shard.rows()) if self._gathered else None
        return TextShard(f"{shard.stored.name}, shard {shard.number + 1}", texts, rows)


def describe_encoder(encoder: TextEncoder) -> dict[str, str | int]:
    """Return all that changes the vectors of a row."""
    return {
        "name": encoder.name,
        "dimensions": encoder.encode([]).shape[1],
        "text_form": TEXT_FORM,
        "max_characters": MAX_CHARACTERS,
    }


def encoder_key(described: dict[str, str | int]) -> str:
    """Return what an encoder's vectors are found by."""
    return sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:32]


def _target(shard: PoolShard, described: dict[str, str | int]) -> Path:
    return shard.stored.folder / VECTORS / encoder_key(described) / f"shard-{shard.number:05d}.npy"


def _count_kept(shard: PoolShard) -> np.ndarray:
    """Return which rows of a stored shard the pool keeps."""
    is_kept = np.zeros(shard.stored.shard_rows[shard.number], dtype=bool)
    is_kept[shard.rows()] = True
    return is_kept


def stored_vector_files(folder: Path) -> list[tuple[str, int]]:
    """Return name and number of whole shards of each encoder that an entry was embedded with."""
    found = []
    for file in sorted(folder.glob(f"{VECTORS}/*/{ENCODER_FILE}")):
        name = json.loads(file.read_text(encoding="utf-8"))["name"]
        found.append((str(name), len(list(file.parent.glob("shard-*.npy")))))
    return found
