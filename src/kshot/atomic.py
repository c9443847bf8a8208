"""Writes that are whole or not there: written beside their place, then renamed."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp, mkstemp
from typing import Any

from kshot.errors import RunFolderError


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` on success and vanishes on any error.

    An existing `target` is replaced only after the new content is complete.

    Raises:
        RunFolderError: The parent of `target` cannot be written, or the disk is full.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        draft.chmod(0o755)
    except OSError as error:
        raise RunFolderError(
            f"cannot write {target}: {error.strerror}; choose a folder you can write to"
        ) from error
    try:
        yield draft
        if target.exists():
            retired = draft.with_name(draft.name + ".old")
            target.rename(retired)
            draft.rename(target)
            shutil.rmtree(retired)
        else:
            draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def remove_drafts(folder: Path) -> None:
    """Delete what a killed process left behind in `folder`."""
    for draft in folder.glob(".*.partial*"):
        shutil.rmtree(draft) if draft.is_dir() else draft.unlink()


def write_text(target: Path, text: str) -> None:
    """Write `text` to `target` in one rename.

    Raises:
        RunFolderError: The folder of `target` cannot be written, or the disk is full.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(draft, 0o644)
            os.replace(draft, target)
        except BaseException:
            os.unlink(draft)
            raise
    except OSError as error:
        raise RunFolderError(
            f"cannot write {target}: {error.strerror}; choose a folder you can write to"
        ) from error


def write_json(target: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, so that equal values give equal bytes."""
    write_text(target, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
