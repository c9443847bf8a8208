"""Alpaca, ShareGPT and chat rows become examples; what is no example is named with its reason."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest

from kshot.errors import ConfigError, ExampleError, RunFolderError
from kshot.examples import Example, example_from_row, read_examples, write_examples

ALPACA = {
    "instruction": "Which?",
    "input": "a or b",
    "output": "It is b.",
    "answer": "b",
    "choices": ["a", "b"],
    "label": 1,
    "question": "Which one?",
    "rationale": "Because.",
    "id": "q1",
}
SHAREGPT = {
    "conversations": [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Hello"},
        {"from": "human", "value": "2 + 2?"},
        {"from": "gpt", "value": "4"},
        {"from": "human", "value": "thanks"},
    ]
}
MESSAGES = {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}
FORMS = {
    "alpaca": (
        ALPACA,
        Example("Which?", "It is b.", "a or b", "b", ("a", "b"), 1, "Which one?", "Because.", "q1"),
    ),
    "sharegpt": (SHAREGPT, Example("Be brief.\n\nHi\n\nAssistant: Hello\n\n2 + 2?", "4", id="0")),
    "messages": (MESSAGES, Example("2 + 2?", "4", id="0")),
}


def write(path: Path, row: dict[str, Any]) -> Path:
    if path.suffix == ".parquet":
        pa_parquet.write_table(pa.Table.from_pylist([row]), path)
    elif path.suffix == ".csv":
        cells = {key: json.dumps(value) if isinstance(value, list) else value for key, value in row.items()}
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerow(cells)
    else:
        path.write_text(json.dumps([row] if path.suffix == ".json" else row))
    return path


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv"])
def test_every_form_in_every_file_format(tmp_path: Path, form: str, suffix: str) -> None:
    row, expected = FORMS[form]
    row = {"id": "0", **row}
    assert read_examples(write(tmp_path / f"x{suffix}", row)) == [expected]


def test_id_is_the_place_by_default(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", MESSAGES)
    assert read_examples(path)[0].id == f"{path}, line 1"
    assert example_from_row({"instruction": "a", "output": "b", "id": 0}, "x").id == "0"


def test_glob_and_limit(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write(tmp_path / f"{name}.json", {"instruction": name, "output": "x"})
    assert [one.instruction for one in read_examples(f"{tmp_path}/*.json")] == ["a", "b", "c"]
    assert [one.instruction for one in read_examples(f"{tmp_path}/*.json", limit=2)] == ["a", "b"]
    with pytest.raises(ConfigError, match="limit must be at least 1, got 0"):
        read_examples(f"{tmp_path}/*.json", limit=0)


def test_hub_data_set(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", MESSAGES)
    assert [one.output for one in read_examples(f"hf://{tmp_path}")] == ["4"]


def test_missing_labels_of_a_parquet_column(tmp_path: Path) -> None:
    table = pa.table(
        {
            "instruction": ["a", "b", "c"],
            "output": ["x", "y", "z"],
            "choices": [["x", "y"], None, []],
            "label": [1.0, None, float("nan")],
            "answer": [None, "", "z"],
        }
    )
    pa_parquet.write_table(table, tmp_path / "x.parquet")
    found = read_examples(tmp_path / "x.parquet")
    assert [one.label for one in found] == [1, None, None]
    assert [one.choices for one in found] == [("x", "y"), None, None]
    assert [one.gold for one in found] == ["x", "y", "z"]


def test_numbers_become_text() -> None:
    example = example_from_row({"instruction": "a", "output": 7, "answer": 1.5}, "x")
    assert (example.output, example.answer) == ("7", "1.5")


def test_half_surrogate_pairs_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"instruction": "a\\ud83d", "output": "b", "choices": ["\\ud83d"]}')
    example = read_examples(tmp_path / "x.jsonl")[0]
    assert (example.instruction, example.choices) == ("a?", ("?",))


def test_request_and_gold() -> None:
    assert Example("a", "b").request == "a"
    assert Example("a", "b", "c").request == "a\n\nc"
    assert Example("", "b", "c").request == "c"
    assert Example("a", "b").gold == "b"
    assert Example("a", "b", answer="c").gold == "c"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1], "place: expected a JSON object, got list"),
        ({"output": "x"}, "place: expected an instruction, got none"),
        ({"instruction": " ", "output": "x"}, "place: expected an instruction, got none"),
        ({"instruction": "a"}, "place: expected an output, got none"),
        ({"instruction": "a", "output": "\n"}, "place: expected an output, got none"),
        ({"instruction": ["a"], "output": "x"}, "place: expected text in 'instruction', got list"),
        ({"instruction": "a", "output": True}, "place: expected text in 'output', got bool"),
        ({**ALPACA, "label": 2}, r"place: expected label in \[0, 2\) for 2 choices, got 2"),
        ({**ALPACA, "label": -1}, r"place: expected label in \[0, 2\) for 2 choices, got -1"),
        ({**ALPACA, "choices": None}, r"place: expected label in \[0, 0\) for 0 choices, got 1"),
        ({**ALPACA, "label": "B"}, "place: expected the index of the right choice in 'label', got 'B'"),
        ({**ALPACA, "label": 0.5}, "place: expected the index of the right choice in 'label', got 0.5"),
        ({**ALPACA, "label": True}, "place: expected the index of the right choice in 'label', got True"),
        (
            {**ALPACA, "label": float("inf")},
            "place: expected the index of the right choice in 'label', got inf",
        ),
        ({**ALPACA, "choices": "a, b"}, "place: expected a JSON list in 'choices', got 'a, b'"),
        ({**ALPACA, "choices": {"a": 1}}, "place: expected a list in 'choices', got dict"),
        ({**ALPACA, "choices": ["a", 1]}, "place: expected a list of texts in 'choices', got"),
        ({"messages": "hello"}, "place: expected a JSON list in 'messages', got 'hello'"),
        (
            {"messages": ["hello"]},
            r"place: expected turns with role and content \(or from and value\), got 'hello'",
        ),
        ({"messages": [{"role": "user", "content": None}]}, "place: expected turns with role and content"),
        (
            {"messages": [{"role": "user", "content": "a"}]},
            "place: expected a conversation with an assistant turn, got 1 turns without",
        ),
    ],
)
def test_broken_rows_are_named(row: Any, message: str) -> None:
    with pytest.raises(ExampleError, match=message):
        example_from_row(row, "place")


def test_a_broken_line_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"instruction": "a"}\n')
    with pytest.raises(ExampleError, match=r"x.jsonl, line 2: expected an output, got none"):
        read_examples(tmp_path / "x.jsonl")


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("\n")
    with pytest.raises(ExampleError, match=r"expected at least one example in .*x.jsonl, found none"):
        read_examples(tmp_path / "x.jsonl")


def test_roundtrip(tmp_path: Path) -> None:
    examples = [FORMS[form][1] for form in FORMS] + [
        Example("größe\n\u2028", "ja", label=0, choices=("ja",), id="é")
    ]
    write_examples(tmp_path / "x.jsonl", examples)
    assert read_examples(tmp_path / "x.jsonl") == examples
    with pytest.raises(RunFolderError, match="cannot write"):
        write_examples(tmp_path / "x.jsonl" / "y.jsonl", examples)
