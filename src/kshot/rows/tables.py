"""Rows of .parquet files and of Arrow folders, as `datasets.Dataset.save_to_disk` writes them.

A reader yields each row after its place, and in place of a row that cannot be read an `ExampleError`.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pa_parquet  # type: ignore[import-untyped]
from datasets import load_from_disk

from kshot.errors import ExampleError, reason_of

BATCH_ROWS = 1_024  # in memory at once as Python objects; more are no faster


def parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield each row; a row group that is damaged is one broken row, and the next group is read.

    Raises:
        ExampleError: This is no table.
        OSError: It cannot be read.
    """
    try:
        file = pa_parquet.ParquetFile(path)
    except Exception as error:
        raise _damaged(error, f"{path}: ", "; write it again") from error
    with file:
        start = 0
        for group in range(file.num_row_groups):
            batches = file.iter_batches(batch_size=BATCH_ROWS, row_groups=[group])
            yield from _placed(batches, start)
            start += file.metadata.row_group(group).num_rows


def is_arrow_folder(path: Path) -> bool:
    """Whether this folder holds one data set."""
    return (path / "state.json").is_file() and (path / "dataset_info.json").is_file()


def arrow_splits(path: Path) -> list[str]:
    """Return the data sets of a folder that holds several: the splits of a `DatasetDict`."""
    if not (path / "dataset_dict.json").is_file():
        return []
    return sorted(one.name for one in path.iterdir() if is_arrow_folder(one))


def arrow_folder_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield each row of an Arrow folder, whose files are memory-mapped.

    Raises:
        ExampleError: This is no data set.
        OSError: It cannot be read.
    """
    try:
        dataset = load_from_disk(path).with_format("arrow")
    except Exception as error:
        raise _damaged(error, f"{path}: ", "; write it again") from error
    yield from _placed(dataset.iter(batch_size=BATCH_ROWS), 0)


def _placed(batches: Iterable[Any], number: int) -> Iterator[tuple[str, Any]]:
    """Number the rows of batches; damage ends them with one broken row."""
    batches = iter(batches)
    while True:
        try:
            rows = _python_rows(next(batches))
        except StopIteration:
            return
        except Exception as error:
            yield f"row {number + 1}", _damaged(error, "", "; the rest of its group cannot be read")
            return
        for row in rows:
            number += 1
            yield f"row {number}", row


def _damaged(error: Exception, place: str, then: str) -> ExampleError:
    """Return the error that says what the libraries found; the system's own errors are raised again."""
    if isinstance(error, OSError) and error.errno is not None:  # bad compression comes without a number
        raise error
    message = f"{place}expected a readable table, got {reason_of(error)}{then}"
    return ExampleError(message, reason="unreadable")


def _python_rows(batch: Any) -> list[Any]:
    """Return the rows of a batch; one with a text that is no UTF-8 spoils no other."""
    try:
        rows: list[Any] = batch.to_pylist()
    except UnicodeDecodeError:
        return [_python_row(batch.slice(index, 1)) for index in range(batch.num_rows)]
    return rows


def _python_row(row: Any) -> Any:
    try:
        return row.to_pylist()[0]
    except UnicodeDecodeError as error:
        message = f"expected UTF-8, got {error.reason} at byte {error.start} of a text"
        return ExampleError(message, reason="invalid_utf8")
