"""How fast slope and curvature order adapters that are made on the fly, and adapters of a bank on disk."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file

from kshot.bank import Bank
from kshot.examples import Example
from kshot.experts import screen_experts
from kshot.experts.asked_shots import ask_shots
from kshot.experts.loss_expansion import Expansion, expand_loss, foretell_changes
from kshot.experts.loss_gradients import LossGradients, loss_gradients
from kshot.experts.screening import NUM_DRAWS, RANKS_AT_ONCE
from kshot.language_model import LanguageModel
from kshot.mixture import LoraExpert, LoraFactors
from kshot.procedural import draw_shopping
from kshot.terminal import RichProgress
from measuring.memory import process_peak_bytes

FROM_DISK = 500
R, LAYERS = 8, 30
OUTPUTS = {"q_proj": 576, "v_proj": 192}
INPUTS = 576


def measure_scale(lm: LanguageModel, num_adapters: int) -> dict[str, Any]:
    busy = round(os.getloadavg()[0], 2)
    lm.model.eval()
    shots = draw_shopping(size=16, seed=0)
    rows = [one.reasoning for one in ask_shots(lm, shots, "number", listed=False)]
    modules = [f"model.layers.{layer}.self_attn.{side}" for layer in range(LAYERS) for side in OUTPUTS]
    started = time.perf_counter()
    gradients = loss_gradients(lm, rows, modules, num_draws=NUM_DRAWS)
    found: dict[str, Any] = {
        "setting": f"r = {R}, {len(modules)} modules, d = {INPUTS}, bfloat16, 16 shots",
        "load_average_before": busy,
        "threads": torch.get_num_threads(),
        "gradient_seconds": round(time.perf_counter() - started, 2),
        f"slope and curvature of {NUM_DRAWS} draws": _order_generated(gradients, modules, num_adapters),
    }
    slope = {module: G_POD[:1] for module, G_POD in gradients.by_module.items()}
    found["slope alone"] = _order_generated(LossGradients(gradients.loss, slope), modules, num_adapters)
    found["peak_gb"] = round(process_peak_bytes() / 1e9, 2)
    with TemporaryDirectory() as root:
        found["from_disk"] = _order_stored(lm, shots, _write_bank(Path(root), modules))
    return found


def _order_generated(gradients: LossGradients, modules: Sequence[str], num_adapters: int) -> dict[str, Any]:
    """Make blocks of adapters and order all; what making them takes is no part of it."""
    generating = ordering = 0.0
    expansions: dict[str, Expansion] = {}
    generator = torch.Generator().manual_seed(0)
    with RichProgress().bar("ordering", num_adapters) as advance:
        for block in _blocks_of_names(num_adapters):
            started = time.perf_counter()
            experts = [_make(name, modules, generator) for name in block]
            made = time.perf_counter()
            expansions |= expand_loss(gradients, experts)
            generating, ordering = generating + made - started, ordering + time.perf_counter() - made
            advance(len(block))
    started = time.perf_counter()
    changes = foretell_changes(expansions)
    order = sorted(changes, key=changes.__getitem__)
    ordering += time.perf_counter() - started
    passes = len(gradients.by_module[modules[0]])
    operations = 2 * passes * R * INPUTS * sum(OUTPUTS.values()) * LAYERS
    return {
        "adapters": len(order),
        "seconds": round(ordering, 1),
        "adapters_per_second": round(num_adapters / ordering, 1),
        "gflops": round(num_adapters * operations / ordering / 1e9, 1),
        "matmul_gflops": _matmul_gflops(gradients.by_module[modules[0]][0]),
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
