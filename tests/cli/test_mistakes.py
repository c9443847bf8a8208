"""What a clumsy user sees: one line that says what to do, and exit code 2."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from kshot.cli import main
from kshot.cli.mistakes import explain
from kshot.errors import ConfigError

from ..tiny_task import change_task

Kshot = Callable[..., tuple[int, str]]


@pytest.fixture
def kshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Kshot:
    monkeypatch.setenv("KSHOT_HOME", str(tmp_path / "home"))

    def call(*words: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["kshot", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return int(stopped.value.code or 0), capsys.readouterr().err

    return call


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["runn", "task.yaml", "--out", "x"], "Did you mean 'run'"),
        (["bank", "lst", "x"], "Did you mean 'list'"),
        (["run", "task.yaml", "--owt", "x"], "No such option"),
        (["run", "task.yaml"], "Missing option '--out'"),
        (["report", "."], "config.yaml"),
        (["bank", "list", "no-such-bank"], "expected a bank or adapter folder at no-such-bank"),
        (["completion", "tcsh"], "tcsh"),
        (["doctor", "--jsn"], "No such option"),
    ],
)
def test_a_mistyped_command(
    kshot: Kshot, words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, error = kshot(*words)
    assert code == 2, error
    assert said in error
    assert "Traceback" not in error


def _mistaken(task: Path, kind: str) -> str:
    """Make one mistake; return what must be said."""
    folder = task.parent
    if kind == "task file with another ending":
        task.rename(folder / "task.yml")
        return f"did you mean '{folder / 'task.yml'}'"
    if kind == "task file is a folder":
        task.unlink()
        task.mkdir()
        (task / "my.yaml").touch()
        return f"Is a directory; expected a YAML file; did you mean '{task / 'my.yaml'}'"
    if kind == "task file is empty":
        task.write_text("")
        return "expected a mapping of settings"
    if kind == "task file is binary":
        task.write_bytes(b"\xff\xfe\x00\x01")
        return "expected YAML"
    if kind == "tab in the task file":
        task.write_text("name: tiny\n\tshots: x\n")
        return "expected YAML"
    if kind == "mistyped shots":
        change_task(task, shots="shot.jsonl")
        return f"did you mean '{folder / 'shots.jsonl'}'"
    if kind == "shots are a folder":
        change_task(task, shots=".")
        return f"found a folder; name files in it, such as {folder / 'pool.jsonl'}"
    if kind == "shots are a text":
        (folder / "shots.txt").write_text("one\n")
        change_task(task, shots="shots.txt")
        return "expected .jsonl, .json, .parquet, .csv"
    if kind == "mistyped bank":
        change_task(task, bank=["bnk"])
        return f"did you mean '{folder / 'bank'}'"
    if kind == "bank is a file":
        change_task(task, bank=["shots.jsonl"])
        return "expected a bank or adapter folder"
    if kind == "mistyped base model":
        change_task(task, base_model=f"{yaml.safe_load(task.read_text())['base_model']}x")
        return "did you mean '"
    if kind == "mistyped key":
        change_task(task, data__treshold=0.5)
        return "unknown key 'data.treshold'; did you mean 'threshold'?"
    if kind == "mistyped adapter":
        change_task(task, experts__exclude=["aaa"])
        return "aa"
    assert kind == "pool pattern without a match"
    change_task(task, pool=["poo/*.jsonl"])
    return "expected a file at"


@pytest.mark.parametrize("command", ["run", "dry run"])
@pytest.mark.parametrize(
    "kind",
    [
        "task file with another ending",
        "task file is a folder",
        "task file is empty",
        "task file is binary",
        "tab in the task file",
        "mistyped shots",
        "shots are a folder",
        "shots are a text",
        "mistyped bank",
        "bank is a file",
        "mistyped base model",
        "mistyped key",
        "mistyped adapter",
        "pool pattern without a match",
    ],
)
def test_a_mistake_in_a_task_is_one_line(
    kshot: Kshot, task: Path, tmp_path: Path, kind: str, command: str
) -> None:
    said = _mistaken(task, kind)
    code, error = kshot(
        "run", task, "--out", tmp_path / "run", *(["--dry-run"] if command == "dry run" else [])
    )
    assert code == 2, error
    assert said in error
    assert error.strip().splitlines()[-1].startswith("error: ")
    assert command == "run" or not (tmp_path / "run").exists()


def test_folders_that_are_only_read_are_never_made(kshot: Kshot, tmp_path: Path) -> None:
    for words in (["report"], ["export", "--out", tmp_path / "lora"]):
        code, error = kshot(words[0], tmp_path / "no-run", *words[1:])
        assert code == 2
        assert "expected a run folder" in error
        assert not (tmp_path / "no-run").exists()


def test_a_bank_that_is_not_there_makes_no_task_folder(kshot: Kshot, task: Path, tmp_path: Path) -> None:
    code, error = kshot("init", tmp_path / "new", "--bank", task.parent / "bnk")
    assert code == 2
    assert f"did you mean '{task.parent / 'bank'}'" in error
    assert not (tmp_path / "new").exists()


def _explained(error: Exception, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    return explain(error), capsys.readouterr().err


def test_kinds_of_failure(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KSHOT_DEBUG", raising=False)
    assert _explained(ConfigError("x [bold]"), capsys) == (2, "error: x [bold]\n")
    code, said = _explained(PermissionError(errno.EACCES, "Permission denied", "/root/x"), capsys)
    assert (code, "error: /root/x: Permission denied" in said) == (2, True)
    code, said = _explained(torch.OutOfMemoryError("CUDA out of memory. Tried"), capsys)
    assert code == 2
    assert "lower training.per_device_train_batch_size" in said
    code, said = _explained(RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory"), capsys)
    assert (code, "out of memory" in said) == (2, True)
    code, said = _explained(ZeroDivisionError("division by zero"), capsys)
    assert (code, "KSHOT_DEBUG=1" in said) == (1, True)
    monkeypatch.setenv("KSHOT_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        explain(ZeroDivisionError("division by zero"))
    assert _explained(ConfigError("x"), capsys)[0] == 2
