"""Writes are whole or not there."""

import json
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from kshot.atomic import new_folder, remove_drafts, write_json, write_text
from kshot.errors import RunFolderError


@pytest.fixture
def almost_full_disk() -> Iterator[None]:
    """No file may grow past 4 kB, which fails as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_new_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "folder"
    with new_folder(target) as draft:
        (draft / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    assert [path.name for path in target.parent.iterdir()] == ["folder"]


def test_new_folder_replaces_the_old_one(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with new_folder(tmp_path / "f") as draft:
            (draft / text).write_text(text)
    assert [path.name for path in tmp_path.rglob("*")] == ["f", "new"]


def test_invariant_error_leaves_the_old_folder(tmp_path: Path) -> None:
    with new_folder(tmp_path / "f") as draft:
        (draft / "a").write_text("1")
    with pytest.raises(FileNotFoundError), new_folder(tmp_path / "f") as draft:
        shutil.copy(tmp_path / "none", draft / "b")
    assert (tmp_path / "f" / "a").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_folder_under_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunFolderError, match=r"cannot write .*: a part of"), new_folder(tmp_path / "file/f"):
        pass
    with (
        pytest.raises(RunFolderError, match=r"cannot write .*: Not a directory"),
        new_folder(tmp_path / "file"),
    ):
        pass
    with pytest.raises(RunFolderError, match=r"cannot write .*: a part of its path is a file"):
        write_text(tmp_path / "file" / "f", "x")
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.usefixtures("almost_full_disk")
def test_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "f", "old")
    with pytest.raises(RunFolderError, match=r"cannot write .*f: File too large; free space"):
        write_text(tmp_path / "f", "x" * 5000)
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_text() == "old"


@pytest.mark.usefixtures("almost_full_disk")
def test_full_disk_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"cannot write .*f: .*File too large.*free space"):  # noqa: SIM117
        with new_folder(tmp_path / "f") as draft:
            (draft / "a").write_text("x" * 5000)
    with pytest.raises(RunFolderError, match=r"cannot write .*f: .*File too large.*free space"):  # noqa: SIM117
        with new_folder(tmp_path / "f") as draft:
            save_file({"x": torch.zeros(5000)}, draft / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_other_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), new_folder(tmp_path / "f"):
        (tmp_path / "none").read_text()
    with pytest.raises(SafetensorError, match="header"), new_folder(tmp_path / "f"):
        raise SafetensorError("invalid header")


def test_remove_drafts(tmp_path: Path) -> None:
    (tmp_path / ".a.x.partial").mkdir()
    (tmp_path / ".a.x.partial.old").mkdir()
    (tmp_path / ".b.1.partial").write_text("")
    (tmp_path / "kept").write_text("")
    remove_drafts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_roundtrip_json(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None], "a": "größer"}
    write_json(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == value
    first = (tmp_path / "x.json").read_bytes()
    write_json(tmp_path / "x.json", dict(reversed(value.items())))
    assert (tmp_path / "x.json").read_bytes() == first
