"""Raw rows come with their place, and a broken one is named by file, line and reason."""

import csv
import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
from datasets import Dataset, DatasetDict

from kshot.errors import ExampleError, SourceError
from kshot.rows import HubDataset, expand, file_rows, placed_rows
from kshot.rows.text_files import MAX_LINE_BYTES

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
        (
            "x.jsonl",
            b'{"a": "b\n',
            "x.jsonl, line 1: expected a JSON object, got Unterminated string starting at column 7",
        ),
        (
            "x.jsonl",
            b'{"a": "b\tc"}\n',
            "x.jsonl, line 1: expected a JSON object, got Invalid control character at column 9",
        ),
        (
            "x.json",
            b'[{"a": "b\tc"}]',
            "x.json: expected a JSON list of objects, got Invalid control character in item 1",
        ),
        ("x.json", b'[{"a": 1}', "x.json: expected a JSON list of objects, got no ',' after item 1"),
        ("x.json", b'[{"a": 1', "x.json: expected a JSON list of objects, got Expecting .* in item 1"),
        ("x.json", b'[{"a": 1}] {', "x.json: expected a JSON list of objects, got '{' after its end"),
        ("x.json", b"", "x.json: expected a JSON list of objects, got an empty file"),
        ("x.json", b'["\xff"]', "x.json, item 1: expected UTF-8, got other bytes"),
        ("x.json", b'{"a": 1}', "x.json: expected a JSON list of objects, got '{' at its start"),
        ("x.csv", b"a,b\n1,2\n1,2,3\n", "x.csv, line 3: expected 2 cells, got 3; quote"),
        ("x.csv", b'a,b\n1,2\n"1,2\n', "x.csv, line 3: expected CSV, got unexpected end"),
        ("x.csv", b"a,b\n1,\xff\n", "x.csv, line 2: expected UTF-8, got other bytes"),
        ("x.parquet", b"PAR1 no PAR1", "x.parquet: expected a readable table, got "),
    ],
)
def test_broken_lines_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ExampleError, match=message):
        list(placed_rows(str(tmp_path / name)))


def test_invalid_utf8_in_parquet(tmp_path: Path) -> None:
    column = pa.array([b"ok", b"\xff"]).view(pa.string())
    pa_parquet.write_table(pa.table({"a": column}), tmp_path / "x.parquet")
    with pytest.raises(ExampleError, match=r"x.parquet, row 2: expected UTF-8, got invalid start byte"):
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


def kinds(path: Path) -> list[object]:
    """The rows of a file, with the reason in place of each broken one."""
    return [row.reason if isinstance(row, ExampleError) else row for _, row in file_rows(path)]


def test_a_broken_row_spoils_no_other(tmp_path: Path) -> None:
    digits = b"9" * 5_000  # more than Python turns into a number
    (tmp_path / "x.jsonl").write_bytes(
        b'{"a": 1}\n{"a"\n"\xff"\n' + digits + b"\n" + b"[" * 99_999 + b"\n[2]\n"
    )
    assert kinds(tmp_path / "x.jsonl") == [{"a": 1}, "broken", "invalid_utf8", "broken", "broken", [2]]
    (tmp_path / "x.json").write_bytes(b'[{"a": "\xff"}, {"a": "\\ud83d"}]')
    assert kinds(tmp_path / "x.json") == ["invalid_utf8", {"a": "\ud83d"}]
    (tmp_path / "x.csv").write_bytes(b'a,b\n1,\xff\n1,2,3\n"a"b,2\n1,2\n')
    assert kinds(tmp_path / "x.csv") == ["invalid_utf8", "broken", "broken", {"a": "1", "b": "2"}]
    column = pa.array([b"ok", b"\xff", b"ok"]).view(pa.string())
    pa_parquet.write_table(pa.table({"a": column}), tmp_path / "x.parquet")
    assert kinds(tmp_path / "x.parquet") == [{"a": "ok"}, "invalid_utf8", {"a": "ok"}]


def test_a_line_without_end_is_not_read_into_memory(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b"1" * (MAX_LINE_BYTES * 8 + 9) + b'\n{"a": 1}\n')
    tracemalloc.start()
    try:
        assert kinds(tmp_path / "x.jsonl") == ["too_long", {"a": 1}]
        assert tracemalloc.get_traced_memory()[1] < 5 * MAX_LINE_BYTES
    finally:
        tracemalloc.stop()


def test_a_long_csv_cell(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a\n" + "b" * 200_000 + "\n")
    assert kinds(tmp_path / "x.csv") == [{"a": "b" * 200_000}]


def test_a_csv_header_that_is_broken(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('"a"b,c\n1,2\n')
    with pytest.raises(ExampleError, match=r"x\.csv: expected a header of column names, got"):
        kinds(tmp_path / "x.csv")


@pytest.mark.parametrize("items", [0, 1, 30_000])
def test_against_json_loads(tmp_path: Path, items: int) -> None:
    """The longest list takes several windows."""
    rows = [{"a": "ü,]" * 30, "b": [number, None, {"c": 1.5}]} for number in range(items)]
    (tmp_path / "x.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1))
    assert [row for _, row in file_rows(tmp_path / "x.json")] == json.loads((tmp_path / "x.json").read_text())


def test_numbers_at_the_end_of_a_window_stay_whole(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[" + " " * (2**20 - 3) + "12345, 6]")
    assert [row for _, row in file_rows(tmp_path / "x.json")] == [12345, 6]


def test_a_damaged_row_group_spoils_no_other(tmp_path: Path) -> None:
    table = pa.table({"a": [f"{number}" * 20 for number in range(6_000)]})
    pa_parquet.write_table(table, tmp_path / "x.parquet", row_group_size=2_000, use_dictionary=False)
    group = pa_parquet.ParquetFile(tmp_path / "x.parquet").metadata.row_group(1).column(0)
    data = bytearray((tmp_path / "x.parquet").read_bytes())
    start = group.data_page_offset + group.total_compressed_size // 2
    data[start : start + 400] = bytes(400)
    (tmp_path / "x.parquet").write_bytes(data)
    places, rows = zip(*file_rows(tmp_path / "x.parquet"), strict=True)
    assert [row for row in rows if isinstance(row, dict)] == [
        *table.to_pylist()[:2_000],
        *table.to_pylist()[4_000:],
    ]
    assert (rows[2_000].reason, places[2_000], places[2_001]) == ("unreadable", "row 2001", "row 4001")
    with pytest.raises(ExampleError, match=r"x\.parquet, row 2001: expected a readable .*cannot be read"):
        list(placed_rows(str(tmp_path / "x.parquet")))


def test_arrow_folder(tmp_path: Path) -> None:
    data = Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "x")
    DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "two")
    assert [place for place, _ in placed_rows(f"{tmp_path}/x")] == [
        f"{tmp_path}/x, row 1", f"{tmp_path}/x, row 2"
    ]  # fmt: skip
    assert [row for _, row in placed_rows(f"{tmp_path}/two/test")] == ROWS
    assert [path.name for path in expand(f"{tmp_path}/?")] == ["x"]
    with pytest.raises(SourceError, match=r"got the splits test, train: name one, such as .*two/test"):
        expand(f"{tmp_path}/two")
    next((tmp_path / "x").glob("*.arrow")).write_bytes(b"no arrow")
    with pytest.raises(ExampleError, match=r"x: expected a readable table, got"):
        list(placed_rows(f"{tmp_path}/x"))


def test_hub_references() -> None:
    assert HubDataset.parse("hf://a/b") == HubDataset("a/b")
    assert HubDataset.parse("hf://squad:test") == HubDataset("squad", split="test")
    assert HubDataset.parse("hf://a/b/main@refs/pr/1:test[:5]") == HubDataset(
        "a/b", "main", "refs/pr/1", "test[:5]"
    )
    with pytest.raises(SourceError, match=r"expected hf://owner/name\[/config\]"):
        HubDataset.parse("hf://a/b/c/d")


def test_pinning_a_hub_data_set_out_of_reach() -> None:
    with pytest.raises(SourceError, match=r"cannot read the Hub data set 'kshot-tests/none'"):
        HubDataset("kshot-tests/none").pinned()
