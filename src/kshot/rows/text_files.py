"""Lines of .jsonl files and rows of .csv files.

A reader yields each row after its place, and in place of a row that cannot be read an `ExampleError`.
"""

import csv
import json
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from kshot.errors import ExampleError

# Far above any row; what is longer is a file of another kind, which must not be read into memory as one line.
MAX_LINE_BYTES = 16 * 2**20
TOO_LONG = f"expected a line of at most {MAX_LINE_BYTES // 2**20} MB, got a longer one; one row is one line"


def jsonl_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the object of each line that is not blank."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                _finish_line(file, line)
                yield f"line {number}", ExampleError(TOO_LONG, reason="too_long")
            elif line.strip():
                yield f"line {number}", _object(line)


def _finish_line(file: BufferedReader, line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = file.readline(MAX_LINE_BYTES)


def _object(line: bytes) -> Any:
    try:
        return json.loads(line.rstrip().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        message = f"expected UTF-8, got {error.reason} at byte {error.start}; save it as UTF-8"
        return ExampleError(message, reason="invalid_utf8")
    except json.JSONDecodeError as error:
        message = f"expected a JSON object, got {reason_of_json(error)} at column {error.colno}"
        return ExampleError(message, reason="broken")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists
        return ExampleError(f"expected a JSON object, got {error}", reason="broken")


def reason_of_json(error: json.JSONDecodeError) -> str:
    """Return what is wrong without the "at" that the json module ends some of its reasons with."""
    return error.msg.removesuffix(" at")


def csv_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield each row by its header. Every cell is text: guessed types would turn the answer 007 into 7.

    Raises:
        ExampleError: The header cannot be read.
    """
    csv.field_size_limit(MAX_LINE_BYTES)  # a cell may be longer than the 128 KiB of the standard library
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            _ = reader.fieldnames
        except csv.Error as error:
            message = f"{path}: expected a header of column names, got {error}; check its quotes"
            raise ExampleError(message, reason="unreadable") from error
        line = 1
        while True:
            try:
                row: Any = next(reader, None)
            except csv.Error as error:
                row = ExampleError(f"expected CSV, got {error}; check its quotes", reason="broken")
            if row is None:
                return
            yield f"line {line + 1}", row if isinstance(row, ExampleError) else _checked(row)
            line = max(reader.line_num, line + 1)


def _checked(row: dict[str | None, Any]) -> Any:
    if None in row:
        message = (
            f"expected {len(row) - 1} cells, got {len(row) - 1 + len(row[None])}; "
            "quote cells that hold a comma"
        )
        return ExampleError(message, reason="broken")
    if any(has_invalid_bytes(cell) for cell in row.values() if cell):
        return ExampleError("expected UTF-8, got other bytes; save it as UTF-8", reason="invalid_utf8")
    return row


def has_invalid_bytes(text: str) -> bool:
    """Whether a text read with `surrogateescape` holds bytes that were no UTF-8."""
    return not text.isascii() and any("\udc80" <= letter <= "\udcff" for letter in text)
