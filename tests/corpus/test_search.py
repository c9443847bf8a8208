"""Search: the nearest rows, nearest first."""

import numpy as np
import pytest

from kshot.corpus.embedding_store import embed_pool
from kshot.corpus.pool_info import describe_pool
from kshot.corpus.pool_reading import read_pool
from kshot.corpus.search import search_pool
from kshot.errors import ConfigError

from .letters import LetterEncoder

WORDS = ["abc", "xyz", "abcd", "efg", "cba"]


def test_nearest_first_and_ties_to_the_lower_row(write_rows) -> None:
    letters = LetterEncoder()
    pool = read_pool([str(write_rows("words.jsonl", WORDS))])
    found = search_pool(pool, embed_pool(pool, letters), letters, "a b c", top=4)
    assert [(row.index, row.source) for row in found] == [
        (0, "words"),
        (4, "words"),
        (2, "words"),
        (3, "words"),
    ]
    np.testing.assert_allclose([row.cosine for row in found], [1, 1, 3 / 12**0.5, 0], atol=1e-3)
    assert found[2].example == pool[2]
    assert len(search_pool(pool, embed_pool(pool, letters), letters, "a", top=99)) == 4  # none of zeros


def test_refuses_nothing_to_look_for(write_rows) -> None:
    letters = LetterEncoder()
    pool = read_pool([str(write_rows("words.jsonl", WORDS))])
    with pytest.raises(ConfigError, match="expected a text with words that the encoder knows, got 'xyz'"):
        search_pool(pool, embed_pool(pool, letters), letters, "xyz")
    with pytest.raises(ConfigError, match="top must be at least 1, got 0"):
        search_pool(pool, embed_pool(pool, letters), letters, "a", top=0)


def test_description_of_a_pool(write_rows, tmp_path) -> None:
    letters = LetterEncoder()
    write_rows("a.jsonl", WORDS)
    write_rows("b.jsonl", [WORDS[0], "new", {"output": "x"}])
    pool = read_pool([f"{tmp_path}/?.jsonl"], shard_rows=3)
    assert describe_pool(pool).encoders == {}
    embed_pool(read_pool([f"{tmp_path}/a.jsonl"]), LetterEncoder("partly"))
    embed_pool(pool, letters)
    info = describe_pool(pool)
    assert (info.rows, info.sources, info.shards) == (6, {"a": 5, "b": 1}, 3)
    assert info.encoders == {"letters": 3, "partly": 2}
    assert {(one.source, one.reason, one.count) for one in info.skipped} == {
        ("b", "exact_duplicate", 1),
        ("b", "no_instruction", 1),
    }
