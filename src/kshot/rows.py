"""Raw rows of files, patterns and Hub data sets, each with the place where it stands."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pa_parquet  # type: ignore[import-untyped]
from datasets import load_dataset

from kshot.errors import ExampleError, SourceError, reason_of

HUB_SCHEME = "hf://"
PlacedRow = tuple[str, Any]


def placed_rows(source: str) -> Iterator[PlacedRow]:
    """Yield each row of a file, pattern or Hub data set, after the place that error messages give it.

    Raises:
        SourceError: Nothing is there, or it cannot be opened or read.
        ExampleError: A part cannot be parsed; the message names file, line and reason.
    """
    if source.startswith(HUB_SCHEME):
        yield from _hub_rows(source)
        return
    for path in expand(source):
        try:
            yield from _READERS[path.suffix.lower()](path)
        except OSError as error:
            raise SourceError(
                f"cannot read {path}: {error.strerror or error}; check the file and its permissions"
            ) from error


def expand(source: str) -> list[Path]:
    """Return the files that a path or pattern names, in sorted order.

    Raises:
        SourceError: No file is there, or its kind is not known.
    """
    path = Path(source).expanduser()
    found = [path] if path.is_file() else _matching(path)
    if not found:
        raise SourceError(f"expected a file at {source}, found none; paths are relative to the task file")
    for one in found:
        if one.suffix.lower() not in _READERS:
            raise SourceError(f"expected {', '.join(_READERS)}, got {one}; convert it first")
    return found


def _matching(pattern: Path) -> list[Path]:
    if not any(letter in str(pattern) for letter in "*?["):
        return []
    relative = pattern.relative_to(pattern.anchor)
    return sorted(path for path in Path(pattern.anchor or ".").glob(str(relative)) if path.is_file())


def _jsonl_rows(path: Path) -> Iterator[PlacedRow]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            try:
                yield place, json.loads(line.rstrip().decode("utf-8-sig"))
            except UnicodeDecodeError as error:
                raise ExampleError(
                    f"{place}: expected UTF-8, got {error.reason} at byte {error.start}; save it as UTF-8"
                ) from error
            except json.JSONDecodeError as error:
                raise ExampleError(
                    f"{place}: expected a JSON object, got {error.msg} at column {error.colno}"
                ) from error


def _json_rows(path: Path) -> Iterator[PlacedRow]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ExampleError(f"{path}: expected a JSON list of objects, got {error}") from error
    if not isinstance(rows, list):
        raise ExampleError(f"{path}: expected a JSON list of objects, got {type(rows).__name__}")
    yield from ((f"{path}, item {number}", row) for number, row in enumerate(rows, start=1))


def _csv_rows(path: Path) -> Iterator[PlacedRow]:
    """Every cell is text: guessed types would turn the answer 007 into 7."""
    line = 1
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                place, line = f"{path}, line {line + 1}", reader.line_num
                if None in row:
                    raise ExampleError(
                        f"{place}: expected {len(row) - 1} cells, got {len(row) - 1 + len(row[None])}; "
                        "quote cells that hold a comma"
                    )
                yield place, row
        except (csv.Error, UnicodeDecodeError) as error:
            raise ExampleError(f"{path}, after line {line}: expected CSV in UTF-8, got {error}") from error


def _parquet_rows(path: Path) -> Iterator[PlacedRow]:
    number = 0
    try:
        with pa_parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ExampleError(
            f"{path}, after row {number}: expected a readable table, got {reason_of(error)}"
        ) from error


def _hub_rows(source: str) -> Iterator[PlacedRow]:
    name, _, split = source.removeprefix(HUB_SCHEME).partition(":")
    try:
        rows = load_dataset(name, split=split or "train", streaming=True)
        yield from ((f"{source}, row {number}", row) for number, row in enumerate(rows, start=1))
    except Exception as error:  # the library raises its own, the Hub's and the network's kinds
        raise SourceError(
            f"cannot read the Hub data set {name!r}: {reason_of(error)}; check the name and the network"
        ) from error


_READERS: dict[str, Callable[[Path], Iterator[PlacedRow]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".parquet": _parquet_rows,
    ".csv": _csv_rows,
}
