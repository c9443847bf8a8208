"""Exact and first-order changes of the loss, of every adapter of a bank on the shots of a task."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from kshot.bank import Bank
from kshot.examples import Example, read_examples
from kshot.experts import ScoreStore
from kshot.experts.asked_shots import AskedShot, ask_shots
from kshot.experts.batch_plan import default_memory_mb
from kshot.experts.first_order import first_order_changes
from kshot.experts.loss_gradients import loss_gradients
from kshot.experts.scoring import ADAPTERS_AT_ONCE
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
    """Of one task and one seed of shots; M adapters, K shots, L modules.

    Attributes:
        exact: Change of the mean NLL of each shot's target, in nats.
        first: The same to first order, by module.
        norms: Frobenius norm of each adapter's change of each module.
    """

    exact: np.ndarray
    first: np.ndarray
    norms: np.ndarray

    @property
    def first_by_shot(self) -> np.ndarray:
        return self.first.sum(axis=2)

    @property
    def norm(self) -> np.ndarray:
        return np.sqrt((self.norms**2).sum(axis=1))


def find_evidence(
    lm: LanguageModel, bank: Bank, task: str, seed: int, work: Path, advance: Callable[[int], None]
) -> Evidence:
    kept = work / f"{task}-seed{seed}-{NUM_SHOTS}shots.npz"
    if kept.exists():
        advance(len(bank) * NUM_SHOTS)
        with np.load(kept) as arrays:
            return Evidence(*(arrays[name] for name in ("exact", "first", "norms")))
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
    found = Evidence(np.array(exact) - base_K, first, _norms(experts))
    np.savez(kept, exact=found.exact, first=found.first, norms=found.norms)
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
    """Return the base's loss on each shot, and first-order changes by shot, adapter and module."""
    modules = list(experts[0].factors)
    assert all(list(expert.factors) == modules for expert in experts)
    losses, first = [], []
    for one in asked:
        gradients = loss_gradients(lm, [one.reasoning], modules)
        losses.append(gradients.loss)
        by_module = [
            first_order_changes(
                gradients,
                [LoraExpert(expert.name, None, {module: expert.factors[module]}) for expert in experts],
            )
            for module in modules
        ]
        first.append([[changes[expert.name] for changes in by_module] for expert in experts])
    return np.array(losses), np.array(first)


def _norms(experts: Sequence[LoraExpert]) -> np.ndarray:
    return np.array(
        [
            [float(torch.linalg.norm(one.scaling * one.B_Or.float() @ one.A_rI.float())) for one in factors]
            for factors in ([*expert.factors.values()] for expert in experts)
        ]
    )
