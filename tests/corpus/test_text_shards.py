"""Shards of texts, embedded here and by an engine: the same vectors, files and selections."""

import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kshot.corpus.embedded_text import text_of
from kshot.corpus.embedding_store import embed_pool
from kshot.corpus.encoders.load import load_encoder
from kshot.corpus.first_rows import Asked, GatheredRows
from kshot.corpus.pool import Pool
from kshot.corpus.pool_reading import read_pool
from kshot.corpus.scan import Strategy
from kshot.corpus.selection import select_data
from kshot.corpus.survey import content_keys
from kshot.corpus.text_shards import MakeEmbedder, SpreadEncoder, TextShard, embed_shards, spread_encoder
from kshot.corpus.two_stage import shortlist
from kshot.engine import LocalEngine
from kshot.errors import SourceError
from kshot.examples import Example

from .letters import LetterEncoder

STRATEGIES: tuple[Strategy, ...] = ("max", "centroid", "round_robin", "mmr")
SHOTS = [Example("aab", "AAB"), Example("hhg", "HHG"), Example("fed", "FED")]


class Backwards:
    """An engine that finishes its last shard first, and counts shards and workers."""

    def __init__(self) -> None:
        self.shards: list[str] = []
        self.workers: list[Any] = []

    def run(self, make_worker, shards):  # type: ignore[no-untyped-def]
        if len(shards):
            worker = pickle.loads(pickle.dumps(make_worker))()
            self.workers.append(worker)
        for index in reversed(range(len(shards))):
            self.shards.append(str(shards[index]))
            yield index, pickle.loads(pickle.dumps(worker(pickle.loads(pickle.dumps(shards[index])))))


@pytest.fixture
def pool(write_rows, tmp_path: Path) -> Pool:
    """Three files in shards of 32, with copies across them and rows of which the encoder knows nothing."""
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(list("abcdefgh"), size=5)) for _ in range(200)]
    write_rows("a.jsonl", [*words[:90], "xyz"])
    write_rows("b.jsonl", [*words[60:140], "zzz"])
    write_rows("c.jsonl", words[130:])
    return read_pool([f"{tmp_path}/?.jsonl"], shard_rows=32)


def _spread(engine: Any, encoder: LetterEncoder | None = None) -> SpreadEncoder:
    return SpreadEncoder(LetterEncoder(), engine, partial(_given, encoder or LetterEncoder()))


def _given(encoder: LetterEncoder) -> LetterEncoder:
    return encoder


def _gathered(pool: Pool, strategy: Strategy, depth: int) -> GatheredRows:
    usable_N = np.ones(len(pool), dtype=bool)
    usable_N[::7] = False
    shots_KD = LetterEncoder().encode([text_of(shot) for shot in SHOTS])
    return GatheredRows(Asked(shots_KD, strategy, depth), usable_N, content_keys(pool))


def _vector_files(home: Path) -> dict[str, bytes]:
    return {str(path.relative_to(home)): path.read_bytes() for path in home.rglob("vectors/*/*")}


def _plain(found: Any) -> tuple[object, ...]:
    return found.indices.tolist(), found.scores.tolist(), found.nearest_shot.tolist(), found.dropped


@pytest.mark.parametrize("engine", [LocalEngine(), Backwards()], ids=["in order", "backwards"])
def test_an_engine_writes_the_same_files(
    pool: Pool, kshot_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine: Any
) -> None:
    embed_pool(pool, LetterEncoder())
    here = _vector_files(kshot_home)
    for path in kshot_home.rglob("shard-*.npy"):
        path.unlink()
    steps: list[int] = []
    embed_pool(pool, _spread(engine), steps.append)
    assert _vector_files(kshot_home) == here
    assert sum(steps) == len(pool)


@pytest.mark.parametrize("embedded", [0, 3], ids=["none", "some"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_against_a_selection_without_an_engine(
    pool: Pool, kshot_home: Path, strategy: Strategy, embedded: int
) -> None:
    """Rows, order, relevance and dropped rows; whether all shards are embedded now or some were before."""
    gathered = _gathered(pool, strategy, 1_024)
    settings = {
        "budget": 40,
        "threshold": 0.97,
        "strategy": strategy,
        "avoid": np.arange(0, len(pool), 7),
        "keys_N": content_keys(pool),
    }
    expected = select_data(embed_pool(pool, LetterEncoder()), gathered.asked.shots, **settings)
    for path in sorted(kshot_home.rglob("shard-*.npy"))[embedded:]:
        path.unlink()
    engine = Backwards()
    vectors_ND = embed_pool(pool, _spread(engine), gathered=gathered)
    assert len(engine.shards) == len(pool.shards) - embedded
    first = gathered.whole()
    assert first is not None
    found = select_data(vectors_ND, gathered.asked.shots, first=first, **settings)
    assert _plain(found) == _plain(expected)
    assert found.num_zero == expected.num_zero == 2
    assert found.dropped


def test_where_all_is_embedded_no_worker_is_made_and_nothing_is_gathered(pool: Pool) -> None:
    embed_pool(pool, LetterEncoder())
    engine, gathered = Backwards(), _gathered(pool, "max", 8)
    embed_pool(pool, _spread(engine), gathered=gathered)
    assert (engine.workers, engine.shards) == ([], [])
    assert gathered.whole() is None


def test_messages_name_the_shards(pool: Pool) -> None:
    engine = Backwards()
    embed_pool(pool, _spread(engine))
    assert engine.shards[-3:] == [f"the vectors of a, shard {number}" for number in (3, 2, 1)]


def test_a_shortlist_by_workers_is_that_of_one_process(pool: Pool, kshot_home: Path) -> None:
    here = shortlist(pool, SHOTS, LetterEncoder(), LetterEncoder("fine", "abc"), 40)
    for path in kshot_home.rglob("*.npy"):
        path.unlink()
    engine, steps = Backwards(), []
    fine = SpreadEncoder(LetterEncoder("fine", "abc"), engine, partial(LetterEncoder, "fine", "abc"))
    there = shortlist(pool, SHOTS, _spread(engine), fine, 40, steps.append)
    np.testing.assert_array_equal(there[0], here[0])
    np.testing.assert_array_equal(there[1], here[1])
    assert engine.shards[-1] == "the vectors of the shortlist from row 1"
    assert sum(steps) == len(pool) + 40


def test_a_run_that_is_stopped_keeps_the_shards_that_are_done(pool: Pool, kshot_home: Path) -> None:
    class Stopping(LocalEngine):
        def run(self, make_worker, shards):  # type: ignore[no-untyped-def]
            for index, result in super().run(make_worker, shards):
                if index == 2:
                    raise KeyboardInterrupt
                yield index, result

    with pytest.raises(KeyboardInterrupt):
        embed_pool(pool, _spread(Stopping()))
    assert len(list(kshot_home.rglob("shard-*.npy"))) == 2
    engine = Backwards()
    embed_pool(pool, _spread(engine))
    assert len(engine.shards) == len(pool.shards) - 2


def test_a_worker_with_another_encoder_is_refused() -> None:
    with pytest.raises(
        SourceError, match=r"expected the encoder 'letters' as it is where .*, got 'others' on"
    ):
        MakeEmbedder(partial(LetterEncoder, "others"), "letters", 8, None)()


def test_a_worker_that_lacks_the_encoder_says_so(tmp_path: Path) -> None:
    make = partial(load_encoder, str(tmp_path / "none"))
    with pytest.raises(SourceError, match=r"a worker on .* cannot load the encoder: expected a model folder"):
        MakeEmbedder(make, "letters", 8, None)()


def test_damaged_weights_are_named_as_in_one_process(pool: Pool) -> None:
    class Broken(LetterEncoder):
        def encode(self, texts):  # type: ignore[no-untyped-def]
            if len(texts):
                raise SourceError("expected finite vectors from the encoder 'letters'")
            return super().encode(texts)

    with pytest.raises(SourceError, match="expected finite vectors"):
        embed_pool(pool, SpreadEncoder(LetterEncoder(), LocalEngine(), Broken))


def test_without_an_engine_the_encoder_is_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = LetterEncoder()
    assert spread_encoder(here, None, "static") is here
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    spread = spread_encoder(here, LocalEngine(), "model", prefix="query: ")
    assert isinstance(spread, SpreadEncoder)
    assert isinstance(spread.make, partial)
    assert spread.make.args == (str(tmp_path / "model"),)  # as workers start from another folder
    assert spread.make.keywords["prefix"] == "query: "
    assert (spread.name, spread.encode(["abc"]).shape) == ("letters", (1, 8))


def test_texts_are_embedded_in_order_and_counted() -> None:
    texts = ["a" * length for length in (900, 3, 50, 7)]
    seen: list[tuple[int, int]] = []
    shards = [TextShard("one", texts), TextShard("two", ["b"])]
    found = dict(
        embed_shards(shards, LetterEncoder(), 8, done=lambda index, places: seen.append((index, len(places))))
    )
    np.testing.assert_array_equal(found[0].vectors, LetterEncoder().encode(texts).astype(np.float16))
    assert found[1].first is None
    assert seen == [(0, 4), (1, 1)]
