"""Sources: columns, limits of length, and what changes the key of an entry."""

from pathlib import Path

import pytest

from kshot.config import PoolSource
from kshot.corpus.pool_source import MAX_ROW_CHARACTERS, SourceFile, source_files
from kshot.errors import ExampleError, SourceError
from kshot.examples import Example

GSM8K = {"question": "2 + 2?", "answer": "4", "id": "q1", "level": "easy"}


def test_columns_are_the_only_ones_that_are_read() -> None:
    source = SourceFile("x.jsonl", (("instruction", "question"), ("output", "answer")))
    assert source.example(GSM8K, "line 1") == Example("2 + 2?", "4", id="line 1")
    assert SourceFile("x.jsonl", (("id", "id"), *source.columns)).example(GSM8K, "line 1").id == "q1"


def test_a_missing_column_is_named() -> None:
    source = SourceFile("x.jsonl", (("instruction", "query"),))
    with pytest.raises(
        ExampleError,
        match="line 1: expected the column 'query' for instruction, got question, answer, id, level",
    ) as caught:
        source.example(GSM8K, "line 1")
    assert caught.value.reason == "no_column"
    with pytest.raises(ExampleError, match="line 1: expected a JSON object, got list"):
        source.example([1], "line 1")


def test_a_row_that_is_too_long() -> None:
    row = {"instruction": "a", "output": "b" * (MAX_ROW_CHARACTERS - 1)}
    assert SourceFile("x").example(row, "row 1").instruction == "a"
    with pytest.raises(
        ExampleError, match="row 1: expected a row of at most 1,000,000 characters, got"
    ) as caught:
        SourceFile("x").example(row | {"choices": ["cc"]}, "row 1")
    assert caught.value.reason == "too_long"


def test_invariant_the_key_is_of_content_and_reading(write_rows) -> None:
    one, same = write_rows("one.jsonl", ["a"]), write_rows("same.jsonl", ["a"])
    key = SourceFile(str(one)).key()
    assert SourceFile(str(same)).key() == key
    others = [
        SourceFile(str(write_rows("other.jsonl", ["b"]))),
        SourceFile(str(one), limit=1),
        SourceFile(str(one), columns=(("instruction", "question"),)),
        SourceFile(str(same.rename(same.with_suffix(".json")))),
    ]
    assert len({key, *(other.key() for other in others)}) == 5


def test_a_hub_data_set_counts_by_its_reference() -> None:
    keys = {SourceFile(one).key() for one in ("hf://a/b", "hf://a/b:test", "hf://a/b@v1", "hf://a/b/main")}
    assert len(keys) == 4
    assert SourceFile("hf://a/b/main@v1:test").name == "a/b"


def test_files_of_an_entry(tmp_path: Path, write_rows) -> None:
    write_rows("b.jsonl", ["b"])
    write_rows("a.jsonl", ["a"])
    source = PoolSource(path=f"{tmp_path}/*.jsonl", columns={"output": "answer"}, limit=3)
    files = source_files(source)
    assert [file.name for file in files] == ["a", "b"]
    assert {(file.columns, file.limit) for file in files} == {((("output", "answer"),), 3)}
    assert source_files(PoolSource(path="hf://a/b")) == [SourceFile("hf://a/b")]
    with pytest.raises(SourceError, match=r"expected hf://owner/name"):
        source_files(PoolSource(path="hf://a/b/c/d"))
