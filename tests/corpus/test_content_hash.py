"""Content hashes: sha256, computed again when a file changes and not otherwise."""

import json
import os
from hashlib import sha256
from pathlib import Path

import pytest

from kshot.corpus.content_hash import content_hash
from kshot.errors import SourceError


def _old(path: Path, content: bytes = b"rows") -> Path:
    """Write a file that last changed an hour ago."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    hour_ago = path.stat().st_mtime - 3600
    os.utime(path, (hour_ago, hour_ago))
    return path


def test_against_sha256(tmp_path: Path) -> None:
    path = _old(tmp_path / "x")
    assert content_hash(path) == content_hash(path) == sha256(b"rows").hexdigest()


def test_a_known_hash_is_read_and_not_computed(tmp_path: Path, kshot_home: Path) -> None:
    path = _old(tmp_path / "x")
    content_hash(path)
    (known,) = (kshot_home / "pools" / "hashes").iterdir()
    known.write_text(json.dumps(json.loads(known.read_text()) | {"sha256": "remembered"}))
    assert content_hash(path) == "remembered"
    known.write_text("damaged")
    assert content_hash(path) == sha256(b"rows").hexdigest()


def test_a_changed_file_is_hashed_again(tmp_path: Path) -> None:
    path = _old(tmp_path / "x")
    content_hash(path)
    path.write_bytes(b"swor")
    assert content_hash(path) == sha256(b"swor").hexdigest()


def test_a_file_that_may_change_within_its_time_stamp_is_not_remembered(
    tmp_path: Path, kshot_home: Path
) -> None:
    (tmp_path / "x").write_bytes(b"rows")
    content_hash(tmp_path / "x")
    assert not (kshot_home / "pools" / "hashes").exists()


def test_a_folder_counts_names_and_content(tmp_path: Path) -> None:
    for name in ("one", "same", "renamed", "changed"):
        _old(tmp_path / name / ("b" if name == "renamed" else "a"), b"y" if name == "changed" else b"x")
    one, same, renamed, changed = (
        content_hash(tmp_path / name) for name in ("one", "same", "renamed", "changed")
    )
    assert one == same
    assert len({one, renamed, changed}) == 3


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"cannot read .*gone: No such file"):
        content_hash(tmp_path / "gone")
