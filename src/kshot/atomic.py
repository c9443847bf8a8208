"""Writes that are whole or not there: written beside their place, then renamed."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from safetensors import SafetensorError

from kshot.errors import RunFolderError, reason_of

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` on success and vanishes on any error.

    An existing `target` is replaced only after the new content is complete.

    Raises:
        RunFolderError: `target` is a file, its parent cannot be written, or the disk is full.
    """
    draft = _draft_of(target)
    try:
        yield draft
        _put_in_place(draft, target)
    except (OSError, SafetensorError) as error:
        if not _is_full(error):
            raise
        raise RunFolderError(f"cannot write {target}: {reason_of(error)}; free space on its disk") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _draft_of(target: Path) -> Path:
    try:
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        draft.chmod(0o755)  # mkdtemp lets no one else read
    except OSError as error:
        raise _unwritable(target, error) from error
    return draft


def _put_in_place(draft: Path, target: Path) -> None:
    if not target.exists():
        draft.rename(target)
        return
    retired = draft.with_name(draft.name + ".old")
    target.rename(retired)
    try:
        draft.rename(target)
    except OSError:
        retired.rename(target)
        raise
    shutil.rmtree(retired)


def remove_drafts(folder: Path, of: str = "*") -> None:
    """Delete what a killed process left behind in `folder`: all drafts, or those of what is called `of`."""
    for draft in folder.glob(f".{of}.*.partial*"):
        if draft.is_dir():
            shutil.rmtree(draft)
        else:
            draft.unlink()


def write_text(target: Path, text: str) -> None:
    """Write `text` to `target` as UTF-8; the rest as in `write_bytes`."""
    write_bytes(target, text.encode("utf-8"))


def write_bytes(target: Path, data: bytes) -> None:
    """Write `data` to `target` in one rename.

    Raises:
        RunFolderError: The folder of `target` cannot be written, or the disk is full.
    """
    draft = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            draft.write_bytes(data)
            draft.replace(target)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _unwritable(target, error) from error


def write_json(target: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, so that equal values give equal bytes."""
    write_text(target, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def _is_full(error: Exception) -> bool:
    """Whether there was no space; safetensors keeps the error number in its text alone."""
    if isinstance(error, OSError):
        return error.errno in _NO_SPACE
    return any(f"(os error {number})" in str(error) for number in _NO_SPACE)


def _unwritable(target: Path, error: OSError) -> RunFolderError:
    reason = "a part of its path is a file" if isinstance(error, FileExistsError) else error.strerror or error
    return RunFolderError(f"cannot write {target}: {reason}; free space or choose a folder you can write to")
