"""Two stages: cheap vectors over the whole pool, the better encoder on a shortlist.

N: pool rows, K: shots, B: rows of a block, M: rows of the shortlist, D: embedding size.
"""

import json
from collections.abc import Collection, Sequence
from hashlib import sha256

import numpy as np

from kshot.corpus.embedded_text import text_of
from kshot.corpus.embedding_store import describe_encoder, embed_pool, encoder_key
from kshot.corpus.encoders import TextEncoder
from kshot.corpus.pool import Pool
from kshot.corpus.scan import BLOCK_ROWS, cosine_blocks, queries_of
from kshot.corpus.stored_vectors import are_whole, open_vectors, write_vectors
from kshot.corpus.text_shards import TextShard, embed_shards
from kshot.corpus.vectors import Vectors
from kshot.errors import ConfigError
from kshot.examples import Example
from kshot.model_source import cache_folder
from kshot.progress import Advance

_SHARD_ROWS = 1_024  # of the shortlist: a slow encoder that is killed loses at most so many


def shortlist(
    pool: Pool,
    shots: Sequence[Example],
    cheap: TextEncoder,
    fine: TextEncoder,
    num_rows: int,
    progress: Advance = lambda rows: None,
    *,
    avoid: Collection[int] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Find the rows that may be selected, and embed them with the better encoder.

    Half of the shortlist is shared among the shots, each with its nearest rows, so that no shot is left out
    whatever its cosines; the rest are the rows of the highest relevance, `max_k cos(i, k)`.

    Args:
        pool: Rows on disk.
        shots: The K shots.
        cheap: Embeds the whole pool; it and the other may be a `SpreadEncoder`.
        fine: Embeds the shortlist.
        num_rows: M; see `data.shortlist_factor`.
        progress: Called with the number of rows just embedded, `len(pool)` and then M in all.
        avoid: Rows that must not be selected.

    Returns:
        Row indices in rising order, int64 (M,), and their float16 unit rows by `fine`, (M, D); fewer than
        `num_rows` where the pool has no more usable rows.

    Raises:
        ConfigError: `num_rows` is below 1, or no row is usable.
        SourceError: An encoder gives values that are not finite.
        EngineError: As `embed_shards`.
        RunFolderError: `KSHOT_HOME` cannot be written.
    """
    if num_rows < 1:
        raise ConfigError(f"expected a shortlist of at least 1 row, got {num_rows}: raise data.budget")
    cheap_ND = embed_pool(pool, cheap, progress)
    shots_KD = cheap.encode([text_of(shot) for shot in shots])
    usable_N = np.ones(len(pool), dtype=bool)
    usable_N[list(avoid)] = False
    rows_M = nearest_rows(cheap_ND, shots_KD, usable_N, num_rows)
    if not rows_M.size:
        raise ConfigError("expected pool rows that may be selected, got none: enlarge the pool")
    return rows_M, _embed_rows(pool, rows_M, fine, progress)


def nearest_rows(pool_ND: Vectors, shots_KD: np.ndarray, usable_N: np.ndarray, num_rows: int) -> np.ndarray:
    """Return the rows of the shortlist in rising order; ties go to the lower index.

    Args:
        pool_ND: Unit rows of the cheap encoder.
        shots_KD: The shots by the same encoder.
        usable_N: Rows that may be taken; bool.
        num_rows: M.
    """
    share = num_rows // (2 * len(shots_KD))
    relevance_N = np.empty(len(pool_ND), dtype=np.float32)
    nearest = [(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)) for _ in shots_KD]
    for start, cosines_BK in cosine_blocks(pool_ND, queries_of(shots_KD, "max"), BLOCK_ROWS):
        stop = start + len(cosines_BK)
        cosines_BK[~usable_N[start:stop]] = -np.inf
        relevance_N[start:stop] = cosines_BK.max(axis=1)
        rows = np.arange(start, stop)
        nearest = [
            _highest(np.append(old_rows, rows), np.append(old, new), share)
            for (old_rows, old), new in zip(nearest, cosines_BK.T, strict=True)
        ]
    shared = np.unique(np.concatenate([rows for rows, _ in nearest]))
    relevance_N[shared] = np.inf  # taken already
    taken, _ = _highest(np.arange(len(pool_ND)), relevance_N, num_rows)
    return np.sort(taken)


def _highest(rows: np.ndarray, scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Keep the `count` highest scores above minus infinity, in the order of `rows`; of equals the first."""
    order = np.argsort(-scores, kind="stable")[:count]
    order = np.sort(order[scores[order] > -np.inf])
    return rows[order], scores[order]


def _embed_rows(pool: Pool, rows_M: np.ndarray, encoder: TextEncoder, progress: Advance) -> np.ndarray:
    """Embed some rows, shard by shard; a shard is kept by its texts and found again."""
    described = describe_encoder(encoder)
    num_dimensions = int(described["dimensions"])
    folder = cache_folder() / "pools" / "shortlists" / encoder_key(described)
    targets, left = [], []
    for start in range(0, len(rows_M), _SHARD_ROWS):
        texts = [text_of(example) for example in pool.examples_at(rows_M[start : start + _SHARD_ROWS])]
        target = folder / f"{sha256(json.dumps(texts).encode()).hexdigest()[:32]}.npy"
        targets.append(target)
        if are_whole(target, (len(texts), num_dimensions)):
            progress(len(texts))
        else:
            left.append((target, TextShard(f"the shortlist from row {start + 1:,}", texts)))
    shards = [shard for _, shard in left]
    for index, embedded in embed_shards(
        shards, encoder, num_dimensions, done=lambda index, places: progress(len(places))
    ):
        write_vectors(left[index][0], embedded.vectors)
    return np.concatenate([open_vectors(target) for target in targets])
