"""Trackers: refused early where they are missing; TensorBoard writes into the run folder."""

import os
from pathlib import Path

import pytest

from kshot.errors import MissingExtraError
from kshot.pipeline import run
from kshot.tracking import check_tracker, logging_into

from .tiny_task import change_task


def test_a_tracker_that_is_missing_is_refused_before_anything_is_scored(task: Path, tmp_path: Path) -> None:
    check_tracker("none")
    missing = next(name for name in ("wandb", "mlflow", "trackio") if _is_missing(name))
    change_task(task, training__report_to=missing)
    with pytest.raises(MissingExtraError, match=f"pip install {missing}"):
        run(task, tmp_path / "run")
    assert not (tmp_path / "run" / "experts").exists()
    run(task, tmp_path / "run", until="experts")  # which trains nothing
    assert (tmp_path / "run" / "experts").is_dir()


def _is_missing(name: str) -> bool:
    try:
        check_tracker(name)
    except MissingExtraError:
        return True
    return False


def test_files_go_to_the_folder_unless_the_user_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    with logging_into("tensorboard", tmp_path / "logs"):
        assert os.environ["TENSORBOARD_LOGGING_DIR"] == str(tmp_path / "logs")
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "mine")
    with logging_into("tensorboard", tmp_path / "logs"):
        assert os.environ["TENSORBOARD_LOGGING_DIR"] == "mine"
    assert os.environ["TENSORBOARD_LOGGING_DIR"] == "mine"


def test_tensorboard_writes_the_losses_into_the_run_folder(task: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # an optional package

    change_task(task, training__report_to="tensorboard")
    out = tmp_path / "run"
    run(task, out, until="training")
    found = sorted(path.name.partition("-")[0] for path in (out / "logs").iterdir())
    assert found == ["expert", "single"]
    (expert,) = (out / "logs").glob("expert-*")
    events = EventAccumulator(str(expert))
    events.Reload()
    assert len(events.Scalars("train/loss")) > 1
    before = (out / "expert" / "stage.json").read_bytes()
    change_task(task, training__report_to="none")
    run(task, out, until="training")  # where it is logged changes nothing
    assert (out / "expert" / "stage.json").read_bytes() == before
