"""What a reference names: a file, an Arrow folder, a pattern or a Hub data set; and its rows."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kshot.errors import ExampleError, SourceError
from kshot.nearest import nearest_path
from kshot.rows.hub import HUB_SCHEME, HubDataset
from kshot.rows.json_list import json_rows
from kshot.rows.tables import arrow_folder_rows, arrow_splits, is_arrow_folder, parquet_rows
from kshot.rows.text_files import csv_rows, jsonl_rows

PlacedRow = tuple[str, Any]

_READERS: dict[str, Callable[[Path], Iterator[PlacedRow]]] = {
    ".jsonl": jsonl_rows,
    ".json": json_rows,
    ".parquet": parquet_rows,
    ".csv": csv_rows,
}
FILE_KINDS = tuple(_READERS)


def placed_rows(source: str) -> Iterator[PlacedRow]:
    """Yield each row of a file, Arrow folder, pattern or Hub data set, after its place in error messages.

    Raises:
        SourceError: Nothing is there, or it cannot be opened or read.
        ExampleError: A part cannot be parsed; the message names file, line and reason.
    """
    if source.startswith(HUB_SCHEME):
        yield from ((f"{source}, {place}", row) for place, row in HubDataset.parse(source).rows())
        return
    for path in expand(source):
        for place, row in file_rows(path):
            if isinstance(row, ExampleError):
                raise ExampleError(f"{path}, {place}: {row}", reason=row.reason)
            yield f"{path}, {place}", row


def file_rows(path: Path) -> Iterator[PlacedRow]:
    """Yield each row of a file after its place in it, an `ExampleError` in place of a row that is broken.

    Raises:
        SourceError: It cannot be opened or read.
        ExampleError: What follows cannot be parsed.
    """
    reader = arrow_folder_rows if path.is_dir() else _READERS[path.suffix.lower()]
    try:
        yield from reader(path)
    except OSError as error:
        raise SourceError(
            f"cannot read {path}: {error.strerror or error}; check the file and its permissions"
        ) from error


def expand(source: str) -> list[Path]:
    """Return the files and Arrow folders that a path or pattern names, in sorted order.

    Raises:
        SourceError: Nothing is there, or its kind is not known.
    """
    path = Path(source).expanduser()
    if splits := arrow_splits(path):
        raise SourceError(
            f"expected one data set at {source}, got the splits {', '.join(splits)}: "
            f"name one, such as {path / splits[0]}"
        )
    found = [path] if _is_source(path) else _matching(path)
    if not found:
        raise SourceError(_not_found(source, path))
    for one in found:
        if one.is_file() and one.suffix.lower() not in _READERS:
            raise SourceError(f"expected {', '.join(_READERS)}, got {one}; convert it first")
    return found


def _not_found(source: str, path: Path) -> str:
    if path.is_dir():
        inside = sorted(one for one in path.iterdir() if one.suffix.lower() in _READERS)
        named = f", such as {inside[0]}, or {path / '*'}{inside[0].suffix}" if inside else ""
        return f"expected a file at {source}, found a folder; name files in it{named}"
    return (
        f"expected a file at {source}, found none; paths are relative to the task file{nearest_path(source)}"
    )


def _is_source(path: Path) -> bool:
    return path.is_file() or is_arrow_folder(path)


def _matching(pattern: Path) -> list[Path]:
    if not any(letter in str(pattern) for letter in "*?["):
        return []
    relative = pattern.relative_to(pattern.anchor)
    return sorted(path for path in Path(pattern.anchor or ".").glob(str(relative)) if _is_source(path))
