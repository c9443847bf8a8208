"""Which rows an adapter was trained on, as hashes of what they ask, to tell whether it saw a task's rows."""

from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from kshot.atomic import write_bytes
from kshot.bank.adapter import Adapter
from kshot.errors import AdapterError, reason_of
from kshot.examples import Example
from kshot.text_form import fingerprint

ROW_HASHES = "row_hashes.safetensors"
VERSION = 1  # hashes of different versions do not compare
# 64 kB an adapter. Of a larger set the least hashes are kept: any row is found with probability 8192 / rows.
MAX_HASHES = 8192
_KEY = "row_hashes"


def row_hash(example: Example) -> int:
    """Return a 64-bit hash of what an example asks: the bare question, or the request where there is none.

    Case, letter forms, spaces and sentence punctuation do not count.
    """
    asked = fingerprint(example.question or example.request)
    return int.from_bytes(blake2b(asked.encode(), digest_size=8).digest(), "little")


def training_row_hashes(adapter: Adapter) -> frozenset[int] | None:
    """Return the `row_hash` of the rows that an adapter was trained on; None if they are not known.

    Of more than `MAX_HASHES` distinct rows, the `MAX_HASHES` least hashes. Hashes of another version are not
    comparable, and as good as unknown.

    Raises:
        AdapterError: There are hashes, and they cannot be read.
    """
    path = adapter.folder / ROW_HASHES
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="np") as file:
            if file.metadata() != {"version": str(VERSION)}:
                return None
            return frozenset(file.get_tensor(_KEY).tolist())
    except (OSError, SafetensorError) as error:
        raise AdapterError(
            f"{adapter.name}: expected hashes of its training rows in {path}, got {reason_of(error)}: "
            "restore the file, or build the adapter again"
        ) from error


def write_row_hashes(folder: Path, rows: Iterable[Example]) -> None:
    """Store the hashes of an adapter's training rows in its folder.

    Raises:
        RunFolderError: The folder cannot be written.
    """
    hashes = np.array(sorted({row_hash(row) for row in rows})[:MAX_HASHES], dtype=np.uint64)
    write_bytes(folder / ROW_HASHES, save({_KEY: hashes}, {"version": str(VERSION)}))
