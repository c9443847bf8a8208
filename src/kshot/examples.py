"""An example of a task, and reading examples from files and Hub data sets."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from kshot.errors import ExampleError, SourceError

HUB_SCHEME = "hf://"
FILE_KINDS = (".jsonl", ".json", ".parquet", ".csv")
_ASSISTANT_ROLES = frozenset(
    {"assistant", "gpt", "chatgpt", "bing", "model"}
)  # names seen in ShareGPT exports


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled example.

    Attributes:
        instruction: What is asked.
        output: The response that is right.
        input: What the instruction is about; may be empty.
        answer: What scorers compare; `output` where it is absent.
        choices: Choice texts of a multiple-choice question.
        label: Index of the right choice.
        question: The bare question, options not listed.
        rationale: Why the answer is right.
        id: A name unique within its file.
    """

    instruction: str
    output: str
    input: str = ""
    answer: str | None = None
    choices: tuple[str, ...] | None = None
    label: int | None = None
    question: str | None = None
    rationale: str | None = None
    id: str = ""

    @property
    def gold(self) -> str:
        """What a prediction is compared with."""
        return self.output if self.answer is None else self.answer

    @property
    def request(self) -> str:
        """Instruction and input as one text."""
        return f"{self.instruction}\n\n{self.input}" if self.input else self.instruction

    def to_row(self) -> dict[str, Any]:
        """Return the example as a JSON object without its empty fields."""
        row = {key: value for key, value in asdict(self).items() if value not in (None, "")}
        return row | ({"choices": list(self.choices)} if self.choices else {})


def read_examples(source: str | Path, *, limit: int | None = None) -> list[Example]:
    """Read every example of a file, a glob pattern or a Hub data set.

    Args:
        source: A .jsonl, .json, .parquet or .csv file, a pattern such as `data/*.parquet`, or
            `hf://owner/name[:split]` (split `train` by default).
        limit: Stop after so many examples.

    Raises:
        SourceError: Nothing is there, or it cannot be opened.
        ExampleError: A row is no example; the message names file, row and reason.
    """
    examples: list[Example] = []
    for location, row in _rows(str(source)):
        examples.append(example_from_row(row, location))
        if limit is not None and len(examples) == limit:
            break
    if not examples:
        raise ExampleError(f"expected at least one example in {source}, found none")
    return examples


def write_examples(target: Path, examples: Sequence[Example]) -> None:
    """Write examples as JSON lines."""
    lines = (json.dumps(example.to_row(), ensure_ascii=False) for example in examples)
    target.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def example_from_row(row: Mapping[str, Any], location: str) -> Example:
    """Turn an Alpaca row, a ShareGPT `conversations` row or a chat `messages` row into an example.

    Args:
        row: The raw row; fields that an example does not have are ignored.
        location: Where the row stands, for the error message and as the default id.

    Raises:
        ExampleError: The row has neither form, or a field has the wrong type.
    """
    if not isinstance(row, Mapping):
        raise ExampleError(f"{location}: expected a JSON object, got {type(row).__name__}")
    turns = row.get("messages") if row.get("messages") is not None else row.get("conversations")
    fields = dict(row) if turns is None else {**row, **_fields_from_turns(turns, location)}
    example = Example(
        instruction=_text(fields, "instruction", location),
        output=_text(fields, "output", location),
        input=_text(fields, "input", location),
        answer=_optional_text(fields, "answer", location),
        choices=_choices(fields, location),
        label=_label(fields, location),
        question=_optional_text(fields, "question", location),
        rationale=_optional_text(fields, "rationale", location),
        id=str(fields.get("id") or location),
    )
    if not example.request.strip():
        raise ExampleError(
            f"{location}: expected an instruction, got none; add the field 'instruction' or 'messages'"
        )
    if not example.output.strip():
        raise ExampleError(
            f"{location}: expected an output, got none; every example needs its right response"
        )
    if example.label is not None and not (example.choices and 0 <= example.label < len(example.choices)):
        count = len(example.choices or ())
        raise ExampleError(
            f"{location}: expected label in [0, {count}) for {count} choices, got {example.label}"
        )
    return example


def _fields_from_turns(turns: Any, location: str) -> dict[str, str]:
    """Read the last answer of a conversation as output, and what was said before it as instruction."""
    texts: list[tuple[str, str]] = []
    for turn in turns if isinstance(turns, Sequence) and not isinstance(turns, str) else [None]:
        role = turn.get("role", turn.get("from")) if isinstance(turn, Mapping) else None
        text = turn.get("content", turn.get("value")) if isinstance(turn, Mapping) else None
        if not isinstance(role, str) or not isinstance(text, str):
            raise ExampleError(
                f"{location}: expected turns with role and content (or from and value), got {turn!r}"
            )
        texts.append((role.lower(), text))
    answers = [index for index, (role, _) in enumerate(texts) if role in _ASSISTANT_ROLES]
    if not answers:
        raise ExampleError(
            f"{location}: expected a conversation with an assistant turn, got {len(texts)} turns without"
        )
    last = answers[-1]
    asked = [text if role not in _ASSISTANT_ROLES else f"Assistant: {text}" for role, text in texts[:last]]
    return {"instruction": "\n\n".join(asked), "input": "", "output": texts[last][1]}


def _text(fields: Mapping[str, Any], key: str, location: str) -> str:
    return _optional_text(fields, key, location) or ""


def _optional_text(fields: Mapping[str, Any], key: str, location: str) -> str | None:
    value = fields.get(key)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ExampleError(f"{location}: expected text in '{key}', got {type(value).__name__}")
    return str(value)


def _choices(fields: Mapping[str, Any], location: str) -> tuple[str, ...] | None:
    value = fields.get("choices")
    if value is None or (isinstance(value, str) and not value):
        return None
    if isinstance(value, str):  # a list inside a CSV cell
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ExampleError(
                f"{location}: expected a JSON list in 'choices', got {value[:60]!r}"
            ) from error
    if not isinstance(value, Sequence) or not all(isinstance(choice, str) for choice in value):
        raise ExampleError(f"{location}: expected a list of texts in 'choices', got {value!r}")
    return tuple(value) or None


def _label(fields: Mapping[str, Any], location: str) -> int | None:
    value = fields.get("label")
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if isinstance(value, bool) or number != int(number if number == number else 0):
        raise ExampleError(f"{location}: expected the index of the right choice in 'label', got {value!r}")
    return int(number)


def _rows(source: str) -> Iterator[tuple[str, Any]]:
    if source.startswith(HUB_SCHEME):
        yield from _hub_rows(source)
        return
    for path in expand(source):
        reader = {".jsonl": _jsonl_rows, ".json": _json_rows, ".parquet": _arrow_rows, ".csv": _arrow_rows}[
            path.suffix
        ]
        yield from reader(path)


def expand(source: str) -> list[Path]:
    """Return the files that a path or pattern names, in sorted order.

    Raises:
        SourceError: No file is there, or its kind is not known.
    """
    path = Path(source).expanduser()
    pattern = any(letter in source for letter in "*?[")
    found = sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor)))) if pattern else [path]
    if not found or not all(one.is_file() for one in found):
        raise SourceError(f"expected a file at {source}, found none; paths are relative to the task file")
    for one in found:
        if one.suffix not in FILE_KINDS:
            raise SourceError(f"expected {', '.join(FILE_KINDS)}, got {one}; convert it first")
    return found


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            location = f"{path}, line {number}"
            try:
                yield location, json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise ExampleError(
                    f"{location}: expected UTF-8, got {error.reason} at byte {error.start}"
                ) from error
            except json.JSONDecodeError as error:
                raise ExampleError(
                    f"{location}: expected a JSON object, got {error.msg} at column {error.colno}"
                ) from error


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ExampleError(f"{path}: expected a JSON list of objects, got {error}") from error
    if not isinstance(rows, list):
        raise ExampleError(f"{path}: expected a JSON list of objects, got {type(rows).__name__}")
    yield from ((f"{path}, item {number}", row) for number, row in enumerate(rows, start=1))


def _arrow_rows(path: Path) -> Iterator[tuple[str, Any]]:
    number = 0
    try:
        for batch in _arrow_batches(path):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
    except (pa.ArrowInvalid, OSError) as error:
        raise ExampleError(f"{path}, after row {number}: expected a readable table, got {error}") from error


def _arrow_batches(path: Path) -> Iterator[pa.RecordBatch]:
    if path.suffix == ".csv":
        options = pa_csv.ParseOptions(newlines_in_values=True)
        yield from pa_csv.open_csv(path, parse_options=options)
    else:
        with pa_parquet.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=1024)


def _hub_rows(source: str) -> Iterator[tuple[str, Any]]:
    from datasets import load_dataset

    name, _, split = source.removeprefix(HUB_SCHEME).partition(":")
    try:
        rows = load_dataset(name, split=split or "train", streaming=True)
    except Exception as error:  # the library raises its own, the Hub's and the network's kinds
        raise SourceError(
            f"cannot open the Hub data set {name!r}: {error}; check the name and the network"
        ) from error
    yield from ((f"{source}, row {number}", row) for number, row in enumerate(rows, start=1))
