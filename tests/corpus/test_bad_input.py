"""A pool of everything that can be wrong: what is left out has a name and a count, and nothing is lost."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest

from kshot.corpus.embedding_store import embed_pool
from kshot.corpus.pool_reading import read_pool
from kshot.corpus.row_shards import shard_path
from kshot.corpus.selection import select_data
from kshot.errors import ConfigError, SourceError

from .letters import LetterEncoder

GOOD = [f"{first}{second}{third}" for first in "abc" for second in "def" for third in "gh"]
HUGE = "y" * 10_000_000


def _line(text: str) -> bytes:
    return json.dumps({"instruction": text, "output": text.upper()}).encode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six files of one pattern: good rows among bad ones, a file that cannot be read, a table with damage."""
    folder = tmp_path / "open"
    folder.mkdir()
    bad = [
        b'{"instruction": "", "output": "no request"}',
        b'{"instruction": "no response"}',
        json.dumps({"instruction": "huge", "output": HUGE}).encode(),
        b'{"instruction": "caf\xe9", "output": "x"}',
        b'{"instruction": "half a row", ',
        b'["a", "list"]',
        b'{"instruction": "two schemas", "output": {"text": "x"}}',
    ]
    lines = [line for pair in zip(map(_line, GOOD[:7]), bad, strict=True) for line in pair]
    (folder / "a.jsonl").write_bytes(b"\n".join([*lines, _line(GOOD[0])]))
    (folder / "b.jsonl").symlink_to("/proc/self/mem")  # opens, and fails at the first read
    (folder / "c.csv").write_bytes(f'instruction,output\n{GOOD[7]},X\nnot closed,"\n'.encode())
    others = [{"question": GOOD[8], "answer": "Y"}, {"question": "no answer", "answer": None}]
    pa_parquet.write_table(pa.Table.from_pylist(others), folder / "d.parquet")
    rows = [{"instruction": text, "output": text.upper()} for text in GOOD[9:]]
    target = folder / "e.parquet"
    pa_parquet.write_table(pa.Table.from_pylist(rows), target, row_group_size=3, compression="none")
    content = target.read_bytes()
    start = pa_parquet.ParquetFile(target).metadata.row_group(1).column(0).dictionary_page_offset
    target.write_bytes(content[:start] + b"\xff" * 30 + content[start + 30 :])
    (folder / "f.json").write_text(json.dumps([{"instruction": "xyz", "output": "zzz"}]))
    return folder


def test_every_row_is_read_or_counted(folder: Path) -> None:
    pool = read_pool([f"{folder}/*.*"], shard_rows=4)
    assert Counter(pool.source_of(index) for index in range(len(pool))) == {"a": 7, "c": 1, "e": 6, "f": 1}
    skipped = {(one.source, one.reason): one.count for one in pool.skipped}
    assert skipped == {
        ("a", "no_instruction"): 1,
        ("a", "no_output"): 1,
        ("a", "too_long"): 1,
        ("a", "invalid_utf8"): 1,
        ("a", "broken"): 1,
        ("a", "no_example"): 2,
        ("a", "exact_duplicate"): 1,
        ("b", "unreadable"): 1,
        ("c", "broken"): 1,
        ("d", "no_instruction"): 2,
        ("e", "unreadable"): 1,
    }
    assert all(one.first for one in pool.skipped)


def test_what_is_left_is_selected_from_and_a_row_of_zeros_is_counted(folder: Path) -> None:
    pool = read_pool([f"{folder}/*.*"], shard_rows=4)
    vectors_ND = embed_pool(pool, LetterEncoder())
    shots_KD = LetterEncoder().encode(["adg", "cfh"])
    selection = select_data(vectors_ND, shots_KD, budget=14, threshold=1)
    assert selection.num_zero == 1
    assert {pool[int(row)].instruction for row in selection.indices} <= set(GOOD)
    with pytest.raises(
        ConfigError, match=r"budget must be in \[1, 14\], got 15: .* of 15 \(1 are zero\); lower data\.budget"
    ):
        select_data(vectors_ND, shots_KD, budget=15, threshold=1)
    with pytest.raises(
        ConfigError, match=r"budget must be in \[1, 15\], got 16: lower .* or enlarge the pool"
    ):
        select_data(vectors_ND, shots_KD, budget=16, threshold=1)


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_stored_shard_that_is_damaged_in_the_middle_is_named_with_what_to_do(
    write_rows, damage: str
) -> None:
    source = [str(write_rows("a.jsonl", GOOD))]
    stored = read_pool(source, shard_rows=4).shards[0].stored
    path = shard_path(stored.folder, 2)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:200])
    else:
        path.unlink()
    with pytest.raises(
        SourceError, match=r"expected a sound shard at .*rows-00002\.arrow, got .*; delete .*"
    ):
        read_pool(source, shard_rows=4)
    for one in stored.folder.iterdir():
        one.unlink()
    assert [row.instruction for row in read_pool(source, shard_rows=4)] == GOOD


def test_a_changed_encoder_over_an_old_cache_gives_its_own_vectors(write_rows) -> None:
    pool = read_pool([str(write_rows("a.jsonl", GOOD))], shard_rows=4)
    old_ND = embed_pool(pool, LetterEncoder())[0 : len(pool)]
    changed = LetterEncoder("letters of other weights", "hgfedcba")
    new_ND = embed_pool(pool, changed)[0 : len(pool)]
    np.testing.assert_array_equal(new_ND, old_ND[:, ::-1])
    assert len(changed.texts) == len(pool)
