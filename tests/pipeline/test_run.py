"""The whole pipeline on a tiny model: one way through, killed in each stage, and what is run again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kshot.bank import Bank
from kshot.errors import AdapterError
from kshot.pipeline import run
from kshot.pipeline.arms import ARMS

from ..tiny_task import NUMBERS, change_task
from ..word_encoder import random_vectors, write_word_encoder

STAGES = ["experts", "data", "single", "expert", "choice", "eval/base", "eval/tuned_mixture"]


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ["say", "then", "number", *NUMBERS, *map(str, range(400))]
    return write_word_encoder(tmp_path_factory.mktemp("encoder") / "static", words, random_vectors(words, 16))


@pytest.fixture
def task(task: Path, encoder_folder: Path) -> Path:
    """The tiny task, its pool embedded by a static encoder."""
    change_task(task, data__encoder=str(encoder_folder), data__threshold=0.999)
    return task


def _start(task: Path, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", "from kshot.cli import main; main()", "run", str(task), "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
    )


def _run_through(task: Path, out: Path) -> None:
    process = _start(task, out)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error


def _kill_in_stage(task: Path, out: Path, stage: str) -> None:
    process = _start(task, out)
    deadline = time.monotonic() + 120
    while not any(event.get("stage") == stage for event in _events(out)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def _products(out: Path) -> dict[str, bytes]:
    """What must be the same bytes after any interruption."""
    names = [
        "experts/scores.json",
        "experts/selection.json",
        "data/selected.jsonl",
        "expert/adapter/adapter_model.safetensors",
        "single/adapter/adapter_model.safetensors",
        "choice/held_out.json",
        "eval/results.json",
    ]
    return {name: (out / name).read_bytes() for name in names}


def _events(out: Path) -> list[dict[str, str]]:
    path = out / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


@pytest.mark.slow
def test_one_way_through_then_killed_in_each_stage(task: Path, tmp_path: Path) -> None:
    change_task(task, evaluation__folds=2)
    undisturbed = tmp_path / "undisturbed"
    _run_through(task, undisturbed)
    assert (undisturbed / "report.html").stat().st_size > 1000
    expected = _products(undisturbed)

    killed = tmp_path / "killed"
    for stage in STAGES:
        _kill_in_stage(task, killed, stage)
    _run_through(task, killed)
    assert _products(killed) == expected
    assert not list(killed.rglob("*.partial"))
    assert not list(killed.glob(".*checkpoints*"))


def test_what_is_finished_and_unchanged_is_not_run_again(task: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(task, out)
    before = len(_events(out))
    run(task, out)
    second = [event["event"] for event in _events(out)[before:]]
    assert second == ["started", *["reused"] * (5 + len(ARMS)), "finished"]
    change_task(task, training__learning_rate=0.02)
    before = len(_events(out))
    run(task, out)
    started = [e["stage"] for e in _events(out)[before:] if e["event"] == "started" and e["stage"] != "run"]
    assert started == ["single", "expert", "choice", "eval/best_single_tuned", "eval/tuned_mixture"]


def test_adapters_that_cannot_be_scored_are_listed_and_stop_no_other(task: Path, tmp_path: Path) -> None:
    bank, out = task.parent / "bank", tmp_path / "run"
    index = Bank.create(bank)
    index.record(*(adapter.entry for adapter in index))
    weights = load_file(bank / "aa" / "adapter_model.safetensors")
    save_file(
        {key: value * torch.nan for key, value in weights.items()}, bank / "aa" / "adapter_model.safetensors"
    )
    torn = bank / "bb" / "adapter_model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-50])
    run(task, out, until="experts")
    scores = json.loads((out / "experts" / "scores.json").read_text())
    assert [score["name"] for score in scores["scores"]] == ["cc", "dd", "ee"]
    assert set(scores["failures"]) == {"aa", "bb"}
    assert "aa" in scores["failures"]["aa"]
    selection = json.loads((out / "experts" / "selection.json").read_text())
    assert selection["failures"] == scores["failures"]

    (bank / "cc" / "adapter_model.safetensors").write_bytes(b"")
    change_task(task, experts__method="balanced")
    with pytest.raises(AdapterError, match=r"num_experts = 3 adapters that can be scored, got 2 of 5; aa: "):
        run(task, out, until="experts")


def test_adapters_called_as_the_task_are_flagged_and_the_choice_is_made_without_them_too(
    task: Path, tmp_path: Path
) -> None:
    (task.parent / "bank" / "aa").rename(task.parent / "bank" / "tiny_train")
    run(task, tmp_path / "run", until="experts")
    selection = json.loads((tmp_path / "run" / "experts" / "selection.json").read_text())
    assert selection["flagged"] == {"tiny_train": "is called as the task, tiny"}
    assert "tiny_train" in [row["name"] for row in selection["ranking"]]
    assert set(selection["without_flagged"]["experts"]) <= {"bb", "cc", "dd", "ee"}


def test_a_setting_of_the_selection_alone_scores_nothing_again(task: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(task, out, until="experts")
    known, scores = (out / ".scores.jsonl").read_bytes(), (out / "experts" / "scores.json").read_bytes()
    change_task(task, experts__num_experts=2)
    run(task, out, until="experts")
    selection = json.loads((out / "experts" / "selection.json").read_text())
    assert len(selection["experts"]) == 2
    assert (out / ".scores.jsonl").read_bytes() == known
    assert (out / "experts" / "scores.json").read_bytes() == scores
