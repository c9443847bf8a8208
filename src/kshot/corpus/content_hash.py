"""The sha256 of files and Arrow folders, remembered for as long as size and time of change stay."""

import json
import time
from hashlib import file_digest, sha256
from pathlib import Path

from kshot.atomic import write_json
from kshot.errors import KshotError, SourceError
from kshot.model_source import cache_folder

# A file may change again within the resolution of its time of change: what is younger is not remembered.
_SETTLED_S = 2.0


def content_hash(path: Path) -> str:
    """Return the sha256 of a file, or one of all files of a folder with their names.

    A hash that was computed before is read from `KSHOT_HOME/pools/hashes`.

    Raises:
        SourceError: It cannot be read.
    """
    try:
        if not path.is_dir():
            return _file_hash(path)
        files = sorted(one for one in path.rglob("*") if one.is_file())
        named = [[str(one.relative_to(path)), _file_hash(one)] for one in files]
    except KshotError:  # such as a cache that cannot be written, which is an OSError too
        raise
    except OSError as error:
        raise SourceError(
            f"cannot read {path}: {error.strerror or error}; check the file and its permissions"
        ) from error
    return sha256(json.dumps(named).encode()).hexdigest()


def _file_hash(path: Path) -> str:
    place = path.resolve()
    known = cache_folder() / "pools" / "hashes" / f"{sha256(str(place).encode()).hexdigest()[:32]}.json"
    state = place.stat()
    seen = {"path": str(place), "size": state.st_size, "mtime_ns": state.st_mtime_ns}
    try:
        before = json.loads(known.read_text(encoding="utf-8"))
        if before.pop("sha256") and before | seen == before:
            return str(json.loads(known.read_text(encoding="utf-8"))["sha256"])
    except (OSError, ValueError, KeyError, AttributeError):
        pass  # not known, or damaged: computed again
    with place.open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    if time.time() - state.st_mtime > _SETTLED_S:
        write_json(known, seen | {"sha256": digest})
    return digest
