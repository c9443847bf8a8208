"""A shard of rows on disk: an Arrow stream, as `datasets` writes and reads them, that is memory-mapped."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]

from kshot.atomic import write_bytes
from kshot.errors import SourceError, reason_of
from kshot.examples import Example

SHARD_ROWS = 8_192  # 4 MB of rows of 500 characters; a killed run loses one shard at most
SHARD_CHARACTERS = 2**26  # of all rows of a shard, so that long rows do not fill the memory

_SCHEMA = pa.schema(
    [
        pa.field("instruction", pa.string(), nullable=False),
        pa.field("input", pa.string(), nullable=False),
        pa.field("output", pa.string(), nullable=False),
        pa.field("answer", pa.string()),
        pa.field("choices", pa.list_(pa.string())),
        pa.field("label", pa.int64()),
        pa.field("question", pa.string()),
        pa.field("rationale", pa.string()),
        pa.field("id", pa.string()),  # null where the row has none
        pa.field("place", pa.string(), nullable=False),  # where it stands in its file: line 7
        pa.field("hash", pa.uint64(), nullable=False),  # equal for rows that count as the same
    ]
)
_NOTES = b"kshot"  # beside the schema: how far the source was read when the shard was full


def shard_path(folder: Path, number: int) -> Path:
    """Return the place of a shard."""
    return folder / f"rows-{number:05d}.arrow"


def write_shard(target: Path, rows: Sequence[tuple[Example, str, int]], notes: dict[str, Any]) -> None:
    """Write rows, each with its place and hash, in one rename.

    Raises:
        RunFolderError: The disk is full, or the folder cannot be written.
    """
    columns = [_column(example, place, value) for example, place, value in rows]
    schema = _SCHEMA.with_metadata({_NOTES: json.dumps(notes, sort_keys=True).encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist(columns, schema=schema))
    write_bytes(target, sink.getvalue().to_pybytes())


def read_shard(path: Path) -> Any:
    """Return the memory-mapped table of a shard.

    Raises:
        SourceError: It is damaged.
    """
    try:
        return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    except (pa.ArrowException, OSError) as error:
        raise SourceError(
            f"expected a sound shard at {path}, got {reason_of(error)}; "
            f"delete {path.parent} and its rows are read again from their source"
        ) from error


def notes_of(table: Any) -> dict[str, Any]:
    """Return what was noted beside the rows of a shard."""
    notes: dict[str, Any] = json.loads(table.schema.metadata[_NOTES])
    return notes


def examples_of(table: Any, name: str) -> list[Example]:
    """Return the rows of a table as examples; one without an id is named by its source and place."""
    return [_example(row, name) for row in table.drop_columns(["hash"]).to_pylist()]


def _column(example: Example, place: str, value: int) -> dict[str, Any]:
    row = {name: getattr(example, name) for name in _SCHEMA.names[:9]}
    return row | {"id": None if example.id == place else example.id, "place": place, "hash": value}


def _example(row: dict[str, Any], name: str) -> Example:
    place, choices = row.pop("place"), row.pop("choices")
    row["id"] = row["id"] or f"{name}, {place}"
    return Example(choices=tuple(choices) if choices else None, **row)
