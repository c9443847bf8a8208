"""A small run folder, made by the code that makes real ones wherever that needs no model."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from kshot.atomic import write_json, write_text
from kshot.config import DataConfig, ExpertsConfig, TaskConfig
from kshot.evaluation.runner import EvaluationResult, Prediction
from kshot.evaluation.statistics import mean_and_stderr
from kshot.experts import ExpertScore, Similarity, select_experts
from kshot.pipeline.evaluation_stage import ARMS, write_results
from kshot.run_folder import (
    CHOICE,
    CONFIG,
    DATA_MAP,
    DATA_SUMMARY,
    ENVIRONMENT,
    PREDICTIONS,
    SCORES,
    SELECTED,
    SELECTION,
    SIMILARITY,
    TOKEN_EXPERTS,
    TRAINING,
    RunFolder,
)
from kshot.training import TrainingResult

NAMES = ["arithmetic", "chain-sum", "commonsense", "dialogue", "dates", "spelling"]
# right answers of each arm, on the first of 40 rows
HITS = {"base": 8, "best_single": 12, "best_single_tuned": 18, "uniform_mixture": 10, "tuned_mixture": 32}
N = 40
EXPERTS = ExpertsConfig()
ALL_PARTS = ("experts", "data", "training", "choice", "eval")

MakeRun = Callable[..., RunFolder]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Write a run: all of it, or the named parts."""

    def make(
        parts: Sequence[str] = ALL_PARTS,
        *,
        hits: dict[str, int] = HITS,
        n: int = N,
        text: str = "What is 2 + 3?",
        budget: int = 3,
        losses: Sequence[float] = (2.5, 1.75, 1.25, 0.5),
        test: str | None = "test.jsonl",
        num_rationales: int = 6,
        other: dict[str, float] | None = None,
        experts: ExpertsConfig = EXPERTS,
        name: str = "run",
        pool_sample: int = 30,
        seed: int = 3,
    ) -> RunFolder:
        run = RunFolder(tmp_path / name)
        task = TaskConfig(
            name="shopping",
            base_model="tiny",
            shots="shots.jsonl",
            test=test,
            bank=("bank",),
            pool=("pool.jsonl",),
            experts=experts,
            data=DataConfig(budget=budget),
            seed=seed,
        )
        config = yaml.safe_dump(task.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        run.write_text(CONFIG, config)
        write_json(
            run.path(ENVIRONMENT), {"python": "3.11.2", "accelerator": None, "packages": {"torch": "2.13.0"}}
        )
        if "experts" in parts:
            write_experts(run, num_rationales, experts)
        if "data" in parts:
            write_data(run, text, budget)
            if budget and pool_sample:
                write_map(run, text, budget, pool_sample)
        if "training" in parts:
            for stage in ("single", "expert"):
                with run.stage(stage, "hash") as folder:
                    result = TrainingResult(list(losses), 11, 4321, 98765, 61.25)
                    write_json(folder / TRAINING, asdict(result))
        if "eval" in parts:
            write_evaluation(run, hits, n, text, other or {})
            write_token_experts(run, n)
        if "choice" in parts:
            write_choice(run)
        return run

    return make


def write_experts(run: RunFolder, num_rationales: int, experts: ExpertsConfig) -> None:
    scores = [
        ExpertScore(
            name=name,
            accuracy=0.75 - 0.125 * i,
            reasoning_ppl=2.125 + i,
            answer_first_ppl=2.25 + i if num_rationales else None,
            mean_nll=0.5 + i / 4,
            median_nll=0.5 + i / 4,
            n=8,
            num_rationales=num_rationales,
            num_tokens=90,
            shot_nll=tuple(0.5 + i / 4 + (shot == i) / 8 for shot in range(8)),
            shot_answer_nll=(0.5,) * 8,
            shot_correct=(True,) * 8,
            shot_margin=None,
            shot_answer=("5",) * 8,
            seconds=0.5,
        )
        for i, name in enumerate(NAMES)
    ]
    matrix = np.full((len(NAMES), len(NAMES)), 0.25)
    matrix[0, 1] = matrix[1, 0] = 0.875
    np.fill_diagonal(matrix, 1.0)
    similarity = Similarity(tuple(NAMES), matrix)
    selection = select_experts(scores, similarity, num_experts=2, num_candidates=4, method=experts.method)
    with run.stage("experts", "hash") as folder:
        write_json(folder / SCORES, {"scores": [asdict(score) for score in scores], "failures": {}})
        write_json(folder / SIMILARITY, {"names": similarity.names, "matrix": similarity.matrix.tolist()})
        leaks = {"flagged": {}, "without_flagged": None, "failures": {}}
        write_json(folder / SELECTION, selection.to_json() | leaks)


def write_data(run: RunFolder, text: str, budget: int) -> None:
    rows = [
        {"instruction": text, "input": f"row {i}", "output": f"answer {i}", "id": f"pool-{i}"}
        | {"source": "open-maths", "relevance": 0.91234 - i / 1000, "nearest_shot": "shot-2"}
        for i in range(budget)
    ]
    summary: dict[str, Any] = {"pool_rows": 0, "selected": 0, "dropped": [], "sources": {}}
    summary |= {"avoided": {}, "without_rationale": 0}
    if budget:
        summary = {
            "pool_rows": 3456,
            "duplicates_skipped": 1,
            "selected": budget,
            "without_rationale": 5,
            "avoided": {"pool-7": "shot shot-1", "pool-8": "test row test-4", "pool-9": "longer than 1024"},
            "dropped": [{"id": "pool-5", "reason": "near_copy", "kept": "pool-0", "cosine": 0.98765}],
            "sources": {"open-maths": budget},
        }
    with run.stage("data", "hash") as folder:
        write_text(folder / SELECTED, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        write_json(folder / DATA_SUMMARY, summary)


def write_arm(run: RunFolder, arm: str, hits: int, n: int, text: str, other: dict[str, float]) -> None:
    predictions = [
        Prediction(f"test-{i}", f"question {i}", f"{arm} says {text}", str(i), i < hits) for i in range(n)
    ]
    estimate = mean_and_stderr([one.correct for one in predictions])
    stderr = estimate.stderr if n > 1 else None
    result = EvaluationResult(estimate.mean, stderr, n, tuple(predictions), other)
    with run.stage(f"eval/{arm}", "hash") as folder:
        rows = [one.to_row() for one in result.predictions]
        write_json(folder / PREDICTIONS, {"summary": result.summary(), "predictions": rows})


def write_evaluation(
    run: RunFolder, hits: dict[str, int], n: int, text: str, other: dict[str, float]
) -> None:
    for arm in ARMS:
        write_arm(run, arm, hits[arm], n, text, other)
    write_results(run)


def write_map(run: RunFolder, text: str, budget: int, pool_sample: int) -> None:
    draw = np.random.default_rng(0)

    def points(count: int, spread: float, start: float) -> list[list[Any]]:
        places = (draw.normal(size=(count, 2)) * spread).round(4).tolist()
        return [[x, y, 0, round(start - i / (2 * count), 4), text[:100]] for i, (x, y) in enumerate(places)]

    found = {
        "columns": ["x", "y", "source", "relevance", "text"],
        "sources": ["open-maths"],
        "explained": 0.25,
        "num_comparable": 3456,
        "shots": [[x, y, None, None, f"shot-2: {text[:90]}"] for x, y, *_ in points(4, 0.1, 1)],
        "kept": points(budget, 0.1, 0.9),
        "pool": points(pool_sample, 0.4, 0.8),
    }
    write_json(run.path("data", DATA_MAP), found)


def write_choice(run: RunFolder) -> None:
    arms = [
        {"arm": arm, "title": title, "loss": 1.0 + i / 8, "stderr": 0.125, "accuracy": 0.5}
        | {"difference_to_best": i / 8, "difference_stderr": 0.0625}
        for i, (arm, title) in enumerate((("tuned_mixture", "tuned mixture"), ("base", "base model")))
    ]
    found = {"chosen": "tuned_mixture", "title": "tuned mixture", "reason": "least loss on the shots"}
    with run.stage("choice", "hash") as folder:
        write_json(folder / CHOICE, found | {"folds": 4, "unit": "nats a token", "arms": arms})


def write_token_experts(run: RunFolder, n: int) -> None:
    answers = [
        {"id": f"test-{i}", "tokens": ["The", " answer", " 5"], "gates": [[0.75, 0.25], [0.5, 0.5], [0, 1]]}
        for i in range(min(n, 50))
    ]
    layers = [
        {"layer": f"model.layers.{i}", "gates": [round(0.25 + i / 8, 3), round(0.75 - i / 8, 3)]}
        for i in range(3)
    ]
    found = {"choices": NAMES[:2], "layers": layers, "answers": answers}
    write_json(run.path("eval", "tuned_mixture", TOKEN_EXPERTS), found)
