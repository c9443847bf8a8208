"""Pool folders: `pool.json` written, read, extended, and refused where it makes no sense."""

import json
from pathlib import Path

import pytest

from kshot.config import PoolSource
from kshot.corpus.pool_folder import PoolFile, listed_sources, read_pool_file, write_pool_file
from kshot.errors import ConfigError


def test_roundtrip(tmp_path: Path) -> None:
    content = PoolFile(
        encoder="static", sources=(PoolSource(path="/a.csv", columns={"output": "x"}, limit=3),)
    )
    write_pool_file(tmp_path / "pool", content)
    assert read_pool_file(tmp_path / "pool") == content


def test_relative_paths_start_from_the_folder(tmp_path: Path) -> None:
    sources = ["a.csv", {"path": "../b.csv"}, "/c.csv", "hf://a/b"]
    (tmp_path / "pool.json").write_text(json.dumps({"sources": sources}))
    found = [source.path for source in read_pool_file(tmp_path).sources]
    assert found == [f"{tmp_path}/a.csv", f"{tmp_path}/../b.csv", "/c.csv", "hf://a/b"]


def test_a_source_is_listed_once(tmp_path: Path) -> None:
    one, two = PoolSource(path="/a.csv"), PoolSource(path="/a.csv", limit=1)
    content = PoolFile().with_sources([one, one]).with_sources([two, one])
    assert content.sources == (one, two)


def test_a_pool_folder_is_replaced_by_what_it_lists(tmp_path: Path) -> None:
    write_pool_file(tmp_path, PoolFile(sources=(PoolSource(path="/a.csv", limit=1),)))
    found = listed_sources([str(tmp_path), "/b.csv", PoolSource(path="hf://a/b", limit=2)])
    assert [(source.path, source.limit) for source in found] == [
        ("/a.csv", 1),
        ("/b.csv", None),
        ("hf://a/b", 2),
    ]


def test_a_pool_in_a_pool_is_refused(tmp_path: Path) -> None:
    write_pool_file(tmp_path / "inner", PoolFile(sources=(PoolSource(path="/a.csv"),)))
    write_pool_file(tmp_path / "outer", PoolFile(sources=(PoolSource(path=str(tmp_path / "inner")),)))
    with pytest.raises(ConfigError, match=r"expected files in the pool .*outer, got the pool .*inner"):
        listed_sources([str(tmp_path / "outer")])


def test_columns_of_a_pool_folder_are_refused(tmp_path: Path) -> None:
    write_pool_file(tmp_path, PoolFile())
    with pytest.raises(ConfigError, match=r"is a pool folder, whose pool\.json has columns and limits"):
        listed_sources([PoolSource(path=str(tmp_path), limit=1)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"expected a pool at .*, got no pool\.json: make one with 'kshot pool build'"),
        ("{", r"pool\.json: expected sources and an encoder, got Expecting"),
        ('{"format": 2}', r"pool\.json: expected sources and an encoder, got Input should be 1"),
        ('{"soures": []}', r"pool\.json: expected sources and an encoder, got Extra inputs"),
        ("[]", r"pool\.json: expected sources and an encoder, got Input should be"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "pool.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_pool_file(tmp_path)
