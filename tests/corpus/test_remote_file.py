"""Files that a URL names: read as those of this disk, fetched once, and mistakes by name."""

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest

from kshot.config import PoolSource
from kshot.corpus.pool_folder import PoolFile, read_pool_file, write_pool_file
from kshot.corpus.pool_reading import pool_contents, read_pool
from kshot.corpus.remote_file import RemoteFile, expand_url, is_url, path_of
from kshot.errors import ExampleError, MissingExtraError, RunFolderError, SourceError

WORDS = ["abc", "abd", "beg", "fad", "dab"]


def _row(text: str) -> dict[str, str]:
    return {"instruction": text, "output": text.upper()}


def _lines(texts: list[str]) -> bytes:
    return "".join(json.dumps(_row(text)) + "\n" for text in texts).encode()


@pytest.fixture
def bucket() -> Iterator[fsspec.AbstractFileSystem]:
    """Storage in memory, which counts the files that are read."""
    storage = fsspec.filesystem("memory", skip_instance_cache=True)
    storage.store.clear()
    with storage.open("/bucket/b/words.jsonl", "wb") as file:
        file.write(_lines(WORDS[:3]))
    sink = pa.BufferOutputStream()
    pa_parquet.write_table(pa.Table.from_pylist([_row(text) for text in WORDS[3:]]), sink)
    with storage.open("/bucket/a.parquet", "wb") as file:
        file.write(sink.getvalue().to_pybytes())
    yield storage
    storage.store.clear()


def _copies(home: Path) -> list[str]:
    return sorted(one.name for one in home.glob("pools/remote/*/*") if one.name != "content.json")


def test_a_pool_elsewhere_is_read_like_one_here(bucket, tmp_path: Path, kshot_home: Path) -> None:
    pool = read_pool(["memory://bucket/b/*.jsonl", "memory://bucket/a.parquet"], shard_rows=2)
    assert [row.instruction for row in pool] == WORDS
    assert [pool.source_of(index) for index in (0, 4)] == ["words", "a"]
    assert pool[0].id == "words, line 1"
    assert _copies(kshot_home) == []
    (tmp_path / "words.jsonl").write_bytes(_lines(WORDS[:3]))
    here = read_pool([str(tmp_path / "words.jsonl")], shard_rows=2)
    assert here.shards[0].stored.folder == pool.shards[0].stored.folder  # by content: its vectors serve both


def test_patterns_over_folders_are_sorted(bucket) -> None:
    assert expand_url("memory://bucket/**/*.*") == [
        "memory:///bucket/a.parquet",
        "memory:///bucket/b/words.jsonl",
    ]


def test_a_url_of_this_disk(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(_lines(WORDS))
    assert [row.instruction for row in read_pool([f"file://{tmp_path}/*.jsonl"])] == WORDS


def test_columns_and_limit(bucket) -> None:
    columns = {"instruction": "output", "output": "instruction"}
    pool = read_pool([PoolSource(path="memory://bucket/b/words.jsonl", columns=columns, limit=2)])
    assert [row.instruction for row in pool] == ["ABC", "ABD"]


def test_an_unchanged_file_is_not_fetched_again_and_a_changed_one_is(bucket, kshot_home: Path) -> None:
    url = "memory://bucket/b/words.jsonl"
    before, rows = pool_contents([url]), read_pool([url])
    file = RemoteFile.find(url)
    assert (file.folder / "content.json").is_file()
    fetched = (file.folder / "content.json").stat().st_mtime_ns
    assert pool_contents([url]) == before
    assert len(read_pool([url])) == len(rows) == 3
    assert (file.folder / "content.json").stat().st_mtime_ns == fetched
    assert _copies(kshot_home) == []
    with bucket.open("/bucket/b/words.jsonl", "wb") as changed:
        changed.write(_lines(WORDS))
    assert pool_contents([url]) != before
    assert len(read_pool([url])) == 5


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"sha256": '])
def test_a_damaged_note_is_written_again(bucket, content: str) -> None:
    file = RemoteFile.find("memory://bucket/a.parquet")
    wanted = file.content_hash()
    file.forget()
    (file.folder / "content.json").write_text(content)
    assert file.content_hash() == wanted
    assert json.loads((file.folder / "content.json").read_text()) == {"sha256": wanted}


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "memory://bucket/none.jsonl",
            r"cannot read memory://bucket/none\.jsonl: no such file; check the add",
        ),
        (
            "memory://bucket/b",
            r"expected a file at memory://bucket/b, found none; name files, such as memory:",
        ),
        ("memory://bucket/*.csv", r"expected a file at memory://bucket/\*\.csv, found none"),
        ("nope://bucket/a.jsonl", r"cannot read nope://bucket/a\.jsonl: Protocol not known: nope; check"),
        ("http://127.0.0.1:9/a.jsonl", r"cannot read http://127\.0\.0\.1:9/a\.jsonl: .*127\.0\.0\.1:9"),
    ],
)
def test_mistakes_by_name(bucket, kshot_home: Path, url: str, message: str) -> None:
    for read in (read_pool, pool_contents):
        with pytest.raises(SourceError, match=message):
            read([url])
    assert not list(kshot_home.rglob("source.json"))


def test_a_file_of_another_kind_is_refused(bucket) -> None:
    bucket.pipe_file("/bucket/b/readme.md", b"# words")
    with pytest.raises(
        SourceError, match=r"expected \.jsonl, .*, got memory:///bucket/b/readme\.md; convert"
    ):
        read_pool(["memory://bucket/b/*"])


def test_storage_without_its_package_names_it() -> None:
    if find_spec("s3fs"):
        pytest.skip("s3fs is installed")
    with pytest.raises(MissingExtraError, match=r"s3://bucket/a\.jsonl is out of reach: Install s3fs"):
        read_pool(["s3://bucket/a.jsonl"])


def test_storage_that_fails_half_way_leaves_nothing_and_is_gone_on_with(
    bucket, kshot_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of many that the storage does not give ends the reading: it is no unreadable file."""
    sources = ["memory://bucket/**/*.*"]
    opened = bucket._open

    def fail(path: str, *args: object, **options: object) -> object:
        if path.endswith("words.jsonl"):
            raise ConnectionResetError("the line is dead")
        return opened(path, *args, **options)

    monkeypatch.setattr(type(bucket), "_open", lambda self, *args, **options: fail(*args, **options))
    with pytest.raises(SourceError, match=r"cannot read .*words\.jsonl: the line is dead; check the address"):
        read_pool(sources)
    assert not list(kshot_home.glob("pools/remote/*.partial"))
    monkeypatch.undo()
    monkeypatch.setenv("KSHOT_HOME", str(kshot_home))
    assert [row.instruction for row in read_pool(sources)] == [*WORDS[3:], *WORDS[:3]]


def test_a_full_disk_is_named(bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(self: object, path: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(bucket), "get_file", fill)
    with pytest.raises(RunFolderError, match=r"cannot write .*; free space on its disk"):
        read_pool(["memory://bucket/a.parquet"])


def test_a_file_that_is_no_table_is_skipped_by_name(bucket) -> None:
    bucket.pipe_file("/bucket/c.parquet", b"PAR1 no PAR1")
    pool = read_pool(["memory://bucket/*.parquet"])
    assert [row.instruction for row in pool] == WORDS[3:]
    (skipped,) = pool.skipped
    assert (skipped.source, skipped.reason) == ("c", "unreadable")
    with pytest.raises(ExampleError, match=r"at least one usable row in memory://bucket/c\.parquet"):
        read_pool(["memory://bucket/c.parquet"])


def test_a_pool_folder_lists_urls_as_they_are(bucket, tmp_path: Path) -> None:
    url = "memory://bucket/a.parquet"
    write_pool_file(tmp_path / "pool", PoolFile(sources=(PoolSource(path=url),)))
    assert [source.path for source in read_pool_file(tmp_path / "pool").sources] == [url]
    assert len(read_pool([str(tmp_path / "pool")])) == 2


@pytest.mark.parametrize(
    ("reference", "expected"),
    [("s3://a/b", True), ("gs://a", True), ("hf://a/b", False), ("a/b://c", False), ("C:/a", False)],
)
def test_is_url(reference: str, expected: bool) -> None:
    assert is_url(reference) is expected


def test_path_of_a_signed_address() -> None:
    assert path_of("https://host/a/b.parquet?sig=x/y.z").name == "b.parquet"
