"""The pool: rows by index, by block and by list, each with its source."""

from pathlib import Path

import numpy as np
import pytest

from kshot.corpus.pool import Pool
from kshot.corpus.pool_reading import read_pool


@pytest.fixture
def pool(tmp_path: Path, write_rows) -> Pool:
    """23 rows of two files in shards of 5; rows 2 and 3 of the second file are in the first."""
    first = [f"a {number}" for number in range(12)]
    write_rows("a.jsonl", first)
    write_rows("b.jsonl", ["b 0", first[4], first[11], *(f"b {number}" for number in range(1, 11))])
    return read_pool([f"{tmp_path}/*.jsonl"], shard_rows=5)


def test_every_way_to_read_gives_the_same_rows(pool: Pool) -> None:
    wanted = [f"a {number}" for number in range(12)] + [f"b {number}" for number in range(11)]
    assert len(pool) == 23
    assert [pool[index].instruction for index in range(23)] == wanted
    assert [row.instruction for row in pool] == wanted
    for num_rows in (1, 3, 100):
        blocks = list(pool.blocks(num_rows))
        assert [row.instruction for _, rows in blocks for row in rows] == wanted
        assert [start for start, _ in blocks] == np.cumsum([0, *(len(rows) for _, rows in blocks)])[
            :-1
        ].tolist()
        assert max(len(rows) for _, rows in blocks) <= num_rows
    draw = np.random.default_rng(0).permutation(23)[:9]
    assert [row.instruction for row in pool.examples_at(draw)] == [wanted[index] for index in draw]
    assert pool.examples_at(np.array([], dtype=np.int64)) == []


def test_ids_and_sources(pool: Pool) -> None:
    assert [pool.source_of(index) for index in (0, 11, 12, 22)] == ["a", "a", "b", "b"]
    assert [pool[index].id for index in (0, 12, 13)] == ["a, line 1", "b, line 1", "b, line 4"]


def test_copies_of_rows_of_other_files_are_counted(pool: Pool) -> None:
    (skipped,) = pool.skipped
    assert (skipped.source, skipped.reason, skipped.count) == ("b", "exact_duplicate", 2)


@pytest.mark.parametrize("index", [-1, 23])
def test_no_such_row(pool: Pool, index: int) -> None:
    with pytest.raises(IndexError, match=rf"expected a row in \[0, 23\), got {index}"):
        pool[index]
    with pytest.raises(IndexError, match="expected a row"):
        pool.source_of(index)
