"""A mixture as an ordinary PEFT LoRA folder, for tools that know nothing of mixtures.

D inputs   O outputs   R ranks of all experts together
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from torch import nn

from kshot.errors import AdapterError, ConfigError
from kshot.mixture.config import MixtureConfig
from kshot.mixture.expert import is_transposed
from kshot.mixture.folder import WEIGHTS_NAME
from kshot.mixture.mean_routing import ModelInputs, constant_gates_loss, mean_gates
from kshot.mixture.model import mixture_config, mixture_layers

EXPORT_REPORT = "export.json"
logger = logging.getLogger(__name__)


def export_lora(
    model: PeftModel,
    folder: str | Path,
    *,
    adapter_name: str | None = None,
    gates: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
    batches: Sequence[ModelInputs] | None = None,
) -> Path:
    """Write a mixture as one LoRA: exact for fixed gates, else with constant gates in place of the router.

    The LoRA's rank is the sum of the experts' ranks (and `shared_r`), padded with zeros to one rank for all
    modules, with gates and scalings inside B and `lora_alpha = r`: readers need not know `rank_pattern`.
    `export.json` beside it says what was done, and with `batches` what it costs.

    Args:
        model: Holds the mixture.
        folder: Written to; made if missing. The config comes last: a broken export is not readable.
        adapter_name: Which mixture; the active one if omitted.
        gates: For a routed mixture, one constant gate a choice of the router, or such gates for each module.
        batches: For a routed mixture, text to take the mean routing of (unless `gates` are given) and to
            measure the loss on: what the model's forward takes, `labels` where only they count.

    Returns:
        The folder.

    Raises:
        ConfigError: `gates` or `batches` for fixed gates, gates that are not one a choice; `batches` for a
            mixture that is not active; no mixture of that name.
        AdapterError: The mixture is routed and neither `gates` nor `batches` is given.
    """
    name = adapter_name if adapter_name is not None else model.active_adapter
    config = mixture_config(model, name)
    layers = mixture_layers(model, name)
    by_module = _gates_by_module(model, name, config, gates, batches)
    loss = constant_gates_loss(model, by_module, batches, name) if by_module and batches else None
    constant = {module: torch.tensor(one, dtype=torch.float64) for module, one in (by_module or {}).items()}
    factors = {module: layer.lora_factors(name, constant.get(module)) for module, layer in layers.items()}
    r = max(len(A_RD) for A_RD, _ in factors.values())
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_padded(factors, r), folder / WEIGHTS_NAME, metadata={"format": "pt"})
    report = {"exact": by_module is None, "gates": by_module, "loss": asdict(loss) if loss else None}
    (folder / EXPORT_REPORT).write_text(json.dumps(report, indent=1), encoding="utf-8")
    LoraConfig(
        r=r,
        lora_alpha=r,
        target_modules=sorted(factors),
        fan_in_fan_out=any(is_transposed(layer.get_base_layer()) for layer in layers.values()),
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        inference_mode=True,
    ).save_pretrained(str(folder))
    if loss:
        logger.info("exported %s with constant gates: %s", name, loss)
    return folder


def _gates_by_module(
    model: PeftModel,
    name: str,
    config: MixtureConfig,
    gates: Sequence[float] | Mapping[str, Sequence[float]] | None,
    batches: Sequence[ModelInputs] | None,
) -> dict[str, list[float]] | None:
    """Constant gates for each module; None if the mixture's own are fixed."""
    if config.fixed_gates is not None:
        if gates is not None or batches is not None:
            raise ConfigError("gates and batches have no effect: the mixture's gates are fixed; drop them")
        return None
    if gates is None and batches is None:
        raise AdapterError(
            f"expected fixed_gates, got the routed mixture {name!r}, which changes by token: pass `batches` "
            "of text to export its mean routing, or constant `gates`"
        )
    if gates is None:
        return mean_gates(model, batches or [], name)
    modules = mixture_layers(model, name)
    by_module = dict(gates) if isinstance(gates, Mapping) else dict.fromkeys(modules, gates)
    strange = sorted(set(by_module) ^ set(modules))
    if strange:
        raise ConfigError(
            f"gates by module must name the mixture's {len(modules)} modules, got {len(by_module)}, with "
            f"{strange[0]} too many or too few: pass one list for all, or what mean_gates returns"
        )
    return {module: _whole(one, config) for module, one in by_module.items()}


def _whole(gates: Sequence[float], config: MixtureConfig) -> list[float]:
    """One gate a choice of the router; that of the null expert, which adds nothing, may be left out."""
    whole = len(gates) in (config.num_experts, config.num_choices)
    if not whole or not all(math.isfinite(gate) for gate in gates):
        raise ConfigError(
            f"gates must be {config.num_experts} finite numbers, one an expert, got {list(gates)}"
        )
    return [*map(float, gates), *[0.0] * (config.num_choices - len(gates))]


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
