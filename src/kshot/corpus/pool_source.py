"""What a pool is read from: the files behind its entries, and the key that each is stored under."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePath
from typing import Any

from kshot.config import PoolSource
from kshot.corpus.content_hash import content_hash
from kshot.corpus.remote_file import RemoteFile, expand_url, is_url, path_of
from kshot.errors import ExampleError
from kshot.examples import Example, example_from_row
from kshot.rows import HUB_SCHEME, HubDataset, expand, file_rows

FORMAT = 1  # of stored rows; another one is read again from its source
# 250,000 tokens are more than any row to train on has; a file of another kind gives such rows.
MAX_ROW_CHARACTERS = 1_000_000


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file, an Arrow folder or a Hub data set, and how its rows are read.

    Attributes:
        address: Path, URL or Hub reference.
        columns: Fields of an example, each with the column that it is read from; all fields by their own
            names where it is empty.
        limit: Usable rows to read; None for all.
    """

    address: str
    columns: tuple[tuple[str, str], ...] = ()
    limit: int | None = None

    @property
    def is_hub(self) -> bool:
        """Whether it is a Hub data set."""
        return self.address.startswith(HUB_SCHEME)

    @property
    def is_url(self) -> bool:
        """Whether it is a file elsewhere."""
        return is_url(self.address)

    @property
    def name(self) -> str:
        """What rows are said to come from: the stem of a file, or the id of a data set."""
        return HubDataset.parse(self.address).name if self.is_hub else self._path.stem

    def key(self) -> str:
        """Return what its stored rows are found by: its content, and how it is read.

        A Hub data set counts by id, configuration, revision and split as they are written.

        Raises:
            SourceError: The file cannot be read.
        """
        if self.is_url:
            content = RemoteFile.find(self.address).content_hash()
        else:
            content = self.address if self.is_hub else content_hash(Path(self.address))
        kind = "" if self.is_hub else self._path.suffix.lower()
        read_by = [FORMAT, MAX_ROW_CHARACTERS, sorted(self.columns), self.limit]
        return sha256(json.dumps([kind, content, *read_by]).encode()).hexdigest()[:32]

    def rows(self, hub: HubDataset | None) -> Iterator[tuple[str, Any]]:
        """Yield each row after its place in the file; an `ExampleError` in place of one that is broken.

        Args:
            hub: The data set at the commit to read, for a Hub source.

        Raises:
            SourceError: It cannot be read, or fetched.
        """
        if hub:
            return hub.rows()
        return file_rows(RemoteFile.find(self.address).fetch() if self.is_url else Path(self.address))

    def num_bytes(self) -> int:
        """Return its size; 0 for a Hub data set, and where a storage does not say.

        Raises:
            SourceError: The storage cannot be reached.
        """
        if self.is_url:
            return RemoteFile.find(self.address).num_bytes or 0
        path = Path(self.address)
        files = [path] if path.is_file() else path.rglob("*") if path.is_dir() else []
        return sum(one.stat().st_size for one in files if one.is_file())

    def forget(self) -> None:
        """Delete the copy of a file elsewhere, once its rows are stored."""
        if self.is_url:
            RemoteFile.find(self.address).forget()

    def example(self, row: Any, place: str) -> Example:
        """Turn a row into an example, whose id is its place unless it has one.

        Raises:
            ExampleError: It is none, or too long.
        """
        if isinstance(row, ExampleError):
            raise row
        example = example_from_row(self._mapped(row, place) if self.columns else row, place)
        texts = (example.request, example.output, example.answer, example.question, example.rationale)
        length = sum(map(len, filter(None, [*texts, *(example.choices or ())])))
        if length > MAX_ROW_CHARACTERS:
            raise ExampleError(
                f"{place}: expected a row of at most {MAX_ROW_CHARACTERS:,} characters, got {length:,}",
                reason="too_long",
            )
        return example

    @property
    def _path(self) -> PurePath:
        return path_of(self.address) if self.is_url else Path(self.address)

    def _mapped(self, row: Any, place: str) -> dict[str, Any]:
        if not isinstance(row, Mapping):
            raise ExampleError(f"{place}: expected a JSON object, got {type(row).__name__}")
        for field, column in self.columns:
            if column not in row:
                raise ExampleError(
                    f"{place}: expected the column {column!r} for {field}, got {', '.join(map(str, row))}",
                    reason="no_column",
                )
        return {field: row[column] for field, column in self.columns}


def source_files(source: PoolSource) -> list[SourceFile]:
    """Return the files that an entry of a pool names, in sorted order.

    Raises:
        SourceError: Nothing is there, its kind is not known, or a storage cannot be reached.
        MissingExtraError: fsspec needs another package for this kind of storage.
    """
    columns = tuple(sorted(source.columns.items()))
    if source.path.startswith(HUB_SCHEME):
        HubDataset.parse(source.path)
        return [SourceFile(source.path, columns, source.limit)]
    if is_url(source.path):
        return [SourceFile(url, columns, source.limit) for url in expand_url(source.path)]
    return [SourceFile(str(path), columns, source.limit) for path in expand(source.path)]


def as_sources(sources: Sequence[str | PoolSource]) -> list[PoolSource]:
    """Return entries of a pool as mappings; one that is a path alone has no columns and no limit."""
    return [PoolSource(path=one) if isinstance(one, str) else one for one in sources]
