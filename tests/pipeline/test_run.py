"""The whole pipeline on a tiny model: one way through, killed in each stage, and bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM

from kshot.bank import Bank
from kshot.cli import main
from kshot.errors import AdapterError, ConfigError, RunFolderError
from kshot.pipeline import export_expert, run
from kshot.pipeline.arms import ARMS

Kshot = Callable[[Path, Path], tuple[int, str]]
NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def _rows(count: int, start: int = 0, rationale: bool = True) -> list[dict[str, str]]:
    rows = []
    for index in range(start, start + count):
        a, b = NUMBERS[index % 10], NUMBERS[index // 10 % 10]
        row = {
            "instruction": f"say {a} then {b}, please, number {index}",
            "output": f"{a} {b}",
            "id": f"row-{index}",
        }
        rows.append(row | ({"rationale": f"first {a}"} if rationale else {}))
    return rows


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ["[UNK]", "say", "then", "please", "number", *NUMBERS, *map(str, range(400))]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    weights = np.random.default_rng(0).normal(size=(len(words), 16)).astype(np.float32)
    folder = tmp_path_factory.mktemp("encoder") / "static"
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, weights)], device="cpu").save(str(folder))
    return folder


@pytest.fixture
def task_folder(tmp_path: Path, tiny_model_folder: Path, lora_folder, encoder_folder: Path) -> Path:
    """A task that runs: 4 shots, 6 test rows, 5 adapters, 120 open rows."""
    folder = tmp_path / "task"
    (folder / "bank").mkdir(parents=True)
    for seed, name in enumerate(["aa", "bb", "cc", "dd", "ee"]):
        lora_folder(name, seed=seed).rename(folder / "bank" / name)
    _write(folder / "shots.jsonl", _rows(4))
    _write(folder / "test.jsonl", _rows(6, start=10))
    _write(folder / "pool.jsonl", _rows(120, start=100, rationale=False))
    task = {
        "name": "tiny",
        "base_model": str(tiny_model_folder),
        "shots": "shots.jsonl",
        "test": "test.jsonl",
        "scorer": "exact_match",
        "bank": ["bank"],
        "pool": ["pool.jsonl"],
        "experts": {"num_candidates": 4, "num_experts": 3},
        "data": {"budget": 10, "threshold": 0.999, "encoder": str(encoder_folder)},
        "training": {
            "learning_rate": 0.01,
            "num_train_epochs": 2,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 1,
        },
        "evaluation": {"max_new_tokens": 4},
    }
    (folder / "task.yaml").write_text(yaml.safe_dump(task))
    return folder


def _change(folder: Path, **changes: object) -> None:
    task = yaml.safe_load((folder / "task.yaml").read_text())
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            task.setdefault(section, {})[name] = value
        else:
            task[section] = value
    (folder / "task.yaml").write_text(yaml.safe_dump(task))


def _command(folder: Path, out: Path) -> list[str]:
    code = "from kshot.cli import main; main()"
    return [sys.executable, "-c", code, "run", str(folder / "task.yaml"), "--out", str(out)]


ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def _kshot(folder: Path, out: Path) -> tuple[int, str]:
    done = subprocess.run(
        _command(folder, out), capture_output=True, text=True, env=ONE_THREAD, timeout=120, check=False
    )
    return done.returncode, done.stderr


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Kshot:
    """Runs the command in this process, which saves the seconds that imports take."""

    def kshot(folder: Path, out: Path) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["kshot", *_command(folder, out)[3:]])
        with pytest.raises(SystemExit) as stopped:
            main()
        return int(stopped.value.code or 0), capsys.readouterr().err

    return kshot


def _kill_in_stage(folder: Path, out: Path, stage: str) -> None:
    process = subprocess.Popen(
        _command(folder, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ONE_THREAD
    )
    deadline = time.monotonic() + 120
    while not any(event.get("stage") == stage for event in _events(out)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()


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


STAGES = ["experts", "data", "single", "expert", "choice", "eval/base", "eval/tuned_mixture"]


@pytest.mark.slow
def test_one_way_through_then_killed_in_each_stage(task_folder: Path, tmp_path: Path) -> None:
    _change(task_folder, evaluation__folds=2)
    undisturbed = tmp_path / "undisturbed"
    code, error = _kshot(task_folder, undisturbed)
    assert code == 0, error
    assert (undisturbed / "report.html").stat().st_size > 1000
    expected = _products(undisturbed)

    killed = tmp_path / "killed"
    for stage in STAGES:
        _kill_in_stage(task_folder, killed, stage)
    code, error = _kshot(task_folder, killed)
    assert code == 0, error
    assert _products(killed) == expected
    assert not list(killed.rglob("*.partial"))
    assert not list(killed.glob(".*checkpoints*"))


def test_what_is_finished_and_unchanged_is_not_run_again(task_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(task_folder / "task.yaml", out)
    before = len(_events(out))
    run(task_folder / "task.yaml", out)
    second = [event["event"] for event in _events(out)[before:]]
    assert second == ["started", *["reused"] * (5 + len(ARMS)), "finished"]
    _change(task_folder, training__learning_rate=0.02)
    before = len(_events(out))
    run(task_folder / "task.yaml", out)
    started = [e["stage"] for e in _events(out)[before:] if e["event"] == "started" and e["stage"] != "run"]
    assert started == ["single", "expert", "choice", "eval/best_single_tuned", "eval/tuned_mixture"]


def _widen(adapter: Path) -> None:
    """Make an adapter one of a base with twice the inputs."""
    weights = load_file(adapter / "adapter_model.safetensors")
    wider = {key: value.repeat(1, 2) if "lora_A" in key else value for key, value in weights.items()}
    save_file(wider, adapter / "adapter_model.safetensors")


def _broken(folder: Path, kind: str) -> str:
    """Break one thing; return what the message must say."""
    bank = folder / "bank"
    if kind == "unknown key":
        _change(folder, mixture__topk=2)
        return "unknown key 'mixture.topk'; did you mean 'top_k'"
    if kind == "missing file":
        (folder / "shots.jsonl").unlink()
        return "expected a file at"
    if kind == "zero shots":
        (folder / "shots.jsonl").write_text("")
        return "expected at least one example"
    if kind == "shot without output":
        _write(folder / "shots.jsonl", [*_rows(2), {"instruction": "say", "output": ""}])
        return "line 3: expected an output"
    if kind == "test holds a shot":
        _write(folder / "test.jsonl", [*_rows(2, start=20), *_rows(1)])
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
        _change(folder, data__require_rationale=True)
        return "data.budget must be in [0, 0]"
    assert kind == "budget above pool"
    _change(folder, data__budget=1000)
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
    task_folder: Path, tmp_path: Path, kind: str, in_process: Kshot
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.yaml").write_text("earlier")
    expected = _broken(task_folder, kind)
    code, error = in_process(task_folder, out)
    assert code == 2, error
    assert expected in error
    assert "Traceback" not in error
    assert error.strip().splitlines()[-1].startswith("error: ")
    assert (out / "config.yaml").read_text() == "earlier"
    assert not list(out.rglob("*.partial"))


def test_adapters_that_cannot_be_scored_are_listed_and_stop_no_other(
    task_folder: Path, tmp_path: Path
) -> None:
    bank, out = task_folder / "bank", tmp_path / "run"
    index = Bank.create(bank)
    index.record(*(adapter.entry for adapter in index))
    weights = load_file(bank / "aa" / "adapter_model.safetensors")
    save_file(
        {key: value * torch.nan for key, value in weights.items()}, bank / "aa" / "adapter_model.safetensors"
    )
    torn = bank / "bb" / "adapter_model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-50])
    run(task_folder / "task.yaml", out, until="experts")
    scores = json.loads((out / "experts" / "scores.json").read_text())
    assert [score["name"] for score in scores["scores"]] == ["cc", "dd", "ee"]
    assert set(scores["failures"]) == {"aa", "bb"}
    assert "aa" in scores["failures"]["aa"]
    selection = json.loads((out / "experts" / "selection.json").read_text())
    assert selection["failures"] == scores["failures"]

    (bank / "cc" / "adapter_model.safetensors").write_bytes(b"")
    _change(task_folder, experts__method="balanced")
    with pytest.raises(AdapterError, match=r"num_experts = 3 adapters that can be scored, got 2 of 5; aa: "):
        run(task_folder / "task.yaml", out, until="experts")


def test_adapters_called_as_the_task_are_flagged_and_the_choice_is_made_without_them_too(
    task_folder: Path, tmp_path: Path
) -> None:
    (task_folder / "bank" / "aa").rename(task_folder / "bank" / "tiny_train")
    run(task_folder / "task.yaml", tmp_path / "run", until="experts")
    selection = json.loads((tmp_path / "run" / "experts" / "selection.json").read_text())
    assert selection["flagged"] == {"tiny_train": "is called as the task, tiny"}
    assert "tiny_train" in [row["name"] for row in selection["ranking"]]
    assert set(selection["without_flagged"]["experts"]) <= {"bb", "cc", "dd", "ee"}


def test_a_setting_of_the_selection_alone_scores_nothing_again(task_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(task_folder / "task.yaml", out, until="experts")
    known, scores = (out / ".scores.jsonl").read_bytes(), (out / "experts" / "scores.json").read_bytes()
    _change(task_folder, experts__num_experts=2)
    run(task_folder / "task.yaml", out, until="experts")
    selection = json.loads((out / "experts" / "selection.json").read_text())
    assert len(selection["experts"]) == 2
    assert (out / ".scores.jsonl").read_bytes() == known
    assert (out / "experts" / "scores.json").read_bytes() == scores


def test_an_output_folder_that_cannot_be_written(
    task_folder: Path, tmp_path: Path, in_process: Kshot
) -> None:
    (tmp_path / "file").write_text("")
    code, error = in_process(task_folder, tmp_path / "file" / "run")
    assert code == 2
    assert "expected a run folder that can be written" in error


def test_exports_the_expert_as_a_plain_lora(
    task_folder: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(RunFolderError, match="expected a run folder at"):
        export_expert(out, tmp_path / "lora")
    run(task_folder / "task.yaml", out, until="experts")
    with pytest.raises(RunFolderError, match="expected a trained expert"):
        export_expert(out, tmp_path / "lora")
    run(task_folder / "task.yaml", out, until="training")
    exported = export_expert(out, tmp_path / "lora")
    assert exported.loss is not None
    assert exported.loss["num_tokens"] > 0
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    before = base(torch.tensor([[3, 4, 5]])).logits
    lora = PeftModel.from_pretrained(base, tmp_path / "lora")
    assert not torch.allclose(lora(torch.tensor([[3, 4, 5]])).logits, before)
    with pytest.raises(ConfigError, match="expected a new folder"):
        export_expert(out, tmp_path / "lora")
