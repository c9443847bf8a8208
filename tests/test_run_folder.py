"""The run folder: stages appear whole, marked with what they read."""

import json
from pathlib import Path

import pytest

from kshot.errors import RunFolderError
from kshot.run_folder import EVENTS, RunFolder, digest


def test_a_stage_takes_its_place_when_it_is_whole(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with run.stage("data", "abc") as draft:
        (draft / "rows.txt").write_text("1")
        assert not run.path("data").exists()
    assert run.path("data", "rows.txt").read_text() == "1"
    assert run.is_finished("data", "abc")
    assert not run.is_finished("data", "other")
    events = [json.loads(line)["event"] for line in run.path(EVENTS).read_text().splitlines()]
    assert events == ["started", "finished"]


def test_a_failed_stage_leaves_the_earlier_one(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with run.stage("data", "abc") as draft:
        (draft / "rows.txt").write_text("1")
    with pytest.raises(FileNotFoundError), run.stage("data", "new") as draft:
        (draft / "rows.txt").write_text((tmp_path / "missing").read_text())
    assert run.path("data", "rows.txt").read_text() == "1"
    assert sorted(path.name for path in run.root.iterdir()) == ["data", EVENTS]


def test_drafts_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    root = tmp_path / "run"
    for draft in (root / ".data.x1.partial", root / "eval" / ".base.x2.partial"):
        draft.mkdir(parents=True)
        (draft / "half.json").write_text("{")
    RunFolder(root)
    assert not list(root.rglob("*.partial"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="expected a run folder that can be written"):
        RunFolder(tmp_path / "file" / "run")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"scores\.json"):
        RunFolder(tmp_path / "run").read_json("experts", "scores.json")


def test_invariant_digest_does_not_depend_on_key_order() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
