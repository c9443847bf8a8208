"""Data selection by two workers of Ray: what is selected here, with a worker killed too."""

from pathlib import Path

import numpy as np
import pytest

from kshot.corpus.embedded_text import text_of
from kshot.corpus.embedding_store import embed_pool
from kshot.corpus.encoders import load_encoder
from kshot.corpus.first_rows import Asked, GatheredRows
from kshot.corpus.pool import Pool
from kshot.corpus.pool_reading import read_pool
from kshot.corpus.scan import Strategy
from kshot.corpus.selection import select_data
from kshot.corpus.survey import content_keys
from kshot.corpus.text_shards import spread_encoder
from kshot.examples import Example

from ..engine.noting import NotingEngine, two_ray_workers
from ..word_encoder import random_vectors, write_word_encoder

pytestmark = pytest.mark.slow
pytest.importorskip("ray", reason="needs Ray: pip install 'kshot[ray]'")

WORDS = ["red", "green", "blue", "one", "two", "three", "hot", "cold", "big", "small"]
SHOTS = [Example("red one big", "RED"), Example("two blue", "cold")]


@pytest.fixture(scope="module")
def engine():
    with two_ray_workers() as engine:
        yield engine


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    words = [*WORDS, *map(str.upper, WORDS)]
    folder = tmp_path_factory.mktemp("encoder") / "words"
    return str(write_word_encoder(folder, words, random_vectors(words, 24)))


@pytest.fixture
def pool(write_rows, tmp_path: Path) -> Pool:
    """Some 400 rows of two files in shards of 64."""
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(WORDS, size=4)) for _ in range(420)]
    write_rows("a.jsonl", texts[:300])
    write_rows("b.jsonl", texts[250:])
    return read_pool([f"file://{tmp_path}/*.jsonl"], shard_rows=64)


def _select(pool: Pool, strategy: Strategy, reference: str, engine) -> tuple[object, ...]:
    """Return rows, relevance, nearest shots and dropped rows, as the stage `data` selects them."""
    encoder = spread_encoder(load_encoder(reference), engine, reference)
    shots_KD, keys_N = encoder.encode([text_of(shot) for shot in SHOTS]), content_keys(pool)
    gathered = None
    if engine is not None:
        gathered = GatheredRows(Asked(shots_KD, strategy, 64), np.ones(len(pool), dtype=bool), keys_N)
    vectors_ND = embed_pool(pool, encoder, gathered=gathered)
    first = gathered.whole() if gathered else None
    assert (first is None) == (engine is None)
    found = select_data(
        vectors_ND, shots_KD, budget=60, threshold=0.9, strategy=strategy, keys_N=keys_N, first=first
    )
    assert found.dropped
    return found.indices.tolist(), found.scores.tolist(), found.nearest_shot.tolist(), found.dropped


@pytest.mark.parametrize(
    ("strategy", "kill"),
    [("max", None), ("max", "the vectors of a, shard 3"), ("round_robin", "the vectors of b, shard 1")],
)
def test_against_selecting_here(
    pool: Pool,
    engine,
    encoder_folder: str,
    tmp_path: Path,
    kshot_home: Path,
    strategy: Strategy,
    kill: str | None,
) -> None:
    expected = _select(pool, strategy, encoder_folder, None)
    here = {path: path.read_bytes() for path in kshot_home.rglob("shard-*.npy")}
    for path in here:
        path.unlink()
    noting = NotingEngine(engine, tmp_path, kill)
    assert _select(pool, strategy, encoder_folder, noting) == expected
    assert {path: path.read_bytes() for path in kshot_home.rglob("shard-*.npy")} == here
    assert len(noting.begun()) == len(pool.shards)
    assert noting.begun_again() == ({kill: 2} if kill else {})
