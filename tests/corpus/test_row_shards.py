"""Shards of rows: what is written is read, also by datasets."""

from pathlib import Path

import pytest
from datasets import Dataset

from kshot.corpus.row_shards import examples_of, notes_of, read_shard, write_shard
from kshot.errors import SourceError
from kshot.examples import Example

ROWS = [
    (Example("größe\n\u2028", "ja", "x", "y", ("ja", "nein"), 0, "q", "r", id="é"), "line 1", 2**64 - 1),
    (Example("a", "b", id="line 2"), "line 2", 0),
]


def test_roundtrip(tmp_path: Path) -> None:
    write_shard(tmp_path / "x.arrow", ROWS, {"num_read": 7})
    table = read_shard(tmp_path / "x.arrow")
    assert examples_of(table, "maths") == [ROWS[0][0], Example("a", "b", id="maths, line 2")]
    assert table["hash"].to_pylist() == [2**64 - 1, 0]
    assert notes_of(table) == {"num_read": 7}


def test_invariant_same_bytes(tmp_path: Path) -> None:
    write_shard(tmp_path / "x.arrow", ROWS, {"num_read": 7})
    write_shard(tmp_path / "y.arrow", ROWS, {"num_read": 7})
    assert (tmp_path / "x.arrow").read_bytes() == (tmp_path / "y.arrow").read_bytes()


def test_datasets_opens_a_shard(tmp_path: Path) -> None:
    write_shard(tmp_path / "x.arrow", ROWS, {})
    data = Dataset.from_file(str(tmp_path / "x.arrow"))
    assert data["output"][:] == ["ja", "b"]
    assert data[0]["choices"] == ["ja", "nein"]


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    write_shard(tmp_path / "x.arrow", ROWS, {})
    (tmp_path / "x.arrow").write_bytes((tmp_path / "x.arrow").read_bytes()[:-200])
    with pytest.raises(SourceError, match=r"expected a sound shard at .*x\.arrow, got .*; delete "):
        read_shard(tmp_path / "x.arrow")
