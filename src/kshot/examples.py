"""An example of a task, and the row formats it is read from: Alpaca, ShareGPT and chat messages."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from kshot.atomic import write_text
from kshot.errors import ConfigError, ExampleError
from kshot.rows import HUB_SCHEME, expand, placed_rows

__all__ = [
    "HUB_SCHEME",
    "Example",
    "example_from_row",
    "expand",
    "read_examples",
    "write_examples",
]

# Names seen in ShareGPT exports.
_ASSISTANT_ROLES = frozenset({"assistant", "gpt", "chatgpt", "bing", "model"})


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
        return "\n\n".join(part for part in (self.instruction, self.input) if part)

    def to_row(self) -> dict[str, Any]:
        """Return the example as a JSON object without its empty fields."""
        row = {key: value for key, value in asdict(self).items() if value not in (None, "")}
        return row | ({"choices": list(self.choices)} if self.choices else {})


def read_examples(source: str | Path, *, limit: int | None = None) -> list[Example]:
    """Read every example of a file, a glob pattern or a Hub data set.

    Args:
        source: A .jsonl, .json, .parquet or .csv file, an Arrow folder, a pattern (`data/*.parquet`), or
            `hf://owner/name[/config][@revision][:split]` (split `train` by default).
        limit: Stop after so many examples.

    Raises:
        ConfigError: `limit` is below 1.
        SourceError: Nothing is there, or it cannot be opened.
        ExampleError: A row is no example; the message names file, row and reason.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1, got {limit}: leave it out to read everything")
    rows = islice(placed_rows(str(source)), limit)
    examples = [example_from_row(row, place) for place, row in rows]
    if not examples:
        raise ExampleError(f"expected at least one example in {source}, found none")
    return examples


def write_examples(target: Path, examples: Sequence[Example]) -> None:
    """Write examples as JSON lines.

    Raises:
        RunFolderError: `target` cannot be written.
    """
    lines = (json.dumps(example.to_row(), ensure_ascii=False) for example in examples)
    write_text(target, "".join(line + "\n" for line in lines))


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
    turns = _list(row, "messages", location) or _list(row, "conversations", location)
    fields = dict(row) if turns is None else {**row, **_fields_from_turns(turns, location)}
    example = Example(
        instruction=_text(fields, "instruction", location) or "",
        output=_text(fields, "output", location) or "",
        input=_text(fields, "input", location) or "",
        answer=_text(fields, "answer", location),
        choices=_choices(fields, location),
        label=_label(fields, location),
        question=_text(fields, "question", location),
        rationale=_text(fields, "rationale", location),
        id=_text(fields, "id", location) or location,
    )
    _check(example, location)
    return example


def _check(example: Example, location: str) -> None:
    if not example.request.strip():
        raise ExampleError(
            f"{location}: expected an instruction, got none; add the field 'instruction' or 'messages'",
            reason="no_instruction",
        )
    if not example.output.strip():
        raise ExampleError(
            f"{location}: expected an output, got none; every example needs its right response",
            reason="no_output",
        )
    if example.label is not None and not (example.choices and 0 <= example.label < len(example.choices)):
        count = len(example.choices or ())
        raise ExampleError(
            f"{location}: expected label in [0, {count}) for {count} choices, got {example.label}"
        )


def _fields_from_turns(turns: Sequence[Any], location: str) -> dict[str, str]:
    """Read the last answer of a conversation as output, and what was said before it as instruction."""
    texts = [_turn(turn, location) for turn in turns]
    answers = [index for index, (role, _) in enumerate(texts) if role in _ASSISTANT_ROLES]
    if not answers:
        raise ExampleError(
            f"{location}: expected a conversation with an assistant turn, got {len(texts)} turns without"
        )
    last = answers[-1]
    asked = [text if role not in _ASSISTANT_ROLES else f"Assistant: {text}" for role, text in texts[:last]]
    return {"instruction": "\n\n".join(asked), "input": "", "output": texts[last][1]}


def _turn(turn: Any, location: str) -> tuple[str, str]:
    role = turn.get("role", turn.get("from")) if isinstance(turn, Mapping) else None
    text = turn.get("content", turn.get("value")) if isinstance(turn, Mapping) else None
    if not isinstance(role, str) or not isinstance(text, str):
        raise ExampleError(
            f"{location}: expected turns with role and content (or from and value), got {turn!r}"
        )
    return role.lower(), text


def _is_missing(value: object) -> bool:
    """Whether a cell is empty: null, an empty CSV cell, or the NaN of a number column."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _sound(text: str) -> str:
    """Replace half surrogate pairs, which JSON can hold and neither a tokenizer nor a file takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _text(fields: Mapping[str, Any], key: str, location: str) -> str | None:
    value = fields.get(key)
    if _is_missing(value):
        return None
    if isinstance(value, str):
        return _sound(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ExampleError(f"{location}: expected text in '{key}', got {type(value).__name__}")
    return str(value)


def _list(fields: Mapping[str, Any], key: str, location: str) -> list[Any] | None:
    value = fields.get(key)
    if _is_missing(value):
        return None
    if isinstance(value, str):  # a list inside a CSV cell
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            got = fields[key][:60]
            raise ExampleError(f"{location}: expected a JSON list in '{key}', got {got!r}") from error
    if not isinstance(value, list | tuple):
        raise ExampleError(f"{location}: expected a list in '{key}', got {type(value).__name__}")
    return list(value)


def _choices(fields: Mapping[str, Any], location: str) -> tuple[str, ...] | None:
    choices = _list(fields, "choices", location)
    if not choices:
        return None
    if not all(isinstance(choice, str) for choice in choices):
        raise ExampleError(f"{location}: expected a list of texts in 'choices', got {choices!r}")
    return tuple(map(_sound, choices))


def _label(fields: Mapping[str, Any], location: str) -> int | None:
    value: Any = fields.get("label")
    if _is_missing(value):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not number.is_integer():
        raise ExampleError(f"{location}: expected the index of the right choice in 'label', got {value!r}")
    return int(number)
