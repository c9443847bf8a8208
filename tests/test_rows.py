"""Raw rows come with their place, and a broken one is named by file, line and reason."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest

from kshot.errors import ExampleError, SourceError
from kshot.rows import expand, placed_rows

ROWS = [{"instruction": "a,\n“b”", "output": "007"}, {"instruction": "c", "output": "true"}]


def write(path: Path) -> Path:
    """Write ROWS in the format of the suffix."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif path.suffix == ".json":
        path.write_text(json.dumps(ROWS))
    elif path.suffix == ".parquet":
        pa_parquet.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["instruction", "output"])
            writer.writeheader()
            writer.writerows(ROWS)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv", ".JSONL"])
def test_roundtrip_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"x{suffix.lower()}").rename(tmp_path / f"y{suffix}")
    assert [row for _, row in placed_rows(str(path))] == ROWS


def test_places(tmp_path: Path) -> None:
    def places(name: str) -> list[str]:
        return [place.rpartition(", ")[2] for place, _ in placed_rows(str(write(tmp_path / name)))]

    assert places("x.jsonl") == ["line 1", "line 2"]
    assert places("x.json") == ["item 1", "item 2"]
    assert places("x.parquet") == ["row 1", "row 2"]
    assert places("x.csv") == ["line 2", "line 4"]  # the first row has two lines


def test_blank_lines_and_byte_order_marks(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n  \n{"a": 2}\n')
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf[{"a": 1}]')
    (tmp_path / "x.csv").write_bytes(b"\xef\xbb\xbfa\n1\n")
    found = list(placed_rows(str(tmp_path / "x.jsonl")))
    assert found == [(f"{tmp_path}/x.jsonl, line 1", {"a": 1}), (f"{tmp_path}/x.jsonl, line 4", {"a": 2})]
    assert [row for _, row in placed_rows(str(tmp_path / "x.json"))] == [{"a": 1}]
    assert [row for _, row in placed_rows(str(tmp_path / "x.csv"))] == [{"a": "1"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "x.jsonl",
            b'{"a": 1}\n{"a": \n',
            "x.jsonl, line 2: expected a JSON object, got Expecting value at column 6",
        ),
        (
            "x.jsonl",
            b'{"a": 1}\n{"a": "\xff"}\n',
            "x.jsonl, line 2: expected UTF-8, got invalid start byte at byte 7",
        ),
        ("x.json", b'[{"a": 1}', "x.json: expected a JSON list of objects, got Expecting"),
        ("x.json", b'["\xff"]', "x.json: expected a JSON list of objects, got 'utf-8' codec"),
        ("x.json", b'{"a": 1}', "x.json: expected a JSON list of objects, got dict"),
        ("x.csv", b"a,b\n1,2\n1,2,3\n", "x.csv, line 3: expected 2 cells, got 3; quote"),
        ("x.csv", b'a,b\n1,2\n"1,2\n', "x.csv, after line 2: expected CSV in UTF-8, got unexpected end"),
        ("x.csv", b"a,b\n1,\xff\n", "x.csv, after line 1: expected CSV in UTF-8, got 'utf-8' codec"),
        ("x.parquet", b"PAR1 no PAR1", "x.parquet, after row 0: expected a readable table, got "),
    ],
)
def test_broken_lines_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ExampleError, match=message):
        list(placed_rows(str(tmp_path / name)))


def test_invalid_utf8_in_parquet(tmp_path: Path) -> None:
    column = pa.array([b"ok", b"\xff"]).view(pa.string())
    pa_parquet.write_table(pa.table({"a": column}), tmp_path / "x.parquet")
    with pytest.raises(
        ExampleError, match=r"x.parquet, after row 0: expected a readable table, got 'utf-8' codec"
    ):
        list(placed_rows(str(tmp_path / "x.parquet")))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").symlink_to("/proc/self/mem")  # opens, and fails at the first read
    with pytest.raises(SourceError, match=r"cannot read .*x.jsonl: Input/output error; check the file"):
        list(placed_rows(str(tmp_path / "x.jsonl")))


def test_expand(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "a.txt", "odd[1].csv"):
        (tmp_path / name).write_text("a\n1\n")
    (tmp_path / "folder.csv").mkdir()
    assert [path.name for path in expand(f"{tmp_path}/?.csv")] == ["a.csv", "b.csv"]
    assert [path.name for path in expand(f"{tmp_path}/*/../*.csv")] == ["a.csv", "b.csv", "odd[1].csv"]
    assert [path.name for path in expand(f"{tmp_path}/odd[1].csv")] == ["odd[1].csv"]
    with pytest.raises(SourceError, match=r"expected a file at .*none.csv, found none"):
        expand(f"{tmp_path}/none.csv")
    with pytest.raises(SourceError, match=r"expected a file at .*z\*.csv, found none"):
        expand(f"{tmp_path}/z*.csv")
    with pytest.raises(SourceError, match=r"expected .jsonl, .json, .parquet, .csv, got .*a.txt; convert"):
        expand(f"{tmp_path}/a.txt")


def test_relative_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("x.json"))
    assert expand("*.json") == [Path("x.json")]
    assert expand("x.json") == [Path("x.json")]


def test_hub_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "train.jsonl")
    (tmp_path / "test.jsonl").write_text(json.dumps(ROWS[1]))
    source = f"hf://{tmp_path}"  # the library takes a folder where it takes a Hub id
    assert [row for _, row in placed_rows(source)] == ROWS
    assert list(placed_rows(f"{source}:test")) == [(f"{source}:test, row 1", ROWS[1])]
    with pytest.raises(SourceError, match=r"cannot read the Hub data set .*: .*split"):
        list(placed_rows(f"{source}:validation"))


def test_hub_out_of_reach() -> None:
    with pytest.raises(
        SourceError, match=r"cannot read the Hub data set 'kshot-tests/none': .*check the name"
    ):
        list(placed_rows("hf://kshot-tests/none"))
