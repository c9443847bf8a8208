"""A task with a mistake in it: one line says what is wrong, and what was there stays."""

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from kshot.cli import main

from ..tiny_task import change_task, tiny_rows, write_rows

KshotRun = Callable[[Path, Path], tuple[int, str]]


@pytest.fixture
def kshot_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> KshotRun:
    """Runs the command in this process, which saves the seconds that imports take."""

    def kshot_run(task: Path, out: Path) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["kshot", "run", str(task), "--out", str(out)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return int(stopped.value.code or 0), capsys.readouterr().err

    return kshot_run


def _widen(adapter: Path) -> None:
    """Make an adapter one of a base with twice the inputs."""
    weights = load_file(adapter / "adapter_model.safetensors")
    wider = {key: value.repeat(1, 2) if "lora_A" in key else value for key, value in weights.items()}
    save_file(wider, adapter / "adapter_model.safetensors")


def _broken(task: Path, kind: str) -> str:
    """Break one thing; return what the message must say."""
    bank = task.parent / "bank"
    if kind == "unknown key":
        change_task(task, mixture__topk=2)
        return "unknown key 'mixture.topk'; did you mean 'top_k'"
    if kind == "missing file":
        (task.parent / "shots.jsonl").unlink()
        return "expected a file at"
    if kind == "zero shots":
        (task.parent / "shots.jsonl").write_text("")
        return "expected at least one example"
    if kind == "shot without output":
        write_rows(task.parent / "shots.jsonl", [*tiny_rows(2), {"instruction": "say", "output": ""}])
        return "line 3: expected an output"
    if kind == "test holds a shot":
        write_rows(task.parent / "test.jsonl", [*tiny_rows(2, start=20), *tiny_rows(1)])
        return "which is shot"
    if kind == "adapter of another base":
        _widen(bank / "aa")
        return "'aa' was trained on another base"
    if kind == "truncated safetensors":
        path = bank / "bb" / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:-50])
        return "bb"
    if kind == "pickle only":
        (bank / "cc" / "adapter_model.safetensors").rename(bank / "cc" / "adapter_model.bin")
        return "never unpickled"
    if kind == "no rationale in the pool":
        change_task(task, data__require_rationale=True)
        return "data.budget must be in [0, 0]"
    assert kind == "budget above pool"
    change_task(task, data__budget=1000)
    return "data.budget must be in"


@pytest.mark.parametrize(
    "kind",
    [
        "unknown key",
        "missing file",
        "zero shots",
        "shot without output",
        "test holds a shot",
        "adapter of another base",
        "truncated safetensors",
        "pickle only",
        "budget above pool",
        "no rationale in the pool",
    ],
)
def test_bad_input_is_one_line_and_leaves_earlier_output(
    task: Path, tmp_path: Path, kind: str, kshot_run: KshotRun
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.yaml").write_text("earlier")
    expected = _broken(task, kind)
    code, error = kshot_run(task, out)
    assert code == 2, error
    assert expected in error
    assert "Traceback" not in error
    assert error.strip().splitlines()[-1].startswith("error: ")
    assert (out / "config.yaml").read_text() == "earlier"
    assert not list(out.rglob("*.partial"))


def test_an_output_folder_that_cannot_be_written(task: Path, tmp_path: Path, kshot_run: KshotRun) -> None:
    (tmp_path / "file").write_text("")
    code, error = kshot_run(task, tmp_path / "file" / "run")
    assert code == 2
    assert "expected a run folder that can be written" in error
