"""Reading sources into shards: once, whole, with a count for everything that was left out."""

import json
from pathlib import Path

import pytest

from kshot.corpus.pool_source import SourceFile
from kshot.corpus.row_reading import store_rows
from kshot.corpus.row_store import StoredRows
from kshot.errors import SourceError

TEXTS = [f"text {number}" for number in range(25)]


def _instructions(stored: StoredRows) -> list[str]:
    return [row.instruction for shard in range(len(stored.shard_rows)) for row in stored.examples(shard)]


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_rows_in_order_in_shards(write_rows) -> None:
    stored = store_rows(SourceFile(str(write_rows("a.jsonl", TEXTS))), shard_rows=10)
    assert stored.shard_rows == (10, 10, 5)
    assert len(stored) == 25
    assert _instructions(stored) == TEXTS
    assert stored.example(2, 4).id == "a, line 25"
    assert stored.skipped == ()


def test_an_unchanged_file_is_not_read_again(write_rows) -> None:
    path = write_rows("a.jsonl", TEXTS)
    folder = store_rows(SourceFile(str(path))).folder
    before = {one: one.stat().st_mtime_ns for one in folder.iterdir()}
    moved = path.rename(path.with_name("b.jsonl"))
    again = store_rows(SourceFile(str(moved)))
    assert (again.folder, again.name) == (folder, "b")
    assert {one: one.stat().st_mtime_ns for one in folder.iterdir()} == before


@pytest.mark.parametrize("whole_shards", [0, 1, 2, 3])
def test_invariant_a_killed_reading_ends_with_the_same_bytes(write_rows, whole_shards: int) -> None:
    rows = [TEXTS[0], {"output": "x"}, *TEXTS, {"instruction": "y"}]
    source = SourceFile(str(write_rows("a.jsonl", rows)))
    folder = store_rows(source, shard_rows=10).folder
    wanted = _files(folder)
    (folder / "source.json").unlink()
    for shard in range(whole_shards, 3):
        (folder / f"rows-{shard:05d}.arrow").unlink()
    kept = {one.name: one.stat().st_mtime_ns for one in folder.iterdir()}
    stored = store_rows(source, shard_rows=10)
    assert _files(folder) == wanted
    assert all((folder / name).stat().st_mtime_ns == time for name, time in kept.items())
    assert {one.reason: one.count for one in stored.skipped} == {
        "exact_duplicate": 1,
        "no_instruction": 1,
        "no_output": 1,
    }


def test_every_skipped_row_is_counted_with_the_first_one(tmp_path: Path) -> None:
    good = json.dumps({"instruction": "a", "output": "b"}).encode()
    bad = [
        b"\xff\xfe",
        b"{",
        b"[]",
        b'{"instruction": " ", "output": "x"}',
        b'{"instruction": "x"}',
        b'{"instruction": "x", "output": ["y"]}',
        b'{"instruction": "x", "output": "' + b"y" * 10_000_000 + b'"}',
        b'{"text": "another schema"}',
        b'{"instruction": "A", "output": "B."}',
        good.replace(b"a", b"c"),
        b"{",
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([good, *bad]))
    stored = store_rows(SourceFile(str(tmp_path / "a.jsonl")))
    assert [row.output for row in stored.examples(0)] == ["b", "b"]
    counts = {one.reason: (one.count, one.first.partition(":")[0]) for one in stored.skipped}
    assert counts == {
        "invalid_utf8": (1, "line 2"),
        "broken": (2, "line 3"),
        "no_example": (2, "line 4"),
        "no_instruction": (2, "line 5"),
        "no_output": (1, "line 6"),
        "too_long": (1, "line 8"),
        "exact_duplicate": (1, "line 10"),
    }


def test_rows_before_the_damage_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"instruction": "a", "output": "b"}, {"instruction": ')
    stored = store_rows(SourceFile(str(tmp_path / "a.json")))
    assert _instructions(stored) == ["a"]
    (skipped,) = stored.skipped
    assert (skipped.reason, skipped.count) == ("unreadable", 1)
    assert "expected a JSON list of objects, got Expecting value in item 2" in skipped.first


@pytest.mark.parametrize("limit", [1, 10, 12, 99])
def test_the_limit_counts_usable_rows(write_rows, limit: int) -> None:
    source = SourceFile(str(write_rows("a.jsonl", [{"output": "x"}, *TEXTS])), limit=limit)
    folder = store_rows(source, shard_rows=5).folder
    wanted = _files(folder)
    assert _instructions(StoredRows("a", folder)) == TEXTS[:limit]
    (folder / "source.json").unlink()
    store_rows(source, shard_rows=5)
    assert _files(folder) == wanted


def test_long_rows_make_short_shards(write_rows) -> None:
    rows = [{"instruction": f"{number}" * 50, "output": "x"} for number in range(10, 17)]
    stored = store_rows(SourceFile(str(write_rows("a.jsonl", rows))), shard_characters=300)
    assert stored.shard_rows == (3, 3, 1)


def test_a_file_that_changes_while_it_is_read(write_rows, tmp_path: Path) -> None:
    path = write_rows("a.jsonl", TEXTS)

    class Growing(SourceFile):
        def rows(self, hub):  # type: ignore[no-untyped-def]
            for place, row in super().rows(hub):
                write_rows("a.jsonl", [*TEXTS, "more"])
                yield place, row

    with pytest.raises(SourceError, match=r"a\.jsonl changed while it was read; run the same command again"):
        store_rows(Growing(str(path)))


def test_a_hub_data_set_is_streamed_and_stays(tmp_path: Path, kshot_home: Path) -> None:
    (tmp_path / "set").mkdir()
    rows = "".join(json.dumps({"instruction": text, "output": "x"}) + "\n" for text in TEXTS)
    (tmp_path / "set" / "train.jsonl").write_text(rows)
    source = SourceFile(f"hf://{tmp_path}/set", limit=7)
    stored = store_rows(source)
    assert _instructions(stored) == TEXTS[:7]
    assert (stored.folder / "revision.json").is_file()
    (tmp_path / "set" / "train.jsonl").unlink()
    assert _instructions(store_rows(source)) == TEXTS[:7]


def test_a_hub_data_set_out_of_reach_leaves_nothing(kshot_home: Path) -> None:
    with pytest.raises(SourceError, match="cannot read the Hub data set 'kshot-tests/none'"):
        store_rows(SourceFile("hf://kshot-tests/none"))
    assert not list(kshot_home.rglob("source.json"))
