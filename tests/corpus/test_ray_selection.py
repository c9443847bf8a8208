"""Data selection by two workers of Ray: what is selected here, with a worker killed too."""

import os
import signal
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

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
from kshot.engine import RayEngine
from kshot.examples import Example

pytestmark = pytest.mark.slow
pytest.importorskip("ray", reason="needs Ray: pip install 'kshot[ray]'")

WORDS = ["red", "green", "blue", "one", "two", "three", "hot", "cold", "big", "small"]
SHOTS = [Example("red one big", "RED"), Example("two blue", "cold")]


@pytest.fixture(scope="module")
def engine():
    ray = pytest.importorskip("ray")
    module = sys.modules[__name__]
    with RayEngine(num_workers=2) as engine:
        ray.cloudpickle.register_pickle_by_value(module)
        yield engine
        ray.cloudpickle.unregister_pickle_by_value(module)


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    vocabulary = {word: index for index, word in enumerate(["[UNK]", *WORDS, *map(str.upper, WORDS)])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    weights = np.random.default_rng(0).normal(size=(len(vocabulary), 24)).astype(np.float32)
    folder = tmp_path_factory.mktemp("encoder") / "words"
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, weights)], device="cpu").save(str(folder))
    return str(folder)


@pytest.fixture
def pool(write_rows, tmp_path: Path) -> Pool:
    """Some 400 rows of two files in shards of 64."""
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(WORDS, size=4)) for _ in range(420)]
    write_rows("a.jsonl", texts[:300])
    write_rows("b.jsonl", texts[250:])
    return read_pool([f"file://{tmp_path}/*.jsonl"], shard_rows=64)


class Noting:
    """Makes the workers that it is given, and lets them note what they do; one is killed at it."""

    def __init__(self, make_worker, folder: Path, kill: str | None) -> None:
        self.make_worker = make_worker
        self.folder = folder
        self.kill = kill

    def __call__(self):
        worker = self.make_worker()

        def work(shard):
            with (self.folder / "begun").open("a") as file:
                print(shard, file=file)
            flag = self.folder / "killed"
            if str(shard) == self.kill and not flag.exists():
                flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return worker(shard)

        return work


class NotingEngine:
    """Runs shards on Ray, and counts how often each was begun."""

    def __init__(self, engine, folder: Path, kill: str | None) -> None:
        self.engine = engine
        self.folder = folder
        self.kill = kill

    def run(self, make_worker, shards):
        return self.engine.run(Noting(make_worker, self.folder, self.kill), shards)

    def begun(self) -> Counter[str]:
        return Counter((self.folder / "begun").read_text().splitlines())


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
    assert {shard: times for shard, times in noting.begun().items() if times > 1} == (
        {kill: 2} if kill else {}
    )
