"""A mixture as an ordinary PEFT LoRA folder, for tools that know nothing of mixtures.

D inputs   O outputs   R ranks of all experts together
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from torch import nn

from kshot.errors import ConfigError
from kshot.mixture.config import MixtureConfig
from kshot.mixture.expert import WEIGHTS_NAME, is_transposed
from kshot.mixture.model import mixture_config, mixture_layers


def export_lora(
    model: PeftModel,
    folder: str | Path,
    *,
    adapter_name: str | None = None,
    gates: Sequence[float] | None = None,
) -> Path:
    """Write a mixture as one LoRA: exact for fixed gates, an approximation for a router and gates given here.

    The LoRA's rank is the sum of the experts' ranks (and `shared_r`), padded with zeros to one rank for all
    modules, with gates and scalings inside B and `lora_alpha = r`: readers need not know `rank_pattern`.

    Args:
        model: Holds the mixture.
        folder: Written to; made if missing. The config comes last: a broken export is not readable.
        adapter_name: Which mixture; the active one if omitted.
        gates: For a routed mixture, one constant gate an expert, such as its mean gate over some text. What
            is lost by that is not measured here.

    Returns:
        The folder.

    Raises:
        ConfigError: `gates` for fixed gates, or not one an expert; no mixture of that name.
        AdapterError: The mixture is routed and `gates` is not given.
    """
    name = adapter_name if adapter_name is not None else model.active_adapter
    config = mixture_config(model, name)
    _check_gates(config, gates)
    layers = mixture_layers(model, name)
    gates_N = None if gates is None else torch.tensor(list(gates), dtype=torch.float64)
    factors = {module: layer.lora_factors(name, gates_N) for module, layer in layers.items()}
    r = max(len(A_RD) for A_RD, _ in factors.values())
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_padded(factors, r), folder / WEIGHTS_NAME, metadata={"format": "pt"})
    LoraConfig(
        r=r,
        lora_alpha=r,
        target_modules=sorted(factors),
        fan_in_fan_out=any(is_transposed(layer.get_base_layer()) for layer in layers.values()),
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        inference_mode=True,
    ).save_pretrained(str(folder))
    return folder


def _check_gates(config: MixtureConfig, gates: Sequence[float] | None) -> None:
    if gates is None:
        return
    if config.fixed_gates is not None:
        raise ConfigError(f"gates={list(gates)} has no effect: the mixture's gates are fixed; drop it")
    if len(gates) != config.num_experts:
        raise ConfigError(f"gates must be {config.num_experts} numbers, one an expert, got {list(gates)}")


def _padded(factors: dict[str, tuple[torch.Tensor, torch.Tensor]], r: int) -> dict[str, torch.Tensor]:
    tensors = {}
    for module, (A_RD, B_OR) in factors.items():
        lacking = r - len(A_RD)
        tensors[f"base_model.model.{module}.lora_A.weight"] = (
            nn.functional.pad(A_RD, (0, 0, 0, lacking)).contiguous().cpu()
        )
        tensors[f"base_model.model.{module}.lora_B.weight"] = (
            nn.functional.pad(B_OR, (0, lacking)).contiguous().cpu()
        )
    return tensors
