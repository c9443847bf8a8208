"""Files that a URL names, such as those of object storage; fsspec reaches them.

    KSHOT_HOME/pools/remote/<hash of the URL and of what the storage says of the file>/
        content.json        sha256 of the file
        rows.parquet        the file, by its own name, until its rows are stored

A file counts by its content, as on this disk: what was read from here and is then put into a bucket is
neither read nor embedded again, and a file of which the storage says what it said before is not even fetched.
"""

import errno
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import fsspec  # type: ignore[import-untyped]

from kshot.atomic import new_folder, write_json
from kshot.errors import KshotError, MissingExtraError, SourceError, reason_of
from kshot.model_source import cache_folder
from kshot.rows import FILE_KINDS, HUB_SCHEME

_CONTENT = "content.json"


def is_url(reference: str) -> bool:
    """Whether a reference is a URL, other than that of a Hub data set."""
    return bool(re.match(r"[A-Za-z][\w+.-]*://", reference)) and not reference.startswith(HUB_SCHEME)


def path_of(url: str) -> PurePosixPath:
    """Return the path of a URL, without host and query."""
    return PurePosixPath(urlsplit(url, allow_fragments=False).path)


def expand_url(url: str) -> list[str]:
    """Return the URLs of the files that a URL, or a pattern with `*`, names, in sorted order.

    Raises:
        SourceError: Nothing is there, its kind is not known, or the storage cannot be reached.
        MissingExtraError: fsspec needs another package for this kind of storage.
    """
    with _named(url):
        filesystem, path = fsspec.url_to_fs(url)
        filesystem.invalidate_cache()
        if "*" in url:
            found = [
                one for one, about in filesystem.glob(path, detail=True).items() if about["type"] == "file"
            ]
            urls = sorted(filesystem.unstrip_protocol(one) for one in found)
        else:
            urls = [url] if filesystem.info(path)["type"] == "file" else []
    if not urls:
        raise SourceError(
            f"expected a file at {url}, found none; name files, such as {url.rstrip('/')}/*.parquet"
        )
    for one in urls:
        if path_of(one).suffix.lower() not in FILE_KINDS:
            raise SourceError(f"expected {', '.join(FILE_KINDS)}, got {one}; convert it first")
    return urls


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as the storage has it now.

    Attributes:
        url: Where it is.
        folder: Of what is known of it here.
        num_bytes: Its size; None where the storage does not say.
    """

    url: str
    folder: Path
    num_bytes: int | None

    @classmethod
    def find(cls, url: str) -> "RemoteFile":
        """Ask the storage for size, time of change and the like.

        Raises:
            SourceError: As `expand_url`.
            MissingExtraError: Likewise.
        """
        with _named(url):
            filesystem, path = fsspec.url_to_fs(url)
            filesystem.invalidate_cache()
            about: dict[str, Any] = filesystem.info(path)
        said = json.dumps([url, about], sort_keys=True, default=str)
        folder = cache_folder() / "pools" / "remote" / sha256(said.encode()).hexdigest()[:32]
        return cls(url, folder, about.get("size"))

    def content_hash(self) -> str:
        """Return the sha256 of the file, which is fetched if it was never seen.

        Raises:
            SourceError: It cannot be fetched.
            RunFolderError: `KSHOT_HOME` cannot be written.
        """
        try:
            return str(json.loads((self.folder / _CONTENT).read_text(encoding="utf-8"))["sha256"])
        except (OSError, ValueError, KeyError, TypeError):  # not known, or damaged
            return _hash_of(self.fetch())

    def fetch(self) -> Path:
        """Return the file on this disk.

        Raises:
            SourceError: It cannot be fetched.
            RunFolderError: `KSHOT_HOME` cannot be written.
        """
        name = path_of(self.url).name
        if not (self.folder / name).is_file():
            with new_folder(self.folder) as draft:
                with _named(self.url):
                    filesystem, path = fsspec.url_to_fs(self.url)
                    filesystem.get_file(path, str(draft / name))
                write_json(draft / _CONTENT, {"sha256": _hash_of(draft / name)})
        return self.folder / name

    def forget(self) -> None:
        """Delete the file from this disk; its hash stays known."""
        (self.folder / path_of(self.url).name).unlink(missing_ok=True)


@contextmanager
def _named(url: str) -> Iterator[None]:
    """Turn what storages raise, each its own kinds, into our errors."""
    try:
        yield
    except KshotError:
        raise
    except ImportError as error:
        raise MissingExtraError(f"{url} is out of reach: {reason_of(error)}, such as with pip") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        reason = reason_of(error.__cause__ or error)  # fsspec says of every web address that it is not there
        if isinstance(error, FileNotFoundError) and error.__cause__ is None:
            reason = "no such file"
        raise SourceError(
            f"cannot read {url}: {reason}; check the address, the network and your rights to it"
        ) from error


def _hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
