"""Vectors of a pool: each row embedded once, whatever happens in between."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from kshot.corpus.embedded_text import MAX_CHARACTERS, text_of
from kshot.corpus.embedding_store import embed_pool
from kshot.corpus.pool import Pool
from kshot.corpus.pool_reading import read_pool
from kshot.examples import Example

from .letters import LetterEncoder

WORDS = ["abc", "abd", "beg", "fad", "dab", "cab", "bag", "gab", "hag", "had", "head", "bead"]


@pytest.fixture
def pool(write_rows, tmp_path: Path) -> Pool:
    """Twelve rows of two files in shards of 4, and a copy."""
    write_rows("a.jsonl", WORDS[:7])
    write_rows("b.jsonl", [WORDS[0], *WORDS[7:]])
    return read_pool([f"{tmp_path}/?.jsonl"], shard_rows=4)


def _vector_files(home: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in home.rglob("shard-*.npy")}


def test_against_one_call(pool: Pool) -> None:
    letters = LetterEncoder()
    wanted_ND = LetterEncoder().encode([text_of(row) for row in pool]).astype(np.float16)
    steps: list[int] = []
    vectors_ND = embed_pool(pool, letters, steps.append)
    assert (vectors_ND.shape, vectors_ND.dtype) == ((12, 8), np.float16)
    np.testing.assert_array_equal(vectors_ND[0:12], wanted_ND)
    np.testing.assert_array_equal(vectors_ND[np.array([11, 0, 7])], wanted_ND[[11, 0, 7]])
    assert sum(steps) == 12


def test_a_second_time_nothing_is_embedded(pool: Pool) -> None:
    letters = LetterEncoder()
    embed_pool(pool, letters)
    assert len(letters.texts) == 13  # the copy too: the vectors of a file do not depend on its neighbours
    again, steps = LetterEncoder(), []
    embed_pool(pool, again, steps.append)
    assert again.texts == []
    assert sum(steps) == 12


def test_one_more_file_is_embedded_alone(pool: Pool, write_rows, tmp_path: Path) -> None:
    letters = LetterEncoder()
    embed_pool(pool, letters)
    write_rows("0.jsonl", ["ace", "face"])
    larger, encoder = read_pool([f"{tmp_path}/?.jsonl"], shard_rows=4), LetterEncoder()
    vectors_ND = embed_pool(larger, encoder)
    assert sorted(encoder.texts) == ["ace\nACE", "face\nFACE"]
    wanted_ND = LetterEncoder().encode([text_of(row) for row in larger])
    np.testing.assert_array_equal(vectors_ND[0:14], wanted_ND.astype(np.float16))


@pytest.mark.parametrize("damage", ["missing", "short", "other shape"])
def test_invariant_a_lost_shard_alone_is_embedded_again(pool: Pool, kshot_home: Path, damage: str) -> None:
    letters = LetterEncoder()
    embed_pool(pool, letters)
    wanted = _vector_files(kshot_home)
    lost = pool.shards[1]
    (path,) = lost.stored.folder.rglob("shard-00001.npy")
    if damage == "missing":
        path.unlink()
    elif damage == "short":
        path.write_bytes(path.read_bytes()[:-3])
    else:
        np.save(path, np.ones((3, 5), dtype=np.float16))
    encoder = LetterEncoder()
    embed_pool(pool, encoder)
    assert sorted(encoder.texts) == sorted(text_of(row) for row in lost.stored.examples(1))
    assert _vector_files(kshot_home) == wanted


@pytest.mark.parametrize("other", [LetterEncoder("others"), LetterEncoder(letters="abcd")])
def test_another_encoder_over_an_old_cache(pool: Pool, other: LetterEncoder) -> None:
    letters = LetterEncoder()
    old_ND = embed_pool(pool, letters)
    before = old_ND[0:12].copy()
    new_ND = embed_pool(pool, other)
    wanted_ND = other.encode([text_of(row) for row in pool]).astype(np.float16)
    np.testing.assert_array_equal(new_ND[0:12], wanted_ND)
    np.testing.assert_array_equal(embed_pool(pool, LetterEncoder())[0:12], before)


def test_a_text_of_which_the_encoder_knows_nothing_is_a_row_of_zeros(write_rows) -> None:
    pool = read_pool([str(write_rows("a.jsonl", ["abc", "xyz", "had"]))])
    norms = np.linalg.norm(embed_pool(pool, LetterEncoder())[0:3].astype(np.float64), axis=1)
    np.testing.assert_allclose(norms, [1, 0, 1], atol=1e-3)


def test_text_of_has_request_and_output() -> None:
    assert text_of(Example("add", "3", input="1 2")) == "add\n\n1 2\n3"


def test_text_of_cuts_both_parts() -> None:
    text = text_of(Example("a" * 10_000_000, "b" * 10_000_000))
    assert text == "a" * MAX_CHARACTERS + "\n" + "b" * MAX_CHARACTERS


def test_text_of_half_a_surrogate_pair() -> None:
    assert text_of(Example("the \ud83d", "cat")) == "the ?\ncat"


SLOW_BUILD = """
import sys, time
sys.path.insert(0, sys.argv[2])
from letters import LetterEncoder
from kshot.corpus import embed_pool, read_pool

class Slow(LetterEncoder):
    def encode(self, texts):
        time.sleep(0.05 * bool(texts))
        return super().encode(texts)

embed_pool(read_pool([sys.argv[1]], shard_rows=50), Slow())
"""


@pytest.mark.slow
def test_invariant_a_killed_build_ends_with_the_same_bytes(write_rows, tmp_path: Path) -> None:
    path = write_rows("a.jsonl", [f"{word} {number}" for number in range(200) for word in WORDS])
    command = [sys.executable, "-c", SLOW_BUILD, str(path), str(Path(__file__).parent)]

    def build(home: Path, kill_after: str | None) -> None:
        process = subprocess.Popen(
            command, env=os.environ | {"KSHOT_HOME": str(home), "OMP_NUM_THREADS": "1"}
        )
        deadline = time.monotonic() + 100
        while kill_after and not list(home.rglob(kill_after)):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.001)
        if kill_after:
            process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=100) == (-signal.SIGKILL if kill_after else 0)

    def products(home: Path) -> dict[str, bytes]:
        kinds = (".npy", ".arrow", ".json")
        files = (one for one in home.rglob("*") if one.suffix in kinds and one.parent.name != "hashes")
        return {str(one.relative_to(home)): one.read_bytes() for one in files}

    build(tmp_path / "whole", None)
    for pattern in ("rows-00003.arrow", "shard-00002.npy", "shard-00017.npy"):
        build(tmp_path / "killed", pattern)
        assert products(tmp_path / "killed") != products(tmp_path / "whole")
    build(tmp_path / "killed", None)
    whole = products(tmp_path / "whole")
    assert len(whole) == 48 + 48 + 2
    assert products(tmp_path / "killed") == whole
