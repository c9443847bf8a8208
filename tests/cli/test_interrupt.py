"""Ctrl-C in a real process: exit code 130, one line, and a run that goes on to the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from ..tiny_task import change_task

PRODUCTS = [
    "experts/scores.json",
    "experts/selection.json",
    "data/selected.jsonl",
    "single/adapter/adapter_model.safetensors",
    "expert/adapter/adapter_model.safetensors",
    "choice/held_out.json",
    "eval/results.json",
]


Process = subprocess.Popen[str]


@contextmanager
def _python(code: str, *words: object) -> Iterator[Process]:
    """Run a program; whatever happens, it does not outlive the block."""
    with subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _run(task: Path, out: Path) -> AbstractContextManager[Process]:
    return _python("from kshot.cli import main; main()", "run", task, "--out", out)


def _wait_for(process: Process, out: Path, stage: str) -> None:
    deadline = time.monotonic() + 300
    while True:
        path = out / "events.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        events = [json.loads(line) for line in lines if line.endswith("\n")]
        if any(event["stage"] == stage and event["event"] == "started" for event in events):
            return
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.slow
def test_a_run_that_is_stopped_in_every_stage_ends_with_the_same_bytes(task: Path, tmp_path: Path) -> None:
    change_task(task, evaluation__folds=2)
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "run"
    with _run(task, undisturbed) as process:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error

    for stage in ("experts", "data", "single", "expert", "choice", "eval/base"):
        with _run(task, out) as process:
            _wait_for(process, out, stage)
            process.send_signal(signal.SIGINT)
            _, error = process.communicate(timeout=300)
        assert process.returncode == 130, error
        assert "Traceback" not in error
        assert error.strip().splitlines()[-1] == f"stopped; to go on: kshot run {task} --out {out}"
        assert not list(out.rglob("*.partial"))
        events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
        assert (events[-1]["stage"], events[-1]["interrupted"]) == ("run", True)

    with _run(task, out) as process:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
    for name in PRODUCTS:
        assert (out / name).read_bytes() == (undisturbed / name).read_bytes(), name


STUBBORN = """
import time
import typer
from kshot.cli.common import share

app = typer.Typer()

@app.command()
def command() -> None:
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("cleaning", flush=True)
        time.sleep(60)

share(app)
app()
"""


@pytest.mark.slow
def test_the_second_time_it_quits_at_once() -> None:
    with _python(STUBBORN) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "cleaning\n"
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in error


@pytest.mark.slow
def test_while_torch_is_being_imported_it_ends_in_silence() -> None:
    code = "print('ready', flush=True); from kshot_command import main; main()"
    with _python(code, "--help") as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        time.sleep(1)  # the handler is set in a few ms, importing takes seconds
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in error
