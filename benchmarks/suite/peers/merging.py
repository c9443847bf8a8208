"""TIES (arXiv 2306.01708) and DARE (arXiv 2311.03099), both by PEFT's `add_weighted_adapter`.

PEFT's `ties` and `dare_ties` trim A and B apart and multiply the results, which merges no weight changes; its
`_svd` kinds merge the changes B A themselves, as the papers do. Their result has full rank and is kept so:
cut to the experts' rank most of it would be lost. It stays beside the base's weights, as half precision
would round their sum.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import nn

from kshot.mixture import LoraExpert
from kshot.mixture.expert import linear_shape
from suite.arm import Built, Setting
from suite.own.tuning import as_it_is
from suite.peers.group import chosen_experts
from suite.peers.one_shape import check_plain_layers, write_one_shape

Combination = Literal["ties_svd", "dare_ties_svd"]

TIES_DENSITY = 0.2  # k = 20 %, the paper's where nothing is validated; PEFT's guide has it too
# A drop rate of 0.2, at which its authors merge decoders. PEFT's guide keeps 0.2 instead, which needs changes
# as small as those of full fine-tuning of large models: LoRA at rates for 135M parameters makes larger ones.
DARE_DENSITY = 0.8
WEIGHT = 1.0  # of each expert; TIES takes the mean of those that agree in sign, so this is its λ = 1


def build_ties(setting: Setting) -> Built:
    """Merge the chosen experts by TIES."""
    return _build(setting, "ties_svd", TIES_DENSITY)


def build_dare(setting: Setting) -> Built:
    """Merge the chosen experts by DARE, then TIES, which is what PEFT's guide calls DARE."""
    return _build(setting, "dare_ties_svd", DARE_DENSITY)


def _build(setting: Setting, combination: Combination, density: float) -> Built:
    experts = chosen_experts(setting)
    model = merge(setting.lm.model, experts, setting.work, combination, density, seed=setting.seed)
    notes = {"experts": list(experts), "combination": combination, "density": density}
    return as_it_is(setting, model, notes)


def merge(
    base: nn.Module,
    experts: Mapping[str, LoraExpert],
    work: Path,
    combination: Combination,
    density: float,
    *,
    seed: int = 0,
) -> PeftModel:
    """Put the merged experts on a base as one LoRA of full rank.

    Args:
        base: Without adapters.
        experts: By name.
        work: Folder for what PEFT reads them from.
        combination: As PEFT calls it.
        density: Share of each change's entries that is kept.
        seed: Of the entries that DARE drops.

    Raises:
        AdapterError: An expert does not fit the base, or the base is quantised.
    """
    folders = write_one_shape(experts, base, work / "experts")
    names = [folder.name for folder in folders]
    model = PeftModel.from_pretrained(base, str(folders[0]), adapter_name=names[0])
    for name, folder in zip(names[1:], folders[1:], strict=True):
        model.load_adapter(str(folder), adapter_name=name)
    check_plain_layers(model)
    largest = max(min(linear_shape(layer) or ()) for layer in _base_layers(model))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.add_weighted_adapter(
            names,
            [WEIGHT] * len(names),
            "merged",
            combination_type=combination,
            density=density,
            svd_rank=largest,
            svd_full_matrices=False,  # else A and B of a layer that is not square would not multiply
        )
    model.set_adapter("merged")
    for name in names:
        model.delete_adapter(name)
    return model.eval()


def _base_layers(model: PeftModel) -> list[nn.Module]:
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "lora_A")]
    return [layer.get_base_layer() for layer in layers]
