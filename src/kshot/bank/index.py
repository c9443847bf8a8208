"""The index of a bank: `bank.json`, read at once, written by one process at a time; or a folder without."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from kshot.atomic import write_text
from kshot.bank.adapter import CONFIG, Adapter, AdapterEntry, describe
from kshot.errors import AdapterError, RunFolderError

INDEX = "bank.json"
FORMAT = 2
READABLE = (1, 2)  # format 1 has no checksums of the settings, and is otherwise the same
LOCK = ".bank.lock"  # let go by the system when a process ends, however it ends
LOCK_TIMEOUT_S = 60.0  # an index of 100,000 adapters is written in 2 s


class _Index(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int
    adapters: tuple[AdapterEntry, ...]


def read_index(folder: Path) -> tuple[AdapterEntry, ...]:
    """Return the entries of a bank; no adapter is opened.

    Raises:
        AdapterError: The index is damaged, or of a format that this version does not know.
    """
    path = folder / INDEX
    try:
        data = path.read_bytes()
        index = _Index.model_validate_json(data)
    except (OSError, ValidationError) as error:
        if isinstance(error, ValidationError):
            _check_format(path, _format_of(data))
        raise AdapterError(f"cannot read {path}: {_first_problem(error)}; restore it") from error
    _check_format(path, index.format)
    twice = [name for name, count in Counter(entry.name for entry in index.adapters).items() if count > 1]
    if twice:
        raise AdapterError(f"expected distinct adapter names in {path}, got {twice[0]} twice; restore it")
    return index.adapters


def write_index(folder: Path, entries: Iterable[AdapterEntry]) -> None:
    """Write the index, sorted by name, in one rename.

    Raises:
        RunFolderError: The folder cannot be written.
    """
    index = _Index(format=FORMAT, adapters=tuple(sorted(entries, key=lambda entry: entry.name)))
    write_text(folder / INDEX, index.model_dump_json(indent=2) + "\n")


def indexed(folder: Path) -> list[Adapter]:
    """Return the adapters that the index of a bank names; none is opened.

    Raises:
        AdapterError: As `read_index`; or a folder that it names is not there.
    """
    entries = read_index(folder)
    with os.scandir(folder) as found:  # which asks the system about each entry no second time
        there = {one.name for one in found if one.is_dir()}
    for entry in entries:
        if entry.name not in there:
            raise AdapterError(
                f"expected the adapter folder {folder / entry.name} that {INDEX} names, found none"
            )
    return [Adapter(folder / entry.name, entry) for entry in entries]


def unindexed(folder: Path) -> list[Adapter]:
    """Return what the adapter folders in a folder hold; each is read.

    Raises:
        AdapterError: One cannot be used.
        ConfigError: The name of a folder cannot be an adapter's.
    """
    return [
        Adapter(config.parent, describe(config.parent, config.parent.name))
        for config in sorted(folder.glob(f"*/{CONFIG}"))
        if not config.parent.name.startswith(".")  # the draft of a killed process
    ]


@contextmanager
def locked(folder: Path, *, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
    """Hold the bank's lock, so that what is read in the block is still true when it is written.

    Args:
        folder: The bank's.
        timeout_s: How long to wait for another process.

    Raises:
        RunFolderError: Another process holds it for long, or the folder cannot be written.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=timeout_s)
    except Timeout as error:
        raise RunFolderError(
            f"expected to write {folder / INDEX}, another process holds {folder / LOCK} for "
            f"{timeout_s:g} s: wait for it or end it, then run the command again"
        ) from error
    except OSError as error:
        raise RunFolderError(
            f"cannot write {folder}: {error.strerror}; choose a folder you can write to"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _format_of(data: bytes) -> object:
    try:
        index = json.loads(data)
    except (ValueError, RecursionError):
        return FORMAT
    return index.get("format", FORMAT) if isinstance(index, dict) else FORMAT


def _check_format(path: Path, found: object) -> None:
    if found not in READABLE:
        raise AdapterError(
            f"expected format {' or '.join(map(str, READABLE))} in {path}, got {found}: update kshot"
        )


def _first_problem(error: OSError | ValidationError) -> str:
    if isinstance(error, OSError):
        return str(error.strerror)
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where + ': ' if where else ''}{problem['msg']}"
