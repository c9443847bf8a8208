"""`--json` puts one JSON value on stdout and nothing else; `--quiet` leaves stderr to errors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from kshot.cli import app

# Their own tests read what these print: they need a server, a Hub, an encoder or a recipe with data.
ELSEWHERE = {
    "rationales",
    "serve",
    "bank sync",
    "bank build",
    "screen",
    "pool build",
    "pool add",
    "pool info",
}
ELSEWHERE |= {"pool search"}


def _printed(*words: object) -> Any:
    result = CliRunner().invoke(app, [*map(str, words), "--json", "--quiet"])
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return json.loads(result.stdout)


def _commands(group: Any, path: str = "") -> dict[str, Any]:
    found = {}
    for name, one in group.commands.items():
        whole = f"{path} {name}".strip()
        found |= _commands(one, whole) if hasattr(one, "commands") else {whole: one}
    return found


def test_every_command_prints_json_or_needs_none(
    task: Path, tmp_path: Path, lora_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, bank = tmp_path / "run", task.parent / "bank"
    printed = {
        "run": _printed("run", task, "--out", out),
        "select": _printed("select", task, "--out", out),
        "augment": _printed("augment", task, "--out", out),
        "train": _printed("train", task, "--out", out),
        "eval": _printed("eval", task, "--out", out),
        "report": _printed("report", out),
        "export": _printed("export", out, "--out", tmp_path / "lora"),
        "doctor": _printed("doctor", task),
        "init": _printed("init", tmp_path / "shopping", "--bank", bank),
        "bank add": _printed("bank", "add", tmp_path / "bank", lora_folder("sql"), "--licence", "mit"),
        "bank list": _printed("bank", "list", bank),
        "bank index": _printed("bank", "index", bank),
        "bank verify": _printed("bank", "verify", bank),
    }
    assert len(printed["select"]["selection"]["experts"]) == 3
    assert printed["run"]["results"] == printed["eval"]["results"] != []
    assert printed["run"]["choice"] == printed["eval"]["choice"]
    assert printed["run"]["choice"]["chosen"] == "tuned_mixture"
    assert Path(printed["train"]["expert"]).is_dir()
    assert Path(printed["report"]["report"]).is_file()
    assert printed["bank add"]["licence"] == "mit"
    assert printed["bank index"]["completed"] == ["aa", "bb", "cc", "dd", "ee"]
    assert yaml.safe_load(Path(printed["init"]["task"]).read_text())["name"] == "shopping"
    forecast = _printed("run", task, "--out", tmp_path / "other", "--dry-run")
    assert {stage["stage"] for stage in forecast["stages"]} >= {"experts", "data", "expert"}

    with_json = {
        name
        for name, command in _commands(get_command(app)).items()
        if any("--json" in parameter.opts for parameter in command.params)
    }
    assert with_json <= printed.keys() | ELSEWHERE


def test_progress_is_on_stderr_and_can_be_silenced(task: Path, tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["select", str(task), "--out", str(tmp_path / "a")])
    assert "scoring adapters on shots" in shown.stderr
    assert "scoring adapters on shots" not in shown.stdout
    assert "adapters on the shots" in shown.stdout
    quiet = CliRunner().invoke(app, ["select", str(task), "--out", str(tmp_path / "b"), "-q"])
    assert quiet.stderr == ""
    assert "adapters on the shots" in quiet.stdout


def test_every_command_takes_quiet() -> None:
    for name, command in _commands(get_command(app)).items():
        assert any("--quiet" in parameter.opts for parameter in command.params), name


def test_a_dry_run_is_a_table_for_people(task: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["run", str(task), "--out", str(tmp_path / "run"), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "about" in result.stdout
    assert "disk: " in result.stdout
    assert not (tmp_path / "run").exists()
