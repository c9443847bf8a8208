"""Adapters of the tiny model that differ in rank, scaling and modules, and what they do to its weights."""

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaForCausalLM

from kshot.mixture import LoraExpert, LoraFactors

MIXED = (
    {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]},
    {"r": 3, "use_rslora": True, "target_modules": ["q_proj", "down_proj"]},
    {"r": 4, "lora_alpha": 8, "target_modules": ["v_proj"], "layers_to_transform": [1]},
    {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
)
IDS_BT = torch.randint(5, 250, (2, 11), generator=torch.Generator().manual_seed(5))


def write_adapters(folder: Path, model_folder: Path) -> Path:
    """Write one adapter for each of `MIXED`, `e0` to `e4`."""
    model = LlamaForCausalLM.from_pretrained(model_folder)
    for number, settings in enumerate(MIXED):
        adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
        draw = torch.Generator().manual_seed(number)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.1, generator=draw)
        adapted.save_pretrained(folder / f"e{number}", save_embedding_layers=False)
        model = adapted.unload()
    return folder


@torch.no_grad()
def logits(model: nn.Module, ids_BT: torch.Tensor = IDS_BT) -> torch.Tensor:
    """Return what a model says without a cache, (B, T, V)."""
    return model.eval()(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), use_cache=False).logits


def delta(factors: LoraFactors) -> torch.Tensor:
    """Return a weight change, (O, I)."""
    return factors.scaling * factors.B_Or.float() @ factors.A_rI.float()


def mean_change(experts: Iterable[LoraExpert]) -> dict[str, torch.Tensor]:
    """Return the mean weight change of each module; a module that an expert lacks counts as 0."""
    all_experts, total = list(experts), {}
    for expert in all_experts:
        for module, factors in expert.factors.items():
            total[module] = total.get(module, 0) + delta(factors) / len(all_experts)
    return total


def with_changes(base: nn.Module, changes: Mapping[str, torch.Tensor]) -> nn.Module:
    """Return a copy whose weights are changed."""
    changed = copy.deepcopy(base)
    for module, change_OI in changes.items():
        changed.get_submodule(module).weight.data += change_OI
    return changed
