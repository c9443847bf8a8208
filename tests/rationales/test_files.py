"""Rows in, rows out, nothing lost on the way."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest

from kshot.errors import ConfigError, ExampleError, RunFolderError, SourceError
from kshot.examples import read_examples
from kshot.rationales import Sampling, write_rationales
from kshot.rationales.files import check_out, provenance_file, read_rows, write_provenance, write_rows

from .conftest import Scripted

ROWS = [
    {"id": "a", "instruction": "Which?", "output": "red", "rationale": "Mine.", "source": {"page": 3}},
    {"instruction": "Which, größer?", "output": "red", "level": 2, "rationale": None},
    {
        "messages": [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "red"}],
        "tags": ["x"],
    },
    {"id": "d", "instruction": "Which? blue", "output": "blue"},
]


def _say(prompt: str, sampling: Sampling) -> str:
    return "Answer: red\nIt glows 🙂." if not sampling.temperature else "Answer: red"


def _jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_fields_outlast_the_trip(tmp_path: Path) -> None:
    source = read_rows(str(_jsonl(tmp_path / "in.jsonl", ROWS)))
    result = write_rationales(source.examples, Scripted(_say), seed=1)
    write_rows(tmp_path / "out.jsonl", source, result)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    new = {"rationale": "It glows 🙂."}
    assert rows == [ROWS[0], ROWS[1] | new, ROWS[2] | new, ROWS[3]]
    read = read_examples(tmp_path / "out.jsonl")
    assert [one.rationale for one in read] == [one.rationale for one in result.examples]


def test_parquet_and_csv(tmp_path: Path) -> None:
    table = pa.table(
        {"instruction": ["Which?"], "output": ["red"], "score": [float("nan")], "choices": [["red", "b"]]}
    )
    pa_parquet.write_table(table, tmp_path / "in.parquet")
    (tmp_path / "in.csv").write_text('instruction,output,choices\nWhich?,red,"[""red"", ""b""]"\n')
    for name in ("in.parquet", "in.csv"):
        source = read_rows(str(tmp_path / name))
        write_rows(tmp_path / "out.jsonl", source, write_rationales(source.examples, Scripted(_say)))
        assert "NaN" not in (tmp_path / "out.jsonl").read_text()
        (read,) = read_examples(tmp_path / "out.jsonl")
        assert (read.rationale, read.choices) == ("It glows 🙂.", ("red", "b"))


def test_half_a_surrogate_pair(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(
        '{"instruction": "Which \\ud83d?", "output": "red", "note": "\\udc00"}\n'
    )
    source = read_rows(str(tmp_path / "in.jsonl"))
    write_rows(tmp_path / "out.jsonl", source, write_rationales(source.examples, Scripted(_say)))
    assert read_examples(tmp_path / "out.jsonl")[0].instruction == "Which ??"


def test_provenance(tmp_path: Path) -> None:
    source = read_rows(str(_jsonl(tmp_path / "in.jsonl", ROWS)))
    result = write_rationales(source.examples, Scripted(_say), attempts=2, seed=4)
    write_provenance(tmp_path / "out.jsonl", result, {"writer": {"model": "m"}})
    assert provenance_file(tmp_path / "out.jsonl") == tmp_path / "out.jsonl.provenance.json"
    found = json.loads(provenance_file(tmp_path / "out.jsonl").read_text())
    counts = ("rows_in_all", "with_rationale_before", "accepted", "rejected", "reasons", "writer")
    wrong = "another answer than the right one"
    assert [found[key] for key in counts] == [
        4,
        1,
        2,
        1,
        {"no rationale beside the answer": 1},
        {"model": "m"},
    ]
    assert found["rows"][0]["accepted"] is True
    assert [row["index"] for row in found["rows"]] == [1, 2, 3]
    assert found["rows"][2] == {
        "index": 3,
        "id": "d",
        "accepted": False,
        "reason": "no rationale beside the answer",
        "attempts": [
            {"temperature": 0.0, "seed": 0, "stated": "red", "reason": wrong, "settings_refused": []},
            {
                "temperature": 0.7,
                "seed": 4,
                "stated": "red",
                "reason": "no rationale beside the answer",
                "settings_refused": [],
            },
        ],
        "tokens_in": 20,
        "tokens_out": 10,
    }


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "old.jsonl").write_text("kept")
    with pytest.raises(ConfigError, match=r"expected a new file, got .*old.jsonl, which exists; add --force"):
        check_out(tmp_path / "old.jsonl", force=False)
    check_out(tmp_path / "old.jsonl", force=True)
    check_out(tmp_path / "new" / "folder" / "out.jsonl", force=False)
    assert not (tmp_path / "new").exists()
    with pytest.raises(ConfigError, match=r"expected a .jsonl file to write, got .*out.csv"):
        check_out(tmp_path / "out.csv", force=False)
    with pytest.raises(RunFolderError, match=r"old.jsonl is a file; choose a folder"):
        check_out(tmp_path / "old.jsonl" / "out.jsonl", force=False)
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(RunFolderError, match=r"folder.jsonl: it is a folder"):
        check_out(tmp_path / "folder.jsonl", force=True)


def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(RunFolderError, match=r"cannot write .*out.jsonl: no permission"):
        check_out(tmp_path / "out.jsonl", force=False)


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="expected a file at"):
        read_rows(str(tmp_path / "none.jsonl"))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ExampleError, match=r"expected at least one example in .*empty.jsonl, found none"):
        read_rows(str(tmp_path / "empty.jsonl"))
    (tmp_path / "list.jsonl").write_text("[1]\n")
    with pytest.raises(ExampleError, match="expected a JSON object, got list"):
        read_rows(str(tmp_path / "list.jsonl"))
