"""The events of a run: one JSON object a line, whole after a crash, not too many."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from kshot.errors import RunFolderError
from kshot.events import EventLog, LoggedProgress, Seldom
from kshot.pipeline import run
from kshot.progress import Silent
from kshot.run_folder import EVENTS, RunFolder

from .tiny_task import change_task


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_has_time_event_stage_and_fields(tmp_path: Path) -> None:
    EventLog(tmp_path / "events.jsonl").write("metrics", "expert", loss=1.5, grad_norm=math.nan)
    (line,) = _lines(tmp_path / "events.jsonl")
    assert line["time"].endswith("Z")
    assert line | {"time": ""} == {
        "time": "",
        "event": "metrics",
        "stage": "expert",
        "loss": 1.5,
        "grad_norm": None,
    }


def test_half_a_line_is_cut_off_and_whole_ones_stay(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventLog(path).write("started", "data")
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"time": "2026-0')
    EventLog(path)
    assert path.read_bytes() == whole
    path.write_bytes(b'{"time"')
    EventLog(path).write("started", "data")
    assert [line["event"] for line in _lines(path)] == ["started"]


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "run" / "events.jsonl") if (tmp_path / "run").mkdir() is None else None
    assert log
    log.path.unlink()
    log.path.mkdir()
    with pytest.raises(RunFolderError, match=r"cannot write .*events\.jsonl"):
        log.write("started", "data")


def test_seldom_is_due_at_once_and_then_after_a_while() -> None:
    now = [0.0]
    due = Seldom(5, clock=lambda: now[0])
    asked = []
    for now[0] in (0, 1, 4.9, 5, 6, 10, 11):
        asked.append(due.is_due())
    assert asked == [True, False, False, True, False, True, False]


def test_a_bar_is_written_at_its_first_and_last_unit(tmp_path: Path) -> None:
    run_folder = RunFolder(tmp_path)
    progress = LoggedProgress(run_folder.event, Silent())
    with progress.bar("scoring", 100) as advance:
        for _ in range(100):
            advance(1)
    progress.say("done")
    found = _lines(tmp_path / EVENTS)
    assert [(line["event"], line.get("done")) for line in found] == [
        ("progress", 1),
        ("progress", 100),
        ("said", None),
    ]


@pytest.mark.parametrize("error", [ValueError("no such row"), KeyboardInterrupt()])
def test_a_stage_that_fails_says_why(tmp_path: Path, error: BaseException) -> None:
    run_folder = RunFolder(tmp_path)
    with pytest.raises(type(error)), run_folder.stage("data", "abc"):
        raise error
    last = _lines(tmp_path / EVENTS)[-1]
    assert (last["event"], last["stage"]) == ("failed", "data")
    assert last["interrupted"] == isinstance(error, KeyboardInterrupt)
    assert "no such row" in last["error"] or last["interrupted"]


def test_the_events_of_a_run(task: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(task, out, until="training")
    found = _lines(out / EVENTS)
    assert found[0] | {"time": ""} == {"time": "", "event": "started", "stage": "run", "until": "training"}
    assert (found[-1]["event"], found[-1]["stage"]) == ("finished", "run")
    metrics = [line for line in found if line["event"] == "metrics" and line["stage"] == "expert"]
    assert metrics[-1]["step"] == metrics[-1]["steps"]
    assert {"loss", "learning_rate", "grad_norm", "epoch"} <= metrics[-1].keys()
    losses = json.loads((out / "expert" / "training.json").read_text())["losses"]
    assert metrics[-1]["loss"] == losses[-1]

    change_task(task, training__report_to="none", training__learning_rate=0.02)
    run(task, out, until="training")
    second = _lines(out / EVENTS)[len(found) :]
    reused = [line["stage"] for line in second if line["event"] == "reused"]
    assert reused == ["experts", "data"]


def test_reading_a_run_changes_nothing(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"expected a run folder at .*, found none"):
        RunFolder.existing(tmp_path / "run")
    (tmp_path / "a-run").mkdir()
    with pytest.raises(RunFolderError, match=r"found no config\.yaml in it"):
        RunFolder.existing(tmp_path / "a-run")
    (tmp_path / "a-run" / "config.yaml").touch()
    with pytest.raises(RunFolderError, match=r"did you mean '.*a-run'"):
        RunFolder.existing(tmp_path / "b-run")
    draft = tmp_path / "a-run" / ".data.x.partial"
    draft.mkdir()
    RunFolder.existing(tmp_path / "a-run").event("started")
    assert {path.name for path in (tmp_path / "a-run").iterdir()} == {draft.name, "config.yaml"}


def test_a_damaged_mark_is_no_finished_stage(tmp_path: Path) -> None:
    run_folder = RunFolder(tmp_path)
    with run_folder.stage("data", "abc"):
        pass
    assert run_folder.is_finished("data", "abc")
    for damage in ("", "{", "[]", "{}"):
        run_folder.path("data", "stage.json").write_text(damage)
        assert not run_folder.is_finished("data", "abc")
