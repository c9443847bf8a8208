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
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

from kshot.atomic import write_json
from kshot.corpus.embedded_text import MAX_CHARACTERS, TEXT_FORM, text_of
from kshot.corpus.encoders import TextEncoder
from kshot.corpus.pool import Pool, PoolShard
from kshot.corpus.stored_vectors import StoredVectors, VectorShard, are_whole, write_vectors
from kshot.corpus.vectors import Vectors
from kshot.progress import Advance

EMBED_BLOCK = 512  # rows of like length that are embedded between two steps of the progress bar
VECTORS = "vectors"
ENCODER_FILE = "encoder.json"


def embed_pool(pool: Pool, encoder: TextEncoder, progress: Advance = lambda rows: None) -> Vectors:
    """Return the vectors of a pool, after embedding what was not embedded before.

    Args:
        pool: Rows on disk.
        encoder: Its name tells its vectors from others.
        progress: Called with the number of the pool's rows just done, `len(pool)` in all.

    Returns:
        (N, D) float16 unit rows in the order of the pool, memory-mapped; zeros where the encoder
        knows nothing of a text.

    Raises:
        SourceError: The encoder gives values that are not finite.
        RunFolderError: `KSHOT_HOME` cannot be written.
    """
    described = describe_encoder(encoder)
    num_dimensions = int(described["dimensions"])
    shards = []
    for shard in pool.shards:
        folder = shard.stored.folder / VECTORS / encoder_key(described)
        target = folder / f"shard-{shard.number:05d}.npy"
        num_rows = shard.stored.shard_rows[shard.number]
        if are_whole(target, (num_rows, num_dimensions)):
            progress(len(shard))
        else:
            if not (folder / ENCODER_FILE).is_file():
                write_json(folder / ENCODER_FILE, described)
            texts = [text_of(example) for example in shard.stored.examples(shard.number)]
            write_vectors(target, embed_texts(texts, encoder, num_dimensions, _counted(shard, progress)))
        shards.append(VectorShard(target, len(shard), shard.kept))
    return StoredVectors(shards, num_dimensions)


def embed_texts(
    texts: Sequence[str],
    encoder: TextEncoder,
    num_dimensions: int,
    done: Callable[[np.ndarray], None] = lambda rows: None,
) -> np.ndarray:
    """Embed texts in blocks of like length, which pad little.

    Args:
        texts: Any number.
        encoder: Embeds them.
        num_dimensions: D.
        done: Called with the places of the texts just embedded.

    Returns:
        float32 (N, D), in the order of the texts.
    """
    vectors_ND = np.empty((len(texts), num_dimensions), dtype=np.float32)
    order = np.array(sorted(range(len(texts)), key=lambda place: (len(texts[place]), place)), dtype=np.int64)
    for start in range(0, len(order), EMBED_BLOCK):
        block = order[start : start + EMBED_BLOCK]
        vectors_ND[block] = encoder.encode([texts[place] for place in block])
        done(block)
    return vectors_ND


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


def _counted(shard: PoolShard, progress: Advance) -> Callable[[np.ndarray], None]:
    """Count the rows that the pool keeps."""
    is_kept = np.zeros(shard.stored.shard_rows[shard.number], dtype=bool)
    is_kept[shard.rows()] = True
    return lambda rows: progress(int(is_kept[rows].sum()))


def stored_vector_files(folder: Path) -> list[tuple[str, int]]:
    """Return name and number of whole shards of each encoder that an entry was embedded with."""
    found = []
    for file in sorted(folder.glob(f"{VECTORS}/*/{ENCODER_FILE}")):
        name = json.loads(file.read_text(encoding="utf-8"))["name"]
        found.append((str(name), len(list(file.parent.glob("shard-*.npy")))))
    return found
