"""Rows of the Hub as examples, by the texts and columns that a recipe names."""

from collections.abc import Mapping, Sequence
from typing import Any

from kshot.errors import ExampleError
from kshot.examples import Example, example_from_row
from kshot.rows import placed_rows
from suite.recipe import HubSource


def read_hub(source: HubSource, part: str) -> list[Example]:
    """Read `train` or `test`.

    Raises:
        SourceError: The data set cannot be read.
        ExampleError: A row lacks a column that the recipe names.
    """
    split = source.train if part == "train" else source.test
    rows = placed_rows(f"{source.data}:{split}")
    return [hub_example(source, row, f"{part}-{number}") for number, (_, row) in enumerate(rows)]


def hub_example(source: HubSource, row: Mapping[str, Any], name: str) -> Example:
    """Turn a row into an example.

    Args:
        source: What an example is made of.
        row: Of the Hub.
        name: The example's id.

    Raises:
        ExampleError: A column is missing, or the label is none of the values.
    """
    choices = _choices(source, row, name)
    label = _label(source, row, choices, name) if source.label else None
    words = {"options": "\n".join(f"Answer{place}: {text}" for place, text in enumerate(choices, start=1))}
    if label is not None:
        words |= {"letter": chr(ord("A") + label), "number": str(label + 1), "choice": choices[label]}

    def text(template: str | None) -> str | None:
        return None if template is None else _filled(template, row, words, name)

    fields = {
        "id": name,
        "instruction": text(source.instruction),
        "input": text(source.input),
        "output": text(source.output),
        "answer": text(source.answer),
        "question": text(source.question),
        "choices": choices or None,
        "label": label,
    }
    return example_from_row(fields, name)


def _choices(source: HubSource, row: Mapping[str, Any], name: str) -> list[str]:
    if isinstance(source.choices, str):
        return [str(value) for value in _column(row, source.choices, name)]
    return [_filled(choice, row, {}, name) for choice in source.choices]


def _label(source: HubSource, row: Mapping[str, Any], choices: Sequence[str], name: str) -> int:
    said = source.label_values
    values = _column(row, said, name) if isinstance(said, str) else said or range(len(choices))
    given = str(_column(row, source.label or "", name))
    known = [str(value) for value in values]
    if given not in known:
        raise ExampleError(
            f"{name}: expected {source.label} among {', '.join(known)}, got {given!r}: mend label_values"
        )
    return known.index(given)


def _filled(template: str, row: Mapping[str, Any], words: Mapping[str, str], name: str) -> str:
    """Put columns in the place of `{column}`; a list gives a line for each of its values."""
    parts = []
    for number, piece in enumerate(template.replace("}", "{").split("{")):
        value = piece if number % 2 == 0 else words.get(piece)
        if value is None:
            found = _column(row, piece, name)
            value = "\n".join(map(str, found)) if isinstance(found, list) else str(found)
        parts.append(value)
    return "".join(parts)


def _column(row: Mapping[str, Any], path: str, name: str) -> Any:
    value: Any = row
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise ExampleError(f"{name}: expected a column {path!r}, got {', '.join(row)}: mend the recipe")
        value = value[part]
    return value
