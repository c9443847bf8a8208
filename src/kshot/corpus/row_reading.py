"""Reading a source into shards of rows: once, and after a kill from its last shard on."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from kshot.atomic import write_json
from kshot.corpus.pool_source import SourceFile
from kshot.corpus.row_hash import row_hash
from kshot.corpus.row_shards import (
    SHARD_CHARACTERS,
    SHARD_ROWS,
    notes_of,
    read_shard,
    shard_path,
    write_shard,
)
from kshot.corpus.row_store import DONE_FILE, EXACT_DUPLICATE, StoredRows
from kshot.corpus.seen_hashes import SeenHashes
from kshot.errors import ExampleError, SourceError
from kshot.examples import Example
from kshot.model_source import cache_folder
from kshot.rows import HubDataset

_REVISION_FILE = "revision.json"


def store_rows(
    source: SourceFile, *, shard_rows: int = SHARD_ROWS, shard_characters: int = SHARD_CHARACTERS
) -> StoredRows:
    """Read a source into shards, unless that was done before.

    Args:
        source: What to read.
        shard_rows: Most rows of a new shard.
        shard_characters: It ends with the row that brings its texts to so many.

    Raises:
        SourceError: It cannot be read, or changed meanwhile.
        RunFolderError: `KSHOT_HOME` cannot be written.
    """
    key = source.key()
    folder = cache_folder() / "pools" / key
    if not (folder / DONE_FILE).is_file():
        reading = _Reading.resumed(folder, shard_rows, shard_characters)
        reading.read(source)
        if source.key() != key:
            raise SourceError(f"{source.address} changed while it was read; run the same command again")
        write_json(folder / DONE_FILE, {"shard_rows": reading.shard_rows, "skipped": reading.skipped})
        source.forget()
    return StoredRows(source.name, folder)


@dataclass(slots=True)
class _Reading:
    """A source that is being read: what is on disk, and the rows of the next shard."""

    folder: Path
    rows_a_shard: int
    characters_a_shard: int
    num_read: int = 0
    shard_rows: list[int] = field(default_factory=list)
    skipped: dict[str, dict[str, Any]] = field(default_factory=dict)
    seen: SeenHashes = field(default_factory=SeenHashes)
    rows: list[tuple[Example, str, int]] = field(default_factory=list)
    characters: int = 0

    @classmethod
    def resumed(cls, folder: Path, rows_a_shard: int, characters_a_shard: int) -> "_Reading":
        """Return the state after the last whole shard."""
        reading = cls(folder, rows_a_shard, characters_a_shard)
        while (path := shard_path(folder, len(reading.shard_rows))).is_file():
            table = read_shard(path)
            notes = notes_of(table)
            reading.num_read, reading.skipped = notes["num_read"], notes["skipped"]
            reading.shard_rows.append(table.num_rows)
            reading.seen.extend(table["hash"].to_numpy())
        return reading

    def read(self, source: SourceFile) -> None:
        """Read on to the end, or to the limit."""
        if len(self.seen) == source.limit:
            return
        rows = source.rows(self._pinned(source) if source.is_hub else None)
        for place, row in islice(self._to_the_damage(rows), self.num_read, None):
            self.num_read += 1
            self._take(source, place, row)
            if len(self.seen) == source.limit:
                break
        if self.rows:
            self._write()

    def _to_the_damage(self, rows: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        """Yield rows; where a file cannot be parsed any further, that is its last one."""
        try:
            yield from rows
        except ExampleError as error:
            yield "end", error

    def _take(self, source: SourceFile, place: str, row: Any) -> None:
        try:
            example = source.example(row, place)
        except ExampleError as error:
            message = str(error)
            self._skip(error.reason, message if message.startswith(place) else f"{place}: {message}")
            return
        value = row_hash(example.request, example.output)
        if not self.seen.add(value):
            self._skip(EXACT_DUPLICATE, f"{place}: a row before it says the same")
            return
        self.rows.append((example, place, value))
        self.characters += len(example.request) + len(example.output) + len(example.rationale or "")
        if len(self.rows) == self.rows_a_shard or self.characters >= self.characters_a_shard:
            self._write()

    def _skip(self, reason: str, first: str) -> None:
        self.skipped.setdefault(reason, {"count": 0, "first": first})["count"] += 1

    def _write(self) -> None:
        notes = {"num_read": self.num_read, "skipped": self.skipped}
        write_shard(shard_path(self.folder, len(self.shard_rows)), self.rows, notes)
        self.shard_rows.append(len(self.rows))
        self.rows, self.characters = [], 0

    def _pinned(self, source: SourceFile) -> HubDataset:
        """Return a data set at one commit: the rows after a kill are of the same one as those before."""
        noted = self.folder / _REVISION_FILE
        if not noted.is_file():
            pinned = HubDataset.parse(source.address).pinned()
            write_json(noted, {"revision": pinned.revision})
        revision = json.loads(noted.read_text(encoding="utf-8"))["revision"]
        named = HubDataset.parse(source.address)
        return HubDataset(named.name, named.config, revision, named.split)
