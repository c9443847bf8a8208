"""Opening a pool: any mix of sources, copies once, and nothing lost without a count."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
from datasets import Dataset

from kshot.config import PoolSource
from kshot.corpus.pool_reading import pool_contents, read_pool
from kshot.errors import ConfigError, ExampleError, SourceError
from kshot.progress import Silent


def _row(text: str) -> dict[str, str]:
    return {"instruction": text, "output": text.upper()}


def test_any_mix_of_sources(tmp_path: Path, write_rows) -> None:
    write_rows("a.jsonl", ["a"])
    (tmp_path / "b.json").write_text(json.dumps([_row("b")]))
    with (tmp_path / "c.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["question", "answer"], ["c", "C"]])
    pa_parquet.write_table(pa.Table.from_pylist([_row("d")]), tmp_path / "d.parquet")
    Dataset.from_list([_row("e")]).save_to_disk(tmp_path / "e")
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "train.jsonl").write_text(json.dumps(_row("f")))
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "pool.json").write_text(json.dumps({"sources": ["../h.jsonl"]}))
    write_rows("h.jsonl", ["h"])
    columns = {"instruction": "question", "output": "answer"}
    pool = read_pool(
        [
            f"{tmp_path}/a.jsonl",
            f"{tmp_path}/b.json",
            PoolSource(path=f"{tmp_path}/c.csv", columns=columns),
            f"{tmp_path}/d.parquet",
            f"{tmp_path}/e",
            f"hf://{tmp_path}/f",
            f"{tmp_path}/g",
        ]
    )
    assert "".join(row.instruction for row in pool) == "abcdefh"
    assert "".join(row.output for row in pool) == "ABCDEFH"
    assert [pool.source_of(index) for index in range(5)] == ["a", "b", "c", "d", "e"]
    assert pool.source_of(5) == f"{tmp_path}/f"
    assert pool.skipped == ()


def test_order_is_that_of_the_sources(tmp_path: Path, write_rows) -> None:
    for name in ("b_maths", "a_words", "a_more"):
        write_rows(f"{name}.jsonl", [name])
    pool = read_pool([str(tmp_path / "b_maths.jsonl"), str(tmp_path / "a_*.jsonl")])
    assert [row.instruction for row in pool] == ["b_maths", "a_more", "a_words"]


def test_copies_within_and_across_files(write_rows) -> None:
    one = write_rows("a.jsonl", [_row("Name a colour."), _row("name  A colour"), _row("b")])
    two = write_rows("b.jsonl", [_row("“Name a colour”"), _row("b"), _row("b"), _row("c")])
    pool = read_pool([str(one), str(two)])
    assert [row.instruction for row in pool] == ["Name a colour.", "b", "c"]
    assert [(skipped.source, skipped.reason, skipped.count) for skipped in pool.skipped] == [
        ("a", "exact_duplicate", 1),
        ("b", "exact_duplicate", 3),
    ]


def test_a_source_listed_twice_counts_once(write_rows) -> None:
    path = str(write_rows("a.jsonl", ["a", "b"]))
    pool = read_pool([path, path])
    assert len(pool) == 2
    assert pool.skipped[0].count == 2


def test_an_unreadable_file_among_many_is_skipped_by_name(tmp_path: Path, write_rows) -> None:
    write_rows("a.jsonl", ["a"])
    (tmp_path / "b.jsonl").symlink_to("/proc/self/mem")  # opens, and fails at the first read
    (tmp_path / "c.parquet").write_bytes(b"PAR1 no PAR1")
    write_rows("d.jsonl", ["d"])
    (tmp_path / "e.jsonl").write_bytes(b"")
    pool = read_pool([f"{tmp_path}/*.*"])
    assert [row.instruction for row in pool] == ["a", "d"]
    unreadable = {one.source: one for one in pool.skipped}
    assert set(unreadable) == {"b", "c"}
    assert {one.reason for one in pool.skipped} == {"unreadable"}
    assert "Input/output error" in unreadable["b"].first
    assert "expected a readable table" in unreadable["c"].first


def test_an_unreadable_file_is_read_once_it_can_be(tmp_path: Path, write_rows) -> None:
    write_rows("a.jsonl", ["a"])
    (tmp_path / "b.jsonl").symlink_to("/proc/self/mem")
    sources = [f"{tmp_path}/*.jsonl"]
    before = pool_contents(sources)
    assert len(read_pool(sources)) == 1
    (tmp_path / "b.jsonl").unlink()
    write_rows("b.jsonl", ["b"])
    assert len(read_pool(sources)) == 2
    assert [name for name, _ in before] == ["a", "b"]
    assert before[1][1] == "unreadable"
    assert pool_contents(sources)[1][1] != "unreadable"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"found none; it is empty"),
        (b'{"a": 1}\n{"a": 2}', r"found none; no_instruction: line 1: expected an instruction, got none"),
        (b"\xff", r"found none; invalid_utf8: line 1: expected UTF-8"),
    ],
)
def test_a_source_without_usable_rows(tmp_path: Path, write_rows, content: bytes, message: str) -> None:
    (tmp_path / "bad.jsonl").write_bytes(content)
    good = str(write_rows("good.jsonl", ["a"]))
    with pytest.raises(ExampleError, match=rf"expected at least one usable row in .*bad\.jsonl, {message}"):
        read_pool([good, str(tmp_path / "bad.jsonl")])


def test_no_source_and_a_missing_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected at least one source in pool, got none"):
        read_pool([])
    with pytest.raises(SourceError, match="expected a file at"):
        read_pool([str(tmp_path / "missing.jsonl")])
    (tmp_path / "x.jsonl").symlink_to("/proc/self/mem")
    for open_ in (read_pool, pool_contents):
        with pytest.raises(SourceError, match=r"cannot read .*x\.jsonl"):
            open_([str(tmp_path / "x.jsonl")])


def test_progress_counts_files(tmp_path: Path, write_rows) -> None:
    for name in "abc":
        write_rows(f"{name}.jsonl", [name])
    seen: list[int] = []

    class Counting(Silent):
        def bar(self, text: str, total: int):  # type: ignore[no-untyped-def]
            seen.append(total)
            return super().bar(text, total)

    read_pool([f"{tmp_path}/?.jsonl"], progress=Counting())
    assert seen == [3]
