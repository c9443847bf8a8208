"""Exact and foretold changes of the loss, of every adapter of a bank on the shots of a task."""

import math
import os
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

import numpy as np

from kshot.bank import Bank
from kshot.examples import Example, read_examples
from kshot.experts import ScoreStore
from kshot.experts.asked_shots import AskedShot, ask_shots
from kshot.experts.batch_plan import default_memory_mb
from kshot.experts.displaced import displaced, mean_change
from kshot.experts.loss_expansion import expand_loss
from kshot.experts.loss_gradients import loss_gradients
from kshot.experts.scoring import ADAPTERS_AT_ONCE
from kshot.experts.screening import HALF_WAY, NUM_DRAWS
from kshot.experts.shot_passes import ScoringSettings
from kshot.experts.shot_runner import ShotRunner
from kshot.language_model import LanguageModel
from kshot.mixture import LoraExpert

NUM_SHOTS = 8
SCORERS = {
    "arc_easy": "multiple_choice",
    "ii_num_to_verbal": "exact_match",
    "fv_translate_en_de": "exact_match",
    "piqa": "multiple_choice",
    "mawps_equation": "number",
    "arc_challenge": "multiple_choice",
    "t0_glue_mrpc": "exact_match",
    "boolq": "multiple_choice",
    "t0_social_i_qa": "exact_match",
    "text2sql_wikisql": "exact_match",
    "gsm8k": "number",
    "mbpp": "exact_match",
}


@dataclass(frozen=True)
class Evidence:
    """Of one task and one seed of shots; M adapters, K shots, L layers.

    Attributes:
        exact: (M, K), change of the mean NLL of each shot's target, in nats.
        first: (K, M, L), the same to first order, by layer.
        norms: (M,), Frobenius norms of the adapters' changes of the weights.
        at_base: (M, 3), slope, curvature and curvature by layer of the loss over all shots.
        half_way: (M, 3), likewise, half way to the mean of the bank.
    """

    exact: np.ndarray
    first: np.ndarray
    norms: np.ndarray
    at_base: np.ndarray
    half_way: np.ndarray

    @property
    def by_shot(self) -> np.ndarray:
        """(K, M), to first order."""
        return self.first.sum(axis=2)

    @property
    def by_layer(self) -> np.ndarray:
        """(M, L), to first order."""
        return self.first.mean(axis=0)


def find_evidence(
    lm: LanguageModel, bank: Bank, task: str, seed: int, work: Path, advance: Callable[[int], None]
) -> Evidence:
    kept = work / f"{task}-seed{seed}-{NUM_SHOTS}shots.npz"
    names = [one.name for one in fields(Evidence)]
    if kept.exists():
        advance(len(bank) * NUM_SHOTS)
        with np.load(kept) as arrays:
            return Evidence(*(arrays[name] for name in names))
    asked = ask_shots(lm, _read_shots(task, seed), SCORERS[task], listed=False)
    settings = ScoringSettings(SCORERS[task], False, 1, default_memory_mb(lm.model) * 2**20)
    runner = ShotRunner(lm, asked, settings, ScoreStore(work / f"{task}.jsonl"), lambda pairs: None)
    adapters, exact = list(bank), []
    for start in range(0, len(adapters), ADAPTERS_AT_ONCE):
        group = adapters[start : start + ADAPTERS_AT_ONCE]
        runner.run(group, answers=False)
        exact += [[shot.nll for shot in runner.likelihoods(adapter)] for adapter in group]
        advance(len(group) * NUM_SHOTS)
    experts = [adapter.load() for adapter in adapters]
    base_K, first = _first_order(lm, asked, experts)
    found = Evidence(
        np.array(exact) - base_K,
        first,
        np.array([_norm(expert) for expert in experts]),
        _expand(lm, asked, experts, share=0.0),
        _expand(lm, asked, experts, share=HALF_WAY),
    )
    np.savez(kept, **{name: getattr(found, name) for name in names})
    return found


def _read_shots(task: str, seed: int) -> list[Example]:
    folder = Path(os.environ["KSHOT_DATA"])
    shots = read_examples(folder / "kshot" / task / f"seed{seed}.jsonl")[:NUM_SHOTS]
    if SCORERS[task] != "multiple_choice":
        return shots
    train = {row.id: row for row in read_examples(folder / "tasks" / task / "train.parquet")}
    return [
        replace(
            shot, question=train[shot.id].question, choices=train[shot.id].choices, label=train[shot.id].label
        )
        for shot in shots
    ]


def _first_order(
    lm: LanguageModel, asked: Sequence[AskedShot], experts: Sequence[LoraExpert]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the base's loss on each shot, (K,), and first-order changes, (K, M, L)."""
    layers = sorted({_layer(module) for expert in experts for module in expert.factors})
    parts = [
        LoraExpert(
            f"{expert.name} {layer}",
            None,
            {module: one for module, one in expert.factors.items() if _layer(module) == layer},
        )
        for expert in experts
        for layer in layers
    ]
    losses, first = [], []
    for shot in asked:
        gradients = loss_gradients(lm, [shot.reasoning], experts[0].factors)
        losses.append(gradients.loss)
        slopes = [one.slope for one in expand_loss(gradients, parts).values()]
        first.append(np.array(slopes).reshape(len(experts), len(layers)))
    return np.array(losses), np.array(first)


def _expand(
    lm: LanguageModel, asked: Sequence[AskedShot], experts: Sequence[LoraExpert], share: float
) -> np.ndarray:
    moved = displaced(lm.model, mean_change(experts, share)) if share else nullcontext()
    with moved:
        rows = [one.reasoning for one in asked]
        gradients = loss_gradients(lm, rows, experts[0].factors, num_draws=NUM_DRAWS)
    return np.array([astuple(one) for one in expand_loss(gradients, experts).values()])


def _layer(module: str) -> int:
    return int(re.findall(r"\d+", module)[0])


def _norm(expert: LoraExpert) -> float:
    changes = (one.scaling * one.B_Or.float() @ one.A_rI.float() for one in expert.factors.values())
    return math.sqrt(sum(float(change.square().sum()) for change in changes))
