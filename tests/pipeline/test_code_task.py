"""A task whose answers are run: in bubblewrap, or without it where the user says so."""

import json
from pathlib import Path

import pytest
import yaml

from kshot.cli import main
from kshot.errors import SandboxError
from kshot.evaluation import sandbox

from ..tiny_bank import write_bank
from ..tiny_task import write_rows


@pytest.fixture
def task_file(tmp_path: Path, tiny_model_folder: Path, lora_folder, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two shots, two test rows, two adapters, no pool."""
    write_bank(tmp_path / "bank", lora_folder, ["aa", "bb"])
    for name, numbers in {"shots": (1, 2), "test": (3, 4)}.items():
        rows = [
            {
                "instruction": f"write f that returns {number}",
                "output": f"def f(): return {number}",
                "answer": f"assert f() == {number}",
                "id": f"{name}-{number}",
            }
            for number in numbers
        ]
        write_rows(tmp_path / f"{name}.jsonl", rows)
    task = {
        "name": "tiny-code",
        "base_model": str(tiny_model_folder),
        "shots": "shots.jsonl",
        "test": "test.jsonl",
        "scorer": "code",
        "bank": ["bank"],
        "experts": {"num_candidates": 2, "num_experts": 2},
        "data": {"budget": 0},
        "training": {"num_train_epochs": 1, "per_device_train_batch_size": 2},
        "evaluation": {"max_new_tokens": 3},
    }
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(task))
    yield tmp_path / "task.yaml"
    sandbox._open.cache_clear()


def _kshot(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["kshot", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def _without_bubblewrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    sandbox._open.cache_clear()


@pytest.mark.parametrize("command", ["run", "select", "eval"])
def test_without_bubblewrap_nothing_is_computed(
    command: str, task_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _without_bubblewrap(monkeypatch)
    out = task_file.parent / "out"
    assert _kshot(monkeypatch, command, task_file, "--out", out) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(
        "error: expected bubblewrap to run what models write; there is none here: install it"
    )
    assert "--allow-unsafe-code" in error
    assert not [path for path in out.rglob("*") if path.name not in ("events.jsonl", ".lock")]


def test_the_user_may_say_so(
    task_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _without_bubblewrap(monkeypatch)
    out = task_file.parent / "out"
    assert _kshot(monkeypatch, "select", task_file, "--out", out, "--allow-unsafe-code") == 0
    assert "warning: without bubblewrap, what models write runs with your rights" in " ".join(
        capsys.readouterr().err.split()
    )
    assert {row["name"] for row in json.loads((out / "experts/scores.json").read_text())["scores"]} == {
        "aa",
        "bb",
    }
    with pytest.raises(SandboxError):  # it counts for one run
        sandbox.open_sandbox()


def test_answers_are_run_in_the_sandbox(task_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        sandbox.open_sandbox()
    except SandboxError as error:
        pytest.skip(str(error))
    out = task_file.parent / "out"
    assert _kshot(monkeypatch, "eval", task_file, "--out", out) == 0
    found = json.loads((out / "eval/base/predictions.json").read_text())
    assert found["summary"]["n"] == 2
    for row in found["predictions"]:
        assert row["correct"] is False
        assert row["details"]["outcome"].split(":")[0] in (
            "SyntaxError",
            "NameError",
            "AssertionError",
            "IndentationError",
        )
