"""What scoring has found out so far, on disk: a killed run loses the batch it was in, and no more.

A file of JSON lines, `{"key": ..., "value": ...}`; a key is a hash of all that the value depends on, so that
nothing in the file is ever out of date.
"""

import json
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from kshot.errors import RunFolderError


class ScoreStore:
    """Values by key, each on disk as soon as `put` returns.

    Args:
        path: Made with the first value. None: kept in memory alone.

    Raises:
        RunFolderError: The file cannot be read.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._values: dict[str, Any] = {}
        self._whole_bytes = 0
        if path is not None and path.exists():
            self._read(path)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def put(self, values: Mapping[str, Any]) -> None:
        """Keep values that JSON can hold.

        Raises:
            RunFolderError: The file cannot be written.
        """
        self._values |= values
        if self.path is None:
            return
        lines = (json.dumps({"key": key, "value": value}) + "\n" for key, value in values.items())
        data = "".join(lines).encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("r+b" if self.path.exists() else "xb") as file:
                file.seek(self._whole_bytes)  # over the line that a killed process left half written
                file.truncate()
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunFolderError(
                f"cannot write {self.path}: {error.strerror}; free space or choose a folder you can write to"
            ) from error
        self._whole_bytes += len(data)

    def _read(self, path: Path) -> None:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise RunFolderError(f"cannot read {path}: {error.strerror}; expected scores so far") from error
        self._whole_bytes = data.rfind(b"\n") + 1
        for line in data[: self._whole_bytes].splitlines():
            try:
                entry = json.loads(line)
                self._values[entry["key"]] = entry["value"]
            except (ValueError, KeyError, TypeError):
                continue  # a damaged line: what it held is computed again


def key_of(*parts: Any) -> str:
    """Return a hash of JSON values."""
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
