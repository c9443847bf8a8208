"""What reading any part shares: what is absent names the command that makes it, what is damaged is named."""

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from kshot.errors import RunFolderError
from kshot.run_folder import RunFolder

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Missing:
    """A part of the run that is not there.

    Attributes:
        reason: In words.
        command: What makes it; empty where there is nothing to be done.
    """

    reason: str
    command: str = ""


def missing(run: RunFolder, reason: str, command: str) -> Missing:
    """Return a missing part and the whole command that makes it."""
    return Missing(reason, f"kshot {command} task.yaml --out {shlex.quote(str(run.root))}")


@contextmanager
def parsing(path: Path) -> Iterator[None]:
    """Name the file that lacks something.

    Raises:
        RunFolderError: The block met a missing key or a value of another kind.
    """
    try:
        yield
    except KeyError as error:
        raise RunFolderError(
            f"{path}: expected the key {error}, found none; run 'kshot run' again in a new folder"
        ) from error
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise RunFolderError(
            f"{path}: expected what 'kshot run' writes, got something else ({error}); "
            "run 'kshot run' again in a new folder"
        ) from error


def pick(kind: type[T], values: Mapping[str, Any]) -> T:
    """Build a dataclass of the fields it has; a file may hold more, an old one less of what has a default."""
    known = fields(kind)  # type: ignore[arg-type]
    return kind(
        **{one.name: values[one.name] for one in known if one.default is MISSING or one.name in values}
    )
