"""A pool with a name: a folder with `pool.json`, which lists its sources and the encoder it is searched with.

    my-pool/pool.json
        {"format": 1, "encoder": "static", "encoder_prefix": "",
         "encoder_dtype": "float32", "sources": [{"path": "/data/a.csv", ...}]}

Rows and vectors lie under `KSHOT_HOME/pools`, an entry for each file by its content
(`kshot.corpus.row_store`), so that pools and tasks share them. A task file names such a folder under `pool`
like any other source. Relative paths in `pool.json` start from its folder.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from kshot.atomic import write_json
from kshot.config import DataConfig, EncoderDtype, PoolSource, Section
from kshot.corpus.remote_file import is_url
from kshot.errors import ConfigError
from kshot.rows import HUB_SCHEME

POOL_FILE = "pool.json"


class PoolFile(Section):
    """The content of `pool.json`."""

    format: Literal[1] = 1
    encoder: str = DataConfig().encoder
    encoder_prefix: str = ""
    encoder_dtype: EncoderDtype = "float32"
    sources: tuple[PoolSource, ...] = ()

    def with_sources(self, sources: Sequence[PoolSource]) -> "PoolFile":
        """Return it with more sources; one that is listed already stays once."""
        new = [source for source in dict.fromkeys(map(_canonical, sources)) if source not in self._listed()]
        return self.model_copy(update={"sources": (*self.sources, *map(PoolSource.model_validate_json, new))})

    def _listed(self) -> set[str]:
        return set(map(_canonical, self.sources))


def is_pool_folder(path: str | Path) -> bool:
    """Whether a folder holds a `pool.json`."""
    return (Path(path).expanduser() / POOL_FILE).is_file()


def read_pool_file(folder: Path) -> PoolFile:
    """Read `pool.json`; relative paths become paths from its folder.

    Raises:
        ConfigError: It is missing or has another form.
    """
    file = folder.expanduser() / POOL_FILE
    try:
        found = PoolFile.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(
            f"expected a pool at {folder}, got no {POOL_FILE}: make one with 'kshot pool build'"
        ) from error
    except ValueError as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise ConfigError(
            f"{file}: expected sources and an encoder, got {reason}; build the pool again"
        ) from error
    start = folder.expanduser()
    located = (one.model_copy(update={"path": _located(one.path, start)}) for one in found.sources)
    return found.model_copy(update={"sources": tuple(located)})


def write_pool_file(folder: Path, content: PoolFile) -> None:
    """Write `pool.json`.

    Raises:
        RunFolderError: The folder cannot be written.
    """
    write_json(folder / POOL_FILE, content.model_dump(mode="json"))


def listed_sources(sources: Sequence[str | PoolSource]) -> list[PoolSource]:
    """Return sources as mappings, a pool folder replaced by what it lists.

    Raises:
        ConfigError: A pool folder has columns or a limit, or lists another one.
    """
    found: list[PoolSource] = []
    for one in sources:
        source = PoolSource(path=one) if isinstance(one, str) else one
        if _is_elsewhere(source.path) or not is_pool_folder(source.path):
            found.append(source)
            continue
        if source.columns or source.limit:
            raise ConfigError(
                f"{source.path} is a pool folder, whose {POOL_FILE} has columns and limits: set them there"
            )
        inside = read_pool_file(Path(source.path)).sources
        nested = [one.path for one in inside if is_pool_folder(one.path)]
        if nested:
            raise ConfigError(
                f"expected files in the pool {source.path}, got the pool {nested[0]}: list its files"
            )
        found += inside
    return found


def _located(path: str, folder: Path) -> str:
    return path if _is_elsewhere(path) else str(folder / Path(path).expanduser())


def _is_elsewhere(path: str) -> bool:
    return path.startswith(HUB_SCHEME) or is_url(path)


def _canonical(source: PoolSource) -> str:
    return json.dumps(source.model_dump(mode="json"), sort_keys=True)
