"""A run whose adapters are scored by an engine, and the options that name one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kshot.cli import main
from kshot.engine import LocalEngine
from kshot.errors import ConfigError
from kshot.pipeline import run
from kshot.run_folder import SCORE_STORE, SCORES, SELECTION

from ..tiny_task import change_task


@pytest.fixture
def task(task: Path) -> Path:
    """The tiny task without its pool."""
    change_task(task, data__budget=0)
    return task


class Counting(LocalEngine):
    """Counts runs and shards."""

    def __init__(self) -> None:
        self.shards: list[int] = []

    def run(self, make_worker, shards):
        self.shards.append(len(shards))
        return super().run(make_worker, shards)


def test_an_engine_scores_and_changes_nothing_that_is_written(task: Path, tmp_path: Path) -> None:
    engine = Counting()
    here = run(task, tmp_path / "here", until="experts").folder
    there = run(task, tmp_path / "there", until="experts", engine=engine).folder
    for file in (SCORES, SELECTION):
        assert (there / "experts" / file).read_bytes() == (here / "experts" / file).read_bytes()
    assert (there / "config.yaml").read_bytes() == (here / "config.yaml").read_bytes()
    assert engine.shards == [1]
    run(task, tmp_path / "here", until="experts", engine=engine)  # finished: the engine is not asked
    (there / SCORE_STORE).rename(tmp_path / "kept")
    run(task, tmp_path / "there", until="experts", engine=engine)
    assert engine.shards == [1]


def test_an_engine_beside_an_endpoint_is_refused(task: Path, tmp_path: Path) -> None:
    change_task(task, experts__endpoint={"url": "http://127.0.0.1:9/v1"})
    with pytest.raises(ConfigError, match=r"got an engine and experts\.endpoint: leave out one"):
        run(task, tmp_path / "run", until="experts", engine=LocalEngine())
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize("command", ["run", "select", "augment", "train", "eval"])
def test_an_address_without_ray_is_refused(command, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["kshot", command, "task.yaml", "--out", "run", "--address", "auto"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "expected no address with the engine local, got 'auto': leave it out" in capsys.readouterr().err


def test_without_ray_its_engine_names_the_extra(capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(sys, "argv", ["kshot", "select", "task.yaml", "--out", "run", "--engine", "ray"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "the engine ray needs Ray: pip install 'kshot[ray]'" in capsys.readouterr().err


@pytest.mark.slow
def test_ray_from_the_command_line_selects_as_here_and_prints_results_alone(
    task: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'kshot[ray]'")
    run(task, tmp_path / "here", until="experts")
    kshot = [sys.executable, "-c", "from kshot.cli import main; main()"]
    options = ["--out", tmp_path / "there", "--engine", "ray", "--workers", "2", "--json"]
    done = subprocess.run([*kshot, "select", task, *options], capture_output=True, text=True, check=True)
    here = json.loads((tmp_path / "here" / "experts" / SELECTION).read_text())
    there = json.loads(done.stdout)["selection"]
    assert there["experts"] == here["experts"]
    names = [[row["name"] for row in selection["ranking"]] for selection in (there, here)]
    assert names[0] == names[1]
